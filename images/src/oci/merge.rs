//! What is left of each layer when all are applied (image-spec, "Image Layer Filesystem Changeset"), from their members'
//! headers alone.
//!
//! A member is called by its place: which layer, and the how-manieth in it. What is decided is which of them have names in
//! the end, and which; several are hard links.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use drophammer_protocol::archive::{Escape, Kind, Member, inside};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs kept books of its own under such names.
const OF_AUFS: &[u8] = b".wh..wh.";

/// Linux gives up after as many symbolic links.
const MAX_LINKS: usize = 40;
/// Names and what directories have besides are held in memory; a root file system has some hundred thousand.
const MAX_HELD_BYTES: usize = 1 << 30;
/// What an entry takes besides its name.
const ENTRY_BYTES: usize = 256;

/// Why layers can't be applied.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error(transparent)]
    Name(#[from] Escape),
    #[error("{0:?} is a whiteout of nothing that has a name")]
    Whiteout(PathBuf),
    #[error("the root isn't a directory")]
    Root,
    #[error("{path:?} lies behind {behind:?}, which isn't a directory")]
    Behind { path: PathBuf, behind: PathBuf },
    #[error("{0:?} lies behind more than {MAX_LINKS} symbolic links")]
    Links(PathBuf),
    #[error("{path:?} is a hard link to {target:?}, which isn't a file that is there by then")]
    HardLink { path: PathBuf, target: PathBuf },
    #[error("the layers have more files than can be kept track of here")]
    TooMany,
}

/// A member: its layer, and how many precede it there.
pub(super) type Id = (usize, u64);

#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<PathBuf, Node>,
    held: usize,
}

#[derive(Debug)]
struct Node {
    /// The last that had it.
    layer: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    /// With what a layer said of it, if one did.
    Directory(Option<Box<Member>>),
    Link {
        id: Id,
        target: PathBuf,
    },
    Other(Id),
}

/// What is left.
#[derive(Debug)]
pub(super) struct Left {
    /// Parents first.
    pub(super) directories: Vec<Member>,
    /// In the order of their names.
    pub(super) names: HashMap<Id, Vec<PathBuf>>,
}

/// What a name means for the layers below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// An entry of the layer itself.
    Entry,
    /// Nothing of what is below the directory stays.
    Opaque,
    /// Nothing of what is below and called so stays.
    Gone(OsString),
    /// To be passed over.
    Bookkeeping,
}

/// By the last part of a path alone; `None` if it can't mean anything.
pub(super) fn meaning(name: &OsStr) -> Option<Name> {
    let bytes = name.as_bytes();
    Some(match bytes.strip_prefix(WHITEOUT) {
        None => Name::Entry,
        Some(_) if bytes == OPAQUE => Name::Opaque,
        Some(_) if bytes.starts_with(OF_AUFS) => Name::Bookkeeping,
        Some(b"" | b"." | b"..") => return None,
        Some(gone) => Name::Gone(OsStr::from_bytes(gone).to_owned()),
    })
}

impl Tree {
    /// Applies the next member. Members come in their order, layers from the lowest up.
    pub(super) fn apply(&mut self, id: Id, member: &Member) -> Result<(), Unfit> {
        let path = inside(&member.path)?;
        let Some(name) = path.file_name() else {
            if member.kind != Kind::Directory {
                return Err(Unfit::Root);
            }
            return self.put(PathBuf::new(), id.0, What::Directory(Some(Box::new(member.clone()))));
        };
        let meant = meaning(name).ok_or_else(|| Unfit::Whiteout(path.clone()))?;
        let parent = self.real(path.parent().unwrap_or(Path::new("")), &path)?;
        match meant {
            Name::Bookkeeping => Ok(()),
            Name::Gone(name) => self.hide(&parent.join(name), id.0, true),
            Name::Opaque => self.hide(&parent, id.0, false),
            Name::Entry => self.enter(parent.join(name), id, member),
        }
    }

    pub(super) fn left(self) -> Left {
        let mut left = Left { directories: Vec::new(), names: HashMap::new() };
        for (path, node) in self.nodes {
            match node.what {
                What::Directory(Some(member)) => left.directories.push(Member { path, ..*member }),
                What::Directory(None) => {}
                What::Link { id, .. } | What::Other(id) => left.names.entry(id).or_default().push(path),
            }
        }
        left
    }

    fn enter(&mut self, path: PathBuf, id: Id, member: &Member) -> Result<(), Unfit> {
        let what = match &member.kind {
            Kind::Directory => What::Directory(Some(Box::new(member.clone()))),
            Kind::SymbolicLink { target } => What::Link { id, target: target.clone() },
            Kind::HardLink { target } => {
                let there = self.linked(target, &path)?;
                match there {
                    // A link to itself changes nothing.
                    Some((at, _)) if at == path => return Ok(()),
                    Some((_, What::Link { id, target })) => What::Link { id, target },
                    Some((_, What::Other(id))) => What::Other(id),
                    Some((_, What::Directory(_))) | None => {
                        return Err(Unfit::HardLink { path, target: target.clone() });
                    }
                }
            }
            Kind::File(_) | Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => What::Other(id),
        };
        self.make_parents(&path, id.0)?;
        if !matches!(what, What::Directory(_)) && self.is_directory(&path) {
            for below in self.below(&path) {
                self.nodes.remove(&below);
            }
        }
        self.put(path, id.0, what)
    }

    /// What a hard link leads to, and where that is.
    fn linked(&self, target: &Path, path: &Path) -> Result<Option<(PathBuf, What)>, Unfit> {
        let target = inside(target)?;
        let Some(name) = target.file_name() else { return Ok(None) };
        let at = self.real(target.parent().unwrap_or(Path::new("")), path)?.join(name);
        let what = self.nodes.get(&at).map(|node| match &node.what {
            What::Directory(_) => What::Directory(None),
            What::Link { id, target } => What::Link { id: *id, target: target.clone() },
            What::Other(id) => What::Other(*id),
        });
        Ok(what.map(|what| (at, what)))
    }

    /// Takes away what lower layers have at and below `path`; what this one has there stays.
    fn hide(&mut self, path: &Path, layer: usize, itself: bool) -> Result<(), Unfit> {
        let mut stay = Vec::new();
        for at in self.below(path) {
            if at == path && !itself {
                continue;
            }
            match self.nodes.get(&at) {
                Some(node) if node.layer < layer => {
                    self.nodes.remove(&at);
                }
                _ => stay.push(at),
            }
        }
        // Directories that only lower layers described are still there if this one has something in them.
        stay.iter().try_for_each(|at| self.make_parents(at, layer))
    }

    fn put(&mut self, path: PathBuf, layer: usize, what: What) -> Result<(), Unfit> {
        let more: usize = match &what {
            What::Directory(Some(member)) => member.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum(),
            What::Link { target, .. } => target.as_os_str().len(),
            What::Directory(None) | What::Other(_) => 0,
        };
        self.held += path.as_os_str().len() + more + ENTRY_BYTES;
        if self.held > MAX_HELD_BYTES {
            return Err(Unfit::TooMany);
        }
        self.nodes.insert(path, Node { layer, what });
        Ok(())
    }

    fn make_parents(&mut self, path: &Path, layer: usize) -> Result<(), Unfit> {
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            match self.nodes.get(parent).map(|node| &node.what) {
                Some(What::Directory(_)) => {}
                Some(_) => return Err(Unfit::Behind { path: path.to_owned(), behind: parent.to_owned() }),
                None => self.put(parent.to_owned(), layer, What::Directory(None))?,
            }
        }
        Ok(())
    }

    /// `dir` without symbolic links, as whoever unpacks layers inside of the root finds it; `path` is what is looked for.
    /// What isn't there is taken as it's called.
    fn real(&self, dir: &Path, path: &Path) -> Result<PathBuf, Unfit> {
        let parts = |path: &Path| -> Vec<OsString> {
            path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
        };
        let mut todo = parts(dir);
        let mut done = PathBuf::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match Path::new(&part).components().next() {
                None | Some(Component::CurDir | Component::Prefix(_)) => continue,
                Some(Component::RootDir) => {
                    done = PathBuf::new();
                    continue;
                }
                // Above the root is the root.
                Some(Component::ParentDir) => {
                    done.pop();
                    continue;
                }
                Some(Component::Normal(name)) => done.push(name),
            }
            if let Some(Node { what: What::Link { target, .. }, .. }) = self.nodes.get(&done) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Unfit::Links(path.to_owned()));
                }
                done.pop();
                todo.extend(parts(target));
            }
        }
        // A link's target is anything that is no NUL; as a name of a file it's the same.
        Ok(inside(&done)?)
    }

    fn is_directory(&self, path: &Path) -> bool {
        self.nodes.get(path).is_some_and(|node| matches!(node.what, What::Directory(_)))
    }

    /// `path` itself, if it's there, and all that is below.
    fn below(&self, path: &Path) -> Vec<PathBuf> {
        let from = self.nodes.range(path.to_owned()..).map(|(at, _)| at);
        from.take_while(|at| at.starts_with(path)).cloned().collect()
    }
}

/// The name of any file.
#[cfg(fuzzing)]
pub(super) fn fuzz(name: &[u8]) {
    let name = OsStr::from_bytes(name);
    if let Some(Name::Gone(gone)) = meaning(name) {
        assert_eq!([WHITEOUT, gone.as_bytes()].concat(), name.as_bytes());
        assert!(!matches!(gone.as_bytes(), b"" | b"." | b".."), "{name:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_mean() {
        for (name, want) in [
            ("passwd", Some(Name::Entry)),
            (".whatever", Some(Name::Entry)),
            (".wh.passwd", Some(Name::Gone("passwd".into()))),
            (".wh..hidden", Some(Name::Gone(".hidden".into()))),
            (".wh...", None),
            (".wh..", None),
            (".wh.", None),
            (".wh..wh..opq", Some(Name::Opaque)),
            (".wh..wh.plnk", Some(Name::Bookkeeping)),
            (".wh..wh..opq2", Some(Name::Bookkeeping)),
        ] {
            assert_eq!(meaning(OsStr::new(name)), want, "{name:?}");
        }
    }
}
