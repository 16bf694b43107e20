//! Kernel modules: which ones a set needs, and the two tables that modprobe reads. What depmod would do, for a handful
//! of modules and without needing kmod on the build host.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// What a module says about itself in its `.modinfo` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Module {
    /// Path below `lib/modules/<version>`.
    pub(crate) path: String,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// All modules of the tree at `lib/modules/<version>` by name, and the names that the kernel has built in.
pub(crate) fn read(dir: &Path) -> Result<(BTreeMap<String, Module>, Vec<String>)> {
    let lines = |file: &str| {
        let path = dir.join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let builtin = lines("modules.builtin")?.lines().map(name_of).collect();
    let mut modules = BTreeMap::new();
    // A kernel package lists what it brings in the order in which it was linked.
    for path in lines("modules.order")?.lines() {
        let file = dir.join(path);
        let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        modules.insert(name_of(path), Module { path: path.to_owned(), ..modinfo(&bytes) });
    }
    Ok((modules, builtin))
}

/// `wanted` with all that they need, each after what it depends on.
pub(crate) fn closure<'a>(
    wanted: &[String],
    modules: &'a BTreeMap<String, Module>,
    builtin: &[String],
) -> Result<Vec<&'a Module>> {
    let mut order = Vec::new();
    for name in wanted {
        visit(name, modules, builtin, &mut order, 0)?;
    }
    Ok(order)
}

fn visit<'a>(
    name: &str,
    modules: &'a BTreeMap<String, Module>,
    builtin: &[String],
    order: &mut Vec<&'a Module>,
    depth: usize,
) -> Result<()> {
    let name = name.replace('-', "_");
    let Some(module) = modules.get(&name) else {
        if builtin.contains(&name) {
            return Ok(());
        }
        bail!("the kernel has no module {name}");
    };
    if depth > modules.len() {
        bail!("the kernel's module {name} depends on itself");
    }
    if !order.iter().any(|m| m.path == module.path) {
        for dependency in &module.depends {
            visit(dependency, modules, builtin, order, depth + 1)?;
        }
        order.push(module);
    }
    Ok(())
}

/// modules.dep: each module with all that it needs, what is to be loaded first standing last.
pub(crate) fn dep_table(order: &[&Module], modules: &BTreeMap<String, Module>, builtin: &[String]) -> Result<String> {
    let mut table = String::new();
    for module in order {
        let mut needs = closure(&module.depends, modules, builtin)?;
        needs.reverse();
        table.push_str(&module.path);
        table.push(':');
        for need in needs {
            table.push(' ');
            table.push_str(&need.path);
        }
        table.push('\n');
    }
    Ok(table)
}

/// modules.alias: which module a device's modalias asks for.
pub(crate) fn alias_table(order: &[&Module]) -> String {
    let mut table = String::new();
    for module in order {
        for alias in &module.aliases {
            table.push_str(&format!("alias {alias} {}\n", name_of(&module.path)));
        }
    }
    table
}

/// The kernel treats `-` and `_` in module names as the same.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// The section is a run of `key=value` strings, each closed by a zero byte; nothing else in a module looks like these
/// two keys between zeros, so its section headers needn't be read.
fn modinfo(bytes: &[u8]) -> Module {
    let mut module = Module::default();
    for string in bytes.split(|b| *b == 0) {
        let Ok(string) = std::str::from_utf8(string) else { continue };
        if let Some(depends) = string.strip_prefix("depends=") {
            module.depends = depends.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        } else if let Some(alias) = string.strip_prefix("alias=")
            && !alias.contains(char::is_whitespace)
        {
            module.aliases.push(alias.to_owned());
        }
    }
    module
}

/// A kernel module, or anything else.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    let module = modinfo(bytes);
    assert!(module.depends.iter().all(|name| !name.is_empty() && !name.contains(',')), "{module:?}");
    assert!(module.aliases.iter().all(|alias| !alias.contains(char::is_whitespace)), "{module:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(path: &str, depends: &[&str]) -> (String, Module) {
        let depends = depends.iter().map(|d| (*d).to_owned()).collect();
        (name_of(path), Module { path: path.into(), depends, aliases: vec![format!("virtio:{path}*")] })
    }

    #[test]
    fn a_set_is_closed_in_loading_order() {
        let modules = BTreeMap::from([
            module("net/failover.ko", &[]),
            module("net/net_failover.ko", &["failover"]),
            module("net/virtio_net.ko", &["net_failover"]),
            module("char/virtio-rng.ko", &["ext4"]),
            module("loop/a.ko", &["b"]),
            module("loop/b.ko", &["a"]),
            module("lost.ko", &["gone"]),
        ]);
        let builtin = ["ext4".to_owned()];
        let chain = vec!["net/failover.ko", "net/net_failover.ko", "net/virtio_net.ko"];
        for (name, wanted, want) in [
            ("a chain", vec!["virtio_net"], Some(chain.clone())),
            ("each once", vec!["virtio_net", "failover"], Some(chain)),
            ("a dash is an underscore", vec!["virtio-rng"], Some(vec!["char/virtio-rng.ko"])),
            ("built in", vec!["ext4"], Some(vec![])),
            ("unknown", vec!["nonesuch"], None),
            ("unknown dependency", vec!["lost"], None),
            ("a circle", vec!["a"], None),
        ] {
            let wanted: Vec<_> = wanted.into_iter().map(str::to_owned).collect();
            let got = closure(&wanted, &modules, &builtin).ok();
            assert_eq!(got.map(|order| order.iter().map(|m| m.path.as_str()).collect::<Vec<_>>()), want, "{name}");
        }
    }

    #[test]
    fn tables_are_as_depmod_writes_them() -> Result<()> {
        let modules = BTreeMap::from([
            module("net/failover.ko", &[]),
            module("net/net_failover.ko", &["failover"]),
            module("net/virtio_net.ko", &["net_failover"]),
        ]);
        let order = closure(&["virtio_net".to_owned()], &modules, &[])?;
        assert_eq!(
            dep_table(&order, &modules, &[])?,
            "net/failover.ko:\nnet/net_failover.ko: net/failover.ko\n\
             net/virtio_net.ko: net/net_failover.ko net/failover.ko\n"
        );
        assert_eq!(alias_table(&order[2..]), "alias virtio:net/virtio_net.ko* virtio_net\n");
        Ok(())
    }

    #[test]
    fn modinfo_is_found_in_a_module() {
        let bytes = b"\x7fELF\x02\0\0\xff\0license=GPL\0depends=net_failover,virtio_ring\0alias=virtio:d00000001v*\0\
            alias=two words\0intree=Y\0";
        assert_eq!(
            modinfo(bytes),
            Module {
                path: String::new(),
                depends: vec!["net_failover".into(), "virtio_ring".into()],
                aliases: vec!["virtio:d00000001v*".into()],
            }
        );
        assert_eq!(modinfo(b""), Module::default());
    }
}
