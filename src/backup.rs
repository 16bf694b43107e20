//! `drophammer backup`: the control API's state elsewhere, and back.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use drophammer_control::backup::{self, Contents, Destination, Key};
use drophammer_control::{StateAt, keep};
use drophammer_protocol::api::BackupStatus;
use drophammer_protocol::words;
use serde_json::json;

use crate::output;
use crate::server;

pub(crate) type Args = server::Args<Command>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key that backups are encrypted with. Keep a copy of it where the backups aren't.
    Key {
        /// The file that gets it; none is written over.
        file: PathBuf,
    },
    /// Back up everything that the control API keeps: its state, its keys, its first tokens.
    ///
    /// The server goes on working; the backup is as it was at one moment. It's encrypted (AES-256-GCM), and is read again
    /// before it's called made.
    Create {
        /// The file that gets it; none is written over.
        file: PathBuf,
        #[command(flatten)]
        secret: Secret,
        /// Of a server that isn't running: read what this configuration of it says where it keeps.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Read all of a backup: whether it's whole, unaltered, and could be restored.
    Verify {
        /// The backup.
        file: PathBuf,
        #[command(flatten)]
        secret: Secret,
    },
    /// Put a backup in place of a state, while its servers are stopped; also from a file to etcd, or back.
    ///
    /// What has happened since the backup was taken, the state doesn't know. So nothing is erased by what it says: machines
    /// that would be are quarantined, and so is every machine that it doesn't know, until `drophammer backup settle`.
    Restore {
        /// The backup.
        file: PathBuf,
        #[command(flatten)]
        secret: Secret,
        /// The server's configuration, which says where its state is.
        #[arg(long, value_name = "FILE", default_value = "/etc/drophammer/server.toml")]
        config: PathBuf,
        /// Lose the state and the keys that are there.
        #[arg(long)]
        replace: bool,
        /// No server has worked on the state since the backup was taken, so everything in it still holds: nothing is
        /// quarantined. For moving a state; it's on you that it's true.
        #[arg(long)]
        nothing_happened_since: bool,
    },
    /// How the server's own backups go ([backup] in its configuration), and whether its state was restored.
    Status,
    /// All machines are as a restored state has them: from here on new ones are erased again as ever.
    Settle,
}

/// What a backup is encrypted with: a key of `drophammer backup key`, or a passphrase, which is asked for if none is given.
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub(crate) struct Secret {
    /// File with the key.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// File with the passphrase, in its first line.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

const SHORTEST: usize = 12;

impl Secret {
    fn of_new(&self) -> Result<Key> {
        let key = self.get(true)?;
        if let Key::Passphrase(passphrase) = &key {
            ensure!(
                passphrase.chars().count() >= SHORTEST,
                "a passphrase of less than {SHORTEST} characters is guessed: take a longer one, or a key file \
                 (`drophammer backup key`)"
            );
        }
        Ok(key)
    }

    fn of_old(&self) -> Result<Key> {
        self.get(false)
    }

    fn get(&self, is_new: bool) -> Result<Key> {
        let text = |file: &Path| fs::read_to_string(file).with_context(|| format!("reading {}", file.display()));
        match (&self.key_file, &self.passphrase_file) {
            (Some(file), _) => Key::read(&text(file)?).with_context(|| format!("reading the key {}", file.display())),
            (None, Some(file)) => Ok(Key::Passphrase(text(file)?.lines().next().unwrap_or_default().to_owned())),
            (None, None) if std::io::stdin().is_terminal() => {
                let ask = |prompt: &str| rpassword::prompt_password(prompt).context("asking for a passphrase");
                let passphrase = ask("Passphrase: ")?;
                if is_new && ask("Once more: ")? != passphrase {
                    bail!("these are two passphrases");
                }
                Ok(Key::Passphrase(passphrase))
            }
            (None, None) => bail!("say what the backup is encrypted with: --key-file or --passphrase-file"),
        }
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json();
    match args.command {
        Command::Key { file } => {
            ensure!(!file.exists(), "{} is there already: a key isn't written over", file.display());
            keep::write(&file, &format!("{}\n", Key::make()?), keep::PRIVATE)?;
            output::line(&format!(
                "{} opens every backup made with it, and nothing else does: keep a copy",
                file.display()
            ))
        }
        Command::Create { file, secret, config } => {
            let key = secret.of_new()?;
            let contents = match config {
                Some(config) => {
                    let (state_dir, state) = place(&config)?;
                    ensure!(state_dir.exists(), "there is no state in {}", state_dir.display());
                    backup::create(&file, &key, |to| backup::take_offline(&state_dir, &state, to).map(drop))?
                }
                None => {
                    let client = args.server.connect()?;
                    backup::create(&file, &key, |to| client.backup(to))?
                }
            };
            said(&format!("{} is made and was read again", file.display()), contents, json)
        }
        Command::Verify { file, secret } => {
            let contents = backup::verify(&file, &secret.of_old()?)?;
            said(&format!("{} is whole", file.display()), contents, json)
        }
        Command::Restore { file, secret, config, replace, nothing_happened_since } => {
            let (key, (state_dir, state)) = (secret.of_old()?, place(&config)?);
            let destination = Destination { state_dir: &state_dir, state: &state, replace, nothing_happened_since };
            let contents = backup::restore(|| backup::read(&file, &key), &destination)
                .with_context(|| format!("restoring {}", file.display()))?;
            said(&format!("{} is restored", file.display()), contents, json)?;
            if !json && !nothing_happened_since {
                output::line(
                    "Start the server, compare `drophammer machine list` with what is there, release those in quarantine \
                     that have no tenant, and say `drophammer backup settle`.",
                )?;
            }
            Ok(())
        }
        Command::Status => status(&args.server.connect()?.backup_status()?, json),
        Command::Settle => args.server.connect()?.settle(),
    }
}

/// Where a server with this configuration keeps its state.
fn place(config: &Path) -> Result<(PathBuf, StateAt)> {
    let settings = drophammer_pxe_server::config::read(config)?;
    if settings.control.is_some() {
        bail!("{} is of a boot server alone, which has no state of machines", config.display());
    }
    Ok((settings.state_dir, settings.etcd.map_or(StateAt::File, StateAt::Etcd)))
}

fn said(what: &str, contents: Contents, json: bool) -> Result<()> {
    let Contents { taken_ms, files, entries, machines } = contents;
    if json {
        return output::json(&json!({
            "taken_ms": taken_ms, "files": files, "entries": entries, "machines": machines,
        }));
    }
    let count = |count: u64, what| words::count(usize::try_from(count).unwrap_or(usize::MAX), what);
    let (machines, files) = (count(machines, "machine"), count(files, "file"));
    output::line(&format!("{what}: as of {}, {machines}, {files}, {entries} entries", output::moment(taken_ms)))
}

fn status(status: &BackupStatus, json: bool) -> Result<()> {
    if json {
        return output::json(status);
    }
    match &status.last {
        Some(made) => output::line(&format!(
            "The last backup is of {}: {}, {}, {}",
            output::moment(made.at_ms),
            made.at,
            words::bytes(made.bytes),
            words::count(usize::try_from(made.machines).unwrap_or(usize::MAX), "machine")
        ))?,
        None => {
            output::line("The server has made no backup by itself: [backup] in its configuration has it make some")?
        }
    }
    if let Some(failed) = &status.failed {
        output::line(&format!("Since then one failed at {}: {}", output::moment(failed.at_ms), failed.why))?;
    }
    if let Some(restored) = &status.restored {
        output::line(&format!(
            "The state was restored at {} from a backup of {}. Machines that it doesn't know are quarantined until \
             `drophammer backup settle`",
            output::moment(restored.at_ms),
            output::moment(restored.taken_ms)
        ))?;
    }
    Ok(())
}
