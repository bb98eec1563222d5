//! Page sizes and reserved bits that depend on what the processor offers (SDM 3A 4.1.4, 4.3, 4.5; APM2 5.3.3).

use super::support::{End, GUEST, LINEAR, OPEN, PS, access, core, guest, set_guest};
use cpu::Regime;
use cpu::paging::translate::translate;
use cpu::profile::Features;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::PageFaultError;
use sim_core::{Ground, Gva, Hpa};

const READ: Access = Access::new(AccessKind::Read, Privilege::Supervisor);
const RESERVED: End = End::PageFault(PageFaultError::P.union(PageFaultError::RSVD));

/// SDM 3A 4.5: PS in a PDPTE is reserved on a processor without 1 GiB pages; 2 MiB pages are always there.
#[test]
fn giant_pages_are_a_feature() {
    for (depth, features, expected) in [
        (1, Features::BASE, End::At(0x4000_0000 | LINEAR.0 & 0x3fff_ffff)),
        (1, Features::BASE - Features::PAGE_1G, RESERVED),
        (2, Features::BASE - Features::PAGE_1G, End::At(0x4000_0000 | LINEAR.0 & 0x1f_ffff)),
    ] {
        let mut ground = guest([OPEN; 4]);
        ground.mem.write_u64(super::support::entry_at(&GUEST, depth, LINEAR.0), 0x4000_0000 | PS | OPEN);
        let mut core = core();
        core.features = features;
        assert_eq!(access(&mut core, &Regime::default(), &mut ground, READ), expected, "{depth} {features:?}");
    }
}

/// Bit 8 of entries that refer to a table: ignored by Intel's processors, reserved at level 4 by AMD's.
#[test]
fn global_flag_of_upper_entries() {
    for (depth, reserved) in [(0, true), (1, false), (2, false), (3, false)] {
        for features in [Features::BASE, Features::BASE | Features::UPPER_GLOBAL_RESERVED] {
            let mut ground = guest([OPEN; 4]);
            set_guest(&mut ground, depth, OPEN | 1 << 8);
            let mut core = core();
            core.features = features;
            let fault = reserved && features.contains(Features::UPPER_GLOBAL_RESERVED);
            let done = access(&mut core, &Regime::default(), &mut ground, READ);
            assert_eq!(done == RESERVED, fault, "{depth} {features:?}");
        }
    }
}

/// SDM 3A table 4-4 and 4.3: a 4 MiB page reaches as far as MAXPHYADDR and 40 bits allow.
#[test]
fn pse36_reaches_maxphyaddr() {
    let mut count = 0;
    for (maxphyaddr, bit) in (32..=52).flat_map(|width| (13..22).map(move |bit| (width, bit))) {
        let mut core = cpu::Core::flat32(maxphyaddr);
        core.cr0 |= Cr0::PG;
        core.cr4 |= Cr4::PSE;
        core.cr3 = 0x1000;
        let mut ground = Ground::new(16);
        ground.mem.write_u32(Hpa(0x1004), 0x0080_0000 | 1 << bit | 0x87);
        let done = translate(&mut core, &Regime::default(), &mut ground, Gva(0x40_1234), READ);
        // Bit 13 is address bit 32, bit 20 is 39, and bit 21 is none.
        let address_bit = bit + 19;
        let is_address = bit <= 20 && address_bit < maxphyaddr;
        let expected = 0x0080_1234 | 1_u64 << address_bit;
        assert_eq!(done.ok(), is_address.then_some(Hpa(expected)), "{maxphyaddr} {bit}");
        count += 1;
    }
    println!("walker cases: {count} (PSE-36)");
    assert_eq!(count, 21 * 9);
}
