//! Options that a layout wants a program to have, one by one: known, or refused.
//!
//! Programs that make file systems can do much else: write to another device, print what they would do, search a disk for
//! bad blocks for hours. So each program has a list of what it's handed; whatever is in no list is refused by name.

/// An option that a program can be given.
pub(super) struct Known {
    pub(super) letter: char,
    pub(super) value: Value,
    pub(super) then: Then,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Value {
    None,
    One,
}

pub(super) enum Then {
    Take,
    /// Said anyway, or of no consequence.
    Drop,
    Refuse(&'static str),
}

/// An option as it was written, without anything that isn't to be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) letter: char,
    pub(super) value: Option<String>,
}

/// As getopt reads them: `-m 1`, `-m1` and `-qv` alike.
pub(super) fn read(options: &[String], known: &[Known]) -> Result<Vec<Given>, String> {
    let mut given = Vec::new();
    let mut words = options.iter().flat_map(|text| text.split_whitespace());
    while let Some(word) = words.next() {
        let letters = word.strip_prefix('-').filter(|letters| !letters.is_empty() && !letters.starts_with('-'));
        let mut letters = letters
            .ok_or_else(|| format!("the create option {word:?} isn't known here: what stands alone could be a device"))?
            .chars();
        while let Some(letter) = letters.next() {
            let found = known.iter().find(|known| known.letter == letter);
            let found = found.ok_or_else(|| format!("the create option -{letter} isn't known here: leave it out"))?;
            let value = match found.value {
                Value::None => None,
                Value::One => {
                    let rest = letters.as_str();
                    letters = "".chars();
                    let value = if rest.is_empty() { words.next() } else { Some(rest) };
                    Some(value.ok_or_else(|| format!("the create option -{letter} has no value"))?.to_owned())
                }
            };
            match found.then {
                Then::Take => given.push(Given { letter, value }),
                Then::Drop => {}
                Then::Refuse(why) => return Err(format!("the create option -{letter} is refused: {why}")),
            }
        }
    }
    Ok(given)
}

/// The parts of a value like `stride=32,resize=1000000`, each with a name that is in `known`.
pub(super) fn parts<'a>(letter: char, value: &'a str, known: &[&str]) -> Result<Vec<&'a str>, String> {
    let parts: Vec<_> = value.split(',').filter(|part| !part.is_empty()).collect();
    let unknown = parts.iter().find(|part| !known.contains(&name(part)));
    match unknown {
        Some(part) => Err(format!("{:?} of the create option -{letter} isn't known here: leave it out", name(part))),
        None => Ok(parts),
    }
}

/// What stands in front of `=`.
pub(super) fn name(part: &str) -> &str {
    part.split_once('=').map_or(part, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Known] = &[
        Known { letter: 'm', value: Value::One, then: Then::Take },
        Known { letter: 'j', value: Value::None, then: Then::Take },
        Known { letter: 'F', value: Value::None, then: Then::Drop },
        Known { letter: 'L', value: Value::One, then: Then::Refuse("the layout has one") },
    ];

    #[test]
    fn as_getopt_reads_them() {
        for (name, options, want) in [
            ("none", &[][..], Ok("")),
            ("two words", &["-m", "1"], Ok("-m 1")),
            ("one word", &["-m1"], Ok("-m 1")),
            ("one text", &["-m 1"], Ok("-m 1")),
            ("a whole line", &["-j -m 1 "], Ok("-j -m 1")),
            ("together", &["-Fjm1"], Ok("-j -m 1")),
            ("a value like an option", &["-m", "-j"], Ok("-m -j")),
            ("no value", &["-m"], Err("-m has no value")),
            ("not known", &["-x"], Err("-x isn't known here")),
            ("not known among others", &["-jx"], Err("-x isn't known here")),
            ("refused", &["-L", "x"], Err("-L is refused: the layout has one")),
            ("another device", &["/dev/sda"], Err("\"/dev/sda\" isn't known here")),
            ("end of options", &["--", "/dev/sda"], Err("\"--\" isn't known here")),
            ("long", &["--version"], Err("\"--version\" isn't known here")),
            ("a dash", &["-"], Err("\"-\" isn't known here")),
            ("shell", &["-m", "$(reboot)"], Ok("-m $(reboot)")),
        ] {
            let options: Vec<_> = options.iter().map(ToString::to_string).collect();
            let written = |given: Vec<Given>| {
                let each = given.iter().map(|Given { letter, value }| match value {
                    Some(value) => format!("-{letter} {value}"),
                    None => format!("-{letter}"),
                });
                each.collect::<Vec<_>>().join(" ")
            };
            match (read(&options, KNOWN).map(written), want) {
                (Ok(found), Ok(want)) => assert_eq!(found, want, "{name}"),
                (Err(found), Err(want)) => assert!(found.contains(want), "{name}: {found}"),
                (found, want) => panic!("{name}: {found:?} instead of {want:?}"),
            }
        }
    }

    #[test]
    fn parts_have_names() {
        assert_eq!(parts('E', "stride=2,,discard", &["stride", "discard"]), Ok(vec!["stride=2", "discard"]));
        let refused = parts('E', "stride=2,offset=0", &["stride"]).expect_err("not known");
        assert_eq!(refused, "\"offset\" of the create option -E isn't known here: leave it out");
    }
}
