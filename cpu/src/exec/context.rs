//! What an instruction can reach: the processor, memory, the translation regime in force, and its own length.
//!
//! Only functions that may be intercepted also take the extension; the regime is fixed while one instruction runs.

use crate::core::{Bitness, Blocking, Core, Gpr};
use crate::exec::Fault;
use crate::virt::{At, Regime, Trap, Verdict, Virt};
use iced_x86::Register;
use sim_core::Ground;
use sim_core::arch::control::{Cr0, Efer};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::Segment;

/// One instruction's view of the machine.
pub(crate) struct Context<'a> {
    pub(crate) core: &'a mut Core,
    pub(crate) ground: &'a mut Ground,
    pub(crate) regime: Regime,
    pub(crate) at: At,
    pub(crate) effects: Effects,
}

/// What an instruction leaves for the boundary behind it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Effects {
    /// Blocking that it starts and that lasts for one more instruction.
    pub(crate) shadow: Blocking,
    /// It has loaded RF itself.
    pub(crate) keeps_resume: bool,
    /// Data breakpoints that it met, as pending debug exceptions.
    pub(crate) breakpoints: u64,
}

const GPRS: [Gpr; 16] = [
    Gpr::Rax,
    Gpr::Rcx,
    Gpr::Rdx,
    Gpr::Rbx,
    Gpr::Rsp,
    Gpr::Rbp,
    Gpr::Rsi,
    Gpr::Rdi,
    Gpr::R8,
    Gpr::R9,
    Gpr::R10,
    Gpr::R11,
    Gpr::R12,
    Gpr::R13,
    Gpr::R14,
    Gpr::R15,
];

/// The general-purpose register that holds `register` or that `register` is a part of.
pub(crate) fn gpr_of(register: Register) -> Gpr {
    GPRS[register.full_register().number() & 15]
}

/// The low `bytes` bytes set.
pub(crate) const fn mask(bytes: usize) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 }
}

/// Sign-extends the low `bytes` bytes.
pub(crate) const fn sign_extend(value: u64, bytes: usize) -> u64 {
    let unused = 64 - 8 * bytes as u32;
    (((value << unused) as i64) >> unused) as u64
}

impl<'a> Context<'a> {
    pub(crate) fn new<V: Virt>(core: &'a mut Core, virt: &V, ground: &'a mut Ground) -> Self {
        let regime = virt.regime(core);
        Self { core, ground, regime, at: At::default(), effects: Effects::default() }
    }

    /// Asks the extension whether `trap` is intercepted.
    pub(crate) fn ask<V: Virt>(&mut self, virt: &mut V, trap: &Trap) -> Result<(), Fault> {
        match virt.trap(self.core, self.ground, trap, self.at)? {
            Verdict::Continue => Ok(()),
            Verdict::Exited => Err(Fault::Exited),
            Verdict::Raise(exception) => Err(exception.into()),
        }
    }

    /// #GP(0) unless CPL is 0.
    pub(crate) fn require_cpl0(&self) -> Result<(), Fault> {
        if self.core.cpl() == 0 { Ok(()) } else { Err(Exception::gp0().into()) }
    }

    /// Whether IA-32e mode is active (SDM 3A 2.2.1).
    pub(crate) const fn is_long_mode(&self) -> bool {
        self.core.efer.contains(Efer::LMA)
    }

    /// Whether 64-bit code runs.
    pub(crate) const fn is_64bit(&self) -> bool {
        matches!(self.core.bitness(), Bitness::Bits64)
    }

    /// Whether CR0.PE is clear.
    pub(crate) const fn is_real_mode(&self) -> bool {
        !self.core.cr0.contains(Cr0::PE)
    }

    pub(crate) const fn flag(&self, flag: Rflags) -> bool {
        self.core.rflags.intersects(flag)
    }

    /// The offset of the next instruction.
    pub(crate) fn next_rip(&self) -> u64 {
        self.wrap_rip(self.core.rip.wrapping_add(u64::from(self.at.length)))
    }

    /// An instruction pointer in the width of the code being run; outside 64-bit mode EIP is 32 bits wide and the CS
    /// limit, not the width, is what stops it.
    pub(crate) const fn wrap_rip(&self, rip: u64) -> u64 {
        if self.is_64bit() { rip } else { rip & 0xffff_ffff }
    }

    /// A segment register by its name.
    pub(crate) const fn segment(&self, name: Register) -> Segment {
        let segments = &self.core.segments;
        match name {
            Register::ES => segments.es,
            Register::CS => segments.cs,
            Register::SS => segments.ss,
            Register::FS => segments.fs,
            Register::GS => segments.gs,
            _ => segments.ds,
        }
    }

    /// A segment register by its name, to be written.
    pub(crate) const fn segment_mut(&mut self, name: Register) -> &mut Segment {
        let segments = &mut self.core.segments;
        match name {
            Register::ES => &mut segments.es,
            Register::CS => &mut segments.cs,
            Register::SS => &mut segments.ss,
            Register::FS => &mut segments.fs,
            Register::GS => &mut segments.gs,
            _ => &mut segments.ds,
        }
    }

    /// Reads a general-purpose register, a part of one, or a selector, zero-extended.
    pub(crate) fn register(&self, register: Register) -> u64 {
        if register.is_segment_register() {
            return u64::from(self.segment(register).selector);
        }
        let whole = self.core.gpr(gpr_of(register));
        let value = if is_high_byte(register) { whole >> 8 } else { whole };
        value & mask(register.size())
    }

    /// Writes a general-purpose register or a part of one: 32 bits clear the upper half, 8 and 16 bits leave the rest
    /// (SDM 1 3.4.1.1).
    pub(crate) fn set_register(&mut self, register: Register, value: u64) {
        let name = gpr_of(register);
        let old = self.core.gpr(name);
        let new = match register.size() {
            1 if is_high_byte(register) => (old & !0xff00) | ((value & 0xff) << 8),
            1 => (old & !0xff) | (value & 0xff),
            2 => (old & !0xffff) | (value & 0xffff),
            4 => value & 0xffff_ffff,
            _ => value,
        };
        self.core.set_gpr(name, new);
    }

    /// Replaces the flags named by `which`.
    pub(crate) fn set_flags(&mut self, which: Rflags, value: Rflags) {
        self.core.rflags = self.core.rflags.difference(which).union(value.intersection(which)).union(Rflags::FIXED);
    }
}

const fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}
