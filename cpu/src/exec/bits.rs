//! Single bits and bytes: BT BTS BTR BTC BSF BSR BSWAP (SDM 2, each instruction's page).

use crate::exec::context::{Context, sign_extend};
use crate::exec::operand::{Place, address_bytes, bytes, is_memory};
use crate::exec::{Done, Fault, Flow};
use iced_x86::{Instruction, Mnemonic, OpKind};
use sim_core::arch::access::AccessKind;
use sim_core::arch::rflags::Rflags;

/// BT, BTS, BTR and BTC: CF becomes the bit; the other flags stay (ZF by definition, the rest being undefined).
pub(crate) fn bit_test(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let size = bytes(insn, 0);
    let access = if insn.mnemonic() == Mnemonic::Bt { AccessKind::Read } else { AccessKind::Write };
    let index = cx.value(insn, 1)?;
    let place = bit_string(cx, insn, size, index, access)?;
    let bit = 1 << (index % (8 * size as u64));
    let old = cx.get(&place, size);
    let new = match insn.mnemonic() {
        Mnemonic::Bts => old | bit,
        Mnemonic::Btr => old & !bit,
        Mnemonic::Btc => old ^ bit,
        _ => old,
    };
    if access == AccessKind::Write {
        cx.put(&place, new);
    }
    cx.set_flags(Rflags::CF, if old & bit != 0 { Rflags::CF } else { Rflags::empty() });
    Ok(Flow::Next)
}

/// The operand that holds the bit: a bit index in a register selects any operand of a bit string in memory, on both
/// sides of its address (SDM 1 3.1.1.8 of volume 2: bit(BitBase, BitOffset)).
fn bit_string(
    cx: &mut Context<'_>,
    insn: &Instruction,
    size: usize,
    index: u64,
    access: AccessKind,
) -> Result<Place, Fault> {
    if !is_memory(insn, 0) || insn.op_kind(1) != OpKind::Register {
        return cx.place(insn, 0, access);
    }
    let bits = 8 * size as i64;
    let index = sign_extend(index, size) as i64;
    let away = index.div_euclid(bits).wrapping_mul(size as i64);
    let offset = cx.effective_address(insn, 0).wrapping_add(away as u64);
    let offset = offset & crate::exec::context::mask(address_width(insn));
    let address = cx.linear(Context::operand_segment(insn, 0), offset, size, access)?;
    let access = cx.explicit(access);
    Ok(Place::Memory(cx.span(address, size, access)?))
}

/// The bytes of a memory operand's effective address.
pub(crate) fn address_width(insn: &Instruction) -> usize {
    let register = [insn.memory_base(), insn.memory_index()].into_iter().map(iced_x86::Register::size).max();
    match register {
        Some(bytes) if bytes != 0 => bytes,
        _ if insn.memory_displ_size() == 2 => 2,
        _ => address_bytes(insn).max(4),
    }
}

/// BSF and BSR, also in the encodings of TZCNT and LZCNT where those do not exist: ZF if the source is 0, and then the destination keeps its value.
pub(crate) fn bit_scan(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let source = cx.value(insn, 1)?;
    let found = match insn.mnemonic() {
        Mnemonic::Bsf | Mnemonic::Tzcnt => u64::from(source.trailing_zeros()),
        _ => u64::from(63 - source.leading_zeros().min(63)),
    };
    if source != 0 {
        cx.set_register(insn.op0_register(), found);
    }
    cx.set_flags(Rflags::ZF, if source == 0 { Rflags::ZF } else { Rflags::empty() });
    Ok(Flow::Next)
}

/// BSWAP. Of a 16-bit register the result is undefined; here it is 0, as processors give.
pub(crate) fn bswap(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let register = insn.op0_register();
    let old = cx.register(register);
    let new = match register.size() {
        2 => 0,
        4 => u64::from((old as u32).swap_bytes()),
        _ => old.swap_bytes(),
    };
    cx.set_register(register, new);
    Ok(Flow::Next)
}
