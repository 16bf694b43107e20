//! What is mounted where: lines of mountinfo, and which mount a path leads to.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// One line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) id: u32,
    pub(super) parent: u32,
    /// `8:1`; file systems without a device of their own, and btrfs, show major 0.
    pub(super) number: String,
    pub(super) place: PathBuf,
    pub(super) kind: String,
    pub(super) source: PathBuf,
    /// Options of the file system, not of this mount.
    pub(super) options: Vec<u8>,
}

/// A mount of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) id: u32,
    pub(super) parent: u32,
    pub(super) place: PathBuf,
    pub(super) kind: String,
    /// The block devices that its file system needs.
    pub(super) on: BTreeSet<String>,
}

pub(super) fn parse(text: &[u8]) -> Vec<Line> {
    text.split(|b| *b == b'\n').filter_map(line).collect()
}

fn line(line: &[u8]) -> Option<Line> {
    let mut fields = line.split(|b| *b == b' ');
    let mut next = || fields.next();
    let (id, parent, number) = (number(next()?)?, number(next()?)?, text(next()?));
    let (_root, place, _options) = (next()?, path(next()?), next()?);
    // Optional fields, as many as there are, end with a dash.
    while next()? != b"-" {}
    let (kind, source, options) = (text(next()?), path(next()?), next().unwrap_or_default().to_vec());
    Some(Line { id, parent, number, place, kind, source, options })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Blanks, line ends and backslashes are written as `\040` in mountinfo and swaps.
pub(super) fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after.get(3..).unwrap_or_default();
            }
            _ => bytes.push(first),
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Paths among the options of an overlay: what it's laid over stays in use for as long as it is mounted, also after that
/// was unmounted itself.
pub(super) fn layers(options: &[u8]) -> Vec<PathBuf> {
    let is_layer = |key: &[u8]| matches!(key, b"lowerdir" | b"lowerdir+" | b"datadir+" | b"upperdir" | b"workdir");
    values(options)
        .filter(|(key, _)| is_layer(key))
        .flat_map(|(_, value)| value.split(|b| *b == b':').map(path).collect::<Vec<_>>())
        .filter(|path| path.is_absolute())
        .collect()
}

/// Devices besides the source: the log and the realtime section of XFS.
pub(super) fn side_devices(options: &[u8]) -> Vec<PathBuf> {
    values(options).filter(|(key, _)| matches!(*key, b"logdev" | b"rtdev")).map(|(_, value)| path(value)).collect()
}

fn values(options: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    options.split(|b| *b == b',').filter_map(|option| {
        let equals = option.iter().position(|b| *b == b'=')?;
        Some((option.get(..equals)?, option.get(equals + 1..)?))
    })
}

/// Mounts by what they are mounted on, so that paths can be followed as the kernel does.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    below: BTreeMap<Option<u32>, Vec<&'a Mount>>,
}

impl<'a> Tree<'a> {
    pub(super) fn new(mounts: &'a [Mount]) -> Self {
        let known: BTreeSet<u32> = mounts.iter().map(|mount| mount.id).collect();
        let mut below: BTreeMap<Option<u32>, Vec<&Mount>> = BTreeMap::new();
        for mount in mounts {
            // What lies above our root isn't shown to us, nor is the mount that / itself covers.
            let parent = Some(mount.parent).filter(|parent| known.contains(parent) && *parent != mount.id);
            below.entry(parent).or_default().push(mount);
        }
        Self { below }
    }

    /// The mount on which a path ends, if only those count for which `there` holds.
    pub(super) fn at(&self, path: &Path, there: impl Fn(u32) -> bool) -> Option<&'a Mount> {
        let mut current: Option<&Mount> = None;
        let mut seen = BTreeSet::new();
        loop {
            let children = self.below.get(&current.map(|mount| mount.id)).into_iter().flatten();
            // The walk meets the mount with the shortest path first; the others on its way are hidden beneath it.
            let next = children
                .filter(|child| there(child.id) && path.starts_with(&child.place) && !seen.contains(&child.id))
                .min_by_key(|child| child.place.as_os_str().as_bytes().len());
            match next {
                Some(child) => {
                    seen.insert(child.id);
                    current = Some(child);
                }
                None => return current,
            }
        }
    }

    /// A mount and everything mounted below it, in an order in which all of it can be unmounted.
    pub(super) fn subtree(&self, top: &'a Mount) -> Vec<&'a Mount> {
        let (mut found, mut todo, mut seen) = (Vec::new(), vec![top], BTreeSet::new());
        while let Some(mount) = todo.pop() {
            if seen.insert(mount.id) {
                found.push(mount);
                todo.extend(self.below.get(&Some(mount.id)).into_iter().flatten());
            }
        }
        found.reverse();
        found
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines() {
        let line = |text: &str| parse(text.as_bytes()).pop();
        let want = Line {
            id: 36,
            parent: 35,
            number: "98:0".into(),
            place: "/mnt 2".into(),
            kind: "ext3".into(),
            source: "/dev/root".into(),
            options: b"rw,errors=continue".to_vec(),
        };
        for (name, text, want) in [
            (
                "as documented",
                r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue",
                Some(want.clone()),
            ),
            (
                "no optional fields",
                r"36 35 98:0 /mnt1 /mnt\0402 rw - ext3 /dev/root rw,errors=continue",
                Some(want.clone()),
            ),
            ("many", r"36 35 98:0 / /mnt\0402 rw a:1 b:2 c - ext3 /dev/root rw,errors=continue", Some(want.clone())),
            ("no options", "36 35 98:0 / /mnt\\0402 rw - ext3 /dev/root", Some(Line { options: vec![], ..want })),
            ("cut", "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1", None),
            ("no number", "x 35 98:0 / / rw - ext3 /dev/root rw", None),
            ("nothing", "", None),
        ] {
            assert_eq!(line(text), want, "{name}");
        }
    }

    #[test]
    fn escapes() {
        for (written, want) in [
            (r"/a\040b\011c\012d\134e", "/a b\tc\nd\\e"),
            (r"/a\04", r"/a\04"),
            (r"/a\", r"/a\"),
            (r"/a\777", r"/a\777"),
            ("", ""),
        ] {
            assert_eq!(path(written.as_bytes()), PathBuf::from(want), "{written}");
        }
    }

    #[test]
    fn what_an_overlay_is_laid_over() {
        let found = layers(b"rw,lowerdir=/a:/b\\040c:l/REL,upperdir=/up,workdir=/work,redirect_dir=on");
        assert_eq!(found, ["/a", "/b c", "/up", "/work"].map(PathBuf::from));
        assert_eq!(side_devices(b"rw,attr2,logdev=/dev/sdb1,noquota"), [PathBuf::from("/dev/sdb1")]);
    }

    /// Mounts as `id parent place`.
    fn mounts(all: &[(u32, u32, &str)]) -> Vec<Mount> {
        let mount = |&(id, parent, place): &(u32, u32, &str)| Mount {
            id,
            parent,
            place: place.into(),
            kind: "ext4".into(),
            on: BTreeSet::new(),
        };
        all.iter().map(mount).collect()
    }

    #[test]
    fn paths_lead_to_the_mount_that_the_kernel_finds() {
        let all =
            mounts(&[(1, 0, "/"), (2, 1, "/srv"), (3, 2, "/srv"), (4, 1, "/srv/a"), (5, 3, "/srv/a/b"), (6, 1, "/s")]);
        let tree = Tree::new(&all);
        for (path, gone, want) in [
            ("/", vec![], 1),
            ("/srvx", vec![], 1),
            ("/s/x", vec![], 6),
            ("/srv", vec![], 3),
            ("/srv/a", vec![], 3),
            ("/srv/a/b/c", vec![], 5),
            ("/srv/a/b/c", vec![5], 3),
            ("/srv/a/b/c", vec![5, 3], 2),
            ("/srv/a/b/c", vec![5, 3, 2], 4),
        ] {
            let found = tree.at(Path::new(path), |id| !gone.contains(&id));
            assert_eq!(found.map(|mount| mount.id), Some(want), "{path} without {gone:?}");
        }
        let order = |id: u32| -> Vec<u32> {
            let top = all.iter().find(|mount| mount.id == id).expect("there");
            tree.subtree(top).iter().map(|mount| mount.id).collect()
        };
        assert_eq!(order(2), [5, 3, 2]);
        assert_eq!(order(4), [4]);
    }

    proptest! {
        #[test]
        fn any_tree_ends(
            all in prop::collection::vec((0u32..12, 0u32..12, "(/[ab]){0,3}"), 0..12),
            path in "(/[ab]){0,4}",
            bytes: Vec<u8>,
        ) {
            let all: Vec<(u32, u32, &str)> = all.iter().map(|(id, parent, place)| (*id, *parent, &**place)).collect();
            let all = mounts(&all);
            let tree = Tree::new(&all);
            tree.at(Path::new(&path), |_| true);
            for mount in &all {
                let order = tree.subtree(mount);
                prop_assert_eq!(order.last().map(|last| last.id), Some(mount.id));
                prop_assert!(order.len() <= all.len());
            }
            parse(&bytes);
        }
    }
}
