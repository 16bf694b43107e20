//! Sizes: what machines are called by what they're made of.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::{ImageRule, Kind, Labels, common};
use crate::faults::Faults;
use crate::layout::Amount;

/// A machine is of the size whose every constraint it meets, if all that it has is spoken of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Size {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    pub constraints: Vec<Constraint>,
    /// The images that can be installed on such machines; all, if none is named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImageRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Constraint {
    #[serde(rename = "type")]
    pub of: Resource,
    /// Cores and graphics processors in number, memory and storage in bytes, or as `"64GiB"`.
    #[serde(deserialize_with = "quantity")]
    pub min: u64,
    #[serde(deserialize_with = "quantity")]
    pub max: u64,
    /// Only those whose model is like this; of storage, whose device is (`/dev/nvme*`). A pattern with `*`, `?` and `[…]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Resource {
    Cores,
    Memory,
    Storage,
    Gpu,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cores => "cores",
            Self::Memory => "memory",
            Self::Storage => "storage",
            Self::Gpu => "gpu",
        })
    }
}

const MOST_CONSTRAINTS: usize = 64;
const LONGEST_PATTERN: usize = 256;

impl Kind for Size {
    const NAME: &'static str = "size";
    const PLURAL: &'static str = "sizes";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), Faults> {
        let mut findings = common(&self.name, &self.description, &self.labels);
        findings.unless(!self.constraints.is_empty(), "constraints", || {
            "a size without constraints would be every machine's".into()
        });
        findings.at_most(MOST_CONSTRAINTS, self.constraints.len(), "constraints");
        for (index, constraint) in self.constraints.iter().enumerate() {
            let at = |field: &str| format!("constraints[{index}].{field}");
            findings.unless(constraint.min <= constraint.max, &at("max"), || {
                format!("{} is less than min, which is {}", constraint.max, constraint.min)
            });
            let is_empty = constraint.identifier.as_ref().is_some_and(String::is_empty);
            findings.unless(!is_empty, &at("identifier"), || "an empty pattern is like nothing; leave it out".into());
            let length = constraint.identifier.as_ref().map_or(0, String::len);
            findings.unless(length <= LONGEST_PATTERN, &at("identifier"), || {
                format!("{length} bytes are more than {LONGEST_PATTERN}")
            });
            match constraint.of {
                Resource::Memory => findings.unless(constraint.identifier.is_none(), &at("identifier"), || {
                    "memory has no model that a pattern could be for".into()
                }),
                Resource::Gpu => findings.unless(constraint.identifier.is_some(), &at("identifier"), || {
                    "say which: a pattern for the model, such as \"H100*\"".into()
                }),
                Resource::Cores | Resource::Storage => {}
            }
        }
        for of in [Resource::Cores, Resource::Memory] {
            let many = self.constraints.iter().filter(|c| c.of == of).count();
            findings.unless(many <= 1, "constraints", || format!("{of} can be constrained once, and is {many} times"));
        }
        for rule in &self.images {
            rule.check(&mut findings, "images");
        }
        findings.verdict()
    }
}

fn quantity<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    match Written::deserialize(deserializer)
        .map_err(|_| serde::de::Error::custom("a quantity is a number, or text with a unit, such as \"64GiB\""))?
    {
        Written::Number(number) => Ok(number),
        Written::Text(text) => match text.parse() {
            Ok(Amount::Bytes(bytes)) => Ok(bytes),
            _ => Err(serde::de::Error::custom(format_args!("{text:?} is not a quantity such as \"64GiB\""))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(constraints: &str) -> Result<Size, String> {
        let text = format!(r#"{{"name": "s", "constraints": [{constraints}]}}"#);
        let size: Size = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        size.check().map(|()| size).map_err(|e| e.to_string())
    }

    #[test]
    fn what_a_size_can_be() {
        let cores = r#"{"type": "cores", "min": 8, "max": 16}"#;
        for (name, constraints, want) in [
            ("cores", cores.to_owned(), None),
            ("with units", r#"{"type": "memory", "min": "64GiB", "max": "65GiB"}"#.into(), None),
            ("nothing", String::new(), Some("constraints: a size without")),
            ("backwards", r#"{"type": "cores", "min": 9, "max": 8}"#.into(), Some("constraints[0].max: 8 is less")),
            ("cores twice", format!("{cores}, {cores}"), Some("cores can be constrained once")),
            (
                "a model of memory",
                r#"{"type": "memory", "min": 1, "max": 2, "identifier": "x"}"#.into(),
                Some("memory has"),
            ),
            ("any graphics", r#"{"type": "gpu", "min": 1, "max": 2}"#.into(), Some("say which")),
            ("a percentage", r#"{"type": "memory", "min": "50%", "max": 2}"#.into(), Some("\"50%\" is not a quantity")),
            ("a fraction", r#"{"type": "memory", "min": 0.5, "max": 2}"#.into(), Some("a quantity is a number")),
            ("another type", r#"{"type": "fans", "min": 1, "max": 2}"#.into(), Some("unknown variant `fans`")),
        ] {
            match (of(&constraints), want) {
                (Ok(_), None) => {}
                (Err(got), Some(want)) => assert!(got.contains(want), "{name}: {got}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
        let size = of(r#"{"type": "memory", "min": "1GiB", "max": 2147483648}"#).expect("a size");
        assert_eq!(size.constraints[0].min * 2, size.constraints[0].max);
    }
}
