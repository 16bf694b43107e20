//! Which kernel modules go into the initramfs, and the two index files the agent finds them by.
//!
//! The agent knows only `modules.alias` (device → module) and `modules.dep` (module → what to load before it). There is no
//! modprobe in the initramfs for the kernel to call, so soft dependencies and what the list adds are folded into those two.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};

/// The list that ships with drophammer.
pub const LIST: &str = include_str!("modules.list");

/// Which machines the modules are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// Virtual machines: small, quick to load over a lab network.
    Vm,
    /// Real servers, and everything in [`Set::Vm`].
    Metal,
}

impl FromStr for Set {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "vm" => Ok(Self::Vm),
            "metal" => Ok(Self::Metal),
            _ => bail!("{name:?} is no module set; there are \"vm\" and \"metal\""),
        }
    }
}

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    before: Vec<String>,
    with: Vec<String>,
}

/// What a module says about itself, with the path it has below `/lib/modules/VERSION`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) path: String,
    pub(crate) depends: Vec<String>,
    pub(crate) aliases: Vec<String>,
    pub(crate) softdep_before: Vec<String>,
    pub(crate) softdep_after: Vec<String>,
}

/// What a kernel package has under a module's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    Module(Module),
    Builtin,
    Absent,
}

/// The list closed over dependencies, and where its names were not modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Selection {
    pub(crate) modules: BTreeMap<String, Module>,
    pub(crate) builtin: Vec<String>,
    pub(crate) absent: Vec<String>,
    loaded_before: BTreeMap<String, BTreeSet<String>>,
    loaded_with: BTreeMap<String, BTreeSet<String>>,
}

/// The kernel treats `-` and `_` in module names as the same; files use either.
pub(crate) fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The lines of `set` in a list file.
pub(crate) fn parse_list(list: &str, set: Set) -> Result<Vec<Wanted>> {
    let mut section = None;
    let mut wanted: Vec<Wanted> = Vec::new();
    for (number, line) in (1..).zip(list.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        match line {
            "" => continue,
            "[vm]" => section = Some(Set::Vm),
            "[metal]" => section = Some(Set::Metal),
            _ => {
                let Some(section) = section else {
                    bail!("line {number} of the module list stands before the first section, [vm] or [metal]")
                };
                let entry = parse_entry(line).with_context(|| format!("reading line {number} of the module list"))?;
                ensure!(
                    wanted.iter().all(|other| other.name != entry.name),
                    "line {number} of the module list names {} a second time",
                    entry.name
                );
                if section <= set {
                    wanted.push(entry);
                }
            }
        }
    }
    Ok(wanted)
}

fn parse_entry(line: &str) -> Result<Wanted> {
    let mut words = line.split_whitespace();
    let name = words.next().map(canonical).unwrap_or_default();
    let sign = words.next();
    let others: Vec<String> = words.map(canonical).collect();
    for word in [&name].into_iter().chain(&others) {
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        ensure!(plain, "{word:?} is not a module name");
    }
    ensure!(sign.is_none() || !others.is_empty(), "{line:?} names nothing more");
    match sign {
        None => Ok(Wanted { name, before: Vec::new(), with: Vec::new() }),
        Some("<") => Ok(Wanted { name, before: others, with: Vec::new() }),
        Some(">") => Ok(Wanted { name, before: Vec::new(), with: others }),
        Some(_) => bail!("{line:?} is neither NAME, NAME < OTHERS nor NAME > OTHERS"),
    }
}

/// Reads a module's own description.
pub(crate) fn describe(path: &str, pairs: &[(String, String)]) -> Module {
    let mut module = Module { path: path.to_owned(), ..Module::default() };
    for (key, value) in pairs {
        match key.as_str() {
            "depends" => module.depends.extend(value.split(',').filter(|name| !name.is_empty()).map(canonical)),
            "alias" => module.aliases.push(value.clone()),
            "softdep" => {
                // The kernel's own notation: "pre: a b post: c"; some modules forget the word.
                let mut after = false;
                for word in value.split_whitespace() {
                    match word {
                        "pre:" => after = false,
                        "post:" => after = true,
                        name if after => module.softdep_after.push(canonical(name)),
                        name => module.softdep_before.push(canonical(name)),
                    }
                }
            }
            _ => {}
        }
    }
    module
}

/// Closes the list over what `find` knows. `builtin_aliases` are the names under which built-in code answers.
pub(crate) fn select(
    wanted: &[Wanted],
    builtin_aliases: &BTreeSet<String>,
    mut find: impl FnMut(&str) -> Result<Found>,
) -> Result<Selection> {
    let mut modules = BTreeMap::new();
    let (mut builtin, mut absent) = (BTreeSet::new(), BTreeSet::new());
    let listed = wanted.iter().flat_map(|w| [&w.name].into_iter().chain(&w.before).chain(&w.with));
    let mut open: Vec<String> = listed.cloned().collect();
    let listed: BTreeSet<String> = open.iter().cloned().collect();
    let mut soft = BTreeSet::new();
    while let Some(name) = open.pop() {
        if modules.contains_key(&name) || builtin.contains(&name) || absent.contains(&name) {
            continue;
        }
        match find(&name)? {
            Found::Module(module) => {
                open.extend(module.depends.iter().cloned());
                let softly = module.softdep_before.iter().chain(&module.softdep_after);
                for name in softly {
                    soft.insert(name.clone());
                    open.push(name.clone());
                }
                modules.insert(name, module);
            }
            Found::Builtin => {
                builtin.insert(name);
            }
            Found::Absent => {
                absent.insert(name);
            }
        }
    }
    for (name, module) in &modules {
        if let Some(missing) = module.depends.iter().find(|depend| absent.contains(*depend)) {
            bail!("the kernel package is broken: its module {name} depends on {missing}, which is not in it");
        }
    }

    let mut selection = Selection {
        builtin: builtin.intersection(&listed).cloned().collect(),
        absent: absent.intersection(&listed).cloned().collect(),
        loaded_before: BTreeMap::new(),
        loaded_with: BTreeMap::new(),
        modules,
    };
    for name in soft.intersection(&absent) {
        // A soft dependency may be an alias ("crypto-crc32c"); somebody in the list must answer to it.
        if !builtin_aliases.contains(name) && selection.provider(name).is_none() && !selection.absent.contains(name) {
            selection.absent.push(name.clone());
        }
    }
    selection.link(wanted)?;
    Ok(selection)
}

impl Selection {
    /// All modules in an order in which each comes after everything it needs.
    pub(crate) fn modules_dep(&self) -> Result<String> {
        let mut text = String::new();
        for (name, module) in &self.modules {
            let _ = write!(text, "{}:", module.path);
            // depmod's order: whoever reads the line from its end to its start loads everything in time.
            for other in self.load_order(name)?.iter().rev() {
                let _ = write!(text, " {}", self.modules[other].path);
            }
            text.push('\n');
        }
        Ok(text)
    }

    /// Device alias → module, also for modules that only ever follow another.
    pub(crate) fn modules_alias(&self) -> Result<String> {
        let mut lines = BTreeSet::new();
        for (name, module) in &self.modules {
            let before = self.load_order(name)?;
            let companions = before.iter().chain([name]).filter_map(|loaded| self.loaded_with.get(loaded)).flatten();
            for target in companions.chain([name]) {
                lines.extend(module.aliases.iter().map(|alias| format!("alias {alias} {target}\n")));
            }
        }
        Ok(lines.into_iter().collect())
    }

    /// What must be loaded before `name`, in that order.
    fn load_order(&self, name: &str) -> Result<Vec<String>> {
        let mut order = Vec::new();
        let mut path = Vec::new();
        self.visit(name, &mut path, &mut order)?;
        order.pop();
        Ok(order)
    }

    fn visit(&self, name: &str, path: &mut Vec<String>, order: &mut Vec<String>) -> Result<()> {
        if order.iter().any(|done| done == name) {
            return Ok(());
        }
        ensure!(!path.iter().any(|open| open == name), "modules wait for each other: {} -> {name}", path.join(" -> "));
        path.push(name.to_owned());
        for other in self.loaded_before.get(name).into_iter().flatten() {
            self.visit(other, path, order)?;
        }
        path.pop();
        order.push(name.to_owned());
        Ok(())
    }

    fn link(&mut self, wanted: &[Wanted]) -> Result<()> {
        let mut before: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut with: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (name, module) in &self.modules {
            let first = before.entry(name.clone()).or_default();
            first.extend(module.depends.iter().filter(|other| self.modules.contains_key(*other)).cloned());
            first.extend(module.softdep_before.iter().filter_map(|other| self.provider(other)));
            with.entry(name.clone()).or_default().extend(module.softdep_after.iter().filter_map(|o| self.provider(o)));
        }
        for line in wanted.iter().filter(|line| self.modules.contains_key(&line.name)) {
            let here = |others: &[String]| -> Vec<String> {
                others.iter().filter(|other| self.modules.contains_key(*other)).cloned().collect()
            };
            before.entry(line.name.clone()).or_default().extend(here(&line.before));
            with.entry(line.name.clone()).or_default().extend(here(&line.with));
        }
        self.loaded_before = before;
        self.loaded_with = with;
        for name in self.modules.keys() {
            self.load_order(name)?;
        }
        Ok(())
    }

    /// The module that a soft dependency means: by name, or by alias. Of several, the generic one, for it loads on every CPU.
    fn provider(&self, name: &str) -> Option<String> {
        if self.modules.contains_key(name) {
            return Some(name.to_owned());
        }
        let answers = |module: &Module| module.aliases.iter().any(|alias| canonical(alias) == name);
        let mut names = self.modules.iter().filter(|(_, module)| answers(module)).map(|(name, _)| name);
        let first = names.next()?;
        Some([first].into_iter().chain(names).find(|name| name.ends_with("generic")).unwrap_or(first).clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, pairs: &[(&str, &str)]) -> Found {
        let pairs: Vec<_> = pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        Found::Module(describe(path, &pairs))
    }

    /// A kernel in which every notation occurs once.
    fn find(name: &str) -> Result<Found> {
        Ok(match name {
            "ext4" => module("fs/ext4.ko", &[("depends", "jbd2,crc16"), ("softdep", "pre: crypto-crc32c")]),
            "jbd2" => module("fs/jbd2.ko", &[("depends", "crc16")]),
            "crc16" => module("lib/crc16.ko", &[]),
            "crc32c_generic" => module("crypto/crc32c_generic.ko", &[("alias", "crypto-crc32c")]),
            "crc32c_intel" => module("arch/crc32c-intel.ko", &[("alias", "crypto-crc32c"), ("alias", "cpu:type:x86*")]),
            "vfat" => module("fs/vfat.ko", &[("depends", "fat")]),
            "fat" => module("fs/fat.ko", &[("depends", "")]),
            "nls_cp437" => module("fs/nls_cp437.ko", &[]),
            "mlx4_core" => module("net/mlx4_core.ko", &[("alias", "pci:v000015B3d00001003*")]),
            "mlx4_en" => module("net/mlx4_en.ko", &[("depends", "mlx4_core")]),
            "ipmi_si" => module("ipmi/ipmi_si.ko", &[("depends", "ipmi_msghandler"), ("alias", "acpi*:IPI0001:*")]),
            "ipmi_msghandler" => module("ipmi/ipmi_msghandler.ko", &[("softdep", "post: ipmi_devintf")]),
            "ipmi_devintf" => module("ipmi/ipmi_devintf.ko", &[("depends", "ipmi_msghandler")]),
            "broken" => module("broken.ko", &[("depends", "nowhere")]),
            "hen" => module("hen.ko", &[("depends", "egg")]),
            "egg" => module("egg.ko", &[("depends", "hen")]),
            "wishful" => module("wishful.ko", &[("softdep", "crc32c_generic unheard-of")]),
            "nvme" => Found::Builtin,
            _ => Found::Absent,
        })
    }

    fn selected(list: &str) -> Result<Selection> {
        let builtin = BTreeSet::from(["crypto_built_in".to_owned()]);
        select(&parse_list(&format!("[vm]\n{list}"), Set::Vm)?, &builtin, find)
    }

    #[test]
    fn the_closure_has_all_that_is_needed_and_nothing_else() {
        for (case, list, expected) in [
            ("no dependencies", "crc16", &["crc16"][..]),
            ("transitive, shared", "ext4\ncrc32c_generic", &["crc16", "crc32c_generic", "ext4", "jbd2"]),
            ("by the list", "vfat < nls_cp437", &["fat", "nls_cp437", "vfat"]),
            ("companions", "mlx4_core > mlx4_en", &["mlx4_core", "mlx4_en"]),
            ("soft companions", "ipmi-si", &["ipmi_devintf", "ipmi_msghandler", "ipmi_si"]),
            ("built in and absent", "nvme\ncrc16\nfloppy", &["crc16"]),
        ] {
            let selection = selected(list).expect(case);
            let names: Vec<&str> = selection.modules.keys().map(String::as_str).collect();
            assert_eq!(names, expected, "{case}");
        }
    }

    #[test]
    fn names_that_are_no_modules_are_reported() {
        let selection = selected("nvme\nfloppy\nwishful\ncrc32c_generic").expect("a selection");
        assert_eq!(selection.builtin, ["nvme"]);
        assert_eq!(selection.absent, ["floppy", "unheard_of"]);
    }

    #[test]
    fn impossible_kernels_are_refused() {
        for (case, list, expected) in [
            ("missing dependency", "broken", "broken depends on nowhere"),
            ("circle", "hen", "wait for each other: egg -> hen -> egg"),
        ] {
            let error = selected(list).expect_err(case).to_string();
            assert!(error.contains(expected), "{case}: {error}");
        }
    }

    #[test]
    fn modules_dep_lists_everything_last_first() {
        let selection = selected("ext4\nvfat < nls_cp437\ncrc32c_intel\ncrc32c_generic").expect("a selection");
        let text = selection.modules_dep().expect("an order");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "lib/crc16.ko:",
                "crypto/crc32c_generic.ko:",
                "arch/crc32c-intel.ko:",
                "fs/ext4.ko: fs/jbd2.ko crypto/crc32c_generic.ko lib/crc16.ko",
                "fs/fat.ko:",
                "fs/jbd2.ko: lib/crc16.ko",
                "fs/nls_cp437.ko:",
                "fs/vfat.ko: fs/nls_cp437.ko fs/fat.ko",
            ]
        );
    }

    #[test]
    fn companions_answer_to_the_aliases_of_whatever_brings_their_partner() {
        let selection = selected("mlx4_core > mlx4_en\nipmi_si").expect("a selection");
        assert_eq!(
            selection.modules_alias().expect("an order"),
            "alias acpi*:IPI0001:* ipmi_devintf\n\
             alias acpi*:IPI0001:* ipmi_si\n\
             alias pci:v000015B3d00001003* mlx4_core\n\
             alias pci:v000015B3d00001003* mlx4_en\n"
        );
    }

    #[test]
    fn the_list_is_read_strictly() {
        for (case, list, expected) in [
            ("no section", "crc16", "before the first section"),
            ("twice", "[vm]\na-b\n[metal]\na_b", "names a_b a second time"),
            ("odd sign", "[vm]\na = b", "neither NAME"),
            ("nothing after the sign", "[vm]\na <", "names nothing more"),
            ("not a name", "[vm]\na.ko", "not a module name"),
        ] {
            let error = format!("{:#}", parse_list(list, Set::Metal).expect_err(case));
            assert!(error.contains(expected), "{case}: {error}");
        }
    }

    #[test]
    fn our_list_reads_and_metal_has_all_of_vm() {
        let vm = parse_list(LIST, Set::Vm).expect("the list");
        let metal = parse_list(LIST, Set::Metal).expect("the list");
        assert!(vm.iter().any(|wanted| wanted.name == "virtio_net"));
        assert!(vm.iter().all(|wanted| metal.contains(wanted)) && metal.len() > vm.len());
    }
}
