//! The sanitizes of SCSI.

use anyhow::{Context as _, bail};
use drophammer_protocol::erase::Method;

use super::sanitize::kind;
use super::{Progress, finish_sanitize};
use crate::drive::scsi::{Command, zeros};
use crate::drive::{Data, Drive, SanitizeKind};
use crate::erase::ask;
use crate::erase::probe::Probed;

pub(super) fn carry_out(
    drive: &mut dyn Drive,
    probed: &Probed,
    method: Method,
    progress: Progress<'_>,
) -> anyhow::Result<()> {
    let Some(kind) = kind(method) else { bail!("{} isn't SCSI's", method.name()) };
    let parameters = zeros();
    let data = if kind == SanitizeKind::Overwrite { Data::Out(&parameters) } else { Data::None };
    ask::scsi(drive, &Command::sanitize(kind), data)?;
    finish_sanitize(drive, probed, Some(method), progress).context("the drive began it")
}
