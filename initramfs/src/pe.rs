//! Programs for UEFI firmware (Microsoft's PE format): adding sections to one, and putting a signature on one.
//!
//! Pure and total: any bytes give an image or a sentence that says what is wrong with them.

use std::mem::{offset_of, size_of};

use anyhow::{Context as _, Result, ensure};
use object::pe::{
    IMAGE_DIRECTORY_ENTRY_SECURITY, IMAGE_FILE_MACHINE_AMD64, IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_READ,
    IMAGE_SIZEOF_SHORT_NAME, ImageDataDirectory, ImageDosHeader, ImageNtHeaders64, ImageOptionalHeader64,
    ImageSectionHeader,
};
use object::pod::{bytes_of, bytes_of_slice};
use object::read::pe::ImageNtHeaders as _;
use object::{LittleEndian as LE, U16, U32};
use sha2::{Digest as _, Sha256};

/// Sections begin at pages of their own, whatever smaller alignment the image has: firmware protects memory by the page.
const PAGE: u64 = 4096;

/// Certificates begin and end at multiples of this.
const CERTIFICATE_ALIGNMENT: usize = 8;
/// `WIN_CERT_REVISION_2_0` and `WIN_CERT_TYPE_PKCS_SIGNED_DATA`.
const CERTIFICATE_KIND: [u8; 4] = [0x00, 0x02, 0x02, 0x00];

/// Read-only data that the loader puts into memory, for the program to find by its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Section<'a> {
    pub(crate) name: &'static str,
    pub(crate) content: &'a [u8],
}

/// The headers of an image, copied out of it.
#[derive(Debug)]
struct Headers {
    at: usize,
    nt: ImageNtHeaders64,
    security: ImageDataDirectory,
    sections_at: usize,
    sections: Vec<ImageSectionHeader>,
    /// Where the bytes of the last section end.
    end: usize,
}

impl Headers {
    /// Sections have to follow the headers and each other without a gap. Then what firmware hashes (headers, sections in
    /// their order, what is behind them) is simply the file from its beginning to its end.
    fn read(image: &[u8]) -> Result<Self> {
        let dos = ImageDosHeader::parse(image).context("reading the DOS header")?;
        let mut offset = u64::from(dos.nt_headers_offset());
        let at = usize::try_from(offset)?;
        let (nt, directories) = ImageNtHeaders64::parse(image, &mut offset).context("reading the PE headers")?;
        let sections = nt.sections(image, offset).context("reading the section headers")?;
        let security = directories.iter().nth(IMAGE_DIRECTORY_ENTRY_SECURITY);
        let security = *security.context("its headers have no place for a signature")?;
        ensure!(nt.file_header.machine.get(LE) == IMAGE_FILE_MACHINE_AMD64, "it isn't for x86-64");
        for (name, alignment) in [
            ("file", nt.optional_header.file_alignment.get(LE)),
            ("section", nt.optional_header.section_alignment.get(LE)),
        ] {
            ensure!(
                alignment.is_power_of_two() && alignment as usize >= CERTIFICATE_ALIGNMENT,
                "its {name} alignment is {alignment}"
            );
        }
        let sections_at = usize::try_from(offset)?;
        let sections: Vec<ImageSectionHeader> = sections.iter().copied().collect();
        let mut end = u64::from(nt.optional_header.size_of_headers.get(LE));
        for section in sections.iter().filter(|section| section.size_of_raw_data.get(LE) > 0) {
            let (from, size) = (section.pointer_to_raw_data.get(LE), section.size_of_raw_data.get(LE));
            ensure!(u64::from(from) == end, "its sections don't follow each other in the file");
            end += u64::from(size);
        }
        ensure!(end <= image.len() as u64, "it is cut short");
        Ok(Self { at, nt: *nt, security, sections_at, sections, end: usize::try_from(end)? })
    }

    /// Puts everything back to where it was read, with as many sections as there are now.
    fn write(&mut self, image: &mut [u8]) -> Result<()> {
        let count = u16::try_from(self.sections.len()).context("more sections than an image can have")?;
        self.nt.file_header.number_of_sections = U16::new(LE, count);
        put(image, self.at, bytes_of(&self.nt))?;
        put(image, self.security_at(), bytes_of(&self.security))?;
        put(image, self.sections_at, bytes_of_slice(&self.sections))
    }

    fn security_at(&self) -> usize {
        self.at + size_of::<ImageNtHeaders64>() + IMAGE_DIRECTORY_ENTRY_SECURITY * size_of::<ImageDataDirectory>()
    }

    fn checksum_at(&self) -> usize {
        self.at + offset_of!(ImageNtHeaders64, optional_header) + offset_of!(ImageOptionalHeader64, check_sum)
    }

    fn is_signed(&self) -> bool {
        self.security.size.get(LE) > 0
    }
}

/// The image with more sections behind those that it has.
pub(crate) fn add_sections(image: &[u8], added: &[Section<'_>]) -> Result<Vec<u8>> {
    let mut headers = Headers::read(image)?;
    ensure!(!headers.is_signed(), "it is signed, and a section more would break the signature");
    // Debian's stub of 2023 still has symbols behind its sections. They mean nothing in a program.
    let symbols = &mut headers.nt.file_header;
    ensure!(
        headers.end == image.len() || symbols.pointer_to_symbol_table.get(LE) as usize == headers.end,
        "it has something behind its last section"
    );
    symbols.pointer_to_symbol_table = U32::new(LE, 0);
    symbols.number_of_symbols = U32::new(LE, 0);

    let optional = &headers.nt.optional_header;
    let in_file = optional.file_alignment.get(LE) as usize;
    let in_memory = u64::from(optional.section_alignment.get(LE));
    let mut bytes = image.get(..headers.end).unwrap_or_default().to_vec();
    ensure!(bytes.len().is_multiple_of(in_file), "its last section doesn't end where another one could begin");
    let room_ends = optional.size_of_headers.get(LE) as usize;
    let room_begins = headers.sections_at + headers.sections.len() * size_of::<ImageSectionHeader>();
    let room = room_begins..room_begins + added.len() * size_of::<ImageSectionHeader>();
    ensure!(
        room.end <= room_ends && bytes.get(room).is_some_and(|room| room.iter().all(|byte| *byte == 0)),
        "its headers have no room for {} more sections",
        added.len()
    );

    let ends = headers.sections.iter().map(|s| {
        u64::from(s.virtual_address.get(LE)) + u64::from(s.virtual_size.get(LE).max(s.size_of_raw_data.get(LE)))
    });
    let mut address = ends.chain([u64::from(optional.size_of_image.get(LE))]).max().unwrap_or_default();
    let mut data = u64::from(optional.size_of_initialized_data.get(LE));
    for Section { name, content } in added {
        let context = || format!("adding the section {name}");
        let short_name = section_name(name).with_context(context)?;
        ensure!(headers.sections.iter().all(|other| other.name != short_name), "it has a section {name} already");
        address = address.next_multiple_of(in_memory.max(PAGE));
        let raw = content.len().next_multiple_of(in_file);
        headers.sections.push(ImageSectionHeader {
            name: short_name,
            virtual_size: small(content.len() as u64).with_context(context)?,
            virtual_address: small(address).with_context(context)?,
            size_of_raw_data: small(raw as u64).with_context(context)?,
            pointer_to_raw_data: small(bytes.len() as u64).with_context(context)?,
            pointer_to_relocations: U32::new(LE, 0),
            pointer_to_linenumbers: U32::new(LE, 0),
            number_of_relocations: U16::new(LE, 0),
            number_of_linenumbers: U16::new(LE, 0),
            characteristics: U32::new(LE, IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ),
        });
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len() + raw - content.len(), 0);
        address += content.len() as u64;
        data += raw as u64;
    }
    let optional = &mut headers.nt.optional_header;
    optional.size_of_image = small(address.next_multiple_of(in_memory))?;
    optional.size_of_initialized_data = small(data)?;
    // Firmware doesn't look at it, and zero says that there is none.
    optional.check_sum = U32::new(LE, 0);
    headers.write(&mut bytes)?;
    Ok(bytes)
}

/// The image with the signature that `sign` makes from its digest (Microsoft's "Windows Authenticode Portable Executable
/// Signature Format"): SHA-256 over everything but the checksum and the place of the signature.
pub(crate) fn sign(image: &[u8], sign: impl FnOnce([u8; 32]) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let mut headers = Headers::read(image)?;
    ensure!(!headers.is_signed(), "it is signed already");
    ensure!(headers.end == image.len(), "it has something behind its last section");
    ensure!(image.len().is_multiple_of(CERTIFICATE_ALIGNMENT), "its length is {}", image.len());
    let (checksum, security) = (headers.checksum_at(), headers.security_at());
    let mut hash = Sha256::new();
    for part in
        [0..checksum, checksum + size_of::<u32>()..security, security + size_of::<ImageDataDirectory>()..image.len()]
    {
        hash.update(image.get(part).context("it is cut short")?);
    }
    let signature = sign(hash.finalize().into())?;

    let header_length = size_of::<u32>() + CERTIFICATE_KIND.len();
    let length = (header_length + signature.len()).next_multiple_of(CERTIFICATE_ALIGNMENT);
    headers.security = ImageDataDirectory { virtual_address: small(image.len() as u64)?, size: small(length as u64)? };
    let mut bytes = image.to_vec();
    headers.write(&mut bytes)?;
    bytes.extend_from_slice(bytes_of(&headers.security.size));
    bytes.extend(CERTIFICATE_KIND);
    bytes.extend(signature);
    bytes.resize(image.len() + length, 0);
    Ok(bytes)
}

fn section_name(name: &str) -> Result<[u8; IMAGE_SIZEOF_SHORT_NAME]> {
    let mut padded = [0; IMAGE_SIZEOF_SHORT_NAME];
    padded.get_mut(..name.len()).context("its name is too long")?.copy_from_slice(name.as_bytes());
    Ok(padded)
}

fn small(value: u64) -> Result<U32<LE>> {
    Ok(U32::new(LE, u32::try_from(value).context("an image is smaller than 4 GiB")?))
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) -> Result<()> {
    let place = at.checked_add(bytes.len()).and_then(|end| image.get_mut(at..end));
    place.context("its headers are cut short")?.copy_from_slice(bytes);
    Ok(())
}

/// Any bytes as a program for firmware: what comes out is one that has what was put into it, and can be signed once.
#[cfg(fuzzing)]
pub(crate) fn fuzz(bytes: &[u8]) {
    use object::{Object as _, ObjectSection as _};
    let _ = sign(bytes, |_| Ok(vec![1]));
    let added = Section { name: ".cmdline", content: b"quiet" };
    let Ok(image) = add_sections(bytes, &[added]) else { return };
    let file = object::read::pe::PeFile64::parse(&*image).expect("an image");
    let found = file.section_by_name(added.name).expect("added").data().expect("data");
    assert!(found.starts_with(added.content));
    let signed = sign(&image, |_| Ok(vec![1; 9])).expect("signable");
    assert!(Headers::read(&signed).expect("an image").is_signed() && sign(&signed, |_| Ok(vec![1])).is_err());
}

#[cfg(test)]
pub(crate) mod tests {
    use object::pe::{IMAGE_DOS_SIGNATURE, IMAGE_NT_OPTIONAL_HDR64_MAGIC, IMAGE_NT_SIGNATURE};
    use object::read::pe::PeFile64;
    use object::{Object as _, ObjectSection as _};
    use proptest::prelude::*;

    use super::*;

    const HEADERS: u32 = 0x400;
    const CODE: [u8; 0x200] = [0xc3; 0x200];

    /// A program that returns at once, with room for sections and symbols behind its code, as systemd's stub has them.
    pub(crate) fn program() -> Vec<u8> {
        let mut bytes = vec![0; HEADERS as usize];
        let at = 0x80;
        let number = |n: u32| n.to_le_bytes();
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &IMAGE_DOS_SIGNATURE.to_le_bytes());
        put(0x3c, &number(0x80));
        put(at, &number(IMAGE_NT_SIGNATURE));
        // x86-64, one section, symbols behind it, optional header of 240 bytes, executable.
        put(at + 4, &[0x64, 0x86, 1, 0]);
        put(at + 12, &number(HEADERS + 0x200));
        put(at + 16, &number(1));
        put(at + 20, &[240, 0, 2, 0]);
        let optional = at + 24;
        put(optional, &IMAGE_NT_OPTIONAL_HDR64_MAGIC.to_le_bytes());
        // Entry point and alignments; sizes of image and headers; a checksum; EFI application; sixteen directories.
        for (offset, value) in [
            (16, 0x1000),
            (32, 0x200),
            (36, 0x200),
            (56, 0x1300),
            (60, HEADERS),
            (64, 0x0bad_cafe),
            (68, 10),
            (108, 16),
        ] {
            put(optional + offset, &number(value));
        }
        let section = optional + 240;
        put(section, b".text");
        for (offset, value) in [(8, 0x123), (12, 0x1000), (16, 0x200), (20, HEADERS), (36, 0x6000_0020)] {
            put(section + offset, &number(value));
        }
        bytes.extend(CODE);
        bytes.extend(b"eighteen bytes each");
        bytes
    }

    const ADDED: [Section<'_>; 2] =
        [Section { name: ".cmdline", content: b"quiet" }, Section { name: ".linux", content: &[7; 5000] }];

    #[test]
    fn sections_are_found_by_name_and_never_overlap() {
        let image = add_sections(&program(), &ADDED).expect("an image");
        let file = PeFile64::parse(&*image).expect("an image");
        let places: Vec<_> = file.sections().map(|s| (s.name().expect("a name").to_owned(), s.address())).collect();
        let want = [(".text", 0x1000), (".cmdline", 0x2000), (".linux", 0x3000)].map(|(n, a)| (n.to_owned(), a));
        assert_eq!(places, want);
        for section in ADDED {
            let found = file.section_by_name(section.name).expect(section.name);
            assert_eq!(found.data().expect("data")[..section.content.len()], *section.content, "{}", section.name);
        }
        let headers = Headers::read(&image).expect("an image");
        assert_eq!(headers.end, image.len(), "the symbols are gone");
        assert_eq!(headers.nt.optional_header.size_of_image.get(LE), 0x3000 + 5120);
        assert_eq!(headers.nt.optional_header.size_of_initialized_data.get(LE), 0x200 + 5120);
        assert_eq!(headers.nt.file_header.pointer_to_symbol_table.get(LE), 0);
        assert_eq!(image, add_sections(&program(), &ADDED).expect("an image"), "the same again");
    }

    #[test]
    fn what_cannot_be_added_is_refused_in_words() {
        let with = |at: usize, value: &[u8]| {
            let mut bytes = program();
            bytes[at..at + value.len()].copy_from_slice(value);
            bytes
        };
        let signed = sign(&add_sections(&program(), &ADDED).expect("an image"), |_| Ok(vec![1])).expect("signed");
        let many: Vec<_> = (0..20).map(|_| ADDED[0]).collect();
        let code = Section { name: ".text", content: b"x" };
        let long = Section { name: ".long-name", content: b"x" };
        for (name, image, added, want) in [
            ("not a program", b"#!/bin/sh".to_vec(), &ADDED[..], "reading the DOS header"),
            ("for ARM", with(0x84, &[0x64, 0xaa]), &ADDED, "isn't for x86-64"),
            ("no alignment", with(0x80 + 24 + 36, &[0; 4]), &ADDED, "its file alignment is 0"),
            ("cut short", program()[..0x500].to_vec(), &ADDED, "cut short"),
            ("a gap", with(0x80 + 24 + 240 + 20, &0x600_u32.to_le_bytes()), &ADDED, "don't follow each other"),
            ("something behind", with(0x80 + 12, &[0; 4]), &ADDED, "something behind its last section"),
            ("no room", program(), &many, "no room for 20 more sections"),
            ("something in the way", with(0x80 + 24 + 240 + 40, b"x"), &ADDED, "no room for 2 more sections"),
            ("there already", program(), &[code], "has a section .text already"),
            ("twice", program(), &[ADDED[0], ADDED[0]], "has a section .cmdline already"),
            ("a long name", program(), &[long], "its name is too long"),
            ("signed", signed, &ADDED, "it is signed"),
        ] {
            let error = add_sections(&image, added).expect_err(name);
            assert!(format!("{error:#}").contains(want), "{name}: {error:#}");
        }
    }

    #[test]
    fn a_signature_covers_everything_but_its_own_place() {
        let image = add_sections(&program(), &ADDED).expect("an image");
        let digest = |image: &[u8]| {
            let mut seen = None;
            let signed = sign(image, |digest| {
                seen = Some(digest);
                Ok(vec![1, 2, 3])
            });
            (seen.expect("asked for"), signed.expect("signed"))
        };
        let (before, signed) = digest(&image);
        let table = &signed[image.len()..];
        assert_eq!(table, [16, 0, 0, 0, 0, 2, 2, 0, 1, 2, 3, 0, 0, 0, 0, 0]);
        assert!(sign(&signed, |_| Ok(vec![1])).is_err(), "not twice");
        let headers = Headers::read(&image).expect("an image");
        for (name, at, counts) in [
            ("the DOS header", 2, true),
            ("the checksum", headers.checksum_at(), false),
            ("behind the checksum", headers.checksum_at() + 4, true),
            ("before the signature's place", headers.security_at() - 1, true),
            ("the last byte", image.len() - 1, true),
        ] {
            let mut changed = image.clone();
            changed[at] ^= 1;
            assert_eq!(digest(&changed).0 != before, counts, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_image_or_a_sentence(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = add_sections(&bytes, &ADDED);
            let _ = sign(&bytes, |_| Ok(vec![1]));
        }

        /// Whatever is wrong with the headers: what comes out is an image that says what was put into it.
        #[test]
        fn damaged_headers_give_a_good_image_or_a_sentence(
            damage in prop::collection::vec((0..0x200_usize, any::<u8>()), 0..6),
            length in 0x100..0x700_usize,
        ) {
            let mut bytes = program();
            damage.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes.truncate(length);
            if let Ok(image) = add_sections(&bytes, &ADDED) {
                let file = PeFile64::parse(&*image).expect("an image");
                for section in ADDED {
                    let found = file.section_by_name(section.name).expect("added");
                    prop_assert_eq!(&found.data().expect("data")[..section.content.len()], section.content);
                }
                let signed = sign(&image, |_| Ok(vec![1; 9])).expect("signable");
                prop_assert!(Headers::read(&signed).expect("an image").is_signed());
            }
        }
    }
}
