//! What `mkfs.xfs` is told.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use uuid::Uuid;

use super::options::{self, Given, Known, Then, Value};
use super::{New, at_least, label};

const LABEL_BYTES: usize = 12;

/// mkfs.xfs makes nothing smaller since 5.19, because its log would be too small to be fast.
const LEAST: u64 = 300 << 20;

/// Said aloud, so that the result doesn't depend on the version of mkfs.xfs: what GRUB 2.06 reads as it was published, and
/// every kernel since 4.16. That leaves out time stamps after 2038 (`bigtime`), which `-m bigtime=1` in a layout asks for,
/// and `xfs_admin -O bigtime=1` gives to a file system in use.
const FEATURES: &[Feature] = &[
    Feature { since: (3, 2), letter: 'm', part: "crc=1" },
    Feature { since: (3, 2), letter: 'm', part: "finobt=1" },
    Feature { since: (4, 16), letter: 'm', part: "rmapbt=0" },
    Feature { since: (4, 16), letter: 'm', part: "reflink=1" },
    Feature { since: (5, 10), letter: 'm', part: "bigtime=0" },
    Feature { since: (5, 10), letter: 'm', part: "inobtcount=0" },
    Feature { since: (4, 16), letter: 'i', part: "sparse=1" },
    Feature { since: (5, 19), letter: 'i', part: "nrext64=0" },
    Feature { since: (6, 10), letter: 'i', part: "exchange=0" },
    Feature { since: (6, 10), letter: 'n', part: "parent=0" },
];

struct Feature {
    /// The first version that knows it.
    since: (u32, u32),
    letter: char,
    part: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    version: (u32, u32),
}

impl Program {
    /// A program that can't say its version can't make anything either.
    pub(super) fn asked(path: PathBuf) -> Option<Self> {
        let output = Command::new(&path).arg("-V").stdin(Stdio::null()).output().ok()?;
        let version = version(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { path, version })
    }
}

/// "mkfs.xfs version 6.1.0"
fn version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.trim().rsplit(' ').next()?.split('.').map(|number| {
        let digits = number.find(|c: char| !c.is_ascii_digit()).and_then(|end| number.get(..end)).unwrap_or(number);
        digits.parse::<u32>().ok()
    });
    Some((numbers.next()??, numbers.next()??))
}

const KNOWN: &[Known] = {
    use Then::{Drop, Refuse, Take};
    use Value::{None, One};
    const fn known(letter: char, value: Value, then: Then) -> Known {
        Known { letter, value, then }
    }
    &[
        known('b', One, Take),
        known('d', One, Take),
        known('i', One, Take),
        known('l', One, Take),
        known('m', One, Take),
        known('n', One, Take),
        known('s', One, Take),
        known('f', None, Drop),
        known('K', None, Drop),
        known('q', None, Drop),
        known('c', One, Refuse("there is no file to read options from: name them one by one")),
        known('L', One, Refuse("that is said by the layout itself")),
        known('N', None, Refuse("it makes nothing")),
        known('p', One, Refuse("the image fills the file system")),
        known('r', One, Refuse("a realtime volume is another device")),
        known('V', None, Refuse("it makes nothing")),
    ]
};

/// Of each option; not among them are those that name another device or the file system itself.
fn parts_of(letter: char) -> &'static [&'static str] {
    match letter {
        'b' | 's' => &["size"],
        'd' => &[
            "agcount",
            "agsize",
            "concurrency",
            "cowextsize",
            "extszinherit",
            "noalign",
            "su",
            "sunit",
            "sw",
            "swidth",
        ],
        'i' => &["exchange", "maxpct", "nrext64", "perblock", "size", "sparse"],
        'l' => &["concurrency", "lazy-count", "size", "su", "sunit", "version"],
        'm' => &["bigtime", "crc", "finobt", "inobtcount", "reflink", "rmapbt"],
        'n' => &["parent", "size", "version"],
        _ => &[],
    }
}

pub(super) fn arguments(new: &New, uuid: Uuid, program: &Program) -> Result<Vec<String>, String> {
    let label = label(new, LABEL_BYTES)?;
    at_least(new, LEAST)?;
    // mkfs.xfs takes each part once: what the layout says replaces what is said here.
    let known = FEATURES.iter().filter(|feature| feature.since <= program.version);
    let mut parts: Vec<(char, String)> = known.map(|feature| (feature.letter, feature.part.to_owned())).collect();
    for Given { letter, value } in options::read(new.options, KNOWN)? {
        for part in options::parts(letter, &value.unwrap_or_default(), parts_of(letter))? {
            parts.retain(|(other, before)| *other != letter || options::name(before) != options::name(part));
            parts.push((letter, part.to_owned()));
        }
    }
    parts.push(('m', format!("uuid={uuid}")));
    // The disk is ours, and it was erased: nothing to ask about and nothing to discard.
    let mut arguments = ["-q", "-f", "-K"].map(str::to_owned).to_vec();
    if !label.is_empty() {
        arguments.extend(["-L".to_owned(), label.to_owned()]);
    }
    // Sizes in blocks or sectors can be given only behind the size of those.
    for letter in ['b', 's', 'm', 'd', 'i', 'l', 'n'] {
        let of_letter: Vec<_> = parts.iter().filter(|(own, _)| *own == letter).map(|(_, part)| part.as_str()).collect();
        if !of_letter.is_empty() {
            arguments.extend([format!("-{letter}"), of_letter.join(",")]);
        }
    }
    Ok(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_decides_what_it_knows() {
        for (name, said, want) in [
            ("Debian 12", "mkfs.xfs version 6.1.0\n", Some((6, 1))),
            ("release candidate", "mkfs.xfs version 6.13-rc1", Some((6, 13))),
            ("nothing", "", None),
            ("nonsense", "mkfs.xfs version x.y", None),
            ("one number", "7", None),
        ] {
            assert_eq!(version(said), want, "{name}");
        }
        let new = New {
            format: super::super::Format::Xfs(Uuid::nil()),
            label: "",
            bytes: 1 << 30,
            logical_block: 512,
            options: &[],
        };
        for (version, features) in [
            ((4, 20), "-m crc=1,finobt=1,rmapbt=0,reflink=1,uuid=NIL -i sparse=1"),
            ((6, 1), "-m crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=0,inobtcount=0,uuid=NIL -i sparse=1,nrext64=0"),
            (
                (6, 13),
                "-m crc=1,finobt=1,rmapbt=0,reflink=1,bigtime=0,inobtcount=0,uuid=NIL -i sparse=1,nrext64=0,exchange=0 \
                 -n parent=0",
            ),
        ] {
            let program = Program { path: "mkfs.xfs".into(), version };
            let found = arguments(&new, Uuid::nil(), &program).expect("arguments").join(" ");
            assert_eq!(found, format!("-q -f -K {}", features.replace("NIL", &Uuid::nil().to_string())), "{version:?}");
        }
    }
}
