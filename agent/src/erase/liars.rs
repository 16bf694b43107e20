//! Scripted drives: an honest one, and one for every way to lie about an erase.

use std::io;

use drophammer_protocol::certificate::Method::{NvmeFormatCrypto, NvmeFormatUserData};
use drophammer_protocol::inventory::DiskId;

use super::super::drive::probe;
use super::super::plan::{Capabilities, Unable, plan};
use super::*;
use crate::sys::nvme_id::{ALL_NAMESPACES, Status, fixtures};

const BLOCKS: u64 = 2048;
const SIZE: usize = 2048 * 512;

/// How a drive behaves when it's told to format.
#[derive(Clone, Debug, PartialEq)]
enum Format {
    Honest,
    /// Success, and nothing else.
    KeepsAll,
    /// Erases everything but the last so many bytes.
    KeepsTail(usize),
    KeepsHead(usize),
    /// Erases everything but one block of 512 bytes that the host wrote, this one in order.
    KeepsOneWritten(usize),
    /// Erases whatever was written since power-on and keeps the last tenant's data.
    KeepsOld,
    /// These statuses in turn, then honest.
    Answers(&'static [u16]),
    /// Half of the data is gone, then an error.
    HalfThen(u16),
    /// The kernel gives up waiting.
    Hangs,
    /// Erased, but then not readable.
    UnreadableAfter,
}

struct Scripted {
    serial: &'static str,
    oacs: u16,
    fna: u8,
    blocks: u64,
    allocated: Vec<u32>,
    format: Format,
    drops_writes: bool,
    medium: Vec<u8>,
    written: Vec<usize>,
    formats: Vec<(u32, u32)>,
    unreadable: bool,
}

impl Default for Scripted {
    fn default() -> Self {
        // Old content everywhere, different in each piece.
        let medium = (0..SIZE / 8).flat_map(|n| (n as u64 * 0x9e37_79b9).to_le_bytes()).collect();
        Self {
            serial: "SN-1",
            oacs: 0x010a,
            fna: 0,
            blocks: BLOCKS,
            allocated: vec![1],
            format: Format::Honest,
            drops_writes: false,
            medium,
            written: Vec::new(),
            formats: Vec::new(),
            unreadable: false,
        }
    }
}

impl Scripted {
    fn identify(&self, cns: u32) -> Vec<u8> {
        match cns {
            0x00 => fixtures::namespace(self.blocks, 0, 0),
            0x01 => fixtures::controller(self.serial, self.oacs, self.fna),
            0x02 => fixtures::list(&[1]),
            0x10 => fixtures::list(&self.allocated),
            other => panic!("nobody should ask for CNS {other:#x}"),
        }
    }

    fn clear_all_but(&mut self, kept: std::ops::Range<usize>) {
        let old = self.medium[kept.clone()].to_vec();
        self.medium.fill(0);
        self.medium[kept].copy_from_slice(&old);
    }

    fn do_format(&mut self) -> io::Result<Status> {
        match self.format.clone() {
            Format::Honest => self.medium.fill(0),
            Format::KeepsAll => {}
            Format::KeepsTail(bytes) => self.clear_all_but(SIZE - bytes..SIZE),
            Format::KeepsHead(bytes) => self.clear_all_but(0..bytes),
            Format::KeepsOneWritten(nth) => {
                let kept = self.written[nth % self.written.len()];
                self.clear_all_but(kept..kept + 512);
            }
            Format::KeepsOld => {
                for at in &self.written {
                    self.medium[*at..at + 4096].fill(0);
                }
            }
            Format::Answers(statuses) => match statuses.split_first() {
                Some((status, rest)) => {
                    self.format = Format::Answers(rest);
                    return Ok(Status(*status));
                }
                None => self.medium.fill(0),
            },
            Format::HalfThen(status) => {
                self.clear_all_but(SIZE / 2..SIZE);
                self.format = Format::KeepsAll;
                return Ok(Status(status));
            }
            Format::Hangs => return Err(io::ErrorKind::TimedOut.into()),
            Format::UnreadableAfter => {
                self.medium.fill(0);
                self.unreadable = true;
            }
        }
        Ok(Status(0))
    }
}

impl Drive for Scripted {
    fn submit(&mut self, command: &AdminCommand, data: &mut [u8]) -> io::Result<Status> {
        match command.opcode {
            AdminCommand::IDENTIFY => {
                data.copy_from_slice(&self.identify(command.cdw10));
                Ok(Status(0))
            }
            AdminCommand::FORMAT_NVM => {
                self.formats.push((command.nsid, command.cdw10 >> 9));
                self.do_format()
            }
            other => panic!("nobody should send opcode {other:#x}"),
        }
    }

    fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if self.unreadable {
            return Err(io::Error::other("unrecovered read error"));
        }
        let at = usize::try_from(offset).expect("a small drive");
        buffer.copy_from_slice(&self.medium[at..at + buffer.len()]);
        Ok(())
    }

    fn write_at(&mut self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let at = usize::try_from(offset).expect("a small drive");
        if !self.drops_writes {
            self.medium[at..at + buffer.len()].copy_from_slice(buffer);
        }
        self.written.push(at);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What becomes of a drive that is ordered as `SN-1` with its full size: the same steps as for a real one.
fn run(drive: &mut Scripted, seed: [u8; 32]) -> Account {
    let id = DiskId { serial: "SN-1".into(), size_bytes: SIZE as u64 };
    let probed = match probe(drive, &id, 1, &[1]) {
        Ok(probed) => probed,
        Err(e) => return Account::untouched(format!("{e:#}")),
    };
    match plan(&Capabilities::Nvme(probed.capabilities.clone())) {
        Ok(plan) => erase(drive, &probed, &plan, seed),
        Err(unable) => Account::untouched(unable.to_string()),
    }
}

#[test]
fn every_liar_is_caught() {
    let with = |format| Scripted { format, ..Scripted::default() };
    let reported = "the drive reported success for NVMe Format, user data erase (SES=1), but";
    let liars = [
        ("keeps everything", with(Format::KeepsAll), reported),
        ("keeps the tail", with(Format::KeepsTail(4096)), reported),
        ("keeps the last sector", with(Format::KeepsTail(512)), reported),
        ("keeps the head", with(Format::KeepsHead(512)), reported),
        ("keeps one sector of the first canary", with(Format::KeepsOneWritten(0)), reported),
        ("keeps one sector of some canary", with(Format::KeepsOneWritten(77)), reported),
        ("keeps the old tenant's data", with(Format::KeepsOld), reported),
        (
            "fails",
            with(Format::Answers(&[0x4006, 0x4006])),
            "internal error of the drive (NVMe status type 0h, code 06h)",
        ),
        ("is locked", with(Format::Answers(&[0x4015])), "the drive is locked by a password or TCG Opal"),
        ("hangs", with(Format::Hangs), "no answer within 600 s"),
        ("can't be read afterwards", with(Format::UnreadableAfter), "can't be read since"),
        (
            "crypto erase fails half-way, user data erase does nothing",
            Scripted { fna: 0b100, ..with(Format::HalfThen(0x4006)) },
            reported,
        ),
        (
            "lies about crypto erase and isn't asked again",
            Scripted { fna: 0b100, ..with(Format::KeepsAll) },
            "the drive reported success for NVMe Format, cryptographic erase (SES=2), but",
        ),
        (
            "claims nothing",
            Scripted { oacs: 0, ..Scripted::default() },
            "the drive doesn't offer Format NVM, and this agent has no other erase method that it can prove",
        ),
        (
            "hides a namespace",
            Scripted { allocated: vec![1, 2], ..Scripted::default() },
            "namespaces that can't be reached here (2)",
        ),
        (
            "is another drive once opened",
            Scripted { serial: "SN-2", ..Scripted::default() },
            "the drive that answers has the serial SN-2",
        ),
        (
            "has another size once opened",
            Scripted { blocks: BLOCKS - 8, ..Scripted::default() },
            "the drive that answers has 1044480 bytes",
        ),
        (
            "takes no writes",
            Scripted { drops_writes: true, ..Scripted::default() },
            "the drive doesn't return what was written at byte",
        ),
        ("can't be read before", Scripted { unreadable: true, ..Scripted::default() }, "reading a test block back"),
    ];
    for (name, mut drive, words) in liars {
        let account = run(&mut drive, [7; 32]);
        match account.verdict() {
            Verdict::NotErased { reason } => assert!(reason.contains(words), "{name}: {reason}"),
            Verdict::Erased { .. } => panic!("{name}: believed"),
        }
        assert!(drive.formats.iter().all(|(_, ses)| *ses == 1 || drive.fna & 0b100 != 0), "{name}: unclaimed method");
    }
}

#[test]
fn a_canary_anywhere_is_found() {
    for nth in 0..100 {
        let mut drive = Scripted { format: Format::KeepsOneWritten(nth), ..Scripted::default() };
        let account = run(&mut drive, [3; 32]);
        assert!(matches!(account.verdict(), Verdict::NotErased { .. }), "canary {nth}");
        let verification = account.verification.expect("it was looked at");
        assert_eq!(verification.canaries_surviving, 1, "canary {nth}");
    }
}

#[test]
fn honest_drives_are_believed() {
    let crypto = Scripted { fna: 0b100, ..Scripted::default() };
    let crypto_fails = Scripted { fna: 0b100, format: Format::Answers(&[0x4002]), ..Scripted::default() };
    let all_at_once = Scripted { fna: 0b001, ..Scripted::default() };
    let no_management = Scripted { oacs: 0b10, allocated: vec![], ..Scripted::default() };
    for (name, mut drive, method, formats) in [
        ("QEMU", Scripted::default(), NvmeFormatUserData, vec![(1, 1)]),
        ("crypto erase", crypto, NvmeFormatCrypto, vec![(1, 2)]),
        ("crypto erase refused", crypto_fails, NvmeFormatUserData, vec![(1, 2), (1, 1)]),
        ("formats all namespaces", all_at_once, NvmeFormatUserData, vec![(ALL_NAMESPACES, 1)]),
        ("no namespace management", no_management, NvmeFormatUserData, vec![(1, 1)]),
    ] {
        let account = run(&mut drive, [9; 32]);
        assert_eq!(account.verdict(), Verdict::Erased { method }, "{name}");
        assert_eq!(drive.formats, formats, "{name}");
        assert_eq!(account.attempts.len(), formats.len(), "{name}");
        assert!(drive.medium.iter().all(|&byte| byte == 0), "{name}");
        let verification = account.verification.expect("it was looked at");
        assert_eq!((verification.canaries_surviving, verification.samples_surviving), (0, 0), "{name}");
        assert!(verification.canaries_planted >= 65 && verification.samples > 100, "{name}: {verification:?}");
    }
}

#[test]
fn a_blank_drive_is_proven_by_canaries_alone() {
    let mut drive = Scripted { medium: vec![0xff; SIZE], ..Scripted::default() };
    let account = run(&mut drive, [1; 32]);
    assert_eq!(account.verdict(), Verdict::Erased { method: NvmeFormatUserData });
    assert_eq!(account.verification.map(|v| v.samples), Some(0));
}

#[test]
fn a_refusing_plan_touches_nothing() {
    let mut drive = Scripted { oacs: 0, ..Scripted::default() };
    let before = drive.medium.clone();
    let account = run(&mut drive, [1; 32]);
    assert_eq!(account.verdict(), Verdict::NotErased { reason: Unable::NoFormat.to_string() });
    assert!(drive.medium == before && drive.written.is_empty() && drive.formats.is_empty());
}
