//! The permitted set: what may be stale, what must be fresh, and what an adversarial TLB makes of it (SDM 3A 4.10).

use cpu::paging::translate::translate;
use cpu::tlb::permitted::permitted;
use cpu::tlb::{TlbPolicy, note};
use cpu::{Core, Regime};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::choice::{ChoicePoint, Choices};
use sim_core::event::FlushScope;
use sim_core::{Ground, Gva, Hpa};

const LINEAR: Gva = Gva(0x5678);
const PTE: Hpa = Hpa(0x4000 + 8 * 5);
const FIRST: u64 = 0x9000;
const SECOND: u64 = 0xa000;
const READ: Access = Access::new(AccessKind::Read, Privilege::User);
/// P, R/W, U/S, A and D.
const OPEN: u64 = 0x67;

/// Four-level tables in frames 1 to 4.
fn paged() -> (Core, Ground) {
    let mut ground = Ground::new(512);
    for table in 1..4 {
        ground.mem.write_u64(Hpa(table << 12), (table + 1) << 12 | OPEN);
    }
    ground.mem.write_u64(PTE, FIRST | OPEN);
    let mut core = Core::flat32(46);
    core.cr0 |= Cr0::PG | Cr0::WP;
    core.cr4 |= Cr4::PAE | Cr4::PGE;
    core.efer |= Efer::LME | Efer::LMA;
    core.cr3 = 0x1000;
    (core, ground)
}

fn pages(core: &Core, ground: &Ground) -> Vec<u64> {
    let set = permitted(core, &Regime::default(), ground, LINEAR).unwrap();
    set.all.iter().map(|mapping| mapping.hpa.0).collect()
}

/// A changed entry may stay cached, whether or not it was ever used, until INVLPG.
#[test]
fn a_changed_entry_is_permitted_until_it_is_invalidated() {
    let (mut core, mut ground) = paged();
    core.tlb.watch(&mut ground);
    note(&mut core, &Regime::default(), &mut ground);
    assert_eq!(pages(&core, &ground), [FIRST]);
    ground.mem.write_u64(PTE, SECOND | OPEN);
    assert_eq!(pages(&core, &ground), [FIRST, SECOND]);
    core.tlb.flush(&mut ground, FlushScope::Address { context: 0, pcid: 0, gva: LINEAR });
    assert_eq!(pages(&core, &ground), [SECOND]);
    ground.mem.write_u64(PTE, 0);
    assert_eq!(pages(&core, &ground), [SECOND]);
}

/// The adversary may use what is stale; the choice is recorded.
#[test]
fn an_adversarial_tlb_asks() {
    for (script, expected) in [(vec![], SECOND), (vec![1], FIRST)] {
        let (mut core, mut ground) = paged();
        core.tlb.set_policy(&mut ground, TlbPolicy::Adversarial);
        note(&mut core, &Regime::default(), &mut ground);
        ground.choices = Choices::scripted(script);
        ground.mem.write_u64(PTE, SECOND | OPEN);
        let seen = translate(&mut core, &Regime::default(), &mut ground, LINEAR, READ);
        assert_eq!(seen, Ok(Hpa(expected + 0x678)));
        assert_eq!((ground.choices.taken()[0].point, ground.choices.taken()[0].of), (ChoicePoint::Translation, 2));
    }
}
