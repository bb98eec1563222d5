//! A machine with control-flow enforcement, for the tests of shadow stacks.

use super::{CODE, DATA, IDT, Machine, RING0_STACK, TSS};
use cpu::profile::Features;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use sim_core::Hpa;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::Vector;
use sim_core::arch::segment::{Rights, Segment};

pub(crate) type Emit = fn(&mut CodeAssembler) -> Result<(), IcedError>;
pub(crate) type Fault = (Vector, Option<u32>);
pub(crate) type Make = fn() -> Machine;
pub(crate) type Change = fn(&mut Machine);
pub(crate) type After = fn(&Machine) -> bool;
/// A name, the machine, the instruction, what else is made of the machine, and the fault.
pub(crate) type Refusal = (&'static str, Make, Emit, Change, Fault);

pub(crate) const UD: Fault = (Vector::InvalidOpcode, None);
pub(crate) const GP0: Fault = (Vector::GeneralProtection, Some(0));
pub(crate) const NEAR_RET: Fault = (Vector::ControlProtection, Some(1));
pub(crate) const FAR_RET: Fault = (Vector::ControlProtection, Some(2));
pub(crate) const RSTORSSP: Fault = (Vector::ControlProtection, Some(4));
pub(crate) const SETSSBSY: Fault = (Vector::ControlProtection, Some(5));
/// #PF: present, write, shadow stack; and a user's.
pub(crate) const PF_WRITE: Fault = (Vector::PageFault, Some(0x43));
pub(crate) const PF_USER_WRITE: Fault = (Vector::PageFault, Some(0x47));

pub(crate) const SH_STK_EN: u64 = 1 << 0;
pub(crate) const WR_SHSTK_EN: u64 = 1 << 1;
pub(crate) const ENDBR_EN: u64 = 1 << 2;
pub(crate) const TRACKER: u64 = 1 << 11;

/// A supervisor's and a user's shadow stack, and where their pointers are at first.
pub(crate) const SUPERVISOR: u64 = DATA + 0x1_0800;
pub(crate) const USER: u64 = DATA + 0x1_1800;
/// The tokens of IA32_PL0_SSP and of the interrupt SSP table's first entry, and that table.
pub(crate) const ENTRY: u64 = DATA + 0x1_2ff8;
pub(crate) const INTERRUPT: u64 = DATA + 0x1_3ff8;
pub(crate) const TABLE: u64 = DATA + 0x1_4000;
pub(crate) const OTHER: u64 = 0x9_4000;

/// 64-bit mode with shadow stacks at every level. Every gate has a stack of its own by IST 1.
pub(crate) fn enforced() -> Machine {
    let mut machine = Machine::long64();
    machine.core.features |= Features::CET_SS | Features::CET_IBT;
    machine.core.cr4 |= Cr4::CET;
    for (page, flags) in [(0x10, 0x61), (0x11, 0x65), (0x12, 0x61), (0x13, 0x61)] {
        machine.set_page(page, (DATA + (page << 12)) | flags);
    }
    let memory = &mut machine.ground.mem;
    memory.write_u64(Hpa(ENTRY), ENTRY);
    memory.write_u64(Hpa(INTERRUPT), INTERRUPT);
    memory.write_u64(Hpa(TABLE + 8), INTERRUPT);
    memory.write_u64(Hpa(TSS + 0x24), RING0_STACK);
    for vector in 0..32 {
        memory.write(Hpa(IDT + 16 * vector + 4), 1, 1);
    }
    let core = &mut machine.core;
    core.msrs.interrupt_ssp_table = TABLE;
    core.msrs.pl_ssp[0] = ENTRY;
    (core.msrs.s_cet, core.msrs.u_cet) = (SH_STK_EN, SH_STK_EN);
    core.ssp = SUPERVISOR;
    machine
}

pub(crate) fn user() -> Machine {
    let mut machine = enforced();
    machine.drop_to_user();
    machine.core.ssp = USER;
    machine
}

pub(crate) fn without_ist(machine: &mut Machine, vector: u64) {
    machine.ground.mem.write(Hpa(IDT + 16 * vector + 4), 0, 1);
}

pub(crate) fn compatibility(machine: &mut Machine) {
    machine.core.segments.cs = Segment::flat(0x43, Rights(Rights::CODE32.0 | 0x60));
}

pub(crate) fn raw(machine: &mut Machine, bytes: &[u8]) {
    machine.ground.mem.write_bytes(Hpa(CODE), bytes);
}

/// What stands on a shadow stack from an address on.
pub(crate) fn quads(machine: &Machine, at: u64) -> [u64; 3] {
    [0, 8, 16].map(|offset| machine.quad(at + offset))
}
