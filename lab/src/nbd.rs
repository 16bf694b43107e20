//! Drives that are bad in ways that QEMU itself can't play.
//!
//! QEMU carries out NVMe Format by writing zeroes through its block layer, so an NBD server below it can be a drive that
//! says it erased and didn't. Just enough of the protocol for QEMU's client (NBD `doc/proto.md`: fixed newstyle
//! negotiation, simple replies).

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::fcntl::{FallocateFlags, fallocate};

use crate::frailty::{Frailty, Written};

/// What is wrong with a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vice {
    /// Zeroing succeeds without effect.
    KeepsData,
    /// Writes that contain [`POISON`] fail.
    Choosy,
    /// Large writes take a while.
    Slow,
    /// Nothing, until its [`Frailty`] is told otherwise.
    Frail,
}

/// What a slow drive waits for each large write.
const SLOWNESS: Duration = Duration::from_millis(400);
const LARGE: u32 = 512 << 10;

/// Valid as a hostname, so that it's easily brought into a file of an installed system.
pub const POISON: &str = "this-write-fails";

/// Serves the image at `socket` until the process ends.
pub(crate) fn serve(image: &Path, socket: &Path, vice: Vice, frailty: Arc<Frailty>) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(image)
        .with_context(|| format!("opening the drive's image {}", image.display()))?;
    let size = file.metadata().with_context(|| format!("measuring {}", image.display()))?.len();
    let listener = UnixListener::bind(socket).with_context(|| format!("listening at {}", socket.display()))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), Ok(file)) = (stream, file.try_clone()) else { return };
            let frailty = Arc::clone(&frailty);
            // The client is QEMU; when it hangs up in mid-word it was killed, which is what power cuts are.
            thread::spawn(move || talk(&stream, &file, size, vice, &frailty).ok());
        }
    });
    Ok(())
}

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u32 = 2;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_ABORT: u32 = 2;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const INFO_EXPORT: u16 = 0;

/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_WRITE_ZEROES.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;

const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;

/// Durable before it's answered.
const FLAG_FUA: u16 = 1;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// QEMU's own limit for one request is 32 MiB.
const MAX_REQUEST: u32 = 32 << 20;
const MAX_OPTION: u32 = 64 << 10;

fn talk(stream: &UnixStream, file: &File, size: u64, vice: Vice, frailty: &Frailty) -> io::Result<()> {
    let mut from = BufReader::new(stream);
    let mut to = BufWriter::new(stream);
    if negotiate(&mut from, &mut to, size)? {
        transmit(&mut from, &mut to, file, size, vice, frailty)?;
    }
    Ok(())
}

/// Whether the client wants the drive.
fn negotiate(from: &mut impl Read, to: &mut impl Write, size: u64) -> io::Result<bool> {
    to.write_all(&MAGIC.to_be_bytes())?;
    to.write_all(&OPTION_MAGIC.to_be_bytes())?;
    to.write_all(&(FIXED_NEWSTYLE | 2).to_be_bytes())?;
    to.flush()?;
    let client_flags = u32_of(from)?;
    loop {
        if u64_of(from)? != OPTION_MAGIC {
            return Err(io::Error::other("not an NBD option"));
        }
        let (option, length) = (u32_of(from)?, u32_of(from)?);
        if length > MAX_OPTION {
            return Err(io::Error::other("an NBD option that is too long"));
        }
        io::copy(&mut from.take(length.into()), &mut io::sink())?;
        let mut reply = |kind: u32, data: &[u8]| -> io::Result<()> {
            to.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
            to.write_all(&option.to_be_bytes())?;
            to.write_all(&kind.to_be_bytes())?;
            to.write_all(&u32::try_from(data.len()).map_err(io::Error::other)?.to_be_bytes())?;
            to.write_all(data)?;
            to.flush()
        };
        match option {
            OPT_EXPORT_NAME => {
                to.write_all(&size.to_be_bytes())?;
                to.write_all(&EXPORT_FLAGS.to_be_bytes())?;
                if client_flags & NO_ZEROES == 0 {
                    to.write_all(&[0; 124])?;
                }
                to.flush()?;
                return Ok(true);
            }
            OPT_GO | OPT_INFO => {
                let info = [&INFO_EXPORT.to_be_bytes()[..], &size.to_be_bytes(), &EXPORT_FLAGS.to_be_bytes()].concat();
                reply(REP_INFO, &info)?;
                reply(REP_ACK, &[])?;
                if option == OPT_GO {
                    return Ok(true);
                }
            }
            OPT_ABORT => {
                reply(REP_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(REP_ERR_UNSUP, &[])?,
        }
    }
}

fn transmit(
    from: &mut impl Read,
    to: &mut impl Write,
    file: &File,
    size: u64,
    vice: Vice,
    frailty: &Frailty,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        if u32_of(from)? != REQUEST_MAGIC {
            return Err(io::Error::other("not an NBD request"));
        }
        let (flags, command) = (u16_of(from)?, u16_of(from)?);
        let (handle, offset, length) = (u64_of(from)?, u64_of(from)?, u32_of(from)?);
        let inside = offset.checked_add(length.into()).is_some_and(|end| end <= size);
        buffer.clear();
        let error = match command {
            CMD_READ if inside && length <= MAX_REQUEST => {
                buffer.resize(length as usize, 0);
                status(frailty.read(offset, length).and_then(|()| file.read_exact_at(&mut buffer, offset)))
            }
            CMD_WRITE if length <= MAX_REQUEST => {
                buffer.resize(length as usize, 0);
                from.read_exact(&mut buffer)?;
                if vice == Vice::Slow && length >= LARGE {
                    thread::sleep(SLOWNESS);
                }
                let refused = vice == Vice::Choosy && buffer.windows(POISON.len()).any(|w| w == POISON.as_bytes());
                let done = match inside {
                    false => EINVAL,
                    true if refused => EIO,
                    true => status(match frailty.write(offset, &buffer, flags & FLAG_FUA != 0) {
                        Written::Well => file.write_all_at(&buffer, offset),
                        Written::Nowhere => Ok(()),
                        Written::Refused => Err(io::Error::other("a bad sector")),
                    }),
                };
                buffer.clear();
                done
            }
            CMD_WRITE => return Err(io::Error::other("an NBD request that is too long")),
            CMD_TRIM | CMD_WRITE_ZEROES if inside => match vice {
                Vice::KeepsData => 0,
                Vice::Choosy | Vice::Slow | Vice::Frail => {
                    frailty.zero(offset, length);
                    status(zero(file, offset, length))
                }
            },
            CMD_FLUSH => {
                frailty.flush();
                0
            }
            CMD_DISC => return Ok(()),
            _ => EINVAL,
        };
        to.write_all(&REPLY_MAGIC.to_be_bytes())?;
        to.write_all(&error.to_be_bytes())?;
        to.write_all(&handle.to_be_bytes())?;
        if error == 0 {
            to.write_all(&buffer)?;
        }
        to.flush()?;
    }
}

fn zero(file: &File, offset: u64, length: u32) -> io::Result<()> {
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    Ok(fallocate(file, hole, i64::try_from(offset).map_err(io::Error::other)?, length.into())?)
}

fn status(done: io::Result<()>) -> u32 {
    if done.is_ok() { 0 } else { EIO }
}

fn u16_of(from: &mut impl Read) -> io::Result<u16> {
    let mut bytes = [0; 2];
    from.read_exact(&mut bytes)?;
    Ok(u16::from_be_bytes(bytes))
}

fn u32_of(from: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn u64_of(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Vice::{Choosy, KeepsData};

    fn request(command: u16, offset: u64, length: u32, data: &[u8]) -> Vec<u8> {
        [
            &REQUEST_MAGIC.to_be_bytes()[..],
            &0_u16.to_be_bytes(),
            &command.to_be_bytes(),
            &7_u64.to_be_bytes(),
            &offset.to_be_bytes(),
            &length.to_be_bytes(),
            data,
        ]
        .concat()
    }

    fn reply(error: u32, data: &[u8]) -> Vec<u8> {
        [&REPLY_MAGIC.to_be_bytes()[..], &error.to_be_bytes(), &7_u64.to_be_bytes(), data].concat()
    }

    #[test]
    fn a_drive_is_bad_in_one_way_only() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(4096).expect("a size");
        let poisoned = format!("..{POISON}..");
        let sound = Frailty::default();
        let (poisoned, length) = (poisoned.as_bytes(), u32::try_from(poisoned.len()).expect("small"));
        for (name, vice, request, want) in [
            ("write", KeepsData, request(CMD_WRITE, 512, 4, b"data"), reply(0, b"")),
            ("zeroes", KeepsData, request(CMD_WRITE_ZEROES, 0, 4096, b""), reply(0, b"")),
            ("trim", KeepsData, request(CMD_TRIM, 0, 4096, b""), reply(0, b"")),
            ("still there", KeepsData, request(CMD_READ, 512, 6, b""), reply(0, b"data\0\0")),
            ("past the end", KeepsData, request(CMD_READ, 4090, 7, b""), reply(EINVAL, b"")),
            ("offset overflows", KeepsData, request(CMD_READ, u64::MAX, 7, b""), reply(EINVAL, b"")),
            ("unknown", KeepsData, request(99, 0, 0, b""), reply(EINVAL, b"")),
            ("poison to whom it's none", KeepsData, request(CMD_WRITE, 512, length, poisoned), reply(0, b"")),
            ("zeroes that count", Choosy, request(CMD_WRITE_ZEROES, 0, 4096, b""), reply(0, b"")),
            ("gone", Choosy, request(CMD_READ, 514, 4, b""), reply(0, b"\0\0\0\0")),
            ("poison", Choosy, request(CMD_WRITE, 512, length, poisoned), reply(EIO, b"")),
            ("not written", Choosy, request(CMD_READ, 514, 4, b""), reply(0, b"\0\0\0\0")),
            ("anything else", Choosy, request(CMD_WRITE, 512, 4, b"data"), reply(0, b"")),
            ("written", Choosy, request(CMD_READ, 512, 4, b""), reply(0, b"data")),
        ] {
            let mut got = Vec::new();
            let end =
                transmit(&mut request.as_slice(), &mut got, &file, 4096, vice, &sound).expect_err("the input ends");
            assert_eq!((got, end.kind()), (want, io::ErrorKind::UnexpectedEof), "{name}");
        }
    }

    #[test]
    fn negotiation_answers_what_qemu_asks() {
        let option = |option: u32, data: &[u8]| {
            let length = u32::try_from(data.len()).expect("small");
            [&OPTION_MAGIC.to_be_bytes()[..], &option.to_be_bytes(), &length.to_be_bytes(), data].concat()
        };
        let flags = 3_u32.to_be_bytes().to_vec();
        for (name, said, want) in [
            (
                "structured replies, then go",
                [flags.clone(), option(8, b""), option(OPT_GO, &[0; 6])].concat(),
                Ok(true),
            ),
            ("export name", [flags.clone(), option(OPT_EXPORT_NAME, b"")].concat(), Ok(true)),
            ("abort", [flags.clone(), option(OPT_ABORT, b"")].concat(), Ok(false)),
            ("hangs up", flags.clone(), Err(io::ErrorKind::UnexpectedEof)),
            ("nonsense", [flags, vec![0; 16]].concat(), Err(io::ErrorKind::Other)),
        ] {
            let got = negotiate(&mut said.as_slice(), &mut io::sink(), 4096).map_err(|e| e.kind());
            assert_eq!(got, want, "{name}");
        }
    }
}
