//! Every row of the check tables with a passing and a failing case (SDM 3C 26.2, 26.3.1). The cases are generated from
//! the tables: a row without a spoiler, or a spoiler without a row, fails the test.

use crate::bench::{Bench, OTHER, PDPT, VMCS, ready};
use sim_core::Hpa;
use sim_core::arch::control::Efer;
use std::collections::BTreeMap;
use vmx::checks::{self, Check, View};
use vmx::controls::{ExitControls, PrimaryProc, SecondaryProc};
use vmx::vmcs::Region;
use vmx::{Entered, Entry, Field, InstructionError, Operation, VmFail};

type Spoiler = (&'static str, fn(&mut Bench));

/// An address that is canonical for no linear-address width.
const BAD: u64 = 1 << 60;

const CONTROLS: &[Spoiler] = &[
    ("pin-based controls within the allowed settings", |b| b.change(Field::PinBasedControls, 1 << 6, 0)),
    ("primary controls within the allowed settings", |b| b.change(Field::PrimaryControls, 1 << 27, 0)),
    ("secondary controls within the allowed settings", |b| b.change(Field::SecondaryControls, 1 << 17, 0)),
    ("CR3-target count at most 4", |b| b.set(Field::Cr3TargetCount, 5)),
    ("I/O bitmaps 4 KiB aligned, within the physical-address width", |b| b.set(Field::IoBitmapB, 0x5800)),
    ("MSR bitmaps 4 KiB aligned, within the physical-address width", |b| b.set(Field::MsrBitmaps, 1 << 46)),
    ("VPID not 0000H", |b| b.set(Field::Vpid, 0)),
    ("EPTP valid", |b| b.set(Field::EptPointer, 0x9000 | 3 << 3 | 1)),
    ("unrestricted guest only with EPT", |b| {
        b.without_ept();
        b.change(Field::SecondaryControls, SecondaryProc::UNRESTRICTED_GUEST.bits().into(), 0);
    }),
    ("VM-exit controls within the allowed settings", |b| b.change(Field::ExitControls, 0, 1)),
    ("VM-exit MSR-store area aligned, within the physical-address width", |b| {
        b.set_all(&[(Field::ExitMsrStoreCount, 1), (Field::ExitMsrStoreAddress, 0x7008)]);
    }),
    ("VM-exit MSR-load area aligned, within the physical-address width", |b| {
        b.set_all(&[(Field::ExitMsrLoadCount, 2), (Field::ExitMsrLoadAddress, (1 << 46) - 16)]);
    }),
    ("VM-entry controls within the allowed settings", |b| b.change(Field::EntryControls, 1 << 20, 0)),
    ("injected event of a defined type", |b| b.set(Field::EntryInterruptionInformation, 0x8000_0120)),
    ("injected event's vector consistent with its type", |b| b.set(Field::EntryInterruptionInformation, 0x8000_0203)),
    ("injected event's deliver-error-code bit consistent", |b| {
        b.set(Field::EntryInterruptionInformation, 0x8000_030e);
    }),
    ("injected event's reserved bits 0", |b| b.set(Field::EntryInterruptionInformation, 0x8000_1306)),
    ("injected error code without reserved bits", |b| {
        b.set_all(&[(Field::EntryInterruptionInformation, 0x8000_0b0e), (Field::EntryExceptionErrorCode, 1 << 15)]);
    }),
    ("injected software event's instruction length 1 to 15", |b| {
        b.set_all(&[(Field::EntryInterruptionInformation, 0x8000_0603), (Field::EntryInstructionLength, 0)]);
    }),
    ("VM-entry MSR-load area aligned, within the physical-address width", |b| {
        b.set_all(&[(Field::EntryMsrLoadCount, 1), (Field::EntryMsrLoadAddress, 1 << 46)]);
    }),
];

const HOST: &[Spoiler] = &[
    ("host CR0 has the bits fixed in VMX operation", |b| b.change(Field::HostCr0, 0, 1 << 31)),
    ("host CR4 has the bits fixed in VMX operation", |b| b.change(Field::HostCr4, 0, 1 << 13)),
    ("host CR3 within the physical-address width", |b| b.set(Field::HostCr3, 1 << 46)),
    ("host SYSENTER_ESP and SYSENTER_EIP canonical", |b| b.set(Field::HostSysenterEip, BAD)),
    ("host PAT of defined memory types", |b| b.set(Field::HostPat, 0x02)),
    ("host EFER without reserved bits", |b| b.change(Field::HostEfer, Efer::SVME.bits(), 0)),
    ("host EFER.LMA and LME equal to host address-space size", |b| b.change(Field::HostEfer, 0, Efer::LME.bits())),
    ("host selectors with RPL and TI 0", |b| b.set(Field::HostFsSelector, 0x23)),
    ("host CS and TR selectors not null", |b| b.set(Field::HostTrSelector, 0)),
    ("host SS selector not null in a 32-bit host", |b| {
        b.host32();
        b.set(Field::HostSsSelector, 0);
    }),
    ("host FS, GS, TR, GDTR and IDTR bases canonical", |b| b.set(Field::HostGsBase, BAD)),
    ("host address-space size equal to EFER.LMA", |b| b.core.efer = Efer::empty()),
    ("IA-32e mode guest only under a 64-bit host", |b| {
        let guest = [Field::EntryControls, Field::GuestEfer, Field::GuestCsRights].map(|field| (field, b.get(field)));
        b.host32();
        b.set_all(&guest);
    }),
    ("32-bit host without CR4.PCIDE, RIP below 4 GiB", |b| {
        b.host32();
        b.set(Field::HostRip, 1 << 32);
    }),
    ("64-bit host with CR4.PAE", |b| b.change(Field::HostCr4, 0, 1 << 5)),
    ("64-bit host with canonical RIP", |b| b.set(Field::HostRip, BAD)),
];

const REGISTERS: &[Spoiler] = &[
    ("CR0 has the bits fixed in VMX operation", |b| b.change(Field::GuestCr0, 0, 1 << 5)),
    ("CR0.PG only with CR0.PE", |b| {
        b.guest_real();
        b.change(Field::GuestCr0, 1 << 31, 0);
    }),
    ("CR4 has the bits fixed in VMX operation", |b| b.change(Field::GuestCr4, 1 << 14, 0)),
    ("IA32_DEBUGCTL without reserved bits", |b| b.set(Field::GuestDebugctl, 1 << 2)),
    ("IA-32e mode guest with CR0.PG and CR4.PAE", |b| b.change(Field::GuestCr4, 0, 1 << 5)),
    ("CR4.PCIDE only in an IA-32e mode guest", |b| {
        b.guest_pae();
        b.change(Field::GuestCr4, 1 << 17, 0);
    }),
    ("CR3 within the physical-address width", |b| b.set(Field::GuestCr3, 1 << 46)),
    ("DR7 bits 63:32 zero", |b| b.set(Field::GuestDr7, 1 << 32)),
    ("SYSENTER_ESP and SYSENTER_EIP canonical", |b| b.set(Field::GuestSysenterEsp, BAD)),
    ("PAT of defined memory types", |b| b.set(Field::GuestPat, 0x0300)),
    ("EFER without reserved bits", |b| b.change(Field::GuestEfer, 1 << 2, 0)),
    ("EFER.LMA equal to IA-32e mode guest", |b| b.set(Field::GuestEfer, 0)),
    ("EFER.LMA equal to EFER.LME under paging", |b| b.change(Field::GuestEfer, 0, Efer::LME.bits())),
    ("GDTR and IDTR bases canonical", |b| b.set(Field::GuestIdtrBase, BAD)),
    ("GDTR and IDTR limits 16 bits", |b| b.set(Field::GuestGdtrLimit, 0x1_0000)),
    ("RIP within the code segment's width", |b| b.set(Field::GuestRip, BAD)),
    ("RFLAGS reserved bits", |b| b.set(Field::GuestRflags, 0)),
    ("RFLAGS.VM 0 in an IA-32e mode guest or without CR0.PE", |b| {
        b.guest_v86();
        b.change(Field::SecondaryControls, SecondaryProc::UNRESTRICTED_GUEST.bits().into(), 0);
        b.change(Field::GuestCr0, 0, 1 << 31 | 1);
    }),
    ("RFLAGS.IF 1 for an injected external interrupt", |b| {
        b.set_all(&[(Field::EntryInterruptionInformation, 0x8000_0020), (Field::GuestRflags, 2)]);
    }),
    ("activity state supported", |b| b.set(Field::GuestActivity, 2)),
    ("activity state HLT only at SS.DPL 0", |b| {
        b.set_all(&[(Field::GuestCsSelector, 0xb), (Field::GuestCsRights, 0xa0fb)]);
        b.set_all(&[(Field::GuestSsSelector, 0x13), (Field::GuestSsRights, 0xc0f3), (Field::GuestActivity, 1)]);
    }),
    ("activity state active under blocking by STI or MOV SS", |b| {
        b.set_all(&[(Field::GuestActivity, 1), (Field::GuestInterruptibility, 1)]);
    }),
    ("interruptibility state without reserved bits", |b| b.set(Field::GuestInterruptibility, 1 << 5)),
    ("not blocked by STI and MOV SS at once", |b| b.set(Field::GuestInterruptibility, 3)),
    ("blocking by STI only with RFLAGS.IF", |b| {
        b.set_all(&[(Field::GuestInterruptibility, 1), (Field::GuestRflags, 2)]);
    }),
    ("no external interrupt injected under blocking", |b| {
        b.set_all(&[(Field::EntryInterruptionInformation, 0x8000_0020), (Field::GuestInterruptibility, 2)]);
    }),
    ("no blocking by SMI outside SMM", |b| b.set(Field::GuestInterruptibility, 4)),
    ("pending debug exceptions without reserved bits", |b| b.set(Field::GuestPendingDebug, 1 << 4)),
    ("VMCS link pointer all ones or a VMCS region", |b| b.set(Field::VmcsLinkPointer, VMCS.0)),
    ("PDPTE fields without reserved bits", |b| {
        b.guest_pae();
        b.set(Field::GuestPdpte2, 0b11);
    }),
];

const SEGMENTS: &[Spoiler] = &[
    ("TR and LDTR selectors with TI 0", |b| b.set(Field::GuestTrSelector, 0x1c)),
    ("SS.RPL equal to CS.RPL", |b| b.set(Field::GuestSsSelector, 0x13)),
    ("segment bases of virtual-8086 mode 16 times the selector", |b| {
        b.guest_v86();
        b.set(Field::GuestDsBase, 0x1010);
    }),
    ("TR, FS, GS and LDTR bases canonical", |b| b.set(Field::GuestFsBase, BAD)),
    ("CS base below 4 GiB", |b| b.set(Field::GuestCsBase, 1 << 32)),
    ("SS, DS and ES bases below 4 GiB", |b| b.set(Field::GuestEsBase, 1 << 32)),
    ("segment limits of virtual-8086 mode 64 KiB", |b| {
        b.guest_v86();
        b.set(Field::GuestFsLimit, 0xfffff);
    }),
    ("segment rights of virtual-8086 mode F3H", |b| {
        b.guest_v86();
        b.set(Field::GuestSsRights, 0x93);
    }),
    ("CS type accessed code", |b| b.set(Field::GuestCsRights, 0xa093)),
    ("SS type accessed writable data", |b| b.set(Field::GuestSsRights, 0xc091)),
    ("DS, ES, FS and GS types accessed, readable", |b| b.set(Field::GuestGsRights, 0xc092)),
    ("CS.S and S of usable segments 1", |b| b.set(Field::GuestDsRights, 0xc083)),
    ("CS.DPL consistent with its type and SS.DPL", |b| b.set(Field::GuestCsRights, 0xa0fb)),
    ("SS.DPL consistent with SS.RPL, CS type and CR0.PE", |b| {
        b.set_all(&[(Field::GuestCsRights, 0xa0ff), (Field::GuestSsRights, 0xc0f3)]);
    }),
    ("DS, ES, FS and GS DPL not below RPL", |b| b.set(Field::GuestDsSelector, 0x13)),
    ("CS.P and P of usable segments 1", |b| b.set(Field::GuestEsRights, 0xc013)),
    ("reserved access-rights bits 0", |b| b.set(Field::GuestFsRights, 0xc193)),
    ("CS.D 0 with CS.L in an IA-32e mode guest", |b| b.set(Field::GuestCsRights, 0xe09b)),
    ("G consistent with the limit", |b| b.set(Field::GuestGsLimit, 0xffff_fffe)),
    ("TR busy task-state segment", |b| b.set(Field::GuestTrRights, 0x83)),
    ("TR usable, present, a system segment, without reserved bits", |b| b.set(Field::GuestTrRights, 0x0b)),
    ("LDTR of type LDT, present, a system segment, without reserved bits", |b| b.set(Field::GuestLdtrRights, 0x83)),
];

fn holds(bench: &Bench, check: &Check) -> bool {
    let (ground, capabilities, core) = (&bench.ground, bench.vmx.capabilities(), &bench.core);
    (check.holds)(&View { ground, region: Region(VMCS), capabilities, core })
}

/// Runs every row; `expected` judges the outcome of the entry.
fn run(table: &[Check], spoilers: &[&[Spoiler]], expected: fn(&Bench, &Check, Entered)) {
    let mut by_name: BTreeMap<_, _> = spoilers.iter().copied().flatten().copied().collect();
    assert_eq!(by_name.len(), spoilers.iter().map(|part| part.len()).sum::<usize>(), "two spoilers for one row");
    for row in table {
        let spoil = by_name.remove(row.name).unwrap_or_else(|| panic!("no spoiler for {:?}", row.name));
        assert!(holds(&ready(), row), "{} fails on the valid VMCS", row.name);
        let mut bench = ready();
        spoil(&mut bench);
        assert!(!holds(&bench, row), "{} holds on the spoilt VMCS", row.name);
        assert_eq!(bench.vmx.explain(&bench.core, &bench.ground).map(|check| check.name), Some(row.name));
        let outcome = bench.enter(Entry::Launch);
        expected(&bench, row, outcome);
        assert_eq!(bench.vmx.operation(), Operation::Root);
    }
    assert!(by_name.is_empty(), "no row for {:?}", by_name.keys());
}

fn fails_with(bench: &Bench, check: &Check, outcome: Entered, error: InstructionError) {
    assert_eq!(outcome, Entered::Failed(VmFail::Valid(error)), "{}", check.name);
    assert_eq!(bench.get(Field::InstructionError), u64::from(error.number()));
}

#[test]
fn each_control_check_passes_and_fails() {
    run(checks::controls::TABLE, &[CONTROLS], |bench, check, outcome| {
        fails_with(bench, check, outcome, InstructionError::EntryControls);
    });
    println!("{} checks on controls, a passing and a failing case each", checks::controls::TABLE.len());
}

#[test]
fn each_host_check_passes_and_fails() {
    run(checks::host::TABLE, &[HOST], |bench, check, outcome| {
        fails_with(bench, check, outcome, InstructionError::EntryHostState);
    });
    println!("{} checks on host state, a passing and a failing case each", checks::host::TABLE.len());
}

#[test]
fn each_guest_check_passes_and_fails() {
    run(checks::guest::TABLE, &[REGISTERS, SEGMENTS], |bench, check, outcome| {
        assert_eq!(outcome, Entered::Refused, "{}", check.name);
        assert_eq!(bench.get(Field::ExitReason), 0x8000_0021);
        assert_eq!(bench.get(Field::ExitQualification), check.qualification, "{}", check.name);
        assert_eq!(bench.core.rip, bench.get(Field::HostRip), "host state is loaded");
    });
    println!("{} checks on guest state, a passing and a failing case each", checks::guest::TABLE.len());
}

/// The valid VMCSs that the spoilers start from, and others near the checks' borders.
#[test]
fn valid_variants_enter() {
    let variants: &[Spoiler] = &[
        ("as it is", |_| {}),
        ("PAE guest under EPT", Bench::guest_pae),
        ("virtual-8086 guest", Bench::guest_v86),
        ("unrestricted guest in real-address mode", Bench::guest_real),
        ("32-bit host", Bench::host32),
        ("guest without EPT", Bench::without_ept),
        ("no secondary controls", |b| {
            b.change(Field::PrimaryControls, 0, PrimaryProc::ACTIVATE_SECONDARY_CONTROLS.bits().into());
        }),
        ("uncacheable EPT structures", |b| b.set(Field::EptPointer, 0x9018)),
        ("link pointer to another VMCS", |b| b.set(Field::VmcsLinkPointer, OTHER.0)),
        ("null data segments", |b| {
            for field in [Field::GuestDsRights, Field::GuestEsRights, Field::GuestFsRights, Field::GuestGsRights] {
                b.set(field, 1 << 16);
            }
        }),
        ("a bad PAT that is not loaded", |b| {
            b.change(Field::ExitControls, 0, ExitControls::LOAD_PAT.bits().into());
            b.set(Field::HostPat, 0x02);
        }),
        ("a bad MSR area of no entries", |b| b.set(Field::ExitMsrLoadAddress, 1)),
        ("a guest in HLT", |b| b.set(Field::GuestActivity, 1)),
        ("PDPTEs not present with other bits", |b| {
            b.guest_pae();
            b.set(Field::GuestPdpte0, !1);
        }),
    ];
    for (name, vary) in variants {
        let mut bench = ready();
        vary(&mut bench);
        let broken = bench.vmx.explain(&bench.core, &bench.ground).map(|check| check.name);
        assert_eq!(broken, None, "{name}");
        assert_eq!(bench.enter(Entry::Launch), Entered::Guest, "{name}");
    }
    println!("{} valid VMCSs", variants.len());
}

/// SDM 3C 26.3.1.6: without EPT the PDPTEs come from memory; a reserved bit is entry failure 33 with qualification 2.
#[test]
fn pdptes_from_memory() {
    for (entry, outcome) in [(0xb001, Entered::Guest), (0xb003, Entered::Refused), (0xb002, Entered::Guest)] {
        let mut bench = ready();
        bench.guest_pae();
        bench.without_ept();
        bench.ground.mem.write_u64(Hpa(PDPT.0 + 24), entry);
        assert_eq!(bench.enter(Entry::Launch), outcome, "{entry:#x}");
        match outcome {
            Entered::Guest => assert_eq!(bench.core.pdptes, [0, 0, 0, entry]),
            _ => {
                assert_eq!(bench.get(Field::ExitReason), 0x8000_0021);
                assert_eq!(bench.get(Field::ExitQualification), 2);
            }
        }
    }
}
