//! How many files this process may have open: every connection and every transfer is one.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For tens of thousands of machines that wait for orders, each on a connection of its own. More costs nothing, but what
/// counts files one by one takes longer.
const ENOUGH: u64 = 1 << 17;

/// Raises the limit as far as it's of use, and says what it is.
pub(crate) fn open_files() -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("asking for the limit of open files")?;
    let wanted = ENOUGH.min(hard);
    if soft < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, hard).is_ok() {
        return Ok(wanted);
    }
    Ok(soft)
}
