//! The rules, one a row. Each `holds` is a pure function of the [`View`], each spoiler breaks its rule alone.

use super::view::NestedPaging;
use super::{Check, View};
use crate::asid::TlbControl;
use crate::intercept::{IOPM_BYTES, Intercepts, MSRPM_BYTES};
use crate::interrupts::VirtualFlags;
use crate::vmcb::{self, Field, SegmentField, pack};
use cpu::profile::Features;
use sim_core::Hpa;
use sim_core::addr::PAGE_OFFSET_MASK;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::segment::Rights;
use sim_core::memory::PhysMem;

/// CR4 bits that AMD processors reserve: those of Intel's extensions.
const CR4_RESERVED: Cr4 = Cr4::VMXE.union(Cr4::SMXE).union(Cr4::PKS).union(Cr4::UINTR).union(Cr4::LAM_SUP);
/// CR4 bits that exist only with a feature.
const CR4_FEATURES: [(Cr4, Features); 2] =
    [(Cr4::CET, Features::CET_SS.union(Features::CET_IBT)), (Cr4::OSXSAVE, Features::XSAVE)];
/// Memory types that a PAT field may hold: UC, WC, WT, WP, WB, UC- (APM2 7.8.1).
const PAT_TYPES: [u8; 6] = [0, 1, 4, 5, 6, 7];
/// Bits of S_CET that AMD processors have: SH_STK_EN and WR_SHSTK_EN (APM2 18.12).
const S_CET_DEFINED: u64 = 0b11;
/// Reserved bits of a present PDPTE below MAXPHYADDR: 8:5 and 2:1 (APM2 5.2.4).
const PDPTE_RESERVED: u64 = 0x1e6;

macro_rules! checks {
    ($($name:literal, $clause:literal, $holds:expr, $spoil:expr;)*) => {
        /// Every rule.
        pub static TABLE: &[Check] =
            &[$(Check { name: $name, clause: $clause, holds: $holds, spoil: $spoil },)*];
    };
}

checks! {
    "efer-svme", "APM2 15.5.1: EFER.SVME is zero", |v| v.has_efer(Efer::SVME),
        |m, at, _| clear(m, at, Field::Efer, Efer::SVME.bits());
    "cr0-cd-nw", "APM2 15.5.1: CR0.CD is zero and CR0.NW is set", |v| v.has_cr0(Cr0::CD) || !v.has_cr0(Cr0::NW),
        |m, at, _| { clear(m, at, Field::Cr0, Cr0::CD.bits()); set(m, at, Field::Cr0, Cr0::NW.bits()) };
    "cr0-high", "APM2 15.5.1: CR0[63:32] are not zero", |v| v.cr0 >> 32 == 0,
        |m, at, _| set(m, at, Field::Cr0, 1 << 32);
    "cr3-mbz", "APM2 15.5.1: any MBZ bit of CR3 is set", |v| !v.is_long() || !v.is_beyond(v.cr3),
        |m, at, c| set(m, at, Field::Cr3, beyond(c.maxphyaddr));
    "cr4-mbz", "APM2 15.5.1: any MBZ bit of CR4 is set", cr4_is_defined,
        |m, at, _| set(m, at, Field::Cr4, Cr4::VMXE.bits());
    "dr6-high", "APM2 15.5.1: DR6[63:32] are not zero", |v| v.dr6 >> 32 == 0,
        |m, at, _| set(m, at, Field::Dr6, 1 << 63);
    "dr7-high", "APM2 15.5.1: DR7[63:32] are not zero", |v| v.dr7 >> 32 == 0,
        |m, at, _| set(m, at, Field::Dr7, 1 << 32);
    "efer-mbz", "APM2 15.5.1: any MBZ bit of EFER is set", |v| v.efer & !Efer::all().bits() == 0,
        |m, at, _| set(m, at, Field::Efer, 1 << 9);
    "long-pae", "APM2 15.5.1: EFER.LME and CR0.PG are both set and CR4.PAE is zero",
        |v| !v.is_long() || v.has_cr4(Cr4::PAE),
        |m, at, _| clear(m, at, Field::Cr4, Cr4::PAE.bits());
    "long-pe", "APM2 15.5.1: EFER.LME and CR0.PG are both non-zero and CR0.PE is zero",
        |v| !v.is_long() || v.has_cr0(Cr0::PE),
        |m, at, _| clear(m, at, Field::Cr0, Cr0::PE.bits());
    "long-cs", "APM2 15.5.1: EFER.LME, CR0.PG, CR4.PAE, CS.L, and CS.D are all non-zero",
        |v| !(v.is_long() && v.has_cr4(Cr4::PAE) && v.cs.is_long() && v.cs.is_big()),
        |m, at, _| m.write(at.offset(u64::from(SegmentField::Cs.offset()) + 2), u64::from(CODE_LONG_BIG), 2);
    "cet-without-wp", "APM2 15.5.1: CR4.CET is set and CR0.WP is zero",
        |v| !v.has_cr4(Cr4::CET) || v.has_cr0(Cr0::WP) || !cr4_is_defined(v),
        |m, at, c| {
            c.features.insert(Features::CET_SS | Features::CET_IBT);
            set(m, at, Field::Cr4, Cr4::CET.bits());
            clear(m, at, Field::Cr0, Cr0::WP.bits());
        };
    "s-cet-mbz", "APM2 15.5.1: any reserved bit of S_CET is set",
        |v| !v.features.contains(Features::CET_SS) || v.s_cet & !S_CET_DEFINED == 0,
        |m, at, c| { c.features.insert(Features::CET_SS); set(m, at, Field::SCet, 1 << 2) };
    "pdpte-mbz", "APM2 15.25.10: without nested paging, a present PDPTE of a PAE guest has an MBZ bit set",
        |v| v.pdptes.is_none_or(|pdptes| pdptes.iter().all(|entry| is_pdpte(v, *entry))),
        spoil_pdpte;
    "vmrun-intercept", "APM2 15.5.1: the VMRUN intercept bit is clear", |v| v.intercepts.contains(Intercepts::VMRUN),
        |m, at, _| clear(m, at, Field::InterceptWord4, 1);
    "iopm-range", "APM2 15.5.1: the IOIO intercept table extends beyond the maximum physical address",
        |v| fits(v, v.iopm, IOPM_BYTES),
        |m, at, c| vmcb::write(m, at, Field::IopmBase, beyond(c.maxphyaddr) - IOPM_BYTES + 0x1000);
    "msrpm-range", "APM2 15.5.1: the MSR intercept table extends beyond the maximum physical address",
        |v| fits(v, v.msrpm, MSRPM_BYTES),
        |m, at, c| vmcb::write(m, at, Field::MsrpmBase, beyond(c.maxphyaddr) - MSRPM_BYTES + 0x1000);
    "event-type", "APM2 15.20: reserved TYPE of an event to inject", |v| v.injection.has_legal_type(),
        |m, at, _| vmcb::write(m, at, Field::EventInjection, 0x8000_0100);
    "event-vector", "APM2 15.20: an exception to inject whose vector is none",
        |v| v.injection.has_legal_vector(),
        |m, at, _| vmcb::write(m, at, Field::EventInjection, 0x8000_0302);
    "asid-zero", "APM2 15.5.1: ASID is equal to zero", |v| v.asid != 0,
        |m, at, _| vmcb::write(m, at, Field::Asid, 0);
    "tlb-control", "APM2 15.16: reserved encodings of TLB_CONTROL",
        |v| TlbControl::decode(v.tlb_control, &v.capabilities).is_some(),
        |m, at, _| vmcb::write(m, at, Field::TlbControl, 2);
    "virtual-nmi-intercept", "APM2 15.21.10: V_NMI_ENABLE without the NMI intercept",
        |v| !v.virtual_interrupts.has(VirtualFlags::NMI_ENABLE) || v.intercepts.contains(Intercepts::NMI),
        |m, at, _| {
            set(m, at, Field::VirtualInterrupt, VirtualFlags::NMI_ENABLE.bits());
            clear(m, at, Field::InterceptWord3, Intercepts::NMI.bits() as u64);
        };
    "nested-host-paging", "APM2 15.25.3: VMRUN with nested paging while the host's CR0.PG is zero",
        |v| v.nested == NestedPaging::Off || v.host_cr0.contains(Cr0::PG),
        |_, _, c| c.cr0.remove(Cr0::PG);
    "nested-cr3-mbz", "APM2 15.25.4: any MBZ bit of nCR3 is set",
        |v| v.nested == NestedPaging::Off || !v.is_beyond(v.ncr3),
        |m, at, c| set(m, at, Field::NestedCr3, beyond(c.maxphyaddr));
    "nested-pat", "APM2 15.25.4: G_PAT has an unsupported type or a reserved bit set",
        |v| v.nested == NestedPaging::Off || v.pat.to_le_bytes().iter().all(|kind| PAT_TYPES.contains(kind)),
        |m, at, _| vmcb::write(m, at, Field::GuestPat, 0x0002_0000);
}

/// Packed attributes of a code segment with both L and D set.
const CODE_LONG_BIG: u16 = pack(Rights(Rights::CODE64.0 | Rights::CODE32.0));

/// Whether a table at this base ends below the physical-address limit; the low 12 bits are ignored.
fn fits(view: &View, base: u64, bytes: u64) -> bool {
    (base & !PAGE_OFFSET_MASK).checked_add(bytes - 1).is_some_and(|last| !view.is_beyond(last))
}

/// Whether every bit of CR4 is one that this processor has.
fn cr4_is_defined(view: &View) -> bool {
    let lacking = CR4_FEATURES.iter().filter(|(_, feature)| !view.features.intersects(*feature));
    let allowed = lacking.fold(Cr4::all().difference(CR4_RESERVED), |allowed, (bit, _)| allowed.difference(*bit));
    view.cr4 & !allowed.bits() == 0
}

/// Whether a PDPTE may be loaded.
fn is_pdpte(view: &View, entry: u64) -> bool {
    entry & 1 == 0 || (entry & PDPTE_RESERVED == 0 && !view.is_beyond(entry))
}

/// The lowest physical-address bit that the processor does not have.
const fn beyond(maxphyaddr: u32) -> u64 {
    if maxphyaddr < 64 { 1 << maxphyaddr } else { 0 }
}

fn set(mem: &mut PhysMem, vmcb: Hpa, field: Field, bits: u64) {
    let value = vmcb::read(mem, vmcb, field);
    vmcb::write(mem, vmcb, field, value | bits);
}

fn clear(mem: &mut PhysMem, vmcb: Hpa, field: Field, bits: u64) {
    let value = vmcb::read(mem, vmcb, field);
    vmcb::write(mem, vmcb, field, value & !bits);
}

/// A PAE guest without nested paging, whose first PDPTE, in what was its top-level table, is present and writable.
fn spoil_pdpte(mem: &mut PhysMem, vmcb: Hpa, _core: &mut cpu::Core) {
    clear(mem, vmcb, Field::Efer, (Efer::LME | Efer::LMA).bits());
    clear(mem, vmcb, Field::NestedControl, 1);
    let cr3 = vmcb::read(mem, vmcb, Field::Cr3);
    mem.write_u64(Hpa(cr3 & 0xffff_ffe0), 0b11);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::{self, Capabilities};
    use crate::checks::refusal;
    use crate::entry::Entered;
    use crate::exit::ExitCode;
    use crate::testing::{self, VMCB};
    use crate::vmcb::Image;
    use cpu::Core;
    use sim_core::Ground;
    use std::collections::BTreeSet;

    fn broken(core: &Core, ground: &Ground, capabilities: &Capabilities) -> Vec<&'static str> {
        let view = View::of(&Image::read(&ground.mem, VMCB), &ground.mem, core, capabilities);
        TABLE.iter().filter(|row| !(row.holds)(&view)).map(|row| row.name).collect()
    }

    fn valid() -> (Core, Ground) {
        let (core, mut ground) = testing::machine();
        testing::enable_nested_paging(&mut ground);
        (core, ground)
    }

    /// Each rule holds for the valid VMCB, which VMRUN enters; its spoiler breaks that rule and no other, and VMRUN
    /// gives VMEXIT_INVALID.
    #[test]
    fn each_rule_passes_and_fails() {
        let (mut passing, mut failing) = (0, 0);
        for check in TABLE {
            let (mut core, mut ground) = valid();
            let mut svm = testing::unit();
            assert_eq!(svm.enter(&mut core, &mut ground, VMCB), Ok(Entered::Guest), "{}", check.name);
            passing += 1;

            let (mut core, mut ground) = valid();
            (check.spoil)(&mut ground.mem, VMCB, &mut core);
            assert_eq!(broken(&core, &ground, &Capabilities::default()), [check.name], "{}", check.clause);
            let mut svm = testing::unit();
            assert_eq!(svm.explain(&core, &ground, VMCB).map(|check| check.name), Some(check.name));
            assert_eq!(svm.enter(&mut core, &mut ground, VMCB), Ok(Entered::Refused));
            assert_eq!(vmcb::read(&ground.mem, VMCB, Field::ExitCode), ExitCode::Invalid.number());
            failing += 1;
        }
        println!("svm entry checks: {} names, {passing} pass, {failing} fail", TABLE.len());
    }

    #[test]
    fn names_and_clauses() {
        let names: BTreeSet<_> = TABLE.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), TABLE.len());
        assert!(TABLE.iter().all(|check| check.clause.starts_with("APM2 15.")));
    }

    /// APM2 15.25: without nested paging, enabled and supported, its rules don't apply.
    #[test]
    fn nested_rules_need_nested_paging() {
        let features = capability::Features::all() - capability::Features::NESTED_PAGING;
        let without = Capabilities { features, ..Capabilities::default() };
        for check in TABLE.iter().filter(|check| check.name.starts_with("nested-")) {
            let (mut core, mut ground) = testing::machine();
            (check.spoil)(&mut ground.mem, VMCB, &mut core);
            assert_eq!(broken(&core, &ground, &Capabilities::default()), [""; 0], "{}, not enabled", check.name);
            testing::enable_nested_paging(&mut ground);
            (check.spoil)(&mut ground.mem, VMCB, &mut core);
            assert_eq!(broken(&core, &ground, &without), [""; 0], "{}, not supported", check.name);
        }
    }

    /// kvm-unit-tests svm.c: outside long mode no bit of CR3 stops VMRUN.
    #[test]
    fn cr3_outside_long_mode() {
        let (core, mut ground) = valid();
        clear(&mut ground.mem, VMCB, Field::Efer, (Efer::LME | Efer::LMA).bits());
        set(&mut ground.mem, VMCB, Field::Cr3, 0xfff0_0000_0000_0fff);
        let image = Image::read(&ground.mem, VMCB);
        assert!(refusal(&image, &ground.mem, &core, &Capabilities::default()).is_none());
    }

    /// Every bit of CR0, CR4, EFER, DR6 and DR7 by itself: refused exactly where the manual reserves it.
    #[test]
    fn reserved_bits_one_by_one() {
        let reserved_cr4 = |bit: u32| {
            Cr4::from_bits(1 << bit)
                .is_none_or(|named| CR4_RESERVED.contains(named) || named == Cr4::CET || named == Cr4::OSXSAVE)
        };
        let mut refused = 0;
        for bit in 0..64_u32 {
            for (field, expected) in [
                (Field::Cr0, bit >= 32 || bit == 29),
                (Field::Cr4, reserved_cr4(bit)),
                (Field::Efer, Efer::from_bits(1 << bit).is_none()),
                (Field::Dr6, bit >= 32),
                (Field::Dr7, bit >= 32),
            ] {
                let (core, mut ground) = valid();
                set(&mut ground.mem, VMCB, field, 1 << bit);
                let found = broken(&core, &ground, &Capabilities::default());
                assert_eq!(!found.is_empty(), expected, "{} bit {bit}: {found:?}", field.name());
                refused += u32::from(expected);
            }
        }
        println!("320 single bits of control and debug registers, {refused} refused");
    }
}
