//! What can be done to any drive that has blocks: zeros, by the drive itself or by us.

use anyhow::{Context as _, bail};
use drophammer_protocol::erase::Method;

use super::{Progress, part};
use crate::drive::{Buffer, Drive};
use crate::erase::probe::Probed;

/// As large as controllers take at once; `dd oflag=direct` is as fast with it as it gets.
const WRITE_BYTES: usize = 4 << 20;
/// Of a discard or of zeros that the drive writes: often enough for whoever waits, and for the kernel's patience.
const OFFLOAD_BYTES: u64 = 1 << 30;

pub(super) fn carry_out(
    drive: &mut dyn Drive,
    probed: &Probed,
    method: Method,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let total = probed.size_bytes();
    let mut done = 0u64;
    for (volume, size) in probed.volumes.iter().map(|volume| volume.id.size_bytes).enumerate() {
        let mut advance = |bytes: u64| {
            done = done.saturating_add(bytes);
            progress(part(done, total));
        };
        match method {
            Method::WriteZeroes => {
                in_steps(size, OFFLOAD_BYTES, &mut advance, |at, length| drive.write_zeroes(volume, at, length))?
            }
            Method::Discard => {
                in_steps(size, OFFLOAD_BYTES, &mut advance, |at, length| drive.discard(volume, at, length))?
            }
            Method::Overwrite => {
                let mut zeros = Buffer::new(WRITE_BYTES);
                in_steps(size, WRITE_BYTES as u64, &mut advance, |at, length| {
                    let length = usize::try_from(length).unwrap_or(WRITE_BYTES).min(WRITE_BYTES);
                    drive.write(volume, &zeros.bytes()[..length], at)
                })?;
            }
            other => bail!("{} isn't done by blocks", other.name()),
        }
    }
    drive.flush().context("flushing it to the medium")
}

fn in_steps(
    size: u64,
    step: u64,
    advance: &mut dyn FnMut(u64),
    mut act: impl FnMut(u64, u64) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut at = 0;
    while at < size {
        let length = step.min(size - at);
        act(at, length).with_context(|| format!("at byte {at}"))?;
        at += length;
        advance(length);
    }
    Ok(())
}
