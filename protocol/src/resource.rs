//! What operators declare: documents with a name, each of some kind.
//!
//! They are written as YAML or JSON (`drophammer apply`), kept by the control API under `/v1/{plural}/{name}`, and say what
//! is wanted of machines that may not be there yet. Each kind checks itself ([`Kind::check`]); what several have to agree
//! on is the control API's to see to.

mod image;
mod image_source;
mod layout;
mod partition;
mod project;
mod reservation;
mod size;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::image::{Classification, ImagePolicy, ImageRule, version_order};
pub use self::image_source::ImageSource;
pub use self::layout::{LayoutConstraints, NamedLayout};
pub use self::partition::{MOST_DNS, MOST_NTP, Partition, Rack};
pub use self::project::{Project, Right, Tenant};
pub use self::reservation::Reservation;
pub use self::size::{Constraint, Resource, Size};
use crate::faults::{Faults, Findings, shown};

/// A kind of document.
pub trait Kind: Serialize + DeserializeOwned + Clone + std::fmt::Debug + PartialEq + Send + Sync + 'static {
    /// As `kind:` says it.
    const NAME: &'static str;
    /// As paths say it.
    const PLURAL: &'static str;

    fn name(&self) -> &str;

    /// Everything that is wrong with it by itself.
    fn check(&self) -> Result<(), Faults>;
}

/// Free text about something, by which it's found.
pub type Labels = BTreeMap<String, String>;

/// What the control API says of a document that it keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Meta {
    /// Counts its changes, from 1. Also its entity tag.
    pub generation: u64,
    pub created_ms: u64,
    pub changed_ms: u64,
}

/// A document as it's kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Stored<T> {
    #[serde(flatten)]
    pub value: T,
    pub meta: Meta,
}

const LONGEST_NAME: usize = 63;
const MOST_LABELS: usize = 64;
const LONGEST_LABEL: usize = 256;
const LONGEST_DESCRIPTION: usize = 1024;

/// Names are parts of paths, of files and of other people's programs.
pub fn is_name(text: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.len() <= LONGEST_NAME
        && text.bytes().all(inside)
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
}

pub fn not_a_name(text: &str) -> String {
    format!(
        "{} is not a name: up to {LONGEST_NAME} letters, digits, '-', '_' and '.', the first one a letter or digit",
        shown(text)
    )
}

/// What every document has.
fn common(name: &str, description: &str, labels: &Labels) -> Findings {
    let mut findings = Findings::default();
    findings.unless(is_name(name), "name", || not_a_name(name));
    findings.unless(description.len() <= LONGEST_DESCRIPTION, "description", || {
        format!("{} bytes are more than {LONGEST_DESCRIPTION}", description.len())
    });
    labels_in(&mut findings, labels);
    findings
}

/// Labels of anything.
pub fn check_labels(labels: &Labels) -> Result<(), Faults> {
    let mut findings = Findings::default();
    labels_in(&mut findings, labels);
    findings.verdict()
}

fn labels_in(findings: &mut Findings, labels: &Labels) {
    findings.at_most(MOST_LABELS, labels.len(), "labels");
    for (key, value) in labels {
        let fits = |text: &str| text.len() <= LONGEST_LABEL && !text.chars().any(char::is_control);
        findings.unless(!key.is_empty() && fits(key) && fits(value), "labels", || {
            format!("{} = {} is too long, or has characters that can't be seen", shown(key), shown(value))
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_parts_of_paths() {
        for (name, good) in [
            ("c1-large.x86_64", true),
            ("7", true),
            ("", false),
            (".", false),
            ("..", false),
            (".hidden", false),
            ("-dash", false),
            ("a/b", false),
            ("a b", false),
            ("ü", false),
            ("a\0", false),
            (&"a".repeat(63), true),
            (&"a".repeat(64), false),
        ] {
            assert_eq!(is_name(name), good, "{name:?}");
        }
    }

    #[test]
    fn what_is_kept_reads_back() {
        let value = Size {
            name: "s".into(),
            description: String::new(),
            labels: Labels::from([("a".into(), "b".into())]),
            constraints: vec![Constraint { of: Resource::Memory, min: 1, max: 2, identifier: None }],
            images: vec![],
        };
        let stored = Stored { value, meta: Meta { generation: 3, created_ms: 1, changed_ms: 2 } };
        let text = serde_json::to_string(&stored).expect("JSON");
        assert_eq!(serde_json::from_str::<Stored<Size>>(&text).expect("reads"), stored, "{text}");
    }
}
