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

/// Whether there can be a text that matches both.
pub fn globs_meet(a: &[u8], b: &[u8]) -> bool {
    let (a, b) = (pieces(a), pieces(b));
    // Row by row from the end: whether what is left of `a` from here on meets what is left of `b` from each place on.
    let mut below: Vec<bool> = Vec::new();
    for i in (0..=a.len()).rev() {
        let mut row = vec![false; b.len() + 1];
        for j in (0..=b.len()).rev() {
            let next = |row: &[bool], at: usize| row.get(at).copied().unwrap_or(false);
            let meets = match (a.get(i), b.get(j)) {
                (None, None) => true,
                (Some(Piece::Any), Some(_)) => next(&below, j) || next(&row, j + 1),
                (Some(Piece::Any), None) => next(&below, j),
                (_, Some(Piece::Any)) => next(&row, j + 1) || (i < a.len() && next(&below, j)),
                (Some(Piece::One(these)), Some(Piece::One(those))) => {
                    these.iter().zip(those).any(|(a, b)| a & b != 0) && next(&below, j + 1)
                }
                (None, Some(Piece::One(_))) | (Some(Piece::One(_)), None) => false,
            };
            row.iter_mut().skip(j).take(1).for_each(|place| *place = meets);
        }
        below = row;
    }
    below.first().copied().unwrap_or(false)
}

enum Piece {
    /// A star.
    Any,
    /// One character of these, a bit for each byte there is.
    One([u64; 4]),
}

fn pieces(pattern: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = pattern;
    while let Some(first) = rest.first() {
        let is_class = *first == b'[' && class(rest, 0).is_some();
        let means = |c: u8| match first {
            b'?' => true,
            b'[' if is_class => class(rest, c).is_some_and(|(_, inside)| inside),
            first => *first == c,
        };
        pieces.push(if *first == b'*' {
            Piece::Any
        } else {
            let mut set = [0; 4];
            for c in (0..=u8::MAX).filter(|c| means(*c)) {
                set.iter_mut().skip(usize::from(c / 64)).take(1).for_each(|word| *word |= 1 << (c % 64));
            }
            Piece::One(set)
        });
        let length = if is_class { class(rest, 0).map_or(1, |(length, _)| length) } else { 1 };
        rest = rest.get(length..).unwrap_or_default();
    }
    pieces
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

    #[test]
    fn some_patterns_have_a_text_in_common() {
        for (a, b, want) in [
            ("", "", true),
            ("", "*", true),
            ("", "?", false),
            ("a*", "*b", true),
            ("a*", "b*", false),
            ("H100*", "H200*", false),
            ("Intel Xeon Silver*", "Intel Xeon*", true),
            ("/dev/nvme*", "/dev/sd*", false),
            ("/dev/nvme?n1", "/dev/nvme1*", true),
            ("[a-c]x", "[c-e]?", true),
            ("[a-c]x", "[d-e]?", false),
            ("[!a]", "a", false),
            ("**a", "a**", true),
            ("a?", "??", true),
            ("a?", "???", false),
            ("[a", "[*", true),
        ] {
            let meet = |a: &str, b: &str| globs_meet(a.as_bytes(), b.as_bytes());
            assert_eq!((meet(a, b), meet(b, a)), (want, want), "{a:?} and {b:?}");
        }
    }

    proptest! {
        #[test]
        fn who_matches_both_shows_that_they_meet(a in "[ab*?]{0,6}", b in "[ab*?]{0,6}", text in "[ab]{0,6}") {
            let (a, b) = (a.as_bytes(), b.as_bytes());
            if glob(a, text.as_bytes()) && glob(b, text.as_bytes()) {
                prop_assert!(globs_meet(a, b));
            }
        }

        #[test]
        fn those_that_meet_have_a_text_to_show(a in "[ab*?]{0,4}", b in "[ab*?]{0,4}") {
            // Of two patterns of four, the shortest common text has at most eight characters.
            let found = (0..=8).any(|length| (0..1u32 << length).any(|bits| {
                let text: Vec<u8> = (0..length).map(|i| if bits >> i & 1 == 0 { b'a' } else { b'b' }).collect();
                glob(a.as_bytes(), &text) && glob(b.as_bytes(), &text)
            }));
            prop_assert_eq!(globs_meet(a.as_bytes(), b.as_bytes()), found);
        }

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
