//! Task switches (SDM 3A chapter 7; APM2 chapter 12): by far CALL and JMP, by IRET with NT, by task gates in the IDT,
//! to and from 16-bit and 32-bit task-state segments.
//!
//! The extension is asked after the checks up to the TSS descriptor and before anything changes (SDM 3C 25.4.2).
//! Both TSSs are translated before the first byte changes; faults behind that point belong to the new task (SDM 3A
//! 7.3). The order of the checks on the new task's segments is model-specific (table 7-1); here LDTR, CS, SS, then data.
//! Left out: control-flow enforcement. Open in the manuals: the upper halves of
//! general registers after a 16-bit TSS, here unchanged.

use crate::access::Span;
use crate::core::Gpr;
use crate::exec::context::{Context, mask};
use crate::exec::control;
use crate::exec::debug;
use crate::exec::far::check_entry;
use crate::exec::inner_stack::fault;
use crate::exec::segment::{Descriptor, is_null, null_segment, rpl};
use crate::exec::stack::Stack;
use crate::exec::{Fault, virtual8086};
use crate::virt::{TaskSwitchSource, Trap, Virt};
use iced_x86::Register;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};

/// A task switch that is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Switch {
    pub(crate) source: TaskSwitchSource,
    /// The offset that the old task goes on from.
    pub(crate) return_rip: u64,
    /// The flags that the old task goes on with.
    pub(crate) flags: u64,
    /// What the new task's stack gets.
    pub(crate) error: Option<u32>,
    /// The EXT bit of faults.
    pub(crate) ext: u32,
}

/// A task-state segment's layout: equal slots of EIP, EFLAGS, eight general registers, selectors, the LDT's selector.
#[derive(Clone, Copy, Debug)]
struct Format {
    /// The least limit.
    limit: u32,
    /// Bytes of a slot.
    bytes: usize,
    /// Where EIP stands.
    start: u64,
    /// How many segment registers there are, in the order of [`SEGMENTS`].
    segments: usize,
    /// Where CR3 and the word with the T flag stand.
    extra: Option<(u64, u64)>,
}

/// SDM 3A figure 7-10.
const TSS_16: Format = Format { limit: 0x2b, bytes: 2, start: 0x0e, segments: 4, extra: None };
/// SDM 3A figure 7-2.
const TSS_32: Format = Format { limit: 0x67, bytes: 4, start: 0x20, segments: 6, extra: Some((0x1c, 0x64)) };

/// The order of the general registers' slots.
const GPRS: [Gpr; 8] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi];
/// The order of the selectors' slots.
const SEGMENTS: [Register; 6] = [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
/// The first selector's slot.
const SELECTORS: usize = 2 + GPRS.len();

const TYPE_LDT: u32 = 2;
const TSS_BUSY: u32 = 1 << 1;
/// DR7: L0 to L3 and LE, which belong to one task (SDM 3B 17.2.4).
const LOCAL_ENABLES: u64 = 0x155;

impl Format {
    const fn of(rights: Rights) -> Self {
        if rights.kind() & 8 == 0 { TSS_16 } else { TSS_32 }
    }

    const fn slot(&self, index: usize) -> u64 {
        self.start + (index * self.bytes) as u64
    }
}

impl Switch {
    /// A switch by the instruction being executed.
    pub(crate) fn by_instruction(cx: &Context<'_>, source: TaskSwitchSource) -> Self {
        Self { source, return_rip: cx.next_rip(), flags: cx.core.rflags.bits(), error: None, ext: 0 }
    }

    const fn fault(&self, vector: Vector, selector: u16) -> Exception {
        fault(vector, selector, self.ext)
    }

    /// Whether the old task stays busy and the new one links back to it.
    const fn nests(&self) -> bool {
        matches!(self.source, TaskSwitchSource::Call | TaskSwitchSource::TaskGate)
    }
}

/// Switches to the task that a task gate names; the gate itself is already checked, and the TSS's DPL does not matter.
pub(crate) fn through_gate<V: Virt>(
    cx: &mut Context<'_>,
    virt: &mut V,
    selector: u16,
    switch: &Switch,
) -> Result<(), Fault> {
    let descriptor = named(cx, selector, switch.fault(Vector::GeneralProtection, selector))?;
    to(cx, virt, selector, descriptor, switch)
}

/// IRET with NT: switches to the task that the current one links back to.
pub(crate) fn back<V: Virt>(cx: &mut Context<'_>, virt: &mut V) -> Result<(), Fault> {
    let mut switch = Switch::by_instruction(cx, TaskSwitchSource::Iret);
    switch.flags &= !Rflags::NT.bits();
    let selector = cx.read_system(cx.core.segments.tr.base, 2)? as u16;
    let descriptor = named(cx, selector, switch.fault(Vector::InvalidTss, selector))?;
    to(cx, virt, selector, descriptor, &switch)
}

/// The descriptor of a TSS selector, which must be of the GDT.
fn named(cx: &mut Context<'_>, selector: u16, missing: Exception) -> Result<Descriptor, Fault> {
    if is_null(selector) || selector & 4 != 0 {
        return Err(missing.into());
    }
    cx.descriptor(selector, missing)
}

/// Checks the new TSS's descriptor, asks the extension, and switches.
pub(crate) fn to<V: Virt>(
    cx: &mut Context<'_>,
    virt: &mut V,
    selector: u16,
    descriptor: Descriptor,
    switch: &Switch,
) -> Result<(), Fault> {
    check_descriptor(selector, &descriptor, switch)?;
    cx.ask(virt, &Trap::TaskSwitch { selector, source: switch.source, error: switch.error })?;
    perform(cx, selector, &descriptor, switch)
}

/// Place, type, busy flag, presence and limit (SDM 3A table 7-1).
fn check_descriptor(selector: u16, descriptor: &Descriptor, switch: &Switch) -> Result<(), Fault> {
    let returns = switch.source == TaskSwitchSource::Iret;
    let (vector, kind) = if returns { (Vector::InvalidTss, 1 | TSS_BUSY) } else { (Vector::GeneralProtection, 1) };
    let rights = descriptor.rights();
    if selector & 4 != 0 || rights.is_code_or_data() || rights.kind() & 7 != kind {
        return Err(switch.fault(vector, selector).into());
    }
    if !rights.is_present() {
        return Err(switch.fault(Vector::SegmentNotPresent, selector).into());
    }
    if descriptor.segment(selector).limit < Format::of(rights).limit {
        return Err(switch.fault(Vector::InvalidTss, selector).into());
    }
    Ok(())
}

/// What the new task's TSS holds, translated but not read yet.
struct Incoming {
    format: Format,
    slots: Vec<Span>,
    extra: Option<(Span, Span)>,
}

/// The switch itself.
fn perform(cx: &mut Context<'_>, selector: u16, descriptor: &Descriptor, switch: &Switch) -> Result<(), Fault> {
    if cx.core.cr4.contains(Cr4::CET) && (cx.core.msrs.u_cet | cx.core.msrs.s_cet) != 0 {
        return Err(Fault::unmodelled("control-flow enforcement across task switches"));
    }
    let old = cx.core.segments.tr;
    if old.rights.is_unusable() || old.limit < Format::of(old.rights).limit {
        return Err(switch.fault(Vector::InvalidTss, old.selector).into());
    }
    let mut new = descriptor.segment(selector);
    let incoming = incoming(cx, &new)?;
    let mut writes = saved(cx, &old, switch)?;
    if switch.nests() {
        let link = cx.system_span(new.base, 2, AccessKind::Write)?;
        writes.push((link, u128::from(old.selector)));
    } else {
        writes.push(idle(cx, old.selector)?);
    }
    if switch.source != TaskSwitchSource::Iret {
        let at = cx.system_span(descriptor.at.wrapping_add(5), 1, AccessKind::Write)?;
        writes.push((at, u128::from((descriptor.raw >> 40) as u8 | TSS_BUSY as u8)));
    }
    for (span, value) in &writes {
        cx.store(span, *value);
    }
    new.rights = Rights(new.rights.0 | TSS_BUSY);
    cx.core.segments.tr = new;
    load(cx, &incoming, switch)
}

/// Translates what is read of the new TSS.
fn incoming(cx: &mut Context<'_>, tss: &Segment) -> Result<Incoming, Fault> {
    let format = Format::of(tss.rights);
    let mut span = |offset, bytes| cx.system_span(tss.base.wrapping_add(offset), bytes, AccessKind::Read);
    let count = SELECTORS + format.segments + 1;
    let slots = (0..count).map(|index| span(format.slot(index), format.bytes)).collect::<Result<_, _>>()?;
    let extra = match format.extra {
        Some((cr3, trap)) => Some((span(cr3, 4)?, span(trap, 2)?)),
        None => None,
    };
    Ok(Incoming { format, slots, extra })
}

/// What the old TSS gets: EIP, EFLAGS, general registers and selectors.
fn saved(cx: &mut Context<'_>, tss: &Segment, switch: &Switch) -> Result<Vec<(Span, u128)>, Fault> {
    let format = Format::of(tss.rights);
    let registers = GPRS.map(|name| cx.core.gpr(name));
    let selectors = SEGMENTS.map(|name| u64::from(cx.segment(name).selector));
    let values = [switch.return_rip, switch.flags].into_iter().chain(registers).chain(selectors);
    let values: Vec<u64> = values.take(SELECTORS + format.segments).collect();
    let mut writes = Vec::new();
    for (index, value) in values.into_iter().enumerate() {
        let bytes = if index < SELECTORS { format.bytes } else { 2 };
        let span = cx.system_span(tss.base.wrapping_add(format.slot(index)), bytes, AccessKind::Write)?;
        writes.push((span, u128::from(value & mask(bytes))));
    }
    Ok(writes)
}

/// The old TSS's descriptor without its busy flag.
fn idle(cx: &mut Context<'_>, selector: u16) -> Result<(Span, u128), Fault> {
    let at = cx.core.gdtr.base.wrapping_add(u64::from(selector & 0xfff8) + 5);
    let rights = cx.read_system(at, 1)?;
    let span = cx.system_span(at, 1, AccessKind::Write)?;
    Ok((span, u128::from(rights & !u64::from(TSS_BUSY))))
}

/// Loads the new task: first everything that needs no check, then CR3, LDTR and the segments.
fn load(cx: &mut Context<'_>, incoming: &Incoming, switch: &Switch) -> Result<(), Fault> {
    let format = incoming.format;
    let slots: Vec<u64> = incoming.slots.iter().map(|span| cx.load(span) as u64).collect();
    let extra = incoming.extra.map(|(cr3, trap)| (cx.load(&cr3) as u64, cx.load(&trap) as u64));
    registers(cx, &slots, &format, switch);
    if let Some((cr3, _)) = extra
        && cx.core.cr0.contains(Cr0::PG)
        && cr3 != cx.core.cr3
    {
        // Only a change invalidates and reloads PDPTEs (SDM 3A 4.4.1, 4.10.4.1).
        control::write_cr3(cx, cr3)?;
    }
    let ldt = slots.last().map_or(0, |slot| *slot as u16);
    cx.core.segments.ldtr = null_segment(ldt, 0);
    cx.core.segments.ldtr = local_table(cx, ldt, switch)?;
    segments(cx, switch)?;
    if let Some(error) = switch.error {
        let mut stack = Stack::current(cx).failing_with(switch.ext);
        stack.push(cx, error.into(), format.bytes)?;
        cx.commit_stack(&stack);
    }
    if extra.is_some_and(|(_, trap)| trap & 1 != 0) {
        cx.core.pending_debug |= debug::TASK_SWITCH;
    }
    let (code, rip) = (cx.core.segments.cs, cx.core.rip);
    check_entry(cx, &code, rip, switch.fault(Vector::GeneralProtection, 0))
}

/// Registers, and selectors whose descriptors are not loaded: CPL is already the new CS's RPL.
fn registers(cx: &mut Context<'_>, slots: &[u64], format: &Format, switch: &Switch) {
    let nested = if switch.nests() { Rflags::NT } else { Rflags::empty() };
    cx.effects.keeps_resume = true;
    cx.core.cr0 |= Cr0::TS;
    cx.core.dr7 &= !LOCAL_ENABLES;
    cx.core.rip = slots[0];
    cx.core.rflags = Rflags::from_bits_truncate(slots[1]).union(Rflags::FIXED).union(nested);
    for (name, value) in GPRS.into_iter().zip(&slots[2..]) {
        let kept = if format.bytes == 2 { cx.core.gpr(name) & 0xffff_0000 } else { 0 };
        cx.core.set_gpr(name, kept | value);
    }
    let selector = |index: usize| if index < format.segments { slots[SELECTORS + index] as u16 } else { 0 };
    let cpl = rpl(selector(1));
    for (index, name) in SEGMENTS.into_iter().enumerate() {
        let level = if name == Register::SS { cpl } else { 0 };
        *cx.segment_mut(name) = null_segment(selector(index), level);
    }
}

fn local_table(cx: &mut Context<'_>, selector: u16, switch: &Switch) -> Result<Segment, Fault> {
    if is_null(selector) {
        return Ok(null_segment(selector, 0));
    }
    let invalid = switch.fault(Vector::InvalidTss, selector);
    let descriptor = named(cx, selector, invalid)?;
    let rights = descriptor.rights();
    if rights.is_code_or_data() || rights.kind() != TYPE_LDT || !rights.is_present() {
        return Err(invalid.into());
    }
    Ok(descriptor.segment(selector))
}

/// Loads every segment register from its selector.
fn segments(cx: &mut Context<'_>, switch: &Switch) -> Result<(), Fault> {
    const ORDER: [Register; 6] = [Register::CS, Register::SS, Register::DS, Register::ES, Register::FS, Register::GS];
    for name in ORDER {
        let selector = cx.segment(name).selector;
        if cx.is_virtual_8086() {
            *cx.segment_mut(name) = virtual8086::segment(selector);
            continue;
        }
        let is_data = !matches!(name, Register::CS | Register::SS);
        if !(is_data && is_null(selector)) {
            *cx.segment_mut(name) = segment(cx, name, selector, switch)?;
        }
    }
    Ok(())
}

fn segment(cx: &mut Context<'_>, name: Register, selector: u16, switch: &Switch) -> Result<Segment, Fault> {
    let invalid = switch.fault(Vector::InvalidTss, selector);
    if is_null(selector) {
        return Err(invalid.into());
    }
    let descriptor = cx.descriptor(selector, invalid)?;
    let (cpl, dpl, rpl) = (cx.core.cpl(), descriptor.rights().dpl(), rpl(selector));
    let (fits, absent) = match name {
        Register::CS => {
            let privileged = if descriptor.is_conforming() { dpl <= cpl } else { dpl == cpl };
            (descriptor.is_code() && privileged, Vector::SegmentNotPresent)
        }
        Register::SS => (descriptor.is_writable_data() && dpl == cpl && rpl == cpl, Vector::StackFault),
        _ => {
            let privileged = descriptor.is_conforming() || cpl.max(rpl) <= dpl;
            (descriptor.is_readable() && privileged, Vector::SegmentNotPresent)
        }
    };
    if !fits {
        return Err(invalid.into());
    }
    if !descriptor.rights().is_present() {
        return Err(switch.fault(absent, selector).into());
    }
    Ok(cx.mark_accessed(descriptor)?.segment(selector))
}
