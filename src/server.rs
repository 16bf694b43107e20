//! Which server a command talks to.

use std::path::PathBuf;

use anyhow::{Result, bail};
use drophammer_control::client::Client;

use crate::output::{Format, Shown};
use crate::profile::{self, Profile};

/// A command that talks to a server.
#[derive(Debug, clap::Args)]
pub(crate) struct Args<C: clap::Subcommand> {
    #[command(flatten)]
    pub(crate) server: Server,
    #[command(flatten)]
    pub(crate) shown: Shown,
    #[command(subcommand)]
    pub(crate) command: C,
}

impl<C: clap::Subcommand> Args<C> {
    pub(crate) fn json(&self) -> bool {
        self.shown.format() == Format::Json
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Server {
    /// `unix:/path/to/api.sock` or `https://host:port`; by default the profile's in use, else the running lab's, else the
    /// local server's.
    #[arg(long, global = true, env = "DROPHAMMER_SERVER", value_name = "URL")]
    server: Option<String>,
    /// A server by its name; see `drophammer profile`.
    #[arg(long, global = true, env = "DROPHAMMER_PROFILE", value_name = "NAME", conflicts_with = "server")]
    profile: Option<String>,
    /// File with the operator token, for https.
    #[arg(long, global = true, env = "DROPHAMMER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate authority of the server (PEM), for https.
    #[arg(long, global = true, env = "DROPHAMMER_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl Server {
    pub(crate) fn connect(&self) -> Result<Client> {
        let profile = match &self.server {
            Some(_) => None,
            None => profile::find(self.profile.as_deref())?,
        };
        let url = match (&self.server, &profile) {
            (Some(url), _) => url.clone(),
            (None, Some(profile)) => profile.server.clone(),
            (None, None) => default_server()?,
        };
        let of_profile = |path: fn(&Profile) -> Option<&PathBuf>| profile.as_ref().and_then(path);
        let token_file = self.token_file.as_ref().or_else(|| of_profile(|profile| profile.token_file.as_ref()));
        let ca = self.ca.as_ref().or_else(|| of_profile(|profile| profile.ca.as_ref()));
        Client::connect(&url, token_file.map(PathBuf::as_path), ca.map(PathBuf::as_path))
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
