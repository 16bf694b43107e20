//! Which machine is asking.

use drophammer_protocol::id::{Mac, MachineId};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid, uuid};

/// UUIDs that whole product lines share because nobody filled them in. They name no machine.
const PLACEHOLDERS: [Uuid; 6] = [
    Uuid::nil(),
    Uuid::max(),
    uuid!("03000200-0400-0500-0006-000700080009"),
    uuid!("00020003-0004-0005-0006-000700080009"),
    uuid!("12345678-1234-5678-90ab-cddeefaabbcc"),
    uuid!("fefefefe-fefe-fefe-fefe-fefefefefefe"),
];

/// The machine that an SMBIOS UUID names, if it names one.
pub fn of_uuid(uuid: Uuid) -> Option<MachineId> {
    (!PLACEHOLDERS.contains(&uuid)).then_some(MachineId(uuid))
}

/// A name for a machine that has none of its own: always the same for the same card. The agent learns it from its ticket.
pub fn of_mac(mac: Mac) -> MachineId {
    let digest = Sha256::new().chain_update("drophammer machine 1\0").chain_update(mac.0).finalize();
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(digest) {
        *to = from;
    }
    MachineId(Builder::from_custom_bytes(bytes).into_uuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_name_no_machine() {
        assert_eq!(of_uuid(Uuid::nil()), None);
        assert_eq!(of_uuid(uuid!("03000200-0400-0500-0006-000700080009")), None);
        let own = uuid!("4c4c4544-0042-3510-8054-b4c04f564433");
        assert_eq!(of_uuid(own), Some(MachineId(own)));
    }

    #[test]
    fn a_card_stands_for_one_machine() {
        let (a, b) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        assert_eq!(of_mac(a), of_mac(a));
        assert_ne!(of_mac(a), of_mac(b));
    }
}
