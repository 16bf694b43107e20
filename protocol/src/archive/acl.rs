//! POSIX ACLs as tars have them, in text, and as `setxattr` takes them.

const VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;

/// Attributes that hold an ACL, in the form of `linux/posix_acl_xattr.h`.
pub(super) const ACCESS: &str = "system.posix_acl_access";
pub(super) const DEFAULT: &str = "system.posix_acl_default";

/// star's text (`user::rwx,user:lisa:r-x:502,…`), with commas or newlines, as GNU tar and bsdtar write it. Names alone
/// mean nothing here: what they stand for is a matter of the system that the tar was made on.
pub(super) fn attribute(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    const MALFORMED: &str = "has an ACL that isn't understood";
    let text = std::str::from_utf8(text).map_err(|_| MALFORMED)?;
    let mut entries = Vec::new();
    for entry in text.split([',', '\n']) {
        let entry = entry.split('#').next().unwrap_or_default().trim();
        if entry.is_empty() {
            continue;
        }
        let fields: Vec<&str> = entry.split(':').map(str::trim).collect();
        let (kind, name, rights, id) = match fields.as_slice() {
            [kind, name, rights] => (*kind, *name, *rights, None),
            [kind, name, rights, id] => (*kind, *name, *rights, Some(*id)),
            _ => return Err(MALFORMED),
        };
        let named = !name.is_empty();
        let tag: u16 = match (kind, named) {
            ("user" | "u", false) => 0x01,
            ("user" | "u", true) => 0x02,
            ("group" | "g", false) => 0x04,
            ("group" | "g", true) => 0x08,
            ("mask" | "m", false) => 0x10,
            ("other" | "o", false) => 0x20,
            _ => return Err(MALFORMED),
        };
        let id = match (named, id.unwrap_or(name).parse()) {
            (false, _) => NO_ID,
            (true, Ok(id)) => id,
            (true, Err(_)) => {
                return Err("has an ACL that says who by name only: make the tar with --numeric-owner");
            }
        };
        let mut bits = 0u16;
        for right in rights.bytes() {
            bits |= match right {
                b'r' => 4,
                b'w' => 2,
                b'x' => 1,
                b'-' => 0,
                _ => return Err(MALFORMED),
            };
        }
        entries.push((tag, id, bits));
    }
    // The kernel wants them so.
    entries.sort_unstable();
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, id, bits) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(bits.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_as_tars_have_them() {
        let entry = |tag: u8, rights: u8, id: u32| {
            let [a, b, c, d] = id.to_le_bytes();
            [tag, 0, rights, 0, a, b, c, d]
        };
        let of = |entries: &[[u8; 8]]| [&[2, 0, 0, 0][..], &entries.concat()].concat();
        let all = of(&[
            entry(0x01, 6, NO_ID),
            entry(0x02, 4, 1000),
            entry(0x04, 4, NO_ID),
            entry(0x10, 6, NO_ID),
            entry(0x20, 0, NO_ID),
        ]);
        for (name, text, want) in [
            ("GNU tar", "user::rw-\nuser:1000:r--\ngroup::r--\nmask::rw-\nother::---\n", Ok(all.clone())),
            ("in another order", "mask::rw-,other::---,group::r--,user:1000:r--,user::rw-", Ok(all.clone())),
            ("star and bsdtar", "user::rw-,user:lisa:r--:1000,group::r--,mask::rw-,other::---", Ok(all.clone())),
            (
                "with what it amounts to",
                "user::rw-\nuser:1000:r--\t#effective:---\ngroup::r--\nmask::rw-\nother::---",
                Ok(all),
            ),
            ("nothing", "", Ok(of(&[]))),
            ("by name only", "user:lisa:r--", Err("by name only")),
            ("no such kind", "friend:1:r--", Err("isn't understood")),
            ("no such right", "user::rq-", Err("isn't understood")),
            ("too few fields", "user:rwx", Err("isn't understood")),
        ] {
            match (attribute(text.as_bytes()), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{name}"),
                (Err(got), Err(want)) => assert!(got.contains(want), "{name}: {got}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }
}
