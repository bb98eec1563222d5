//! The shadow stack: pushes, pops and locked exchanges that take effect on SSP only when the whole instruction can, and
//! what near CALL and RET do with it (SDM 1 17.2; SDM 2 CALL, RET).
//!
//! All accesses are shadow-stack accesses of the level that the stack belongs to (SDM 3A 4.6). Addresses are 64 bits wide
//! in 64-bit mode, where they must be canonical, and wrap at 32 bits elsewhere.

use crate::access::{Span, privilege_of};
use crate::exec::Fault;
use crate::exec::cet::{self, Cause};
use crate::exec::context::{Context, mask};
use sim_core::addr::Gva;
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::exception::Exception;

/// How wide the addresses of a shadow stack are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    Bits32,
    Bits64,
}

/// A shadow stack being pushed to or popped from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShadowStack {
    pub(crate) pointer: u64,
    pub(crate) width: Width,
    pub(crate) privilege: Privilege,
}

impl ShadowStack {
    /// The current shadow stack.
    pub(crate) fn current(cx: &Context<'_>) -> Self {
        Self::new(cx.core.ssp, Width::of(cx), cx.core.cpl())
    }

    /// The shadow stack of a privilege level.
    pub(crate) const fn new(pointer: u64, width: Width, cpl: u8) -> Self {
        Self { pointer, width, privilege: privilege_of(cpl) }
    }

    /// The same shadow stack with another pointer.
    pub(crate) const fn at(self, pointer: u64) -> Self {
        Self { pointer, ..self }
    }

    /// Reads what lies `offset` bytes above the pointer.
    pub(crate) fn load(&self, cx: &mut Context<'_>, offset: u64, bytes: usize) -> Result<u64, Fault> {
        let span = self.span(cx, self.pointer.wrapping_add(offset), bytes, AccessKind::Read)?;
        Ok(cx.load(&span) as u64)
    }

    /// Writes where the pointer points to.
    pub(crate) fn store(&self, cx: &mut Context<'_>, value: u64, bytes: usize) -> Result<(), Fault> {
        let span = self.span(cx, self.pointer, bytes, AccessKind::Write)?;
        cx.store(&span, u128::from(value & mask(bytes)));
        Ok(())
    }

    /// Pushes the low `bytes` bytes of a value.
    pub(crate) fn push(&mut self, cx: &mut Context<'_>, value: u64, bytes: usize) -> Result<(), Fault> {
        let below = self.at(self.pointer.wrapping_sub(bytes as u64));
        below.store(cx, value, bytes)?;
        self.pointer = self.width.wrap(below.pointer);
        Ok(())
    }

    /// Pops `bytes` bytes, zero-extended.
    pub(crate) fn pop(&mut self, cx: &mut Context<'_>, bytes: usize) -> Result<u64, Fault> {
        let value = self.load(cx, 0, bytes)?;
        self.pointer = self.width.wrap(self.pointer.wrapping_add(bytes as u64));
        Ok(value)
    }

    /// Replaces the quadword where the pointer points to by what `replace` makes of it, with the bus locked; returns what
    /// it was. A value that does not change is written back.
    pub(crate) fn exchange(&self, cx: &mut Context<'_>, replace: impl FnOnce(u64) -> u64) -> Result<u64, Fault> {
        let span = self.span(cx, self.pointer, 8, AccessKind::Write)?;
        let old = cx.load(&span) as u64;
        cx.store(&span, u128::from(replace(old)));
        Ok(old)
    }

    fn span(&self, cx: &mut Context<'_>, address: u64, bytes: usize, kind: AccessKind) -> Result<Span, Fault> {
        let address = Gva(self.width.wrap(address));
        let linear_width = cx.core.linear_width();
        let reached = self.width == Width::Bits32
            || (address.is_canonical(linear_width) && address.offset(bytes as u64 - 1).is_canonical(linear_width));
        if !reached {
            return Err(Exception::gp0().into());
        }
        cx.span(address, bytes, Access { shadow_stack: true, ..Access::new(kind, self.privilege) })
    }
}

impl Width {
    /// The width of the code being run.
    pub(crate) const fn of(cx: &Context<'_>) -> Self {
        if cx.is_64bit() { Self::Bits64 } else { Self::Bits32 }
    }

    /// A pointer in this width.
    pub(crate) const fn wrap(self, pointer: u64) -> u64 {
        match self {
            Self::Bits32 => pointer & 0xffff_ffff,
            Self::Bits64 => pointer,
        }
    }
}

/// The bytes of a return address: 2 take as many as 4.
const fn near_bytes(size: usize) -> usize {
    if size == 8 { 8 } else { 4 }
}

/// Near CALL: the last thing that may fault.
pub(crate) fn call(cx: &mut Context<'_>, next: u64, size: usize) -> Result<(), Fault> {
    if cet::has_shadow_stack(cx.core, cx.core.cpl()) {
        let mut shadow = ShadowStack::current(cx);
        shadow.push(cx, next & mask(size), near_bytes(size))?;
        cx.core.ssp = shadow.pointer;
    }
    Ok(())
}

/// Near RET: #CP unless both stacks name the same address; the last thing that may fault.
pub(crate) fn ret(cx: &mut Context<'_>, target: u64, size: usize) -> Result<(), Fault> {
    if cet::has_shadow_stack(cx.core, cx.core.cpl()) {
        let mut shadow = ShadowStack::current(cx);
        if shadow.pop(cx, near_bytes(size))? != target {
            return Err(cet::control_protection(Cause::NearReturn).into());
        }
        cx.core.ssp = shadow.pointer;
    }
    Ok(())
}
