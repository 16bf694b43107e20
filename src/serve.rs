//! `drophammer serve`: the boot server with the control API in it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use drophammer_pxe_server::{ControlAt, Settings, config};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::error;

use crate::output::LogFormat;

/// Run the boot server: DHCP, TFTP, HTTP boot, images and the control API.
#[derive(Clone, Debug, clap::Args)]
#[command(after_long_help = EXAMPLE)]
pub(crate) struct Args {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", default_value = "/etc/drophammer/server.toml")]
    config: PathBuf,
    /// Check the configuration and stop.
    #[arg(long)]
    check: bool,
    /// How the log is written.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) log: LogFormat,
    /// Run without a control API of its own, for this one (`https://host:port`).
    ///
    /// Machines boot as it decided last, even while it's gone; what they say to it goes through here.
    #[arg(long, value_name = "URL")]
    control: Option<String>,
    /// Join that control API, with a token of `drophammer bootserver token`. Needed once.
    #[arg(long, value_name = "TOKEN", env = "DROPHAMMER_JOIN", hide_env_values = true)]
    join: Option<String>,
}

impl Args {
    /// The file, and what the command line says about it.
    fn settings(&self) -> Result<Settings> {
        let mut settings = config::read(&self.config)?;
        if let Some(url) = &self.control {
            settings.control = Some(ControlAt::new(url, None).map_err(anyhow::Error::msg)?);
        }
        match (&mut settings.control, &self.join) {
            (Some(control), join) => control.join.clone_from(join),
            (None, Some(_)) => bail!("a join token is of no use without the control API that it's for (--control URL)"),
            (None, None) => {}
        }
        Ok(settings)
    }
}

const EXAMPLE: &str = r#"A complete configuration; only [[network]] and image_keys have no useful default:

  name = "boot1"                           # default: the host's
  partition = "row-1"                      # for boot servers that are on the same networks
  # control = "https://10.0.0.1:443"       # a boot server alone: no control API of its own, as with --control
  listen = ["10.0.0.1:443"]                # where else the control API is served, for such boot servers and for operators
  metrics = "127.0.0.1:9180"               # where Prometheus finds /metrics; default: nowhere
  host_names = ["control.example.org"]     # what else it's called by over HTTPS
  state_dir = "/var/lib/drophammer"        # machines, leases, certificate authority
  images_dir = "/var/lib/drophammer/images" # NAME/VERSION/manifest.json, as `drophammer image pack --store` writes it
  boot_dir = "/var/lib/drophammer/boot"    # as `drophammer initramfs build --output` writes it
  image_keys = ["/etc/drophammer/images.pub"] # who may sign images
  socket = "/var/lib/drophammer/control.sock" # for `drophammer machine` on this host
  agent_cmdline = "console=ttyS0,115200"   # more kernel arguments for the agent
  install_cmdline = "console=ttyS0,115200" # more kernel arguments for installed systems
  reboot_models = ["PowerEdge R7*"]        # products that don't take kexec well: they reboot into what was installed
  power_hook = "/etc/drophammer/power"     # called as `power cycle MACHINE_ID MACHINE_NAME`
  max_failures = 3                         # failed boots in a row after which a machine is quarantined
  erase_again_after_days = 30              # a drive that was erased and shows no write since isn't erased again so long
  erase_policy = "purge"                   # which erasures are good enough: "purge" (default), "clear" or "rekey-only"
  requests_per_second = 1000               # that one operator's token may make
  router_advertisements = true             # saves 16 s per boot with Debian 12's iPXE

  # [etcd]                                 # the control API's state, so that several servers can share it; default: a file
  # endpoints = ["https://10.0.0.2:2379", "https://10.0.0.3:2379", "https://10.0.0.4:2379"]
  # prefix = "/drophammer"                 # what all keys begin with
  # ca = "/etc/drophammer/etcd-ca.pem"
  # certificate = "/etc/drophammer/etcd.pem"
  # key = "/etc/drophammer/etcd.key"
  # user = "drophammer"
  # password_file = "/etc/drophammer/etcd.password"

  # [backup]                               # of machines, keys, everything that `drophammer backup restore` brings back
  # to = "/var/backups/drophammer"         # a directory, or s3://BUCKET/PREFIX (with endpoint, region and credentials)
  # key_file = "/etc/drophammer/backup.key" # of `drophammer backup key`; keep a copy elsewhere
  # every_hours = 24
  # keep = 14

  # [oidc]                                 # people whom an OpenID Connect provider knows
  # issuer = "https://login.example.org"
  # audience = "drophammer"
  # ca = "/etc/drophammer/login-ca.pem"
  # user_claim = "email"                   # by which tenants and projects name their members
  # groups_claim = "groups"
  # admins = ["operators"]                 # groups whose members may do, or see, everything
  # viewers = ["support"]

  [projects.bank]                          # whom machines can be allocated for, with --project
  erase_policy = "rekey-only"              # at least this when it's through with them; default: erase_policy

  [[import]]                               # somebody else's image, fetched and compiled by this server once; or while it runs:
                                           # an image-source, for which see `drophammer apply --help`
  url = "https://images.example.org/metal-os/20250101/debian/12/img.tar.lz4" # with its .sha256 or .md5 beside it
  # name = "debian-12"                     # default: what metal-stack's addresses say
  # version = "20250101"
  # sha256 = "…"                           # instead of what lies beside it; or unchecked = true
  cmdline = "console=ttyS0,115200"         # kernel arguments that it needs

  [ports]
  dhcp = 67
  proxy_dhcp = 4011
  tftp = 69
  http = 80
  https = 443

  [[network]]                              # this server gives out the addresses
  name = "rack 1"                          # default: the interface's
  interface = "eth1"
  address = "10.0.1.1"                     # of this server, already set on the interface
  subnet = "10.0.1.0/24"
  pool = [{ first = "10.0.1.100", last = "10.0.1.199" }]
  others = ["10.0.1.2"]                    # DHCP servers that are meant to be here as well; more are reported
  share = { part = 1, of = 2 }             # this is one of two servers with the same pool: each gives out its half
  lease_seconds = 3600
  probe_ms = 100                           # listen for others on an address before it is offered; 0: don't
  router = "10.0.1.254"
  dns = ["10.0.1.254"]                     # default for both: the partition's, as they are declared
  ntp = ["10.0.1.254"]
  mtu = 9000
  search = ["rack1.example.org", "example.org"]
  routes = [{ to = "10.0.0.0/8", via = "10.0.1.253" }]
  reservations = [                         # everything that is given has to fit
    { mac = "52:54:00:12:34:56", address = "10.0.1.10", hostname = "db1" },
    { uuid = "4c4c4544-0042-3510-8054-b4c04f564433", address = "10.0.1.11" },
    { client_id = "0x01525400123457", address = "10.0.1.12" },
    { circuit_id = "Ethernet7", remote_id = "leaf1", address = "10.0.1.13" },
  ]

  [[network]]                              # another server gives out the addresses: this one says where to boot from
  interface = "eth2"
  address = "10.0.2.1"
  subnet = "10.0.2.0/24"
  dhcp = "proxy"                           # or "off": that server's options point here

  [[network]]                              # behind DHCP relays that know this server by its address on eth1
  name = "rack 3"
  interface = "eth1"
  address = "10.0.1.1"
  subnet = "10.0.3.0/24"
  relayed = true
  relay = { remote_id = "leaf3" }          # only what this switch relays (option 82)
  pool = [{ first = "10.0.3.100", last = "10.0.3.199" }]
  router = "10.0.3.254"

SIGHUP (`systemctl reload drophammer`) has the file read again: pools, options, reservations, boot files, kernel arguments,
image keys, imports, backup, reboot_models, max_failures, erase_policy, erase_again_after_days and projects are taken up at
once; what else changed is refused, and needs a restart.

The log's detail is set by RUST_LOG (error, warn, info, debug, or drophammer_control=debug,…)."#;

pub(crate) fn run(args: &Args) -> Result<()> {
    let settings = args.settings()?;
    if args.check {
        return crate::output::line(&format!("{} makes sense", args.config.display()));
    }
    tokio::runtime::Runtime::new().context("starting the runtime")?.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let asked = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let mut hang_up = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
        let (reload, reloads) = mpsc::channel(1);
        let args = args.clone();
        let reading = tokio::spawn(async move {
            while hang_up.recv().await.is_some() {
                match args.settings() {
                    // Nobody takes it any more if the server is ending.
                    Ok(settings) => drop(reload.send(settings).await),
                    Err(error) => error!("the configuration was not taken up: {error:#}"),
                }
            }
        });
        let served = drophammer_pxe_server::serve_reloading(settings, reloads, asked).await;
        reading.abort();
        served
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_a_configuration() {
        let toml: String = EXAMPLE.lines().filter(|line| line.starts_with("  ")).map(|l| format!("{l}\n")).collect();
        // Files that this host needn't have.
        let toml = toml.replace(r#""/etc/drophammer/images.pub""#, "").replace("power_hook", "# power_hook");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("server.toml");
        std::fs::write(&path, toml).expect("written");
        let settings = config::read(&path).expect("makes sense");
        assert_eq!(settings.networks.len(), 3);
    }
}
