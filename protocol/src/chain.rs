//! A machine's erase certificates as a whole: what the server that stored them says of each, and how anybody checks all
//! of it, offline.
//!
//! Each certificate is signed by a key that lived for one boot. So that an auditor needs to trust one key only, the
//! server signs a [`Receipt`] for every certificate that it stores, with the key that this boot had announced, and, when
//! the chain is asked for, a [`Head`] that says where it ends. A certificate that was changed, left out, put elsewhere
//! or cut off is then a [`Fault`]. An agent that was started by hand has no server: its certificates come in the same
//! form without either.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::certificate::{ErasureCertificate, Link, Verdict};
use crate::erase::Policy;
use crate::id::{BootId, MachineId};
use crate::sign::{PublicKey, SignError, Signable, Signed};

/// What the server states about a certificate when it stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    pub machine: MachineId,
    pub boot: BootId,
    /// The certificate's place in the machine's chain.
    pub number: u64,
    /// [`Link::hash`] of the certificate.
    pub certificate: String,
    /// What this boot's agent announced when it enrolled, before anything was erased.
    pub agent_key: PublicKey,
    /// What the order asked for.
    pub ordered: Policy,
    /// Milliseconds since 1970.
    pub stored_ms: u64,
}

impl Signable for Receipt {
    const CONTEXT: &'static str = "drophammer erasure receipt 1";
}

/// Where a machine's chain ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub machine: MachineId,
    /// The number of the last certificate; 0 if there is none.
    pub number: u64,
    /// [`Link::hash`] of the last certificate.
    pub certificate: Option<String>,
    /// Milliseconds since 1970: what was added later isn't spoken of.
    pub at_ms: u64,
}

impl Signable for Head {
    const CONTEXT: &'static str = "drophammer certificate chain head 1";
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub certificate: Signed<ErasureCertificate>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<Signed<Receipt>>,
}

/// All certificates of one machine, oldest first: the file that is verified.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CertificateChain {
    pub certificates: Vec<Entry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Signed<Head>>,
}

impl CertificateChain {
    /// As an agent without a server leaves them.
    pub fn without_server(certificates: Vec<Signed<ErasureCertificate>>) -> Self {
        let entry = |certificate| Entry { certificate, receipt: None };
        Self { certificates: certificates.into_iter().map(entry).collect(), head: None }
    }

    /// Whether a server has to do with it, so that every certificate needs its receipt.
    pub fn has_server(&self) -> bool {
        self.head.is_some() || self.certificates.iter().any(|entry| entry.receipt.is_some())
    }
}

/// What a chain was found to say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub machine: Option<MachineId>,
    /// Those whose own signature is right, in the order of the file.
    pub certificates: Vec<Checked>,
    pub voucher: Voucher,
    /// The voucher's keys were known before; else they are the ones that the chain itself names.
    pub trusted: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    pub certificate: ErasureCertificate,
    pub signed_by: PublicKey,
    /// [`Link::hash`].
    pub hash: String,
    pub receipt: Option<Receipt>,
}

/// By whose word the certificates are what they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Voucher {
    /// The server that stored them.
    Server { key: PublicKey, head: Option<Head> },
    /// Only those who made them.
    Agents { keys: Vec<PublicKey> },
}

/// What is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("there is no certificate and no signed end of a chain")]
    Nothing,
    #[error("certificate {number} isn't believed: {why}")]
    Certificate { number: u64, why: SignError },
    #[error("certificate {number} is of machine {machine}, which this chain isn't of")]
    OtherMachine { number: u64, machine: MachineId },
    #[error("{} missing", numbers(*.first, *.last))]
    Hole { first: u64, last: u64 },
    #[error("certificate {number} is there more than once")]
    Repeated { number: u64 },
    #[error("certificate {number} stands after certificate {after}: the order was changed")]
    OutOfOrder { number: u64, after: u64 },
    #[error(
        "certificate {number} doesn't follow what is before it: one of the two was exchanged, or it's of another chain"
    )]
    Unlinked { number: u64 },
    #[error("certificate {number} says erased but doesn't prove it")]
    Unproven { number: u64 },
    #[error("certificate {number} is of an erase by policy {policy}, and {ordered} was ordered")]
    Weak { number: u64, policy: Policy, ordered: Policy },
    #[error("certificate {number} has no receipt of the server")]
    NoReceipt { number: u64 },
    #[error("the receipt of certificate {number} isn't believed: {why}")]
    Receipt { number: u64, why: SignError },
    #[error("the receipt of certificate {number} is of another certificate")]
    OtherReceipt { number: u64 },
    #[error("certificate {number} is signed by {key}, which isn't the key that its boot had announced")]
    OtherAgent { number: u64, key: PublicKey },
    #[error("the receipt of certificate {number} is signed by another server key ({key})")]
    OtherServer { number: u64, key: PublicKey },
    #[error("the chain has no signed end: nobody can tell whether certificates were cut off")]
    NoHead,
    #[error("the signed end of the chain isn't believed: {0}")]
    Head(SignError),
    #[error("the chain was cut: {} missing at its end", numbers(*.first, *.last))]
    Cut { first: u64, last: u64 },
    #[error("certificate {number} comes after the signed end of the chain, which is certificate {end}")]
    AfterEnd { number: u64, end: u64 },
    #[error("certificate {number} isn't the one with which the server says that the chain ends")]
    OtherEnd { number: u64 },
}

fn numbers(first: u64, last: u64) -> String {
    if first == last { format!("certificate {first} is") } else { format!("certificates {first} to {last} are") }
}

/// Checks all of a chain. `trusted` are the keys of its server, or, where there was no server, of the agents that signed;
/// without them it's only known that the chain agrees with itself.
pub fn verify(chain: &CertificateChain, trusted: Option<&[PublicKey]>) -> Result<Report, Vec<Fault>> {
    match examine(chain, trusted) {
        (report, faults) if faults.is_empty() => Ok(report),
        (_, faults) => Err(faults),
    }
}

/// The same for whoever wants to show what can be read of a chain that has faults, beside them.
pub fn examine(chain: &CertificateChain, trusted: Option<&[PublicKey]>) -> (Report, Vec<Fault>) {
    let named = [
        chain.head.as_ref().map(|head| head.key),
        chain.certificates.iter().find_map(|entry| entry.receipt.as_ref()).map(|receipt| receipt.key),
    ];
    let server = named.into_iter().flatten().next();
    let mut examiner = Examiner {
        servers: trusted.map_or_else(|| server.into_iter().collect(), <[_]>::to_vec),
        trusted: trusted.filter(|_| server.is_none()),
        has_server: server.is_some(),
        machine: None,
        places: BTreeMap::new(),
        last: 0,
        before: BTreeMap::new(),
        faults: Vec::new(),
    };
    if chain.certificates.is_empty() && chain.head.is_none() {
        examiner.faults.push(Fault::Nothing);
    }
    let head = examiner.head(chain.head.as_ref());
    examiner.machine = head.as_ref().map(|head| head.machine);
    let certificates: Vec<_> = chain.certificates.iter().filter_map(|entry| examiner.entry(entry)).collect();
    examiner.links(&certificates);
    if let Some(head) = &head {
        examiner.end(head);
    }
    let voucher = match server {
        Some(key) => Voucher::Server { key, head },
        None => {
            let mut keys: Vec<_> = certificates.iter().map(|checked| checked.signed_by).collect();
            keys.sort_unstable();
            keys.dedup();
            Voucher::Agents { keys }
        }
    };
    (Report { machine: examiner.machine, certificates, voucher, trusted: trusted.is_some() }, examiner.faults)
}

struct Examiner<'a> {
    servers: Vec<PublicKey>,
    /// Whose certificates are believed, if that was said and isn't the server's to say.
    trusted: Option<&'a [PublicKey]>,
    has_server: bool,
    machine: Option<MachineId>,
    /// The hash at each place of the chain.
    places: BTreeMap<u64, String>,
    /// The highest place so far.
    last: u64,
    /// Those before, by their hashes: later ones may refer to them.
    before: BTreeMap<String, &'a Signed<ErasureCertificate>>,
    faults: Vec<Fault>,
}

impl<'a> Examiner<'a> {
    fn head(&mut self, head: Option<&Signed<Head>>) -> Option<Head> {
        match head.map(|head| head.open(&self.servers)) {
            Some(Ok(head)) => return Some(head.into_inner()),
            Some(Err(why)) => self.faults.push(Fault::Head(why)),
            None if self.has_server => self.faults.push(Fault::NoHead),
            None => {}
        }
        None
    }

    fn entry(&mut self, entry: &'a Entry) -> Option<Checked> {
        let Entry { certificate: signed, receipt } = entry;
        let own = [signed.key];
        let opened = signed.open(self.trusted.unwrap_or(&own));
        let receipt = receipt.as_ref().map(|receipt| (receipt.key, receipt.open(&self.servers)));
        let hash = Link::hash(signed);
        let number = match (&opened, &receipt) {
            (Ok(certificate), _) => certificate.link.number,
            // What can't be read stands where it should.
            (Err(_), Some((_, Ok(receipt)))) => receipt.number,
            (Err(_), _) => self.last.saturating_add(1),
        };
        self.place(number, &hash);
        let receipt = match receipt {
            Some((_, Ok(receipt))) => Some(receipt.into_inner()),
            Some((key, Err(SignError::Untrusted(_)))) => {
                self.faults.push(Fault::OtherServer { number, key });
                None
            }
            Some((_, Err(why))) => {
                self.faults.push(Fault::Receipt { number, why });
                None
            }
            None => {
                if self.has_server {
                    self.faults.push(Fault::NoReceipt { number });
                }
                None
            }
        };
        let certificate = match opened {
            Ok(certificate) => certificate.into_inner(),
            Err(why) => {
                self.faults.push(Fault::Certificate { number, why });
                return None;
            }
        };
        let checked = Checked { certificate, signed_by: signed.key, hash, receipt };
        self.weigh(&checked);
        self.before.insert(checked.hash.clone(), signed);
        Some(checked)
    }

    fn place(&mut self, number: u64, hash: &str) {
        if self.places.insert(number, hash.to_owned()).is_some() {
            self.faults.push(Fault::Repeated { number });
        } else if number < self.last {
            self.faults.push(Fault::OutOfOrder { number, after: self.last });
        }
        self.last = self.last.max(number);
    }

    /// What one certificate says by itself, and what its receipt says of it.
    fn weigh(&mut self, checked: &Checked) {
        let certificate = &checked.certificate;
        let number = certificate.link.number;
        if *self.machine.get_or_insert(certificate.machine) != certificate.machine {
            self.faults.push(Fault::OtherMachine { number, machine: certificate.machine });
        }
        let says_erased = matches!(certificate.verdict, Verdict::Erased { .. });
        if says_erased && !certificate.proves_erasure() && !self.rests(certificate) {
            self.faults.push(Fault::Unproven { number });
        }
        let Some(receipt) = &checked.receipt else { return };
        let of = (receipt.machine, receipt.boot, receipt.number, &receipt.certificate);
        if of != (certificate.machine, certificate.boot, number, &checked.hash) {
            self.faults.push(Fault::OtherReceipt { number });
            return;
        }
        if receipt.agent_key != checked.signed_by {
            self.faults.push(Fault::OtherAgent { number, key: checked.signed_by });
        }
        if says_erased && certificate.policy.is_weaker_than(receipt.ordered) {
            let (policy, ordered) = (certificate.policy, receipt.ordered);
            self.faults.push(Fault::Weak { number, policy, ordered });
        }
    }

    /// Whether it says that nobody wrote to the drive since an earlier certificate here, and shows it.
    fn rests(&self, certificate: &ErasureCertificate) -> bool {
        let earlier = certificate.unwritten.as_ref().and_then(|unwritten| self.before.get(&unwritten.certificate));
        earlier.is_some_and(|before| certificate.proves_rest(before))
    }

    fn links(&mut self, certificates: &[Checked]) {
        let mut due = 1_u64;
        for number in self.places.keys().filter(|number| **number > 0) {
            if *number > due {
                self.faults.push(Fault::Hole { first: due, last: number - 1 });
            }
            due = number.saturating_add(1);
        }
        for checked in certificates {
            let Link { number, previous } = &checked.certificate.link;
            let linked = match number {
                0 => false,
                1 => previous.is_none(),
                // Without the one before there is a hole, which is said already.
                _ => self.places.get(&(number - 1)).is_none_or(|before| previous.as_ref() == Some(before)),
            };
            if !linked {
                self.faults.push(Fault::Unlinked { number: *number });
            }
        }
    }

    fn end(&mut self, head: &Head) {
        let end = head.number;
        if end > self.last {
            self.faults.push(Fault::Cut { first: self.last.saturating_add(1), last: end });
        } else if end < self.last {
            self.faults.push(Fault::AfterEnd { number: self.last, end });
        } else if self.places.get(&end) != head.certificate.as_ref() {
            self.faults.push(Fault::OtherEnd { number: end });
        }
    }
}

#[cfg(test)]
mod tests;
