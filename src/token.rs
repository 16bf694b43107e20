//! `drophammer token`: who may talk to the control API.

use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use drophammer_protocol::api::{MakeToken, Role, TokenInfo};
use drophammer_protocol::resource::Right;
use uuid::Uuid;

use crate::output;
use crate::server;

pub(crate) type Args = server::Args<Command>;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a token. It's printed once, and may do no more than whoever makes it.
    Make {
        /// What it's called in the audit.
        name: String,
        /// It may do or see everything.
        #[arg(long, value_enum)]
        role: Option<RoleName>,
        /// It acts for this user, by whose memberships in tenants and projects it's known what it may.
        #[arg(long)]
        user: Option<String>,
        /// It may do this in a project: `web=editor`. Can be given several times.
        #[arg(long = "project", value_name = "PROJECT=RIGHT", value_parser = right)]
        projects: Vec<(String, Right)>,
        /// Days after which it isn't good any more.
        #[arg(long, value_name = "DAYS")]
        days: Option<u32>,
    },
    /// The tokens that there are: your own, and for an admin all.
    List,
    /// Believe a token no more.
    Revoke {
        /// As `list` shows it.
        id: Uuid,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    Admin,
    Viewer,
}

fn right(text: &str) -> Result<(String, Right)> {
    let Some((project, right)) = text.split_once('=') else { bail!("{text:?} doesn't look like web=editor") };
    let known = [Right::Guest, Right::Viewer, Right::Editor, Right::Owner].into_iter().find(|r| r.name() == right);
    match known {
        Some(right) => Ok((project.to_owned(), right)),
        None => bail!("{right:?} is no right: there are guest, viewer, editor and owner"),
    }
}

pub(crate) fn run(args: Args) -> Result<()> {
    let json = args.json();
    let client = args.server.connect()?;
    match args.command {
        Command::Make { name, role, user, projects, days } => {
            let role = role.map(|role| match role {
                RoleName::Admin => Role::Admin,
                RoleName::Viewer => Role::Viewer,
            });
            let expires_in_s = days.map(|days| u64::from(days) * 24 * 3600);
            let wish = MakeToken { name, role, user, projects: projects.into_iter().collect(), expires_in_s };
            let made = client.make_token(&wish)?;
            if json { output::json(&made) } else { output::line(&made.token) }
        }
        Command::List => list(&client.tokens()?, json),
        Command::Revoke { id } => client.revoke_token(id),
    }
}

fn list(tokens: &[TokenInfo], json: bool) -> Result<()> {
    if json {
        return output::json(tokens);
    }
    let rows: Vec<_> = tokens
        .iter()
        .map(|token| {
            let role = token.role.map(|role| match role {
                Role::Admin => "admin".to_owned(),
                Role::Viewer => "viewer".to_owned(),
            });
            let user = token.user.as_ref().map(|user| format!("as {user}"));
            let projects = token.projects.iter().map(|(project, right)| format!("{project}={}", right.name()));
            [
                token.name.clone(),
                role.into_iter().chain(user).chain(projects).collect::<Vec<_>>().join(" "),
                token.expires_ms.map_or_else(|| "never".into(), output::moment),
                token.created_by.clone(),
                token.id.to_string(),
            ]
        })
        .collect();
    output::table(["NAME", "MAY", "EXPIRES", "MADE BY", "ID"], &rows)
}
