//! Tenants and their projects: who machines are for, and who may do what about them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Kind, Labels, common, is_name, not_a_name};
use crate::erase::Policy;
use crate::faults::{Faults, Findings, shown};

/// What a member may do with a tenant's or a project's machines. Each may what those after it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// Sees that it's there, and what it's called.
    Guest,
    /// Sees everything.
    Viewer,
    /// Allocates and releases machines.
    Editor,
    /// Also says who else is a member.
    Owner,
}

impl Right {
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Viewer => "viewer",
            Self::Editor => "editor",
            Self::Owner => "owner",
        }
    }
}

/// A customer: an organisation with projects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// By what they are called to OIDC or in a token. What they may here, they may in all of its projects.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, Right>,
}

/// Whom machines are allocated for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Project {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    pub tenant: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, Right>,
    /// Which erasures are good enough after it; at least the server's own policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erase_policy: Option<Policy>,
    /// As many machines as it may have at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_machines: Option<u32>,
}

const MOST_MEMBERS: usize = 1024;
const LONGEST_MEMBER: usize = 256;

impl Kind for Tenant {
    const NAME: &'static str = "tenant";
    const PLURAL: &'static str = "tenants";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), Faults> {
        let mut findings = common(&self.name, &self.description, &self.labels);
        members(&mut findings, &self.members);
        findings.verdict()
    }
}

impl Kind for Project {
    const NAME: &'static str = "project";
    const PLURAL: &'static str = "projects";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), Faults> {
        let mut findings = common(&self.name, &self.description, &self.labels);
        findings.unless(is_name(&self.tenant), "tenant", || not_a_name(&self.tenant));
        members(&mut findings, &self.members);
        findings.verdict()
    }
}

fn members(findings: &mut Findings, members: &BTreeMap<String, Right>) {
    findings.at_most(MOST_MEMBERS, members.len(), "members");
    for name in members.keys() {
        let fits = !name.trim().is_empty() && name.len() <= LONGEST_MEMBER && !name.chars().any(char::is_control);
        findings.unless(fits, "members", || format!("{} is nobody's name", shown(name)));
    }
}
