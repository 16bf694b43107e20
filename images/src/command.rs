//! Runs the few programs of the host that we use, and says why one failed.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// How many of its last lines an error quotes.
const TAIL: usize = 25;

/// What `command` printed, if it succeeded. `package` is what brings the program, for when it is missing.
pub(crate) fn output(command: &mut Command, package: &str) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| missing(e, command, package))
        .with_context(|| format!("running {}", name(command)))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let tail = text.lines().rev().take(TAIL).collect::<VecDeque<_>>();
        return failed(command, output.status, tail.into_iter().rev());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end and hands over each line it writes to stderr as it comes.
pub(crate) fn follow(command: &mut Command, package: &str, mut line: impl FnMut(&str)) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .env("LC_ALL", "C")
        .spawn()
        .map_err(|e| missing(e, command, package))
        .with_context(|| format!("running {}", name(command)))?;
    let mut tail = VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        for text in BufReader::new(stderr).split(b'\n') {
            let text = text.with_context(|| format!("reading what {} says", name(command)))?;
            let text = String::from_utf8_lossy(&text).into_owned();
            line(&text);
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(text);
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {}", name(command)))?;
    if !status.success() {
        return failed(command, status, tail.iter().map(String::as_str));
    }
    Ok(())
}

fn failed<'a, T>(command: &Command, status: ExitStatus, tail: impl Iterator<Item = &'a str>) -> Result<T> {
    let tail = tail.collect::<Vec<_>>().join("\n  ");
    let name = name(command);
    if tail.trim().is_empty() {
        bail!("{name} failed without a word ({status})");
    }
    bail!("{name} failed ({status}); its last words:\n  {tail}")
}

fn missing(error: io::Error, command: &Command, package: &str) -> anyhow::Error {
    if error.kind() == io::ErrorKind::NotFound {
        anyhow::anyhow!("{} isn't installed: install the Debian package {package}", name(command))
    } else {
        error.into()
    }
}

/// The program and its first argument: enough to know which step it was.
fn name(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    match command.get_args().next().map(|arg| arg.to_string_lossy()) {
        Some(first) if !first.starts_with(['-', '/']) => format!("{program} {first}"),
        _ => program.into_owned(),
    }
}
