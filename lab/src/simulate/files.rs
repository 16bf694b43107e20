//! How many files a process may have open: every waiting machine is a connection, on either side.

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For everything that isn't a machine's connection: operators, the state, etcd, logs.
const OTHERS: u64 = 1000;

/// Of this process and of those that it starts from now on.
pub(super) fn raise(machines: u32) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("asking for the limit of open files")?;
    let needed = needed(machines, hard)?;
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).context("raising the limit of open files")?;
    }
    Ok(())
}

fn needed(machines: u32, hard: u64) -> Result<u64> {
    let needed = u64::from(machines) + OTHERS;
    ensure!(
        needed <= hard,
        "{machines} machines need {needed} open files, and a process may have {hard} here: raise the hard limit (`ulimit \
         -Hn {needed}` as root, `nofile` in limits.conf(5), LimitNOFILE= of a systemd unit), or simulate {} at most",
        hard.saturating_sub(OTHERS)
    );
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_told_before_anything_starts() {
        for (machines, hard, want) in [
            (10, 4096, Ok(1010)),
            (3096, 4096, Ok(4096)),
            (3097, 4096, Err("simulate 3096 at most")),
            (1, 10, Err("simulate 0")),
        ] {
            match (needed(machines, hard), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(got), Err(want)) => assert!(got.to_string().contains(want), "{got}"),
                (got, want) => panic!("{machines} of {hard}: {got:?} instead of {want:?}"),
            }
        }
    }
}
