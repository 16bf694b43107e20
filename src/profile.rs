//! `drophammer profile`: servers by name, so that commands needn't say where they are.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use drophammer_control::keep;
use serde::{Deserialize, Serialize};

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The servers that have a name.
    List,
    /// Give a server a name, or another address.
    Set {
        /// What it's called.
        name: String,
        #[command(flatten)]
        profile: Profile,
    },
    /// Talk to this one where no other is named.
    Use {
        /// As `list` shows it.
        name: String,
    },
    /// Forget one.
    Remove {
        /// As `list` shows it.
        name: String,
    },
}

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// `unix:/path/to/api.sock` or `https://host:port`.
    #[arg(long = "at", value_name = "URL")]
    pub(crate) server: String,
    /// File with the operator token, for https.
    #[arg(long, value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    /// Certificate authority of the server (PEM), for https.
    #[arg(long, value_name = "FILE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Profiles {
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    profiles: BTreeMap<String, Profile>,
}

fn path() -> Result<PathBuf> {
    let config = env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let config = config.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".config")));
    let config = config.context("finding where profiles are kept: set HOME or XDG_CONFIG_HOME")?;
    Ok(config.join("drophammer/profiles.toml"))
}

fn read() -> Result<Profiles> {
    let path = path()?;
    match fs::read_to_string(&path) {
        Ok(text) => toml::from_str(&text).with_context(|| format!("reading {}", path.display())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Profiles::default()),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

fn write(profiles: &Profiles) -> Result<()> {
    let path = path()?;
    path.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .with_context(|| format!("making a directory for {}", path.display()))?;
    keep::write(&path, &toml::to_string(profiles).context("writing profiles")?, keep::PRIVATE)
}

/// The one of this name, or the one that counts where none is named.
pub(crate) fn find(name: Option<&str>) -> Result<Option<Profile>> {
    if name.is_none() && path().is_err() {
        return Ok(None);
    }
    let Profiles { default, profiles } = read()?;
    let Some(name) = name.map(str::to_owned).or(default) else { return Ok(None) };
    match profiles.get(&name) {
        Some(profile) => Ok(Some(profile.clone())),
        None => bail!("there is no profile {name:?} in {}; `drophammer profile set` makes one", path()?.display()),
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let mut known = read()?;
    match args.command {
        Command::List => {
            let mark = |name: &String| if known.default.as_ref() == Some(name) { "*" } else { "" }.to_owned();
            let text = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string()).unwrap_or_default();
            let row = |(name, p): (&String, &Profile)| {
                [mark(name), name.clone(), p.server.clone(), text(&p.token_file), text(&p.ca)]
            };
            return output::table(
                ["", "NAME", "SERVER", "TOKEN", "CA"],
                &known.profiles.iter().map(row).collect::<Vec<_>>(),
            );
        }
        Command::Set { name, profile } => {
            // Files are looked for from wherever a command is run.
            let whole = |path: Option<PathBuf>| path.map(std::path::absolute).transpose().context("finding a file");
            let profile =
                Profile { token_file: whole(profile.token_file)?, ca: whole(profile.ca)?, server: profile.server };
            known.default.get_or_insert_with(|| name.clone());
            known.profiles.insert(name, profile);
        }
        Command::Use { name } => {
            if !known.profiles.contains_key(&name) {
                bail!("there is no profile {name:?}; `drophammer profile list` shows which there are");
            }
            known.default = Some(name);
        }
        Command::Remove { name } => {
            if known.profiles.remove(&name).is_none() {
                bail!("there is no profile {name:?}; `drophammer profile list` shows which there are");
            }
            known.default = known.default.filter(|default| *default != name);
        }
    }
    write(&known)
}
