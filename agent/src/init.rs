//! What PID 1 owes the kernel: mounts, a console, collecting orphans, and a way out for every end.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use drophammer_protocol::event::Phase;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout, sync};

use crate::efi;
use crate::erase;
use crate::events::{Events, uptime};
use crate::install::{Ready, Start};
use crate::reporter::Reporter;
use crate::watchdog::Watchdog;

/// How a boot ends.
#[derive(Debug)]
pub(crate) enum Exit {
    /// As ordered, or because this boot's time is over.
    Reboot { reason: String },
    /// The machine has a tenant: to its own disk, by way of the firmware.
    OwnDisk,
    /// It can't go on; the next boot may do better.
    StartOver { reason: String },
    /// Into the installed system.
    Installed(Box<Ready>),
}

/// A reason on the screen is of use only while it can be read; and a machine that fails at once mustn't hammer the boot
/// server.
const BEFORE_REBOOT: Duration = Duration::from_secs(5);
/// What is still to be told the server doesn't hold a machine for longer.
const LAST_WORDS: Duration = Duration::from_secs(10);
const LAST_WORDS_OF_A_PANIC: Duration = Duration::from_secs(5);

/// Mounts and console. Returns what didn't work; only a machine without /proc, /sys or /dev can't go on, and will say so
/// soon enough.
pub(crate) fn set_up() -> Vec<String> {
    let mut problems = Vec::new();
    let mut attempt = |done: anyhow::Result<()>| {
        if let Err(error) = done {
            problems.push(format!("{error:#}"));
        }
    };
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attempt(mount_at("proc", "/proc", strict));
    attempt(mount_at("sysfs", "/sys", strict));
    attempt(mount_at("devtmpfs", "/dev", MsFlags::MS_NOSUID));
    attempt(mount_at("tmpfs", "/run", strict));
    // mke2fs and the like are run from where the initramfs has them; nothing is ever run from here.
    attempt(mount_at("tmpfs", "/tmp", strict));
    attempt(open_console());
    problems
}

/// The firmware's variables: after the module is there, and only on UEFI.
pub(crate) fn mount_efivars(reporter: &Reporter) {
    let place = "/sys/firmware/efi/efivars";
    if !Path::new("/sys/firmware/efi").exists() {
        return;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let Err(error) = mount(Some("efivarfs"), place, Some("efivarfs"), flags, None::<&str>) {
        reporter.note(Phase::Agent, format!("the firmware's boot order is out of reach: mounting {place}: {error}"));
    }
}

/// A panic is the end of this boot: what is half done is done again from the start. Only one that is about a single drive
/// isn't: it's caught, and ends in that drive's verdict.
pub(crate) fn leave_on_panic(events: &Events) {
    let events = events.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let payload = panic.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let words = format!("the agent panicked{place}: {message}");
        say(&words);
        if erase::is_about_one_drive() {
            return;
        }
        // In another thread, for this one may hold the very locks that reporting takes.
        let (events, (done, told)) = (events.clone(), mpsc::channel());
        thread::spawn(move || {
            events.reporter().failed(Phase::Agent, format!("{words}; rebooting"));
            events.flush(LAST_WORDS_OF_A_PANIC);
            // Nobody waits any more if that took too long.
            let _ = done.send(());
        });
        // Told or not told, the boot ends.
        let _ = told.recv_timeout(LAST_WORDS_OF_A_PANIC);
        thread::sleep(BEFORE_REBOOT);
        restart();
    }));
}

/// Collects the exit statuses of orphans, which the kernel gives to PID 1.
///
/// Children of our own are waited for by whoever started them, at once; taking their status away would look like a
/// failure there. So only what nobody has collected between two looks is an orphan.
pub(crate) fn reap() {
    thread::spawn(|| {
        let mut last = None;
        loop {
            thread::sleep(Duration::from_secs(30));
            let dead = dead_child();
            match dead {
                Some(pid) if last == Some(pid) => {
                    // It's dead, so this doesn't block; if it's gone all the same, so much the better.
                    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                    last = None;
                }
                other => last = other,
            }
        }
    });
}

fn dead_child() -> Option<Pid> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, look).ok()?.pid()
}

/// The only way out of the machine, apart from a panic.
pub(crate) fn leave(exit: Exit, events: &Events, watchdog: &Watchdog) -> ! {
    let reporter = events.reporter();
    let reason = match exit {
        Exit::Reboot { reason } => {
            reporter.note(Phase::Agent, format!("rebooting: {reason}"));
            tell(events);
            stop(watchdog, reporter);
            restart();
        }
        Exit::OwnDisk => {
            let next = match efi::next_boot_from_disk(Path::new("/")) {
                Ok(Some(name)) => format!("the firmware starts {name:?} next"),
                Ok(None) => "the firmware's own order says what is next".to_owned(),
                Err(error) => format!("the firmware's own order says what is next ({error:#})"),
            };
            reporter.note(Phase::Agent, format!("this machine boots its own disk; rebooting, {next}"));
            // Nobody to tell: this boot never enrolled.
            thread::sleep(BEFORE_REBOOT);
            stop(watchdog, reporter);
            restart();
        }
        Exit::StartOver { reason } => reason,
        Exit::Installed(ready) => {
            let Ready { start, loader, .. } = *ready;
            reporter.started(Phase::Kexec, "starting the installed system");
            if let Some(loader) = loader {
                let said = match efi::next_boot(Path::new("/"), &loader) {
                    Ok(()) => "the firmware's next boot, whatever brings it about, is the installed system".to_owned(),
                    Err(error) => format!("the firmware's own order says what its next boot is ({error:#})"),
                };
                reporter.note(Phase::Kexec, said);
            }
            match start {
                Start::Firmware(why) => {
                    stop(watchdog, reporter);
                    reporter.note(Phase::Kexec, format!("rebooting into the installed system: {why}"));
                    tell(events);
                    restart();
                }
                Start::Kexec { kernel, watchdog: left } => {
                    leave_watchdog(watchdog, left, reporter);
                    tell(events);
                    sync();
                    let error = kernel.start();
                    reporter.failed(Phase::Kexec, format!("{error:#}"));
                    format!("the new kernel didn't start ({error:#}); the disk is complete, the firmware can start it")
                }
            }
        }
    };
    reporter.failed(Phase::Agent, format!("{reason}; rebooting in {} s", BEFORE_REBOOT.as_secs()));
    tell(events);
    thread::sleep(BEFORE_REBOOT);
    stop(watchdog, reporter);
    restart()
}

/// Left running, it would reset the machine while something else boots.
fn stop(watchdog: &Watchdog, reporter: &Reporter) {
    if let Err(error) = watchdog.stop() {
        reporter.note(Phase::Agent, format!("{error:#}: the machine may reset once while it boots"));
    }
}

/// To a kernel that is sure to take it over, so that one that hangs before that doesn't hang for ever.
fn leave_watchdog(watchdog: &Watchdog, may_run: Result<(), String>, reporter: &Reporter) {
    if !watchdog.is_there() {
        return;
    }
    let said = match may_run.map(|()| watchdog.hand_over()) {
        Ok(Ok(None)) => return,
        Ok(Ok(Some(time))) => {
            format!("the watchdog resets the machine if the new kernel hasn't taken it over in {} s", time.as_secs())
        }
        Ok(Err(error)) => format!("{error:#}: if the new kernel hangs, a person has to reset the machine"),
        Err(why) => {
            stop(watchdog, reporter);
            format!("the watchdog is stopped, as {why}: if the new kernel hangs, a person has to reset the machine")
        }
    };
    reporter.note(Phase::Kexec, said);
}

fn tell(events: &Events) {
    if !events.flush(LAST_WORDS) {
        say("the server hasn't taken the last reports in time");
    }
}

fn restart() -> ! {
    sync();
    let error = match reboot(RebootMode::RB_AUTOBOOT) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    say(&format!("rebooting: {error}; waiting for the watchdog or a person"));
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Past the reports, for when they may not work.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "[{:>9.3}] agent       {text}", uptime().as_secs_f64());
}

fn mount_at(kind: &str, place: &str, flags: MsFlags) -> anyhow::Result<()> {
    fs::create_dir_all(place).with_context(|| format!("making {place}"))?;
    match mount(Some(kind), place, Some(kind), flags, None::<&str>) {
        // Some kernels have mounted /dev by themselves.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("mounting {kind} on {place}")),
    }
}

/// An initramfs without /dev/console leaves PID 1 without any output.
fn open_console() -> anyhow::Result<()> {
    let open = OpenOptions::new().read(true).write(true).open("/dev/console");
    // Without any console (`console=null`) what we print has to go somewhere that doesn't fail.
    let console = match open {
        Ok(console) => console,
        Err(error) => {
            let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("opening /dev/null")?;
            onto_standard_streams(&null)?;
            return Err(error).context("opening /dev/console");
        }
    };
    onto_standard_streams(&console)
}

fn onto_standard_streams(file: &fs::File) -> anyhow::Result<()> {
    dup2_stdin(file).and_then(|()| dup2_stdout(file)).and_then(|()| dup2_stderr(file)).context("using the console")
}
