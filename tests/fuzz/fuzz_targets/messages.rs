//! What is said in JSON, between machines, servers and people: what was understood is understood again.
#![no_main]

use std::fmt::Debug;

use drophammer_protocol::manifest::{MAX_CHUNK_BYTES, Manifest};
use drophammer_protocol::revocation::{self, Revocations, Revoked};
use drophammer_protocol::sign::{PublicKey, SignError, Signed};
use drophammer_protocol::{api, boot_server, certificate, chain, erase, inventory, machine, order, ticket};
use ed25519_dalek::SigningKey;
use libfuzzer_sys::fuzz_target;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| {
    again::<inventory::Inventory>(bytes);
    again::<order::Order>(bytes);
    again::<order::Outcome>(bytes);
    again::<api::Enrol>(bytes);
    again::<api::Enrolled>(bytes);
    again::<api::Events>(bytes);
    again::<ticket::BootDecision>(bytes);
    again::<ticket::PhoneHome>(bytes);
    again::<boot_server::Join>(bytes);
    again::<boot_server::Registration>(bytes);
    again::<boot_server::Briefing>(bytes);
    again::<boot_server::Reports>(bytes);
    again::<boot_server::OwnDisks>(bytes);
    let _ = serde_json::from_slice::<boot_server::Health>(bytes);
    again::<Signed<certificate::ErasureCertificate>>(bytes);
    if let Some(allocation) = again::<machine::Allocation>(bytes) {
        let faults = allocation.system.check().err();
        assert!(faults.is_none_or(|faults| !faults.to_string().is_empty()));
        let secrets = allocation.system.users.iter().any(|user| user.password.is_some());
        let shown = allocation.without_secrets();
        assert!(shown.system.check().is_err() || !(secrets || shown.system.user_data.is_some()), "{shown:?}");
    }
    again::<chain::Receipt>(bytes);
    again::<chain::Head>(bytes);
    if let Some(psid) = again::<erase::Psid>(bytes) {
        assert_eq!(psid.bytes().len(), 32);
    }
    if let Some(chain) = again::<chain::CertificateChain>(bytes) {
        let (report, faults) = chain::examine(&chain, None);
        assert_eq!(chain::verify(&chain, None).is_ok(), faults.is_empty());
        // Nobody signs by chance: what is read is either all of it or at fault.
        assert!(report.certificates.len() == chain.certificates.len() || !faults.is_empty());
    }
    if let Some(manifest) = again::<Manifest>(bytes) {
        if manifest.check().is_ok() {
            for chunk in manifest.chunks() {
                let pack = &manifest.packs[chunk.pack as usize];
                assert!(chunk.offset + u64::from(chunk.length) <= pack.bytes && chunk.unpacked <= MAX_CHUNK_BYTES);
            }
            if let Some(block) = &manifest.block {
                assert!(block.pieces.windows(2).all(|pair| pair[0].at() + pair[0].length() <= pair[1].at()));
                assert!(block.pieces.iter().all(|piece| piece.at() + piece.length() <= block.bytes));
            }
        }
        let key = SigningKey::from_bytes(&[1; 32]);
        let mut signed = Signed::seal(&manifest, &key);
        assert_eq!(signed.open(&[PublicKey::of(&key)]).map(|opened| opened.into_inner()), Ok(manifest));
        signed.payload.push(' ');
        assert_eq!(signed.open(&[PublicKey::of(&key)]), Err(SignError::Forged));
    }
    if let Some(list) = again::<Revocations>(bytes) {
        let key = SigningKey::from_bytes(&[1; 32]);
        let text = serde_json::to_vec(&Signed::seal(&list, &key)).expect("JSON");
        let opened = revocation::open(&text, &[PublicKey::of(&key)]);
        assert_eq!(opened.is_ok(), list.check().is_ok());
        assert!(opened.is_err() || list.revoked.iter().all(|revoked| !revoked.reason.contains('\n')));
        let one = Revoked { manifest_sha256: "0".repeat(64), image: "a/1".into(), reason: "a".into(), at: 0 };
        if let Some(longer) = list.with(one) {
            assert!(longer.sequence > list.sequence && longer.covers(&list));
        }
    }
});

fn again<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let message: T = serde_json::from_slice(bytes).ok()?;
    let text = serde_json::to_vec(&message).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<T>(&text).expect("what was written can be read"), message);
    Some(message)
}
