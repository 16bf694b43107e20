//! The proof that a drive was erased, or the record that it wasn't.
//!
//! One certificate per drive and run, signed by the key that the agent made for this boot and announced when it
//! enrolled. The server believes [`Verdict::Erased`] only inside a certificate whose signature, machine, boot and order
//! are the ones it knows. A machine's certificates are a chain: each has a number and the hash of the one before it, so
//! that none can be left out or changed.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::erase::{Category, Medium, Method, Policy};
use crate::id::{BootId, MachineId, OrderId};
use crate::inventory::{Bus, DiskId};
use crate::sign::{Signable, Signed};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ErasureCertificate {
    pub link: Link,
    pub machine: MachineId,
    pub boot: BootId,
    pub order: OrderId,
    /// Who asked for it, or what made it necessary.
    pub ordered_by: String,
    pub drive: Drive,
    pub policy: Policy,
    /// What the drive said it can do, in words, as the choice of methods was made from it.
    pub capabilities: Vec<String>,
    /// What was found on the drive: partition tables, file systems, members of arrays.
    pub found: Vec<String>,
    /// Everything that was tried, in order.
    pub attempts: Vec<Attempt>,
    pub verification: Option<Verification>,
    /// Instead of erasing it again: nobody has written to it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwritten: Option<Unwritten>,
    /// How the drive was left, if it can tell when somebody writes to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rest: Option<Rest>,
    pub verdict: Verdict,
    /// Seconds since 1970.
    pub started: u64,
    pub finished: u64,
    pub agent_version: String,
}

impl Signable for ErasureCertificate {
    const CONTEXT: &'static str = "drophammer erasure certificate 2";
}

/// A place in a machine's chain of certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// From 1.
    pub number: u64,
    /// [`Link::hash`] of the certificate before; `None` only for the first.
    pub previous: Option<String>,
}

impl Link {
    pub const FIRST: Self = Self { number: 1, previous: None };

    /// What the certificate that follows `signed` in the chain says of its place.
    pub fn after(&self, signed: &Signed<ErasureCertificate>) -> Self {
        Self { number: self.number.saturating_add(1), previous: Some(Self::hash(signed)) }
    }

    /// SHA-256 over everything that is signed and the signature.
    pub fn hash(signed: &Signed<ErasureCertificate>) -> String {
        let digest = Sha256::new()
            .chain_update(signed.key.to_string())
            .chain_update(b"\0")
            .chain_update(&signed.signature)
            .chain_update(b"\0")
            .chain_update(&signed.payload)
            .finalize();
        hex::encode(digest)
    }
}

/// What was erased: a drive with all its namespaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Drive {
    pub serial: String,
    pub model: Option<String>,
    pub firmware: Option<String>,
    pub wwn: Option<String>,
    pub bus: Bus,
    pub medium: Medium,
    /// As orders name them: one, or one for each namespace.
    pub disks: Vec<DiskId>,
}

impl Drive {
    pub fn size_bytes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.size_bytes).fold(0, u64::saturating_add)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Attempt {
    pub method: Method,
    /// Why this method stands in this place.
    pub because: String,
    /// An earlier boot began it, and it was waited for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
    /// What was done in detail, where the method's name doesn't say it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
    pub millis: u64,
    /// `None` if the drive reported success; else what it said, with its status code.
    pub error: Option<String>,
}

/// What was looked at after the erase, past every cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Verification {
    pub promise: Promise,
    pub block_bytes: u32,
    /// Blocks of random content, known only to this run, written and read back before the erase.
    pub canaries_planted: u64,
    pub canaries_surviving: u64,
    /// Blocks at random places, compared with what they held before the erase.
    pub samples: u64,
    /// Those of them that held anything that could be recognised.
    pub samples_telling: u64,
    pub samples_surviving: u64,
    /// Blocks of all that were read that aren't what the drive promises.
    pub unexpected: u64,
    /// All that was read after the erase.
    pub read_bytes: u64,
    /// Whether that was all there is.
    pub full: bool,
    /// Whether the drive was told to read its medium and not its cache.
    pub forced_unit_access: bool,
}

/// An earlier certificate of the same drive that still holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Unwritten {
    pub number: u64,
    /// [`Link::hash`]
    pub certificate: String,
}

/// How a drive was left after its erase, as far as a later boot can tell whether anybody has written to it since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rest {
    /// The drive's own counters of everything that was ever written to it: commands, and data in the drive's own unit.
    pub write_commands: u64,
    pub data_units_written: u64,
    /// Blocks of random content, written after the erase.
    pub seals: Vec<Seal>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Seal {
    pub namespace: u32,
    pub offset: u64,
    pub sha256: String,
}

/// What has to be true of every block after an erase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// Not what it was; the drive says nothing of what it is now.
    Changed,
    Zeroes,
    Ones,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    Erased {
        method: Method,
    },
    /// Not erased, or not provably so. The sentence that the operator sees.
    NotErased {
        reason: String,
    },
}

/// The confidence with which [`Verification::at_most_left`] speaks.
pub const CONFIDENCE_PERCENT: f64 = 99.9;

impl Verification {
    /// The fewest samples with which anything is called proven: no more than one percent is left.
    pub const LEAST_SAMPLES: u64 = 688;

    /// The largest part of the drive that could still hold what it held before, for all that was seen. With this part
    /// left, so many samples would all have missed it only once in a thousand times.
    pub fn at_most_left(&self) -> f64 {
        if self.full {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "nobody samples 2^53 blocks")]
        let samples = self.samples.max(1) as f64;
        1.0 - (1.0 - CONFIDENCE_PERCENT / 100.0).powf(1.0 / samples)
    }

    /// Every block that was looked at is as it has to be, and enough were looked at.
    fn holds(&self) -> bool {
        let clean = self.canaries_surviving == 0 && self.samples_surviving == 0 && self.unexpected == 0;
        // Without canaries, as after an erase that an earlier boot began, nobody can tell change; but what is promised
        // can be seen.
        let told = self.canaries_planted > 0 || self.promise != Promise::Changed;
        clean && told && (self.full || self.samples >= Self::LEAST_SAMPLES)
    }
}

impl ErasureCertificate {
    /// The rule that a verdict of `Erased` has to obey, checked by whoever reads a certificate: a method that reported
    /// success and is good enough, canaries that were really planted, and nothing that survived.
    pub fn proves_erasure(&self) -> bool {
        let Verdict::Erased { method } = self.verdict else { return false };
        let reported = self.attempts.iter().any(|a| a.method == method && a.error.is_none());
        let verified = self.verification.as_ref().is_some_and(Verification::holds);
        let covered = !self.drive.disks.is_empty() && self.drive.disks.iter().all(|d| d.serial == self.drive.serial);
        self.unwritten.is_none() && reported && verified && covered && self.policy.accepts(method, self.drive.medium)
    }

    /// The rule for a drive that was erased before and left alone since: `before` is the certificate that it refers to, which
    /// proves that erase, and everything by which the drive would show a write is as it was left then.
    pub fn proves_rest(&self, before: &Signed<Self>) -> bool {
        let Ok(earlier) = before.open(&[before.key]).map(crate::sign::Verified::into_inner) else { return false };
        let refers = self.unwritten.as_ref().is_some_and(|unwritten| {
            unwritten.number == earlier.link.number && unwritten.certificate == Link::hash(before)
        });
        let same = self.verdict == earlier.verdict
            && self.drive.serial == earlier.drive.serial
            && self.drive.disks == earlier.drive.disks;
        let left_alone = self.rest.as_ref().is_some_and(|rest| !rest.seals.is_empty()) && self.rest == earlier.rest;
        let Verdict::Erased { method } = self.verdict else { return false };
        let good_enough = self.policy.accepts(method, earlier.drive.medium);
        refers && same && left_alone && good_enough && earlier.proves_erasure()
    }

    /// What a drive that is erased meets.
    pub fn category(&self) -> Option<Category> {
        match self.verdict {
            Verdict::Erased { method } => Some(method.category(self.drive.medium)),
            Verdict::NotErased { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use uuid::Uuid;

    use super::*;
    use crate::fixtures;

    fn certificate() -> ErasureCertificate {
        let (machine, boot, order) = (MachineId(Uuid::nil()), BootId(Uuid::nil()), OrderId(Uuid::nil()));
        fixtures::certificate(machine, boot, order, Link::FIRST, &DiskId::new("A", 1 << 30))
    }

    #[test]
    fn what_proves_an_erasure() {
        let seen = |c: &mut ErasureCertificate, change: fn(&mut Verification)| {
            c.verification.iter_mut().for_each(change);
        };
        type Change = Box<dyn Fn(&mut ErasureCertificate)>;
        let cases: Vec<(&str, Change, bool)> = vec![
            ("as it is", Box::new(|_| ()), true),
            ("another verdict", Box::new(|c| c.verdict = Verdict::NotErased { reason: "locked".into() }), false),
            ("nothing tried", Box::new(|c| c.attempts.clear()), false),
            ("failed", Box::new(|c| c.attempts[0].error = Some("internal error".into())), false),
            ("another method succeeded", Box::new(|c| c.attempts[0].method = Method::OpalRevert), false),
            ("nothing verified", Box::new(|c| c.verification = None), false),
            ("a canary survived", Box::new(move |c| seen(c, |v| v.canaries_surviving = 1)), false),
            ("a sample survived", Box::new(move |c| seen(c, |v| v.samples_surviving = 1)), false),
            ("a block isn't as promised", Box::new(move |c| seen(c, |v| v.unexpected = 1)), false),
            ("no canary, no promise", Box::new(move |c| seen(c, |v| v.canaries_planted = 0)), false),
            (
                "no canary, but zeros were promised",
                Box::new(move |c| {
                    seen(c, |v| (v.canaries_planted, v.promise) = (0, Promise::Zeroes));
                }),
                true,
            ),
            ("hardly looked", Box::new(move |c| seen(c, |v| v.samples = Verification::LEAST_SAMPLES - 1)), false),
            (
                "small, but seen to the last block",
                Box::new(move |c| {
                    seen(c, |v| (v.samples, v.full) = (9, true));
                }),
                true,
            ),
            ("no disk", Box::new(|c| c.drive.disks.clear()), false),
            ("another drive's disk", Box::new(|c| c.drive.disks.push(DiskId::new("B", 1))), false),
            ("not rekeyed, as the policy wants", Box::new(|c| c.policy = Policy::RekeyOnly), false),
        ];
        for (name, change, proves) in cases {
            let mut changed = certificate();
            change(&mut changed);
            assert_eq!(changed.proves_erasure(), proves, "{name}");
        }
    }

    #[test]
    fn what_proves_that_nobody_wrote() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let seal = Seal { namespace: 1, offset: 4096, sha256: "00".into() };
        let rest = Rest { write_commands: 7, data_units_written: 1, seals: vec![seal] };
        let before = ErasureCertificate { rest: Some(rest.clone()), ..certificate() };
        let signed = Signed::seal(&before, &key);
        let unwritten = Unwritten { number: 1, certificate: Link::hash(&signed) };
        let now = ErasureCertificate {
            link: Link::FIRST.after(&signed),
            attempts: vec![],
            verification: None,
            unwritten: Some(unwritten.clone()),
            ..before.clone()
        };
        type Change = Box<dyn Fn(&mut ErasureCertificate)>;
        let cases: Vec<(&str, Change, bool)> = vec![
            ("as it was left", Box::new(|_| ()), true),
            ("one write more", Box::new(|c| c.rest.iter_mut().for_each(|r| r.write_commands += 1)), false),
            ("more data", Box::new(|c| c.rest.iter_mut().for_each(|r| r.data_units_written += 1)), false),
            ("a seal is gone", Box::new(|c| c.rest.iter_mut().for_each(|r| r.seals.clear())), false),
            ("it tells nothing", Box::new(|c| c.rest = None), false),
            ("another certificate", Box::new(|c| c.unwritten.iter_mut().for_each(|u| u.certificate.clear())), false),
            ("another number", Box::new(|c| c.unwritten.iter_mut().for_each(|u| u.number = 2)), false),
            ("another drive", Box::new(|c| c.drive.serial = "B".into()), false),
            ("another size", Box::new(|c| c.drive.disks[0].size_bytes = 1), false),
            ("refers to nothing", Box::new(|c| c.unwritten = None), false),
            ("not good enough for the policy", Box::new(|c| c.policy = Policy::RekeyOnly), false),
        ];
        for (name, change, proves) in cases {
            let mut changed = now.clone();
            change(&mut changed);
            assert_eq!(changed.proves_rest(&signed), proves, "{name}");
            assert!(name == "refers to nothing" || !changed.proves_erasure(), "{name}: it erased nothing itself");
        }
        let unproven = Signed::seal(&ErasureCertificate { verification: None, ..before }, &key);
        let unwritten = Some(Unwritten { certificate: Link::hash(&unproven), ..unwritten });
        assert!(!ErasureCertificate { unwritten, ..now }.proves_rest(&unproven), "what came before proves nothing");
    }

    #[test]
    fn samples_bound_what_is_left() {
        let seen = certificate().verification.expect("verified");
        for (samples, full, most) in
            [(0, false, 0.999), (Verification::LEAST_SAMPLES, false, 0.01), (6905, false, 0.001), (1, true, 0.0)]
        {
            let left = Verification { samples, full, ..seen.clone() }.at_most_left();
            assert!(left <= most + 1e-9 && left > most * 0.99 - 1e-9, "{samples}: {left}");
        }
    }

    #[test]
    fn the_next_place_depends_on_every_byte() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let signed = Signed::seal(&certificate(), &key);
        let next = Link::FIRST.after(&signed);
        assert_eq!(next.number, 2);
        let mut changed = signed.clone();
        changed.payload.push(' ');
        let other_key = Signed::seal(&certificate(), &SigningKey::from_bytes(&[2; 32]));
        for (name, other) in [("payload", changed), ("key", other_key)] {
            assert_ne!(Link::FIRST.after(&other), next, "{name}");
        }
    }
}
