//! The root file system, made by `mke2fs`: the one program that the agent runs as a child. Writing ext4's structures is
//! not a thing to do a second time.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use uuid::Uuid;

/// `mke2fs`, where e2fsprogs puts it, or in `$PATH` on an ordinary host.
pub(crate) fn find() -> Option<PathBuf> {
    let places = ["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.into_iter().chain(std::env::split_paths(&path)).map(|dir| dir.join("mke2fs")).find(|file| file.is_file())
}

pub(crate) fn ext4(mke2fs: &Path, partition: &Path, bytes: u64, uuid: Uuid) -> anyhow::Result<()> {
    let output = Command::new(mke2fs)
        .args(arguments(bytes, uuid))
        .arg(partition)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {}", mke2fs.display()))?;
    anyhow::ensure!(
        output.status.success(),
        "making the root file system on {} failed ({}): {}",
        partition.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Every feature is named, so that the result doesn't depend on the build host's mke2fs.conf. All of these are read by
/// the GRUB of Debian 12 and later.
fn arguments(bytes: u64, uuid: Uuid) -> Vec<String> {
    const FEATURES: &str = "none,sparse_super,large_file,filetype,dir_index,ext_attr,has_journal,extent,huge_file,flex_bg,\
         metadata_csum,metadata_csum_seed,64bit,dir_nlink,extra_isize";
    // The blocks reserved for growing are addressed with 32 bits.
    let growable = if bytes < 16 << 40 { ",resize_inode" } else { "" };
    [
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-I",
        "256",
        // 5 % of a drive of today is more than root will ever need to log in and clean up.
        "-m",
        "1",
        "-L",
        "root",
        "-U",
        &uuid.to_string(),
        "-O",
        &format!("{FEATURES}{growable}"),
        "-E",
        // The kernel zeroes inode tables when the system runs; until then checksums tell what is theirs. The journal is
        // zeroed now, because an old one with this UUID could be replayed. The drive was erased, so there is nothing to
        // discard.
        &format!("lazy_itable_init=1,lazy_journal_init=0,nodiscard,hash_seed={uuid}"),
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e2fsck_finds_nothing_wrong() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        let uuid = Uuid::from_u128(0x0102_0304_0506_4708_890a_0b0c_0d0e_0f10);
        let mke2fs = find().expect("mke2fs is there; it is in the Debian package e2fsprogs");
        for (name, bytes) in [("small", 100u64 << 20), ("large", 3 << 40)] {
            file.as_file().set_len(bytes).expect("sparse file");
            ext4(&mke2fs, file.path(), bytes, uuid).expect("made");
            let check = Command::new("e2fsck").arg("-fn").arg(file.path()).output().expect("e2fsck runs");
            assert!(check.status.success(), "{name}: {check:?}");
            let show = Command::new("dumpe2fs").arg("-h").arg(file.path()).output().expect("dumpe2fs runs");
            let show = String::from_utf8_lossy(&show.stdout).into_owned();
            assert!(show.contains(&uuid.to_string()) && show.contains("metadata_csum_seed"), "{name}: {show}");
            file.as_file().set_len(0).expect("emptied");
        }
    }

    #[test]
    fn what_it_says_reaches_the_operator() {
        let mke2fs = find().expect("mke2fs is there; it is in the Debian package e2fsprogs");
        let error = ext4(&mke2fs, Path::new("/nonexistent/partition"), 1 << 30, Uuid::nil()).expect_err("no such file");
        assert!(error.to_string().contains("/nonexistent/partition does not exist"), "{error}");
    }
}
