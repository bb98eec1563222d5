//! Event injection: the EVENTINJ field (APM2 15.20).
//!
//! Modelled: exceptions (type 3) that the CPU can raise. Interrupts, NMIs and software interrupts are legal but not
//! modelled.

use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::arch::exception::{Exception, Vector};

/// V, bit 31.
const VALID: u64 = 1 << 31;
/// EV, bit 11.
const ERROR_VALID: u64 = 1 << 11;
/// TYPE, bits 10:8.
const KIND_SHIFT: u32 = 8;
/// TYPE of an exception.
const KIND_EXCEPTION: u64 = 3;

/// EVENTINJ, and EXITINTINFO, which has the same layout (APM2 15.7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EventInjection(pub u64);

impl EventInjection {
    /// The field that injects an exception.
    #[must_use]
    pub fn of(exception: &Exception) -> Self {
        let error = exception.error.map_or(0, |error| ERROR_VALID | u64::from(error) << 32);
        Self(VALID | KIND_EXCEPTION << KIND_SHIFT | error | u64::from(exception.vector.number()))
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

    /// Whether VMRUN accepts the field: nothing to inject, or a defined type, and for an exception a vector that is
    /// one (vector 2 is the NMI).
    #[must_use]
    pub const fn is_legal(self) -> bool {
        match self.kind() {
            _ if !self.is_valid() => true,
            0 | 2 | 4 => true,
            KIND_EXCEPTION => self.vector() < 32 && self.vector() != 2,
            _ => false,
        }
    }

    /// The exception to deliver, none if V is clear.
    ///
    /// # Errors
    /// If the event is legal but not modelled.
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
        let error = (self.0 & ERROR_VALID != 0).then_some((self.0 >> 32) as u32);
        // CR2 comes from the VMCB; injection of a page fault does not touch it.
        Ok(Some(Exception { vector, error, cr2: None }))
    }
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
                assert!(field.spent().is_legal());
                assert_eq!(field.spent().exception(), Ok(None));
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
