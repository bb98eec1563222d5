//! What VMRUN loads from the control area and the unit keeps while the guest runs.

use super::Intercepts;
use crate::capability::{Capabilities, Features};
use crate::checks::NestedPaging;
use crate::entry::second_stage;
use crate::exit::ExitCode;
use crate::vmcb::{Field, Image};
use cpu::virt::ControlRegister;
use cpu::{Core, SecondStage};
use serde::{Deserialize, Serialize};
use sim_core::Hpa;

/// The control area as the processor holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Controls {
    pub(crate) cr_reads: u16,
    pub(crate) cr_writes: u16,
    pub(crate) dr_reads: u16,
    pub(crate) dr_writes: u16,
    pub(crate) exceptions: u32,
    pub(crate) intercepts: Intercepts,
    pub(crate) iopm: Hpa,
    pub(crate) msrpm: Hpa,
    pub(crate) tsc_offset: u64,
    pub(crate) pause_count: u16,
    pub(crate) pause_threshold: u16,
    pub(crate) asid: u32,
    pub(crate) second: SecondStage,
    /// VMLOAD and VMSAVE of the guest translate rAX by the nested tables (APM2 15.33.1).
    pub(crate) virtual_vmload: bool,
    /// The guest may execute INVLPGB and TLBSYNC (APM2 15.16).
    pub(crate) invlpgb: bool,
}

/// A write that exits after it has finished (APM2 15.9): a trap, and not a fault as the other intercepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum WriteTrap {
    /// EFER.
    Efer,
    /// A control register, by its number.
    Cr(u8),
}

impl WriteTrap {
    /// The intercept bit.
    pub(crate) const fn intercept(self) -> Intercepts {
        match self {
            Self::Efer => Intercepts::EFER_TRAP,
            Self::Cr(number) => Intercepts::from_bits_truncate(Intercepts::CR0_TRAP.bits() << (number & 0xf)),
        }
    }

    /// The exit code.
    pub(crate) const fn code(self) -> ExitCode {
        match self {
            Self::Efer => ExitCode::EferWriteTrap,
            Self::Cr(number) => ExitCode::CrWriteTrap(number & 0xf),
        }
    }

    /// EXITINFO1: the new value.
    pub(crate) fn value(self, core: &Core) -> u64 {
        match self {
            Self::Efer => core.efer.bits(),
            Self::Cr(0) => core.cr0.bits(),
            Self::Cr(2) => core.cr2.0,
            Self::Cr(3) => core.cr3,
            Self::Cr(4) => core.cr4.bits(),
            Self::Cr(_) => u64::from(core.cr8),
        }
    }

    /// The trap of a control register's write.
    pub(crate) const fn of(register: ControlRegister) -> Self {
        Self::Cr(register.number())
    }
}

impl Controls {
    /// From a VMCB as VMRUN sees it; `core` still holds host state. What the processor lacks is off.
    pub(crate) fn load(core: &Core, image: &Image, nested: NestedPaging, capabilities: &Capabilities) -> Self {
        let field = |field| image.field(field);
        let pause = |feature, value| if capabilities.has(feature) { field(value) as u16 } else { 0 };
        let enabled = |place, bit: u64, feature| field(place) & bit != 0 && capabilities.has(feature);
        Self {
            cr_reads: field(Field::InterceptCrReads) as u16,
            cr_writes: field(Field::InterceptCrWrites) as u16,
            dr_reads: field(Field::InterceptDrReads) as u16,
            dr_writes: field(Field::InterceptDrWrites) as u16,
            exceptions: field(Field::InterceptExceptions) as u32,
            intercepts: Intercepts::of(image),
            iopm: Hpa(field(Field::IopmBase)),
            msrpm: Hpa(field(Field::MsrpmBase)),
            tsc_offset: field(Field::TscOffset),
            pause_count: pause(Features::PAUSE_FILTER, Field::PauseFilterCount),
            pause_threshold: pause(Features::PAUSE_THRESHOLD, Field::PauseFilterThreshold),
            asid: field(Field::Asid) as u32,
            second: second_stage(core, image, nested, capabilities),
            virtual_vmload: enabled(Field::VirtualExtensions, 1 << 1, Features::VIRTUAL_VMLOAD),
            invlpgb: enabled(Field::NestedControl, 1 << 7, Features::TLB_ICTL),
        }
    }

    /// Whether any write is to exit after it has finished.
    pub(crate) fn traps_writes(&self) -> bool {
        const TRAPS: Intercepts = Intercepts::EFER_TRAP
            .union(Intercepts::CR0_TRAP)
            .union(Intercepts::CR2_TRAP)
            .union(Intercepts::CR3_TRAP)
            .union(Intercepts::CR4_TRAP)
            .union(Intercepts::CR8_TRAP);
        self.intercepts.intersects(TRAPS)
    }
}
