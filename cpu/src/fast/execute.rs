//! The semantics of micro-operations. Each either completes or changes nothing and leaves its instruction to the slow
//! path: whatever might fault, miss the TLB, cross a page or touch anything but memory ends here.

use super::block::Block;
use super::lazy::{self, Lazy, Source};
use super::memo::{Memo, View};
use super::uop::{Address, Binary, ENTRY, Extension, RBP, RCX, RSP, Shift, Unary, Uop, Widening};
use crate::exec::flags::{self, Width};
use iced_x86::ConditionCode;
use sim_core::addr::{Gva, Hpa};
use sim_core::arch::rflags::Rflags;
use sim_core::memory::{self, PhysMem};

/// Registers by the numbers of [`super::uop`].
pub(super) type Registers = [u64; 32];

/// How a run through a block ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Behind its last instruction.
    Through,
    /// With a jump, taken by the micro-operation of this index, to this address.
    Jumped(usize, u64),
    /// Before the micro-operation of this index, which is left to the slow path.
    Stuck(usize),
}

/// What micro-operations work on.
pub(super) struct Machine<'a> {
    pub(super) registers: &'a mut Registers,
    pub(super) lazy: &'a mut Lazy,
    pub(super) memo: &'a mut Memo,
    pub(super) view: View<'a>,
    pub(super) mem: &'a mut PhysMem,
}

/// Runs a block from its first instruction.
#[expect(clippy::too_many_lines, reason = "one line a micro-operation")]
pub(super) fn run(block: &Block, m: &mut Machine<'_>) -> Exit {
    for (index, uop) in block.uops.iter().enumerate() {
        macro_rules! or_stuck {
            ($done:expr) => {
                if $done.is_none() {
                    return Exit::Stuck(index);
                }
            };
        }
        macro_rules! jump_if {
            ($taken:expr, $target:expr) => {
                if $taken {
                    return Exit::Jumped(index, m.relative($target));
                }
            };
        }
        match *uop {
            Uop::Nop => (),
            Uop::Move { width, to, from } => m.set(width, to, m.get(from)),
            Uop::MoveImmediate { to, value } => m.set(Width::Qword, to, value),
            Uop::MovePart { width, to, value } => m.set(width, to, extended(value)),
            Uop::Load { width, to, from } => or_stuck!(m.load(width, from).map(|value| m.set(width, to, value))),
            Uop::Store { width, to, from } => or_stuck!(m.store(width, to, m.get(from))),
            Uop::StoreImmediate { width, to, value } => or_stuck!(m.store(width, to, extended(value))),
            Uop::Widen { how, to, from } => m.set(how.to, to, widened(how, m.get(from))),
            Uop::LoadWiden { how, to, from } => {
                or_stuck!(m.load(how.from, from).map(|value| m.set(how.to, to, widened(how, value))))
            }
            Uop::Lea { width, to, from } => m.set(width, to, m.address(from)),
            Uop::Exchange { width, a, b } => m.exchange(width, a, b),
            Uop::Add { width, to, from } => m.add(width, to, m.get(from)),
            Uop::AddImmediate { width, to, value } => m.add(width, to, extended(value)),
            Uop::Sub { width, to, from } => m.sub(width, to, m.get(from)),
            Uop::SubImmediate { width, to, value } => m.sub(width, to, extended(value)),
            Uop::Binary { op, width, to, from } => m.binary_register(op, width, to, m.get(from)),
            Uop::BinaryImmediate { op, width, to, value } => m.binary_register(op, width, to, extended(value)),
            Uop::BinaryLoad { op, width, to, from } => {
                or_stuck!(m.load(width, from).map(|value| m.binary_register(op, width, to, value)))
            }
            Uop::BinaryStore { op, width, to, from } => or_stuck!(m.binary_memory(op, width, to, m.get(from))),
            Uop::BinaryStoreImmediate { op, width, to, value } => {
                or_stuck!(m.binary_memory(op, width, to, extended(i32::from(value))))
            }
            Uop::Unary { op, width, to } => m.unary_register(op, width, to),
            Uop::UnaryMemory { op, width, to } => or_stuck!(m.unary_memory(op, width, to)),
            Uop::Shift { op, width, to, count } => m.shift(op, width, to, u32::from(count)),
            Uop::ShiftByCl { op, width, to } => m.shift(op, width, to, width.count(m.get(RCX))),
            Uop::Imul { width, to, a, b } => m.imul(width, to, m.get(a), m.get(b)),
            Uop::ImulImmediate { width, to, a, value } => m.imul(width, to, m.get(a), extended(value)),
            Uop::ImulLoad { width, to, from } => {
                or_stuck!(m.load(width, from).map(|value| m.imul(width, to, m.get(to), value)))
            }
            Uop::SignToRdx { width } => m.sign_to_rdx(width),
            Uop::Set { condition, to } => m.set(Width::Byte, to, u64::from(m.lazy.holds(condition))),
            Uop::SetMemory { condition, to } => or_stuck!(m.store(Width::Byte, to, u64::from(m.lazy.holds(condition)))),
            Uop::Cmov { condition, width, to, from } => m.cmov(condition, width, to, m.get(from)),
            Uop::CmovLoad { condition, width, to, from } => {
                or_stuck!(m.load(width, from).map(|value| m.cmov(condition, width, to, value)))
            }
            Uop::Push { from } => or_stuck!(m.push(m.get(from))),
            Uop::PushImmediate { value } => or_stuck!(m.push(extended(value))),
            Uop::PushLoad { from } => or_stuck!(m.load(Width::Qword, from).and_then(|value| m.push(value))),
            Uop::Pop { to } => or_stuck!(m.pop(to)),
            Uop::Leave => or_stuck!(m.leave()),
            Uop::Jump { target } => return Exit::Jumped(index, m.relative(target)),
            Uop::JumpIf { condition, target } => jump_if!(m.lazy.holds(condition), target),
            Uop::CompareJumpIf { condition, width, a, b, target } => {
                jump_if!(m.compare(condition, width, a, m.get(b)), target)
            }
            Uop::CompareImmediateJumpIf { condition, width, a, b, target } => {
                jump_if!(m.compare(condition, width, a, extended(i32::from(b))), target)
            }
            Uop::TestJumpIf { condition, width, a, b, target } => jump_if!(m.test(condition, width, a, b), target),
            Uop::DecrementJumpIf { condition, width, to, target } => {
                m.unary_register(Unary::Dec, width, to);
                jump_if!(m.lazy.holds(condition), target)
            }
            Uop::JumpTo { from } => return m.jump(index, Some(m.get(from))),
            Uop::JumpLoad { from } => {
                let target = m.load(Width::Qword, from);
                return m.jump(index, target);
            }
            Uop::Call { target, next } => return m.call(index, Some(m.relative(target)), next),
            Uop::CallTo { from, next } => return m.call(index, Some(m.get(from)), next),
            Uop::CallLoad { from, next } => {
                let target = m.load(Width::Qword, from);
                return m.call(index, target, i32::from(next));
            }
            Uop::Return { release } => return m.ret(index, release),
        }
    }
    Exit::Through
}

#[inline]
const fn extended(value: i32) -> u64 {
    value as i64 as u64
}

#[inline]
fn widened(how: Widening, value: u64) -> u64 {
    match how.extension {
        Extension::Zero => value & how.from.mask(),
        Extension::Sign => how.from.extend(value),
    }
}

impl Machine<'_> {
    #[inline]
    fn get(&self, register: u8) -> u64 {
        self.registers[usize::from(register & 31)]
    }

    /// Writes a register as its width asks: 32 bits clear the upper half, 8 and 16 bits leave the rest.
    #[inline]
    fn set(&mut self, width: Width, to: u8, value: u64) {
        let kept = match width {
            Width::Byte => !0xff,
            Width::Word => !0xffff,
            Width::Dword | Width::Qword => 0,
        };
        let register = &mut self.registers[usize::from(to & 31)];
        *register = (*register & kept) | (value & width.mask());
    }

    #[inline]
    fn address(&self, address: Address) -> u64 {
        let index = self.get(address.index) << (address.scale & 3);
        self.get(address.base).wrapping_add(index).wrapping_add(extended(address.displacement))
    }

    #[inline]
    fn relative(&self, target: i32) -> u64 {
        self.get(ENTRY).wrapping_add(extended(target))
    }

    #[inline]
    fn load(&mut self, width: Width, from: Address) -> Option<u64> {
        self.load_at(width, self.address(from))
    }

    #[inline]
    fn load_at(&mut self, width: Width, address: u64) -> Option<u64> {
        self.memo.load(&self.view, self.mem, address, width.bits() as usize / 8)
    }

    #[inline]
    fn store(&mut self, width: Width, to: Address, value: u64) -> Option<()> {
        self.store_at(width, self.address(to), value)
    }

    #[inline]
    fn store_at(&mut self, width: Width, address: u64, value: u64) -> Option<()> {
        let frame = self.memo.frame_mut(&self.view, self.mem, address)?;
        memory::store(frame, Hpa(address).page_offset() as usize, value, width.bits() as usize / 8)
    }

    /// Reads and writes one place.
    #[inline]
    fn modify(&mut self, width: Width, to: Address, compute: impl FnOnce(u64) -> (u64, Lazy)) -> Option<()> {
        let address = self.address(to);
        let frame = self.memo.frame_mut(&self.view, self.mem, address)?;
        let within = Hpa(address).page_offset() as usize;
        let (result, lazy) = compute(memory::load(frame, within, width.bits() as usize / 8)?);
        memory::store(frame, within, result, width.bits() as usize / 8)?;
        *self.lazy = lazy;
        Some(())
    }

    fn exchange(&mut self, width: Width, a: u8, b: u8) {
        let (old_a, old_b) = (self.get(a), self.get(b));
        self.set(width, a, old_b);
        self.set(width, b, old_a);
    }

    #[inline]
    fn add(&mut self, width: Width, to: u8, b: u64) {
        let (a, b) = (self.get(to) & width.mask(), b & width.mask());
        *self.lazy = Lazy { source: Source::Add, width, carry: false, a, b };
        self.set(width, to, a.wrapping_add(b));
    }

    #[inline]
    fn sub(&mut self, width: Width, to: u8, b: u64) {
        let (a, b) = (self.get(to) & width.mask(), b & width.mask());
        *self.lazy = Lazy { source: Source::Sub, width, carry: false, a, b };
        self.set(width, to, a.wrapping_sub(b));
    }

    #[inline]
    fn binary_register(&mut self, op: Binary, width: Width, to: u8, b: u64) {
        let (result, lazy) = binary(op, width, self.get(to), b, self.lazy);
        *self.lazy = lazy;
        if op.writes() {
            self.set(width, to, result);
        }
    }

    fn binary_memory(&mut self, op: Binary, width: Width, to: Address, b: u64) -> Option<()> {
        let old = *self.lazy;
        if op.writes() {
            return self.modify(width, to, |a| binary(op, width, a, b, &old));
        }
        let a = self.load(width, to)?;
        *self.lazy = binary(op, width, a, b, &old).1;
        Some(())
    }

    #[inline]
    fn unary_register(&mut self, op: Unary, width: Width, to: u8) {
        let (result, lazy) = unary(op, width, self.get(to), self.lazy);
        *self.lazy = lazy;
        self.set(width, to, result);
    }

    fn unary_memory(&mut self, op: Unary, width: Width, to: Address) -> Option<()> {
        let old = *self.lazy;
        self.modify(width, to, |a| unary(op, width, a, &old))
    }

    /// A shift by a reduced count; by 0 it still writes its destination.
    #[inline]
    fn shift(&mut self, op: Shift, width: Width, to: u8, count: u32) {
        let a = self.get(to) & width.mask();
        if count == 0 {
            self.set(width, to, a);
            return;
        }
        let (source, result) = match op {
            Shift::Left => (Source::ShiftLeft, a << count),
            Shift::Right => (Source::ShiftRight, a >> count),
            Shift::Arithmetic => (Source::ShiftArithmetic, ((width.extend(a) as i64) >> count) as u64),
        };
        *self.lazy = Lazy { source, width, carry: false, a, b: u64::from(count) };
        self.set(width, to, result);
    }

    /// IMUL defines CF and OF and leaves the others as they were.
    fn imul(&mut self, width: Width, to: u8, a: u64, b: u64) {
        const BOTH: Rflags = Rflags::CF.union(Rflags::OF);
        let (low, _, overflow) = flags::imul(a, b, width);
        let kept = self.lazy.flags().difference(BOTH);
        *self.lazy = Lazy::known(if overflow { kept.union(BOTH) } else { kept });
        self.set(width, to, low);
    }

    fn sign_to_rdx(&mut self, width: Width) {
        let negative = self.get(0) & width.sign() != 0;
        self.set(width, 2, if negative { u64::MAX } else { 0 });
    }

    /// A 32-bit destination's upper half is cleared whatever the condition.
    fn cmov(&mut self, condition: ConditionCode, width: Width, to: u8, source: u64) {
        let chosen = if self.lazy.holds(condition) { source } else { self.get(to) };
        self.set(width, to, chosen);
    }

    #[inline]
    fn compare(&mut self, condition: ConditionCode, width: Width, a: u8, b: u64) -> bool {
        let (a, b) = (self.get(a) & width.mask(), b & width.mask());
        *self.lazy = Lazy { source: Source::Sub, width, carry: false, a, b };
        lazy::after_sub(condition, a, b, width)
    }

    #[inline]
    fn test(&mut self, condition: ConditionCode, width: Width, a: u8, b: u8) -> bool {
        let a = self.get(a) & self.get(b) & width.mask();
        *self.lazy = Lazy { source: Source::Logic, width, carry: false, a, b: 0 };
        lazy::after_logic(condition, a, width)
    }

    #[inline]
    fn push(&mut self, value: u64) -> Option<()> {
        let pointer = self.get(RSP).wrapping_sub(8);
        self.store_at(Width::Qword, pointer, value)?;
        self.set(Width::Qword, RSP, pointer);
        Some(())
    }

    #[inline]
    fn pop(&mut self, to: u8) -> Option<()> {
        let pointer = self.get(RSP);
        let value = self.load_at(Width::Qword, pointer)?;
        self.set(Width::Qword, RSP, pointer.wrapping_add(8));
        self.set(Width::Qword, to, value);
        Some(())
    }

    fn leave(&mut self) -> Option<()> {
        let pointer = self.get(RBP);
        let value = self.load_at(Width::Qword, pointer)?;
        self.set(Width::Qword, RSP, pointer.wrapping_add(8));
        self.set(Width::Qword, RBP, value);
        Some(())
    }

    fn is_code_address(&self, target: u64) -> bool {
        Gva(target).is_canonical(self.view.core.linear_width())
    }

    fn jump(&self, index: usize, target: Option<u64>) -> Exit {
        match target {
            Some(target) if self.is_code_address(target) => Exit::Jumped(index, target),
            _ => Exit::Stuck(index),
        }
    }

    fn call(&mut self, index: usize, target: Option<u64>, next: i32) -> Exit {
        match self.jump(index, target) {
            Exit::Jumped(_, target) if self.push(self.relative(next)).is_some() => Exit::Jumped(index, target),
            _ => Exit::Stuck(index),
        }
    }

    fn ret(&mut self, index: usize, release: u16) -> Exit {
        let pointer = self.get(RSP);
        let target = self.load_at(Width::Qword, pointer);
        let exit = self.jump(index, target);
        if matches!(exit, Exit::Jumped(..)) {
            self.set(Width::Qword, RSP, pointer.wrapping_add(8 + u64::from(release)));
        }
        exit
    }
}

/// A two-operand operation: its result and its flags.
#[inline]
fn binary(op: Binary, width: Width, a: u64, b: u64, old: &Lazy) -> (u64, Lazy) {
    let (a, b) = (a & width.mask(), b & width.mask());
    let logic = |result: u64| (result, Lazy { source: Source::Logic, width, carry: false, a: result, b: 0 });
    let arithmetic = |source, carry, result| (result, Lazy { source, width, carry, a, b });
    match op {
        Binary::And | Binary::Test => logic(a & b),
        Binary::Or => logic(a | b),
        Binary::Xor => logic(a ^ b),
        Binary::Add => arithmetic(Source::Add, false, a.wrapping_add(b)),
        Binary::Sub | Binary::Cmp => arithmetic(Source::Sub, false, a.wrapping_sub(b)),
        Binary::Adc => {
            let carry = old.carry();
            arithmetic(Source::AddCarry, carry, a.wrapping_add(b).wrapping_add(u64::from(carry)))
        }
        Binary::Sbb => {
            let carry = old.carry();
            arithmetic(Source::SubBorrow, carry, a.wrapping_sub(b).wrapping_sub(u64::from(carry)))
        }
    }
}

/// A one-operand operation: its result and its flags.
#[inline]
fn unary(op: Unary, width: Width, a: u64, old: &Lazy) -> (u64, Lazy) {
    let a = a & width.mask();
    match op {
        Unary::Inc => (a.wrapping_add(1), Lazy { source: Source::Increment, width, carry: old.carry(), a, b: 0 }),
        Unary::Dec => (a.wrapping_sub(1), Lazy { source: Source::Decrement, width, carry: old.carry(), a, b: 0 }),
        Unary::Neg => (0u64.wrapping_sub(a), Lazy { source: Source::Sub, width, carry: false, a: 0, b: a }),
        Unary::Not => (!a, *old),
    }
}
