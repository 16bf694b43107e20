//! `drophammer serve`: the boot server with the control API in it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use drophammer_pxe_server::Config;
use tokio::signal::unix::{SignalKind, signal};

/// Run the boot server: DHCP, TFTP, HTTP boot, images and the control API.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLE)]
pub(crate) struct Args {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", default_value = "/etc/drophammer/server.toml")]
    config: PathBuf,
    /// Check the configuration and stop.
    #[arg(long)]
    check: bool,
}

const EXAMPLE: &str = r#"A complete configuration; only [network] and image_keys have no useful default:

  state_dir = "/var/lib/drophammer"        # machines, leases, certificate authority
  images_dir = "/var/lib/drophammer/images" # NAME/VERSION/manifest.json, as `drophammer image pack --store` writes it
  boot_dir = "/var/lib/drophammer/boot"    # as `drophammer initramfs build --output` writes it
  image_keys = ["/etc/drophammer/images.pub"] # who may sign images
  socket = "/var/lib/drophammer/control.sock" # for `drophammer machine` on this host
  agent_cmdline = "console=ttyS0,115200"   # more kernel arguments for the agent
  install_cmdline = "console=ttyS0,115200" # more kernel arguments for installed systems
  power_hook = "/etc/drophammer/power"     # called as `power cycle MACHINE_ID MACHINE_NAME`
  max_failures = 3                         # failed boots in a row after which a machine is quarantined
  router_advertisements = true             # saves 16 s per boot with Debian 12's iPXE

  [network]
  interface = "eth1"
  address = "10.0.0.1"                     # of this server, already set on the interface
  prefix = 24
  pool = { first = "10.0.0.100", last = "10.0.0.199" }
  router = "10.0.0.254"
  dns = ["10.0.0.254"]
  ntp = ["10.0.0.254"]
  lease_seconds = 3600

  [ports]
  dhcp = 67
  tftp = 69
  http = 80
  https = 443

The log's detail is set by RUST_LOG (error, warn, info, debug, or drophammer_control=debug,…)."#;

pub(crate) fn run(args: &Args) -> Result<()> {
    let config = Config::load(&args.config)?;
    if args.check {
        config.check()?;
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
        drophammer_pxe_server::serve(config, asked).await
    })
}
