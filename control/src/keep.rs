//! Small files that have to be whole: keys, certificates, tokens.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// For a file that only its owner may read.
pub const PRIVATE: u32 = 0o600;
pub const PUBLIC: u32 = 0o644;

/// What the file holds; none if there is none.
pub fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

/// What the file holds; if there is none it is made, readable by nobody else.
pub fn made_once(path: &Path, make: impl FnOnce() -> Result<String>) -> Result<String> {
    if let Some(text) = read(path)? {
        return Ok(text);
    }
    let text = make()?;
    write(path, &text, PRIVATE)?;
    Ok(text)
}

/// The whole file or none of it, whenever the power goes.
pub fn write(path: &Path, content: &str, mode: u32) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    // A leftover of a crash could have other permissions.
    match fs::remove_file(new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).with_context(doing),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(new).with_context(doing)?;
    file.write_all(content.as_bytes()).and_then(|()| file.sync_all()).with_context(doing)?;
    fs::rename(new, path).with_context(doing)?;
    sync_directory(path)
}

/// Makes the directory entry of `path` durable.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|d| d.sync_all()).with_context(|| format!("syncing {}", parent.display()))
}
