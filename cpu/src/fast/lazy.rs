//! Status flags that are computed when somebody asks: the operation and its operands are kept instead.

use crate::exec::condition;
use crate::exec::flags::{self, Width};
use iced_x86::ConditionCode;
use sim_core::arch::rflags::Rflags;

/// The operation that set the status flags last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The flags are known: they are in `a`.
    Known,
    /// `a + b`.
    Add,
    /// `a + b + carry`.
    AddCarry,
    /// `a - b`.
    Sub,
    /// `a - b - carry`.
    SubBorrow,
    /// AND, OR, XOR or TEST with the result `a`.
    Logic,
    /// `a + 1`, CF is `carry`.
    Increment,
    /// `a - 1`, CF is `carry`.
    Decrement,
    /// `a << b`, `b` not 0.
    ShiftLeft,
    /// `a >> b`, `b` not 0.
    ShiftRight,
    /// `a >> b` with sign, `b` not 0.
    ShiftArithmetic,
}

/// Status flags not computed yet. Operands are already truncated to the width.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lazy {
    pub(super) source: Source,
    pub(super) width: Width,
    pub(super) carry: bool,
    pub(super) a: u64,
    pub(super) b: u64,
}

impl Lazy {
    /// Flags that are known.
    pub(super) const fn known(flags: Rflags) -> Self {
        Self { source: Source::Known, width: Width::Qword, carry: false, a: flags.bits(), b: 0 }
    }

    /// Puts off the flags of an operation that takes no carry. Field by field: a structure written in parts and read as
    /// one waits for the parts to reach the cache.
    #[inline(always)]
    pub(super) const fn put(&mut self, source: Source, width: Width, a: u64, b: u64) {
        self.source = source;
        self.width = width;
        self.a = a;
        self.b = b;
    }

    /// Puts off the flags of a logical operation, and returns its result.
    #[inline(always)]
    pub(super) const fn put_result(&mut self, width: Width, result: u64) -> u64 {
        self.put(Source::Logic, width, result, 0);
        result
    }

    /// Puts off the flags of an operation that takes or keeps the carry, and returns that as a number.
    #[inline(always)]
    pub(super) fn put_with_carry(&mut self, source: Source, width: Width, a: u64, b: u64) -> u64 {
        self.carry = self.carry();
        self.put(source, width, a, b);
        u64::from(self.carry)
    }

    /// The status flags.
    pub(super) fn flags(&self) -> Rflags {
        let Self { source, width, carry, a, b } = *self;
        let keeping_carry = |flags: Rflags| {
            let kept = if carry { Rflags::CF } else { Rflags::empty() };
            flags.difference(Rflags::CF).union(kept)
        };
        match source {
            Source::Known => Rflags::from_bits_truncate(a).intersection(Rflags::STATUS),
            Source::Add => flags::add(a, b, false, width).flags,
            Source::AddCarry => flags::add(a, b, carry, width).flags,
            Source::Sub => flags::sub(a, b, false, width).flags,
            Source::SubBorrow => flags::sub(a, b, carry, width).flags,
            Source::Logic => flags::logic(a, width).flags,
            Source::Increment => keeping_carry(flags::add(a, 1, false, width).flags),
            Source::Decrement => keeping_carry(flags::sub(a, 1, false, width).flags),
            Source::ShiftLeft => flags::shl(a, b as u32, width).flags,
            Source::ShiftRight => flags::shr(a, b as u32, width).flags,
            Source::ShiftArithmetic => flags::sar(a, b as u32, width).flags,
        }
    }

    /// CF.
    #[inline]
    pub(super) fn carry(&self) -> bool {
        match self.source {
            Source::Known => self.a & Rflags::CF.bits() != 0,
            Source::Add => self.a.wrapping_add(self.b) & self.width.mask() < self.a,
            Source::Sub => self.a < self.b,
            Source::Logic => false,
            Source::Increment | Source::Decrement => self.carry,
            _ => self.flags().contains(Rflags::CF),
        }
    }

    /// Whether a condition holds.
    #[inline]
    pub(super) fn holds(&self, condition: ConditionCode) -> bool {
        match self.source {
            Source::Sub => after_sub(condition, self.a, self.b, self.width),
            Source::Logic => after_logic(condition, self.a, self.width),
            Source::Decrement if condition == ConditionCode::ne => self.a != 1,
            _ => condition::holds(condition, self.flags()),
        }
    }
}

/// A condition after `a - b`.
#[inline]
pub(super) fn after_sub(condition: ConditionCode, a: u64, b: u64, width: Width) -> bool {
    let signed = |value| width.extend(value) as i64;
    match condition {
        ConditionCode::e => a == b,
        ConditionCode::ne => a != b,
        ConditionCode::b => a < b,
        ConditionCode::ae => a >= b,
        ConditionCode::be => a <= b,
        ConditionCode::a => a > b,
        ConditionCode::l => signed(a) < signed(b),
        ConditionCode::ge => signed(a) >= signed(b),
        ConditionCode::le => signed(a) <= signed(b),
        ConditionCode::g => signed(a) > signed(b),
        ConditionCode::s => a.wrapping_sub(b) & width.sign() != 0,
        ConditionCode::ns => a.wrapping_sub(b) & width.sign() == 0,
        _ => condition::holds(condition, flags::sub(a, b, false, width).flags),
    }
}

/// A condition after a logical operation.
#[inline]
pub(super) fn after_logic(condition: ConditionCode, result: u64, width: Width) -> bool {
    let negative = result & width.sign() != 0;
    match condition {
        ConditionCode::e | ConditionCode::be => result == 0,
        ConditionCode::ne | ConditionCode::a => result != 0,
        ConditionCode::s | ConditionCode::l => negative,
        ConditionCode::ns | ConditionCode::ge => !negative,
        ConditionCode::le => result == 0 || negative,
        ConditionCode::g => result != 0 && !negative,
        ConditionCode::b | ConditionCode::o => false,
        ConditionCode::ae | ConditionCode::no => true,
        _ => condition::holds(condition, flags::logic(result, width).flags),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONDITIONS: [ConditionCode; 16] = [
        ConditionCode::o,
        ConditionCode::no,
        ConditionCode::b,
        ConditionCode::ae,
        ConditionCode::e,
        ConditionCode::ne,
        ConditionCode::be,
        ConditionCode::a,
        ConditionCode::s,
        ConditionCode::ns,
        ConditionCode::p,
        ConditionCode::np,
        ConditionCode::l,
        ConditionCode::ge,
        ConditionCode::le,
        ConditionCode::g,
    ];

    /// Every byte with every fifth, every source, every condition: the short cuts say what the flags say.
    #[test]
    fn short_cuts_are_the_flags() {
        const SOURCES: [Source; 10] = [
            Source::Add,
            Source::AddCarry,
            Source::Sub,
            Source::SubBorrow,
            Source::Logic,
            Source::Increment,
            Source::Decrement,
            Source::ShiftLeft,
            Source::ShiftRight,
            Source::ShiftArithmetic,
        ];
        let mut cases = 0;
        for (a, b) in (0..=255).flat_map(|a| (0..=255).step_by(5).map(move |b| (a, b))) {
            for (source, carry) in SOURCES.into_iter().flat_map(|source| [(source, false), (source, true)]) {
                let is_shift = matches!(source, Source::ShiftLeft | Source::ShiftRight | Source::ShiftArithmetic);
                let b = if is_shift { b % 31 + 1 } else { b };
                let lazy = Lazy { source, width: Width::Byte, carry, a, b };
                let flags = lazy.flags();
                assert_eq!(lazy.carry(), flags.contains(Rflags::CF), "{lazy:?}");
                for condition in CONDITIONS {
                    assert_eq!(lazy.holds(condition), condition::holds(condition, flags), "{lazy:?} {condition:?}");
                    cases += 1;
                }
            }
        }
        println!("lazy flag cases: {cases}");
    }
}
