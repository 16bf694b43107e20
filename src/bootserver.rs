//! `drophammer bootserver`: which boot servers there are, and letting more join.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Subcommand;
use drophammer_protocol::boot_server::BootServer;
use drophammer_protocol::id::BootServerId;
use drophammer_protocol::words;

use crate::output;
use crate::server;

pub(crate) type Args = server::Args<Command>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All boot servers, the networks that they serve, and how they are.
    List,
    /// Make a token with which one more boot server can join, within an hour.
    ///
    /// On that host: `drophammer serve --control https://THIS_SERVER --join TOKEN`. Only the first start needs the token.
    Token,
    /// Forget a boot server that is gone, and believe its certificate no more.
    Remove {
        /// As `list` shows it.
        id: BootServerId,
    },
}

pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json();
    let client = args.server.connect()?;
    match args.command {
        Command::List => list(&client.boot_servers()?, json),
        Command::Token => {
            let token = client.join_token()?;
            if json { output::json(&token) } else { output::line(&token.token) }
        }
        Command::Remove { id } => client.remove_boot_server(id),
    }
}

fn list(servers: &[BootServer], json: bool) -> Result<()> {
    if json {
        return output::json(servers);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let rows: Vec<_> = servers
        .iter()
        .map(|server| {
            let registration = &server.registration;
            let networks = registration.networks.iter().map(|n| format!("{} ({})", n.subnet, n.dhcp));
            [
                registration.name.clone(),
                registration.partition.clone(),
                if server.embedded { "embedded".into() } else { server.id.to_string() },
                registration.version.clone(),
                status(server, now),
                networks.collect::<Vec<_>>().join(", "),
                troubles(server),
            ]
        })
        .collect();
    output::table(["NAME", "PARTITION", "ID", "VERSION", "STATUS", "NETWORKS", "TROUBLE"], &rows)
}

fn status(server: &BootServer, now: u64) -> String {
    match (server.up, server.seen_ms) {
        (true, _) => "up".into(),
        (false, 0) => "not heard of since the control API started".into(),
        (false, seen_ms) => format!("silent for {} s", now.saturating_sub(seen_ms / 1000)),
    }
}

fn troubles(server: &BootServer) -> String {
    let Some(health) = &server.health else { return String::new() };
    let waiting = (health.reports_waiting > 0).then(|| {
        format!(
            "{} not delivered",
            words::count(usize::try_from(health.reports_waiting).unwrap_or(usize::MAX), "report")
        )
    });
    let lost = (health.reports_lost > 0).then(|| format!("{} reports lost", health.reports_lost));
    health.problems.iter().cloned().chain(waiting).chain(lost).collect::<Vec<_>>().join("; ")
}
