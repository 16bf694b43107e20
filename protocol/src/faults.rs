//! What is wrong with something that an operator wrote: all of it at once, each with its place.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where, as it's written in TOML: `users.ann.groups`.
    pub at: String,
    /// Why, without any secret that may be there.
    pub why: String,
}

/// All that is wrong, in the order in which it's written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The rest is seen when these are put right.
        const SHOWN: usize = 12;
        for (index, fault) in self.0.iter().take(SHOWN).enumerate() {
            let between = if index == 0 { "" } else { "; " };
            write!(f, "{between}{}: {}", fault.at, fault.why)?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl std::error::Error for Faults {}

/// Collects them.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Fault>);

impl Findings {
    pub(crate) fn unless(&mut self, right: bool, at: &str, why: impl FnOnce() -> String) {
        if !right {
            self.0.push(Fault { at: at.to_owned(), why: why() });
        }
    }

    pub(crate) fn at_most(&mut self, most: usize, got: usize, at: &str) {
        self.unless(got <= most, at, || format!("{got} are more than the {most} that fit in an order"));
    }

    pub(crate) fn once<T: Ord>(&mut self, values: impl IntoIterator<Item = T>, at: &str, say: impl Fn(&T) -> String) {
        let mut values: Vec<T> = values.into_iter().collect();
        values.sort();
        let twice = values.windows(2).find_map(|pair| match pair {
            [a, b] if a == b => Some(say(a)),
            _ => None,
        });
        self.unless(twice.is_none(), at, || format!("{} is there twice", twice.unwrap_or_default()));
    }

    pub(crate) fn verdict(self) -> Result<(), Faults> {
        if self.0.is_empty() { Ok(()) } else { Err(Faults(self.0)) }
    }
}

/// How much of a value is repeated when it's wrong.
const SHOWN_CHARS: usize = 80;

/// Quoted, and no longer than it needs to be to be recognised.
pub(crate) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
    }
}
