//! What `cargo bench-all install.` measures: the way of an image from a store to a device, as an installation goes it, and
//! nothing before or after. It is a program of its own ([`main`], `install-bench`), so that the agent of a machine has no
//! command that writes to a disk without an order.
//!
//! Nothing here can be told to leave something out. What verification costs is measured by verifying twice.

use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{Parser, ValueEnum};
use drophammer_protocol::event::Phase;
use drophammer_protocol::manifest::{self, BlockForm, Manifest, TarForm};
use drophammer_protocol::order::ReadBack;
use drophammer_protocol::sign::PublicKey;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::fetch::Patience;
use super::root::Root;
use super::sources::Sources;
use super::{blocks, mkfs, peak_memory_bytes, stream};
use crate::reporter::Reporter;
use crate::sys::{block, ext4};
use crate::{events, server};

/// Bring an image to a device the way an installation does, and say as JSON what it took. What was on the device is lost.
#[derive(Debug, Parser)]
#[command(name = "install-bench", version)]
struct Args {
    #[arg(long, value_name = "URL")]
    store: String,
    /// NAME/VERSION
    #[arg(long)]
    image: String,
    /// Who may have signed it, in hexadecimal.
    #[arg(long)]
    key: PublicKey,
    #[arg(long)]
    form: Form,
    /// A whole device, of which nothing is mounted.
    #[arg(long, value_name = "PATH")]
    device: PathBuf,
    /// An empty directory, where the root file system is mounted meanwhile.
    #[arg(long, value_name = "DIR")]
    mount_point: PathBuf,
    /// Do twice all that tells whether bytes are the right ones.
    #[arg(long)]
    verify_twice: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Block,
    Tar,
}

#[derive(Debug, Serialize)]
struct Took {
    seconds: f64,
    /// Until the image was on the device and read back, or unpacked; the rest made it durable.
    written_seconds: f64,
    bytes_fetched: u64,
    peak_memory_bytes: u64,
}

/// The program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let (reporter, console) = events::to_stderr();
    let done = install(&args, &reporter);
    drop(reporter);
    // It only prints.
    console.join().ok();
    let said = done.and_then(|took| serde_json::to_string(&took).context("writing what it took"));
    match said {
        Ok(json) => {
            println!("{json}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("install-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn install(args: &Args, reporter: &Reporter) -> anyhow::Result<Took> {
    let began = Instant::now();
    let http = server::plain_http()?;
    let interrupted = |what: String| reporter.note(Phase::Image, what);
    let again = |frame: &[u8]| {
        black_box(Sha256::digest(frame));
    };
    let mut sources = Sources::new(&http, std::slice::from_ref(&args.store), Patience::ORDINARY, &interrupted);
    if args.verify_twice {
        sources.also_with_each_chunk(&again);
    }
    let open = |bytes: &[u8]| manifest::open(bytes, &[args.key]).map_err(|e| e.to_string());
    let manifest = sources.manifest(&args.image, open)?;
    let device = File::open(&args.device).with_context(|| format!("opening {}", args.device.display()))?;
    let root = match args.form {
        Form::Block => {
            let form = manifest.block.as_ref().context("the image has no block form")?;
            write_blocks(args, &manifest, form, &sources, &device, reporter)?
        }
        Form::Tar => {
            let form = manifest.tar.as_ref().context("the image has no tar form")?;
            unpack_tar(args, &manifest, form, &sources, &device, reporter)?
        }
    };
    let written_seconds = began.elapsed().as_secs_f64();
    root.flush().context("flushing the root file system")?;
    drop(root);
    nix::mount::umount2(&args.mount_point, MntFlags::empty()).context("unmounting the root file system")?;
    device.sync_all().context("flushing the device")?;
    Ok(Took {
        seconds: began.elapsed().as_secs_f64(),
        written_seconds,
        bytes_fetched: sources.fetched(),
        peak_memory_bytes: peak_memory_bytes(),
    })
}

fn write_blocks(
    args: &Args,
    manifest: &Manifest,
    form: &BlockForm,
    sources: &Sources<'_>,
    device: &File,
    reporter: &Reporter,
) -> anyhow::Result<Root> {
    blocks::image(manifest, form, sources, &args.device, ReadBack::Sampled, reporter)?;
    if args.verify_twice {
        let direct = block::direct(device, false).context("opening the device again")?;
        blocks::compare(&direct, form, ReadBack::Sampled, reporter)?;
    }
    let root = mounted(args)?;
    ext4::set_uuid(root.handle(), Uuid::new_v4())?;
    match ext4::grow(root.handle(), block::size_bytes(device)? / ext4::block_bytes(root.handle())?) {
        // A container's root often hasn't the right to, and it's a small part of the time.
        Err(ext4::Ext4Error::Kernel { source: Errno::EPERM, .. }) => {
            reporter
                .note(Phase::Image, "the file system is left as small as it came: this host doesn't let us grow it");
        }
        grown => grown?,
    }
    Ok(root)
}

fn unpack_tar(
    args: &Args,
    manifest: &Manifest,
    form: &TarForm,
    sources: &Sources<'_>,
    device: &File,
    reporter: &Reporter,
) -> anyhow::Result<Root> {
    let new = mkfs::New {
        format: mkfs::Format::Ext4(Uuid::new_v4()),
        label: "root",
        bytes: block::size_bytes(device)?,
        logical_block: block::logical_block(device)?,
        options: &[],
    };
    mkfs::plan(&new, &mkfs::Tools::find()).map_err(anyhow::Error::msg)?.carry_out(&args.device)?;
    let root = mounted(args)?;
    stream::image(manifest, form, sources, &root, reporter)?;
    Ok(root)
}

/// As [`super::assembly::Assembly::mount_root`] has it.
fn mounted(args: &Args) -> anyhow::Result<Root> {
    let point: &Path = &args.mount_point;
    fs::create_dir_all(point).with_context(|| format!("making {}", point.display()))?;
    nix::mount::mount(Some(&args.device), point, Some("ext4"), MsFlags::MS_NOATIME, Some("noinit_itable"))
        .with_context(|| format!("mounting {} at {}", args.device.display(), point.display()))?;
    Root::open(point)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Args::command().debug_assert();
    }
}
