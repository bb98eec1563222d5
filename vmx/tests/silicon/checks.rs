//! Every row of the check tables with a passing and a failing case (SDM 3C 26.2, 26.3.1, 26.4), generated from the tables:
//! the valid VMCS keeps the rule and is entered; the same VMCS, broken by the row, fails with this row's name, and with the
//! error number or the exit reason and qualification of its group.

use crate::bench::{Bench, MSR_AREA, OTHER, PDPT, VMCS, drafted, ready};
use cpu::profile::Features;
use sim_core::Hpa;
use std::collections::BTreeSet;
use vmx::checks::{self, Check, Tables, View};
use vmx::controls::{ExitControls, PrimaryProc, SecondaryProc};
use vmx::msr;
use vmx::vmcs::Region;
use vmx::{Capabilities, Entered, Entry, Field, InstructionError, Operation, VmFail};

/// Every control of the manual: the rows about controls that are not modelled fail as the others do.
fn valid() -> Bench {
    drafted(Capabilities::architectural(), Features::all())
}

fn holds(bench: &Bench, check: &Check) -> bool {
    (check.holds)(&View::new(&bench.ground, Region(VMCS), bench.vmx.capabilities(), &bench.core))
}

/// What a broken row's entry must give.
#[derive(Clone, Copy)]
enum Expected {
    VmFail(InstructionError),
    Refused,
}

fn judge(bench: &Bench, check: &Check, outcome: Entered, expected: Expected) -> Result<(), String> {
    match expected {
        Expected::VmFail(error) => {
            let told = bench.get(Field::InstructionError);
            if (outcome, told) != (Entered::Failed(VmFail::Valid(error)), u64::from(error.number())) {
                return Err(format!("{outcome:?}, VM-instruction error {told}"));
            }
        }
        Expected::Refused => {
            let told = (bench.get(Field::ExitReason), bench.get(Field::ExitQualification));
            if outcome != Entered::Refused || told != (0x8000_0021, check.qualification) {
                return Err(format!("{outcome:?}, reason and qualification {told:x?}"));
            }
            if bench.core.rip != bench.get(Field::HostRip) || bench.get(Field::GuestRip) == 0 {
                return Err("host state is not loaded, or guest state is saved".to_owned());
            }
        }
    }
    if bench.vmx.operation() == Operation::Root { Ok(()) } else { Err("not in root operation".to_owned()) }
}

/// One row: the passing case and the failing case.
fn run(check: &'static Check, expected: Expected) -> Result<(), String> {
    let mut bench = valid();
    if !holds(&bench, check) {
        return Err("fails on the valid VMCS".to_owned());
    }
    bench.draft(check.breaks);
    let broken = bench.vmx.explain(&bench.core, &bench.ground).map(|check| check.name);
    if broken != Some(check.name) {
        return Err(format!("breaks {broken:?}"));
    }
    let outcome = bench.enter(Entry::Launch);
    judge(&bench, check, outcome, expected)
}

#[test]
fn each_entry_check_passes_and_fails() {
    assert_eq!(
        valid().enter(Entry::Launch),
        Entered::Guest,
        "{:?}",
        valid().vmx.explain(&valid().core, &valid().ground).map(|c| c.name)
    );
    let groups: [(Tables, Expected); 3] = [
        (checks::CONTROLS, Expected::VmFail(InstructionError::EntryControls)),
        (checks::HOST, Expected::VmFail(InstructionError::EntryHostState)),
        (checks::GUEST, Expected::Refused),
    ];
    let (mut names, mut failures, mut passed) = (BTreeSet::new(), Vec::new(), 0);
    for (tables, expected) in groups {
        for check in tables.iter().copied().flatten() {
            assert!(names.insert(check.name), "two rows of the name {:?}", check.name);
            match run(check, expected) {
                Ok(()) => passed += 1,
                Err(why) => failures.push(format!("{} ({}): {why}", check.name, check.clause)),
            }
        }
    }
    for rule in msr::ENTRY_LOAD {
        assert!(names.insert(rule.name), "two rows of the name {:?}", rule.name);
        match load_msr(rule) {
            Ok(()) => passed += 1,
            Err(why) => failures.push(format!("{} ({}): {why}", rule.name, rule.clause)),
        }
    }
    // The valid VMCS passes each check; broken in one way, it fails that check and no other before it.
    println!("vmx entry checks: {0} names, {0} pass, {passed} fail by their own name", names.len());
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The second entry of the MSR-load area breaks the rule; an area with the first alone is loaded.
fn load_msr(rule: &msr::MsrRule) -> Result<(), String> {
    let mut bench = valid();
    bench.set_all(&[(Field::EntryMsrLoadCount, 1), (Field::EntryMsrLoadAddress, MSR_AREA.0)]);
    for (number, (index, value)) in [(0x174, 0x99), (rule.broken.index, rule.broken.value)].into_iter().enumerate() {
        let at = Hpa(MSR_AREA.0 + 16 * number as u64);
        bench.ground.mem.write_u64(at, index);
        bench.ground.mem.write_u64(at.offset(8), value);
    }
    let mut passing = bench.clone();
    if passing.enter(Entry::Launch) != Entered::Guest || passing.core.msrs.sysenter_cs != 0x99 {
        return Err("the valid area is not loaded".to_owned());
    }
    bench.set(Field::EntryMsrLoadCount, 2);
    let first = msr::ENTRY_LOAD.iter().find(|row| !(row.holds)(&passing.core, &rule.broken)).map(|row| row.name);
    if first != Some(rule.name) {
        return Err(format!("breaks {first:?}"));
    }
    let outcome = bench.enter(Entry::Launch);
    let told = (outcome, bench.get(Field::ExitReason), bench.get(Field::ExitQualification));
    if told == (Entered::Refused, 0x8000_0022, 2) { Ok(()) } else { Err(format!("{told:x?}")) }
}

/// Every check has its clause, and the clauses come in order.
#[test]
fn rows_are_in_the_manuals_order() {
    let of = |tables: Tables| tables.iter().copied().flatten().map(|check| check.clause).collect::<Vec<_>>();
    for tables in [checks::CONTROLS, checks::HOST, checks::GUEST] {
        let clauses = of(tables);
        assert!(clauses.is_sorted(), "{clauses:?}");
        assert!(clauses.iter().all(|clause| clause.starts_with("26.")));
    }
}

/// The valid VMCSs that the rows start from, and others near the checks' borders.
#[test]
fn valid_variants_enter() {
    type Variant = (&'static str, fn(&mut Bench));
    let variants: &[Variant] = &[
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
        ("RIP one bit outside canonical space", |b| b.set(Field::GuestRip, 1 << 56)),
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
        bench.ground.mem.write_u64(PDPT.offset(16), entry);
        assert_eq!(bench.enter(Entry::Launch), outcome, "{entry:#x}");
        if outcome == Entered::Refused {
            assert_eq!((bench.get(Field::ExitReason), bench.get(Field::ExitQualification)), (0x8000_0021, 2));
        }
    }
}

/// A control that the manual has and the model does not act on is named, after all checks.
#[test]
fn unmodelled_controls_are_named() {
    let mut bench = valid();
    bench.draft(|draft| {
        draft.tpr_shadow();
        draft.secondary(SecondaryProc::APIC_REGISTER_VIRTUALIZATION);
    });
    let outcome = bench.vmx.enter(&mut bench.core, &mut bench.ground, Entry::Launch);
    let named = sim_core::SimError::unmodelled("VM-entry with APIC_REGISTER_VIRTUALIZATION");
    assert_eq!(outcome, Err(named));
}
