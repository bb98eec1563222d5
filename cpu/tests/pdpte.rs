//! Loading the PDPTE registers (SDM 3A 4.4.1): every bit of every entry, and the load as a second stage sees it.

use cpu::paging::pdpte;
use cpu::virt::{HostPaging, StageFault, StageFaultKind, StagePurpose};
use cpu::{Fault, Regime, SecondStage, Tag};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::exception::Exception;
use sim_core::{Gpa, Ground, Hpa};

const MAXPHYADDR: u32 = 40;
/// CR3 with bits 4:0 set, which don't belong to the address.
const CR3: u64 = 0x3060 | 0x1f;
const TABLE: Hpa = Hpa(0x3060);

/// SDM 3A table 4-8: bits 2:1, 8:5 and 63:MAXPHYADDR are reserved, in present entries only.
#[test]
fn reserved_bits() {
    let is_reserved = |bit: u32| matches!(bit, 1..=2 | 5..=8 | 40..=63);
    let mut count = 0;
    for entry in 0..4 {
        for bit in 1..64 {
            for present in [0, 1] {
                let mut ground = Ground::new(16);
                let mut expected = [0x5001; 4];
                expected[entry] = (0x6000 ^ 1 << bit) | present;
                for (index, value) in (0..).zip(expected) {
                    ground.mem.write_u64(TABLE.offset(8 * index), value);
                }
                let loaded = pdpte::load(MAXPHYADDR, &Regime::default(), &mut ground, CR3);
                let is_fault = present == 1 && is_reserved(bit);
                let expected = if is_fault { Err(Exception::gp0().into()) } else { Ok(expected) };
                assert_eq!(loaded, expected, "entry {entry} bit {bit} present {present}");
                count += 1;
            }
        }
    }
    assert_eq!(count, 4 * 63 * 2);
}

/// SDM 3C 28.2.3.2: the load is a read even with EPT accessed and dirty flags, and has no linear address.
#[test]
fn the_load_is_a_read_for_ept() {
    const ROOT: u64 = 0x10_000;
    for (rwx, expected) in [(1, None), (3, None), (4, Some(4)), (0, Some(0))] {
        let mut ground = Ground::new(64);
        for table in 0..3 {
            ground.mem.write_u64(Hpa(ROOT + 0x1000 * table), (ROOT + 0x1000 * (table + 1)) | 7);
        }
        ground.mem.write_u64(Hpa(ROOT + 0x3000 + 8 * 3), 0x8000 | 6 << 3 | rwx);
        ground.mem.write_u64(Hpa(0x8060), 0x5001);
        let second = SecondStage::Ept { eptp: ROOT | 1 << 6 | 3 << 3 | 6, controls: cpu::virt::EptControls::default() };
        let regime = Regime { tag: Tag { context: 1, ept_root: Some(Hpa(ROOT)) }, second };
        let fault = |allowed| {
            let access = Access::implicit(AccessKind::Read);
            let kind = StageFaultKind::EptViolation { allowed };
            Fault::Stage(StageFault {
                gpa: Gpa(TABLE.0),
                gva: None,
                access,
                purpose: StagePurpose::Table,
                first: None,
                convertible: false,
                kind,
            })
        };
        let expected = expected.map_or(Ok([0x5001, 0, 0, 0]), |allowed| Err(fault(allowed)));
        assert_eq!(pdpte::load(MAXPHYADDR, &regime, &mut ground, CR3), expected, "{rwx:#b}");
    }
}

/// APM2 15.25.10: with nested paging nothing is loaded, so nothing can fault.
#[test]
fn nested_paging_has_no_pdpte_registers() {
    let second =
        SecondStage::Npt { ncr3: 0x1000, host: HostPaging::default(), controls: cpu::virt::NptControls::default() };
    let mut ground = Ground::new(16);
    ground.mem.write_u64(TABLE, u64::MAX);
    assert_eq!(pdpte::load(MAXPHYADDR, &Regime { second, ..Regime::default() }, &mut ground, CR3), Ok([0; 4]));
}
