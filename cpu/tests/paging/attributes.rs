//! Memory types of translations (SDM 3A 4.9.2, 11.5.2.2, 11.12; SDM 3C 28.2.6.2; APM2 15.25.8).

use super::support::{EPTP4, GUEST, LINEAR, OPEN, PS, TARGET, WB, core, ept, guest, identity, npt, set_stage_page};
use cpu::paging::memory_type::{MemoryType, Mtrrs, VARIABLE_RANGES, effective};
use cpu::paging::walk::uncached;
use cpu::virt::{EptFlags, NptControls};
use cpu::{Core, Regime};
use sim_core::Ground;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::Cr0;

/// UC, WC, WT, WP, WB, UC-, WC, WT.
const EVERY_TYPE: u64 = 0x0401_0706_0504_0100;

fn kind(core: &Core, regime: &Regime, ground: &mut Ground) -> MemoryType {
    let read = Access::new(AccessKind::Read, Privilege::User);
    uncached(core, regime, ground, LINEAR, read).expect("a translation").memory_type
}

fn pat_type(index: u64) -> MemoryType {
    MemoryType::from_bits(EVERY_TYPE >> (8 * index) & 7).expect("a type")
}

/// PAT, PCD and PWT of a page's entry select a type: PAT is bit 7 of a PTE, bit 12 of a larger page's entry.
#[test]
fn pat_of_every_page_size() {
    for (depth, pat, flags) in [(3, 7, 0), (2, 12, PS), (1, 12, PS)] {
        for index in 0..8 {
            let mut ground = guest([OPEN; 4]);
            let page = if depth == 3 { TARGET & !0xfff } else { 0x4000_0000 };
            let entry = page | OPEN | flags | (index & 3) << 3 | (index >> 2) << pat;
            ground.mem.write_u64(super::support::entry_at(&GUEST, depth, LINEAR.0), entry);
            let mut core = core();
            core.msrs.pat = EVERY_TYPE;
            let expected = effective(MemoryType::WriteBack, pat_type(index));
            assert_eq!(kind(&core, &Regime::default(), &mut ground), expected, "{depth} {index}");
            core.cr0 |= Cr0::CD;
            assert_eq!(kind(&core, &Regime::default(), &mut ground), MemoryType::Uncacheable);
        }
    }
}

/// The MTRR of the physical address counts without EPT, EPT's type in its place with EPT, and with "ignore PAT" that
/// type alone.
#[test]
fn mtrrs_and_ept() {
    let mut variable = [(0, 0); VARIABLE_RANGES];
    variable[0] = (4, !0xffff & 0x3fff_ffff_f000 | Mtrrs::VALID);
    for index in 0..8 {
        let mut core = core();
        core.msrs.pat = EVERY_TYPE;
        core.mtrrs = Mtrrs { default_type: Mtrrs::ENABLE, variable, ..Mtrrs::WRITE_BACK };
        let mut ground = guest([OPEN, OPEN, OPEN, OPEN | (index & 3) << 3 | (index >> 2) << 7]);
        identity(&mut ground, 7, 7 | WB);
        let plain = kind(&core, &Regime::default(), &mut ground);
        assert_eq!(plain, effective(MemoryType::WriteThrough, pat_type(index)));
        for (bits, ipat) in [0, 1, 4, 5, 6].into_iter().flat_map(|bits| [0, 1 << 6].map(|ipat| (bits, ipat))) {
            set_stage_page(&mut ground, TARGET, 7 | bits << 3 | ipat);
            let ept_type = MemoryType::from_bits(bits).unwrap();
            let expected = if ipat == 0 { effective(ept_type, pat_type(index)) } else { ept_type };
            assert_eq!(kind(&core, &ept(EPTP4, EptFlags::empty()), &mut ground), expected, "{index} {bits} {ipat}");
        }
    }
}

/// With nested paging the nested entry's index selects from the host's PAT; write-back there leaves the guest's type.
#[test]
fn nested_paging_combines_two_pats() {
    for (guest_bits, nested_bits, expected) in [
        (0, 0, MemoryType::WriteBack),
        (1 << 3, 0, MemoryType::WriteThrough),
        (0, 1 << 3, MemoryType::WriteThrough),
        (0, 3 << 3, MemoryType::Uncacheable),
        (3 << 3, 0, MemoryType::Uncacheable),
    ] {
        let mut ground = guest([OPEN, OPEN, OPEN, OPEN | guest_bits]);
        identity(&mut ground, 7, 7 | nested_bits);
        let regime = npt(false, NptControls::empty());
        assert_eq!(kind(&core(), &regime, &mut ground), expected, "{guest_bits:#x} {nested_bits:#x}");
    }
}
