//! How this boot server and its host are.

use std::path::Path;

use drophammer_protocol::boot_server::Health;
use sysinfo::{DiskRefreshKind, Disks, MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate, System};

pub(crate) fn resident_bytes() -> u64 {
    let mut system = System::new();
    itself(&mut system).0
}

/// Resident memory and uptime of this process.
fn itself(system: &mut System) -> (u64, u64) {
    let Ok(pid) = sysinfo::get_current_pid() else { return (0, 0) };
    let memory = ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, memory);
    system.process(pid).map_or((0, 0), |process| (process.memory(), process.run_time()))
}

/// What can be found out without anybody's help.
pub(crate) fn of_this_host(state_dir: &Path) -> Health {
    let mut system = System::new();
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let (resident_bytes, uptime_s) = itself(&mut system);
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    Health {
        uptime_s,
        load: System::load_average().one,
        processors: u32::try_from(processors).unwrap_or(u32::MAX),
        memory_bytes: system.total_memory(),
        memory_available_bytes: system.available_memory(),
        resident_bytes,
        disk_free_bytes: free(state_dir),
        ..Health::default()
    }
}

/// On the file system that `dir` is on: the longest mount point that it's under.
fn free(dir: &Path) -> u64 {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let disks = Disks::new_with_refreshed_list_specifics(DiskRefreshKind::nothing().with_storage());
    let under = disks.iter().filter(|disk| dir.starts_with(disk.mount_point()));
    under.max_by_key(|disk| disk.mount_point().components().count()).map_or(0, |disk| disk.available_space())
}
