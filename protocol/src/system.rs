//! What an image becomes: the name, the people, the network and the first words of the system that is installed from it.
//!
//! Plain data that says what is wanted, whatever the image configures it with. Operators write it (as TOML or JSON), the
//! server checks it when it's asked for, and the agent checks it again before it erases anything: both with
//! [`System::check`], which names everything that is wrong and where. Only the host name is needed; what isn't given is
//! as the image has it, and the network is DHCP on the port that the machine was installed through.
//!
//! Password hashes and user-data are secrets: `Debug` doesn't show them, and [`System::without_secrets`] is what lists
//! and pages get.

use std::fmt;
use std::net::IpAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

pub mod metal_stack;
pub mod network;

use self::metal_stack::MetalStack;
use self::network::Network;
use crate::faults::{Faults, Findings, shown};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct System {
    pub hostname: String,
    /// Who may log in as root.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<User>,
    /// Instead of what DHCP says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Domains in which short names are looked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Time servers by name or address, instead of the image's and of what DHCP says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ntp: Vec<String>,
    #[serde(default, skip_serializing_if = "Network::is_empty")]
    pub network: Network,
    /// A name of the IANA time zone database, such as `Europe/Berlin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Serial consoles: the kernel writes to all of them, the last one is /dev/console, and each gets a login prompt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub consoles: Vec<Console>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data: Option<UserData>,
    /// What only images with metal-stack's installer understand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metal_stack: Option<MetalStack>,
}

/// An account that is made, or one of the image's that is changed: its password and its keys are what is given here, and
/// nothing else; the groups are added to those that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct User {
    pub name: String,
    /// Without one nobody gets in by password; keys work all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<PasswordHash>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Besides the one of its own name. Those that the image doesn't have are made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Whether it may become root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sudo: Option<Sudo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Sudo {
    /// With its own password.
    Password,
    NoPassword,
}

/// A password as crypt(3) hashes it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct PasswordHash(String);

impl PasswordHash {
    pub fn new(hash: impl Into<String>) -> Self {
        Self(hash.into())
    }

    /// For the shadow file, and for nothing that anybody else reads.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(not shown)")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// As the kernel calls it: `ttyS0`, `ttyAMA0`, `hvc0`.
    pub port: String,
    /// Bits per second; 115200 if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed: Option<u32>,
}

impl Console {
    pub const DEFAULT_SPEED: u32 = 115_200;

    /// For the kernel's command line.
    pub fn kernel_argument(&self) -> String {
        format!("console={},{}n8", self.port, self.speed.unwrap_or(Self::DEFAULT_SPEED))
    }
}

/// What the tenant's own first-boot program reads.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UserData {
    CloudInit(String),
    Ignition(String),
}

impl UserData {
    /// As much as metal-stack takes, twice what EC2 does.
    pub const MAX_BYTES: usize = 32 << 10;

    pub fn text(&self) -> &str {
        let (Self::CloudInit(text) | Self::Ignition(text)) = self;
        text
    }

    /// By what the file itself says: Ignition's are JSON objects with an `ignition` member.
    pub fn recognise(text: String) -> Self {
        let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        if json.is_some_and(|value| value.get("ignition").is_some()) {
            Self::Ignition(text)
        } else {
            Self::CloudInit(text)
        }
    }
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::CloudInit(_) => "CloudInit",
            Self::Ignition(_) => "Ignition",
        };
        write!(f, "{kind}({} bytes, not shown)", self.text().len())
    }
}

const MAX_SSH_KEYS: usize = 100;
const MAX_USERS: usize = 100;
const MAX_GROUPS: usize = 32;
/// The C library's resolver looks at no more.
const MAX_DNS: usize = 3;
const MAX_SEARCH: usize = 32;
const MAX_NTP: usize = 10;
const MAX_CONSOLES: usize = 4;

impl System {
    /// Everything in it can be written down, and means what it says. What it says about hardware only the machine knows.
    pub fn check(&self) -> Result<(), Faults> {
        let mut found = Findings::default();
        found.unless(is_hostname(&self.hostname), "hostname", || {
            format!(
                "{} is not a hostname: labels of letters, digits and hyphens, joined by dots (RFC 1123), 64 at most",
                shown(&self.hostname)
            )
        });
        check_keys(&self.ssh_keys, "ssh_keys", &mut found);
        self.check_users(&mut found);
        found.at_most(MAX_DNS, self.dns.len(), "dns");
        for server in &self.dns {
            found.unless(!server.is_unspecified() && !server.is_multicast(), "dns", || {
                format!("{server} is no server's address")
            });
        }
        found.at_most(MAX_SEARCH, self.search.len(), "search");
        for domain in &self.search {
            found.unless(is_domain(domain), "search", || format!("{} is not a domain", shown(domain)));
        }
        found.at_most(MAX_NTP, self.ntp.len(), "ntp");
        for server in &self.ntp {
            found.unless(is_domain(server) || server.parse::<IpAddr>().is_ok(), "ntp", || {
                format!("{} is neither a host name nor an address", shown(server))
            });
        }
        self.network.check(&mut found);
        if let Some(zone) = &self.timezone {
            found.unless(is_time_zone(zone), "timezone", || {
                format!("{} is not the name of a time zone, such as Europe/Berlin or UTC", shown(zone))
            });
        }
        self.check_consoles(&mut found);
        if let Some(data) = &self.user_data {
            check_user_data(data, &mut found);
        }
        if let Some(metal) = &self.metal_stack {
            metal.check(&mut found);
        }
        found.verdict()
    }

    fn check_users(&self, found: &mut Findings) {
        found.at_most(MAX_USERS, self.users.len(), "users");
        found.once(self.users.iter().map(|user| &user.name), "users", |name| shown(name));
        for user in &self.users {
            if !is_account(&user.name) {
                found.unless(false, "users", || format!("{} {ACCOUNT_NAMES}", shown(&user.name)));
                continue;
            }
            let at = format!("users.{}", user.name);
            if let Some(password) = &user.password {
                // What was given isn't repeated: people mistake this for the place of the password itself.
                found.unless(is_crypt(password.secret()), &format!("{at}.password"), || {
                    "it is not a password hash of a kind that is still safe (yescrypt, scrypt, bcrypt, SHA-512 or \
                     SHA-256), as `mkpasswd` or `openssl passwd -6` print it"
                        .into()
                });
            }
            check_keys(&user.ssh_keys, &format!("{at}.ssh_keys"), found);
            found.at_most(MAX_GROUPS, user.groups.len(), &format!("{at}.groups"));
            for group in &user.groups {
                found
                    .unless(is_account(group), &format!("{at}.groups"), || format!("{} {ACCOUNT_NAMES}", shown(group)));
            }
            found.unless(user.sudo != Some(Sudo::Password) || user.password.is_some(), &format!("{at}.sudo"), || {
                "it would be asked for a password that it doesn't have: give it one, or say no-password".into()
            });
        }
    }

    fn check_consoles(&self, found: &mut Findings) {
        const SPEEDS: [u32; 9] = [9600, 19200, 38400, 57600, 115_200, 230_400, 460_800, 921_600, 1_500_000];
        found.at_most(MAX_CONSOLES, self.consoles.len(), "consoles");
        found.once(self.consoles.iter().map(|console| &console.port), "consoles", |port| shown(port));
        for Console { port, speed } in &self.consoles {
            let digits = port.trim_start_matches(|c: char| c.is_ascii_alphabetic());
            let kind = port.get(..port.len() - digits.len()).unwrap_or_default();
            let known = matches!(kind, "ttyS" | "ttyAMA" | "ttyUSB" | "hvc" | "ttyO" | "ttymxc" | "ttyPS" | "ttyLP");
            let numbered = (1..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            found.unless(known && numbered, "consoles", || {
                format!("{} is not a serial port as the kernel names them, such as ttyS0", shown(port))
            });
            found.unless(speed.is_none_or(|speed| SPEEDS.contains(&speed)), "consoles", || {
                let speeds: Vec<String> = SPEEDS.iter().map(ToString::to_string).collect();
                format!("{} bit/s isn't one of {}", speed.unwrap_or_default(), speeds.join(", "))
            });
        }
    }

    /// The same with `(not shown)` in place of what is secret. It doesn't pass [`System::check`], so that nobody installs
    /// by mistake what a list has shown.
    #[must_use]
    pub fn without_secrets(mut self) -> Self {
        const NOT_SHOWN: &str = "(not shown)";
        for user in &mut self.users {
            user.password = user.password.as_ref().map(|_| PasswordHash::new(NOT_SHOWN));
        }
        self.user_data = self.user_data.map(|data| match data {
            UserData::CloudInit(_) => UserData::CloudInit(NOT_SHOWN.into()),
            UserData::Ignition(_) => UserData::Ignition(NOT_SHOWN.into()),
        });
        self
    }

    /// For the kernel's command line.
    pub fn kernel_arguments(&self) -> Vec<String> {
        self.consoles.iter().map(Console::kernel_argument).collect()
    }
}

fn check_keys(keys: &[String], at: &str, found: &mut Findings) {
    found.at_most(MAX_SSH_KEYS, keys.len(), at);
    for (index, key) in keys.iter().enumerate() {
        // A private key that somebody mistook for the public one isn't repeated.
        found.unless(is_ssh_key(key), at, || {
            format!("SSH key {} is not a public key as ssh-keygen writes it (`ssh-ed25519 AAAA… comment`)", index + 1)
        });
    }
}

fn check_user_data(data: &UserData, found: &mut Findings) {
    const AT: &str = "user_data";
    let text = data.text();
    found.unless(text.len() <= UserData::MAX_BYTES, AT, || {
        format!("it has {} bytes, and {} is the most that is taken", text.len(), UserData::MAX_BYTES)
    });
    found.unless(!text.contains('\0'), AT, || "it has a NUL in it, so it isn't text".into());
    match data {
        // cloud-init skips what it doesn't recognise, and nobody hears of it.
        UserData::CloudInit(text) => found.unless(begins_as_cloud_init_does(text), AT, || {
            "it doesn't begin as cloud-init's user-data does: with a line #cloud-config, a #! and a program, or the \
             header of a MIME message"
                .into()
        }),
        UserData::Ignition(text) => {
            let version = serde_json::from_str(text)
                .ok()
                .and_then(|json: serde_json::Value| Some(json.get("ignition")?.get("version")?.as_str()?.to_owned()));
            let known = version.is_some_and(|version| version.starts_with("2.") || version.starts_with("3."));
            found.unless(known, AT, || {
                "it is not an Ignition configuration: JSON whose ignition.version is a 2.x or 3.x (butane makes it \
                 from YAML)"
                    .into()
            });
        }
    }
}

/// <https://docs.cloud-init.io/en/latest/explanation/format.html>
fn begins_as_cloud_init_does(text: &str) -> bool {
    const HEADERS: [&str; 8] = [
        "#cloud-config",
        "#cloud-boothook",
        "#include",
        "#part-handler",
        "#!",
        "## template: jinja",
        "Content-Type:",
        "MIME-Version:",
    ];
    let first = text.lines().next().unwrap_or_default();
    HEADERS.iter().any(|header| first.get(..header.len()).is_some_and(|start| start.eq_ignore_ascii_case(header)))
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// RFC 1123 §2.1.
fn is_hostname(name: &str) -> bool {
    // Linux takes no more than 64 (HOST_NAME_MAX).
    name.len() <= 64 && name.split('.').all(is_label)
}

fn is_domain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_label)
}

/// A file below /usr/share/zoneinfo, and no way out of there.
fn is_time_zone(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part.starts_with(|c: char| c.is_ascii_alphabetic())
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'_'))
    };
    name.len() <= 64 && name.split('/').all(part)
}

const ACCOUNT_NAMES: &str = "is not a name for an account: a small letter or _, then small letters, digits, - and _, 32 \
                             at most";

/// What useradd(8) takes.
fn is_account(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-'))
}

/// crypt(5). MD5 and DES are no protection any more.
fn is_crypt(hash: &str) -> bool {
    let base64 = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/'))
    };
    let salt = |text: &str| {
        (1..=86).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b':' | b';' | b'*' | b'!' | b'\\' | b'$'))
    };
    let fields: Vec<&str> = hash.split('$').collect();
    if hash.len() > 384 {
        return false;
    }
    match fields.as_slice() {
        ["", "6", middle @ .., digest] => with_rounds(middle, salt) && base64(digest, 86),
        ["", "5", middle @ .., digest] => with_rounds(middle, salt) && base64(digest, 43),
        ["", "2a" | "2b" | "2y", cost, rest] => {
            cost.len() == 2 && cost.bytes().all(|b| b.is_ascii_digit()) && base64(rest, 53)
        }
        ["", "y" | "gy", parameters, middle, digest] => salt(parameters) && salt(middle) && base64(digest, 43),
        ["", "7", middle, digest] => salt(middle) && base64(digest, 43),
        _ => false,
    }
}

fn with_rounds(middle: &[&str], salt: impl Fn(&str) -> bool) -> bool {
    let rounds = |text: &str| {
        text.strip_prefix("rounds=")
            .is_some_and(|n| (1..=9).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
    };
    match middle {
        [text] => salt(text),
        [first, text] => rounds(first) && salt(text),
        _ => false,
    }
}

/// One line `type base64 [comment]` whose blob begins with the same type (RFC 4253 §6.6), and that can't smuggle
/// another line or options into `authorized_keys`.
fn is_ssh_key(line: &str) -> bool {
    const TYPES: [&str; 7] = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let line = line.trim();
    let mut words = line.split(' ');
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else { return false };
    let Ok(blob) = BASE64_STANDARD.decode(blob) else { return false };
    let Some((length, rest)) = blob.split_first_chunk::<4>() else { return false };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    line.len() <= 16 << 10
        && !line.contains(char::is_control)
        && TYPES.contains(&kind)
        && rest.get(..length) == Some(kind.as_bytes())
        && rest.len() > length
}

#[cfg(test)]
mod tests;
