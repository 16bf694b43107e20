//! Layouts by name, and for which machines they are.

use serde::{Deserialize, Serialize};

use super::{ImageRule, Kind, Labels, common};
use crate::faults::Faults;
use crate::layout::Layout;

/// A layout that allocations can name, or that they get because they say nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct NamedLayout {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    #[serde(default, skip_serializing_if = "LayoutConstraints::is_empty")]
    pub constraints: LayoutConstraints,
    pub layout: Layout,
}

/// Without any, a layout is used only where it's named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LayoutConstraints {
    /// Patterns of the sizes that it's for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageRule>,
}

impl LayoutConstraints {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Kind for NamedLayout {
    const NAME: &'static str = "layout";
    const PLURAL: &'static str = "layouts";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), Faults> {
        let mut findings = common(&self.name, &self.description, &self.labels);
        for rule in &self.constraints.images {
            rule.check(&mut findings, "constraints.images");
        }
        let layout = self.layout.check().err().map(|faults| faults.0).unwrap_or_default();
        for fault in layout {
            findings.unless(false, &format!("layout.{}", fault.at), || fault.why);
        }
        findings.verdict()
    }
}
