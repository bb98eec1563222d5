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
use crate::virt::{Regime, SecondStage, Virt};
use block::{Block, Blocks, Found, Progress};
use execute::{Exit, Machine, Registers};
use lazy::Lazy;
use memo::{Memo, View};
use sim_core::Ground;
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::{Cr4, PagingMode};
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
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

/// The memos of one host thread, and the state of one run.
#[derive(Debug)]
struct Engine {
    blocks: Blocks,
    entries: Box<[Entry; ENTRIES]>,
    /// Entries of another epoch are void.
    epoch: u64,
    memo: Memo,
    conditions: Option<Conditions>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            blocks: Blocks::default(),
            entries: Box::new([Entry { rip: 0, epoch: 0, slot: 0 }; ENTRIES]),
            epoch: 0,
            memo: Memo::default(),
            conditions: None,
        }
    }
}

thread_local! {
    static ENGINE: RefCell<Engine> = RefCell::default();
}

/// LAM48 with 5-level paging takes bits from addresses that are canonical; other masking shows in addresses that are
/// not, and those are left to the interpreter.
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

/// Forgets translations and open frames of another run.
pub(crate) fn begin() {
    ENGINE.with_borrow_mut(|engine| engine.conditions = None);
}

/// Retires as many instructions as it can, at most `budget`, and says how many.
pub(crate) fn run<V: Virt>(core: &mut Core, virt: &V, ground: &mut Ground, budget: u64) -> u64 {
    if !is_quiet(core, virt, ground) {
        return 0;
    }
    let regime = virt.regime(core);
    let cost = match (core.paging_mode(), regime.second) {
        (PagingMode::Off, SecondStage::None) => None,
        (PagingMode::Off, _) => return 0,
        _ => Some(Cost::TlbHit),
    };
    ENGINE.with_borrow_mut(|engine| engine.run(core, &regime, ground, cost, budget))
}

/// Instructions, translations and data accesses that wait to be charged.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    retired: u64,
    translations: u64,
    accesses: u64,
}

impl Spent {
    fn add(&mut self, progress: Progress) {
        self.retired = self.retired.wrapping_add(u64::from(progress.retired));
        self.translations = self.translations.wrapping_add(u64::from(progress.translations));
        self.accesses = self.accesses.wrapping_add(u64::from(progress.accesses));
    }

    /// Every instruction is also one translation, that of its fetch.
    fn charge(&self, ground: &mut Ground, translation: Option<Cost>) {
        ground.clock.charge_times(Cost::Instruction, self.retired);
        ground.clock.charge_times(Cost::DataAccess, self.accesses);
        if let Some(cost) = translation {
            ground.clock.charge_times(cost, self.retired.wrapping_add(self.translations));
        }
    }
}

impl Engine {
    fn run(&mut self, core: &mut Core, regime: &Regime, ground: &mut Ground, cost: Option<Cost>, budget: u64) -> u64 {
        let conditions = Conditions::of(core, regime, ground);
        if self.conditions != Some(conditions) {
            self.memo.forget();
            self.conditions = Some(conditions);
        }
        self.next_epoch();
        let mut registers = load_registers(core);
        let mut lazy = Lazy::known(core.rflags);
        let mut rip = core.rip;
        let mut spent = Spent::default();
        while let Some(slot) = self.find(&View { core, regime, cost }, ground, rip) {
            let Some(block) = self.blocks.get(slot) else { break };
            let whole = block.whole();
            if whole.retired == 0 {
                break;
            }
            let view = View { core, regime, cost };
            let mem = &mut ground.mem;
            let mut machine = Machine { registers: &mut registers, lazy: &mut lazy, memo: &mut self.memo, view, mem };
            let left = budget.wrapping_sub(spent.retired);
            let (next, is_stuck) = run_block(block, &mut machine, &mut spent, (rip, left));
            rip = next;
            if is_stuck {
                break;
            }
        }
        core.gprs.copy_from_slice(&registers[..16]);
        core.rip = rip;
        core.rflags = core.rflags.difference(Rflags::STATUS).union(lazy.flags());
        spent.charge(ground, cost);
        spent.retired
    }

    /// Voids every entry.
    fn next_epoch(&mut self) {
        self.epoch += 1;
        self.memo.forget_code();
    }

    /// The block at a linear address.
    #[inline]
    fn find(&mut self, view: &View<'_>, ground: &Ground, rip: u64) -> Option<usize> {
        let entry = self.entries[rip as usize % ENTRIES];
        if entry.rip == rip && entry.epoch == self.epoch {
            return Some(entry.slot);
        }
        self.find_anew(view, ground, rip)
    }

    #[cold]
    fn find_anew(&mut self, view: &View<'_>, ground: &Ground, rip: u64) -> Option<usize> {
        let width = view.core.linear_width();
        let reaches = |address: u64| Gva(address).is_canonical(width);
        if !reaches(rip.wrapping_sub(REACH)) || !reaches(rip.wrapping_add(REACH)) {
            return None;
        }
        let at = view.find(rip, AccessKind::Fetch)?;
        let content = ground.mem.frame(at.frame())?;
        let slot = match self.blocks.find(at.frame(), at.page_offset(), content) {
            Found::Same(slot) => slot,
            Found::Replaced(slot) => {
                self.next_epoch();
                slot
            }
        };
        if !self.memo.guard(at.frame()) {
            self.next_epoch();
            let _ = self.memo.guard(at.frame());
        }
        self.entries[rip as usize % ENTRIES] = Entry { rip, epoch: self.epoch, slot };
        Some(slot)
    }
}

/// Runs a block, again and again if it loops to itself; the next address, and whether a slow step is due there.
fn run_block(block: &Block, machine: &mut Machine<'_>, spent: &mut Spent, (rip, budget): (u64, u64)) -> (u64, bool) {
    let whole = block.whole();
    let mut left = budget;
    machine.registers[usize::from(uop::ENTRY)] = rip;
    while u64::from(whole.retired) <= left {
        let (progress, next, is_stuck) = match execute::run(block, machine) {
            Exit::Through => (whole, rip.wrapping_add(u64::from(whole.offset)), false),
            Exit::Jumped(index, target) => (block.progress[index + 1], target, false),
            Exit::Stuck(index) => {
                let progress = block.progress[index];
                (progress, rip.wrapping_add(u64::from(progress.offset)), true)
            }
        };
        spent.add(progress);
        left -= u64::from(progress.retired);
        if is_stuck || next != rip {
            return (next, is_stuck);
        }
    }
    (rip, true)
}

fn load_registers(core: &Core) -> Registers {
    let mut registers = [0; 32];
    registers[..16].copy_from_slice(&core.gprs);
    registers[usize::from(uop::FS)] = core.segments.fs.base;
    registers[usize::from(uop::GS)] = core.segments.gs.base;
    registers
}
