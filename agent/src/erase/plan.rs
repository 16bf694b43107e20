//! How a drive is to be erased: what it says it can do and what is asked for in, methods in their order out.
//!
//! A method is in a plan only if the drive claims it. A drive that claims nothing good enough gets no plan, and so is
//! never called erased.

use drophammer_protocol::erase::{Medium, Method, Policy};
use drophammer_protocol::inventory::Bus;

use crate::drive::Sanitize;
use crate::drive::ata::Security;
use crate::drive::nvme::Deallocated;

/// What a drive says it can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) commands: Commands,
    pub(crate) blocks: Blocks,
    pub(crate) medium: Medium,
    /// TCG Opal or one of its kin.
    pub(crate) opal: Option<Opal>,
}

/// What it can be told besides reading and writing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Commands {
    Nvme(Nvme),
    Ata(Ata),
    Scsi(Scsi),
    /// Nothing that this agent knows.
    None(Bus),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Nvme {
    /// OACS bit 1.
    pub(crate) format: bool,
    /// FNA bit 2.
    pub(crate) crypto_erase: bool,
    /// FNA bit 0: a format is for all namespaces at once.
    pub(crate) formats_all: bool,
    /// FNA bit 1: an erase is for all namespaces at once.
    pub(crate) erases_all: bool,
    /// FNA bit 3: a format can't be addressed to all namespaces.
    pub(crate) no_broadcast: bool,
    pub(crate) sanitize: Sanitize,
    /// OACS bit 0: security commands.
    pub(crate) security: bool,
    pub(crate) deallocated: Deallocated,
    /// Namespaces of this drive that have no block device here.
    pub(crate) unseen_namespaces: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ata {
    pub(crate) sanitize: Sanitize,
    /// SANITIZE FREEZE LOCK was sent since power-on: no sanitize.
    pub(crate) sanitize_frozen: bool,
    pub(crate) security: Option<Security>,
    /// Trusted Computing feature set: security commands.
    pub(crate) trusted: bool,
    /// Bytes that a host protected area or a device configuration overlay hides.
    pub(crate) hidden_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scsi {
    pub(crate) sanitize: Sanitize,
    /// SECURITY PROTOCOL IN is answered.
    pub(crate) security: bool,
}

/// What the kernel can have the drive do with its blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Blocks {
    pub(crate) write_zeroes: bool,
    pub(crate) discard: bool,
}

impl Blocks {
    /// What can be done with either can be done with both.
    pub(crate) fn and(self, other: Self) -> Self {
        Self { write_zeroes: self.write_zeroes && other.write_zeroes, discard: self.discard && other.discard }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opal {
    /// Its ranges are locked: nothing can be read or written before its owner or its label's secret says so.
    pub(crate) locked: bool,
    /// Somebody took ownership, so that only the secret on its label is left to us.
    pub(crate) owned: bool,
    /// What is on the medium is encrypted, with a key that can be thrown away.
    pub(crate) encrypts: bool,
}

impl Capabilities {
    /// For the certificate, so that a reader can see what the choice was made from.
    pub(crate) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut claims = |claims: &[(bool, &str)]| {
            words.extend(claims.iter().filter(|(claimed, _)| *claimed).map(|(_, words)| (*words).to_owned()));
        };
        let sanitize = |s: &Sanitize| {
            [
                (s.crypto, "Sanitize, cryptographic"),
                (s.block, "Sanitize, block erase"),
                (s.overwrite, "Sanitize, overwrite"),
            ]
        };
        match &self.commands {
            Commands::Nvme(nvme) => {
                claims(&sanitize(&nvme.sanitize));
                claims(&[
                    (nvme.format, "Format NVM"),
                    (nvme.crypto_erase, "Format NVM with cryptographic erase"),
                    (nvme.formats_all, "formats all namespaces at once"),
                    (nvme.erases_all, "erases all namespaces at once"),
                    (nvme.deallocated == Deallocated::Zeroes, "deallocated blocks read as zeros"),
                    (nvme.deallocated == Deallocated::Ones, "deallocated blocks read as ones"),
                ]);
            }
            Commands::Ata(ata) => {
                claims(&sanitize(&ata.sanitize));
                claims(&[(ata.sanitize_frozen, "Sanitize is frozen")]);
                if let Some(security) = ata.security {
                    claims(&[
                        (true, "Security Erase Unit"),
                        (security.enhanced, "Security Erase Unit, enhanced"),
                        (security.frozen, "security is frozen"),
                        (security.enabled, "a security password is set"),
                        (security.locked, "locked by a security password"),
                        (security.expired, "no more password attempts before the next power-on"),
                    ]);
                }
            }
            Commands::Scsi(scsi) => claims(&sanitize(&scsi.sanitize)),
            Commands::None(_) => {}
        }
        claims(&[
            (self.opal.is_some_and(|o| o.encrypts), "TCG Opal, with a key that can be thrown away"),
            (self.opal.is_some_and(|o| o.owned), "TCG Opal: somebody owns it"),
            (self.opal.is_some_and(|o| o.locked), "TCG Opal: locked"),
            (self.blocks.write_zeroes, "writes zeros by itself"),
            (self.blocks.discard, "discard"),
        ]);
        match &self.commands {
            Commands::Nvme(nvme) if !nvme.unseen_namespaces.is_empty() => {
                words.push(format!("namespaces without a block device: {}", list(&nvme.unseen_namespaces)));
            }
            Commands::Ata(ata) if ata.hidden_bytes > 0 => words.push(format!("hides {} bytes", ata.hidden_bytes)),
            _ => {}
        }
        words
    }
}

/// Methods in the order in which they're tried; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) methods: Vec<Choice>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) method: Method,
    pub(crate) because: &'static str,
}

/// Why there is no way to erase a drive and prove it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unable {
    #[error(
        "the drive has namespaces that can't be reached here ({}), and what is on them couldn't be looked at; attach \
         or delete them first",
        list(.0)
    )]
    UnseenNamespaces(Vec<u32>),
    #[error(
        "the drive hides {0} bytes behind a host protected area or a device configuration overlay, and what is there \
         couldn't be looked at; boot with libata.ignore_hpa=1, or remove it with `hdparm -N` or `hdparm --dco-restore`"
    )]
    HiddenBytes(u64),
    #[error("the drive is locked by TCG Opal, and nobody gave the PSID that is printed on its label")]
    OpalLocked,
    #[error(
        "the drive is locked by an ATA security password that isn't ours; unlock it with the password, or erase it with \
         its maker's tool"
    )]
    AtaLocked,
    #[error("the drive takes no ATA security password, neither to erase itself nor to be unlocked: {0}")]
    AtaPassword(&'static str),
    #[error("the policy {policy} asks for more than this drive offers: {}", offers(.found, *.medium, .obstacles))]
    NotEnough { policy: Policy, medium: Medium, found: Vec<Choice>, obstacles: Vec<&'static str> },
}

/// The methods that this drive claims and the policy accepts, strongest first. `psid`: whether the drive's label was read.
pub(crate) fn plan(capabilities: &Capabilities, policy: Policy, psid: bool) -> Result<Plan, Unable> {
    match &capabilities.commands {
        Commands::Nvme(nvme) if !nvme.unseen_namespaces.is_empty() => {
            return Err(Unable::UnseenNamespaces(nvme.unseen_namespaces.clone()));
        }
        Commands::Ata(ata) if ata.hidden_bytes > 0 => return Err(Unable::HiddenBytes(ata.hidden_bytes)),
        Commands::Ata(ata) => ata.security.filter(|security| security.enabled).map_or(Ok(()), takes_passwords)?,
        _ => {}
    }
    if capabilities.opal.is_some_and(|opal| opal.locked) && !psid {
        return Err(Unable::OpalLocked);
    }
    let (found, obstacles) = offered(capabilities, psid);
    let accepted = |choice: &&Choice| policy.accepts(choice.method, capabilities.medium);
    let methods: Vec<Choice> = found.iter().filter(accepted).cloned().collect();
    if methods.is_empty() {
        return Err(Unable::NotEnough { policy, medium: capabilities.medium, found, obstacles });
    }
    Ok(Plan { methods })
}

/// A password can be set, told or removed only where the drive listens to one.
pub(crate) fn takes_passwords(security: Security) -> Result<(), Unable> {
    match security {
        Security { frozen: true, .. } => Err(Unable::AtaPassword(FROZEN)),
        Security { expired: true, .. } => Err(Unable::AtaPassword(EXPIRED)),
        _ => Ok(()),
    }
}

const FROZEN: &str = "the firmware froze its Security feature set at power-on, so Security Erase can't be used; switch that \
     off in the firmware's setup, or unplug the drive's power for a moment while the machine runs";
const EXPIRED: &str = "too many wrong passwords were tried since power-on; switch the drive off and on";

/// Everything that the drive claims, strongest first, and what stands in the way of more.
fn offered(capabilities: &Capabilities, psid: bool) -> (Vec<Choice>, Vec<&'static str>) {
    use Method::{
        AtaSanitizeBlock, AtaSanitizeCrypto, AtaSanitizeOverwrite, AtaSecurityErase, AtaSecurityEraseEnhanced, Discard,
        NvmeFormatCrypto, NvmeFormatUserData, NvmeSanitizeBlock, NvmeSanitizeCrypto, NvmeSanitizeOverwrite, OpalRevert,
        Overwrite, ScsiSanitizeBlock, ScsiSanitizeCrypto, ScsiSanitizeOverwrite, WriteZeroes,
    };
    let mut obstacles = Vec::new();
    let encrypts = capabilities.opal.filter(|opal| opal.encrypts);
    let opal = encrypts.is_some_and(|opal| !opal.owned || psid);
    if encrypts.is_some() && !opal {
        obstacles.push("its TCG Opal has an owner, and nobody gave the PSID that is printed on its label");
    }
    let opal = (
        OpalRevert,
        opal,
        "the drive encrypts what it stores (TCG Opal), and its key can be thrown away by who holds its first or its \
         label's secret",
    );
    let mut table = match &capabilities.commands {
        Commands::Nvme(nvme) => vec![
            (
                NvmeSanitizeCrypto,
                nvme.sanitize.crypto,
                "the drive claims a cryptographic sanitize (SANICAP bit 0): quick, and it reaches everything, also what \
                 no namespace has",
            ),
            (
                NvmeSanitizeBlock,
                nvme.sanitize.block,
                "the drive claims a block erase sanitize (SANICAP bit 1), which reaches everything",
            ),
            (
                NvmeFormatCrypto,
                nvme.format && nvme.crypto_erase,
                "the drive claims Format NVM with cryptographic erase (OACS bit 1, FNA bit 2)",
            ),
            (NvmeFormatUserData, nvme.format, "the drive claims Format NVM (OACS bit 1), which has to erase user data"),
            opal,
            (
                NvmeSanitizeOverwrite,
                nvme.sanitize.overwrite,
                "the drive claims an overwriting sanitize (SANICAP bit 2): it takes long and wears",
            ),
        ],
        Commands::Ata(ata) => {
            let sanitize = if ata.sanitize_frozen { Sanitize::default() } else { ata.sanitize };
            if ata.sanitize_frozen {
                obstacles.push("Sanitize is frozen until the next power-on");
            }
            let security = ata.security.unwrap_or_default();
            let usable = ata.security.is_some() && !security.frozen && !security.expired;
            if ata.security.is_some_and(|s| s.frozen) {
                obstacles.push(FROZEN);
            }
            if ata.security.is_some_and(|s| s.expired) {
                obstacles.push(EXPIRED);
            }
            vec![
                (AtaSanitizeCrypto, sanitize.crypto, "the drive claims a crypto scramble (IDENTIFY word 59 bit 13)"),
                (AtaSanitizeBlock, sanitize.block, "the drive claims a block erase (IDENTIFY word 59 bit 15)"),
                opal,
                (
                    AtaSanitizeOverwrite,
                    sanitize.overwrite,
                    "the drive claims an overwriting sanitize (IDENTIFY word 59 bit 14)",
                ),
                (
                    AtaSecurityEraseEnhanced,
                    usable && security.enhanced,
                    "the drive claims an enhanced Security Erase (IDENTIFY word 128 bit 5), and it isn't frozen",
                ),
                (
                    AtaSecurityErase,
                    usable,
                    "the drive claims Security Erase (IDENTIFY word 82 bit 1), and it isn't frozen",
                ),
            ]
        }
        Commands::Scsi(scsi) => vec![
            (ScsiSanitizeCrypto, scsi.sanitize.crypto, "the drive reports SANITIZE, cryptographic erase, as supported"),
            (ScsiSanitizeBlock, scsi.sanitize.block, "the drive reports SANITIZE, block erase, as supported"),
            opal,
            (ScsiSanitizeOverwrite, scsi.sanitize.overwrite, "the drive reports SANITIZE, overwrite, as supported"),
        ],
        Commands::None(_) => vec![opal],
    };
    table.extend([
        (
            WriteZeroes,
            capabilities.blocks.write_zeroes,
            "the drive writes zeros by itself, and what it then holds is read",
        ),
        (Discard, capabilities.blocks.discard, "the drive takes discards, and what it then holds is read"),
        (Overwrite, true, "every drive can be written to, and what it then holds is read"),
    ]);
    let claimed = table.into_iter().filter(|(_, claimed, _)| *claimed);
    (claimed.map(|(method, _, because)| Choice { method, because }).collect(), obstacles)
}

/// What was found that isn't good enough.
fn offers(found: &[Choice], medium: Medium, obstacles: &[&'static str]) -> String {
    let each = found.iter().map(|choice| format!("{} ({})", choice.method.name(), choice.method.category(medium)));
    let mut words: Vec<String> = each.collect();
    words.extend(obstacles.iter().map(|obstacle| (*obstacle).to_owned()));
    words.join("; ") + ". Allow less with the policy clear, erase it with its maker's tool, or take it out"
}

fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
