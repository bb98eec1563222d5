//! Exceptions: interception, delivery, double and triple faults (SDM 3A 6.15, table 6-5; SDM 3C 25.2, 26.6, 27.2.4).
//!
//! An exception met while another is being delivered is first offered to the extension by itself: a VM-exit for it comes
//! before the two merge into a double fault. What was being delivered (IDT-vectoring information, EXITINTINFO) is told
//! to the extension with every question that the delivery asks.

use crate::boundary::SHADOW;
use crate::core::{Activity, Core, Passed};
use crate::exec::Fault;
use crate::exec::context::Context;
use crate::exec::delivery::{self, Event, Origin};
use crate::step::Outcome;
use crate::virt::{Delivery, EventKind, Movement, StageFault, Trap, Verdict, Virt};
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::clock::Cost;
use sim_core::{Ground, SimError, event};

/// The classes of SDM 3A table 6-4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Two of these are handled one after the other.
    Benign,
    /// #DE, #TS, #NP, #SS, #GP, #CP.
    Contributory,
    /// #PF, #VE.
    PageFault,
    /// #DF itself, which leads to shutdown.
    DoubleFault,
}

/// An exception's class.
#[must_use]
pub const fn class(vector: Vector) -> Class {
    match vector {
        Vector::Divide
        | Vector::InvalidTss
        | Vector::SegmentNotPresent
        | Vector::StackFault
        | Vector::GeneralProtection
        | Vector::ControlProtection
        | Vector::Security => Class::Contributory,
        Vector::PageFault | Vector::Virtualization => Class::PageFault,
        Vector::DoubleFault => Class::DoubleFault,
        Vector::Debug
        | Vector::Breakpoint
        | Vector::Overflow
        | Vector::BoundRange
        | Vector::FloatingPoint
        | Vector::SimdFloatingPoint
        | Vector::InvalidOpcode
        | Vector::DeviceNotAvailable
        | Vector::AlignmentCheck => Class::Benign,
    }
}

/// What becomes of an exception met while another is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// The second is delivered instead; the first will be met again.
    Second,
    /// A double fault.
    Double,
    /// A triple fault.
    Triple,
}

/// SDM 3A table 6-5.
#[must_use]
pub const fn merge(first: Class, second: Class) -> Merged {
    match (first, second) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => Merged::Triple,
        (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Merged::Double
        }
        _ => Merged::Second,
    }
}

/// The class of an event being delivered; only exceptions of the processor's own are not benign.
fn class_of(event: &Delivery) -> Class {
    match (event.kind, Vector::from_number(event.vector)) {
        (EventKind::HardwareException, Some(vector)) => class(vector),
        _ => Class::Benign,
    }
}

/// Raises an exception of the current instruction, whatever that leads to.
pub(crate) fn raise<V: Virt>(cx: &mut Context<'_>, virt: &mut V, first: Exception) -> Result<Outcome, SimError> {
    let offered = accept(cx, virt, first).and_then(|()| chain(cx, virt, Delivery::of(&first)));
    end(cx, virt, offered)
}

/// Delivers an exception that a VM-entry injects; it is not intercepted itself, but what its delivery meets is.
///
/// Software exceptions (#BP, #OF) are delivered as hardware ones are, with the return address in `rip`.
///
/// # Errors
/// If the delivery needs something that is not modelled.
pub fn deliver_injected<V: Virt>(
    core: &mut Core,
    virt: &mut V,
    ground: &mut Ground,
    exception: Exception,
) -> Result<Outcome, SimError> {
    inject(core, virt, ground, Delivery::of(&exception))
}

/// Delivers an event that a VM-entry injects (SDM 3C 26.6.1; APM2 15.20); it is not intercepted itself, but what its
/// delivery meets is, with [`Core::delivering`] saying that this event was being delivered.
/// CR2 is the extension's business. Software events push `rip` plus their length, the others `rip`.
///
/// # Errors
/// If the delivery needs something that is not modelled.
pub fn inject<V: Virt>(
    core: &mut Core,
    virt: &mut V,
    ground: &mut Ground,
    event: Delivery,
) -> Result<Outcome, SimError> {
    let mut cx = Context::new(core, virt, ground);
    cx.at.length = event.length;
    // RFLAGS.IOPL does not matter here, but the redirection bitmap would (SDM 3C 26.6.1.1).
    if event.kind == EventKind::SoftwareInterrupt && cx.is_virtual_8086() && cx.core.cr4.contains(Cr4::VME) {
        return Err(SimError::unmodelled("virtual-8086 mode extensions (CR4.VME)"));
    }
    deliver(&mut cx, virt, event)
}

/// Delivers an event that nothing asks about any more.
pub(crate) fn deliver<V: Virt>(cx: &mut Context<'_>, virt: &mut V, event: Delivery) -> Result<Outcome, SimError> {
    let delivered = chain(cx, virt, event);
    end(cx, virt, delivered)
}

/// What a delivery ended in; the last resort for a second-stage fault that was not met while delivering.
fn end<V: Virt>(cx: &mut Context<'_>, virt: &mut V, done: Result<Outcome, Fault>) -> Result<Outcome, SimError> {
    let outcome = match done {
        Ok(outcome) => Ok(outcome),
        Err(Fault::Exited) => Ok(Outcome::Moved(Movement::Exited)),
        Err(Fault::Stage(fault)) => stage(cx, virt, fault),
        Err(Fault::Sim(error)) => Err(error),
        Err(Fault::Exception(_)) => Err(SimError::internal("an exception escaped from its own delivery")),
    };
    cx.core.delivering = None;
    outcome
}

/// How many deliveries may follow each other. Contributory exceptions end in a shutdown after a few; benign ones need not
/// end at all: an #AC for the frame of an #AC repeats until something intercepts it, and a processor hangs in it.
const DELIVERIES_MAX: u32 = 32;

/// Delivers events until one succeeds.
fn chain<V: Virt>(cx: &mut Context<'_>, virt: &mut V, first: Delivery) -> Result<Outcome, Fault> {
    let mut current = first;
    for _ in 0..DELIVERIES_MAX {
        cx.core.delivering = Some(current);
        let second = match attempt(cx, virt, current) {
            Ok(()) => {
                cx.core.delivering = None;
                cx.core.blocking.remove(SHADOW);
                cx.core.passed = if virt.attention(cx.core) { Passed::Instruction } else { Passed::Nothing };
                return Ok(Outcome::Delivered);
            }
            Err(Fault::Exception(second)) => second,
            Err(Fault::Stage(fault)) => offer_stage(cx, virt, fault)?,
            Err(other) => return Err(other),
        };
        accept(cx, virt, second)?;
        current = match merge(class_of(&current), class(second.vector)) {
            Merged::Second => Delivery::of(&second),
            Merged::Double => {
                let double = Exception::with_error(Vector::DoubleFault, 0);
                cx.core.delivering = None;
                accept(cx, virt, double)?;
                Delivery::of(&double)
            }
            Merged::Triple => {
                cx.core.delivering = None;
                cx.ask(virt, &Trap::TripleFault)?;
                cx.core.activity = Activity::Shutdown;
                return Ok(Outcome::Shutdown);
            }
        };
    }
    Err(Fault::unmodelled(format!("a processor that hangs delivering vector {} again and again", current.vector)))
}

/// Asks the extension; an exception that stays inside sets CR2 if it is a page fault, and DR6 if it is #DB.
fn accept<V: Virt>(cx: &mut Context<'_>, virt: &mut V, exception: Exception) -> Result<(), Fault> {
    let offered = cx.ask(virt, &Trap::Exception(exception));
    if offered.is_err() && exception.vector == Vector::Debug {
        cx.core.pending_debug = 0;
    }
    offered?;
    if let Some(address) = exception.cr2 {
        cx.core.cr2 = address;
    }
    if exception.vector == Vector::Debug {
        cx.core.take_debug();
    }
    Ok(())
}

/// Tries one delivery; on a fault the event stays in [`Core::delivering`].
fn attempt<V: Virt>(cx: &mut Context<'_>, virt: &mut V, event: Delivery) -> Result<(), Fault> {
    let (origin, return_rip) = match event.kind {
        EventKind::HardwareException => (Origin::Hardware, cx.core.rip),
        EventKind::ExternalInterrupt | EventKind::Nmi => (Origin::External, cx.core.rip),
        EventKind::PrivilegedSoftwareException => (Origin::External, cx.next_rip()),
        EventKind::SoftwareInterrupt | EventKind::SoftwareException => (Origin::Software, cx.next_rip()),
    };
    let Delivery { vector, error, .. } = event;
    delivery::deliver(cx, virt, &Event { vector, error, origin, return_rip })?;
    let is_page_fault = event.kind == EventKind::HardwareException && vector == Vector::PageFault.number();
    let cr2 = is_page_fault.then_some(cx.core.cr2);
    cx.ground.spend(Cost::Exception, event::Event::Exception { vector, error, cr2 });
    Ok(())
}

/// A failed second-stage translation: a VM-exit, or the exception that comes in its place.
fn offer_stage<V: Virt>(cx: &mut Context<'_>, virt: &mut V, fault: StageFault) -> Result<Exception, Fault> {
    match virt.trap(cx.core, cx.ground, &Trap::Stage(fault), cx.at)? {
        Verdict::Exited => Err(Fault::Exited),
        Verdict::Raise(exception) => Ok(exception),
        Verdict::Continue => Err(SimError::internal("a second-stage fault without a VM-exit").into()),
    }
}

/// A failed second-stage translation of the current instruction.
pub(crate) fn stage<V: Virt>(cx: &mut Context<'_>, virt: &mut V, fault: StageFault) -> Result<Outcome, SimError> {
    match offer_stage(cx, virt, fault) {
        Ok(exception) => raise(cx, virt, exception),
        Err(Fault::Exited) => Ok(Outcome::Moved(Movement::Exited)),
        Err(Fault::Sim(error)) => Err(error),
        Err(_) => Err(SimError::internal("a second-stage fault led to an exception of its own")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3A table 6-5, whole; the double-fault row is the text below it.
    #[test]
    fn table_6_5() {
        use Class::{Benign, Contributory, DoubleFault, PageFault};
        use Merged::{Double, Second, Triple};
        let columns = [Benign, Contributory, PageFault];
        for (first, row) in [
            (Benign, [Second, Second, Second]),
            (Contributory, [Second, Double, Second]),
            (PageFault, [Second, Double, Double]),
            (DoubleFault, [Second, Triple, Triple]),
        ] {
            for (second, expected) in columns.into_iter().zip(row) {
                assert_eq!(merge(first, second), expected, "{first:?} then {second:?}");
            }
        }
    }
}
