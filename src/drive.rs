//! `drophammer drive`: what only somebody who stands before a drive knows of it.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use drophammer_protocol::erase::Psid;
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::output;
use crate::server;

pub(crate) type Args = server::Args<Command>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Keep the PSID of a self-encrypting drive: the 32 characters on its label, which erase it whoever locked it.
    ///
    /// It is asked for at the terminal, or read from standard input. The server gives it to the agent of the drive's
    /// machine when that is to be erased, and shows it to nobody.
    Psid(Which),
    /// Which drives' PSIDs the server keeps, by serial number.
    Psids,
    /// Forget a drive's PSID.
    ForgetPsid(Which),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The drive's serial number.
    serial: String,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json();
    let client = args.server.connect()?;
    match args.command {
        Command::Psid(Which { serial }) => client.keep_psid(&serial, &ask(&serial)?),
        Command::ForgetPsid(Which { serial }) => client.forget_psid(&serial),
        Command::Psids => {
            let serials = client.psids()?;
            if json {
                return output::json(&serials);
            }
            serials.iter().try_for_each(|serial| output::line(serial))
        }
    }
}

/// As much as anybody would type.
const LONGEST: u64 = 4096;

fn ask(serial: &str) -> Result<Psid> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let mut text = String::new();
        stdin.lock().take(LONGEST).read_to_string(&mut text).context("reading the PSID from standard input")?;
        return Ok(text.parse()?);
    }
    let _silent = Silence::new()?;
    let psid: Psid = prompted(&format!("PSID of drive {serial}: "))?.parse()?;
    // Nobody sees what they type, and a wrong one shows only when the drive is to be erased.
    let again: Psid = prompted("and again: ")?.parse()?;
    ensure!(psid == again, "these are two different ones; nothing was kept");
    Ok(psid)
}

fn prompted(prompt: &str) -> Result<String> {
    eprint!("{prompt}");
    std::io::stderr().flush().context("asking for the PSID")?;
    let mut line = String::new();
    std::io::stdin().lock().take(LONGEST).read_line(&mut line).context("reading the PSID")?;
    // The terminal doesn't show this one either.
    eprintln!();
    Ok(line)
}

/// The terminal shows nothing of what is typed, until this is gone.
struct Silence(Termios);

impl Silence {
    fn new() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).context("asking the terminal for its settings")?;
        let mut silent = before.clone();
        silent.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(stdin.as_fd(), SetArg::TCSAFLUSH, &silent).context("having the terminal not show what is typed")?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSAFLUSH, &self.0) {
            eprintln!("drophammer: the terminal goes on hiding what is typed ({error}); `stty echo` ends that");
        }
    }
}
