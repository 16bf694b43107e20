//! NVMe: a controller with namespaces, Format NVM by the rules of FNA, and Sanitize with its states.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use super::medium::{Leaves, Lie, Medium};
use super::opal::Tper;
use crate::drive::nvme::{ALL_NAMESPACES, Command, Completion, Deallocated, Status, fixtures};
use crate::drive::{Data, Drive, Sanitize, scsi};

pub(crate) const SECURITY: u16 = 1 << 0;
pub(crate) const FORMAT: u16 = 1 << 1;
pub(crate) const MANAGEMENT: u16 = 1 << 3;

const OPERATION_DENIED: u16 = 0x15;
const SANITIZE_FAILED: u16 = 0x1c;
const SANITIZING: u16 = 0x1d;

/// What the drive claims and what it really does.
pub(crate) struct NvmeDrive {
    pub(crate) serial: &'static str,
    pub(crate) oacs: u16,
    pub(crate) fna: u8,
    pub(crate) sanicap: Sanitize,
    pub(crate) deallocated: Deallocated,
    pub(crate) namespaces: Vec<Namespace>,
    pub(crate) lie: Lie,
    /// Only the first namespace is erased, whatever was said.
    pub(crate) first_only: bool,
    /// What erase commands are answered with, in turn, before they're obeyed.
    pub(crate) answers: VecDeque<u16>,
    /// Half of the data is gone, then this is the answer, once.
    pub(crate) half_then: Option<u16>,
    /// The kernel gives up waiting for a format.
    pub(crate) hangs: bool,
    /// A sanitize ends as failed when it's so far.
    pub(crate) fails_at: Option<f64>,
    /// A sanitize never gets further than this.
    pub(crate) stuck_at: Option<f64>,
    /// A sanitize is accepted and not begun.
    pub(crate) forgets: bool,
    /// A failed sanitize can't be left.
    pub(crate) no_way_out: bool,
    pub(crate) unreadable_after: bool,
    pub(crate) serial_after_reset: Option<&'static str>,
    /// Identify is answered only after a reset, once anything was erased.
    pub(crate) wants_reset: bool,
    /// What looks like another path to its first namespace: the same medium, or another one.
    pub(crate) other_path: Option<OtherPath>,
    /// Its security subsystem, if it has one.
    pub(crate) tper: Option<Tper>,
    /// Everything that was told it to erase.
    pub(crate) told: Vec<(u8, u32, u32)>,
    /// Write commands of the host, ever.
    pub(crate) written: u64,
    pub(crate) sanitize: Sanitizing,
    pub(crate) unreadable: bool,
    pub(crate) gone: bool,
    pub(crate) clock: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OtherPath {
    ToIt,
    /// To a drive of the same name.
    ToATwin,
}

#[derive(Clone, Debug)]
pub(crate) struct Namespace {
    pub(crate) id: u32,
    pub(crate) attached: bool,
    pub(crate) medium: Medium,
}

/// SSTAT and what it's about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sanitizing {
    state: u16,
    cdw10: u32,
    /// From 0 to 1.
    done: f64,
    untouched_since: bool,
}

const NEVER: u16 = 0;
const DONE: u16 = 1;
const RUNNING: u16 = 2;
const FAILED: u16 = 3;

pub(crate) const SIZE: usize = 1 << 20;

impl Default for NvmeDrive {
    /// As QEMU's: Format NVM and nothing else, one namespace, old content everywhere.
    fn default() -> Self {
        Self {
            serial: "SN-1",
            oacs: FORMAT | MANAGEMENT,
            fna: 0,
            sanicap: Sanitize::default(),
            deallocated: Deallocated::Unsaid,
            namespaces: vec![Namespace::full(1)],
            lie: Lie::None,
            first_only: false,
            answers: VecDeque::new(),
            half_then: None,
            hangs: false,
            fails_at: None,
            stuck_at: None,
            forgets: false,
            no_way_out: false,
            unreadable_after: false,
            serial_after_reset: None,
            wants_reset: false,
            other_path: None,
            tper: None,
            told: Vec::new(),
            written: 1000,
            sanitize: Sanitizing::default(),
            unreadable: false,
            gone: false,
            clock: Duration::ZERO,
        }
    }
}

impl Namespace {
    pub(crate) fn full(id: u32) -> Self {
        Self { id, attached: true, medium: Medium::full(SIZE, id.into()) }
    }
}

impl NvmeDrive {
    pub(crate) fn with_sanitize(crypto: bool, block: bool, overwrite: bool) -> Self {
        Self { sanicap: Sanitize { crypto, block, overwrite }, ..Self::default() }
    }

    /// Power goes and comes back: a sanitize goes on where it was.
    pub(crate) fn power_cycle(&mut self) {
        self.namespaces.iter_mut().for_each(|namespace| namespace.medium.power_cycle());
        self.unreadable = false;
    }

    /// With TCG Opal; what is on it is encrypted if the subsystem says so.
    pub(crate) fn with_opal(tper: Tper) -> Self {
        Self { oacs: SECURITY, tper: Some(tper), ..Self::default() }
    }

    /// As if another boot had begun it.
    pub(crate) fn begin_sanitize(&mut self, cdw10: u32, done: f64) {
        self.sanitize = Sanitizing { state: RUNNING, cdw10, done, untouched_since: false };
    }

    pub(crate) fn is_sanitizing(&self) -> bool {
        self.sanitize.state == RUNNING
    }

    fn identify_controller(&self) -> Vec<u8> {
        let mut page = fixtures::controller(self.serial, self.oacs, self.fna);
        let Sanitize { crypto, block, overwrite } = self.sanicap;
        let claims = u32::from(crypto) | u32::from(block) << 1 | u32::from(overwrite) << 2;
        fixtures::put(&mut page, 328, &claims.to_le_bytes());
        page
    }

    fn identify_namespace(&self, nsid: u32) -> Vec<u8> {
        let Some(namespace) = self.namespaces.iter().find(|n| n.id == nsid && n.attached) else {
            return vec![0; crate::drive::nvme::IDENTIFY_BYTES];
        };
        let mut page = fixtures::namespace(namespace.medium.len() as u64 / 512, 0, 0);
        let dlfeat = match self.deallocated {
            Deallocated::Unsaid => 0,
            Deallocated::Zeroes => 1,
            Deallocated::Ones => 2,
        };
        fixtures::put(&mut page, 33, &[dlfeat]);
        page
    }

    fn identify(&self, cns: u32, nsid: u32) -> Vec<u8> {
        let ids = |attached_only: bool| -> Vec<u32> {
            self.namespaces.iter().filter(|n| n.attached || !attached_only).map(|n| n.id).collect()
        };
        match cns {
            0x00 => self.identify_namespace(nsid),
            0x01 => self.identify_controller(),
            0x02 => fixtures::list(&ids(true)),
            0x10 if self.oacs & MANAGEMENT != 0 => fixtures::list(&ids(false)),
            other => panic!("nobody should ask for CNS {other:#x}"),
        }
    }

    fn sanitize_log(&self) -> Vec<u8> {
        assert!(self.sanicap != Sanitize::default(), "nobody should ask for a log that isn't claimed");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1")]
        let progress = if self.sanitize.state == RUNNING { (self.sanitize.done * 65535.0) as u16 } else { u16::MAX };
        let untouched = u16::from(self.sanitize.untouched_since) << 8;
        fixtures::sanitize_log(progress, self.sanitize.state | untouched, self.sanitize.cdw10)
    }

    /// What an erase of data leaves to be read.
    fn erased(&self) -> Leaves {
        match self.deallocated {
            Deallocated::Unsaid | Deallocated::Zeroes => Leaves::Fill(0),
            Deallocated::Ones => Leaves::Fill(0xff),
        }
    }

    /// What a thrown-away key leaves to be read.
    fn rekeyed(&self) -> Leaves {
        match self.deallocated {
            Deallocated::Unsaid => Leaves::Noise,
            Deallocated::Zeroes => Leaves::Fill(0),
            Deallocated::Ones => Leaves::Fill(0xff),
        }
    }

    fn erase(&mut self, which: impl Fn(u32) -> bool, leaves: Leaves, part: f64) {
        let (lie, first_only) = (self.lie, self.first_only);
        let which = |nsid: u32| which(nsid) && (!first_only || nsid == 1);
        for namespace in self.namespaces.iter_mut().filter(|n| which(n.id)) {
            namespace.medium.erase(leaves, lie, part);
        }
        self.unreadable = self.unreadable_after;
        self.gone = self.wants_reset;
    }

    fn format(&mut self, command: &Command) -> io::Result<u16> {
        assert!(self.oacs & FORMAT != 0, "Format NVM isn't claimed");
        let (all, broadcast) = (self.fna & 0b11 != 0, self.fna & 1 != 0 && self.fna & 0b1000 == 0);
        assert_eq!(command.nsid == ALL_NAMESPACES, broadcast, "to whom a format is addressed is what FNA says");
        let leaves = match command.cdw10 >> 9 & 0b111 {
            1 => self.erased(),
            2 if self.fna & 0b100 != 0 => self.rekeyed(),
            ses => panic!("SES={ses} isn't claimed"),
        };
        if self.sanitize.state == FAILED {
            return Ok(SANITIZE_FAILED);
        }
        if self.hangs {
            self.clock += command.timeout;
            return Err(io::ErrorKind::TimedOut.into());
        }
        if let Some(status) = self.half_then.take() {
            self.erase(|_| true, leaves, 0.5);
            return Ok(status);
        }
        let nsid = command.nsid;
        self.erase(|id| all || nsid == ALL_NAMESPACES || id == nsid, leaves, 1.0);
        Ok(0)
    }

    fn begin(&mut self, command: &Command) -> u16 {
        let claimed = match command.cdw10 & 0b111 {
            1 => self.sanitize.state == FAILED,
            2 => self.sanicap.block,
            3 => self.sanicap.overwrite,
            4 => self.sanicap.crypto,
            _ => false,
        };
        assert!(claimed, "SANACT {} isn't claimed", command.cdw10 & 0b111);
        assert!(command.cdw10 & 1 << 3 != 0 || command.cdw10 & 0b111 == 1, "no way out of a failure was asked for");
        if command.cdw10 & 0b111 == 1 {
            if self.no_way_out {
                return SANITIZE_FAILED;
            }
            self.sanitize = Sanitizing::default();
        } else if !self.forgets {
            self.begin_sanitize(command.cdw10, 0.0);
        }
        0
    }

    fn advance(&mut self, time: Duration) {
        if self.sanitize.state != RUNNING {
            return;
        }
        let takes = if self.sanitize.cdw10 & 0b111 == 4 { 2.0 } else { 120.0 };
        self.sanitize.done += time.as_secs_f64() / takes;
        if let Some(stuck) = self.stuck_at {
            self.sanitize.done = self.sanitize.done.min(stuck);
        }
        let leaves = match self.sanitize.cdw10 & 0b111 {
            2 => self.erased(),
            3 => Leaves::Fill(0),
            _ => self.rekeyed(),
        };
        if let Some(limit) = self.fails_at.filter(|limit| self.sanitize.done >= *limit) {
            self.erase(|_| true, leaves, limit);
            self.sanitize.state = FAILED;
        } else if self.sanitize.done >= 1.0 {
            self.erase(|_| true, leaves, 1.0);
            self.sanitize.state = DONE;
            self.sanitize.untouched_since = true;
        }
    }

    /// A security command, and what becomes of the medium if its key is another one after it.
    fn secure(&mut self, command: &Command, data: Data<'_>) -> u16 {
        const INVALID_FIELD: u16 = 0x02;
        let Some(tper) = &mut self.tper else { panic!("security commands aren't claimed") };
        let key = tper.key_generation();
        let bytes = command.cdw10.to_be_bytes();
        let (protocol, com_id) = (bytes[0], u16::from_be_bytes([bytes[1], bytes[2]]));
        let taken = match (command.opcode, data) {
            (Command::SECURITY_SEND, Data::Out(bytes)) => tper.send(protocol, com_id, bytes),
            (Command::SECURITY_RECEIVE, Data::In(bytes)) => tper.receive(protocol, com_id, bytes),
            (opcode, data) => panic!("opcode {opcode:#x} with {data:?}"),
        };
        if tper.key_generation() != key {
            self.erase(|_| true, self.rekeyed(), 1.0);
        }
        if taken { 0 } else { INVALID_FIELD }
    }

    /// Whether blocks can be had at all.
    fn block_access(&mut self) -> io::Result<()> {
        if self.is_locked() {
            return Err(io::Error::other("access denied"));
        }
        match self.sanitize.state {
            RUNNING | FAILED => Err(io::Error::other("sanitize in progress or failed")),
            NEVER | DONE => Ok(()),
            other => panic!("no such state: {other}"),
        }
    }

    fn is_locked(&self) -> bool {
        self.tper.as_ref().is_some_and(|tper| tper.locked)
    }

    fn volume(&mut self, volume: usize) -> &mut Medium {
        let attached = self.namespaces.iter_mut().filter(|n| n.attached);
        &mut attached.into_iter().nth(volume).expect("a namespace with a block device").medium
    }
}

impl Drive for NvmeDrive {
    fn nvme(&mut self, command: &Command, data: Data<'_>) -> io::Result<Completion> {
        if self.gone {
            return Err(io::Error::other("the controller is gone"));
        }
        let erases = matches!(command.opcode, Command::FORMAT_NVM | Command::SANITIZE);
        if erases {
            self.told.push((command.opcode, command.nsid, command.cdw10));
        }
        let status = match (command.opcode, data) {
            (Command::IDENTIFY, Data::In(page)) => {
                page.copy_from_slice(&self.identify(command.cdw10, command.nsid));
                0
            }
            (Command::GET_LOG_PAGE, Data::In(page)) if command.cdw10 & 0xff == 0x81 => {
                page.copy_from_slice(&self.sanitize_log());
                0
            }
            (Command::GET_LOG_PAGE, Data::In(page)) if command.cdw10 & 0xff == 0x02 => {
                fixtures::put(page, 48, &(self.written / 125).to_le_bytes());
                fixtures::put(page, 80, &self.written.to_le_bytes());
                0
            }
            (Command::SECURITY_SEND | Command::SECURITY_RECEIVE, data) => self.secure(command, data),
            _ if self.sanitize.state == RUNNING => SANITIZING,
            (Command::FORMAT_NVM | Command::SANITIZE, _) if self.is_locked() => OPERATION_DENIED,
            (Command::FORMAT_NVM | Command::SANITIZE, Data::None) if !self.answers.is_empty() => {
                self.answers.pop_front().unwrap_or_default()
            }
            (Command::FORMAT_NVM, Data::None) => self.format(command)?,
            (Command::SANITIZE, Data::None) => self.begin(command),
            (other, data) => panic!("nobody should send opcode {other:#x} with {data:?}"),
        };
        Ok(Completion { status: Status(status), result: 0 })
    }

    fn scsi(&mut self, command: &scsi::Command, _: Data<'_>) -> io::Result<scsi::Completion> {
        panic!("nobody should speak SCSI to NVMe: {command:?}")
    }

    fn read(&mut self, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.block_access()?;
        if self.unreadable {
            return Err(io::Error::other("unrecovered read error"));
        }
        self.volume(volume).read(buffer, offset)
    }

    fn read_medium(&mut self, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.block_access()?;
        if self.unreadable {
            return Err(io::Error::other("unrecovered read error"));
        }
        self.volume(volume).read_medium(buffer, offset)
    }

    fn other_paths(&self, volume: usize) -> usize {
        usize::from(volume == 0 && self.other_path.is_some())
    }

    fn read_by(&mut self, _: usize, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.other_path {
            Some(OtherPath::ToATwin) => Medium::full(SIZE, 99).read(buffer, offset),
            _ => self.read(volume, buffer, offset),
        }
    }

    fn write(&mut self, volume: usize, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.block_access()?;
        self.sanitize.untouched_since = false;
        self.written += 1;
        self.volume(volume).write(buffer, offset);
        Ok(())
    }

    fn write_zeroes(&mut self, volume: usize, offset: u64, length: u64) -> io::Result<()> {
        self.block_access()?;
        let (lie, size) = (self.lie, self.volume(volume).len() as u64);
        assert_eq!((offset, length), (0, size), "a drive so small is zeroed at once");
        self.volume(volume).erase(Leaves::Fill(0), lie, 1.0);
        Ok(())
    }

    fn discard(&mut self, volume: usize, offset: u64, length: u64) -> io::Result<()> {
        let leaves = self.erased();
        let (lie, size) = (self.lie, self.volume(volume).len() as u64);
        assert_eq!((offset, length), (0, size), "a drive so small is discarded at once");
        self.volume(volume).erase(leaves, lie, 1.0);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.gone = false;
        self.serial = self.serial_after_reset.unwrap_or(self.serial);
        Ok(())
    }

    fn now(&self) -> Duration {
        self.clock
    }

    fn wait(&mut self, time: Duration) {
        self.clock += time;
        if let Some(tper) = &mut self.tper {
            tper.waited += time;
        }
        self.advance(time);
    }
}
