//! IN and OUT (SDM 2; SDM 1 18.5, I/O privilege and permission bitmap). INS and OUTS are strings.
//!
//! No device is modelled: an IN that nothing intercepts reads ones, as an unclaimed bus cycle does, and an OUT is told
//! to whoever runs the processor.

use crate::core::Gpr;
use crate::exec::context::{Context, mask};
use crate::exec::flagops::iopl;
use crate::exec::{Done, Fault, Flow};
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, OpKind};
use sim_core::arch::exception::Exception;

/// Where a 32- or 64-bit TSS keeps the offset of its I/O permission bitmap.
const BITMAP_BASE: u64 = 0x66;

/// #GP(0) unless CPL <= IOPL (which virtual-8086 mode does not look at) or the TSS's bitmap has a 0 for each port.
pub(crate) fn require_port(cx: &mut Context<'_>, port: u16, bytes: usize) -> Result<(), Fault> {
    if cx.is_real_mode() || (!cx.is_virtual_8086() && cx.core.cpl() <= iopl(cx)) {
        return Ok(());
    }
    let tr = cx.core.segments.tr;
    let denied = Exception::gp0();
    let has_bitmap = !tr.rights.is_unusable() && matches!(tr.rights.kind(), 9 | 11) && tr.limit >= 0x67;
    if !has_bitmap {
        return Err(denied.into());
    }
    let base = cx.read_system(tr.base.wrapping_add(BITMAP_BASE), 2)?;
    let at = base + u64::from(port / 8);
    // The processor reads two bytes, since the ports of one access may straddle a byte.
    if at + 1 > u64::from(tr.limit) {
        return Err(denied.into());
    }
    let bits = cx.read_system(tr.base.wrapping_add(at), 2)? >> (port % 8);
    if bits & ((1 << bytes) - 1) == 0 { Ok(()) } else { Err(denied.into()) }
}

/// The port that DX names.
pub(crate) fn port_of_dx(cx: &Context<'_>) -> u16 {
    cx.core.gpr(Gpr::Rdx) as u16
}

fn port_operand(cx: &Context<'_>, insn: &Instruction, operand: u32) -> u16 {
    match insn.op_kind(operand) {
        OpKind::Register => cx.register(insn.op_register(operand)) as u16,
        _ => insn.immediate8().into(),
    }
}

pub(crate) fn input<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let register = insn.op0_register();
    let port = port_operand(cx, insn, 1);
    let bytes = register.size();
    require_port(cx, port, bytes)?;
    cx.ask(virt, &Trap::Io { port, bytes: bytes as u8, input: true, string: None })?;
    cx.set_register(register, mask(bytes));
    Ok(Flow::Next)
}

pub(crate) fn output<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    let register = insn.op1_register();
    let port = port_operand(cx, insn, 0);
    let bytes = register.size();
    require_port(cx, port, bytes)?;
    cx.ask(virt, &Trap::Io { port, bytes: bytes as u8, input: false, string: None })?;
    Ok(Flow::Out { port, bytes: bytes as u8, value: cx.register(register) as u32 })
}
