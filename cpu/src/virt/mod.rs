//! The narrow hook through which a processor reaches its virtualization extension, and through which VMX and SVM see
//! the processor. The CPU asks three things: which translation regime is in force, whether something that is about to
//! happen is intercepted, and what an instruction of the extension itself does. Everything else stays on either side.

mod instruction;
mod regime;
mod trap;

pub use instruction::{At, MemoryOperand, Operands, VirtInstruction, VirtTarget};
pub use regime::{
    EptControls, EptFlags, FirstStage, HostPaging, NptControls, PageModificationLog, Regime, SecondStage, StageFault,
    StageFaultKind, StagePurpose, Tag,
};
pub use trap::{
    ControlRegister, Delivery, EventKind, ExtensionOpcode, StringIo, TableInstruction, TaskSwitchSource, Trap,
};

use crate::core::Core;
use crate::exec::Fault;
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use sim_core::arch::exception::Exception;
use sim_core::{Ground, SimError};

bitflags! {
    /// What holds events back, beside the processor's own flags and blocking: GIF, virtual interrupt masking.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
    pub struct HeldEvents: u8 {
        /// Maskable external interrupts.
        const INTERRUPT = 1 << 0;
        /// NMI.
        const NMI = 1 << 1;
        /// SMI.
        const SMI = 1 << 2;
        /// INIT.
        const INIT = 1 << 3;
        /// Data and instruction breakpoints and single-step traps.
        const DEBUG = 1 << 4;
        /// Not held back but let through: maskable interrupts do not look at RFLAGS.IF (VMX "external-interrupt exiting",
        /// SDM 3C 25.2; SVM with V_INTR_MASKING and the host's IF set, APM2 15.21.1).
        const INTERRUPT_UNMASKED = 1 << 5;
        /// NMIs do not look at blocking by NMI, which is that of virtual NMIs (SDM 3C 25.3).
        const NMI_UNBLOCKED = 1 << 6;
        /// IRET leaves blocking by NMI alone ("NMI exiting" without "virtual NMIs", SDM 3C 25.3).
        const IRET_KEEPS_NMI = 1 << 7;
    }
}

/// What became of something that might be intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Not intercepted: carry on.
    Continue,
    /// Intercepted: the VM-exit has happened and the core now holds host state.
    Exited,
    /// Not intercepted, but an exception comes in its place: #VE for an EPT violation (SDM 3C 25.5.7), #GP(0), #UD.
    Raise(Exception),
}

/// What became of an instruction of the extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VirtDone {
    /// Done (or VMfail, shown in RFLAGS): go on with the next instruction.
    Next,
    /// Control has moved (an entry, or an exit): the core's rip is already right.
    Moved(Movement),
}

/// Which way control moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Movement {
    /// Into a guest.
    Entered,
    /// Out of a guest.
    Exited,
}

/// A processor's virtualization extension, as its CPU sees it.
pub trait Virt {
    /// The translation regime of the current context.
    fn regime(&self, core: &Core) -> Regime;

    /// Asks whether `trap` is intercepted, and if so performs the VM-exit.
    ///
    /// # Errors
    /// If the exit needs something that is not modelled.
    fn trap(&mut self, core: &mut Core, ground: &mut Ground, trap: &Trap, at: At) -> Result<Verdict, SimError>;

    /// Executes an instruction of the extension. Operand faults are raised by the CPU before; this raises #UD, #GP
    /// and VM-exits of the instruction itself.
    ///
    /// # Errors
    /// The exception to deliver, or what is not modelled.
    fn instruction(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault>;

    /// What MOV from CR0 or CR4 shows (VMX read shadows, SDM 3C 25.3); `actual` elsewhere.
    fn cr_read(&self, ground: &Ground, register: ControlRegister, actual: u64) -> u64;

    /// The value that MOV to CR0 or CR4 gives the register, from the operand and the current value (VMX guest/host
    /// masks, SDM 3C 25.3); `operand` elsewhere.
    fn cr_write(&self, ground: &Ground, register: ControlRegister, current: u64, operand: u64) -> u64;

    /// Bits of CR0 and CR4 that may not be changed now, as (must be 1, must be 0) for the register (SDM 3C 23.8 in VMX
    /// operation).
    fn cr_fixed(&self, register: ControlRegister) -> (u64, u64);

    /// Reads an MSR that belongs to the extension; none if it has no such MSR.
    fn rdmsr(&self, core: &Core, index: u32) -> Option<Result<u64, Exception>>;

    /// Whether the extension wants to be asked [`Trap::Retired`] and [`Trap::Window`] around the next instruction. Cheap:
    /// it is asked before every one.
    fn attention(&self, core: &Core) -> bool {
        let _ = core;
        false
    }

    /// What the extension holds back, beside the processor's own flags and blocking.
    fn held(&self, core: &Core) -> HeldEvents {
        let _ = core;
        HeldEvents::empty()
    }

    /// What RDTSC shows at a time: offset and scaling (SDM 3C 25.3; APM2 15.30.5).
    fn tsc(&self, ground: &Ground, now: u64) -> u64 {
        let _ = ground;
        now
    }

    /// Writes an MSR that belongs to the extension; none if it has no such MSR.
    fn wrmsr(&mut self, core: &mut Core, index: u32, value: u64) -> Option<Result<(), Exception>>;
}
