//! INVLPG and INVPCID (SDM 2; SDM 3A 4.10.4.1).

use crate::exec::context::Context;
use crate::exec::extension::invalidation;
use crate::exec::operand::is_memory;
use crate::exec::{Done, Flow};
use crate::profile::Habits;
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, Register};
use sim_core::addr::Gva;
use sim_core::arch::control::{CR3_PCID_MASK, Cr4};
use sim_core::arch::exception::Exception;
use sim_core::event::FlushScope;

/// INVLPG: no segment check, and a non-canonical address does nothing.
pub(crate) fn invlpg<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    debug_assert!(is_memory(insn, 0));
    cx.require_cpl0()?;
    let gva = unchecked_address(cx, insn);
    cx.ask(virt, &Trap::Invlpg(gva))?;
    if gva.is_canonical(cx.core.linear_width()) {
        let scope = FlushScope::Address { context: cx.regime.tag.context, pcid: cx.core.pcid(), gva };
        cx.core.tlb.flush(cx.ground, scope);
    }
    Ok(Flow::Next)
}

fn unchecked_address(cx: &Context<'_>, insn: &Instruction) -> Gva {
    let offset = cx.effective_address(insn, 0);
    let name = insn.memory_segment();
    let base = cx.segment(name).base;
    if !cx.is_64bit() {
        Gva(base.wrapping_add(offset) & 0xffff_ffff)
    } else if matches!(name, Register::FS | Register::GS) {
        Gva(base.wrapping_add(offset))
    } else {
        Gva(offset)
    }
}

/// INVPCID: the type is checked before the descriptor.
pub(crate) fn invpcid<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    cx.at.operand = cx.describe(insn);
    cx.ask(virt, &Trap::Invpcid)?;
    let (kind, [low, address]) = invalidation(cx, insn)?;
    let context = cx.regime.tag.context;
    let pcid = (low & CR3_PCID_MASK) as u16;
    let gva = Gva(address);
    let tagless = !cx.core.cr4.contains(Cr4::PCIDE) && pcid != 0;
    let bad = match kind {
        0 => low & !CR3_PCID_MASK != 0 || tagless || !gva.is_canonical(cx.core.linear_width()),
        1 => low & !CR3_PCID_MASK != 0 || tagless,
        2 | 3 => false,
        _ => true,
    };
    if bad {
        return Err(Exception::gp0().into());
    }
    let coarse = cx.core.tlb.profile().has(Habits::INVPCID_IS_COARSE);
    let scope = match kind {
        0 | 1 if coarse => FlushScope::ContextNonGlobal(context),
        0 => FlushScope::AddressNonGlobal { context, pcid, gva },
        1 => FlushScope::Pcid(context, pcid),
        2 => FlushScope::Context(context),
        _ => FlushScope::ContextNonGlobal(context),
    };
    cx.core.tlb.flush(cx.ground, scope);
    Ok(Flow::Next)
}
