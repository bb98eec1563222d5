//! Accessed and dirty flags where tables overlap (SDM 3A 4.8, 8.1.2.1), and faults that leave them alone.

use super::support::{ACCESSED, DIRTY, End, GUEST, NX, OPEN, access, core, guest, guest_entry, set_guest};
use cpu::paging::translate::translate;
use cpu::{Core, Regime};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::{Ground, Gva, Hpa};

/// A root that refers to itself: one entry is used at all four levels, and changes between its use and its last update.
#[test]
fn an_entry_used_at_every_level() {
    let at = Hpa(GUEST[0] + 8 * 0x1ed);
    let linear = Gva(0xffff_f6fb_7dbe_d000 | (0x1ed * 8));
    for (kind, marks) in [(AccessKind::Read, ACCESSED), (AccessKind::Write, ACCESSED | DIRTY)] {
        let mut ground = Ground::new(16);
        ground.mem.write_u64(at, GUEST[0] | OPEN);
        let mut core = core();
        let asked = Access::new(kind, Privilege::Supervisor);
        assert_eq!(translate(&mut core, &Regime::default(), &mut ground, linear, asked), Ok(at));
        assert_eq!(ground.mem.read_u64(at), GUEST[0] | OPEN | marks);
    }
}

/// Accesses that fault set nothing, whatever the reason and wherever the walk ended.
#[test]
fn faults_mark_nothing() {
    let mut count = 0;
    for (depth, flags) in (0..4).flat_map(|depth| [0, 1 << 50 | OPEN, 5, 3, NX | OPEN].map(|flags| (depth, flags))) {
        let mut ground = guest([OPEN; 4]);
        set_guest(&mut ground, depth, flags);
        let before = [0, 1, 2, 3].map(|depth| guest_entry(&ground, depth));
        for kind in AccessKind::ALL {
            let asked = Access::new(kind, Privilege::User);
            let faults = access(&mut core(), &Regime::default(), &mut ground.clone(), asked);
            if let End::PageFault(_) = faults {
                access(&mut core(), &Regime::default(), &mut ground, asked);
                assert_eq!([0, 1, 2, 3].map(|depth| guest_entry(&ground, depth)), before);
                count += 1;
            }
        }
    }
    println!("walker cases: {count} (flags after faults)");
    assert_eq!(count, 4 * (3 + 3 + 1 + 3 + 1));
}

/// The flags are in memory before the page is: a write through a page that maps its own table finds them there.
#[test]
fn flags_are_set_before_the_access() {
    let mut ground = guest([OPEN; 4]);
    let leaf = Hpa(GUEST[3] + 8 * 5);
    ground.mem.write_u64(leaf, GUEST[3] | OPEN);
    let mut core: Core = core();
    let asked = Access::new(AccessKind::Write, Privilege::User);
    assert_eq!(access(&mut core, &Regime::default(), &mut ground, asked), End::At(GUEST[3] + 0x678));
    assert_eq!(ground.mem.read_u64(leaf), GUEST[3] | OPEN | ACCESSED | DIRTY);
}
