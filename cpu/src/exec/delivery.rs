//! Delivering one event through the IDT (SDM 3A 6.11 to 6.14; SDM 2 INT), without any policy: what may go wrong is
//! returned, and [`crate::exception`] decides what becomes of it.
//!
//! Gates: 16 bytes in IA-32e mode with IST, 8 bytes in protected mode (16-bit, 32-bit and task gates), the vector table in
//! real mode.

use crate::core::Gpr;
use crate::exec::context::Context;
use crate::exec::far::{check_entry, is_long_and_big};
use crate::exec::segment::{is_null, null_segment, real_mode_segment};
use crate::exec::shadow_frame::{self, Entry};
use crate::exec::stack::{Stack, StackWidth};
use crate::exec::task::{self, Switch};
use crate::exec::{Fault, inner_stack, virtual8086};
use crate::virt::{TaskSwitchSource, Virt};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::Segment;

/// Who raised an event: software interrupts check the gate's DPL, and their faults have EXT = 0 (SDM 3A 6.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The processor, or a hypervisor that injects an exception.
    Hardware,
    /// An interrupt, an NMI or INT1: not a fault, so RF is pushed as it is.
    External,
    /// INT n, INT3 or INTO.
    Software,
}

/// An event to deliver.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) vector: u8,
    pub(crate) error: Option<u32>,
    pub(crate) origin: Origin,
    /// The offset that is pushed.
    pub(crate) return_rip: u64,
}

/// An IDT entry.
#[derive(Clone, Copy, Debug)]
struct Gate {
    offset: u64,
    selector: u16,
    ist: u8,
    kind: u8,
    dpl: u8,
    present: bool,
}

const INTERRUPT_GATE: u8 = 0xe;
const TRAP_GATE: u8 = 0xf;
/// Gate types that exist outside IA-32e mode only.
const TASK_GATE: u8 = 0x5;
const INTERRUPT_GATE_16: u8 = 0x6;
const TRAP_GATE_16: u8 = 0x7;
/// The IDT bit of an error code.
const ERROR_IDT: u32 = 1 << 1;

impl Gate {
    fn parse(low: u64, high: u64) -> Self {
        Self {
            offset: (low & 0xffff) | ((low >> 48) << 16) | (high << 32),
            selector: (low >> 16) as u16,
            ist: ((low >> 32) & 7) as u8,
            kind: ((low >> 40) & 0x1f) as u8,
            dpl: ((low >> 45) & 3) as u8,
            present: low & (1 << 47) != 0,
        }
    }

    /// What a push takes outside IA-32e mode: 2 or 4.
    const fn bytes(&self) -> usize {
        if self.kind & 8 == 0 { 2 } else { 4 }
    }
}

impl Event {
    /// The EXT bit of faults in this event's delivery.
    fn ext(&self) -> u32 {
        u32::from(self.origin != Origin::Software)
    }

    /// A fault that names this event's IDT entry.
    fn gate_fault(&self, vector: Vector) -> Fault {
        Exception::with_error(vector, (u32::from(self.vector) << 3) | ERROR_IDT | self.ext()).into()
    }

    /// A fault that names a selector.
    fn selector_fault(&self, vector: Vector, selector: u16) -> Exception {
        inner_stack::fault(vector, selector, self.ext())
    }

    /// The flags that are pushed: faults set RF (SDM 3B 17.3.1.1).
    fn image(&self, flags: Rflags) -> u64 {
        let resume = if self.origin == Origin::Hardware { Rflags::RF } else { Rflags::empty() };
        flags.union(resume).union(Rflags::FIXED).bits()
    }
}

/// Delivers an event. The processor changes only if everything succeeds; memory may hold part of a frame.
pub(crate) fn deliver<V: Virt>(cx: &mut Context<'_>, virt: &mut V, event: &Event) -> Result<(), Fault> {
    if cx.is_real_mode() {
        return real_mode(cx, event);
    }
    let gate = gate(cx, event)?;
    if gate.kind == TASK_GATE {
        return switch_task(cx, virt, event, gate.selector);
    }
    let (code, cpl) = handler(cx, event, &gate)?;
    let fault = Exception::with_error(Vector::GeneralProtection, event.ext());
    let stack = if cx.is_long_mode() {
        let stack = long_stack(cx, event, &gate, cpl)?;
        check_entry(cx, &code, gate.offset, fault)?;
        long_frame(cx, event, stack)?
    } else {
        let stack = legacy_stack(cx, event, cpl)?;
        check_entry(cx, &code, gate.offset, fault)?;
        legacy_frame(cx, event, stack, gate.bytes())?
    };
    let ist = if cx.is_long_mode() { gate.ist } else { 0 };
    shadow_frame::enter(cx, &Entry { code, cpl, ist, return_rip: event.return_rip })?;
    if cpl < cx.core.cpl() {
        cx.core.segments.ss = stack.segment();
    }
    cx.commit_stack(&stack);
    virtual8086::leave(cx);
    cx.core.segments.cs = code;
    cx.core.rip = gate.offset;
    let masked = if matches!(gate.kind, INTERRUPT_GATE | INTERRUPT_GATE_16) { Rflags::IF } else { Rflags::empty() };
    let cleared = masked.union(Rflags::TF).union(Rflags::NT).union(Rflags::RF).union(Rflags::VM);
    cx.set_flags(cleared, Rflags::empty());
    Ok(())
}

fn switch_task<V: Virt>(cx: &mut Context<'_>, virt: &mut V, event: &Event, selector: u16) -> Result<(), Fault> {
    let switch = Switch {
        source: TaskSwitchSource::TaskGate,
        return_rip: event.return_rip,
        flags: event.image(cx.core.rflags),
        error: event.error,
        ext: event.ext(),
    };
    task::through_gate(cx, virt, selector, &switch)
}

/// Reads and checks the IDT entry.
fn gate(cx: &mut Context<'_>, event: &Event) -> Result<Gate, Fault> {
    let bytes = if cx.is_long_mode() { 16 } else { 8 };
    let offset = u64::from(event.vector) * bytes;
    if offset + bytes - 1 > u64::from(cx.core.idtr.limit) {
        return Err(event.gate_fault(Vector::GeneralProtection));
    }
    let at = cx.core.idtr.base.wrapping_add(offset);
    let low = cx.read_system(at, 8)?;
    let high = if bytes == 16 { cx.read_system(at.wrapping_add(8), 8)? } else { 0 };
    let gate = Gate::parse(low, high);
    let denied = event.origin == Origin::Software && gate.dpl < cx.core.cpl();
    let known = match gate.kind {
        INTERRUPT_GATE | TRAP_GATE => true,
        TASK_GATE | INTERRUPT_GATE_16 | TRAP_GATE_16 => !cx.is_long_mode(),
        _ => false,
    };
    if !known || denied {
        return Err(event.gate_fault(Vector::GeneralProtection));
    }
    if !gate.present {
        return Err(event.gate_fault(Vector::SegmentNotPresent));
    }
    let offset = if gate.bytes() == 2 { gate.offset & 0xffff } else { gate.offset };
    Ok(Gate { offset, ..gate })
}

/// Checks the handler's code segment; returns CS as it will be, and the handler's privilege level.
fn handler(cx: &mut Context<'_>, event: &Event, gate: &Gate) -> Result<(Segment, u8), Fault> {
    let denied = event.selector_fault(Vector::GeneralProtection, gate.selector);
    if is_null(gate.selector) {
        return Err(denied.into());
    }
    let descriptor = cx.descriptor(gate.selector, denied)?;
    let rights = descriptor.rights();
    if !descriptor.is_code() || rights.dpl() > cx.core.cpl() {
        return Err(denied.into());
    }
    if !rights.is_present() {
        return Err(event.selector_fault(Vector::SegmentNotPresent, gate.selector).into());
    }
    if cx.is_long_mode() && (!rights.is_long() || is_long_and_big(cx, &descriptor)) {
        return Err(denied.into());
    }
    if cx.is_virtual_8086() && (descriptor.is_conforming() || rights.dpl() != 0) {
        return Err(denied.into());
    }
    let cpl = if descriptor.is_conforming() { cx.core.cpl() } else { rights.dpl() };
    let selector = (gate.selector & !3) | u16::from(cpl);
    Ok((cx.mark_accessed(descriptor)?.segment(selector), cpl))
}

/// IA-32e mode: IST, or RSPn on a change of level, or the same stack; always aligned to 16 (SDM 3A 6.14.2, 6.14.5).
fn long_stack(cx: &mut Context<'_>, event: &Event, gate: &Gate, cpl: u8) -> Result<Stack, Fault> {
    const IST1: u64 = 0x24;
    let pointer = if gate.ist != 0 {
        inner_stack::field(cx, IST1 + 8 * (u64::from(gate.ist) - 1), 8, event.ext())?
    } else if cpl < cx.core.cpl() {
        inner_stack::long(cx, cpl, event.ext())?
    } else {
        cx.core.gpr(Gpr::Rsp)
    };
    let segment = if cpl < cx.core.cpl() { null_segment(u16::from(cpl), cpl) } else { cx.core.segments.ss };
    Ok(Stack::new(segment, StackWidth::Bits64, pointer & !0xf, cpl).failing_with(event.ext()))
}

/// Pushes SS, RSP, RFLAGS, CS, RIP and the error code.
fn long_frame(cx: &mut Context<'_>, event: &Event, stack: Stack) -> Result<Stack, Fault> {
    let mut stack = stack;
    let core = &cx.core;
    let frame = [
        u64::from(core.segments.ss.selector),
        core.gpr(Gpr::Rsp),
        event.image(core.rflags),
        u64::from(core.segments.cs.selector),
        event.return_rip,
    ];
    for value in frame.into_iter().chain(event.error.map(u64::from)) {
        stack.push(cx, value, 8)?;
    }
    Ok(stack)
}

/// Protected mode: SSn:ESPn on a change of level, else the same stack (SDM 3A 6.12.1).
fn legacy_stack(cx: &mut Context<'_>, event: &Event, cpl: u8) -> Result<Stack, Fault> {
    if cpl == cx.core.cpl() {
        return Ok(Stack::current(cx).failing_with(event.ext()));
    }
    inner_stack::legacy(cx, cpl, event.ext())
}

/// Pushes the data segments of virtual-8086 mode, SS and ESP on a change of level, then EFLAGS, CS, EIP and the error
/// code.
fn legacy_frame(cx: &mut Context<'_>, event: &Event, stack: Stack, bytes: usize) -> Result<Stack, Fault> {
    let mut stack = stack;
    let data = virtual8086::pushed(cx);
    let core = &cx.core;
    let switches = stack.cpl() < core.cpl();
    let outer = [u64::from(core.segments.ss.selector), core.gpr(Gpr::Rsp)];
    let inner = [event.image(core.rflags), u64::from(core.segments.cs.selector), event.return_rip];
    let frame =
        data.into_iter().chain(outer.into_iter().filter(|_| switches)).chain(inner).chain(event.error.map(u64::from));
    for value in frame {
        stack.push(cx, value, bytes)?;
    }
    Ok(stack)
}

/// Real mode: four bytes a vector, three words pushed, no error code (SDM 3A 20.1.4).
fn real_mode(cx: &mut Context<'_>, event: &Event) -> Result<(), Fault> {
    let offset = u64::from(event.vector) * 4;
    if offset + 3 > u64::from(cx.core.idtr.limit) {
        return Err(event.gate_fault(Vector::GeneralProtection));
    }
    let entry = cx.read_system(cx.core.idtr.base.wrapping_add(offset), 4)?;
    let code = real_mode_segment(cx.core.segments.cs, (entry >> 16) as u16);
    let target = entry & 0xffff;
    check_entry(cx, &code, target, Exception::gp0())?;
    let mut stack = Stack::current(cx);
    let flags = cx.core.rflags.union(Rflags::FIXED).bits();
    for value in [flags, u64::from(cx.core.segments.cs.selector), event.return_rip] {
        stack.push(cx, value, 2)?;
    }
    cx.commit_stack(&stack);
    cx.core.segments.cs = code;
    cx.core.rip = target;
    cx.set_flags(Rflags::IF.union(Rflags::TF).union(Rflags::AC).union(Rflags::RF), Rflags::empty());
    Ok(())
}
