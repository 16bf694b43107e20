//! A machine's serial console: reading its log, and sitting at it.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, SetArg, Termios};

/// For kernels: the serial port is the only console that a lab's machine has.
pub(crate) const ARGUMENT: &str = "console=ttyS0,115200";

/// What a person reads in a serial log, line by line. Firmware paints its menus with escape sequences and overwrites its
/// progress: whatever moves the cursor to another place begins a new line here.
pub fn plain(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let moved = match c {
            '\x1b' => escape_moves(&mut chars),
            '\r' => chars.peek() != Some(&'\n'),
            c => {
                if matches!(c, '\n' | '\t') || !c.is_control() {
                    out.push(c);
                }
                false
            }
        };
        if moved && !out.is_empty() && !out.ends_with('\n') {
            out.push('\n');
        }
    }
    out
}

/// Skips an escape and says whether it puts the cursor elsewhere. ECMA-48: a control sequence ends with a byte of `@` to
/// `~`, `H` and `f` being positions; every other escape is one character long, or two when the first is an intermediate.
fn escape_moves(chars: &mut std::iter::Peekable<impl Iterator<Item = char>>) -> bool {
    match chars.next() {
        Some('[') => matches!(chars.find(|c| ('@'..='~').contains(c)), Some('H' | 'f')),
        Some(' '..='/') => {
            chars.next();
            false
        }
        _ => false,
    }
}

/// The last lines with something on them.
pub fn last_lines(text: &str, count: usize) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).rev().take(count).collect();
    lines.reverse();
    lines
}

/// Ctrl-], as telnet has it.
const LEAVE: u8 = 0x1d;

/// Connects the terminal to the console until Ctrl-] or until the machine is switched off.
pub fn attach(mut console: UnixStream) -> Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "a console needs a terminal to type at; `drophammer lab console NAME --log` prints what it said"
    );
    let _raw = RawTerminal::enter()?;
    let mut buffer = [0; 4096];
    loop {
        let stdin = io::stdin();
        let mut ready =
            [PollFd::new(stdin.as_fd(), PollFlags::POLLIN), PollFd::new(console.as_fd(), PollFlags::POLLIN)];
        poll(&mut ready, PollTimeout::NONE).context("waiting for the terminal or the console")?;
        let [typed, said] = ready.map(|fd| fd.any().unwrap_or(true));
        if said {
            let n = console.read(&mut buffer).context("reading the console")?;
            if n == 0 {
                return Ok(());
            }
            let mut stdout = io::stdout().lock();
            stdout.write_all(buffer.get(..n).unwrap_or_default()).and_then(|()| stdout.flush()).context("writing")?;
        }
        if typed {
            // Past the standard library's buffer, which poll doesn't know of.
            let n = nix::unistd::read(&stdin, &mut buffer).context("reading the terminal")?;
            let keys = buffer.get(..n).unwrap_or_default();
            if keys.is_empty() || keys.contains(&LEAVE) {
                return Ok(());
            }
            console.write_all(keys).context("typing at the console")?;
        }
    }
}

/// A terminal that passes every key on; as it was when this is dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> Result<Self> {
        let before = termios::tcgetattr(io::stdin()).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).context("setting the terminal to raw")?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_not_text() {
        for (name, raw, want) in [
            ("plain", &b"login: "[..], "login: "),
            ("lines", b"a\r\nb\r\n", "a\nb\n"),
            ("colours", b"\x1b[0;37;40mhi\x1b[0m", "hi"),
            ("clear and home", b"\x1b[2J\x1b[01;01Hmenu", "menu"),
            ("painted", b"a\x1b[02;01Hb\x1b[03;01H\x1b[04;01Hc", "a\nb\nc"),
            ("overwritten", b"1%\r2%\r\n", "1%\n2%\n"),
            ("reset", b"\x1bcSeaBIOS", "SeaBIOS"),
            ("character set", b"\x1b(Btext", "text"),
            ("cut short", b"end\x1b[", "end"),
            ("not UTF-8", b"a\xffb", "a\u{fffd}b"),
        ] {
            assert_eq!(plain(raw), want, "{name}");
        }
    }

    #[test]
    fn last_lines_skip_the_empty() {
        assert_eq!(last_lines("a\n\n b \n   \nc\n", 2), [" b", "c"]);
        assert_eq!(last_lines("", 2), [""; 0]);
    }
}
