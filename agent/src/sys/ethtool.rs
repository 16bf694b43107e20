//! ETHTOOL_GDRVINFO: the one thing about a network interface that sysfs doesn't tell.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    version: [u8; 32],
    fw_version: [u8; 32],
    bus_info: [u8; 32],
    erom_version: [u8; 32],
    reserved2: [u8; 12],
    n_priv_flags: u32,
    n_stats: u32,
    testinfo_len: u32,
    eedump_len: u32,
    regdump_len: u32,
}

const _: () = assert!(size_of::<DriverInfo>() == 196);

const ETHTOOL_GDRVINFO: u32 = 3;

/// The firmware's version, if the driver knows one.
pub(crate) fn firmware_version(interface: &str) -> io::Result<Option<String>> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut info = DriverInfo {
        cmd: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        fw_version: [0; 32],
        bus_info: [0; 32],
        erom_version: [0; 32],
        reserved2: [0; 12],
        n_priv_flags: 0,
        n_stats: 0,
        testinfo_len: 0,
        eedump_len: 0,
        regdump_len: 0,
    };
    // SAFETY: an all-zero `ifreq` is a valid one: names are byte arrays and the union is made of plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name's end.
    let room = request.ifr_name.len() - 1;
    if interface.len() > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    // SAFETY: for SIOCETHTOOL `ifru_data` points to a structure that starts with the command; ETHTOOL_GDRVINFO fills
    // exactly `DriverInfo`, and both live until the call returns.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    nix::errno::Errno::result(answer)?;
    let text: String =
        info.fw_version.iter().take_while(|&&b| b != 0).filter(|b| b.is_ascii()).map(|&b| char::from(b)).collect();
    Ok(Some(text.trim().to_owned()).filter(|t| !t.is_empty() && t != "N/A"))
}
