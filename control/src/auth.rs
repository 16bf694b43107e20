//! Who may do what: tokens, kept as hashes; memberships in tenants and projects; and people whom an OpenID Connect provider
//! knows.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use axum::http::StatusCode;
pub use drophammer_protocol::api::Role;
use drophammer_protocol::api::{MadeToken, MakeToken, TokenInfo};
use drophammer_protocol::faults::{Fault, Faults};
use drophammer_protocol::id::MachineId;
use drophammer_protocol::resource::{Right, is_name, not_a_name};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::audit::{self, Change, Who};
use crate::denied::Denied;
use crate::names;
use crate::pool::Tables;
use crate::records::Record;
use crate::secret::{Hash, Token};
use crate::store::{Store, Txn};
use crate::{Control, keep};

/// How the callers of an operator router are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer <token>`, for HTTPS.
    Token,
    /// By the permissions of the Unix socket's file: whoever can connect is an admin.
    Socket,
}

/// Who calls, and what that person or program may.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) who: Who,
    /// Of everything.
    role: Option<Role>,
    /// Whose memberships count.
    user: Option<String>,
    /// Of single projects.
    projects: BTreeMap<String, Right>,
    /// The token that was used.
    token: Option<Uuid>,
}

impl Caller {
    /// Whoever may open the server's own socket.
    pub(crate) fn at_the_socket() -> Self {
        let who = Who::named("an operator at the server's own socket".into());
        Self { who, role: Some(Role::Admin), user: None, projects: BTreeMap::new(), token: None }
    }

    pub(crate) fn user(name: &str, role: Option<Role>) -> Self {
        let who = Who::named(format!("user {name}"));
        Self { who, role, user: Some(name.to_owned()), projects: BTreeMap::new(), token: None }
    }

    /// Of everything there is.
    pub(crate) fn may_see_all(&self) -> bool {
        self.role.is_some()
    }

    pub(crate) fn must_see_all(&self) -> Result<(), Denied> {
        if self.may_see_all() { Ok(()) } else { Err(forbidden("this takes a viewer's or an admin's token")) }
    }

    pub(crate) fn must_be_admin(&self) -> Result<(), Denied> {
        match self.role {
            Some(Role::Admin) => Ok(()),
            Some(Role::Viewer) => {
                Err(forbidden("this token may look at everything and change nothing; use an admin's"))
            }
            None => Err(forbidden("this takes an admin's token")),
        }
    }

    /// What may be done in a project.
    pub(crate) fn right_in(&self, project: &str, tables: &Tables) -> Option<Right> {
        let own = self.of_role().max(self.projects.get(project).copied());
        let Some(project) = tables.projects.get(project).map(|stored| &stored.value) else { return own };
        own.max(self.as_member(&project.members)).max(self.right_of_tenant(&project.tenant, tables))
    }

    pub(crate) fn right_of_tenant(&self, tenant: &str, tables: &Tables) -> Option<Right> {
        let member = tables.tenants.get(tenant).and_then(|stored| self.as_member(&stored.value.members));
        self.of_role().max(member)
    }

    /// In everything.
    fn of_role(&self) -> Option<Right> {
        self.role.map(|role| match role {
            Role::Admin => Right::Owner,
            Role::Viewer => Right::Viewer,
        })
    }

    fn as_member(&self, members: &BTreeMap<String, Right>) -> Option<Right> {
        members.get(self.user.as_ref()?).copied()
    }

    /// Nobody's things are everybody's who may see all, and an admin's to change.
    pub(crate) fn must(&self, needed: Right, project: Option<&str>, tables: &Tables) -> Result<(), Denied> {
        let Some(project) = project else {
            return if needed <= Right::Viewer { self.must_see_all() } else { self.must_be_admin() };
        };
        match self.right_in(project, tables) {
            Some(right) if right >= needed => Ok(()),
            Some(right) => Err(forbidden(&format!(
                "in project {project} this is for an {}, and {} is {} there",
                needed.name(),
                self.who,
                right.name()
            ))),
            None => Err(forbidden(&format!("{} has no part in project {project}", self.who))),
        }
    }

    pub(crate) fn sees(&self, record: &Record, tables: &Tables) -> bool {
        self.may_see_all() || self.must(Right::Viewer, project_of(record), tables).is_ok()
    }
}

/// Whose machine it is.
pub(crate) fn project_of(record: &Record) -> Option<&str> {
    record.allocation.as_ref()?.project.as_deref()
}

fn forbidden(detail: &str) -> Denied {
    Denied::new(StatusCode::FORBIDDEN, detail)
}

/// A token, as it's kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Kept {
    id: Uuid,
    name: String,
    hash: Hash,
    #[serde(default)]
    role: Option<Role>,
    #[serde(default)]
    user: Option<String>,
    #[serde(default)]
    projects: BTreeMap<String, Right>,
    created_ms: u64,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    expires_ms: Option<u64>,
}

impl Kept {
    fn info(&self) -> TokenInfo {
        TokenInfo {
            id: self.id,
            name: self.name.clone(),
            role: self.role,
            user: self.user.clone(),
            projects: self.projects.clone(),
            created_ms: self.created_ms,
            created_by: self.created_by.clone(),
            expires_ms: self.expires_ms,
        }
    }
}

const TOKENS: &str = "token/";

fn token_key(id: Uuid) -> String {
    format!("{TOKENS}{id}")
}

/// On the first start, one token per role, in files that only the server's user can read.
pub(crate) fn first_tokens(store: &Store, state_dir: &Path, now: u64) -> Result<()> {
    if !store.page::<Kept>(TOKENS, None, 1)?.is_empty() {
        return Ok(());
    }
    let made = [("admin", Role::Admin), ("viewer", Role::Viewer)]
        .map(|(name, role)| Token::random(Uuid::new_v4()).map(|token| (name, role, token)));
    let made = made.into_iter().collect::<Result<Vec<_>>>()?;
    // The files first: a token whose hash isn't stored lets nobody in and is replaced at the next start, while a hash
    // whose token was never written would lock everybody out.
    for (name, _, token) in &made {
        keep::write(&state_dir.join(format!("{name}.token")), &format!("{token}\n"), keep::PRIVATE)?;
    }
    store
        .transact(|txn| {
            made.iter().try_for_each(|(name, role, token)| {
                let kept = Kept {
                    id: token.holder,
                    name: (*name).to_owned(),
                    hash: token.hash(),
                    role: Some(*role),
                    user: None,
                    projects: BTreeMap::new(),
                    created_ms: now,
                    created_by: "the server's first start".into(),
                    expires_ms: None,
                };
                txn.put(&token_key(kept.id), &kept)
            })
        })
        .context("storing the first operator tokens")
}

const LONGEST_LIFE_S: u64 = 10 * 366 * 24 * 3600;

impl Control {
    /// Who is behind a bearer token of this server's.
    pub(crate) fn token_caller(&self, bearer: &str, now: u64) -> Result<Caller, Denied> {
        let unknown =
            || Denied::stranger("this operator token isn't known: use the one in admin.token of the state directory");
        let token = Token::parse(bearer).ok_or_else(unknown)?;
        let kept: Kept = self.store().get(&token_key(token.holder))?.ok_or_else(unknown)?;
        if !kept.hash.is_of(&token) {
            return Err(unknown());
        }
        if kept.expires_ms.is_some_and(|expires| expires <= now) {
            return Err(Denied::stranger(format!("token {} has expired; make a new one", kept.name)));
        }
        let who = Who::named(format!("operator {}", kept.name));
        Ok(Caller { who, role: kept.role, user: kept.user, projects: kept.projects, token: Some(kept.id) })
    }

    /// A token that may no more than whoever asks for it.
    pub(crate) fn make_token(&self, caller: &Caller, wish: &MakeToken, now: u64) -> Result<MadeToken, Denied> {
        let faulty = |at: &str, why: String| Denied::faulty(&Faults(vec![Fault { at: at.into(), why }]));
        if !is_name(&wish.name) {
            return Err(faulty("name", not_a_name(&wish.name)));
        }
        if wish.expires_in_s.is_some_and(|life| life == 0 || life > LONGEST_LIFE_S) {
            return Err(faulty("expires_in_s", "a token lives between a second and ten years".into()));
        }
        match wish.role {
            None => {}
            Some(Role::Admin) => caller.must_be_admin()?,
            Some(Role::Viewer) => caller.must_see_all()?,
        }
        if wish.user.is_some() && wish.user != caller.user {
            caller.must_be_admin()?;
        }
        {
            let tables = self.inner.pool.read();
            for (project, right) in &wish.projects {
                if !tables.projects.contains_key(project) && !self.policy().projects.contains_key(project) {
                    return Err(faulty(&format!("projects.{project}"), "there is no such project".into()));
                }
                caller.must(*right, Some(project), &tables)?;
            }
        }
        let token = Token::random(Uuid::new_v4())?;
        let kept = Kept {
            id: token.holder,
            name: wish.name.clone(),
            hash: token.hash(),
            role: wish.role,
            user: wish.user.clone(),
            projects: wish.projects.clone(),
            created_ms: now,
            created_by: caller.who.to_string(),
            expires_ms: wish.expires_in_s.map(|life| now.saturating_add(life.saturating_mul(1000))),
        };
        self.store().transact(|txn| -> Result<()> {
            txn.put(&token_key(kept.id), &kept)?;
            told(txn, caller, "make", &kept, now)
        })?;
        Ok(MadeToken { token: token.to_string(), info: kept.info() })
    }

    /// Those that the caller may see: its own, and an admin all.
    pub(crate) fn tokens(&self, caller: &Caller) -> Result<Vec<TokenInfo>, Denied> {
        let kept: Vec<Kept> = self.store().list(TOKENS, None)?;
        Ok(kept.iter().filter(|kept| is_own(caller, kept)).map(Kept::info).collect())
    }

    pub(crate) fn revoke_token(&self, caller: &Caller, id: Uuid, now: u64) -> Result<(), Denied> {
        let none = || Denied::new(StatusCode::NOT_FOUND, format!("there is no token {id}"));
        self.store().transact(|txn| {
            let kept: Kept = txn.get(&token_key(id))?.filter(|kept| is_own(caller, kept)).ok_or_else(none)?;
            txn.delete(&token_key(id));
            Ok(told(txn, caller, "revoke", &kept, now)?)
        })
    }

    /// The machine that is meant, if the caller may do this with it. Of those that one may not see nobody says that they
    /// are there.
    pub(crate) fn theirs(&self, caller: &Caller, reference: &str, needed: Right) -> Result<MachineId, Denied> {
        let tables = self.inner.pool.read();
        let visible = tables.records().map(|record| &**record).filter(|record| caller.sees(record, &tables));
        let machine = names::pick(visible, reference)?;
        if let Some(known) = tables.machines.get(&machine) {
            caller.must(needed, project_of(&known.record), &tables)?;
        }
        Ok(machine)
    }
}

fn is_own(caller: &Caller, kept: &Kept) -> bool {
    caller.must_be_admin().is_ok() || Some(kept.id) == caller.token || kept.created_by == caller.who.to_string()
}

fn told(txn: &mut Txn<'_>, caller: &Caller, action: &str, kept: &Kept, now: u64) -> Result<()> {
    let object = token_key(kept.id);
    let change = Change { who: &caller.who, at_ms: now, action, object: &object };
    audit::record(txn, change, None, Some(&kept.info()))
}
