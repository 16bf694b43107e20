//! A program that runs in another root: with process ids, mounts and names of its own, and nothing left of it when it ends.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{AccessFlags, access, chdir, chroot, setsid};

/// What only the agent may do: load modules, start other kernels, set the clock. linux/capability.h
const KEPT_BACK: [libc::c_ulong; 3] = [16, 22, 25];

const STRICT: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Starts `program` as process 1 of its own world, in which `root` is `/`: when it ends, or is killed, the kernel kills
/// whatever it has started, and its mounts are gone. It sees /proc, /sys, /dev, an empty /tmp and, if the firmware has
/// any, the firmware's variables.
///
/// Directories for those have to be there. The program's output and errors are one pipe, which is the answer's other half.
pub(crate) fn spawn(root: &Path, workdir: &Path, program: &Path) -> io::Result<(Child, io::PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let (root, workdir) = (c_string(root)?, c_string(workdir)?);
    // SAFETY: between fork and exec only system calls are made, on strings that were made before: nothing is allocated and
    // no lock is taken.
    unsafe { command.pre_exec(move || enter(&root, &workdir).map_err(io::Error::from)) };
    // The next child of the thread that says this is the first of its world; no other thread's children are.
    let spawning = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWPID)?;
        command.spawn()
    });
    let child = spawning.join().map_err(|_| io::Error::other("the thread that starts it panicked"))??;
    Ok((child, reader))
}

fn c_string(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// In the child.
fn enter(root: &CStr, workdir: &CStr) -> Result<(), Errno> {
    const NONE: Option<&CStr> = None;
    setsid()?;
    umask(Mode::from_bits_truncate(0o022));
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS)?;
    mount(NONE, c"/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    // A mount of its own, which then takes the place of everything: unlike out of a chroot, `..` doesn't lead out of it.
    // (pivot_root can't leave an initramfs.)
    mount(Some(root), root, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE)?;
    chdir(root)?;
    mount(Some(c"."), c"/", NONE, MsFlags::MS_MOVE, NONE)?;
    chroot(c".")?;
    chdir(c"/")?;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), STRICT, NONE)?;
    mount(Some(c"sysfs"), c"/sys", Some(c"sysfs"), STRICT, NONE)?;
    mount(Some(c"devtmpfs"), c"/dev", Some(c"devtmpfs"), MsFlags::MS_NOSUID, NONE)?;
    mount(Some(c"tmpfs"), c"/tmp", Some(c"tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(c"mode=1777"))?;
    let variables = c"/sys/firmware/efi/efivars";
    if access(variables, AccessFlags::F_OK).is_ok() {
        mount(Some(c"efivarfs"), variables, Some(c"efivarfs"), STRICT, NONE)?;
    }
    for capability in KEPT_BACK {
        // SAFETY: an integer to the kernel, which keeps nothing.
        Errno::result(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) })?;
    }
    chdir(workdir)
}
