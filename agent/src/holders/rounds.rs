//! Steps, and another look, until nothing holds the drives. What a system call reports isn't taken as proof.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::effects;
use super::plan::{Held, Step, plan};
use super::processes::{self, Users};
use super::stack::{self, Stack};
use crate::inventory::sysfs::node;

/// udev opens every device that appears or changes, and may put an array together again while we take it apart; what is
/// still busy after five seconds is somebody else's.
const ROUNDS: u32 = 25;
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// Why drives weren't let go, and what was done before that was known.
#[derive(Debug, thiserror::Error)]
#[error("{held}{}", already(done))]
pub(crate) struct NotLetGo {
    pub(crate) held: Box<Held>,
    pub(crate) done: Vec<Step>,
}

fn already(done: &[Step]) -> impl fmt::Display {
    let words: Vec<String> = done.iter().map(Step::to_string).collect();
    if words.is_empty() { String::new() } else { format!(" (done before that: {})", words.join(", ")) }
}

/// The running kernel; tests put in one of their own.
pub(super) trait Host {
    fn look(&mut self) -> Stack;
    fn carry_out(&mut self, step: &Step) -> io::Result<()>;
    fn users_of_step(&mut self, step: &Step) -> Users;
    fn users_of_device(&mut self, device: &str) -> Users;
    fn pause(&mut self);
}

pub(super) struct Machine<'a> {
    /// `/`, but in tests, which make up their devices.
    pub(super) root: &'a Path,
    pub(super) drives: &'a [&'a str],
    pub(super) pause: Duration,
}

impl Host for Machine<'_> {
    fn look(&mut self) -> Stack {
        stack::read(self.root, self.drives)
    }

    fn carry_out(&mut self, step: &Step) -> io::Result<()> {
        effects::carry_out(step)
    }

    fn users_of_step(&mut self, step: &Step) -> Users {
        effects::users(self.root, step)
    }

    fn users_of_device(&mut self, device: &str) -> Users {
        let nodes: [PathBuf; 1] = [node(device)];
        processes::using(self.root, &nodes, None)
    }

    fn pause(&mut self) {
        thread::sleep(self.pause);
    }
}

pub(super) fn let_go(host: &mut impl Host, drives: &[&str], say: &mut dyn FnMut(&str)) -> Result<(), NotLetGo> {
    let mut done: Vec<Step> = Vec::new();
    let mut times: BTreeMap<Step, u32> = BTreeMap::new();
    let mut stopped_by = None;
    for _ in 0..ROUNDS {
        let steps = match plan(&host.look(), drives) {
            Ok(steps) if steps.is_empty() => return Ok(()),
            Ok(steps) => steps,
            Err(Held::Claimed { device, .. }) => {
                let held = Held::Claimed { users: host.users_of_device(&device), device };
                if done.is_empty() {
                    return Err(NotLetGo { held: held.into(), done });
                }
                // A program that has just seen its file system go takes a moment to close the drive.
                stopped_by = Some(held);
                host.pause();
                continue;
            }
            Err(held) => return Err(NotLetGo { held: held.into(), done }),
        };
        stopped_by = None;
        let (mut again, mut this_round) = (false, BTreeSet::new());
        for step in steps {
            if !times.contains_key(&step) {
                say(&step.to_string());
            }
            let times = times.entry(step.clone()).or_default();
            match host.carry_out(&step) {
                // One place may have several mounts on it, which is one step as often.
                Ok(()) if !this_round.insert(step.clone()) => {}
                Ok(()) if *times == 0 => {
                    *times = 1;
                    done.push(step);
                }
                Ok(()) => {
                    *times += 1;
                    again = true;
                    let (times, users) = (*times, host.users_of_step(&step));
                    stopped_by = Some(Held::Returns { step, times, users });
                }
                Err(cause) => {
                    let passes = may_pass(&cause);
                    let users = host.users_of_step(&step);
                    // What came back before that is why this failed.
                    let held = stopped_by.take().unwrap_or(Held::Failed { step, cause, users });
                    if !passes {
                        return Err(NotLetGo { held: held.into(), done });
                    }
                    stopped_by = Some(held);
                    again = true;
                    break;
                }
            }
        }
        if again {
            host.pause();
        }
    }
    // A last look: the last step may have been the one.
    match (plan(&host.look(), drives), stopped_by) {
        (Ok(steps), _) if steps.is_empty() => Ok(()),
        (Ok(steps), None) => {
            let Some(step) = steps.into_iter().next() else { return Ok(()) };
            let times = times.get(&step).copied().unwrap_or_default();
            let users = host.users_of_step(&step);
            Err(NotLetGo { held: Held::Returns { step, times, users }.into(), done })
        }
        (_, Some(held)) | (Err(held), None) => Err(NotLetGo { held: held.into(), done }),
    }
}

/// Busy now, or gone in the meantime: another look tells.
fn may_pass(e: &io::Error) -> bool {
    let passing = [libc::EBUSY, libc::EAGAIN, libc::EINTR, libc::EINVAL, libc::ENOENT, libc::ENXIO, libc::ENODEV];
    e.raw_os_error().is_some_and(|number| passing.contains(&number))
}

#[cfg(test)]
#[path = "rounds_tests.rs"]
mod tests;
