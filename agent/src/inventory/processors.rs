//! Processors, memory and how they belong together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use drophammer_protocol::id::MachineId;
use drophammer_protocol::inventory::{Cpu, NumaNode};

use super::sysfs;

/// One entry per socket. Names come from cpuinfo, counts from the topology: cpuinfo's own are wrong as soon as a thread
/// is offline.
pub(super) fn cpus(root: &Path) -> Vec<Cpu> {
    let cpuinfo = sysfs::text(&root.join("proc/cpuinfo")).unwrap_or_default();
    let mut names = BTreeMap::new();
    for thread in cpuinfo.split("\n\n") {
        let field = |name: &str| {
            thread.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| value.split_whitespace().collect::<Vec<_>>().join(" "))
            })
        };
        // A virtual machine may have no sockets, and processors other than x86 have other names for it all.
        let socket = field("physical id").and_then(|id| id.parse().ok()).unwrap_or(0u32);
        let vendor = field("vendor_id").or_else(|| field("CPU implementer"));
        let model = field("model name").or_else(|| field("CPU part"));
        if vendor.is_some() || model.is_some() {
            names.entry(socket).or_insert((vendor.unwrap_or_default(), model.unwrap_or_default()));
        }
    }
    let mut cores: BTreeMap<u32, (BTreeSet<(i64, i64)>, u32)> = BTreeMap::new();
    let dir = root.join("sys/devices/system/cpu");
    for cpu in sysfs::names(&dir) {
        let topology = dir.join(&cpu).join("topology");
        let Some(core) = sysfs::number(&topology.join("core_id")) else { continue };
        let socket = sysfs::number(&topology.join("physical_package_id")).unwrap_or(0);
        // Core ids start anew on each die.
        let die = sysfs::number(&topology.join("die_id")).unwrap_or(0);
        let (cores, threads) = cores.entry(socket).or_default();
        cores.insert((die, core));
        *threads += 1;
    }
    if cores.is_empty() {
        // Without a topology, at least the threads can be counted.
        let threads = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
        let threads = u32::try_from(threads).unwrap_or(u32::MAX);
        let from_names = |(socket, (vendor, model))| Cpu { socket, vendor, model, cores: threads, threads };
        return names.into_iter().take(1).map(from_names).collect();
    }
    let first = names.values().next().cloned().unwrap_or_default();
    cores
        .into_iter()
        .map(|(socket, (cores, threads))| {
            let (vendor, model) = names.remove(&socket).unwrap_or_else(|| first.clone());
            Cpu { socket, vendor, model, cores: u32::try_from(cores.len()).unwrap_or(u32::MAX), threads }
        })
        .collect()
}

pub(super) fn memory_bytes(root: &Path) -> Option<u64> {
    total_kib(&sysfs::text(&root.join("proc/meminfo"))?)
}

pub(super) fn numa_nodes(root: &Path) -> Vec<NumaNode> {
    let dir = root.join("sys/devices/system/node");
    sysfs::names(&dir)
        .into_iter()
        .filter_map(|name| {
            let node = name.strip_prefix("node")?.parse().ok()?;
            let dir = dir.join(&name);
            Some(NumaNode {
                node,
                cpus: sysfs::text(&dir.join("cpulist")).unwrap_or_default(),
                memory_bytes: sysfs::text(&dir.join("meminfo")).and_then(|text| total_kib(&text)).unwrap_or(0),
            })
        })
        .collect()
}

/// The UUID as the kernel read it, for where the tables themselves are out of reach.
pub(super) fn product_uuid(root: &Path) -> Option<MachineId> {
    let id: MachineId = sysfs::number(&root.join("sys/class/dmi/id/product_uuid"))?;
    (!id.0.is_nil() && !id.0.is_max()).then_some(id)
}

/// `MemTotal` in the format that meminfo files share, in bytes.
fn total_kib(meminfo: &str) -> Option<u64> {
    let (_, rest) = meminfo.split_once("MemTotal:")?;
    rest.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
