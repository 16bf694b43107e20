//! `drophammer initramfs`: what machines boot the agent from.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use drophammer_initramfs::{Flavour, Options, Set, Signing, UKI, UkiOptions};
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
        /// Also make agent.efi, a unified kernel image: UEFI firmware boots it by HTTP with nothing in between.
        #[arg(long)]
        uki: bool,
        /// Kernel arguments in agent.efi, such as console=ttyS0,115200. Everybody can read them.
        #[arg(long, value_name = "TEXT", default_value = "", requires = "uki", allow_hyphen_values = true)]
        cmdline: String,
        /// Sign agent.efi for Secure Boot with this RSA key (PEM).
        #[arg(long, value_name = "FILE", requires_all = ["uki", "sign_cert"])]
        sign_key: Option<PathBuf>,
        /// The certificate of that key, which the machines' firmware has to have (PEM).
        #[arg(long, value_name = "FILE", requires = "sign_key")]
        sign_cert: Option<PathBuf>,
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
    let Command::Build { output, kernel, modules, agent, uki, cmdline, sign_key, sign_cert } = args.command;
    let flavour = match kernel {
        Kernel::Cloud => Flavour::Cloud,
        Kernel::Generic => Flavour::Generic,
    };
    let set = match modules {
        Modules::Vm => Set::Vm,
        Modules::Metal => Set::Metal,
    };
    let signing = sign_key.zip(sign_cert).map(|(key, certificate)| Signing { key, certificate });
    let uki = uki.then_some(UkiOptions { arguments: cmdline, signing });
    let built = drophammer_initramfs::build(&Options { flavour, set, agent, uki, out: output.clone() })?;
    if args.json {
        return output::json(&serde_json::json!({
            "kernel": built.kernel,
            "initramfs": built.initramfs,
            "kernel_release": built.kernel_release,
            "up_to_date": built.fresh,
            "bytes": built.sizes,
            "uki": built.uki.map(|uki| serde_json::json!({
                "path": output.join(UKI),
                "bytes": uki.bytes,
                "command_line": uki.command_line,
                "signed_by": uki.signed_by,
            })),
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
    if let Some(uki) = built.uki {
        let signed = uki.signed_by.map_or("not signed".to_owned(), |subject| format!("signed by {subject}"));
        output::line(&format!("{UKI:<10} {}, {signed}, with {}", words::bytes(uki.bytes), uki.command_line))?;
    }
    if !built.absent.is_empty() {
        output::line(&format!("not in this kernel: {}", built.absent.join(" ")))?;
    }
    Ok(())
}
