//! Bochs, which emulates VMX with EPT, and SVM with nested paging. Debian's build has a debugger, which is told to go on at once, and no display that
//! needs nothing: the one for terminals does without one.
//!
//! A low number of instructions a second makes the kernel's delays short.

use super::emulator::{MEMORY, Place, Program};
use super::{Rig, command_line, pvh, rom};
use crate::file::Vendor;
use sim_core::SimError;
use std::fs;

/// The processor: Intel's has EPT with accessed and dirty bits, VPIDs, shadow VMCS, unrestricted guests and SMAP, AMD's has
/// nested paging.
const fn model(vendor: Vendor) -> &'static str {
    match vendor {
        Vendor::Intel => "broadwell_ult",
        Vendor::Amd => "ryzen",
    }
}

pub(super) fn program(rig: &Rig, place: &Place) -> Result<Program, SimError> {
    let failed = |error: std::io::Error| SimError::unmodelled(format!("the image of a rig: {error}"));
    let kernel = fs::read(rig.setup.vmlinux()).map_err(failed)?;
    let initramfs = fs::read(place.initramfs()).map_err(failed)?;
    let image = pvh::image(&kernel, &initramfs, &command_line(rig), MEMORY)?;
    fs::write(place.file("image"), image).map_err(failed)?;
    fs::write(place.file("rom"), rom::build()?).map_err(failed)?;
    fs::write(place.file("bochsrc"), configuration(rig, place)).map_err(failed)?;
    fs::write(place.file("debugger"), "c\n").map_err(failed)?;
    let path = |name: &str| place.file(name).display().to_string();
    let arguments = ["-q", "-f", &path("bochsrc"), "-rc", &path("debugger")].map(str::to_owned).to_vec();
    Ok(Program { name: "bochs-bin", arguments })
}

fn configuration(rig: &Rig, place: &Place) -> String {
    let path = |name: &str| place.file(name).display().to_string();
    let memory = MEMORY >> 20;
    [
        "config_interface: textconfig".to_owned(),
        "display_library: term".to_owned(),
        "plugin_ctrl: unmapped=1, serial=1, biosdev=0, speaker=0, extfpuirq=0, parallel=0, voodoo=0, e1000=0, ne2k=0, \
         es1370=0, sb16=0, usb_uhci=0"
            .to_owned(),
        format!("romimage: file={}, address={:#x}", path("rom"), rom::BASE),
        "vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest".to_owned(),
        format!("optramimage1: file={}, address={:#x}", path("image"), pvh::IMAGE),
        format!("cpu: model={}, count=1, ips=20000000, reset_on_triple_fault=0, ignore_bad_msrs=1", model(rig.vendor)),
        format!("memory: guest={memory}, host={memory}"),
        "clock: sync=none, time0=1700000000".to_owned(),
        format!("com1: enabled=1, mode=file, dev={}", place.console().display()),
        "port_e9_hack: enabled=1".to_owned(),
        format!("log: {}", path("log")),
        "panic: action=fatal".to_owned(),
        "error: action=ignore".to_owned(),
        "info: action=ignore".to_owned(),
        "debug: action=ignore".to_owned(),
        "pci: enabled=1, chipset=i440fx".to_owned(),
    ]
    .map(|line| line + "\n")
    .concat()
}
