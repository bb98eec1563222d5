//! The arithmetic of L0's emulator, as pure functions (SDM 2, each instruction's page; emulate.c `fastop`).

use iced_x86::Mnemonic;
use sim_core::arch::rflags::Rflags;

/// What an instruction does to its first operand, given its second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// ADD, and ADC with the carry.
    Add,
    /// ADC.
    Adc,
    /// SUB.
    Sub,
    /// SBB.
    Sbb,
    /// CMP: SUB without a result.
    Cmp,
    /// AND.
    And,
    /// TEST: AND without a result.
    Test,
    /// OR.
    Or,
    /// XOR.
    Xor,
    /// NOT, which has no flags.
    Not,
    /// NEG.
    Neg,
    /// INC, which keeps CF.
    Inc,
    /// DEC, which keeps CF.
    Dec,
    /// BT: CF takes the bit.
    Bt,
    /// BTS.
    Bts,
    /// BTR.
    Btr,
    /// BTC.
    Btc,
}

/// Instructions by what they do.
const TABLE: [(Mnemonic, Alu); 17] = [
    (Mnemonic::Add, Alu::Add),
    (Mnemonic::Adc, Alu::Adc),
    (Mnemonic::Sub, Alu::Sub),
    (Mnemonic::Sbb, Alu::Sbb),
    (Mnemonic::Cmp, Alu::Cmp),
    (Mnemonic::And, Alu::And),
    (Mnemonic::Test, Alu::Test),
    (Mnemonic::Or, Alu::Or),
    (Mnemonic::Xor, Alu::Xor),
    (Mnemonic::Not, Alu::Not),
    (Mnemonic::Neg, Alu::Neg),
    (Mnemonic::Inc, Alu::Inc),
    (Mnemonic::Dec, Alu::Dec),
    (Mnemonic::Bt, Alu::Bt),
    (Mnemonic::Bts, Alu::Bts),
    (Mnemonic::Btr, Alu::Btr),
    (Mnemonic::Btc, Alu::Btc),
];

const LOGIC: Rflags = Rflags::STATUS.difference(Rflags::AF);

impl Alu {
    /// What an instruction does, if it is one of these.
    #[must_use]
    pub fn of(mnemonic: Mnemonic) -> Option<Self> {
        TABLE.iter().find(|(known, _)| *known == mnemonic).map(|(_, alu)| *alu)
    }

    /// Whether the result is written.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test | Self::Bt)
    }

    /// Whether the second operand is the number of a bit.
    #[must_use]
    pub const fn is_bit(self) -> bool {
        matches!(self, Self::Bt | Self::Bts | Self::Btr | Self::Btc)
    }

    /// The result, and the flags after. AF of AND, OR, XOR and TEST is undefined and stays; so do OF, SF, AF and PF of
    /// the bit instructions.
    #[must_use]
    pub fn apply(self, first: u64, second: u64, bytes: usize, flags: Rflags) -> (u64, Rflags) {
        let mask = u64::MAX >> (64 - 8 * bytes);
        let (first, second) = (first & mask, second & mask);
        let carry = u64::from(flags.contains(Rflags::CF));
        match self {
            Self::Add => sum(first, second, 0, bytes, flags),
            Self::Adc => sum(first, second, carry, bytes, flags),
            Self::Sub | Self::Cmp => difference(first, second, 0, bytes, flags),
            Self::Sbb => difference(first, second, carry, bytes, flags),
            Self::Neg => difference(0, first, 0, bytes, flags),
            Self::And | Self::Test => logic(first & second, bytes, flags),
            Self::Or => logic(first | second, bytes, flags),
            Self::Xor => logic(first ^ second, bytes, flags),
            Self::Not => (!first & mask, flags),
            Self::Inc => keep_carry(sum(first, 1, 0, bytes, flags), flags),
            Self::Dec => keep_carry(difference(first, 1, 0, bytes, flags), flags),
            Self::Bt | Self::Bts | Self::Btr | Self::Btc => {
                let bit = 1 << (second % (8 * bytes as u64));
                let mut after = flags;
                after.set(Rflags::CF, first & bit != 0);
                let value = match self {
                    Self::Bts => first | bit,
                    Self::Btr => first & !bit,
                    Self::Btc => first ^ bit,
                    _ => first,
                };
                (value, after)
            }
        }
    }
}

fn keep_carry((value, mut after): (u64, Rflags), before: Rflags) -> (u64, Rflags) {
    after.set(Rflags::CF, before.contains(Rflags::CF));
    (value, after)
}

/// ZF, SF and PF of a result.
fn of_result(value: u64, bytes: usize) -> Rflags {
    let mut flags = Rflags::empty();
    flags.set(Rflags::ZF, value == 0);
    flags.set(Rflags::SF, value >> (8 * bytes - 1) & 1 == 1);
    flags.set(Rflags::PF, (value as u8).count_ones().is_multiple_of(2));
    flags
}

fn logic(value: u64, bytes: usize, before: Rflags) -> (u64, Rflags) {
    (value, (before - LOGIC) | of_result(value, bytes))
}

fn sum(first: u64, second: u64, carry: u64, bytes: usize, before: Rflags) -> (u64, Rflags) {
    let mask = u64::MAX >> (64 - 8 * bytes);
    let wide = u128::from(first) + u128::from(second) + u128::from(carry);
    let value = wide as u64 & mask;
    let sign = 1 << (8 * bytes - 1);
    let mut flags = of_result(value, bytes);
    flags.set(Rflags::CF, wide >> (8 * bytes) != 0);
    flags.set(Rflags::AF, (first ^ second ^ value) & 0x10 != 0);
    flags.set(Rflags::OF, (first ^ value) & (second ^ value) & sign != 0);
    (value, (before - Rflags::STATUS) | flags)
}

fn difference(first: u64, second: u64, borrow: u64, bytes: usize, before: Rflags) -> (u64, Rflags) {
    let mask = u64::MAX >> (64 - 8 * bytes);
    let value = first.wrapping_sub(second).wrapping_sub(borrow) & mask;
    let sign = 1 << (8 * bytes - 1);
    let mut flags = of_result(value, bytes);
    flags.set(Rflags::CF, u128::from(first) < u128::from(second) + u128::from(borrow));
    flags.set(Rflags::AF, (first ^ second ^ value) & 0x10 != 0);
    flags.set(Rflags::OF, (first ^ second) & (first ^ value) & sign != 0);
    (value, (before - Rflags::STATUS) | flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results and flags at the edges of the operand sizes (SDM 1 3.4.3.1, and each instruction's page of SDM 2).
    #[test]
    fn results_and_flags() {
        const CF: Rflags = Rflags::CF;
        let (zero, sign, parity) = (Rflags::ZF, Rflags::SF, Rflags::PF);
        let (adjust, overflow) = (Rflags::AF, Rflags::OF);
        let none = Rflags::empty();
        for (alu, first, second, bytes, before, value, after) in [
            (Alu::Add, 0xff, 1, 1, none, 0, CF | zero | parity | adjust),
            (Alu::Add, 0x7f, 1, 1, none, 0x80, sign | adjust | overflow),
            (Alu::Adc, u64::MAX, 0, 8, CF, 0, CF | zero | parity | adjust),
            (Alu::Sub, 0, 1, 4, none, 0xffff_ffff, CF | sign | parity | adjust),
            (Alu::Sbb, 5, 4, 8, CF, 0, zero | parity),
            (Alu::Cmp, 7, 7, 2, CF, 0, zero | parity),
            (Alu::Neg, 0x8000, 0, 2, none, 0x8000, CF | sign | parity | overflow),
            (Alu::And, 0xf0, 0x0f, 1, CF | adjust, 0, zero | parity | adjust),
            (Alu::Or, 0x80, 1, 1, overflow, 0x81, sign | parity),
            (Alu::Not, 0, 0, 4, CF, 0xffff_ffff, CF),
            (Alu::Inc, 0xffff_ffff, 0, 4, CF, 0, CF | zero | parity | adjust),
            (Alu::Dec, 0, 0, 1, none, 0xff, sign | parity | adjust),
            (Alu::Bts, 0, 33, 8, none, 1 << 33, none),
            (Alu::Btr, 3, 32, 4, none, 2, CF),
            (Alu::Btc, 1, 16, 2, none, 0, CF),
            (Alu::Bt, 2, 1, 8, none, 2, CF),
        ] {
            assert_eq!(alu.apply(first, second, bytes, before), (value, after), "{alu:?} {first:#x} {second:#x}");
        }
    }
}
