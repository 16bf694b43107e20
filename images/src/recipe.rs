//! What an image is made of, as data. Some recipes come with the program; others are files, and may build on those.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use drophammer_protocol::manifest::is_plain_name;
use serde::{Deserialize, Deserializer, Serialize};

const OURS: [(&str, &str); 4] = [
    ("debian-12", include_str!("../recipes/debian-12.toml")),
    ("debian-12-kubernetes", include_str!("../recipes/debian-12-kubernetes.toml")),
    ("debian-12-firewall", include_str!("../recipes/debian-12-firewall.toml")),
    ("tiny", include_str!("../recipes/tiny.toml")),
];

/// All of it, whatever it was built on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Recipe {
    pub name: String,
    /// The Debian release.
    pub suite: String,
    /// Kernel arguments, without `root=`.
    pub cmdline: String,
    pub make: Make,
    /// Directories by absolute path, with their modes.
    pub dirs: BTreeMap<String, Mode>,
    pub files: BTreeMap<String, TextFile>,
    /// Symbolic links: path to target.
    pub links: BTreeMap<String, String>,
}

/// As it's written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    /// One of ours, that this one has everything of: lists go on, and what is the same otherwise is in its place.
    base: Option<String>,
    suite: Option<String>,
    cmdline: Option<String>,
    make: Option<Make>,
    #[serde(default)]
    dirs: BTreeMap<String, Mode>,
    #[serde(default)]
    files: BTreeMap<String, TextFile>,
    #[serde(default)]
    links: BTreeMap<String, String>,
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
        if let Some(recipe) = Self::ours(name) {
            return recipe;
        }
        let path = Path::new(name);
        ensure!(
            path.extension().is_some_and(|e| e == "toml"),
            "there is no recipe {name}: the ones that come with drophammer are {}; others are files that end in .toml",
            Self::names().join(", ")
        );
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("reading the recipe {}", path.display()))
    }

    fn ours(name: &str) -> Option<Result<Self>> {
        let (_, text) = OURS.iter().find(|(ours, _)| *ours == name)?;
        Some(Self::parse(text).with_context(|| format!("reading the recipe {name}")))
    }

    pub fn names() -> [&'static str; 4] {
        OURS.map(|(name, _)| name)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let written: Written = toml::from_str(text)?;
        let recipe = match &written.base {
            None => written.alone()?,
            Some(base) => {
                let on = Self::ours(base).with_context(|| {
                    format!("there is no recipe {base} to build on: there are {}", Self::names().join(", "))
                })?;
                written.on(on?)?
            }
        };
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

impl Written {
    fn alone(self) -> Result<Recipe> {
        let missing = |what| format!("it has no {what}, and no base to have it from");
        Ok(Recipe {
            name: self.name,
            suite: self.suite.with_context(|| missing("suite"))?,
            cmdline: self.cmdline.with_context(|| missing("cmdline"))?,
            make: self.make.with_context(|| missing("[make]"))?,
            dirs: self.dirs,
            files: self.files,
            links: self.links,
        })
    }

    fn on(self, mut base: Recipe) -> Result<Recipe> {
        let make = match (base.make, self.make) {
            (make, None) => make,
            (
                Make::Mmdebstrap { mut packages, mut dpkg, mut run },
                Some(Make::Mmdebstrap { packages: more, dpkg: more_dpkg, run: more_run }),
            ) => {
                packages.extend(more);
                dpkg.extend(more_dpkg);
                run.extend(more_run);
                Make::Mmdebstrap { packages, dpkg, run }
            }
            (Make::Packages { .. } | Make::Mmdebstrap { .. }, Some(_)) => bail!(
                "it adds a [make] to that of {}, which is only possible where both are `from = \"mmdebstrap\"`",
                base.name
            ),
        };
        // A path is one thing: what is put there now is in place of whatever was.
        for path in self.dirs.keys().chain(self.files.keys()).chain(self.links.keys()) {
            base.dirs.remove(path);
            base.files.remove(path);
            base.links.remove(path);
        }
        base.dirs.extend(self.dirs);
        base.files.extend(self.files);
        base.links.extend(self.links);
        Ok(Recipe {
            name: self.name,
            suite: self.suite.unwrap_or(base.suite),
            cmdline: self.cmdline.unwrap_or(base.cmdline),
            make,
            ..base
        })
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
    fn what_builds_on_another_has_all_of_it() -> Result<()> {
        let base = Recipe::load("debian-12")?;
        let text = "name = \"mine\"\nbase = \"debian-12\"\ncmdline = \"quiet\"\n\
                    [make]\nfrom = \"mmdebstrap\"\npackages = [\"vim-tiny\"]\nrun = [\"true\"]\n\
                    [files.\"/etc/default/grub\"]\ntext = \"mine\"\n[dirs]\n\"/srv/x\" = \"0700\"\n";
        let recipe = Recipe::parse(text)?;
        let (Make::Mmdebstrap { packages, dpkg, run }, Make::Mmdebstrap { packages: theirs, dpkg: kept, run: first }) =
            (&recipe.make, &base.make)
        else {
            bail!("of another kind")
        };
        assert_eq!(packages, &[theirs.clone(), vec!["vim-tiny".into()]].concat());
        assert_eq!(run, &[first.clone(), vec!["true".into()]].concat());
        assert_eq!(dpkg, kept);
        assert_eq!((recipe.name.as_str(), recipe.cmdline.as_str(), &recipe.suite), ("mine", "quiet", &base.suite));
        assert_eq!(recipe.files["/etc/default/grub"].text, "mine");
        assert_eq!((recipe.files.len(), recipe.dirs.len()), (base.files.len(), base.dirs.len() + 1));

        let link = "name = \"mine\"\nbase = \"debian-12\"\n[links]\n\"/etc/default/grub\" = \"/dev/null\"\n";
        assert!(!Recipe::parse(link)?.files.contains_key("/etc/default/grub"), "one thing at one place");
        for (name, text, want) in [
            ("nothing to build on", "name = \"x\"\nbase = \"none\"", "there is no recipe none to build on"),
            ("neither", "name = \"x\"\nsuite = \"bookworm\"\ncmdline = \"\"", "it has no [make]"),
            (
                "another kind",
                "name = \"x\"\nbase = \"tiny\"\n[make]\nfrom = \"mmdebstrap\"\npackages = []",
                "adds a [make] to that of tiny",
            ),
        ] {
            let said = Recipe::parse(text).expect_err(name).to_string();
            assert!(said.contains(want), "{name}: {said}");
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
