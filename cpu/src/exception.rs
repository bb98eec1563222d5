//! Exceptions: interception, delivery, double and triple faults (SDM 3A 6.15, table 6-5; SDM 3C 25.2, 26.6, 27.2.4).
//!
//! An exception met while another is being delivered is first offered to the extension by itself: a VM-exit for it comes
//! before the two merge into a double fault. What is being delivered meanwhile is in [`Core::delivering`]. External
//! interrupts and NMIs come only by injection, and single-stepping is not modelled.

use crate::core::Core;
use crate::exec::context::Context;
use crate::exec::delivery::{self, Event, Origin};
use crate::exec::{Done, Fault, Flow};
use crate::step::Outcome;
use crate::virt::{Delivery, EventKind, Movement, StageFault, Trap, Verdict, Virt};
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
        | Vector::ControlProtection => Class::Contributory,
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

/// The class of an event that is being delivered: interrupts are benign whatever their vector.
fn class_of(event: &Delivery) -> Class {
    match (event.kind, Vector::from_number(event.vector)) {
        (EventKind::HardwareException, Some(vector)) => class(vector),
        _ => Class::Benign,
    }
}

/// Raises an exception of the current instruction, whatever that leads to.
pub(crate) fn raise<V: Virt>(cx: &mut Context<'_>, virt: &mut V, first: Exception) -> Result<Outcome, SimError> {
    let accepted = accept(cx, virt, first);
    run(cx, virt, Delivery::of(&first), accepted)
}

/// Delivers an exception that a VM-entry injects; it is not intercepted itself, but what its delivery meets is. CR2 is
/// the injector's business (SDM 3C 26.6.1).
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

/// Delivers an event of any kind that a VM-entry injects; it is not intercepted itself, but what its delivery meets is
/// (SDM 3C 26.6; APM2 15.20). Software events return behind an instruction of their length.
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
    run(&mut cx, virt, event, Ok(()))
}

/// Delivers a software interrupt; what its delivery meets is the instruction's own exception.
pub(crate) fn software_interrupt(cx: &mut Context<'_>, vector: u8, kind: EventKind) -> Done {
    attempt(cx, &Delivery { vector, kind, error: None, length: cx.at.length })?;
    Ok(Flow::Delivered)
}

fn record(cx: &mut Context<'_>, vector: u8, error: Option<u32>, cr2: Option<sim_core::Gva>) {
    cx.ground.spend(Cost::Exception, event::Event::Exception { vector, error, cr2 });
}

/// Delivers an event that the extension has let pass, or not.
fn run<V: Virt>(
    cx: &mut Context<'_>,
    virt: &mut V,
    first: Delivery,
    accepted: Result<(), Fault>,
) -> Result<Outcome, SimError> {
    let outcome = match accepted.and_then(|()| chain(cx, virt, first)) {
        Ok(outcome) => Ok(outcome),
        Err(Fault::Exited) => Ok(Outcome::Moved(Movement::Exited)),
        Err(Fault::Stage(fault)) => stage(cx, virt, fault),
        Err(Fault::Sim(error)) => Err(error),
        Err(Fault::Exception(_)) => Err(SimError::internal("an exception escaped from its own delivery")),
    };
    cx.core.delivering = None;
    outcome
}

/// Delivers exceptions until one succeeds. It ends: each turn moves up the classes, and above #DF is the shutdown.
fn chain<V: Virt>(cx: &mut Context<'_>, virt: &mut V, first: Delivery) -> Result<Outcome, Fault> {
    let mut current = first;
    loop {
        let Err(fault) = attempt(cx, &current) else { return Ok(Outcome::Delivered) };
        let Fault::Exception(second) = fault else { return Err(fault) };
        accept(cx, virt, second)?;
        current = match merge(class_of(&current), class(second.vector)) {
            Merged::Second => Delivery::of(&second),
            Merged::Double => {
                let double = Exception::with_error(Vector::DoubleFault, 0);
                accept(cx, virt, double)?;
                Delivery::of(&double)
            }
            Merged::Triple => {
                cx.ask(virt, &Trap::TripleFault)?;
                return Ok(Outcome::Shutdown);
            }
        };
    }
}

/// Asks the extension; an exception that stays inside sets CR2 if it is a page fault.
fn accept<V: Virt>(cx: &mut Context<'_>, virt: &mut V, exception: Exception) -> Result<(), Fault> {
    cx.ask(virt, &Trap::Exception(exception))?;
    if let Some(address) = exception.cr2 {
        cx.core.cr2 = address;
    }
    Ok(())
}

/// Tries one delivery; on a fault the event stays in [`Core::delivering`].
fn attempt(cx: &mut Context<'_>, event: &Delivery) -> Result<(), Fault> {
    cx.core.delivering = Some(*event);
    let (origin, return_rip) = match event.kind {
        EventKind::HardwareException => (Origin::Hardware, cx.core.rip),
        EventKind::ExternalInterrupt | EventKind::Nmi => (Origin::External, cx.core.rip),
        EventKind::PrivilegedSoftwareException => (Origin::External, cx.next_rip()),
        EventKind::SoftwareInterrupt | EventKind::SoftwareException => (Origin::Software, cx.next_rip()),
    };
    delivery::deliver(cx, &Event { vector: event.vector, error: event.error, origin, return_rip })?;
    cx.core.delivering = None;
    let is_page_fault = event.kind == EventKind::HardwareException && event.vector == Vector::PageFault.number();
    record(cx, event.vector, event.error, is_page_fault.then_some(cx.core.cr2));
    Ok(())
}

/// A failed second-stage translation: a VM-exit, always.
pub(crate) fn stage<V: Virt>(cx: &mut Context<'_>, virt: &mut V, fault: StageFault) -> Result<Outcome, SimError> {
    match virt.trap(cx.core, cx.ground, &Trap::Stage(fault), cx.at)? {
        Verdict::Exited => Ok(Outcome::Moved(Movement::Exited)),
        Verdict::Raise(exception) => raise(cx, virt, exception),
        Verdict::Continue => Err(SimError::internal("a second-stage fault without a VM-exit")),
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
