//! `cargo bench-all`: how fast this is beside what others use for it, on this machine, now.
//!
//! Absolute figures say more about a machine than about a program, so every row is a ratio of two measurements of the same
//! run: ours and a rival's, round by round, who goes first changing with every round. The row is the median of the rounds'
//! ratios with their range. A row that is about a limit rather than a rival has the limit as its rival. One that can't be
//! measured here says why.
//!
//! A benchmark is a line of [`BENCHES`] and a file beside this one: a function that sets up what both sides need and returns
//! one that measures a round of either. Rivals come from Debian's archive and are run from where they were unpacked
//! ([`drophammer_images::debian::Programs`]); nothing is installed. Servers and load live in network namespaces of their own
//! ([`crate::net`]). No root is needed but for loop devices, which is what images are installed on.

mod arena;
mod boot;
mod control;
mod dora;
mod erase;
mod http;
mod install;
mod memory;
mod peak;
mod perfdhcp;
mod proxy;
mod row;
pub mod tftp;

use anyhow::{Result, ensure};

pub use row::{Better, Round, Row};

/// One comparison.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    pub name: &'static str,
    /// What is measured, and under which conditions.
    pub what: &'static str,
    pub rival: &'static str,
    /// Of the measurements.
    pub unit: &'static str,
    pub better: Better,
    /// The ratio that we want, at least.
    pub goal: f64,
    pub rounds: usize,
    /// Sets up what both sides need.
    pub contest: fn() -> Result<Contest>,
}

/// Measures one round of one side.
pub type Contest = Box<dyn FnMut(Side) -> Result<f64>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ours,
    Rival,
}

/// A contest with a limit in place of a rival.
fn limited(limit: f64, mut measure: impl FnMut() -> Result<f64> + 'static) -> Contest {
    Box::new(move |side| match side {
        Side::Ours => measure(),
        Side::Rival => Ok(limit),
    })
}

pub const BENCHES: &[Bench] = &[
    Bench {
        name: "boot.dora",
        what: "DISCOVER to ACK for new clients, under 0.01 % left unanswered by the server; ours with ARP probes and each lease flushed to disk",
        rival: "Kea memfile, persistent",
        unit: "/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: dora::against_kea,
    },
    Bench {
        name: "boot.dora.dnsmasq",
        what: "the same; dnsmasq with its lease file and without probes",
        rival: "dnsmasq",
        unit: "/s",
        better: Better::More,
        goal: 15.0,
        rounds: 5,
        contest: dora::against_dnsmasq,
    },
    Bench {
        name: "boot.proxy",
        what: "ProxyDHCP offers to UEFI firmware, under 0.01 % left unanswered by the server",
        rival: "dnsmasq, proxy mode",
        unit: "/s",
        better: Better::More,
        goal: 10.0,
        rounds: 5,
        contest: proxy::against_dnsmasq,
    },
    Bench {
        name: "boot.tftp.blksize.dnsmasq",
        what: "32 MiB by TFTP to one machine, blocks of 1428 bytes",
        rival: "dnsmasq",
        unit: "MB/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: tftp::lock_step_dnsmasq,
    },
    Bench {
        name: "boot.tftp.blksize.atftpd",
        what: "32 MiB by TFTP to one machine, blocks of 1428 bytes",
        rival: "atftpd",
        unit: "MB/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: tftp::lock_step_atftpd,
    },
    Bench {
        name: "boot.tftp.windowsize.dnsmasq",
        what: "the same in windows of 16 packets; dnsmasq has none",
        rival: "dnsmasq",
        unit: "MB/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: tftp::windows_dnsmasq,
    },
    Bench {
        name: "boot.tftp.windowsize.atftpd",
        what: "the same in windows of 16 packets; dnsmasq has none",
        rival: "atftpd",
        unit: "MB/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: tftp::windows_atftpd,
    },
    Bench {
        name: "boot.tftp.many.dnsmasq",
        what: "1 MiB by TFTP to each of 64 machines, again and again",
        rival: "dnsmasq",
        unit: "MB/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: tftp::many_dnsmasq,
    },
    Bench {
        name: "boot.tftp.many.atftpd",
        what: "1 MiB by TFTP to each of 64 machines, again and again",
        rival: "atftpd",
        unit: "MB/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: tftp::many_atftpd,
    },
    Bench {
        name: "boot.tftp.many.windowsize.dnsmasq",
        what: "the same in windows of 16 packets; dnsmasq has none",
        rival: "dnsmasq",
        unit: "MB/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: tftp::many_windows_dnsmasq,
    },
    Bench {
        name: "boot.tftp.many.windowsize.atftpd",
        what: "the same in windows of 16 packets; dnsmasq has none",
        rival: "atftpd",
        unit: "MB/s",
        better: Better::More,
        goal: 1.5,
        rounds: 5,
        contest: tftp::many_windows_atftpd,
    },
    Bench {
        name: "boot.http.1",
        what: "256 MiB by HTTP to one client, in bytes for a second of processor time",
        rival: "nginx with sendfile",
        unit: "MB/s",
        better: Better::More,
        goal: 1.4,
        rounds: 5,
        contest: http::one_client,
    },
    Bench {
        name: "boot.http.64",
        what: "the same to 64 clients at once",
        rival: "nginx with sendfile",
        unit: "MB/s",
        better: Better::More,
        goal: 1.4,
        rounds: 5,
        contest: http::many_clients,
    },
    Bench {
        name: "boot.http.64.ranges",
        what: "ranges of 4 MiB of it, as agents ask for them, to 64 clients at once",
        rival: "nginx with sendfile",
        unit: "MB/s",
        better: Better::More,
        goal: 1.4,
        rounds: 5,
        contest: http::many_ranges,
    },
    Bench {
        name: "boot.machine.bios",
        what: "from a machine's DISCOVER to its agent's first line",
        rival: "dnsmasq and nginx",
        unit: "s",
        better: Better::Less,
        goal: 1.25,
        rounds: 3,
        contest: boot::bios,
    },
    Bench {
        name: "boot.machine.uefi",
        what: "from a machine's DISCOVER to its agent's first line",
        rival: "dnsmasq and nginx",
        unit: "s",
        better: Better::Less,
        goal: 1.25,
        rounds: 3,
        contest: boot::uefi,
    },
    Bench {
        name: "boot.memory.rest",
        what: "resident memory of `drophammer serve` with nothing to do",
        rival: "a limit of 30 MB",
        unit: "MB",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: memory::at_rest,
    },
    Bench {
        name: "boot.memory.leases",
        what: "the most resident memory that `drophammer serve` ever had, with 10,000 leases and 1,000 TFTP transfers",
        rival: "a limit of 200 MB",
        unit: "MB",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: memory::with_leases,
    },
    Bench {
        name: "control.burst",
        what: "1,000 machines with a ticket enrol and tell what they are made of and what they did, all at once: from TLS handshake to all of it stored, 99 in a hundred, and none is lost",
        rival: "a limit of 2 s",
        unit: "s",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: control::burst,
    },
    Bench {
        name: "control.wait.memory",
        what: "resident memory of the server with 10,000 agents that wait for orders",
        rival: "a limit of 600 MB",
        unit: "MB",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: control::waiting_memory,
    },
    Bench {
        name: "control.wait.cpu",
        what: "processor time of the same server, over a minute",
        rival: "a limit of 3 % of a core",
        unit: "%",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: control::waiting_cpu,
    },
    Bench {
        name: "control.list",
        what: "those of the 10,000 machines that wait and are of one size, listed: 99 in a hundred",
        rival: "a limit of 50 ms",
        unit: "ms",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: control::list,
    },
    Bench {
        name: "control.capacity",
        what: "10,000 machines counted by size: 99 in a hundred",
        rival: "a limit of 20 ms",
        unit: "ms",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: control::capacity,
    },
    Bench {
        name: "control.order",
        what: "1,000 of 10,000 waiting agents are allocated: from that answer until the agent has its order, 99 in a hundred",
        rival: "a limit of 500 ms",
        unit: "ms",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: control::order,
    },
    Bench {
        name: "control.allocate.file",
        what: "1,000 allocations out of 10,000 machines by 200 clients, the state in a file; agents take their orders meanwhile",
        rival: "at least 300/s",
        unit: "/s",
        better: Better::More,
        goal: 1.0,
        rounds: 3,
        contest: control::allocate_on_file,
    },
    Bench {
        name: "control.allocate.etcd",
        what: "the same on three members of etcd on this host",
        rival: "at least 100/s",
        unit: "/s",
        better: Better::More,
        goal: 1.0,
        rounds: 3,
        contest: control::allocate_on_etcd,
    },
    Bench {
        name: "control.failover",
        what: "etcd's leader killed under that load: from the next one's election to the first allocation that is answered; none is lost or made twice",
        rival: "a limit of 5 s",
        unit: "s",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: control::failover,
    },
    Bench {
        name: "erase.eight",
        what: "eight NVMe drives of one machine, erased at once and each proven",
        rival: "the same, one after the other",
        unit: "s",
        better: Better::Less,
        goal: 4.0,
        rounds: 3,
        contest: erase::eight_at_once,
    },
    Bench {
        name: "erase.eight.nvme-cli",
        what: "eight NVMe drives of one machine, erased at once and each proven",
        rival: "`nvme format` of all at once with nothing looked at, and 3 s",
        unit: "s",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: erase::beside_nvme_cli,
    },
    Bench {
        name: "erase.proof",
        what: "what the erase of one NVMe drive takes beside what the drive does by itself: looking at it, proof, certificate",
        rival: "a limit of 2 s",
        unit: "s",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: erase::proof,
    },
    Bench {
        name: "erase.overwrite",
        what: "2 GiB overwritten with zeros, without the proof",
        rival: "dd oflag=direct bs=4M",
        unit: "MB/s",
        better: Better::More,
        goal: 0.9,
        rounds: 3,
        contest: erase::overwrite,
    },
    Bench {
        name: "install.block.metal-hammer",
        what: "a Debian of more than 1 GB, verified, from HTTP to a memory device, by the block form",
        rival: "metal-hammer's order: curl, md5sum, lz4 and tar",
        unit: "s",
        better: Better::Less,
        goal: 5.0,
        rounds: 5,
        contest: install::block_metal_hammer,
    },
    Bench {
        name: "install.block.curl-zstd-tar",
        what: "the same",
        rival: "curl, zstd and tar in a pipe, unverified",
        unit: "s",
        better: Better::Less,
        goal: 4.0,
        rounds: 5,
        contest: install::block_curl_zstd_tar,
    },
    Bench {
        name: "install.block.bmaptool",
        what: "the same",
        rival: "bmaptool copy, with its map",
        unit: "s",
        better: Better::Less,
        goal: 4.0,
        rounds: 5,
        contest: install::block_bmaptool,
    },
    Bench {
        name: "install.block.dd",
        what: "the same",
        rival: "curl, zstd and dd of a 4 GiB disk, past the cache",
        unit: "s",
        better: Better::Less,
        goal: 6.0,
        rounds: 5,
        contest: install::block_dd,
    },
    Bench {
        name: "install.block.limit",
        what: "the same",
        rival: "the slowest of transfer, dd of as much, and zstd -d by all processors, each alone",
        unit: "s",
        better: Better::Less,
        goal: 0.87,
        rounds: 5,
        contest: install::block_limit,
    },
    Bench {
        name: "install.block.disk",
        what: "the same to this host's disk, past its cache",
        rival: "metal-hammer's order: curl, md5sum, lz4 and tar",
        unit: "s",
        better: Better::Less,
        goal: 5.0,
        rounds: 5,
        contest: install::block_disk,
    },
    Bench {
        name: "install.block.10g",
        what: "the same to a memory device, over a cable of 10 Gb/s",
        rival: "metal-hammer's order: curl, md5sum, lz4 and tar",
        unit: "s",
        better: Better::Less,
        goal: 3.0,
        rounds: 5,
        contest: install::block_10g,
    },
    Bench {
        name: "install.block.1g",
        what: "the same over a cable of 1 Gb/s",
        rival: "metal-hammer's order: curl, md5sum, lz4 and tar",
        unit: "s",
        better: Better::Less,
        goal: 2.5,
        rounds: 3,
        contest: install::block_1g,
    },
    Bench {
        name: "install.block.1g.link",
        what: "the same over a cable of 1 Gb/s",
        rival: "curl of as many bytes to nowhere",
        unit: "s",
        better: Better::Less,
        goal: 0.95,
        rounds: 3,
        contest: install::block_1g_link,
    },
    Bench {
        name: "install.tar.metal-hammer",
        what: "a Debian of more than 1 GB, verified, from HTTP to a memory device, by the tar form into a new ext4",
        rival: "metal-hammer's order: curl, md5sum, lz4 and tar",
        unit: "s",
        better: Better::Less,
        goal: 2.0,
        rounds: 5,
        contest: install::tar_metal_hammer,
    },
    Bench {
        name: "install.tar.curl-zstd-tar",
        what: "the same",
        rival: "curl, zstd and tar in a pipe, unverified",
        unit: "s",
        better: Better::Less,
        goal: 1.6,
        rounds: 5,
        contest: install::tar_curl_zstd_tar,
    },
    Bench {
        name: "install.tar.disk",
        what: "the same to this host's disk, past its cache",
        rival: "metal-hammer's order: curl, md5sum, lz4 and tar",
        unit: "s",
        better: Better::Less,
        goal: 2.0,
        rounds: 5,
        contest: install::tar_disk,
    },
    Bench {
        name: "install.verify",
        what: "the block form, with every hash made and every sample read back twice: what verification costs",
        rival: "the same, verified once",
        unit: "s",
        better: Better::Less,
        goal: 0.95,
        rounds: 7,
        contest: install::verify,
    },
    Bench {
        name: "install.memory.block",
        what: "the most resident memory of the program that installs, by the block form",
        rival: "a limit of 64 MB",
        unit: "MB",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: install::memory_block,
    },
    Bench {
        name: "install.memory.tar",
        what: "the same by the tar form",
        rival: "a limit of 64 MB",
        unit: "MB",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: install::memory_tar,
    },
    Bench {
        name: "install.init",
        what: "from the first program of a machine to kexec, with an image of 1 GB",
        rival: "metal-hammer's order: curl, md5sum, lz4 and tar",
        unit: "s",
        better: Better::Less,
        goal: 3.33,
        rounds: 3,
        contest: install::init,
    },
    Bench {
        name: "images.pack",
        what: "a tar of more than 1 GB to the chunks of its block form",
        rival: "tar, mke2fs -d and zstd -3 -T0",
        unit: "s",
        better: Better::Less,
        goal: 1.0,
        rounds: 3,
        contest: install::pack,
    },
    Bench {
        name: "images.bytes.block.lz4",
        what: "what a machine fetches of the block form",
        rival: "tar.lz4 -9",
        unit: "MB",
        better: Better::Less,
        goal: 1.4,
        rounds: 1,
        contest: install::bytes_block_lz4,
    },
    Bench {
        name: "images.bytes.block.zstd",
        what: "the same",
        rival: "tar.zst -3",
        unit: "MB",
        better: Better::Less,
        goal: 0.97,
        rounds: 1,
        contest: install::bytes_block_zstd,
    },
    Bench {
        name: "images.bytes.tar.zstd",
        what: "what a machine fetches of the tar form",
        rival: "tar.zst -3",
        unit: "MB",
        better: Better::Less,
        goal: 0.97,
        rounds: 1,
        contest: install::bytes_tar_zstd,
    },
];

/// Runs the benchmarks whose names start with `filter`, with so many rounds if it's said how many, and hands over each row
/// as soon as it's there.
pub fn run(
    filter: &str,
    rounds: Option<usize>,
    say: &mut dyn FnMut(&str),
    done: &mut dyn FnMut(Row) -> Result<()>,
) -> Result<()> {
    let chosen = choose(BENCHES, filter)?;
    for bench in chosen {
        say(&format!("{}: {}", bench.name, bench.what));
        let bench = Bench { rounds: rounds.unwrap_or(bench.rounds), ..*bench };
        done(measure(&bench, say))?;
    }
    Ok(())
}

fn choose<'a>(benches: &'a [Bench], filter: &str) -> Result<Vec<&'a Bench>> {
    let chosen: Vec<_> = benches.iter().filter(|bench| bench.name.starts_with(filter)).collect();
    let names = || benches.iter().map(|bench| bench.name).collect::<Vec<_>>().join(", ");
    ensure!(!chosen.is_empty(), "no benchmark's name starts with {filter:?}; there are {}", names());
    Ok(chosen)
}

fn measure(bench: &Bench, say: &mut dyn FnMut(&str)) -> Row {
    match rounds(bench, say) {
        Ok(rounds) => Row::new(bench, &rounds),
        Err(error) => Row::unmeasured(bench, format!("{error:#}")),
    }
}

fn rounds(bench: &Bench, say: &mut dyn FnMut(&str)) -> Result<Vec<Round>> {
    let mut contest = (bench.contest)()?;
    let mut rounds = vec![];
    for n in 1..=bench.rounds {
        // Who goes second finds warmer caches and a busier disk.
        let round = if n % 2 == 1 {
            let ours = contest(Side::Ours)?;
            Round { ours, rival: contest(Side::Rival)? }
        } else {
            let rival = contest(Side::Rival)?;
            Round { ours: contest(Side::Ours)?, rival }
        };
        let Round { ours, rival } = round;
        say(&format!("  round {n} of {}: {ours:.2} against {rival:.2} {}", bench.rounds, bench.unit));
        rounds.push(round);
    }
    Ok(rounds)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use anyhow::bail;

    use super::*;

    thread_local! {
        static ORDER: RefCell<Vec<Side>> = const { RefCell::new(Vec::new()) };
    }

    const TRIVIAL: Bench = Bench {
        name: "test.trivial",
        what: "two numbers",
        rival: "one",
        unit: "",
        better: Better::More,
        goal: 1.5,
        rounds: 3,
        contest: || {
            Ok(Box::new(|side| {
                ORDER.with_borrow_mut(|order| order.push(side));
                Ok(if side == Side::Ours { 2.0 } else { 1.0 })
            }))
        },
    };

    #[test]
    fn sides_take_turns_at_going_first() {
        use Side::{Ours, Rival};
        let row = measure(&TRIVIAL, &mut |_| {});
        assert_eq!((row.ratio, row.holds, row.rounds), (Some(2.0), true, 3));
        assert_eq!(ORDER.take(), [Ours, Rival, Rival, Ours, Ours, Rival]);
    }

    #[test]
    fn what_cannot_be_measured_is_a_row_that_says_why() {
        let missing = Bench { contest: || bail!("no package has it"), ..TRIVIAL };
        let breaks = Bench { contest: || Ok(Box::new(|_| bail!("it ended"))), ..TRIVIAL };
        for (bench, why) in [(missing, "no package has it"), (breaks, "it ended")] {
            let row = measure(&bench, &mut |_| {});
            assert_eq!((row.ratio, row.holds, row.why.as_deref()), (None, false, Some(why)));
        }
    }

    #[test]
    fn benchmarks_are_chosen_by_how_they_begin() {
        let count = |filter| choose(BENCHES, filter).map(|chosen| chosen.len());
        assert_eq!(count("").expect("all"), BENCHES.len());
        assert_eq!(count("boot.memory.rest").expect("one"), 1);
        assert!(count("boot.memory.").expect("some") >= 2);
        let error = count("memory").expect_err("none").to_string();
        assert!(error.starts_with("no benchmark's name starts with \"memory\"; there are boot.dora, "), "{error}");
        for (n, bench) in BENCHES.iter().enumerate() {
            assert!(bench.goal > 0.0 && bench.rounds > 0, "{}", bench.name);
            assert!(![bench.what, bench.rival, bench.unit].contains(&""), "{}", bench.name);
            assert!(BENCHES.iter().skip(n + 1).all(|other| other.name != bench.name), "{} twice", bench.name);
        }
    }
}
