//! What is in a tar of a root file system: whether every machine would unpack it the same way, and which of its files
//! start a machine.

use std::collections::BTreeMap;
use std::io::{self, Read};

use drophammer_protocol::archive::{Archive, ArchiveError, Escape, Kind, Member, Segment, inside};
use drophammer_protocol::manifest::{BiosBoot, BootBy, BootFiles, ImageFile};
use drophammer_protocol::os_release::pretty_name;
use sha2::{Digest, Sha256};

use crate::sbom::Installed;
use crate::zeros::hash_zeros;
use crate::{grub, sbom};

const DPKG_STATUS: &str = "var/lib/dpkg/status";
const APK_INSTALLED: &str = "lib/apk/db/installed";

/// Larger os-release files aren't believed.
const MAX_OS_RELEASE: u64 = 64 << 10;
/// Nor lists of packages that are larger than this.
const MAX_PACKAGES: u64 = 64 << 20;
/// A file with more holes than this isn't one that starts a machine, and isn't hashed.
const MAX_HOLES: u64 = 1 << 30;
/// Linux gives up after as many symbolic links.
const MAX_LINKS: usize = 40;
/// What the file systems that we install allocate at least for a file or directory.
const BLOCK: u64 = 4096;

/// Why a tar can't be an image.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error(transparent)]
    Tar(#[from] ArchiveError),
    #[error("reading the tar after {after:?}")]
    Read { after: String, source: io::Error },
    #[error("the tar has no end mark: it was cut short")]
    NoEnd,
    #[error("the tar goes on after its end mark; only its first part would be unpacked")]
    Trailing,
    #[error(transparent)]
    Name(#[from] Escape),
    #[error("{path:?} in the tar lies behind {behind:?}, which isn't a directory")]
    Behind { path: String, behind: String },
    #[error("{path:?} in the tar is a hard link to {target:?}, which isn't a file before it in the tar")]
    HardLink { path: String, target: String },
    #[error("{0:?} in the tar would replace a directory")]
    Directory(String),
    #[error("the root of the tar isn't a directory")]
    Root,
    #[error(transparent)]
    Place(anyhow::Error),
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
        /// `None` if it's mostly a hole.
        sha256: Option<[u8; 32]>,
        text: Option<String>,
    },
    Link(String),
    /// Device nodes, sockets and the like.
    Special,
}

impl Contents {
    /// Reads to the end of `tar`, also what follows the end mark. Each member is shown to `place`, with its content.
    pub(crate) fn read(
        tar: impl Read,
        mut place: impl FnMut(&Member, &mut dyn Read) -> anyhow::Result<()>,
    ) -> Result<Self, Unfit> {
        let mut contents = Self::default();
        let mut archive = Archive::new(tar);
        let mut last = String::new();
        while let Some(member) = archive.next_member()? {
            last = contents.add(&member, &mut archive, &mut place)?;
        }
        if !archive.has_end_mark() {
            return Err(Unfit::NoEnd);
        }
        // The end mark is two blocks of zeros, of which one has been read; writers pad it to their record size.
        let mut tar = archive.into_rest();
        let (mut rest, mut zeros) = ([0; 64 << 10], 0);
        loop {
            match tar.read(&mut rest) {
                Ok(0) => break,
                Ok(n) if rest[..n].iter().any(|b| *b != 0) => return Err(Unfit::Trailing),
                Ok(n) => zeros += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Unfit::Read { after: last, source }),
            }
        }
        if zeros < 512 { Err(Unfit::NoEnd) } else { Ok(contents) }
    }

    fn add<R: Read>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
        place: &mut impl FnMut(&Member, &mut dyn Read) -> anyhow::Result<()>,
    ) -> Result<String, Unfit> {
        let path = inside(&member.path)?.to_string_lossy().into_owned();
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
        let is_directory = member.kind == Kind::Directory;
        if path.is_empty() && !is_directory {
            return Err(Unfit::Root);
        }
        if !is_directory && matches!(self.nodes.get(&path), Some(Node::Dir)) {
            return Err(Unfit::Directory(path));
        }
        let mut watched = Watched::new(&path, &member.kind, archive);
        place(member, &mut watched).map_err(Unfit::Place)?;
        let watched = watched.end().map_err(|source| Unfit::Read { after: path.clone(), source })?;
        let node = match &member.kind {
            Kind::Directory => {
                self.installed_bytes += BLOCK;
                Node::Dir
            }
            Kind::File(content) => {
                let stored: u64 = content.segments().iter().map(|s| s.length.div_ceil(BLOCK) * BLOCK).sum();
                self.installed_bytes += stored;
                Node::File { size: content.bytes, sha256: watched.0, text: watched.1 }
            }
            Kind::HardLink { target } => {
                let known = inside(target).ok().and_then(|target| self.nodes.get(&*target.to_string_lossy())).cloned();
                match known {
                    Some(node @ (Node::File { .. } | Node::Link(_) | Node::Special)) => node,
                    Some(Node::Dir) | None => {
                        return Err(Unfit::HardLink { path, target: target.to_string_lossy().into_owned() });
                    }
                }
            }
            Kind::SymbolicLink { target } => Node::Link(target.to_string_lossy().into_owned()),
            Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => Node::Special,
        };
        self.newest = self.newest.max(u64::try_from(member.mtime.seconds).unwrap_or(0));
        // The root itself is an entry of most tars; it has no name to be found by.
        if !path.is_empty() {
            self.nodes.insert(path.clone(), node);
        }
        Ok(path)
    }

    /// What is installed, if it's one of the databases that are understood here.
    pub(crate) fn packages(&self) -> Option<Vec<Installed>> {
        let text = |path| match self.find(path) {
            Some((_, Node::File { text: Some(text), .. })) => Some(text),
            _ => None,
        };
        let (dpkg, apk) = (text(DPKG_STATUS).map(|t| sbom::dpkg(t)), text(APK_INSTALLED).map(|t| sbom::apk(t)));
        dpkg.or(apk).filter(|packages| !packages.is_empty())
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
            (_, Node::File { sha256, .. }) => sha256.map(hex::encode),
            _ => None,
        }
    }

    pub(crate) fn boot_files(&self, cmdline: &str, by: Option<BootBy>) -> Result<BootFiles, Unfit> {
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
            uefi: self.image_file(grub::GRUBX64).or_else(|| self.image_file(grub::MONOLITHIC_EFI)),
            by,
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
            (path, Node::File { sha256: Some(sha256), .. }) => {
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

/// The content of a member as it goes by.
struct Watched<'a, R> {
    archive: &'a mut Archive<R>,
    /// Where the rest of its data lies, first to come last.
    segments: Vec<Segment>,
    /// How far the file has been seen, holes included.
    at: u64,
    bytes: u64,
    hash: Option<Sha256>,
    text: Option<Vec<u8>>,
}

impl<'a, R: Read> Watched<'a, R> {
    fn new(path: &str, kind: &Kind, archive: &'a mut Archive<R>) -> Self {
        let (bytes, mut segments) = match kind {
            Kind::File(content) => (content.bytes, content.segments()),
            _ => (0, Vec::new()),
        };
        segments.reverse();
        let stored: u64 = segments.iter().map(|segment| segment.length).sum();
        let hash = (bytes - stored <= MAX_HOLES).then(Sha256::new);
        let most = match path {
            DPKG_STATUS | APK_INSTALLED => MAX_PACKAGES,
            _ if path.ends_with("/os-release") => MAX_OS_RELEASE,
            _ => 0,
        };
        let text = (bytes <= most).then(Vec::new);
        Self { archive, segments, at: 0, bytes, hash, text }
    }

    /// What is left of it, and what was seen of all.
    fn end(mut self) -> io::Result<(Option<[u8; 32]>, Option<String>)> {
        io::copy(&mut self, &mut io::sink())?;
        if !self.segments.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the tar ends in the middle of a file"));
        }
        self.see_hole(self.bytes);
        Ok((self.hash.map(|hash| hash.finalize().into()), self.text.map(|t| String::from_utf8_lossy(&t).into_owned())))
    }

    fn see_hole(&mut self, until: u64) {
        if let Some(hash) = &mut self.hash {
            hash_zeros(hash, until.saturating_sub(self.at));
        }
        self.at = self.at.max(until);
    }
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(segment) = self.segments.last().copied() else { return Ok(0) };
        self.see_hole(segment.offset);
        let most = usize::try_from(segment.length).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.archive.read(&mut buffer[..most])?;
        let part = &buffer[..n];
        if let Some(hash) = &mut self.hash {
            hash.update(part);
        }
        if let Some(text) = &mut self.text {
            text.extend_from_slice(part);
        }
        let n = n as u64;
        self.at = segment.offset + n;
        self.segments.pop();
        if n < segment.length {
            self.segments.push(Segment { offset: segment.offset + n, length: segment.length - n });
        }
        Ok(part.len())
    }
}

/// Any bytes as a tar. Whether it is one that machines are given to unpack; if so, what starts them is in it.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) -> bool {
    let Ok(contents) = Contents::read(bytes, |_, _| Ok(())) else { return false };
    let _ = contents.description();
    if let Ok(boot) = contents.boot_files("quiet", None) {
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
