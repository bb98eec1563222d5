//! Checks on the VM-execution and VM-exit control fields (SDM 3C 26.2.1.1, 26.2.1.2).

use super::draft::TOO_WIDE;
use super::{Check, View, table};
use crate::controls::{ExitControls as Exit, PinBased as Pin, PrimaryProc as Primary, SecondaryProc as Secondary};
use crate::vmcs::Field;

/// What `control` demands of the rest.
fn demands(active: bool, rule: impl FnOnce() -> bool) -> bool {
    !active || rule()
}

/// The page that a field points to, if a secondary control uses it.
fn page_of(v: &View<'_>, control: Secondary, field: Field) -> bool {
    demands(v.has(control), || v.is_page(v.get(field)))
}

/// The virtual task priority, bits 7:4 of byte 80H of the virtual-APIC page.
fn virtual_priority(v: &View<'_>) -> u64 {
    let page = sim_core::Hpa(v.get(Field::VirtualApicAddress));
    v.ground.mem.read(page.offset(0x80), 1) >> 4
}

/// The VM-execution control fields.
pub static EXECUTION: &[Check] = table! { "26.2.1.1":
    "pin-based controls within the allowed settings", |v| v.capabilities.pin.permits(v.pin().bits()),
        |d| d.change(Field::PinBasedControls, 1 << 31, 0);
    "primary controls within the allowed settings", |v| v.capabilities.primary.permits(v.primary().bits()),
        |d| d.change(Field::PrimaryControls, 0, 1 << 1);
    "secondary controls within the allowed settings", |v| v.capabilities.secondary.permits(v.secondary().bits()),
        |d| d.change(Field::SecondaryControls, 1 << 31, 0);
    "CR3-target count at most 4", |v| v.get(Field::Cr3TargetCount) <= 4, |d| d.set(Field::Cr3TargetCount, 5);
    "I/O bitmaps 4 KiB aligned, within the physical-address width",
        |v| demands(v.primary().contains(Primary::USE_IO_BITMAPS), || {
            [Field::IoBitmapA, Field::IoBitmapB].into_iter().all(|field| v.is_page(v.get(field)))
        }),
        |d| {
            d.primary(Primary::USE_IO_BITMAPS);
            d.set(Field::IoBitmapB, 0x5800);
        };
    "MSR bitmaps 4 KiB aligned, within the physical-address width",
        |v| demands(v.primary().contains(Primary::USE_MSR_BITMAPS), || v.is_page(v.get(Field::MsrBitmaps))),
        |d| {
            d.primary(Primary::USE_MSR_BITMAPS);
            d.set(Field::MsrBitmaps, TOO_WIDE);
        };
    "virtual-APIC page 4 KiB aligned, within the physical-address width",
        |v| demands(v.tpr_shadow(), || v.is_page(v.get(Field::VirtualApicAddress))),
        |d| {
            d.tpr_shadow();
            d.change(Field::VirtualApicAddress, 0x10, 0);
        };
    "TPR threshold bits 31:4 zero without virtual-interrupt delivery",
        |v| demands(v.tpr_shadow() && !v.has(Secondary::VIRTUAL_INTERRUPT_DELIVERY), || {
            v.get(Field::TprThreshold) >> 4 == 0
        }),
        |d| {
            d.tpr_shadow();
            d.set(Field::TprThreshold, 0x10);
        };
    "TPR threshold not above the virtual task priority",
        |v| {
            let virtualized = Secondary::VIRTUAL_INTERRUPT_DELIVERY | Secondary::VIRTUALIZE_APIC_ACCESSES;
            demands(v.tpr_shadow() && !v.secondary().intersects(virtualized), || {
                v.get(Field::TprThreshold) & 0xf <= virtual_priority(v)
            })
        },
        |d| {
            d.tpr_shadow();
            d.set(Field::TprThreshold, 1);
        };
    "virtual NMIs only with NMI exiting",
        |v| demands(v.pin().contains(Pin::VIRTUAL_NMIS), || v.pin().contains(Pin::NMI_EXITING)),
        |d| d.pin(Pin::VIRTUAL_NMIS);
    "NMI-window exiting only with virtual NMIs",
        |v| demands(v.primary().contains(Primary::NMI_WINDOW_EXITING), || v.pin().contains(Pin::VIRTUAL_NMIS)),
        |d| d.primary(Primary::NMI_WINDOW_EXITING);
    "APIC-access page 4 KiB aligned, within the physical-address width",
        |v| page_of(v, Secondary::VIRTUALIZE_APIC_ACCESSES, Field::ApicAccessAddress),
        |d| {
            d.secondary(Secondary::VIRTUALIZE_APIC_ACCESSES);
            d.set(Field::ApicAccessAddress, TOO_WIDE);
        };
    "APIC virtualization only with the TPR shadow",
        |v| {
            let needing = Secondary::VIRTUALIZE_X2APIC_MODE
                | Secondary::APIC_REGISTER_VIRTUALIZATION
                | Secondary::VIRTUAL_INTERRUPT_DELIVERY;
            demands(v.secondary().intersects(needing), || v.tpr_shadow())
        },
        |d| d.secondary(Secondary::APIC_REGISTER_VIRTUALIZATION);
    "x2APIC mode not virtualized with APIC accesses",
        |v| !v.has(Secondary::VIRTUALIZE_X2APIC_MODE | Secondary::VIRTUALIZE_APIC_ACCESSES),
        |d| {
            d.tpr_shadow();
            d.secondary(Secondary::VIRTUALIZE_X2APIC_MODE | Secondary::VIRTUALIZE_APIC_ACCESSES);
        };
    "virtual-interrupt delivery only with external-interrupt exiting",
        |v| demands(v.has(Secondary::VIRTUAL_INTERRUPT_DELIVERY), || {
            v.pin().contains(Pin::EXTERNAL_INTERRUPT_EXITING)
        }),
        |d| {
            d.tpr_shadow();
            d.secondary(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
        };
    "posted interrupts only with virtual-interrupt delivery and acknowledgement on exit",
        |v| demands(v.pin().contains(Pin::PROCESS_POSTED_INTERRUPTS), || {
            v.has(Secondary::VIRTUAL_INTERRUPT_DELIVERY) && v.exit().contains(Exit::ACKNOWLEDGE_INTERRUPT_ON_EXIT)
        }),
        |d| d.pin(Pin::PROCESS_POSTED_INTERRUPTS);
    "posted-interrupt notification vector at most 255",
        |v| demands(v.pin().contains(Pin::PROCESS_POSTED_INTERRUPTS), || {
            v.get(Field::PostedInterruptVector) >> 8 == 0
        }),
        |d| {
            posted(d);
            d.set(Field::PostedInterruptVector, 0x100);
        };
    "posted-interrupt descriptor 64-byte aligned, within the physical-address width",
        |v| demands(v.pin().contains(Pin::PROCESS_POSTED_INTERRUPTS), || {
            let descriptor = v.get(Field::PostedInterruptDescriptor);
            descriptor & 0x3f == 0 && v.within_width(descriptor)
        }),
        |d| {
            posted(d);
            d.set(Field::PostedInterruptDescriptor, 0x20);
        };
    "VPID not 0000H", |v| demands(v.has(Secondary::ENABLE_VPID), || v.get(Field::Vpid) != 0),
        |d| d.set(Field::Vpid, 0);
    "EPTP valid", |v| demands(v.has(Secondary::ENABLE_EPT), || v.is_eptp(v.get(Field::EptPointer))),
        |d| d.set(Field::EptPointer, 0x9000 | 3 << 3 | 1);
    "page-modification logging only with EPT",
        |v| demands(v.has(Secondary::ENABLE_PML), || v.has(Secondary::ENABLE_EPT)),
        |d| {
            d.without(Secondary::ENABLE_EPT);
            d.secondary(Secondary::ENABLE_PML);
        };
    "PML address 4 KiB aligned, within the physical-address width",
        |v| page_of(v, Secondary::ENABLE_PML, Field::PmlAddress),
        |d| {
            d.secondary(Secondary::ENABLE_PML);
            d.set(Field::PmlAddress, 0x800);
        };
    "unrestricted guest only with EPT",
        |v| demands(v.unrestricted(), || v.has(Secondary::ENABLE_EPT)),
        |d| {
            d.without(Secondary::ENABLE_EPT);
            d.secondary(Secondary::UNRESTRICTED_GUEST);
        };
    "mode-based execute control only with EPT",
        |v| demands(v.has(Secondary::MODE_BASED_EXECUTE_CONTROL), || v.has(Secondary::ENABLE_EPT)),
        |d| {
            d.without(Secondary::ENABLE_EPT);
            d.secondary(Secondary::MODE_BASED_EXECUTE_CONTROL);
        };
    "sub-page write permissions only with EPT",
        |v| demands(v.has(Secondary::SUB_PAGE_WRITE_PERMISSIONS), || v.has(Secondary::ENABLE_EPT)),
        |d| {
            d.without(Secondary::ENABLE_EPT);
            d.secondary(Secondary::SUB_PAGE_WRITE_PERMISSIONS);
        };
    "sub-page-permission table 4 KiB aligned, within the physical-address width",
        |v| page_of(v, Secondary::SUB_PAGE_WRITE_PERMISSIONS, Field::SubPagePermissionTable),
        |d| {
            d.secondary(Secondary::SUB_PAGE_WRITE_PERMISSIONS);
            d.set(Field::SubPagePermissionTable, 0x800);
        };
    "VM-function controls within the allowed settings",
        |v| demands(v.has(Secondary::ENABLE_VM_FUNCTIONS), || {
            v.get(Field::VmFunctionControls) & !v.capabilities.functions == 0
        }),
        |d| {
            d.secondary(Secondary::ENABLE_VM_FUNCTIONS);
            d.set(Field::VmFunctionControls, 2);
        };
    "EPTP switching only with EPT",
        |v| demands(switches_eptp(v), || v.has(Secondary::ENABLE_EPT)),
        |d| {
            d.without(Secondary::ENABLE_EPT);
            d.secondary(Secondary::ENABLE_VM_FUNCTIONS);
            d.set(Field::VmFunctionControls, 1);
        };
    "EPTP list 4 KiB aligned, within the physical-address width",
        |v| demands(switches_eptp(v), || v.is_page(v.get(Field::EptpListAddress))),
        |d| {
            d.secondary(Secondary::ENABLE_VM_FUNCTIONS);
            d.set_all(&[(Field::VmFunctionControls, 1), (Field::EptpListAddress, 0x800)]);
        };
    "VMREAD bitmap 4 KiB aligned, within the physical-address width",
        |v| page_of(v, Secondary::VMCS_SHADOWING, Field::VmreadBitmap),
        |d| {
            d.secondary(Secondary::VMCS_SHADOWING);
            d.set(Field::VmreadBitmap, 0x800);
        };
    "VMWRITE bitmap 4 KiB aligned, within the physical-address width",
        |v| page_of(v, Secondary::VMCS_SHADOWING, Field::VmwriteBitmap),
        |d| {
            d.secondary(Secondary::VMCS_SHADOWING);
            d.set(Field::VmwriteBitmap, TOO_WIDE);
        };
    "virtualization-exception information 4 KiB aligned, within the physical-address width",
        |v| page_of(v, Secondary::EPT_VIOLATION_VE, Field::VeInformationAddress),
        |d| {
            d.secondary(Secondary::EPT_VIOLATION_VE);
            d.set(Field::VeInformationAddress, 0x800);
        };
    "processor trace uses guest-physical addresses only with EPT",
        |v| demands(v.has(Secondary::PT_USES_GUEST_PHYSICAL), || v.has(Secondary::ENABLE_EPT)),
        |d| {
            d.without(Secondary::ENABLE_EPT);
            d.secondary(Secondary::PT_USES_GUEST_PHYSICAL);
        };
    "TSC multiplier not 0", |v| demands(v.has(Secondary::USE_TSC_SCALING), || v.get(Field::TscMultiplier) != 0),
        |d| d.secondary(Secondary::USE_TSC_SCALING);
};

/// The VM-exit control fields.
pub static EXIT: &[Check] = table! { "26.2.1.2":
    "VM-exit controls within the allowed settings", |v| v.capabilities.exit.permits(v.exit().bits()),
        |d| d.change(Field::ExitControls, 0, 1);
    "preemption-timer value saved only with the timer",
        |v| demands(v.exit().contains(Exit::SAVE_PREEMPTION_TIMER), || {
            v.pin().contains(Pin::ACTIVATE_PREEMPTION_TIMER)
        }),
        |d| d.exit(Exit::SAVE_PREEMPTION_TIMER);
    "VM-exit MSR-store area aligned, within the physical-address width",
        |v| v.is_msr_area(Field::ExitMsrStoreCount, Field::ExitMsrStoreAddress),
        |d| d.set_all(&[(Field::ExitMsrStoreCount, 1), (Field::ExitMsrStoreAddress, 0x7008)]);
    "VM-exit MSR-load area aligned, within the physical-address width",
        |v| v.is_msr_area(Field::ExitMsrLoadCount, Field::ExitMsrLoadAddress),
        |d| {
            let last = (1 << d.core.maxphyaddr) - 16;
            d.set_all(&[(Field::ExitMsrLoadCount, 2), (Field::ExitMsrLoadAddress, last)]);
        };
};

/// Whether VM function 0 is enabled.
fn switches_eptp(v: &View<'_>) -> bool {
    v.has(Secondary::ENABLE_VM_FUNCTIONS) && v.get(Field::VmFunctionControls) & 1 != 0
}

/// Posted interrupts with all that they need.
fn posted(d: &mut super::Draft<'_>) {
    d.pin(Pin::PROCESS_POSTED_INTERRUPTS | Pin::EXTERNAL_INTERRUPT_EXITING);
    d.tpr_shadow();
    d.secondary(Secondary::VIRTUAL_INTERRUPT_DELIVERY);
    d.exit(Exit::ACKNOWLEDGE_INTERRUPT_ON_EXIT);
}
