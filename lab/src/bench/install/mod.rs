//! An image's way from an HTTP server to a device, ours and other people's, with the data durable at the end.
//!
//! Ours is the code of the agent, built as the agent is ([`drophammer_initramfs::build_install_bench`]). Rivals are the tools
//! that people install machines with, in the order in which they do: each of them ends with the file system unmounted and
//! the device flushed. Both fetch from the same nginx over the same virtual cable and write to the same device: a loop over
//! a file in memory, where the processors are the limit, or over one on this host's disk, past its cache. The device has
//! been written to before: nobody pays for making its blocks.
//!
//! Making loop devices and mounting them is for root. Each side mounts in a mount namespace of its own, because any other
//! that is made meanwhile would keep what is mounted from going.

mod device;
mod init;
mod shelf;
mod tools;

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use drophammer_images::cache_dir;
use nix::unistd::getuid;
use serde::Deserialize;
use tempfile::TempDir;

use self::device::Device;
pub(super) use self::init::contest as init;
use self::shelf::Shelf;
use self::tools::{Tools, quoted};
use super::{Contest, Side, http, limited};
use crate::net::{Namespace, Process, spawn};
use crate::up;

const CABLE: [&str; 2] = ["server0", "client0"];
const SERVER: &str = "10.99.0.1";
const CLIENT: &str = "10.99.0.2";
const PORT: u16 = 8080;
/// In MB, for a machine's agent however large the image is.
const MEMORY_LIMIT: f64 = 64.0;

#[derive(Clone, Copy, Debug)]
enum Form {
    Block,
    Tar,
}

/// Where the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Memory,
    Disk,
}

/// How fast the cable is.
#[derive(Clone, Copy, Debug)]
enum Cable {
    AsItIs,
    Gigabits(u32),
}

/// Bash, with our variables; each line that fails ends it.
#[derive(Clone, Copy, Debug)]
struct Rival(&'static str);

/// Fetch, check, unpack: one after the other, as metal-hammer's installation has it, by tools that are faster than what it's
/// made of.
const METAL_HAMMER: Rival = Rival(
    r#"
    mkfs_and_mount
    mkdir "$WORK/fetched"
    mount -t tmpfs tmpfs "$WORK/fetched"
    cd "$WORK/fetched"
    fetch "$URL/root.tar.lz4" >root.tar.lz4
    fetch "$URL/root.tar.lz4.md5" >root.tar.lz4.md5
    md5sum --check --quiet root.tar.lz4.md5
    lz4 -dc root.tar.lz4 | untar
    cd /
    unmount_and_flush
"#,
);

const CURL_ZSTD_TAR: Rival = Rival(
    r#"
    mkfs_and_mount
    fetch "$URL/root.tar.zst" | zstd -dcq | untar
    unmount_and_flush
"#,
);

const BMAPTOOL: Rival = Rival(
    r#"
    bmaptool --quiet copy --bmap "$URL/dense.bmap" "$URL/dense.img.zst" "$DEVICE"
    flush
"#,
);

const DD: Rival = Rival(
    r#"
    fetch "$URL/dense.img.zst" | zstd -dcq | dd of="$DEVICE" bs=4M iflag=fullblock oflag=direct conv=fsync status=none
    flush
"#,
);

/// What rivals are made of.
const FUNCTIONS: &str = r#"
    fetch() { curl --disable --noproxy '*' --silent --show-error --fail "$@"; }
    untar() { tar -xp --numeric-owner --xattrs --xattrs-include='*' -f - -C "$ROOT"; }
    mkfs_and_mount() {
        mke2fs -q -F -t ext4 -E nodiscard,lazy_itable_init=1 "$DEVICE"
        mount -t ext4 -o noatime,noinit_itable "$DEVICE" "$ROOT"
    }
    flush() { blockdev --flushbufs "$DEVICE"; }
    unmount_and_flush() { umount "$ROOT"; flush; }
"#;

pub(super) fn block_metal_hammer() -> Result<Contest> {
    contest(Place::Memory, Cable::AsItIs, Form::Block, METAL_HAMMER)
}

pub(super) fn block_curl_zstd_tar() -> Result<Contest> {
    contest(Place::Memory, Cable::AsItIs, Form::Block, CURL_ZSTD_TAR)
}

pub(super) fn block_bmaptool() -> Result<Contest> {
    contest(Place::Memory, Cable::AsItIs, Form::Block, BMAPTOOL)
}

pub(super) fn block_dd() -> Result<Contest> {
    contest(Place::Memory, Cable::AsItIs, Form::Block, DD)
}

pub(super) fn block_disk() -> Result<Contest> {
    contest(Place::Disk, Cable::AsItIs, Form::Block, METAL_HAMMER)
}

pub(super) fn block_10g() -> Result<Contest> {
    contest(Place::Memory, Cable::Gigabits(10), Form::Block, METAL_HAMMER)
}

pub(super) fn block_1g() -> Result<Contest> {
    contest(Place::Memory, Cable::Gigabits(1), Form::Block, METAL_HAMMER)
}

pub(super) fn tar_metal_hammer() -> Result<Contest> {
    contest(Place::Memory, Cable::AsItIs, Form::Tar, METAL_HAMMER)
}

pub(super) fn tar_curl_zstd_tar() -> Result<Contest> {
    contest(Place::Memory, Cable::AsItIs, Form::Tar, CURL_ZSTD_TAR)
}

pub(super) fn tar_disk() -> Result<Contest> {
    contest(Place::Disk, Cable::AsItIs, Form::Tar, METAL_HAMMER)
}

fn contest(place: Place, cable: Cable, form: Form, rival: Rival) -> Result<Contest> {
    let arena = Arena::new(place, cable)?;
    Ok(Box::new(move |side| match side {
        Side::Ours => Ok(arena.ours(form, "")?.seconds),
        Side::Rival => arena.seconds(rival.0),
    }))
}

/// The slowest of what can't be done without, each of it measured alone.
pub(super) fn block_limit() -> Result<Contest> {
    let arena = Arena::new(Place::Memory, Cable::AsItIs)?;
    Ok(Box::new(move |side| match side {
        Side::Ours => Ok(arena.ours(Form::Block, "")?.seconds),
        Side::Rival => {
            let written = arena.shelf.block_unpacked >> 22;
            let device =
                format!(r#"dd if=/dev/zero of="$DEVICE" bs=4M count={written} oflag=direct conv=fsync status=none"#);
            let decode = format!("zstd -dcq {} >/dev/null", quoted(&arena.shelf.dir.join("root.tar.zst")));
            let threads = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
            let each = [arena.transfer()?, arena.seconds(&device)?, arena.seconds(&decode)? / threads];
            Ok(each.into_iter().fold(0.0, f64::max))
        }
    }))
}

/// How much of a link is used.
pub(super) fn block_1g_link() -> Result<Contest> {
    let arena = Arena::new(Place::Memory, Cable::Gigabits(1))?;
    Ok(Box::new(move |side| match side {
        Side::Ours => Ok(arena.ours(Form::Block, "")?.seconds),
        Side::Rival => arena.transfer(),
    }))
}

/// There is no installation that doesn't verify, so what doing it twice costs has to say what doing it once does.
pub(super) fn verify() -> Result<Contest> {
    let arena = Arena::new(Place::Memory, Cable::AsItIs)?;
    Ok(Box::new(move |side| {
        let how = match side {
            Side::Ours => "--verify-twice",
            Side::Rival => "",
        };
        Ok(arena.ours(Form::Block, how)?.seconds)
    }))
}

pub(super) fn memory_block() -> Result<Contest> {
    memory(Form::Block)
}

pub(super) fn memory_tar() -> Result<Contest> {
    memory(Form::Tar)
}

fn memory(form: Form) -> Result<Contest> {
    let arena = Arena::new(Place::Memory, Cable::AsItIs)?;
    Ok(limited(MEMORY_LIMIT, move || Ok(arena.ours(form, "")?.peak_memory_bytes as f64 / 1e6)))
}

/// A tar to what machines write to a disk.
pub(super) fn pack() -> Result<Contest> {
    let arena = Arena::new(Place::Memory, Cable::AsItIs)?;
    let shelf = &arena.shelf;
    let (tar, key) = (quoted(&shelf.tar()), quoted(&shelf.key_file));
    let program = quoted(&up::program()?);
    let in_memory = r#"mount -t tmpfs tmpfs "$WORK"; cd "$WORK"; mkdir root store"#;
    let ours = format!(
        "{in_memory}\n{program} image pack {tar} --name bench --version 1 --store store --key {key} --forms block >/dev/null"
    );
    // Room for what the file system needs beside the files, and no more: what is free would have to be compressed, too.
    let bytes = shelf.tar_unpacked / 4 * 5;
    let rival = format!(
        "{in_memory}\ntar -xp --numeric-owner --xattrs --xattrs-include='*' -f {tar} -C root\n\
         mke2fs -q -F -t ext4 -d root image {}k\nzstd -q -3 -T0 image",
        bytes >> 10
    );
    Ok(Box::new(move |side| {
        arena.seconds(match side {
            Side::Ours => &ours,
            Side::Rival => &rival,
        })
    }))
}

pub(super) fn bytes_block_lz4() -> Result<Contest> {
    bytes(|shelf| shelf.block_packed, "root.tar.lz4")
}

pub(super) fn bytes_block_zstd() -> Result<Contest> {
    bytes(|shelf| shelf.block_packed, "root.tar.zst")
}

pub(super) fn bytes_tar_zstd() -> Result<Contest> {
    bytes(|shelf| shelf.tar_packed, "root.tar.zst")
}

fn bytes(ours: fn(&Shelf) -> u64, rival: &str) -> Result<Contest> {
    let shelf = Shelf::prepare(&Tools::new()?)?;
    let path = shelf.dir.join(rival);
    let rival = fs::metadata(&path).with_context(|| format!("examining {}", path.display()))?.len();
    let ours = ours(&shelf);
    Ok(Box::new(move |side| {
        Ok(match side {
            Side::Ours => ours,
            Side::Rival => rival,
        } as f64
            / 1e6)
    }))
}

/// What the agent's code says of itself.
#[derive(Clone, Copy, Debug, Deserialize)]
struct Took {
    seconds: f64,
    peak_memory_bytes: u64,
}

struct Arena {
    shelf: Shelf,
    tools: Tools,
    device: Device,
    clients: Namespace,
    agent: std::path::PathBuf,
    dir: TempDir,
    // The server goes before its namespace.
    _nginx: Process,
    _server: Namespace,
}

impl Arena {
    fn new(place: Place, cable: Cable) -> Result<Self> {
        ensure!(getuid().is_root(), "loop devices and mounts are for root: run this as root");
        let tools = Tools::new()?;
        let shelf = Shelf::prepare(&tools)?;
        let agent = drophammer_initramfs::build_install_bench(&drophammer_initramfs::repository()?)?;
        let bench = cache_dir()?.join("bench");
        fs::create_dir_all(&bench).with_context(|| format!("making {}", bench.display()))?;
        let dir = tempfile::tempdir_in(&bench).with_context(|| format!("making a directory in {}", bench.display()))?;
        let server = Namespace::create()?;
        let clients = server.joined(CABLE)?;
        for (namespace, name, address) in [(&server, CABLE[0], SERVER), (&clients, CABLE[1], CLIENT)] {
            namespace.ip(&format!("link set lo up\naddress add {address}/24 dev {name}\nlink set {name} up\n"))?;
        }
        if let Cable::Gigabits(rate) = cable {
            shape(&server, rate)?;
        }
        let nginx = http::nginx(tools.programs(), dir.path(), &shelf.dir, &format!("{SERVER}:{PORT}"))?;
        let mut nginx = server.enter(nginx);
        nginx.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let nginx = Process::start(&mut nginx).context("starting nginx")?;
        let device = Device::new(place, &tools)?;
        let arena = Self { shelf, tools, device, clients, agent, dir, _nginx: nginx, _server: server };
        // Also brings all of it into memory.
        let files = quoted(&arena.shelf.dir);
        arena
            .seconds(&format!(
                "cat {files}/*.zst {files}/*.lz4 {files}/packs/* >/dev/null\n\
                 fetch --retry 100 --retry-delay 1 --retry-connrefused \"$URL/root.tar.lz4.md5\" >/dev/null"
            ))
            .with_context(|| format!("nginx doesn't answer; see {}", arena.dir.path().display()))?;
        Ok(arena)
    }

    /// One installation by the code of the agent. Its own clock begins when its program has been loaded, as an agent is.
    fn ours(&self, form: Form, how: &str) -> Result<Took> {
        let form = match form {
            Form::Block => "block",
            Form::Tar => "tar",
        };
        let script = format!(
            "{} --store \"$URL\" --image {} --key {} --form {form} --device \"$DEVICE\" --mount-point \"$ROOT\" {how}",
            quoted(&self.agent),
            self.shelf.image,
            self.shelf.key,
        );
        let (said, _) = self.run(&script)?;
        serde_json::from_str(said.trim()).with_context(|| format!("reading what an installation took: {said:?}"))
    }

    /// The bytes of the block form over the cable and nowhere.
    fn transfer(&self) -> Result<f64> {
        let (pack, last) = (&self.shelf.pack, self.shelf.block_packed - 1);
        self.seconds(&format!("fetch --range 0-{last} \"$URL/packs/{pack}\" >/dev/null"))
    }

    fn seconds(&self, script: &str) -> Result<f64> {
        self.run(script).map(|(_, seconds)| seconds)
    }

    /// What it says, and how long it takes.
    fn run(&self, script: &str) -> Result<(String, f64)> {
        self.device.forget_cache(&self.tools)?;
        let work = tempfile::tempdir_in(self.dir.path()).context("making a directory to work in")?;
        let root = work.path().join("mounted");
        fs::create_dir(&root).with_context(|| format!("making {}", root.display()))?;
        let mut command = self.clients.enter(self.tools.bash(&format!("{FUNCTIONS}{script}"))?);
        command.env("URL", format!("http://{SERVER}:{PORT}"));
        command.env("DEVICE", self.device.path()).env("ROOT", &root).env("WORK", work.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let child = spawn(&mut command).context("starting unshare, from the package util-linux")?;
        let output = child.wait_with_output().context("waiting for it")?;
        let seconds = began.elapsed().as_secs_f64();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "it ended with {}: {}", output.status, said.trim());
        Ok((String::from_utf8_lossy(&output.stdout).into_owned(), seconds))
    }
}

/// What the server sends is let through at this rate, as a port of a switch would.
fn shape(server: &Namespace, gigabits: u32) -> Result<()> {
    let mut tc = server.command("tc");
    tc.args(["qdisc", "add", "dev", CABLE[0], "root", "tbf", "rate"]).arg(format!("{gigabits}gbit"));
    tc.args(["burst", "2mb", "latency", "20ms"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = spawn(&mut tc).context("starting tc, from the package iproute2")?;
    let output = child.wait_with_output().context("waiting for tc")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "this kernel can't slow a cable down by tbf: tc says {:?}", said.trim());
    Ok(())
}
