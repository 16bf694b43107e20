use std::collections::BTreeSet;

use ed25519_dalek::SigningKey;
use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

use super::*;
use crate::fixtures;
use crate::id::OrderId;
use crate::inventory::DiskId;

const MACHINE: MachineId = MachineId(Uuid::from_u128(1));

fn server() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

/// Two certificates to a boot.
fn boot(number: u64) -> (BootId, SigningKey) {
    let n = number.div_ceil(2);
    (BootId(Uuid::from_u128(n.into())), SigningKey::from_bytes(&[100 + u8::try_from(n).expect("a few boots"); 32]))
}

fn certificate(link: Link) -> ErasureCertificate {
    let (boot, _) = boot(link.number);
    let serial = ["A", "B"][usize::from(link.number.is_multiple_of(2))];
    fixtures::certificate(MACHINE, boot, OrderId(boot.0), link, &DiskId::new(serial, 1 << 30))
}

fn receipt(certificate: &Signed<ErasureCertificate>, number: u64) -> Receipt {
    let (boot, key) = boot(number);
    Receipt {
        machine: MACHINE,
        boot,
        number,
        certificate: Link::hash(certificate),
        agent_key: PublicKey::of(&key),
        ordered: Policy::Purge,
        stored_ms: 1_000 * number,
    }
}

fn head(certificates: &[Entry]) -> Signed<Head> {
    let number = certificates.len() as u64;
    let certificate = certificates.last().map(|last| Link::hash(&last.certificate));
    Signed::seal(&Head { machine: MACHINE, number, certificate, at_ms: 1_000_000 }, &server())
}

/// A chain of `length` with `change` applied to each certificate before it's signed.
fn chain_with(length: u64, change: impl Fn(&mut ErasureCertificate)) -> CertificateChain {
    let mut certificates: Vec<Entry> = Vec::new();
    let mut link = Link::FIRST;
    for number in 1..=length {
        let mut made = certificate(link.clone());
        change(&mut made);
        let signed = Signed::seal(&made, &boot(number).1);
        link = link.after(&signed);
        let receipt = Signed::seal(&receipt(&signed, number), &server());
        certificates.push(Entry { certificate: signed, receipt: Some(receipt) });
    }
    let head = Some(head(&certificates));
    CertificateChain { certificates, head }
}

fn chain(length: u64) -> CertificateChain {
    chain_with(length, |_| ())
}

fn without_server(length: u64) -> CertificateChain {
    CertificateChain::without_server(chain(length).certificates.into_iter().map(|entry| entry.certificate).collect())
}

#[test]
fn a_whole_chain_verifies_with_its_keys() {
    let ours = PublicKey::of(&server());
    let agents = [1, 3].map(|number| PublicKey::of(&boot(number).1));
    for (name, chain, trusted, certificates) in [
        ("with the server's key", chain(4), Some(vec![ours]), 4),
        ("with no key", chain(4), None, 4),
        ("nothing erased yet", chain(0), Some(vec![ours]), 0),
        ("of an agent by hand, with its keys", without_server(4), Some(agents.to_vec()), 4),
        ("of an agent by hand, with no key", without_server(4), None, 4),
    ] {
        let report = verify(&chain, trusted.as_deref()).unwrap_or_else(|faults| panic!("{name}: {faults:?}"));
        assert_eq!(report.certificates.len(), certificates, "{name}");
        assert_eq!((report.trusted, report.machine), (trusted.is_some(), Some(MACHINE)), "{name}");
        let server = matches!(report.voucher, Voucher::Server { key, head: Some(_) } if key == ours);
        assert_eq!(server, chain.has_server(), "{name}");
    }
}

/// What is wrong, in the words of whoever reads them.
fn said(chain: &CertificateChain) -> BTreeSet<String> {
    let faults = verify(chain, Some(&[PublicKey::of(&server())])).expect_err("a fault");
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn every_fault_is_told_with_its_number() {
    type Change = fn(&mut CertificateChain);
    let other_key = SigningKey::from_bytes(&[9; 32]);
    let other = PublicKey::of(&other_key);
    let cases: [(&str, Change, &str); 17] = [
        ("a hole", |c| drop(c.certificates.remove(1)), "certificate 2 is missing"),
        ("a larger hole", |c| drop(c.certificates.drain(1..3)), "certificates 2 to 3 are missing"),
        ("cut at its beginning", |c| drop(c.certificates.remove(0)), "certificate 1 is missing"),
        ("cut at its end", |c| drop(c.certificates.pop()), "the chain was cut: certificate 4 is missing at its end"),
        ("all cut off", |c| c.certificates.clear(), "the chain was cut: certificates 1 to 4 are missing at its end"),
        ("swapped", |c| c.certificates.swap(1, 2), "certificate 2 stands after certificate 3: the order was changed"),
        ("repeated", |c| c.certificates.insert(1, c.certificates[0].clone()), "certificate 1 is there more than once"),
        (
            "a changed byte",
            |c| c.certificates[2].certificate.payload.push(' '),
            "certificate 3 isn't believed: the signature doesn't match: the content was altered or cut short",
        ),
        ("no end", |c| c.head = None, "the chain has no signed end: nobody can tell whether certificates were cut off"),
        (
            "an end of before",
            |c| c.head = Some(head(&c.certificates[..3])),
            "certificate 4 comes after the signed end of the chain, which is certificate 3",
        ),
        (
            "another end",
            |c| {
                let swapped = [&c.certificates[..3], &c.certificates[..1]].concat();
                c.head = Some(head(&swapped));
            },
            "certificate 4 isn't the one with which the server says that the chain ends",
        ),
        ("no receipt", |c| c.certificates[1].receipt = None, "certificate 2 has no receipt of the server"),
        (
            "another's receipt",
            |c| c.certificates[1].receipt = c.certificates[0].receipt.clone(),
            "the receipt of certificate 2 is of another certificate",
        ),
        (
            "a forged receipt",
            |c| c.certificates[1].receipt.iter_mut().for_each(|r| r.payload = r.payload.replace("2000", "2001")),
            "the receipt of certificate 2 isn't believed: the signature doesn't match: the content was altered or cut \
             short",
        ),
        (
            "a certificate of a stranger with a receipt of its own making",
            |c| {
                let key = SigningKey::from_bytes(&[9; 32]);
                let link = Link::FIRST.after(&c.certificates[0].certificate);
                let signed = Signed::seal(&certificate(link), &key);
                let receipt = Receipt { agent_key: PublicKey::of(&key), ..receipt(&signed, 2) };
                c.certificates[1] = Entry { certificate: signed, receipt: Some(Signed::seal(&receipt, &key)) };
            },
            "the receipt of certificate 2 is signed by another server key (KEY)",
        ),
        (
            "a key that its boot never announced",
            |c| {
                let key = SigningKey::from_bytes(&[9; 32]);
                let link = Link::FIRST.after(&c.certificates[0].certificate);
                let signed = Signed::seal(&certificate(link), &key);
                let receipt = Signed::seal(&receipt(&signed, 2), &server());
                c.certificates[1] = Entry { certificate: signed, receipt: Some(receipt) };
            },
            "certificate 2 is signed by KEY, which isn't the key that its boot had announced",
        ),
        (
            "nothing at all",
            |c| *c = CertificateChain::default(),
            "there is no certificate and no signed end of a chain",
        ),
    ];
    for (name, change, want) in cases {
        let mut changed = chain(4);
        change(&mut changed);
        let said = said(&changed);
        assert!(said.contains(&want.replace("KEY", &other.to_string())), "{name}: {said:#?}");
    }
    type Lie = fn(&mut ErasureCertificate);
    let lies: [(&str, Lie, &str); 5] = [
        ("unproven", |c| c.verification = None, "certificate 1 says erased but doesn't prove it"),
        (
            "weaker than ordered",
            |c| c.policy = Policy::Clear,
            "certificate 1 is of an erase by policy clear, and purge was ordered",
        ),
        (
            "another machine",
            |c| c.machine = MachineId(Uuid::nil()),
            "certificate 1 is of machine 00000000-0000-0000-0000-000000000000, which this chain isn't of",
        ),
        (
            "of another chain",
            |c| c.link.previous = Some("00".repeat(32)),
            "certificate 1 doesn't follow what is before it: one of the two was exchanged, or it's of another chain",
        ),
        (
            "before the first",
            |c| c.link.number = 0,
            "certificate 0 doesn't follow what is before it: one of the two was exchanged, or it's of another chain",
        ),
    ];
    for (name, lie, want) in lies {
        let said = said(&chain_with(1, lie));
        assert!(said.contains(want), "{name}: {said:#?}");
    }
}

/// By an agent that signs two versions of one place, which no receipt tells apart.
#[test]
fn what_was_exchanged_is_missed_by_what_follows() {
    let mut exchanged = without_server(4);
    let mut other = certificate(Link::FIRST.after(&exchanged.certificates[0].certificate));
    other.finished += 1;
    exchanged.certificates[1].certificate = Signed::seal(&other, &boot(2).1);
    assert_eq!(verify(&exchanged, None), Err(vec![Fault::Unlinked { number: 3 }]));
}

#[test]
fn keys_decide_whose_word_it_is() {
    let stranger = [PublicKey::of(&SigningKey::from_bytes(&[9; 32]))];
    let ours = [PublicKey::of(&server())];
    let mut stripped = chain(2);
    stripped.head = None;
    stripped.certificates.iter_mut().for_each(|entry| entry.receipt = None);
    for (name, chain, trusted) in [
        ("another server's key", &chain(2), &stranger),
        ("an agent's certificates by another key", &without_server(2), &stranger),
        ("everything of the server's taken away", &stripped, &ours),
    ] {
        assert!(verify(chain, Some(trusted)).is_err(), "{name}");
        assert!(verify(chain, None).is_ok(), "{name}: it agrees with itself, and nothing more is said");
    }
    // After the server's key was lost and made anew, both are named.
    let mut renewed = chain(2);
    let head = Head {
        machine: MACHINE,
        number: 2,
        certificate: Some(Link::hash(&renewed.certificates[1].certificate)),
        at_ms: 1,
    };
    renewed.head = Some(Signed::seal(&head, &SigningKey::from_bytes(&[9; 32])));
    assert!(verify(&renewed, Some(&ours)).is_err() && verify(&renewed, Some(&stranger)).is_err());
    assert_eq!(verify(&renewed, Some(&[ours[0], stranger[0]])).map(|report| report.certificates.len()), Ok(2));
}

/// All keys that the chains here are signed with: trust changes nothing about what is found.
fn all_keys() -> Vec<PublicKey> {
    (1..=8).map(|number| PublicKey::of(&boot(number).1)).chain([PublicKey::of(&server())]).collect()
}

fn found(chain: &CertificateChain) -> bool {
    verify(chain, None).is_err() && verify(chain, Some(&all_keys())).is_err()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Of the whole file, not only of what is signed: it's no chain any more, or has faults, or says the same.
    #[test]
    fn any_changed_byte_is_found(length in 1_u64..4, served: bool, at: Index, byte: u8) {
        let good = if served { chain(length) } else { without_server(length) };
        let mut text = serde_json::to_vec(&good).expect("writes");
        let at = at.index(text.len());
        prop_assume!(text[at] != byte);
        text[at] = byte;
        if let Ok(changed) = serde_json::from_slice::<CertificateChain>(&text) {
            prop_assert!(changed == good || found(&changed), "{}", String::from_utf8_lossy(&text));
        }
    }

    #[test]
    fn any_changed_byte_of_a_signed_part_is_found(length in 1_u64..4, which: Index, at: Index, flip in 1_u8..128) {
        let mut changed = chain(length);
        let head = changed.head.iter_mut().map(|head| &mut head.payload);
        let mut parts: Vec<&mut String> = head.collect();
        for entry in &mut changed.certificates {
            parts.push(&mut entry.certificate.payload);
            parts.push(&mut entry.certificate.signature);
            parts.extend(entry.receipt.iter_mut().map(|receipt| &mut receipt.payload));
        }
        let which = which.index(parts.len());
        let part = &mut *parts[which];
        let mut bytes = part.clone().into_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        *part = String::from_utf8(bytes).expect("ASCII");
        prop_assert!(found(&changed));
    }

    #[test]
    fn anything_moved_is_found(length in 2_u64..7, one: Index, other: Index, how in 0..6) {
        let mut moved = chain(length);
        let count = moved.certificates.len();
        let (one, other) = (one.index(count), other.index(count));
        prop_assume!(one != other);
        match how {
            0 => drop(moved.certificates.remove(one)),
            1 => moved.certificates.swap(one, other),
            2 => moved.certificates.insert(other, moved.certificates[one].clone()),
            3 => moved.certificates.truncate(one),
            4 => moved.certificates[one].receipt = moved.certificates[other].receipt.clone(),
            _ => moved.certificates[one].certificate = moved.certificates[other].certificate.clone(),
        }
        prop_assert!(found(&moved));
    }
}
