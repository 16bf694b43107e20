//! What `mke2fs` is told.

use uuid::Uuid;

use super::options::{self, Given, Known, Then, Value};
use super::{Format, New, at_least, at_most, label};

const LABEL_BYTES: usize = 16;

/// Every feature is named, so that the result doesn't depend on the build host's mke2fs.conf. All of these are read by
/// the GRUB of Debian 12 and later.
const EXT4: &str = "none,sparse_super,large_file,filetype,dir_index,ext_attr,has_journal,extent,huge_file,flex_bg,\
     metadata_csum,metadata_csum_seed,64bit,dir_nlink,extra_isize";

/// As far as ext3 goes, and no further: a kernel that has nothing but ext3 could mount it.
const EXT3: &str = "none,sparse_super,large_file,filetype,dir_index,ext_attr,has_journal,resize_inode";

const LAYOUT: &str = "that is said by the layout itself";

const KNOWN: &[Known] = {
    use Then::{Drop, Refuse, Take};
    use Value::{None, One};
    const fn known(letter: char, value: Value, then: Then) -> Known {
        Known { letter, value, then }
    }
    &[
        known('b', One, Take),
        known('C', One, Take),
        known('e', One, Take),
        known('E', One, Take),
        known('g', One, Take),
        known('G', One, Take),
        known('i', One, Take),
        known('I', One, Take),
        known('j', None, Take),
        known('J', One, Take),
        known('m', One, Take),
        known('N', One, Take),
        known('O', One, Take),
        known('T', One, Take),
        known('F', None, Drop),
        known('q', None, Drop),
        known('v', None, Drop),
        known(
            'c',
            None,
            Refuse("searching a drive for bad blocks takes hours, and drives have done that themselves for long"),
        ),
        known('d', One, Refuse("the image fills the file system")),
        known('l', One, Refuse("there is no list of bad blocks")),
        known('L', One, Refuse(LAYOUT)),
        known('n', None, Refuse("it makes nothing")),
        known('S', None, Refuse("it makes no complete file system")),
        known('t', One, Refuse(LAYOUT)),
        known('U', One, Refuse(LAYOUT)),
        known('z', One, Refuse("what was there before can't be brought back")),
    ]
};

/// Of -E; not among them are those that write elsewhere (`offset`) or make what no system should rely on (`test_fs`).
const EXTENDED: &[&str] = &[
    "discard",
    "encoding",
    "encoding_flags",
    "lazy_itable_init",
    "mmp_update_interval",
    "nodiscard",
    "num_backup_sb",
    "orphan_file_size",
    "packed_meta_blocks",
    "quotatype",
    "resize",
    "root_owner",
    "stride",
    "stripe-width",
    "stripe_width",
];

/// Of -J; not the one that names another device.
const JOURNAL: &[&str] = &["fast_commit_size", "size"];

pub(super) fn arguments(new: &New, uuid: Uuid) -> Result<Vec<String>, String> {
    let label = label(new, LABEL_BYTES)?;
    // With less, mke2fs leaves the journal out, and says so where nobody reads it.
    at_least(new, 16 << 20)?;
    let ext3 = matches!(new.format, Format::Ext3(_));
    // The blocks are numbered with 32 bits in ext3, and so are those reserved for growing in ext4.
    let growable = new.bytes < 16 << 40;
    if ext3 {
        at_most(new, (16 << 40) - 1)?;
    }
    let mut features = if ext3 { EXT3 } else { EXT4 }.to_owned();
    if !ext3 && growable {
        features.push_str(",resize_inode");
    }
    // The kernel zeroes inode tables when the system runs; until then checksums tell what is theirs. The journal is
    // zeroed now, because an old one with this UUID could be replayed. The drive was erased, so there is nothing to
    // discard.
    let mut extended = format!("lazy_itable_init=1,lazy_journal_init=0,nodiscard,hash_seed={uuid}");
    let mut words = ["-q", "-F", "-t", if ext3 { "ext3" } else { "ext4" }, "-b", "4096", "-I", "256"].to_vec();
    // 5 % of a drive of today is more than root will ever need to log in and clean up.
    words.extend(["-m", "1"]);
    let mut arguments: Vec<String> = words.into_iter().map(str::to_owned).collect();
    if !label.is_empty() {
        arguments.extend(["-L".to_owned(), label.to_owned()]);
    }
    arguments.extend(["-U".to_owned(), uuid.to_string()]);
    // mke2fs goes by the last -b, -m and so on, but also by the last -O and -E as a whole: those are joined.
    for Given { letter, value } in options::read(new.options, KNOWN)? {
        let value = value.unwrap_or_default();
        match letter {
            'O' => {
                let clear = |feature: &str| feature.trim_start_matches(['^', '-', '+']).to_owned();
                if value.split(',').any(|feature| matches!(&*clear(feature), "journal_dev" | "none")) {
                    return Err(
                        "the create option -O may add features and take them away, but not all of them, and not \
                         turn the file system into a journal"
                            .to_owned(),
                    );
                }
                features.push(',');
                features.push_str(&value);
            }
            'E' => {
                for part in options::parts(letter, &value, EXTENDED)? {
                    extended.push(',');
                    extended.push_str(part);
                }
            }
            'J' => arguments.extend(["-J".to_owned(), options::parts(letter, &value, JOURNAL)?.join(",")]),
            _ if value.is_empty() => arguments.push(format!("-{letter}")),
            _ => arguments.extend([format!("-{letter}"), value]),
        }
    }
    arguments.extend(["-O".to_owned(), features, "-E".to_owned(), extended]);
    Ok(arguments)
}
