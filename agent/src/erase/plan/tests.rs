use Method::{
    AtaSanitizeBlock, AtaSanitizeCrypto, AtaSecurityErase, AtaSecurityEraseEnhanced, Discard, NvmeFormatCrypto,
    NvmeFormatUserData, NvmeSanitizeBlock, NvmeSanitizeCrypto, NvmeSanitizeOverwrite, OpalRevert, Overwrite,
    ScsiSanitizeBlock, WriteZeroes,
};
use proptest::prelude::*;

use super::*;

const ALL: Sanitize = Sanitize { crypto: true, block: true, overwrite: true };
const FREE: Opal = Opal { locked: false, owned: false, encrypts: true };
const LOCKED: Opal = Opal { locked: true, owned: true, encrypts: true };

fn drive(commands: Commands) -> Capabilities {
    Capabilities { commands, blocks: Blocks::default(), medium: Medium::Flash, opal: None }
}

fn nvme(nvme: Nvme) -> Capabilities {
    drive(Commands::Nvme(nvme))
}

fn ata(ata: Ata) -> Capabilities {
    drive(Commands::Ata(ata))
}

fn everything() -> Nvme {
    Nvme { format: true, crypto_erase: true, sanitize: ALL, ..Nvme::default() }
}

fn secure(security: Security) -> Ata {
    Ata { security: Some(security), ..Ata::default() }
}

#[test]
fn methods_by_what_the_drive_claims() {
    let format = Nvme { format: true, ..Nvme::default() };
    let enhanced = Security { enhanced: true, ..Security::default() };
    let opal = |opal, capabilities: Capabilities| Capabilities { opal: Some(opal), ..capabilities };
    let platters = |capabilities: Capabilities| Capabilities { medium: Medium::Magnetic, ..capabilities };
    let blocks = Blocks { write_zeroes: true, discard: true };
    let purge = Policy::Purge;
    for (name, capabilities, policy, psid, want) in [
        ("QEMU", nvme(format.clone()), purge, false, vec![NvmeFormatUserData]),
        (
            "crypto erase without format",
            nvme(Nvme {
                crypto_erase: true,
                sanitize: Sanitize { block: true, ..Sanitize::default() },
                ..Nvme::default()
            }),
            purge,
            false,
            vec![NvmeSanitizeBlock],
        ),
        (
            "everything, and Opal",
            opal(FREE, nvme(everything())),
            purge,
            false,
            vec![
                NvmeSanitizeCrypto,
                NvmeSanitizeBlock,
                NvmeFormatCrypto,
                NvmeFormatUserData,
                OpalRevert,
                NvmeSanitizeOverwrite,
            ],
        ),
        (
            "everything, quickly",
            opal(FREE, nvme(everything())),
            Policy::RekeyOnly,
            false,
            vec![NvmeSanitizeCrypto, NvmeFormatCrypto, OpalRevert],
        ),
        (
            "owned, its label read",
            opal(LOCKED, nvme(format.clone())),
            purge,
            true,
            vec![NvmeFormatUserData, OpalRevert],
        ),
        (
            "owned but open",
            opal(Opal { locked: false, owned: true, encrypts: true }, nvme(format.clone())),
            purge,
            false,
            vec![NvmeFormatUserData],
        ),
        ("clear", nvme(format), Policy::Clear, false, vec![NvmeFormatUserData, Overwrite]),
        ("a hard disk", platters(ata(secure(enhanced))), purge, false, vec![AtaSecurityEraseEnhanced]),
        (
            "an SSD whose security erase isn't enough for purge",
            ata(Ata { sanitize: Sanitize { crypto: true, block: true, overwrite: false }, ..secure(enhanced) }),
            purge,
            false,
            vec![AtaSanitizeCrypto, AtaSanitizeBlock],
        ),
        (
            "an SSD, and clear will do",
            ata(secure(enhanced)),
            Policy::Clear,
            false,
            vec![AtaSecurityEraseEnhanced, AtaSecurityErase, Overwrite],
        ),
        ("frozen", ata(secure(Security { frozen: true, ..enhanced })), Policy::Clear, false, vec![Overwrite]),
        (
            "SCSI",
            drive(Commands::Scsi(Scsi { sanitize: Sanitize { block: true, ..Sanitize::default() }, security: false })),
            purge,
            false,
            vec![ScsiSanitizeBlock],
        ),
        (
            "virtio",
            Capabilities { blocks, ..drive(Commands::None(Bus::Virtio)) },
            Policy::Clear,
            false,
            vec![WriteZeroes, Discard, Overwrite],
        ),
    ] {
        let plan = plan(&capabilities, policy, psid).expect(name);
        assert_eq!(plan.methods.iter().map(|choice| choice.method).collect::<Vec<_>>(), want, "{name}");
    }
}

#[test]
fn drives_without_a_plan_say_why() {
    let hidden = ata(Ata { hidden_bytes: 512, ..Ata::default() });
    let frozen = ata(secure(Security { frozen: true, ..Security::default() }));
    let opal = |opal| Capabilities { opal: Some(opal), ..drive(Commands::None(Bus::Scsi)) };
    for (name, capabilities, policy, words) in [
        ("unattached", nvme(Nvme { unseen_namespaces: vec![2, 7], ..everything() }), Policy::Clear, "(2, 7)"),
        ("hidden", hidden, Policy::Clear, "hides 512 bytes"),
        ("virtio", drive(Commands::None(Bus::Virtio)), Policy::Purge, "offers: overwrite with zeros (Clear). Allow"),
        ("frozen", frozen, Policy::Purge, "the firmware froze its Security feature set"),
        ("no key", nvme(Nvme { crypto_erase: false, ..everything() }), Policy::RekeyOnly, "SES=1) (Purge)"),
        ("locked", opal(LOCKED), Policy::Clear, "nobody gave the PSID"),
        (
            "owned",
            opal(Opal { locked: false, owned: true, encrypts: true }),
            Policy::Purge,
            "its TCG Opal has an owner",
        ),
    ] {
        let mut capabilities = capabilities;
        if let (Commands::Nvme(nvme), Policy::RekeyOnly) = (&mut capabilities.commands, policy) {
            nvme.sanitize.crypto = false;
        }
        let unable = plan(&capabilities, policy, false).expect_err(name).to_string();
        assert!(unable.contains(words), "{name}: {unable}");
    }
}

fn any_sanitize() -> impl Strategy<Value = Sanitize> {
    any::<(bool, bool, bool)>().prop_map(|(crypto, block, overwrite)| Sanitize { crypto, block, overwrite })
}

fn any_commands() -> impl Strategy<Value = Commands> {
    let nvme = (any_sanitize(), any::<(bool, bool)>()).prop_map(|(sanitize, (format, crypto_erase))| {
        Commands::Nvme(Nvme { format, crypto_erase, sanitize, ..Nvme::default() })
    });
    let security = any::<(bool, bool, bool)>().prop_map(|(enhanced, frozen, expired)| Security {
        enhanced,
        frozen,
        expired,
        ..Security::default()
    });
    let ata = (any_sanitize(), any::<bool>(), proptest::option::of(security)).prop_map(
        |(sanitize, sanitize_frozen, security)| {
            Commands::Ata(Ata { sanitize, sanitize_frozen, security, trusted: false, hidden_bytes: 0 })
        },
    );
    let scsi = any_sanitize().prop_map(|sanitize| Commands::Scsi(Scsi { sanitize, security: false }));
    prop_oneof![nvme, ata, scsi, Just(Commands::None(Bus::Virtio))]
}

/// What a drive has to have claimed before it's told to do this.
fn claimed(capabilities: &Capabilities, method: Method) -> bool {
    let sanitize = match &capabilities.commands {
        Commands::Nvme(nvme) => nvme.sanitize,
        Commands::Ata(ata) if ata.sanitize_frozen => Sanitize::default(),
        Commands::Ata(ata) => ata.sanitize,
        Commands::Scsi(scsi) => scsi.sanitize,
        Commands::None(_) => Sanitize::default(),
    };
    let security = match &capabilities.commands {
        Commands::Ata(ata) => ata.security.filter(|s| !s.frozen && !s.expired),
        _ => None,
    };
    let nvme = match &capabilities.commands {
        Commands::Nvme(nvme) => nvme.clone(),
        _ => Nvme::default(),
    };
    match method {
        Method::NvmeSanitizeCrypto | Method::AtaSanitizeCrypto | Method::ScsiSanitizeCrypto => sanitize.crypto,
        Method::NvmeSanitizeBlock | Method::AtaSanitizeBlock | Method::ScsiSanitizeBlock => sanitize.block,
        Method::NvmeSanitizeOverwrite | Method::AtaSanitizeOverwrite | Method::ScsiSanitizeOverwrite => {
            sanitize.overwrite
        }
        Method::NvmeFormatCrypto => nvme.format && nvme.crypto_erase,
        Method::NvmeFormatUserData => nvme.format,
        Method::OpalRevert => capabilities.opal.is_some_and(|opal| opal.encrypts),
        Method::AtaSecurityErase => security.is_some(),
        Method::AtaSecurityEraseEnhanced => security.is_some_and(|s| s.enhanced),
        Method::WriteZeroes => capabilities.blocks.write_zeroes,
        Method::Discard => capabilities.blocks.discard,
        Method::Overwrite => true,
    }
}

proptest! {
    #[test]
    fn a_plan_holds_nothing_that_was_not_claimed_or_is_not_good_enough(
        commands in any_commands(),
        (write_zeroes, discard, flash, psid) in any::<(bool, bool, bool, bool)>(),
        opal in proptest::option::of(any::<(bool, bool, bool)>()),
        policy in prop_oneof![Just(Policy::Purge), Just(Policy::Clear), Just(Policy::RekeyOnly)],
    ) {
        let medium = if flash { Medium::Flash } else { Medium::Magnetic };
        let opal = opal.map(|(locked, owned, encrypts)| Opal { locked, owned, encrypts });
        let capabilities = Capabilities { commands, blocks: Blocks { write_zeroes, discard }, medium, opal };
        match plan(&capabilities, policy, psid) {
            Ok(plan) => {
                prop_assert!(!plan.methods.is_empty());
                for choice in plan.methods {
                    prop_assert!(claimed(&capabilities, choice.method), "{choice:?}");
                    prop_assert!(policy.accepts(choice.method, medium), "{choice:?}");
                }
            }
            Err(unable) => {
                let locked = unable == Unable::OpalLocked;
                let left = Method::ALL.into_iter().filter(|m| claimed(&capabilities, *m) && policy.accepts(*m, medium));
                // An Opal drive with an owner whose label nobody read offers nothing by that.
                prop_assert!(locked || left.clone().all(|m| m == OpalRevert), "{:?}", left.collect::<Vec<_>>());
            }
        }
    }
}
