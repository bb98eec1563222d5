//! Event injection: the EVENTINJ field (APM2 15.20), and EXITINTINFO, which has its layout (APM2 15.7.2).
//!
//! The field has no type for software exceptions: vectors 3 and 4 of type 3 are INT3 and INTO. It has no length either:
//! a software event returns to nRIP where the processor has that, else to rIP (APM2 15.20).

use cpu::virt::{Delivery, EventKind};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::arch::exception::{Exception, Vector};

/// V, bit 31.
const VALID: u64 = 1 << 31;
/// EV, bit 11.
const ERROR_VALID: u64 = 1 << 11;
/// TYPE, bits 10:8.
const KIND_SHIFT: u32 = 8;
/// TYPE of an external or virtual interrupt.
const KIND_INTERRUPT: u64 = 0;
/// TYPE of an NMI.
const KIND_NMI: u64 = 2;
/// TYPE of an exception.
const KIND_EXCEPTION: u64 = 3;
/// TYPE of a software interrupt.
const KIND_SOFTWARE: u64 = 4;

/// EVENTINJ, and EXITINTINFO, which has the same layout (APM2 15.7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventInjection(pub u64);

impl EventInjection {
    /// The field that injects an exception.
    #[must_use]
    pub fn of(exception: &Exception) -> Self {
        Self::new(KIND_EXCEPTION, exception.vector.number(), exception.error)
    }

    /// The field that tells of an event being delivered.
    #[must_use]
    pub fn of_delivery(event: &Delivery) -> Self {
        let kind = match event.kind {
            EventKind::ExternalInterrupt => KIND_INTERRUPT,
            EventKind::Nmi => KIND_NMI,
            EventKind::SoftwareInterrupt => KIND_SOFTWARE,
            EventKind::HardwareException | EventKind::SoftwareException | EventKind::PrivilegedSoftwareException => {
                KIND_EXCEPTION
            }
        };
        Self::new(kind, event.vector, event.error)
    }

    fn new(kind: u64, vector: u8, error: Option<u32>) -> Self {
        let error = error.map_or(0, |error| ERROR_VALID | u64::from(error) << 32);
        Self(VALID | kind << KIND_SHIFT | error | u64::from(vector))
    }

    /// Whether V is set.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.0 & VALID != 0
    }

    /// The same event with V clear, as #VMEXIT leaves it.
    #[must_use]
    pub const fn spent(self) -> Self {
        Self(self.0 & !VALID)
    }

    const fn kind(self) -> u64 {
        (self.0 >> KIND_SHIFT) & 7
    }

    /// The vector, bits 7:0.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    /// The error code, if EV is set.
    const fn error(self) -> Option<u32> {
        if self.0 & ERROR_VALID == 0 { None } else { Some((self.0 >> 32) as u32) }
    }

    /// Whether VMRUN accepts the field's type: nothing to inject, or a defined type.
    #[must_use]
    pub const fn has_legal_type(self) -> bool {
        !self.is_valid() || matches!(self.kind(), KIND_INTERRUPT | KIND_NMI | KIND_EXCEPTION | KIND_SOFTWARE)
    }

    /// Whether the vector of an injected exception is one: vector 2 is the NMI, and those above 31 are interrupts.
    #[must_use]
    pub const fn has_legal_vector(self) -> bool {
        !self.is_valid() || self.kind() != KIND_EXCEPTION || (self.vector() < 32 && self.vector() != 2)
    }

    /// Whether VMRUN accepts the field.
    #[must_use]
    pub const fn is_legal(self) -> bool {
        self.has_legal_type() && self.has_legal_vector()
    }

    /// The event to deliver, none if V is clear or the field is illegal.
    #[must_use]
    pub fn delivery(self) -> Option<Delivery> {
        if !self.is_valid() || !self.is_legal() {
            return None;
        }
        let kind = match self.kind() {
            KIND_INTERRUPT => EventKind::ExternalInterrupt,
            KIND_NMI => EventKind::Nmi,
            KIND_SOFTWARE => EventKind::SoftwareInterrupt,
            _ if is_software_exception(self.vector()) => EventKind::SoftwareException,
            _ => EventKind::HardwareException,
        };
        // An NMI has vector 2, whatever the field says (APM2 15.20).
        let vector = if kind == EventKind::Nmi { NMI_VECTOR } else { self.vector() };
        let error = if kind == EventKind::HardwareException { self.error() } else { None };
        Some(Delivery { vector, kind, error, length: 0 })
    }

    /// The exception that the field tells of, none if V is clear.
    ///
    /// # Errors
    /// If the event is not an exception that the model can raise.
    pub fn exception(self) -> Result<Option<Exception>, SimError> {
        if !self.is_valid() {
            return Ok(None);
        }
        if self.kind() != KIND_EXCEPTION {
            let kind = ["external interrupt", "reserved", "NMI", "exception", "software interrupt"];
            let kind = kind.get(self.kind() as usize).unwrap_or(&"reserved");
            return Err(SimError::unmodelled(format!("EVENTINJ of type {kind}")));
        }
        let vector = Vector::from_number(self.vector())
            .ok_or_else(|| SimError::unmodelled(format!("EVENTINJ of exception vector {}", self.vector())))?;
        // CR2 comes from the VMCB; injection of a page fault does not touch it.
        Ok(Some(Exception { vector, error: self.error(), cr2: None }))
    }

    /// Whether the event comes from an instruction: software that runs the instruction again meets it again.
    #[must_use]
    pub const fn is_software(self) -> bool {
        match self.kind() {
            KIND_SOFTWARE => true,
            KIND_EXCEPTION => is_software_exception(self.vector()),
            _ => false,
        }
    }
}

/// The vector of an NMI.
pub(crate) const NMI_VECTOR: u8 = 2;

const fn is_software_exception(vector: u8) -> bool {
    vector == Vector::Breakpoint.number() || vector == Vector::Overflow.number()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// APM2 15.20 over every type and vector.
    #[test]
    fn legality() {
        let mut legal = 0;
        for kind in 0..8_u64 {
            for vector in 0..256_u64 {
                let field = EventInjection(VALID | kind << 8 | vector);
                let expected = match kind {
                    0 | 2 | 4 => true,
                    3 => vector <= 31 && vector != 2,
                    _ => false,
                };
                assert_eq!(field.is_legal(), expected, "type {kind} vector {vector}");
                assert_eq!(field.delivery().is_some(), expected, "type {kind} vector {vector}");
                assert!(field.spent().is_legal());
                assert_eq!((field.spent().delivery(), field.spent().exception()), (None, Ok(None)));
                legal += u32::from(expected);
            }
        }
        println!("2048 types and vectors, {legal} legal");
    }

    #[test]
    fn exceptions_round_trip() {
        for vector in Vector::ALL {
            for error in [None, Some(0), Some(0xffff_ffff)] {
                let exception = Exception { vector, error, cr2: None };
                assert_eq!(EventInjection::of(&exception).exception(), Ok(Some(exception)));
            }
        }
    }

    /// Every event that the field can inject is told back in EXITINTINFO by the same bits.
    #[test]
    fn deliveries_round_trip() {
        for kind in [0, 2, 3, 4_u64] {
            for vector in 0..256_u64 {
                let vector = if kind == 2 { 2 } else { vector };
                let field = EventInjection(VALID | kind << 8 | vector);
                if let Some(event) = field.delivery() {
                    assert_eq!(EventInjection::of_delivery(&event), field, "{event:?}");
                    assert_eq!(field.is_software(), kind == 4 || (kind == 3 && [3, 4].contains(&vector)));
                }
            }
        }
        let with_error = EventInjection::of(&Exception::gp0());
        assert_eq!(with_error.delivery().and_then(|event| event.error), Some(0));
    }

    #[test]
    fn other_events_are_named() {
        for (field, name) in [
            (0x8000_0020, "EVENTINJ of type external interrupt"),
            (0x8000_0202, "EVENTINJ of type NMI"),
            (0x8000_0480, "EVENTINJ of type software interrupt"),
            (0x8000_0312, "EVENTINJ of exception vector 18"),
        ] {
            assert_eq!(EventInjection(field).exception(), Err(SimError::unmodelled(name)));
        }
    }
}
