//! Partitions: machines that are close to each other, and what they all use.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Kind, Labels, common, is_name, not_a_name};
use crate::faults::{Faults, Findings, shown};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Partition {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// For the machines' firmware, their agents and their systems, unless a network or a machine has others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// The same for time; agents have that from their boot server. Names reach installed systems only: DHCP has room for
    /// addresses alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub racks: Vec<Rack>,
}

/// How it's known which machines are in a rack. The first one that fits counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Rack {
    pub name: String,
    /// Patterns of ids, serials and MACs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<String>,
    /// Patterns of what the switches call themselves (LLDP) that their cables lead to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub switches: Vec<String>,
    /// Networks of boot servers that only reach this rack.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub networks: Vec<ipnet::IpNet>,
}

/// As many as a resolver looks at.
pub const MOST_DNS: usize = 3;
pub const MOST_NTP: usize = 10;
const MOST_RACKS: usize = 1024;

impl Kind for Partition {
    const NAME: &'static str = "partition";
    const PLURAL: &'static str = "partitions";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), Faults> {
        let mut findings = common(&self.name, &self.description, &self.labels);
        servers(&mut findings, &self.dns, &self.ntp);
        findings.at_most(MOST_RACKS, self.racks.len(), "racks");
        for (index, rack) in self.racks.iter().enumerate() {
            findings.unless(is_name(&rack.name), &format!("racks[{index}].name"), || not_a_name(&rack.name));
            let is_empty = rack.machines.is_empty() && rack.switches.is_empty() && rack.networks.is_empty();
            findings.unless(!is_empty, &format!("racks[{index}]"), || {
                "say by which machines, switches or networks it's known".into()
            });
        }
        findings.once(self.racks.iter().map(|rack| &rack.name), "racks", |name| format!("rack {}", shown(name)));
        findings.verdict()
    }
}

fn servers(findings: &mut Findings, dns: &[IpAddr], ntp: &[String]) {
    findings.unless(dns.len() <= MOST_DNS, "dns", || {
        format!("{} servers are more than the {MOST_DNS} that resolvers look at", dns.len())
    });
    findings.unless(ntp.len() <= MOST_NTP, "ntp", || format!("{} servers are more than {MOST_NTP}", ntp.len()));
    for server in ntp {
        let is_host = server.parse::<IpAddr>().is_ok()
            || (!server.is_empty()
                && server.len() <= 253
                && server.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')));
        findings.unless(is_host, "ntp", || format!("{} is neither a name nor an address", shown(server)));
    }
}
