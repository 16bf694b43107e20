//! What becomes of ATA and SCSI drives that lie, and of honest ones.

use drophammer_protocol::certificate::{Promise, Verdict};
use drophammer_protocol::erase::Method::{
    AtaSanitizeBlock, AtaSanitizeCrypto, AtaSanitizeOverwrite, AtaSecurityErase, AtaSecurityEraseEnhanced, Overwrite,
    ScsiSanitizeBlock, ScsiSanitizeCrypto, ScsiSanitizeOverwrite,
};
use drophammer_protocol::erase::{Medium as Kind, Policy};
use drophammer_protocol::fixtures;
use drophammer_protocol::inventory::{Bus, Disk};

use super::super::plan::{Blocks, plan};
use super::super::probe::probe;
use super::*;
use crate::drive::ata::Command;
use crate::drive::sim::ata::{AtaDrive, Erase, SECTORS, Security};
use crate::drive::sim::medium::{LIES, Medium};
use crate::drive::sim::scsi::ScsiDrive;
use crate::drive::sim::{Body, SIZE};

/// A drive of either kind.
pub(super) trait Simulated: Drive {
    fn bus(&self) -> Bus;
    fn body(&mut self) -> &mut Body;
}

impl Simulated for AtaDrive {
    fn bus(&self) -> Bus {
        Bus::Ata
    }

    fn body(&mut self) -> &mut Body {
        &mut self.body
    }
}

impl Simulated for ScsiDrive {
    fn bus(&self) -> Bus {
        Bus::Scsi
    }

    fn body(&mut self) -> &mut Body {
        &mut self.body
    }
}

/// What becomes of a drive that is ordered as `SN-1` with its full size: the same steps as for a real one.
fn run_as(drive: &mut dyn Drive, bus: Bus, policy: Policy, depth: Depth) -> Account {
    match understand(drive, bus, policy) {
        Ok((probed, plan)) => carry_out(drive, &probed, &plan, depth),
        Err(reason) => Account::untouched(reason),
    }
}

pub(super) fn carry_out(drive: &mut dyn Drive, probed: &Probed, plan: &Plan, depth: Depth) -> Account {
    erase(drive, probed, &Task { plan, depth, fresh: None, seed: [7; 32] }, &mut |_| ())
}

pub(super) fn understand(drive: &mut dyn Drive, bus: Bus, policy: Policy) -> Result<(Probed, Plan), String> {
    // Whatever the kernel thinks, the drive's own word on platters counts.
    let disk = Disk { bus, rotational: true, ..fixtures::disk("SN-1", SIZE as u64) };
    let probed = probe(drive, &[disk], Blocks::default(), None).map_err(|e| format!("{e:#}"))?;
    let plan = plan(&probed.capabilities, policy, false).map_err(|unable| unable.to_string())?;
    Ok((probed, plan))
}

pub(super) fn run(drive: &mut dyn Simulated, policy: Policy) -> Account {
    let bus = drive.bus();
    run_as(drive, bus, policy, Depth::Sampled)
}

pub(super) fn with(body: Body, drive: AtaDrive) -> AtaDrive {
    AtaDrive { body, ..drive }
}

/// Pieces of the medium that still are what they were in `before`.
pub(super) fn kept(before: &Medium, after: &Medium) -> usize {
    let pieces = before.bytes().chunks(512).zip(after.bytes().chunks(512));
    pieces.filter(|(before, after)| before == after).count()
}

type Make = fn() -> Box<dyn Simulated>;

/// Every way there is, each as the only one that its drive offers.
const WAYS: [(Make, Method); 8] = [
    (|| Box::new(AtaDrive::with_sanitize(true, false, false)), AtaSanitizeCrypto),
    (|| Box::new(AtaDrive::with_sanitize(false, true, false)), AtaSanitizeBlock),
    (|| Box::new(AtaDrive::with_sanitize(false, false, true)), AtaSanitizeOverwrite),
    (|| Box::new(AtaDrive::with_security(Security::default())), AtaSecurityEraseEnhanced),
    (|| Box::new(AtaDrive::with_security(Security { enhanced: false, ..Security::default() })), AtaSecurityErase),
    (|| Box::new(ScsiDrive::with(true, false, false)), ScsiSanitizeCrypto),
    (|| Box::new(ScsiDrive::with(false, true, false)), ScsiSanitizeBlock),
    (|| Box::new(ScsiDrive::with(false, false, true)), ScsiSanitizeOverwrite),
];

#[test]
fn every_liar_is_caught() {
    let sampled = WAYS.map(|(make, method)| (make, method, Depth::Sampled));
    let [(make, method, _), ..] = sampled;
    for (make, method, depth) in sampled.into_iter().chain([(make, method, Depth::Full)]) {
        for (name, lie) in LIES {
            let mut drive = make();
            drive.body().lie = lie;
            let bus = drive.bus();
            let account = run_as(&mut *drive, bus, Policy::Clear, depth);
            let Verdict::NotErased { reason } = account.verdict() else { panic!("{method:?}, {name}: believed") };
            let words = format!("the drive reported success for {}, but", method.name());
            assert!(reason.contains(&words), "{method:?}, {name}: {reason}");
            assert_eq!(account.attempts.len(), 1, "{method:?}, {name}: a liar isn't asked again");
        }
    }
}

#[test]
fn honest_drives_are_believed() {
    for (make, method) in WAYS {
        let mut drive = make();
        let before = drive.body().medium.clone();
        let account = run(&mut *drive, Policy::Clear);
        assert_eq!(account.verdict(), Verdict::Erased { method }, "{method:?}: {account:?}");
        assert_eq!(kept(&before, &drive.body().medium), 0, "{method:?}");
        let verification = account.verification.expect("it was looked at");
        assert_eq!((verification.canaries_surviving, verification.samples_surviving), (0, 0), "{method:?}");
        assert!(verification.canaries_planted >= 65 && verification.full, "{method:?}: {verification:?}");
        assert!(verification.forced_unit_access, "{method:?}");
        if matches!(method, AtaSanitizeOverwrite | ScsiSanitizeOverwrite) {
            assert!(drive.body().medium.bytes().iter().all(|byte| *byte == 0), "{method:?}");
            assert_eq!(verification.promise, Promise::Zeroes, "{method:?}");
        }
    }
}

#[test]
fn the_strongest_way_that_is_claimed() {
    let noisy = |attention| ScsiDrive { attention, descriptors: true, tells_when_asked: true, ..ScsiDrive::default() };
    let platters = || AtaDrive { rotation: 7200, ..AtaDrive::with_security(Security::default()) };
    let cases: Vec<(&str, Box<dyn Simulated>, Policy, Method)> = vec![
        ("ATA, everything", Box::new(AtaDrive::default()), Policy::Purge, AtaSanitizeCrypto),
        ("SCSI, everything", Box::new(ScsiDrive::default()), Policy::Purge, ScsiSanitizeCrypto),
        ("SCSI, by descriptors", Box::new(noisy(true)), Policy::RekeyOnly, ScsiSanitizeCrypto),
        ("ATA, platters", Box::new(platters()), Policy::Purge, AtaSecurityEraseEnhanced),
        (
            "ATA, sanitize frozen",
            Box::new(AtaDrive { sanitize_frozen: true, ..AtaDrive::default() }),
            Policy::Clear,
            AtaSecurityEraseEnhanced,
        ),
        (
            "ATA, sanitize that can't be watched",
            Box::new(AtaDrive { registers: false, ..AtaDrive::default() }),
            Policy::Clear,
            AtaSecurityEraseEnhanced,
        ),
        (
            "ATA, security frozen",
            Box::new(AtaDrive::with_security(Security { frozen: true, ..Security::default() })),
            Policy::Clear,
            Overwrite,
        ),
        (
            "ATA, no enhanced erase",
            Box::new(AtaDrive::with_security(Security { enhanced: false, ..Security::default() })),
            Policy::Clear,
            AtaSecurityErase,
        ),
        ("QEMU's ide-hd", Box::new(AtaDrive::qemu()), Policy::Clear, Overwrite),
        ("QEMU's scsi-hd", Box::new(ScsiDrive::qemu()), Policy::Clear, Overwrite),
        (
            "SCSI, sanitizes in its own manner",
            Box::new(ScsiDrive { support: 0b101, ..ScsiDrive::default() }),
            Policy::Clear,
            Overwrite,
        ),
        ("SCSI, old", Box::new(ScsiDrive { long_capacity: false, ..ScsiDrive::qemu() }), Policy::Clear, Overwrite),
        (
            "ATA, behind a translator that lets nothing through",
            Box::new(AtaDrive { passes_through: false, ..AtaDrive::default() }),
            Policy::Clear,
            Overwrite,
        ),
        (
            "ATA, its configuration frozen",
            Box::new(AtaDrive { factory_max: Some(0), ..AtaDrive::default() }),
            Policy::Purge,
            AtaSanitizeCrypto,
        ),
    ];
    for (name, mut drive, policy, method) in cases {
        let before = drive.body().medium.clone();
        let account = run(&mut *drive, policy);
        assert_eq!(account.verdict(), Verdict::Erased { method }, "{name}: {account:?}");
        assert_eq!((account.attempts.len(), kept(&before, &drive.body().medium)), (1, 0), "{name}");
    }
}

#[test]
fn what_a_drive_is() {
    let told = |drive: &mut dyn Drive, bus| {
        let disk = Disk { bus, rotational: true, ..fixtures::disk("SN-1", SIZE as u64) };
        let capabilities = probe(drive, &[disk], Blocks::default(), None).expect("a drive").capabilities;
        (std::mem::discriminant(&capabilities.commands), capabilities.medium)
    };
    use super::super::plan::{Ata, Commands, Scsi};
    let ata = std::mem::discriminant(&Commands::Ata(Ata::default()));
    let scsi = std::mem::discriminant(&Commands::Scsi(Scsi::default()));
    let plain = std::mem::discriminant(&Commands::None(Bus::Usb));
    let silent = || AtaDrive { says_ata: false, ..AtaDrive::default() };
    let dumb = || AtaDrive { passes_through: false, rotation: 5400, ..AtaDrive::default() };
    for (name, drive, bus, want) in [
        ("SATA", &mut AtaDrive::default() as &mut dyn Drive, Bus::Ata, (ata, Kind::Flash)),
        ("SATA behind SAS", &mut AtaDrive { rotation: 7200, ..AtaDrive::default() }, Bus::Scsi, (ata, Kind::Magnetic)),
        ("SATA, and the kernel alone says so", &mut silent(), Bus::Ata, (ata, Kind::Flash)),
        ("SATA that nobody says is one", &mut silent(), Bus::Scsi, (scsi, Kind::Flash)),
        ("SATA that can't be reached", &mut dumb(), Bus::Ata, (scsi, Kind::Magnetic)),
        ("SAS", &mut ScsiDrive::default(), Bus::Scsi, (scsi, Kind::Magnetic)),
        (
            "SAS that says it turns too slowly",
            &mut ScsiDrive { rotation: 0x400, ..ScsiDrive::default() },
            Bus::Scsi,
            (scsi, Kind::Flash),
        ),
        ("USB isn't asked", &mut AtaDrive { attention: false, ..silent() }, Bus::Usb, (plain, Kind::Flash)),
    ] {
        assert_eq!(told(drive, bus), want, "{name}");
    }
}

#[test]
fn drives_that_fail_are_not_erased() {
    let sanitizes = || ScsiDrive::with(false, true, false);
    let scrambles = || AtaDrive::with_sanitize(true, false, false);
    let secure = AtaDrive::with_security;
    let cases: Vec<(&str, Box<dyn Simulated>, &str)> = vec![
        (
            "ATA: fails at 87 %",
            Box::new(with(Body { fails_at: Some(0.87), ..Body::default() }, scrambles())),
            "the drive says that it failed at",
        ),
        (
            "SCSI: fails at 50 %",
            Box::new(ScsiDrive { body: Body { fails_at: Some(0.5), ..Body::default() }, ..sanitizes() }),
            "the drive says that it failed at",
        ),
        (
            "SCSI: fails and can't be left",
            Box::new(ScsiDrive {
                body: Body { fails_at: Some(0.5), no_way_out: true, ..Body::default() },
                ..ScsiDrive::default()
            }),
            "leaving the state of a failed sanitize: the drive doesn't accept a field of this command",
        ),
        (
            "ATA: fails and can't be left",
            Box::new(with(Body { fails_at: Some(0.5), no_way_out: true, ..Body::default() }, AtaDrive::default())),
            "leaving the state of a failed sanitize: the drive aborted the command",
        ),
        (
            "ATA: gets stuck",
            Box::new(with(Body { stuck_at: Some(0.87), ..Body::default() }, scrambles())),
            "not finished within 720 s; it says it's 87 % done",
        ),
        (
            "SCSI: gets stuck, and takes nothing else",
            Box::new(ScsiDrive { body: Body { stuck_at: Some(0.5), ..Body::default() }, ..ScsiDrive::default() }),
            "the drive is still sanitizing, 50 % done",
        ),
        (
            "SCSI: gets stuck, and tells how far it is only when asked",
            Box::new(ScsiDrive {
                body: Body { stuck_at: Some(0.25), ..Body::default() },
                tells_when_asked: true,
                ..ScsiDrive::default()
            }),
            "the drive is still sanitizing, 25 % done",
        ),
        (
            "ATA: accepted and forgotten",
            Box::new(with(Body { forgets: true, ..Body::default() }, scrambles())),
            "its sanitize status knows of no success",
        ),
        (
            "SCSI: accepted and forgotten",
            Box::new(ScsiDrive { body: Body { forgets: true, ..Body::default() }, ..sanitizes() }),
            "the drive reported success for SCSI Sanitize, block erase, but",
        ),
        (
            "SCSI: reserved by another host",
            Box::new(ScsiDrive { sanitize_status: Some(0x18), ..sanitizes() }),
            "another host holds a reservation (SCSI status 18h)",
        ),
        (
            "can't be read afterwards",
            Box::new(ScsiDrive { body: Body { unreadable_after: true, ..Body::default() }, ..sanitizes() }),
            "can't be read since",
        ),
        (
            "ATA: is another drive afterwards",
            Box::new(with(Body { serial_after: Some("SN-2"), ..Body::default() }, scrambles())),
            "the drive isn't what it was before the erase: the drive that answers has the serial SN-2",
        ),
        (
            "SCSI: is another drive afterwards",
            Box::new(ScsiDrive { body: Body { serial_after: Some("SN-2"), ..Body::default() }, ..sanitizes() }),
            "the drive isn't what it was before the erase: the drive that answers has the serial SN-2",
        ),
        (
            "ATA: is another drive",
            Box::new(with(Body { serial: "SN-2", ..Body::default() }, scrambles())),
            "the drive that answers has the serial SN-2",
        ),
        (
            "SCSI: has another size",
            Box::new(ScsiDrive { blocks: SECTORS - 8, ..sanitizes() }),
            "the drive that answers has 2093056 bytes",
        ),
        (
            "ATA: has another size",
            Box::new(AtaDrive { sectors: SECTORS - 8, ..scrambles() }),
            "the drive that answers has 2093056 bytes",
        ),
        (
            "ATA: a host protected area",
            Box::new(AtaDrive { native_max: Some(SECTORS + 7), ..scrambles() }),
            "the drive hides 4096 bytes",
        ),
        (
            "ATA: a host protected area, by ACS-3",
            Box::new(AtaDrive { accessible_max: Some(SECTORS), native_max: None, ..scrambles() }),
            "the drive hides 512 bytes",
        ),
        (
            "ATA: a device configuration overlay",
            Box::new(AtaDrive { factory_max: Some(2 * SECTORS - 1), ..scrambles() }),
            "the drive hides 2097152 bytes",
        ),
        (
            "SSD: security erase isn't enough",
            Box::new(secure(Security::default())),
            "the policy purge asks for more than this drive offers: ATA Security Erase Unit, enhanced (Clear)",
        ),
        (
            "QEMU's scsi-hd isn't good enough",
            Box::new(ScsiDrive::qemu()),
            "the policy purge asks for more than this drive offers: overwrite with zeros (Clear)",
        ),
    ];
    for (name, mut drive, words) in cases {
        let account = run(&mut *drive, Policy::Purge);
        match account.verdict() {
            Verdict::NotErased { reason } => assert!(reason.contains(words), "{name}: {reason}"),
            Verdict::Erased { .. } => panic!("{name}: believed"),
        }
    }
}

#[test]
fn drives_that_drop_writes_are_broken() {
    for (make, method) in WAYS {
        let mut drive = make();
        drive.body().medium.drops_writes = true;
        let Verdict::NotErased { reason } = run(&mut *drive, Policy::Clear).verdict() else { panic!("believed") };
        assert!(reason.contains("the drive doesn't return what was written at byte"), "{method:?}: {reason}");
    }
}

#[test]
fn a_failed_method_makes_room_for_the_next() {
    let mut scsi = ScsiDrive { sanitize_status: Some(0x08), ..ScsiDrive::default() };
    let account = run(&mut scsi, Policy::Clear);
    assert_eq!(account.verdict(), Verdict::Erased { method: Overwrite }, "{account:?}");
    assert_eq!((account.attempts.len(), scsi.told), (4, vec![0xa3, 0xa2, 0xa1]));

    let body = Body { fails_at: Some(0.5), ..Body::default() };
    let mut ata = AtaDrive { body, ..AtaDrive::default() };
    let account = run(&mut ata, Policy::Clear);
    assert_eq!(account.verdict(), Verdict::Erased { method: AtaSecurityEraseEnhanced }, "{account:?}");
    let sanitize = |feature| (Command::SANITIZE_DEVICE, feature);
    assert_eq!(ata.told[..3], [sanitize(0x11), sanitize(0x12), sanitize(0x14)]);
    assert_eq!(ata.told[3..], [(0xf1, 0), (0xf3, 0), (0xf4, 0)]);

    let failing = Security { erase: Erase::FailsAt(0.5), ..Security::default() };
    let mut ata = AtaDrive::with_security(failing);
    let account = run(&mut ata, Policy::Clear);
    assert_eq!(account.verdict(), Verdict::Erased { method: Overwrite }, "{account:?}");
    let once = [(0xf1, 0), (0xf3, 0), (0xf4, 0), (0xf6, 0)];
    assert_eq!(ata.told, [once, once].concat(), "both erases, and each password taken off again");
    assert!(ata.body.medium.bytes().iter().all(|byte| *byte == 0));
}

#[test]
fn drives_that_only_read_plainly() {
    let body = Body { only_plain_reads: true, ..Body::default() };
    let account = run(&mut with(body, AtaDrive::default()), Policy::Purge);
    assert_eq!(account.verdict(), Verdict::Erased { method: AtaSanitizeCrypto });
    assert_eq!(account.verification.map(|v| v.forced_unit_access), Some(false));
}
