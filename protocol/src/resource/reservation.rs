//! Reservations: machines that only one project gets.

use serde::{Deserialize, Serialize};

use super::{Kind, Labels, common, is_name, not_a_name};
use crate::faults::Faults;

/// Of this many machines of a size in each of the partitions, whichever they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Reservation {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    pub project: String,
    pub size: String,
    pub partitions: Vec<String>,
    /// In each of them.
    pub amount: u32,
}

impl Kind for Reservation {
    const NAME: &'static str = "reservation";
    const PLURAL: &'static str = "reservations";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), Faults> {
        let mut findings = common(&self.name, &self.description, &self.labels);
        for (at, name) in [("project", &self.project), ("size", &self.size)] {
            findings.unless(is_name(name), at, || not_a_name(name));
        }
        findings.unless(!self.partitions.is_empty(), "partitions", || "say in which".into());
        for name in &self.partitions {
            findings.unless(is_name(name), "partitions", || not_a_name(name));
        }
        findings.once(&self.partitions, "partitions", |name| format!("partition {name:?}"));
        findings.unless(self.amount > 0, "amount", || "a reservation of nothing; delete it instead".into());
        findings.verdict()
    }
}
