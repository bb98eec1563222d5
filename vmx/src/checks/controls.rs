//! Checks on the VM-execution, VM-exit and VM-entry control fields (SDM 3C 26.2.1). A broken one is VMfailValid(7).

use super::{Check, View, check};
use crate::controls::{PrimaryProc, SecondaryProc};
use crate::vmcs::Field;

/// Every check, in the manual's order.
pub static TABLE: &[Check] = &[
    check("pin-based controls within the allowed settings", "26.2.1.1", |v| v.capabilities.pin.permits(v.pin().bits())),
    check("primary controls within the allowed settings", "26.2.1.1", |v| {
        v.capabilities.primary.permits(v.primary().bits())
    }),
    check("secondary controls within the allowed settings", "26.2.1.1", |v| {
        v.capabilities.secondary.permits(v.secondary().bits())
    }),
    check("CR3-target count at most 4", "26.2.1.1", |v| v.get(Field::Cr3TargetCount) <= 4),
    check("I/O bitmaps 4 KiB aligned, within the physical-address width", "26.2.1.1", |v| {
        !v.primary().contains(PrimaryProc::USE_IO_BITMAPS)
            || [Field::IoBitmapA, Field::IoBitmapB].into_iter().all(|field| v.is_page(v.get(field)))
    }),
    check("MSR bitmaps 4 KiB aligned, within the physical-address width", "26.2.1.1", |v| {
        !v.primary().contains(PrimaryProc::USE_MSR_BITMAPS) || v.is_page(v.get(Field::MsrBitmaps))
    }),
    check("VPID not 0000H", "26.2.1.1", |v| {
        !v.secondary().contains(SecondaryProc::ENABLE_VPID) || v.get(Field::Vpid) != 0
    }),
    check("EPTP valid", "26.2.1.1", |v| {
        !v.secondary().contains(SecondaryProc::ENABLE_EPT) || v.is_eptp(v.get(Field::EptPointer))
    }),
    check("unrestricted guest only with EPT", "26.2.1.1", |v| {
        !v.unrestricted() || v.secondary().contains(SecondaryProc::ENABLE_EPT)
    }),
    check("VM-exit controls within the allowed settings", "26.2.1.2", |v| v.capabilities.exit.permits(v.exit().bits())),
    check("VM-exit MSR-store area aligned, within the physical-address width", "26.2.1.2", |v| {
        v.is_msr_area(Field::ExitMsrStoreCount, Field::ExitMsrStoreAddress)
    }),
    check("VM-exit MSR-load area aligned, within the physical-address width", "26.2.1.2", |v| {
        v.is_msr_area(Field::ExitMsrLoadCount, Field::ExitMsrLoadAddress)
    }),
    check("VM-entry controls within the allowed settings", "26.2.1.3", |v| {
        v.capabilities.entry.permits(v.entry().bits())
    }),
    check("injected event of a defined type", "26.2.1.3", |v| {
        event(v).is_none_or(|event| event.kind != 1 && event.kind != kind::OTHER)
    }),
    check("injected event's vector consistent with its type", "26.2.1.3", |v| {
        event(v).is_none_or(|event| match event.kind {
            kind::NMI => event.vector == 2,
            kind::HARDWARE_EXCEPTION => event.vector <= 31,
            _ => true,
        })
    }),
    check("injected event's deliver-error-code bit consistent", "26.2.1.3", |v| {
        event(v).is_none_or(|event| event.has_error == should_have_error(v, event))
    }),
    check("injected event's reserved bits 0", "26.2.1.3", |v| event(v).is_none_or(|event| event.reserved == 0)),
    check("injected error code without reserved bits", "26.2.1.3", |v| {
        event(v).is_none_or(|event| !event.has_error || v.get(Field::EntryExceptionErrorCode) >> 15 == 0)
    }),
    check("injected software event's instruction length 1 to 15", "26.2.1.3", |v| {
        let length = v.get(Field::EntryInstructionLength);
        event(v).is_none_or(|event| !(4..=6).contains(&event.kind) || (1..=15).contains(&length))
    }),
    check("VM-entry MSR-load area aligned, within the physical-address width", "26.2.1.3", |v| {
        v.is_msr_area(Field::EntryMsrLoadCount, Field::EntryMsrLoadAddress)
    }),
];

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
    /// Other event; it needs the monitor trap flag, which is not modelled.
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
}

/// The event that the VMCS asks to inject.
#[must_use]
pub fn event(view: &View<'_>) -> Option<EntryEvent> {
    EntryEvent::decode(view.get(Field::EntryInterruptionInformation) as u32)
}

/// An error code goes with #DF, #TS, #NP, #SS, #GP, #PF and #AC, not in real-address mode.
fn should_have_error(view: &View<'_>, event: EntryEvent) -> bool {
    let real = view.unrestricted() && view.get(Field::GuestCr0) & 1 == 0;
    event.kind == kind::HARDWARE_EXCEPTION && matches!(event.vector, 8 | 10..=14 | 17) && !real
}
