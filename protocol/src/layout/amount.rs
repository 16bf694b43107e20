//! `20 GiB`, `35 %` or `rest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::faults::Findings;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Amount {
    Bytes(u64),
    Percent(u8),
    /// What the others leave.
    Rest,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no size: write it as \"512 MiB\", \"20 GiB\", \"35 %\" or \"rest\"")]
pub struct NoAmount(String);

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for Amount {
    type Err = NoAmount;
    fn from_str(text: &str) -> Result<Self, NoAmount> {
        let bad = || NoAmount(text.chars().take(40).collect());
        let text = text.trim();
        if text == "rest" {
            return Ok(Self::Rest);
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit = unit.trim_start();
        if unit == "%" {
            return number.parse().map(Self::Percent).map_err(|_| bad());
        }
        let (_, size) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(*size)).map(Self::Bytes).ok_or_else(bad)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rest => f.write_str("rest"),
            Self::Percent(percent) => write!(f, "{percent} %"),
            Self::Bytes(bytes) => match UNITS.iter().find(|(_, size)| bytes.is_multiple_of(*size) && bytes >= size) {
                Some((name, size)) => write!(f, "{} {name}", bytes / size),
                // Only by those who don't read it from a text.
                None => write!(f, "{} KiB", bytes / 1024),
            },
        }
    }
}

impl TryFrom<String> for Amount {
    type Error = NoAmount;
    fn try_from(text: String) -> Result<Self, NoAmount> {
        text.parse()
    }
}

impl From<Amount> for String {
    fn from(amount: Amount) -> Self {
        amount.to_string()
    }
}

impl Amount {
    pub(super) fn percent(self) -> Option<u8> {
        match self {
            Self::Percent(percent) => Some(percent),
            Self::Bytes(_) | Self::Rest => None,
        }
    }

    pub(super) fn check(self, at: &str, found: &mut Findings) {
        let possible = match self {
            Self::Bytes(bytes) => bytes > 0,
            Self::Percent(percent) => (1..=100).contains(&percent),
            Self::Rest => true,
        };
        found.unless(possible, at, || format!("{self} is no size that anything can have"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_write_them() {
        for (text, want) in [
            ("512 MiB", Some(Amount::Bytes(512 << 20))),
            ("20GiB", Some(Amount::Bytes(20 << 30))),
            (" 1 TiB ", Some(Amount::Bytes(1 << 40))),
            ("35 %", Some(Amount::Percent(35))),
            ("35%", Some(Amount::Percent(35))),
            ("rest", Some(Amount::Rest)),
            ("0 MiB", Some(Amount::Bytes(0))),
            ("20 GB", None),
            ("20", None),
            ("GiB", None),
            ("-1 GiB", None),
            ("300 %", None),
            ("99999999999 TiB", None),
            ("", None),
        ] {
            let got = text.parse::<Amount>().ok();
            assert_eq!(got, want, "{text:?}");
            if let Some(amount) = got.filter(|amount| *amount != Amount::Bytes(0)) {
                assert_eq!(amount.to_string().parse(), Ok(amount), "{text:?} is read as it's written");
            }
        }
    }
}
