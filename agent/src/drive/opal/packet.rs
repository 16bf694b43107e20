//! How token streams travel: a SubPacket in a Packet in a ComPacket.
//!
//! TCG Storage Architecture Core Specification 2.01, 3.2.3; all numbers are big-endian. An SSC's drives have to take one
//! of each per transfer (Opal SSC 3.3.4.1.2), and more than one is neither sent nor asked for here.

use super::tokens::Malformed;

const PACKET_BYTES: usize = 24;
const SUB_PACKET_BYTES: usize = 12;
/// What every drive takes and every host is taken to take (Opal SSC 4.1.1.1, MaxComPacketSize).
pub(super) const COM_PACKET_MAX: usize = 2048;
/// The most that is ever read for one answer. A drive that wants more is broken: it was told to keep to 2 KiB.
const ANSWER_MAX: usize = 1 << 16;
const BLOCK: usize = 512;

/// What session a packet belongs to: the drive's number and the host's. Both are 0 outside of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) drive: u32,
    pub(crate) host: u32,
}

/// What came for an IF-RECV (Core 3.3.10.2.1).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Tokens {
        numbers: Numbers,
        tokens: Vec<u8>,
    },
    /// The drive is still at work.
    Pending,
    /// The answer needs a buffer of this size.
    TooLong(usize),
    /// The drive has nothing to say and isn't about to.
    Nothing,
}

/// A transfer for IF-SEND, in whole blocks.
pub(crate) fn encode(com_id: u16, numbers: Numbers, tokens: &[u8]) -> Vec<u8> {
    let padded = tokens.len().next_multiple_of(4);
    let length = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes();
    let mut out = Vec::with_capacity(COM_PACKET_MAX);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&com_id.to_be_bytes());
    out.extend_from_slice(&[0; 10]); // extended ComID, OutstandingData, MinTransfer
    out.extend_from_slice(&length(PACKET_BYTES + SUB_PACKET_BYTES + padded));
    out.extend_from_slice(&numbers.drive.to_be_bytes());
    out.extend_from_slice(&numbers.host.to_be_bytes());
    out.extend_from_slice(&[0; 12]); // SeqNumber, AckType, Acknowledgement
    out.extend_from_slice(&length(SUB_PACKET_BYTES + padded));
    out.extend_from_slice(&[0; 8]); // Kind: data
    out.extend_from_slice(&length(tokens.len()));
    out.extend_from_slice(tokens);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

pub(crate) fn decode(transfer: &[u8], com_id: u16) -> Result<Received, Malformed> {
    let mut fields = Fields(transfer);
    fields.skip(4)?;
    let id = fields.u16()?;
    fields.skip(2)?;
    let (outstanding, min_transfer, length) = (fields.u32()?, fields.u32()?, fields.u32()?);
    if length == 0 {
        return match min_transfer {
            _ if outstanding == 0 => Ok(Received::Nothing),
            more if more > ANSWER_MAX => Err(Malformed("its answer is longer than 64 KiB")),
            more if more > transfer.len() => Ok(Received::TooLong(more.next_multiple_of(BLOCK))),
            _ => Ok(Received::Pending),
        };
    }
    if id != usize::from(com_id) {
        return Err(Malformed("it is for another ComID"));
    }
    let mut packet = Fields(fields.take(length)?);
    let numbers = Numbers { drive: packet.number()?, host: packet.number()? };
    packet.skip(12)?;
    let length = packet.u32()?;
    let mut sub_packets = Fields(packet.take(length)?);
    while !sub_packets.0.is_empty() {
        sub_packets.skip(6)?;
        let (kind, length) = (sub_packets.u16()?, sub_packets.u32()?);
        let tokens = sub_packets.take(length)?;
        // Kind 0 is data; the other, 8001h, is credit, which nobody here keeps account of.
        if kind == 0 && !tokens.is_empty() {
            return Ok(Received::Tokens { numbers, tokens: tokens.to_vec() });
        }
        let padding = length.next_multiple_of(4) - length;
        sub_packets.skip(padding.min(sub_packets.0.len()))?;
    }
    Ok(if outstanding == 0 { Received::Nothing } else { Received::Pending })
}

/// Takes fields from the front. Lengths are 32 bits wide, and so is `usize` at least wherever this runs.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (field, rest) = self.0.split_at_checked(length).ok_or(Malformed("a length in its headers is wrong"))?;
        self.0 = rest;
        Ok(field)
    }

    fn skip(&mut self, length: usize) -> Result<(), Malformed> {
        self.take(length).map(|_| ())
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        Ok(self.take(4)?.iter().fold(0, |n, &byte| n << 8 | u32::from(byte)))
    }

    fn u32(&mut self) -> Result<usize, Malformed> {
        Ok(self.number()? as usize)
    }

    fn u16(&mut self) -> Result<usize, Malformed> {
        Ok(self.take(2)?.iter().fold(0, |n, &byte| n << 8 | usize::from(byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: Numbers = Numbers { drive: 0x0000_1001, host: 0x0000_0069 };

    /// Headers by hand, from Core tables "ComPacket Format", "Packet Format" and "SubPacket Format".
    fn transfer(com_id: u8, outstanding: u8, [com_packet, packet, sub_packet]: [u8; 3], tokens: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, 0, 0, 0x10, com_id, 0, 0, 0, 0, 0, outstanding, 0, 0, 0, 0, 0, 0, 0, com_packet];
        out.extend_from_slice(&[0, 0, 0x10, 0x01, 0, 0, 0, 0x69, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, packet]);
        out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, sub_packet]);
        out.extend_from_slice(tokens);
        out.resize(512, 0);
        out
    }

    #[test]
    fn a_transfer_by_the_specification() {
        let want = transfer(4, 0, [44, 20, 5], &[0xf0, 0x00, 0x00, 0x00, 0xf1]);
        assert_eq!(encode(0x1004, SESSION, &[0xf0, 0x00, 0x00, 0x00, 0xf1]), want);
        let tokens = vec![0xf0, 0x00, 0x00, 0x00, 0xf1];
        assert_eq!(decode(&want, 0x1004), Ok(Received::Tokens { numbers: SESSION, tokens }));
        assert_eq!(encode(0x1004, SESSION, &[0; 600]).len(), 1024);
    }

    #[test]
    fn what_a_drive_may_send() {
        let empty = |outstanding: u8, min: u32| {
            let mut out = vec![0; COM_PACKET_MAX];
            out[4..6].copy_from_slice(&[0x10, 0x04]);
            out[11] = outstanding;
            out[12..16].copy_from_slice(&min.to_be_bytes());
            out
        };
        let wrong = || Err(Malformed("a length in its headers is wrong"));
        let mut long = transfer(4, 0, [0, 16, 1], &[0xfa]);
        long[16..20].copy_from_slice(&[0xff; 4]);
        let end = || Ok(Received::Tokens { numbers: SESSION, tokens: vec![0xfa] });
        // A credit SubPacket of 3 bytes and its padding before the data.
        let mut credit = transfer(4, 0, [24 + 16 + 13, 16 + 13, 3], &[1, 2, 3, 0]);
        credit[44 + 6..44 + 8].copy_from_slice(&[0x80, 0x01]);
        credit[60..73].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xfa]);
        for (name, bytes, want) in [
            ("zeros", vec![0; 512], Ok(Received::Nothing)),
            ("nothing", empty(0, 0), Ok(Received::Nothing)),
            ("still at work", empty(1, 0), Ok(Received::Pending)),
            ("needs 2304 bytes", empty(1, 2300), Ok(Received::TooLong(2560))),
            ("needs what it got", empty(1, 2048), Ok(Received::Pending)),
            ("needs too much", empty(1, 0x1_0001), Err(Malformed("its answer is longer than 64 KiB"))),
            ("no tokens, still at work", transfer(4, 1, [36, 12, 0], &[]), Ok(Received::Pending)),
            ("no tokens", transfer(4, 0, [36, 12, 0], &[]), Ok(Received::Nothing)),
            ("no SubPacket", transfer(4, 1, [24, 0, 0], &[]), Ok(Received::Pending)),
            ("not padded", transfer(4, 0, [37, 13, 1], &[0xfa]), end()),
            ("credit first", credit, end()),
            ("another ComID", transfer(5, 0, [40, 16, 1], &[0xfa]), Err(Malformed("it is for another ComID"))),
            ("SubPacket longer than its Packet", transfer(4, 0, [40, 16, 5], &[0xfa]), wrong()),
            ("Packet longer than its ComPacket", transfer(4, 0, [40, 17, 1], &[0xfa]), wrong()),
            ("ComPacket longer than the transfer", long, wrong()),
            ("short", vec![0; 19], wrong()),
        ] {
            assert_eq!(decode(&bytes, 0x1004), want, "{name}");
        }
    }
}
