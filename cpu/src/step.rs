//! One instruction, from fetch to retirement, and running many.
//!
//! Left out, and named when met at the start of a step: single-stepping (RFLAGS.TF), alignment checking, virtual-8086
//! mode. Interrupts never arrive: there is no interrupt controller.

use crate::core::{Activity, Core};
use crate::decode;
use crate::exception;
use crate::exec::context::Context;
use crate::exec::{Fault, Flow, table};
use crate::fast;
use crate::tlb;
use crate::virt::{Movement, Virt};
use sim_core::addr::Gva;
use sim_core::arch::control::Cr0;
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
    if core.activity == Activity::Halted {
        return Ok(Outcome::Halted);
    }
    require_modelled(core)?;
    let mut cx = Context::new(core, virt, ground);
    match issue(&mut cx, virt) {
        Ok(Flow::Software(event)) => exception::deliver(&mut cx, virt, event),
        Ok(flow) => retire(&mut cx, flow),
        Err(Fault::Exception(exception)) => exception::raise(&mut cx, virt, exception),
        Err(Fault::Stage(fault)) => exception::stage(&mut cx, virt, fault),
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
    fast::begin();
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
        if budget - left >= warm_up {
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

/// Names a mode that no instruction can run in.
fn require_modelled(core: &Core) -> Result<(), SimError> {
    let checks_alignment = core.cr0.contains(Cr0::AM) && core.rflags.contains(Rflags::AC) && core.cpl() == 3;
    if core.rflags.contains(Rflags::TF) {
        Err(SimError::unmodelled("single-stepping (RFLAGS.TF)"))
    } else if core.rflags.contains(Rflags::VM) {
        Err(SimError::unmodelled("virtual-8086 mode"))
    } else if checks_alignment {
        Err(SimError::unmodelled("alignment checking (CR0.AM with RFLAGS.AC at CPL 3)"))
    } else {
        Ok(())
    }
}

fn issue<V: Virt>(cx: &mut Context<'_>, virt: &mut V) -> Result<Flow, Fault> {
    let instruction = decode::fetch(cx)?;
    cx.at.length = instruction.len() as u8;
    let base = if cx.is_64bit() { 0 } else { cx.core.segments.cs.base };
    let rip = Gva(base.wrapping_add(cx.core.rip));
    cx.ground.spend(Cost::Instruction, Event::Instruction { rip, mnemonic: table::name(instruction.mnemonic()) });
    table::execute(cx, virt, &instruction)
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
    })
}

/// Moves on to the next instruction; RF lasts for one instruction (SDM 3B 17.3.1.1).
fn advance(cx: &mut Context<'_>) {
    cx.core.rip = cx.next_rip();
    cx.set_flags(Rflags::RF, Rflags::empty());
}
