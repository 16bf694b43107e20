//! `drophammer`: netboot server, image tools and lab in one program. This file says which room does what.

mod backup;
mod bootserver;
mod certificate;
mod declare;
mod drive;
mod image;
mod initramfs;
mod lab;
mod layout;
mod machine;
mod output;
mod pool;
mod profile;
mod serve;
mod server;
mod system;
mod token;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use crate::output::LogFormat;

/// From power-on to a running OS: boot server, machines, images, lab.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the boot server: DHCP, TFTP, HTTP boot, images and the control API.
    Serve(serve::Args),
    /// See which boot servers there are, and let more join.
    Bootserver(bootserver::Args),
    /// See, allocate, release and reprovision machines.
    Machine(machine::Args),
    /// Declare sizes, partitions, projects and the like, as files say.
    Apply(declare::Apply),
    /// Show what is declared.
    Get(declare::Get),
    /// Withdraw what was declared.
    Delete(declare::Delete),
    /// See how many machines of which size are free.
    Capacity(pool::CapacityArgs),
    /// Make, see and revoke tokens for the control API.
    Token(token::Args),
    /// See who changed what.
    Audit(pool::AuditArgs),
    /// Give servers names, and choose one to talk to.
    Profile(profile::Args),
    /// Print what makes a shell complete these commands.
    Completion {
        /// bash, zsh, fish, elvish or powershell.
        shell: clap_complete::Shell,
    },
    /// Back up the control API's state, and restore it.
    Backup(backup::Args),
    /// See what a layout of drives would make of a machine.
    Layout(layout::Args),
    /// Check erase certificates, also without a server, and see the key that they are checked with.
    Certificate(certificate::Args),
    /// Keep the secrets on the labels of self-encrypting drives, for when a tenant has locked one.
    Drive(drive::Args),
    /// Build, sign, verify and list OS images.
    Image(image::Args),
    /// Build the kernel and initramfs that machines boot the agent from.
    Initramfs(initramfs::Args),
    /// Virtual servers with real firmware on a private network: the demo, the tests, and machines to play with.
    Lab(lab::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match &command {
        Command::Serve(args) => output::log(LevelFilter::INFO, args.log),
        _ => output::log(LevelFilter::WARN, LogFormat::Text),
    }
    let done = match command {
        Command::Serve(args) => serve::run(&args),
        Command::Bootserver(args) => bootserver::run(args),
        Command::Machine(args) => machine::run(args),
        Command::Apply(args) => declare::apply(&args),
        Command::Get(args) => declare::get(&args),
        Command::Delete(args) => declare::delete(&args),
        Command::Capacity(args) => pool::capacity(&args),
        Command::Token(args) => token::run(args),
        Command::Audit(args) => pool::audit(&args),
        Command::Profile(args) => profile::run(args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "drophammer", &mut script);
            output::line(&String::from_utf8_lossy(&script))
        }
        Command::Backup(args) => backup::run(args),
        Command::Layout(args) => layout::run(args),
        Command::Certificate(args) => certificate::run(args),
        Command::Drive(args) => drive::run(args),
        Command::Image(args) => image::run(args),
        Command::Initramfs(args) => initramfs::run(args),
        Command::Lab(args) => lab::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drophammer: {error:#}");
            ExitCode::FAILURE
        }
    }
}
