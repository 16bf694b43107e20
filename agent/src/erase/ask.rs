//! Questions to drives, and what they answer: one command there and its answer back, as a type or a sentence.

use std::io::{self, ErrorKind};
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::plan::Commands;
use crate::drive::ata::{
    self, Identity, LOG_DIRECTORY, Registers, SECTOR_BYTES, STATISTICS, STATISTICS_GENERAL, SanitizeState,
};
use crate::drive::nvme::{self, IDENTIFY_BYTES, IdentifyPage, SANITIZE_LOG_BYTES, SMART_BYTES, SanitizeLog};
use crate::drive::scsi::{self, CAPACITY_BYTES, Capacity, Command, Completion, Failure, PAGE_BYTES, Page, Sense};
use crate::drive::{Data, Drive, SanitizeKind, Written};

/// Has the command done. `Err` is why it wasn't.
pub(super) fn nvme(drive: &mut dyn Drive, command: &nvme::Command, data: Data<'_>) -> anyhow::Result<()> {
    drive.nvme(command, data).map_err(|error| unanswered(error, command.timeout))?.check()?;
    Ok(())
}

pub(super) fn identify_nvme(drive: &mut dyn Drive, page: IdentifyPage) -> anyhow::Result<Vec<u8>> {
    let mut data = vec![0; IDENTIFY_BYTES];
    nvme(drive, &nvme::Command::identify(page), Data::In(&mut data)).with_context(|| format!("asking for {page:?}"))?;
    Ok(data)
}

pub(super) fn sanitize_log(drive: &mut dyn Drive) -> anyhow::Result<SanitizeLog> {
    let mut data = vec![0; SANITIZE_LOG_BYTES];
    nvme(drive, &nvme::Command::sanitize_log(), Data::In(&mut data)).context("asking for the sanitize log")?;
    SanitizeLog::parse(&data).context("the sanitize log says what no revision of NVMe knows")
}

/// Has a command of SCSI done. `Err` is why it wasn't.
pub(super) fn scsi(drive: &mut dyn Drive, command: &Command, data: Data<'_>) -> anyhow::Result<Completion> {
    let completion = submit(drive, command, data)?;
    completion.check()?;
    Ok(completion)
}

/// The same for ATA. `None` where the translator passes no registers on.
pub(super) fn ata(drive: &mut dyn Drive, command: &ata::Command, data: Data<'_>) -> anyhow::Result<Option<Registers>> {
    Ok(ata::outcome(&submit(drive, &command.clothed(), data)?)?)
}

/// Sends the command until the drive has said everything else that it wants to say first: that it was switched on, that
/// somebody changed its settings, that it's starting.
fn submit(drive: &mut dyn Drive, command: &Command, mut data: Data<'_>) -> anyhow::Result<Completion> {
    const TIMES: u32 = 20;
    const PAUSE: Duration = Duration::from_millis(500);
    for _ in 1..TIMES {
        let completion = send(drive, command, data.again())?;
        match completion.check() {
            Err(failure) if failure.is_attention() => {}
            Err(failure) if failure.is_start() => drive.wait(PAUSE),
            Ok(()) | Err(_) => return Ok(completion),
        }
    }
    send(drive, command, data)
}

fn send(drive: &mut dyn Drive, command: &Command, data: Data<'_>) -> anyhow::Result<Completion> {
    drive.scsi(command, data).map_err(|error| unanswered(error, command.timeout))
}

fn unanswered(error: io::Error, limit: Duration) -> anyhow::Error {
    match error.kind() {
        // A command that the kernel's NVMe driver gave up is one that was interrupted.
        ErrorKind::TimedOut | ErrorKind::Interrupted => anyhow!("no answer within {} s", limit.as_secs()),
        _ => anyhow!(error).context("the command didn't get through to the drive"),
    }
}

pub(super) fn page(drive: &mut dyn Drive, page: Page) -> anyhow::Result<Vec<u8>> {
    input(drive, &Command::inquiry(page), PAGE_BYTES)
        .with_context(|| format!("asking for page {:02x}h of vital product data", page.code()))
}

/// How large it is. `None` if it's too busy sanitizing to say.
pub(super) fn capacity(drive: &mut dyn Drive) -> anyhow::Result<Option<Capacity>> {
    let long = match input(drive, &Command::capacity_16(), CAPACITY_BYTES) {
        Ok(answer) => {
            return Ok(Some(Capacity::parse(&answer).context("READ CAPACITY (16) describes no usable disk")?));
        }
        Err(error) => error,
    };
    match long.downcast_ref::<Failure>() {
        Some(failure) if failure.sense.is_some_and(|s| s.is_sanitizing() || s.is_failed_sanitize()) => Ok(None),
        Some(failure) if failure.is_refusal() => {
            let answer = input(drive, &Command::capacity_10(), CAPACITY_BYTES).context("asking for its size")?;
            Ok(Some(Capacity::parse_10(&answer).context("READ CAPACITY (10) describes no usable disk")?))
        }
        _ => Err(long.context("asking for its size")),
    }
}

/// Whether the drive reports that it can sanitize in this way. One that can't be asked reports nothing.
pub(super) fn reports_sanitize(drive: &mut dyn Drive, kind: SanitizeKind) -> bool {
    input(drive, &Command::reports_sanitize(kind), PAGE_BYTES).is_ok_and(|report| scsi::is_supported(&report))
}

/// Whether the drive takes security commands: it has a list of the protocols that it knows.
pub(super) fn has_security(drive: &mut dyn Drive) -> bool {
    let mut list = [0; SECTOR_BYTES];
    let command = u32::try_from(list.len()).map(|bytes| Command::security_in(0, 0, bytes));
    command.is_ok_and(|command| scsi(drive, &command, Data::In(&mut list)).is_ok())
}

/// What keeps the drive from being ready; `None` if it is.
pub(super) fn readiness(drive: &mut dyn Drive) -> anyhow::Result<Option<Sense>> {
    let refused = match scsi(drive, &Command::test_unit_ready(), Data::None) {
        Ok(_) => return Ok(None),
        Err(error) => error,
    };
    let Some(sense) = refused.downcast_ref::<Failure>().and_then(|failure| failure.sense) else {
        return Err(refused.context("asking whether it's ready"));
    };
    // Drives may tell the progress in either place.
    let told = || {
        let answer = input(drive, &Command::request_sense(), PAGE_BYTES).ok()?;
        Sense::parse(&answer)?.progress
    };
    Ok(Some(Sense { progress: sense.progress.or_else(told), ..sense }))
}

/// IDENTIFY DEVICE. `None` if there is no ATA drive behind this, or nothing that lets its commands through.
pub(super) fn identity(drive: &mut dyn Drive) -> anyhow::Result<Option<Identity>> {
    let mut page = [0; SECTOR_BYTES];
    match ata(drive, &ata::Command::identify(), Data::In(&mut page)) {
        Ok(_) => Ok(Identity::parse(&page)),
        Err(error) if error.is::<ata::Failure>() => Ok(None),
        Err(error) => Err(error.context("asking for IDENTIFY DEVICE")),
    }
}

pub(super) fn identify(drive: &mut dyn Drive) -> anyhow::Result<Identity> {
    identity(drive)?.context("the drive doesn't answer IDENTIFY DEVICE as an ATA drive does")
}

/// SANITIZE STATUS EXT
pub(super) fn sanitize_state(drive: &mut dyn Drive) -> anyhow::Result<SanitizeState> {
    let completion = submit(drive, &ata::Command::sanitize_status().clothed(), Data::None)?;
    SanitizeState::of(ata::outcome(&completion)).context("asking how its sanitize is going")
}

/// What was ever written to the drive, as it counts; `None` if it doesn't.
pub(super) fn written(drive: &mut dyn Drive, commands: &Commands) -> anyhow::Result<Option<Written>> {
    match commands {
        Commands::Nvme(_) => {
            let mut page = vec![0; SMART_BYTES];
            nvme(drive, &nvme::Command::smart(), Data::In(&mut page)).context("asking for the SMART log")?;
            nvme::written(&page).map(Some).context("the SMART log is cut short")
        }
        Commands::Ata(_) if identify(drive)?.logs => {
            let mut log = |log, page| {
                let mut answer = [0; SECTOR_BYTES];
                let read = ata(drive, &ata::Command::read_log(log, page), Data::In(&mut answer));
                read.map(|_| answer).with_context(|| format!("reading page {page} of log {log:02x}h"))
            };
            if !ata::has_statistics(&log(LOG_DIRECTORY, 0)?) {
                return Ok(None);
            }
            Ok(ata::written(&log(STATISTICS, STATISTICS_GENERAL)?))
        }
        Commands::Ata(_) | Commands::Scsi(_) | Commands::None(_) => Ok(None),
    }
}

/// What came of it, without the room that was left.
fn input(drive: &mut dyn Drive, command: &Command, room: u8) -> anyhow::Result<Vec<u8>> {
    let mut answer = vec![0; room.into()];
    let transferred = scsi(drive, command, Data::In(&mut answer))?.transferred;
    answer.truncate(transferred);
    Ok(answer)
}
