//! What a drive says of its security subsystem: Level 0 Discovery, from bytes to types.
//!
//! TCG Storage Architecture Core Specification 2.01, 3.3.6; Opal SSC 2.02, 3.1.1; Block SID Authentication feature set
//! 1.01, 4.1.1. A total function: a descriptor that's cut short isn't there, and neither are those behind it.

use std::time::Duration;

/// Far more than any drive has to say.
pub(crate) const DISCOVERY_BYTES: usize = 2048;
const HEADER_BYTES: usize = 48;

/// A drive's security subsystem, as it describes itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opal {
    pub(crate) ssc: Ssc,
    /// Where its methods are called.
    pub(crate) com_id: u16,
    pub(crate) locking: Locking,
    /// Ranges that belong to one user each, who alone can give them new keys.
    pub(crate) single_user: bool,
    /// Only of drives with the Block SID feature set.
    pub(crate) sid: Option<Sid>,
    pub(crate) removal: Option<Removal>,
}

/// Security subsystem classes, best first: a drive may be of several, and the first one is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ssc {
    Opal2,
    Ruby,
    Opalite,
    Opal1,
    Pyrite2,
    Pyrite1,
    Enterprise,
}

impl Ssc {
    fn of(feature: u16) -> Option<Self> {
        match feature {
            0x0100 => Some(Self::Enterprise),
            0x0200 => Some(Self::Opal1),
            0x0203 => Some(Self::Opal2),
            0x0301 => Some(Self::Opalite),
            0x0302 => Some(Self::Pyrite1),
            0x0303 => Some(Self::Pyrite2),
            0x0304 => Some(Self::Ruby),
            _ => None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Opal2 => "Opal 2",
            Self::Ruby => "Ruby",
            Self::Opalite => "Opalite",
            Self::Opal1 => "Opal 1",
            Self::Pyrite2 => "Pyrite 2",
            Self::Pyrite1 => "Pyrite 1",
            Self::Enterprise => "Enterprise",
        }
    }
}

/// The Locking feature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Locking {
    pub(crate) supported: bool,
    /// The Locking SP has been activated.
    pub(crate) enabled: bool,
    /// Some range is locked.
    pub(crate) locked: bool,
    pub(crate) media_encryption: bool,
    pub(crate) mbr_enabled: bool,
    pub(crate) mbr_done: bool,
}

/// How the owner stands, by the Block SID feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sid {
    /// The owner's password isn't the factory's.
    pub(crate) owned: bool,
    /// Nobody can log in as the owner before a power cycle.
    pub(crate) blocked: bool,
    /// Nobody can talk to the Locking SP before a power cycle.
    pub(crate) frozen: bool,
}

/// The Supported Data Removal Mechanism feature: what a revert does besides changing keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removal {
    pub(crate) processing: bool,
    pub(crate) interrupted: bool,
    mechanisms: u8,
    /// What the slowest of them takes, where that's told.
    pub(crate) longest: Duration,
}

impl Opal {
    /// `None` if the page describes no security subsystem class that has a name here.
    pub(crate) fn parse(page: &[u8]) -> Option<Self> {
        // The length of all that follows it.
        let length = u32::from_be_bytes(*page.first_chunk()?);
        let end = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(4).min(page.len());
        let mut rest = page.get(HEADER_BYTES..end)?;
        let mut class: Option<(Ssc, u16)> = None;
        let (mut locking, mut single_user, mut sid, mut removal) = (Locking::default(), false, None, None);
        while let Some((&[code_high, code_low, _version, length], behind)) = rest.split_first_chunk() {
            let Some((data, behind)) = behind.split_at_checked(length.into()) else { break };
            rest = behind;
            let bit = |byte: usize, bit: u8| data.get(byte).is_some_and(|b| b >> bit & 1 != 0);
            match u16::from_be_bytes([code_high, code_low]) {
                0x0002 => {
                    locking = Locking {
                        supported: bit(0, 0),
                        enabled: bit(0, 1),
                        locked: bit(0, 2),
                        media_encryption: bit(0, 3),
                        mbr_enabled: bit(0, 4),
                        mbr_done: bit(0, 5),
                    }
                }
                0x0201 => single_user = bit(4, 0),
                0x0402 => sid = Some(Sid { owned: bit(0, 0), blocked: bit(0, 1), frozen: bit(0, 3) }),
                0x0404 => removal = Removal::parse(data),
                code => {
                    if let (Some(ssc), Some(id)) = (Ssc::of(code), data.first_chunk())
                        && class.is_none_or(|(known, _)| ssc < known)
                    {
                        class = Some((ssc, u16::from_be_bytes(*id)));
                    }
                }
            }
        }
        // ComID 0 is nobody's, and 1 is where this page comes from.
        let (ssc, com_id) = class.filter(|(_, com_id)| *com_id > 1)?;
        Some(Self { ssc, com_id, locking, single_user, sid, removal })
    }

    /// Whether giving the drive new media keys erases it. Pyrite doesn't encrypt, so reverting it unlocks and that's all;
    /// Enterprise encrypts, but its methods have other names and need every band's own password.
    pub(crate) fn can_rekey(&self) -> bool {
        matches!(self.ssc, Ssc::Opal2 | Ssc::Ruby | Ssc::Opalite | Ssc::Opal1)
            && self.locking.supported
            && self.locking.media_encryption
    }

    /// For the record.
    pub(crate) fn words(&self) -> Vec<String> {
        let either = |is: bool, yes: &'static str, no: &'static str| if is { yes } else { no };
        let Locking { supported, enabled, locked, media_encryption, mbr_enabled, mbr_done } = self.locking;
        let mut words = vec![
            format!("TCG {} at ComID {:#06x}", self.ssc.name(), self.com_id),
            either(media_encryption, "the medium is encrypted", "the medium isn't encrypted").to_owned(),
            match (supported, enabled) {
                (false, _) => "locking isn't supported".to_owned(),
                (true, false) => "locking was never activated".to_owned(),
                (true, true) => {
                    format!("locking is active, {}", either(locked, "a range is locked", "nothing is locked"))
                }
            },
        ];
        if mbr_enabled {
            words.push(format!("a shadow MBR {}", either(mbr_done, "has been left", "hides the medium")));
        }
        if self.single_user {
            words.push("ranges belong to single users".to_owned());
        }
        if let Some(Sid { owned, blocked, frozen }) = self.sid {
            words.push(either(owned, "somebody owns the drive", "the owner's password is the factory's").to_owned());
            if blocked {
                words.push("the firmware blocked the owner until the next power cycle".to_owned());
            }
            if frozen {
                words.push("the firmware froze locking until the next power cycle".to_owned());
            }
        }
        if let Some(removal) = self.removal {
            words.push(format!("a revert removes data by {}", removal.mechanisms()));
        }
        words
    }
}

impl Removal {
    /// Opal SSC 2.30, 3.1.1.6; Pyrite 2 has more mechanisms. Offsets count from behind the descriptor's header.
    fn parse(data: &[u8]) -> Option<Self> {
        let [_, state, mechanisms, formats] = *data.first_chunk()?;
        let longest = data.get(4..)?.as_chunks::<2>().0.iter().take(6).enumerate().map(|(bit, time)| {
            // In units of 2 s, or of 2 min.
            let unit = if formats >> bit & 1 == 0 { 2 } else { 120 };
            Duration::from_secs(unit * u64::from(u16::from_be_bytes(*time)))
        });
        let longest = longest.max().unwrap_or_default();
        Some(Self { processing: state & 1 << 0 != 0, interrupted: state & 1 << 1 != 0, mechanisms, longest })
    }

    fn mechanisms(self) -> String {
        let names = ["overwriting", "block erase", "new keys", "unmapping", "resetting zones", "a way of its maker's"];
        let named = names.iter().enumerate().filter(|(bit, _)| self.mechanisms >> bit & 1 != 0).map(|(_, name)| *name);
        match &*named.collect::<Vec<_>>() {
            [] => "nothing it tells of".to_owned(),
            names => names.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By hand: the header, and descriptors of which each is a code, a version, a length and that many bytes.
    fn page(descriptors: &[&str]) -> Vec<u8> {
        let descriptors = hex::decode(descriptors.concat().replace(' ', "")).expect("hex");
        let mut page = u32::try_from(44 + descriptors.len()).expect("short").to_be_bytes().to_vec();
        page.extend_from_slice(&[0, 0, 0, 1]);
        page.resize(HEADER_BYTES, 0);
        page.extend(descriptors);
        page.resize(DISCOVERY_BYTES, 0);
        page
    }

    const TPER: &str = "0001 10 0c 11 0000000000000000000000";
    const LOCKING: &str = "0002 10 0c 09 0000000000000000000000";
    const ACTIVE: &str = "0002 10 0c 1f 0000000000000000000000";
    const GEOMETRY: &str = "0003 10 1c 01 00000000000000 00000200 0000000000000008 0000000000000000";
    const ENTERPRISE: &str = "0100 10 10 07fe 0001 00 0000000000000000000000";
    const OPAL1: &str = "0200 10 10 1001 0001 00 0000000000000000000000";
    const SINGLE_USER: &str = "0201 10 0c 00000009 01 00000000000000";
    const OPAL2: &str = "0203 20 10 1004 0001 00 0004 0009 00 00 0000000000";
    const OPALITE: &str = "0301 10 10 1001 0001 0000000000 00 00 0000000000";
    const PYRITE1: &str = "0302 10 10 07fe 0001 0000000000 00 00 0000000000";
    const PYRITE2: &str = "0303 10 10 07fe 0001 0000000000 00 00 0000000000";
    const RUBY: &str = "0304 10 10 1001 0001 00 0001 0000 00 00 0000000000";
    const OWNED: &str = "0402 20 0c 01 00 00000000000000000000";
    const FROZEN: &str = "0402 20 0c 0e 01 00000000000000000000";
    /// Overwriting in 32 min, new keys in 4 s, the maker's way in 6 s; busy with it.
    const REMOVAL: &str = "0404 10 20 00 01 25 01 0010 0000 0002 0000 0000 0003 00000000000000000000000000000000";

    #[test]
    fn pages_by_the_specification() {
        let sold = "the medium is encrypted; locking was never activated";
        let used = "the medium is encrypted; locking is active, a range is locked; a shadow MBR hides the medium";
        let removal = "a revert removes data by overwriting, new keys, a way of its maker's";
        let blocked = "the owner's password is the factory's; the firmware blocked the owner until the next power \
                       cycle; the firmware froze locking until the next power cycle";
        let plain = "0002 10 0c 01 0000000000000000000000";
        for (descriptors, want, can_rekey) in [
            (&[TPER, LOCKING, GEOMETRY, OPAL2][..], format!("TCG Opal 2 at ComID 0x1004; {sold}"), true),
            (&[ACTIVE, OPAL2, OWNED], format!("TCG Opal 2 at ComID 0x1004; {used}; somebody owns the drive"), true),
            (&[LOCKING, OPAL2, FROZEN], format!("TCG Opal 2 at ComID 0x1004; {sold}; {blocked}"), true),
            (
                &[LOCKING, SINGLE_USER, OPAL2, REMOVAL],
                format!("TCG Opal 2 at ComID 0x1004; {sold}; ranges belong to single users; {removal}"),
                true,
            ),
            (&[LOCKING, OPAL1], format!("TCG Opal 1 at ComID 0x1001; {sold}"), true),
            (&[LOCKING, OPALITE], format!("TCG Opalite at ComID 0x1001; {sold}"), true),
            (&[LOCKING, RUBY], format!("TCG Ruby at ComID 0x1001; {sold}"), true),
            // The better of two, in whichever order.
            (&[PYRITE2, LOCKING, OPAL2], format!("TCG Opal 2 at ComID 0x1004; {sold}"), true),
            (&[LOCKING, OPAL2, ENTERPRISE], format!("TCG Opal 2 at ComID 0x1004; {sold}"), true),
            // Whatever these claim.
            (&[LOCKING, PYRITE1], format!("TCG Pyrite 1 at ComID 0x07fe; {sold}"), false),
            (&[LOCKING, PYRITE2], format!("TCG Pyrite 2 at ComID 0x07fe; {sold}"), false),
            (&[LOCKING, ENTERPRISE], format!("TCG Enterprise at ComID 0x07fe; {sold}"), false),
            (&[plain, OPAL2], format!("TCG Opal 2 at ComID 0x1004; {}", sold.replace("is enc", "isn't enc")), false),
            (
                &[OPAL2],
                "TCG Opal 2 at ComID 0x1004; the medium isn't encrypted; locking isn't supported".to_owned(),
                false,
            ),
        ] {
            let found = Opal::parse(&page(descriptors)).expect("a class");
            assert_eq!((found.words().join("; "), found.can_rekey()), (want, can_rekey), "{descriptors:?}");
        }
        let removal = Opal::parse(&page(&[OPAL2, REMOVAL])).and_then(|opal| opal.removal).expect("removal");
        assert_eq!((removal.processing, removal.interrupted), (true, false));
        assert_eq!(removal.longest, Duration::from_secs(32 * 60));
    }

    #[test]
    fn pages_of_no_class() {
        for descriptors in [
            &[TPER, LOCKING][..],
            &[LOCKING, "0399 10 04 1004 0001"], // a class of the future
            &[LOCKING, "0203 20 04 0000 0001"], // ComID 0
            &[LOCKING, "0203 20 01 10"],        // no ComID
            &[],
        ] {
            assert_eq!(Opal::parse(&page(descriptors)), None, "{descriptors:?}");
        }
    }

    #[test]
    fn pages_that_are_cut() {
        let whole = page(&[TPER, LOCKING, OPAL2]);
        for length in 0..=48 + 16 + 16 + 19 {
            assert_eq!(Opal::parse(&whole[..length]), None, "{length} bytes");
        }
        let mut declared_short = whole.clone();
        declared_short[3] -= 1;
        assert_eq!(Opal::parse(&declared_short), None);
        let mut declared_long = whole;
        declared_long[..4].fill(0xff);
        assert_eq!(Opal::parse(&declared_long), Opal::parse(&page(&[TPER, LOCKING, OPAL2])));
        assert_eq!(Opal::parse(&[0; DISCOVERY_BYTES]), None);
    }

    proptest! {
        #[test]
        fn any_page_is_read(page in prop::collection::vec(any::<u8>(), 0..200), length in any::<u8>()) {
            let mut page = page;
            if let Some(start) = page.get_mut(..4) {
                start.copy_from_slice(&[0, 0, 0, length]);
            }
            if let Some(opal) = Opal::parse(&page) {
                prop_assert!(opal.com_id > 1 && !opal.words().is_empty());
            }
        }
    }
}
