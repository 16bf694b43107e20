//! What a request for a file comes to: the whole, a part, or a refusal (RFC 9110 §13, §14). Nothing is read or sent here.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};

/// What there is to be known of a file before it's sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) length: u64,
    /// An entity tag with its quotes; it changes whenever the content does.
    pub(crate) tag: String,
    /// Whole seconds, as HTTP's dates are.
    pub(crate) modified: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Whole,
    Part(Range<u64>),
    NotModified,
    /// The client wanted it as it was.
    Changed,
    OutOfRange,
}

impl Plan {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Whole => StatusCode::OK,
            Self::Part(_) => StatusCode::PARTIAL_CONTENT,
            Self::NotModified => StatusCode::NOT_MODIFIED,
            Self::Changed => StatusCode::PRECONDITION_FAILED,
            Self::OutOfRange => StatusCode::RANGE_NOT_SATISFIABLE,
        }
    }
}

/// In the order of RFC 9110 §13.2.2. What isn't understood counts as not said.
pub(crate) fn plan(method: &Method, headers: &HeaderMap, facts: &Facts) -> Plan {
    let date = |name: HeaderName| headers.get(name).and_then(|v| httpdate::parse_http_date(v.to_str().ok()?).ok());
    let changed = if headers.contains_key(header::IF_MATCH) {
        !names(headers, header::IF_MATCH, &facts.tag, Comparison::Strong)
    } else {
        date(header::IF_UNMODIFIED_SINCE).zip(facts.modified).is_some_and(|(since, modified)| modified > since)
    };
    if changed {
        return Plan::Changed;
    }
    let known = if headers.contains_key(header::IF_NONE_MATCH) {
        names(headers, header::IF_NONE_MATCH, &facts.tag, Comparison::Weak)
    } else {
        date(header::IF_MODIFIED_SINCE).zip(facts.modified).is_some_and(|(since, modified)| modified <= since)
    };
    if known {
        return Plan::NotModified;
    }
    // A range of what has changed since would be glued to something else.
    let current = headers.get(header::IF_RANGE).is_none_or(|value| {
        value == facts.tag.as_str() || facts.modified.is_some_and(|modified| date(header::IF_RANGE) == Some(modified))
    });
    // Ranges mean nothing to HEAD (§14.2).
    match headers.get(header::RANGE).and_then(|value| value.to_str().ok()) {
        Some(range) if current && method == Method::GET => wanted(range, facts.length),
        _ => Plan::Whole,
    }
}

#[derive(Clone, Copy)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags has this one (§8.8.3.2).
fn names(headers: &HeaderMap, list: HeaderName, tag: &str, comparison: Comparison) -> bool {
    let tags = headers.get_all(list).into_iter().filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    tags.map(str::trim).any(|named| {
        let named = match comparison {
            Comparison::Strong => named,
            Comparison::Weak => named.strip_prefix("W/").unwrap_or(named),
        };
        named == "*" || named == tag
    })
}

/// §14.1.2. What isn't understood, and lists of ranges, get the whole, as §14.2 allows.
fn wanted(header: &str, total: u64) -> Plan {
    let spec = header.split_once('=').filter(|(unit, _)| unit.eq_ignore_ascii_case("bytes"));
    let Some((first, last)) = spec.and_then(|(_, spec)| spec.trim().split_once('-')) else {
        return Plan::Whole;
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    let range = match (number(first), number(last)) {
        (Some(first), _) if last.is_empty() => first..total,
        (Some(first), Some(last)) if first <= last => first..last.saturating_add(1).min(total),
        (None, Some(length)) if first.is_empty() => total.saturating_sub(length)..total,
        _ => return Plan::Whole,
    };
    if range.is_empty() { Plan::OutOfRange } else { Plan::Part(range) }
}

/// A file's time as HTTP can say it: whole seconds from 1970 on (§8.8.2.1). While that second lasts, the file may still change
/// without it, and then a range by date would be glued to something else; so nothing is said yet.
pub(crate) fn said(modified: SystemTime, now: SystemTime) -> Option<SystemTime> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
    let modified = seconds(modified).filter(|modified| Some(*modified) < seconds(now))?;
    Some(UNIX_EPOCH + Duration::from_secs(modified))
}

/// A part of a file lies in it, and HEAD is never answered with one.
#[cfg(fuzzing)]
pub(crate) fn fuzz(method: &Method, headers: &HeaderMap) {
    let modified = Some(UNIX_EPOCH + Duration::from_secs(784_111_777));
    for length in [0, 1, 100, u64::MAX] {
        let planned = plan(method, headers, &Facts { length, tag: "\"a\"".into(), modified });
        if let Plan::Part(range) = &planned {
            assert!(range.start < range.end && range.end <= length, "{range:?} of {length}");
        }
        assert!(method == Method::GET || !matches!(planned, Plan::Part(_) | Plan::OutOfRange), "{planned:?}");
    }
}

#[cfg(test)]
mod tests {
    use Plan::*;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read_as_the_rfc_says() {
        for (header, want) in [
            ("bytes=0-9", Part(0..10)),
            ("Bytes=0-9", Part(0..10)),
            ("bytes=10-", Part(10..100)),
            ("bytes=-10", Part(90..100)),
            ("bytes=-1000", Part(0..100)),
            ("bytes=90-1000", Part(90..100)),
            ("bytes=0-18446744073709551615", Part(0..100)),
            ("bytes=100-", OutOfRange),
            ("bytes=-0", OutOfRange),
            ("bytes=9-5", Whole),
            ("bytes=+1-5", Whole),
            ("bytes=0-1,5-6", Whole),
            ("bytes=-", Whole),
            ("lines=0-1", Whole),
            ("", Whole),
        ] {
            assert_eq!(wanted(header, 100), want, "{header}");
        }
        assert_eq!(wanted("bytes=0-", 0), OutOfRange);
    }

    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const THEN: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn facts() -> Facts {
        let modified = Some(UNIX_EPOCH + Duration::from_secs(784_111_777));
        Facts { length: 100, tag: "\"a\"".into(), modified }
    }

    #[test]
    fn conditions_in_their_order() {
        let range = ("range", "bytes=0-9");
        for (name, asked, want) in [
            ("nothing", vec![], Whole),
            ("a range", vec![range], Part(0..10)),
            ("the one it has", vec![("if-none-match", "\"a\"")], NotModified),
            ("a weak copy of it", vec![("if-none-match", "\"b\", W/\"a\"")], NotModified),
            ("on the second line", vec![("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], NotModified),
            ("any at all", vec![("if-none-match", "*")], NotModified),
            ("another", vec![("if-none-match", "\"b\"")], Whole),
            ("another, and a date that would do", vec![("if-none-match", "\"b\""), ("if-modified-since", THEN)], Whole),
            ("since then", vec![("if-modified-since", THEN)], NotModified),
            ("since later", vec![("if-modified-since", AFTER)], NotModified),
            ("since before", vec![("if-modified-since", BEFORE)], Whole),
            ("in the old spelling", vec![("if-modified-since", "Sunday, 06-Nov-94 08:49:37 GMT")], NotModified),
            ("a date that is none", vec![("if-modified-since", "yesterday")], Whole),
            ("only this", vec![("if-match", "\"a\"")], Whole),
            ("only any", vec![("if-match", "*"), range], Part(0..10)),
            ("only another", vec![("if-match", "\"b\"")], Changed),
            ("only a weak one", vec![("if-match", "W/\"a\"")], Changed),
            (
                "only this, and a date that wouldn't do",
                vec![("if-match", "\"a\""), ("if-unmodified-since", BEFORE)],
                Whole,
            ),
            ("unmodified since", vec![("if-unmodified-since", THEN)], Whole),
            ("modified since", vec![("if-unmodified-since", BEFORE), range], Changed),
            ("not this, but known", vec![("if-match", "\"b\""), ("if-none-match", "\"a\"")], Changed),
            ("this, and known", vec![("if-match", "\"a\""), ("if-none-match", "\"a\"")], NotModified),
            ("known, and a range", vec![("if-none-match", "\"a\""), range], NotModified),
            ("a range of the same", vec![("if-range", "\"a\""), range], Part(0..10)),
            ("a range of a weak one", vec![("if-range", "W/\"a\""), range], Whole),
            ("a range of another", vec![("if-range", "\"b\""), range], Whole),
            ("a range by date", vec![("if-range", THEN), range], Part(0..10)),
            ("a range by another date", vec![("if-range", AFTER), range], Whole),
            ("beyond the end", vec![("range", "bytes=100-")], OutOfRange),
            ("beyond the end of another", vec![("if-range", "\"b\""), ("range", "bytes=100-")], Whole),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in asked {
                headers.append(name, value.parse().expect("a header"));
            }
            assert_eq!(plan(&Method::GET, &headers, &facts()), want, "{name}");
            let head = plan(&Method::HEAD, &headers, &facts());
            assert_eq!(head, if matches!(want, Part(_) | OutOfRange) { Whole } else { want }, "HEAD: {name}");
        }
    }

    #[test]
    fn times_that_http_can_say() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let late = |seconds| at(seconds) + Duration::from_millis(900);
        assert_eq!(said(late(5), at(9)), Some(at(5)));
        assert_eq!(said(at(5), at(6)), Some(at(5)));
        assert_eq!(said(at(5), late(5)), None, "may change again");
        assert_eq!(said(at(50), at(9)), None, "from the future");
        assert_eq!(said(UNIX_EPOCH - Duration::from_secs(5), at(9)), None, "before there were computers");
    }

    proptest! {
        #[test]
        fn any_range_stays_inside(header in "(bytes=)?[-0-9, +]{0,30}", total: u64) {
            if let Part(range) = wanted(&header, total) {
                prop_assert!(range.start < range.end && range.end <= total);
            }
        }

        #[test]
        fn any_header_is_survived(index in 0..6_usize, value: Vec<u8>) {
            let names = ["range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since"];
            if let Ok(value) = axum::http::HeaderValue::from_bytes(&value) {
                let headers = HeaderMap::from_iter([(names[index].parse().expect("a name"), value)]);
                plan(&Method::GET, &headers, &facts());
            }
        }
    }
}
