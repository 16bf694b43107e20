//! Who may operate: tokens with roles, kept as hashes.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::denied::Denied;
use crate::keep;
use crate::secret::{Hash, Token};
use crate::store::Store;

/// How the callers of an operator router are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// `Authorization: Bearer <token>`, for HTTPS.
    Token,
    /// By the permissions of the Unix socket's file: whoever can connect is an admin.
    Socket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Admin,
    /// May look at everything and change nothing.
    Viewer,
}

/// In whose name something is ordered, as it's recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Who(String);

impl Who {
    /// Whoever may open the server's own socket.
    pub(crate) fn at_the_socket() -> Self {
        Self("an operator at the server's own socket".into())
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Operator {
    name: String,
    role: Role,
    token: Hash,
}

const OPERATORS: &str = "operator/";

/// On the first start, one token per role, in files that only the server's user can read.
pub(crate) fn first_tokens(store: &Store, state_dir: &Path) -> Result<()> {
    if !store.list::<Operator>(OPERATORS, None)?.is_empty() {
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
                let operator = Operator { name: (*name).to_owned(), role: *role, token: token.hash() };
                txn.put(&format!("{OPERATORS}{}", token.holder), &operator)
            })
        })
        .context("storing the first operator tokens")
}

/// Who is behind a bearer token.
pub(crate) fn caller(store: &Store, bearer: &str) -> Result<(Who, Role), Denied> {
    let unknown =
        || Denied::stranger("this operator token isn't known: use the one in admin.token of the state directory");
    let token = Token::parse(bearer).ok_or_else(unknown)?;
    let operator: Operator = store.get(&format!("{OPERATORS}{}", token.holder))?.ok_or_else(unknown)?;
    if !operator.token.is_of(&token) {
        return Err(unknown());
    }
    Ok((Who(format!("operator {}", operator.name)), operator.role))
}
