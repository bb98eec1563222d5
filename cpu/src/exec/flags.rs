//! The pure arithmetic: operands and flags in, result and status flags out (SDM 1 appendix A, SDM 2 each instruction).
//!
//! Flags that the manual leaves undefined get one fixed value, so that runs repeat: AF of logic and shifts is cleared,
//! OF of a shift or rotate by more than one place is computed as for the last place, and the flags that MUL and DIV
//! leave open keep their values (their callers see to that).

use sim_core::arch::rflags::Rflags;

/// What an operation computes: the result, truncated, and its status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Computed {
    /// The result.
    pub value: u64,
    /// The status flags among those that the operation defines.
    pub flags: Rflags,
}

/// An operand's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Word,
    /// 32 bits.
    Dword,
    /// 64 bits.
    Qword,
}

impl Width {
    /// Every width.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Word, Self::Dword, Self::Qword];

    /// The width of so many bytes.
    #[must_use]
    pub const fn of_bytes(bytes: usize) -> Self {
        match bytes {
            1 => Self::Byte,
            2 => Self::Word,
            4 => Self::Dword,
            _ => Self::Qword,
        }
    }

    /// Bits: 8, 16, 32 or 64.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::Byte => 8,
            Self::Word => 16,
            Self::Dword => 32,
            Self::Qword => 64,
        }
    }

    /// The bits of an operand.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The most significant bit.
    #[must_use]
    pub const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// Sign-extends an operand.
    #[must_use]
    pub const fn extend(self, value: u64) -> u64 {
        let unused = 64 - self.bits();
        (((value << unused) as i64) >> unused) as u64
    }

    /// The shift count that the processor uses: 5 bits, or 6 for quadwords (SDM 2 SHL).
    #[must_use]
    pub const fn count(self, count: u64) -> u32 {
        let mask = if matches!(self, Self::Qword) { 0x3f } else { 0x1f };
        (count & mask) as u32
    }
}

const fn when(condition: bool, flag: Rflags) -> Rflags {
    if condition { flag } else { Rflags::empty() }
}

/// SF, ZF and PF of a result.
#[must_use]
pub const fn of_result(value: u64, width: Width) -> Rflags {
    when(value & width.mask() == 0, Rflags::ZF)
        .union(when(value & width.sign() != 0, Rflags::SF))
        .union(when((value as u8).count_ones().is_multiple_of(2), Rflags::PF))
}

/// `a + b + carry` (ADD, ADC, INC, XADD).
#[must_use]
pub const fn add(a: u64, b: u64, carry: bool, width: Width) -> Computed {
    let (a, b) = (a & width.mask(), b & width.mask());
    let wide = a as u128 + b as u128 + carry as u128;
    let value = wide as u64 & width.mask();
    let flags = of_result(value, width)
        .union(when(wide > width.mask() as u128, Rflags::CF))
        .union(when((a ^ b ^ value) & 0x10 != 0, Rflags::AF))
        .union(when((a ^ value) & (b ^ value) & width.sign() != 0, Rflags::OF));
    Computed { value, flags }
}

/// `a - b - borrow` (SUB, SBB, CMP, DEC, NEG, CMPXCHG).
#[must_use]
pub const fn sub(a: u64, b: u64, borrow: bool, width: Width) -> Computed {
    let (a, b) = (a & width.mask(), b & width.mask());
    let value = a.wrapping_sub(b).wrapping_sub(borrow as u64) & width.mask();
    let flags = of_result(value, width)
        .union(when((a as u128) < b as u128 + borrow as u128, Rflags::CF))
        .union(when((a ^ b ^ value) & 0x10 != 0, Rflags::AF))
        .union(when((a ^ b) & (a ^ value) & width.sign() != 0, Rflags::OF));
    Computed { value, flags }
}

/// The result of AND, OR, XOR or TEST: CF and OF cleared.
#[must_use]
pub const fn logic(value: u64, width: Width) -> Computed {
    let value = value & width.mask();
    Computed { value, flags: of_result(value, width) }
}

/// SHL by a count already reduced and not 0.
#[must_use]
pub const fn shl(a: u64, count: u32, width: Width) -> Computed {
    let wide = ((a & width.mask()) as u128) << count;
    let value = wide as u64 & width.mask();
    let carry = (wide >> width.bits()) & 1 != 0;
    let overflow = carry != (value & width.sign() != 0);
    Computed { value, flags: shifted(value, carry, overflow, width) }
}

/// SHR by a count already reduced and not 0.
#[must_use]
pub const fn shr(a: u64, count: u32, width: Width) -> Computed {
    let a = a & width.mask();
    let value = a >> (count - 1) >> 1;
    let carry = (a >> (count - 1)) & 1 != 0;
    // The bit above the result's sign before the last place: the operand's own sign for a count of 1.
    let overflow = (a >> (count - 1)) & width.sign() != 0;
    Computed { value, flags: shifted(value, carry, overflow, width) }
}

/// SAR by a count already reduced and not 0.
#[must_use]
pub const fn sar(a: u64, count: u32, width: Width) -> Computed {
    let a = width.extend(a) as i64;
    let value = (a >> (count - 1) >> 1) as u64 & width.mask();
    let carry = (a >> (count - 1)) & 1 != 0;
    Computed { value, flags: shifted(value, carry, false, width) }
}

const fn shifted(value: u64, carry: bool, overflow: bool, width: Width) -> Rflags {
    of_result(value, width).union(when(carry, Rflags::CF)).union(when(overflow, Rflags::OF))
}

/// SHLD by a count already reduced and not 0: the source's high bits come in from below.
#[must_use]
pub const fn shld(a: u64, source: u64, count: u32, width: Width) -> Computed {
    let bits = width.bits();
    let wide = ((a & width.mask()) as u128) << bits | (source & width.mask()) as u128;
    let value = ((wide << count) >> bits) as u64 & width.mask();
    let carry = (wide >> (2 * bits - count)) & 1 != 0;
    let overflow = (a ^ value) & width.sign() != 0;
    Computed { value, flags: shifted(value, carry, overflow, width) }
}

/// SHRD by a count already reduced and not 0: the source's low bits come in from above.
#[must_use]
pub const fn shrd(a: u64, source: u64, count: u32, width: Width) -> Computed {
    let wide = ((source & width.mask()) as u128) << width.bits() | (a & width.mask()) as u128;
    let value = (wide >> count) as u64 & width.mask();
    let carry = (wide >> (count - 1)) & 1 != 0;
    let overflow = (a ^ value) & width.sign() != 0;
    Computed { value, flags: shifted(value, carry, overflow, width) }
}

/// ROL by a count already reduced and not 0; defines CF and OF only.
#[must_use]
pub const fn rol(a: u64, count: u32, width: Width) -> Computed {
    let value = rotate_left(a & width.mask(), count, width.bits()) as u64;
    let carry = value & 1 != 0;
    let overflow = carry != (value & width.sign() != 0);
    Computed { value, flags: when(carry, Rflags::CF).union(when(overflow, Rflags::OF)) }
}

/// ROR by a count already reduced and not 0; defines CF and OF only.
#[must_use]
pub const fn ror(a: u64, count: u32, width: Width) -> Computed {
    let bits = width.bits();
    let value = rotate_left(a & width.mask(), bits - count % bits, bits) as u64;
    let carry = value & width.sign() != 0;
    let overflow = carry != (value & (width.sign() >> 1) != 0);
    Computed { value, flags: when(carry, Rflags::CF).union(when(overflow, Rflags::OF)) }
}

/// RCL through the carry by a count already reduced and not 0; defines CF and OF only.
#[must_use]
pub const fn rcl(a: u64, count: u32, carry: bool, width: Width) -> Computed {
    let bits = width.bits() + 1;
    let whole = through_carry(a, carry, count % bits, width);
    let value = whole as u64 & width.mask();
    let carry = (whole >> width.bits()) & 1 != 0;
    let overflow = carry != (value & width.sign() != 0);
    Computed { value, flags: when(carry, Rflags::CF).union(when(overflow, Rflags::OF)) }
}

/// RCR through the carry by a count already reduced and not 0; defines CF and OF only.
#[must_use]
pub const fn rcr(a: u64, count: u32, carry: bool, width: Width) -> Computed {
    let bits = width.bits() + 1;
    let whole = through_carry(a, carry, bits - count % bits, width);
    let value = whole as u64 & width.mask();
    let carry = (whole >> width.bits()) & 1 != 0;
    let overflow = (value ^ (value << 1)) & width.sign() != 0;
    Computed { value, flags: when(carry, Rflags::CF).union(when(overflow, Rflags::OF)) }
}

const fn through_carry(a: u64, carry: bool, count: u32, width: Width) -> u128 {
    let whole = ((a & width.mask()) as u128) | ((carry as u128) << width.bits());
    let bits = width.bits() + 1;
    let count = count % bits;
    let mask = (1u128 << bits) - 1;
    ((whole << count) | (whole >> (bits - count))) & mask
}

const fn rotate_left(a: u64, count: u32, bits: u32) -> u128 {
    let count = count % bits;
    let mask = (1u128 << bits) - 1;
    (((a as u128) << count) | ((a as u128) >> (bits - count))) & mask
}

/// An unsigned product: low half, high half, and whether the high half holds anything (CF and OF of MUL).
#[must_use]
pub const fn mul(a: u64, b: u64, width: Width) -> (u64, u64, bool) {
    let product = (a & width.mask()) as u128 * (b & width.mask()) as u128;
    let low = product as u64 & width.mask();
    let high = (product >> width.bits()) as u64 & width.mask();
    (low, high, high != 0)
}

/// A signed product: low half, high half, and whether it does not fit the low half (CF and OF of IMUL).
#[must_use]
pub const fn imul(a: u64, b: u64, width: Width) -> (u64, u64, bool) {
    let product = (width.extend(a) as i64 as i128) * (width.extend(b) as i64 as i128);
    let low = product as u64 & width.mask();
    let high = (product >> width.bits()) as u64 & width.mask();
    (low, high, product != width.extend(low) as i64 as i128)
}

/// Quotient and remainder of an unsigned division of `high:low`; none is #DE.
#[must_use]
pub const fn div(high: u64, low: u64, divisor: u64, width: Width) -> Option<(u64, u64)> {
    let divisor = (divisor & width.mask()) as u128;
    let dividend = (((high & width.mask()) as u128) << width.bits()) | (low & width.mask()) as u128;
    if divisor == 0 || dividend / divisor > width.mask() as u128 {
        return None;
    }
    Some(((dividend / divisor) as u64, (dividend % divisor) as u64))
}

/// Quotient and remainder of a signed division of `high:low`, truncated towards zero; none is #DE.
#[must_use]
pub const fn idiv(high: u64, low: u64, divisor: u64, width: Width) -> Option<(u64, u64)> {
    let divisor = width.extend(divisor) as i64 as i128;
    let top = width.extend(high) as i64 as i128;
    let dividend = (top << width.bits()) | (low & width.mask()) as i128;
    if divisor == 0 {
        return None;
    }
    // The one quotient of two i128 that does not fit one, -2^127 / -1, does not fit the result either.
    let Some(quotient) = dividend.checked_div(divisor) else { return None };
    let narrow = quotient as u64 & width.mask();
    if width.extend(narrow) as i64 as i128 != quotient {
        return None;
    }
    Some((narrow, (dividend % divisor) as u64 & width.mask()))
}
