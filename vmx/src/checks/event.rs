//! The event that a VM-entry injects (SDM 3C 24.8.3), and the checks on the VM-entry control fields (26.2.1.3).

use super::{Check, View, table};
use crate::capability::offered::{BASIC_ANY_ERROR_CODE, misc};
use crate::controls::{EntryControls, PrimaryProc};
use crate::vmcs::Field;
use cpu::virt::EventKind;

/// Interruption types (SDM 3C table 24-16).
pub mod kind {
    /// External interrupt.
    pub const EXTERNAL: u8 = 0;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Hardware exception.
    pub const HARDWARE_EXCEPTION: u8 = 3;
    /// Software interrupt.
    pub const SOFTWARE_INTERRUPT: u8 = 4;
    /// Privileged software exception.
    pub const PRIVILEGED_EXCEPTION: u8 = 5;
    /// Software exception.
    pub const SOFTWARE_EXCEPTION: u8 = 6;
    /// Other event: a pending monitor-trap-flag VM-exit.
    pub const OTHER: u8 = 7;
}

/// The VM-entry interruption-information field, taken apart (SDM 3C table 24-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryEvent {
    /// Bits 7:0.
    pub vector: u8,
    /// Bits 10:8, one of [`kind`].
    pub kind: u8,
    /// Bit 11, deliver error code.
    pub has_error: bool,
    /// Bits 30:12.
    pub reserved: u32,
}

impl EntryEvent {
    /// The event that a field's value asks for, if its valid bit is 1.
    #[must_use]
    pub const fn decode(word: u32) -> Option<Self> {
        if word >> 31 == 0 {
            return None;
        }
        Some(Self {
            vector: word as u8,
            kind: (word >> 8 & 7) as u8,
            has_error: word >> 11 & 1 != 0,
            reserved: word & 0x7fff_f000,
        })
    }

    /// How the event goes through the IDT; none for a pending monitor-trap-flag VM-exit.
    #[must_use]
    pub const fn event_kind(&self) -> Option<EventKind> {
        Some(match self.kind {
            kind::EXTERNAL => EventKind::ExternalInterrupt,
            kind::NMI => EventKind::Nmi,
            kind::HARDWARE_EXCEPTION => EventKind::HardwareException,
            kind::SOFTWARE_INTERRUPT => EventKind::SoftwareInterrupt,
            kind::PRIVILEGED_EXCEPTION => EventKind::PrivilegedSoftwareException,
            kind::SOFTWARE_EXCEPTION => EventKind::SoftwareException,
            _ => return None,
        })
    }

    /// Whether the event is of a type that returns behind an instruction.
    #[must_use]
    pub const fn is_software(&self) -> bool {
        matches!(self.kind, kind::SOFTWARE_INTERRUPT | kind::PRIVILEGED_EXCEPTION | kind::SOFTWARE_EXCEPTION)
    }
}

/// The event that the VMCS asks to inject.
#[must_use]
pub fn event(view: &View<'_>) -> Option<EntryEvent> {
    EntryEvent::decode(view.word(Field::EntryInterruptionInformation))
}

/// Whether the VMCS asks to inject an event of this type.
pub(super) fn injects(view: &View<'_>, kind: u8) -> bool {
    event(view).is_some_and(|event| event.kind == kind)
}

/// Whether a rule holds of the event to inject, if there is one.
fn rule(view: &View<'_>, rule: impl FnOnce(EntryEvent) -> bool) -> bool {
    event(view).is_none_or(rule)
}

/// The VM-entry control fields.
pub static ENTRY: &[Check] = table! { "26.2.1.3":
    "VM-entry controls within the allowed settings", |v| v.capabilities.entry.permits(v.entry().bits()),
        |d| d.change(Field::EntryControls, 1 << 31, 0);
    "injected event of a defined type",
        |v| rule(v, |event| match event.kind {
            1 => false,
            kind::OTHER => v.capabilities.offers(PrimaryProc::MONITOR_TRAP_FLAG),
            _ => true,
        }),
        |d| d.inject(0x8000_0120);
    "injected event's vector consistent with its type",
        |v| rule(v, |event| match event.kind {
            kind::NMI => event.vector == 2,
            kind::HARDWARE_EXCEPTION => event.vector <= 31,
            kind::OTHER => event.vector == 0,
            _ => true,
        }),
        |d| d.inject(0x8000_0203);
    "injected event's deliver-error-code bit consistent", |v| rule(v, |event| error_code_fits(v, event)),
        |d| d.inject(0x8000_0c20);
    "injected event's reserved bits 0", |v| rule(v, |event| event.reserved == 0), |d| d.inject(0x8000_1306);
    "injected error code without reserved bits",
        |v| rule(v, |event| !event.has_error || v.get(Field::EntryExceptionErrorCode) >> 16 == 0),
        |d| {
            d.inject(0x8000_0b0e);
            d.set(Field::EntryExceptionErrorCode, 1 << 16);
        };
    "injected software event's instruction length at most 15",
        |v| {
            let least = u64::from(v.capabilities.misc & misc::ZERO_LENGTH == 0);
            rule(v, |event| {
                !event.is_software() || (least..=15).contains(&v.get(Field::EntryInstructionLength))
            })
        },
        |d| {
            d.inject(0x8000_0603);
            d.set(Field::EntryInstructionLength, 16);
        };
    "VM-entry MSR-load area aligned, within the physical-address width",
        |v| v.is_msr_area(Field::EntryMsrLoadCount, Field::EntryMsrLoadAddress),
        |d| d.set_all(&[(Field::EntryMsrLoadCount, 1), (Field::EntryMsrLoadAddress, 1 << d.core.maxphyaddr)]);
    "entry to SMM and deactivation of dual-monitor treatment only in SMM",
        |v| {
            let of_smm = EntryControls::ENTRY_TO_SMM | EntryControls::DEACTIVATE_DUAL_MONITOR;
            v.in_smm() || !v.entry().intersects(of_smm)
        },
        |d| d.entry(EntryControls::ENTRY_TO_SMM);
    "entry to SMM not with deactivation of dual-monitor treatment",
        |v| !v.entry().contains(EntryControls::ENTRY_TO_SMM | EntryControls::DEACTIVATE_DUAL_MONITOR),
        |d| {
            d.core.blocking.insert(cpu::Blocking::SMI);
            d.entry(EntryControls::ENTRY_TO_SMM | EntryControls::DEACTIVATE_DUAL_MONITOR);
        };
};

/// An error code goes with #DF, #TS, #NP, #SS, #GP, #PF and #AC and not in real-address mode; where IA32_VMX_BASIC bit 56
/// is 1, the vector of the exception does not matter.
fn error_code_fits(view: &View<'_>, event: EntryEvent) -> bool {
    let real = view.unrestricted() && view.get(Field::GuestCr0) & 1 == 0;
    let is_exception = event.kind == kind::HARDWARE_EXCEPTION && !real;
    if view.capabilities.basic & BASIC_ANY_ERROR_CODE != 0 {
        return is_exception || !event.has_error;
    }
    event.has_error == (is_exception && matches!(event.vector, 8 | 10..=14 | 17))
}
