//! VMRUN and #VMEXIT: what is saved, loaded, flushed, recorded and refused (APM2 15.5, 15.6, 15.16, 15.25).

use super::{enter, field, report, set};
use crate::capability::{Capabilities, Features};
use crate::entry::Entered;
use crate::exit::ExitCode;
use crate::intercept::{Intercepts, Support, TABLE};
use crate::testing::{self, ASID, GUEST_RIP, VMCB, machine, unit};
use crate::unit::{Gif, Svm};
use crate::vmcb::{self, Field, SegmentField};
use cpu::paging::entry::Rights as PageRights;
use cpu::paging::memory_type::MemoryType;
use cpu::profile::TlbProfile;
use cpu::tlb::Tlb;
use cpu::tlb::{Mapping, Space};
use cpu::virt::{At, Regime, SecondStage, Tag, Trap, Verdict};
use cpu::{Activity, Core, Gpr, Virt};
use sim_core::addr::{Gva, Hpa};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::extension::Extension;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::Rights;
use sim_core::event::{Event, FlushScope};
use sim_core::{Ground, SimError};

const AT: At = At::of(2);

fn hlt(svm: &mut Svm, core: &mut Core, ground: &mut Ground) {
    assert_eq!(svm.trap(core, ground, &Trap::Hlt, AT), Ok(Verdict::Exited));
}

/// A machine whose guest exits on HLT.
fn leaving() -> (Core, Ground, Svm) {
    let (core, mut ground) = machine();
    (Intercepts::VMRUN | Intercepts::HLT).write(&mut ground.mem, VMCB);
    (core, ground, unit())
}

/// APM2 15.5.1: each register that VMRUN loads, and none besides.
#[test]
fn entry_loads_guest_state() {
    let (mut core, mut ground, mut svm) = leaving();
    let host = core.clone();
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(svm.gif(), Gif::Set);
    let loaded = (core.rip, core.gpr(Gpr::Rsp), core.gpr(Gpr::Rax), core.cr2, core.cr3, core.dr7);
    assert_eq!(loaded, (GUEST_RIP, 0x7000, 0xabcd, Gva(0x1234), 0xb000, 0x400));
    assert_eq!((core.cr0, core.cr4), (Cr0::PE | Cr0::PG | Cr0::ET, Cr4::PAE));
    assert_eq!((core.efer, core.rflags), (Efer::SVME | Efer::LME | Efer::LMA, Rflags::FIXED | Rflags::IF));
    let tables = (core.gdtr.base, core.gdtr.limit, core.idtr.base, core.idtr.limit);
    assert_eq!(tables, (0xd000, 0x3f, 0xe000, 0x1ff));
    let selectors = [core.segments.es, core.segments.cs, core.segments.ss, core.segments.ds].map(|s| s.selector);
    assert_eq!(selectors, [0x40, 0x38, 0x40, 0x40]);
    let untouched = |core: &Core| {
        let segments = &core.segments;
        (segments.fs, segments.gs, segments.tr, segments.ldtr, core.msrs)
    };
    assert_eq!(untouched(&core), untouched(&host), "VMLOAD's registers stay the host's");
    for (index, value) in core.gprs.iter().enumerate() {
        if index != Gpr::Rax as usize && index != Gpr::Rsp as usize {
            assert_eq!(*value, host.gprs[index], "GPR {index}");
        }
    }
}

/// APM2 15.6: the host comes back as it was; the guest's changes are in the VMCB; a second VMRUN continues it.
#[test]
fn round_trip() {
    let (mut core, mut ground, mut svm) = leaving();
    core.dr7 = 0x455;
    let host = core.clone();
    enter(&mut svm, &mut core, &mut ground);
    core.rip += 0x10;
    core.set_gpr(Gpr::Rax, 1);
    core.set_gpr(Gpr::Rsp, 2);
    core.set_gpr(Gpr::Rbx, 3);
    core.cr3 = 0x1_c000;
    core.cr2 = Gva(0x77);
    core.cr0 |= Cr0::WP;
    core.rflags |= Rflags::CF;
    core.segments.ds.base = 0x5000;
    core.dr7 = 0x700;
    let guest = core.clone();
    hlt(&mut svm, &mut core, &mut ground);

    let mut expected = host;
    expected.dr7 = 0x400;
    expected.cr2 = Gva(0x77);
    expected.set_gpr(Gpr::Rbx, 3);
    assert_eq!(core, expected, "CR2 and the other GPRs keep the guest's values, DR7 is reset");
    assert_eq!((svm.guest(), svm.gif(), svm.exiting_instruction()), (None, Gif::Clear, None));
    assert_eq!(report(&ground), (Some(ExitCode::Hlt), 0, 0, GUEST_RIP + 0x12));
    assert_eq!(field(&ground, Field::InterruptShadow), 0);
    assert_eq!(field(&ground, Field::Rip), GUEST_RIP + 0x10);

    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(core, guest);
}

/// The regime is the host's outside and the guest's inside; a unit survives a clone at any point.
#[test]
fn regimes() {
    for nested in [false, true] {
        let (mut core, mut ground, mut svm) = leaving();
        if nested {
            testing::enable_nested_paging(&mut ground);
        }
        let host = cpu::virt::HostPaging { cr0: core.cr0, cr4: core.cr4, efer: core.efer, pat: core.msrs.pat };
        assert_eq!(svm.regime(&core), Regime::default());
        enter(&mut svm, &mut core, &mut ground);
        let second = if nested {
            SecondStage::Npt { ncr3: 0xf000, host, controls: cpu::virt::NptControls::default() }
        } else {
            SecondStage::None
        };
        let tag = Tag { context: ASID, ept_root: None };
        assert_eq!(svm.regime(&core), Regime { tag, second });
        let root = Hpa(if nested { 0xf000 } else { 0xb000 });
        let entry = Event::VmEntry { extension: Extension::Svm, region: VMCB, root };
        assert_eq!(ground.log.records().last().map(|record| &record.event), Some(&entry));
        hlt(&mut svm, &mut core, &mut ground);
        assert_eq!(svm.regime(&core), Regime::default());
        let exit = ground.log.records().last().map(|record| record.event.clone());
        let named = matches!(exit, Some(Event::VmExit { reason: 0x78, name: "VMEXIT_HLT", qualification: 0, .. }));
        assert!(named, "{exit:?}");
    }
}

/// APM2 15.25.4: PAT is switched only with nested paging.
#[test]
fn pat_follows_nested_paging() {
    for nested in [false, true] {
        let (mut core, mut ground, mut svm) = leaving();
        if nested {
            testing::enable_nested_paging(&mut ground);
        }
        set(&mut ground, Field::GuestPat, 0x0606_0606_0606_0606);
        let host = core.msrs.pat;
        enter(&mut svm, &mut core, &mut ground);
        assert_eq!(core.msrs.pat, if nested { 0x0606_0606_0606_0606 } else { host });
        core.msrs.pat = 0x0404_0404_0404_0404;
        hlt(&mut svm, &mut core, &mut ground);
        assert_eq!(core.msrs.pat, if nested { host } else { 0x0404_0404_0404_0404 });
        let saved = if nested { 0x0404_0404_0404_0404 } else { 0x0606_0606_0606_0606 };
        assert_eq!(field(&ground, Field::GuestPat), saved);
    }
}

/// APM2 15.16: what VMRUN flushes, by TLB_CONTROL.
#[test]
fn tlb_control_flushes() {
    let rows = [
        (0, None),
        (1, Some(FlushScope::All)),
        (3, Some(FlushScope::Context(ASID))),
        (7, Some(FlushScope::ContextNonGlobal(ASID))),
    ];
    for (control, scope) in rows {
        let (mut core, mut ground, mut svm) = leaving();
        set(&mut ground, Field::TlbControl, control);
        enter(&mut svm, &mut core, &mut ground);
        let flushes = ground.log.records().iter().filter_map(|record| match &record.event {
            Event::TlbFlush { scope } => Some(scope.clone()),
            _ => None,
        });
        assert_eq!(flushes.collect::<Vec<_>>(), scope.into_iter().collect::<Vec<_>>(), "TLB_CONTROL {control}");
    }
}

/// Bochs flushes everything at each transition (`Habits::TRANSITIONS_FLUSH`).
#[test]
fn bochs_flushes_at_transitions() {
    let (mut core, mut ground, mut svm) = leaving();
    core.tlb = Tlb::new(TlbProfile::Bochs);
    enter(&mut svm, &mut core, &mut ground);
    hlt(&mut svm, &mut core, &mut ground);
    let flush = Event::TlbFlush { scope: FlushScope::All };
    assert_eq!(ground.log.records().iter().filter(|record| record.event == flush).count(), 2);
}

/// APM2 15.5.1: a refused VMRUN gives VMEXIT_INVALID, leaves the guest's state alone and the host running.
#[test]
fn refusal_is_an_exit() {
    let (mut core, mut ground, mut svm) = leaving();
    set(&mut ground, Field::Asid, 0);
    let before = core.clone();
    assert_eq!(svm.enter(&mut core, &mut ground, VMCB), Ok(Entered::Refused));
    assert_eq!(core, Core { dr7: 0x400, ..before });
    assert_eq!((svm.guest(), svm.gif()), (None, Gif::Clear));
    assert_eq!(report(&ground), (Some(ExitCode::Invalid), 0, 0, 0));
    assert_eq!(field(&ground, Field::Rip), GUEST_RIP);
    assert!(!ground.log.records().iter().any(|record| matches!(record.event, Event::VmEntry { .. })));
}

/// APM2 15.5.1: CPL comes from its field, except in real mode; LMA is LME and PG.
#[test]
fn privilege_and_mode() {
    for stored in 0..4_u64 {
        for (cr0, cpl) in [(Cr0::PE, stored as u8), (Cr0::empty(), 0)] {
            let (mut core, mut ground, mut svm) = leaving();
            set(&mut ground, Field::Cr0, cr0.bits());
            set(&mut ground, Field::Cpl, stored);
            enter(&mut svm, &mut core, &mut ground);
            assert_eq!((core.cpl(), core.efer.contains(Efer::LMA)), (cpl, false));
            hlt(&mut svm, &mut core, &mut ground);
            assert_eq!((core.cpl(), field(&ground, Field::Cpl)), (0, u64::from(cpl)));
        }
    }
}

/// APM2 15.5.1: bases are made canonical, not checked.
#[test]
fn bases_are_sign_extended() {
    let (mut core, mut ground, mut svm) = leaving();
    let mut data = vmcb::read_segment(&ground.mem, VMCB, SegmentField::Ds);
    data.base = 0x1234_8000_0000_0000;
    vmcb::write_segment(&mut ground.mem, VMCB, SegmentField::Ds, &data);
    enter(&mut svm, &mut core, &mut ground);
    assert_eq!(core.segments.ds.base, 0xffff_8000_0000_0000);
    assert_eq!(core.segments.ds.rights, Rights::DATA);
}

/// APM2 15.7.1: nRIP is written only by a processor that has it.
#[test]
fn next_rip_needs_its_capability() {
    let (mut core, mut ground, _) = leaving();
    let mut svm = Svm::new(Capabilities { features: Features::all() - Features::NRIP_SAVE, ..Capabilities::default() });
    svm.set_hsave(testing::HSAVE);
    enter(&mut svm, &mut core, &mut ground);
    hlt(&mut svm, &mut core, &mut ground);
    assert_eq!(field(&ground, Field::NextRip), 0);
}

/// Every intercept bit at VMRUN: accepted, or refused by its name.
#[test]
fn intercepts_are_accepted_or_named() {
    for (bit, support, name) in TABLE {
        let (mut core, mut ground) = machine();
        (Intercepts::VMRUN | *bit).write(&mut ground.mem, VMCB);
        let expected = match support {
            Support::Honoured | Support::NeverHappens => Ok(Entered::Guest),
            Support::Unmodelled => Err(SimError::unmodelled(format!("SVM intercept of {name}"))),
        };
        assert_eq!(unit().enter(&mut core, &mut ground, VMCB), expected, "{name}");
    }
}

/// Features of the VMCB that the model lacks are refused by name.
#[test]
fn unmodelled_features_are_named() {
    let rows = [
        (Field::VirtualInterrupt, 1 << 30, "x2AVIC"),
        (Field::VirtualInterrupt, 1 << 31, "AVIC"),
        (Field::NestedControl, 1 << 1, "SEV"),
        (Field::NestedControl, 1 << 2, "SEV-ES"),
        (Field::NestedControl, 1 << 5, "virtual transparent encryption"),
        (Field::NestedControl, 1 << 6, "read-only guest page tables"),
        (Field::VirtualExtensions, 1 << 0, "LBR virtualization"),
        (Field::VirtualExtensions, 1 << 2, "IBS virtualization"),
        (Field::VirtualExtensions, 1 << 3, "PMC virtualization"),
        (Field::Asid, 0x8000, "a guest ASID beyond CPUID Fn8000_000A EBX"),
    ];
    for (place, value, name) in rows {
        let (mut core, mut ground) = machine();
        set(&mut ground, place, value);
        assert_eq!(unit().enter(&mut core, &mut ground, VMCB), Err(SimError::unmodelled(name)));
    }
    let (mut core, mut ground) = machine();
    set(&mut ground, Field::Efer, Efer::SVME.bits());
    set(&mut ground, Field::Cr0, Cr0::PG.bits());
    let paged = Err(SimError::unmodelled("paged real mode (APM2 15.19)"));
    assert_eq!(unit().enter(&mut core, &mut ground, VMCB), paged);
}

/// Where the PAE tests keep PDPTEs; CR3 of a PAE guest is 32-byte aligned.
const PDPT: u64 = 0x1_e020;
const GOOD_PDPTES: [u64; 4] = [0x2001, 0x3001, 0, 0x4001];

fn write_pdptes(ground: &mut Ground, pdptes: [u64; 4]) {
    for (index, pdpte) in pdptes.into_iter().enumerate() {
        ground.mem.write_u64(Hpa(PDPT + 8 * index as u64), pdpte);
    }
}

/// APM2 15.5.1: without nested paging VMRUN loads the PDPTEs of a PAE guest, and reserved bits in them are
/// VMEXIT_INVALID. With nested paging nothing is loaded (APM2 15.25.10).
#[test]
fn pae_guest() {
    for (pdptes, nested, entered) in [
        (GOOD_PDPTES, false, Entered::Guest),
        ([0x2007, 0, 0, 0], false, Entered::Refused),
        ([0x2006, 0, 0, 0], false, Entered::Guest),
        ([0x2007, 0, 0, 0], true, Entered::Guest),
    ] {
        let (mut core, mut ground, mut svm) = leaving();
        if nested {
            testing::enable_nested_paging(&mut ground);
        }
        set(&mut ground, Field::Efer, Efer::SVME.bits());
        set(&mut ground, Field::Cr3, PDPT);
        write_pdptes(&mut ground, pdptes);
        let host = core.clone();
        assert_eq!(svm.enter(&mut core, &mut ground, VMCB), Ok(entered), "{pdptes:x?}");
        match entered {
            Entered::Guest => assert_eq!(core.pdptes, if nested { [0; 4] } else { pdptes }),
            Entered::Refused => {
                assert_eq!(report(&ground).0, Some(ExitCode::Invalid));
                assert_eq!((core.rip, core.cr3, svm.guest()), (host.rip, host.cr3, None));
            }
        }
    }
}

/// APM2 15.6: a PAE host has its PDPTEs read again at #VMEXIT; illegal ones are a shutdown.
#[test]
fn pae_host() {
    for (pdptes, activity) in [(GOOD_PDPTES, Activity::Active), ([0x2007, 0, 0, 0], Activity::Shutdown)] {
        let (mut core, mut ground, mut svm) = leaving();
        core.efer = Efer::SVME;
        core.cr3 = PDPT;
        core.segments.cs.rights = Rights::CODE32;
        enter(&mut svm, &mut core, &mut ground);
        write_pdptes(&mut ground, pdptes);
        hlt(&mut svm, &mut core, &mut ground);
        assert_eq!(core.activity, activity);
        if activity == Activity::Active {
            assert_eq!(core.pdptes, pdptes);
        }
    }
}

/// The TLB side of ASIDs: VMRUN and #VMEXIT drop nothing, TLB_CONTROL drops what APM2 15.16 says.
#[test]
fn tagged_entries_survive() {
    for (control, host, guest, guest_global) in
        [(0, true, true, true), (1, false, false, false), (3, true, false, false), (7, true, false, true)]
    {
        let (mut core, mut ground, mut svm) = leaving();
        let spaces = fill_tlb(&mut core, &mut ground);
        set(&mut ground, Field::TlbControl, control);
        enter(&mut svm, &mut core, &mut ground);
        hlt(&mut svm, &mut core, &mut ground);
        let left = spaces.map(|(space, gva)| core.tlb.look_up(&space, gva).is_some());
        assert_eq!(left, [host, guest, guest_global], "TLB_CONTROL {control}");
    }
}

/// One mapping of the host, one of the guest, and a global one of the guest.
fn fill_tlb(core: &mut Core, ground: &mut Ground) -> [(Space, Gva); 3] {
    let space = |context| Space { context, ept_root: None, pcid: 0 };
    let kept = [(space(0), Gva(0x1000)), (space(ASID), Gva(0x2000)), (space(ASID), Gva(0x3000))];
    for (space, gva) in kept {
        let mapping = Mapping {
            space,
            gva,
            hpa: Hpa(0x9000),
            shift: 12,
            page_shift: 12,
            rights: PageRights::all(),
            stage_rights: PageRights::all(),
            key: 0,
            memory_type: MemoryType::WriteBack,
            is_global: gva == Gva(0x3000),
            is_dirty: false,
        };
        core.tlb.insert(ground, mapping);
    }
    kept
}
