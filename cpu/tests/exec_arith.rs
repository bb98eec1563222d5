//! Arithmetic and its flags against an independent specification: a ripple-carry adder, one bit at a time, and shifts
//! and rotates one place at a time (SDM 1 appendix A; SDM 2 each instruction). Eight bits are enumerated whole.

mod harness;

use cpu::Gpr;
use cpu::exec::flags::{self, Width};
use harness::Machine;
use iced_x86::code_asm::*;
use proptest::prelude::*;
use sim_core::arch::rflags::Rflags;

const ARITHMETIC: Rflags = Rflags::STATUS;

fn flag(condition: bool, flag: Rflags) -> Rflags {
    if condition { flag } else { Rflags::empty() }
}

/// SF, ZF and PF, bit by bit.
fn result_flags(value: u64, bits: u32) -> Rflags {
    let ones = (0..8).filter(|bit| value >> bit & 1 == 1).count();
    let zero = (0..bits).all(|bit| value >> bit & 1 == 0);
    let sign = value >> (bits - 1) & 1 == 1;
    flag(zero, Rflags::ZF) | flag(sign, Rflags::SF) | flag(ones % 2 == 0, Rflags::PF)
}

/// A full adder for each bit. AF is the carry out of bit 3, OF the exclusive or of the last two carries.
fn ripple_add(a: u64, b: u64, carry: bool, bits: u32) -> (u64, Rflags) {
    let (mut sum, mut carry, mut into_sign, mut half) = (0, u64::from(carry), 0, 0);
    for bit in 0..bits {
        let (x, y) = (a >> bit & 1, b >> bit & 1);
        into_sign = carry;
        sum |= (x ^ y ^ carry) << bit;
        carry = u64::from(x + y + carry > 1);
        if bit == 3 {
            half = carry;
        }
    }
    let flags = flag(carry == 1, Rflags::CF) | flag(half == 1, Rflags::AF) | flag(carry != into_sign, Rflags::OF);
    (sum, flags | result_flags(sum, bits))
}

/// Subtraction is addition of the complement with the borrow inverted; CF and AF are the inverted carries.
fn ripple_sub(a: u64, b: u64, borrow: bool, bits: u32) -> (u64, Rflags) {
    let (value, flags) = ripple_add(a, !b, !borrow, bits);
    (value, flags ^ (Rflags::CF | Rflags::AF))
}

#[test]
fn add_and_sub_of_every_byte_pair() {
    for a in 0..=255 {
        for b in 0..=255 {
            for carry in [false, true] {
                let sum = flags::add(a, b, carry, Width::Byte);
                assert_eq!((sum.value, sum.flags), ripple_add(a, b, carry, 8), "{a:#x} + {b:#x} + {carry}");
                let difference = flags::sub(a, b, carry, Width::Byte);
                let expected = ripple_sub(a, b, carry, 8);
                assert_eq!((difference.value, difference.flags), expected, "{a:#x} - {b:#x} - {carry}");
            }
        }
    }
}

/// One place at a time: (value, carry out, and OF as SDM 2 defines it for one place).
type Place = fn(u64, bool, u32) -> (u64, bool, bool);

const fn top(value: u64, bits: u32) -> bool {
    value >> (bits - 1) & 1 == 1
}

fn trim(value: u64, bits: u32) -> u64 {
    value & (u64::MAX >> (64 - bits))
}

/// What is tested: (operand, count, carry, width).
type Shift = fn(u64, u32, bool, Width) -> flags::Computed;

const SHIFTS: [(&str, Place, Shift); 7] = [
    (
        "shl",
        |a, _, bits| (trim(a << 1, bits), top(a, bits), top(a, bits) != top(a << 1, bits)),
        |a, n, _, w| flags::shl(a, n, w),
    ),
    ("shr", |a, _, bits| (a >> 1, a & 1 == 1, top(a, bits)), |a, n, _, w| flags::shr(a, n, w)),
    (
        "sar",
        |a, _, bits| (a >> 1 | u64::from(top(a, bits)) << (bits - 1), a & 1 == 1, false),
        |a, n, _, w| flags::sar(a, n, w),
    ),
    (
        "rol",
        |a, _, bits| {
            let value = trim(a << 1 | u64::from(top(a, bits)), bits);
            (value, value & 1 == 1, (value & 1 == 1) != top(value, bits))
        },
        |a, n, _, w| flags::rol(a, n, w),
    ),
    (
        "ror",
        |a, _, bits| {
            let value = a >> 1 | (a & 1) << (bits - 1);
            (value, a & 1 == 1, top(value, bits) != top(value << 1, bits))
        },
        |a, n, _, w| flags::ror(a, n, w),
    ),
    (
        "rcl",
        |a, carry, bits| {
            let value = trim(a << 1 | u64::from(carry), bits);
            (value, top(a, bits), top(a, bits) != top(value, bits))
        },
        flags::rcl,
    ),
    (
        "rcr",
        |a, carry, bits| {
            let value = a >> 1 | u64::from(carry) << (bits - 1);
            (value, a & 1 == 1, top(value, bits) != top(value << 1, bits))
        },
        flags::rcr,
    ),
];

fn check_shift(index: usize, a: u64, count: u32, carry: bool, width: Width) {
    let (name, place, compute) = SHIFTS[index];
    let (mut value, mut out, mut overflow) = (a, carry, false);
    for _ in 0..count {
        (value, out, overflow) = place(value, out, width.bits());
    }
    let computed = compute(a, count, carry, width);
    let context = format!("{name} {a:#x} by {count}, carry {carry}, {width:?}");
    assert_eq!(computed.value, value, "{context}");
    assert_eq!(computed.flags.contains(Rflags::CF), out, "CF of {context}");
    if count == 1 {
        assert_eq!(computed.flags.contains(Rflags::OF), overflow, "OF of {context}");
    }
    if name.starts_with('s') {
        let mask = Rflags::SF | Rflags::ZF | Rflags::PF;
        assert_eq!(computed.flags & mask, result_flags(value, width.bits()), "{context}");
    }
}

#[test]
fn shifts_and_rotates_of_every_byte() {
    for index in 0..SHIFTS.len() {
        for a in 0..=255 {
            for count in 1..32 {
                for carry in [false, true] {
                    check_shift(index, a, count, carry, Width::Byte);
                }
            }
        }
    }
}

/// Every DIV and IDIV of 16 by 8 bits, against i32 arithmetic.
#[test]
fn divisions_of_every_word_by_a_byte() {
    for dividend in 0..=0xffff_u64 {
        for divisor in [0, 1, 2, 3, 7, 0x10, 0x7f, 0x80, 0x81, 0xfe, 0xff_u64] {
            let unsigned = (divisor != 0).then(|| (dividend / divisor, dividend % divisor));
            let unsigned = unsigned.filter(|(quotient, _)| *quotient < 0x100);
            assert_eq!(flags::div(dividend >> 8, dividend & 0xff, divisor, Width::Byte), unsigned);
            let (a, b) = (i32::from(dividend as u16 as i16), i32::from(divisor as u8 as i8));
            let signed = (b != 0).then(|| (a / b, a % b)).filter(|(quotient, _)| (-128..128).contains(quotient));
            let signed = signed.map(|(quotient, rest)| (u64::from(quotient as u8), u64::from(rest as u8)));
            assert_eq!(flags::idiv(dividend >> 8, dividend & 0xff, divisor, Width::Byte), signed, "{a} / {b}");
        }
    }
}

/// An instruction on rAX and rBX, or their parts.
type Emit = fn(&mut CodeAssembler, Width) -> Result<(), IcedError>;

macro_rules! emit {
    ($name:ident) => {
        |a, width| match width {
            Width::Byte => a.$name(al, bl),
            Width::Word => a.$name(ax, bx),
            Width::Dword => a.$name(eax, ebx),
            Width::Qword => a.$name(rax, rbx),
        }
    };
}

/// The specification of a two-operand instruction: (result, flags) of (a, b, carry, bits).
type Spec = fn(u64, u64, bool, u32) -> (u64, Rflags);

const BINARY: [(&str, Emit, Spec); 9] = [
    ("add", emit!(add), |a, b, _, bits| ripple_add(a, b, false, bits)),
    ("adc", emit!(adc), ripple_add),
    ("sub", emit!(sub), |a, b, _, bits| ripple_sub(a, b, false, bits)),
    ("sbb", emit!(sbb), ripple_sub),
    ("cmp", emit!(cmp), |a, b, _, bits| (a, ripple_sub(a, b, false, bits).1)),
    ("and", emit!(and), |a, b, _, bits| (a & b, result_flags(a & b, bits))),
    ("or", emit!(or), |a, b, _, bits| (a | b, result_flags(a | b, bits))),
    ("xor", emit!(xor), |a, b, _, bits| (a ^ b, result_flags(a ^ b, bits))),
    ("test", emit!(test), |a, b, _, bits| (a, result_flags(a & b, bits))),
];

/// Writing a part of a register: 32 bits clear the upper half (SDM 1 3.4.1.1).
fn merged(old: u64, value: u64, width: Width) -> u64 {
    match width {
        Width::Byte | Width::Word => (old & !width.mask()) | value,
        Width::Dword | Width::Qword => value,
    }
}

fn width() -> impl Strategy<Value = Width> {
    prop::sample::select(&Width::ALL[..])
}

/// Values near the edges of every width, and any.
fn operand() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), (0_u32..64, -2_i64..3).prop_map(|(bit, off)| (1_u64 << bit).wrapping_add(off as u64))]
}

proptest! {
    #[test]
    fn binary_instructions(a in operand(), b in operand(), dirty in any::<bool>(), width in width()) {
        for (name, emit, spec) in BINARY {
            let mut machine = Machine::long64();
            machine.code64(|assembler| emit(assembler, width));
            machine.set(Gpr::Rax, a);
            machine.set(Gpr::Rbx, b);
            // All flags set or all clear before: nothing may leak through.
            machine.core.rflags = if dirty { ARITHMETIC | Rflags::FIXED } else { Rflags::FIXED };
            machine.retire(1);
            let (value, flags) = spec(a & width.mask(), b & width.mask(), dirty, width.bits());
            let writes = !matches!(name, "cmp" | "test");
            let expected = if writes { merged(a, value, width) } else { a };
            prop_assert_eq!(machine.gpr(Gpr::Rax), expected, "{} {:?}", name, width);
            prop_assert_eq!(machine.status(), flags, "flags of {} {:?}", name, width);
        }
    }

    #[test]
    fn shifts_of_every_width(a in operand(), count in 1_u32..64, carry in any::<bool>(), width in width()) {
        let count = width.count(u64::from(count));
        prop_assume!(count != 0);
        for index in 0..SHIFTS.len() {
            check_shift(index, a & width.mask(), count, carry, width);
        }
    }

    /// Multiplications against a schoolbook product of 32-bit halves.
    #[test]
    fn products(a in operand(), b in operand()) {
        let half = |value: u64| (value & 0xffff_ffff, value >> 32);
        let ((a0, a1), (b0, b1)) = (half(a), half(b));
        let middle = ((a0 * b0) >> 32) + ((a1 * b0) & 0xffff_ffff) + ((a0 * b1) & 0xffff_ffff);
        let high = a1 * b1 + ((a1 * b0) >> 32) + ((a0 * b1) >> 32) + (middle >> 32);
        prop_assert_eq!(flags::mul(a, b, Width::Qword), (a.wrapping_mul(b), high, high != 0));
        let signed_high = (high as i64)
            .wrapping_sub(if (a as i64) < 0 { b as i64 } else { 0 })
            .wrapping_sub(if (b as i64) < 0 { a as i64 } else { 0 }) as u64;
        let low = a.wrapping_mul(b);
        let overflow = signed_high != if (low as i64) < 0 { u64::MAX } else { 0 };
        prop_assert_eq!(flags::imul(a, b, Width::Qword), (low, signed_high, overflow));
    }

    /// Division undoes multiplication.
    #[test]
    fn quotients(quotient in operand(), divisor in operand(), rest in operand()) {
        prop_assume!(divisor != 0);
        let rest = rest % divisor;
        let dividend = u128::from(quotient) * u128::from(divisor) + u128::from(rest);
        let (high, low) = ((dividend >> 64) as u64, dividend as u64);
        prop_assert_eq!(flags::div(high, low, divisor, Width::Qword), Some((quotient, rest)));
    }
}

/// SDM 2 INC, DEC: CF unaffected; NEG: CF says whether the operand was not 0; NOT: no flags.
#[test]
fn one_operand_instructions() {
    let edges = [0, 1, 0xf, 0x10, 0x7f, 0x80, 0xff];
    for value in edges {
        for carry in [false, true] {
            let before = Rflags::FIXED | flag(carry, Rflags::CF);
            let run = |emit: fn(&mut CodeAssembler) -> Result<(), IcedError>| {
                let mut machine = Machine::long64();
                machine.code64(emit);
                machine.set(Gpr::Rax, value);
                machine.core.rflags = before;
                machine.retire(1);
                (machine.gpr(Gpr::Rax), machine.status())
            };
            let (sum, flags) = ripple_add(value, 1, false, 8);
            assert_eq!(run(|a| a.inc(al)), (sum, (flags - Rflags::CF) | flag(carry, Rflags::CF)));
            let (difference, flags) = ripple_sub(value, 1, false, 8);
            assert_eq!(run(|a| a.dec(al)), (difference, (flags - Rflags::CF) | flag(carry, Rflags::CF)));
            assert_eq!(run(|a| a.neg(al)), ripple_sub(0, value, false, 8));
            assert_eq!(run(|a| a.not(al)), (value ^ 0xff, flag(carry, Rflags::CF)));
        }
    }
}

/// Memory as a destination, at every width, with its neighbours left alone and across a page boundary.
#[test]
fn memory_destinations() {
    for (width, offset) in Width::ALL.into_iter().flat_map(|width| [(width, 0x100), (width, 0xfff)]) {
        let at = harness::DATA + offset;
        let mut machine = Machine::long64();
        machine.ground.mem.write_bytes(sim_core::Hpa(at), &[0xff; 16]);
        machine.code64(|a| match width {
            Width::Byte => a.add(byte_ptr(rdi), 1),
            Width::Word => a.add(word_ptr(rdi), 1),
            Width::Dword => a.add(dword_ptr(rdi), 1),
            Width::Qword => a.add(qword_ptr(rdi), 1),
        });
        machine.set(Gpr::Rdi, at);
        machine.retire(1);
        let expected = if width == Width::Qword { 0 } else { u64::MAX << width.bits() };
        assert_eq!(machine.quad(at), expected, "{width:?} at {at:#x}");
        assert_eq!(machine.quad(at + 8), u64::MAX);
        assert!(machine.status().contains(Rflags::CF | Rflags::ZF));
    }
}
