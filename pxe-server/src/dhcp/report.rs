//! What the log and a boot's timeline say about a decision.

use std::net::Ipv4Addr;

use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::id::Mac;
use drophammer_protocol::sight::{Asker, Leads, Sight};
use tracing::{debug, info, warn};

use super::boot::{self, Next, Site};
use super::decide::{Decision, POOL_IS_FULL, Verdict};
use super::request::{Firmware, Kind, Loader, Request};
use crate::config::{Dhcp, Network};
use crate::identity;
use crate::observe::{Observer, Told};

/// A request that is of none of our networks.
pub(super) fn stranger(request: &Request, interface: &str) {
    let (mac, giaddr) = (request.mac, request.giaddr);
    debug!(%mac, %giaddr, interface, "a request of a network that isn't in the configuration");
}

pub(super) fn conflict(request: &Request, address: Ipv4Addr, user: Option<Mac>) {
    let by = user.map_or_else(|| "somebody".into(), |mac| mac.to_string());
    warn!(
        mac = %request.mac, %address,
        "{by} uses this address without a lease from us, so it isn't offered to anybody for a while"
    );
}

pub(super) fn decided(request: &Request, decision: &Decision, network: &Network, site: &Site, observer: &Observer) {
    let (mac, verdict) = (request.mac, decision.verdict);
    let name = network.name.as_str();
    observer.metrics().decided(name, verdict.word());
    debug!(%mac, network = name, kind = ?request.kind, loader = ?request.loader, ?verdict, "dhcp");
    match (verdict, took_other(request, network)) {
        (Verdict::Silent(POOL_IS_FULL), _) => warn!(%mac, network = name, "no address for a client: {POOL_IS_FULL}"),
        (Verdict::Unbootable(why), _) => {
            warn!(%mac, network = name, "not answering a machine that wants to boot: {why}")
        }
        (Verdict::Silent(_), Some(other)) => match network.dhcp {
            Dhcp::Server(_) => warn!(
                %mac, %other, network = name,
                "another DHCP server is active on the boot network, and this client took its offer"
            ),
            // All that a proxy hears of the client's address.
            Dhcp::Proxy | Dhcp::Off => {
                if let Some(address) = request.wanted {
                    observer.saw(address.into(), mac, machine(request));
                }
            }
        },
        (Verdict::Declined(address), _) => {
            warn!(%mac, %address, "a client found its address in use by somebody else; it isn't handed out for a while");
        }
        (Verdict::Ack(address), _) => info!(%mac, network = name, %address, loader = ?request.loader, "leased"),
        _ => {}
    }
    match verdict {
        Verdict::Ack(address) | Verdict::Renew(address) => observer.saw(address.into(), mac, machine(request)),
        Verdict::Guide | Verdict::Inform if !request.ciaddr.is_unspecified() => {
            observer.saw(request.ciaddr.into(), mac, machine(request));
        }
        _ => {}
    }
    if let Some(told) = told(request, verdict, network, site) {
        observer.observe(mac, machine(request), told);
    }
}

fn machine(request: &Request) -> Option<drophammer_protocol::id::MachineId> {
    request.uuid().and_then(identity::of_uuid)
}

/// What the timeline of a boot says about this exchange. Operating systems aren't booting any more, nor is our agent, and
/// report themselves.
fn told(request: &Request, verdict: Verdict, network: &Network, site: &Site) -> Option<Told> {
    let (by, who) = match request.loader {
        Loader::None | Loader::Agent => return None,
        Loader::Pxe(Firmware::Bios) => (Asker::Bios, "BIOS firmware".to_owned()),
        Loader::Pxe(firmware) => (Asker::Uefi, format!("{} firmware", firmware.name())),
        Loader::UefiHttp(firmware) => (Asker::UefiHttp, format!("{} firmware (HTTP boot)", firmware.name())),
        Loader::Ipxe(firmware) => (Asker::Ipxe, format!("iPXE on {}", firmware.name())),
    };
    let next = boot::next(request.loader, site);
    let (to, next) = match &next {
        Ok(Some(Next::Tftp { file, .. })) => (Some(Leads::Tftp), format!("{file} by TFTP")),
        Ok(Some(Next::Http { url })) => (Some(Leads::Http), url.clone()),
        Ok(Some(Next::Script { .. })) => (Some(Leads::Script), "the boot script".into()),
        Ok(Some(Next::Ticket { .. }) | None) => (None, "nothing".into()),
        Err(why) => (None, format!("nothing: {why}")),
    };
    let led = to.map(|to| Sight::Led { by, to });
    let (step, message, sight) = match verdict {
        Verdict::Offer(address) => {
            let message = format!("{who} asks for an address: offered {address}");
            (Step::Started, message, Some(Sight::Offered { by, address }))
        }
        Verdict::Ack(address) => (Step::Done, format!("{who} has {address}; next is {next}"), led),
        Verdict::Guide => (Step::Note, format!("{who} asks where to boot from: {next}"), led),
        Verdict::Nak(why) => (Step::Failed, format!("{who} was refused its address: {why}"), None),
        Verdict::Unbootable(why) => {
            (Step::Failed, format!("{who} isn't answered: {why}"), Some(Sight::Unbootable { by }))
        }
        Verdict::Silent(POOL_IS_FULL) => {
            (Step::Failed, format!("{who} gets no address: {POOL_IS_FULL}"), Some(Sight::NoAddress { by }))
        }
        Verdict::Silent(_) => {
            let server = took_other(request, network).filter(|_| matches!(network.dhcp, Dhcp::Server(_)))?;
            let message = format!("{who} took the offer of another DHCP server, {server}");
            (Step::Failed, message, Some(Sight::TookOther { by, server }))
        }
        Verdict::Renew(_) | Verdict::Inform | Verdict::Released(_) | Verdict::Declined(_) => return None,
    };
    Some(Told { phase: Phase::Dhcp, step, message, progress: None, sight })
}

/// The other server whose offer this request accepts.
fn took_other(request: &Request, network: &Network) -> Option<Ipv4Addr> {
    request.server.filter(|other| request.kind == Kind::Request && *other != network.address)
}
