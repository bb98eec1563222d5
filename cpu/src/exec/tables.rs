//! Descriptor-table registers: LGDT LIDT SGDT SIDT LLDT LTR SLDT STR (SDM 2, each instruction's page; SDM 3A 3.5).

use crate::access::Span;
use crate::exec::context::Context;
use crate::exec::operand::{bytes, is_memory};
use crate::exec::segment::{Descriptor, gp, is_null, null_segment, selector_fault};
use crate::exec::{Done, Fault, Flow};
use crate::virt::{TableInstruction, Trap, Virt};
use iced_x86::{Code, Instruction, Mnemonic};
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::{Segment, TableRegister};
use sim_core::clock::Cost;

/// The type of an LDT descriptor.
const TYPE_LDT: u32 = 2;
/// The type of an available 32- or 64-bit TSS; busy is bit 1 more.
const TYPE_TSS: u32 = 9;
const TSS_BUSY: u32 = 1 << 1;

/// Asks the extension, before the operand is touched.
fn ask<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Result<(), Fault> {
    let instruction = match insn.mnemonic() {
        Mnemonic::Sgdt => TableInstruction::Sgdt,
        Mnemonic::Sidt => TableInstruction::Sidt,
        Mnemonic::Lgdt => TableInstruction::Lgdt,
        Mnemonic::Lidt => TableInstruction::Lidt,
        Mnemonic::Sldt => TableInstruction::Sldt,
        Mnemonic::Str => TableInstruction::Str,
        Mnemonic::Lldt => TableInstruction::Lldt,
        _ => TableInstruction::Ltr,
    };
    cx.at.operand = cx.describe(insn);
    cx.ask(virt, &Trap::DescriptorTable(instruction))
}

/// The bytes of a pseudo-descriptor's base: 8 in 64-bit mode, else 4.
fn base_bytes(cx: &Context<'_>) -> usize {
    if cx.is_64bit() { 8 } else { 4 }
}

fn pseudo_descriptor(cx: &mut Context<'_>, insn: &Instruction, access: AccessKind) -> Result<Span, Fault> {
    let bytes = 2 + base_bytes(cx);
    cx.memory(insn, 0, bytes, access)
}

/// LGDT and LIDT.
pub(crate) fn load_table<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    cx.ground.charge(Cost::SystemRegister);
    ask(cx, virt, insn)?;
    let span = pseudo_descriptor(cx, insn, AccessKind::Read)?;
    let raw = cx.load(&span);
    let base = (raw >> 16) as u64;
    // A 16-bit operand size loads 24 bits of base.
    let base = if matches!(insn.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) { base & 0xff_ffff } else { base };
    if cx.is_64bit() && !Gva(base).is_canonical(cx.core.linear_width()) {
        return Err(Exception::gp0().into());
    }
    let table = TableRegister { base, limit: raw as u16 };
    if insn.mnemonic() == Mnemonic::Lgdt {
        cx.core.gdtr = table;
    } else {
        cx.core.idtr = table;
    }
    Ok(Flow::Next)
}

/// #GP(0) outside ring 0 with CR4.UMIP.
fn require_umip(cx: &Context<'_>) -> Result<(), Fault> {
    if cx.core.cr4.contains(Cr4::UMIP) { cx.require_cpl0() } else { Ok(()) }
}

/// SGDT and SIDT.
pub(crate) fn store_table<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    require_umip(cx)?;
    ask(cx, virt, insn)?;
    let table = if insn.mnemonic() == Mnemonic::Sgdt { cx.core.gdtr } else { cx.core.idtr };
    let span = pseudo_descriptor(cx, insn, AccessKind::Write)?;
    cx.store(&span, (u128::from(table.base) << 16) | u128::from(table.limit));
    Ok(Flow::Next)
}

/// SLDT and STR: 16 bits to memory, zero-extended to a register.
pub(crate) fn store_selector<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    require_protected(cx)?;
    require_umip(cx)?;
    ask(cx, virt, insn)?;
    let segments = &cx.core.segments;
    let selector = if insn.mnemonic() == Mnemonic::Sldt { segments.ldtr.selector } else { segments.tr.selector };
    if is_memory(insn, 0) {
        let span = cx.memory(insn, 0, 2, AccessKind::Write)?;
        cx.store(&span, u128::from(selector));
    } else {
        cx.set_register(insn.op0_register(), u64::from(selector));
    }
    Ok(Flow::Next)
}

fn require_protected(cx: &Context<'_>) -> Result<(), Fault> {
    if cx.has_paragraphs() { Err(Exception::ud().into()) } else { Ok(()) }
}

fn selector_operand(cx: &mut Context<'_>, insn: &Instruction) -> Result<u16, Fault> {
    if is_memory(insn, 0) && bytes(insn, 0) != 2 {
        let span = cx.memory(insn, 0, 2, AccessKind::Read)?;
        return Ok(cx.load(&span) as u16);
    }
    Ok(cx.value(insn, 0)? as u16)
}

/// A system descriptor of the GDT: in IA-32e mode 16 bytes, with the base's upper half in the second quadword.
fn system_descriptor(cx: &mut Context<'_>, selector: u16, kind: u32) -> Result<(Descriptor, Segment), Fault> {
    if selector & 4 != 0 {
        return Err(gp(selector).into());
    }
    let descriptor = cx.descriptor(selector, gp(selector))?;
    let rights = descriptor.rights();
    if rights.is_code_or_data() || rights.kind() != kind {
        return Err(gp(selector).into());
    }
    let mut segment = descriptor.segment(selector);
    if cx.is_long_mode() {
        if u32::from(selector & 0xfff8) + 15 > u32::from(cx.core.gdtr.limit) {
            return Err(gp(selector).into());
        }
        let upper = cx.read_system(descriptor.at.wrapping_add(8), 8)?;
        segment.base |= upper << 32;
        if upper & (0x1f << 40) != 0 || !Gva(segment.base).is_canonical(cx.core.linear_width()) {
            return Err(gp(selector).into());
        }
    }
    if !rights.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector).into());
    }
    Ok((descriptor, segment))
}

/// LLDT.
pub(crate) fn lldt<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    require_protected(cx)?;
    cx.require_cpl0()?;
    ask(cx, virt, insn)?;
    let selector = selector_operand(cx, insn)?;
    cx.core.segments.ldtr =
        if is_null(selector) { null_segment(selector, 0) } else { system_descriptor(cx, selector, TYPE_LDT)?.1 };
    Ok(Flow::Next)
}

/// LTR: marks the TSS busy, in the register and in memory.
pub(crate) fn ltr<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    require_protected(cx)?;
    cx.require_cpl0()?;
    ask(cx, virt, insn)?;
    let selector = selector_operand(cx, insn)?;
    if is_null(selector) {
        return Err(Exception::gp0().into());
    }
    let (descriptor, mut segment) = system_descriptor(cx, selector, TYPE_TSS)?;
    segment.rights = cx.mark(descriptor, TSS_BUSY)?.rights();
    cx.core.segments.tr = segment;
    Ok(Flow::Next)
}
