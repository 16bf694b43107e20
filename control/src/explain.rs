//! Why a machine isn't where it should be: its timeline in, the likely cause out. Pure.
//!
//! A boot is a chain, and every link is seen from the boot server or told by the agent. So the cause is behind the last link
//! that was seen. Each rule below knows one way in which the next one can be missing.

use drophammer_protocol::api::{Evidence, Explanation};
use drophammer_protocol::event::{Phase, Recorded, Step};
use drophammer_protocol::machine::State;
use drophammer_protocol::sight::{Asker, End, File, Leads, Sight};

/// What is known of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    pub state: State,
    pub reason: Option<&'a str>,
    pub events: &'a [Recorded],
    pub now_ms: u64,
}

/// A boot that was heard of this recently is under way.
const UNDER_WAY_MS: u64 = 15_000;
/// What was tried longer ago says nothing about now.
const RECENT_MS: u64 = 15 * 60 * 1000;
/// Two events that are further apart belong to two attempts.
const PAUSE_MS: u64 = 5 * 60 * 1000;

pub fn explain(case: &Case<'_>) -> Explanation {
    let trace = Trace::of(case);
    let found = RULES.iter().find_map(|(name, rule)| rule(&trace).map(|found| (*name, found)));
    let (rule, Found { verdict, advice, because }) = found.unwrap_or_else(|| ("never-seen", never_seen()));
    let because = because.into_iter().map(|event| Evidence { at_ms: event.at_ms, message: event.message.clone() });
    Explanation { rule: rule.to_owned(), verdict, because: because.collect(), advice }
}

struct Found<'a> {
    verdict: String,
    advice: Vec<String>,
    because: Vec<&'a Recorded>,
}

fn found<'a>(
    because: impl IntoIterator<Item = &'a Recorded>,
    verdict: impl Into<String>,
    advice: &[&str],
) -> Option<Found<'a>> {
    let advice = advice.iter().map(|text| (*text).to_owned()).collect();
    Some(Found { verdict: verdict.into(), advice, because: because.into_iter().collect() })
}

type Rule = for<'a> fn(&Trace<'a>) -> Option<Found<'a>>;

/// The first one that applies is the explanation: what came furthest is asked about first.
const RULES: [(&str, Rule); 21] = [
    ("quarantined", quarantined),
    ("under-way", under_way),
    ("no-decision", no_decision),
    ("agent-failed", agent_failed),
    ("as-it-should-be", as_it_should_be),
    ("agent-silent", agent_silent),
    ("own-disk", own_disk),
    ("kernel-silent", kernel_silent),
    ("image-refused", image_refused),
    ("download-stopped", download_stopped),
    ("nothing-downloaded", nothing_downloaded),
    ("script-unreached", script_unreached),
    ("ipxe-offer-lost", ipxe_offer_lost),
    ("loader-silent", loader_silent),
    ("loader-unanswered", loader_unanswered),
    ("loader-stopped", loader_stopped),
    ("loader-unasked", loader_unasked),
    ("another-server", another_server),
    ("no-address", no_address),
    ("no-loader", no_loader),
    ("offer-lost", offer_lost),
];

/// The attempt to boot that tells most.
struct Trace<'a> {
    state: State,
    reason: Option<&'a str>,
    now_ms: u64,
    events: &'a [Recorded],
}

impl<'a> Trace<'a> {
    fn of(case: &Case<'a>) -> Self {
        Self { state: case.state, reason: case.reason, now_ms: case.now_ms, events: telling(case.events) }
    }

    fn last(&self) -> Option<&'a Recorded> {
        self.events.iter().rev().find(|event| stage(event).is_some())
    }

    fn silent_ms(&self) -> u64 {
        self.last().map_or(u64::MAX, |last| self.now_ms.saturating_sub(last.at_ms))
    }

    fn find(&self, wanted: impl Fn(&Sight) -> bool) -> Option<&'a Recorded> {
        self.events.iter().rev().find(|event| event.sight.as_ref().is_some_and(&wanted))
    }

    fn fetched(&self, file: File, end: End) -> Option<&'a Recorded> {
        self.find(|sight| *sight == Sight::Fetched { file, end })
    }

    fn offered(&self, wanted: impl Fn(Asker) -> bool) -> Option<(&'a Recorded, Asker)> {
        self.events.iter().rev().find_map(|event| match event.sight {
            Some(Sight::Offered { by, .. }) if wanted(by) => Some((event, by)),
            _ => None,
        })
    }

    fn led(&self, to: Leads) -> Option<(&'a Recorded, Asker)> {
        self.events.iter().rev().find_map(|event| match event.sight {
            Some(Sight::Led { by, to: led }) if led == to => Some((event, by)),
            _ => None,
        })
    }

    fn of_agent(&self) -> Option<&'a Recorded> {
        self.events.iter().rev().find(|event| stage(event) == Some(Stage::Agent))
    }
}

/// How far a boot has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Firmware,
    Loader,
    Ipxe,
    Script,
    Kernel,
    Agent,
}

fn stage(event: &Recorded) -> Option<Stage> {
    if let Some(by) = event.sight.as_ref().and_then(Sight::asker) {
        return Some(if by == Asker::Ipxe { Stage::Ipxe } else { Stage::Firmware });
    }
    match &event.sight {
        Some(Sight::Fetched { file: File::Loader, .. }) => Some(Stage::Loader),
        Some(Sight::Told { .. } | Sight::Undecided) => Some(Stage::Script),
        Some(Sight::Fetched { .. }) => Some(Stage::Kernel),
        Some(_) => None,
        None if event.phase == Phase::Lifecycle || event.phase < Phase::Kernel => None,
        None => Some(Stage::Agent),
    }
}

/// Of the attempts since the last one that got to where the server sent it, the one that came furthest; of two that came as
/// far the later one. Firmware goes through its boot entries again and again, and the last one needn't be the best.
fn telling(events: &[Recorded]) -> &[Recorded] {
    let mut best: Option<Attempt> = None;
    let mut present: Option<Attempt> = None;
    for (n, event) in events.iter().enumerate() {
        let Some(stage) = stage(event) else { continue };
        let arrived = stage == Stage::Agent || matches!(event.sight, Some(Sight::Told { own_disk: true }));
        let goes_on = present.filter(|attempt| attempt.goes_on(stage, event.at_ms));
        let attempt = Attempt {
            from: goes_on.map_or(n, |attempt| attempt.from),
            to: n + 1,
            stage,
            arrived: arrived || goes_on.is_some_and(|attempt| attempt.arrived),
            at_ms: event.at_ms,
        };
        if goes_on.is_none() {
            // What was before is history if it arrived, or if it's long ago.
            best = best.filter(|best| !best.arrived && event.at_ms.saturating_sub(best.at_ms) < RECENT_MS);
        }
        if best.is_none_or(|best| attempt.from == best.from || attempt.stage >= best.stage) {
            best = Some(attempt);
        }
        present = Some(attempt);
    }
    best.and_then(|attempt| events.get(attempt.from..attempt.to)).unwrap_or_default()
}

#[derive(Clone, Copy)]
struct Attempt {
    from: usize,
    to: usize,
    stage: Stage,
    /// At the agent, or sent to its own disk.
    arrived: bool,
    at_ms: u64,
}

impl Attempt {
    fn goes_on(&self, stage: Stage, at_ms: u64) -> bool {
        stage >= self.stage && (stage == Stage::Agent || at_ms.saturating_sub(self.at_ms) < PAUSE_MS)
    }
}

fn never_seen() -> Found<'static> {
    let advice = [
        "is it switched on, with a cable in the card that it boots from, and network boot first in its firmware's boot order?",
        "is its switch port in the boot network's VLAN? Behind a router, is a DHCP relay set up that points to the boot server?",
        "`drophammer bootserver list` shows which networks are served, and whether their boot server is up",
    ];
    Found {
        verdict: "no boot server has seen it boot".into(),
        advice: advice.map(str::to_owned).into(),
        because: vec![],
    }
}

fn quarantined<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let why = trace.reason.unwrap_or("nobody wrote down why");
    (trace.state == State::Quarantined).then_some(())?;
    found(
        trace.events.iter().rev().find(|event| event.step == Step::Failed),
        format!("it's quarantined: {why}"),
        &[
            "put that right, then `drophammer machine release --despite-quarantine` has it erased again, and that decision is recorded",
        ],
    )
}

fn under_way<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let last = trace.last().filter(|last| last.step != Step::Failed)?;
    let resting = matches!(trace.state, State::Waiting | State::Running);
    (trace.silent_ms() < UNDER_WAY_MS && !resting).then_some(())?;
    found([last], "it's under way: it was heard of just now", &["`drophammer machine events --follow` shows it go on"])
}

fn no_decision<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let undecided = trace.find(|sight| *sight == Sight::Undecided)?;
    let told_since = trace
        .events
        .iter()
        .any(|event| event.position > undecided.position && matches!(event.sight, Some(Sight::Told { .. })));
    (!told_since).then_some(())?;
    found(
        [undecided],
        "it asked what to boot, and the server couldn't decide",
        &[
            "the message has the cause, most often a full or failing disk of the server; the machine asks again by itself",
        ],
    )
}

fn agent_failed<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let last = trace.of_agent().filter(|last| last.step == Step::Failed)?;
    found(
        [last],
        format!("its agent booted and failed at {}", last.phase.name()),
        &["the message has the chain of causes; the machine's console has more"],
    )
}

fn as_it_should_be<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let what = match trace.state {
        State::Waiting => "it's erased and waits to be allocated",
        State::Running if trace.find(|sight| matches!(sight, Sight::Told { own_disk: true })).is_none() => {
            "its installed system said that it's up"
        }
        _ => return None,
    };
    found(trace.last(), format!("nothing is wrong with it that anybody knows of: {what}"), &[])
}

fn agent_silent<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let last = trace.of_agent()?;
    let after = last.phase.name();
    match (trace.state, last.phase) {
        (State::Booting, _) | (_, Phase::Kexec) => found(
            [last],
            "its new system was started and hasn't said that it's up",
            &[
                "look at the machine's console: does the kernel start, find its root file system, get an address?",
                "the system says so with drophammer-phone-home.service: does it run, and can it reach the boot server's HTTPS port?",
            ],
        ),
        _ => found(
            [last],
            format!("its agent went silent after {after}"),
            &[
                "look at the machine's console: a kernel panic, a reset, a power cut?",
                "has its link gone down, or its way to the boot server's HTTPS port?",
            ],
        ),
    }
}

fn own_disk<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let told = trace.find(|sight| matches!(sight, Sight::Told { own_disk: true }))?;
    found(
        [told],
        "it was sent to its own disk, as it has a tenant; what it does from there isn't seen from here",
        &[
            "look at the machine's console: does the firmware find a boot entry for the disk, behind the network in its order?",
            "`drophammer machine reprovision` installs it again",
        ],
    )
}

fn kernel_silent<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let fetched = trace.fetched(File::Initramfs, End::Complete)?;
    found(
        [fetched],
        "it fetched kernel and initramfs, and its agent was never heard of",
        &[
            "look at the machine's console: a kernel panic, or a message of the agent? (agent_cmdline says which console)",
            "has the kernel a driver for its network card? `drophammer initramfs build` lists the modules it packs",
            "is there enough memory? The agent needs 256 MiB",
            "does the switch let the port speak at once? LACP and spanning tree begin again when the kernel takes over",
        ],
    )
}

fn image_refused<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let fetched = trace.fetched(File::Uki, End::Complete)?;
    found(
        [fetched],
        "it fetched the unified kernel image, and its agent never asked for a ticket",
        &[
            "with Secure Boot on, firmware starts only what is signed by a key that it knows: \
             `drophammer initramfs build --uki --sign-key --sign-cert`",
            "look at the machine's console: \"Access Denied\" is Secure Boot, \"Out of Resources\" too little memory",
        ],
    )
}

fn download_stopped<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let stopped =
        [File::Kernel, File::Initramfs, File::Uki].into_iter().find_map(|file| trace.fetched(file, End::Stopped))?;
    found(
        [stopped],
        "a download stopped in the middle",
        &[
            "a link that loses packets or a half-duplex port: look at the switch port's error counters",
            "a path MTU that somebody's firewall keeps secret (ICMP \"fragmentation needed\" has to get through)",
            "too little memory for the initramfs: firmware and iPXE just end the connection then",
        ],
    )
}

fn nothing_downloaded<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let told = trace.find(|sight| matches!(sight, Sight::Told { own_disk: false }))?;
    let kernel = trace.fetched(File::Kernel, End::Complete);
    found(
        [told].into_iter().chain(kernel),
        match kernel {
            Some(_) => "it was told to boot the agent and fetched the kernel, but never asked for the initramfs",
            None => "it was told to boot the agent, but never asked for the kernel",
        },
        &[
            "look at the machine's console: iPXE says what it couldn't get, with a link to an explanation",
            "does everything between them let HTTP through, not only the first request?",
        ],
    )
}

fn script_unreached<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let (led, _) = trace.led(Leads::Script)?;
    found(
        [led],
        "iPXE has an address and never asked for its boot script",
        &[
            "a firewall between them: the boot server's HTTP port (ports.http, 80) has to be reachable from the machine",
            "behind a router: is the gateway in the network's configuration (router) the right one?",
        ],
    )
}

fn ipxe_offer_lost<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let (offered, _) = trace.offered(|by| by == Asker::Ipxe)?;
    match trace.find(|sight| matches!(sight, Sight::TookOther { by: Asker::Ipxe, .. })) {
        Some(other) => took_other(other),
        None => found(
            [offered],
            "iPXE asks for an address and never takes the offer",
            &[
                "the link goes down and up when iPXE takes over from the firmware: set the switch port to edge \
                 (portfast), and LACP to fall back to single ports",
                "answers get lost on the way: a relay or firewall that only knows the firmware's request",
            ],
        ),
    }
}

fn loader_silent<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let fetched = trace.fetched(File::Loader, End::Complete)?;
    let secure = trace.led(Leads::Tftp).or(trace.led(Leads::Http)).is_some_and(|(_, by)| by != Asker::Bios);
    let advice = [
        "with Secure Boot on, firmware refuses iPXE, which nobody it knows has signed: turn it off, or boot the signed \
         unified kernel image by HTTP",
        "the switch port: iPXE starts the link anew. Set spanning tree to edge (portfast), and LACP to fall back to single \
         ports (lacp fallback, no lacp suspend-individual)",
        "iPXE has no driver for this card: use the file that borrows the firmware's (undionly.kpxe, snponly.efi)",
    ];
    let advice = advice.get(usize::from(!secure)..).unwrap_or_default();
    found([fetched], "it fetched iPXE, and iPXE was never heard of", advice)
}

fn loader_unanswered<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let unanswered = trace.fetched(File::Loader, End::Unanswered)?;
    found(
        [unanswered],
        "it asked for its boot file and never acknowledged a packet of it",
        &[
            "a firewall: TFTP answers come from another UDP port than the one asked (69), and have to get through",
            "an MTU that is smaller on the way than at both ends: packets of 1,500 bytes have to get through",
        ],
    )
}

fn loader_stopped<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let stopped = trace.fetched(File::Loader, End::Stopped).or_else(|| trace.fetched(File::Loader, End::GivenUp))?;
    found(
        [stopped],
        "the transfer of its boot file broke off",
        &[
            "a link that loses packets or a half-duplex port: look at the switch port's error counters",
            "too little memory, or firmware that doesn't like the file: its console says so",
        ],
    )
}

fn loader_unasked<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let (led, by) = trace.led(Leads::Tftp).or(trace.led(Leads::Http))?;
    let (verdict, port) = match by {
        Asker::UefiHttp => ("it has an address and never asked for its boot file by HTTP", "TCP 80"),
        Asker::Bios | Asker::Uefi | Asker::Ipxe => {
            ("it has an address and never asked for its boot file by TFTP", "UDP 69")
        }
    };
    found(
        [led],
        verdict,
        &[
            &format!("a firewall between them: the boot server's {port} has to be reachable from the machine"),
            "a second server that names another boot file: `drophammer bootserver list` shows those that were heard",
            "behind a router: is the gateway in the network's configuration (router) the right one?",
        ],
    )
}

fn another_server<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    took_other(trace.find(|sight| matches!(sight, Sight::TookOther { .. }))?)
}

fn took_other(event: &Recorded) -> Option<Found<'_>> {
    let Some(Sight::TookOther { server, .. }) = event.sight else { return None };
    found(
        [event],
        format!("another DHCP server, {server}, answers on its network, and it took that one's offer"),
        &[
            "if that server is meant to be there, let this network be `dhcp = \"proxy\"`: then it only says where to boot from",
            "if not, find it by its address in the switches' tables and switch it off",
        ],
    )
}

fn no_address<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let event = trace.find(|sight| matches!(sight, Sight::NoAddress { .. }))?;
    found(
        [event],
        "there was no address for it",
        &["make the network's pool larger, or its leases shorter (lease_seconds)"],
    )
}

fn no_loader<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let event = trace.find(|sight| matches!(sight, Sight::Unbootable { .. }))?;
    found(
        [event],
        "the boot server has nothing that this machine's firmware could boot, so it didn't answer",
        &["put the boot loader that the message names into boot_dir, or set the firmware to another way of booting"],
    )
}

fn offer_lost<'a>(trace: &Trace<'a>) -> Option<Found<'a>> {
    let (offered, _) = trace.offered(|by| by != Asker::Ipxe)?;
    found(
        [offered],
        "it asks for an address, and never takes the one that it's offered",
        &[
            "another DHCP server answered first, or the firmware waits for one with a boot file: \
             `drophammer bootserver list` shows those that were heard",
            "spanning tree: the switch port learns for 30 s while the firmware asks; set it to edge (portfast)",
            "answers get lost on the way back: a relay, a firewall, or a VLAN that only carries one direction",
        ],
    )
}

#[cfg(test)]
mod tests;
