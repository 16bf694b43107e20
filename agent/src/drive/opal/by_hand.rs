//! Everything that goes to a drive, by hand from Core 3.2, 5.2 and 5.3, Opal SSC 4 and 5.1 and the PSID feature set: the
//! simulator shares constants and codec with what it's to test, and this shares nothing with either.

use super::*;
use crate::drive::sim::opal::{PSID, Tper};

/// Keeps what is sent to a drive.
struct Tap(Tper, Vec<(u8, Vec<u8>)>);

impl Security for Tap {
    fn send(&mut self, protocol: u8, com_id: u16, data: &[u8]) -> anyhow::Result<()> {
        self.1.push((protocol, data.to_vec()));
        Security::send(&mut self.0, protocol, com_id, data)
    }

    fn receive(&mut self, protocol: u8, com_id: u16, data: &mut [u8]) -> anyhow::Result<()> {
        Security::receive(&mut self.0, protocol, com_id, data)
    }

    fn wait(&mut self, _: Duration) {}
}

#[test]
fn what_is_sent_is_what_the_specification_says() {
    let unspaced = |hex: &str| hex.replace(char::is_whitespace, "");
    let msid = "d0 1e 7468652d7075626c69736865642d666163746f72792d70617373776f7264";
    let session = |number: u8, sp: &str, login: &str| {
        let start = "f8 a800000000000000ff a8000000000000ff02 f0";
        format!("{start} {number:02x} a800000205{sp} 01 {login} f1 f9 f0000000f1")
    };
    let by = |pin: &str, authority: &str| format!("f2 00 {pin} f3 f2 03 a8{authority} f3");
    let sid = by(msid, "0000000900000006");
    let get = |object: &str, column: &str| {
        format!("f8 a8{object} a80000000600000016 f0 f0 f203{column}f3 f204{column}f3 f1 f1 f9 f0000000f1")
    };
    let call = |object: &str, method: &str| format!("f8 a8{object} a8{method} f0 f1 f9 f0000000f1");
    let properties = "f8 a800000000000000ff a8000000000000ff01 f0 f2 00 f0
        f2 d010 4d6178436f6d5061636b657453697a65 820800 f3  f2 ad 4d61785061636b657453697a65 8207ec f3
        f2 af 4d6178496e64546f6b656e53697a65 8207c8 f3      f2 aa 4d61785061636b657473 01 f3
        f2 ad 4d61785375627061636b657473 01 f3              f2 aa 4d61784d6574686f6473 01 f3
        f1 f3 f1 f9 f0000000f1";
    let (life_cycle_state, end) = (get("0000020500000002", "06"), "fa".to_owned());
    let mut tap = Tap(Tper::default(), vec![]);
    let opal = discover(&mut tap).expect("an answer").expect("Opal");
    rekey(&mut tap, &opal).expect("new keys");
    let mut psid = Tap(Tper::owned(), vec![]);
    revert_by_psid(&mut psid, &opal, PSID).expect("new keys");
    for (name, sent, want) in [
        (
            "rekey",
            tap.1,
            vec![
                properties.to_owned(),
                session(1, "00000001", ""),
                get("0000000b00008402", "03"),
                end.clone(),
                session(2, "00000001", &sid),
                life_cycle_state.clone(),
                call("0000020500000002", "0000000600000203"),
                end.clone(),
                session(3, "00000002", &by(msid, "0000000900010001")),
                get("0000080200000001", "0a"),
                call("0000080600000001", "0000000600000010"),
                end,
                session(4, "00000001", &sid),
                life_cycle_state.clone(),
                call("0000020500000001", "0000000600000202"),
            ],
        ),
        (
            "PSID",
            psid.1,
            vec![
                properties.to_owned(),
                session(1, "00000001", &by(&format!("d0 20 {}", "50534944".repeat(8)), "000000090001ff01")),
                life_cycle_state,
                call("0000020500000001", "0000000600000202"),
            ],
        ),
    ] {
        let (reset, methods) = sent.split_first().expect("something was sent");
        assert_eq!((reset.0, hex::encode(&reset.1)), (2, format!("1004000000000002{:0>1008}", "")), "{name}");
        let methods: Vec<String> = methods
            .iter()
            .map(|(protocol, transfer)| {
                // ComID at 4 and the lengths of ComPacket at 16, Packet at 40 and SubPacket at 52, which aren't padded out.
                let length = |at: usize| usize::from(transfer[at + 2]) << 8 | usize::from(transfer[at + 3]);
                let padded = length(52).next_multiple_of(4);
                assert_eq!(
                    (*protocol, &transfer[4..6], length(16), length(40)),
                    (1, &[0x10, 4][..], padded + 36, padded + 12)
                );
                hex::encode(&transfer[56..56 + length(52)])
            })
            .collect();
        assert_eq!(methods, want.iter().map(|hex| unspaced(hex)).collect::<Vec<_>>(), "{name}");
    }
}
