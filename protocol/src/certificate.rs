//! The proof that a drive was erased, or the record that it wasn't.
//!
//! One certificate per drive and run, signed by the key that the agent made for this boot and announced when it
//! enrolled. The server believes [`Verdict::Erased`] only inside a certificate whose signature, machine, boot and order
//! are the ones it knows.

use serde::{Deserialize, Serialize};

use crate::id::{BootId, MachineId, OrderId};
use crate::inventory::DiskId;
use crate::sign::Signable;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErasureCertificate {
    pub machine: MachineId,
    pub boot: BootId,
    pub order: OrderId,
    pub disk: DiskId,
    pub model: Option<String>,
    pub firmware: Option<String>,
    /// What the drive said it can do, in words, as the choice of methods was made from it.
    pub capabilities: Vec<String>,
    /// Everything that was tried, in order.
    pub attempts: Vec<Attempt>,
    pub verification: Option<Verification>,
    pub verdict: Verdict,
    /// Seconds since 1970.
    pub started: u64,
    pub finished: u64,
    pub agent_version: String,
}

impl Signable for ErasureCertificate {
    const CONTEXT: &'static str = "drophammer erasure certificate 1";
}

/// Ways to erase, strongest first. The names are NVMe's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Format NVM with SES=2: the drive throws its data key away.
    NvmeFormatCrypto,
    /// Format NVM with SES=1: the drive erases all user data.
    NvmeFormatUserData,
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Self::NvmeFormatCrypto => "NVMe Format, cryptographic erase (SES=2)",
            Self::NvmeFormatUserData => "NVMe Format, user data erase (SES=1)",
        }
    }

    /// The category of NIST SP 800-88 Rev. 1 that a verified run of this method meets.
    pub fn nist_800_88(self) -> &'static str {
        match self {
            Self::NvmeFormatCrypto | Self::NvmeFormatUserData => "Purge",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    pub method: Method,
    /// Why this method stands in this place.
    pub because: String,
    pub millis: u64,
    /// `None` if the drive reported success; else what it said, with its status code.
    pub error: Option<String>,
}

/// What was looked at after the erase, past every cache.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Blocks of random content, known only to this run, written and read back before the erase.
    pub canaries_planted: u32,
    pub canaries_surviving: u32,
    /// Blocks of old content remembered before the erase and compared after.
    pub samples: u32,
    pub samples_surviving: u32,
    pub block_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl ErasureCertificate {
    /// The rule that a verdict of `Erased` has to obey, checked by whoever reads a certificate: a method that reported
    /// success, canaries that were really planted, and nothing that survived.
    pub fn proves_erasure(&self) -> bool {
        let Verdict::Erased { method } = &self.verdict else { return false };
        let reported = self.attempts.iter().any(|a| a.method == *method && a.error.is_none());
        let nothing_left = self
            .verification
            .as_ref()
            .is_some_and(|v| v.canaries_planted > 0 && v.canaries_surviving == 0 && v.samples_surviving == 0);
        reported && nothing_left
    }
}
