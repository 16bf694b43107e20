//! What people hand in: a tar, however it is compressed.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Tells what it is by its first bytes, for names lie.
pub(crate) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let context = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut magic = Vec::new();
    file.by_ref().take(6).read_to_end(&mut magic).with_context(context)?;
    file.rewind().with_context(context)?;
    let file = BufReader::with_capacity(1 << 20, file);
    Ok(match magic.as_slice() {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::Decoder::with_buffer(file).with_context(context)?),
        [0x1f, 0x8b, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(file)),
        [0x04, 0x22, 0x4d, 0x18, ..] => Box::new(lz4_flex::frame::FrameDecoder::new(file)),
        [b'B', b'Z', b'h', ..] => {
            bail!("{} is compressed with bzip2: unpack it first, or compress it with zstd", path.display())
        }
        _ => Box::new(file),
    })
}
