//! The way to a drive's TCG security subsystem, in whatever language the drive has for it.

use std::time::Duration;

use anyhow::Context as _;

use super::ask;
use super::plan::Commands;
use crate::drive::opal::Security;
use crate::drive::{Data, Drive, ata, nvme, scsi};

/// A drive's security subsystem, through the commands that the drive takes.
pub(super) struct Door<'a> {
    drive: &'a mut dyn Drive,
    language: Language,
}

#[derive(Clone, Copy, Debug)]
enum Language {
    Nvme,
    Ata,
    Scsi,
}

impl<'a> Door<'a> {
    /// `None` if the drive takes no security commands.
    pub(super) fn of(drive: &'a mut dyn Drive, commands: &Commands) -> Option<Self> {
        let (takes, language) = match commands {
            Commands::Nvme(nvme) => (nvme.security, Language::Nvme),
            Commands::Ata(ata) => (ata.trusted, Language::Ata),
            Commands::Scsi(scsi) => (scsi.security, Language::Scsi),
            Commands::None(_) => return None,
        };
        takes.then_some(Self { drive, language })
    }
}

impl Security for Door<'_> {
    fn send(&mut self, protocol: u8, com_id: u16, data: &[u8]) -> anyhow::Result<()> {
        match self.language {
            Language::Nvme => {
                let command = nvme::Command::security_send(protocol, com_id, bytes(data)?);
                ask::nvme(self.drive, &command, Data::Out(data))?;
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
                ask::nvme(self.drive, &command, Data::In(data))?;
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
