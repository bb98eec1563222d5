//! QEMU's TCG, which emulates SVM with nested paging.
//!
//! Time is counted in instructions and idle time skipped, so that a boot is the same each time. Without `-cx16` the 6.12
//! kernel dies now and then: TCG's CMPXCHG16B is at fault. QEMU 10's TCG lets L2 read CR3 of its shadow; 7.2 does not.

use super::emulator::{MEMORY, Place, Program};
use super::{Rig, command_line};
use crate::backend::kvm::PORT;

pub(super) fn program(rig: &Rig, place: &Place) -> Program {
    let memory = (MEMORY >> 20).to_string();
    let port = format!("isa-debugcon.iobase={PORT:#x}");
    let console = format!("file:{}", place.console().display());
    let kernel = rig.setup.vmlinux();
    let words = [
        "-nodefaults -no-user-config -display none -no-reboot -accel tcg -M q35 -cpu max,-cx16,-rdrand -seed 1",
        "-icount shift=2,sleep=off,align=off -rtc base=2024-01-01T00:00:00,clock=vm -debugcon stdio",
    ];
    let mut arguments: Vec<String> = words.iter().flat_map(|line| line.split(' ')).map(str::to_owned).collect();
    for (option, value) in [
        ("-m", memory),
        ("-global", port),
        ("-serial", console),
        ("-kernel", kernel.display().to_string()),
        ("-initrd", place.initramfs().display().to_string()),
        ("-append", command_line(rig)),
    ] {
        arguments.extend([option.to_owned(), value]);
    }
    Program { name: "qemu-system-x86_64", arguments }
}
