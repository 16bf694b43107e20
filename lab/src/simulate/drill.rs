//! What can befall a control API in the middle of its work. `control/README.md` says of each what comes of it and what to
//! do; here it's done.

use std::fmt;
use std::str::FromStr;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use drophammer_protocol::words::list;
use serde::{Deserialize, Serialize};

use super::world::{MEMBERS, World};
use crate::etcd::Etcd;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Drill {
    /// The server is killed, over and over, and started again.
    ServerKilled,
    /// The member of etcd that leads the others is killed, and comes back.
    LeaderKilled,
    /// A member of etcd doesn't reach the others for a while, though the server reaches all of them: first the one that
    /// leads, then one that follows.
    MemberCutOff,
    /// Two of three members of etcd are killed, and come back.
    QuorumLost,
    /// The server's clock is a day ahead, then a day behind, then right again.
    ClockJumps,
}

const DAY_S: i64 = 24 * 3600;
const BEFORE: Duration = Duration::from_secs(1);
/// Long enough for elections, and for patience to end.
const WHILE: Duration = Duration::from_secs(8);

impl Drill {
    pub const ALL: [Self; 5] =
        [Self::ServerKilled, Self::LeaderKilled, Self::MemberCutOff, Self::QuorumLost, Self::ClockJumps];

    pub fn name(self) -> &'static str {
        match self {
            Self::ServerKilled => "server-killed",
            Self::LeaderKilled => "leader-killed",
            Self::MemberCutOff => "member-cut-off",
            Self::QuorumLost => "quorum-lost",
            Self::ClockJumps => "clock-jumps",
        }
    }

    /// What befalls etcd needs etcd.
    pub(super) fn is_of_etcd(self) -> bool {
        matches!(self, Self::LeaderKilled | Self::MemberCutOff | Self::QuorumLost)
    }

    /// Lets it happen, and be over.
    pub(super) fn strike(self, world: &mut World) -> Result<()> {
        thread::sleep(BEFORE);
        match self {
            Self::ServerKilled => {
                for alive_ms in [300, 700, 1100, 500] {
                    world.kill_server();
                    world.start_server()?;
                    thread::sleep(Duration::from_millis(alive_ms));
                }
            }
            Self::LeaderKilled => {
                let etcd = etcd(world)?;
                let leader = etcd.leader()?;
                etcd.kill(leader);
                thread::sleep(WHILE);
                etcd.run(leader)?;
                etcd.wait_until_ready()?;
            }
            Self::MemberCutOff => {
                let etcd = etcd(world)?;
                let leader = etcd.leader()?;
                for member in [leader, leader.wrapping_add(1) % MEMBERS] {
                    etcd.cut_off(member)?;
                    thread::sleep(WHILE);
                    etcd.rejoin(member)?;
                    etcd.wait_until_ready()?;
                }
            }
            Self::QuorumLost => {
                let etcd = etcd(world)?;
                let leader = etcd.leader()?;
                let lost = [leader, leader.wrapping_add(1) % MEMBERS];
                lost.iter().for_each(|member| etcd.kill(*member));
                thread::sleep(WHILE);
                lost.iter().try_for_each(|member| etcd.run(*member))?;
                etcd.wait_until_ready()?;
            }
            Self::ClockJumps => {
                for ahead_s in [DAY_S, -DAY_S, 0] {
                    world.set_clock(ahead_s)?;
                    thread::sleep(BEFORE * 2);
                }
            }
        }
        Ok(())
    }
}

fn etcd(world: &mut World) -> Result<&mut Etcd> {
    world.etcd.as_mut().context("the simulated server's state isn't on etcd")
}

impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Drill {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|drill| drill.name() == text) {
            Some(drill) => Ok(drill),
            None => bail!("there is no drill {text:?}: there are {}", list(Self::ALL)),
        }
    }
}
