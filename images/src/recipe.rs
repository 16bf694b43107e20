//! What an image is made of, as data. Two recipes come with the program; others are files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use drophammer_protocol::manifest::is_plain_name;
use serde::{Deserialize, Deserializer, Serialize};

const OURS: [(&str, &str); 2] =
    [("debian-12", include_str!("../recipes/debian-12.toml")), ("tiny", include_str!("../recipes/tiny.toml"))];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub name: String,
    /// The Debian release.
    pub suite: String,
    /// Kernel arguments, without `root=`.
    pub cmdline: String,
    pub make: Make,
    /// Directories by absolute path, with their modes.
    #[serde(default)]
    pub dirs: BTreeMap<String, Mode>,
    #[serde(default)]
    pub files: BTreeMap<String, TextFile>,
    /// Symbolic links: path to target.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Make {
    /// A whole Debian, with maintainer scripts run.
    Mmdebstrap {
        packages: Vec<String>,
        /// Lines for dpkg's configuration, kept in the image.
        #[serde(default)]
        dpkg: Vec<String>,
        /// Shell commands inside the finished system.
        #[serde(default)]
        run: Vec<String>,
    },
    /// A kernel and single files of packages. Nothing of them is run.
    Packages {
        /// `cloud-amd64` for the package linux-image-cloud-amd64.
        kernel: String,
        modules: Vec<String>,
        /// Path of a taken busybox, which gets a link beside it for each of its commands.
        #[serde(default)]
        busybox: Option<String>,
        take: Vec<Take>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Take {
    pub package: String,
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextFile {
    #[serde(default)]
    pub mode: Option<Mode>,
    pub text: String,
}

/// Permission bits, written in octal as a string: a TOML number would be taken as decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mode(pub u32);

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u32::from_str_radix(&text, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is not a mode such as \"0755\"")))
    }
}

impl Recipe {
    /// One of ours by its name, or a file by its path.
    pub fn load(name: &str) -> Result<Self> {
        if let Some((_, text)) = OURS.iter().find(|(ours, _)| *ours == name) {
            return Self::parse(text).with_context(|| format!("reading the recipe {name}"));
        }
        let path = Path::new(name);
        ensure!(
            path.extension().is_some_and(|e| e == "toml"),
            "there is no recipe {name}: the ones that come with drophammer are {}; others are files that end in .toml",
            Self::names().join(" and ")
        );
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("reading the recipe {}", path.display()))
    }

    pub fn names() -> [&'static str; 2] {
        OURS.map(|(name, _)| name)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let recipe: Self = toml::from_str(text)?;
        ensure!(is_plain_name(&recipe.name), "{:?} can't be the name of an image", recipe.name);
        for path in recipe.dirs.keys().chain(recipe.files.keys()).chain(recipe.links.keys()) {
            ensure!(is_absolute(path), "{path:?} is not an absolute path without . and ..");
        }
        if let Make::Packages { take, .. } = &recipe.make {
            for Take { path, package } in take {
                ensure!(is_absolute(path), "{path:?}, to be taken from {package}, is not an absolute path");
            }
        }
        Ok(recipe)
    }
}

fn is_absolute(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_recipes_are_named_as_they_are_called() -> Result<()> {
        for name in Recipe::names() {
            assert_eq!(Recipe::load(name)?.name, name);
        }
        Ok(())
    }

    #[test]
    fn nonsense_is_refused() {
        let with = |rest: &str| {
            format!(
                "name = \"x\"\nsuite = \"bookworm\"\ncmdline = \"\"\n[make]\nfrom = \"mmdebstrap\"\npackages = []\n{rest}"
            )
        };
        for (name, text, fine) in [
            ("plain", with(""), true),
            ("a file", with("[files.\"/etc/x\"]\nmode = \"0600\"\ntext = \"x\""), true),
            ("a misspelt field", with("pakcages = []"), false),
            ("a path upwards", with("[files.\"/etc/../x\"]\ntext = \"x\""), false),
            ("a relative path", with("[links]\n\"etc/x\" = \"y\""), false),
            ("a decimal mode", with("[dirs]\n\"/x\" = 755"), false),
            ("a mode that is none", with("[dirs]\n\"/x\" = \"0999\""), false),
            ("a name with a slash", with("").replace("\"x\"", "\"x/y\""), false),
        ] {
            assert_eq!(Recipe::parse(&text).is_ok(), fine, "{name}");
        }
    }
}
