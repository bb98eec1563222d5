//! Counts, bit fields and their kin: POPCNT LZCNT TZCNT, BMI1, BMI2, MOVBE, CRC32, ADCX and ADOX (SDM 2, each
//! instruction's page).
//!
//! Each is #UD on a processor that does not offer it, but for LZCNT and TZCNT, whose encodings are then BSR and BSF with
//! a prefix that means nothing. Flags that the manual leaves undefined are cleared.

use crate::exec::bits::bit_scan;
use crate::exec::context::Context;
use crate::exec::flags::{self, Computed, Width};
use crate::exec::operand::bytes;
use crate::exec::{Done, Fault, Flow};
use crate::profile::Features;
use iced_x86::{Instruction, Mnemonic, Register};
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;

/// #UD on a processor without a feature.
pub(crate) fn require(cx: &Context<'_>, feature: Features) -> Result<(), Fault> {
    if cx.core.features.contains(feature) { Ok(()) } else { Err(Exception::ud().into()) }
}

/// BMI instructions encoded with VEX do not exist in real mode (SDM 2A 2.3.2).
fn require_bmi(cx: &Context<'_>) -> Result<(), Fault> {
    require(cx, Features::BMI)?;
    if cx.has_paragraphs() { Err(Exception::ud().into()) } else { Ok(()) }
}

const fn when(condition: bool, flag: Rflags) -> Rflags {
    if condition { flag } else { Rflags::empty() }
}

/// SF and ZF of a result, with a carry; OF, AF and PF are 0.
const fn result_flags(value: u64, carry: bool, width: Width) -> Computed {
    let flags = flags::of_result(value, width).difference(Rflags::PF).union(when(carry, Rflags::CF));
    Computed { value, flags }
}

/// POPCNT: ZF alone.
pub(crate) fn popcnt(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require(cx, Features::POPCNT)?;
    let source = cx.value(insn, 1)?;
    cx.set_register(insn.op0_register(), source.count_ones().into());
    cx.set_flags(Rflags::STATUS, when(source == 0, Rflags::ZF));
    Ok(Flow::Next)
}

/// LZCNT and TZCNT: CF if the source is 0, ZF if the result is.
pub(crate) fn zero_count(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if !cx.core.features.contains(Features::BMI) {
        return bit_scan(cx, insn);
    }
    let source = cx.value(insn, 1)?;
    let bits = 8 * bytes(insn, 0) as u32;
    let count = match insn.mnemonic() {
        Mnemonic::Tzcnt => source.trailing_zeros().min(bits),
        _ => source.leading_zeros() - (64 - bits),
    };
    cx.set_register(insn.op0_register(), count.into());
    cx.set_flags(Rflags::STATUS, when(source == 0, Rflags::CF).union(when(count == 0, Rflags::ZF)));
    Ok(Flow::Next)
}

/// ANDN and the instructions on the lowest set bit: the last operand is the one that may be in memory.
pub(crate) fn lowest_bit(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_bmi(cx)?;
    let width = Width::of_bytes(bytes(insn, 0));
    let source = cx.value(insn, insn.op_count() - 1)?;
    let below = source.wrapping_sub(1);
    let (value, carry) = match insn.mnemonic() {
        Mnemonic::Andn => (!cx.register(insn.op1_register()) & source, false),
        Mnemonic::Blsi => (source & source.wrapping_neg(), source != 0),
        Mnemonic::Blsmsk => (source ^ below, source == 0),
        _ => (source & below, source == 0),
    };
    let value = value & width.mask();
    cx.set_register(insn.op0_register(), value);
    cx.set_flags(Rflags::STATUS, result_flags(value, carry, width).flags);
    Ok(Flow::Next)
}

/// BEXTR and BZHI: a field of the second operand that the third names.
pub(crate) fn field(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_bmi(cx)?;
    let width = Width::of_bytes(bytes(insn, 0));
    let source = cx.value(insn, 1)?;
    let control = cx.register(insn.op_register(2));
    let low = |value: u64, bits: u64| if bits >= 64 { value } else { value & ((1 << bits) - 1) };
    let computed = if insn.mnemonic() == Mnemonic::Bextr {
        let (start, length) = (control & 0xff, control >> 8 & 0xff);
        let value = low(source.checked_shr(start as u32).unwrap_or(0), length);
        Computed { value, flags: when(value == 0, Rflags::ZF) }
    } else {
        let from = control & 0xff;
        result_flags(low(source, from), from >= u64::from(width.bits()), width)
    };
    cx.set_register(insn.op0_register(), computed.value);
    cx.set_flags(Rflags::STATUS, computed.flags);
    Ok(Flow::Next)
}

/// PDEP: the low bits of `source` to the set bits of `mask`.
const fn deposit(source: u64, mask: u64) -> u64 {
    let (mut value, mut left, mut index) = (0, mask, 0);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        if (source >> index) & 1 != 0 {
            value |= bit;
        }
        left ^= bit;
        index += 1;
    }
    value
}

/// PEXT: the bits of `source` at the set bits of `mask`, together.
const fn extract(source: u64, mask: u64) -> u64 {
    let (mut value, mut left, mut index) = (0, mask, 0);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        if source & bit != 0 {
            value |= 1 << index;
        }
        left ^= bit;
        index += 1;
    }
    value
}

/// PDEP and PEXT.
pub(crate) fn scatter(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_bmi(cx)?;
    let mask = cx.value(insn, 2)?;
    let source = cx.register(insn.op1_register());
    let value = if insn.mnemonic() == Mnemonic::Pdep { deposit(source, mask) } else { extract(source, mask) };
    cx.set_register(insn.op0_register(), value);
    Ok(Flow::Next)
}

/// MULX: an unsigned product by rDX that touches no flag; the high half is written last.
pub(crate) fn mulx(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_bmi(cx)?;
    let size = bytes(insn, 0);
    let factor = cx.value(insn, 2)?;
    let other = cx.register(if size == 8 { Register::RDX } else { Register::EDX });
    let (low, high, _) = flags::mul(other, factor, Width::of_bytes(size));
    cx.set_register(insn.op1_register(), low);
    cx.set_register(insn.op0_register(), high);
    Ok(Flow::Next)
}

/// RORX, SARX, SHLX and SHRX: no flags.
pub(crate) fn shift_without_flags(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_bmi(cx)?;
    let width = Width::of_bytes(bytes(insn, 0));
    let source = cx.value(insn, 1)?;
    let raw = match insn.mnemonic() {
        Mnemonic::Rorx => insn.immediate8().into(),
        _ => cx.register(insn.op_register(2)),
    };
    let count = width.count(raw);
    let value = match insn.mnemonic() {
        _ if count == 0 => source,
        Mnemonic::Rorx => flags::ror(source, count, width).value,
        Mnemonic::Sarx => flags::sar(source, count, width).value,
        Mnemonic::Shlx => flags::shl(source, count, width).value,
        _ => flags::shr(source, count, width).value,
    };
    cx.set_register(insn.op0_register(), value);
    Ok(Flow::Next)
}

/// MOVBE: a load or a store with the bytes turned around.
pub(crate) fn movbe(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require(cx, Features::MOVBE)?;
    let size = bytes(insn, 0);
    let value = cx.value(insn, 1)?;
    let place = cx.place(insn, 0, AccessKind::Write)?;
    cx.put(&place, value.swap_bytes() >> (64 - 8 * size));
    Ok(Flow::Next)
}

/// CRC32 accumulates the Castagnoli polynomial, bits reflected.
pub(crate) fn crc32(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    require(cx, Features::POPCNT)?;
    let source = cx.value(insn, 1)?;
    let mut crc = cx.register(insn.op0_register()) as u32;
    for index in 0..bytes(insn, 1) {
        crc ^= u32::from((source >> (8 * index)) as u8);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    cx.set_register(insn.op0_register(), crc.into());
    Ok(Flow::Next)
}

/// ADCX and ADOX: additions whose only flag is CF, or OF used as a carry.
pub(crate) fn add_with_flag(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require(cx, Features::ADX)?;
    let flag = if insn.mnemonic() == Mnemonic::Adcx { Rflags::CF } else { Rflags::OF };
    let addend = cx.value(insn, 1)?;
    let old = cx.register(insn.op0_register());
    let sum = flags::add(old, addend, cx.flag(flag), Width::of_bytes(bytes(insn, 0)));
    cx.set_register(insn.op0_register(), sum.value);
    cx.set_flags(flag, when(sum.flags.contains(Rflags::CF), flag));
    Ok(Flow::Next)
}
