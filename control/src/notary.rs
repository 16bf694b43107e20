//! The server's word on erase certificates: a receipt for each one that it stores, and where a machine's chain ends.
//!
//! The key is made once and kept beside the server's own. Whoever has its public half can check a machine's certificates
//! without this server, as [`drophammer_protocol::chain`] says.

use std::path::Path;

use anyhow::Result;
use drophammer_protocol::certificate::{ErasureCertificate, Link};
use drophammer_protocol::chain::{CertificateChain, Entry, Head, Receipt};
use drophammer_protocol::id::MachineId;
use drophammer_protocol::sign::{PublicKey, Signed};
use ed25519_dalek::SigningKey;

use crate::denied::Denied;
use crate::erasure::Run;
use crate::records::{Record, certificates_prefix, machine_key};
use crate::{Control, secret};

#[derive(Debug)]
pub(crate) struct Notary(SigningKey);

impl Notary {
    /// Reads the key, or makes one on the first start.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let lost = "receipts are then signed with a new one, and auditors need both";
        Ok(Self(SigningKey::from_bytes(&secret::kept(path, lost)?)))
    }

    pub(crate) fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.0)
    }

    /// With a receipt for a certificate of `run` that is to be stored at place `number`.
    pub(crate) fn receive(
        &self,
        run: &Run<'_>,
        number: u64,
        certificate: Signed<ErasureCertificate>,
        stored_ms: u64,
    ) -> Entry {
        let receipt = Receipt {
            machine: run.machine,
            boot: run.boot,
            number,
            certificate: Link::hash(&certificate),
            agent_key: run.key,
            ordered: run.policy,
            stored_ms,
        };
        Entry { certificate, receipt: Some(Signed::seal(&receipt, &self.0)) }
    }

    /// `next` is where the machine's next certificate goes.
    fn head(&self, machine: MachineId, next: &Link, at_ms: u64) -> Signed<Head> {
        let head = Head { machine, number: next.number.saturating_sub(1), certificate: next.previous.clone(), at_ms };
        Signed::seal(&head, &self.0)
    }
}

impl Control {
    /// What receipts are signed with.
    pub fn certificate_key(&self) -> PublicKey {
        self.inner.notary.public_key()
    }

    /// All certificates of a machine with their receipts, and the end of the chain as the machine's record has it: what
    /// is missing in the store is missed.
    pub(crate) fn certificates(&self, machine: MachineId, now: u64) -> Result<CertificateChain, Denied> {
        let gone = || Denied::no_machine(machine);
        let next = || -> Result<Link, Denied> {
            let record: Record = self.store().get(&machine_key(machine))?.ok_or_else(gone)?;
            Ok(record.link)
        };
        let mut end = next()?;
        loop {
            let certificates = self.store().list(&certificates_prefix(machine), None)?;
            let after = next()?;
            if after == end {
                let head = Some(self.inner.notary.head(machine, &end, now));
                return Ok(CertificateChain { certificates, head });
            }
            // One was added meanwhile.
            end = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use drophammer_protocol::chain::{Fault, verify};

    use super::*;
    use crate::agent::tests::control;
    use crate::outcome::tests::{Erase, MACHINE};
    use crate::records::certificate_key;
    use crate::unix_ms;

    #[test]
    fn what_is_missing_in_the_store_is_missed() {
        for (missing, fault) in [
            (None, None),
            (Some(1), Some(Fault::Hole { first: 1, last: 1 })),
            (Some(2), Some(Fault::Cut { first: 2, last: 2 })),
        ] {
            let dir = tempfile::tempdir().expect("temporary directory");
            let control = control(dir.path());
            let erase = Erase::begin(&control, &["A", "B"]);
            erase.end(&control, &erase.outcome(|_| ()));
            let lost: Result<()> = control.store().transact(|txn| {
                missing.iter().for_each(|number| txn.delete(&certificate_key(MACHINE, *number)));
                Ok(())
            });
            lost.expect("somebody had the state file in hand");
            let chain = control.certificates(MACHINE, unix_ms()).expect("lists");
            let found = verify(&chain, Some(&[control.certificate_key()])).err().unwrap_or_default();
            assert_eq!(found, Vec::from_iter(fault), "{missing:?}");
        }
    }

    #[test]
    fn the_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("certificate.key");
        let key = Notary::open(&path).expect("first start").0;
        assert_eq!(Notary::open(&path).expect("second start").0, key);
        assert_eq!(fs::metadata(&path).expect("key file").permissions().mode() & 0o777, 0o600);
        fs::write(&path, "abc").expect("writes");
        let error = Notary::open(&path).expect_err("no key").to_string();
        assert!(error.contains("64 hex digits"), "{error}");
    }
}
