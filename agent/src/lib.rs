//! `drophammer-agent`: PID 1 of the initramfs, and on an ordinary host a command line for the same code. All of the program
//! is in this library, so that `tests/fuzz` can link to it.

mod by_hand;
mod cmdline;
mod dhcp;
mod disk;
mod drive;
mod efi;
mod erase;
mod events;
#[cfg(fuzzing)]
pub mod fuzz;
mod holders;
mod init;
mod install;
mod inventory;
mod kexec;
mod modules;
mod net;
mod phone_home;
mod reporter;
mod run;
mod server;
mod signatures;
mod sys;
mod untouched;
mod volumes;
mod watchdog;

pub use install::bench;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use drophammer_protocol::event::Phase;
use drophammer_protocol::ticket::PHONE_HOME_PATH;

/// What a server does between power-on and its operating system: inventory, erase, install.
///
/// As PID 1 of drophammer's initramfs it carries out what the boot server orders. On an ordinary host, by hand, the same
/// code says what the machine is made of, what an erase would do, and erases single drives. Nothing is ever destroyed
/// without the drive's serial typed in full.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what this machine is made of.
    Inventory {
        /// As JSON, the way the boot server gets it.
        #[arg(long)]
        json: bool,
    },
    /// Say which drives an erase would cover, with which methods and why; touches nothing.
    Plan(by_hand::Selection),
    /// Erase drives and print a certificate for each; without `--yes-destroy` only the plan is printed.
    Erase(by_hand::EraseArgs),
    /// Tell the boot server that this installed system is up. Once; the installation arranges for it.
    PhoneHome {
        /// What the installation left for this call; deleted when the server has heard it.
        #[arg(long, value_name = "PATH", default_value = PHONE_HOME_PATH)]
        ticket: PathBuf,
    },
}

/// The program.
pub fn main() -> ExitCode {
    // The kernel hands PID 1 whatever words it didn't know; in a container, PID 1 may well be called by hand.
    let done = match Cli::try_parse() {
        Err(_) if std::process::id() == 1 => boot(),
        Err(error) => error.exit(),
        Ok(cli) => match cli.command {
            Command::Inventory { json } => by_hand::inventory(json),
            Command::Plan(selection) => by_hand::plan(&selection),
            Command::Erase(args) => by_hand::erase(&args),
            Command::PhoneHome { ticket } => phone_home::phone_home(&ticket),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drophammer-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole life of PID 1. Everything that happens in it returns here, and here the machine is left.
fn boot() -> ! {
    let problems = init::set_up();
    let watchdog = watchdog::Watchdog::new(Duration::from_secs(600));
    let events = events::Events::start(watchdog.clone());
    init::leave_on_panic(&events);
    init::reap();
    let reporter = events.reporter();
    reporter.started(Phase::Agent, concat!("drophammer-agent ", env!("CARGO_PKG_VERSION")));
    for problem in problems {
        reporter.failed(Phase::Agent, problem);
    }
    let exit = run::boot(&events, &watchdog);
    init::leave(exit, &events, &watchdog)
}
