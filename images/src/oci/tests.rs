use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::process::Command;

use drophammer_protocol::archive::{Archive, Kind};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::debian::Programs;
use crate::scan::Contents;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Clone, Debug)]
enum Item {
    Dir(String, u32),
    File(String, Vec<u8>),
    Link(String, String),
    Hard(String, String),
    Fifo(String),
}

fn dir(path: &str) -> Item {
    Item::Dir(path.into(), 0o755)
}
fn file(path: &str, content: &str) -> Item {
    Item::File(path.into(), content.into())
}
fn link(path: &str, target: &str) -> Item {
    Item::Link(path.into(), target.into())
}
fn hard(path: &str, target: &str) -> Item {
    Item::Hard(path.into(), target.into())
}
fn gone(path: &str) -> Item {
    file(path, "")
}

fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for item in items {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_700_000_000);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match item {
            Item::Dir(path, mode) => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                tar.append_data(&mut header, path, std::io::empty())
            }
            Item::File(path, content) => {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_slice())
            }
            Item::Link(path, target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, target)
            }
            Item::Hard(path, target) => {
                header.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut header, path, target)
            }
            Item::Fifo(path) => {
                header.set_entry_type(tar::EntryType::Fifo);
                tar.append_data(&mut header, path, std::io::empty())
            }
        }
        .expect("written");
    }
    tar.into_inner().expect("a tar")
}

/// A layout in a directory that is being made.
struct Making {
    dir: TempDir,
    index: Vec<Value>,
}

impl Making {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(dir.path().join("blobs/sha256")).expect("made");
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("written");
        Self { dir, index: Vec::new() }
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = digest::Digest::sha256(bytes);
        fs::write(self.dir.path().join(digest.path()), bytes).expect("written");
        json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() })
    }

    fn json(&self, kind: &str, value: &Value) -> Value {
        self.blob(kind, value.to_string().as_bytes())
    }

    /// Descriptor of an image with these layers, compressed in turn with what there is.
    fn image(&self, architecture: &str, layers: &[Vec<u8>], compressions: &[&str]) -> Value {
        let mut descriptors = Vec::new();
        for (tar, compression) in layers.iter().zip(compressions.iter().cycle()) {
            let bytes = match *compression {
                "" => tar.clone(),
                "+gzip" => {
                    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    gzip.write_all(tar).and_then(|()| gzip.finish()).expect("compressed")
                }
                _ => zstd::encode_all(tar.as_slice(), 1).expect("compressed"),
            };
            descriptors.push(self.blob(&format!("{LAYER}{compression}"), &bytes));
        }
        let diff_ids: Vec<String> = layers.iter().map(|tar| digest::Digest::sha256(tar).to_string()).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": self.json(CONFIG, &config), "layers": descriptors,
        });
        self.json(MANIFEST, &manifest)
    }

    fn add(&mut self, mut descriptor: Value, tag: &str) {
        if !tag.is_empty() {
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        }
        self.index.push(descriptor);
    }

    fn done(self) -> TempDir {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": self.index });
        fs::write(self.dir.path().join("index.json"), index.to_string()).expect("written");
        self.dir
    }
}

/// What is at each path: a letter for its kind, its mode, and its content or target; files with several names have the
/// others of them, too.
type Tree = BTreeMap<PathBuf, (char, u32, Vec<u8>, Vec<PathBuf>)>;

fn tree_of(mut tar: impl Read) -> Tree {
    let mut bytes = Vec::new();
    tar.read_to_end(&mut bytes).expect("a stream");
    Contents::read(&bytes[..], |_, _| Ok(())).expect("a tar that can be packed");
    let mut tree = Tree::new();
    let mut groups: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    let mut archive = Archive::new(&bytes[..]);
    while let Some(member) = archive.next_member().expect("a member") {
        let path: PathBuf = member.path.components().filter(|c| c.as_os_str() != ".").collect();
        if path.as_os_str().is_empty() {
            continue;
        }
        let (kind, content) = match member.kind {
            Kind::HardLink { target } => {
                let of = tree[&target].clone();
                groups.entry(target).or_default().push(path.clone());
                tree.insert(path, of);
                continue;
            }
            Kind::Directory => ('d', Vec::new()),
            Kind::SymbolicLink { target } => ('l', target.into_os_string().into_encoded_bytes()),
            Kind::Fifo => ('p', Vec::new()),
            _ => {
                let mut content = Vec::new();
                archive.read_to_end(&mut content).expect("its data");
                ('f', content)
            }
        };
        tree.insert(path, (kind, if kind == 'l' { 0 } else { member.mode }, content, Vec::new()));
    }
    for (first, others) in groups {
        let mut names = [vec![first], others].concat();
        names.sort();
        for name in &names {
            tree.get_mut(name).expect("there").3.clone_from(&names);
        }
    }
    tree
}

/// The same of what somebody else has unpacked.
fn tree_in(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut inodes: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).expect("read") {
            let path = entry.expect("read").path();
            let facts = fs::symlink_metadata(&path).expect("there");
            let kind = facts.file_type();
            let name = path.strip_prefix(root).expect("below").to_owned();
            let (letter, content) = if kind.is_dir() {
                todo.push(path);
                ('d', Vec::new())
            } else if kind.is_symlink() {
                ('l', fs::read_link(&path).expect("read").into_os_string().into_encoded_bytes())
            } else if kind.is_fifo() {
                ('p', Vec::new())
            } else {
                ('f', fs::read(&path).expect("read"))
            };
            if facts.nlink() > 1 && letter != 'd' {
                inodes.entry(facts.ino()).or_default().push(name.clone());
            }
            tree.insert(name, (letter, if letter == 'l' { 0 } else { facts.mode() & 0o7777 }, content, Vec::new()));
        }
    }
    for mut names in inodes.into_values() {
        names.sort();
        for name in &names {
            tree.get_mut(name).expect("there").3.clone_from(&names);
        }
    }
    tree
}

/// Whatever layers do to each other.
fn eventful() -> Vec<Vec<Item>> {
    vec![
        vec![
            dir("etc"),
            file("etc/passwd", "root"),
            file("etc/shadow", "secret"),
            dir("usr"),
            dir("usr/lib"),
            link("lib", "usr/lib"),
            file("usr/lib/a.so", "a"),
            file("usr/lib/b.so", "b"),
            hard("usr/lib/c.so", "usr/lib/b.so"),
            dir("var"),
            dir("var/cache"),
            file("var/cache/x", "x"),
            dir("var/cache/deep"),
            file("var/cache/deep/y", "y"),
            dir("opt"),
            dir("opt/was-a-directory"),
            file("opt/was-a-directory/z", "z"),
            file("opt/was-a-file", "w"),
            Item::Fifo("opt/pipe".into()),
            link("opt/link", "/etc/passwd"),
            file(&format!("opt/{}file", "long/".repeat(30)), "l"),
        ],
        vec![
            // A file, a directory with all that is in it, and a link that isn't followed.
            dir("etc"),
            gone("etc/.wh.shadow"),
            file("etc/passwd", "root and others"),
            dir("var"),
            gone("var/.wh.cache"),
            gone("opt/.wh.link"),
            // The first name of a file that has another.
            gone("usr/lib/.wh.b.so"),
            // Through a link of the layer below.
            file("lib/d.so", "d"),
            hard("usr/lib/e.so", "usr/lib/a.so"),
            file("opt/was-a-directory", "now a file"),
            gone("opt/.wh.was-a-file"),
        ],
        vec![
            Item::Dir("opt".into(), 0o700),
            gone("opt/.wh..wh..opq"),
            file("opt/new", "only this"),
            dir("opt/was-a-file"),
            file("opt/was-a-file/inside", "i"),
            gone("usr/lib/.wh.nothing"),
            gone(".wh..wh.aufs"),
        ],
    ]
}

#[test]
fn layers_are_applied_as_umoci_does() {
    let mut making = Making::new();
    let tars: Vec<Vec<u8>> = eventful().iter().map(|items| tar_of(items)).collect();
    making.add(making.image("amd64", &tars, &["+gzip"]), "it");
    let layout = making.done();

    let umoci = Programs::of(&["umoci"]).expect("umoci's package");
    let bundle = tempfile::tempdir().expect("a directory");
    let root = bundle.path().join("root");
    let mut command = umoci.command("/usr/bin/umoci").expect("is there");
    let image = format!("{}:it", layout.path().display());
    let output = command.args(["raw", "unpack", "--rootless", "--image", &image]).arg(&root).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let ours = tree_of(open(Layout::directory(layout.path()).expect("a layout"), Some("it")).expect("an image"));
    let theirs = tree_in(&root);
    assert_eq!(ours, theirs);
    assert!(ours.contains_key(Path::new("usr/lib/d.so")) && !ours.contains_key(Path::new("etc/shadow")));
}

#[test]
fn from_a_directory_and_a_tar_with_whatever_compression_it_is_the_same() {
    let tars: Vec<Vec<u8>> = eventful().iter().map(|items| tar_of(items)).collect();
    let mut making = Making::new();
    making.add(making.image("amd64", &tars, &["", "+gzip", "+zstd"]), "");
    let layout = making.done();
    let read = |path: &Path| {
        let mut bytes = Vec::new();
        let mut tar = crate::input::open(path, None, || Ok(tempfile::tempfile()?)).expect("opened");
        tar.read_to_end(&mut bytes).expect("read");
        bytes
    };
    let want = read(layout.path());
    let plain = layout.path().join("layout.tar");
    let files = ["blobs", "index.json", "oci-layout"];
    let made = Command::new("tar").arg("-cf").arg(&plain).arg("-C").arg(layout.path()).args(files).status();
    assert!(made.expect("tar runs").success());
    assert!(read(&plain) == want);
    let packed = layout.path().join("layout.tar.zst");
    zstd::stream::copy_encode(File::open(&plain).expect("open"), File::create(&packed).expect("made"), 1)
        .expect("zstd");
    assert!(read(&packed) == want);
}

#[test]
fn the_image_that_is_meant() {
    let layer = |name: &str| vec![tar_of(&[file(name, name)])];
    let mut making = Making::new();
    let (one, two) = (making.image("amd64", &layer("one"), &[""]), making.image("amd64", &layer("two"), &[""]));
    let arm = making.image("arm64", &layer("arm"), &[""]);
    making.add(one.clone(), "1.0");
    making.add(two.clone(), "registry.example/os:2.0");
    making.add(arm.clone(), "arm");
    let with = |platform: Value, descriptor: &Value| {
        let mut descriptor = descriptor.clone();
        descriptor["platform"] = platform;
        descriptor
    };
    let nested = json!({ "schemaVersion": 2, "manifests": [
        with(json!({ "os": "linux", "architecture": "arm64" }), &arm),
        with(json!({ "os": "unknown", "architecture": "unknown" }), &two),
        with(json!({ "os": "linux", "architecture": "amd64" }), &one),
    ]});
    let nested = making.json(INDEX, &nested);
    making.add(nested, "several");
    let layout = making.done();
    for (tag, want) in [
        (Some("1.0"), Ok("one")),
        (Some("2.0"), Ok("two")),
        (Some("registry.example/os:2.0"), Ok("two")),
        (Some("several"), Ok("one")),
        (Some("arm"), Err("it has no image for linux/amd64, but linux/arm64")),
        (Some("3"), Err("no image in it is called \"3\"; there are 1.0, registry.example/os:2.0, arm, several")),
        (
            None,
            Err("it has 2 images for linux/amd64, and which is meant isn't known: say it with --tag; there are 1.0, \
                    registry.example/os:2.0, arm, several"),
        ),
    ] {
        let got = Layout::directory(layout.path()).and_then(|layout| open(layout, tag));
        match (got, want) {
            (Ok(got), Ok(want)) => {
                assert_eq!(tree_of(got).into_keys().collect::<Vec<_>>(), [PathBuf::from(want)], "{tag:?}")
            }
            (got, want) => {
                assert_eq!(got.map(|_| ()).map_err(|e| format!("{e:#}")), want.map(|_| ()).map_err(str::to_owned))
            }
        }
    }
}

#[test]
fn what_isnt_as_it_was_hashed_is_refused() {
    let tars = vec![tar_of(&[file("a", "a")]), tar_of(&[file("b", &"b".repeat(4000))])];
    let made = || {
        let mut making = Making::new();
        making.add(making.image("amd64", &tars, &["+gzip"]), "");
        making.done()
    };
    let blob = |dir: &TempDir, with: &str| {
        fs::read_dir(dir.path().join("blobs/sha256"))
            .expect("read")
            .map(|entry| entry.expect("read").path())
            .find(|path| String::from_utf8_lossy(&fs::read(path).expect("read")).contains(with))
            .expect("there is one")
    };
    let said = |dir: &TempDir| {
        let open = Layout::directory(dir.path()).and_then(|layout| open(layout, None));
        open.err().map(|e| format!("{e:#}")).unwrap_or_default()
    };
    assert_eq!(said(&made()), "");

    let dir = made();
    let path = blob(&dir, "\"layers\":");
    let text = fs::read_to_string(&path).expect("read").replace("schemaVersion\":2", "schemaVersion\":3");
    fs::write(&path, text).expect("written");
    assert!(said(&dir).contains("the blob is damaged: it hashes to"), "{}", said(&dir));

    let dir = made();
    fs::write(blob(&dir, "\u{1f}"), b"shorter").expect("written");
    assert!(said(&dir).contains(" has 7 bytes instead of "), "{}", said(&dir));

    let dir = made();
    fs::remove_file(blob(&dir, "rootfs")).expect("removed");
    assert!(said(&dir).contains("No such file"), "{}", said(&dir));

    // Rightly hashed as it is stored, and not what the config says it unpacks to.
    let mut making = Making::new();
    let layer = making.blob(LAYER, &tars[0]);
    let other = digest::Digest::sha256(&tars[1]).to_string();
    let config = json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [other] } });
    let manifest = json!({ "config": making.json(CONFIG, &config), "layers": [layer] });
    making.add(making.json(MANIFEST, &manifest), "");
    let dir = making.done();
    assert!(said(&dir).contains("the layer, unpacked, is damaged"), "{}", said(&dir));

    let none = tempfile::tempdir().expect("a directory");
    let no_layout = open_directory(none.path()).expect_err("nothing there").to_string();
    assert!(no_layout.contains("isn't an OCI image layout"), "{no_layout}");
}

#[test]
fn layers_that_cant_be() {
    for (name, items, want) in [
        ("a way out", vec![file("a/../../b", "")], "leads out of the image"),
        ("a whiteout of the directory above", vec![gone("a/.wh...")], "is a whiteout of nothing that has a name"),
        ("behind a file", vec![file("a", ""), file("a/b", "")], "lies behind \"a\""),
        ("a loop", vec![link("a", "b"), link("b", "a"), file("a/c", "")], "more than 40 symbolic links"),
        ("a link to nothing", vec![hard("a", "b")], "isn't a file that is there by then"),
        ("a link to a directory", vec![dir("b"), hard("a", "b")], "isn't a file that is there by then"),
    ] {
        let mut tar = tar::Builder::new(Vec::new());
        // The tar crate refuses to write the first.
        let bytes = if name == "a way out" {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..9].copy_from_slice(b"a/../../b");
            header.set_size(0);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_cksum();
            tar.append(&header, std::io::empty()).expect("written");
            tar.into_inner().expect("a tar")
        } else {
            tar_of(&items)
        };
        let said = merged(vec![bytes]).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said.contains(want), "{name}: {said}");
    }
    // Links lead nowhere but inside.
    let outside = merged(vec![tar_of(&[link("a", "../../../etc"), file("a/b", "")])]).expect("fine");
    assert_eq!(tree_of(outside).into_keys().collect::<Vec<_>>(), [Path::new("a"), Path::new("etc/b")]);
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let path = || "[ab](/[ab]){0,2}";
    let item = prop_oneof![
        path().prop_map(|path| dir(&path)),
        (path(), "[xyz]{0,3}").prop_map(|(path, content)| file(&path, &content)),
        (path(), path()).prop_map(|(path, target)| hard(&path, &target)),
        (path(), path()).prop_map(|(path, target)| link(&path, &format!("/{target}"))),
        "([ab]/){0,2}[.]wh[.][ab]".prop_map(|path| gone(&path)),
        "([ab]/){0,2}[.]wh[.][.]wh[.][.]opq".prop_map(|path| gone(&path)),
    ];
    proptest::collection::vec(item, 0..6)
}

proptest! {
    /// Whatever layers hold: if they can be applied, what comes of it is a tar that can be packed, and its files have
    /// content of a member of that name or of one that they're linked to.
    #[test]
    fn what_can_be_applied_can_be_packed(layers in proptest::collection::vec(items(), 1..4)) {
        if let Ok(merged) = merged(layers.iter().map(|items| tar_of(items)).collect()) {
            let tree = tree_of(merged);
            for (path, (_, _, content, _)) in tree.iter().filter(|(_, (kind, ..))| *kind == 'f') {
                prop_assert!(!path.to_string_lossy().contains(".wh."), "{path:?}");
                let known = layers.iter().flatten().any(|item| matches!(item, Item::File(_, there) if there == content));
                prop_assert!(known, "{path:?}");
            }
        }
    }

    /// One directory, no links: the simplest meaning there is, applied by hand.
    #[test]
    fn names_come_and_go(layers in proptest::collection::vec(proptest::collection::vec(("[abc]", 0u8..3), 0..4), 1..5)) {
        let mut want: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        let mut tars = Vec::new();
        for (index, layer) in layers.iter().enumerate() {
            let layer: BTreeMap<&String, &u8> = layer.iter().map(|(name, what)| (name, what)).collect();
            let mut list = Vec::new();
            for (name, what) in &layer {
                let content = format!("{name} of {index}");
                match what {
                    0 => list.push(file(name, &content)),
                    1 => list.push(gone(&format!(".wh.{name}"))),
                    _ => list.push(gone(".wh..wh..opq")),
                }
            }
            if layer.values().any(|what| **what > 1) {
                want.clear();
            }
            for (name, what) in layer {
                match what {
                    0 => { want.insert(name.into(), format!("{name} of {index}").into_bytes()); }
                    1 => { want.remove(Path::new(name)); }
                    _ => {}
                }
            }
            tars.push(tar_of(&list));
        }
        let got: BTreeMap<PathBuf, Vec<u8>> =
            tree_of(merged(tars).expect("nothing is wrong")).into_iter().map(|(path, (_, _, content, _))| (path, content)).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn any_bytes_are_no_layer_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = merged(vec![bytes]);
    }

    #[test]
    fn any_json_is_a_document_or_none(text in r#"\{("(manifests|layers|config|rootfs|digest|size|diff_ids)":(\[|\{|"sha256:[0-9a-f]{62,66}"|[0-9-]{1,20}|null)[,}\]]{0,2}){0,6}"#) {
        let _ = (Index::parse(text.as_bytes()), Manifest::parse(text.as_bytes()), Config::parse(text.as_bytes()));
    }
}
