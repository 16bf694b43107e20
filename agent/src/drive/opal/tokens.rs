//! The token stream that methods and their results are written in.
//!
//! TCG Storage Architecture Core Specification 2.01, 3.2.2.3: an atom is a number or a string of bytes behind a header of
//! one to four bytes, and single bytes from F0h on give the structure. Reading is total: any bytes give a value or say
//! what's wrong with them, in memory proportional to their number and in bounded depth.

/// No method here nests deeper than 6.
const MAX_DEPTH: u32 = 16;

pub(super) const START_LIST: u8 = 0xf0;
const END_LIST: u8 = 0xf1;
const START_NAME: u8 = 0xf2;
const END_NAME: u8 = 0xf3;
pub(super) const CALL: u8 = 0xf8;
pub(super) const END_OF_DATA: u8 = 0xf9;
pub(super) const END_OF_SESSION: u8 = 0xfa;
const END_TRANSACTION: u8 = 0xfc;
const EMPTY: u8 = 0xff;

/// Why bytes from a drive mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(super) &'static str);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Uint(u64),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    /// A name and what it stands for: an optional parameter, or a column of a table.
    Named(Box<(Value, Value)>),
}

impl Value {
    pub(crate) fn named(name: u64, value: Value) -> Self {
        Self::Named(Box::new((Self::Uint(name), value)))
    }

    /// What stands under a name in this list.
    pub(crate) fn under(&self, name: u64) -> Option<&Value> {
        let Self::List(values) = self else { return None };
        values.iter().find_map(|value| match value {
            Self::Named(pair) if pair.0 == Self::Uint(name) => Some(&pair.1),
            _ => None,
        })
    }

    /// In the fewest bytes, as table 4 has the atoms.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Uint(n @ 0..=0x3f) => out.push(n.to_le_bytes()[0]),
            Self::Uint(n) => {
                let (bytes, zeros) = (n.to_be_bytes(), n.leading_zeros() / 8);
                let significant = bytes.get(zeros as usize..).unwrap_or_default();
                out.push(0x80 | significant.len().to_le_bytes()[0]);
                out.extend_from_slice(significant);
            }
            Self::Bytes(bytes) => {
                // Nothing that's sent comes near the 2^24 bytes at which the long atom ends: a packet has 2 KiB.
                let [low, mid, high, ..] = bytes.len().to_le_bytes();
                match bytes.len() {
                    0..=0xf => out.push(0xa0 | low),
                    0x10..=0x7ff => out.extend_from_slice(&[0xd0 | mid, low]),
                    _ => out.extend_from_slice(&[0xe2, high, mid, low]),
                }
                out.extend_from_slice(bytes);
            }
            Self::List(values) => encode_list(values, out),
            Self::Named(pair) => {
                out.push(START_NAME);
                pair.0.encode(out);
                pair.1.encode(out);
                out.push(END_NAME);
            }
        }
    }
}

pub(super) fn encode_list(values: &[Value], out: &mut Vec<u8>) {
    out.push(START_LIST);
    values.iter().for_each(|value| value.encode(out));
    out.push(END_LIST);
}

enum Token<'a> {
    Uint(u64),
    Bytes(&'a [u8]),
    Structure(u8),
}

/// Takes values from the front of a stream.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The byte of structure that has to be next.
    pub(super) fn structure(&mut self) -> Result<u8, Malformed> {
        match self.token()? {
            Token::Structure(byte) => Ok(byte),
            Token::Uint(_) | Token::Bytes(_) => Err(Malformed("a value stands where none belongs")),
        }
    }

    pub(super) fn value(&mut self) -> Result<Value, Malformed> {
        let token = self.token()?;
        self.value_of(token, 0)
    }

    /// The rest of a list whose start has been read.
    pub(super) fn rest_of_list(&mut self) -> Result<Vec<Value>, Malformed> {
        self.list(0)
    }

    fn value_of(&mut self, token: Token<'a>, depth: u32) -> Result<Value, Malformed> {
        if depth > MAX_DEPTH {
            return Err(Malformed("it nests too deep"));
        }
        match token {
            Token::Uint(n) => Ok(Value::Uint(n)),
            Token::Bytes(bytes) => Ok(Value::Bytes(bytes.to_vec())),
            Token::Structure(START_LIST) => Ok(Value::List(self.list(depth + 1)?)),
            Token::Structure(START_NAME) => {
                let name = self.token().and_then(|token| self.value_of(token, depth + 1))?;
                let value = self.token().and_then(|token| self.value_of(token, depth + 1))?;
                match self.structure()? {
                    END_NAME => Ok(Value::Named(Box::new((name, value)))),
                    _ => Err(Malformed("a name doesn't end")),
                }
            }
            Token::Structure(_) => Err(Malformed("a value is missing")),
        }
    }

    fn list(&mut self, depth: u32) -> Result<Vec<Value>, Malformed> {
        let mut values = Vec::new();
        loop {
            match self.token()? {
                Token::Structure(END_LIST) => return Ok(values),
                token => values.push(self.value_of(token, depth)?),
            }
        }
    }

    fn token(&mut self) -> Result<Token<'a>, Malformed> {
        loop {
            let header = self.byte()?;
            return match header {
                0x00..=0x3f => Ok(Token::Uint(header.into())),
                // Short atoms have 4 bits of length, medium atoms 11 and long ones 24.
                0x80..=0xbf => self.atom(header & 0x20 != 0, header & 0x10 != 0, &[header & 0xf]),
                0xc0..=0xdf => {
                    let length = [header & 0x7, self.byte()?];
                    self.atom(header & 0x10 != 0, header & 0x8 != 0, &length)
                }
                0xe0..=0xe3 => {
                    let length = [self.byte()?, self.byte()?, self.byte()?];
                    self.atom(header & 0x2 != 0, header & 0x1 != 0, &length)
                }
                0x40..=0x7f => Err(SIGNED),
                START_LIST..=END_NAME | CALL..=END_TRANSACTION => Ok(Token::Structure(header)),
                EMPTY => continue,
                0xe4..=0xef | 0xf4..=0xf7 | 0xfd..=0xfe => Err(Malformed("it has a reserved token")),
            };
        }
    }

    fn atom(&mut self, is_bytes: bool, signed_or_continued: bool, length: &[u8]) -> Result<Token<'a>, Malformed> {
        let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
        let (data, rest) = self.0.split_at_checked(length).ok_or(CUT)?;
        self.0 = rest;
        match (is_bytes, signed_or_continued) {
            (true, false) => Ok(Token::Bytes(data)),
            (true, true) => Err(Malformed("it has bytes in several pieces")),
            (false, true) => Err(SIGNED),
            (false, false) if data.is_empty() || data.len() > 8 => {
                Err(Malformed("it has a number of no usable length"))
            }
            (false, false) => Ok(Token::Uint(data.iter().fold(0, |n, &byte| n << 8 | u64::from(byte)))),
        }
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(CUT)?;
        self.0 = rest;
        Ok(byte)
    }
}

const CUT: Malformed = Malformed("it ends too early");
/// Nothing that's asked for here is a signed number.
const SIGNED: Malformed = Malformed("it has a signed number");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(bytes: &[u8]) -> Result<Value, Malformed> {
        let mut reader = Reader(bytes);
        let value = reader.value()?;
        assert!(reader.0.is_empty(), "not all was read");
        Ok(value)
    }

    fn encoded(value: &Value) -> Vec<u8> {
        let mut out = Vec::new();
        value.encode(&mut out);
        out
    }

    /// Written by hand from Core 3.2.2.3, so that encoder and decoder can't be wrong in the same way.
    #[test]
    fn atoms_and_structure_by_the_specification() {
        use Value::{Bytes, List, Uint};
        let long: Vec<u8> = [0xe2, 0x00, 0x08, 0x00].into_iter().chain([7; 0x800]).collect();
        let medium: Vec<u8> = [0xd7, 0xff].into_iter().chain([7; 0x7ff]).collect();
        for (name, bytes, value) in [
            ("tiny, least", &[0x00][..], Uint(0)),
            ("tiny, most", &[0x3f], Uint(63)),
            ("short, one byte", &[0x81, 0x40], Uint(64)),
            ("short, two bytes", &[0x82, 0x08, 0x00], Uint(2048)),
            ("short, eight bytes", &[0x88, 0xff, 0, 0, 0, 0, 0, 0, 1], Uint(0xff00_0000_0000_0001)),
            ("no bytes", &[0xa0], Bytes(vec![])),
            ("short, a UID", &[0xa8, 0, 0, 2, 5, 0, 0, 0, 1], Bytes(vec![0, 0, 2, 5, 0, 0, 0, 1])),
            ("medium bytes, least", b"\xd0\x10MaxComPacketSize", Bytes(b"MaxComPacketSize".to_vec())),
            ("medium bytes, most", &medium, Bytes(vec![7; 0x7ff])),
            ("long bytes", &long, Bytes(vec![7; 0x800])),
            ("lists", &[0xf0, 0xf0, 0xf1, 0x01, 0xf1], List(vec![List(vec![]), Uint(1)])),
            ("a name", &[0xf2, 0x03, 0xa1, 0x41, 0xf3], Value::named(3, Bytes(vec![0x41]))),
        ] {
            assert_eq!(one(bytes).as_ref(), Ok(&value), "{name}");
            assert_eq!(encoded(&value), bytes, "{name}");
        }
        // Longer than need be, and empty atoms between: drives do that.
        assert_eq!(one(&[0xff, 0x84, 0x00, 0x00, 0x10, 0x1a]), Ok(Uint(0x101a)));
        assert_eq!(one(&[0xc0, 0x02, 0x01, 0x00]), Ok(Uint(0x100)));
        assert_eq!(one(&[0xe0, 0x00, 0x00, 0x01, 0x05]), Ok(Uint(5)));
        assert_eq!(one(&[0xf0, 0xff, 0x01, 0xff, 0xf1]), Ok(List(vec![Uint(1)])));
    }

    #[test]
    fn what_means_nothing() {
        for (name, bytes, want) in [
            ("nothing", &[][..], CUT),
            ("bytes cut off", &[0xa8, 0, 0], CUT),
            ("length cut off", &[0xe2, 0xff], CUT),
            ("16 MiB that aren't there", &[0xe2, 0xff, 0xff, 0xff, 1], CUT),
            ("a list without end", &[0xf0, 0x01], CUT),
            ("tiny signed", &[0x41], SIGNED),
            ("short signed", &[0x91, 0x01], SIGNED),
            ("continued", &[0xb1, 0x01], Malformed("it has bytes in several pieces")),
            ("no digits", &[0x80], Malformed("it has a number of no usable length")),
            ("nine digits", &[0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1], Malformed("it has a number of no usable length")),
            ("reserved", &[0xe4], Malformed("it has a reserved token")),
            ("a name of three", &[0xf2, 1, 2, 3, 0xf3], Malformed("a value stands where none belongs")),
            ("a name of one", &[0xf2, 1, 0xf3], Malformed("a value is missing")),
            ("a name ended as a list", &[0xf2, 1, 2, 0xf1], Malformed("a name doesn't end")),
            ("as deep as it goes", &[0xf0; 17], CUT),
            ("one deeper", &[0xf0; 18], Malformed("it nests too deep")),
            ("only lists", &[0xf0; 60_000], Malformed("it nests too deep")),
            ("only names", &[0xf2; 60_000], Malformed("it nests too deep")),
        ] {
            assert_eq!(one(bytes), Err(want), "{name}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<u64>().prop_map(Value::Uint),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes)
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::List),
                (inner.clone(), inner).prop_map(|pair| Value::Named(Box::new(pair)))
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(value in any_value()) {
            prop_assert_eq!(one(&encoded(&value)), Ok(value));
        }
    }
}
