//! The two questions asked of ELF files: which libraries a program needs, and what a kernel module says about itself.
//! Nothing is executed, so the files may be for another machine.

use anyhow::{Context as _, Result, bail, ensure};
use object::elf::{DT_NEEDED, FileHeader64, SHT_DYNAMIC};
use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _, SectionHeader as _};
use object::{Endianness, Object as _, ObjectSection as _};

/// What the dynamic loader reads before it starts a program or library.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Linkage {
    pub(crate) interpreter: Option<String>,
    pub(crate) needed: Vec<String>,
}

pub(crate) fn linkage(bytes: &[u8]) -> Result<Linkage> {
    let header = FileHeader64::<Endianness>::parse(bytes).context("reading the ELF header")?;
    let endian = header.endian().context("reading the ELF header")?;
    let mut linkage = Linkage::default();
    for segment in header.program_headers(endian, bytes).context("reading the program headers")? {
        if let Some(path) = segment.interpreter(endian, bytes).context("reading the interpreter's path")? {
            linkage.interpreter = Some(text(path, "interpreter")?);
        }
    }
    let sections = header.sections(endian, bytes).context("reading the section headers")?;
    for section in sections.iter().filter(|section| section.sh_type(endian) == SHT_DYNAMIC) {
        let Some((entries, strings)) = section.dynamic(endian, bytes).context("reading the dynamic section")? else {
            continue;
        };
        let strings = sections.strings(endian, bytes, strings).context("reading the dynamic strings")?;
        for entry in entries.iter().filter(|entry| entry.tag(endian) == DT_NEEDED) {
            let name = entry.string(endian, strings).context("reading a needed library's name")?;
            linkage.needed.push(text(name, "needed library")?);
        }
    }
    Ok(linkage)
}

/// Refuses what needs a dynamic loader: in an initramfs, `/init` starts before there is anything else.
pub(crate) fn require_static(bytes: &[u8]) -> Result<()> {
    let Linkage { interpreter, needed } = linkage(bytes)?;
    ensure!(
        interpreter.is_none() && needed.is_empty(),
        "it is linked dynamically (it wants {}); build it for x86_64-unknown-linux-musl",
        interpreter.into_iter().chain(needed).collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// The `.modinfo` section of a kernel module: `key=value` pairs, in order, keys repeated.
pub(crate) fn modinfo(bytes: &[u8]) -> Result<Vec<(String, String)>> {
    let file = ElfFile64::<Endianness>::parse(bytes).context("reading the ELF header")?;
    let Some(section) = file.section_by_name(".modinfo") else { bail!("it has no .modinfo section") };
    let data = section.data().context("reading the .modinfo section")?;
    Ok(pairs(data))
}

/// NUL-separated `key=value` pairs, the form of `.modinfo` and of `modules.builtin.modinfo`.
pub(crate) fn pairs(data: &[u8]) -> Vec<(String, String)> {
    data.split(|&byte| byte == 0)
        .filter_map(|pair| String::from_utf8_lossy(pair).split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect()
}

fn text(bytes: &[u8], what: &str) -> Result<String> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("reading the {what}'s name"))?;
    Ok(text.to_owned())
}

/// Any bytes as a program or a kernel module: no more comes out than was in it.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    if let Ok(linkage) = linkage(bytes) {
        assert_eq!(require_static(bytes).is_ok(), linkage == Linkage::default());
        assert!(linkage.interpreter.iter().chain(&linkage.needed).all(|name| name.len() < bytes.len()));
    }
    if let Ok(pairs) = modinfo(bytes) {
        let module = crate::modules::describe("a.ko", &pairs);
        assert!(module.depends.iter().all(|name| !name.is_empty() && !name.contains('-')), "{module:?}");
    }
    // A byte that isn't UTF-8 becomes three.
    assert!(pairs(bytes).iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() <= 3 * bytes.len());
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest ELF file that holds a `.modinfo` section, which makes it look like a module, and like a static program.
    pub(crate) fn module_file(modinfo: &[u8]) -> Vec<u8> {
        const HEADER: usize = 64;
        const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
        let sections_at = (HEADER + NAMES.len() + modinfo.len()).next_multiple_of(8);
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        let put = |file: &mut Vec<u8>, value: usize, size: usize| {
            file.extend_from_slice(&(value as u64).to_le_bytes()[..size]);
        };
        // type, machine, version, entry, program headers, section headers, flags, sizes and counts
        for (value, size) in [
            (1, 2),
            (62, 2),
            (1, 4),
            (0, 8),
            (0, 8),
            (sections_at, 8),
            (0, 4),
            (64, 2),
            (0, 2),
            (0, 2),
            (64, 2),
            (3, 2),
            (2, 2),
        ] {
            put(&mut file, value, size);
        }
        file.extend_from_slice(NAMES);
        file.extend_from_slice(modinfo);
        file.resize(sections_at, 0);
        for (name, kind, at, size) in
            [(0, 0, 0, 0), (1, 1, HEADER + NAMES.len(), modinfo.len()), (10, 3, HEADER, NAMES.len())]
        {
            for (value, size) in
                [(name, 4), (kind, 4), (0, 8), (0, 8), (at, 8), (size, 8), (0, 4), (0, 4), (1, 8), (0, 8)]
            {
                put(&mut file, value, size);
            }
        }
        file
    }

    #[test]
    fn a_module_says_what_it_is() {
        let file = module_file(b"depends=a,b\0name=c\0");
        let read = modinfo(&file).expect("a module");
        assert_eq!(read, [("depends", "a,b"), ("name", "c")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        require_static(&file).expect("nothing needed");
    }

    #[test]
    fn this_test_program_needs_its_loader_and_libc() {
        let own = std::fs::read(std::env::current_exe().expect("own path")).expect("own bytes");
        let linkage = linkage(&own).expect("an ELF file");
        let interpreter = linkage.interpreter.expect("tests are linked dynamically");
        assert!(interpreter.starts_with("/lib") && interpreter.contains("ld-"), "{interpreter}");
        assert!(linkage.needed.iter().any(|name| name.starts_with("libc.")), "{:?}", linkage.needed);
        assert!(require_static(&own).is_err(), "which makes it no /init");
    }

    #[test]
    fn pairs_keep_order_and_repetition() {
        let read = pairs(b"alias=pci:a\0\0alias=pci:b=c\0junk\0name=x\0");
        let expected = [("alias", "pci:a"), ("alias", "pci:b=c"), ("name", "x")];
        assert_eq!(read, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), magic: bool) {
            if magic && bytes.len() >= 7 {
                bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
            }
            let _ = linkage(&bytes);
            let _ = modinfo(&bytes);
            let _ = pairs(&bytes);
        }
    }
}
