//! ATA: a disk behind a translator, with Security, Sanitize and the places where sectors can be hidden, as ACS-3 and SAT-3
//! have them.

mod security;

use std::io;
use std::time::Duration;

use super::scsi::give;
use super::{Body, SIZE, State};
use crate::drive::ata::Command;
use crate::drive::ata::fixtures::{self, Words};
use crate::drive::scsi::{self, Completion};
use crate::drive::{Data, Drive, Sanitize, SanitizeKind, nvme};

pub(crate) use security::{Erase, Security, THEIRS, locked};

pub(crate) const SECTORS: u64 = SIZE as u64 / 512;

/// What the drive claims and what it really does.
pub(crate) struct AtaDrive {
    pub(crate) body: Body,
    pub(crate) sectors: u64,
    pub(crate) rotation: u16,
    pub(crate) sanitize: Sanitize,
    pub(crate) sanitize_frozen: bool,
    pub(crate) security: Option<Security>,
    /// The native maximum, if there may be a host protected area; by the older commands, and by the newer.
    pub(crate) native_max: Option<u64>,
    pub(crate) accessible_max: Option<u64>,
    /// The maximum that the factory set, if there may be a device configuration overlay; 0: it's frozen.
    pub(crate) factory_max: Option<u64>,
    /// Commands that wrote something, if it counts them.
    pub(crate) written: Option<u64>,
    /// Whether the translator passes registers on.
    pub(crate) registers: bool,
    /// Whether commands of ATA get through at all.
    pub(crate) passes_through: bool,
    /// Whether page 89h is in the list of vital product data.
    pub(crate) says_ata: bool,
    pub(crate) attention: bool,
    /// Everything that was told it to erase, or to lock or unlock: opcode and feature.
    pub(crate) told: Vec<(u8, u16)>,
}

impl Default for AtaDrive {
    /// An SSD that claims every way to erase itself.
    fn default() -> Self {
        Self {
            body: Body::default(),
            sectors: SECTORS,
            rotation: 1,
            sanitize: Sanitize { crypto: true, block: true, overwrite: true },
            sanitize_frozen: false,
            security: Some(Security::default()),
            native_max: Some(SECTORS - 1),
            accessible_max: Some(SECTORS - 1),
            factory_max: Some(SECTORS - 1),
            written: Some(1000),
            registers: true,
            passes_through: true,
            says_ata: true,
            attention: true,
            told: Vec::new(),
        }
    }
}

/// What comes back in the drive's registers.
#[derive(Clone, Copy, Default)]
struct Answer {
    error: u8,
    count: u16,
    lba: u64,
}

const ABORTED: Answer = Answer { error: 1 << 2, count: 0, lba: 0 };

/// What goes into them, read back from a CDB by table 150 of SAT-3.
struct Told {
    opcode: u8,
    feature: u16,
    count: u16,
    lba: u64,
    wants_registers: bool,
}

impl Told {
    fn of(cdb: &[u8], data: &Data<'_>) -> Self {
        let extended = cdb[1] & 1 == 1;
        let (protocol, transfer, wants_registers) = (cdb[1] >> 1, cdb[2] & 0x1f, cdb[2] & 0x20 != 0);
        match data {
            Data::None => assert_eq!((protocol, transfer), (3, 0)),
            Data::In(room) => assert_eq!((protocol, transfer, room.len()), (4, 0x0e, usize::from(cdb[6]) * 512)),
            Data::Out(bytes) => assert_eq!((protocol, transfer, bytes.len()), (5, 0x06, usize::from(cdb[6]) * 512)),
        }
        assert!(extended || [cdb[3], cdb[5], cdb[7], cdb[9], cdb[11]] == [0; 5], "upper halves of a 28-bit command");
        Self {
            opcode: cdb[14],
            feature: u16::from_be_bytes([cdb[3], cdb[4]]),
            count: u16::from_be_bytes([cdb[5], cdb[6]]),
            lba: u64::from_le_bytes([cdb[8], cdb[10], cdb[12], cdb[7], cdb[9], cdb[11], 0, 0]),
            wants_registers,
        }
    }
}

impl AtaDrive {
    pub(crate) fn with_sanitize(crypto: bool, block: bool, overwrite: bool) -> Self {
        Self { sanitize: Sanitize { crypto, block, overwrite }, security: None, ..Self::default() }
    }

    pub(crate) fn with_security(security: Security) -> Self {
        Self { security: Some(security), ..Self::with_sanitize(false, false, false) }
    }

    /// QEMU's `ide-hd` behind libata: neither Security nor Sanitize, and nothing that could be hidden.
    pub(crate) fn qemu() -> Self {
        Self {
            native_max: None,
            accessible_max: None,
            factory_max: None,
            written: None,
            ..Self::with_sanitize(false, false, false)
        }
    }

    /// Power goes and comes back: a sanitize goes on where it was, and a password locks the drive.
    pub(crate) fn power_cycle(&mut self) {
        self.body.power_cycle();
        self.attention = true;
        self.sanitize_frozen = false;
        if let Some(security) = &mut self.security {
            security.locked = security.password.is_some();
            security.tries_left = 5;
            security.frozen = security.gets_frozen;
        }
    }

    fn is_locked(&self) -> bool {
        self.security.as_ref().is_some_and(|security| security.locked)
    }

    fn identify(&self) -> Vec<u8> {
        let mut page = Words::disk(self.body.serial, self.sectors, self.rotation);
        let Sanitize { crypto, block, overwrite } = self.sanitize;
        page.bits(59, &[(12, crypto || block || overwrite), (13, crypto), (14, overwrite), (15, block)]);
        page.bits(48, &[(14, true), (0, self.body.tper.is_some())]);
        page.bits(82, &[(1, self.security.is_some()), (10, self.native_max.is_some())]);
        page.bits(83, &[(11, self.factory_max.is_some())]);
        page.bits(84, &[(5, self.written.is_some())]);
        page.bits(119, &[(14, true), (8, self.accessible_max.is_some())]);
        if let Some(security) = &self.security {
            let enabled = security.password.is_some();
            page.set(89, 30).set(90, if security.enhanced { 1 } else { 0 });
            page.bits(128, &[(0, true), (1, enabled), (2, security.locked), (3, security.frozen)]);
            page.bits(128, &[(4, security.tries_left == 0), (5, security.enhanced)]);
        }
        page.signed()
    }

    /// `Err`: no answer comes.
    fn obey(&mut self, told: &Told, timeout: Duration, data: &Data<'_>) -> io::Result<Result<Answer, Answer>> {
        let prepared = self.security.as_mut().is_some_and(|security| std::mem::take(&mut security.prepared));
        let address = |claimed: Option<u64>| Ok(Answer { lba: claimed.expect("isn't claimed"), ..Answer::default() });
        Ok(match (told.opcode, told.feature) {
            (Command::READ_NATIVE_MAX_EXT, 0) => address(self.native_max),
            (Command::MAX_ADDRESS_CONFIGURATION, 0) => address(self.accessible_max),
            (Command::SANITIZE_DEVICE, 0) => self.sanitize_status(told.count),
            (Command::SANITIZE_DEVICE, feature) => {
                self.told.push((told.opcode, feature));
                self.begin_sanitize(told)
            }
            (0xf0..=0xf6, 0) => {
                self.told.push((told.opcode, 0));
                return self.secure(told.opcode, prepared, timeout, data);
            }
            (opcode, feature) => panic!("nobody should send command {opcode:#x}, feature {feature:#x}"),
        })
    }

    /// SANITIZE STATUS EXT
    fn sanitize_status(&mut self, count: u16) -> Result<Answer, Answer> {
        assert!(self.sanitize.any(), "Sanitize isn't claimed");
        if count & 1 == 1 && self.body.leave_failure() {
            return Ok(Answer::default());
        }
        let frozen = u16::from(self.sanitize_frozen) << 13;
        match self.body.state {
            State::Never => Ok(Answer { count: frozen, lba: 0xffff, error: 0 }),
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1")]
            State::Running { done, .. } => Ok(Answer { count: 1 << 14, lba: (done * 65535.0) as u64, error: 0 }),
            State::Succeeded => Ok(Answer { count: 1 << 15 | frozen, lba: 0xffff, error: 0 }),
            State::Failed { .. } => Err(Answer { lba: 1, ..ABORTED }),
        }
    }

    fn begin_sanitize(&mut self, told: &Told) -> Result<Answer, Answer> {
        const FAILURE_MODE: u16 = 1 << 4;
        let (kind, claimed, count) = match (told.feature, told.lba) {
            (0x0011, 0x4372_7970) => (SanitizeKind::Crypto, self.sanitize.crypto, FAILURE_MODE),
            (0x0012, 0x426b_4572) => (SanitizeKind::Block, self.sanitize.block, FAILURE_MODE),
            (0x0014, 0x4f57_0000_0000) => (SanitizeKind::Overwrite, self.sanitize.overwrite, FAILURE_MODE | 1),
            (feature, key) => panic!("sanitize {feature:#x} with {key:#x}"),
        };
        assert!(claimed, "{kind:?} isn't claimed");
        assert_eq!(told.count, count, "{kind:?}");
        assert!(!self.sanitize_frozen, "nothing is to be begun on a frozen drive");
        if self.is_locked() || matches!(self.body.state, State::Running { .. }) {
            return Err(ABORTED);
        }
        self.body.begin(kind, true);
        Ok(Answer::default())
    }

    /// What the translator makes of it: SAT-3, clause 12.2.
    fn translate(&self, told: &Told, outcome: Result<Answer, Answer>) -> Completion {
        let (key, status, Answer { error, count, lba }) = match outcome {
            Ok(_) if !told.wants_registers => return Completion { status: 0, sense: vec![], transferred: 512 },
            Ok(answer) => (1, 0x50, answer),
            Err(answer) => (0xb, 0x51, answer),
        };
        let (asc, ascq) = if key == 1 { (0x00, 0x1d) } else { (0, 0) };
        if !self.registers {
            let sense = vec![0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, 0, 0, 0];
            return Completion { status: 2, sense, transferred: 0 };
        }
        let [a, b, c, d, e, f, ..] = lba.to_le_bytes();
        let [count_high, count] = count.to_be_bytes();
        let mut sense = vec![0x72, key, asc, ascq, 0, 0, 0, 14, 0x09, 12, 1, error, count_high, count];
        sense.extend([d, a, e, b, f, c, 0x40, status]);
        Completion { status: 2, sense, transferred: 0 }
    }

    /// The translator's own answers.
    fn inquiry(&self, page: u8) -> Option<Vec<u8>> {
        let content = match page {
            0x00 if self.says_ata => vec![0x00, 0x80, 0x83, 0x89, 0xb1],
            0x00 => vec![0x00, 0x80, 0x83, 0xb1],
            0x80 => format!("{:<20}", self.body.serial).into_bytes(),
            0xb1 => [self.rotation.to_be_bytes().to_vec(), vec![0; 58]].concat(),
            other => panic!("nobody should ask for page {other:#x}"),
        };
        let length = u16::try_from(content.len()).expect("short");
        Some([vec![0, page], length.to_be_bytes().to_vec(), content].concat())
    }
}

fn refused(sense: [u8; 3]) -> Completion {
    let [key, asc, ascq] = sense;
    Completion { status: 2, sense: vec![0x72, key, asc, ascq, 0, 0, 0, 0], transferred: 0 }
}

impl Drive for AtaDrive {
    fn nvme(&mut self, _: &nvme::Command, _: Data<'_>) -> io::Result<nvme::Completion> {
        panic!("an ATA drive was told something of NVMe");
    }

    fn scsi(&mut self, command: &scsi::Command, mut data: Data<'_>) -> io::Result<Completion> {
        let cdb = &command.cdb;
        if cdb[0] != scsi::Command::INQUIRY && std::mem::take(&mut self.attention) {
            return Ok(refused([6, 0x29, 0x00]));
        }
        let capacity = [(self.sectors - 1).to_be_bytes().to_vec(), 512u32.to_be_bytes().to_vec(), vec![0; 20]].concat();
        match cdb[0] {
            scsi::Command::INQUIRY => {
                let page = self.inquiry(cdb[2]);
                Ok(page.map_or_else(|| refused([5, 0x24, 0x00]), |page| give(data, &page)))
            }
            scsi::Command::SERVICE_ACTION_IN_16 => Ok(give(data, &capacity)),
            // libata has answers to neither, unless it's told to let security commands through.
            scsi::Command::MAINTENANCE_IN | scsi::Command::SECURITY_PROTOCOL_IN => Ok(refused([5, 0x20, 0x00])),
            scsi::Command::ATA_PASS_THROUGH_16 if !self.passes_through => Ok(refused([5, 0x20, 0x00])),
            scsi::Command::ATA_PASS_THROUGH_16 => {
                let told = Told::of(cdb, &data);
                match (told.opcode, told.feature) {
                    (Command::IDENTIFY_DEVICE, 0) => return Ok(give(data, &self.identify())),
                    // The protocol is where other commands have their feature, and LBA bits 23:8 are its own.
                    (Command::TRUSTED_RECEIVE | Command::TRUSTED_SEND, protocol) => {
                        assert!(self.body.tper.is_some(), "isn't claimed");
                        let specific = u16::try_from(told.lba >> 8 & 0xffff).expect("16 bits");
                        let protocol = u8::try_from(protocol).expect("8 bits");
                        let taken = self.body.secure(protocol, specific, &mut data);
                        let outcome = if taken { Ok(Answer::default()) } else { Err(ABORTED) };
                        return Ok(self.translate(&told, outcome));
                    }
                    (Command::READ_LOG_EXT, 0) => {
                        let written = self.written.expect("isn't claimed");
                        return Ok(match told.lba {
                            0x0000 => give(data, &fixtures::log_directory(8)),
                            0x0104 => give(data, &fixtures::general_statistics(written, 8 * written)),
                            other => panic!("nobody should read log and page {other:#x}"),
                        });
                    }
                    (Command::DEVICE_CONFIGURATION, 0x00c2) => {
                        return Ok(match self.factory_max.expect("isn't claimed") {
                            0 => self.translate(&told, Err(ABORTED)),
                            max => give(data, &fixtures::factory_configuration(max)),
                        });
                    }
                    _ => {}
                }
                let outcome = self.obey(&told, command.timeout, &data)?;
                Ok(self.translate(&told, outcome))
            }
            other => panic!("nobody should send operation code {other:#x}"),
        }
    }

    fn read(&mut self, _: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.unlocked()?;
        self.body.read(buffer, offset)
    }

    fn read_medium(&mut self, _: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.unlocked()?;
        self.body.read_medium(buffer, offset)
    }

    fn write(&mut self, _: usize, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.unlocked()?;
        self.written = self.written.map(|written| written + 1);
        self.body.write(buffer, offset)
    }

    fn write_zeroes(&mut self, _: usize, _: u64, _: u64) -> io::Result<()> {
        panic!("it doesn't claim to write zeros by itself");
    }

    fn discard(&mut self, _: usize, _: u64, _: u64) -> io::Result<()> {
        panic!("it doesn't claim to discard");
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn now(&self) -> Duration {
        self.body.clock
    }

    fn wait(&mut self, time: Duration) {
        self.body.advance(time);
    }
}

impl AtaDrive {
    fn unlocked(&self) -> io::Result<()> {
        if self.is_locked() { Err(io::Error::other("I/O error")) } else { Ok(()) }
    }
}
