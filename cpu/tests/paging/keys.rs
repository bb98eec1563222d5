//! Protection keys (SDM 3A 4.6.2, 4.7; APM2 5.6.7).

use super::support::{BOTH, End, OPEN, TARGET, access, core, described, every_access, guest, set_guest};
use cpu::{Core, Regime};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::PageFaultError;

#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "bits, as the manual names them")]
struct Case {
    key: u32,
    access_disable: bool,
    write_disable: bool,
    user_page: bool,
    writable: bool,
    wp: bool,
    pke: bool,
    pks: bool,
}

/// The rights registers: this key as the case says, every other key the other way round.
fn rights(case: &Case, applies: bool) -> u32 {
    let own = u32::from(case.access_disable) | u32::from(case.write_disable) << 1;
    let own = if applies { own } else { !own & 3 };
    (0..16).map(|key| if key == case.key { own << (2 * key) } else { (!own & 3) << (2 * key) }).sum()
}

fn processor(case: &Case) -> Core {
    let mut core = core();
    core.cr0.set(Cr0::WP, case.wp);
    core.cr4.set(Cr4::PKE, case.pke);
    core.cr4.set(Cr4::PKS, case.pks);
    core.pkru = rights(case, case.user_page);
    core.msrs.pkrs = u64::from(rights(case, !case.user_page));
    core
}

/// 4.6.2, sentence by sentence.
fn key_refuses(case: &Case, access: Access) -> bool {
    let applies = if case.user_page { case.pke } else { case.pks };
    let user_write = access.privilege == Privilege::User && case.user_page;
    match access.kind {
        AccessKind::Fetch => false,
        _ if !applies => false,
        _ if case.access_disable => true,
        AccessKind::Read => false,
        AccessKind::Write => case.write_disable && (case.wp || user_write),
    }
}

/// 4.6.1, as far as these cases go.
fn bits_refuse(case: &Case, access: Access) -> bool {
    let user = access.privilege == Privilege::User;
    let write = access.kind == AccessKind::Write;
    (user && !case.user_page) || (write && !case.writable && (user || case.wp))
}

fn expected(case: &Case, access: Access) -> End {
    let by_key = key_refuses(case, access);
    if !by_key && !bits_refuse(case, access) {
        return End::At(TARGET);
    }
    let mut error = described(access) | PageFaultError::P;
    error.set(PageFaultError::PK, by_key);
    End::PageFault(error)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for number in 0..128_u32 {
        let flag = |bit: u32| number >> bit & 1 == 1;
        cases.extend([0, 1, 6, 15].map(|key| Case {
            key,
            access_disable: flag(0),
            write_disable: flag(1),
            user_page: flag(2),
            writable: flag(3),
            wp: flag(4),
            pke: flag(5),
            pks: flag(6),
        }));
    }
    cases
}

/// Every right of a key, page, enable and access.
#[test]
fn keys_of_both_modes() {
    let mut count = 0;
    let mut ground = guest([OPEN; 4]);
    for case in cases() {
        let mut core = processor(&case);
        for asked in every_access() {
            let flags = 1 | u64::from(case.writable) << 1 | u64::from(case.user_page) << 2;
            set_guest(&mut ground, 3, u64::from(case.key) << 59 | flags);
            let done = access(&mut core, &Regime::default(), &mut ground, asked);
            assert_eq!(done, expected(&case, asked), "{case:?} {asked:?}");
            count += 1;
        }
    }
    println!("walker cases: {count} (protection keys)");
    assert_eq!(count, 128 * 4 * 9);
}

/// A cached mapping keeps its key, not a verdict: rights are those of the access (SDM 3A 4.10.2.2).
#[test]
fn rights_change_under_a_cached_mapping() {
    let mut ground = guest([OPEN; 4]);
    set_guest(&mut ground, 3, 5 << 59 | OPEN);
    let mut core = core();
    core.cr4 |= Cr4::PKE;
    let read = Access::new(AccessKind::Read, Privilege::User);
    for refused in [false, true, false] {
        core.pkru = if refused { 1 << 10 } else { !(3 << 10) };
        let done =
            cpu::paging::translate::translate(&mut core, &Regime::default(), &mut ground, super::support::LINEAR, read);
        assert_eq!(done.is_err(), refused);
    }
}

/// Bits 62:59 are a key in 4-level and 5-level paging only: in PAE paging they are reserved, and CR4.PKE changes nothing.
#[test]
fn no_keys_outside_long_mode() {
    for (pke, bits) in BOTH.into_iter().flat_map(|pke| [0, 1 << 59, 1 << 62].map(|bits| (pke, bits))) {
        let mut ground = guest([OPEN; 4]);
        set_guest(&mut ground, 3, bits | OPEN);
        let mut core = core();
        core.efer -= Efer::LMA | Efer::LME;
        core.cr4.set(Cr4::PKE, pke);
        core.pkru = u32::MAX;
        core.pdptes = [super::support::GUEST[2] | 1; 4];
        let address = sim_core::Gva(super::support::LINEAR.0 & 0x3fff_ffff);
        let read = Access::new(AccessKind::Read, Privilege::User);
        let done = cpu::paging::translate::translate(&mut core, &Regime::default(), &mut ground, address, read);
        assert_eq!(done.is_ok(), bits == 0, "{pke} {bits:#x}");
    }
}
