//! What people hand in: a tar, however it is compressed, a container image, or the image of a disk.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::disk::{self, Sight};
use crate::oci;

/// The tar of a root file system that `path` is or stands for. `scratch` makes a file for what has to be unpacked before it
/// can be looked into.
pub(crate) fn open(path: &Path, tag: Option<&str>, scratch: impl FnOnce() -> Result<File>) -> Result<Box<dyn Read>> {
    if path.is_dir() {
        return Ok(Box::new(oci::open(oci::open_directory(path)?, tag)?));
    }
    let (_, looked_into) = unpacked(path)?;
    match disk::sight(&head(looked_into)) {
        Sight::Tar => {}
        Sight::Disk => {
            ensure!(tag.is_none(), "{} is a disk and no OCI image layout, so nothing in it has a tag", path.display());
            let disk = file(path, scratch, disk::unpack)?;
            let tar = disk::open(disk).with_context(|| format!("reading the disk {}", path.display()))?;
            return Ok(Box::new(tar));
        }
        Sight::Wrapped(form) => bail!(
            "{0} is a disk in the form {form}: convert it first: qemu-img convert -O raw {0} disk.raw",
            path.display()
        ),
        Sight::Unreadable(what) => bail!(
            "{} is {what}, and of disks only a root in ext4, ext3 or ext2 can be read: pack a tar of the root instead",
            path.display()
        ),
        Sight::Blank => bail!(
            "{} holds nothing: it begins as an empty disk does, and there is neither a partition table nor a file system",
            path.display()
        ),
        Sight::Unknown => bail!(
            "{} is neither a tar, nor an OCI image layout, nor a raw disk with an ext4 file system",
            path.display()
        ),
    }
    let (_, looked_into) = unpacked(path)?;
    if oci::is_layout(looked_into) {
        let copy = |mut tar: Box<dyn Read>, mut to: &File| {
            io::copy(&mut tar, &mut to).context("unpacking the layout")?;
            Ok(())
        };
        return Ok(Box::new(oci::open(oci::Layout::tar(file(path, scratch, copy)?)?, tag)?));
    }
    ensure!(tag.is_none(), "{} isn't an OCI image layout, so nothing in it has a tag", path.display());
    Ok(unpacked(path)?.1)
}

/// The file itself, or what `unpack` puts into another one.
fn file(
    path: &Path,
    scratch: impl FnOnce() -> Result<File>,
    unpack: impl FnOnce(Box<dyn Read>, &File) -> Result<()>,
) -> Result<File> {
    match unpacked(path)? {
        (Form::Plain, _) => File::open(path).with_context(|| format!("opening {}", path.display())),
        (Form::Compressed, unpacked) => {
            let file = scratch()?;
            unpack(unpacked, &file).with_context(|| format!("unpacking {}", path.display()))?;
            Ok(file)
        }
    }
}

/// As much of its start as can be read: of what can't be, whoever reads it in earnest complains.
fn head(from: impl Read) -> Vec<u8> {
    let mut head = Vec::new();
    let _ = from.take(disk::HEAD_BYTES as u64).read_to_end(&mut head);
    head
}

enum Form {
    Plain,
    Compressed,
}

/// Tells what it is by its first bytes, for names lie.
fn unpacked(path: &Path) -> Result<(Form, Box<dyn Read>)> {
    let context = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut magic = Vec::new();
    file.by_ref().take(6).read_to_end(&mut magic).with_context(context)?;
    file.rewind().with_context(context)?;
    let file = BufReader::with_capacity(1 << 20, file);
    let unpacked: Box<dyn Read> = match magic.as_slice() {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(file).with_context(context)?),
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(file)),
        [0x04, 0x22, 0x4d, 0x18, ..] => Box::new(lz4_flex::frame::FrameDecoder::new(file)),
        [b'B', b'Z', b'h', ..] => {
            bail!("{} is compressed with bzip2: unpack it first, or compress it with zstd", path.display())
        }
        _ => return Ok((Form::Plain, Box::new(file))),
    };
    Ok((Form::Compressed, unpacked))
}
