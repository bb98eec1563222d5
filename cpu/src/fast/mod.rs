//! The fast path: basic blocks of micro-operations, for code that only computes.
//!
//! [`crate::step::step`] is the specification. What runs here gives the same registers, flags, memory, time and TLB, or
//! does not run here: an instruction that is not known, might fault, misses the TLB, crosses a page, writes to code that
//! runs, or is asked about by anybody is left to one slow step. Conditions that only a slow step can change are checked
//! once before any number of blocks.
//!
//! - A block is a memo of bytes and checks them ([`block`]); a frame from which blocks run is never written here.
//! - A translation is a memo of a TLB hit ([`memo`]) and costs the same.
//! - Flags are computed when somebody asks ([`lazy`]).
//!
//! Left out: 16-bit and 32-bit code, and whatever [`decode`] does not name.

mod block;
mod decode;
mod execute;
mod lazy;
mod memo;
mod uop;

use crate::boundary;
use crate::core::{Bitness, Core};
use crate::paging::context::PagingContext;
use crate::paging::lam::CR3_LAM_U48;
use crate::virt::{Regime, Virt};
use block::{Blocks, Found};
use execute::{Machine, Registers};
use lazy::Lazy;
use memo::{Memo, View};
use sim_core::Ground;
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr4;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cycles;
use sim_core::event::Detail;
use std::cell::RefCell;

/// Entry points that are kept; a power of two.
const ENTRIES: usize = 1024;
/// A relative jump reaches less far than this, in bytes.
const REACH: u64 = 1 << 32;

/// Everything but the linear address and the kind of access that a cached translation depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Conditions {
    generation: u64,
    closings: u64,
    regime: Regime,
    paging: PagingContext,
    cpl: u8,
}

impl Conditions {
    fn of(core: &Core, regime: &Regime, ground: &Ground) -> Self {
        let paging = PagingContext::of(core);
        let rflags = paging.rflags.intersection(Rflags::AC);
        Self {
            generation: core.tlb.generation(),
            closings: ground.mem.closings(),
            regime: *regime,
            paging: PagingContext { rflags, ..paging },
            cpl: core.cpl(),
        }
    }
}

/// Where the block of an entry point is.
#[derive(Clone, Copy, Debug)]
struct Entry {
    rip: u64,
    epoch: u64,
    slot: usize,
}

/// Blocks, and entry points to them that have been checked.
#[derive(Debug)]
struct Index {
    blocks: Blocks,
    entries: Box<[Entry; ENTRIES]>,
    /// Entries of another epoch are void.
    epoch: u64,
}

/// The memos of one host thread.
#[derive(Debug)]
struct Engine {
    index: Index,
    memo: Memo,
    conditions: Option<Conditions>,
}

impl Default for Engine {
    fn default() -> Self {
        let entries = Box::new([Entry { rip: 0, epoch: 0, slot: 0 }; ENTRIES]);
        let index = Index { blocks: Blocks::default(), entries, epoch: 0 };
        Self { index, memo: Memo::default(), conditions: None }
    }
}

thread_local! {
    static ENGINE: RefCell<Engine> = RefCell::default();
}

/// LAM48 with 5-level paging takes bits from addresses that are canonical; other masking shows in addresses that are
/// not, and those are left to the slow path.
const fn masks_canonical_pointers(core: &Core) -> bool {
    core.cr4.contains(Cr4::LA57) && core.cr3 & CR3_LAM_U48 != 0
}

/// Whether nobody asks about single instructions, and the code is of the kind that runs here.
fn is_quiet<V: Virt>(core: &Core, virt: &V, ground: &Ground) -> bool {
    boundary::quiet(core, virt)
        && core.bitness() == Bitness::Bits64
        && core.rflags.contains(Rflags::FIXED)
        && !masks_canonical_pointers(core)
        && core.msrs.debugctl == 0
        && ground.log.detail() != Detail::Everything
        && core.tlb.is_concrete()
}

/// Forgets the translations and open frames of another run.
pub(crate) fn begin() {
    ENGINE.with_borrow_mut(|engine| engine.conditions = None);
}

/// Retires as many instructions as it can, at most `budget`, and says how many.
pub(crate) fn run<V: Virt>(core: &mut Core, virt: &V, ground: &mut Ground, budget: u64) -> u64 {
    if !is_quiet(core, virt, ground) {
        return 0;
    }
    let regime = virt.regime(core);
    ENGINE.with_borrow_mut(|engine| engine.run(core, &regime, ground, budget))
}

impl Engine {
    fn run(&mut self, core: &mut Core, regime: &Regime, ground: &mut Ground, budget: u64) -> u64 {
        let conditions = Conditions::of(core, regime, ground);
        if self.conditions != Some(conditions) {
            self.memo.forget();
            self.conditions = Some(conditions);
        }
        self.index.next_epoch(&mut self.memo);
        let mut registers = load_registers(core);
        let mut lazy = Lazy::known(core.rflags);
        let view = View { core, regime };
        let mem = &mut ground.mem;
        let machine =
            &mut Machine { registers: &mut registers, lazy: &mut lazy, memo: &mut self.memo, view, mem, reached: 0 };
        let (rip, left, cycles) = run_blocks(&mut self.index, machine, budget);
        core.gprs.copy_from_slice(&registers[..16]);
        core.rip = rip;
        core.rflags = core.rflags.difference(Rflags::STATUS).union(lazy.flags());
        ground.clock.advance(Cycles(cycles));
        budget - left
    }
}

/// Runs block after block until one gets stuck or `budget` might not be enough: the next address, what is left of the
/// budget, and the cycles spent.
fn run_blocks(index: &mut Index, machine: &mut Machine<'_>, budget: u64) -> (u64, u64, u64) {
    let mut rip = machine.view.core.rip;
    let mut left = budget;
    let mut cycles = 0u64;
    while let Some(slot) = index.find(machine, rip) {
        let block = index.blocks.get(slot);
        if block.instructions == 0 || block.instructions > left {
            break;
        }
        machine.registers[usize::from(uop::ENTRY)] = rip;
        let next = execute::run(block, machine);
        let progress = block.progress[machine.reached];
        left -= u64::from(progress.retired);
        cycles = cycles.wrapping_add(u64::from(progress.cycles));
        match next {
            Some(next) => rip = next,
            None => {
                rip = rip.wrapping_add(u64::from(progress.offset));
                break;
            }
        }
    }
    (rip, left, cycles)
}

impl Index {
    /// Voids every entry.
    fn next_epoch(&mut self, memo: &mut Memo) {
        self.epoch += 1;
        memo.forget_code();
    }

    /// The block at a linear address.
    #[inline]
    fn find(&mut self, machine: &mut Machine<'_>, rip: u64) -> Option<usize> {
        let entry = &self.entries[rip as usize % ENTRIES];
        if entry.rip == rip && entry.epoch == self.epoch {
            return Some(entry.slot);
        }
        self.find_anew(machine, rip)
    }

    #[cold]
    fn find_anew(&mut self, machine: &mut Machine<'_>, rip: u64) -> Option<usize> {
        let width = machine.view.core.linear_width();
        let reaches = |address: u64| Gva(address).is_canonical(width);
        if !reaches(rip.wrapping_sub(REACH)) || !reaches(rip.wrapping_add(REACH)) {
            return None;
        }
        let at = machine.view.find(rip, AccessKind::Fetch)?;
        let content = machine.mem.frame(at.frame())?;
        let slot = match self.blocks.find(at.frame(), at.page_offset(), content) {
            Found::Same(slot) => slot,
            Found::Replaced(slot) => {
                self.next_epoch(machine.memo);
                slot
            }
        };
        if !machine.memo.guard(at.frame()) {
            self.next_epoch(machine.memo);
            let _ = machine.memo.guard(at.frame());
        }
        self.entries[rip as usize % ENTRIES] = Entry { rip, epoch: self.epoch, slot };
        Some(slot)
    }
}

fn load_registers(core: &Core) -> Registers {
    let mut registers = [0; 32];
    registers[..16].copy_from_slice(&core.gprs);
    registers[usize::from(uop::FS)] = core.segments.fs.base;
    registers[usize::from(uop::GS)] = core.segments.gs.base;
    registers
}
