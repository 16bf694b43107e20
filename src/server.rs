//! Which server a command talks to.

use std::path::PathBuf;

use anyhow::{Result, bail};
use drophammer_control::client::Client;

/// A command that talks to a server.
#[derive(Debug, clap::Args)]
pub(crate) struct Args<C: clap::Subcommand> {
    #[command(flatten)]
    pub(crate) server: Server,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: C,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// `unix:/path/to/api.sock` or `https://host:port`; by default the running lab's, else the local server's.
    #[arg(long, global = true, env = "DROPHAMMER_SERVER", value_name = "URL")]
    server: Option<String>,
    /// File with the operator token, for https.
    #[arg(long, global = true, env = "DROPHAMMER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate authority of the server (PEM), for https.
    #[arg(long, global = true, env = "DROPHAMMER_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Server {
    pub(crate) fn connect(&self) -> Result<Client> {
        let url = match &self.server {
            Some(url) => url.clone(),
            None => default_server()?,
        };
        Client::connect(&url, self.token_file.as_deref(), self.ca.as_deref())
    }
}

/// The lab if one runs here, else the server of this host.
fn default_server() -> Result<String> {
    let lab = drophammer_lab::up::socket()?;
    let local = drophammer_pxe_server::config::default_socket();
    match [&lab, &local].into_iter().find(|path| path.exists()) {
        Some(path) => Ok(format!("unix:{}", path.display())),
        None => bail!(
            "no server found: neither a lab ({}) nor a boot server ({}) runs here. Start one with `drophammer lab up` \
             or `drophammer serve`, or name one with --server",
            lab.display(),
            local.display()
        ),
    }
}
