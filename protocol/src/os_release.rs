//! What an operating system calls itself, read the same way by who packs it and by the system itself.

/// `PRETTY_NAME` of os-release(5), where values are quoted as for a shell.
pub fn pretty_name(os_release: &str) -> Option<String> {
    let value = os_release.lines().find_map(|line| line.trim().strip_prefix("PRETTY_NAME="))?.trim();
    let quoted = |q: char| value.strip_prefix(q).and_then(|v| v.strip_suffix(q));
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    let mut plain = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    (!plain.is_empty()).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn systems_say_their_names() {
        for (name, text, want) in [
            (
                "debian",
                "NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n",
                Some("Debian GNU/Linux 12 (bookworm)"),
            ),
            ("bare", "PRETTY_NAME=tiny\n", Some("tiny")),
            ("single quotes", "PRETTY_NAME='a b'", Some("a b")),
            ("escaped", r#"PRETTY_NAME="a \"b\" c""#, Some("a \"b\" c")),
            ("empty", "PRETTY_NAME=\"\"\n", None),
            ("none", "NAME=x\n", None),
            ("half a quote", "PRETTY_NAME=\"a", Some("\"a")),
        ] {
            assert_eq!(pretty_name(text).as_deref(), want, "{name}");
        }
    }
}
