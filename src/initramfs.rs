//! `drophammer initramfs`: what machines boot the agent from.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use drophammer_initramfs::{Flavour, Options, Set};
use drophammer_protocol::words;

use crate::output;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a boot directory: kernel, initramfs with the agent, iPXE for BIOS and UEFI.
    ///
    /// The kernel is Debian's signed package; the same inputs give the same bytes. Without --agent, the agent is built
    /// from the source tree that this program came from.
    Build {
        /// The directory to make.
        #[arg(short, long, value_name = "DIR")]
        output: PathBuf,
        /// Which of Debian's kernels.
        #[arg(long, value_enum, default_value_t = Kernel::Generic)]
        kernel: Kernel,
        /// Which modules go with it.
        #[arg(long, value_enum, default_value_t = Modules::Metal)]
        modules: Modules,
        /// A static drophammer-agent.
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kernel {
    /// For virtual machines.
    Cloud,
    /// For real servers.
    Generic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Modules {
    /// What virtual machines have.
    Vm,
    /// What servers have: every server NIC, HBA, watchdog and BMC interface.
    Metal,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let Command::Build { output, kernel, modules, agent } = args.command;
    let flavour = match kernel {
        Kernel::Cloud => Flavour::Cloud,
        Kernel::Generic => Flavour::Generic,
    };
    let set = match modules {
        Modules::Vm => Set::Vm,
        Modules::Metal => Set::Metal,
    };
    let built = drophammer_initramfs::build(&Options { flavour, set, agent, out: output.clone() })?;
    if args.json {
        return output::json(&serde_json::json!({
            "kernel": built.kernel,
            "initramfs": built.initramfs,
            "kernel_release": built.kernel_release,
            "up_to_date": built.fresh,
            "bytes": built.sizes,
            "absent_modules": built.absent,
        }));
    }
    let sizes = built.sizes;
    output::line(&format!("{}: {}", output.display(), if built.fresh { "up to date" } else { "built" }))?;
    output::line(&format!("kernel     {} ({})", words::bytes(sizes.kernel), built.kernel_release))?;
    output::line(&format!(
        "initramfs  {}, unpacked {} (agent {}, modules {}, tools {})",
        words::bytes(sizes.initramfs),
        words::bytes(sizes.unpacked),
        words::bytes(sizes.agent),
        words::bytes(sizes.modules),
        words::bytes(sizes.tools),
    ))?;
    if !built.absent.is_empty() {
        output::line(&format!("not in this kernel: {}", built.absent.join(" ")))?;
    }
    Ok(())
}
