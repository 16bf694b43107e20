//! What the tenant's own first-boot program reads: cloud-init's NoCloud seed, or Ignition's file.
//!
//! Without user-data neither is touched: an image's cloud-init then does what the image's builder had in mind.

use drophammer_protocol::system::UserData;
use serde_json::json;

use super::super::root::Root;
use super::super::yaml;

const SEED: &str = "/var/lib/cloud/seed/nocloud";
const CLOUD_CONFIG: &str = "/etc/cloud/cloud.cfg.d/99-drophammer.cfg";
/// Where Ignition's dracut module of Fedora CoreOS and its kin looks on a machine that isn't in a cloud, and the file by
/// which they know their first boot.
const IGNITION_DIR: &str = "/boot/ignition";
const IGNITION_STAMP: &str = "/boot/ignition.firstboot";

pub(super) fn has_cloud_init(root: &Root) -> anyhow::Result<bool> {
    Ok(root.exists("/usr/bin/cloud-init")?
        && root.exists("/etc/cloud")?
        && !root.exists("/etc/cloud/cloud-init.disabled")?)
}

/// `network` is for a cloud-init that configures the network, too. `instance` is this installation's name.
pub(super) fn configure(
    root: &Root,
    data: Option<&UserData>,
    network: Option<&str>,
    instance: &str,
    hostname: &str,
) -> anyhow::Result<()> {
    let text = match (data, network) {
        (None, None) => return Ok(()),
        (Some(UserData::Ignition(text)), _) => {
            ignition(root, text)?;
            if network.is_none() {
                return Ok(());
            }
            None
        }
        (Some(UserData::CloudInit(text)), _) => Some(text.as_str()),
        (None, Some(_)) => None,
    };
    anyhow::ensure!(
        has_cloud_init(root)?,
        "the image has no cloud-init (or one that is switched off) to read the user-data; use another image, or leave \
         `user_data` out"
    );
    root.make_directory(SEED, 0o700)?;
    root.put_text(&format!("{SEED}/meta-data"), 0o600, &meta_data(instance, hostname))?;
    root.put_text(&format!("{SEED}/user-data"), 0o600, text.unwrap_or("#cloud-config\n{}\n"))?;
    if let Some(network) = network {
        root.put_text(&format!("{SEED}/network-config"), 0o600, network)?;
    }
    root.put_text(CLOUD_CONFIG, 0o644, &cloud_config(network.is_some()))
}

fn ignition(root: &Root, text: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        root.exists("/usr/lib/dracut/modules.d/35coreos-ignition")? || root.exists(IGNITION_DIR)?,
        "the image has nothing that reads an Ignition configuration at its first boot; use an image made for it, or give \
         cloud-init's user-data"
    );
    root.make_directory(IGNITION_DIR, 0o700)?;
    root.put_text(&format!("{IGNITION_DIR}/config.ign"), 0o600, text)?;
    root.put_text(IGNITION_STAMP, 0o644, "")
}

/// As long as the instance is the same, cloud-init doesn't begin again.
fn meta_data(instance: &str, hostname: &str) -> String {
    yaml::text(&json!({ "instance-id": instance, "local-hostname": hostname }))
}

/// Nobody on the network is asked who this machine is, and the network is configured once.
fn cloud_config(network: bool) -> String {
    let mut text = "# Written when this system was installed.\ndatasource_list: [NoCloud, None]\n".to_owned();
    if !network {
        text.push_str("network: {config: disabled}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_goes_where_it_is_read() {
        const DATA: &str = "#cloud-config\npackages: [htop]\n";
        let cloud = || UserData::CloudInit(DATA.into());
        let ign = || UserData::Ignition(r#"{"ignition":{"version":"3.4.0"}}"#.into());
        let cloud_init = ["/usr/bin/cloud-init", "/etc/cloud/cloud.cfg"].as_slice();
        let off = ["/usr/bin/cloud-init", "/etc/cloud/cloud-init.disabled"].as_slice();
        let coreos = ["/usr/lib/dracut/modules.d/35coreos-ignition/module-setup.sh"].as_slice();
        for (name, image, data, network, want) in [
            ("nothing asked", cloud_init, None, None, Ok([].as_slice())),
            ("cloud-init", cloud_init, Some(cloud()), None, Ok(&["meta-data", "user-data"])),
            (
                "with the network",
                cloud_init,
                Some(cloud()),
                Some("n"),
                Ok(&["meta-data", "network-config", "user-data"]),
            ),
            ("the network alone", cloud_init, None, Some("n"), Ok(&["meta-data", "network-config", "user-data"])),
            ("no cloud-init", &[], Some(cloud()), None, Err("no cloud-init")),
            ("one that is off", off, Some(cloud()), None, Err("switched off")),
            ("ignition", coreos, Some(ign()), None, Ok(&[])),
            ("no ignition", cloud_init, Some(ign()), None, Err("nothing that reads an Ignition")),
        ] {
            let base = tempfile::tempdir().expect("temporary directory");
            let at = |path: &str| base.path().join(path.trim_start_matches('/'));
            for path in image {
                std::fs::create_dir_all(at(path).parent().expect("below")).expect("made");
                std::fs::write(at(path), "").expect("written");
            }
            let root = Root::open(base.path()).expect("opened");
            match (configure(&root, data.as_ref(), network, "i-1", "web1"), want) {
                (Ok(()), Ok(files)) => {
                    let found = root.names(SEED).expect("listed");
                    assert_eq!(found, files.iter().map(std::ffi::OsString::from).collect::<Vec<_>>(), "{name}");
                    let ours = root.text(CLOUD_CONFIG).expect("read");
                    assert_eq!(ours.is_some(), !files.is_empty(), "{name}");
                    let disabled = ours.is_some_and(|text| text.contains("network: {config: disabled}"));
                    assert_eq!(disabled, !files.is_empty() && network.is_none(), "{name}");
                    let ign = root.text("/boot/ignition/config.ign").expect("read");
                    assert_eq!(ign.is_some(), matches!(data, Some(UserData::Ignition(_))), "{name}");
                }
                (Err(e), Err(want)) => assert!(e.to_string().contains(want), "{name}: {e}"),
                (got, want) => panic!("{name}: {got:?}, want {want:?}"),
            }
        }
        assert_eq!(meta_data("i-1", "web1"), "instance-id: \"i-1\"\nlocal-hostname: \"web1\"\n");
    }
}
