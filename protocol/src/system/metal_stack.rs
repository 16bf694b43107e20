//! What images with metal-stack's installer are told beyond what every image is: a machine's place in its networks.
//!
//! Handed through into `/etc/metal`, where the image's own installer reads it. The names are metal-stack's.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::faults::{Findings, shown};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct MetalStack {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub project: String,
    pub role: Role,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<MetalNetwork>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    #[default]
    Machine,
    Firewall,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct MetalNetwork {
    pub network: String,
    #[serde(default)]
    pub kind: NetworkKind,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub prefixes: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub destination_prefixes: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// Traffic that leaves by this network hides behind the machine's own address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nat: bool,
    pub vrf: u32,
    pub asn: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    #[default]
    Child,
    ChildShared,
    External,
    Underlay,
}

const MAX_NETWORKS: usize = 64;
const MAX_PREFIXES: usize = 1024;

impl MetalStack {
    pub(super) fn check(&self, found: &mut Findings) {
        const AT: &str = "metal_stack.networks";
        found.at_most(MAX_NETWORKS, self.networks.len(), AT);
        found.once(self.networks.iter().map(|network| &network.network), AT, |name| shown(name));
        let named = |name: &str| name.len() <= 128 && !name.contains(char::is_control);
        found.unless(named(&self.project), "metal_stack.project", || "it is no project's name".into());
        for network in &self.networks {
            let at = format!("{AT}.{}", shown(&network.network));
            found
                .unless(named(&network.network) && !network.network.is_empty(), &at, || "it is no network's id".into());
            found.unless(network.project.as_deref().is_none_or(named), &at, || "it has no project's name".into());
            for count in [network.prefixes.len(), network.destination_prefixes.len(), network.ips.len()] {
                found.at_most(MAX_PREFIXES, count, &at);
            }
        }
    }
}
