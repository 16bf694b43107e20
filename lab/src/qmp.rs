//! QEMU's monitor: one JSON object per line over a Unix socket (QEMU Machine Protocol).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::net;

const TIMEOUT: Duration = Duration::from_secs(20);
/// Answers to the commands that the lab uses are a few hundred bytes.
const MAX_LINE: u64 = 1 << 20;

#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    pub(crate) fn connect(dir: &Path, socket: &str) -> Result<Self> {
        let stream = net::connect(dir, socket)
            .with_context(|| format!("connecting to the machine's monitor {}", dir.join(socket).display()))?;
        stream.set_read_timeout(Some(TIMEOUT)).context("setting the monitor's timeout")?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.line().context("reading the monitor's greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and gives its answer; events that come in between aren't for us.
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let order = json!({ "execute": command, "arguments": arguments });
        let asking = || format!("asking the machine's monitor for {command}");
        writeln!(self.stream.get_mut(), "{order}").with_context(asking)?;
        loop {
            let mut answer = self.line().with_context(asking)?;
            if let Some(error) = answer.get("error") {
                bail!(
                    "the machine's monitor refused {command}: {}",
                    error["desc"].as_str().unwrap_or("no reason given")
                );
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.by_ref().take(MAX_LINE).read_line(&mut line).context("reading from the monitor")?;
        if line.is_empty() {
            bail!("the machine was switched off");
        }
        serde_json::from_str(&line).context("understanding the monitor")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    #[test]
    fn answers_are_told_from_events() {
        for (name, said, want) in [
            ("an answer", "{\"return\": {\"running\": true}}\n", Ok(json!({ "running": true }))),
            ("an event first", "{\"event\": \"RESET\"}\n{\"return\": {}}\n", Ok(json!({}))),
            (
                "a refusal",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no such device\"}}\n",
                Err("the machine's monitor refused x: no such device"),
            ),
            ("silence", "", Err("asking the machine's monitor for x: the machine was switched off")),
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            let listener = UnixListener::bind(dir.path().join("qmp")).expect("a socket");
            let monitor = thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("a client");
                stream.write_all(b"{\"QMP\": {}}\n{\"return\": {}}\n").expect("greets");
                // The handshake, then the command.
                let mut lines = BufReader::new(stream.try_clone().expect("clones")).lines();
                lines.by_ref().take(2).for_each(|line| drop(line.expect("a command")));
                stream.write_all(said.as_bytes()).expect("answers");
            });
            let mut qmp = Qmp::connect(dir.path(), "qmp").expect("connects");
            let got = qmp.execute("x", json!({})).map_err(|e| format!("{e:#}"));
            assert_eq!(got, want.map_err(str::to_owned), "{name}");
            monitor.join().expect("ends");
        }
    }
}
