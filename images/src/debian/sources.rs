//! Which archive to use. Reading files is at the edge; [`choose`] decides from what was read.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Debian's archive keys, from the package debian-archive-keyring (present on Debian, to be installed on Ubuntu).
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Names a mirror: the URI of an archive, and after a space that of its security archive.
const MIRROR_VARIABLE: &str = "DROPHAMMER_MIRROR";

/// One Debian release, and where its packages are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    pub suite: String,
    pub archive: String,
    /// Without it there are no security updates between point releases.
    pub security: Option<String>,
}

impl Sources {
    /// `$DROPHAMMER_MIRROR`, else the Debian archive in this host's apt sources, else mmdebstrap's default.
    pub fn for_suite(suite: &str) -> Result<Self> {
        Self::at(std::env::var(MIRROR_VARIABLE).ok().as_deref(), suite)
    }

    /// As [`Sources::for_suite`], with the mirror given by the caller.
    pub fn at(mirror: Option<&str>, suite: &str) -> Result<Self> {
        let mirror = mirror.map(str::trim).filter(|m| !m.is_empty()).map(with_whole_paths).transpose()?;
        let mirror = mirror.as_deref();
        let host = if mirror.is_some() { Vec::new() } else { read_host(Path::new("/"))? };
        // mmdebstrap has no option that prints its default, but it is one line of its source.
        let script = fs::read_to_string("/usr/bin/mmdebstrap").unwrap_or_default();
        choose(suite, mirror, &host, &script)
    }

    /// Whether packages come from a directory of this host.
    pub(crate) fn are_files(&self) -> bool {
        [Some(&self.archive), self.security.as_ref()].into_iter().flatten().any(|uri| is_file(uri))
    }

    /// For a sources.list. Only packages that Debian's own keys vouch for are accepted from it.
    pub fn lines(&self) -> Vec<String> {
        let line = |uri: &str, suite: &str| format!("deb [signed-by={KEYRING}] {uri} {suite} main");
        let mut lines = vec![line(&self.archive, &self.suite)];
        // The rolling releases have neither updates nor a security archive.
        if !matches!(self.suite.as_str(), "sid" | "unstable") {
            lines.push(line(&self.archive, &format!("{}-updates", self.suite)));
            lines.extend(self.security.iter().map(|uri| line(uri, &format!("{}-security", self.suite))));
        }
        lines
    }
}

fn choose(suite: &str, mirror: Option<&str>, host: &[Entry], mmdebstrap: &str) -> Result<Sources> {
    ensure!(
        !suite.is_empty() && suite.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
        "{suite:?} is not the name of a Debian release, such as bookworm"
    );
    let sources = |archive: String, security: Option<String>| Sources { suite: suite.to_owned(), archive, security };
    if let Some(mirror) = mirror {
        let mut uris = mirror.split_whitespace().map(|uri| uri.trim_end_matches('/').to_owned());
        let archive = uris.next().unwrap_or_default();
        let security = uris.next();
        for uri in [Some(&archive), security.as_ref()].into_iter().flatten() {
            ensure!(
                is_web(uri) || is_file(uri),
                "{uri:?} is no mirror: give a URL that starts with http://, https:// or file:///, or a directory"
            );
        }
        ensure!(
            uris.next().is_none(),
            "{MIRROR_VARIABLE} takes two URIs at most: the archive and its security archive"
        );
        return Ok(sources(archive, security));
    }
    if let Some(archive) = uri_for(host, Role::Archive) {
        return Ok(sources(archive, uri_for(host, Role::Security)));
    }
    let assigned = |variable: &str| {
        mmdebstrap.lines().find_map(|line| {
            let value = line.trim().strip_prefix(variable)?.trim_start().strip_prefix("= '")?;
            value.strip_suffix("';").filter(|uri| is_web(uri)).map(str::to_owned)
        })
    };
    match assigned("my $mirror") {
        Some(archive) => Ok(sources(archive, assigned("my $secmirror"))),
        None => bail!(
            "no Debian archive is known here: this host's apt sources name none and mmdebstrap, whose default would do, \
             isn't installed; install mmdebstrap or set {MIRROR_VARIABLE} to the URI of a mirror"
        ),
    }
}

/// One entry of a host's apt sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Archive,
    Security,
}

/// Entries that name Debian's keyring come first; those that name no key must at least look like the archive. A wrong
/// guess can't harm: what Debian's keys don't vouch for is refused by apt.
fn uri_for(entries: &[Entry], role: Role) -> Option<String> {
    let keyed = |entry: &&Entry| entry.signed_by.as_ref().is_some_and(|key| key.contains("debian-archive"));
    let unkeyed = |entry: &&Entry| entry.signed_by.is_none();
    let find = |uri_fits: fn(&str) -> bool, entry: &Entry| {
        let fits =
            entry.components.iter().any(|c| c == "main") && entry.suites.iter().any(|s| role_of(s) == Some(role));
        entry.uris.iter().find(|uri| fits && is_web(uri) && uri_fits(uri)).cloned()
    };
    entries
        .iter()
        .filter(keyed)
        .find_map(|entry| find(|_| true, entry))
        .or_else(|| entries.iter().filter(unkeyed).find_map(|entry| find(has_debian_in_path, entry)))
        .map(|uri| uri.trim_end_matches('/').to_owned())
}

fn role_of(suite: &str) -> Option<Role> {
    const RELEASES: [&str; 11] = [
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
        "stable",
        "oldstable",
        "oldoldstable",
        "testing",
        "unstable",
    ];
    let (release, role) = match suite.strip_suffix("-security").or_else(|| suite.strip_suffix("/updates")) {
        Some(release) => (release, Role::Security),
        None => (suite.strip_suffix("-updates").unwrap_or(suite), Role::Archive),
    };
    RELEASES.contains(&release).then_some(role)
}

fn is_web(uri: &str) -> bool {
    let rest = uri.strip_prefix("http://").or_else(|| uri.strip_prefix("https://"));
    rest.is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'\'' | b'"' | b'[' | b']'))
    })
}

/// An absolute path with nothing in it that sources.list(5) reads as something else.
fn is_file(uri: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+~,@=".contains(&b);
    uri.strip_prefix("file:///").is_some_and(|path| !path.is_empty() && path.bytes().all(plain))
}

/// Directories of this host as URIs.
fn with_whole_paths(mirror: &str) -> Result<String> {
    let whole = |word: &str| -> Result<String> {
        if !word.starts_with(['/', '.']) {
            return Ok(word.to_owned());
        }
        let path = fs::canonicalize(word).with_context(|| format!("looking for the mirror in {word}"))?;
        Ok(format!("file://{}", path.display()))
    };
    Ok(mirror.split_whitespace().map(whole).collect::<Result<Vec<_>>>()?.join(" "))
}

fn has_debian_in_path(uri: &str) -> bool {
    uri.split('/').skip(3).any(|part| part == "debian" || part == "debian-security")
}

fn read_host(root: &Path) -> Result<Vec<Entry>> {
    let apt = root.join("etc/apt");
    let mut files = vec![apt.join("sources.list")];
    if let Ok(dir) = fs::read_dir(apt.join("sources.list.d")) {
        let mut parts = dir.map(|e| e.map(|e| e.path())).collect::<Result<Vec<PathBuf>, _>>()?;
        parts.sort();
        files.extend(parts);
    }
    let mut entries = Vec::new();
    for file in files {
        let parse: fn(&str) -> Vec<Entry> = match file.extension().and_then(|e| e.to_str()) {
            Some("list") => parse_one_line,
            Some("sources") => parse_deb822,
            _ => continue,
        };
        match fs::read_to_string(&file) {
            Ok(text) => entries.extend(parse(&text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("reading {}", file.display())),
        }
    }
    for uri in entries.iter_mut().flat_map(|entry| &mut entry.uris) {
        // Debian's cloud images keep the URI in a mirror list of its own.
        if let Some(list) = uri.strip_prefix("mirror+file:") {
            let list = root.join(list.trim_start_matches('/'));
            let text = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
            *uri = first_mirror(&text).unwrap_or_default();
        }
    }
    Ok(entries)
}

fn first_mirror(list: &str) -> Option<String> {
    list.lines().filter_map(|line| line.split_whitespace().next()).find(|uri| is_web(uri)).map(str::to_owned)
}

/// sources.list(5), one-line style: `deb [option=value …] uri suite [component …]`.
fn parse_one_line(text: &str) -> Vec<Entry> {
    let entry = |line: &str| -> Option<Entry> {
        let line = line.split('#').next().unwrap_or_default().trim();
        let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(inner) => inner.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace().map(str::to_owned);
        Some(Entry {
            uris: vec![words.next()?],
            suites: vec![words.next()?],
            components: words.collect(),
            signed_by: options.split_whitespace().find_map(|o| o.strip_prefix("signed-by=")).map(str::to_owned),
        })
    };
    text.lines().filter_map(entry).collect()
}

/// sources.list(5), deb822 style: stanzas of `Field: value`, continued by lines that start with a space.
fn parse_deb822(text: &str) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut stanza: Vec<(String, String)> = Vec::new();
    // A blank line after the last stanza closes it like any other.
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            entries.extend(entry_of(&std::mem::take(&mut stanza)));
        } else if line.starts_with([' ', '\t']) {
            if let Some((_, value)) = stanza.last_mut() {
                value.push('\n');
                value.push_str(line.trim());
            }
        } else if let Some((field, value)) = line.split_once(':') {
            stanza.push((field.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
    entries
}

fn entry_of(stanza: &[(String, String)]) -> Option<Entry> {
    let field = |name: &str| stanza.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    let words =
        |name: &str| -> Vec<String> { field(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect() };
    let disabled = matches!(field("enabled").map(str::to_ascii_lowercase).as_deref(), Some("no" | "false" | "0"));
    (!disabled && words("types").iter().any(|t| t == "deb")).then(|| Entry {
        uris: words("uris"),
        suites: words("suites"),
        components: words("components"),
        signed_by: field("signed-by").map(str::to_owned),
    })
}

/// A host's apt sources in either style, and a mirror: what comes of them are lines for apt with nothing smuggled in.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let host = [parse_one_line(text), parse_deb822(text)].concat();
    for mirror in [None, text.lines().next()] {
        let Ok(sources) = choose("bookworm", mirror, &host, text) else { continue };
        let sound = |uri: &str| is_web(uri) || is_file(uri);
        assert!(sound(&sources.archive) && sources.security.as_deref().is_none_or(sound), "{sources:?}");
        for line in sources.lines() {
            assert_eq!((line.split_whitespace().count(), line.contains('\n')), (5, false), "{line:?}");
        }
    }
    assert!(first_mirror(text).is_none_or(|mirror| is_web(&mirror)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEBIAN_822: &str = "\
Types: deb deb-src
# http://archive.example/as/of/some/day
URIs: http://archive.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://archive.example/debian-security/
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

    const THIRD_PARTY_822: &str = "\
Types: deb
URIs: https://packages.vendor.example/debian
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 bm90IGEga2V5
 -----END PGP PUBLIC KEY BLOCK-----

Enabled: no
Types: deb
URIs: http://old.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://sources.example/debian
Suites: bookworm
Components: main
";

    const THIRD_PARTY_LIST: &str = "\
deb [arch=amd64 signed-by=/etc/apt/keyrings/docker.gpg] https://download.vendor.example/linux/debian bookworm stable
deb [ signed-by=/usr/share/keyrings/pgdg.gpg ] https://apt.vendor.example/pub/repos/apt bookworm-pgdg main
deb https://multimedia.vendor.example bookworm main non-free
deb https://web.vendor.example/packages/debian bookworm nginx
deb [unclosed http://archive.example/debian bookworm main
deb
";

    const UBUNTU_822: &str = "\
Types: deb
URIs: http://ubuntu.example/ubuntu/
Suites: noble noble-updates noble-backports
Components: main restricted universe multiverse
Signed-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg
";

    const MMDEBSTRAP: &str = "    my $mirror    = 'http://default.example/debian';\n    \
        my $secmirror = 'http://security.example/debian-security';\n";

    #[test]
    fn the_archive_is_found_among_what_a_host_has() {
        let found = |archive: &str, security: Option<&str>| Some((archive.to_owned(), security.map(str::to_owned)));
        let default = || found("http://default.example/debian", Some("http://security.example/debian-security"));
        let ours = || found("http://archive.example/debian", Some("http://archive.example/debian-security"));
        for (name, mirror, list, deb822, script, want) in [
            ("Debian 12 container", None, "", DEBIAN_822, "", ours()),
            (
                "Debian 11 installer",
                None,
                "# deb cdrom:[Debian GNU/Linux 11 _Bullseye_]/ bullseye main\n\
                 deb cdrom:[Debian GNU/Linux 11 _Bullseye_]/ bullseye main\n\
                 deb http://archive.example/debian/ bullseye main\n\
                 deb-src http://archive.example/debian/ bullseye main\n\
                 deb http://archive.example/debian-security bullseye-security main contrib # updates\n",
                "",
                "",
                ours(),
            ),
            ("third parties only", None, THIRD_PARTY_LIST, THIRD_PARTY_822, MMDEBSTRAP, default()),
            ("third parties before the archive", None, THIRD_PARTY_LIST, DEBIAN_822, MMDEBSTRAP, ours()),
            (
                "keyed entry before one that looks alike",
                None,
                "deb http://lookalike.example/debian bookworm main\n",
                DEBIAN_822,
                "",
                ours(),
            ),
            (
                "a mirror with a path of its own, keyed",
                None,
                "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] https://repo.example/apt-remote trixie main",
                "",
                "",
                found("https://repo.example/apt-remote", None),
            ),
            ("Ubuntu", None, "", UBUNTU_822, MMDEBSTRAP, default()),
            ("Ubuntu without mmdebstrap", None, "", UBUNTU_822, "", None),
            (
                "a named mirror beats all",
                Some("http://m.example/debian/ http://m.example/debian-security"),
                "",
                DEBIAN_822,
                MMDEBSTRAP,
                found("http://m.example/debian", Some("http://m.example/debian-security")),
            ),
            ("a named mirror alone", Some("http://m.example/d"), "", "", "", found("http://m.example/d", None)),
            ("a directory", Some("file:///srv/mirror/"), "", DEBIAN_822, "", found("file:///srv/mirror", None)),
            ("a directory with a space in it", Some("file:///srv/my%20mirror"), "", DEBIAN_822, "", None),
            ("a mirror that is no URI", Some("m.example"), "", DEBIAN_822, "", None),
            ("a mirror with an option smuggled in", Some("http://m.example/[x]"), "", DEBIAN_822, "", None),
        ] {
            let host = [parse_one_line(list), parse_deb822(deb822)].concat();
            let got = choose("bookworm", mirror, &host, script).ok().map(|s| (s.archive, s.security));
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn a_host_is_read_from_its_files() -> Result<()> {
        let root = tempfile::tempdir()?;
        let apt = root.path().join("etc/apt");
        fs::create_dir_all(apt.join("sources.list.d"))?;
        fs::create_dir_all(apt.join("mirrors"))?;
        fs::write(apt.join("sources.list.d/vendor.list"), THIRD_PARTY_LIST)?;
        fs::write(apt.join("sources.list.d/debian.sources.disabled"), DEBIAN_822)?;
        assert_eq!(uri_for(&read_host(root.path())?, Role::Archive), None);
        // As Debian's cloud images have it.
        fs::write(apt.join("mirrors/debian.list"), "# comment\nhttps://cloud.example/debian\tpriority:1\n")?;
        fs::write(
            apt.join("sources.list.d/debian.sources"),
            DEBIAN_822.replace("http://archive.example/debian\n", "mirror+file:///etc/apt/mirrors/debian.list\n"),
        )?;
        assert_eq!(uri_for(&read_host(root.path())?, Role::Archive).as_deref(), Some("https://cloud.example/debian"));
        Ok(())
    }

    #[test]
    fn lines_name_the_key_and_fit_the_release() {
        let sources = |suite: &str, security: Option<&str>| Sources {
            suite: suite.into(),
            archive: "http://a.example/debian".into(),
            security: security.map(str::to_owned),
        };
        for (name, sources, want) in [
            (
                "with security",
                sources("bookworm", Some("http://s.example/ds")),
                vec![
                    "http://a.example/debian bookworm main",
                    "http://a.example/debian bookworm-updates main",
                    "http://s.example/ds bookworm-security main",
                ],
            ),
            (
                "without",
                sources("bookworm", None),
                vec!["http://a.example/debian bookworm main", "http://a.example/debian bookworm-updates main"],
            ),
            ("rolling", sources("sid", Some("http://s.example/ds")), vec!["http://a.example/debian sid main"]),
        ] {
            let want: Vec<_> = want.iter().map(|rest| format!("deb [signed-by={KEYRING}] {rest}")).collect();
            assert_eq!(sources.lines(), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "(?s).{0,400}") {
            let entries = [parse_one_line(&text), parse_deb822(&text)].concat();
            let _ = choose("bookworm", None, &entries, &text);
            let _ = choose(&text, Some(&text), &entries, "");
        }
    }
}
