//! A tar becomes an image: both forms, manifest, signature; published whole or not at all.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use drophammer_protocol::manifest::{
    self, Attachment, BlockForm, BootBy, Chunk, Filesystem, MAX_MANIFEST_BYTES, Manifest, Minimum, PACKS, Piece,
    Source, TarForm, is_plain_name,
};
use drophammer_protocol::sign::{PublicKey, Signed, Verified};
use ed25519_dalek::SigningKey;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::chunks::{Feed, Packer};
use crate::list::known;
use crate::scan::Contents;
use crate::store::{self, Draft};
use crate::verify::inspect;
use crate::zeros::hash_zeros;
use crate::{ext4, grub, input, sbom};

#[derive(Clone, Debug)]
pub struct PackOptions {
    pub name: String,
    pub version: String,
    /// Kernel arguments, without `root=`.
    pub cmdline: String,
    /// How it wants to be started for the first time, if it isn't indifferent.
    pub boot: Option<BootBy>,
    /// Of zstd; 3 is fast and close to the best, 19 is for what is fetched often.
    pub level: i32,
    /// As `uname -m` says it.
    pub arch: String,
    /// From when on it isn't installed any more, in seconds since 1970.
    pub expires: Option<u64>,
    /// Whether there's a form that is written to a disk as it is, and one that is unpacked there.
    pub forms: Forms,
    /// Which of the images of an OCI layout.
    pub tag: Option<String>,
    /// Where the tar came from, if it's somebody else's.
    pub source: Option<Source>,
    /// What a machine must have for it.
    pub minimum: Option<Minimum>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forms {
    Both,
    Block,
    Tar,
}

impl PackOptions {
    pub fn new(name: &str, version: &str, cmdline: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            cmdline: cmdline.to_owned(),
            boot: None,
            level: 3,
            arch: "x86_64".to_owned(),
            expires: None,
            forms: Forms::Both,
            tag: None,
            source: None,
            minimum: None,
        }
    }
}

/// An image in a store.
#[derive(Clone, Debug)]
pub struct Packed {
    pub dir: PathBuf,
    pub manifest: Verified<Manifest>,
    /// Whether the very same image had been published before.
    pub existed: bool,
    /// What it brought that wasn't in the store yet.
    pub new_bytes: u64,
}

/// How far it is, in unpacked bytes of both forms.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// The file system's name until it is installed, and the seed of its hashes.
const IMAGE_UUID: Uuid = Uuid::from_u128(0x6472_6f70_6861_4d6d_8572_6578_7434_0001);
const LABEL: &str = "root";
/// Runs of zeros from this length on aren't sent but said.
const LEAST_ZEROS: usize = 64 << 10;
/// Where chunks may end: between the records of a tar, between the blocks of a file system.
const TAR_UNIT: usize = 512;
const BLOCK_UNIT: usize = 4096;

/// Compiles `tar` (plain, zstd, gzip, xz or lz4; or an OCI image layout, a directory or a tar of it; or a raw disk, plain or
/// compressed) to `<store>/<name>/<version>`, signed with `key`. The same tar and options give the same bytes in the same
/// store. A version that exists is never replaced: publishing it again succeeds only if it would be the same.
pub fn pack(
    tar: &Path,
    store: &Path,
    options: &PackOptions,
    key: &SigningKey,
    progress: Progress<'_>,
) -> Result<Packed> {
    for name in [&options.name, &options.version] {
        ensure!(
            is_plain_name(name) && name != PACKS,
            "{name:?} can't be part of an image's reference: letters, digits and . - _ + only, no . at its start, and \
             not {PACKS:?}"
        );
    }
    let _held = store::hold(store)?;
    let draft = Draft::new(store, &options.name, &options.version)?;
    let own_pack = store::new_pack(store)?;
    let known = known(store, PublicKey::of(key))?;
    let mut packer = Packer::new(own_pack.as_file(), &known, options.level);
    let scratch = draft.scratch()?;
    let packing = || format!("packing {}", tar.display());
    let input = input::open(tar, options.tag.as_deref(), || draft.scratch()).with_context(packing)?;
    let mut made = compile(input, &scratch, options, &mut packer, progress).with_context(packing)?;

    let mut in_tar: Vec<Chunk> = made.tar.iter().flat_map(|form| form.chunks.clone()).collect();
    let mut in_block: Vec<Chunk> = made.block.iter().flat_map(|form| form.chunks().cloned()).collect();
    let (own, packs) = packer.finish(&mut [&mut in_block, &mut in_tar])?;
    if let Some(form) = &mut made.tar {
        form.chunks = in_tar;
    }
    let mut in_block = in_block.into_iter();
    for piece in made.block.iter_mut().flat_map(|form| &mut form.pieces) {
        if let Piece::Chunk { chunk, .. } = piece {
            *chunk = in_block.next().context("a chunk got lost")?;
        }
    }
    let reference = format!("{}/{}", options.name, options.version);
    let sbom = made.contents.packages().map(|packages| sbom::spdx(&reference, made.contents.newest, &packages));
    let attachment = sbom.as_ref().map(|text| Attachment {
        file: sbom::FILE.to_owned(),
        bytes: text.len() as u64,
        sha256: hex::encode(Sha256::digest(text)),
    });
    if let Some(text) = &sbom {
        draft.attach(sbom::FILE, text.as_bytes())?;
    }
    let boot = made.contents.boot_files(&options.cmdline, options.boot).with_context(packing)?;
    ensure!(
        boot.bios.is_some() || boot.uefi.is_some(),
        "{} has nothing that a machine's firmware could start: neither GRUB for BIOS (/{} and /{}) nor for UEFI (/{}, or /{} \
         of Debian's package grub-efi-amd64-bin)",
        tar.display(),
        grub::BOOT_IMG,
        grub::CORE_IMG,
        grub::GRUBX64,
        grub::MONOLITHIC_EFI
    );
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: options.name.clone(),
        version: options.version.clone(),
        description: made.contents.description().unwrap_or_else(|| reference.clone()),
        arch: options.arch.clone(),
        created: made.contents.newest,
        expires: options.expires,
        installed_bytes: made.contents.installed_bytes,
        packs,
        block: made.block,
        tar: made.tar,
        boot,
        sbom: attachment,
        source: options.source.clone(),
        minimum: options.minimum,
    };
    let signed = Signed::seal(&manifest, key);
    let text = serde_json::to_vec(&signed).context("writing the manifest")?;
    ensure!(
        text.len() as u64 <= MAX_MANIFEST_BYTES,
        "the manifest of {reference} has {} bytes, and machines read {MAX_MANIFEST_BYTES} at most: the image is too large",
        text.len()
    );
    let manifest = manifest::open_signed(&signed, &[signed.key]).context("reading back what was just signed")?;
    let new_bytes = own.as_ref().map_or(0, |pack| pack.bytes);

    let dir = store.join(&options.name).join(&options.version);
    if dir.exists() {
        let there = inspect(&dir, &[signed.key])
            .with_context(|| format!("{reference} is published already, and not by this key"))?;
        store::ensure_same(&there, &manifest, store)?;
        return Ok(Packed { dir, manifest: there, existed: true, new_bytes: 0 });
    }
    if let Some(own) = &own {
        store::keep_pack(store, own_pack, own)?;
    }
    let dir = draft.publish(&text)?;
    Ok(Packed { dir, manifest, existed: false, new_bytes })
}

/// An image before it has packs.
struct Compiled {
    contents: Contents,
    tar: Option<TarForm>,
    block: Option<BlockForm>,
}

fn compile(
    input: Box<dyn Read>,
    scratch: &File,
    options: &PackOptions,
    packer: &mut Packer<'_>,
    progress: Progress<'_>,
) -> Result<Compiled> {
    let (with_tar, with_block) = (options.forms != Forms::Block, options.forms != Forms::Tar);
    let (chunks, (contents, bytes, sha256, image)) = packer.cut(TAR_UNIT, progress, |feed| {
        let mut tee = Tee { input, feed: with_tar.then_some(feed), hash: Sha256::new(), bytes: 0 };
        // Before the files are known there's no newest one; what isn't in the tar gets the date of the first.
        let mut writer: Option<ext4::Writer<'_>> = None;
        let contents = Contents::read(&mut tee, |member, data| {
            if !with_block {
                return Ok(());
            }
            let writer = writer.get_or_insert_with(|| {
                let created = u64::try_from(member.mtime.seconds).unwrap_or(0);
                ext4::Writer::new(scratch, ext4::Options { uuid: IMAGE_UUID, label: LABEL.to_owned(), created })
            });
            writer.place(member, data)
        })?;
        let image = writer.map(ext4::Writer::finish).transpose()?;
        Ok((contents, tee.bytes, hex::encode(tee.hash.finalize()), image))
    })?;
    let chunks = chunks.into_iter().map(|(_, chunk)| chunk).collect();
    let tar = with_tar.then_some(TarForm { bytes, sha256, chunks });
    let block = image.map(|image| block_form(scratch, &image, packer, progress)).transpose()?;
    Ok(Compiled { contents, tar, block })
}

/// Cuts what of a file system has to be written.
fn block_form(file: &File, image: &ext4::Image, packer: &mut Packer<'_>, progress: Progress<'_>) -> Result<BlockForm> {
    let mut zeros: Vec<Piece> = Vec::new();
    let (chunks, sha256) = packer.cut(BLOCK_UNIT, progress, |feed| {
        let mut hash = Sha256::new();
        let mut hashed = 0;
        let mut buffer = vec![0; 1 << 20];
        for used in &image.used {
            hash_zeros(&mut hash, used.start - hashed);
            let mut at = used.start;
            let mut run = Zeros { at, length: 0 };
            while at < used.end {
                let length = usize::try_from(used.end - at).unwrap_or(usize::MAX).min(buffer.len());
                let part = &mut buffer[..length];
                file.read_exact_at(part, at).context("reading the file system back")?;
                hash.update(&*part);
                for block in part.chunks(BLOCK_UNIT) {
                    if block.iter().all(|byte| *byte == 0) {
                        run.length += block.len();
                    } else {
                        run.end(feed, &mut zeros)?;
                        feed.go_on_at(run.at)?;
                        feed.push(block)?;
                        run.at += block.len() as u64;
                    }
                }
                at += length as u64;
            }
            run.end(feed, &mut zeros)?;
            hashed = used.end;
        }
        hash_zeros(&mut hash, image.bytes - hashed);
        Ok(hex::encode(hash.finalize()))
    })?;
    let mut pieces: Vec<Piece> = chunks.into_iter().map(|(at, chunk)| Piece::Chunk { at, chunk }).collect();
    pieces.append(&mut zeros);
    pieces.sort_by_key(Piece::at);
    Ok(BlockForm { filesystem: Filesystem::Ext4, bytes: image.bytes, sha256, pieces })
}

/// Zeros that were seen and not yet dealt with.
struct Zeros {
    at: u64,
    length: usize,
}

impl Zeros {
    /// A long run is said, a short one sent.
    fn end(&mut self, feed: &mut Feed, pieces: &mut Vec<Piece>) -> Result<()> {
        if self.length >= LEAST_ZEROS {
            pieces.push(Piece::Zeros { at: self.at, length: self.length as u64 });
        } else if self.length > 0 {
            feed.go_on_at(self.at)?;
            feed.push(&[0; LEAST_ZEROS][..self.length])?;
        }
        self.at += self.length as u64;
        self.length = 0;
        Ok(())
    }
}

/// Whatever is read goes into chunks, too.
struct Tee<'a> {
    input: Box<dyn Read>,
    feed: Option<&'a mut Feed>,
    hash: Sha256,
    bytes: u64,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        let part = &buffer[..n];
        self.hash.update(part);
        self.bytes += n as u64;
        if let Some(feed) = &mut self.feed {
            feed.push(part).map_err(io::Error::other)?;
        }
        Ok(n)
    }
}

#[cfg(test)]
#[path = "pack_tests.rs"]
pub(crate) mod tests;
