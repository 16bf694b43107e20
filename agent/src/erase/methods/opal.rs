//! TCG Opal, spoken in whatever language the drive has for it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use drophammer_protocol::erase::Psid;

use crate::drive::opal::{self, Opal, Security};
use crate::drive::{Data, Drive, ata, nvme, scsi};
use crate::erase::ask;
use crate::erase::plan::Commands;

/// A drive's security subsystem, through the commands that the drive takes.
struct Door<'a> {
    drive: &'a mut dyn Drive,
    language: Language,
}

#[derive(Clone, Copy, Debug)]
enum Language {
    Nvme,
    Ata,
    Scsi,
}

impl Language {
    fn of(commands: &Commands) -> Option<Self> {
        match commands {
            Commands::Nvme(nvme) => nvme.security.then_some(Self::Nvme),
            Commands::Ata(ata) => ata.trusted.then_some(Self::Ata),
            Commands::Scsi(scsi) => scsi.security.then_some(Self::Scsi),
            Commands::None(_) => None,
        }
    }
}

impl Security for Door<'_> {
    fn send(&mut self, protocol: u8, com_id: u16, data: &[u8]) -> anyhow::Result<()> {
        match self.language {
            Language::Nvme => {
                let command = nvme::Command::security_send(protocol, com_id, bytes(data)?);
                self.drive.nvme(&command, Data::Out(data))?.check()?;
            }
            Language::Ata => {
                let command = ata::Command::trusted_send(protocol, com_id, sectors(data)?);
                ask::ata(self.drive, &command, Data::Out(data))?;
            }
            Language::Scsi => {
                let command = scsi::Command::security_out(protocol, com_id, bytes(data)?);
                ask::scsi(self.drive, &command, Data::Out(data))?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, protocol: u8, com_id: u16, data: &mut [u8]) -> anyhow::Result<()> {
        match self.language {
            Language::Nvme => {
                let command = nvme::Command::security_receive(protocol, com_id, bytes(data)?);
                self.drive.nvme(&command, Data::In(data))?.check()?;
            }
            Language::Ata => {
                let command = ata::Command::trusted_receive(protocol, com_id, sectors(data)?);
                ask::ata(self.drive, &command, Data::In(data))?;
            }
            Language::Scsi => {
                let command = scsi::Command::security_in(protocol, com_id, bytes(data)?);
                ask::scsi(self.drive, &command, Data::In(data))?;
            }
        }
        Ok(())
    }

    fn wait(&mut self, time: Duration) {
        self.drive.wait(time);
    }
}

fn bytes(data: &[u8]) -> anyhow::Result<u32> {
    u32::try_from(data.len()).context("that is more than a drive takes at once")
}

fn sectors(data: &[u8]) -> anyhow::Result<u16> {
    u16::try_from(data.len() / ata::SECTOR_BYTES).context("that is more than a drive takes at once")
}

/// Asks a drive that takes security commands what it has.
pub(in crate::erase) fn discover(drive: &mut dyn Drive, commands: &Commands) -> anyhow::Result<Option<Opal>> {
    match Language::of(commands) {
        Some(language) => opal::discover(&mut Door { drive, language }),
        None => Ok(None),
    }
}

/// Has the drive throw its key away: by its factory's password while nobody owns it, else by its label's. Returns what
/// was done, for the record.
pub(in crate::erase) fn revert(
    drive: &mut dyn Drive,
    commands: &Commands,
    psid: Option<&Psid>,
) -> anyhow::Result<Vec<String>> {
    let Some(language) = Language::of(commands) else { bail!("the drive takes no security commands") };
    let mut door = Door { drive, language };
    // As it is now: a revert before this one may have taken its owner away.
    let opal = opal::discover(&mut door)?.context("the drive says that it has no TCG Opal any more")?;
    let owned = opal.sid.is_some_and(|sid| sid.owned) || opal.locking.locked;
    Ok(match psid {
        Some(psid) if owned => opal::revert_by_psid(&mut door, &opal, psid.bytes())?,
        _ => opal::rekey(&mut door, &opal)?,
    })
}
