//! Properties of translation over arbitrary tables that nothing changes in between: asking twice gives the same answer
//! and marks nothing new, and a warm TLB, a flushed one and a cold one agree on every answer and on all accessed and
//! dirty flags (SDM 3A 4.10.2.2, 4.8). What a missing flush shows is in `tlb`.

use cpu::paging::translate::translate;
use cpu::tlb::Tlb;
use cpu::virt::HostPaging;
use cpu::{Core, Fault, Regime, SecondStage, Tag};
use proptest::prelude::*;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::rflags::Rflags;
use sim_core::event::FlushScope;
use sim_core::{Ground, Gva, Hpa};

/// The first stage's root; its tables follow each other.
const GUEST: u64 = 0x1000;
/// The second stage's root; its tables follow each other.
const STAGE: u64 = 0x1_0000;
/// How many pages the guest maps.
const PAGES: u64 = 16;

/// Flag bits of each first-stage entry and of each second-stage leaf, the control bits, and the accesses.
#[derive(Clone, Debug)]
struct Case {
    guest: Vec<u64>,
    stage: Vec<u64>,
    control: u32,
    second: u8,
    accesses: Vec<(u64, u8, u8)>,
}

fn cases() -> impl Strategy<Value = Case> {
    // P mostly set, so that most walks get somewhere.
    let flags = prop_oneof![8 => (0u64..256).prop_map(|flags| flags & 0x67 | 1), 1 => 0u64..0x80];
    let guest = prop::collection::vec(flags, 3 + PAGES as usize);
    let stage = prop::collection::vec(prop_oneof![6 => Just(7u64), 1 => 0u64..8], 64);
    let accesses = prop::collection::vec((0..PAGES * 0x1000, 0u8..3, 0u8..3), 1..40);
    (guest, stage, 0u32..64, 0u8..4, accesses).prop_map(|(guest, stage, control, second, accesses)| Case {
        guest,
        stage,
        control,
        second,
        accesses,
    })
}

/// The guest's tables in frames 1 to 4, mapping pages 0 to 15 to frames 32 to 47.
fn install_guest(ground: &mut Ground, flags: &[u64]) {
    for (table, flags) in (0..3).zip(flags) {
        ground.mem.write_u64(Hpa(GUEST + 0x1000 * table), (GUEST + 0x1000 * (table + 1)) | flags);
    }
    for (page, flags) in (0..PAGES).zip(&flags[3..]) {
        ground.mem.write_u64(Hpa(GUEST + 0x3000 + 8 * page), (32 + page) << 12 | flags);
    }
}

/// The second stage's tables in frames 16 to 19, mapping 64 pages one to one with these low flags.
fn install_stage(ground: &mut Ground, flags: &[u64], memory_type: u64) {
    for table in 0..3 {
        ground.mem.write_u64(Hpa(STAGE + 0x1000 * table), (STAGE + 0x1000 * (table + 1)) | 7);
    }
    for (page, flags) in (0..64).zip(flags) {
        ground.mem.write_u64(Hpa(STAGE + 0x3000 + 8 * page), page << 12 | memory_type | flags);
    }
}

fn machine(case: &Case) -> (Core, Regime, Ground) {
    let flag = |bit: u32| case.control >> bit & 1 == 1;
    let mut ground = Ground::new(64);
    install_guest(&mut ground, &case.guest);
    let mut core = Core::flat32(46);
    core.cr0 |= Cr0::PG;
    core.cr0.set(Cr0::WP, flag(0));
    core.cr4 |= Cr4::PAE | Cr4::PGE;
    core.cr4.set(Cr4::SMEP, flag(1));
    core.cr4.set(Cr4::SMAP, flag(2));
    core.efer |= Efer::LME | Efer::LMA;
    core.efer.set(Efer::NXE, flag(3));
    core.rflags.set(Rflags::AC, flag(4));
    core.cr3 = GUEST;
    let ad = if flag(5) { 1 << 6 } else { 0 };
    let host = HostPaging {
        cr0: Cr0::PE | Cr0::PG,
        cr4: Cr4::PAE,
        efer: Efer::LME | Efer::LMA | Efer::SVME,
        pat: 0x0007_0406_0007_0406,
    };
    let (second, memory_type) = match case.second {
        0 => (SecondStage::None, 0),
        1 => (SecondStage::Npt { ncr3: STAGE, host, controls: cpu::virt::NptControls::default() }, 0),
        _ => (SecondStage::Ept { eptp: STAGE | ad | 3 << 3 | 6, controls: cpu::virt::EptControls::default() }, 6 << 3),
    };
    install_stage(&mut ground, &case.stage, memory_type);
    let ept_root = matches!(second, SecondStage::Ept { .. }).then_some(Hpa(STAGE));
    (core, Regime { tag: Tag { context: 1, ept_root }, second }, ground)
}

fn access(kind: u8, who: u8) -> Access {
    let kind = AccessKind::ALL[kind as usize];
    match who {
        0 => Access::new(kind, Privilege::User),
        1 => Access::new(kind, Privilege::Supervisor),
        _ => Access::implicit(kind),
    }
}

fn asked(case: &Case) -> Vec<(Gva, Access)> {
    case.accesses.iter().map(|(gva, kind, who)| (Gva(*gva), access(*kind, *who))).collect()
}

fn answers(core: &mut Core, regime: &Regime, ground: &mut Ground, asked: &[(Gva, Access)]) -> Vec<Result<Hpa, Fault>> {
    asked.iter().map(|(gva, access)| translate(core, regime, ground, *gva, *access)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn asking_twice_gives_the_same_answer(case in cases()) {
        let (mut core, regime, mut ground) = machine(&case);
        for (gva, access) in asked(&case) {
            let first = translate(&mut core, &regime, &mut ground, gva, access);
            let memory = ground.mem.clone();
            prop_assert_eq!(translate(&mut core, &regime, &mut ground, gva, access), first);
            prop_assert!(memory == ground.mem, "the second access marked something");
        }
    }

    #[test]
    fn a_flushed_tlb_answers_as_a_cold_one(case in cases()) {
        let (mut core, regime, mut ground) = machine(&case);
        let asked = asked(&case);
        let warm = answers(&mut core, &regime, &mut ground, &asked);
        core.tlb.flush(&mut ground, FlushScope::All);
        prop_assert_eq!(&core.tlb, &Tlb::default());
        let flushed = answers(&mut core, &regime, &mut ground, &asked);
        let (mut cold, _, mut fresh) = machine(&case);
        let mut each_cold = Vec::new();
        for ask in &asked {
            cold.tlb = Tlb::default();
            each_cold.extend(answers(&mut cold, &regime, &mut fresh, &[*ask]));
        }
        prop_assert_eq!(&warm, &each_cold);
        prop_assert_eq!(&flushed, &each_cold);
        prop_assert!(ground.mem == fresh.mem, "accessed and dirty flags differ");
    }
}
