//! The rules, one a row. Each `holds` is a pure function of the [`View`].

use super::view::NestedPaging;
use super::{Check, View};
use crate::asid::TlbControl;
use crate::intercept::{IOPM_BYTES, Intercepts, MSRPM_BYTES};
use sim_core::addr::PAGE_OFFSET_MASK;
use sim_core::arch::control::{Cr0, Cr4, Efer};

/// CR4 bits that the model's AMD processor reserves: those of Intel's extensions, and CET and XSAVE, which the CPU
/// lacks.
const CR4_RESERVED: Cr4 = Cr4::VMXE.union(Cr4::SMXE).union(Cr4::CET).union(Cr4::PKS).union(Cr4::OSXSAVE);
/// CR4 bits that may be set.
const CR4_ALLOWED: Cr4 = Cr4::all().difference(CR4_RESERVED);
/// Memory types that a PAT field may hold: UC, WC, WT, WP, WB, UC- (APM2 7.8.1).
const PAT_TYPES: [u8; 6] = [0, 1, 4, 5, 6, 7];

macro_rules! checks {
    ($($name:literal, $clause:literal, $holds:expr;)*) => {
        /// Every rule.
        pub static TABLE: &[Check] = &[$(Check { name: $name, clause: $clause, holds: $holds },)*];
    };
}

checks! {
    "efer-svme", "APM2 15.5.1: EFER.SVME is zero", |v| v.has_efer(Efer::SVME);
    "cr0-cd-nw", "APM2 15.5.1: CR0.CD is zero and CR0.NW is set", |v| v.has_cr0(Cr0::CD) || !v.has_cr0(Cr0::NW);
    "cr0-high", "APM2 15.5.1: CR0[63:32] are not zero", |v| v.cr0 >> 32 == 0;
    "cr3-mbz", "APM2 15.5.1: any MBZ bit of CR3 is set", |v| !v.is_long() || !v.is_beyond(v.cr3);
    "cr4-mbz", "APM2 15.5.1: any MBZ bit of CR4 is set", |v| v.cr4 & !CR4_ALLOWED.bits() == 0;
    "dr6-high", "APM2 15.5.1: DR6[63:32] are not zero", |v| v.dr6 >> 32 == 0;
    "dr7-high", "APM2 15.5.1: DR7[63:32] are not zero", |v| v.dr7 >> 32 == 0;
    "efer-mbz", "APM2 15.5.1: any MBZ bit of EFER is set", |v| v.efer & !Efer::all().bits() == 0;
    "long-pae", "APM2 15.5.1: EFER.LME and CR0.PG are both set and CR4.PAE is zero",
        |v| !v.is_long() || v.has_cr4(Cr4::PAE);
    "long-pe", "APM2 15.5.1: EFER.LME and CR0.PG are both non-zero and CR0.PE is zero",
        |v| !v.is_long() || v.has_cr0(Cr0::PE);
    "long-cs", "APM2 15.5.1: EFER.LME, CR0.PG, CR4.PAE, CS.L, and CS.D are all non-zero",
        |v| !(v.is_long() && v.has_cr4(Cr4::PAE) && v.cs.is_long() && v.cs.is_big());
    "vmrun-intercept", "APM2 15.5.1: the VMRUN intercept bit is clear", |v| v.intercepts.contains(Intercepts::VMRUN);
    "iopm-range", "APM2 15.5.1: the IOIO intercept table extends beyond the maximum physical address",
        |v| fits(v, v.iopm, IOPM_BYTES);
    "msrpm-range", "APM2 15.5.1: the MSR intercept table extends beyond the maximum physical address",
        |v| fits(v, v.msrpm, MSRPM_BYTES);
    "event-injection", "APM2 15.20: illegal event injection", |v| v.injection.is_legal();
    "asid-zero", "APM2 15.5.1: ASID is equal to zero", |v| v.asid != 0;
    "tlb-control", "APM2 15.16.2: reserved encodings of TLB_CONTROL",
        |v| TlbControl::decode(v.tlb_control, &v.capabilities).is_some();
    "nested-host-paging", "APM2 15.25.3: VMRUN with nested paging while the host's CR0.PG is zero",
        |v| v.nested == NestedPaging::Off || v.host_cr0.contains(Cr0::PG);
    "nested-cr3-mbz", "APM2 15.25.4: any MBZ bit of nCR3 is set",
        |v| v.nested == NestedPaging::Off || !v.is_beyond(v.ncr3);
    "nested-pat", "APM2 15.25.4: G_PAT has an unsupported type or a reserved bit set",
        |v| v.nested == NestedPaging::Off || v.pat.to_le_bytes().iter().all(|kind| PAT_TYPES.contains(kind));
}

/// Whether a table at this base ends below the physical-address limit; the low 12 bits are ignored.
fn fits(view: &View, base: u64, bytes: u64) -> bool {
    (base & !PAGE_OFFSET_MASK).checked_add(bytes - 1).is_some_and(|last| !view.is_beyond(last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::{Capabilities, Features};
    use crate::checks::refusal;
    use crate::testing::{self, VMCB};
    use crate::vmcb::{self, Field};
    use cpu::Core;
    use sim_core::Ground;
    use std::collections::BTreeMap;

    type Spoiler = fn(&mut Ground, &mut Core);

    fn set(ground: &mut Ground, field: Field, bits: u64) {
        let value = vmcb::read(&ground.mem, VMCB, field);
        vmcb::write(&mut ground.mem, VMCB, field, value | bits);
    }

    fn clear(ground: &mut Ground, field: Field, bits: u64) {
        let value = vmcb::read(&ground.mem, VMCB, field);
        vmcb::write(&mut ground.mem, VMCB, field, value & !bits);
    }

    /// What makes a valid VMCB break exactly the named rule.
    fn spoilers() -> BTreeMap<&'static str, Spoiler> {
        let rows: [(&str, Spoiler); 20] = [
            ("efer-svme", |g, _| clear(g, Field::Efer, Efer::SVME.bits())),
            ("cr0-cd-nw", |g, _| set(g, Field::Cr0, Cr0::NW.bits())),
            ("cr0-high", |g, _| set(g, Field::Cr0, 1 << 32)),
            ("cr3-mbz", |g, _| set(g, Field::Cr3, 1 << 52)),
            ("cr4-mbz", |g, _| set(g, Field::Cr4, Cr4::VMXE.bits())),
            ("dr6-high", |g, _| set(g, Field::Dr6, 1 << 63)),
            ("dr7-high", |g, _| set(g, Field::Dr7, 1 << 32)),
            ("efer-mbz", |g, _| set(g, Field::Efer, 1 << 9)),
            ("long-pae", |g, _| clear(g, Field::Cr4, Cr4::PAE.bits())),
            ("long-pe", |g, _| clear(g, Field::Cr0, Cr0::PE.bits())),
            ("long-cs", |g, _| g.mem.write(VMCB.offset(0x412), 0xe9b, 2)),
            ("vmrun-intercept", |g, _| clear(g, Field::InterceptWord4, 1)),
            ("iopm-range", |g, c| vmcb::write(&mut g.mem, VMCB, Field::IopmBase, (1 << c.maxphyaddr) - 0x2000)),
            ("msrpm-range", |g, c| vmcb::write(&mut g.mem, VMCB, Field::MsrpmBase, (1 << c.maxphyaddr) - 0x1000)),
            ("event-injection", |g, _| vmcb::write(&mut g.mem, VMCB, Field::EventInjection, 0x8000_0302)),
            ("asid-zero", |g, _| vmcb::write(&mut g.mem, VMCB, Field::Asid, 0)),
            ("tlb-control", |g, _| vmcb::write(&mut g.mem, VMCB, Field::TlbControl, 2)),
            ("nested-host-paging", |_, c| c.cr0.remove(Cr0::PG)),
            ("nested-cr3-mbz", |g, _| set(g, Field::NestedCr3, 1 << 52)),
            ("nested-pat", |g, _| vmcb::write(&mut g.mem, VMCB, Field::GuestPat, 0x0002_0000)),
        ];
        BTreeMap::from(rows)
    }

    /// Each row of the table holds for the valid VMCB, and its spoiler breaks that row and no other.
    #[test]
    fn each_rule_passes_and_fails() {
        let spoilers = spoilers();
        assert_eq!(spoilers.len(), TABLE.len());
        let capabilities = Capabilities::default();
        for check in TABLE {
            let (mut core, mut ground) = testing::machine();
            testing::enable_nested_paging(&mut ground);
            assert!(refusal(&ground.mem, VMCB, &core, &capabilities).is_none());
            spoilers[check.name](&mut ground, &mut core);
            let view = View::read(&ground.mem, VMCB, &core, &capabilities);
            let broken: Vec<_> = TABLE.iter().filter(|row| !(row.holds)(&view)).map(|row| row.name).collect();
            assert_eq!(broken, [check.name], "{}", check.clause);
        }
        println!("{} checks, each with one passing and one failing case", TABLE.len());
    }

    /// APM2 15.25: without nested paging, enabled and supported, its rules don't apply.
    #[test]
    fn nested_rules_need_nested_paging() {
        let without = Capabilities { features: Features::all() - Features::NESTED_PAGING, ..Capabilities::default() };
        for name in ["nested-host-paging", "nested-cr3-mbz", "nested-pat"] {
            let (mut core, mut ground) = testing::machine();
            spoilers()[name](&mut ground, &mut core);
            assert!(refusal(&ground.mem, VMCB, &core, &Capabilities::default()).is_none(), "{name}, not enabled");
            testing::enable_nested_paging(&mut ground);
            let (mut core, mut ground) = (core, ground);
            spoilers()[name](&mut ground, &mut core);
            assert!(refusal(&ground.mem, VMCB, &core, &without).is_none(), "{name}, not supported");
        }
    }

    /// kvm-unit-tests svm.c: outside long mode no bit of CR3 stops VMRUN.
    #[test]
    fn cr3_outside_long_mode() {
        let (core, mut ground) = testing::machine();
        clear(&mut ground, Field::Efer, (Efer::LME | Efer::LMA).bits());
        set(&mut ground, Field::Cr3, 0xfff0_0000_0000_0fff);
        assert!(refusal(&ground.mem, VMCB, &core, &Capabilities::default()).is_none());
    }
}
