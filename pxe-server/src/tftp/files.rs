//! What can be fetched: files named in a list and held in memory, so there is no path to escape from and nothing that
//! could vanish while the server runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use axum::body::Bytes;

use crate::dhcp::boot::{LOADERS, Loaders};

/// The boot loaders, by the name that DHCP gives out.
#[derive(Clone, Debug)]
pub struct Files {
    pub loaders: Loaders,
    all: Arc<BTreeMap<&'static str, Bytes>>,
}

impl Files {
    pub fn none() -> Self {
        Self { loaders: Loaders::new(), all: Arc::default() }
    }

    /// Reads the boot loaders that there are in `boot_dir`, and sees that what else machines boot from is there too.
    pub fn read(boot_dir: &Path) -> Result<Self> {
        for name in ["vmlinuz", "initramfs"] {
            let path = boot_dir.join(name);
            fs::metadata(&path).with_context(|| {
                format!("looking for {} (`drophammer initramfs` builds the kernel and initramfs)", path.display())
            })?;
        }
        let (mut loaders, mut all) = (Loaders::new(), BTreeMap::new());
        for (firmware, names) in LOADERS {
            let Some(name) = names.into_iter().find(|name| boot_dir.join(name).exists()) else { continue };
            let path = boot_dir.join(name);
            let bytes = fs::read(&path).with_context(|| format!("reading the boot loader {}", path.display()))?;
            all.insert(name, Bytes::from(bytes));
            loaders.insert(firmware, name);
        }
        ensure!(
            !all.is_empty(),
            "{} has no boot loader, such as {} (`drophammer initramfs build` puts them there)",
            boot_dir.display(),
            LOADERS.map(|(_, [best, _])| best).join(", ")
        );
        Ok(Self { loaders, all: Arc::new(all) })
    }

    pub fn get(&self, name: &str) -> Option<(&'static str, Bytes)> {
        self.all.get_key_value(name).map(|(name, bytes)| (*name, bytes.clone()))
    }
}
