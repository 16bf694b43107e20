//! perfdhcp, Kea's load generator: what it is told, and what its report says.

use std::time::Duration;

use anyhow::{Context, Result};

pub(super) const PACKAGE: &str = "kea-admin";
pub(super) const PROGRAM: &str = "/usr/sbin/perfdhcp";

/// What each simulated client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// DISCOVER, OFFER, REQUEST, ACK.
    Dora,
    /// DISCOVER and OFFER, as PXE firmware of x64 UEFI.
    PxeOffer,
}

/// Clients are told apart by their cards, which are counted up: none comes twice in a run.
const CLIENTS: u32 = 1_000_000;
/// For what is still on its way when the last request is sent. perfdhcp takes what is later than a second for lost.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) exchange: Exchange,
    /// Exchanges begun in a second.
    pub(super) rate: f64,
    pub(super) length: Length,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Length {
    Time(Duration),
    Exchanges(u32),
}

impl Load {
    /// It plays a relay that has the address `from`, with clients behind it.
    pub(super) fn arguments(&self, from: &str, server: &str) -> Vec<String> {
        // The port of relays, where servers answer them.
        let mut arguments: Vec<String> = ["-4", "-l", from, "-L", "67"].map(String::from).into();
        let mut add = |words: [String; 2]| arguments.extend(words);
        add(["-R".into(), CLIENTS.to_string()]);
        add(["-r".into(), format!("{:.0}", self.rate)]);
        add(["-W".into(), LAST_ANSWERS.as_micros().to_string()]);
        match self.length {
            Length::Time(time) => add(["-p".into(), time.as_secs().max(1).to_string()]),
            // It leaves once it has as many answers as these are together, or when LAST_ANSWERS is over.
            Length::Exchanges(count) => {
                add(["-n".into(), count.to_string()]);
                if self.exchange == Exchange::Dora {
                    add(["-n".into(), count.to_string()]);
                }
            }
        }
        match self.exchange {
            // Looks whether an address is given out twice.
            Exchange::Dora => arguments.push("-u".into()),
            Exchange::PxeOffer => {
                add(["-o".into(), format!("60,{}", hex::encode("PXEClient:Arch:00007:UNDI:003000"))]);
                add(["-o".into(), "93,0007".into()]);
                arguments.push("-i".into());
            }
        }
        arguments.push(server.into());
        arguments
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) discovers: u64,
    pub(super) offers: u64,
    pub(super) requests: u64,
    pub(super) acks: u64,
    /// Addresses that were given to two clients. To be offered one that another was offered too is a nuisance; this is a
    /// fault.
    pub(super) twice: u64,
    /// Answers that perfdhcp had no room for: its socket holds as many as the system gives everybody, and on a busy machine
    /// it isn't always there to read them. No server is to blame for that.
    pub(super) overrun: u64,
}

impl Report {
    /// Reads what perfdhcp prints at its end: a section for each kind of exchange, with lines of `key: number`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut report = Self::default();
        let mut sections = text.split("***Statistics for: ").skip(1).peekable();
        sections.peek().context("it printed no statistics")?;
        for section in sections {
            let number = |key: &str| -> Result<u64> {
                let line = section.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
                line.and_then(|n| n.trim().parse().ok()).with_context(|| format!("its report has no {key}"))
            };
            if section.starts_with("DISCOVER-OFFER") {
                report.discovers = number("sent packets")?;
                report.offers = number("received packets")?;
            } else {
                report.requests = number("sent packets")?;
                report.acks = number("received packets")?;
                report.twice = number("non unique addresses")?;
            }
        }
        Ok(report)
    }

    fn asked(&self) -> u64 {
        self.discovers + self.requests
    }

    /// The server's answers, those included that perfdhcp had no room for.
    fn answered(&self) -> u64 {
        (self.offers + self.acks + self.overrun).min(self.asked())
    }

    /// Of all that the server was asked, the part that it left without an answer.
    pub(super) fn loss(&self) -> f64 {
        1.0 - ratio(self.answered(), self.asked())
    }

    /// The server's answers as whole exchanges.
    pub(super) fn exchanges(&self, exchange: Exchange) -> f64 {
        let answers = match exchange {
            Exchange::Dora => 2,
            Exchange::PxeOffer => 1,
        };
        ratio(self.answered(), answers)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
fn ratio(count: u64, of: u64) -> f64 {
    count as f64 / of.max(1) as f64
}

/// UDP packets that found their socket full, from /proc/net/snmp: a line of names and one of numbers for each protocol.
pub(super) fn overruns(snmp: &str) -> Result<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: ")).map(str::split_whitespace);
    let (names, numbers) = lines.next().zip(lines.next()).context("/proc/net/snmp says nothing of UDP")?;
    let count = names.zip(numbers).find_map(|(name, number)| (name == "RcvbufErrors").then(|| number.parse().ok()));
    count.flatten().context("/proc/net/snmp has no RcvbufErrors of UDP")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DORA: &str = "\
Running: perfdhcp -4 -L 67 -r 1000 -R 200000 -p 3 -W 500000 10.64.0.1
***Rate statistics***
Rate: 856.637 4-way exchanges/second, expected rate: 1000

***Malformed Packets***
Malformed packets: 0
***Statistics for: DISCOVER-OFFER***
sent packets: 2999
received packets: 2998
drops: 1
drops ratio: 0.0333444 %
orphans: 0
rejected leases: 0
non unique addresses: 1

min delay: 0.115 ms

***Statistics for: REQUEST-ACK***
sent packets: 2998
received packets: 2990
drops: 8
orphans: 0
non unique addresses: 2
";

    #[test]
    fn reports_are_read() {
        let offers = DORA.split("***Statistics for: REQUEST").next().expect("the first part");
        for (name, text, want) in [
            ("whole", DORA, Report { discovers: 2999, offers: 2998, requests: 2998, acks: 2990, twice: 2, overrun: 0 }),
            ("offers alone", offers, Report { discovers: 2999, offers: 2998, ..Report::default() }),
        ] {
            assert_eq!(Report::parse(text).expect(name), want, "{name}");
        }
        for (text, why) in [
            ("", "no statistics"),
            ("***Statistics for: DISCOVER-OFFER***\nsent packets: many\n", "its report has no sent packets"),
        ] {
            let error = Report::parse(text).expect_err("no report").to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn what_the_generator_lost_is_not_the_servers_loss() {
        let all = Report { discovers: 1000, offers: 1000, requests: 1000, acks: 1000, twice: 0, overrun: 0 };
        for (name, report, loss, exchanges) in [
            ("nothing lost", all, 0.0, 1000.0),
            ("by the server", Report { acks: 900, ..all }, 0.05, 950.0),
            ("by the generator", Report { acks: 900, overrun: 100, ..all }, 0.0, 1000.0),
            (
                "offers, by the generator",
                Report { offers: 600, requests: 600, acks: 600, overrun: 400, ..all },
                0.0,
                800.0,
            ),
            ("more overruns than answers lost", Report { acks: 995, overrun: 10, ..all }, 0.0, 1000.0),
            ("nothing asked", Report::default(), 1.0, 0.0),
        ] {
            assert!((report.loss() - loss).abs() < 1e-9, "{name}: {}", report.loss());
            assert!((report.exchanges(Exchange::Dora) - exchanges).abs() < 1e-9, "{name}");
        }
        assert!((all.exchanges(Exchange::PxeOffer) - 2000.0).abs() < 1e-9);
    }

    #[test]
    fn receive_overruns_are_counted_by_the_kernel() {
        let snmp =
            "Ip: A B\nIp: 1 2\nUdp: InDatagrams NoPorts RcvbufErrors\nUdp: 22161 0 5948\nUdpLite: X\nUdpLite: 1\n";
        assert_eq!(overruns(snmp).expect("a count"), 5948);
        overruns("Udp: InDatagrams\nUdp: 1\n").expect_err("no such counter");
    }

    #[test]
    fn firmware_says_so() {
        let load = Load { exchange: Exchange::PxeOffer, rate: 1500.4, length: Length::Exchanges(10) };
        let said = load.arguments("10.64.0.2", "10.64.0.1").join(" ");
        assert!(said.contains(" -r 1500 ") && said.contains(" -n 10 "), "{said}");
        assert!(said.ends_with(" -o 93,0007 -i 10.64.0.1"), "{said}");
        assert!(said.contains(" -o 60,505845436c69656e74"), "{said}");
    }
}
