//! Whole Debian systems by mmdebstrap: as root, or as anyone in a user namespace.

use std::fs;
use std::io::BufWriter;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::{Uid, User};

use crate::debian::Sources;
use crate::recipe::Recipe;
use crate::rootfs::Rootfs;
use crate::{command, debian, grub};

/// What a recipe of this kind asks for.
#[derive(Debug)]
pub(crate) struct Contents<'a> {
    pub(crate) packages: &'a [String],
    pub(crate) dpkg: &'a [String],
    pub(crate) run: &'a [String],
}

/// What mmdebstrap can do here, decided from facts about the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Root,
    Unshare,
}

#[derive(Clone, Debug)]
struct Host {
    root: bool,
    /// Name of the user, to be found in the two tables of subordinate ids.
    user: String,
    uid: u32,
    subuid: String,
    subgid: String,
    newuidmap: bool,
}

/// Writes the tar to `out`, using `work`, an empty directory.
pub(crate) fn make(
    recipe: &Recipe,
    contents: &Contents<'_>,
    sources: &Sources,
    epoch: u64,
    work: &Path,
    out: &Path,
) -> Result<()> {
    let mode = mode(&read_host()?)?;
    let overlay = work.join("files.tar");
    let file = fs::File::create(&overlay).with_context(|| format!("creating {}", overlay.display()))?;
    Rootfs::of(recipe).write(BufWriter::new(file), epoch)?;

    let mut command = Command::new("mmdebstrap");
    command.env("SOURCE_DATE_EPOCH", epoch.to_string());
    command.args(arguments(mode, contents, &debian::acquire_options()?, &overlay, out)?);
    if sources.are_files() {
        // For apt looks for packages from inside.
        command.arg("--hook-dir=/usr/share/mmdebstrap/hooks/file-mirror-automount");
    }
    command.arg(&recipe.suite).arg(out).args(sources.lines());
    command::follow(&mut command, "mmdebstrap", |line| {
        // "I: " marks its steps; the rest is every package's own chatter, of which an error shows the end.
        if let Some(step) = line.strip_prefix("I: ") {
            tracing::info!("mmdebstrap: {step}");
        }
    })
    .with_context(|| match mode {
        Mode::Root => "building with mmdebstrap as root (which needs the right to mount, CAP_SYS_ADMIN)".to_owned(),
        Mode::Unshare => "building with mmdebstrap in a user namespace (if the kernel refuses those, see \
                          kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns, or run \
                          this as root)"
            .to_owned(),
    })
}

fn mode(host: &Host) -> Result<Mode> {
    if host.root {
        return Ok(Mode::Root);
    }
    // newuidmap(1): a table's first field is the user's name or number.
    let listed = |table: &str| {
        table.lines().filter_map(|line| line.split(':').next()).any(|u| u == host.user || u == host.uid.to_string())
    };
    let mut lacking = Vec::new();
    if !host.newuidmap {
        lacking.push("the package uidmap isn't installed".to_owned());
    }
    for (file, table) in [("/etc/subuid", &host.subuid), ("/etc/subgid", &host.subgid)] {
        if !listed(table) {
            lacking.push(format!("{file} gives {} no subordinate ids", host.user));
        }
    }
    if lacking.is_empty() {
        return Ok(Mode::Unshare);
    }
    bail!(
        "mmdebstrap needs root or a user namespace with a range of ids, and {}: run this as root, or install uidmap and \
         run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {}` as root",
        lacking.join(", and "),
        host.user
    )
}

fn read_host() -> Result<Host> {
    let uid = Uid::effective();
    let user = User::from_uid(uid).context("looking up this user")?;
    let table = |path| fs::read_to_string(path).unwrap_or_default();
    Ok(Host {
        root: uid.is_root(),
        user: user.map_or_else(|| uid.to_string(), |user| user.name),
        uid: uid.as_raw(),
        subuid: table("/etc/subuid"),
        subgid: table("/etc/subgid"),
        newuidmap: ["/usr/bin/newuidmap", "/bin/newuidmap"].iter().any(|path| Path::new(path).exists()),
    })
}

fn arguments(
    mode: Mode,
    contents: &Contents<'_>,
    acquire: &[String],
    overlay: &Path,
    out: &Path,
) -> Result<Vec<String>> {
    let overlay = overlay.to_str().filter(|path| !path.contains(['"', '\''])).context("naming the overlay")?;
    anyhow::ensure!(out.to_str().is_some(), "{} isn't UTF-8", out.display());
    let mut arguments = vec![
        format!("--mode={}", if mode == Mode::Root { "root" } else { "unshare" }),
        "--variant=minbase".to_owned(),
        "--architectures=amd64".to_owned(),
        "--format=tar".to_owned(),
        // Without it the package usrmerge does the same, and brings all of Perl.
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr".to_owned(),
        format!("--include={}", contents.packages.join(",")),
    ];
    arguments.extend(contents.dpkg.iter().map(|line| format!("--dpkgopt={line}")));
    arguments.extend(acquire.iter().map(|line| format!("--aptopt={}", line.trim_end_matches(';'))));
    let mut hook = |hook: String| arguments.push(format!("--customize-hook={hook}"));
    // mmdebstrap's own hook command; the outer process reads the file, so it may lie where the namespace can't look.
    hook(format!("tar-in \"{overlay}\" /"));
    for script in grub_scripts().iter().chain(contents.run) {
        hook(format!("chroot \"$1\" sh -euc {}", quoted(script)));
    }
    Ok(arguments)
}

fn grub_scripts() -> [String; 2] {
    let mkimage = grub::mkimage(&format!("/{}", grub::BIOS_MODULES), &format!("/{}", grub::CORE_IMG));
    let mkimage = mkimage.iter().map(|argument| quoted(argument)).collect::<Vec<_>>().join(" ");
    [
        format!(
            "mkdir -p /boot/grub/i386-pc /boot/grub/x86_64-efi; cp /{}/boot.img /{}; cp /{} /{}",
            grub::BIOS_MODULES,
            grub::BOOT_IMG,
            grub::MONOLITHIC_EFI,
            grub::GRUBX64
        ),
        format!("grub-mkimage {mkimage}"),
    ]
}

/// For a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_can_build_and_what_the_others_lack() {
        let able = Host {
            root: false,
            user: "ada".into(),
            uid: 1000,
            subuid: "ada:100000:65536\n".into(),
            subgid: "1000:100000:65536\n".into(),
            newuidmap: true,
        };
        let with = |f: fn(&mut Host)| {
            let mut host = able.clone();
            f(&mut host);
            host
        };
        for (name, host, want) in [
            ("root", with(|h| h.root = true), Ok(Mode::Root)),
            ("a user with ids, by name and by number", able.clone(), Ok(Mode::Unshare)),
            ("no newuidmap", with(|h| h.newuidmap = false), Err("uidmap isn't installed")),
            ("no subuid", with(|h| h.subuid.clear()), Err("/etc/subuid gives ada no")),
            ("another's subgid", with(|h| h.subgid = "adam:1:1".into()), Err("/etc/subgid gives ada no")),
        ] {
            match (mode(&host), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
                (Err(got), Err(want)) => assert!(got.to_string().contains(want), "{name}: {got}"),
                (got, want) => panic!("{name}: {got:?} instead of {want:?}"),
            }
        }
    }

    #[test]
    fn quoting_survives_a_shell() -> Result<()> {
        for text in ["plain", "two words", "it's", "$HOME `id` \\", ""] {
            let script = format!("printf %s {}", quoted(text));
            assert_eq!(command::output(Command::new("sh").args(["-c", &script]), "dash")?, text);
        }
        Ok(())
    }
}
