//! TCG Opal.

use anyhow::Context as _;
use drophammer_protocol::erase::Psid;

use crate::drive::{Drive, opal};
use crate::erase::door::Door;
use crate::erase::plan::Commands;

/// Has the drive throw its key away: by its factory's password while nobody owns it, else by its label's. Returns what
/// was done, for the record.
pub(super) fn revert(drive: &mut dyn Drive, commands: &Commands, psid: Option<&Psid>) -> anyhow::Result<Vec<String>> {
    let mut door = Door::of(drive, commands).context("the drive takes no security commands")?;
    // As it is now: a revert before this one may have taken its owner away.
    let opal = opal::discover(&mut door)?.context("the drive says that it has no TCG Opal any more")?;
    let owned = opal.sid.is_some_and(|sid| sid.owned) || opal.locking.locked;
    Ok(match psid {
        Some(psid) if owned => opal::revert_by_psid(&mut door, &opal, psid.bytes())?,
        _ => opal::rekey(&mut door, &opal)?,
    })
}
