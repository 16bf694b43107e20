//! What an operator says of the system that is to be installed: in a file, on the command line, or both.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use drophammer_protocol::system::{Console, System, UserData};

/// Everything here can be in the file, too; what is said here counts for more.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Wish {
    /// TOML file that says what the system is to be: users, network, time, consoles; see the example below.
    #[arg(long, value_name = "FILE")]
    system: Option<PathBuf>,
    /// Hostname of the installed system; by default the machine's name.
    #[arg(long)]
    hostname: Option<String>,
    /// File with public SSH keys that may log in as root. Can be given several times.
    #[arg(long = "ssh-key", value_name = "FILE")]
    ssh_keys: Vec<PathBuf>,
    /// File for the image's own first-boot program: cloud-init's user-data, or an Ignition configuration.
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
    /// Name server, instead of what DHCP says. Can be given up to three times.
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Time server, by name or address. Can be given several times.
    #[arg(long, value_name = "SERVER")]
    ntp: Vec<String>,
    /// Time zone, such as Europe/Berlin.
    #[arg(long, value_name = "NAME")]
    timezone: Option<String>,
    /// Serial console: its port and, if it isn't 115200, its speed. Can be given several times; the last one is the
    /// system's own.
    #[arg(long = "console", value_name = "PORT[,SPEED]", value_parser = console)]
    consoles: Vec<Console>,
}

pub(crate) const EXAMPLE: &str = r#"A file for --system; everything in it is optional:

  hostname = "web1.example.org"
  ssh_keys = ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFzqkcqBdRpHnJkZ4s2Qf0Q0J1m8Xc0Yw5mS7m2JvH3b root's"]
  dns = ["10.0.0.53", "2001:db8::53"]      # instead of what DHCP says
  search = ["example.org"]
  ntp = ["ntp.example.org"]
  timezone = "Europe/Berlin"
  consoles = [{ port = "ttyS1", speed = 57600 }] # kernel arguments and a login; the last one is /dev/console

  user_data.cloud-init = """
  #cloud-config
  packages: [htop]
  """                                      # or user_data.ignition; an image that can't read it isn't installed

  [[users]]                                # made, or changed if the image has one of this name
  name = "ann"
  password = "$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7" # of mkpasswd; default: none
  ssh_keys = []
  groups = ["adm"]                         # besides her own
  sudo = "password"                        # or "no-password"; default: none

  [[network.ports]]                        # no network at all: DHCP on the port of the installation
  mac = "52:54:00:77:00:01"
  mtu = 9000
  ip = { dhcp4 = true, dhcp6 = true }

  [[network.bonds]]
  name = "bond0"
  members = ["52:54:00:77:00:02", "52:54:00:77:00:03"] # it has the first one's MAC
  mode = "802.3ad"                         # default; or "active-backup", "balance-xor", …
  lacp_rate = "fast"
  hash_policy = "layer3+4"
  min_links = 1
  ip.addresses = ["192.0.2.5/24", "2001:db8::5/64"]
  ip.gateways = ["192.0.2.1", "fe80::1"]
  ip.routes = [{ to = "10.0.0.0/8", via = "192.0.2.2", metric = 10 }] # on_link = true: via is no address' neighbour

  [[network.vlans]]
  id = 100
  on = "bond0"                             # or a port's MAC
  name = "storage"                         # default: vlan100
  ip.addresses = ["10.1.0.5/24"]

  [metal_stack]                            # only for images with metal-stack's installer
  project = "p1"
  role = "machine"                         # or "firewall"
  networks = [{ network = "n1", kind = "child", prefixes = ["10.2.0.0/22"], ips = ["10.2.0.5"], vrf = 30, asn = 4200000001 }]

What an image has no way to do ends the installation with a sentence. Password hashes and user-data are kept from lists, logs
and events; in the installed system they are where its own programs read them."#;

impl Wish {
    /// The description. `name` is for a machine that isn't given another one.
    pub(crate) fn read(&self, name: impl FnOnce() -> Result<String>) -> Result<System> {
        let mut table = match &self.system {
            Some(path) => read(path)?.parse::<toml::Table>().with_context(|| understanding(path))?,
            None => toml::Table::new(),
        };
        if let Some(hostname) = &self.hostname {
            table.insert("hostname".into(), hostname.clone().into());
        } else if !table.contains_key("hostname") {
            table.insert("hostname".into(), name()?.into());
        }
        let path = self.system.as_deref().unwrap_or(Path::new("the command line"));
        let mut system: System = table.try_into().with_context(|| understanding(path))?;
        if !self.ssh_keys.is_empty() {
            system.ssh_keys = read_keys(&self.ssh_keys)?;
        }
        if let Some(path) = &self.user_data {
            system.user_data = Some(UserData::recognise(read(path)?));
        }
        if !self.dns.is_empty() {
            system.dns.clone_from(&self.dns);
        }
        if !self.ntp.is_empty() {
            system.ntp.clone_from(&self.ntp);
        }
        if !self.consoles.is_empty() {
            system.consoles.clone_from(&self.consoles);
        }
        system.timezone = self.timezone.clone().or(system.timezone);
        Ok(system)
    }
}

fn understanding(path: &Path) -> String {
    format!("understanding {}", path.display())
}

fn read(path: &Path) -> Result<String> {
    /// Far more than is taken, and far less than what isn't a text.
    const MAX_BYTES: u64 = 1 << 20;
    let length = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
    ensure!(length <= MAX_BYTES, "{} has {length} bytes, which is too large for what it should be", path.display());
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn read_keys(files: &[PathBuf]) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).with_context(|| format!("reading the SSH keys in {}", file.display()))?;
        keys.extend(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
    }
    Ok(keys)
}

fn console(text: &str) -> Result<Console, String> {
    let (port, speed) = match text.split_once(',') {
        None => (text, None),
        Some((port, speed)) => {
            (port, Some(speed.parse().map_err(|_| format!("{speed:?} is no speed in bits per second"))?))
        }
    };
    Ok(Console { port: port.into(), speed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> String {
        EXAMPLE.lines().filter_map(|line| line.strip_prefix("  ")).map(|line| format!("{line}\n")).collect()
    }

    fn named() -> Result<String> {
        Ok("m1".into())
    }

    #[test]
    fn the_example_in_the_help_is_right_and_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("system.toml");
        fs::write(&path, example()).expect("written");
        let system = Wish { system: Some(path), ..Wish::default() }.read(named).expect("understood");
        assert_eq!(system.check(), Ok(()));
        // Nothing that can be said is left out of it.
        let json = serde_json::to_value(&system).expect("JSON");
        for key in [
            "hostname",
            "ssh_keys",
            "users",
            "dns",
            "search",
            "ntp",
            "network",
            "timezone",
            "consoles",
            "user_data",
            "metal_stack",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn flags_count_for_more_than_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).expect("written");
            path
        };
        let toml = file("system.toml", "hostname = \"a\"\ntimezone = \"UTC\"\nntp = [\"x\"]\n");
        let data = file("data", "#cloud-config\n{}\n");
        let wish = |change: &dyn Fn(&mut Wish)| {
            let mut wish = Wish { system: Some(toml.clone()), ..Wish::default() };
            change(&mut wish);
            wish.read(named).expect("understood")
        };
        assert_eq!(wish(&|_| {}).hostname, "a");
        assert_eq!(Wish::default().read(named).expect("understood").hostname, "m1");
        let system = wish(&|w| {
            w.hostname = Some("b".into());
            w.ntp = vec!["y".into()];
            w.user_data = Some(data.clone());
            w.consoles = vec![console("ttyS1,9600").expect("one")];
        });
        assert_eq!((system.hostname.as_str(), system.ntp.as_slice()), ("b", ["y".to_owned()].as_slice()));
        assert_eq!(system.timezone.as_deref(), Some("UTC"), "which no flag spoke of");
        assert_eq!(system.user_data, Some(UserData::CloudInit("#cloud-config\n{}\n".into())));
        assert_eq!(system.consoles, [Console { port: "ttyS1".into(), speed: Some(9600) }]);
        assert!(console("ttyS1,fast").is_err());
        let typo = file("typo.toml", "hostnam = \"a\"\n");
        let why = Wish { system: Some(typo), ..Wish::default() }.read(named).expect_err("a typing mistake");
        assert!(format!("{why:#}").contains("hostnam"), "{why:#}");
    }
}
