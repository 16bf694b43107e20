//! How drives are erased: the methods there are, what each is worth, and what can be asked for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The categories of NIST SP 800-88 Rev. 1: what it takes to get at the old data all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// Out of reach of everything that goes through the drive's own interface.
    Clear,
    /// Out of reach of a laboratory.
    Purge,
}

impl Category {
    pub fn name(self) -> &'static str {
        match self {
            Self::Clear => "Clear",
            Self::Purge => "Purge",
        }
    }
}

impl fmt::Display for Category {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which erasures are good enough. Whatever it says, the strongest that a drive offers is tried first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Only what meets Purge.
    #[default]
    Purge,
    /// What meets Clear is good enough.
    Clear,
    /// Only what throws an encryption key away, which takes seconds.
    RekeyOnly,
}

impl Policy {
    pub const ALL: [Self; 3] = [Self::Purge, Self::Clear, Self::RekeyOnly];

    pub fn name(self) -> &'static str {
        match self {
            Self::Purge => "purge",
            Self::Clear => "clear",
            Self::RekeyOnly => "rekey-only",
        }
    }

    pub fn accepts(self, method: Method, medium: Medium) -> bool {
        match self {
            Self::Purge => method.category(medium) >= Category::Purge,
            Self::Clear => true,
            Self::RekeyOnly => method.is_rekeying(),
        }
    }

    /// Each accepts only what the one before accepts, so that one of several policies is enough for all of them.
    fn strictness(self) -> u8 {
        match self {
            Self::Clear => 0,
            Self::Purge => 1,
            Self::RekeyOnly => 2,
        }
    }

    /// The one that accepts no more than the other.
    #[must_use]
    pub fn strictest(self, other: Self) -> Self {
        if self.is_weaker_than(other) { other } else { self }
    }

    /// Whether it accepts what `other` doesn't.
    pub fn is_weaker_than(self, other: Self) -> bool {
        self.strictness() < other.strictness()
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not one of the policies.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no erase policy: purge, clear or rekey-only")]
pub struct UnknownPolicy(pub String);

impl FromStr for Policy {
    type Err = UnknownPolicy;
    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| UnknownPolicy(text.to_owned()))
    }
}

/// How much of a drive is read after its erase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Depth {
    /// Everything planted, and as many blocks at random as bound what could be left.
    #[default]
    Sampled,
    /// Every block.
    Full,
}

/// What data lies on, as far as it matters for what an overwrite reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// Platters: what is written to an address is written over what was there.
    Magnetic,
    /// Flash, or nobody knows: what is written to an address goes somewhere else.
    Flash,
}

/// Ways to erase. Within a kind of drive, the strongest comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Method {
    NvmeSanitizeCrypto,
    NvmeSanitizeBlock,
    /// Format NVM with SES=2.
    NvmeFormatCrypto,
    /// Format NVM with SES=1.
    NvmeFormatUserData,
    /// TCG Opal: a key per drive, thrown away by its owner's or its maker's authority.
    OpalRevert,
    NvmeSanitizeOverwrite,
    AtaSanitizeCrypto,
    AtaSanitizeBlock,
    AtaSanitizeOverwrite,
    AtaSecurityEraseEnhanced,
    AtaSecurityErase,
    ScsiSanitizeCrypto,
    ScsiSanitizeBlock,
    ScsiSanitizeOverwrite,
    WriteZeroes,
    Discard,
    Overwrite,
}

impl Method {
    pub const ALL: [Self; 17] = [
        Self::NvmeSanitizeCrypto,
        Self::NvmeSanitizeBlock,
        Self::NvmeFormatCrypto,
        Self::NvmeFormatUserData,
        Self::OpalRevert,
        Self::NvmeSanitizeOverwrite,
        Self::AtaSanitizeCrypto,
        Self::AtaSanitizeBlock,
        Self::AtaSanitizeOverwrite,
        Self::AtaSecurityEraseEnhanced,
        Self::AtaSecurityErase,
        Self::ScsiSanitizeCrypto,
        Self::ScsiSanitizeBlock,
        Self::ScsiSanitizeOverwrite,
        Self::WriteZeroes,
        Self::Discard,
        Self::Overwrite,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::NvmeSanitizeCrypto => "NVMe Sanitize, cryptographic erase",
            Self::NvmeSanitizeBlock => "NVMe Sanitize, block erase",
            Self::NvmeFormatCrypto => "NVMe Format, cryptographic erase (SES=2)",
            Self::NvmeFormatUserData => "NVMe Format, user data erase (SES=1)",
            Self::OpalRevert => "TCG Opal, new media encryption key and revert",
            Self::NvmeSanitizeOverwrite => "NVMe Sanitize, overwrite",
            Self::AtaSanitizeCrypto => "ATA Sanitize, crypto scramble",
            Self::AtaSanitizeBlock => "ATA Sanitize, block erase",
            Self::AtaSanitizeOverwrite => "ATA Sanitize, overwrite",
            Self::AtaSecurityEraseEnhanced => "ATA Security Erase Unit, enhanced",
            Self::AtaSecurityErase => "ATA Security Erase Unit",
            Self::ScsiSanitizeCrypto => "SCSI Sanitize, cryptographic erase",
            Self::ScsiSanitizeBlock => "SCSI Sanitize, block erase",
            Self::ScsiSanitizeOverwrite => "SCSI Sanitize, overwrite",
            Self::WriteZeroes => "write zeroes, offloaded to the drive",
            Self::Discard => "discard",
            Self::Overwrite => "overwrite with zeros",
        }
    }

    /// What a verified run of this method meets. NIST SP 800-88 Rev. 1, appendix A: tables A-5 (ATA disks), A-6 (SCSI
    /// disks) and A-8 (ATA, SCSI and NVMe flash). Where it leaves room, the lower one.
    pub fn category(self, medium: Medium) -> Category {
        match self {
            Self::NvmeSanitizeCrypto
            | Self::NvmeSanitizeBlock
            | Self::NvmeFormatCrypto
            | Self::NvmeFormatUserData
            | Self::OpalRevert
            | Self::NvmeSanitizeOverwrite
            | Self::AtaSanitizeCrypto
            | Self::AtaSanitizeBlock
            | Self::AtaSanitizeOverwrite
            | Self::ScsiSanitizeCrypto
            | Self::ScsiSanitizeBlock
            | Self::ScsiSanitizeOverwrite => Category::Purge,
            // Table A-8 has it under Clear: flash keeps what it doesn't address any more.
            Self::AtaSecurityEraseEnhanced => match medium {
                Medium::Magnetic => Category::Purge,
                Medium::Flash => Category::Clear,
            },
            // Leaves sectors that were replaced as they are.
            Self::AtaSecurityErase => Category::Clear,
            Self::WriteZeroes | Self::Discard | Self::Overwrite => Category::Clear,
        }
    }

    /// Whether it throws an encryption key away, so that what is left is noise.
    pub fn is_rekeying(self) -> bool {
        matches!(
            self,
            Self::NvmeSanitizeCrypto
                | Self::NvmeFormatCrypto
                | Self::OpalRevert
                | Self::AtaSanitizeCrypto
                | Self::ScsiSanitizeCrypto
        )
    }
}

/// The physical secret of a self-encrypting drive: 32 characters that are on its label and nowhere else. It erases the
/// drive whoever owns it, so it isn't shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Psid(String);

/// Not what is on a label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PSID has 32 letters and digits, as printed on the drive's label")]
pub struct NotAPsid;

impl Psid {
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl TryFrom<String> for Psid {
    type Error = NotAPsid;
    fn try_from(text: String) -> Result<Self, NotAPsid> {
        let trimmed: String = text.trim().chars().filter(|c| *c != '-').collect();
        let good = trimmed.len() == 32 && trimmed.bytes().all(|b| b.is_ascii_alphanumeric());
        if good { Ok(Self(trimmed)) } else { Err(NotAPsid) }
    }
}

impl FromStr for Psid {
    type Err = NotAPsid;
    fn from_str(text: &str) -> Result<Self, NotAPsid> {
        text.to_owned().try_into()
    }
}

impl From<Psid> for String {
    fn from(psid: Psid) -> Self {
        psid.0
    }
}

impl fmt::Debug for Psid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psid(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_accept() {
        use Medium::{Flash, Magnetic};
        for (name, policy, medium, accepted) in [
            ("clear takes all", Policy::Clear, Flash, Method::ALL.len()),
            ("purge of flash", Policy::Purge, Flash, 12),
            ("purge of platters", Policy::Purge, Magnetic, 13),
            ("rekeying", Policy::RekeyOnly, Flash, 5),
        ] {
            let got = Method::ALL.into_iter().filter(|method| policy.accepts(*method, medium)).count();
            assert_eq!(got, accepted, "{name}");
        }
        for method in Method::ALL.into_iter().filter(|method| method.is_rekeying()) {
            assert_eq!(method.category(Flash), Category::Purge, "{method:?}");
        }
    }

    #[test]
    fn the_strictest_policy_accepts_what_all_accept() {
        let all = || Policy::ALL.into_iter();
        for (a, b) in all().flat_map(|a| all().map(move |b| (a, b))) {
            let mut weaker = false;
            for medium in [Medium::Flash, Medium::Magnetic] {
                for method in Method::ALL {
                    let both = a.accepts(method, medium) && b.accepts(method, medium);
                    assert_eq!(a.strictest(b).accepts(method, medium), both, "{a} and {b}: {method:?} on {medium:?}");
                    weaker |= a.accepts(method, medium) && !b.accepts(method, medium);
                }
            }
            assert_eq!(a.is_weaker_than(b), weaker, "{a} and {b}");
            assert_eq!(a.strictest(b), b.strictest(a), "{a} and {b}");
        }
    }

    #[test]
    fn policies_have_names() {
        for policy in Policy::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
            assert_eq!(serde_json::to_string(&policy).expect("writes"), format!("\"{policy}\""));
        }
        let unknown = "wipe".parse::<Policy>().expect_err("unknown");
        assert_eq!(unknown.to_string(), "\"wipe\" is no erase policy: purge, clear or rekey-only");
    }

    #[test]
    fn psids_are_read_and_not_shown() {
        let label = "ABCDEFGH12345678ABCDEFGH12345678";
        for (name, text, good) in [
            ("as printed", label.to_owned(), true),
            ("with dashes and blanks", format!(" {}-{}\n", &label[..16], &label[16..]), true),
            ("too short", label[1..].to_owned(), false),
            ("strange letters", label.replace('A', "ä"), false),
            ("empty", String::new(), false),
        ] {
            let read = text.parse::<Psid>();
            assert_eq!(read.is_ok(), good, "{name}");
            if let Ok(psid) = read {
                assert_eq!(psid.bytes(), label.as_bytes(), "{name}");
                assert!(!format!("{psid:?}").contains("ABC"), "{name}");
            }
        }
    }
}
