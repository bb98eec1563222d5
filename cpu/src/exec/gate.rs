//! Call gates, and which system descriptors a far CALL or JMP may name (SDM 3A 5.8.2 to 5.8.5; SDM 2 CALL, JMP):
//! 16-bit and 32-bit call gates, task gates and TSSs outside IA-32e mode, 64-bit call gates in it.

use crate::core::Gpr;
use crate::exec::context::{Context, mask};
use crate::exec::far::{check_entry, is_long_and_big};
use crate::exec::segment::{Descriptor, gp, is_null, null_segment, rpl, selector_fault};
use crate::exec::shadow_frame::{self, Entry};
use crate::exec::stack::{Stack, StackWidth};
use crate::exec::task::{self, Switch};
use crate::exec::{Done, Fault, Flow, ibt, inner_stack};
use crate::virt::{TaskSwitchSource, Virt};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::{Rights, Segment};

/// The instruction that names the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transfer {
    Call,
    Jmp,
}

/// A call gate.
#[derive(Clone, Copy, Debug)]
struct CallGate {
    offset: u64,
    selector: u16,
    /// Parameters to copy to an inner stack.
    count: u8,
    /// What a push takes: 2, 4 or 8.
    bytes: usize,
}

const CALL_GATE_16: u32 = 0x4;
const TASK_GATE: u32 = 0x5;
const CALL_GATE: u32 = 0xc;
const TSS_16: u32 = 0x1;
const TSS_32: u32 = 0x9;

/// Goes where a system descriptor leads; descriptors that lead nowhere are #GP.
pub(crate) fn enter<V: Virt>(
    cx: &mut Context<'_>,
    virt: &mut V,
    transfer: Transfer,
    selector: u16,
    descriptor: Descriptor,
) -> Done {
    let source = match transfer {
        Transfer::Call => TaskSwitchSource::Call,
        Transfer::Jmp => TaskSwitchSource::Jmp,
    };
    match (descriptor.rights().kind(), cx.is_long_mode()) {
        (CALL_GATE, _) | (CALL_GATE_16, false) => {
            let gate = call_gate(cx, selector, &descriptor)?;
            through(cx, transfer, &gate)
        }
        (TASK_GATE, false) => {
            require_gate(cx, selector, descriptor.rights())?;
            let switch = Switch::by_instruction(cx, source);
            task::through_gate(cx, virt, (descriptor.raw >> 16) as u16, &switch)?;
            Ok(Flow::Jumped)
        }
        (TSS_16 | TSS_32, false) => {
            require_visible(cx, selector, descriptor.rights())?;
            let switch = Switch::by_instruction(cx, source);
            task::to(cx, virt, selector, descriptor, &switch)?;
            Ok(Flow::Jumped)
        }
        _ => Err(gp(selector).into()),
    }
}

fn require_visible(cx: &Context<'_>, selector: u16, rights: Rights) -> Result<(), Fault> {
    if cx.core.cpl().max(rpl(selector)) > rights.dpl() { Err(gp(selector).into()) } else { Ok(()) }
}

/// Privilege, then presence of a gate.
fn require_gate(cx: &Context<'_>, selector: u16, rights: Rights) -> Result<(), Fault> {
    require_visible(cx, selector, rights)?;
    if rights.is_present() { Ok(()) } else { Err(selector_fault(Vector::SegmentNotPresent, selector).into()) }
}

fn call_gate(cx: &mut Context<'_>, selector: u16, descriptor: &Descriptor) -> Result<CallGate, Fault> {
    let upper = if cx.is_long_mode() { upper_half(cx, selector, descriptor)? } else { 0 };
    require_gate(cx, selector, descriptor.rights())?;
    let raw = descriptor.raw;
    let bytes = match (cx.is_long_mode(), descriptor.rights().kind()) {
        (true, _) => 8,
        (false, CALL_GATE) => 4,
        (false, _) => 2,
    };
    let offset = (raw & 0xffff) | ((raw >> 48) << 16) | (upper << 32);
    let count = ((raw >> 32) & 0x1f) as u8;
    Ok(CallGate { offset: offset & mask(bytes), selector: (raw >> 16) as u16, count, bytes })
}

/// The second quadword of a 64-bit gate, whose type must be 0 (SDM 3A 5.8.3.1).
fn upper_half(cx: &mut Context<'_>, selector: u16, descriptor: &Descriptor) -> Result<u64, Fault> {
    let local = selector & 4 != 0;
    let limit = if local { cx.core.segments.ldtr.limit } else { u32::from(cx.core.gdtr.limit) };
    if u32::from(selector & 0xfff8) + 15 > limit {
        return Err(gp(selector).into());
    }
    let upper = cx.read_system(descriptor.at.wrapping_add(8), 8)?;
    if upper & (0x1f << 40) == 0 { Ok(upper) } else { Err(gp(selector).into()) }
}

/// Checks the code segment that a gate names; returns CS as it will be, and the new privilege level.
fn code_segment(cx: &mut Context<'_>, transfer: Transfer, gate: &CallGate) -> Result<(Segment, u8), Fault> {
    if is_null(gate.selector) {
        return Err(Exception::gp0().into());
    }
    let denied = gp(gate.selector);
    let descriptor = cx.descriptor(gate.selector, denied)?;
    let (rights, cpl) = (descriptor.rights(), cx.core.cpl());
    let stays = transfer == Transfer::Jmp && !descriptor.is_conforming();
    let privileged = if stays { rights.dpl() == cpl } else { rights.dpl() <= cpl };
    let wide = !cx.is_long_mode() || (rights.is_long() && !is_long_and_big(cx, &descriptor));
    if !descriptor.is_code() || !privileged || !wide {
        return Err(denied.into());
    }
    if !rights.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, gate.selector).into());
    }
    let level = if descriptor.is_conforming() { cpl } else { rights.dpl() };
    let selector = (gate.selector & !3) | u16::from(level);
    Ok((cx.mark_accessed(descriptor)?.segment(selector), level))
}

fn through(cx: &mut Context<'_>, transfer: Transfer, gate: &CallGate) -> Done {
    let (code, level) = code_segment(cx, transfer, gate)?;
    if transfer == Transfer::Call {
        push_frame(cx, gate, &code, level)?;
    } else {
        check_entry(cx, &code, gate.offset, Exception::gp0())?;
        ibt::track(cx.core, level);
    }
    cx.core.segments.cs = code;
    cx.core.rip = gate.offset;
    Ok(Flow::Jumped)
}

/// Pushes the return address, and on a change of level before it SS, rSP and the parameters of the outer stack.
fn push_frame(cx: &mut Context<'_>, gate: &CallGate, code: &Segment, level: u8) -> Result<(), Fault> {
    let inner = level < cx.core.cpl();
    let mut frame = Vec::new();
    let mut stack = if inner { inner_stack(cx, level)? } else { same_stack(cx, gate) };
    if inner {
        frame.extend([u64::from(cx.core.segments.ss.selector), cx.core.gpr(Gpr::Rsp)]);
        frame.extend(parameters(cx, gate)?.into_iter().rev());
    }
    frame.extend([u64::from(cx.core.segments.cs.selector), cx.next_rip()]);
    check_entry(cx, code, gate.offset, Exception::gp0())?;
    for value in frame {
        stack.push(cx, value, gate.bytes)?;
    }
    shadow_frame::enter(cx, &Entry { code: *code, cpl: level, ist: 0, return_rip: cx.next_rip() })?;
    if inner {
        cx.core.segments.ss = stack.segment();
    }
    cx.commit_stack(&stack);
    Ok(())
}

fn inner_stack(cx: &mut Context<'_>, level: u8) -> Result<Stack, Fault> {
    if !cx.is_long_mode() {
        return inner_stack::legacy(cx, level, 0);
    }
    let pointer = inner_stack::long(cx, level, 0)?;
    Ok(Stack::new(null_segment(u16::from(level), level), StackWidth::Bits64, pointer, level))
}

/// A 64-bit gate enters 64-bit code, also from compatibility mode, and so its pushes use all of RSP.
fn same_stack(cx: &Context<'_>, gate: &CallGate) -> Stack {
    if gate.bytes != 8 {
        return Stack::current(cx);
    }
    Stack::new(cx.core.segments.ss, StackWidth::Bits64, cx.core.gpr(Gpr::Rsp), cx.core.cpl())
}

/// The parameters on the outer stack, that at its top first; 64-bit gates copy none (SDM 3A 5.8.5.1).
fn parameters(cx: &mut Context<'_>, gate: &CallGate) -> Result<Vec<u64>, Fault> {
    let count = if gate.bytes == 8 { 0 } else { gate.count };
    let mut outer = Stack::current(cx);
    (0..count).map(|_| outer.pop(cx, gate.bytes)).collect()
}
