//! Reading a tar of a root file system: what is in it, whether every machine would unpack it the same way, and which of
//! its files start a machine.

use std::collections::BTreeMap;
use std::io::Read;

use drophammer_protocol::manifest::{BiosBoot, BootFiles, ImageFile};
use drophammer_protocol::os_release::pretty_name;
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::grub;

/// Larger os-release files aren't believed.
const MAX_OS_RELEASE: u64 = 64 << 10;
/// Machines don't read more.
const MAX_GLOBAL: u64 = 1 << 20;
/// Linux gives up after as many symbolic links.
const MAX_LINKS: usize = 40;
/// What the file systems that we install allocate at least for a file or directory.
const BLOCK: u64 = 4096;

/// Why a tar can't be an image.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error("reading the tar after {after:?}")]
    Read { after: String, source: std::io::Error },
    #[error("the tar has no end mark: it was cut short")]
    NoEnd,
    #[error("the tar goes on after its end mark; only its first part would be unpacked")]
    Trailing,
    #[error("{0:?} in the tar isn't a path inside the image")]
    Name(String),
    #[error("{path:?} in the tar lies behind {behind:?}, which isn't a directory")]
    Behind { path: String, behind: String },
    #[error("{path:?} in the tar is a hard link to {target:?}, which isn't a file before it in the tar")]
    HardLink { path: String, target: String },
    #[error("{path:?} in the tar is of a kind ({kind}) that can't be unpacked")]
    Kind { path: String, kind: String },
    #[error("{0:?} in the tar is stored sparse, which machines don't unpack: make the tar without --sparse")]
    Sparse(String),
    #[error("{0:?} in the tar has an ACL as text: make the tar with --xattrs-include='*' instead of --acls")]
    TextAcl(String),
    #[error("{path:?} in the tar {what}")]
    Field { path: String, what: &'static str },
    #[error("the tar has a global header other than a comment, which would change how machines read it")]
    Global,
    #[error("there is no kernel: no file's name in /boot begins with vmlinuz")]
    NoKernel,
    #[error("there are several kernels, and which one to start isn't known: {}", .0.join(", "))]
    Kernels(Vec<String>),
    #[error("the kernel is {kernel}, but the initrds are {}", initrds.join(", "))]
    Initrd { kernel: String, initrds: Vec<String> },
    #[error("GRUB for BIOS is incomplete: /{BOOT_IMG} and /{CORE_IMG} belong together", BOOT_IMG = grub::BOOT_IMG, CORE_IMG = grub::CORE_IMG)]
    HalfGrub,
    #[error("/{} isn't a boot sector of 512 bytes", grub::BOOT_IMG)]
    BootSector,
}

/// What a tar holds, as far as anyone asks.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    nodes: BTreeMap<String, Node>,
    /// Space that the unpacked files need, without the file system's own.
    pub(crate) installed_bytes: u64,
    /// The newest date of any file, in seconds since 1970.
    pub(crate) newest: u64,
}

#[derive(Clone, Debug)]
enum Node {
    Dir,
    File {
        size: u64,
        sha256: [u8; 32],
        text: Option<String>,
    },
    Link(String),
    /// Device nodes, sockets and the like.
    Special,
}

impl Contents {
    /// Reads to the end of `tar`, also what follows the end mark.
    pub(crate) fn read(tar: &mut impl Read) -> Result<Self, Unfit> {
        let mut tar = ZeroTail { inner: tar, zeros: 0 };
        let mut contents = Self::default();
        let mut after = String::new();
        let mut archive = tar::Archive::new(&mut tar);
        let failed = |after: &str| {
            let after = after.to_owned();
            |source| Unfit::Read { after, source }
        };
        for entry in archive.entries().map_err(failed(&after))? {
            let mut entry = entry.map_err(failed(&after))?;
            after = contents.add(&mut entry, &after)?;
        }
        // The end mark is two blocks of zeros; writers pad it to their record size.
        let at_mark = tar.zeros;
        let mut rest = [0; 64 << 10];
        loop {
            match tar.read(&mut rest).map_err(failed(&after))? {
                0 => break,
                n if rest[..n].iter().any(|b| *b != 0) => return Err(Unfit::Trailing),
                _ => {}
            }
        }
        if at_mark < 512 || tar.zeros < 1024 {
            return Err(Unfit::NoEnd);
        }
        Ok(contents)
    }

    fn add<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, after: &str) -> Result<String, Unfit> {
        let raw = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let failed = |source| Unfit::Read { after: after.to_owned(), source };
        let kind = entry.header().entry_type();
        if kind == EntryType::XGlobalHeader {
            // git archive leaves a comment there.
            let mut records = vec![];
            entry.take(MAX_GLOBAL + 1).read_to_end(&mut records).map_err(failed)?;
            let mut comments =
                tar::PaxExtensions::new(&records).map(|record| record.is_ok_and(|r| r.key_bytes() == b"comment"));
            let harmless = records.len() as u64 <= MAX_GLOBAL && comments.all(|is_one| is_one);
            return if harmless { Ok(after.to_owned()) } else { Err(Unfit::Global) };
        }
        let path = inside(&raw).ok_or_else(|| Unfit::Name(raw.clone()))?;
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            match self.nodes.get(parent) {
                Some(Node::Dir) => {}
                Some(_) => return Err(Unfit::Behind { path: path.clone(), behind: parent.to_owned() }),
                None => {
                    self.nodes.insert(parent.to_owned(), Node::Dir);
                    self.installed_bytes += BLOCK;
                }
            }
        }
        let mut said = Numbers::default();
        if let Some(extensions) = entry.pax_extensions().map_err(failed)? {
            for extension in extensions {
                let extension = extension.map_err(failed)?;
                match extension.key_bytes() {
                    key if key.starts_with(b"GNU.sparse.") => return Err(Unfit::Sparse(path)),
                    key if key.starts_with(b"SCHILY.acl.") => return Err(Unfit::TextAcl(path)),
                    key => said.read(key, extension.value_bytes()),
                }
            }
        }
        let target = |entry: &tar::Entry<'_, R>| {
            entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned()).unwrap_or_default()
        };
        let node = match kind {
            EntryType::Directory => {
                self.installed_bytes += BLOCK;
                Node::Dir
            }
            EntryType::Regular | EntryType::Continuous => {
                let node = file(entry, &path).map_err(|source| Unfit::Read { after: path.clone(), source })?;
                if let Node::File { size, .. } = node {
                    self.installed_bytes += size.div_ceil(BLOCK) * BLOCK;
                }
                node
            }
            EntryType::Link => {
                let target = target(entry);
                let known = inside(&target).and_then(|target| self.nodes.get(&target)).cloned();
                match known {
                    Some(node @ (Node::File { .. } | Node::Link(_) | Node::Special)) => node,
                    Some(Node::Dir) | None => return Err(Unfit::HardLink { path, target }),
                }
            }
            EntryType::Symlink => Node::Link(target(entry)),
            EntryType::Char | EntryType::Block | EntryType::Fifo => Node::Special,
            EntryType::GNUSparse => return Err(Unfit::Sparse(path)),
            other => return Err(Unfit::Kind { path, kind: format!("{:?}", char::from(other.as_byte())) }),
        };
        // Machines take a name's slash and a link's size for what they are, and would go on reading elsewhere.
        let is_file = matches!(kind, EntryType::Regular | EntryType::Continuous);
        let what = match said.wrong_with(entry.header()) {
            Some(what) => Some(what),
            None if is_file && raw.ends_with('/') => Some("is a file whose name ends in a slash"),
            None if !is_file && entry.size() > 0 => Some("has data although it isn't a file"),
            None if matches!(&node, Node::Link(target) if target.is_empty()) => Some("is a link to nothing"),
            None if path.is_empty() && !matches!(node, Node::Dir) => Some("is the root and not a directory"),
            None => None,
        };
        if let Some(what) = what {
            return Err(Unfit::Field { path, what });
        }
        self.newest = self.newest.max(entry.header().mtime().unwrap_or(0));
        // The root itself is an entry of most tars; it has no name to be found by.
        if !path.is_empty() {
            self.nodes.insert(path.clone(), node);
        }
        Ok(path)
    }

    /// `PRETTY_NAME` of its os-release.
    pub(crate) fn description(&self) -> Option<String> {
        ["etc/os-release", "usr/lib/os-release"].iter().find_map(|path| match self.find(path) {
            Some((_, Node::File { text: Some(text), .. })) => pretty_name(text),
            _ => None,
        })
    }

    /// SHA-256 of the file at `path`, symbolic links followed.
    pub(crate) fn sha256(&self, path: &str) -> Option<String> {
        match self.find(path.trim_start_matches('/'))? {
            (_, Node::File { sha256, .. }) => Some(hex::encode(sha256)),
            _ => None,
        }
    }

    pub(crate) fn boot_files(&self, cmdline: &str) -> Result<BootFiles, Unfit> {
        let kernels = self.in_boot(&["vmlinuz"]);
        let kernel = match kernels.as_slice() {
            [] => return Err(Unfit::NoKernel),
            [kernel] => kernel.clone(),
            several => return Err(Unfit::Kernels(several.iter().map(|k| k.path.clone()).collect())),
        };
        let (bios_boot, bios_core) = (self.image_file(grub::BOOT_IMG), self.image_file(grub::CORE_IMG));
        if let Some((_, Node::File { size, .. })) = self.find(grub::BOOT_IMG)
            && *size != 512
        {
            return Err(Unfit::BootSector);
        }
        let bios = match (bios_boot, bios_core) {
            (Some(boot_img), Some(core_img)) => Some(BiosBoot { boot_img, core_img }),
            (None, None) => None,
            _ => return Err(Unfit::HalfGrub),
        };
        Ok(BootFiles {
            initrd: self.initrd(&kernel)?,
            kernel,
            cmdline: cmdline.to_owned(),
            bios,
            uefi: self.image_file(grub::GRUBX64),
        })
    }

    /// The initrd of the same version; an image may do without, but not with that of another kernel.
    fn initrd(&self, kernel: &ImageFile) -> Result<Option<ImageFile>, Unfit> {
        let initrds = self.in_boot(&["initrd", "initramfs"]);
        let version = kernel.path.rsplit('/').next().unwrap_or_default().trim_start_matches("vmlinuz");
        let belongs = |initrd: &&ImageFile| {
            let name = initrd.path.rsplit('/').next().unwrap_or_default();
            let rest = name.trim_start_matches("initrd").trim_start_matches("initramfs").trim_start_matches(".img");
            rest.strip_suffix(".img").unwrap_or(rest) == version
        };
        let mut ours = initrds.iter().filter(belongs);
        match (ours.next(), ours.next()) {
            (Some(initrd), None) => Ok(Some(initrd.clone())),
            (None, _) if initrds.is_empty() => Ok(None),
            _ => Err(Unfit::Initrd {
                kernel: kernel.path.clone(),
                initrds: initrds.into_iter().map(|initrd| initrd.path).collect(),
            }),
        }
    }

    /// Files in /boot whose names start so, each once however many links lead to it.
    fn in_boot(&self, prefixes: &[&str]) -> Vec<ImageFile> {
        let mut found: Vec<ImageFile> = Vec::new();
        let Some((boot, Node::Dir)) = self.find("boot") else { return found };
        let dir = format!("{boot}/");
        for path in self.nodes.range(dir.clone()..).map(|(path, _)| path).take_while(|path| path.starts_with(&dir)) {
            let name = &path[dir.len()..];
            if !name.contains('/') && prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                found.extend(self.image_file(path).filter(|file| !found.contains(file)));
            }
        }
        found
    }

    /// A file by its own path, to which symbolic links are followed here once and for all.
    fn image_file(&self, path: &str) -> Option<ImageFile> {
        match self.find(path)? {
            (path, Node::File { sha256, .. }) => {
                Some(ImageFile { path: format!("/{path}"), sha256: hex::encode(sha256) })
            }
            _ => None,
        }
    }

    /// What `path` leads to, and by which path it has no symbolic link left. Never leaves the image.
    fn find(&self, path: &str) -> Option<(String, &Node)> {
        let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let mut done: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(part),
            }
            if let Some(Node::Link(target)) = self.nodes.get(&done.join("/")) {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.starts_with('/') {
                    done.clear();
                } else {
                    done.pop();
                }
                todo.extend(target.split('/').rev().map(str::to_owned));
            }
        }
        let path = done.join("/");
        let node = self.nodes.get(&path)?;
        Some((path, node))
    }
}

/// What machines want to read besides names and sizes: extended headers override what the header has.
#[derive(Default)]
struct Numbers {
    owner: Option<bool>,
    group: Option<bool>,
    time: Option<bool>,
}

impl Numbers {
    fn read(&mut self, key: &[u8], value: &[u8]) {
        let text = std::str::from_utf8(value).ok();
        let is_id = || text.is_some_and(|text| text.parse::<u32>().is_ok());
        match key {
            b"uid" => self.owner = Some(is_id()),
            b"gid" => self.group = Some(is_id()),
            b"mtime" => {
                let (seconds, fraction) = text.map_or(("", ""), |text| text.split_once('.').unwrap_or((text, "")));
                self.time = Some(seconds.parse::<i64>().is_ok() && fraction.bytes().all(|b| b.is_ascii_digit()));
            }
            _ => {}
        }
    }

    fn wrong_with(self, header: &tar::Header) -> Option<&'static str> {
        let is_id = |field: std::io::Result<u64>| field.is_ok_and(|id| u32::try_from(id).is_ok());
        let is_device = matches!(header.entry_type(), EntryType::Char | EntryType::Block);
        match () {
            () if header.mode().is_err() => Some("has an unreadable mode"),
            () if !self.owner.unwrap_or_else(|| is_id(header.uid()))
                || !self.group.unwrap_or_else(|| is_id(header.gid())) =>
            {
                Some("has an owner that isn't a number of 32 bits")
            }
            () if self.time == Some(false) => Some("has an unreadable time"),
            () if is_device
                && !matches!((header.device_major(), header.device_minor()), (Ok(Some(_)), Ok(Some(_)))) =>
            {
                Some("is a device without numbers")
            }
            () => None,
        }
    }
}

fn file<R: Read>(entry: &mut tar::Entry<'_, R>, path: &str) -> std::io::Result<Node> {
    let keep = path.ends_with("/os-release") && entry.size() <= MAX_OS_RELEASE;
    let (mut hash, mut size, mut text) = (Sha256::new(), 0u64, Vec::new());
    let mut buffer = vec![0; 128 << 10];
    loop {
        let n = entry.read(&mut buffer)?;
        let part = &buffer[..n];
        if part.is_empty() {
            break;
        }
        hash.update(part);
        size += part.len() as u64;
        if keep {
            text.extend_from_slice(part);
        }
    }
    // The header may promise more than there is.
    if size != entry.size() {
        return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the tar ends in the middle of a file"));
    }
    let text = keep.then(|| String::from_utf8_lossy(&text).into_owned());
    Ok(Node::File { size, sha256: hash.finalize().into(), text })
}

/// A path of the tar without `./` and slashes at its ends; `None` if it leads out of the image.
fn inside(path: &str) -> Option<String> {
    if path.starts_with('/') || path.contains('\0') {
        return None;
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.contains(&"..")).then(|| parts.join("/"))
}

/// Counts the zeros that end what was read.
struct ZeroTail<R> {
    inner: R,
    zeros: u64,
}

impl<R: Read> Read for ZeroTail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        let part = &buffer[..n];
        match part.iter().rposition(|b| *b != 0) {
            Some(last) => self.zeros = (part.len() - last - 1) as u64,
            None => self.zeros += part.len() as u64,
        }
        Ok(n)
    }
}

/// Any bytes as a tar. Whether it is one that machines are given to unpack; if so, what starts them is in it.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) -> bool {
    let Ok(contents) = Contents::read(&mut &*bytes) else { return false };
    let _ = contents.description();
    if let Ok(boot) = contents.boot_files("quiet") {
        for file in [&boot.kernel].into_iter().chain(&boot.initrd).chain(&boot.uefi) {
            assert_eq!(contents.sha256(&file.path).as_ref(), Some(&file.sha256), "{file:?}");
            assert!(!file.path.split('/').any(|part| part == ".."), "{file:?}");
        }
    }
    true
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
