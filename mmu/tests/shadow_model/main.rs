//! Shadow pages against a model of what a guest may rely on (SDM 3A 4.10.4, kvm-mmu.md A.6, A.7, A.12): a guest writes
//! its tables, uses its memory, flushes and switches spaces, and the host takes pages away. After every step all audits
//! hold, and what hardware would do is what the guest's tables say, or said at some time since the guest last flushed.

#[expect(dead_code, reason = "each test uses its part of the machine")]
#[path = "../support/mod.rs"]
mod support;

mod guest;

use guest::{Model, SLOTS, TABLES, Truth};
use mmu::fault::FaultOutcome::{EmulateWrite, Fixed, Inject, Mmio, Retry};
use mmu::guest_walk::WalkFault;
use mmu::plant::{Plant, Plants};
use mmu::state::TdpMode;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use sim_core::addr::{Gfn, Hfn};
use sim_core::arch::exception::PageFaultError as Error;
use std::collections::BTreeMap;
use support::guest::{A, ALL, D, Layout, NX};
use support::host::{Mapped, walk};
use support::structure::broken;
use support::{F, Machine, R, RAM_AT, RAM_FRAMES, U, UNBACKED, W, at, mode};

/// Memory that holds no tables.
const DATA: [u64; 3] = [0x200, 0x201, 0x202];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The guest writes an entry: which table, which entry, and its value.
    Write(usize, usize, u64),
    /// It writes two bytes of it, after which a shadow above the leaves is given up.
    Half(usize, usize, u64),
    /// The guest gives an entry other flags.
    Flags(usize, usize, u64),
    /// The guest uses an address.
    Access(usize, Error),
    Invlpg(usize),
    /// MOV to CR3, which flushes.
    Switch(usize),
    /// The host takes a page away.
    ZapGfn(u64),
    ZapAll,
    Unload,
}

/// Permissions and flags that are mostly there, and mostly more than none.
fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(ALL), 2 => (0..0x80u64).prop_map(|bits| bits & ALL | 1), 1 => Just(ALL | NX)]
}

fn value() -> impl Strategy<Value = u64> {
    let frames: Vec<_> = DATA.repeat(3).into_iter().chain(TABLES).chain([UNBACKED.0]).collect();
    let leaf = (prop::sample::select(frames), flags()).prop_map(|(gfn, flags)| gfn << 12 | flags);
    let table = (prop::sample::select(vec![TABLES[2], TABLES[3]]), flags()).prop_map(|(gfn, flags)| gfn << 12 | flags);
    prop_oneof![1 => Just(0), 4 => leaf, 4 => table]
}

fn step() -> impl Strategy<Value = Step> {
    let accesses = vec![R, W, F, U, U | W, U | F];
    let gfns: Vec<_> = DATA.into_iter().chain(TABLES).collect();
    prop_oneof![
        8 => (0..TABLES.len(), 0..3usize, value()).prop_map(|(table, index, value)| Step::Write(table, index, value)),
        1 => (0..TABLES.len(), 0..3usize, flags()).prop_map(|(table, index, flags)| Step::Half(table, index, flags)),
        4 => (0..TABLES.len(), 0..3usize, flags()).prop_map(|(table, index, flags)| Step::Flags(table, index, flags)),
        10 => (0..6usize, prop::sample::select(accesses)).prop_map(|(index, error)| Step::Access(index, error)),
        2 => (0..6usize).prop_map(Step::Invlpg),
        2 => (0..2usize).prop_map(Step::Switch),
        1 => prop::sample::select(gfns).prop_map(Step::ZapGfn),
        1 => prop_oneof![Just(Step::ZapAll), Just(Step::Unload)],
    ]
}

/// The guest, the machine, and what hardware may still know of each address.
struct World {
    model: Model,
    machine: Machine,
    space: usize,
    /// What the tables said since the last flush.
    said: BTreeMap<(usize, u64), Vec<Option<Truth>>>,
}

/// Whether a right that hardware would grant is one that the tables gave.
fn is_within(mapped: Mapped, truth: Truth) -> bool {
    mapped.frame == Hfn(RAM_AT.0 + truth.gfn)
        && truth.gfn < RAM_FRAMES
        && truth.flags & A != 0
        && (!mapped.write || (truth.write && truth.flags & D != 0))
        && (!mapped.user || truth.user)
        && (!mapped.execute || truth.execute)
}

/// CR0.WP is set, SMEP and SMAP are not.
fn allows(error: Error, write: bool, user: bool, execute: bool) -> bool {
    (!error.contains(W) || write) && (!error.contains(U) || user) && (!error.contains(F) || execute)
}

impl World {
    fn new(layout: Layout, point: &str) -> Self {
        let model = Model { layout };
        let regs = match layout {
            Layout::Four | Layout::Ept => mode::long(),
            Layout::Pae => mode::pae(),
            Layout::Legacy => mode::legacy(),
        };
        // C-62, which a table out of sync meets soon, is mended everywhere: it would be all that is ever found at v5.17.
        let changes = at(point).with(mmu::Change::SyncedIsFound);
        let mut machine = Machine::new(changes, TdpMode::Off, regs, model.cr3(0), 1);
        model.build(&mut machine);
        machine.mov_cr3(0, model.cr3(0));
        machine.run(0);
        let mut world = Self { model, machine, space: 0, said: BTreeMap::new() };
        world.tables_changed();
        world
    }

    /// Addresses of the guest, the window to its tables among them.
    fn addresses(&self) -> Vec<u64> {
        (0..TABLES.len()).map(|table| self.model.window(table)).chain(self.model.addresses()).collect()
    }

    fn truth(&self, address: u64) -> Option<Truth> {
        self.model.truth(&self.machine, self.space, address)
    }

    fn tables_changed(&mut self) {
        for space in 0..2 {
            for address in self.addresses() {
                let now = self.model.truth(&self.machine, space, address);
                let said = self.said.entry((space, address)).or_default();
                if !said.contains(&now) {
                    said.push(now);
                }
            }
        }
    }

    /// The guest flushed these: what was said before counts no longer.
    fn forget(&mut self, flushed: impl Fn(usize, u64) -> bool) {
        self.said.retain(|(space, address), _| !flushed(*space, *address));
        self.tables_changed();
    }

    /// Hardware tries, and faults until it need not. Whether the access went through.
    fn access(&mut self, address: u64, error: Error) -> bool {
        for _ in 0..4 {
            let mapped = walk(&self.machine, 0, address);
            if mapped.is_some_and(|mapped| allows(error, mapped.write, mapped.user, mapped.execute)) {
                return true;
            }
            let before = self.truth(address);
            let present = if mapped.is_some() { Error::P } else { R };
            let outcome = self.machine.fault(0, address, error | present);
            self.tables_changed();
            self.machine.run(0);
            match outcome {
                Retry => {}
                Fixed => {
                    let mapped = walk(&self.machine, 0, address).expect("a fault that was fixed");
                    assert!(allows(error, mapped.write, mapped.user, mapped.execute), "{mapped:?} for {error:?}");
                    let truth = self.truth(address).expect("a fault that was fixed");
                    assert!(is_within(mapped, truth), "{mapped:?}, {truth:?}");
                }
                Inject(fault) => {
                    assert_eq!(fault, self.fault(before, error), "{address:#x}");
                    return false;
                }
                Mmio(gpa) => {
                    let truth = self.truth(address).expect("an address without a slot");
                    assert_eq!((gpa.0, truth.gfn), (UNBACKED.base().0, UNBACKED.0));
                    return false;
                }
                EmulateWrite(gpa) => {
                    let truth = self.truth(address).expect("a write to a table");
                    assert_eq!(gpa.0 >> 12, truth.gfn);
                    assert!(
                        error.contains(W) && truth.write && !self.machine.vm.pages.tables_at(Gfn(truth.gfn)).is_empty()
                    );
                    return false;
                }
            }
        }
        panic!("{address:#x} faults again and again");
    }

    /// SDM 3A 4.7.
    fn fault(&self, truth: Option<Truth>, error: Error) -> WalkFault {
        let told = if self.model.layout == Layout::Legacy { error & (W | U) } else { error };
        let Some(truth) = truth else { return WalkFault::Page(told) };
        assert!(!allows(error, truth.write, truth.user, truth.execute), "the tables allow {error:?}: {truth:?}");
        WalkFault::Page(told | Error::P)
    }

    fn entry_at(&self, table: usize, index: usize) -> u64 {
        let entry = if table < 2 { index as u64 % SLOTS } else { self.model.leaves()[index] };
        (TABLES[table] << 12) + entry * self.model.bytes() as u64
    }

    /// The guest writes through its window: unseen if hardware lets it, else by emulation.
    fn write(&mut self, table: usize, index: usize, value: u64) {
        let bytes = self.model.bytes();
        self.write_bytes(table, index, if bytes == 4 { value & 0xffff_ffff } else { value }, bytes);
    }

    fn write_bytes(&mut self, table: usize, index: usize, value: u64, bytes: usize) {
        let gpa = self.entry_at(table, index);
        if self.access(self.model.window(table), W | U) {
            self.machine.write(gpa, value, bytes);
        } else {
            self.machine.emulated_write(gpa, value, bytes);
        }
        self.tables_changed();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(table, index, value) => self.write(table, index, value),
            Step::Half(table, index, flags) => {
                let old = self.machine.read(self.entry_at(table, index), 2);
                self.write_bytes(table, index, old & !ALL | flags & ALL, 2);
            }
            Step::Flags(table, index, flags) => {
                let old = self.machine.read(self.entry_at(table, index), self.model.bytes());
                self.write(table, index, old & !(ALL | NX) | flags);
            }
            Step::Access(index, error) => {
                self.access(self.model.addresses()[index], error);
            }
            Step::Invlpg(index) => {
                let address = self.model.addresses()[index];
                self.machine.mmu(0, |ctx, vcpu, _| ctx.invlpg(vcpu, address));
                let space = self.space;
                self.forget(|of, flushed| of == space && flushed == address);
            }
            Step::Switch(space) => {
                self.space = space;
                self.machine.mov_cr3(0, self.model.cr3(space));
                self.machine.run(0);
                self.forget(|of, _| of == space);
            }
            Step::ZapGfn(gfn) => {
                self.machine.mmu(0, |ctx, _, _| ctx.zap_gfn(Gfn(gfn)));
                assert_eq!(self.machine.vm.pages.all_mappings(Gfn(gfn)), []);
            }
            Step::ZapAll => self.machine.zap_all_fast(),
            Step::Unload => self.machine.unload(0),
        }
        self.machine.run(0);
    }

    /// What must be true at any time.
    fn check(&self) {
        assert_eq!(self.machine.at_rest(), Vec::<String>::new());
        assert_eq!(broken(&self.machine), Vec::<String>::new());
        assert_eq!(self.machine.at_entry(0), []);
        for address in self.addresses() {
            let Some(mapped) = walk(&self.machine, 0, address) else { continue };
            let said = &self.said[&(self.space, address)];
            let known = said.iter().flatten().any(|truth| is_within(mapped, *truth));
            assert!(known, "{address:#x} is {mapped:?}, the tables said {said:?}");
        }
    }

    /// After a flush every access comes to what the tables say; then nothing is left when all is given up.
    fn finish(&mut self) {
        self.step(Step::Switch(self.space));
        self.check();
        for address in self.addresses() {
            for error in [R, U, F, U | F, W, U | W] {
                let truth = self.truth(address);
                let backed = truth.is_none_or(|truth| truth.gfn < RAM_FRAMES);
                let through = self.access(address, error);
                let allowed = truth.is_some_and(|truth| allows(error, truth.write, truth.user, truth.execute));
                let emulated = error.contains(W) && truth.is_some_and(|truth| TABLES.contains(&truth.gfn));
                assert!(through == (allowed && backed) || (emulated && allowed), "{address:#x} {error:?} {truth:?}");
            }
        }
        self.check();
        self.machine.unload(0);
        self.machine.zap_all_fast();
        assert_eq!(self.machine.vm.pages.all().count(), 0);
        assert_eq!(self.machine.vm.pages.reverse_map().count(), 0);
    }
}

const POINTS: [&str; 3] = ["v5.17", "v5.19", "v6.14"];

/// The same sequences in every run, on a machine that makes these mistakes. What they show, if anything.
fn sequences(layout: Layout, plants: Plants) -> Result<(), String> {
    let shrinks = if plants == Plants::NONE { 1000 } else { 0 };
    let config = Config {
        rng_seed: RngSeed::Fixed(11),
        failure_persistence: None,
        cases: 150,
        max_shrink_iters: shrinks,
        ..Config::default()
    };
    let steps = prop::collection::vec(step(), 1..60);
    let outcome = TestRunner::new(config).run(&(prop::sample::select(POINTS.to_vec()), steps), |(point, steps)| {
        let mut world = World::new(layout, point);
        world.machine.vm.plants = plants;
        for step in steps {
            world.step(step);
            world.check();
        }
        world.finish();
        Ok(())
    });
    outcome.map_err(|failure| failure.to_string())
}

#[test]
fn four_levels() {
    assert_eq!(sequences(Layout::Four, Plants::NONE), Ok(()));
}

#[test]
fn pae_tables() {
    assert_eq!(sequences(Layout::Pae, Plants::NONE), Ok(()));
}

#[test]
fn tables_of_4_byte_entries() {
    assert_eq!(sequences(Layout::Legacy, Plants::NONE), Ok(()));
}

/// Typical mistakes do not pass unnoticed, so the model can fail.
#[test]
fn mistakes_are_noticed() {
    for (layout, plant) in [
        (Layout::Pae, Plant::NoReloadAfterRootZap),
        (Layout::Four, Plant::NoReloadAfterZapAll),
        (Layout::Four, Plant::UnsyncUpperTables),
        (Layout::Four, Plant::NoUnsyncMarkInParents),
        (Layout::Pae, Plant::LinkForgetsUnsync),
        (Layout::Pae, Plant::NoSyncOnHit),
        (Layout::Four, Plant::NoProtectBeforeSync),
        (Layout::Pae, Plant::SyncKeepsDropped),
        (Layout::Four, Plant::NoWriteProtect),
        (Layout::Legacy, Plant::TableWriteUnseen),
        (Layout::Legacy, Plant::OneSpteOfTwo),
        (Layout::Legacy, Plant::QuadrantZero),
        (Layout::Four, Plant::ZapKeepsParents),
        (Layout::Four, Plant::UnlinkKeepsParent),
        (Layout::Four, Plant::DropKeepsRmap),
        (Layout::Four, Plant::PrefetchNotAccessed),
        (Layout::Four, Plant::CleanIsWritable),
        (Layout::Legacy, Plant::AccessNotInherited),
        (Layout::Four, Plant::LookupIgnoresPgd),
    ] {
        assert!(sequences(layout, Plants::NONE.with(plant)).is_err(), "{plant} in {layout:?}");
    }
}
