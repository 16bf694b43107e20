//! What is said about images besides what their builders signed, and which images are meant where.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use super::{Kind, Labels, common};
use crate::faults::{Faults, Findings, shown};
use crate::glob::glob;

/// About all images that it means. Of several policies for one image the strictest classification and the earliest date count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ImagePolicy {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    pub images: ImageRule,
    #[serde(default)]
    pub classification: Classification,
    /// In seconds since 1970: from then on it isn't installed any more. The builder's own date counts if it's earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// The later, the stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Classification {
    #[default]
    Supported,
    /// Installed where its version is named, never chosen as the newest.
    Preview,
    /// The same, with a warning.
    Deprecated,
}

impl Classification {
    pub fn name(self) -> &'static str {
        match self {
            Self::Preview => "preview",
            Self::Supported => "supported",
            Self::Deprecated => "deprecated",
        }
    }
}

impl Kind for ImagePolicy {
    const NAME: &'static str = "image-policy";
    const PLURAL: &'static str = "image-policies";

    fn name(&self) -> &str {
        &self.name
    }

    fn check(&self) -> Result<(), Faults> {
        let mut findings = common(&self.name, &self.description, &self.labels);
        self.images.check(&mut findings, "images");
        findings.verdict()
    }
}

/// Which images are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ImageRule {
    /// A pattern of the image's name.
    pub image: String,
    /// As `>= 12.0.20250101`: with `=`, `>=`, `>`, `<=` or `<`, several of them separated by commas. All, if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<String>,
}

impl ImageRule {
    pub fn means(&self, name: &str, version: &str) -> bool {
        let fits = |rule: &str| parse(rule).is_some_and(|(is, than)| is(version_order(version, than)));
        glob(self.image.as_bytes(), name.as_bytes())
            && self.versions.iter().flat_map(|rules| rules.split(',')).all(fits)
    }

    pub(super) fn check(&self, findings: &mut Findings, at: &str) {
        findings.unless(!self.image.is_empty(), at, || "an empty pattern is like no image".into());
        for rule in self.versions.iter().flat_map(|rules| rules.split(',')) {
            findings.unless(parse(rule).is_some(), at, || {
                format!("{} says nothing about versions: it looks like \">= 12.0\"", shown(rule))
            });
        }
    }
}

type Is = fn(Ordering) -> bool;

fn parse(rule: &str) -> Option<(Is, &str)> {
    let rules: [(&str, Is); 5] = [
        (">=", Ordering::is_ge),
        ("<=", Ordering::is_le),
        (">", Ordering::is_gt),
        ("<", Ordering::is_lt),
        ("=", Ordering::is_eq),
    ];
    let rule = rule.trim();
    let (is, than) = rules.into_iter().find_map(|(sign, is)| Some((is, rule.strip_prefix(sign)?.trim())))?;
    super::is_name(than).then_some((is, than))
}

/// Numbers count as numbers, whatever is between them: `12.9` comes before `12.10`, `12` before `12.0`.
pub fn version_order(a: &str, b: &str) -> Ordering {
    let mut parts = (parts(a), parts(b));
    loop {
        match (parts.0.next(), parts.1.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) => match a.cmp(&b) {
                Ordering::Equal => {}
                different => return different,
            },
        }
    }
}

/// Numbers sort before words, as releases do before what comes after them.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    /// Its length without zeros before it, and its digits: of any size.
    Number(usize, &'a str),
    Word(&'a str),
}

fn parts(version: &str) -> impl Iterator<Item = Part<'_>> {
    let kind = |c: char| (c.is_ascii_digit(), c.is_alphanumeric());
    let mut rest = version;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
        let first = rest.chars().next()?;
        let end = rest.find(|c: char| kind(c) != kind(first)).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        rest = after;
        if !first.is_ascii_digit() {
            return Some(Part::Word(part));
        }
        let digits = part.trim_start_matches('0');
        Some(Part::Number(digits.len(), digits))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_in_their_order() {
        let ascending = ["1", "1.0", "1.0.1", "1.0.2-rc1", "1.2", "1.9", "1.10", "2", "12.0.20250101", "20250101"];
        for pair in ascending.windows(2) {
            assert_eq!(version_order(pair[0], pair[1]), Ordering::Less, "{pair:?}");
        }
        for (a, b) in [("1.02", "1.2"), ("1-2", "1.2"), ("", "."), ("a.1", "a1")] {
            assert_eq!(version_order(a, b), Ordering::Equal, "{a} {b}");
        }
    }

    #[test]
    fn which_images_are_meant() {
        let rule = |image: &str, versions: &str| ImageRule {
            image: image.into(),
            versions: (!versions.is_empty()).then(|| versions.into()),
        };
        for (name, rule, want) in [
            ("any version", rule("debian-*", ""), true),
            ("another image", rule("ubuntu-*", ""), false),
            ("at least", rule("debian-12", ">= 20240101"), true),
            ("later", rule("debian-12", ">20250101"), false),
            ("between", rule("*", "> 20240101, < 20260101"), true),
            ("not between", rule("*", "> 20240101, < 20250101"), false),
            ("this one", rule("*", "= 20250101"), true),
            ("nothing that is understood", rule("*", "about 2025"), false),
        ] {
            assert_eq!(rule.means("debian-12", "20250101"), want, "{name}");
        }
    }

    proptest! {
        #[test]
        fn versions_have_one_order(a in "[0-9a-z.]{0,8}", b in "[0-9a-z.]{0,8}", c in "[0-9a-z.]{0,8}") {
            prop_assert_eq!(version_order(&a, &b), version_order(&b, &a).reverse());
            if version_order(&a, &b).is_le() && version_order(&b, &c).is_le() {
                prop_assert!(version_order(&a, &c).is_le());
            }
        }
    }
}
