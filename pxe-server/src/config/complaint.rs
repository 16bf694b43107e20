//! What is wrong with a configuration file, and on which line.

use std::fmt;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Everything that is wrong with a configuration: nobody wants to hear of one mistake at a time.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Complaints(Vec<Complaint>);

#[derive(Debug, PartialEq, Eq)]
struct Complaint {
    key: Key,
    says: String,
    line: Option<usize>,
}

/// Where in the file a value is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Key(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Item(usize),
}

impl Key {
    pub(super) fn of(name: &str) -> Self {
        Self(vec![Step::Name(name.to_owned())])
    }

    #[must_use]
    pub(super) fn then(&self, name: &str) -> Self {
        Self([self.0.as_slice(), &[Step::Name(name.to_owned())]].concat())
    }

    #[must_use]
    pub(super) fn item(&self, index: usize) -> Self {
        Self([self.0.as_slice(), &[Step::Item(index)]].concat())
    }
}

/// Without the places in lists: the line says which one.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().filter_map(|step| match step {
            Step::Name(name) => Some(name.as_str()),
            Step::Item(_) => None,
        });
        f.write_str(&names.collect::<Vec<_>>().join("."))
    }
}

impl Complaints {
    pub(super) fn add(&mut self, key: Key, says: impl Into<String>) {
        self.0.push(Complaint { key, says: says.into(), line: None });
    }

    /// Complains unless `fine`; says whether it was.
    pub(super) fn unless(&mut self, fine: bool, key: &Key, says: impl FnOnce() -> String) -> bool {
        if !fine {
            self.add(key.clone(), says());
        }
        fine
    }

    /// `settings`, if nothing was wrong.
    pub(super) fn or<T>(self, settings: impl FnOnce() -> T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(settings()) } else { Err(self) }
    }

    /// Finds the lines in the text that the configuration was read from.
    #[must_use]
    pub(super) fn located(mut self, text: &str) -> Self {
        if let Ok(document) = DeTable::parse(text) {
            for complaint in &mut self.0 {
                let offset = find(&document, &complaint.key);
                complaint.line = Some(text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1);
            }
            self.0.sort_by_key(|complaint| complaint.line);
        }
        self
    }
}

/// Where the value begins; for one that isn't in the file, where the nearest thing around it does.
fn find(document: &Spanned<DeTable<'_>>, key: &Key) -> usize {
    let mut table = Some(document.get_ref());
    let mut value: Option<&Spanned<DeValue<'_>>> = None;
    let mut offset = 0;
    for step in &key.0 {
        let next = match step {
            Step::Name(name) => table.and_then(|table| table.get(name.as_str())),
            Step::Item(index) => value.and_then(|value| value.get_ref().as_array()?.get(*index)),
        };
        let Some(next) = next else { break };
        offset = next.span().start;
        table = next.get_ref().as_table();
        value = Some(next);
    }
    offset
}

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Complaint { key, says, line }) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            if let Some(line) = line {
                write!(f, "line {line}: ")?;
            }
            write!(f, "{key}: {says}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Complaints {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_point_at_their_line() {
        let text =
            "a = 1\n\n[[network]]\nname = \"x\"\n\n[[network]]\npool = [\n  { first = 1 },\n  { first = 2 },\n]\n";
        let network = Key::of("network");
        for (name, key, line) in [
            ("a key", Key::of("a"), 1),
            ("a table", network.item(1), 6),
            ("a key in a table", network.item(0).then("name"), 4),
            ("a key in a list in a table", network.item(1).then("pool").item(1).then("first"), 9),
            ("a key that isn't there", network.item(1).then("pool").item(0).then("last"), 8),
            ("nothing of it is there", Key::of("b"), 1),
        ] {
            let mut complaints = Complaints::default();
            complaints.add(key, "x");
            assert_eq!(complaints.located(text).0[0].line, Some(line), "{name}");
        }
    }

    #[test]
    fn all_of_them_are_said_in_the_order_of_the_file() {
        let mut complaints = Complaints::default();
        complaints.add(Key::of("b").then("c"), "is wrong");
        complaints.add(Key::of("a"), "is worse");
        let said = complaints.located("a = 1\n[b]\nc = 2\n").to_string();
        assert_eq!(said, "line 1: a: is worse\nline 3: b.c: is wrong");
    }
}
