//! What part of a file an HTTP server says that it sends, for whoever fetches images: machines and mirrors.

/// RFC 9110 §14.4: first byte and, if told, the file's size.
pub fn parse(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    if last < first {
        return None;
    }
    match total.trim() {
        "*" => Some((first, None)),
        total => Some((first, Some(total.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        for (text, want) in [
            ("bytes 0-99/100", Some((0, Some(100)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */100", None),
            ("bytes 9-5/100", None),
            ("0-99/100", None),
            ("bytes -1-99/100", None),
            ("bytes 0-99/99999999999999999999", None),
            ("", None),
        ] {
            assert_eq!(parse(text), want, "{text:?}");
        }
    }
}
