//! The boot servers: the one in this process, and those that run alone and joined.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::PoisonError;

use axum::http::StatusCode;
use drophammer_protocol::boot_server::{
    Asked, BootServer, Briefing, Certifiable, Certified, Health, Join, JoinToken, Joined, NetworkSummary, Numbered,
    Registration, Report,
};
use drophammer_protocol::id::{BootServerId, MachineId};
use drophammer_protocol::resource::Partition;
use ring::digest;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use time::Duration;
use uuid::Uuid;

use crate::audit::{self, Change, Who};
use crate::authority::{Holder, Point};
use crate::denied::Denied;
use crate::secret::{Hash, Token};
use crate::store::{MOST_CHANGES, Store, Txn};
use crate::timeline::{self, Said};
use crate::{Control, records, unix_ms};

/// The boot server in the process of a control API that is alone on its store is always known by this.
pub(crate) const EMBEDDED: BootServerId = BootServerId(Uuid::from_u128(1));
/// How often boot servers send their [`Health`].
pub const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(10);
/// Who missed three of them isn't there.
const SILENT_MS: u64 = 35_000;
const TOKEN_LIFE_MS: u64 = 60 * 60 * 1000;
/// Long enough for a boot server to do without the control API for two months, short enough that the certificate of one
/// that was removed isn't believed by machines for ever.
const CERTIFICATE_DAYS: i64 = 90;
const RENEW_DAYS: i64 = 30;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// Reports in one commit, with room for what each replaces and where its history then stands.
const MOST_AT_ONCE: usize = MOST_CHANGES / 4;

const RECORDS: &str = "boot-server/";
/// Changes with every registration, so that two that exclude each other can't both win.
const REGISTRATIONS: &str = "boot-server-registrations";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    id: BootServerId,
    registration: Registration,
    certificates: Vec<Known>,
    joined_ms: u64,
    /// Its reports up to this one are stored.
    reports: u64,
    /// It's in the process of a control API.
    #[serde(default)]
    embedded: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    sha256: String,
    expires_ms: u64,
}

/// Those in the processes of control APIs, which register when they start: as others than before, where the state was moved.
pub(crate) fn forget_embedded(store: &Store) -> anyhow::Result<()> {
    let embedded = store.list::<Record>(RECORDS, None)?.into_iter().filter(|record| record.embedded);
    let keys: Vec<String> = embedded.map(|record| record_key(record.id)).collect();
    store.transact(|txn| {
        keys.iter().for_each(|key| txn.delete(key));
        Ok(())
    })
}

const INVITATIONS: &str = "join/";

/// A join token that is out.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Invitation {
    token: Hash,
    expires_ms: u64,
}

impl Control {
    /// A token for one more boot server. The last part is by what that boot server knows this control API.
    pub(crate) fn join_token(&self, who: &Who, now: u64) -> Result<JoinToken, Denied> {
        let token = Token::random(Uuid::new_v4())?;
        let ca = fingerprint(self.ca_pem())?;
        let expires_ms = self.store().transact(|txn| {
            let change = Change { who, at_ms: now, action: "make", object: "boot-server-token" };
            audit::record::<()>(txn, change, None, None)?;
            invite(txn, &token, now)
        })?;
        Ok(JoinToken { token: format!("{token}.{ca}"), expires_ms })
    }

    pub(crate) fn join(&self, bearer: &str, join: &Join, now: u64) -> Result<Joined, Denied> {
        let unknown = || {
            Denied::stranger(
                "this join token isn't known: it's used, too old, or another server's; `drophammer bootserver token` \
                 makes a new one",
            )
        };
        let token = Token::parse(bearer).ok_or_else(unknown)?;
        let id = BootServerId(Uuid::new_v4());
        let (certified, known) = self.certify_boot_server(id, &join.certifiable, now)?;
        self.store().transact(|txn| {
            let invitation: Invitation = txn.get(&invitation_key(&token))?.ok_or_else(unknown)?;
            if !invitation.token.is_of(&token) || invitation.expires_ms <= now {
                return Err(unknown());
            }
            txn.delete(&invitation_key(&token));
            let registration = Registration {
                name: join.name.clone(),
                partition: String::new(),
                version: String::new(),
                networks: vec![],
            };
            txn.put(&certificate_key(&known.sha256), &id)?;
            let record = Record {
                id,
                registration,
                certificates: vec![known.clone()],
                joined_ms: now,
                reports: 0,
                embedded: false,
            };
            txn.put(&record_key(id), &record)?;
            Ok(())
        })?;
        tracing::info!(%id, name = join.name, "a boot server joined");
        Ok(Joined { id, ca: self.ca_pem().to_owned(), certified })
    }

    /// Whose client certificate this is.
    pub(crate) fn boot_server_of(&self, certificate: &ClientCertificate, now: u64) -> Result<BootServerId, Denied> {
        let unknown = || {
            Denied::stranger(
                "this boot server isn't known: it was removed (`drophammer bootserver list`); let it join again with a \
                 new token",
            )
        };
        let id: BootServerId = self.store().get(&certificate_key(&hex::encode(certificate.0)))?.ok_or_else(unknown)?;
        self.inner.presence.saw_boot_server(id, now, None);
        Ok(id)
    }

    pub(crate) fn renew(&self, id: BootServerId, wish: &Certifiable, now: u64) -> Result<Certified, Denied> {
        let (certified, known) = self.certify_boot_server(id, wish, now)?;
        self.change_boot_server(id, |txn, record| {
            let (over, good): (Vec<_>, Vec<_>) = record.certificates.drain(..).partition(|c| c.expires_ms <= now);
            over.iter().for_each(|certificate| txn.delete(&certificate_key(&certificate.sha256)));
            record.certificates = good;
            record.certificates.push(known.clone());
            txn.put(&certificate_key(&known.sha256), &id)?;
            Ok(())
        })?;
        Ok(certified)
    }

    pub(crate) fn register(&self, id: BootServerId, wish: &Registration, now: u64) -> Result<Briefing, Denied> {
        self.store().transact(|txn| {
            let generation: u64 = txn.get(REGISTRATIONS)?.unwrap_or(0);
            for other in txn.list::<Record>(RECORDS)?.into_iter().filter(|other| other.id != id) {
                if let Some(why) = clash(wish, &other.registration) {
                    let name = &other.registration.name;
                    return Err(Denied::conflict(format!(
                        "{why}, as boot server {name} ({}) does; give each a share of the pool, or remove that one \
                         (`drophammer bootserver remove`) if it's gone",
                        other.id
                    )));
                }
            }
            let mut record: Record = match txn.get(&record_key(id))? {
                Some(record) => record,
                None if id == self.inner.id => Record {
                    id,
                    registration: wish.clone(),
                    certificates: vec![],
                    joined_ms: now,
                    reports: 0,
                    embedded: true,
                },
                None => return Err(gone(id)),
            };
            record.registration = wish.clone();
            txn.put(&record_key(id), &record)?;
            txn.put(REGISTRATIONS, &(generation + 1))?;
            Ok(())
        })?;
        self.inner.presence.saw_boot_server(id, now, None);
        Ok(self.briefing(id, &wish.partition))
    }

    fn briefing(&self, id: BootServerId, partition: &str) -> Briefing {
        let Partition { dns, ntp, .. } = self.partition(partition).unwrap_or_default();
        Briefing {
            id,
            ca: self.ca_pem().to_owned(),
            image_keys: self.policy().all_image_keys(),
            boot_key: self.inner.key.boot_key(id).to_hex(),
            dns,
            ntp,
        }
    }

    /// What the boot server has to know by now.
    pub(crate) fn take_health(&self, id: BootServerId, health: Health, now: u64) -> Result<Briefing, Denied> {
        self.inner.presence.saw_boot_server(id, now, Some(health));
        let record: Record = self.store().get(&record_key(id))?.ok_or_else(|| gone(id))?;
        Ok(self.briefing(id, &record.registration.partition))
    }

    /// For the boot server in this process. An error says which other one is in its way.
    pub fn register_embedded(&self, registration: &Registration) -> anyhow::Result<()> {
        self.register(self.inner.id, registration, unix_ms())?;
        registration.partition.clone_into(&mut self.inner.partition.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    pub fn embedded_health(&self, health: Health) {
        self.inner.presence.saw_boot_server(self.inner.id, unix_ms(), Some(health));
    }

    /// There is no boot server in this process.
    pub fn no_embedded(&self) -> anyhow::Result<()> {
        self.store().transact(|txn| {
            txn.delete(&record_key(self.inner.id));
            Ok(())
        })
    }

    pub(crate) fn boot_servers(&self, now: u64) -> Result<Vec<BootServer>, Denied> {
        let view = |record: Record| {
            let (seen_ms, health) = self.inner.presence.boot_server(record.id);
            BootServer {
                id: record.id,
                embedded: record.embedded,
                up: now.saturating_sub(seen_ms) < SILENT_MS,
                joined_ms: record.joined_ms,
                seen_ms,
                certificate_expires_ms: record.certificates.iter().map(|c| c.expires_ms).max(),
                health,
                registration: record.registration,
            }
        };
        let mut servers: Vec<_> = self.store().list(RECORDS, None)?.into_iter().map(view).collect();
        servers.sort_by(|a, b| (&a.registration.name, a.id).cmp(&(&b.registration.name, b.id)));
        Ok(servers)
    }

    /// It's told apart from a stranger no more.
    pub(crate) fn remove_boot_server(&self, id: BootServerId, who: &Who, now: u64) -> Result<(), Denied> {
        if id == self.inner.id {
            return Err(Denied::conflict(
                "this boot server is in the control API's own process; it goes with its networks",
            ));
        }
        self.change_boot_server(id, |txn, record| {
            record.certificates.iter().for_each(|c| txn.delete(&certificate_key(&c.sha256)));
            txn.delete(&record_key(id));
            let object = record_key(id);
            let change = Change { who, at_ms: now, action: "remove", object: &object };
            Ok(audit::record(txn, change, Some(&record.registration), None)?)
        })?;
        self.inner.presence.forget_boot_server(id);
        Ok(())
    }

    /// Takes in what a boot server did, each report once and in order; the number of the last one that is safe.
    pub(crate) fn take_reports(&self, id: BootServerId, reports: &[Numbered], now: u64) -> Result<u64, Denied> {
        let together =
            |a: &Numbered, b: &Numbered| matches!((&a.report, &b.report), (Report::Seen(_), Report::Seen(_)));
        let mut stored = 0;
        for run in reports.chunk_by(together).flat_map(|run| run.chunks(MOST_AT_ONCE)) {
            stored = match run {
                [Numbered { number, report: Report::Asked(asked) }] => self.take_asked(id, *number, asked, now)?,
                run => self.take_seen(id, run, now)?,
            };
        }
        Ok(stored)
    }

    fn take_asked(&self, id: BootServerId, number: u64, asked: &Asked, now: u64) -> Result<u64, Denied> {
        let token = asked.boot.map(|boot| self.inner.key.boot_key(id).boot_token(boot).hash());
        self.met(asked.mac, asked.machine, asked.address, now, |txn, record, told| {
            if !first_time(txn, id, number)? {
                return Ok(());
            }
            if let Some(server) = txn.get::<Record>(&record_key(id))? {
                record.partition = server.registration.partition;
            }
            self.was_sent(txn, record, asked, token.clone(), told, now)
        })?;
        Ok(number)
    }

    fn take_seen(&self, id: BootServerId, run: &[Numbered], now: u64) -> Result<u64, Denied> {
        let (strangers, last) = self.store().transact(|txn| -> Result<_, Denied> {
            let mut strangers = vec![];
            let mut owners: HashMap<MachineId, Vec<Said>> = HashMap::new();
            let mut last = 0;
            for Numbered { number, report } in run {
                last = *number;
                let Report::Seen(seen) = report else { continue };
                if !first_time(txn, id, *number)? {
                    continue;
                }
                match self.inner.pool.owner(seen.mac, seen.machine) {
                    Some(machine) => owners.entry(machine).or_default().push(Said::seen(seen, now)),
                    None => strangers.push((seen.mac, Said::seen(seen, now))),
                }
            }
            for (machine, said) in &owners {
                // It may have been forgotten meanwhile.
                if records::Record::load(txn, *machine)?.is_some() {
                    timeline::append(txn, *machine, said.iter().cloned())?;
                }
            }
            Ok((strangers, last))
        })?;
        for (mac, said) in strangers {
            self.inner.observed.add(mac, None, said)?;
        }
        Ok(last)
    }

    fn certify_boot_server(
        &self,
        id: BootServerId,
        wish: &Certifiable,
        now: u64,
    ) -> Result<(Certified, Known), Denied> {
        let unfit = |why: String| Denied::new(StatusCode::UNPROCESSABLE_ENTITY, why);
        let key = Point::from_hex(&wish.key).map_err(|e| unfit(format!("{e:#}")))?;
        let ours = |address: &&IpAddr| address.is_loopback() || self.config().addresses.contains(address);
        if let Some(address) = wish.addresses.iter().find(ours) {
            return Err(unfit(format!("{address} is the control API's own address: nobody else is certified for it")));
        }
        let issued = self.inner.authority.certify(
            &key,
            Holder {
                name: format!("boot server {id}"),
                addresses: wish.addresses.clone(),
                host_names: vec![],
                client: true,
                life: Duration::days(CERTIFICATE_DAYS),
            },
        )?;
        let expires_ms = now.saturating_add(CERTIFICATE_DAYS.unsigned_abs() * DAY_MS);
        let renew_ms = now.saturating_add(RENEW_DAYS.unsigned_abs() * DAY_MS);
        let sha256 = sha256(&issued.der);
        Ok((Certified { certificate: issued.pem, renew_ms, expires_ms }, Known { sha256, expires_ms }))
    }

    fn change_boot_server(
        &self,
        id: BootServerId,
        mut body: impl FnMut(&mut Txn<'_>, &mut Record) -> Result<(), Denied>,
    ) -> Result<(), Denied> {
        self.store().transact(|txn| {
            let mut record: Record = txn.get(&record_key(id))?.ok_or_else(|| gone(id))?;
            let before = record.clone();
            body(txn, &mut record)?;
            if record != before {
                txn.put(&record_key(id), &record)?;
            }
            Ok(())
        })
    }
}

/// SHA-256 of the certificate that a client showed; whoever accepts connections has checked that it's of our authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCertificate(pub [u8; 32]);

impl ClientCertificate {
    pub fn of(der: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
        Self(hash)
    }
}

/// By what a certificate is recognised that isn't trusted yet.
pub fn fingerprint(pem: &str) -> anyhow::Result<String> {
    Ok(sha256(&CertificateDer::from_pem_slice(pem.as_bytes())?))
}

fn sha256(der: &[u8]) -> String {
    hex::encode(ClientCertificate::of(der).0)
}

/// Whether this report is a new one; from here on it isn't.
fn first_time(txn: &mut Txn<'_>, id: BootServerId, number: u64) -> Result<bool, Denied> {
    let mut record: Record = txn.get(&record_key(id))?.ok_or_else(|| gone(id))?;
    if number <= record.reports {
        return Ok(false);
    }
    record.reports = number;
    txn.put(&record_key(id), &record)?;
    Ok(true)
}

/// Why these two can't both be: they would give out the same addresses on one segment.
fn clash(one: &Registration, other: &Registration) -> Option<String> {
    let pairs = one.networks.iter().flat_map(|a| other.networks.iter().map(move |b| (a, b)));
    pairs.into_iter().filter(|_| one.partition == other.partition).find_map(|(a, b)| {
        let (first, last) = shared(a, b)?;
        Some(format!(
            "network {} would give out {first} to {last} in partition {}, {}",
            a.name, one.partition, a.subnet
        ))
    })
}

/// Addresses that both networks give out.
fn shared(a: &NetworkSummary, b: &NetworkSummary) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let apart = a.share.zip(b.share).is_some_and(|((part, of), (other, others))| of == others && part != other);
    if apart || a.dhcp != "server" || b.dhcp != "server" {
        return None;
    }
    let pairs = a.pool.iter().flat_map(|one| b.pool.iter().map(move |other| (one, other)));
    pairs.map(|((first, last), (from, to))| (*first.max(from), *last.min(to))).find(|(first, last)| first <= last)
}

fn gone(id: BootServerId) -> Denied {
    Denied::new(StatusCode::NOT_FOUND, format!("there is no boot server {id}; `drophammer bootserver list` shows them"))
}

fn record_key(id: BootServerId) -> String {
    format!("{RECORDS}{id}")
}

fn certificate_key(sha256: &str) -> String {
    format!("boot-server-certificate/{sha256}")
}

/// Until when a token is good. Those whose time is over go.
fn invite(txn: &mut Txn<'_>, token: &Token, now: u64) -> anyhow::Result<u64> {
    for key in txn.keys(INVITATIONS, usize::MAX)? {
        if txn.get::<Invitation>(&key)?.is_some_and(|old| old.expires_ms <= now) {
            txn.delete(&key);
        }
    }
    let expires_ms = now.saturating_add(TOKEN_LIFE_MS);
    txn.put(&invitation_key(token), &Invitation { token: token.hash(), expires_ms })?;
    Ok(expires_ms)
}

fn invitation_key(token: &Token) -> String {
    format!("{INVITATIONS}{}", token.holder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn registration(partition: &str, network: NetworkSummary) -> Registration {
        Registration { name: "b".into(), partition: partition.into(), version: String::new(), networks: vec![network] }
    }

    fn network(dhcp: &str, first: u8, last: u8, share: Option<(u32, u32)>) -> NetworkSummary {
        NetworkSummary {
            name: "rack".into(),
            address: Ipv4Addr::new(10, 0, 0, 1),
            subnet: "10.0.0.0/24".parse().expect("a subnet"),
            dhcp: dhcp.into(),
            relayed: false,
            pool: vec![(Ipv4Addr::new(10, 0, 0, first), Ipv4Addr::new(10, 0, 0, last))],
            share,
        }
    }

    #[test]
    fn join_tokens_whose_time_is_over_go() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let store = Store::open(&dir.path().join("state")).expect("opens");
        let invited = |now| {
            let token = Token::random(Uuid::new_v4()).expect("random");
            let expires_ms = store.transact(|txn| invite(txn, &token, now)).expect("made");
            (expires_ms, store.list::<Invitation>(INVITATIONS, None).expect("lists").len())
        };
        let (expires_ms, _) = invited(0);
        for (name, now, want) in [("both are good", expires_ms - 1, 2), ("the first one's time is over", expires_ms, 2)]
        {
            assert_eq!(invited(now).1, want, "{name}");
        }
    }

    #[test]
    fn no_two_give_out_the_same_address_in_one_partition() {
        let one = registration("a", network("server", 10, 20, Some((1, 2))));
        for (name, other, want) in [
            ("another partition", registration("b", network("server", 10, 20, None)), None),
            ("pools side by side", registration("a", network("server", 21, 30, None)), None),
            ("the other share", registration("a", network("server", 10, 20, Some((2, 2)))), None),
            ("a proxy", registration("a", network("proxy", 10, 20, None)), None),
            ("the same pool", registration("a", network("server", 10, 20, None)), Some("10.0.0.10 to 10.0.0.20")),
            ("the same share", registration("a", network("server", 10, 20, Some((1, 2)))), Some("10.0.0.10 to")),
            ("shares of another number", registration("a", network("server", 10, 20, Some((2, 3)))), Some("10.0.0.10")),
            ("one address", registration("a", network("server", 20, 30, None)), Some("10.0.0.20 to 10.0.0.20")),
        ] {
            let got = clash(&one, &other);
            assert_eq!(got.is_some(), want.is_some(), "{name}: {got:?}");
            assert!(got.unwrap_or_default().contains(want.unwrap_or_default()), "{name}");
        }
    }
}
