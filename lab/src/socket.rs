//! How other processes speak to a running lab: one JSON line each way over its Unix socket.
//!
//! The boot server's power hook comes this way, and the `drophammer lab` commands.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::accel::Accel;
use crate::net::Place;
use crate::qemu::MachineSpec;

/// Name of the socket in a lab's directory.
pub const SOCKET: &str = "lab.sock";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// `machine` is a name or an id.
    Power {
        machine: String,
        action: PowerAction,
    },
    Status,
    /// Switch everything off and end.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PowerAction {
    On,
    Off,
    Cycle,
    Reset,
}

impl FromStr for PowerAction {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            "cycle" => Ok(Self::Cycle),
            "reset" => Ok(Self::Reset),
            _ => Err(anyhow!("{s:?} is no power action; there are on, off, cycle and reset")),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Done,
    Status(Status),
    Refused { reason: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub pid: u32,
    pub accel: Accel,
    pub server_running: bool,
    pub namespaces: Place,
    pub machines: Vec<MachineStatus>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineStatus {
    pub on: bool,
    pub spec: MachineSpec,
}

/// Machines switch in well under a second; a lab that doesn't answer for so long is stuck.
const TIMEOUT: Duration = Duration::from_secs(60);
const MAX_LINE: u64 = 1 << 20;

/// Asks the lab whose directory this is.
pub fn ask(dir: &Path, request: &Request) -> Result<Answer> {
    let asking = || format!("asking the lab in {}", dir.display());
    let mut stream = crate::net::connect(dir, SOCKET).with_context(asking)?;
    stream.set_read_timeout(Some(TIMEOUT)).with_context(asking)?;
    let text = serde_json::to_string(request).context("writing a request as JSON")?;
    writeln!(stream, "{text}").with_context(asking)?;
    match line(&stream).with_context(asking)? {
        Answer::Refused { reason } => Err(anyhow!(reason)),
        answer => Ok(answer),
    }
}

pub fn status(dir: &Path) -> Result<Status> {
    match ask(dir, &Request::Status)? {
        Answer::Status(status) => Ok(status),
        other => Err(anyhow!("the lab answered something else than its status: {other:?}")),
    }
}

/// What the boot server's hook runs: `drophammer lab power-hook SOCKET cycle MACHINE`.
pub fn power_hook(socket: &Path, action: PowerAction, machine: &str) -> Result<()> {
    let dir = socket.parent().context("the lab's socket has to be given with its directory")?;
    ask(dir, &Request::Power { machine: machine.to_owned(), action }).map(drop)
}

/// Answers one request; the answer is a refusal when `decide` fails.
pub(crate) fn answer(stream: &UnixStream, decide: impl FnOnce(Request) -> Result<Answer>) -> Result<()> {
    stream.set_read_timeout(Some(TIMEOUT)).context("setting a timeout")?;
    let answer = line(stream).and_then(decide).unwrap_or_else(|e| Answer::Refused { reason: format!("{e:#}") });
    let text = serde_json::to_string(&answer).context("writing an answer as JSON")?;
    let mut stream = stream;
    writeln!(stream, "{text}").context("answering")
}

fn line<T: serde::de::DeserializeOwned>(stream: &UnixStream) -> Result<T> {
    let mut text = String::new();
    BufReader::new(stream.take(MAX_LINE)).read_line(&mut text).context("reading a line")?;
    ensure!(!text.is_empty(), "it hung up");
    serde_json::from_str(&text).context("understanding a line")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn requests_are_answered_or_refused_in_words() {
        let power = Request::Power { machine: "m1".into(), action: PowerAction::Cycle };
        for (name, request, reply, want) in [
            ("done", power, Ok(Answer::Done), Ok(Answer::Done)),
            ("refused", Request::Down, Err("no: not today"), Err("no: not today")),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let listener = UnixListener::bind(dir.path().join(SOCKET)).expect("a socket");
            let expected = request.clone();
            let lab = thread::spawn(move || {
                let (stream, _) = listener.accept().expect("a client");
                answer(&stream, |got| {
                    assert_eq!(got, expected);
                    reply.map_err(|e| anyhow!("{}", &e[4..]).context(e[..2].to_owned()))
                })
                .expect("answers");
            });
            let got = ask(dir.path(), &request).map_err(|e| format!("{e:#}"));
            assert_eq!(got, want.map_err(str::to_owned), "{name}");
            lab.join().expect("ends");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        (&theirs).write_all(b"power on please\n").expect("written");
        answer(&ours, |_| Ok(Answer::Done)).expect("answers");
        let got: Answer = line(&theirs).expect("an answer");
        assert!(matches!(got, Answer::Refused { reason } if reason.contains("understanding")));
    }

    #[test]
    fn power_actions_have_names() {
        for (text, want) in [
            ("on", Some(PowerAction::On)),
            ("off", Some(PowerAction::Off)),
            ("cycle", Some(PowerAction::Cycle)),
            ("reset", Some(PowerAction::Reset)),
            ("explode", None),
        ] {
            assert_eq!(text.parse::<PowerAction>().ok(), want, "{text}");
        }
    }
}
