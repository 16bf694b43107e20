use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use drophammer_protocol::manifest::Manifest;
use proptest::prelude::*;

use super::*;
use crate::chunks::tests::noise;
use crate::{grub, verify};

/// A root file system as metal-stack's are made: no GRUB of ours, but Debian's program for UEFI.
fn root() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [
        ("boot/System.map-6.1", b"map".to_vec()),
        ("boot/vmlinuz-6.1", b"kernel".to_vec()),
        ("boot/initrd.img-6.1", b"initrd".to_vec()),
        (grub::MONOLITHIC_EFI, b"efi".to_vec()),
        ("etc/os-release", b"PRETTY_NAME=\"Debian of metal-stack\"\n".to_vec()),
        ("usr/big", noise(3 << 20, 1)),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        tar.append_data(&mut header, name, content.as_slice()).expect("written");
    }
    tar.into_inner().expect("a tar")
}

fn lz4(tar: &[u8]) -> Vec<u8> {
    let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
    lz4.write_all(tar).expect("compressed");
    lz4.finish().expect("compressed")
}

fn md5(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A web server as one meets them: with ranges and entity tags, and a line that breaks.
#[derive(Clone, Default)]
struct Web {
    files: HashMap<String, (Vec<u8>, &'static str)>,
    /// Answers end after so many bytes of their body.
    breaks_after: Option<usize>,
    /// Paths that were asked for, and from where on.
    asked: Arc<Mutex<Vec<(String, u64)>>>,
}

impl Web {
    fn with(mut self, path: &str, body: impl Into<Vec<u8>>, tag: &'static str) -> Self {
        self.files.insert(path.to_owned(), (body.into(), tag));
        self
    }

    /// Serves until the process ends.
    fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.expect("connects"));
                let mut line = String::new();
                let mut headers = HashMap::new();
                stream.read_line(&mut line).expect("asks");
                loop {
                    let mut header = String::new();
                    if stream.read_line(&mut header).expect("asks") <= 2 {
                        break;
                    }
                    let (name, value) = header.split_once(':').expect("a header");
                    headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
                }
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                let Some((body, tag)) = self.files.get(&path) else {
                    self.asked.lock().expect("works").push((path, 0));
                    let _ = stream
                        .get_mut()
                        .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    continue;
                };
                let from = headers
                    .get("range")
                    .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
                let from: u64 = from.filter(|_| headers.get("if-range").is_none_or(|known| known == tag)).unwrap_or(0);
                self.asked.lock().expect("works").push((path, from));
                let rest = &body[usize::try_from(from).expect("small")..];
                let status = match from {
                    0 => "200 OK".to_owned(),
                    _ => {
                        format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{}", body.len() - 1, body.len())
                    }
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\netag: {tag}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    rest.len()
                );
                let sent = rest.len().min(self.breaks_after.unwrap_or(usize::MAX));
                let _ = stream.get_mut().write_all(head.as_bytes());
                let _ = stream.get_mut().write_all(&rest[..sent]);
            }
        });
        url
    }
}

struct Here {
    dir: tempfile::TempDir,
}

impl Here {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn import(&self, from: &str, version: Option<&str>, hash: Hash) -> Result<Packed> {
        let import = Import::new(from, None, version, hash)?;
        let key = SigningKey::from_bytes(&[1; 32]);
        let options = PackOptions::new(&import.name, &import.version, "");
        run(&import, &self.dir.path().join("store"), &options, &key, &self.dir.path().join("downloads"), &|_| {})
    }
}

fn checked(manifest: &Manifest) -> Option<Checked> {
    manifest.source.as_ref().map(|source| source.checked)
}

const PATH: &str = "/metal-os/20250101/debian/12.1/img.tar.lz4";

#[test]
fn a_metal_stack_image_over_a_line_that_breaks() {
    let image = lz4(&root());
    let web = Web { breaks_after: Some(1_000_000), ..Web::default() };
    let asked = Arc::clone(&web.asked);
    let web = web.with(PATH, image.clone(), "\"a\"").with(
        &format!("{PATH}.md5"),
        format!("{}  img.tar.lz4\n", md5(&image)),
        "\"b\"",
    );
    let url = web.serve();
    let here = Here::new();
    let packed = here.import(&format!("{url}{PATH}"), None, Hash::Beside).expect("imported");
    assert_eq!(packed.manifest.reference(), "debian-12/1.20250101");
    assert_eq!(packed.manifest.description, "Debian of metal-stack");
    assert_eq!(
        packed.manifest.boot.uefi.as_ref().map(|file| file.path.as_str()),
        Some("/usr/lib/grub/x86_64-efi/monolithic/grubx64.efi")
    );
    let source = Source { url: format!("{url}{PATH}"), checked: Checked::Md5, digest: md5(&image) };
    assert_eq!(packed.manifest.source, Some(source.clone()));
    assert!(source.words().contains("weakly checked"), "{}", source.words());
    verify(&packed.dir, &[PublicKey::of(&SigningKey::from_bytes(&[1; 32]))]).expect("as it was signed");

    let parts: Vec<u64> =
        asked.lock().expect("works").drain(..).filter(|(path, _)| path == PATH).map(|(_, from)| from).collect();
    assert_eq!(parts, [0, 1_000_000, 2_000_000, 3_000_000], "each part was fetched once");
    let left: Vec<_> =
        fs::read_dir(here.dir.path().join("downloads")).expect("read").map(|e| e.expect("read").path()).collect();
    assert!(left.iter().all(|path| fs::metadata(path).is_ok_and(|file| file.len() < 100)), "{left:?}");

    let again = here.import(&format!("{url}{PATH}"), None, Hash::Beside).expect("imported");
    assert!(again.existed && again.manifest == packed.manifest);
    let paths: Vec<String> = asked.lock().expect("works").iter().map(|(path, _)| path.clone()).collect();
    assert_eq!(paths, [format!("{PATH}.sha256"), format!("{PATH}.md5")], "the image itself wasn't asked for");
}

#[test]
fn what_changed_in_between_isnt_put_together() {
    let (old, new) = (noise(2 << 20, 7), lz4(&root()));
    let here = Here::new();
    let hash = Hash::Sha256(sha256(&new));
    // The same address, a server that stops for good after a part of another file.
    let broken = Web { breaks_after: Some(1 << 20), ..Web::default() }.with(PATH, old, "\"old\"");
    let listener = broken.serve();
    let place = here.dir.path().join("downloads");
    let url: Url = format!("{listener}{PATH}").parse().expect("a URL");
    let file = place.join(hex::encode(Sha256::digest(url.as_str())));
    fs::create_dir_all(&place).expect("made");
    fs::write(file.with_extension("part"), noise(1 << 20, 7)).expect("written");
    fs::write(file.with_extension("version"), "\"old\"").expect("written");
    let web = Web::default().with(PATH, new, "\"new\"");
    let asked = Arc::clone(&web.asked);
    let other: Url = format!("{}{PATH}", web.serve()).parse().expect("a URL");
    let moved = place.join(hex::encode(Sha256::digest(other.as_str())));
    for extension in ["part", "version"] {
        fs::rename(file.with_extension(extension), moved.with_extension(extension)).expect("moved");
    }
    let packed = here.import(other.as_str(), Some("1"), hash).expect("imported");
    assert_eq!(checked(&packed.manifest), Some(Checked::Sha256));
    assert_eq!(*asked.lock().expect("works"), [(PATH.to_owned(), 0)], "from the start");
}

#[test]
fn what_isnt_what_it_should_be_is_refused_and_forgotten() {
    let image = lz4(&root());
    let wrong = format!("{}  img.tar.lz4\n", md5(b"something else"));
    let none = "/none/img.tar.lz4";
    let url = Web::default()
        .with(PATH, image.clone(), "\"a\"")
        .with(&format!("{PATH}.md5"), wrong, "\"b\"")
        .with(none, image.clone(), "\"a\"")
        .serve();
    let here = Here::new();
    let said = |result: Result<Packed>| result.err().map(|e| format!("{e:#}")).unwrap_or_default();
    let error = said(here.import(&format!("{url}{PATH}"), None, Hash::Beside));
    assert!(error.contains("it isn't what its publisher says: it hashes to"), "{error}");
    assert!(!here.dir.path().join("store/debian-12/1.20250101").exists());
    let error = said(here.import(&format!("{url}{none}"), Some("1"), Hash::Beside));
    assert!(error.contains("doesn't say which image it is"), "{error}");
    let import = |hash| Import::new(&format!("{url}{none}"), Some("debian"), Some("1"), hash).expect("makes sense");
    let key = SigningKey::from_bytes(&[1; 32]);
    let (store, downloads) = (here.dir.path().join("store"), here.dir.path().join("downloads"));
    let options = PackOptions::new("debian", "1", "");
    let error = said(run(&import(Hash::Beside), &store, &options, &key, &downloads, &|_| {}));
    assert!(error.contains("nothing says what it should hash to"), "{error}");
    let packed = run(&import(Hash::None), &store, &options, &key, &downloads, &|_| {}).expect("taken as it comes");
    assert_eq!(checked(&packed.manifest), Some(Checked::Nothing));

    // Another one in the place of one that is there is refused before it's fetched.
    let error = said(run(&import(Hash::Sha256("0".repeat(64))), &store, &options, &key, &downloads, &|_| {}));
    assert!(error.contains("debian/1 is published already and isn't what is at"), "{error}");
}

#[test]
fn a_file_with_its_hash_beside_it() {
    let here = Here::new();
    let path = here.dir.path().join("20250203/ubuntu/24.04");
    fs::create_dir_all(&path).expect("made");
    let image = path.join("img.tar.lz4");
    fs::write(&image, lz4(&root())).expect("written");
    let text = format!("{} *img.tar.lz4\n", sha256(&fs::read(&image).expect("read")));
    fs::write(path.join("img.tar.lz4.sha256"), text).expect("written");
    let packed = here.import(image.to_str().expect("UTF-8"), None, Hash::Beside).expect("imported");
    assert_eq!(packed.manifest.reference(), "ubuntu-24/04.20250203");
    assert_eq!(checked(&packed.manifest), Some(Checked::Sha256));
    assert!(image.exists(), "what is somebody's own file stays");
}

#[test]
fn what_an_image_is_called() {
    let some = |name: &str, version: Option<&str>| (Some(name.to_owned()), version.map(str::to_owned));
    for (path, want) in [
        ("/metal-os/20250101/debian/12/img.tar.lz4", some("debian-12", Some("20250101"))),
        ("/metal-os/20250101/ubuntu/24.04/img.tar.lz4", some("ubuntu-24", Some("04.20250101"))),
        ("/metal-os/stable/firewall/3.0-ubuntu/img.tar.lz4", some("firewall-3", None)),
        ("/metal-os/pull_requests/7-x/debian/12/img.tar.lz4", some("debian-12", None)),
        ("/images/debian.tar.zst", (None, None)),
        ("img.tar.lz4", (None, None)),
        (
            "/20250101/../12/img.tar.lz4",
            (Some("..-12".into()).filter(|name: &String| is_plain_name(name)), Some("20250101".into())),
        ),
    ] {
        assert_eq!(called(path), want, "{path}");
    }
}

#[test]
fn a_secret_in_an_address_stays_there() {
    let shown = Origin::parse("https://user:secret@host.example/a/img.tar.lz4?token=secret#x").expect("a URL").shown();
    assert_eq!(shown, "https://host.example/a/img.tar.lz4");
    assert!(Origin::parse("ftp://host.example/a").is_err());
}

#[test]
fn files_of_hashes() {
    let (a, b) = ("a".repeat(32), "b".repeat(32));
    for (name, text, want) in [
        ("md5sum's", format!("{a}  img.tar.lz4\n"), Some(&a)),
        ("alone", format!("{a}\n"), Some(&a)),
        ("of another name, but the only one", format!("{a}  built.tar.lz4"), Some(&a)),
        ("one of several", format!("{b}  other\n{a} *./img.tar.lz4\n"), Some(&a)),
        ("none of several", format!("{b}  other\n{a}  more\n"), None),
        ("capitals", format!("{}  img.tar.lz4", a.to_uppercase()), Some(&a)),
        ("too short", "abc".into(), None),
        ("a page that says something else", "<html>".into(), None),
        ("nothing", String::new(), None),
    ] {
        assert_eq!(hash_in(&text, "img.tar.lz4", 32).as_ref(), want, "{name}");
    }
}

proptest! {
    #[test]
    fn any_text_is_no_hash_and_no_name_without_panic(text in "(?s).{0,200}") {
        let _ = hash_in(&text, "x", 32);
        let (name, version) = called(&text);
        prop_assert!(name.iter().chain(&version).all(|part| is_plain_name(part)));
    }
}
