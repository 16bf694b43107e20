//! What a person at a shell meets: help, exit codes, sentences, JSON.

use std::fs;
use std::io::Read;
use std::process::{Command, Output};

use drophammer_protocol::certificate::Link;
use drophammer_protocol::chain::CertificateChain;
use drophammer_protocol::fixtures;
use drophammer_protocol::id::{BootId, MachineId, OrderId};
use drophammer_protocol::inventory::DiskId;
use drophammer_protocol::sign::{PublicKey, Signed};
use ed25519_dalek::SigningKey;
use uuid::Uuid;

fn drophammer(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_drophammer")).args(args).output().expect("started")
}

#[test]
fn every_command_explains_itself() {
    for command in [
        vec![],
        vec!["serve"],
        vec!["machine"],
        vec!["machine", "list"],
        vec!["machine", "show"],
        vec!["machine", "events"],
        vec!["machine", "allocate"],
        vec!["machine", "release"],
        vec!["machine", "reprovision"],
        vec!["machine", "certificate"],
        vec!["machine", "size"],
        vec!["machine", "label"],
        vec!["machine", "note"],
        vec!["machine", "lock"],
        vec!["machine", "unlock"],
        vec!["apply"],
        vec!["get"],
        vec!["delete"],
        vec!["capacity"],
        vec!["audit"],
        vec!["token"],
        vec!["token", "make"],
        vec!["token", "list"],
        vec!["token", "revoke"],
        vec!["profile"],
        vec!["profile", "list"],
        vec!["profile", "set"],
        vec!["profile", "use"],
        vec!["profile", "remove"],
        vec!["completion"],
        vec!["certificate"],
        vec!["certificate", "verify"],
        vec!["certificate", "key"],
        vec!["drive"],
        vec!["drive", "psid"],
        vec!["drive", "psids"],
        vec!["drive", "forget-psid"],
        vec!["image"],
        vec!["image", "build"],
        vec!["image", "keygen"],
        vec!["image", "pack"],
        vec!["image", "verify"],
        vec!["image", "inspect"],
        vec!["image", "publish"],
        vec!["image", "mirror"],
        vec!["image", "sign"],
        vec!["image", "revoke"],
        vec!["image", "diff"],
        vec!["image", "gc"],
        vec!["image", "list"],
        vec!["initramfs", "build"],
        vec!["lab"],
        vec!["lab", "up"],
        vec!["lab", "down"],
        vec!["lab", "status"],
        vec!["lab", "console"],
        vec!["lab", "ssh"],
        vec!["lab", "demo"],
        vec!["lab", "verify"],
        vec!["lab", "fuzz"],
    ] {
        let output = drophammer(&[command.as_slice(), &["--help"]].concat());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command:?}");
        assert!(text.contains("Usage:"), "{command:?}: {text}");
        // An option without a word of help, on its line or the next, is a blank to whoever reads it.
        let lines: Vec<&str> = text.lines().chain([""]).collect();
        for pair in lines.windows(2) {
            // "- bios: SeaBIOS" is a value, which has its words behind the colon.
            let option = pair[0].trim_start().starts_with('-') && !pair[0].trim_start().starts_with("- ");
            let explained = pair[0].trim_start().contains("  ") || !pair[1].trim().is_empty();
            assert!(!option || explained, "{command:?}: {:?} says nothing", pair[0]);
        }
    }
}

#[test]
fn exit_codes_and_sentences() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(dir.path().join("bad.toml"), "state_dir = 1\n").expect("written");
    fs::write(dir.path().join("typo.toml"), "statedir = \"/x\"\n").expect("written");
    fs::write(dir.path().join("not.pub"), "hello").expect("written");
    let nowhere = format!("unix:{}", path("nobody.sock"));
    for (name, args, code, words) in [
        ("no such command", vec!["fly"], 2, "fly"),
        ("no server there", vec!["machine", "--server", &nowhere, "list"], 1, "nobody.sock"),
        ("a server that is no URL", vec!["machine", "--server", "ftp://x", "list"], 1, "ftp://x"),
        ("no configuration", vec!["serve", "--config", &path("none.toml")], 1, "none.toml"),
        ("a wrong type", vec!["serve", "--check", "--config", &path("bad.toml")], 1, "state_dir"),
        ("an unknown key", vec!["serve", "--check", "--config", &path("typo.toml")], 1, "statedir"),
        ("no such recipe", vec!["image", "build", "windows"], 1, "windows"),
        ("not a key", vec!["image", "verify", ".", "--trust", &path("not.pub")], 1, "not.pub"),
        (
            "nowhere to publish",
            vec!["image", "publish", "/nonexistent/a/1", "--to", "ftp://x"],
            1,
            "isn't among s3, http and https",
        ),
        ("no store", vec!["image", "gc", &path("none")], 1, "none/packs"),
        ("not an image", vec!["image", "list", "--store", &path("none"), "--trust", &path("none.pub")], 1, "none.pub"),
    ] {
        let output = drophammer(&args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
        assert!(!said.contains("panicked"), "{name}: {said}");
        assert!(output.stdout.is_empty(), "{name}: an error isn't a result");
    }
}

#[test]
fn keys_are_made_once_and_kept_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let key = dir.path().join("images");
    let file = key.display().to_string();
    assert!(drophammer(&["image", "keygen", &file]).status.success());
    assert_eq!(fs::metadata(&key).expect("a key").permissions().mode() & 0o777, 0o600);
    let before = fs::read(&key).expect("read");
    let again = drophammer(&["image", "keygen", &file]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(fs::read(&key).expect("read"), before, "never overwritten");
    let json = drophammer(&[
        "image",
        "--json",
        "list",
        "--store",
        &dir.path().display().to_string(),
        "--trust",
        &format!("{file}.pub"),
    ]);
    assert_eq!(String::from_utf8_lossy(&json.stdout).trim(), "[]");
}

/// The life of an image, from one store to another.
#[test]
fn images_are_published_mirrored_and_taken_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("boot/grub/x86_64-efi")).expect("made");
    fs::write(root.join("boot/grub/x86_64-efi/grubx64.efi"), "loader").expect("written");
    fs::create_dir_all(root.join("var/lib/dpkg")).expect("made");
    fs::write(root.join("boot/vmlinuz-6.1"), "kernel").expect("written");
    let mut noise = vec![0; 1 << 20];
    fs::File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut noise)).expect("noise");
    fs::write(root.join("noise"), noise).expect("written");
    let status = |version: &str| format!("Package: sshd\nStatus: install ok installed\nVersion: {version}\n\n");
    let run = |args: &[&str]| {
        let output = drophammer(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned(), said)
    };
    let ok = |args: &[&str]| {
        let (done, text, said) = run(args);
        assert!(done, "{args:?}: {said}");
        text
    };
    // As on a disk that is full after so many blocks.
    let full = |args: &[&str]| {
        let program = ["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_drophammer")];
        let output = Command::new("sh").args(program).args(args).output().expect("a shell");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("File too large"), "{args:?}: {said}");
    };
    let (key, public, new, new_public) = (path("key"), path("key.pub"), path("new"), path("new.pub"));
    ok(&["image", "keygen", &key]);
    ok(&["image", "keygen", &new]);
    let (store, served, mirrored) = (path("store"), path("served"), path("mirrored"));
    for version in ["1", "2"] {
        fs::write(root.join("var/lib/dpkg/status"), status(version)).expect("written");
        let tar = Command::new("tar").arg("-C").arg(&root).args(["-cf", &path("tar"), "."]).status().expect("tar");
        assert!(tar.success());
        let named = ["--name", "a", "--version", version, "--store", &store, "--key", &key];
        ok(&[&["image", "pack", &path("tar")], named.as_slice()].concat());
        let image = format!("{store}/a/{version}");
        let publish = ["image", "publish", &image, "--to", &served, "--trust", &public];
        if version == "1" {
            full(&publish);
            assert!(!dir.path().join("served/a").exists(), "nobody sees anything");
        }
        assert!(ok(&publish).contains("published in"));
    }
    assert!(ok(&["image", "publish", &format!("{store}/a/1"), "--to", &served]).contains("was there already"));
    let differ = ok(&["image", "diff", &format!("{served}/a/1"), &format!("{served}/a/2"), "--trust", &public]);
    assert!(differ.contains("sshd:all: 1 → 2"), "{differ}");

    let mirror = ["image", "mirror", "--from", &served, "--to", &mirrored, "--trust", &public];
    full(&[mirror.as_slice(), &["a"]].concat());
    assert!(!dir.path().join("mirrored/a").exists(), "nobody sees anything");
    assert!(ok(&[mirror.as_slice(), &["a"]].concat()).starts_with("a/2 published in"));
    ok(&["image", "verify", &format!("{mirrored}/a/2"), "--trust", &public]);
    ok(&["image", "sign", &format!("{mirrored}/a/2"), "--key", &new, "--trust", &public]);
    ok(&["image", "verify", &format!("{mirrored}/a/2"), "--trust", &new_public]);

    ok(&["image", "revoke", &format!("{served}/a/2"), "--key", &key, "--reason", "a hole"]);
    for (name, args, words) in [
        ("verify", vec!["image", "verify", &format!("{served}/a/2"), "--trust", &public], "a/2 is revoked: a hole"),
        ("list", vec!["image", "list", "--store", &served, "--trust", &public], "a/2: revoked: a hole"),
        ("mirror", [mirror.as_slice(), &["a/2"]].concat(), "a/2 is revoked: a hole"),
    ] {
        let (done, _, said) = run(&args);
        assert!(!done && said.contains(words), "{name}: {said}");
    }
    let shown = ok(&["image", "inspect", &format!("{served}/a/2"), "--trust", &public]);
    assert!(shown.contains("REVOKED") && shown.contains("a hole"), "{shown}");
    let json = ok(&["image", "--json", "inspect", &format!("{served}/a/2"), "--trust", &public]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json["version"], &json["revoked"]["reason"]), (&"2".into(), &"a hole".into()));

    fs::remove_dir_all(dir.path().join("served/a/2")).expect("removed");
    assert!(ok(&["image", "gc", &served, "--dry-run"]).contains("would be removed"));
    assert!(ok(&["image", "gc", &served]).contains("no image refers to it"));
    assert!(ok(&["image", "gc", &served]).starts_with("0 files"));
    ok(&["image", "verify", &format!("{served}/a/1"), "--trust", &public]);
}

/// What an agent prints that erased a drive by hand, and the key that it told.
fn certificates() -> (CertificateChain, PublicKey) {
    let key = SigningKey::from_bytes(&[7; 32]);
    let (machine, boot, order) = (MachineId(Uuid::nil()), BootId(Uuid::nil()), OrderId(Uuid::nil()));
    let mut link = Link::FIRST;
    let signed = ["A", "B"].map(|serial| {
        let disk = DiskId::new(serial, 1 << 30);
        let signed = Signed::seal(&fixtures::certificate(machine, boot, order, link.clone(), &disk), &key);
        link = link.after(&signed);
        signed
    });
    (CertificateChain::without_server(signed.into()), PublicKey::of(&key))
}

#[test]
fn certificates_are_verified_offline() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (chain, key) = certificates();
    let (key, other) = (key.to_string(), PublicKey::of(&SigningKey::from_bytes(&[8; 32])).to_string());
    let text = serde_json::to_string_pretty(&chain).expect("written");
    fs::write(path("good"), &text).expect("written");
    fs::write(path("key"), format!("{key}\n")).expect("written");
    fs::write(path("cut"), &text[..text.len() / 2]).expect("written");
    fs::write(path("changed"), text.replacen("6905", "6906", 1)).expect("written");
    fs::write(path("strange"), "[1, 2]").expect("written");
    let mut hole = chain.clone();
    hole.certificates.remove(0);
    fs::write(path("hole"), serde_json::to_string(&hole).expect("written")).expect("written");
    let (good, key_file) = (path("good"), path("key"));
    for (name, args, code, words) in [
        ("whole, with its key", vec![&good, "--key", &key], 0, "signed by the agent with the trusted key"),
        ("whole, with its key in a file", vec![&good, "--key", &key_file], 0, "valid: 2 certificates of 2 drives"),
        ("whole, without", vec![&good], 0, "not known: who made them"),
        ("as JSON", vec![&good, "--json"], 0, "\"valid\": true"),
        ("as a page", vec![&good, "--html"], 0, "<!DOCTYPE html>"),
        ("another key", vec![&good, "--key", &other], 1, "none of the trusted keys"),
        ("no key", vec![&good, "--key", "hello"], 1, "neither 64 hex digits nor a file"),
        ("cut", vec![&path("cut")], 1, "no chain of certificates, or not all of one"),
        ("something else", vec![&path("strange")], 1, "no chain of certificates, or not all of one"),
        ("nothing", vec![&path("none")], 1, "reading the certificates in"),
        ("a changed byte", vec![&path("changed")], 1, "certificate 1 isn't believed: the signature doesn't match"),
        ("a changed byte, as JSON", vec![&path("changed"), "--json"], 1, "\"valid\": false"),
        ("a hole", vec![&path("hole")], 1, "certificate 1 is missing"),
    ] {
        let args: Vec<&str> = ["certificate", "verify"].into_iter().chain(args.iter().map(|arg| &**arg)).collect();
        let output = drophammer(&args);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(code), "{name}: {said}");
        assert!(said.contains(words), "{name}: {said}");
    }
    let from_stdin = Command::new(env!("CARGO_BIN_EXE_drophammer"))
        .args(["certificate", "verify", "-", "--key", &key])
        .stdin(fs::File::open(&good).expect("opened"))
        .output()
        .expect("started");
    assert!(from_stdin.status.success(), "{from_stdin:?}");
}
