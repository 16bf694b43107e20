//! Patterns as people and `depmod` write them.

/// `fnmatch(3)` without flags: `*`, `?`, `[…]`. Total, and never slower than pattern times text.
pub fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where to go on if the rest doesn't match: after the last star, one character of the text later.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let matched = match (pattern.get(p), text.get(t)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                retry = Some((p + 1, t));
                p += 1;
                continue;
            }
            (Some(b'?'), Some(_)) => Some(1),
            (Some(b'['), Some(c)) => match class(pattern.get(p..).unwrap_or_default(), *c) {
                Some((length, true)) => Some(length),
                Some((_, false)) => None,
                // An unclosed bracket stands for itself.
                None => (*c == b'[').then_some(1),
            },
            (Some(want), Some(got)) if want == got => Some(1),
            _ => None,
        };
        match (matched, retry) {
            (Some(length), _) => {
                p += length;
                t += 1;
            }
            (None, Some((after_star, from))) if from < text.len() => {
                retry = Some((after_star, from + 1));
                p = after_star;
                t = from + 1;
            }
            (None, _) => return false,
        }
    }
}

/// Length of the bracket expression at the start of `pattern`, and whether `c` is in it.
fn class(pattern: &[u8], c: u8) -> Option<(usize, bool)> {
    let mut at = 1;
    let negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    if negated {
        at += 1;
    }
    let first = at;
    let mut inside = false;
    loop {
        match *pattern.get(at)? {
            b']' if at > first => return Some((at + 1, inside != negated)),
            low => {
                let high = match (pattern.get(at + 1), pattern.get(at + 2)) {
                    (Some(b'-'), Some(high)) if *high != b']' => {
                        at += 2;
                        *high
                    }
                    _ => low,
                };
                inside |= (low..=high).contains(&c);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn globs_match_as_fnmatch_does() {
        for (pattern, text, want) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("*a*b*", "xxaxxbxx", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[ab]c", "bc", true),
            ("[ab]c", "cc", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[!a-c]x", "dx", true),
            ("[]]", "]", true),
            ("[a-]", "-", true),
            ("[a", "[a", true),
            ("*[0-9]", "x12", true),
            ("a**b", "ab", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), want, "{pattern:?} on {text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_pattern_and_text_are_survived(pattern in "[a*?\\[\\]!^-]{0,24}", text in "[a\\[\\]!^-]{0,64}") {
            let _ = glob(pattern.as_bytes(), text.as_bytes());
        }

        #[test]
        fn a_text_matches_itself_and_every_text_matches_a_star(text in "[a-zA-Z0-9:_]{0,64}", cut in 0usize..64) {
            prop_assert!(glob(text.as_bytes(), text.as_bytes()));
            let (head, tail) = text.split_at(cut.min(text.len()));
            let (starred, bare) = (format!("{head}*"), format!("*{tail}"));
            prop_assert!(glob(starred.as_bytes(), text.as_bytes()));
            prop_assert!(glob(bare.as_bytes(), text.as_bytes()));
        }
    }
}
