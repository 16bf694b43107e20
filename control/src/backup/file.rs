//! A backup as a file: whole and checked under its name, or not there.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Contents, Key, Opened, Sealer, check};
use crate::keep;

/// Makes a backup of what `take` writes. It has its name when all of it was read again and is on disk.
pub fn create(path: &Path, key: &Key, take: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Contents> {
    ensure!(
        !fs::exists(path).with_context(|| format!("looking for {}", path.display()))?,
        "{} is there already, and no backup is written over another: give it another name",
        path.display()
    );
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = Path::new(&name);
    let made = create_part(part, key, take).and_then(|contents| {
        fs::rename(part, path).and_then(|()| keep::sync_directory(path).map_err(std::io::Error::other))?;
        Ok(contents)
    });
    if made.is_err() {
        // What is wrong is said; a part that stays is in nobody's way.
        let _ = fs::remove_file(part);
    }
    made.with_context(|| format!("making the backup {}", path.display()))
}

fn create_part(part: &Path, key: &Key, take: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Contents> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(keep::PRIVATE).open(part)?;
    let mut sealer = Sealer::new(BufWriter::new(file), key)?;
    take(&mut sealer)?;
    let file = sealer.finish()?.into_inner().map_err(|e| e.into_error())?;
    file.sync_all()?;
    check(read(part, key)?)
}

/// The content of a backup.
pub fn read(path: &Path, key: &Key) -> Result<impl Read + use<>> {
    let reading = || format!("reading the backup {}", path.display());
    Opened::new(File::open(path).with_context(reading)?, key).with_context(reading)
}

/// All of it, as [`check`] does.
pub fn verify(path: &Path, key: &Key) -> Result<Contents> {
    check(read(path, key)?).with_context(|| format!("{} is no backup that could be restored", path.display()))
}

/// The same of one that lies elsewhere.
pub fn verify_at(from: impl Read, key: &Key) -> Result<Contents> {
    check(Opened::new(from, key)?)
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::super::sealed::tests::key;
    use super::*;

    #[test]
    fn what_could_not_be_taken_leaves_nothing() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.backup");
        let broke_off = |to: &mut dyn Write| {
            to.write_all(&[0; 100_000])?;
            bail!("the server went away")
        };
        let error = format!("{:#}", create(&path, &key(), broke_off).expect_err("broke off"));
        assert!(error.contains("a.backup") && error.contains("went away"), "{error}");
        // It came to an end, but not to that of a backup.
        let cut = |to: &mut dyn Write| Ok(to.write_all(b"half")?);
        create(&path, &key(), cut).expect_err("cut short");
        assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
        fs::write(&path, "an older one").expect("writes");
        let error = create(&path, &key(), |_| Ok(())).expect_err("there is one").to_string();
        assert!(error.contains("there already"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("reads"), "an older one");
    }
}
