//! The boundary between two instructions: which of the events that wait is delivered first (SDM 3A 6.9, table 6-2;
//! APM2 8.5), and where the extension may exit in between (SDM 3C 25.2, 25.5.2).
//!
//! The order: SMI and INIT, then what the extension wants right behind an instruction (the monitor trap flag), debug
//! traps of the instruction before, the extension's own windows and NMI, then maskable interrupts. Machine checks, the
//! FLUSH and STOPCLK pins are left out, and so is the order of a start-up IPI against other events: a processor that waits
//! for one takes nothing else (SDM 3A 8.4.4.1).

use crate::apic;
use crate::core::{Activity, Blocking, Core, Passed, PinEvents};
use crate::exception;
use crate::exec::Fault;
use crate::exec::context::Context;
use crate::exec::debug;
use crate::reset;
use crate::smm;
use crate::step::Outcome;
use crate::virt::{Delivery, EventKind, HeldEvents, Trap, Virt};
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::{Ground, SimError};

/// The vector of NMI.
const NMI_VECTOR: u8 = 2;

/// Blocking that lasts for one instruction.
pub(crate) const SHADOW: Blocking = Blocking::STI.union(Blocking::MOV_SS);

/// Flags that make every instruction need the whole procedure: single-stepping, RF, virtual-8086 mode.
const LOUD_FLAGS: Rflags = Rflags::TF.union(Rflags::RF).union(Rflags::VM);

/// Whether nothing but the next instruction itself has to be looked at: no event can come before it, no breakpoint can
/// match, no shadow ends behind it, and no check applies that depends on a rare mode.
pub fn quiet<V: Virt>(core: &Core, virt: &V) -> bool {
    let calm = core.activity == Activity::Active
        && core.pins.events.is_empty()
        && core.pins.sipi.is_none()
        && core.pending_debug == 0
        && !core.blocking.intersects(SHADOW)
        && !core.rflags.intersects(LOUD_FLAGS)
        && core.dr7 & debug::ENABLES == 0
        && core.passed == Passed::Nothing
        && !(core.cr0.contains(Cr0::AM) && core.rflags.contains(Rflags::AC))
        && !core.cr4.contains(Cr4::CET);
    calm && core.waiting_interrupt().is_none() && !virt.attention(core)
}

/// What precedes the next instruction, if anything does.
///
/// # Errors
/// If a delivery needs something that is not modelled.
pub(crate) fn before<V: Virt>(core: &mut Core, virt: &mut V, ground: &mut Ground) -> Result<Option<Outcome>, SimError> {
    match next_event(core, virt, ground) {
        Ok(Some(Taken::Done(outcome))) => Ok(Some(outcome)),
        Ok(Some(Taken::Debug)) => {
            let mut cx = Context::new(core, virt, ground);
            exception::raise(&mut cx, virt, Exception::plain(Vector::Debug)).map(Some)
        }
        Ok(Some(Taken::Event(event))) => {
            core.activity = Activity::Active;
            let mut cx = Context::new(core, virt, ground);
            exception::deliver(&mut cx, virt, event).map(Some)
        }
        Ok(None) => Ok(match core.activity {
            Activity::Active => None,
            Activity::Shutdown => Some(Outcome::Shutdown),
            Activity::Halted | Activity::WaitForSipi => Some(Outcome::Halted),
        }),
        Err(Fault::Exited) => {
            core.blocking.remove(SHADOW);
            Ok(Some(Outcome::Moved(crate::virt::Movement::Exited)))
        }
        Err(Fault::Sim(error)) => Err(error),
        Err(Fault::Exception(exception)) => {
            let mut cx = Context::new(core, virt, ground);
            exception::raise(&mut cx, virt, exception).map(Some)
        }
        Err(Fault::Stage(fault)) => {
            let mut cx = Context::new(core, virt, ground);
            exception::stage(&mut cx, virt, fault).map(Some)
        }
    }
}

/// An event that was chosen.
enum Taken {
    /// It is over already.
    Done(Outcome),
    /// A debug trap is to be raised.
    Debug,
    /// An event is to be delivered.
    Event(Delivery),
}

fn next_event<V: Virt>(core: &mut Core, virt: &mut V, ground: &mut Ground) -> Result<Option<Taken>, Fault> {
    let mut cx = Context::new(core, virt, ground);
    let held = virt.held(cx.core);
    if cx.core.activity == Activity::WaitForSipi {
        return start(&mut cx, virt);
    }
    if let Some(taken) = management(&mut cx, virt, held)? {
        return Ok(Some(taken));
    }
    let attention = virt.attention(cx.core);
    if attention && cx.core.passed == Passed::Instruction {
        cx.ask(virt, &Trap::Retired)?;
    }
    cx.core.passed = Passed::Nothing;
    if has_debug_trap(cx.core) && !held.contains(HeldEvents::DEBUG) {
        return Ok(Some(Taken::Debug));
    }
    if takes_nmi(cx.core, held) {
        cx.ask(virt, &Trap::Nmi)?;
        cx.core.pins.events.remove(PinEvents::NMI);
        cx.core.blocking.insert(Blocking::NMI);
        let event = Delivery { vector: NMI_VECTOR, kind: EventKind::Nmi, error: None, length: 0 };
        return Ok(Some(Taken::Event(event)));
    }
    if attention {
        cx.ask(virt, &Trap::Window)?;
    }
    let Some(vector) = takes_interrupt(cx.core, held) else { return Ok(None) };
    cx.ask(virt, &Trap::Interrupt(vector))?;
    apic::acknowledge(cx.core);
    let event = Delivery { vector, kind: EventKind::ExternalInterrupt, error: None, length: 0 };
    Ok(Some(Taken::Event(event)))
}

/// A processor that waits for a start-up IPI takes nothing else.
fn start<V: Virt>(cx: &mut Context<'_>, virt: &mut V) -> Result<Option<Taken>, Fault> {
    let Some(vector) = cx.core.pins.sipi else { return Ok(None) };
    cx.ask(virt, &Trap::Sipi(vector))?;
    cx.core.pins.sipi = None;
    reset::start_up(cx.core, vector);
    Ok(Some(Taken::Done(Outcome::Delivered)))
}

/// SMI and INIT.
fn management<V: Virt>(cx: &mut Context<'_>, virt: &mut V, held: HeldEvents) -> Result<Option<Taken>, Fault> {
    let pins = cx.core.pins.events;
    let in_smm = cx.core.blocking.contains(Blocking::SMI);
    if pins.contains(PinEvents::SMI) && !in_smm && !held.contains(HeldEvents::SMI) {
        cx.ask(virt, &Trap::Smi)?;
        cx.core.pins.events.remove(PinEvents::SMI);
        smm::enter(cx.core, cx.ground);
        return Ok(Some(Taken::Done(Outcome::Delivered)));
    }
    // In system-management mode INIT waits until RSM (SDM 3C 34.3.1).
    if pins.contains(PinEvents::INIT) && !in_smm && !held.contains(HeldEvents::INIT) {
        cx.ask(virt, &Trap::Init)?;
        cx.core.pins.events.remove(PinEvents::INIT);
        reset::init(cx.core);
        cx.regime = virt.regime(cx.core);
        let scope = sim_core::event::FlushScope::All;
        cx.core.tlb.flush(cx.ground, scope);
        return Ok(Some(Taken::Done(Outcome::Delivered)));
    }
    Ok(None)
}

/// A debug trap waits and MOV SS does not hold it back (SDM 3C 26.7.3: bit 12, BS or BT).
const fn has_debug_trap(core: &Core) -> bool {
    let waits = core.pending_debug & (debug::ENABLED_BREAKPOINT | debug::SINGLE_STEP | debug::TASK_SWITCH) != 0;
    waits && !core.blocking.contains(Blocking::MOV_SS)
}

/// NMI: held back by an NMI in service and by MOV SS (SDM 3A 6.7.1, 6.8.3).
fn takes_nmi(core: &Core, held: HeldEvents) -> bool {
    let blocked = core.blocking.contains(Blocking::NMI) && !held.contains(HeldEvents::NMI_UNBLOCKED);
    core.pins.events.contains(PinEvents::NMI)
        && !blocked
        && !core.blocking.contains(Blocking::MOV_SS)
        && !held.contains(HeldEvents::NMI)
}

/// A maskable interrupt: held back by RFLAGS.IF, STI, MOV SS and the task priority. It does not end a shutdown.
fn takes_interrupt(core: &Core, held: HeldEvents) -> Option<u8> {
    let enabled = core.rflags.contains(Rflags::IF) || held.contains(HeldEvents::INTERRUPT_UNMASKED);
    let free = !core.blocking.intersects(SHADOW) && !held.contains(HeldEvents::INTERRUPT);
    let awake = core.activity != Activity::Shutdown;
    if enabled && free && awake { core.waiting_interrupt() } else { None }
}
