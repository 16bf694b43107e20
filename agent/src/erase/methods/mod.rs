//! Each way to erase, carried out: told to the drive, watched, and waited for. Success here is what the drive says; what
//! it's worth is found out by whoever looks afterwards.

mod ata;
mod blocks;
mod nvme;
mod opal;
mod sanitize;
mod scsi;

use std::time::Duration;

use anyhow::bail;
use drophammer_protocol::certificate::Promise;
use drophammer_protocol::erase::Method;

use super::plan::Commands;
use super::probe::Probed;
use crate::drive::Drive;
use crate::drive::nvme::Deallocated;

pub(super) use ata::remove_password;
pub(super) use sanitize::{finish_sanitize, leave_failed_sanitize};

/// Hears how far a method is, from 0 to 1.
pub(super) type Progress<'a> = &'a mut dyn FnMut(f64);

/// For [`Progress`]: how far `done` of `total` bytes are.
pub(super) fn part(done: u64, total: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "it's for people")]
    let part = done as f64 / total.max(1) as f64;
    part
}

/// Has the drive erase itself by `method`, one that it claims. Returns when the drive says that it's done, with what was
/// done where that isn't said by the method's name, or with the sentence in which it says that it isn't.
pub(super) fn carry_out(
    drive: &mut dyn Drive,
    probed: &Probed,
    method: Method,
    progress: Progress<'_>,
) -> anyhow::Result<Vec<String>> {
    let done = match method {
        Method::OpalRevert => return opal::revert(drive, &probed.capabilities.commands, probed.psid.as_ref()),
        Method::NvmeSanitizeCrypto
        | Method::NvmeSanitizeBlock
        | Method::NvmeSanitizeOverwrite
        | Method::NvmeFormatCrypto
        | Method::NvmeFormatUserData => nvme::carry_out(drive, probed, method, progress),
        Method::WriteZeroes | Method::Discard | Method::Overwrite => blocks::carry_out(drive, probed, method, progress),
        Method::AtaSanitizeCrypto
        | Method::AtaSanitizeBlock
        | Method::AtaSanitizeOverwrite
        | Method::AtaSecurityEraseEnhanced
        | Method::AtaSecurityErase => ata::carry_out(drive, probed, method, progress),
        Method::ScsiSanitizeCrypto | Method::ScsiSanitizeBlock | Method::ScsiSanitizeOverwrite => {
            scsi::carry_out(drive, probed, method, progress)
        }
    };
    done.map(|()| Vec::new())
}

/// What every block has to hold after a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expectation {
    /// Nothing else will do.
    Must(Promise),
    /// What the drive says of itself. Change is enough where it isn't so: the standard leaves it to the drive.
    Should(Promise),
}

pub(super) fn expectation(probed: &Probed, method: Method) -> Expectation {
    match method {
        Method::WriteZeroes
        | Method::Discard
        | Method::Overwrite
        | Method::AtaSanitizeOverwrite
        | Method::ScsiSanitizeOverwrite => Expectation::Must(Promise::Zeroes),
        Method::NvmeSanitizeOverwrite => Expectation::Should(Promise::Zeroes),
        Method::NvmeSanitizeCrypto
        | Method::NvmeSanitizeBlock
        | Method::NvmeFormatCrypto
        | Method::NvmeFormatUserData => Expectation::Should(deallocated(probed)),
        Method::OpalRevert
        | Method::AtaSanitizeCrypto
        | Method::AtaSanitizeBlock
        | Method::AtaSecurityEraseEnhanced
        | Method::AtaSecurityErase
        | Method::ScsiSanitizeCrypto
        | Method::ScsiSanitizeBlock => Expectation::Should(Promise::Changed),
    }
}

fn deallocated(probed: &Probed) -> Promise {
    match &probed.capabilities.commands {
        Commands::Nvme(nvme) => match nvme.deallocated {
            Deallocated::Unsaid => Promise::Changed,
            Deallocated::Zeroes => Promise::Zeroes,
            Deallocated::Ones => Promise::Ones,
        },
        Commands::Ata(_) | Commands::Scsi(_) | Commands::None(_) => Promise::Changed,
    }
}

/// How something that a drive does by itself is going.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Going {
    /// How far, from 0 to 1.
    On(f64),
    Done,
}

/// Asks `how` until it's done, at most until `limit` is over.
fn wait_for(
    drive: &mut dyn Drive,
    limit: Duration,
    progress: Progress<'_>,
    mut how: impl FnMut(&mut dyn Drive) -> anyhow::Result<Going>,
) -> anyhow::Result<()> {
    const FIRST_PAUSE: Duration = Duration::from_millis(20);
    const LONGEST_PAUSE: Duration = Duration::from_secs(5);
    let begun = drive.now();
    let mut pause = FIRST_PAUSE;
    loop {
        match how(drive)? {
            Going::Done => return Ok(()),
            Going::On(done) => {
                progress(done);
                if drive.now().saturating_sub(begun) >= limit {
                    bail!("not finished within {} s; it says it's {:.0} % done", limit.as_secs(), done * 100.0);
                }
            }
        }
        drive.wait(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// How long something may take of which the drive says that it takes `estimate`.
fn patience(estimate: Duration) -> Duration {
    const LEAST: Duration = Duration::from_secs(600);
    estimate.saturating_mul(2).saturating_add(LEAST)
}
