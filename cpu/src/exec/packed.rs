//! SSE and SSE2 integer and bitwise operations on XMM registers (SDM 2, each instruction's page). A memory operand is
//! 16 bytes and aligned. The arithmetic is pure: a function of the destination and the source, lane by lane.

use crate::exec::context::{Context, mask, sign_extend};
use crate::exec::vector::{Alignment, require_xmm};
use crate::exec::{Done, Flow};
use iced_x86::{Instruction, Mnemonic, OpKind};

/// Replaces the destination by a function of it and the source.
fn binary(cx: &mut Context<'_>, insn: &Instruction, compute: impl FnOnce(u128, u128) -> u128) -> Done {
    require_xmm(cx, insn)?;
    let source = cx.vector(insn, 1, Alignment::Required)?;
    let value = compute(cx.xmm(insn.op0_register()), source);
    cx.set_xmm(insn.op0_register(), value);
    Ok(Flow::Next)
}

/// One lane of `bytes` bytes, zero-extended.
const fn lane(vector: u128, index: usize, bytes: usize) -> u64 {
    (vector >> (8 * bytes * index)) as u64 & mask(bytes)
}

/// A vector of lanes of `bytes` bytes, each truncated to its lane.
fn gather(bytes: usize, value: impl Fn(usize) -> u64) -> u128 {
    (0..16 / bytes).map(|index| u128::from(value(index) & mask(bytes)) << (8 * bytes * index)).sum()
}

fn lanewise(a: u128, b: u128, bytes: usize, compute: impl Fn(u64, u64) -> u64) -> u128 {
    gather(bytes, |index| compute(lane(a, index, bytes), lane(b, index, bytes)))
}

/// A lane as a signed number.
const fn signed(value: u64, bytes: usize) -> i64 {
    sign_extend(value, bytes) as i64
}

/// The nearest signed number of `bytes` bytes.
fn saturate(value: i64, bytes: usize) -> u64 {
    let top = (mask(bytes) >> 1) as i64;
    value.clamp(-top - 1, top) as u64
}

/// The nearest unsigned number of `bytes` bytes.
fn saturate_unsigned(value: i64, bytes: usize) -> u64 {
    value.clamp(0, mask(bytes) as i64) as u64
}

const fn all_ones_if(condition: bool) -> u64 {
    if condition { u64::MAX } else { 0 }
}

macro_rules! bitwise {
    ($($name:ident: $compute:expr;)*) => {
        $(
            #[doc = concat!(stringify!($name), " of whole vectors.")]
            pub(crate) fn $name(cx: &mut Context<'_>, insn: &Instruction) -> Done {
                binary(cx, insn, $compute)
            }
        )*
    };
}

bitwise! {
    and: |a, b| a & b;
    and_not: |a, b| !a & b;
    or: |a, b| a | b;
    xor: |a, b| a ^ b;
    multiply_add: multiply_add_words;
    sum_of_differences: sum_of_absolute_differences;
    multiply_low_dwords: |a, b| lanewise(a, b, 8, |a, b| (a & mask(4)).wrapping_mul(b & mask(4)));
}

/// PMADDWD: products of words, added in pairs.
fn multiply_add_words(a: u128, b: u128) -> u128 {
    let product = |index| signed(lane(a, index, 2), 2).wrapping_mul(signed(lane(b, index, 2), 2));
    gather(4, |index| product(2 * index).wrapping_add(product(2 * index + 1)) as u64)
}

/// PSADBW: absolute differences of bytes, added over each half.
fn sum_of_absolute_differences(a: u128, b: u128) -> u128 {
    let difference = |index| lane(a, index, 1).abs_diff(lane(b, index, 1));
    gather(8, |half| (8 * half..8 * half + 8).map(difference).sum())
}

/// The bytes of a lane, from the last letter of an integer instruction's name.
fn letter(insn: &Instruction) -> usize {
    use Mnemonic::{
        Paddb, Paddq, Paddsb, Paddusb, Paddw, Pavgb, Pcmpeqb, Pcmpeqw, Pcmpgtb, Pcmpgtw, Pmaxub, Pminub, Psubb, Psubq,
        Psubsb, Psubusb, Psubw,
    };
    match insn.mnemonic() {
        Paddb | Psubb | Paddsb | Paddusb | Psubsb | Psubusb | Pavgb | Pcmpeqb | Pcmpgtb | Pminub | Pmaxub => 1,
        Paddw | Psubw | Pcmpeqw | Pcmpgtw => 2,
        Paddq | Psubq => 8,
        Mnemonic::Paddd | Mnemonic::Psubd | Mnemonic::Pcmpeqd | Mnemonic::Pcmpgtd => 4,
        _ => 2,
    }
}

macro_rules! lanewise {
    ($($name:ident: $compute:expr;)*) => {
        $(
            #[doc = concat!(stringify!($name), " of each lane.")]
            pub(crate) fn $name(cx: &mut Context<'_>, insn: &Instruction) -> Done {
                let compute: fn(u64, u64, usize) -> u64 = $compute;
                let bytes = letter(insn);
                binary(cx, insn, |a, b| lanewise(a, b, bytes, |a, b| compute(a, b, bytes)))
            }
        )*
    };
}

lanewise! {
    add: |a, b, _| a.wrapping_add(b);
    sub: |a, b, _| a.wrapping_sub(b);
    add_signed: |a, b, bytes| saturate(signed(a, bytes) + signed(b, bytes), bytes);
    add_unsigned: |a, b, bytes| saturate_unsigned(a as i64 + b as i64, bytes);
    sub_signed: |a, b, bytes| saturate(signed(a, bytes) - signed(b, bytes), bytes);
    sub_unsigned: |a, b, bytes| saturate_unsigned(a as i64 - b as i64, bytes);
    average: |a, b, _| (a + b + 1) >> 1;
    minimum_unsigned: |a, b, _| a.min(b);
    maximum_unsigned: |a, b, _| a.max(b);
    minimum_signed: |a, b, bytes| signed(a, bytes).min(signed(b, bytes)) as u64;
    maximum_signed: |a, b, bytes| signed(a, bytes).max(signed(b, bytes)) as u64;
    equal: |a, b, _| all_ones_if(a == b);
    greater: |a, b, bytes| all_ones_if(signed(a, bytes) > signed(b, bytes));
    multiply_low: |a, b, bytes| signed(a, bytes).wrapping_mul(signed(b, bytes)) as u64;
    multiply_high: |a, b, bytes| (signed(a, bytes).wrapping_mul(signed(b, bytes)) >> (8 * bytes)) as u64;
    multiply_high_unsigned: |a, b, bytes| a.wrapping_mul(b) >> (8 * bytes);
}

/// Interleaves lanes of `bytes` bytes, from the halves that begin at lane `from`.
fn interleave(a: u128, b: u128, bytes: usize, from: usize) -> u128 {
    gather(bytes, |index| lane(if index % 2 == 0 { a } else { b }, from + index / 2, bytes))
}

/// PUNPCKLBW and its kin, UNPCKLPS and UNPCKLPD: the low halves.
pub(crate) fn unpack_low(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let bytes = unpacked_bytes(insn.mnemonic());
    binary(cx, insn, |a, b| interleave(a, b, bytes, 0))
}

/// PUNPCKHBW and its kin, UNPCKHPS and UNPCKHPD: the high halves.
pub(crate) fn unpack_high(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let bytes = unpacked_bytes(insn.mnemonic());
    binary(cx, insn, |a, b| interleave(a, b, bytes, 8 / bytes))
}

const fn unpacked_bytes(mnemonic: Mnemonic) -> usize {
    match mnemonic {
        Mnemonic::Punpcklbw | Mnemonic::Punpckhbw => 1,
        Mnemonic::Punpcklwd | Mnemonic::Punpckhwd => 2,
        Mnemonic::Punpckldq | Mnemonic::Punpckhdq | Mnemonic::Unpcklps | Mnemonic::Unpckhps => 4,
        _ => 8,
    }
}

/// PACKSSWB, PACKSSDW and PACKUSWB: signed lanes of both operands, saturated into half of their width.
pub(crate) fn pack(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let (bytes, saturate): (usize, fn(i64, usize) -> u64) = match insn.mnemonic() {
        Mnemonic::Packsswb => (1, saturate),
        Mnemonic::Packssdw => (2, saturate),
        _ => (1, saturate_unsigned),
    };
    binary(cx, insn, |a, b| {
        let half = 8 / bytes;
        gather(bytes, |index| {
            let from = if index < half { a } else { b };
            saturate(signed(lane(from, index % half, 2 * bytes), 2 * bytes), bytes)
        })
    })
}

/// PSLLW PSLLD PSLLQ PSRLW PSRLD PSRLQ PSRAW PSRAD: every lane by one count, the low quadword of a vector or a constant.
pub(crate) fn shift(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_xmm(cx, insn)?;
    let count = match insn.op1_kind() {
        OpKind::Immediate8 => insn.immediate8().into(),
        _ => cx.vector(insn, 1, Alignment::Required)? as u64,
    };
    let old = cx.xmm(insn.op0_register());
    cx.set_xmm(insn.op0_register(), shifted(old, count, insn.mnemonic()));
    Ok(Flow::Next)
}

fn shifted(vector: u128, count: u64, mnemonic: Mnemonic) -> u128 {
    let bytes = match mnemonic {
        Mnemonic::Psllw | Mnemonic::Psrlw | Mnemonic::Psraw => 2,
        Mnemonic::Pslld | Mnemonic::Psrld | Mnemonic::Psrad => 4,
        _ => 8,
    };
    let bits = 8 * bytes as u64;
    let compute = |value: u64| match mnemonic {
        Mnemonic::Psraw | Mnemonic::Psrad => (signed(value, bytes) >> count.min(bits - 1)) as u64,
        _ if count >= bits => 0,
        Mnemonic::Psllw | Mnemonic::Pslld | Mnemonic::Psllq => value << count,
        _ => value >> count,
    };
    gather(bytes, |index| compute(lane(vector, index, bytes)))
}

/// PSLLDQ and PSRLDQ: by bytes.
pub(crate) fn shift_bytes(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_xmm(cx, insn)?;
    let bits = 8 * u32::from(insn.immediate8().min(16));
    let old = cx.xmm(insn.op0_register());
    let value = match insn.mnemonic() {
        Mnemonic::Pslldq => old.checked_shl(bits),
        _ => old.checked_shr(bits),
    };
    cx.set_xmm(insn.op0_register(), value.unwrap_or(0));
    Ok(Flow::Next)
}

/// PSHUFD PSHUFLW PSHUFHW SHUFPS SHUFPD: lanes chosen by a constant.
pub(crate) fn shuffle(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    let order = insn.immediate8();
    let mnemonic = insn.mnemonic();
    let chosen = |index: usize| usize::from(order >> (2 * index)) & 3;
    binary(cx, insn, |a, b| match mnemonic {
        Mnemonic::Pshufd => gather(4, |index| lane(b, chosen(index), 4)),
        Mnemonic::Pshuflw => gather(2, |index| lane(b, if index < 4 { chosen(index) } else { index }, 2)),
        Mnemonic::Pshufhw => gather(2, |index| lane(b, if index < 4 { index } else { 4 + chosen(index - 4) }, 2)),
        Mnemonic::Shufps => gather(4, |index| lane(if index < 2 { a } else { b }, chosen(index), 4)),
        _ => gather(8, |index| lane(if index == 0 { a } else { b }, usize::from(order >> index) & 1, 8)),
    })
}
