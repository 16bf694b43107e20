//! A program with the libraries it needs, found the way the dynamic loader would find them, but in unpacked packages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use drophammer_images::debian::Unpacked;

use crate::elf::{Linkage, linkage};

/// Where Debian's loader looks by default; libraries are shipped in the first.
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

/// More links in a row than any package has.
const MAX_LINKS: usize = 16;

/// The files that `program` needs to run, itself included, by the path they must have.
pub fn close(
    program: &str,
    mut read: impl FnMut(&str) -> Result<Option<Vec<u8>>>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let content = read(program)?.with_context(|| format!("no package has {program}"))?;
    let Linkage { interpreter, needed } = linkage(&content).with_context(|| format!("reading what {program} needs"))?;
    files.insert(program.to_owned(), content);

    let loader = interpreter.as_deref().map(|path| path.trim_start_matches('/'));
    if let Some(path) = loader {
        let content = read(path)?.with_context(|| format!("no package has {path}, which starts {program}"))?;
        files.insert(path.to_owned(), content);
    }
    // Libraries name the loader like a library; it is there already.
    let loader_name = loader.and_then(|path| path.rsplit('/').next()).map(str::to_owned);
    let mut seen: BTreeSet<String> = loader_name.into_iter().collect();
    let mut open: Vec<(String, String)> = needed.into_iter().map(|name| (name, program.to_owned())).collect();
    while let Some((name, needed_by)) = open.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let mut found = None;
        for directory in LIBRARIES {
            if found.is_none() {
                found = read(&format!("{directory}/{name}"))?;
            }
        }
        let content = found.with_context(|| format!("no package has the library {name}, which {needed_by} needs"))?;
        let further = linkage(&content).with_context(|| format!("reading what {name} needs"))?.needed;
        open.extend(further.into_iter().map(|other| (other, name.clone())));
        files.insert(format!("{}/{name}", LIBRARIES[0]), content);
    }
    Ok(files)
}

/// Reads `path` from whichever package has it, with links followed inside the packages. A file below `usr` answers for the
/// same path without it: Debian moves its packages there one by one, and a running system has both.
pub fn read(packages: &[Unpacked], path: &str) -> Result<Option<Vec<u8>>> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let plain = path.trim_start_matches('/').to_owned();
        let names = [plain.clone(), format!("usr/{plain}")];
        let candidates = names.iter().flat_map(|name| packages.iter().map(move |package| (package, name)));
        let mut target = None;
        for (package, name) in candidates {
            let file = package.tree.join(name);
            match fs::symlink_metadata(&file) {
                Ok(metadata) if metadata.is_symlink() => {
                    let link = fs::read_link(&file).with_context(|| format!("reading the link {}", file.display()))?;
                    target = Some(followed(name, &link)?);
                    break;
                }
                Ok(_) => {
                    return fs::read(&file).map(Some).with_context(|| format!("reading {}", file.display()));
                }
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(error).with_context(|| format!("looking at {}", file.display())),
            }
        }
        match target {
            Some(target) => path = target,
            None => return Ok(None),
        }
    }
    bail!("{path} is a link that leads nowhere")
}

/// Where a link at `name` points to, from the root of the packages.
fn followed(name: &str, link: &std::path::Path) -> Result<String> {
    let directory = PathBuf::from("/").join(name).parent().map(PathBuf::from).unwrap_or_default();
    let mut plain = PathBuf::new();
    for part in directory.join(link).components() {
        match part {
            std::path::Component::Normal(part) => plain.push(part),
            std::path::Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain.into_os_string().into_string().ok().with_context(|| format!("the link {name} has a target that is no text"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use drophammer_images::debian::Package;

    use super::*;

    fn package(name: &str) -> (tempfile::TempDir, Unpacked) {
        let tree = tempfile::tempdir().expect("a directory");
        let unpacked = Unpacked {
            package: Package { name: name.into(), version: "1".into(), sha256: String::new(), file: String::new() },
            tree: tree.path().to_owned(),
        };
        (tree, unpacked)
    }

    #[test]
    fn files_are_found_as_on_a_running_system() {
        let (one, first) = package("libc6");
        let (two, second) = package("libfoo1");
        fs::create_dir_all(one.path().join("usr/lib/x86_64-linux-gnu")).expect("directories");
        fs::create_dir_all(one.path().join("lib64")).expect("directories");
        fs::create_dir_all(two.path().join("lib/x86_64-linux-gnu")).expect("directories");
        fs::write(one.path().join("usr/lib/x86_64-linux-gnu/ld.so"), "loader").expect("a file");
        symlink("/lib/x86_64-linux-gnu/ld.so", one.path().join("lib64/ld.so")).expect("a link");
        fs::write(two.path().join("lib/x86_64-linux-gnu/libfoo.so.1.2"), "foo").expect("a file");
        symlink("libfoo.so.1.2", two.path().join("lib/x86_64-linux-gnu/libfoo.so.1")).expect("a link");
        symlink("../loop", two.path().join("lib/loop")).expect("a link");
        symlink("lib/loop", two.path().join("loop")).expect("a link");
        let packages = [first, second];
        for (case, path, expected) in [
            ("absolute link, moved below usr", "/lib64/ld.so", Some("loader")),
            ("relative link in the second package", "lib/x86_64-linux-gnu/libfoo.so.1", Some("foo")),
            ("nowhere", "lib/x86_64-linux-gnu/libbar.so.1", None),
        ] {
            let expected = expected.map(|text| text.as_bytes().to_vec());
            assert_eq!(read(&packages, path).expect(case), expected, "{case}");
        }
        assert!(read(&packages, "loop").is_err(), "a circle of links ends");
    }

    #[test]
    fn the_closure_of_a_real_program_is_what_the_loader_would_map() {
        let host = Unpacked { tree: PathBuf::from("/"), ..package("host").1 };
        let program = std::env::current_exe().expect("own path");
        let own = program.to_str().expect("a plain path").trim_start_matches('/');
        let files = close(own, |path| read(std::slice::from_ref(&host), path)).expect("a closure");
        let maps = fs::read_to_string("/proc/self/maps").expect("own maps");
        let mapped: BTreeSet<&str> =
            maps.lines().filter_map(|line| line.split('/').next_back()).filter(|name| name.contains(".so")).collect();
        let shipped: BTreeSet<&str> =
            files.keys().filter_map(|path| path.split('/').next_back()).filter(|name| name.contains(".so")).collect();
        assert_eq!(shipped, mapped);
    }

    #[test]
    fn what_is_missing_is_named() {
        let own = fs::read(std::env::current_exe().expect("own path")).expect("own bytes");
        let only_program = |path: &str| Ok((path == "usr/sbin/tool" || path.contains("ld-")).then(|| own.clone()));
        let error = close("usr/sbin/tool", only_program).expect_err("no libraries").to_string();
        assert!(error.contains("no package has the library lib") && error.contains("usr/sbin/tool needs"), "{error}");
        let error = close("usr/sbin/tool", |_| Ok(None)).expect_err("no program").to_string();
        assert_eq!(error, "no package has usr/sbin/tool");
    }
}
