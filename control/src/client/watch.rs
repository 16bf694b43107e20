//! News, as they come.

use std::io::{BufRead, BufReader};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use drophammer_protocol::api::{News, WATCH};
use reqwest::blocking::Response;

use super::Client;

/// Everything of one kind that changes, one after the other, without end.
#[derive(Debug)]
pub struct Watch<'a> {
    client: &'a Client,
    kind: String,
    /// What was heard last.
    last: Option<String>,
    open: Option<BufReader<Response>>,
}

/// Before a server that went away is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// Of a connection that has no end.
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl<'a> Watch<'a> {
    pub(super) fn begin(client: &'a Client, kind: &str) -> Result<Self> {
        let mut watch = Self { client, kind: kind.to_owned(), last: None, open: None };
        watch.open = Some(watch.open()?);
        Ok(watch)
    }
}

impl Watch<'_> {
    fn open(&mut self) -> Result<BufReader<Response>> {
        let mut url = self.client.url(WATCH, &[])?;
        url.query_pairs_mut().append_pair("kinds", &self.kind);
        let request = self.client.http.get(url).timeout(FOR_EVER);
        let request = match &self.last {
            Some(last) => request.header("Last-Event-ID", last),
            None => request,
        };
        let answer = self.client.ask(request)?;
        if answer.status().is_success() {
            return Ok(BufReader::new(answer));
        }
        let (status, body) = (answer.status(), answer.bytes().unwrap_or_default());
        self.client.understand::<()>(status, &body)?;
        bail!("the server has no news to tell")
    }

    /// The next event's name, and its data. An error says that the connection ended.
    fn read(&mut self) -> Result<(String, News)> {
        let (mut name, mut id) = (String::new(), None);
        let reader = self.open.as_mut().context("nothing is watched")?;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).context("watching")? == 0 {
                bail!("the server ended the conversation");
            }
            let line = line.trim_end();
            if let Some(text) = line.strip_prefix("event: ") {
                name = text.to_owned();
            } else if let Some(text) = line.strip_prefix("id: ") {
                id = Some(text.to_owned());
            } else if let Some(text) = line.strip_prefix("data: ") {
                self.last = id.or(self.last.take());
                return Ok((name, serde_json::from_str(text).context("reading what changed")?));
            }
        }
    }
}

impl Iterator for Watch<'_> {
    type Item = Result<News>;

    fn next(&mut self) -> Option<Result<News>> {
        loop {
            if self.open.is_none() {
                // Who was there comes back.
                let Ok(open) = self.open() else {
                    thread::sleep(PAUSE);
                    continue;
                };
                self.open = Some(open);
            }
            match self.read() {
                Ok((name, _)) if name == "lost" => {
                    (self.open, self.last) = (None, None);
                    return Some(Err(anyhow!(
                        "the server has forgotten what happened meanwhile: list what there is, and watch from there"
                    )));
                }
                Ok((name, news)) if name == "changed" => return Some(Ok(news)),
                Ok(_) => {}
                Err(_) => self.open = None,
            }
        }
    }
}
