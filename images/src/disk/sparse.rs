//! What was compressed, as a file in which zeros take no room.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

/// Zeros compress to next to nothing: a few MB that unpack to more than this aren't a disk that anybody installs from.
const MAX_DISK_BYTES: u64 = 256 << 30;
const BLOCK: usize = 4096;
const BUFFER: usize = 1 << 20;

/// Unpacks to `file`, which is empty.
pub(crate) fn unpack(packed: impl Read, file: &File) -> Result<()> {
    up_to(packed, file, MAX_DISK_BYTES)
}

fn up_to(mut packed: impl Read, file: &File, most: u64) -> Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        let filled = fill(&mut packed, &mut buffer).with_context(|| format!("unpacking the disk after {at} bytes"))?;
        let part = &buffer[..filled];
        ensure!(
            at + filled as u64 <= most,
            "the disk unpacks to more than {} GiB: unpack it yourself if that is right, and pack the raw disk",
            most >> 30
        );
        write(file, at, part).context("writing the unpacked disk")?;
        at += filled as u64;
        if filled < buffer.len() {
            return file.set_len(at).context("writing the unpacked disk");
        }
    }
}

/// As much as there is.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

fn write(file: &File, mut at: u64, bytes: &[u8]) -> std::io::Result<()> {
    let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
    for run in blocks.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length: usize = run.iter().map(|block| block.len()).sum();
        if !run.first().is_some_and(|block| is_zero(block)) {
            file.write_all_at(&run.concat(), at)?;
        }
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zeros_take_no_room() -> Result<()> {
        let disk =
            [vec![7; 5000], vec![0; 3 << 20], vec![8; BLOCK], vec![0; 10_000], vec![9; 1], vec![0; 9000]].concat();
        let file = tempfile::tempfile()?;
        unpack(&disk[..], &file)?;
        let mut read = vec![0; disk.len()];
        file.read_exact_at(&mut read, 0)?;
        assert!(read == disk);
        let facts = file.metadata()?;
        assert_eq!(facts.len(), disk.len() as u64);
        assert!(facts.blocks() * 512 < 64 << 10, "{} sectors", facts.blocks());
        Ok(())
    }

    #[test]
    fn there_is_an_end_to_it() -> Result<()> {
        for (name, bytes, want) in
            [("as much as may be", 2 << 20, ""), ("a byte more", (2 << 20) + 1, "more than 0 GiB")]
        {
            let said = up_to(std::io::repeat(0).take(bytes), &tempfile::tempfile()?, 2 << 20);
            let said = said.map_or_else(|e| format!("{e:#}"), |()| String::new());
            assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{name}: {said}");
        }
        let cut = zstd::encode_all(&[1; 5000][..], 1)?;
        let said = unpack(zstd::Decoder::new(&cut[..cut.len() - 3])?, &tempfile::tempfile()?);
        assert!(said.is_err_and(|e| format!("{e:#}").contains("unpacking the disk")));
        Ok(())
    }
}
