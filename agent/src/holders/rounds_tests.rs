use std::collections::BTreeSet;

use super::*;
use crate::holders::claims::Claimant;
use crate::holders::mounts::Mount;
use crate::holders::processes::Process;
use crate::holders::stack::{Device, Kind};

/// A kernel with an array on `sda` and a file system on that, and how it behaves.
#[derive(Default)]
struct Scripted {
    /// How often an unmount is refused.
    busy: u32,
    /// With this error.
    errno: i32,
    /// udev puts the array together again so many times.
    returns: u32,
    /// Stopping the array reports success and does nothing.
    lies: bool,
    /// For so many looks after all is gone, a process keeps the drive claimed.
    claimed: u32,
    /// A file system on the drive is busy for as long as the array is there.
    pinned: bool,
    mounted: bool,
    array: bool,
    pauses: u32,
}

impl Host for Scripted {
    fn look(&mut self) -> Stack {
        let on = |name: &str| BTreeSet::from([name.to_owned()]);
        let mut stack = Stack::default();
        stack.devices.insert("sda".into(), Device { kind: Kind::Drive, on: BTreeSet::new() });
        if self.array {
            stack.devices.insert("md0".into(), Device { kind: Kind::Array, on: on("sda") });
        } else if self.returns > 0 {
            self.returns -= 1;
            self.array = true;
        } else if self.claimed > 0 {
            self.claimed -= 1;
            stack.claims.insert("sda".into(), Claimant::Unknown);
        }
        let mount =
            |id, place: &str, device| Mount { id, parent: 1, place: place.into(), kind: "ext4".into(), on: on(device) };
        if self.pinned {
            stack.mounts.push(mount(3, "/pinned", "sda"));
        }
        if self.mounted {
            stack.mounts.push(mount(2, "/srv", "md0"));
        }
        // What was put together between two looks is seen at the second only.
        if self.array && !stack.devices.contains_key("md0") {
            stack.devices.insert("md0".into(), Device { kind: Kind::Array, on: on("sda") });
        }
        stack
    }

    fn carry_out(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::Unmount { place } if place.ends_with("pinned") => Err(io::Error::from_raw_os_error(libc::EBUSY)),
            Step::Unmount { .. } if self.busy > 0 => {
                self.busy -= 1;
                Err(io::Error::from_raw_os_error(self.errno))
            }
            Step::Unmount { .. } => {
                self.mounted = false;
                Ok(())
            }
            Step::StopArray { .. } => {
                assert!(!self.mounted, "the array is busy");
                self.array = self.lies;
                Ok(())
            }
            other => panic!("{other}"),
        }
    }

    fn users_of_step(&mut self, _: &Step) -> Users {
        Users(vec![Process { id: 20, name: "bash".into() }])
    }

    fn users_of_device(&mut self, _: &str) -> Users {
        Users(vec![Process { id: 21, name: "mkfs".into() }])
    }

    fn pause(&mut self) {
        self.pauses += 1;
    }
}

#[test]
fn until_nothing_holds_it() {
    let both = || Scripted { mounted: true, array: true, ..Scripted::default() };
    let array = || Scripted { array: true, ..Scripted::default() };
    for (name, mut host, said, want) in [
        ("nothing there", Scripted::default(), "", Ok(())),
        ("both", both(), "unmount /srv, stop the array md0", Ok(())),
        (
            "busy for a moment",
            Scripted { busy: 3, errno: libc::EBUSY, ..both() },
            "unmount /srv, stop the array md0",
            Ok(()),
        ),
        (
            "busy for good",
            Scripted { busy: u32::MAX, errno: libc::EBUSY, ..both() },
            "unmount /srv",
            Err("trying to unmount /srv: Device or resource busy (os error 16); bash (process 20) uses it"),
        ),
        (
            "forbidden",
            Scripted { busy: 1, errno: libc::EPERM, ..both() },
            "unmount /srv",
            Err("trying to unmount /srv: Operation not permitted (os error 1); bash (process 20) uses it"),
        ),
        ("assembled again", Scripted { returns: 3, ..both() }, "unmount /srv, stop the array md0", Ok(())),
        (
            "assembled again for ever",
            Scripted { returns: u32::MAX, ..both() },
            "unmount /srv, stop the array md0",
            Err(
                "to stop the array md0 worked 25 times, but it's still there or was made again; stop whatever does so; \
                 bash (process 20) uses it (done before that: unmount /srv, stop the array md0)",
            ),
        ),
        (
            "only said to be stopped",
            Scripted { lies: true, ..array() },
            "stop the array md0",
            Err(
                "to stop the array md0 worked 25 times, but it's still there or was made again; stop whatever does so; \
                 bash (process 20) uses it (done before that: stop the array md0)",
            ),
        ),
        (
            "what stays is why something else is busy",
            Scripted { lies: true, pinned: true, ..array() },
            "stop the array md0, unmount /pinned",
            Err(
                "to stop the array md0 worked 25 times, but it's still there or was made again; stop whatever does so; \
                 bash (process 20) uses it (done before that: stop the array md0)",
            ),
        ),
        ("claimed for a moment", Scripted { claimed: 5, ..array() }, "stop the array md0", Ok(())),
        (
            "claimed for good",
            Scripted { claimed: u32::MAX, ..Scripted::default() },
            "",
            Err("another program has claimed sda for itself; stop it; mkfs (process 21) uses it"),
        ),
    ] {
        let mut heard = Vec::new();
        let result = let_go(&mut host, &["sda"], &mut |step| heard.push(step.to_owned()));
        assert_eq!(heard.join(", "), said, "{name}");
        assert_eq!(result.map_err(|e| e.to_string()), want.map_err(str::to_owned), "{name}");
        assert!(host.pauses <= ROUNDS, "{name}");
        assert!(want.is_err() || (!host.mounted && !host.array), "{name}");
    }
}
