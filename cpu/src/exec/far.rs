//! Far JMP, CALL and RET to code segments, also between 64-bit, compatibility and legacy code (SDM 3A 5.8.1, SDM 2
//! JMP, CALL, RET). Gates and task-state segments go to [`crate::exec::gate`].

use crate::access::kind;
use crate::exec::context::Context;
use crate::exec::gate::{self, Transfer};
use crate::exec::iret::{Return, return_far};
use crate::exec::segment::{Descriptor, gp, is_null, real_mode_segment, rpl, selector_fault};
use crate::exec::shadow_frame;
use crate::exec::stack::Stack;
use crate::exec::{Done, Fault, Flow};
use crate::virt::Virt;
use iced_x86::{Code, Instruction, MemorySize, OpKind};
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::Segment;

/// A far pointer.
#[derive(Clone, Copy)]
struct Pointer {
    selector: u16,
    offset: u64,
    /// Operand size: 2, 4 or 8.
    bytes: usize,
}

/// The operand size of a far pointer in memory, if the operand is one.
fn pointer_bytes(insn: &Instruction) -> Option<usize> {
    match insn.memory_size() {
        MemorySize::SegPtr16 => Some(2),
        MemorySize::SegPtr32 => Some(4),
        MemorySize::SegPtr64 => Some(8),
        _ => None,
    }
}

/// Whether a JMP or CALL is far.
pub(crate) fn is_far(insn: &Instruction) -> bool {
    match insn.op0_kind() {
        OpKind::FarBranch16 | OpKind::FarBranch32 => true,
        OpKind::Memory => pointer_bytes(insn).is_some(),
        _ => false,
    }
}

fn pointer(cx: &mut Context<'_>, insn: &Instruction) -> Result<Pointer, Fault> {
    match insn.op0_kind() {
        OpKind::FarBranch16 => {
            let offset = u64::from(insn.far_branch16());
            Ok(Pointer { selector: insn.far_branch_selector(), offset, bytes: 2 })
        }
        OpKind::FarBranch32 => {
            let offset = u64::from(insn.far_branch32());
            Ok(Pointer { selector: insn.far_branch_selector(), offset, bytes: 4 })
        }
        _ => {
            let bytes = pointer_bytes(insn).unwrap_or(4);
            let span = cx.memory(insn, 0, bytes + 2, AccessKind::Read)?;
            let raw = cx.load(&span);
            let offset = raw as u64 & crate::exec::context::mask(bytes);
            Ok(Pointer { selector: (raw >> (8 * bytes)) as u16, offset, bytes })
        }
    }
}

/// #GP(0) unless code may run at `offset` of a code segment about to be loaded.
pub(crate) fn check_entry(cx: &Context<'_>, segment: &Segment, offset: u64, fault: Exception) -> Result<(), Fault> {
    let fits = if cx.is_long_mode() && segment.rights.is_long() {
        Gva(offset).is_canonical(cx.core.linear_width())
    } else {
        offset <= u64::from(segment.limit)
    };
    if fits { Ok(()) } else { Err(fault.into()) }
}

/// What the selector of a far pointer names.
enum Target {
    /// Code, as CS will hold it.
    Code(Segment),
    /// A gate, a task-state segment, or what can't be a target at all.
    System(Descriptor),
}

/// Checks the code segment of a far JMP or CALL, which never changes CPL, and returns it as CS will hold it.
fn direct_target(cx: &mut Context<'_>, selector: u16) -> Result<Target, Fault> {
    if is_null(selector) {
        return Err(Exception::gp0().into());
    }
    let descriptor = cx.descriptor(selector, gp(selector))?;
    let rights = descriptor.rights();
    let cpl = cx.core.cpl();
    if !rights.is_code_or_data() {
        return Ok(Target::System(descriptor));
    }
    let privileged =
        if descriptor.is_conforming() { rights.dpl() <= cpl } else { rpl(selector) <= cpl && rights.dpl() == cpl };
    if !descriptor.is_code() || !privileged || is_long_and_big(cx, &descriptor) {
        return Err(gp(selector).into());
    }
    if !rights.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector).into());
    }
    Ok(Target::Code(cx.mark_accessed(descriptor)?.segment((selector & !3) | u16::from(cpl))))
}

/// In IA-32e mode a code segment with L = 1 and D = 1 is reserved (SDM 3A 5.2.1).
pub(crate) const fn is_long_and_big(cx: &Context<'_>, descriptor: &Descriptor) -> bool {
    cx.is_long_mode() && descriptor.rights().is_long() && descriptor.rights().is_big()
}

fn target(cx: &mut Context<'_>, to: Pointer) -> Result<Target, Fault> {
    let target = if cx.has_paragraphs() {
        Target::Code(real_mode_segment(cx.core.segments.cs, to.selector))
    } else {
        direct_target(cx, to.selector)?
    };
    if let Target::Code(segment) = &target {
        check_entry(cx, segment, to.offset, Exception::gp0())?;
    }
    Ok(target)
}

/// JMP far.
pub(crate) fn jmp<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let to = pointer(cx, insn)?;
    let segment = match target(cx, to)? {
        Target::Code(segment) => segment,
        Target::System(descriptor) => return gate::enter(cx, virt, Transfer::Jmp, to.selector, descriptor),
    };
    shadow_frame::jump(cx, &segment)?;
    cx.core.segments.cs = segment;
    cx.core.rip = to.offset;
    Ok(Flow::Jumped)
}

/// CALL far: pushes CS, then the return offset.
pub(crate) fn call<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let to = pointer(cx, insn)?;
    let segment = match target(cx, to)? {
        Target::Code(segment) => segment,
        Target::System(descriptor) => return gate::enter(cx, virt, Transfer::Call, to.selector, descriptor),
    };
    let (cs, next) = (cx.core.segments.cs.selector, cx.next_rip());
    let mut stack = Stack::current(cx);
    stack.push(cx, u64::from(cs), to.bytes)?;
    stack.push(cx, next, to.bytes)?;
    shadow_frame::call(cx, &segment)?;
    cx.commit_stack(&stack);
    cx.core.segments.cs = segment;
    cx.core.rip = to.offset;
    Ok(Flow::Jumped)
}

/// RET far, with bytes of arguments to release.
pub(crate) fn ret(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let release = if insn.op_count() == 1 { insn.immediate(0) & 0xffff } else { 0 };
    let size = match insn.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let mut stack = Stack::current(cx);
    let rip = stack.pop(cx, size)?;
    let cs = stack.pop(cx, size)? as u16;
    return_far(cx, &Return { rip, cs, size, flags: None, release, stack })
}

/// Whether a segment in a data-segment register must go when CPL rises above its DPL (SDM 3A 5.8.6).
pub(crate) const fn is_lost_at(segment: &Segment, cpl: u8) -> bool {
    let rights = segment.rights;
    let conforming = rights.kind() & (kind::CODE | kind::CONFORMING) == kind::CODE | kind::CONFORMING;
    !rights.is_unusable() && !conforming && rights.dpl() < cpl
}
