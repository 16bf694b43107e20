//! The language in which LVM writes its metadata: assignments, and sections of them in braces.

use std::fmt;

/// Metadata are four deep.
const DEEPEST: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(i64),
    Text(String),
    List(Vec<Value>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) values: Vec<(String, Value)>,
    pub(super) sections: Vec<(String, Section)>,
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("in line {line}: {why}")]
pub(super) struct Malformed {
    line: usize,
    why: &'static str,
}

impl Section {
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        let mut parser = Parser { text, place: 0 };
        let section = parser.section(0).map_err(|why| {
            let before = text.get(..parser.place).unwrap_or(text);
            Malformed { line: 1 + before.matches('\n').count(), why }
        })?;
        Ok(section)
    }

    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.values.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|(known, _)| known == name).map(|(_, section)| section)
    }

    /// 0 or more.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.value(name)?.number()
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.value(name)?.text()
    }

    pub(super) fn list(&self, name: &str) -> Option<&[Value]> {
        match self.value(name)? {
            Value::List(list) => Some(list),
            _ => None,
        }
    }

    /// The texts in a list; where there is no such list there are none.
    pub(super) fn texts(&self, name: &str) -> Vec<&str> {
        self.list(name).unwrap_or_default().iter().filter_map(Value::text).collect()
    }
}

impl Value {
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::Number(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    /// A byte at which a character begins.
    place: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.place..).unwrap_or_default()
    }

    /// Blanks and comments are nothing.
    fn next(&mut self) -> Option<char> {
        loop {
            let rest = self.rest().trim_start();
            self.place = self.text.len() - rest.len();
            match rest.chars().next() {
                Some('#') => self.place += rest.find('\n').unwrap_or(rest.len()),
                other => return other,
            }
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        let there = self.next() == Some(wanted);
        self.place += if there { wanted.len_utf8() } else { 0 };
        there
    }

    fn word(&mut self, belongs: fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        self.place += length;
        rest.get(..length).unwrap_or_default()
    }

    /// What is between braces, or all of the text.
    fn section(&mut self, depth: usize) -> Result<Section, &'static str> {
        if depth > DEEPEST {
            return Err("too many sections in each other");
        }
        let mut section = Section::default();
        loop {
            match self.next() {
                None if depth == 0 => return Ok(section),
                None => return Err("the text ends within a section"),
                Some('}') if depth > 0 => {
                    self.place += 1;
                    return Ok(section);
                }
                Some(_) => {}
            }
            let name = self.word(|c| c.is_ascii_alphanumeric() || "_.-+/".contains(c));
            if name.is_empty() {
                return Err("the name of a value or of a section was expected");
            }
            if self.take('{') {
                section.sections.push((name.to_owned(), self.section(depth + 1)?));
            } else if self.take('=') {
                section.values.push((name.to_owned(), self.value()?));
            } else {
                return Err("a name is followed by neither a value nor a section");
            }
        }
    }

    fn value(&mut self) -> Result<Value, &'static str> {
        if !self.take('[') {
            return self.single();
        }
        let mut list = Vec::new();
        while !self.take(']') {
            list.push(self.single()?);
            if !self.take(',') && self.next() != Some(']') {
                return Err("a list goes on without a comma");
            }
        }
        Ok(Value::List(list))
    }

    fn single(&mut self) -> Result<Value, &'static str> {
        if self.take('"') {
            return self.quoted();
        }
        let word = self.word(|c| c.is_ascii_digit() || c == '-');
        word.parse().map(Value::Number).map_err(|_| "a number or a text in quotes was expected")
    }

    fn quoted(&mut self) -> Result<Value, &'static str> {
        let mut text = String::new();
        let mut rest = self.rest().char_indices();
        while let Some((at, c)) = rest.next() {
            match c {
                '"' => {
                    self.place += at + 1;
                    return Ok(Value::Text(text));
                }
                '\\' => text.extend(rest.next().map(|(_, escaped)| escaped)),
                other => text.push(other),
            }
        }
        Err("the text ends within quotes")
    }
}

/// A text in quotes.
pub(super) fn quoted(text: &str) -> impl fmt::Display {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_understood() {
        let text = "# Generated\nvg {\n\tid = \"a\\\"b\\\\\"\t# comment\n\nnumbers=[1, -2,]empty = []\n\
                    inner {} list = [\n\"pv0\", 0,\n\"pv1\", 7\n]\n}\nversion = 1 # no end of line";
        let section = Section::parse(text).expect("fine");
        let vg = section.section("vg").expect("a section");
        assert_eq!(section.number("version"), Some(1));
        assert_eq!(vg.text("id"), Some("a\"b\\"));
        assert_eq!(vg.list("numbers"), Some(&[Value::Number(1), Value::Number(-2)][..]));
        assert_eq!((vg.list("empty"), vg.texts("list")), (Some(&[][..]), vec!["pv0", "pv1"]));
        assert_eq!(vg.section("inner"), Some(&Section::default()));
        assert_eq!((vg.number("id"), vg.text("numbers"), vg.list("id"), vg.number("none")), (None, None, None, None));
    }

    #[test]
    fn what_is_not() {
        let deep = "a{".repeat(DEEPEST + 1);
        for (name, text, line, why) in [
            ("open section", "a {\nb = 1\n", 3, "the text ends within a section"),
            ("open quotes", "a = \"b\n", 1, "the text ends within quotes"),
            ("open escape", "a = \"b\\", 1, "the text ends within quotes"),
            ("closed twice", "a {\n}\n}", 3, "the name of a value or of a section was expected"),
            ("no value", "\na =", 2, "a number or a text in quotes was expected"),
            ("no number", "a = 1-2", 1, "a number or a text in quotes was expected"),
            ("large number", "a = 9223372036854775808", 1, "a number or a text in quotes was expected"),
            ("bare word", "a = b", 1, "a number or a text in quotes was expected"),
            ("name alone", "a", 1, "a name is followed by neither a value nor a section"),
            ("list without commas", "a = [1 2]", 1, "a list goes on without a comma"),
            ("open list", "a = [1,\n\n", 3, "a number or a text in quotes was expected"),
            ("too deep", &deep, 1, "too many sections in each other"),
        ] {
            assert_eq!(Section::parse(text), Err(Malformed { line, why }), "{name}");
        }
    }

    proptest! {
        #[test]
        fn texts_come_back(text in any::<String>()) {
            let section = Section::parse(&format!("a = {}", quoted(&text))).expect("fine");
            prop_assert_eq!(section.text("a"), Some(text.as_str()));
        }

        #[test]
        fn any_text(text in "([a-z]|[0-9]| |\n|=|\\{|\\}|\\[|\\]|,|\"|\\\\|#|é|-){0,200}") {
            if let Err(malformed) = Section::parse(&text) {
                prop_assert!(malformed.line <= 1 + text.matches('\n').count());
            }
        }
    }
}
