//! Nested paging beyond ordinary permission bits: the guest-mode execute trap, supervisor shadow stacks, 5-level hosts
//! (APM2 15.25.3, 15.25.13, 15.25.14).

use super::support::{
    BOTH, DIRTY, End, NX, OPEN, TARGET, access, combinations, core, every_access, guest, identity, npt, set_stage_page,
    shadow_stack_accesses,
};
use cpu::virt::{NptControls, StageFault, StageFaultKind, StagePurpose};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::Cr4;

const PRESENT: StageFaultKind = StageFaultKind::NestedPageFault { present: true, reserved: false };

fn kind(end: End) -> Option<StageFaultKind> {
    match end {
        End::At(address) => {
            assert_eq!(address, TARGET);
            None
        }
        End::Stage(StageFault { kind, purpose, access, .. }) => {
            assert_eq!((purpose, access.privilege), (StagePurpose::Final, Privilege::User));
            Some(kind)
        }
        End::PageFault(error) => panic!("{error:?}"),
    }
}

/// W, U and NX of the nested page's entry, with and without the trap, for every access: without it every access needs U;
/// with it U keeps supervisors from executing and its absence keeps users from it, and data is free of it.
#[test]
fn guest_mode_execute_trap() {
    let mut count = 0;
    for (la57, trap) in BOTH.into_iter().flat_map(|la57| BOTH.map(|trap| (la57, trap))) {
        let mut controls = NptControls::empty();
        controls.set(NptControls::GUEST_MODE_EXECUTE_TRAP, trap);
        for bits in combinations(&[2, 4, NX]) {
            for asked in every_access() {
                let mut ground = guest([OPEN; 4]);
                identity(&mut ground, 7, 7);
                set_stage_page(&mut ground, TARGET, bits | 1);
                let (write, user, nx) = (bits & 2 != 0, bits & 4 != 0, bits & NX != 0);
                let by_user = asked.privilege == Privilege::User;
                let allowed = match asked.kind {
                    AccessKind::Read => user || trap,
                    AccessKind::Write => write && (user || trap),
                    AccessKind::Fetch if trap => !nx && user == by_user,
                    AccessKind::Fetch => !nx && user,
                };
                let done = access(&mut core(), &npt(la57, controls), &mut ground, asked);
                assert_eq!(kind(done), (!allowed).then_some(PRESENT), "{la57} {trap} {bits:#x} {asked:?}");
                count += 1;
            }
        }
    }
    println!("walker cases: {count} (guest-mode execute trap)");
    assert_eq!(count, 2 * 2 * 8 * 9);
}

/// With the check, supervisor shadow-stack accesses need a nested page that is not writable and dirty; without it, and
/// for users' shadow stacks, W counts as for any access.
#[test]
fn supervisor_shadow_stacks() {
    let mut count = 0;
    for (check, bits) in
        BOTH.into_iter().flat_map(|check| combinations(&[2, DIRTY]).into_iter().map(move |bits| (check, bits)))
    {
        let mut controls = NptControls::empty();
        controls.set(NptControls::SUPERVISOR_SHADOW_STACK, check);
        for asked in shadow_stack_accesses() {
            let user = if asked.privilege == Privilege::User { 4 } else { 0 };
            let mut ground = guest([OPEN, OPEN, OPEN, 1 | DIRTY | user]);
            identity(&mut ground, 7, 7);
            set_stage_page(&mut ground, TARGET, bits | 5);
            let mut core = core();
            core.cr4 |= Cr4::CET;
            let write_ok = asked.kind == AccessKind::Read || bits & 2 != 0;
            let expected = match (check && user == 0, bits == DIRTY) {
                (true, true) => None,
                (true, false) => Some(StageFaultKind::NestedShadowStack),
                (false, _) => (!write_ok).then_some(PRESENT),
            };
            let done = access(&mut core, &npt(false, controls), &mut ground, asked);
            assert_eq!(kind(done), expected, "{check} {bits:#x} {asked:?}");
            count += 1;
        }
    }
    println!("walker cases: {count} (nested shadow stacks)");
    assert_eq!(count, 2 * 4 * 4);
}

/// APM2 15.25.6: a guest table is referenced as user data, so that U must be set without the trap, and W always.
#[test]
fn guest_tables_with_and_without_the_trap() {
    for (trap, bits, refused) in
        [(false, 7, false), (false, 3, true), (false, 5, true), (true, 3, false), (true, 5, true), (true, 1, true)]
    {
        let mut controls = NptControls::empty();
        controls.set(NptControls::GUEST_MODE_EXECUTE_TRAP, trap);
        let mut ground = guest([OPEN; 4]);
        identity(&mut ground, 7, 7);
        set_stage_page(&mut ground, super::support::GUEST[2], bits);
        let read = Access::new(AccessKind::Read, Privilege::Supervisor);
        let done = access(&mut core(), &npt(false, controls), &mut ground, read);
        let at_table = matches!(done, End::Stage(StageFault { purpose: StagePurpose::Table, kind: PRESENT, .. }));
        assert_eq!(at_table, refused, "{trap} {bits} {done:?}");
    }
}
