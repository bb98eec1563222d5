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

/// What micro-operations work on.
pub(super) struct Machine<'a> {
    pub(super) registers: &'a mut Registers,
    pub(super) lazy: &'a mut Lazy,
    pub(super) memo: &'a mut Memo,
    pub(super) view: View<'a>,
    pub(super) mem: &'a mut PhysMem,
    /// The first micro-operation of the last block that has not completed.
    pub(super) reached: usize,
}

/// Runs a block from its first instruction; the address of the next one, or none if the micro-operation at
/// [`Machine::reached`] is left to the slow path.
#[expect(clippy::too_many_lines, reason = "one line a micro-operation")]
pub(super) fn run(block: &Block, m: &mut Machine<'_>) -> Option<u64> {
    for (index, uop) in block.uops.iter().enumerate() {
        macro_rules! or_stuck {
            ($done:expr) => {
                if $done.is_none() {
                    m.reached = index;
                    return None;
                }
            };
        }
        macro_rules! jump_if {
            ($taken:expr, $target:expr) => {
                if $taken {
                    m.reached = index + 1;
                    return Some(m.relative($target));
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
            Uop::Jump { target } => jump_if!(true, target),
            Uop::JumpIf { condition, target } => jump_if!(m.lazy.holds(condition), target),
            Uop::CompareJumpIf { condition, width, a, b, target } => {
                jump_if!(m.compare(condition, width, a, m.get(b)), target)
            }
            Uop::CompareImmediateJumpIf { condition, width, a, b, target } => {
                jump_if!(m.compare(condition, width, a, extended(i32::from(b))), target)
            }
            Uop::TestJumpIf { condition, width, a, b, target } => {
                jump_if!(m.test(condition, width, a, m.get(b)), target)
            }
            Uop::DecrementJumpIf { condition, width, to, target } => {
                jump_if!(m.decrement(condition, width, to), target)
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

            Uop::MoveD { to, from } => m.set(Width::Dword, to, m.get(from)),
            Uop::MoveQ { to, from } => m.set(Width::Qword, to, m.get(from)),
            Uop::LoadD { to, from } => {
                or_stuck!(m.load(Width::Dword, from).map(|value| m.set(Width::Dword, to, value)))
            }
            Uop::LoadQ { to, from } => {
                or_stuck!(m.load(Width::Qword, from).map(|value| m.set(Width::Qword, to, value)))
            }
            Uop::StoreD { to, from } => or_stuck!(m.store(Width::Dword, to, m.get(from))),
            Uop::StoreQ { to, from } => or_stuck!(m.store(Width::Qword, to, m.get(from))),
            Uop::LeaQ { to, from } => m.set(Width::Qword, to, m.address(from)),
            Uop::BinaryD { op, to, from } => m.binary_register(op, Width::Dword, to, m.get(from)),
            Uop::BinaryQ { op, to, from } => m.binary_register(op, Width::Qword, to, m.get(from)),
            Uop::AddD { to, from } => m.binary_register(Binary::Add, Width::Dword, to, m.get(from)),
            Uop::AddQ { to, from } => m.binary_register(Binary::Add, Width::Qword, to, m.get(from)),
            Uop::AddImmediateD { to, value } => m.binary_register(Binary::Add, Width::Dword, to, extended(value)),
            Uop::AddImmediateQ { to, value } => m.binary_register(Binary::Add, Width::Qword, to, extended(value)),
            Uop::XorD { to, from } => m.binary_register(Binary::Xor, Width::Dword, to, m.get(from)),
            Uop::XorQ { to, from } => m.binary_register(Binary::Xor, Width::Qword, to, m.get(from)),
            Uop::ShiftD { op, to, count } => m.shift(op, Width::Dword, to, u32::from(count & 31)),
            Uop::ShiftQ { op, to, count } => m.shift(op, Width::Qword, to, u32::from(count & 63)),
            Uop::CompareJumpIfD { condition, a, b, target } => {
                jump_if!(m.compare(condition, Width::Dword, a, m.get(b)), target)
            }
            Uop::CompareJumpIfQ { condition, a, b, target } => {
                jump_if!(m.compare(condition, Width::Qword, a, m.get(b)), target)
            }
            Uop::CompareImmediateJumpIfD { condition, a, b, target } => {
                jump_if!(m.compare(condition, Width::Dword, a, extended(i32::from(b))), target)
            }
            Uop::CompareImmediateJumpIfQ { condition, a, b, target } => {
                jump_if!(m.compare(condition, Width::Qword, a, extended(i32::from(b))), target)
            }
            Uop::TestJumpIfD { condition, a, b, target } => {
                jump_if!(m.test(condition, Width::Dword, a, m.get(b)), target)
            }
            Uop::TestJumpIfQ { condition, a, b, target } => {
                jump_if!(m.test(condition, Width::Qword, a, m.get(b)), target)
            }
            Uop::TestImmediateJumpIf { condition, width, a, b, target } => {
                jump_if!(m.test(condition, width, a, extended(i32::from(b))), target)
            }
            Uop::DecrementJumpIfD { condition, to, target } => {
                jump_if!(m.decrement(condition, Width::Dword, to), target)
            }
            Uop::DecrementJumpIfQ { condition, to, target } => {
                jump_if!(m.decrement(condition, Width::Qword, to), target)
            }
        }
    }
    m.reached = block.uops.len();
    let length = block.progress.last().map_or(0, |progress| progress.offset);
    Some(m.get(ENTRY).wrapping_add(u64::from(length)))
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
    #[inline(always)]
    fn get(&self, register: u8) -> u64 {
        self.registers[usize::from(register & 31)]
    }

    /// Writes a register as its width asks: 32 bits clear the upper half, 8 and 16 bits leave the rest.
    #[inline(always)]
    fn set(&mut self, width: Width, to: u8, value: u64) {
        let kept = match width {
            Width::Byte => !0xff,
            Width::Word => !0xffff,
            Width::Dword | Width::Qword => 0,
        };
        let register = &mut self.registers[usize::from(to & 31)];
        *register = (*register & kept) | (value & width.mask());
    }

    #[inline(always)]
    fn address(&self, address: Address) -> u64 {
        let index = self.get(address.index) << (address.scale & 3);
        self.get(address.base).wrapping_add(index).wrapping_add(extended(address.displacement))
    }

    #[inline]
    fn relative(&self, target: i32) -> u64 {
        self.get(ENTRY).wrapping_add(extended(target))
    }

    #[inline(always)]
    fn load(&mut self, width: Width, from: Address) -> Option<u64> {
        self.load_at(width, self.address(from))
    }

    #[inline(always)]
    fn load_at(&mut self, width: Width, address: u64) -> Option<u64> {
        self.memo.load(&self.view, self.mem, address, width.bits() as usize / 8)
    }

    #[inline(always)]
    fn store(&mut self, width: Width, to: Address, value: u64) -> Option<()> {
        self.store_at(width, self.address(to), value)
    }

    #[inline(always)]
    fn store_at(&mut self, width: Width, address: u64, value: u64) -> Option<()> {
        let frame = self.memo.frame_mut(&self.view, self.mem, address)?;
        memory::store(frame, Hpa(address).page_offset() as usize, value, width.bits() as usize / 8)
    }

    /// Reads and writes one place. Nothing is computed unless the place can be written.
    #[inline]
    fn modify(&mut self, width: Width, to: Address, compute: impl FnOnce(u64, &mut Lazy) -> u64) -> Option<()> {
        let address = self.address(to);
        let frame = self.memo.frame_mut(&self.view, self.mem, address)?;
        let within = Hpa(address).page_offset() as usize;
        let bytes = width.bits() as usize / 8;
        let old = memory::load(frame, within, bytes)?;
        memory::store(frame, within, compute(old, self.lazy), bytes)
    }

    fn exchange(&mut self, width: Width, a: u8, b: u8) {
        let (old_a, old_b) = (self.get(a), self.get(b));
        self.set(width, a, old_b);
        self.set(width, b, old_a);
    }

    #[inline(always)]
    fn binary_register(&mut self, op: Binary, width: Width, to: u8, b: u64) {
        let result = binary(op, width, self.get(to), b, self.lazy);
        if op.writes() {
            self.set(width, to, result);
        }
    }

    fn binary_memory(&mut self, op: Binary, width: Width, to: Address, b: u64) -> Option<()> {
        if op.writes() {
            return self.modify(width, to, |a, lazy| binary(op, width, a, b, lazy));
        }
        let a = self.load(width, to)?;
        binary(op, width, a, b, self.lazy);
        Some(())
    }

    #[inline]
    fn unary_register(&mut self, op: Unary, width: Width, to: u8) {
        let result = unary(op, width, self.get(to), self.lazy);
        self.set(width, to, result);
    }

    fn unary_memory(&mut self, op: Unary, width: Width, to: Address) -> Option<()> {
        self.modify(width, to, |a, lazy| unary(op, width, a, lazy))
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
        self.lazy.put(source, width, a, u64::from(count));
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

    #[inline(always)]
    fn compare(&mut self, condition: ConditionCode, width: Width, a: u8, b: u64) -> bool {
        let (a, b) = (self.get(a) & width.mask(), b & width.mask());
        self.lazy.put(Source::Sub, width, a, b);
        lazy::after_sub(condition, a, b, width)
    }

    #[inline(always)]
    fn test(&mut self, condition: ConditionCode, width: Width, a: u8, b: u64) -> bool {
        let a = self.get(a) & b & width.mask();
        self.lazy.put(Source::Logic, width, a, 0);
        lazy::after_logic(condition, a, width)
    }

    /// DEC, and whether a condition holds then.
    #[inline(always)]
    fn decrement(&mut self, condition: ConditionCode, width: Width, to: u8) -> bool {
        let old = self.get(to) & width.mask();
        self.unary_register(Unary::Dec, width, to);
        match condition {
            ConditionCode::ne => old != 1,
            ConditionCode::e => old == 1,
            _ => self.lazy.holds(condition),
        }
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

    fn jump(&mut self, index: usize, target: Option<u64>) -> Option<u64> {
        let target = target.filter(|target| self.is_code_address(*target));
        self.reached = index + usize::from(target.is_some());
        target
    }

    fn call(&mut self, index: usize, target: Option<u64>, next: i32) -> Option<u64> {
        let next = self.relative(next);
        let pushed = target.filter(|target| self.is_code_address(*target) && self.push(next).is_some());
        self.reached = index + usize::from(pushed.is_some());
        pushed
    }

    fn ret(&mut self, index: usize, release: u16) -> Option<u64> {
        let pointer = self.get(RSP);
        let target = self.load_at(Width::Qword, pointer);
        let next = self.jump(index, target)?;
        self.set(Width::Qword, RSP, pointer.wrapping_add(8 + u64::from(release)));
        Some(next)
    }
}

/// A two-operand operation: its result; its flags are put off.
#[inline(always)]
fn binary(op: Binary, width: Width, a: u64, b: u64, lazy: &mut Lazy) -> u64 {
    let (a, b) = (a & width.mask(), b & width.mask());
    match op {
        Binary::And | Binary::Test => lazy.put_result(width, a & b),
        Binary::Or => lazy.put_result(width, a | b),
        Binary::Xor => lazy.put_result(width, a ^ b),
        Binary::Add => {
            lazy.put(Source::Add, width, a, b);
            a.wrapping_add(b)
        }
        Binary::Sub | Binary::Cmp => {
            lazy.put(Source::Sub, width, a, b);
            a.wrapping_sub(b)
        }
        Binary::Adc => {
            let carry = lazy.put_with_carry(Source::AddCarry, width, a, b);
            a.wrapping_add(b).wrapping_add(carry)
        }
        Binary::Sbb => {
            let borrow = lazy.put_with_carry(Source::SubBorrow, width, a, b);
            a.wrapping_sub(b).wrapping_sub(borrow)
        }
    }
}

/// A one-operand operation: its result; its flags are put off.
#[inline(always)]
fn unary(op: Unary, width: Width, a: u64, lazy: &mut Lazy) -> u64 {
    let a = a & width.mask();
    match op {
        Unary::Inc => {
            lazy.put_with_carry(Source::Increment, width, a, 0);
            a.wrapping_add(1)
        }
        Unary::Dec => {
            lazy.put_with_carry(Source::Decrement, width, a, 0);
            a.wrapping_sub(1)
        }
        Unary::Neg => {
            lazy.put(Source::Sub, width, 0, a);
            0u64.wrapping_sub(a)
        }
        Unary::Not => !a,
    }
}
