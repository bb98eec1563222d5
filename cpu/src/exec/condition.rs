//! The sixteen conditions of Jcc, SETcc and CMOVcc (SDM 1 appendix B), and their instructions that are not jumps.

use crate::exec::context::Context;
use crate::exec::{Done, Flow};
use iced_x86::{ConditionCode, Instruction};
use sim_core::arch::access::AccessKind;
use sim_core::arch::rflags::Rflags;

/// Whether a condition holds.
pub(crate) const fn holds(condition: ConditionCode, flags: Rflags) -> bool {
    let carry = flags.contains(Rflags::CF);
    let zero = flags.contains(Rflags::ZF);
    let sign = flags.contains(Rflags::SF);
    let overflow = flags.contains(Rflags::OF);
    let parity = flags.contains(Rflags::PF);
    match condition {
        ConditionCode::None => true,
        ConditionCode::o => overflow,
        ConditionCode::no => !overflow,
        ConditionCode::b => carry,
        ConditionCode::ae => !carry,
        ConditionCode::e => zero,
        ConditionCode::ne => !zero,
        ConditionCode::be => carry || zero,
        ConditionCode::a => !carry && !zero,
        ConditionCode::s => sign,
        ConditionCode::ns => !sign,
        ConditionCode::p => parity,
        ConditionCode::np => !parity,
        ConditionCode::l => sign != overflow,
        ConditionCode::ge => sign == overflow,
        ConditionCode::le => zero || sign != overflow,
        ConditionCode::g => !zero && sign == overflow,
    }
}

/// SETcc.
pub(crate) fn set(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let place = cx.place(insn, 0, AccessKind::Write)?;
    let value = holds(insn.condition_code(), cx.core.rflags);
    cx.put(&place, u64::from(value));
    Ok(Flow::Next)
}

/// CMOVcc: the source is read, and a 32-bit destination's upper half cleared, whatever the condition (SDM 2 CMOVcc).
pub(crate) fn cmov(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let source = cx.value(insn, 1)?;
    let destination = insn.op0_register();
    let old = cx.register(destination);
    let chosen = if holds(insn.condition_code(), cx.core.rflags) { source } else { old };
    cx.set_register(destination, chosen);
    Ok(Flow::Next)
}
