use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;

use drophammer_protocol::manifest::ImageFile;
use drophammer_protocol::system::System;
use drophammer_protocol::system::metal_stack::MetalStack;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::reporter::Said;

fn order() -> Install {
    let network = |name: &str, kind, nat| MetalNetwork {
        network: name.into(),
        kind,
        prefixes: vec!["10.0.0.0/22".parse().expect("a prefix")],
        destination_prefixes: vec!["0.0.0.0/0".parse().expect("a prefix")],
        ips: vec!["10.0.0.5".parse().expect("an address")],
        nat,
        vrf: 30,
        asn: 4_200_000_001,
        project: None,
    };
    let metal = MetalStack {
        project: "p1".into(),
        role: Role::Machine,
        networks: vec![network("internet", NetworkKind::External, true), network("private", NetworkKind::Child, false)],
    };
    let system = System {
        hostname: "web1".into(),
        ssh_keys: vec!["ssh-ed25519 AAAA a".into(), "ssh-ed25519 BBBB b".into()],
        dns: vec!["192.0.2.53".parse().expect("ip")],
        ntp: vec!["ntp.example.org".into()],
        user_data: Some(UserData::CloudInit("#cloud-config\n{}\n".into())),
        metal_stack: Some(metal),
        ..System::default()
    };
    drophammer_protocol::fixtures::install("debian/12.1", "console=tty0 console=ttyS1,57600n8 quiet", system)
}

fn port() -> Port {
    Port { name: "eth0".into(), mac: "52:54:00:77:00:01".parse().expect("a MAC") }
}

/// busybox with a command by each of its names that are used here, and an installer.
fn image(installer: &str) -> TempDir {
    let base = tempfile::tempdir().expect("temporary directory");
    let at = |path: &str| base.path().join(path);
    for dir in ["bin", "etc/metal"] {
        fs::create_dir_all(at(dir)).expect("made");
    }
    fs::copy("/bin/busybox", at("bin/busybox")).expect("busybox is there; it is in the Debian package busybox-static");
    for name in [
        "sh", "cat", "sleep", "ls", "setsid", "mkdir", "chroot", "ps", "reboot", "yes", "head", "touch", "env", "id",
        "test", "date",
    ] {
        std::os::unix::fs::symlink("busybox", at("bin").join(name)).expect("linked");
    }
    fs::write(at("install.sh"), format!("#!/bin/sh\n{installer}\n")).expect("written");
    fs::set_permissions(at("install.sh"), PermissionsExt::from_mode(0o755)).expect("mode");
    base
}

/// Another root takes a real root's rights.
fn may_confine() -> bool {
    let base = image("");
    for place in MOUNT_POINTS {
        fs::create_dir(base.path().join(place.trim_start_matches('/'))).expect("made");
    }
    let denied = |e: &std::io::Error| e.kind() == std::io::ErrorKind::PermissionDenied;
    match confine::spawn(base.path(), Path::new("/"), Path::new("/bin/ls")) {
        Err(e) if denied(&e) => {
            println!("skipped: a program can be given another root only by root ({e})");
            false
        }
        other => {
            let (mut child, _) = other.expect("started");
            child.wait().expect("waited");
            true
        }
    }
}

fn fulfil(base: &TempDir, limit: Duration) -> (anyhow::Result<HandedOver>, Vec<String>) {
    let (sink, said) = mpsc::channel::<Said>();
    let reporter = Reporter::new(sink);
    let root = Root::open(base.path()).expect("opened");
    let contract = Contract::of(&root).expect("read").expect("an installer");
    let facts = Facts { root_uuid: "u-1".into(), raid: false, ports: &[port()] };
    let done = contract.fulfil(&root, base.path(), &order(), &facts, limit, &reporter);
    drop(reporter);
    (done, said.iter().map(|said| said.message).collect())
}

const PLENTY: Duration = Duration::from_secs(60);
const GOOD: &str = "cat >/etc/metal/boot-info.yaml <<EOF\ninitrd: /boot/initrd.img-6.1\ncmdline: console=ttyS1,57600n8 \
                    root=UUID=u-1 init=/sbin/init\nkernel: /boot/vmlinuz-6.1\nbootloader_id: metal-debian\nEOF";

fn good() -> BootInfo {
    BootInfo {
        kernel: "/boot/vmlinuz-6.1".into(),
        initrd: Some("/boot/initrd.img-6.1".into()),
        cmdline: "console=ttyS1,57600n8 root=UUID=u-1 init=/sbin/init".into(),
        bootloader_id: Some("metal-debian".into()),
    }
}

#[test]
fn an_installer_reads_what_it_is_told_and_says_what_to_boot() {
    if !may_confine() {
        return;
    }
    let script = format!(
        "set -e\ncat /etc/metal/install.yaml\necho my environment: $(env | /bin/busybox sort | tr '\\n' ' ' 2>/dev/null)\n\
         test -e /proc/self/mounts -a -d /sys/class -a -c /dev/null -a -w /tmp\ntouch /tmp/scratch\n{GOOD}"
    );
    let base = image(&script);
    let (done, said) = fulfil(&base, PLENTY);
    let story = said.join("\n");
    assert_eq!(done.expect(&story).boot, Some(good()));
    for part in [
        "running the image's own installer /install.sh",
        "/install.sh: hostname: \"web1\"",
        "/install.sh: password: \"(not shown)\"",
        "wants /boot/vmlinuz-6.1 booted",
    ] {
        assert!(story.contains(part), "{part}: {story}");
    }
    assert!(!base.path().join("tmp/scratch").exists(), "its /tmp was its own");
    for name in ["install.yaml", "machine-details.yaml", "machine-allocation.yaml", "userdata"] {
        let mode = fs::metadata(base.path().join("etc/metal").join(name)).expect(name).permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
    // Of its mounts nothing is left.
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
    assert!(!mounts.contains(base.path().to_str().expect("text")), "{mounts}");
}

#[test]
fn installers_that_do_not_do_what_they_should() {
    if !may_confine() {
        return;
    }
    let second = Duration::from_secs(1);
    for (name, script, limit, want) in [
        ("hangs", "echo waiting; sleep 1000".to_owned(), second, "didn't come to an end in 1 s and was killed"),
        ("hangs and says so", "echo waiting; sleep 1000".into(), second, "its last words: waiting"),
        ("hangs silently", "exec >/dev/null 2>&1; sleep 1000".into(), second, "its last words: none"),
        ("ignores signals", "trap '' TERM INT HUP; while :; do sleep 1; done".into(), second, "was killed"),
        ("fails", "echo no room >&2; exit 3".into(), PLENTY, "it failed (exit status: 3); its last words: no room"),
        ("says nothing of what to boot", "echo done".into(), PLENTY, "left no /etc/metal/boot-info.yaml"),
        ("says nonsense", "echo '- a' >/etc/metal/boot-info.yaml".into(), PLENTY, "isn't one mapping"),
        (
            "says what lies elsewhere",
            "echo 'kernel: /boot/../../vmlinuz' >/etc/metal/boot-info.yaml".into(),
            PLENTY,
            "is not a plain absolute path",
        ),
        ("floods and never ends", "yes flood".into(), second, "its last words: flood | flood"),
        ("isn't there", String::new(), PLENTY, "starting it in the installed system"),
    ] {
        let base = image(&script);
        if script.is_empty() {
            fs::write(base.path().join("install.sh"), "#!/bin/nobody\n").expect("written");
        }
        let began = Instant::now();
        let (done, said) = fulfil(&base, limit);
        let why = format!("{:#}", done.expect_err(name));
        assert!(why.contains(want), "{name}: {why}");
        assert!(began.elapsed() < Duration::from_secs(30), "{name}: {:?}", began.elapsed());
        assert!(said.len() <= MAX_LINES + 4, "{name}: {} lines", said.len());
    }
}

#[test]
fn a_flood_of_words_is_told_in_part() {
    if !may_confine() {
        return;
    }
    let base = image(&format!("yes flood | head -n 100000\nhead -c 300000 /dev/zero; echo end\n{GOOD}"));
    let (done, said) = fulfil(&base, PLENTY);
    assert_eq!(done.expect("done").boot, Some(good()));
    assert!(said.len() <= MAX_LINES + 4 && said.iter().all(|line| line.len() < 6000), "{} lines", said.len());
    assert!(said.iter().any(|line| line.contains("(99800 more lines")), "{:?}", said.last());
}

/// Those who look for a way out find none by the ordinary doors; what stays possible is in the module's text.
#[test]
fn nothing_outlives_an_installer_and_it_sees_only_its_own() {
    if !may_confine() {
        return;
    }
    let outside = tempfile::tempdir().expect("temporary directory");
    let mark = outside.path().join("mark");
    fs::write(&mark, "outside").expect("written");
    let script = format!(
        "(setsid sh -c 'while :; do touch /alive; sleep 0.1; done' >/dev/null 2>&1 &)\n\
         sleep 0.5; test -e /alive && echo it daemonized\n\
         mkdir -p /jail; cd /; chroot /jail /bin/true 2>/dev/null\n\
         cd ../../../..; ls -d bin >/dev/null && echo still inside\n\
         cat {mark} 2>/dev/null && echo found the outside\n\
         cat /proc/1/cmdline; echo; echo processes: $(ls /proc | /bin/busybox grep -c '^[0-9]')\n\
         reboot -f 2>&1 || true\n\
         date -s 2001-01-01 2>&1 || true\n{GOOD}",
        mark = mark.display()
    );
    let base = image(&script);
    let before = SystemTime::now();
    let (done, said) = fulfil(&base, PLENTY);
    let story = said.join("\n");
    assert_eq!(done.expect(&story).boot, Some(good()), "{story}");
    assert!(SystemTime::now() > before, "the clock is the agent's");
    for (part, there) in [
        ("it daemonized", true),
        ("still inside", true),
        ("found the outside", false),
        ("outside", false),
        ("/bin/sh/install.sh", false),
    ] {
        let lines: Vec<&String> = said.iter().filter(|line| line.starts_with("/install.sh:")).collect();
        assert_eq!(lines.iter().any(|line| line.contains(part) && !line.contains("find")), there, "{part}: {story}");
    }
    let alive = |name: &str| fs::metadata(base.path().join(name)).and_then(|m| m.modified()).expect("it lived");
    let last = alive("alive");
    thread::sleep(Duration::from_millis(500));
    assert_eq!(alive("alive"), last, "it lives on");
}

/// The kernel unmounts what a dead program's world had mounted; the disk's partitions are forgotten right after.
#[test]
fn a_disk_is_free_when_its_installer_has_ended() {
    let run = |program: &str, args: &[&str]| {
        let done = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_owned())
    };
    let folder = tempfile::tempdir().expect("temporary directory");
    let disk = folder.path().join("disk");
    fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("made");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let device = if may_confine() { run("losetup", &["--find", "--show", &path("disk")]) } else { None };
    let Some(device) = device else {
        println!("skipped: no loop device is to be had");
        return;
    };
    run("mke2fs", &["-q", "-F", &device]).expect("made");
    fs::create_dir(folder.path().join("root")).expect("made");
    let files = image(&format!("(setsid sleep 1000 &)\n{GOOD}"));
    for round in 1..=5 {
        // What another test starts has our handle of the round before until it runs, which keeps the device for itself.
        let since = Instant::now();
        while run("mount", &[&device, &path("root")]).is_none() {
            assert!(since.elapsed() < Duration::from_secs(20), "round {round}: {device} can't be mounted");
            thread::sleep(Duration::from_millis(20));
        }
        run("cp", &["-a", &format!("{}/.", files.path().display()), &path("root")]).expect("copied");
        let mounted = folder.path().join("root");
        let (sink, _said) = mpsc::channel::<Said>();
        let root = Root::open(&mounted).expect("opened");
        let contract = Contract::of(&root).expect("read").expect("an installer");
        let facts = Facts { root_uuid: "u-1".into(), raid: false, ports: &[port()] };
        let done = contract.fulfil(&root, &mounted, &order(), &facts, PLENTY, &Reporter::new(sink));
        drop(root);
        // The other tests' installers, and other programs of this host, have copies of the mount for as long as they live;
        // whatever another test starts has our handles until it runs.
        let since = Instant::now();
        while let Err(e) = nix::mount::umount(&mounted) {
            assert!(since.elapsed() < Duration::from_secs(20), "round {round}: {} is busy: {e}", mounted.display());
            thread::sleep(Duration::from_millis(20));
        }
        let free = loop {
            let free = fs::File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(&device);
            if free.is_ok() || since.elapsed() > Duration::from_secs(20) {
                break free;
            }
            thread::sleep(Duration::from_millis(20));
        };
        if round == 5 || free.is_err() {
            run("losetup", &["--detach", &device]);
        }
        assert_eq!(done.expect("done").boot, Some(good()));
        free.unwrap_or_else(|e| panic!("round {round}: somebody still has {device}: {e}"));
    }
}

#[test]
fn what_is_booted_is_what_the_installer_says() {
    let base = tempfile::tempdir().expect("temporary directory");
    fs::create_dir(base.path().join("boot")).expect("made");
    fs::write(base.path().join("boot/vmlinuz-6.1"), "kernel").expect("written");
    fs::write(base.path().join("boot/initrd.img-6.1"), "made by the installer").expect("written");
    let root = Root::open(base.path()).expect("opened");
    let file = |path: &str| ImageFile { path: path.into(), sha256: "00".into() };
    let published = BootFiles {
        kernel: file("/boot/vmlinuz-5.0"),
        initrd: None,
        cmdline: "quiet".into(),
        bios: None,
        uefi: Some(file("/boot/grubx64.efi")),
        by: None,
    };
    let hash = |text: &str| hex::encode(Sha256::digest(text));
    let files = good().files(&root, &published).expect("they are there");
    assert_eq!((files.kernel.path.as_str(), files.kernel.sha256), ("/boot/vmlinuz-6.1", hash("kernel")));
    let initrd = files.initrd.expect("one");
    assert_eq!((initrd.path.as_str(), initrd.sha256), ("/boot/initrd.img-6.1", hash("made by the installer")));
    assert_eq!(files.cmdline, "console=ttyS1,57600n8 init=/sbin/init", "the root is named for every system alike");
    assert_eq!(files.uefi, published.uefi, "the firmware's program stays");
    let gone = BootInfo { initrd: Some("/boot/nothing".into()), ..good() };
    let said = format!("{:#}", gone.files(&root, &published).expect_err("it isn't there"));
    assert!(said.contains("boot-info.yaml") && said.contains("there is no /boot/nothing"), "{said}");
}

#[test]
fn what_images_expect() {
    let none = Contract { run: None, whole: false, bootloader_id: None };
    let program = |path: &str, workdir: &str| Some(Program { path: path.into(), workdir: workdir.into() });
    for (name, files, want) in [
        ("nothing", vec![], None),
        ("something of that name", vec![("install.sh", "not executable")], None),
        (
            "a shell script",
            vec![("install.sh", "")],
            Some(Contract { run: program("/install.sh", "/"), whole: true, ..none.clone() }),
        ),
        (
            "a program before it",
            vec![("install.sh", ""), ("install-go", "")],
            Some(Contract { run: program("/install-go", "/"), whole: true, ..none.clone() }),
        ),
        ("somebody else's installer", vec![("etc/metal/os-installer.yaml", "only: [a]\n")], Some(none.clone())),
        (
            "a script of its own",
            vec![(
                "etc/metal/os-installer.yaml",
                "custom_script:\n  executable_path: /opt/finish\n  workdir: /opt\noverwrites:\n  bootloader_id: mine\n",
            )],
            Some(Contract { run: program("/opt/finish", "/opt"), whole: false, bootloader_id: Some("mine".into()) }),
        ),
    ] {
        let base = tempfile::tempdir().expect("temporary directory");
        for (path, text) in files {
            let path: PathBuf = base.path().join(path);
            fs::create_dir_all(path.parent().expect("below")).expect("made");
            fs::write(&path, text).expect("written");
            let mode = if text == "not executable" { 0o644 } else { 0o755 };
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("mode");
        }
        assert_eq!(Contract::of(&Root::open(base.path()).expect("opened")).expect("read"), want, "{name}");
    }
}

#[test]
fn boot_info_as_installers_leave_it() {
    for (name, text, want) in [
        ("nothing", "", Err("names no kernel")),
        (
            "a kernel alone",
            "kernel: /vmlinuz\n",
            Ok(BootInfo {
                kernel: "/vmlinuz".into(),
                initrd: None,
                cmdline: String::new(),
                bootloader_id: Some("mine".into()),
            }),
        ),
        ("out of the image", "kernel: /../vmlinuz\n", Err("plain absolute path")),
        ("not a path", "kernel: vmlinuz\n", Err("plain absolute path")),
        ("two lines", "kernel: /v\ncmdline: \"a\\nb\"\n", Err("one line")),
        ("endless", &format!("kernel: /v\ncmdline: {}\n", "x".repeat(2048)), Err("one line")),
    ] {
        match (BootInfo::parse(text, Some("mine")), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
            (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
            (got, want) => panic!("{name}: {got:?}, want {want:?}"),
        }
    }
    assert!(BootInfo::parse("kernel: /v\nbootloader_id: a/b\n", None).is_err(), "a path as an id");
}

#[test]
fn the_files_of_the_contract() {
    let ports = [port()];
    let facts = Facts { root_uuid: "u-1".into(), raid: false, ports: &ports };
    let mut all = String::new();
    for (name, text) in files(&order(), &facts, "pass", "2026-01-02T03:04:05Z") {
        all.push_str(&format!("=== {name}\n{text}"));
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/install/metal/contract.txt");
    if std::env::var_os("DROPHAMMER_WRITE_GOLDEN").is_some() {
        fs::write(golden, &all).expect("written");
    }
    assert_eq!(all, fs::read_to_string(golden).expect("there"), "DROPHAMMER_WRITE_GOLDEN=1 writes it anew");
}
