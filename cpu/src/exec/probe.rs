//! Instructions that look at descriptors without loading them: LAR LSL VERR VERW ARPL (SDM 2, each page; SDM 3A 5.10).

use crate::exec::context::Context;
use crate::exec::operand::bytes;
use crate::exec::segment::{Descriptor, gp, is_null, rpl};
use crate::exec::{Done, Fault, Flow};
use iced_x86::{Instruction, Mnemonic};
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;

/// System descriptor types that LAR and LSL know, one bit a type: outside IA-32e mode and in it (SDM 2, LAR and LSL).
const LAR_TYPES: [u32; 2] = [0b0001_1010_0011_1110, 0b0001_1010_0000_0100];
const LSL_TYPES: [u32; 2] = [0b0000_1010_0000_1110, 0b0000_1010_0000_0100];

fn require_protected(cx: &Context<'_>) -> Result<(), Fault> {
    if cx.has_paragraphs() { Err(Exception::ud().into()) } else { Ok(()) }
}

/// The descriptor of a selector, none if the selector is null or beyond its table.
fn look_up(cx: &mut Context<'_>, selector: u16) -> Result<Option<Descriptor>, Fault> {
    if is_null(selector) {
        return Ok(None);
    }
    match cx.descriptor(selector, gp(selector)) {
        Ok(descriptor) => Ok(Some(descriptor)),
        Err(Fault::Exception(exception)) if exception == gp(selector) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// Whether CPL and RPL may see a descriptor; conforming code is open to all.
fn is_visible(cx: &Context<'_>, descriptor: &Descriptor, selector: u16) -> bool {
    descriptor.is_conforming() || cx.core.cpl().max(rpl(selector)) <= descriptor.rights().dpl()
}

fn show(cx: &mut Context<'_>, found: bool) -> Done {
    cx.set_flags(Rflags::ZF, if found { Rflags::ZF } else { Rflags::empty() });
    Ok(Flow::Next)
}

/// LAR and LSL.
pub(crate) fn rights_or_limit(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_protected(cx)?;
    let selector = cx.value(insn, 1)? as u16;
    let Some(descriptor) = look_up(cx, selector)? else { return show(cx, false) };
    let rights = descriptor.rights();
    let lar = insn.mnemonic() == Mnemonic::Lar;
    let types = if lar { LAR_TYPES } else { LSL_TYPES };
    let system = types[usize::from(cx.is_long_mode())] >> rights.kind() & 1 != 0;
    let known = if rights.is_code_or_data() { true } else { system };
    if !known || !is_visible(cx, &descriptor, selector) {
        return show(cx, false);
    }
    let value = if lar { (descriptor.raw >> 32) & 0x00f0_ff00 } else { descriptor.segment(selector).limit.into() };
    cx.set_register(insn.op0_register(), value);
    show(cx, true)
}

/// VERR and VERW.
pub(crate) fn verify(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_protected(cx)?;
    let selector = cx.value(insn, 0)? as u16;
    let Some(descriptor) = look_up(cx, selector)? else { return show(cx, false) };
    let suits =
        if insn.mnemonic() == Mnemonic::Verr { descriptor.is_readable() } else { descriptor.is_writable_data() };
    let visible = is_visible(cx, &descriptor, selector);
    show(cx, suits && visible)
}

/// ARPL: raises the destination's RPL to the source's.
pub(crate) fn arpl(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_protected(cx)?;
    let place = cx.place(insn, 0, AccessKind::Read)?;
    let old = cx.get(&place, bytes(insn, 0));
    let wanted = cx.register(insn.op1_register()) & 3;
    let raises = old & 3 < wanted;
    if raises {
        let place = cx.place(insn, 0, AccessKind::Write)?;
        cx.put(&place, (old & !3) | wanted);
    }
    show(cx, raises)
}
