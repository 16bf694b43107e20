//! How a drive is left after its erase, and whether anybody has written to it since: drives that idle machines keep for
//! each other aren't worn out by an erase at every boot.
//!
//! A drive tells by its own counters, and by seals: blocks of random content that are written after the erase was proven.
//! Either alone could be wrong, as counters that start over or a drive that was put in place of another; both at once are
//! as they were left only if nothing was written.

use anyhow::{Context as _, bail, ensure};
use drophammer_protocol::certificate::{Rest, Seal};
use drophammer_protocol::order::Fresh;
use sha2::{Digest, Sha256};

use super::ask;
use super::canary::BLOCK_BYTES;
use super::probe::Probed;
use crate::drive::{Buffer, Drive, Written};

/// Of each volume.
const SEALS: u64 = 8;
/// No seal lies where anything is started or recognised from.
const LAST_BYTES: u64 = 1 << 20;

/// Seals a drive. `None` if it couldn't tell later whether it was written to, or is too small.
pub(super) fn seal(drive: &mut dyn Drive, probed: &Probed) -> anyhow::Result<Option<Rest>> {
    let commands = &probed.capabilities.commands;
    if ask::written(drive, commands)?.is_none() {
        return Ok(None);
    }
    let mut seals = Vec::new();
    for (index, volume) in probed.volumes.iter().enumerate() {
        let unit = u64::from(BLOCK_BYTES.max(volume.block_bytes));
        let (from, to) = (volume.id.size_bytes / 2 / unit, volume.id.size_bytes.saturating_sub(LAST_BYTES) / unit);
        let Some(part) = to.checked_sub(from).map(|blocks| blocks / SEALS).filter(|part| *part > 0) else {
            return Ok(None);
        };
        let mut block = Buffer::new(usize::try_from(unit).context("a block")?);
        for number in 0..SEALS {
            let mut place = [0; 8];
            getrandom::fill(&mut place).context("drawing random bytes")?;
            getrandom::fill(block.bytes()).context("drawing random bytes")?;
            let offset = (from + number * part + u64::from_le_bytes(place) % part) * unit;
            drive.write(index, block.bytes(), offset).with_context(|| format!("writing a seal at byte {offset}"))?;
            seals.push(Seal { namespace: volume.id.namespace, offset, sha256: hash(block.bytes()) });
        }
    }
    drive.flush().context("flushing the seals")?;
    let rest =
        |Written { commands, data_units }| Rest { write_commands: commands, data_units_written: data_units, seals };
    Ok(ask::written(drive, commands)?.map(rest))
}

/// Whether a drive is as it was left. `Err` says why it has to be erased again.
pub(super) fn look(drive: &mut dyn Drive, probed: &Probed, fresh: &Fresh) -> anyhow::Result<()> {
    let rest = &fresh.rest;
    let written = ask::written(drive, &probed.capabilities.commands)?.context("it no longer counts what is written")?;
    ensure!(
        (written.commands, written.data_units) == (rest.write_commands, rest.data_units_written),
        "it counts {} write commands now, and counted {} then",
        written.commands,
        rest.write_commands
    );
    ensure!(!rest.seals.is_empty(), "it has no seals");
    for seal in &rest.seals {
        let volume = probed.volumes.iter().position(|volume| volume.id.namespace == seal.namespace);
        let Some((index, volume)) = volume.and_then(|index| Some((index, probed.volumes.get(index)?))) else {
            bail!("its namespace {} is gone", seal.namespace);
        };
        let unit = BLOCK_BYTES.max(volume.block_bytes);
        let end = seal.offset.checked_add(unit.into());
        ensure!(
            seal.offset.is_multiple_of(unit.into()) && end.is_some_and(|end| end <= volume.id.size_bytes),
            "a seal at byte {} doesn't fit on it",
            seal.offset
        );
        let mut block = Buffer::new(unit as usize);
        drive
            .read(index, block.bytes(), seal.offset)
            .with_context(|| format!("reading the seal at byte {}", seal.offset))?;
        ensure!(hash(block.bytes()) == seal.sha256, "the seal at byte {} is broken", seal.offset);
    }
    Ok(())
}

fn hash(block: &[u8]) -> String {
    hex::encode(Sha256::digest(block))
}
