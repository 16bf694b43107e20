//! What the log and a boot's timeline say about a decision.

use std::net::Ipv4Addr;

use drophammer_protocol::event::{Phase, Step};
use drophammer_protocol::id::Mac;
use tracing::{debug, info, warn};

use super::boot::{self, Next, Site};
use super::decide::{Decision, POOL_IS_FULL, Verdict};
use super::request::{Kind, Loader, Request};
use crate::config::{Dhcp, Network};
use crate::identity;
use crate::observe::Observer;

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
    debug!(%mac, network = name, kind = ?request.kind, loader = ?request.loader, ?verdict, "dhcp");
    match (verdict, request.server) {
        (Verdict::Silent(POOL_IS_FULL), _) => warn!(%mac, network = name, "no address for a client: {POOL_IS_FULL}"),
        (Verdict::Unbootable(why), _) => {
            warn!(%mac, network = name, "not answering a machine that wants to boot: {why}")
        }
        (Verdict::Silent(_), Some(other)) if request.kind == Kind::Request && other != network.address => {
            match network.dhcp {
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
            }
        }
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
    if let Some((step, message)) = event(request, verdict, site) {
        observer.observe(mac, machine(request), Phase::Dhcp, step, message);
    }
}

fn machine(request: &Request) -> Option<drophammer_protocol::id::MachineId> {
    request.uuid().and_then(identity::of_uuid)
}

/// What the timeline of a boot says about this exchange. Operating systems aren't booting any more, nor is our agent, and
/// report themselves.
fn event(request: &Request, verdict: Verdict, site: &Site) -> Option<(Step, String)> {
    let who = match request.loader {
        Loader::None | Loader::Agent => return None,
        Loader::Pxe(firmware) => format!("{} firmware", firmware.name()),
        Loader::UefiHttp(firmware) => format!("{} firmware (HTTP boot)", firmware.name()),
        Loader::Ipxe(firmware) => format!("iPXE on {}", firmware.name()),
    };
    let next = || match boot::next(request.loader, site) {
        Ok(Some(Next::Tftp { file, .. })) => format!("{file} by TFTP"),
        Ok(Some(Next::Http { url })) => url,
        Ok(Some(Next::Script { .. })) => "the boot script".into(),
        Ok(Some(Next::Ticket { .. })) => "its ticket".into(),
        Ok(None) => "nothing".into(),
        Err(why) => format!("nothing: {why}"),
    };
    Some(match verdict {
        Verdict::Offer(address) => (Step::Started, format!("{who} asks for an address: offered {address}")),
        Verdict::Ack(address) => (Step::Done, format!("{who} has {address}; next is {}", next())),
        Verdict::Guide => (Step::Note, format!("{who} asks where to boot from: {}", next())),
        Verdict::Nak(why) => (Step::Failed, format!("{who} was refused its address: {why}")),
        Verdict::Unbootable(why) => (Step::Failed, format!("{who} isn't answered: {why}")),
        Verdict::Silent(POOL_IS_FULL) => (Step::Failed, format!("{who} gets no address: {POOL_IS_FULL}")),
        Verdict::Renew(_) | Verdict::Inform | Verdict::Released(_) | Verdict::Declined(_) | Verdict::Silent(_) => {
            return None;
        }
    })
}
