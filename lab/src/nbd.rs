//! A drive that lies: it says that it erased, and keeps its bytes.
//!
//! QEMU carries out NVMe Format by writing zeroes through its block layer; with this NBD server below, those succeed
//! without effect, while reads and writes are real. Just enough of the protocol for QEMU's client (NBD `doc/proto.md`:
//! fixed newstyle negotiation, simple replies).

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};

/// Serves the image at `socket` until the process ends.
pub(crate) fn serve_keeping_data(image: &Path, socket: &Path) -> Result<()> {
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
            // The client is QEMU; when it hangs up in mid-word it was killed, which is what power cuts are.
            thread::spawn(move || serve(&stream, &file, size).ok());
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

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// QEMU's own limit for one request is 32 MiB.
const MAX_REQUEST: u32 = 32 << 20;
const MAX_OPTION: u32 = 64 << 10;

fn serve(stream: &UnixStream, file: &File, size: u64) -> io::Result<()> {
    let mut from = BufReader::new(stream);
    let mut to = BufWriter::new(stream);
    if negotiate(&mut from, &mut to, size)? {
        transmit(&mut from, &mut to, file, size)?;
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

fn transmit(from: &mut impl Read, to: &mut impl Write, file: &File, size: u64) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        if u32_of(from)? != REQUEST_MAGIC {
            return Err(io::Error::other("not an NBD request"));
        }
        let (_flags, command) = (u16_of(from)?, u16_of(from)?);
        let (handle, offset, length) = (u64_of(from)?, u64_of(from)?, u32_of(from)?);
        let inside = offset.checked_add(length.into()).is_some_and(|end| end <= size);
        buffer.clear();
        let error = match command {
            CMD_READ if inside && length <= MAX_REQUEST => {
                buffer.resize(length as usize, 0);
                status(file.read_exact_at(&mut buffer, offset))
            }
            CMD_WRITE if length <= MAX_REQUEST => {
                buffer.resize(length as usize, 0);
                from.read_exact(&mut buffer)?;
                let done = if inside { status(file.write_all_at(&buffer, offset)) } else { EINVAL };
                buffer.clear();
                done
            }
            CMD_WRITE => return Err(io::Error::other("an NBD request that is too long")),
            // The lie.
            CMD_TRIM | CMD_WRITE_ZEROES if inside => 0,
            CMD_FLUSH => 0,
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
    fn zeroing_succeeds_and_changes_nothing() {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(4096).expect("a size");
        for (name, request, want) in [
            ("write", request(CMD_WRITE, 512, 4, b"data"), reply(0, b"")),
            ("zeroes", request(CMD_WRITE_ZEROES, 0, 4096, b""), reply(0, b"")),
            ("trim", request(CMD_TRIM, 0, 4096, b""), reply(0, b"")),
            ("read", request(CMD_READ, 512, 6, b""), reply(0, b"data\0\0")),
            ("past the end", request(CMD_READ, 4090, 7, b""), reply(EINVAL, b"")),
            ("offset overflows", request(CMD_READ, u64::MAX, 7, b""), reply(EINVAL, b"")),
            ("unknown", request(99, 0, 0, b""), reply(EINVAL, b"")),
        ] {
            let mut got = Vec::new();
            let end = transmit(&mut request.as_slice(), &mut got, &file, 4096).expect_err("the input ends");
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
