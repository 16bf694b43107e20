//! Enabling units in a system that doesn't run: the links that `systemctl enable` would make.

use std::collections::BTreeSet;

use super::root::Root;

const OWN: &str = "/etc/systemd/system";
const UNIT_DIRS: [&str; 3] = [OWN, "/usr/lib/systemd/system", "/lib/systemd/system"];

pub(crate) fn present(root: &Root) -> anyhow::Result<bool> {
    Ok(root.exists("/usr/lib/systemd/systemd")? || root.exists("/lib/systemd/systemd")?)
}

/// Whether the image has a unit of this name that nobody has masked.
pub(crate) fn has(root: &Root, unit: &str) -> anyhow::Result<bool> {
    Ok(find(root, unit)?.is_some())
}

/// Enables a unit with all that its `[Install]` section names. A unit that isn't there is left out, as `Also=` wants it.
pub(crate) fn enable(root: &Root, unit: &str) -> anyhow::Result<()> {
    let mut waiting = vec![unit.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(unit) = waiting.pop() {
        if !seen.insert(unit.clone()) {
            continue;
        }
        let Some((path, text)) = find(root, &unit)? else { continue };
        let install = Install::parse(&text);
        for (targets, suffix) in [(&install.wanted_by, "wants"), (&install.required_by, "requires")] {
            for target in targets {
                link(root, &format!("{OWN}/{target}.{suffix}/{unit}"), &path)?;
            }
        }
        for alias in &install.aliases {
            link(root, &format!("{OWN}/{alias}"), &path)?;
        }
        waiting.extend(install.also);
    }
    Ok(())
}

/// Whether anything of what its `[Install]` section names wants it already.
pub(crate) fn enabled(root: &Root, unit: &str) -> anyhow::Result<bool> {
    let Some((_, text)) = find(root, unit)? else { return Ok(false) };
    let install = Install::parse(&text);
    for (targets, suffix) in [(&install.wanted_by, "wants"), (&install.required_by, "requires")] {
        for target in targets {
            if root.link_target(&format!("{OWN}/{target}.{suffix}/{unit}"))?.is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Has an instance of a template be wanted by a target, as `systemctl add-wants` does.
pub(crate) fn want_instance(root: &Root, target: &str, template: &str, instance: &str) -> anyhow::Result<()> {
    let Some((path, _)) = find(root, &format!("{template}@.service"))? else {
        anyhow::bail!("the image has no {template}@.service");
    };
    link(root, &format!("{OWN}/{target}.wants/{template}@{instance}.service"), &path)
}

/// What the image has enabled itself stays as it is.
fn link(root: &Root, path: &str, unit: &str) -> anyhow::Result<()> {
    if root.link_target(path)?.is_some() { Ok(()) } else { root.link(path, unit) }
}

fn find(root: &Root, unit: &str) -> anyhow::Result<Option<(String, String)>> {
    for dir in UNIT_DIRS {
        let path = format!("{dir}/{unit}");
        // `systemctl mask` links the unit to /dev/null: somebody doesn't want it.
        if root.link_target(&path)?.is_some_and(|target| target == *"/dev/null") {
            return Ok(None);
        }
        if let Some(text) = root.text(&path)? {
            return Ok(Some((path, text)));
        }
    }
    Ok(None)
}

/// systemd.unit(5), "[Install] Section Options". Names with `%` or of templates are skipped.
#[derive(Debug, Default, PartialEq, Eq)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    aliases: Vec<String>,
    also: Vec<String>,
}

impl Install {
    fn parse(text: &str) -> Self {
        let mut install = Self::default();
        let mut inside = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                inside = line == "[Install]";
            }
            let Some((key, value)) = line.split_once('=').filter(|_| inside) else { continue };
            let names = match key.trim_end() {
                "WantedBy" => &mut install.wanted_by,
                "RequiredBy" => &mut install.required_by,
                "Alias" => &mut install.aliases,
                "Also" => &mut install.also,
                _ => continue,
            };
            // A name becomes part of a path.
            let plain = |name: &&str| !name.contains(['/', '%']) && !name.starts_with('.');
            names.extend(value.split_whitespace().filter(plain).map(str::to_owned));
        }
        install
    }
}

/// Names that become parts of paths stay in their directory.
#[cfg(fuzzing)]
pub(crate) fn fuzz(text: &str) {
    let Install { wanted_by, required_by, aliases, also } = Install::parse(text);
    for name in [wanted_by, required_by, aliases, also].into_iter().flatten() {
        assert!(!name.is_empty() && !name.contains('/') && name != "..", "{name:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use super::*;

    #[test]
    fn install_sections() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        for (name, text, want) in [
            ("none", "[Unit]\nWantedBy=a.target\n", Install::default()),
            (
                "all",
                "[Install]\nWantedBy=a.target b.target\nAlias = x.service\nAlso=y.socket\nRequiredBy=r.target\n",
                Install {
                    wanted_by: names(&["a.target", "b.target"]),
                    required_by: names(&["r.target"]),
                    aliases: names(&["x.service"]),
                    also: names(&["y.socket"]),
                },
            ),
            ("another section after it", "[Install]\n[X]\nAlias=x\n", Install::default()),
            ("paths and specifiers", "[Install]\nAlias=../x /etc/x %i.service .hidden\n", Install::default()),
        ] {
            assert_eq!(Install::parse(text), want, "{name}");
        }
    }

    #[test]
    fn links_as_systemctl_makes_them() {
        let base = tempfile::tempdir().expect("temporary directory");
        let units = base.path().join("usr/lib/systemd/system");
        let own = base.path().join("etc/systemd/system");
        fs::create_dir_all(&units).expect("made");
        fs::create_dir_all(&own).expect("made");
        fs::write(
            units.join("a.service"),
            "[Install]\nWantedBy=multi-user.target\nAlias=c.service\nAlso=b.socket gone.x",
        )
        .expect("written");
        fs::write(units.join("b.socket"), "[Install]\nWantedBy=sockets.target\nAlso=a.service\n").expect("written");
        fs::write(units.join("m.service"), "[Install]\nWantedBy=multi-user.target\n").expect("written");
        symlink("/dev/null", own.join("m.service")).expect("linked");
        let root = Root::open(base.path()).expect("opened");
        enable(&root, "a.service").expect("enabled");
        enable(&root, "m.service").expect("left masked");
        let target = |path: &str| fs::read_link(own.join(path)).ok();
        let file = |name: &str| Some(Path::new("/usr/lib/systemd/system").join(name));
        assert_eq!(target("multi-user.target.wants/a.service"), file("a.service"));
        assert_eq!(target("sockets.target.wants/b.socket"), file("b.socket"));
        assert_eq!(target("c.service"), file("a.service"));
        assert_eq!(target("multi-user.target.wants/m.service"), None::<PathBuf>);
        assert!(!enabled(&root, "b.service").expect("read") && enabled(&root, "a.service").expect("read"));
        assert!(has(&root, "a.service").expect("read") && !has(&root, "m.service").expect("read"));
    }
}
