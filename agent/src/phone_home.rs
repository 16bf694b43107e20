//! The installed system's one call: "I'm up". Runs as an ordinary program of that system, which keeps its own clock.
//!
//! Until the server has heard it, it tries again, for as long as the system runs. Then nothing of it is left: the ticket,
//! the unit and this program are removed, and the ticket is overwritten before. Overwriting is what can be done from here:
//! a drive made of flash may keep the old block, as may a file system that copies on write. What makes that harmless is the
//! server: the token in it is good for one thing, saying that this install is up, and for nothing once that was said.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use drophammer_protocol::api::{self, PhonedHome};
use drophammer_protocol::os_release::pretty_name;
use drophammer_protocol::ticket::{INSTALLED_AGENT_PATH, PHONE_HOME_PATH, PhoneHome};

use crate::efi;
use crate::events::uptime;
use crate::server::{self, CallError};

/// A system that is just starting may take this long to get its network up; after that a person should look.
const GIVE_UP: Duration = Duration::from_secs(15 * 60);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the installation makes systemd start, which begins again whenever this program gives up.
pub(crate) const UNIT: &str = "drophammer-phone-home.service";
pub(crate) const UNIT_PATH: &str = "/etc/systemd/system/drophammer-phone-home.service";
const UNIT_LINK: &str = "/etc/systemd/system/multi-user.target.wants/drophammer-phone-home.service";

pub(crate) fn phone_home(ticket_path: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(ticket_path).with_context(|| {
        format!(
            "reading {}, which the installation left here (it's gone once the server has heard from this system)",
            ticket_path.display()
        )
    })?;
    let ticket: PhoneHome =
        serde_json::from_str(&text).with_context(|| format!("understanding {}", ticket_path.display()))?;
    let root = Path::new("/");
    // It was for the case that this system wouldn't come up. Left there, it would keep the machine from the network when
    // that is where it's wanted.
    if let Err(error) = efi::forget_next_boot(root) {
        eprintln!("drophammer-agent: the firmware will start this disk next, whatever its boot order says: {error:#}");
    }
    let began = Instant::now();
    let mut said = String::new();
    let mut pause = FIRST_PAUSE;
    loop {
        // Gathered at every try: host keys may still be in the making.
        match call(&ticket, &about(root, &ticket)?) {
            Ok(()) => break,
            Err(error) if is_passing(&error) && began.elapsed() + pause < GIVE_UP => {
                let text = format!("{error:#}");
                // The network takes a while to come up, and says so in several ways.
                if text != said {
                    eprintln!("drophammer-agent: {text}; trying again for up to {} min", GIVE_UP.as_secs() / 60);
                    said = text;
                }
                thread::sleep(pause);
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
            Err(error) => return Err(error).with_context(|| format!("phoning home to {}", ticket.server)),
        }
    }
    println!("the server knows that this system is up");
    forget(ticket_path).with_context(|| format!("removing the used ticket {}", ticket_path.display()))?;
    remove_ourselves()
}

/// Overwrites a secret where it lies, then removes it.
fn forget(path: &Path) -> std::io::Result<()> {
    let length = usize::try_from(fs::metadata(path)?.len()).unwrap_or_default();
    let mut file = File::options().write(true).open(path)?;
    file.write_all(&vec![0; length])?;
    file.sync_all()?;
    fs::remove_file(path)?;
    // If the power goes now, it's gone all the same.
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn is_passing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(CallError::Unanswered { .. }))
}

fn call(ticket: &PhoneHome, about: &PhonedHome) -> anyhow::Result<()> {
    let url = format!("{}{}", ticket.server.trim_end_matches('/'), api::AGENT_PHONE_HOME);
    let time = server::ask_time(&server::plain_http()?, &ticket.boot_server, ticket.time_key)?;
    let https = server::https(&ticket.ca, Arc::new(time))?;
    Ok(server::post_once(&https, &url, &ticket.token, about)?)
}

fn about(root: &Path, ticket: &PhoneHome) -> anyhow::Result<PhonedHome> {
    let system = nix::sys::utsname::uname().context("asking for the kernel's version")?;
    let os_release = ["etc/os-release", "usr/lib/os-release"]
        .iter()
        .find_map(|path| fs::read_to_string(root.join(path)).ok())
        .unwrap_or_default();
    Ok(PhonedHome {
        machine: ticket.machine,
        hostname: system.nodename().to_string_lossy().into_owned(),
        os: pretty_name(&os_release).unwrap_or_else(|| system.sysname().to_string_lossy().into_owned()),
        kernel: system.release().to_string_lossy().into_owned(),
        ssh_host_keys: ssh_host_keys(&root.join("etc/ssh")),
        uptime_ms: u64::try_from(uptime().as_millis()).unwrap_or(u64::MAX),
    })
}

/// The public ones; a system without SSH has none.
fn ssh_host_keys(folder: &Path) -> Vec<String> {
    let mut keys: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("ssh_host_") && name.ends_with("_key.pub")
        })
        .filter_map(|entry| fs::read_to_string(entry.path()).ok())
        .map(|key| key.trim().to_owned())
        .filter(|key| !key.is_empty())
        .collect();
    keys.sort();
    keys
}

/// The copy that the installation left has done its work. Another copy, built or installed by somebody, stays.
fn remove_ourselves() -> anyhow::Result<()> {
    let ours = std::env::current_exe().context("finding out where this program lies")?;
    if ours != Path::new(INSTALLED_AGENT_PATH) {
        return Ok(());
    }
    for left in [Path::new(UNIT_LINK), Path::new(UNIT_PATH)] {
        match fs::remove_file(left) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", left.display()));
            }
            _ => {}
        }
    }
    fs::remove_file(&ours).with_context(|| format!("removing {}", ours.display()))?;
    for file in [&*ours, Path::new(PHONE_HOME_PATH)] {
        if let Some(folder) = file.parent() {
            remove_if_empty(folder).with_context(|| format!("removing {}", folder.display()))?;
        }
    }
    Ok(())
}

fn remove_if_empty(folder: &Path) -> std::io::Result<()> {
    match fs::remove_dir(folder) {
        // Somebody else's files are in there, or somebody was faster.
        Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By another name it can be seen what is left of the content.
    #[test]
    fn a_used_ticket_is_overwritten_and_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let (ticket, other) = (folder.path().join("ticket"), folder.path().join("other"));
        fs::write(&ticket, "secret").expect("written");
        fs::hard_link(&ticket, &other).expect("linked");
        forget(&ticket).expect("forgotten");
        assert!(!ticket.exists());
        assert_eq!(fs::read(&other).expect("read"), [0; 6]);
        assert!(forget(&ticket).is_err(), "there is nothing any more");
    }

    #[test]
    fn only_public_host_keys_are_sent() {
        let folder = tempfile::tempdir().expect("a folder");
        for (file, text) in [
            ("ssh_host_rsa_key.pub", "ssh-rsa AAAA root@x\n"),
            ("ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA root@x\n"),
            ("ssh_host_ed25519_key", "PRIVATE"),
            ("sshd_config", "Port 22"),
            ("ssh_host_empty_key.pub", ""),
        ] {
            fs::write(folder.path().join(file), text).expect("written");
        }
        assert_eq!(ssh_host_keys(folder.path()), ["ssh-ed25519 AAAA root@x", "ssh-rsa AAAA root@x"]);
    }
}
