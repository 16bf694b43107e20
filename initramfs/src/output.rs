//! The boot directory: whole files only, and a record by which the next build knows whether it has anything to do.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::{Sizes, Uki};

const RECORD: &str = "boot.json";

/// What a boot directory was made of, and what it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) inputs: String,
    pub(crate) kernel_release: String,
    pub(crate) sizes: Sizes,
    pub(crate) uki: Option<Uki>,
    pub(crate) builtin: Vec<String>,
    pub(crate) absent: Vec<String>,
    /// SHA-256 by file name.
    pub(crate) files: BTreeMap<String, String>,
}

/// A boot directory that nobody else is making at the same time.
#[derive(Debug)]
pub(crate) struct Output {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Output {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let handle = File::open(directory).with_context(|| format!("opening {}", directory.display()))?;
        let lock = Flock::lock(handle, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("locking {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// The record, if it is about these inputs and every file is what it says.
    pub(crate) fn up_to_date(&self, inputs: &str) -> Result<Option<Record>> {
        let Some(record) = self.record()?.filter(|record| record.inputs == inputs) else { return Ok(None) };
        for (name, digest) in &record.files {
            if self.read(name)?.map(Sha256::digest).map(hex::encode).as_ref() != Some(digest) {
                return Ok(None);
            }
        }
        Ok(Some(record))
    }

    /// Writes all files, and last the record of them. What the build before made and this one doesn't is removed: a boot
    /// server would hand it out.
    pub(crate) fn write(&self, mut record: Record, files: &BTreeMap<String, Vec<u8>>) -> Result<Record> {
        let before = self.record()?.map(|record| record.files).unwrap_or_default();
        for (name, content) in files {
            self.replace(name, content)?;
            record.files.insert(name.clone(), hex::encode(Sha256::digest(content)));
        }
        for name in before.keys().filter(|name| !files.contains_key(*name)) {
            self.remove(name)?;
        }
        let mut text = serde_json::to_vec_pretty(&record).context("writing the record of the boot directory")?;
        text.push(b'\n');
        self.replace(RECORD, &text)?;
        Ok(record)
    }

    /// A record of another version is no record; everything is made anew.
    fn record(&self) -> Result<Option<Record>> {
        Ok(self.read(RECORD)?.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.directory.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// A machine that is booting right now gets the old file or the new one, never a part of either.
    fn replace(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        let context = || format!("writing {}", path.display());
        let parent = path.parent().unwrap_or(&self.directory);
        fs::create_dir_all(parent).with_context(context)?;
        let mut file = NamedTempFile::new_in(parent).with_context(context)?;
        file.write_all(content).with_context(context)?;
        file.as_file().set_permissions(Permissions::from_mode(0o644)).with_context(context)?;
        file.as_file().sync_all().with_context(context)?;
        file.persist(&path).map_err(|error| error.error).with_context(context)?;
        File::open(parent).and_then(|directory| directory.sync_all()).with_context(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(inputs: &str) -> Record {
        Record {
            inputs: inputs.into(),
            kernel_release: "6.1".into(),
            sizes: Sizes { kernel: 1, initramfs: 2, unpacked: 3, agent: 4, modules: 5, tools: 6 },
            uki: None,
            builtin: vec!["nvme".into()],
            absent: Vec::new(),
            files: BTreeMap::new(),
        }
    }

    #[test]
    fn a_record_holds_until_an_input_or_a_file_changes() {
        let directory = tempfile::tempdir().expect("a directory");
        let output = Output::open(&directory.path().join("boot")).expect("a boot directory");
        let path = |name: &str| directory.path().join("boot").join(name);
        let files = BTreeMap::from([("vmlinuz".into(), b"k".to_vec()), ("licences/linux".into(), b"l".to_vec())]);
        assert_eq!(output.up_to_date("a").expect("readable"), None, "nothing there");
        let written = output.write(record("a"), &files).expect("writable");
        assert_eq!(output.up_to_date("a").expect("readable"), Some(written), "all there");
        assert_eq!(fs::read(path("licences/linux")).expect("a file"), b"l");
        let mode = fs::metadata(path("vmlinuz")).expect("a file").permissions().mode() & 0o777;
        assert_eq!(mode, 0o644, "servers of other users read it");

        assert_eq!(output.up_to_date("b").expect("readable"), None, "other inputs");
        for (case, damage) in [
            ("a file changed", &(|| fs::write(path("vmlinuz"), "K")) as &dyn Fn() -> std::io::Result<()>),
            ("a file is gone", &|| fs::remove_file(path("licences/linux"))),
            ("the record is torn", &|| fs::write(path(RECORD), "{\"inputs\":")),
        ] {
            output.write(record("a"), &files).expect("writable");
            damage().expect(case);
            assert_eq!(output.up_to_date("a").expect("readable"), None, "{case}");
        }
    }

    #[test]
    fn what_is_no_longer_made_is_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let output = Output::open(directory.path()).expect("a boot directory");
        let files = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), b"x".to_vec())).collect();
        fs::write(directory.path().join("theirs"), "x").expect("a file that isn't ours");
        output.write(record("a"), &files(&["vmlinuz", "agent.efi", "licences/stub"])).expect("writable");
        output.write(record("b"), &files(&["vmlinuz"])).expect("writable");
        for (name, there) in [("vmlinuz", true), ("agent.efi", false), ("licences/stub", false), ("theirs", true)] {
            assert_eq!(directory.path().join(name).exists(), there, "{name}");
        }
    }
}
