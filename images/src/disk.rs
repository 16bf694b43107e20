//! The root file system on the image of a disk, as the tar that it would be packed from.
//!
//! A disk is known by what is on it: a GPT, an MBR, or an ext4 file system that has it to itself. Of its partitions one is
//! the root, and others lie where the root's fstab has them ([`root`]); what machines are given anew when they are
//! installed, as the EFI system partition, is left out. Names come in the order of their bytes, so the same disk gives the
//! same tar ([`tree`]).

mod fstab;
mod kind;
mod partitions;
mod root;
mod sparse;
mod tree;

use std::fs::File;
use std::io::{self, Read};

use anyhow::Result;

pub(crate) use self::kind::{HEAD_BYTES, Sight, sight};
pub(crate) use self::sparse::unpack;
use self::tree::Tree;
use crate::ext4::read::Stored;
use crate::tar_header;
use crate::window::Window;

/// Two blocks of zeros.
const END: usize = 1024;

/// The root on a disk, as a tar to be read once.
pub(crate) fn open(disk: File) -> Result<RootTar> {
    let chosen = root::choose(&Window::of(disk)?)?;
    Ok(RootTar { tree: Tree::new(chosen), ready: io::Cursor::default(), data: None, padding: 0, ended: false })
}

#[derive(Debug)]
pub(crate) struct RootTar {
    tree: Tree,
    /// To be handed on before anything else.
    ready: io::Cursor<Vec<u8>>,
    /// Of the current file; then its padding.
    data: Option<Stored>,
    padding: usize,
    ended: bool,
}

impl RootTar {
    /// Puts what comes next into `ready`; nothing at the end.
    fn advance(&mut self) -> Result<()> {
        let mut next = vec![0; std::mem::take(&mut self.padding)];
        match self.tree.next()? {
            Some((member, data)) => {
                next.extend(tar_header::of(&member, &member.path));
                if let Some((stored, bytes)) = data {
                    self.data = Some(stored);
                    self.padding = tar_header::padding(bytes);
                }
            }
            None if self.ended => {}
            None => {
                next.extend([0; END]);
                self.ended = true;
            }
        }
        self.ready = io::Cursor::new(next);
        Ok(())
    }
}

impl Read for RootTar {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let ready = self.ready.read(buffer)?;
        if ready > 0 {
            return Ok(ready);
        }
        if let Some(data) = &mut self.data {
            let read = data.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            self.data = None;
        }
        self.advance().map_err(io::Error::other)?;
        self.ready.read(buffer)
    }
}

/// Any bytes as a disk: what can be read of it can be packed.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    use std::io::Write;

    let _ = sight(bytes);
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    let Ok(mut tar) = open(file) else { return };
    let mut read = Vec::new();
    if tar.read_to_end(&mut read).is_ok() {
        crate::scan::Contents::read(&read[..], |_, _| Ok(())).expect("what was read can be packed");
    }
}

#[cfg(test)]
mod tests;
