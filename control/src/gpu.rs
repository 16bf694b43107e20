//! Which PCI functions are graphics processors, and what they are called. Agents report numbers; the names are here, where
//! there is room for them.

use drophammer_protocol::hardware::Gpu;
use drophammer_protocol::inventory::PciFunction;
use pci_ids::{Device, FromId, Vendor};

const DISPLAY: u32 = 0x03;
/// Some that nobody would ever connect a display to.
const PROCESSING_ACCELERATOR: u32 = 0x12;
/// Who makes what servers show their console with: management controllers and virtual machines.
const CONSOLES: [u16; 6] = [
    0x1a03, // ASPEED
    0x102b, // Matrox
    0x1234, // QEMU
    0x1af4, // virtio
    0x1b36, // QXL
    0x1013, // Cirrus
];

/// What the function is called, if it is one.
pub(crate) fn of(function: &PciFunction) -> Option<Gpu> {
    let is_one = matches!(function.class >> 16, DISPLAY | PROCESSING_ACCELERATOR);
    if !is_one || CONSOLES.contains(&function.vendor) {
        return None;
    }
    let vendor = Vendor::from_id(function.vendor).map(|vendor| vendor.name().to_owned());
    let model = Device::from_vid_pid(function.vendor, function.device).map(|device| marketed(device.name()).to_owned());
    Some(Gpu {
        vendor: vendor.unwrap_or_else(|| format!("vendor {:04x}", function.vendor)),
        model: model.unwrap_or_else(|| format!("device {:04x}", function.device)),
    })
}

/// The database has `GH100 [H100 PCIe]`: the chip, and what it's sold as.
fn marketed(name: &str) -> &str {
    let inside = name.split_once('[').and_then(|(_, rest)| rest.rsplit_once(']')).map(|(inside, _)| inside);
    inside.unwrap_or(name).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphics_processors_have_names() {
        for (name, class, vendor, device, want) in [
            ("a 3D controller", 0x03_0200, 0x10de, 0x2331, Some("NVIDIA Corporation: H100 PCIe")),
            (
                "another maker's",
                0x03_8000,
                0x1002,
                0x740f,
                Some("Advanced Micro Devices, Inc. [AMD/ATI]: Instinct MI210"),
            ),
            ("an accelerator", 0x12_0000, 0x1da3, 0x1020, Some("Habana Labs Ltd.: Gaudi2 AI Training Accelerator")),
            ("one that is too new", 0x03_0200, 0x10de, 0xfffe, Some("NVIDIA Corporation: device fffe")),
            ("a server's console", 0x03_0000, 0x1a03, 0x2000, None),
            ("a virtual machine's", 0x03_0000, 0x1234, 0x1111, None),
            ("a network card", 0x02_0000, 0x8086, 0x1572, None),
        ] {
            let function = PciFunction {
                address: String::new(),
                class,
                vendor,
                device,
                subsystem_vendor: None,
                subsystem_device: None,
                driver: None,
                numa_node: None,
            };
            let got = of(&function).map(|gpu| format!("{}: {}", gpu.vendor, gpu.model));
            assert_eq!(got.as_deref(), want, "{name}");
        }
    }
}
