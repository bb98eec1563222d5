//! L0's use of page-modification logging beyond what one step of a scenario writes (SDM 3C 28.2.5; KVM v5.17
//! `handle_pml_full`, `vmx_update_cpu_dirty_logging`), and what it needs of the processor.

use cpu::profile::TlbProfile;
use hypervisor::dirty_log::AfterReading;
use hypervisor::machine::Tdp;
use hypervisor::{Machine, Setup, Stop};
use mmu::ChangeSet;
use mmu::audit::Extent;
use mmu::change::Point;
use mmu::memslot::DirtyLogging;
use mmu::plant::Plants;
use mmu::state::{AccessedDirty, Config, Pml, TdpMode};
use sim_core::addr::{Gfn, Gpa};
use sim_core::arch::extension::Extension;
use sim_core::event::{Detail, Event};
use vmx::controls::SecondaryProc;

/// The slot that all of main memory is in.
const MEMORY: &str = "memory";
/// The first frame that the guest writes to.
const FIRST: u64 = 0x100;

fn setup() -> Setup {
    Setup {
        extension: Extension::Vmx,
        tdp: Tdp::On,
        changes: ChangeSet::at(Point::by_name("v5.17").expect("a point")),
        plants: Plants::NONE,
        guest_frames: 0x800,
        vcpus: 1,
        processors: 1,
        vpids: 16,
        asids: 16,
        module: Config { pml: Pml::On, ..Config::new(TdpMode::Ept, 40) },
        silicon_without: SecondaryProc::empty(),
        tlb: TlbProfile::Base,
        detail: Detail::Everything,
        audits: Extent::Everything,
    }
}

/// A flat 32-bit guest that writes to `count` frames, one after the other, and tells port E0H; then again.
fn code(count: u32) -> Vec<u8> {
    let mut code = vec![0xbf, 0, 0, 0x10, 0, 0xb9]; // mov edi, 100000h; mov ecx, count
    code.extend(count.to_le_bytes());
    code.extend([0x89, 0x07]); // again: mov [edi], eax
    code.extend([0x81, 0xc7, 0, 0x10, 0, 0]); // add edi, 1000h
    code.extend([0xe2, 0xf6]); // loop again
    code.extend([0xe7, 0xe0]); // out 0e0h, eax
    code.extend([0xeb, 0xe8]); // jmp to the beginning
    code
}

fn exits(machine: &Machine, which: &str) -> usize {
    let is_one = |event: &Event| matches!(event, Event::VmExit { name, .. } if *name == which);
    machine.ground.log.records().iter().filter(|record| is_one(&record.event)).count()
}

/// The log holds 512 addresses: that many writes in one entry fill it, and the next one exits.
#[test]
fn a_full_log_exits_and_loses_nothing() {
    for (count, full) in [(511, 0), (512, 0), (513, 1), (1025, 2)] {
        let mut machine = Machine::new(&setup()).unwrap();
        machine.guest_write(Gpa(0), &code(count));
        assert!(matches!(machine.run(0), Ok(Stop::Gate { port: 0xe0, .. })));
        machine.set_dirty_logging(MEMORY, DirtyLogging::On).unwrap();
        let (violations, expected) =
            (exits(&machine, "EPT violation"), (0..u64::from(count)).map(|at| Gfn(FIRST + at)));
        assert!(machine.run(0).is_ok());
        assert_eq!(exits(&machine, "page-modification log full"), full, "{count} writes");
        assert_eq!(exits(&machine, "EPT violation"), violations, "a write is logged without an exit");
        assert!(machine.dirty_log(MEMORY, AfterReading::Cleared).unwrap().into_iter().eq(expected), "{count} writes");
        assert_eq!(machine.findings, [], "{count} writes");
    }
}

/// While no slot logs the control is off, and nothing is logged (`vmx_update_cpu_dirty_logging`).
#[test]
fn nothing_is_logged_while_no_slot_logs() {
    let logged = |machine: &Machine| {
        let is_one = |event: &Event| matches!(event, Event::Handled { what: "PML", .. });
        machine.ground.log.records().iter().filter(|record| is_one(&record.event)).count()
    };
    let mut machine = Machine::new(&setup()).unwrap();
    machine.guest_write(Gpa(0), &code(3));
    machine.run(0).unwrap();
    for (switches, expected) in [([DirtyLogging::On, DirtyLogging::Off].as_slice(), 0), (&[DirtyLogging::On], 1)] {
        switches.iter().for_each(|logging| machine.set_dirty_logging(MEMORY, *logging).unwrap());
        machine.run(0).unwrap();
        assert_eq!(logged(&machine), expected, "{switches:?}");
    }
}

/// `hardware_setup`: EPT, its accessed and dirty flags, and the control itself.
#[test]
fn what_the_log_needs() {
    let tracked = Config { accessed_dirty: AccessedDirty::Tracked, ..setup().module };
    for (setup, lacks) in [
        (Setup { extension: Extension::Svm, ..setup() }, "on AMD"),
        (Setup { tdp: Tdp::Off, ..setup() }, "without EPT"),
        (Setup { module: tracked, ..setup() }, "without EPT's accessed and dirty flags"),
        (Setup { silicon_without: SecondaryProc::ENABLE_PML, ..setup() }, "on silicon without it"),
    ] {
        let error = Machine::new(&setup).unwrap_err().to_string();
        assert_eq!(error, format!("not modelled: the page-modification log (pml = true) {lacks}"));
    }
}
