//! Shadow-stack pages and accesses (SDM 3A 4.6, 4.6.1, 4.7; APM2 5.6.9).

use super::support::{
    End, OPEN, TARGET, access, combinations, core, described, every_access, guest, set_guest, shadow_stack_accesses,
};
use cpu::Regime;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::PageFaultError;
use sim_core::arch::rflags::Rflags;

const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const DIRTY: u64 = 1 << 6;

/// What the bullets say of entries with these flags at one upper level and at the page.
fn is_allowed(upper: u64, leaf: u64, smap: bool, ac: bool, access: Access) -> bool {
    let user_address = upper & leaf & USER != 0;
    let user_access = access.privilege == Privilege::User;
    if access.shadow_stack {
        let shadow_stack_address = leaf & WRITE == 0 && leaf & DIRTY != 0 && upper & WRITE != 0;
        return shadow_stack_address && user_address == user_access;
    }
    let kept_out = smap && user_address && !user_access && (access.implicit || !ac);
    match access.kind {
        _ if user_access && !user_address => false,
        AccessKind::Fetch => true,
        AccessKind::Read => !kept_out,
        AccessKind::Write => upper & leaf & WRITE != 0 && !kept_out,
    }
}

/// R/W, U/S and D at the page and at each upper level, SMAP and AC, for shadow-stack accesses and all others.
#[test]
fn shadow_stacks_are_for_shadow_stack_accesses() {
    let mut count = 0;
    let bits = [WRITE, USER, DIRTY];
    for (depth, upper) in (0..3).flat_map(|depth| combinations(&bits).into_iter().map(move |bits| (depth, bits))) {
        let mut flags = [OPEN; 4];
        flags[depth] = upper | 1;
        let mut ground = guest(flags);
        for (leaf, setting) in combinations(&bits).into_iter().flat_map(|leaf| (0..4).map(move |number| (leaf, number)))
        {
            let (smap, ac) = (setting & 1 != 0, setting & 2 != 0);
            let mut core = core();
            core.cr4 |= Cr4::CET;
            core.cr4.set(Cr4::SMAP, smap);
            core.rflags.set(Rflags::AC, ac);
            for asked in every_access().chain(shadow_stack_accesses()) {
                set_guest(&mut ground, depth, upper | 1);
                set_guest(&mut ground, 3, leaf | 1);
                let done = access(&mut core, &Regime::default(), &mut ground, asked);
                let expected = if is_allowed(upper, leaf, smap, ac, asked) {
                    End::At(TARGET)
                } else {
                    End::PageFault(described(asked) | PageFaultError::P)
                };
                assert_eq!(done, expected, "{depth} {upper:#x} {leaf:#x} {setting} {asked:?}");
                count += 1;
            }
        }
    }
    println!("walker cases: {count} (shadow stacks)");
    assert_eq!(count, 3 * 8 * 8 * 4 * 13);
}

/// The SS flag describes the access also where no translation was found; with a key that forbids, PK is set beside it.
#[test]
fn error_codes_of_shadow_stack_accesses() {
    let read = Access { shadow_stack: true, ..Access::new(AccessKind::Read, Privilege::User) };
    let write = Access { kind: AccessKind::Write, ..read };
    let (u, w, ss, p) = (PageFaultError::U, PageFaultError::W, PageFaultError::SS, PageFaultError::P);
    let stack = USER | DIRTY | 1;
    for (leaf, pkru, asked, expected) in [
        (0, 0, read, End::PageFault(u | ss)),
        (0, 0, write, End::PageFault(u | w | ss)),
        (stack | 1 << 50, 0, write, End::PageFault(u | w | ss | p | PageFaultError::RSVD)),
        (stack | 3 << 59, 0b01 << 6, read, End::PageFault(u | ss | p | PageFaultError::PK)),
        (stack | 3 << 59, 0b10 << 6, read, End::At(TARGET)),
        (stack | 3 << 59, 0b10 << 6, write, End::PageFault(u | w | ss | p | PageFaultError::PK)),
    ] {
        let mut ground = guest([OPEN, OPEN, OPEN, leaf]);
        let mut core = core();
        core.cr4 |= Cr4::CET | Cr4::PKE;
        core.pkru = pkru;
        assert_eq!(access(&mut core, &Regime::default(), &mut ground, asked), expected, "{leaf:#x} {pkru:#x}");
    }
}
