//! Instruction semantics, on three floors: [`table`] maps a mnemonic to a function in one line, one file a family says
//! what its instructions do, and [`flags`] holds the pure arithmetic.
//!
//! Left out, and named when met: what changes the x87 unit, MMX, SSE floating point, SSE3 and later, AVX; the
//! extensions of virtual-8086 mode.

pub(crate) mod arith;
pub(crate) mod atomics;
pub(crate) mod bitfield;
pub(crate) mod bits;
pub(crate) mod branch;
pub(crate) mod broadcast;
pub(crate) mod cet;
pub(crate) mod condition;
pub(crate) mod context;
pub mod control;
pub mod cpuid;
pub(crate) mod debug;
pub(crate) mod decimal;
pub(crate) mod delivery;
pub(crate) mod extension;
pub(crate) mod far;
pub(crate) mod flagops;
pub mod flags;
pub(crate) mod frame;
pub(crate) mod gate;
pub(crate) mod ibt;
pub(crate) mod inner_stack;
pub(crate) mod interrupt;
pub(crate) mod invalidate;
pub(crate) mod io;
pub(crate) mod iret;
pub(crate) mod logic;
pub(crate) mod moves;
pub(crate) mod msr;
pub(crate) mod operand;
pub(crate) mod packed;
pub(crate) mod privileged;
pub(crate) mod probe;
pub(crate) mod segment;
pub(crate) mod shadow_frame;
pub(crate) mod shadow_instructions;
pub(crate) mod shadow_stack;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod syscall;
pub(crate) mod system;
pub mod table;
pub(crate) mod tables;
pub(crate) mod task;
pub(crate) mod vector;
pub(crate) mod virtual8086;
pub(crate) mod xstate;

use crate::virt::{Delivery, Movement, StageFault};
use sim_core::SimError;
use sim_core::arch::exception::Exception;

/// Why an instruction did not complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An exception is to be delivered.
    Exception(Exception),
    /// A second-stage translation failed: a VM-exit is due.
    Stage(StageFault),
    /// A VM-exit has already happened; the core holds host state.
    Exited,
    /// Something is not modelled.
    Sim(SimError),
}

impl Fault {
    /// Names something that is not modelled.
    pub(crate) fn unmodelled(what: impl Into<String>) -> Self {
        Self::Sim(SimError::unmodelled(what))
    }
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl From<StageFault> for Fault {
    fn from(fault: StageFault) -> Self {
        Self::Stage(fault)
    }
}

impl From<SimError> for Fault {
    fn from(error: SimError) -> Self {
        Self::Sim(error)
    }
}

/// Where control goes after an instruction that completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// To the next instruction.
    Next,
    /// The instruction has set rip itself.
    Jumped,
    /// A software interrupt or exception is to be delivered through the IDT.
    Software(Delivery),
    /// Into or out of a guest.
    Moved(Movement),
    /// To the next instruction, after an OUT.
    Out {
        /// The port.
        port: u16,
        /// Operand bytes.
        bytes: u8,
        /// The value written.
        value: u32,
    },
    /// The processor halts after the instruction.
    Halted,
    /// RSM has set rip itself, and the processor halts again.
    Resumed,
    /// The processor shuts down.
    Shutdown,
}

/// What an instruction's function returns.
pub(crate) type Done = Result<Flow, Fault>;
