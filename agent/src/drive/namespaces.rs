//! Namespaces of NVMe drives that no controller shows. They hold data like any other, so they are attached before anybody
//! asks what this machine has; attaching changes nothing on them.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use drophammer_protocol::event::Phase;

use super::Data;
use super::nvme::{Command, Controller, IDENTIFY_BYTES, IdentifyPage, controller_list, namespace_list};
use crate::inventory::sysfs;
use crate::reporter::Reporter;
use crate::sys;

/// How long the kernel may take to show what was attached.
const UNTIL_SHOWN: Duration = Duration::from_secs(5);

/// Attaches whatever isn't. What can't be attached is said, and stays in the way of an erase.
pub(crate) fn attach_all(reporter: &Reporter) {
    let class = Path::new("/sys/class/nvme");
    for name in sysfs::names(class) {
        match attach(class, &name) {
            Ok(attached) if attached.is_empty() => {}
            Ok(attached) => {
                let list = attached.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
                reporter.note(Phase::Inventory, format!("attached namespace {list} of {name}, which nobody could see"));
            }
            Err(e) => {
                let message = format!("{name} may have namespaces that nobody can see: {e:#}");
                reporter.failed(Phase::Inventory, message);
            }
        }
    }
}

fn attach(class: &Path, name: &str) -> anyhow::Result<Vec<u32>> {
    let path = Path::new("/dev").join(name);
    let device = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let controller = Controller::parse(&identify(&device, IdentifyPage::Controller)?).context("it tells no serial")?;
    if !controller.can_manage_namespaces() {
        return Ok(Vec::new());
    }
    let shown = namespace_list(&identify(&device, IdentifyPage::ActiveNamespaces)?);
    let mut hidden = namespace_list(&identify(&device, IdentifyPage::AllocatedNamespaces)?);
    hidden.retain(|id| !shown.contains(id));
    for &nsid in &hidden {
        let list = controller_list(controller.id);
        let what = || format!("attaching namespace {nsid}");
        let answer = sys::nvme::submit(&device, &Command::attach(nsid), Data::Out(&list)).with_context(what)?;
        answer.check().with_context(what)?;
    }
    if !hidden.is_empty() {
        let rescan = class.join(name).join("rescan_controller");
        fs::write(&rescan, "1").with_context(|| format!("writing to {}", rescan.display()))?;
        let deadline = Instant::now() + UNTIL_SHOWN;
        while !hidden.iter().all(|nsid| is_shown(class, name, *nsid)) {
            ensure!(Instant::now() < deadline, "the kernel doesn't show what was attached");
            thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(hidden)
}

/// A namespace hangs below its controller, as `nvme0n1` or, in a subsystem, as the path `nvme0c0n1`.
fn is_shown(class: &Path, name: &str, nsid: u32) -> bool {
    let controller = class.join(name);
    sysfs::names(&controller).iter().any(|entry| sysfs::number(&controller.join(entry).join("nsid")) == Some(nsid))
}

fn identify(device: &File, page: IdentifyPage) -> anyhow::Result<Vec<u8>> {
    let mut data = vec![0; IDENTIFY_BYTES];
    let what = || format!("asking for {page:?}");
    let answer = sys::nvme::submit(device, &Command::identify(page), Data::In(&mut data)).with_context(what)?;
    answer.check().with_context(what)?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::Tree;

    #[test]
    fn what_the_kernel_shows() {
        let tree = Tree::new();
        tree.file("sys/class/nvme/nvme0/nvme0n1/nsid", "1\n");
        tree.file("sys/class/nvme/nvme1/nvme0c1n2/nsid", "2\n");
        let class = tree.root().join("sys/class/nvme");
        for (controller, nsid, shown) in
            [("nvme0", 1, true), ("nvme0", 2, false), ("nvme1", 2, true), ("nvme2", 1, false)]
        {
            assert_eq!(is_shown(&class, controller, nsid), shown, "{controller} {nsid}");
        }
    }
}
