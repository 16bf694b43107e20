//! A machine's first program to its call of kexec, as two machines go that way: one with the agent and its server, one with
//! a system that does in a script what metal-hammer does, by the tools that people have. Each round has fresh machines.
//!
//! The script is spared what the agent has to do: it knows its address, its drive and its image, and its clock starts when
//! its drivers are there. Nothing is erased in either: the agent's erase and its waiting for an order don't count.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drophammer_images::cache_dir;
use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_protocol::machine::{Allocation, State};
use drophammer_protocol::system::System;
use tempfile::TempDir;

use super::super::{Contest, Side, http};
use super::shelf::Shelf;
use super::tools::Tools;
use crate::kit::{self, Kit};
use crate::lab::{Lab, LabSpec};
use crate::net::{PREFIX, Process, SERVER_ADDRESS};
use crate::qemu::{Firmware, MachineSpec};
use crate::rescue::Rescue;
use crate::server::ServerSpec;
use crate::vm::Machine;
use crate::{timeline, up};

/// Room for the rival's image in memory.
const MEMORY_MB: u32 = 3072;
const PORT: u16 = 8080;
/// Of its machine, past the server's pool.
const HOST: u8 = 50;
/// On real hardware.
const LIMIT: Duration = Duration::from_secs(300);
const PACKAGES: [&str; 8] = ["curl", "coreutils", "lz4", "tar", "gdisk", "e2fsprogs", "kexec-tools", "util-linux"];
const PROGRAMS: [&str; 7] =
    ["usr/bin/curl", "usr/bin/md5sum", "usr/bin/lz4", "bin/tar", "sbin/sgdisk", "sbin/mke2fs", "sbin/kexec"];

pub(in super::super) fn contest() -> Result<Contest> {
    let arena = Arena::new()?;
    Ok(Box::new(move |side| match side {
        Side::Ours => arena.ours(),
        Side::Rival => arena.rival(),
    }))
}

struct Arena {
    tools: Tools,
    shelf: Shelf,
    kit: Kit,
    rescue: Rescue,
}

/// A lab with a machine that nobody has seen before.
struct Round {
    machine: Arc<Machine>,
    // Machines go before the lab, and the lab before its directory.
    lab: Lab,
    dir: TempDir,
}

impl Arena {
    fn new() -> Result<Self> {
        let tools = Tools::new()?;
        let shelf = Shelf::prepare(&tools)?;
        let kit = kit::prepare(&[], &mut |_| {})?;
        let rescue = Rescue::prepare(&kit, &PACKAGES, &PROGRAMS, &[])?;
        Ok(Self { tools, shelf, kit, rescue })
    }

    fn round(&self) -> Result<Round> {
        let bench = cache_dir()?.join("bench");
        let dir = tempfile::tempdir_in(&bench).with_context(|| format!("making a directory in {}", bench.display()))?;
        let server = ServerSpec {
            images_dir: self.shelf.dir.clone(),
            image_keys: vec![self.shelf.key],
            ..ServerSpec::new(up::program()?, &self.kit)
        };
        let lab = Lab::start(LabSpec { dir: dir.path().join("lab"), server, machines: 1 })?;
        let spec = MachineSpec { memory_mb: MEMORY_MB, ..MachineSpec::numbered(1, Firmware::Bios) };
        let machine = lab.add_machine(spec)?;
        Ok(Round { machine, lab, dir })
    }

    fn ours(&self) -> Result<f64> {
        let round = self.round()?;
        let client = round.lab.client()?;
        let id = round.machine.spec.uuid.to_string();
        let allocation = Allocation {
            image: self.shelf.image.clone(),
            system: System { hostname: round.machine.spec.name.clone(), ..System::default() },
            ..Allocation::default()
        };
        round.machine.power_on()?;
        let limit = round.lab.accel.patience(LIMIT);
        let began = Instant::now();
        let mut events: Vec<Recorded> = vec![];
        while !events.iter().any(|event| event.phase == Phase::Kexec && event.step == Step::Started) {
            ensure!(began.elapsed() < limit, "the machine didn't call kexec: {:?}", events.last());
            let Some(machine) = client.machines()?.into_iter().find(|machine| machine.id.to_string() == id) else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            ensure!(machine.state != State::Quarantined, "the machine failed: {:?}", machine.reason);
            if machine.state == State::Waiting && machine.allocation.is_none() {
                client.allocate(&id, &allocation).context("allocating the machine")?;
            }
            let after = events.last().map_or(0, |event| event.position);
            events.extend(client.events(&id, after, 1)?);
        }
        took(&events)
    }

    fn rival(&self) -> Result<f64> {
        let round = self.round()?;
        let [a, b, c, d] = SERVER_ADDRESS;
        let listen = format!("{a}.{b}.{c}.{d}:{PORT}");
        let nginx = http::nginx(self.tools.programs(), round.dir.path(), &self.shelf.dir, &listen)?;
        let mut nginx = round.lab.namespace().enter(nginx);
        nginx.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _nginx = Process::start(&mut nginx).context("starting nginx")?;
        // By their paths, where busybox has a word of the same name.
        let commands = format!(
            r#"
            port=$(basename "$(ls -d /sys/class/net/e* | head -n 1)")
            ip link set "$port" up
            ip address add {a}.{b}.{c}.{HOST}/{PREFIX} dev "$port"
            sgdisk -n 1:0:+1M -t 1:ef02 -n 2:0:0 /dev/nvme0n1 >/dev/null
            /sbin/mke2fs -q -F -t ext4 -E nodiscard,lazy_itable_init=1 /dev/nvme0n1p2
            mkdir /target /fetched
            mount -t ext4 -o noatime,noinit_itable /dev/nvme0n1p2 /target
            mount -t tmpfs -o size=2g tmpfs /fetched
            cd /fetched
            fetch() {{ curl --silent --show-error --fail --retry 100 --retry-delay 1 --retry-connrefused "http://{listen}/$1" >"$1"; }}
            fetch root.tar.lz4
            fetch root.tar.lz4.md5
            /usr/bin/md5sum -c root.tar.lz4.md5 >/dev/null
            lz4 -dc root.tar.lz4 | /bin/tar -xp --numeric-owner --xattrs --xattrs-include='*' -f - -C /target
            sync
            kexec --load --kexec-file-syscall --initrd="$(ls /target/boot/initrd.img-*)" --command-line=quiet "$(ls /target/boot/vmlinuz-*)"
            umount /target
            "#
        );
        let limit = round.lab.accel.patience(LIMIT);
        self.rescue.timed(&round.machine, &commands, "", limit).map(|(seconds, _)| seconds)
    }
}

/// In seconds, without what isn't counted.
fn took(events: &[Recorded]) -> Result<f64> {
    // A stretch of the timeline may begin with a note, so it isn't asked when these did.
    let began = |phase: Phase| {
        let event = events.iter().find(|event| event.phase == phase && event.step == Step::Started);
        event.map(|event| event.at_ms).with_context(|| format!("the machine didn't begin with {}", phase.name()))
    };
    let all = began(Phase::Kexec)?.saturating_sub(began(Phase::Agent)?);
    let apart: u64 = timeline::rows(events, 0)
        .iter()
        .filter(|row| matches!(row.phase, Phase::Erase | Phase::Waiting))
        .map(|row| row.end_ms.saturating_sub(row.start_ms))
        .sum();
    Ok(Duration::from_millis(all.saturating_sub(apart)).as_secs_f64())
}
