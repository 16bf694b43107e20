//! Drives, as whoever erases them sees them: commands go in, blocks come out.
//!
//! [`Drive`] is the one seam above the kernel. What is below it is either a real drive ([`kernel`]) or, in tests, the
//! simulator, which knows the commands that no emulator has and every way to lie about them. What stands above it is the
//! same code for both. [`nvme`], [`ata`] and [`scsi`] are the languages that drives speak: bytes to types and back.

pub(crate) mod ata;
pub(crate) mod kernel;
pub(crate) mod namespaces;
pub(crate) mod nvme;
pub(crate) mod opal;
pub(crate) mod scsi;
#[cfg(test)]
pub(crate) mod sim;

use std::io;
use std::time::Duration;

/// Identify, log pages and the like take a healthy drive milliseconds; one that's busy with its own start, seconds.
pub(crate) const QUICK: Duration = Duration::from_secs(30);

/// Which kinds of sanitize a drive claims; NVMe, ATA and SCSI have the same three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sanitize {
    pub(crate) crypto: bool,
    pub(crate) block: bool,
    pub(crate) overwrite: bool,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SanitizeKind {
    Crypto,
    Block,
    Overwrite,
}

impl Sanitize {
    pub(crate) fn of(mut claims: impl FnMut(SanitizeKind) -> bool) -> Self {
        Self {
            crypto: claims(SanitizeKind::Crypto),
            block: claims(SanitizeKind::Block),
            overwrite: claims(SanitizeKind::Overwrite),
        }
    }

    pub(crate) fn any(self) -> bool {
        self != Self::default()
    }

    /// The only kind there is.
    pub(crate) fn only(self) -> Option<SanitizeKind> {
        match (self.crypto, self.block, self.overwrite) {
            (true, false, false) => Some(SanitizeKind::Crypto),
            (false, true, false) => Some(SanitizeKind::Block),
            (false, false, true) => Some(SanitizeKind::Overwrite),
            _ => None,
        }
    }
}

/// The counters of everything that hosts ever wrote, by which a drive tells that nothing was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) commands: u64,
    /// In whatever unit the drive counts data.
    pub(crate) data_units: u64,
}

/// What goes with a command.
#[derive(Debug)]
pub(crate) enum Data<'a> {
    None,
    /// From the drive.
    In(&'a mut [u8]),
    /// To the drive.
    Out(&'a [u8]),
}

impl Data<'_> {
    /// The same once more.
    pub(crate) fn again(&mut self) -> Data<'_> {
        match self {
            Self::None => Data::None,
            Self::In(buffer) => Data::In(buffer),
            Self::Out(bytes) => Data::Out(bytes),
        }
    }
}

/// One drive: a controller and its volumes, which are its namespaces or the one thing that it is.
///
/// `Err` of a command means that it didn't reach the drive or that no answer came in time; what the drive answered,
/// success or not, is the completion.
pub(crate) trait Drive: Send {
    /// An admin command of NVMe.
    fn nvme(&mut self, command: &nvme::Command, data: Data<'_>) -> io::Result<nvme::Completion>;
    /// A command of SCSI, or one of ATA in SCSI's clothes.
    fn scsi(&mut self, command: &scsi::Command, data: Data<'_>) -> io::Result<scsi::Completion>;

    /// Reads past the kernel's cache. Offsets and lengths are multiples of the volume's block, and the memory is a
    /// [`Buffer`]'s.
    fn read(&mut self, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Reads past the drive's own cache as well; `Unsupported` where there is no way to ask for that.
    fn read_medium(&mut self, volume: usize, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// How many paths lead to a volume besides the one that everything else here goes.
    fn other_paths(&self, _volume: usize) -> usize {
        0
    }
    fn read_by(&mut self, _path: usize, _volume: usize, _buffer: &mut [u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn write(&mut self, volume: usize, buffer: &[u8], offset: u64) -> io::Result<()>;
    /// Has the drive write zeros by itself.
    fn write_zeroes(&mut self, volume: usize, offset: u64, length: u64) -> io::Result<()>;
    fn discard(&mut self, volume: usize, offset: u64, length: u64) -> io::Result<()>;
    /// Returns when everything written is on the medium and nothing that was read is remembered.
    fn flush(&mut self) -> io::Result<()>;

    /// Starts the controller anew and has the kernel look again at what it is.
    fn reset(&mut self) -> io::Result<()>;

    /// Since some moment in the past.
    fn now(&self) -> Duration;
    fn wait(&mut self, time: Duration);
}

/// Memory where `O_DIRECT` and controllers want it.
#[derive(Debug)]
pub(crate) struct Buffer {
    room: Vec<u8>,
    skip: usize,
    length: usize,
}

impl Buffer {
    const ALIGNMENT: usize = 4096;

    pub(crate) fn new(length: usize) -> Self {
        let room = vec![0; length + Self::ALIGNMENT];
        let skip = room.as_ptr().align_offset(Self::ALIGNMENT).min(Self::ALIGNMENT);
        Self { room, skip, length }
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.room[self.skip..self.skip + self.length]
    }
}

/// What of a text can be typed: drives pad with blanks, on either side, and some with zeros.
fn typed(text: &[u8]) -> String {
    text.iter().filter(|byte| byte.is_ascii_graphic()).map(|&byte| char::from(byte)).collect()
}

/// Rotations per minute, in the code that ATA (word 217 of IDENTIFY DEVICE) and SCSI (vital product data, page B1h) share.
/// `None` if nothing turns, or the drive doesn't say.
fn rotation(code: u16) -> Option<u16> {
    (0x0401..0xffff).contains(&code).then_some(code)
}
