//! Exceptions: interception, delivery, double and triple faults (SDM 3A 6.15, table 6-5; SDM 3C 25.2, 26.6, 27.2.4).
//!
//! An exception met while another is being delivered is first offered to the extension by itself: a VM-exit for it comes
//! before the two merge into a double fault. What was being delivered (IDT-vectoring information, EXITINTINFO) is not
//! told to the extension. External interrupts, NMIs and single-stepping are not modelled.

use crate::core::Core;
use crate::exec::context::Context;
use crate::exec::delivery::{self, Event, Origin};
use crate::exec::{Done, Fault, Flow};
use crate::step::Outcome;
use crate::virt::{Movement, StageFault, Trap, Verdict, Virt};
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

/// Whether the extension is asked before an exception is delivered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offer {
    /// It is.
    Asked,
    /// It injected the exception itself, and CR2 is its business too (SDM 3C 26.6.1).
    Injected,
}

/// Raises an exception of the current instruction, whatever that leads to.
pub(crate) fn raise<V: Virt>(cx: &mut Context<'_>, virt: &mut V, first: Exception) -> Result<Outcome, SimError> {
    run(cx, virt, first, Offer::Asked)
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
    let mut cx = Context::new(core, virt, ground);
    run(&mut cx, virt, exception, Offer::Injected)
}

/// Delivers a software interrupt; what its delivery meets is the instruction's own exception.
pub(crate) fn software_interrupt(cx: &mut Context<'_>, vector: u8) -> Done {
    let event = Event { vector, error: None, origin: Origin::Software, return_rip: cx.next_rip() };
    delivery::deliver(cx, &event)?;
    record(cx, vector, None, None);
    Ok(Flow::Delivered)
}

fn record(cx: &mut Context<'_>, vector: u8, error: Option<u32>, cr2: Option<sim_core::Gva>) {
    cx.ground.spend(Cost::Exception, event::Event::Exception { vector, error, cr2 });
}

fn run<V: Virt>(cx: &mut Context<'_>, virt: &mut V, first: Exception, offer: Offer) -> Result<Outcome, SimError> {
    match chain(cx, virt, first, offer) {
        Ok(outcome) => Ok(outcome),
        Err(Fault::Exited) => Ok(Outcome::Moved(Movement::Exited)),
        Err(Fault::Stage(fault)) => stage(cx, virt, fault),
        Err(Fault::Sim(error)) => Err(error),
        Err(Fault::Exception(_)) => Err(SimError::internal("an exception escaped from its own delivery")),
    }
}

/// Delivers exceptions until one succeeds. It ends: each turn moves up the classes, and above #DF is the shutdown.
fn chain<V: Virt>(cx: &mut Context<'_>, virt: &mut V, first: Exception, offer: Offer) -> Result<Outcome, Fault> {
    let mut current = first;
    if offer == Offer::Asked {
        accept(cx, virt, current)?;
    }
    loop {
        let Err(fault) = attempt(cx, current) else { return Ok(Outcome::Delivered) };
        let Fault::Exception(second) = fault else { return Err(fault) };
        accept(cx, virt, second)?;
        current = match merge(class(current.vector), class(second.vector)) {
            Merged::Second => second,
            Merged::Double => {
                let double = Exception::with_error(Vector::DoubleFault, 0);
                accept(cx, virt, double)?;
                double
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

fn attempt(cx: &mut Context<'_>, exception: Exception) -> Result<(), Fault> {
    let vector = exception.vector.number();
    let return_rip = cx.core.rip;
    delivery::deliver(cx, &Event { vector, error: exception.error, origin: Origin::Hardware, return_rip })?;
    let cr2 = (exception.vector == Vector::PageFault).then_some(cx.core.cr2);
    record(cx, vector, exception.error, cr2);
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
