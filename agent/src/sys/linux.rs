//! Network interfaces, the hardware clock, the watchdog and flags of files.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::sockopt::{BindToDevice, Broadcast, ReuseAddr};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket};

// --- network ------------------------------------------------------------------------------------------------------

mod ioctls {
    nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_netmask, libc::SIOCSIFNETMASK, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(add_route, libc::SIOCADDRT, libc::rtentry);

    // include/uapi/linux/rtc.h and watchdog.h
    nix::ioctl_write_ptr!(rtc_set_time, b'p', 0x0a, super::RtcTime);
    nix::ioctl_readwrite!(watchdog_set_timeout, b'W', 6, libc::c_int);

    // include/uapi/linux/fs.h
    nix::ioctl_read_bad!(get_file_flags, nix::request_code_read!(b'f', 1, size_of::<libc::c_long>()), libc::c_int);
    nix::ioctl_write_ptr_bad!(
        set_file_flags,
        nix::request_code_write!(b'f', 2, size_of::<libc::c_long>()),
        libc::c_int
    );
}

/// `struct rtc_time` of linux/rtc.h: `struct tm` without its time zone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RtcTime {
    sec: libc::c_int,
    min: libc::c_int,
    hour: libc::c_int,
    mday: libc::c_int,
    mon: libc::c_int,
    year: libc::c_int,
    wday: libc::c_int,
    yday: libc::c_int,
    isdst: libc::c_int,
}

/// A socket on the DHCP client port of one interface, which needn't have an address yet.
pub(crate) fn dhcp_socket(interface: &str) -> anyhow::Result<UdpSocket> {
    let open = || -> nix::Result<OwnedFd> {
        let fd =
            socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
        setsockopt(&fd, ReuseAddr, &true)?;
        setsockopt(&fd, Broadcast, &true)?;
        setsockopt(&fd, BindToDevice, &interface.into())?;
        bind(fd.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 68))?;
        Ok(fd)
    };
    Ok(open().with_context(|| format!("opening a DHCP socket on {interface}"))?.into())
}

pub(crate) fn link_up(interface: &str) -> anyhow::Result<()> {
    let socket = any_socket()?;
    let mut request = named(interface)?;
    // SAFETY: the kernel reads a name and writes flags, both inside `request`, which outlives the call.
    unsafe { ioctls::get_flags(socket.as_raw_fd(), &mut request) }
        .with_context(|| format!("reading the flags of {interface}"))?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::c_short::try_from(libc::IFF_UP).context("IFF_UP is the lowest bit")?;
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: as above; the kernel only reads.
    unsafe { ioctls::set_flags(socket.as_raw_fd(), &request) }.with_context(|| format!("switching {interface} on"))?;
    Ok(())
}

/// Replaces the interface's address. Without a mask the kernel takes the one of the address's class.
pub(crate) fn set_address(interface: &str, address: Ipv4Addr, mask: Option<Ipv4Addr>) -> anyhow::Result<()> {
    let socket = any_socket()?;
    let mut request = named(interface)?;
    request.ifr_ifru.ifru_addr = sockaddr(address);
    // SAFETY: the kernel only reads `request`, which outlives the call.
    unsafe { ioctls::set_address(socket.as_raw_fd(), &request) }
        .with_context(|| format!("giving {interface} the address {address}"))?;
    if let Some(mask) = mask {
        request.ifr_ifru.ifru_netmask = sockaddr(mask);
        // SAFETY: as above.
        unsafe { ioctls::set_netmask(socket.as_raw_fd(), &request) }
            .with_context(|| format!("giving {interface} the netmask {mask}"))?;
    }
    Ok(())
}

pub(crate) fn set_mtu(interface: &str, mtu: u16) -> anyhow::Result<()> {
    let socket = any_socket()?;
    let mut request = named(interface)?;
    request.ifr_ifru.ifru_mtu = mtu.into();
    // SAFETY: the kernel only reads `request`, which outlives the call.
    unsafe { ioctls::set_mtu(socket.as_raw_fd(), &request) }
        .with_context(|| format!("giving {interface} an MTU of {mtu}"))?;
    Ok(())
}

/// Adds a route; one that is already there is fine. An unspecified gateway means on-link.
pub(crate) fn add_route(
    interface: &str,
    destination: Ipv4Addr,
    mask: Ipv4Addr,
    gateway: Ipv4Addr,
) -> anyhow::Result<()> {
    let socket = any_socket()?;
    let device = CString::new(interface).context("an interface name without NUL")?;
    // SAFETY: all-zero bytes are a valid rtentry: integers, plain sockaddrs and a null pointer.
    let mut route: libc::rtentry = unsafe { mem::zeroed() };
    route.rt_dst = sockaddr(destination);
    route.rt_genmask = sockaddr(mask);
    route.rt_gateway = sockaddr(gateway);
    route.rt_flags = libc::RTF_UP;
    if !gateway.is_unspecified() {
        route.rt_flags |= libc::RTF_GATEWAY;
    }
    if mask == Ipv4Addr::BROADCAST {
        route.rt_flags |= libc::RTF_HOST;
    }
    route.rt_dev = device.as_ptr().cast_mut();
    // SAFETY: the kernel only reads `route` and the name it points to; both outlive the call.
    match unsafe { ioctls::add_route(socket.as_raw_fd(), &route) } {
        Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => {
            Err(error).with_context(|| format!("adding the route to {destination}/{mask} via {gateway} on {interface}"))
        }
    }
}

fn any_socket() -> anyhow::Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("opening a socket")
}

fn named(interface: &str) -> anyhow::Result<libc::ifreq> {
    // SAFETY: all-zero bytes are a valid ifreq: a name and a union of plain integers, addresses and a null pointer.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    anyhow::ensure!(
        !interface.is_empty() && interface.len() < request.ifr_name.len(),
        "{interface:?} is not an interface name"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let family = libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default();
    let inet = libc::sockaddr_in {
        sin_family: family,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain structures of 16 bytes (checked by transmute); AF_INET says which one it is.
    unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) }
}

// --- clock --------------------------------------------------------------------------------------------------------

/// Sets the battery-backed clock, so that the next boot and the installed system start with the right time.
pub(crate) fn set_rtc(device: &Path, unix_seconds: i64) -> anyhow::Result<()> {
    let rtc = File::open(device).with_context(|| format!("opening {}", device.display()))?;
    // SAFETY: all-zero bytes are a valid tm: integers and, on Linux, a null pointer to the zone's name.
    let mut tm: libc::tm = unsafe { mem::zeroed() };
    let seconds = unix_seconds;
    // SAFETY: both pointers are to live values of the right type; gmtime_r keeps neither.
    anyhow::ensure!(!unsafe { libc::gmtime_r(&seconds, &mut tm) }.is_null(), "{unix_seconds} s is no calendar date");
    let time = RtcTime {
        sec: tm.tm_sec,
        min: tm.tm_min,
        hour: tm.tm_hour,
        mday: tm.tm_mday,
        mon: tm.tm_mon,
        year: tm.tm_year,
        wday: tm.tm_wday,
        yday: tm.tm_yday,
        isdst: 0,
    };
    // SAFETY: the kernel only reads `time`, whose layout is that of `struct rtc_time`.
    unsafe { ioctls::rtc_set_time(rtc.as_raw_fd(), &time) }.with_context(|| format!("setting {}", device.display()))?;
    Ok(())
}

// --- watchdog -----------------------------------------------------------------------------------------------------

/// Opening a watchdog starts it: from now on somebody has to write to it.
pub(crate) fn open_watchdog(device: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(device)
}

/// Asks for a timeout and returns the one that the hardware took.
pub(crate) fn set_watchdog_timeout(watchdog: &File, timeout: Duration) -> io::Result<Duration> {
    let mut seconds = libc::c_int::try_from(timeout.as_secs()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel reads and writes one int, which outlives the call.
    unsafe { ioctls::watchdog_set_timeout(watchdog.as_raw_fd(), &mut seconds) }?;
    Ok(Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

// --- files --------------------------------------------------------------------------------------------------------

/// `chattr -i`
pub(crate) fn clear_immutable(path: &Path) -> io::Result<()> {
    const FS_IMMUTABLE_FL: libc::c_int = 0x10;
    let file = File::open(path)?;
    let mut flags: libc::c_int = 0;
    // SAFETY: the kernel writes one int (whatever the ioctl's number says of a long), which outlives the call.
    unsafe { ioctls::get_file_flags(file.as_raw_fd(), &raw mut flags) }?;
    flags &= !FS_IMMUTABLE_FL;
    // SAFETY: as above; the kernel only reads.
    unsafe { ioctls::set_file_flags(file.as_raw_fd(), &raw const flags) }?;
    Ok(())
}
