//! One instruction, from fetch to retirement, and running many.
//!
//! Events come between instructions: [`crate::boundary`] looks for them, but only if [`boundary::quiet`] does not rule them
//! out.

use crate::boundary;
use crate::core::{Activity, Core, Passed};
use crate::decode;
use crate::exception;
use crate::exec::context::Context;
use crate::exec::{Fault, Flow, debug, ibt, table};
use crate::fast;
use crate::tlb;
use crate::virt::{Movement, Virt};
use iced_x86::Instruction;
use sim_core::addr::Gva;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use sim_core::event::Event;
use sim_core::{Ground, SimError};

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// An instruction retired.
    Retired,
    /// An exception was delivered through the IDT.
    Delivered,
    /// Control moved into or out of a guest.
    Moved(Movement),
    /// An OUT that nothing intercepted reached the bus and retired.
    Out {
        /// The port.
        port: u16,
        /// Operand bytes.
        bytes: u8,
        /// The value written.
        value: u32,
    },
    /// The processor sits in HLT.
    Halted,
    /// A triple fault that nothing intercepted.
    Shutdown,
}

/// Where [`run`] stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StopOn {
    /// At the next VM-exit, or at whatever stops [`StopOn::Bus`].
    Exit,
    /// At the bus (OUT), in HLT or in shutdown only: what a bare machine does, whose guests and hosts run on.
    Bus,
}

/// Runs one instruction. A repeated string instruction may take several steps.
///
/// # Errors
/// If the instruction, or a mode that it needs, is not modelled.
pub fn step<V: Virt>(core: &mut Core, virt: &mut V, ground: &mut Ground) -> Result<Outcome, SimError> {
    let outcome = attempt(core, virt, ground);
    if core.tlb.is_watched() {
        tlb::note(core, &virt.regime(core), ground);
    }
    outcome
}

fn attempt<V: Virt>(core: &mut Core, virt: &mut V, ground: &mut Ground) -> Result<Outcome, SimError> {
    if boundary::quiet(core, virt) {
        let mut cx = Context::new(core, virt, ground);
        let issued = issue(&mut cx, virt);
        let outcome = complete(&mut cx, virt, issued)?;
        // The instruction may have started what lasts for one more: STI, MOV to SS.
        let shadow = cx.effects.shadow;
        if outcome != Outcome::Moved(Movement::Entered) {
            core.blocking.insert(shadow);
        }
        return Ok(outcome);
    }
    if let Some(outcome) = boundary::before(core, virt, ground)? {
        return Ok(outcome);
    }
    watched(core, virt, ground)
}

/// Runs one instruction with everything that a rare mode adds: breakpoints, single-stepping, shadows that end behind it.
fn watched<V: Virt>(core: &mut Core, virt: &mut V, ground: &mut Ground) -> Result<Outcome, SimError> {
    let mut cx = Context::new(core, virt, ground);
    let base = if cx.is_64bit() { 0 } else { cx.core.segments.cs.base };
    let matches = debug::instruction_matches(cx.core, Gva(base.wrapping_add(cx.core.rip)));
    if matches != 0 {
        cx.core.pending_debug = matches | debug::ENABLED_BREAKPOINT;
        return exception::raise(&mut cx, virt, Exception::plain(Vector::Debug));
    }
    let before = Before { rip: cx.core.rip, flags: cx.core.rflags };
    let fetched = decode::fetch(&mut cx);
    let issued = ibt::admit(&cx, fetched).and_then(|instruction| execute(&mut cx, virt, &instruction));
    let jumped = matches!(issued, Ok(Flow::Jumped));
    let outcome = complete(&mut cx, virt, issued)?;
    match outcome {
        Outcome::Retired | Outcome::Out { .. } | Outcome::Halted => after(&mut cx, virt, before, jumped),
        Outcome::Moved(Movement::Exited) => cx.core.blocking.remove(boundary::SHADOW),
        Outcome::Delivered | Outcome::Shutdown | Outcome::Moved(Movement::Entered) => {}
    }
    Ok(outcome)
}

/// What an instruction found when it began.
#[derive(Clone, Copy)]
struct Before {
    rip: u64,
    flags: Rflags,
}

/// What an instruction that retired leaves for the boundary behind it: shadows, RF, debug traps (SDM 3A 6.8.3; SDM 3B
/// 17.3.1.1, 17.3.1.4).
fn after<V: Virt>(cx: &mut Context<'_>, virt: &V, before: Before, jumped: bool) {
    const BRANCH_STEP: u64 = 1 << 1;
    cx.core.blocking = cx.core.blocking.difference(boundary::SHADOW).union(cx.effects.shadow);
    if !cx.effects.keeps_resume {
        cx.set_flags(Rflags::RF, Rflags::empty());
    }
    let branched = jumped && cx.core.rip != before.rip;
    let steps = before.flags.contains(Rflags::TF) && (branched || cx.core.msrs.debugctl & BRANCH_STEP == 0);
    let step = if steps { debug::SINGLE_STEP } else { 0 };
    cx.core.pending_debug |= cx.effects.breakpoints | step;
    if virt.attention(cx.core) {
        cx.core.passed = Passed::Instruction;
    }
}

fn complete<V: Virt>(cx: &mut Context<'_>, virt: &mut V, issued: Result<Flow, Fault>) -> Result<Outcome, SimError> {
    match issued {
        Ok(Flow::Software(event)) => exception::deliver(cx, virt, event),
        Ok(flow) => retire(cx, flow),
        Err(Fault::Exception(exception)) => exception::raise(cx, virt, exception),
        Err(Fault::Stage(fault)) => exception::stage(cx, virt, fault),
        Err(Fault::Exited) => Ok(Outcome::Moved(Movement::Exited)),
        Err(Fault::Sim(error)) => Err(error),
    }
}

/// How [`run_at`] gets from one instruction to the next. The result is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pace {
    /// One [`step`] after the other.
    Steps,
    /// Whole blocks where they can run.
    Blocks,
    /// Steps at first, as blocks are not worth making for a short run.
    Adaptive,
}

impl Pace {
    /// How many steps come before the first block.
    const fn warm_up(self) -> u64 {
        match self {
            Self::Steps => u64::MAX,
            Self::Blocks => 0,
            Self::Adaptive => 64,
        }
    }
}

/// Runs until something stops it.
///
/// # Errors
/// If something is not modelled, or if nothing stops it within `budget` steps.
pub fn run<V: Virt>(
    core: &mut Core,
    virt: &mut V,
    ground: &mut Ground,
    stop: StopOn,
    budget: u64,
) -> Result<Outcome, SimError> {
    run_at(Pace::Adaptive, core, virt, ground, stop, budget)
}

/// [`run`] at a pace.
///
/// # Errors
/// Those of [`run`].
pub fn run_at<V: Virt>(
    pace: Pace,
    core: &mut Core,
    virt: &mut V,
    ground: &mut Ground,
    stop: StopOn,
    budget: u64,
) -> Result<Outcome, SimError> {
    let result = run_on(pace.warm_up(), core, virt, ground, stop, budget);
    ground.mem.close();
    result
}

fn run_on<V: Virt>(
    warm_up: u64,
    core: &mut Core,
    virt: &mut V,
    ground: &mut Ground,
    stop: StopOn,
    budget: u64,
) -> Result<Outcome, SimError> {
    let mut left = budget;
    while left > 0 {
        let done = budget - left;
        if done == warm_up {
            fast::begin();
        }
        if done >= warm_up {
            left -= fast::run(core, virt, ground, left);
            if left == 0 {
                break;
            }
        }
        left -= 1;
        let outcome = step(core, virt, ground)?;
        match outcome {
            Outcome::Retired | Outcome::Delivered | Outcome::Moved(Movement::Entered) => {}
            Outcome::Moved(Movement::Exited) if stop == StopOn::Bus => {}
            Outcome::Moved(Movement::Exited) | Outcome::Out { .. } | Outcome::Halted | Outcome::Shutdown => {
                return Ok(outcome);
            }
        }
    }
    Err(SimError::Runaway { budget, rip: core.rip })
}

fn issue<V: Virt>(cx: &mut Context<'_>, virt: &mut V) -> Result<Flow, Fault> {
    let instruction = decode::fetch(cx)?;
    execute(cx, virt, &instruction)
}

fn execute<V: Virt>(cx: &mut Context<'_>, virt: &mut V, instruction: &Instruction) -> Result<Flow, Fault> {
    cx.at.length = instruction.len() as u8;
    let base = if cx.is_64bit() { 0 } else { cx.core.segments.cs.base };
    let rip = Gva(base.wrapping_add(cx.core.rip));
    cx.ground.spend(Cost::Instruction, Event::Instruction { rip, mnemonic: table::name(instruction.mnemonic()) });
    table::execute(cx, virt, instruction)
}

fn retire(cx: &mut Context<'_>, flow: Flow) -> Result<Outcome, SimError> {
    Ok(match flow {
        Flow::Next => {
            advance(cx);
            Outcome::Retired
        }
        Flow::Jumped => Outcome::Retired,
        Flow::Software(_) => return Err(SimError::internal("a software event retires by its delivery")),
        Flow::Moved(movement) => Outcome::Moved(movement),
        Flow::Out { port, bytes, value } => {
            advance(cx);
            Outcome::Out { port, bytes, value }
        }
        Flow::Halted => {
            advance(cx);
            cx.core.activity = Activity::Halted;
            Outcome::Halted
        }
        Flow::Resumed => Outcome::Halted,
        Flow::Shutdown => {
            cx.core.activity = Activity::Shutdown;
            Outcome::Shutdown
        }
    })
}

/// Moves on to the next instruction; RF lasts for one instruction (SDM 3B 17.3.1.1).
fn advance(cx: &mut Context<'_>) {
    cx.core.rip = cx.next_rip();
    cx.set_flags(Rflags::RF, Rflags::empty());
}
