//! A private apt: own lists, own cache, own keys. It leaves the host's apt alone and works without root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use super::sources::{KEYRING, Sources};
use crate::{cache, command};

/// How long package lists are good without asking the archive again: what makes a second build instant.
const FRESH: Duration = Duration::from_secs(24 * 3600);

/// An archive isn't asked twice in one go.
const JUST_NOW: Duration = Duration::from_secs(60);

/// A package as the archive offers it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub sha256: String,
    /// Name of the .deb, as apt writes it.
    pub file: String,
}

/// One process at a time uses it: a lock is held until it is dropped.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Apt {
    /// Lists that are older than a day are renewed; if that fails, the old ones still serve and a warning says so.
    pub fn open(sources: &Sources) -> Result<Self> {
        let lines = sources.lines();
        let name = format!("{}-{}", sources.suite, &hex::encode(Sha256::digest(lines.join("\n")))[..12]);
        Self::in_dir(&cache::cache_dir()?.join("apt").join(name), &lines)
    }

    fn in_dir(dir: &Path, lines: &[String]) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing, and without it no Debian package can be trusted: install the package \
             debian-archive-keyring (Ubuntu has it too)"
        );
        let lock = cache::lock(&dir.join("lock"))?;
        for part in ["state/lists/partial", "cache/archives/partial", "empty", "pool"] {
            let part = dir.join(part);
            fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
        }
        write(&dir.join("status"), "")?;
        write(&dir.join("sources.list"), &(lines.join("\n") + "\n"))?;
        write(&dir.join("apt.conf"), &config(dir, &host_acquire_options()?)?)?;
        let apt = Self { dir: dir.to_owned(), _lock: lock };
        match apt.age() {
            Some(age) if age < FRESH => {}
            Some(age) => {
                if let Err(e) = apt.refresh() {
                    let days = age.as_secs() / 86_400;
                    tracing::warn!("package lists of {days} days ago are used, for they could not be renewed: {e:#}");
                }
            }
            None => apt.refresh()?,
        }
        Ok(apt)
    }

    /// Asks the archive what it has now, unless it was asked a moment ago.
    pub fn refresh(&self) -> Result<()> {
        if self.age().is_some_and(|age| age < JUST_NOW) {
            return Ok(());
        }
        tracing::info!("fetching package lists");
        // Without this option apt-get update succeeds when it could fetch nothing at all.
        command::output(self.command("apt-get").args(["update", "-o", "APT::Update::Error-Mode=any"]), "apt")
            .context("fetching Debian's package lists")?;
        write(&self.stamp(), "")
    }

    /// When the archive last changed, in seconds since 1970: the newest date of its signed Release files.
    pub fn date(&self) -> Result<u64> {
        let lists = self.dir.join("state/lists");
        let mut newest = None;
        for entry in fs::read_dir(&lists).with_context(|| format!("reading {}", lists.display()))? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with("Release") {
                let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
                newest = newest.max(release_date(&String::from_utf8_lossy(&text)));
            }
        }
        newest.with_context(|| format!("no Release file in {} has a date", lists.display()))
    }

    /// Everything that installing `packages` on an empty system brings, each at the version the archive offers.
    pub fn closure(&self, packages: &[&str]) -> Result<Vec<Package>> {
        let mut command = self.command("apt-get");
        // Left to itself it prints MD5 sums here.
        command.args([
            "install",
            "--yes",
            "--print-uris",
            "--no-install-recommends",
            "-o",
            "Acquire::ForceHash=SHA256",
        ]);
        let text = command::output(command.args(packages), "apt").context("resolving packages")?;
        let mut found = parse_uris(&text);
        // Names may be virtual, so they can't be looked for one by one.
        ensure!(!found.is_empty(), "apt did not say where it has any of {}", packages.join(", "));
        found.sort();
        Ok(found)
    }

    /// What `packages` are at present, without what they depend on.
    pub fn candidates(&self, packages: &[&str]) -> Result<Vec<Package>> {
        let mut command = self.command("apt-get");
        // From an empty directory: apt says nothing about a package that it finds there already.
        command.current_dir(self.dir.join("empty")).args(["download", "--print-uris"]).args(packages);
        let text = command::output(&mut command, "apt")
            .with_context(|| format!("looking for {} in the archive", packages.join(", ")))?;
        let found = parse_uris(&text);
        packages
            .iter()
            .map(|name| {
                let package = found.iter().find(|package| package.name == *name).cloned();
                package.with_context(|| format!("apt did not say where it has {name}"))
            })
            .collect()
    }

    /// The package that `linux-image-{flavour}` stands for at present.
    pub fn resolve_kernel(&self, flavour: &str) -> Result<String> {
        let metapackage = format!("linux-image-{flavour}");
        let mut command = self.command("apt-cache");
        command.args(["show", "--no-all-versions", &metapackage]);
        let text = command::output(&mut command, "apt").with_context(|| format!("looking for {metapackage}"))?;
        kernel_dependency(&text)
            .with_context(|| format!("{metapackage} depends on no linux-image package: is it a metapackage?"))
    }

    /// Fetches `packages` into `dest` unless they are there: one path each, in the same order. Each is checked against
    /// the hash in lists that Debian signed. Kernel metapackages are followed.
    pub fn download(&self, packages: &[&str], dest: &Path) -> Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for name in packages {
            names.push(match name.strip_prefix("linux-image-") {
                // A versioned kernel's flavour starts with its version: linux-image-6.1.0-40-cloud-amd64.
                Some(flavour) if !flavour.starts_with(|c: char| c.is_ascii_digit()) => self.resolve_kernel(flavour)?,
                _ => (*name).to_owned(),
            });
        }
        let wanted = self.candidates(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        let pool = self.dir.join("pool");
        let mut missing = Vec::new();
        for package in &wanted {
            let path = pool.join(&package.file);
            if sha256_of(&path)?.as_ref() != Some(&package.sha256) {
                // A damaged one would be taken for the package itself.
                let _ = fs::remove_file(&path);
                missing.push(format!("{}={}", package.name, package.version));
            }
        }
        if !missing.is_empty() {
            tracing::info!("fetching {}", missing.join(", "));
            command::output(self.command("apt-get").current_dir(&pool).arg("download").args(&missing), "apt")
                .with_context(|| format!("fetching {}", missing.join(", ")))?;
        }
        fs::create_dir_all(dest).with_context(|| format!("making {}", dest.display()))?;
        wanted.iter().map(|package| deliver(package, &pool.join(&package.file), dest)).collect()
    }

    fn age(&self) -> Option<Duration> {
        let written = fs::metadata(self.stamp()).and_then(|m| m.modified()).ok()?;
        // A stamp from the future says nothing; the lists count as a day old.
        Some(SystemTime::now().duration_since(written).unwrap_or(FRESH))
    }

    fn stamp(&self) -> PathBuf {
        self.dir.join("refreshed")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.dir.join("apt.conf")).env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// How this host reaches archives at all: proxies and the like, as `name "value";` lines without the rest of its apt
/// configuration, whose hooks would act on the host.
pub(crate) fn host_acquire_options() -> Result<Vec<String>> {
    let dump = command::output(Command::new("apt-config").arg("dump"), "apt").context("reading apt's configuration")?;
    Ok(acquire_options(&dump))
}

fn acquire_options(dump: &str) -> Vec<String> {
    const KEPT: [&str; 7] = ["http::", "https::", "http ", "https ", "Check-", "Retries ", "ForceIPv"];
    dump.lines()
        .filter(|line| {
            let option = line.strip_prefix("Acquire::").unwrap_or_default();
            KEPT.iter().any(|kept| option.starts_with(kept)) && !line.ends_with(" \"\";")
        })
        .map(str::to_owned)
        .collect()
}

fn config(dir: &Path, acquire: &[String]) -> Result<String> {
    let dir = dir.to_str().filter(|dir| !dir.contains(['"', '\n'])).with_context(|| {
        format!("the cache directory {} has a name that apt's configuration can't hold", dir.display())
    })?;
    let mut text = format!(
        r#"APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{dir}/state";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}/cache";
Dir::Etc::main "{dir}/empty/none";
Dir::Etc::parts "{dir}/empty";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "{dir}/empty";
Dir::Etc::preferences "{dir}/empty/none";
Dir::Etc::preferencesparts "{dir}/empty";
Dir::Etc::trusted "{dir}/empty/none";
Dir::Etc::trustedparts "{dir}/empty";
"#
    );
    for line in acquire {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// Lines of `--print-uris`: `'uri' name_version_architecture.deb size SHA256:digits`.
fn parse_uris(text: &str) -> Vec<Package> {
    let package = |line: &str| -> Option<Package> {
        let (_, rest) = line.strip_prefix('\'')?.split_once("' ")?;
        let mut words = rest.split_whitespace();
        let file = words.next().filter(|file| file.ends_with(".deb") && !file.contains('/'))?;
        // It becomes part of a path.
        let is_hash = |text: &&str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let sha256 = words.nth(1)?.strip_prefix("SHA256:").filter(is_hash)?;
        let mut parts = file.splitn(3, '_');
        Some(Package {
            name: parts.next()?.to_owned(),
            version: parts.next()?.replace("%3a", ":"),
            sha256: sha256.to_owned(),
            file: file.to_owned(),
        })
    };
    text.lines().filter_map(package).collect()
}

/// The linux-image package among the dependencies in the first stanza of `apt-cache show`.
fn kernel_dependency(show: &str) -> Option<String> {
    let depends = show.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix("Depends:"))?;
    depends
        .split(',')
        .filter_map(|one| one.split_whitespace().next())
        .find(|name| name.strip_prefix("linux-image-").is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit())))
        .map(str::to_owned)
}

fn release_date(release: &str) -> Option<u64> {
    let date = release.lines().find_map(|line| line.strip_prefix("Date: "))?;
    // "Sat, 17 May 2025 09:39:38 UTC", the form that the archive has always used.
    let (_, date) = date.trim().strip_suffix(" UTC")?.split_once(", ")?;
    let form = format_description!("[day padding:none] [month repr:short] [year] [hour]:[minute]:[second]");
    let date = time::PrimitiveDateTime::parse(date.trim_start_matches('0'), form).ok()?;
    u64::try_from(OffsetDateTime::unix_timestamp(date.assume_utc())).ok()
}

fn deliver(package: &Package, pooled: &Path, dest: &Path) -> Result<PathBuf> {
    ensure!(
        sha256_of(pooled)?.as_ref() == Some(&package.sha256),
        "{} isn't what Debian's signed lists say it is, although apt fetched it: try again",
        pooled.display()
    );
    let path = dest.join(&package.file);
    if sha256_of(&path)?.as_ref() != Some(&package.sha256) {
        fs::copy(pooled, &path).with_context(|| format!("copying {} to {}", pooled.display(), path.display()))?;
    }
    Ok(path)
}

/// `None` if there is no such file.
fn sha256_of(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(hex::encode(Sha256::digest(bytes)))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// What apt's programs print: packages are files of one directory.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    for package in parse_uris(text) {
        assert!(!package.file.contains('/') && !package.name.contains('/'), "{package:?}");
        let tree = super::unpacked::fuzz(&package);
        assert!(tree.is_none_or(|tree| Path::new(&tree).components().count() == 1), "{package:?}");
    }
    let _ = (kernel_dependency(text), acquire_options(text), release_date(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_how_to_reach_archives_is_taken_from_the_host() {
        let dump = "APT \"\";\nAPT::Update::Post-Invoke:: \"rm -f /var/cache/apt/archives/*.deb\";\n\
            Acquire \"\";\nAcquire::http \"\";\nAcquire::http::Proxy \"http://proxy.example:3142\";\n\
            Acquire::Check-Valid-Until \"false\";\nAcquire::GzipIndexes \"true\";\n\
            Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"true\";\nAcquire::Languages:: \"none\";\n";
        assert_eq!(
            acquire_options(dump),
            ["Acquire::http::Proxy \"http://proxy.example:3142\";", "Acquire::Check-Valid-Until \"false\";"]
        );
    }

    #[test]
    fn uris_become_packages() {
        let sha256 = "ab12".repeat(16);
        let package = |name: &str, version: &str, file: &str| Package {
            name: name.into(),
            version: version.into(),
            sha256: sha256.clone(),
            file: file.into(),
        };
        for (name, text, want) in [
            (
                "with an epoch, amid chatter",
                "Reading package lists...\n'http://a.example/b%3a1.deb' busybox_1%3a1.35.0-4+b1_amd64.deb 928188 SHA256:ab12\n",
                vec![package("busybox", "1:1.35.0-4+b1", "busybox_1%3a1.35.0-4+b1_amd64.deb")],
            ),
            ("without a hash", "'http://a.example/b.deb' b_1_all.deb 9 \n", vec![]),
            ("with a weaker hash only", "'http://a.example/b.deb' b_1_all.deb 9 MD5Sum:ab12\n", vec![]),
            ("half a hash", "'http://a.example/b.deb' b_1_all.deb 9 SHA256:ab1\n", vec![]),
            ("no hash but a path", "'http://a.example/b.deb' b_1_all.deb 9 SHA256:/etc/ab12\n", vec![]),
            ("not a package", "'http://a.example/Packages' Packages 9 SHA256:ab12\n", vec![]),
            ("a path", "'http://a.example/b.deb' ../b_1_all.deb 9 SHA256:ab12\n", vec![]),
            ("nothing", "", vec![]),
        ] {
            assert_eq!(parse_uris(&text.replace("ab12", &sha256)), want, "{name}");
        }
    }

    #[test]
    fn a_kernel_metapackage_names_its_kernel() {
        for (name, show, want) in [
            (
                "as in bookworm",
                "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-40-cloud-amd64 (= 6.1.153-1)\n",
                Some("linux-image-6.1.0-40-cloud-amd64"),
            ),
            (
                "among others",
                "Depends: initramfs-tools, linux-image-6.1.0-40-amd64\n",
                Some("linux-image-6.1.0-40-amd64"),
            ),
            ("a metapackage of metapackages", "Depends: linux-image-amd64\n", None),
            ("a later stanza doesn't count", "Package: x\n\nDepends: linux-image-5.10.0-1-amd64\n", None),
            ("nothing", "", None),
        ] {
            assert_eq!(kernel_dependency(show).as_deref(), want, "{name}");
        }
    }

    #[test]
    fn release_files_say_when() {
        for (name, text, want) in [
            ("Debian's", "Origin: Debian\nDate: Sat, 17 May 2025 09:39:38 UTC\n", Some(1_747_474_778)),
            ("one digit", "Date: Sat, 7 Jun 2025 00:00:00 UTC", Some(1_749_254_400)),
            ("two digits", "Date: Sat, 07 Jun 2025 00:00:00 UTC", Some(1_749_254_400)),
            ("none", "Origin: Debian\n", None),
            ("nonsense", "Date: tomorrow UTC\n", None),
        ] {
            assert_eq!(release_date(text), want, "{name}");
        }
    }
}
