//! SCSI: a disk that knows what SBC-3 makes of SANITIZE, or only as much as QEMU's `scsi-hd`.

use std::io;
use std::time::Duration;

use super::{Body, SIZE, State};
use crate::drive::scsi::{Command, Completion};
use crate::drive::{Data, Drive, Sanitize, SanitizeKind, nvme};

/// What the drive claims and what it really does.
pub(crate) struct ScsiDrive {
    pub(crate) body: Body,
    pub(crate) sanitize: Sanitize,
    /// Whether REPORT SUPPORTED OPERATION CODES is known.
    pub(crate) reports: bool,
    /// How SANITIZE is supported: 3 is as in the standard.
    pub(crate) support: u8,
    pub(crate) rotation: u16,
    pub(crate) blocks: u64,
    /// Whether READ CAPACITY (16) is known.
    pub(crate) long_capacity: bool,
    /// Descriptor format, rather than fixed.
    pub(crate) descriptors: bool,
    /// Progress is told by REQUEST SENSE alone.
    pub(crate) tells_when_asked: bool,
    /// What is said to the next command, and with which status SANITIZE ends.
    pub(crate) attention: bool,
    pub(crate) sanitize_status: Option<u8>,
    /// Everything that was told it to erase: byte 1 of SANITIZE.
    pub(crate) told: Vec<u8>,
}

const ILLEGAL_COMMAND: [u8; 3] = [5, 0x20, 0x00];
const ILLEGAL_FIELD: [u8; 3] = [5, 0x24, 0x00];
const SANITIZING: [u8; 3] = [2, 0x04, 0x1b];
const SANITIZE_FAILED: [u8; 3] = [3, 0x31, 0x03];
const POWERED_ON: [u8; 3] = [6, 0x29, 0x00];

impl Default for ScsiDrive {
    /// A disk with platters that claims every way to sanitize.
    fn default() -> Self {
        Self {
            body: Body::default(),
            sanitize: Sanitize { crypto: true, block: true, overwrite: true },
            reports: true,
            support: 0b011,
            rotation: 7200,
            blocks: SIZE as u64 / 512,
            long_capacity: true,
            descriptors: false,
            tells_when_asked: false,
            attention: true,
            sanitize_status: None,
            told: Vec::new(),
        }
    }
}

impl ScsiDrive {
    pub(crate) fn with(crypto: bool, block: bool, overwrite: bool) -> Self {
        Self { sanitize: Sanitize { crypto, block, overwrite }, ..Self::default() }
    }

    /// QEMU's `scsi-hd`: REPORT SUPPORTED OPERATION CODES and SANITIZE are invalid operation codes.
    pub(crate) fn qemu() -> Self {
        Self { reports: false, rotation: 0, ..Self::with(false, false, false) }
    }

    pub(crate) fn power_cycle(&mut self) {
        self.body.power_cycle();
        self.attention = true;
    }

    fn page(&self, page: u8) -> Option<Vec<u8>> {
        let content = match page {
            0x00 => vec![0x00, 0x80, 0x83, 0xb0, 0xb1],
            0x80 => format!("{:>12}", self.body.serial).into_bytes(),
            0xb1 => [self.rotation.to_be_bytes().to_vec(), vec![0; 58]].concat(),
            0x89 => return None,
            other => panic!("nobody should ask for page {other:#x}"),
        };
        let length = u16::try_from(content.len()).expect("short");
        Some([vec![0, page], length.to_be_bytes().to_vec(), content].concat())
    }

    /// The sense data of the state that it's in.
    fn state(&self, asked: bool) -> Option<Vec<u8>> {
        match self.body.state {
            State::Running { done, .. } => {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1")]
                let progress = (done * 65535.0) as u16;
                Some(self.sense(SANITIZING, (asked || !self.tells_when_asked).then_some(progress)))
            }
            State::Failed { .. } => Some(self.sense(SANITIZE_FAILED, None)),
            State::Never | State::Succeeded => None,
        }
    }

    fn sense(&self, [key, asc, ascq]: [u8; 3], progress: Option<u16>) -> Vec<u8> {
        let [valid, [high, low]] = [progress.map_or([0, 0], |_| [0x80, 0]), progress.unwrap_or(0).to_be_bytes()];
        let valid = valid[0];
        if self.descriptors {
            vec![0x72, key, asc, ascq, 0, 0, 0, 8, 0x02, 6, 0, 0, valid, high, low, 0]
        } else {
            vec![0x70, 0, key, 0, 0, 0, 0, 10, 0, 0, 0, 0, asc, ascq, 0, valid, high, low]
        }
    }

    fn reports(&self, cdb: &[u8]) -> Option<Vec<u8>> {
        assert_eq!((cdb[1], cdb[2], cdb[3]), (0x0c, 0b010, Command::SANITIZE), "one service action of SANITIZE");
        let claimed = self.claims(cdb[5]);
        self.reports.then(|| vec![0, if claimed.is_some() { self.support } else { 0b001 }, 0, 0])
    }

    fn claims(&self, service_action: u8) -> Option<SanitizeKind> {
        match service_action {
            1 if self.sanitize.overwrite => Some(SanitizeKind::Overwrite),
            2 if self.sanitize.block => Some(SanitizeKind::Block),
            3 if self.sanitize.crypto => Some(SanitizeKind::Crypto),
            _ => None,
        }
    }

    fn begin(&mut self, cdb: &[u8], data: &Data<'_>) -> Completion {
        const UNRESTRICTED_EXIT: u8 = 1 << 5;
        self.told.push(cdb[1]);
        if let Some(status) = self.sanitize_status {
            return Completion { status, sense: vec![], transferred: 0 };
        }
        if cdb[1] == 0x1f {
            return if self.body.leave_failure() { good(0) } else { check(self.sense(ILLEGAL_FIELD, None)) };
        }
        let kind = self.claims(cdb[1] & 0x1f).expect("a way to sanitize that isn't claimed");
        assert_eq!(self.support, 0b011, "not in the manner of the standard");
        assert_eq!(cdb[1] >> 5, 0b101, "IMMED and AUSE");
        match (kind, data) {
            (SanitizeKind::Overwrite, Data::Out(parameters)) => {
                assert_eq!(usize::from(cdb[8]), parameters.len());
                // One pass, neither inverted nor tested, of this many bytes.
                assert_eq!(parameters[..4], [1, 0, 0, 4]);
                assert_eq!(parameters[4..], [0; 4]);
            }
            (_, Data::None) => assert_eq!((cdb[7], cdb[8]), (0, 0)),
            (_, data) => panic!("{data:?} doesn't belong to {kind:?}"),
        }
        if let (State::Running { .. }, Some(sense)) = (self.body.state, self.state(false)) {
            return check(sense);
        }
        self.body.begin(kind, cdb[1] & UNRESTRICTED_EXIT != 0);
        good(0)
    }

    fn capacity(&self, long: bool) -> Vec<u8> {
        let last = self.blocks - 1;
        if long {
            [last.to_be_bytes().to_vec(), 512u32.to_be_bytes().to_vec(), vec![0; 20]].concat()
        } else {
            let last = u32::try_from(last).unwrap_or(u32::MAX);
            [last.to_be_bytes(), 512u32.to_be_bytes()].concat()
        }
    }
}

fn good(transferred: usize) -> Completion {
    Completion { status: 0, sense: vec![], transferred }
}

fn check(sense: Vec<u8>) -> Completion {
    Completion { status: 2, sense, transferred: 0 }
}

/// As much as there is room for.
pub(super) fn give(data: Data<'_>, answer: &[u8]) -> Completion {
    let Data::In(room) = data else { panic!("nowhere to put an answer") };
    let length = answer.len().min(room.len());
    room[..length].copy_from_slice(&answer[..length]);
    good(length)
}

impl Drive for ScsiDrive {
    fn nvme(&mut self, _: &nvme::Command, _: Data<'_>) -> io::Result<nvme::Completion> {
        panic!("a SCSI drive was told something of NVMe");
    }

    fn scsi(&mut self, command: &Command, mut data: Data<'_>) -> io::Result<Completion> {
        let cdb = &command.cdb;
        let opcode = cdb[0];
        if std::mem::take(&mut self.attention) {
            if !matches!(opcode, Command::INQUIRY | Command::REQUEST_SENSE) {
                return Ok(check(self.sense(POWERED_ON, None)));
            }
            self.attention = true;
        }
        let busy = self.state(false).filter(|_| {
            matches!(opcode, Command::TEST_UNIT_READY | Command::READ_CAPACITY_10 | Command::SERVICE_ACTION_IN_16)
        });
        let answer = match (opcode, busy) {
            (_, Some(sense)) => return Ok(check(sense)),
            (Command::TEST_UNIT_READY, None) => return Ok(good(0)),
            (Command::REQUEST_SENSE, _) => Some(self.state(true).unwrap_or_else(|| self.sense([0; 3], None))),
            (Command::INQUIRY, _) => {
                assert_eq!(cdb[1], 1, "nobody needs the standard data");
                self.page(cdb[2])
            }
            (Command::READ_CAPACITY_10, _) => Some(self.capacity(false)),
            (Command::SERVICE_ACTION_IN_16, _) => self.long_capacity.then(|| self.capacity(true)),
            (Command::MAINTENANCE_IN, _) => self.reports(cdb),
            (Command::SANITIZE, _) => return Ok(self.begin(cdb, &data)),
            (Command::SECURITY_PROTOCOL_IN | Command::SECURITY_PROTOCOL_OUT, _) => {
                let (protocol, specific) = (cdb[1], u16::from_be_bytes([cdb[2], cdb[3]]));
                if self.body.secure(protocol, specific, &mut data) {
                    return Ok(good(0));
                }
                None
            }
            (other, _) => panic!("nobody should send operation code {other:#x}"),
        };
        Ok(match answer {
            Some(answer) => give(data, &answer),
            None => check(self.sense(ILLEGAL_COMMAND, None)),
        })
    }

    fn read(&mut self, _: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.body.read(buffer, offset)
    }

    fn read_medium(&mut self, _: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.body.read_medium(buffer, offset)
    }

    fn write(&mut self, _: usize, buffer: &[u8], offset: u64) -> io::Result<()> {
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
