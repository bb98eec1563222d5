//! The stack: pushes and pops that take effect only when the whole instruction can.
//!
//! A [`Stack`] is a cursor. Its pointer moves with each push or pop; nobody sees the movement until the instruction
//! commits it. SDM 1 6.2.3 (width), SDM 3A 6.12 and 6.14 (stack switches).

use crate::access::privilege_of;
use crate::core::{Bitness, Gpr};
use crate::exec::Fault;
use crate::exec::context::{Context, mask};
use iced_x86::Register;
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::Segment;

/// How stack addresses are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StackWidth {
    /// SP.
    Bits16,
    /// ESP.
    Bits32,
    /// RSP, without segmentation.
    Bits64,
}

impl StackWidth {
    /// The width that a stack segment gives outside 64-bit mode.
    pub(crate) const fn of_segment(segment: &Segment) -> Self {
        if segment.rights.is_big() { Self::Bits32 } else { Self::Bits16 }
    }

    const fn mask(self) -> u64 {
        match self {
            Self::Bits16 => 0xffff,
            Self::Bits32 => 0xffff_ffff,
            Self::Bits64 => u64::MAX,
        }
    }
}

/// A stack being pushed to or popped from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    segment: Segment,
    width: StackWidth,
    pointer: u64,
    cpl: u8,
    fault: Exception,
}

impl Stack {
    /// The current stack.
    pub(crate) fn current(cx: &Context<'_>) -> Self {
        let segment = cx.core.segments.ss;
        let width = match cx.core.bitness() {
            Bitness::Bits64 => StackWidth::Bits64,
            Bitness::Bits16 | Bitness::Bits32 => StackWidth::of_segment(&segment),
        };
        Self::new(segment, width, cx.core.gpr(Gpr::Rsp), cx.core.cpl())
    }

    /// A stack that is not loaded yet.
    pub(crate) const fn new(segment: Segment, width: StackWidth, pointer: u64, cpl: u8) -> Self {
        Self { segment, width, pointer, cpl, fault: Exception::with_error(Vector::StackFault, 0) }
    }

    /// The same stack, whose limit and canonical checks fail with this #SS error code.
    pub(crate) const fn failing_with(self, error: u32) -> Self {
        Self { fault: Exception::with_error(Vector::StackFault, error), ..self }
    }

    /// The same stack, its pointer moved up by `bytes`.
    pub(crate) const fn released(self, bytes: u64) -> Self {
        Self { pointer: self.pointer.wrapping_add(bytes), ..self }
    }

    /// The stack segment.
    pub(crate) const fn segment(&self) -> Segment {
        self.segment
    }

    /// The privilege level that the stack belongs to.
    pub(crate) const fn cpl(&self) -> u8 {
        self.cpl
    }

    /// The same stack with another pointer.
    pub(crate) const fn at(self, pointer: u64) -> Self {
        Self { pointer, ..self }
    }

    /// The pointer, whatever the width.
    pub(crate) const fn pointer(&self) -> u64 {
        self.pointer
    }

    /// Reads what the pointer points to, without moving it.
    pub(crate) fn peek(&self, cx: &mut Context<'_>, bytes: usize) -> Result<u64, Fault> {
        let span = self.span(cx, self.pointer, bytes, AccessKind::Read)?;
        Ok(cx.load(&span) as u64)
    }

    /// Faults as a write of `bytes` bytes at the pointer would.
    pub(crate) fn probe(&self, cx: &mut Context<'_>, bytes: usize) -> Result<(), Fault> {
        self.span(cx, self.pointer, bytes, AccessKind::Write).map(|_| ())
    }

    /// RSP as it becomes when the cursor is committed: only the bits of the width change.
    pub(crate) const fn rsp(&self, old: u64) -> u64 {
        match self.width {
            StackWidth::Bits16 => (old & !0xffff) | (self.pointer & 0xffff),
            StackWidth::Bits32 => self.pointer & 0xffff_ffff,
            StackWidth::Bits64 => self.pointer,
        }
    }

    /// Pushes the low `bytes` bytes of a value.
    pub(crate) fn push(&mut self, cx: &mut Context<'_>, value: u64, bytes: usize) -> Result<(), Fault> {
        let pointer = self.pointer.wrapping_sub(bytes as u64);
        let span = self.span(cx, pointer, bytes, AccessKind::Write)?;
        cx.store(&span, u128::from(value & mask(bytes)));
        self.pointer = pointer;
        Ok(())
    }

    /// Pops `bytes` bytes, zero-extended.
    pub(crate) fn pop(&mut self, cx: &mut Context<'_>, bytes: usize) -> Result<u64, Fault> {
        let span = self.span(cx, self.pointer, bytes, AccessKind::Read)?;
        self.pointer = self.pointer.wrapping_add(bytes as u64);
        Ok(cx.load(&span) as u64)
    }

    fn span(
        &self,
        cx: &mut Context<'_>,
        pointer: u64,
        bytes: usize,
        kind: AccessKind,
    ) -> Result<crate::access::Span, Fault> {
        let offset = pointer & self.width.mask();
        let address = match self.width {
            StackWidth::Bits64 => cx.canonical(&self.segment, Register::SS, offset, bytes),
            StackWidth::Bits16 | StackWidth::Bits32 => cx.limited(&self.segment, offset, bytes, kind),
        };
        let address = address.ok_or(self.fault)?;
        cx.span(address, bytes, Access::new(kind, privilege_of(self.cpl)))
    }
}

impl Context<'_> {
    /// Makes a cursor's pointer the stack pointer.
    pub(crate) fn commit_stack(&mut self, stack: &Stack) {
        let rsp = stack.rsp(self.core.gpr(Gpr::Rsp));
        self.core.set_gpr(Gpr::Rsp, rsp);
    }

    /// Pushes one value on the current stack.
    pub(crate) fn push(&mut self, value: u64, bytes: usize) -> Result<(), Fault> {
        let mut stack = Stack::current(self);
        stack.push(self, value, bytes)?;
        self.commit_stack(&stack);
        Ok(())
    }
}
