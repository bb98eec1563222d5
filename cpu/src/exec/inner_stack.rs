//! Stacks of inner privilege levels, from the task-state segment: what interrupts and call gates switch to (SDM 3A
//! 5.8.5, 6.12.1, 6.14.2). 16-bit, 32-bit and 64-bit task-state segments.

use crate::exec::Fault;
use crate::exec::context::Context;
use crate::exec::segment::{is_null, rpl, selector_fault};
use crate::exec::stack::{Stack, StackWidth};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::Segment;

/// A fault that names a selector and has this EXT bit.
pub(crate) const fn fault(vector: Vector, selector: u16, ext: u32) -> Exception {
    let plain = selector_fault(vector, selector);
    match plain.error {
        Some(error) => Exception::with_error(vector, error | ext),
        None => plain,
    }
}

/// Where the pointer of a level stands in a 16-bit or 32-bit task-state segment, and its bytes; the selector follows.
const fn place(tss: &Segment, cpl: u8) -> (u64, usize) {
    let level = cpl as u64;
    match tss.rights.kind() {
        1 | 3 => (2 + 4 * level, 2),
        _ => (4 + 8 * level, 4),
    }
}

/// Reads a field of the task-state segment; #TS with its selector if the limit does not reach so far.
pub(crate) fn field(cx: &mut Context<'_>, offset: u64, bytes: usize, ext: u32) -> Result<u64, Fault> {
    let tr = cx.core.segments.tr;
    if tr.rights.is_unusable() || offset + bytes as u64 - 1 > u64::from(tr.limit) {
        return Err(fault(Vector::InvalidTss, tr.selector, ext).into());
    }
    cx.read_system(tr.base.wrapping_add(offset), bytes)
}

/// RSP of an inner level in IA-32e mode.
pub(crate) fn long(cx: &mut Context<'_>, cpl: u8, ext: u32) -> Result<u64, Fault> {
    const RSP0: u64 = 0x04;
    field(cx, RSP0 + 8 * u64::from(cpl), 8, ext)
}

/// The stack of an inner level outside IA-32e mode.
pub(crate) fn legacy(cx: &mut Context<'_>, cpl: u8, ext: u32) -> Result<Stack, Fault> {
    let (at, bytes) = place(&cx.core.segments.tr, cpl);
    let pointer = field(cx, at, bytes, ext)?;
    let selector = field(cx, at + bytes as u64, 2, ext)? as u16;
    let segment = segment(cx, selector, cpl, ext)?;
    let error = u32::from(selector & 0xfffc) | ext;
    Ok(Stack::new(segment, StackWidth::of_segment(&segment), pointer, cpl).failing_with(error))
}

fn segment(cx: &mut Context<'_>, selector: u16, cpl: u8, ext: u32) -> Result<Segment, Fault> {
    let invalid = fault(Vector::InvalidTss, selector, ext);
    if is_null(selector) || rpl(selector) != cpl {
        return Err(invalid.into());
    }
    let descriptor = cx.descriptor(selector, invalid)?;
    if !descriptor.is_writable_data() || descriptor.rights().dpl() != cpl {
        return Err(invalid.into());
    }
    if !descriptor.rights().is_present() {
        return Err(fault(Vector::StackFault, selector, ext).into());
    }
    Ok(cx.mark_accessed(descriptor)?.segment(selector))
}
