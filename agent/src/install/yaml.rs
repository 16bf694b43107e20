//! The little YAML that others want of us, and the less that we read of theirs.
//!
//! What is written is JSON's values in YAML's blocks, so that people can read it and nothing has two meanings. What is
//! read came out of an image: one document of mappings and scalars, without anchors, so it can't grow while it's read.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Parser};
use serde_json::Value;

pub(crate) fn text(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                text.push_str(&format!("{indent}{}:", key_text(key)));
                below(value, depth + 1, text);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            for value in values {
                text.push_str(&format!("{indent}-"));
                below(value, depth + 1, text);
            }
        }
        scalar => text.push_str(&format!("{indent}{scalar}\n")),
    }
}

fn below(value: &Value, depth: usize, text: &mut String) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(values) => !values.is_empty(),
        _ => false,
    };
    if nested {
        text.push('\n');
        block(value, depth, text);
    } else {
        // Strings in JSON's quotes mean the same in YAML.
        text.push_str(&format!(" {value}\n"));
    }
}

/// Plain where it can't be taken for anything but a word. (`on`, `no`, `y` and the like are truth values to some.)
fn key_text(key: &str) -> String {
    const WORDS: [&str; 10] = ["id", "ip", "to", "via", "url", "ips", "mac", "mtu", "vpn", "vrf"];
    let plain = key.len() > 4
        && key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        && !key.eq_ignore_ascii_case("false");
    let known =
        WORDS.contains(&key) || matches!(key, "asn" | "nat" | "nics" | "role" | "name" | "uuid" | "mode" | "link");
    if plain || known { key.to_owned() } else { Value::from(key).to_string() }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NotRead {
    #[error("it isn't YAML: {0}")]
    Syntax(String),
    #[error("it isn't one mapping of plain values")]
    Shape,
    #[error("it is larger or deeper than it has any reason to be")]
    TooLarge,
}

const MAX_BYTES: usize = 64 << 10;
const MAX_DEPTH: usize = 16;

/// Every scalar by its path, with dots: `custom_script.workdir`. Sequences are left out.
pub(crate) fn scalars(text: &str) -> Result<BTreeMap<String, String>, NotRead> {
    /// Where the reader is.
    enum Inside {
        Mapping { key: Option<String> },
        Sequence,
    }
    if text.len() > MAX_BYTES {
        return Err(NotRead::TooLarge);
    }
    let mut found = BTreeMap::new();
    let mut stack: Vec<Inside> = Vec::new();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, _) = event.map_err(|e| NotRead::Syntax(e.to_string()))?;
        if stack.len() > MAX_DEPTH {
            return Err(NotRead::TooLarge);
        }
        // What has just begun or been read is the value of the key before it.
        let listed = stack.iter().any(|level| matches!(level, Inside::Sequence));
        match event {
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(NotRead::Shape);
                }
            }
            Event::Alias(_) => return Err(NotRead::Shape),
            Event::MappingStart(..) => match stack.last() {
                Some(Inside::Mapping { key: None }) => return Err(NotRead::Shape),
                _ => stack.push(Inside::Mapping { key: None }),
            },
            Event::SequenceStart(..) => match stack.last() {
                None | Some(Inside::Mapping { key: None }) => return Err(NotRead::Shape),
                _ => stack.push(Inside::Sequence),
            },
            Event::MappingEnd | Event::SequenceEnd => {
                stack.pop();
                if let Some(Inside::Mapping { key }) = stack.last_mut() {
                    *key = None;
                }
            }
            Event::Scalar(value, ..) => {
                let names = stack.iter().filter_map(|level| match level {
                    Inside::Mapping { key } => key.as_deref(),
                    Inside::Sequence => None,
                });
                let path = names.collect::<Vec<_>>().join(".");
                match stack.last_mut() {
                    None => {
                        // An empty document is a null.
                        if !value.is_empty() && value != "~" {
                            return Err(NotRead::Shape);
                        }
                    }
                    Some(Inside::Sequence) => {}
                    Some(Inside::Mapping { key: key @ None }) => *key = Some(value.into_owned()),
                    Some(Inside::Mapping { key }) => {
                        *key = None;
                        if !listed {
                            found.insert(path, value.into_owned());
                        }
                    }
                }
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
        }
    }
    Ok(found)
}

/// Whatever an image has there: what is read is no more than what was there.
#[cfg(fuzzing)]
pub(crate) fn fuzz(input: &str) {
    if let Ok(found) = scalars(input) {
        assert!(found.values().map(String::len).sum::<usize>() <= 4 * input.len(), "{found:?}");
    }
    let written = text(&serde_json::json!({ "hostname": input, "workdir": { "nested": [input, 1] } }));
    if !input.contains('\0') && written.len() < MAX_BYTES {
        assert_eq!(scalars(&written).expect(&written).get("hostname").map(String::as_str), Some(input), "{written}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn written_for_people() {
        let value = json!({
            "network": { "version": 2, "ethernets": { "0-x": { "dhcp4": true, "addresses": ["10.0.0.5/24"] } } },
            "items": [{ "to": "default", "via": "10.0.0.1" }, []],
            "hostname": "a: \"b\"\n# c",
            "role": null,
            "on": {},
        });
        let want = "hostname: \"a: \\\"b\\\"\\n# c\"\nitems:\n  -\n    to: \"default\"\n    via: \"10.0.0.1\"\n  - []\nnetwork:\n  ethernets:\n    \"0-x\":\n      \
                    addresses:\n        - \"10.0.0.5/24\"\n      dhcp4: true\n  version: 2\n\"on\": {}\nrole: null\n";
        assert_eq!(text(&value), want);
    }

    #[test]
    fn read_as_images_have_it() {
        let map = |pairs: &[(&str, &str)]| {
            Ok(pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        for (name, text, want) in [
            (
                "as Go writes it",
                "initrd: /boot/initrd.img-6.1\ncmdline: console=ttyS0 root=UUID=1 init=/sbin/init\nkernel: /boot/vmlinuz-6.1\n\
                 bootloader_id: metal-debian\n",
                map(&[
                    ("bootloader_id", "metal-debian"),
                    ("cmdline", "console=ttyS0 root=UUID=1 init=/sbin/init"),
                    ("initrd", "/boot/initrd.img-6.1"),
                    ("kernel", "/boot/vmlinuz-6.1"),
                ]),
            ),
            ("folded, as it once did", "a: one\n  two\n  three\n", map(&[("a", "one two three")])),
            ("quoted", "a: \"x: y\"\nb: 'z'\n", map(&[("a", "x: y"), ("b", "z")])),
            ("nested, with a list", "s:\n  w: /\nonly: [a, {k: v}]\n", map(&[("s.w", "/")])),
            ("nothing", "", map(&[])),
            ("a comment", "# nothing\n", map(&[])),
            ("a list", "- a\n", Err(NotRead::Shape)),
            ("a word", "a", Err(NotRead::Shape)),
            ("two documents", "a: b\n---\nc: d\n", Err(NotRead::Shape)),
            ("an alias", "a: &x [b]\nc: *x\n", Err(NotRead::Shape)),
            ("deeper than deep", &"[".repeat(40), Err(NotRead::Shape)),
            ("deep", &format!("a: {}", "[".repeat(40)), Err(NotRead::TooLarge)),
            ("large", &format!("a: {}\n", "x".repeat(MAX_BYTES)), Err(NotRead::TooLarge)),
        ] {
            assert_eq!(scalars(text), want, "{name}");
        }
        assert!(matches!(scalars("a: [b"), Err(NotRead::Syntax(_))));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-z:{}\\[\\]&*!|>'\"\\-#,?% \n\t]{0,120}") {
            let _ = scalars(&text);
        }

        #[test]
        fn what_is_written_is_read(key in "[a-z]{1,8}", value in "\\PC{0,60}") {
            let written = text(&json!({ &key: &value }));
            prop_assert_eq!(scalars(&written).map(|found| found.get(&key).cloned()), Ok(Some(value)));
        }
    }
}
