//! VM-entry and VM-exit as a whole: what is loaded, saved, kept and flushed (SDM 3C 26.3.2, 26.4, 26.6, 27.3, 27.5).

use crate::bench::{Bench, EPT, MSR_AREA, PDPT, VMCS, ready, running};
use cpu::profile::TlbProfile;
use cpu::tlb::Tlb;
use cpu::virt::{ControlRegister, Movement, SecondStage, Trap, Verdict, Virt};
use cpu::{Core, Gpr, Outcome};
use sim_core::Hpa;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::extension::Extension;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};
use sim_core::clock::Cost;
use sim_core::event::{Event, FlushScope};
use sim_core::hash::digest;
use vmx::controls::{EntryControls, ExitControls, SecondaryProc};
use vmx::vmcs::Region;
use vmx::{Entered, Entry, Field, Operation};

fn exit(bench: &mut Bench) {
    assert_eq!(bench.trap(Trap::Cpuid), Verdict::Exited);
    assert_eq!(bench.vmx.operation(), Operation::Root);
}

/// A core in which every register that the guest-state area holds differs from the valid VMCS.
fn disturb(core: &mut Core) {
    core.cr0.insert(Cr0::TS);
    core.cr3 = 0xb000;
    core.cr4.insert(Cr4::OSFXSR);
    core.efer.insert(Efer::SCE);
    core.msrs.pat = 0x0606_0606_0606_0606;
    core.msrs.sysenter_cs = 0x44;
    core.msrs.sysenter_esp = 0x4444;
    core.msrs.sysenter_eip = 0x5555;
    core.dr7 = 0x700;
    core.rip = 0x41_2345;
    core.set_gpr(Gpr::Rsp, 0x7ffe_fff8);
    core.rflags = Rflags::FIXED | Rflags::ZF | Rflags::IF;
    core.gdtr.limit = 0x3f;
    core.idtr.base = 0x6660;
    core.segments.fs = Segment { selector: 0x20, base: 0x1234_5000, limit: 0xfff, rights: Rights(0x4093) };
}

#[test]
fn a_guest_comes_back_as_it_left() {
    for vary in [|_: &mut Bench| {}, Bench::guest_pae, Bench::guest_real, Bench::guest_v86] {
        let mut bench = ready();
        vary(&mut bench);
        bench.launch();
        if !bench.core.cr0.contains(Cr0::PE) || bench.core.rflags.contains(Rflags::VM) {
            bench.core.rip = 0x1234;
        } else {
            disturb(&mut bench.core);
        }
        let before = bench.core.clone();
        exit(&mut bench);
        assert_ne!(bench.core, before);
        assert_eq!(bench.enter(Entry::Resume), Entered::Guest);
        assert_eq!(bench.core, before);
    }
}

/// SDM 3C 26.3.2: the core holds what the VMCS says.
#[test]
fn entry_loads_the_guest() {
    let bench = running();
    let core = &bench.core;
    assert_eq!(core.cr0.bits(), bench.get(Field::GuestCr0));
    assert_eq!(core.cr3, 0xa000);
    assert_eq!(core.cr4.bits(), bench.get(Field::GuestCr4));
    assert_eq!(core.efer, Efer::LMA | Efer::LME | Efer::NXE);
    assert_eq!((core.rip, core.gpr(Gpr::Rsp), core.rflags.bits()), (0x40_0000, 0x7fff_0000, 0x202));
    assert_eq!((core.gdtr.base, core.gdtr.limit, core.idtr.base, core.idtr.limit), (0x5000, 0x7f, 0x6000, 0xfff));
    assert_eq!(core.segments.cs, Segment::flat(8, Rights::CODE64));
    let regime = bench.vmx.regime(core);
    assert_eq!((regime.tag.context, regime.tag.ept_root), (7, Some(EPT)));
    assert_eq!(regime.second, SecondStage::Ept { eptp: EPT.0 | 0x5e, controls: cpu::virt::EptControls::default() });
    assert_eq!(bench.vmx.cr_fixed(ControlRegister::Cr4).0, Cr4::VMXE.bits());
    let real = {
        let mut bench = ready();
        bench.guest_real();
        bench.launch();
        bench.vmx.cr_fixed(ControlRegister::Cr0).0
    };
    assert_eq!((bench.vmx.cr_fixed(ControlRegister::Cr0).0, real), (0x8000_0021, 0x20));
}

/// SDM 3C 27.5: the fixed parts of host state.
#[test]
fn exit_loads_the_host() {
    let mut bench = running();
    bench.core.cr0.insert(Cr0::CD);
    exit(&mut bench);
    let core = &bench.core;
    assert_eq!(core.cr0, Cr0::PE | Cr0::ET | Cr0::NE | Cr0::PG | Cr0::CD, "CD is not loaded");
    assert_eq!((core.cr3, core.cr4), (0x1_2000, Cr4::PAE | Cr4::VMXE));
    assert_eq!((core.efer, core.dr7, core.rflags), (Efer::LMA | Efer::LME, 0x400, Rflags::FIXED));
    assert_eq!((core.rip, core.gpr(Gpr::Rsp)), (0xffff_8000_0000_4000, 0xffff_8000_0001_0000));
    assert_eq!(core.segments.cs, Segment::flat(8, Rights::CODE64));
    assert_eq!(core.segments.ss, Segment::flat(0x10, Rights::DATA));
    assert_eq!(core.segments.ds.rights, Rights::UNUSABLE);
    assert_eq!(core.segments.fs.base, 0x1111_0000);
    let tr = Segment { selector: 0x18, base: 0xffff_8000_0000_3000, limit: 0x67, rights: Rights::BUSY_TSS };
    assert_eq!((core.segments.tr, core.segments.ldtr.rights), (tr, Rights::UNUSABLE));
    assert_eq!((core.gdtr.base, core.gdtr.limit), (0xffff_8000_0000_1000, 0xffff));
    assert_eq!(bench.vmx.regime(core), Default::default());
}

/// Controls that select what is loaded and saved: with the control, without it.
#[test]
fn load_and_save_controls() {
    let mut bench = ready();
    let entry = EntryControls::LOAD_EFER | EntryControls::LOAD_PAT | EntryControls::LOAD_DEBUG_CONTROLS;
    bench.change(Field::EntryControls, 0, entry.bits().into());
    let leave = ExitControls::LOAD_EFER
        | ExitControls::SAVE_EFER
        | ExitControls::LOAD_PAT
        | ExitControls::SAVE_PAT
        | ExitControls::SAVE_DEBUG_CONTROLS;
    bench.change(Field::ExitControls, 0, leave.bits().into());
    bench.set_all(&[(Field::GuestEfer, 0), (Field::GuestPat, 0), (Field::GuestDr7, 0x500)]);
    bench.core.efer.insert(Efer::SCE);
    bench.core.msrs.pat = 1;
    bench.launch();
    assert_eq!(bench.core.efer, Efer::SCE | Efer::LMA | Efer::LME);
    assert_eq!((bench.core.msrs.pat, bench.core.dr7), (1, 0x400));
    bench.core.msrs.pat = 4;
    bench.core.efer.insert(Efer::NXE);
    exit(&mut bench);
    assert_eq!(bench.core.efer, Efer::SCE | Efer::LMA | Efer::LME | Efer::NXE);
    assert_eq!(bench.core.msrs.pat, 4);
    assert_eq!([Field::GuestEfer, Field::GuestPat, Field::GuestDr7].map(|field| bench.get(field)), [0, 0, 0x500]);
}

/// SDM 3C 27.2.1, 27.3.4: "IA-32e mode guest" and the PDPTE fields follow the guest.
#[test]
fn exit_follows_the_guests_mode() {
    let mut bench = running();
    bench.core.efer.remove(Efer::LMA);
    bench.core.pdptes = [1, 2, 3, 4];
    exit(&mut bench);
    assert_eq!(bench.get(Field::EntryControls) & u64::from(EntryControls::IA32E_MODE_GUEST.bits()), 0);
    assert_eq!(Field::PDPTES.map(|field| bench.get(field)), [1, 2, 3, 4]);
    assert_eq!(bench.get(Field::GuestEfer), (Efer::LME | Efer::NXE).bits());
}

/// SDM 3C 27.5.4: a PAE host's PDPTEs come from memory; a reserved bit there would be a VMX abort.
#[test]
fn a_pae_host_loads_its_pdptes() {
    for (entry, valid) in [(0xc001, true), (0xc003, false)] {
        let mut bench = ready();
        bench.host32();
        bench.change(Field::HostCr4, Cr4::PAE.bits(), 0);
        bench.set(Field::HostCr3, PDPT.0);
        bench.ground.mem.write_u64(PDPT, entry);
        bench.launch();
        let outcome = bench.vmx.trap(&mut bench.core, &mut bench.ground, &Trap::Cpuid, crate::bench::AT);
        match valid {
            true => assert_eq!((outcome, bench.core.pdptes), (Ok(Verdict::Exited), [entry, 0, 0, 0])),
            false => {
                assert_eq!((outcome, bench.core.activity), (Ok(Verdict::Exited), cpu::Activity::Shutdown));
                assert_eq!(Region(VMCS).abort(&bench.ground), 2);
            }
        }
    }
}

fn flushes(bench: &Bench) -> Vec<FlushScope> {
    let scopes = bench.ground.log.records().iter().filter_map(|record| match &record.event {
        Event::TlbFlush { scope } => Some(scope.clone()),
        _ => None,
    });
    scopes.collect()
}

/// SDM 3C 28.4.3.1: VPID 0000H is flushed by entries and exits without VPIDs, and nothing is with them.
#[test]
fn vpid_flushes() {
    for (vpid, per_transition) in [(true, 0), (false, 1)] {
        for ept in [true, false] {
            let mut bench = ready();
            if !vpid {
                bench.change(Field::SecondaryControls, 0, SecondaryProc::ENABLE_VPID.bits().into());
            }
            if !ept {
                bench.without_ept();
            }
            bench.launch();
            assert_eq!(flushes(&bench), vec![FlushScope::Context(0); per_transition]);
            let tag = bench.vmx.regime(&bench.core).tag;
            assert_eq!((tag.context, tag.ept_root), (if vpid { 7 } else { 0 }, ept.then_some(EPT)));
            exit(&mut bench);
            assert_eq!(flushes(&bench), vec![FlushScope::Context(0); 2 * per_transition]);
        }
    }
}

/// Bochs flushes everything at each transition, with VPIDs too (`Habits::TRANSITIONS_FLUSH`).
#[test]
fn bochs_flushes_at_transitions() {
    let mut bench = ready();
    bench.core.tlb = Tlb::new(TlbProfile::Bochs);
    bench.launch();
    assert_eq!(flushes(&bench), [FlushScope::All]);
    exit(&mut bench);
    assert_eq!(flushes(&bench), [FlushScope::All, FlushScope::All]);
}

#[test]
fn transitions_are_told_and_timed() {
    let mut bench = ready();
    let start = bench.ground.clock.now().0;
    bench.launch();
    exit(&mut bench);
    let events: Vec<_> = bench.ground.log.records().iter().map(|record| record.event.clone()).collect();
    let extension = Extension::Vmx;
    let entry = Event::VmEntry { extension, region: VMCS, root: EPT };
    let leave = Event::VmExit { extension, region: VMCS, reason: 10, name: "CPUID", qualification: 0 };
    assert_eq!(events, [entry, leave]);
    let spent = bench.ground.clock.now().0 - start;
    assert_eq!(spent, Cost::VmEntry.cycles().0 + Cost::VmExit.cycles().0);
}

/// SDM 3C 26.4: the VM-entry MSR-load area; failure is exit reason 34 with the entry's number.
#[test]
fn msr_load_area() {
    let canonical = 0xffff_8000_0000_0000;
    let cases = [
        (0xc000_0080, Efer::LME.bits() | Efer::LMA.bits() | Efer::SCE.bits(), true),
        (0xc000_0080, 0, false),
        (0xc000_0080, Efer::LME.bits() | Efer::SVME.bits(), false),
        (0x277, 0x0606_0606_0606_0606, true),
        (0x277, 2, false),
        (0xc000_0081, 5, true),
        (0xc000_0082, canonical, true),
        (0xc000_0082, 1 << 60, false),
        (0xc000_0083, canonical, true),
        (0xc000_0084, 0x4_7700, true),
        (0xc000_0084, 1 << 32, false),
        (0xc000_0102, canonical, true),
        (0x174, 8, true),
        (0x175, canonical, true),
        (0x176, 1 << 60, false),
        (0xc000_0100, 0, false),
        (0xc000_0101, 0, false),
        (0x9999_9999, 0, false),
        (1 << 32 | 0x174, 8, false),
    ];
    for (index, value, loads) in cases {
        let mut bench = ready();
        bench.set_all(&[(Field::EntryMsrLoadCount, 2), (Field::EntryMsrLoadAddress, MSR_AREA.0)]);
        for (number, (index, value)) in [(0x174, 0x99), (index, value)].into_iter().enumerate() {
            let at = Hpa(MSR_AREA.0 + 16 * number as u64);
            bench.ground.mem.write_u64(at, index);
            bench.ground.mem.write_u64(at.offset(8), value);
        }
        match (bench.enter(Entry::Launch), loads) {
            (Entered::Guest, true) => {}
            (Entered::Refused, false) => {
                assert_eq!((bench.get(Field::ExitReason), bench.get(Field::ExitQualification)), (0x8000_0022, 2));
                assert_eq!(bench.core.rip, bench.get(Field::HostRip));
                assert_eq!(bench.get(Field::GuestRip), 0x40_0000, "guest state is not saved");
                assert_eq!(
                    bench.enter(Entry::Resume),
                    Entered::Failed(vmx::VmFail::Valid(vmx::InstructionError::VmresumeNotLaunched))
                );
            }
            other => panic!("{index:#x} {value:#x}: {other:?}"),
        }
    }
    println!("{} of the MSR-load area", cases.len());
}

/// SDM 3C 26.6, 27.2.4: an injected #PF whose delivery meets an EPT violation comes back as IDT-vectoring information.
#[test]
fn an_injection_that_exits_is_told() {
    let mut bench = ready();
    bench.set_all(&[(Field::EntryInterruptionInformation, 0x8000_0b0e), (Field::EntryExceptionErrorCode, 6)]);
    assert_eq!(bench.enter(Entry::Launch), Entered::Guest);
    assert_eq!(bench.vmx.operation(), Operation::Root);
    assert_eq!(bench.get(Field::ExitReason), 48);
    assert_eq!(bench.get(Field::IdtVectoringInformation), 0x8000_0b0e);
    assert_eq!(bench.get(Field::IdtVectoringErrorCode), 6);
    assert_eq!(bench.get(Field::EntryInterruptionInformation), 0x0000_0b0e, "the valid bit is cleared");
}

/// A failed entry changes RFLAGS alone; a VMCS and its unit are equal and hash alike after a clone.
#[test]
fn vmfail_leaves_the_core_alone() {
    let mut bench = ready();
    bench.set(Field::HostCr3, 1 << 60);
    let before = bench.core.clone();
    assert!(matches!(bench.enter(Entry::Launch), Entered::Failed(_)));
    assert_eq!(bench.core, Core { rflags: Rflags::FIXED | Rflags::ZF, ..before });
    let copy = bench.clone();
    assert_eq!((digest(&copy.vmx), digest(&copy.ground.mem)), (digest(&bench.vmx), digest(&bench.ground.mem)));
}

/// A hypervisor in machine code: VMLAUNCH, a guest that runs CPUID, and VMREAD of the exit reason, stepped by the CPU.
#[test]
fn instructions_from_memory() {
    const PML4: u64 = 0x2_0000;
    const CODE: u64 = 0x3_0000;
    let mut bench = ready();
    bench.without_ept();
    let tables = [(PML4, PML4 + 0x1003), (PML4 + 0x1000, PML4 + 0x2003), (PML4 + 0x2000, 0x83)];
    for (at, entry) in tables {
        bench.ground.mem.write_u64(Hpa(at), entry);
    }
    let [vmlaunch, cpuid, vmread_rbx_rax] = [&[0x0f, 0x01, 0xc2][..], &[0x0f, 0xa2], &[0x0f, 0x78, 0xc3]];
    for (at, code) in [(CODE, vmlaunch), (CODE + 0x100, cpuid), (CODE + 0x200, vmread_rbx_rax)] {
        bench.ground.mem.write_bytes(Hpa(at), code);
    }
    bench.core.cr3 = PML4;
    bench.core.rip = CODE;
    bench.set_all(&[(Field::GuestCr3, PML4), (Field::HostCr3, PML4)]);
    bench.set_all(&[(Field::GuestRip, CODE + 0x100), (Field::HostRip, CODE + 0x200)]);
    for movement in [Movement::Entered, Movement::Exited] {
        let outcome = cpu::step(&mut bench.core, &mut bench.vmx, &mut bench.ground);
        assert_eq!(outcome, Ok(Outcome::Moved(movement)));
    }
    bench.core.set_gpr(Gpr::Rax, Field::ExitReason.encoding().into());
    assert_eq!(cpu::step(&mut bench.core, &mut bench.vmx, &mut bench.ground), Ok(Outcome::Retired));
    assert_eq!(bench.core.gpr(Gpr::Rbx), 10, "CPUID");
    assert_eq!(bench.get(Field::ExitInstructionLength), 2);
    assert_eq!(bench.get(Field::GuestRip), CODE + 0x100);
}
