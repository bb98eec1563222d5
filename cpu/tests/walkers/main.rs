//! The page walkers against an independent specification: the same worlds, the same accesses, the same outcome, and
//! after success or a page fault the same memory (SDM 3A chapter 4, SDM 3C 28.3, APM2 15.25).
//!
//! The environment variable `ROLECALL_CASES` multiplies the number of random worlds (default 1; the full size is 40).

mod cases;
mod spec;

use cases::{Case, Source};
use cpu::paging::translate::translate;
use cpu::profile::Features;
use cpu::tlb::Tlb;
use cpu::virt::{EptControls, EptFlags, FirstStage, HostPaging, NptControls, StageFault, StageFaultKind, StagePurpose};
use cpu::{Core, Fault, Regime, SecondStage, Tag};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::{Ground, Gva, Hpa};
use spec::{Answer, First, Kind, Levels, Outcome, Second, What, Who, World, specify};

/// Random worlds of one multiple.
const WORLDS: u64 = 60_000;
/// Accesses to each.
const ACCESSES: usize = 5;

const WHO: [Who; 3] = [Who::User, Who::Supervisor, Who::Implicit];
const WHAT: [What; 5] = [What::Read, What::Write, What::Fetch, What::ShadowRead, What::ShadowWrite];

fn multiple() -> u64 {
    std::env::var("ROLECALL_CASES").ok().map_or(1, |text| text.parse().expect("ROLECALL_CASES is a number"))
}

/// The accesses that software or the processor can make in a world: shadow stacks need CR0.WP (SDM 3A 4.6), and
/// the processor never fetches implicitly.
fn is_possible(world: &World, who: Who, what: What) -> bool {
    match what {
        What::ShadowRead | What::ShadowWrite => {
            world.first.wp && world.first.levels != Levels::Unpaged && who != Who::Implicit
        }
        What::Fetch => who != Who::Implicit,
        What::Read | What::Write => true,
    }
}

fn access(who: Who, what: What) -> Access {
    let kind = match what {
        What::Read | What::ShadowRead => AccessKind::Read,
        What::Write | What::ShadowWrite => AccessKind::Write,
        What::Fetch => AccessKind::Fetch,
    };
    let access = match who {
        Who::User => Access::new(kind, Privilege::User),
        Who::Supervisor => Access::new(kind, Privilege::Supervisor),
        Who::Implicit => Access::implicit(kind),
    };
    Access { shadow_stack: matches!(what, What::ShadowRead | What::ShadowWrite), ..access }
}

fn efer(levels: Levels, nxe: bool) -> Efer {
    let mut efer = Efer::empty();
    efer.set(Efer::LMA | Efer::LME, levels >= Levels::Four);
    efer.set(Efer::NXE, nxe);
    efer
}

fn core(world: &World) -> Core {
    let first = &world.first;
    let mut core = Core::flat32(world.maxphyaddr);
    core.features = Features::all();
    core.features.set(Features::PAGE_1G, first.has_1g);
    core.features.set(Features::UPPER_GLOBAL_RESERVED, world.reserves_bit_8);
    core.cr0.set(Cr0::PG, first.levels != Levels::Unpaged);
    core.cr0.set(Cr0::WP, first.wp);
    core.cr3 = first.cr3;
    core.pdptes = first.pdptes;
    core.cr4.set(Cr4::PAE, first.levels >= Levels::Three);
    core.cr4.set(Cr4::LA57, first.levels == Levels::Five);
    core.cr4.set(Cr4::PSE, first.pse);
    core.cr4.set(Cr4::SMEP, first.smep);
    core.cr4.set(Cr4::SMAP, first.smap);
    core.cr4.set(Cr4::PKE, first.pke);
    core.cr4.set(Cr4::PKS, first.pks);
    core.cr4.set(Cr4::CET, first.wp);
    core.efer = efer(first.levels, first.nxe);
    core.rflags.set(Rflags::AC, first.ac);
    core.pkru = first.pkru;
    core.msrs.pkrs = first.pkrs.into();
    core
}

fn regime(world: &World) -> Regime {
    match world.second {
        Second::Absent => Regime::default(),
        Second::Ept { eptp, mbec } => {
            let mut flags = EptFlags::VIOLATION_VE;
            flags.set(EptFlags::MODE_BASED_EXECUTE, mbec);
            let controls = EptControls { flags, log: None };
            let tag = Tag { context: 1, ept_root: Some(Hpa(eptp & 0x000f_ffff_ffff_f000)) };
            Regime { tag, second: SecondStage::Ept { eptp, controls } }
        }
        Second::Npt { ncr3, levels, nxe, pse } => {
            let mut host = HostPaging {
                cr0: Cr0::PE | Cr0::PG,
                cr4: Cr4::empty(),
                efer: efer(levels, nxe),
                ..HostPaging::default()
            };
            host.efer |= Efer::SVME;
            host.cr4.set(Cr4::PAE, levels >= Levels::Three);
            host.cr4.set(Cr4::LA57, levels == Levels::Five);
            host.cr4.set(Cr4::PSE, pse);
            let second = SecondStage::Npt { ncr3, host, controls: NptControls::default() };
            Regime { tag: Tag { context: 1, ept_root: None }, second }
        }
    }
}

/// What the walkers said, in the specification's words.
fn outcome(world: &World, linear: u64, result: Result<Hpa, Fault>) -> Outcome {
    match result {
        Ok(hpa) => Outcome::Reaches(hpa.0),
        Err(Fault::Exception(fault)) => {
            assert_eq!((fault.vector, fault.cr2), (Vector::PageFault, Some(Gva(linear))));
            Outcome::PageFault(fault.error.expect("a page fault has an error code"))
        }
        Err(Fault::Stage(fault)) => {
            assert_eq!(fault.gva, Some(Gva(linear)));
            Outcome::Stage(stage(world, &fault))
        }
        Err(other) => panic!("{other:?} in {world:x?}"),
    }
}

fn stage(world: &World, fault: &StageFault) -> spec::StageFault {
    let of_table = fault.purpose == StagePurpose::Table;
    let kind = match fault.kind {
        StageFaultKind::EptViolation { allowed } => {
            let first = fault.first.filter(|_| !of_table && world.first.levels != Levels::Unpaged).map(told);
            let mask = if matches!(world.second, Second::Ept { mbec: true, .. }) { 15 } else { 7 };
            Kind::Violation { allowed: allowed & mask, first, convertible: fault.convertible }
        }
        StageFaultKind::EptMisconfiguration => Kind::Misconfiguration,
        StageFaultKind::NestedPageFault { present, reserved } => Kind::Nested { present, reserved },
        StageFaultKind::LogFull | StageFaultKind::NestedShadowStack => panic!("{fault:?} in {world:x?}"),
    };
    let access = match fault.access.kind {
        AccessKind::Read => 1,
        AccessKind::Write => 2,
        AccessKind::Fetch => 4,
    };
    spec::StageFault { gpa: fault.gpa.0, of_table, access, kind }
}

fn told(first: FirstStage) -> u8 {
    u8::from(first.contains(FirstStage::USER))
        + 2 * u8::from(first.contains(FirstStage::WRITABLE))
        + 4 * u8::from(first.contains(FirstStage::EXECUTE_DISABLED))
}

/// Accessed and dirty flags, of ordinary tables and of EPT.
const FLAGS: u64 = 0x20 | 0x40 | 0x100 | 0x200;

/// How often each kind of outcome was met, so that a generator that goes stale is noticed.
#[derive(Debug, Default)]
struct Tally {
    reaches: u64,
    page_faults: u64,
    violations: u64,
    misconfigurations: u64,
    nested: u64,
    unsaid: u64,
}

impl Tally {
    fn count(&mut self, outcome: &Outcome) {
        *match outcome {
            Outcome::Reaches(_) => &mut self.reaches,
            Outcome::PageFault(_) => &mut self.page_faults,
            Outcome::Unsaid => &mut self.unsaid,
            Outcome::Stage(fault) => match fault.kind {
                Kind::Violation { .. } => &mut self.violations,
                Kind::Misconfiguration => &mut self.misconfigurations,
                Kind::Nested { .. } | Kind::Unsaid => &mut self.nested,
            },
        } += 1;
    }

    fn total(&self) -> u64 {
        self.reaches + self.page_faults + self.violations + self.misconfigurations + self.nested
    }
}

/// Judges one access; the case's tables are put into memory before.
fn judge(ground: &mut Ground, core: &mut Core, case: &Case, (who, what): (Who, What), tally: &mut Tally) {
    for (at, bytes, value) in &case.entries {
        ground.mem.write(Hpa(*at), *value, *bytes);
    }
    let expected = specify(case.world, &|at, bytes| ground.mem.read(Hpa(at), bytes), case.linear, who, what);
    tally.count(&expected.outcome);
    if expected.outcome == Outcome::Unsaid {
        return;
    }
    core.tlb = Tlb::default();
    let result = translate(core, &regime(&case.world), ground, Gva(case.linear), access(who, what));
    let outcome = outcome(&case.world, case.linear, result);
    assert_eq!(outcome, expected.outcome, "{who:?} {what:?} {case:x?}");
    check_memory(ground, case, &expected, (who, what));
}

/// After a fault of the second stage, the manuals leave open which flags are set already; nothing else may change.
fn check_memory(ground: &Ground, case: &Case, expected: &Answer, (who, what): (Who, What)) {
    for (at, bytes, before) in &case.entries {
        let after = ground.mem.read(Hpa(*at), *bytes);
        let wanted = expected.written.get(at).copied().unwrap_or(*before);
        let differs = match expected.outcome {
            Outcome::Stage(_) => (after ^ before) & !FLAGS != 0 || before & !after != 0,
            _ => after != wanted,
        };
        assert!(!differs, "{at:#x}: {before:#x} became {after:#x}, not {wanted:#x}: {who:?} {what:?} {case:x?}");
    }
}

/// Takes a case's tables out of memory again.
fn clear(ground: &mut Ground, case: &Case) {
    for (at, bytes, _) in &case.entries {
        ground.mem.write(Hpa(*at), 0, *bytes);
    }
}

/// Random worlds of both stages.
#[test]
fn random_worlds() {
    let mut ground = Ground::new((cases::OFFSET >> 12) + 64);
    let mut source = Source(0x726f_6c65_6361_6c6c);
    let mut tally = Tally::default();
    for _ in 0..WORLDS * multiple() {
        let case = cases::random(&mut source);
        let mut core = core(&case.world);
        for _ in 0..ACCESSES {
            let (who, what) = (source.one_of(&WHO), source.one_of(&WHAT));
            if is_possible(&case.world, who, what) {
                judge(&mut ground, &mut core, &case, (who, what), &mut tally);
            }
        }
        clear(&mut ground, &case);
    }
    println!("walker cases: {} random ({tally:?})", tally.total());
    // Every kind of outcome is met often.
    let parts = [tally.reaches, tally.page_faults, tally.violations, tally.misconfigurations, tally.nested];
    assert!(parts.iter().all(|part| part * 100 > tally.total()), "{tally:?}");
}

/// 4-level paging, one 4 KiB page: R/W, U/S and XD of the leaf, R/W and U/S above it, D, all control bits, and all four
/// rights of both key registers: every access (SDM 3A 4.6.1, 4.6.2).
#[test]
fn keys_and_shadow_stacks_whole() {
    let mut ground = Ground::new(64);
    let mut tally = Tally::default();
    let flag = |number: u32, bit: u32| number >> bit & 1 == 1;
    for setting in 0..1 << 10 {
        let first = First {
            levels: Levels::Four,
            cr3: 0x1000,
            pdptes: [0; 4],
            wp: flag(setting, 0),
            pse: true,
            smep: flag(setting, 1),
            smap: flag(setting, 2),
            ac: flag(setting, 3),
            nxe: true,
            pke: flag(setting, 4),
            pks: flag(setting, 5),
            pkru: (setting >> 6 & 3) << 10,
            pkrs: (setting >> 8 & 3) << 10,
            has_1g: true,
        };
        let world = World { maxphyaddr: 46, reserves_bit_8: false, first, second: Second::Absent };
        let mut core = core(&world);
        for entry in 0..1_u64 << 6 {
            let upper = 1 | (entry & 3) << 1;
            let leaf = 0x8021 | (entry >> 2 & 3) << 1 | (entry >> 4 & 1) << 6 | entry >> 5 << 63 | 5 << 59;
            let entries =
                vec![(0x1008, 8, 0x2027), (0x2010, 8, 0x3020 | upper), (0x3018, 8, 0x4027), (0x4028, 8, leaf)];
            let case = Case { world, linear: 1 << 39 | 2 << 30 | 3 << 21 | 5 << 12 | 0x678, entries };
            for (who, what) in WHO.into_iter().flat_map(|who| WHAT.map(|what| (who, what))) {
                if is_possible(&world, who, what) {
                    judge(&mut ground, &mut core, &case, (who, what), &mut tally);
                }
            }
        }
    }
    println!("walker cases: {} of keys and shadow stacks, all there are", tally.total());
    // Eight accesses with CR0.WP clear; shadow-stack reads and writes by two, with it set.
    assert_eq!(tally.total(), 512 * 64 * (8 + 12));
}
