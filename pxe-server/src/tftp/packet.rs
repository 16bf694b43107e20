//! TFTP's packets, as a server that is only read from meets them: bytes to meaning, and back. Total and free of copies.

use std::borrow::Cow;

/// What a client of reads may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    Read(Request<'a>),
    Write,
    /// A request whose name or mode isn't there.
    Garbled,
    Ack(u16),
    Error {
        code: u16,
        message: Cow<'a, str>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// As sent: firmware asks in any character set.
    pub name: &'a [u8],
    pub mode: Mode,
    pub options: Options,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Octet,
    Netascii,
    Unknown,
}

/// The options that we know (RFC 2348, 2349, 7440): as a client asked for them, or as they were agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// 8 to 65464.
    pub block_size: Option<u16>,
    pub transfer_size: Option<u64>,
    /// Seconds, from 1.
    pub timeout: Option<u8>,
    /// Blocks, from 1.
    pub window: Option<u16>,
}

/// RFC 1350 and, for [`ErrorCode::Declined`], RFC 2347.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ErrorCode {
    Other = 0,
    NotFound = 1,
    Forbidden = 2,
    Illegal = 4,
    Declined = 8,
}

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

pub const LEAST_BLOCK_SIZE: u16 = 8;
const MOST_BLOCK_SIZE: u16 = 65464;

/// `None` for what isn't TFTP or only a server would send.
pub fn parse(datagram: &[u8]) -> Option<Packet<'_>> {
    let (operation, body) = number(datagram)?;
    match operation {
        READ => Some(request(body).map_or(Packet::Garbled, Packet::Read)),
        WRITE => Some(Packet::Write),
        ACK => Some(Packet::Ack(number(body)?.0)),
        ERROR => {
            let (code, text) = number(body)?;
            let message = string(text).map_or(&[][..], |(message, _)| message);
            Some(Packet::Error { code, message: String::from_utf8_lossy(message) })
        }
        _ => None,
    }
}

fn request(body: &[u8]) -> Option<Request<'_>> {
    let (name, rest) = string(body)?;
    let (mode, rest) = string(rest)?;
    let mode = match () {
        () if mode.eq_ignore_ascii_case(b"octet") => Mode::Octet,
        () if mode.eq_ignore_ascii_case(b"netascii") => Mode::Netascii,
        () => Mode::Unknown,
    };
    Some(Request { name, mode, options: options(rest) })
}

/// Of an option that comes more than once the first counts (RFC 2347 forbids the others). What has no sense, or no value
/// that an RFC allows, is left out, and so isn't acknowledged.
fn options(mut rest: &[u8]) -> Options {
    let mut options = Options::default();
    while let Some((name, after)) = string(rest)
        && let Some((value, after)) = string(after)
    {
        rest = after;
        let Some(value) = std::str::from_utf8(value).ok().and_then(|v| v.trim().parse::<u64>().ok()) else { continue };
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            // The answer may be smaller than what was asked for, so what is too large isn't wrong.
            () if is("blksize") => set(&mut options.block_size, value, LEAST_BLOCK_SIZE.into(), MOST_BLOCK_SIZE.into()),
            () if is("windowsize") => set(&mut options.window, value, 1, u64::from(u16::MAX)),
            () if is("tsize") => set(&mut options.transfer_size, value, 0, u64::MAX),
            // RFC 2349: the answer has to be the same value.
            () if is("timeout") && value <= u64::from(u8::MAX) => set(&mut options.timeout, value, 1, value),
            () => {}
        }
    }
    options
}

fn set<T: TryFrom<u64>>(option: &mut Option<T>, value: u64, least: u64, most: u64) {
    if option.is_none() && value >= least {
        *option = T::try_from(value.min(most)).ok();
    }
}

/// Up to a NUL, or to the end: some clients leave the last one out.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if bytes.is_empty() {
        return None;
    }
    let mut parts = bytes.splitn(2, |b| *b == 0);
    Some((parts.next()?, parts.next().unwrap_or_default()))
}

fn number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), rest))
}

/// The head of a DATA packet; the block itself follows.
pub fn data_head(block: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (DATA.to_be_bytes(), block.to_be_bytes());
    [a, b, c, d]
}

/// An OACK, or `None` if there is nothing to acknowledge.
pub fn oack(agreed: &Options) -> Option<Vec<u8>> {
    let fields = [
        ("blksize", agreed.block_size.map(u64::from)),
        ("tsize", agreed.transfer_size),
        ("timeout", agreed.timeout.map(u64::from)),
        ("windowsize", agreed.window.map(u64::from)),
    ];
    let text: String = fields.into_iter().filter_map(|(name, value)| Some(format!("{name}\0{}\0", value?))).collect();
    (!text.is_empty()).then(|| [&OACK.to_be_bytes(), text.as_bytes()].concat())
}

pub fn error(code: ErrorCode, message: &str) -> Vec<u8> {
    [&ERROR.to_be_bytes(), &(code as u16).to_be_bytes(), message.as_bytes(), &[0][..]].concat()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A read request as clients write it.
    pub(in crate::tftp) fn read(name: &str, mode: &str, options: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = [&READ.to_be_bytes(), name.as_bytes(), &[0], mode.as_bytes(), &[0]].concat();
        for (name, value) in options {
            bytes.extend([name.as_bytes(), &[0], value.as_bytes(), &[0]].concat());
        }
        bytes
    }

    pub(in crate::tftp) fn ack(block: u16) -> Vec<u8> {
        [ACK.to_be_bytes(), block.to_be_bytes()].concat()
    }

    fn asked(options: &[(&str, &str)]) -> Options {
        match parse(&read("x", "octet", options)) {
            Some(Packet::Read(request)) => request.options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_read_as_rfcs_and_clients_have_them() {
        let none = Options::default();
        for (name, options, want) in [
            ("none", &[][..], none),
            (
                "iPXE's",
                &[("blksize", "1432"), ("tsize", "0")],
                Options { block_size: Some(1432), transfer_size: Some(0), ..none },
            ),
            (
                "all, in capitals",
                &[("BLKSIZE", "512"), ("TSize", "0"), ("TIMEOUT", "3"), ("WindowSize", "16")],
                Options { block_size: Some(512), transfer_size: Some(0), timeout: Some(3), window: Some(16) },
            ),
            ("twice: the first", &[("blksize", "512"), ("blksize", "1024")], Options { block_size: Some(512), ..none }),
            ("unknown ones", &[("multicast", ""), ("tsize", "0")], Options { transfer_size: Some(0), ..none }),
            ("a block size below 8", &[("blksize", "7")], none),
            ("a block size above 65464", &[("blksize", "70000")], Options { block_size: Some(65464), ..none }),
            ("timeouts out of range", &[("timeout", "0"), ("timeout", "256")], none),
            ("a window of 0", &[("windowsize", "0")], none),
            ("a huge window", &[("windowsize", "99999999")], Options { window: Some(65535), ..none }),
            ("no numbers", &[("blksize", "big"), ("tsize", "-1"), ("windowsize", "")], none),
            ("more than fits", &[("tsize", "99999999999999999999999")], none),
        ] {
            assert_eq!(asked(options), want, "{name}");
        }
    }

    #[test]
    fn packets_are_told_apart() {
        let plain = |name, mode| Some(Packet::Read(Request { name, mode, options: Options::default() }));
        let error = |code, message: &'static str| Some(Packet::Error { code, message: message.into() });
        for (name, bytes, want) in [
            ("nothing", &b""[..], None),
            ("half a number", b"\0", None),
            ("a read", b"\0\x01a/b\0OCTET\0", plain(b"a/b", Mode::Octet)),
            ("without the last NUL", b"\0\x01a\0octet", plain(b"a", Mode::Octet)),
            ("text", b"\0\x01a\0netASCII\0", plain(b"a", Mode::Netascii)),
            ("mail", b"\0\x01a\0mail\0", plain(b"a", Mode::Unknown)),
            ("padded", b"\0\x01a\0octet\0\0\0\0\0", plain(b"a", Mode::Octet)),
            ("an option without value", b"\0\x01a\0octet\0tsize\0", plain(b"a", Mode::Octet)),
            ("not UTF-8", b"\0\x01\xff\xfe\0octet\0", plain(b"\xff\xfe", Mode::Octet)),
            ("no mode", b"\0\x01a\0", Some(Packet::Garbled)),
            ("no name", b"\0\x01", Some(Packet::Garbled)),
            ("a write", b"\0\x02a\0octet\0", Some(Packet::Write)),
            ("data", b"\0\x03\0\x01x", None),
            ("an ACK", b"\0\x04\xff\xfe", Some(Packet::Ack(0xfffe))),
            ("half an ACK", b"\0\x04\xff", None),
            ("an error", b"\0\x05\0\x08no\0", error(8, "no")),
            ("an error without a word", b"\0\x05\0\x08", error(8, "")),
            ("an OACK", b"\0\x06tsize\x001\0", None),
        ] {
            assert_eq!(parse(bytes), want, "{name}");
        }
    }

    #[test]
    fn what_is_agreed_is_acknowledged_and_nothing_else() {
        assert_eq!(oack(&Options::default()), None);
        let some = Options { block_size: Some(1468), window: Some(16), ..Options::default() };
        assert_eq!(oack(&some).expect("an OACK"), b"\0\x06blksize\x001468\0windowsize\x0016\0");
        assert_eq!(error(ErrorCode::NotFound, "no"), b"\0\x05\0\x01no\0");
        assert_eq!(data_head(258), [0, 3, 1, 2]);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            parse(&bytes);
        }

        #[test]
        fn anything_after_an_operation_is_read_without_a_panic(
            operation in 0_u8..8,
            text in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..100),
        ) {
            parse(&[&[0, operation], &text[..]].concat());
        }

        #[test]
        fn what_is_acknowledged_reads_as_what_was_asked(
            block_size in prop::option::of(8_u16..=65464),
            transfer_size in prop::option::of(any::<u64>()),
            timeout in prop::option::of(1_u8..),
            window in prop::option::of(1_u16..),
        ) {
            let agreed = Options { block_size, transfer_size, timeout, window };
            let written = oack(&agreed).unwrap_or_default();
            prop_assert_eq!(options(written.get(2..).unwrap_or_default()), agreed);
        }
    }
}
