//! What a basic block is made of: one micro-operation an instruction, or one for a compare and the jump behind it.
//!
//! Registers are numbers into a file that also holds what addresses are made of beside the architectural registers; see
//! [`ZERO`]. Immediates are sign-extended when used. Memory operands are 64-bit addresses.

use crate::exec::flags::Width;
use iced_x86::ConditionCode;

/// Always 0: the base or index of an address that has none.
pub(super) const ZERO: u8 = 16;
/// The linear address of the block's first byte: the base of RIP-relative addresses.
pub(super) const ENTRY: u8 = 17;
/// The FS base.
pub(super) const FS: u8 = 18;
/// The GS base.
pub(super) const GS: u8 = 19;
/// RCX, which counts shifts.
pub(super) const RCX: u8 = 1;
/// RSP.
pub(super) const RSP: u8 = 4;
/// RBP.
pub(super) const RBP: u8 = 5;

/// An address: `base + (index << scale) + displacement`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) base: u8,
    pub(super) index: u8,
    pub(super) scale: u8,
    pub(super) displacement: i32,
}

/// A two-operand operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Binary {
    Add,
    Or,
    Adc,
    Sbb,
    And,
    Sub,
    Xor,
    Cmp,
    Test,
}

impl Binary {
    /// Whether it writes its first operand.
    pub(super) const fn writes(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test)
    }
}

/// A one-operand operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unary {
    Inc,
    Dec,
    Neg,
    Not,
}

/// A shift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    Left,
    Right,
    Arithmetic,
}

/// How a narrow value becomes a wide one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extension {
    Zero,
    Sign,
}

/// From which width to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Widening {
    pub(super) extension: Extension,
    pub(super) from: Width,
    pub(super) to: Width,
}

/// One micro-operation. Targets of jumps are relative to the block's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Uop {
    Nop,
    Move {
        width: Width,
        to: u8,
        from: u8,
    },
    MoveImmediate {
        to: u8,
        value: u64,
    },
    MovePart {
        width: Width,
        to: u8,
        value: i32,
    },
    Load {
        width: Width,
        to: u8,
        from: Address,
    },
    Store {
        width: Width,
        to: Address,
        from: u8,
    },
    StoreImmediate {
        width: Width,
        to: Address,
        value: i32,
    },
    Widen {
        how: Widening,
        to: u8,
        from: u8,
    },
    LoadWiden {
        how: Widening,
        to: u8,
        from: Address,
    },
    Lea {
        width: Width,
        to: u8,
        from: Address,
    },
    Exchange {
        width: Width,
        a: u8,
        b: u8,
    },

    Binary {
        op: Binary,
        width: Width,
        to: u8,
        from: u8,
    },
    BinaryImmediate {
        op: Binary,
        width: Width,
        to: u8,
        value: i32,
    },
    BinaryLoad {
        op: Binary,
        width: Width,
        to: u8,
        from: Address,
    },
    BinaryStore {
        op: Binary,
        width: Width,
        to: Address,
        from: u8,
    },
    BinaryStoreImmediate {
        op: Binary,
        width: Width,
        to: Address,
        value: i16,
    },
    Unary {
        op: Unary,
        width: Width,
        to: u8,
    },
    UnaryMemory {
        op: Unary,
        width: Width,
        to: Address,
    },
    Shift {
        op: Shift,
        width: Width,
        to: u8,
        count: u8,
    },
    ShiftByCl {
        op: Shift,
        width: Width,
        to: u8,
    },
    Imul {
        width: Width,
        to: u8,
        a: u8,
        b: u8,
    },
    ImulImmediate {
        width: Width,
        to: u8,
        a: u8,
        value: i32,
    },
    ImulLoad {
        width: Width,
        to: u8,
        from: Address,
    },
    /// CDQ and CQO.
    SignToRdx {
        width: Width,
    },

    Set {
        condition: ConditionCode,
        to: u8,
    },
    SetMemory {
        condition: ConditionCode,
        to: Address,
    },
    Cmov {
        condition: ConditionCode,
        width: Width,
        to: u8,
        from: u8,
    },
    CmovLoad {
        condition: ConditionCode,
        width: Width,
        to: u8,
        from: Address,
    },

    Push {
        from: u8,
    },
    PushImmediate {
        value: i32,
    },
    PushLoad {
        from: Address,
    },
    Pop {
        to: u8,
    },
    Leave,

    Jump {
        target: i32,
    },
    JumpTo {
        from: u8,
    },
    JumpLoad {
        from: Address,
    },
    JumpIf {
        condition: ConditionCode,
        target: i32,
    },
    CompareJumpIf {
        condition: ConditionCode,
        width: Width,
        a: u8,
        b: u8,
        target: i32,
    },
    CompareImmediateJumpIf {
        condition: ConditionCode,
        width: Width,
        a: u8,
        b: i16,
        target: i32,
    },
    TestJumpIf {
        condition: ConditionCode,
        width: Width,
        a: u8,
        b: u8,
        target: i32,
    },
    DecrementJumpIf {
        condition: ConditionCode,
        width: Width,
        to: u8,
        target: i32,
    },
    Call {
        target: i32,
        next: i32,
    },
    CallTo {
        from: u8,
        next: i32,
    },
    CallLoad {
        from: Address,
        next: u16,
    },
    Return {
        release: u16,
    },

    // The commonest of the above at a width that is known when this is compiled: D is a doubleword, Q a quadword.
    MoveD {
        to: u8,
        from: u8,
    },
    MoveQ {
        to: u8,
        from: u8,
    },
    LoadD {
        to: u8,
        from: Address,
    },
    LoadQ {
        to: u8,
        from: Address,
    },
    StoreD {
        to: Address,
        from: u8,
    },
    StoreQ {
        to: Address,
        from: u8,
    },
    LeaQ {
        to: u8,
        from: Address,
    },
    BinaryD {
        op: Binary,
        to: u8,
        from: u8,
    },
    BinaryQ {
        op: Binary,
        to: u8,
        from: u8,
    },
    AddD {
        to: u8,
        from: u8,
    },
    AddQ {
        to: u8,
        from: u8,
    },
    AddImmediateD {
        to: u8,
        value: i32,
    },
    AddImmediateQ {
        to: u8,
        value: i32,
    },
    XorD {
        to: u8,
        from: u8,
    },
    XorQ {
        to: u8,
        from: u8,
    },
    ShiftD {
        op: Shift,
        to: u8,
        count: u8,
    },
    ShiftQ {
        op: Shift,
        to: u8,
        count: u8,
    },
    CompareJumpIfD {
        condition: ConditionCode,
        a: u8,
        b: u8,
        target: i32,
    },
    CompareJumpIfQ {
        condition: ConditionCode,
        a: u8,
        b: u8,
        target: i32,
    },
    CompareImmediateJumpIfD {
        condition: ConditionCode,
        a: u8,
        b: i16,
        target: i32,
    },
    CompareImmediateJumpIfQ {
        condition: ConditionCode,
        a: u8,
        b: i16,
        target: i32,
    },
    TestJumpIfD {
        condition: ConditionCode,
        a: u8,
        b: u8,
        target: i32,
    },
    TestJumpIfQ {
        condition: ConditionCode,
        a: u8,
        b: u8,
        target: i32,
    },
    TestImmediateJumpIf {
        condition: ConditionCode,
        width: Width,
        a: u8,
        b: i16,
        target: i32,
    },
    DecrementJumpIfD {
        condition: ConditionCode,
        to: u8,
        target: i32,
    },
    DecrementJumpIfQ {
        condition: ConditionCode,
        to: u8,
        target: i32,
    },
}

/// The same micro-operation with its width in its name, if there is one.
pub(super) const fn specialised(uop: Uop) -> Uop {
    use Width::{Dword, Qword};
    match uop {
        Uop::Move { width: Dword, to, from } => Uop::MoveD { to, from },
        Uop::Move { width: Qword, to, from } => Uop::MoveQ { to, from },
        Uop::Load { width: Dword, to, from } => Uop::LoadD { to, from },
        Uop::Load { width: Qword, to, from } => Uop::LoadQ { to, from },
        Uop::Store { width: Dword, to, from } => Uop::StoreD { to, from },
        Uop::Store { width: Qword, to, from } => Uop::StoreQ { to, from },
        Uop::Lea { width: Qword, to, from } => Uop::LeaQ { to, from },
        Uop::Binary { op: Binary::Add, width: Dword, to, from } => Uop::AddD { to, from },
        Uop::Binary { op: Binary::Add, width: Qword, to, from } => Uop::AddQ { to, from },
        Uop::Binary { op: Binary::Xor, width: Dword, to, from } => Uop::XorD { to, from },
        Uop::Binary { op: Binary::Xor, width: Qword, to, from } => Uop::XorQ { to, from },
        Uop::Binary { op, width: Dword, to, from } => Uop::BinaryD { op, to, from },
        Uop::Binary { op, width: Qword, to, from } => Uop::BinaryQ { op, to, from },
        Uop::BinaryImmediate { op: Binary::Add, width: Dword, to, value } => Uop::AddImmediateD { to, value },
        Uop::BinaryImmediate { op: Binary::Add, width: Qword, to, value } => Uop::AddImmediateQ { to, value },
        Uop::Shift { op, width: Dword, to, count } => Uop::ShiftD { op, to, count },
        Uop::Shift { op, width: Qword, to, count } => Uop::ShiftQ { op, to, count },
        Uop::CompareJumpIf { condition, width: Dword, a, b, target } => Uop::CompareJumpIfD { condition, a, b, target },
        Uop::CompareJumpIf { condition, width: Qword, a, b, target } => Uop::CompareJumpIfQ { condition, a, b, target },
        Uop::CompareImmediateJumpIf { condition, width: Dword, a, b, target } => {
            Uop::CompareImmediateJumpIfD { condition, a, b, target }
        }
        Uop::CompareImmediateJumpIf { condition, width: Qword, a, b, target } => {
            Uop::CompareImmediateJumpIfQ { condition, a, b, target }
        }
        Uop::TestJumpIf { condition, width: Dword, a, b, target } => Uop::TestJumpIfD { condition, a, b, target },
        Uop::TestJumpIf { condition, width: Qword, a, b, target } => Uop::TestJumpIfQ { condition, a, b, target },
        Uop::DecrementJumpIf { condition, width: Dword, to, target } => Uop::DecrementJumpIfD { condition, to, target },
        Uop::DecrementJumpIf { condition, width: Qword, to, target } => Uop::DecrementJumpIfQ { condition, to, target },
        other => other,
    }
}

/// How many translations and data accesses a micro-operation makes if it completes.
pub(super) const fn touches(uop: &Uop) -> (u64, u64) {
    match uop {
        Uop::Load { .. }
        | Uop::Store { .. }
        | Uop::StoreImmediate { .. }
        | Uop::LoadWiden { .. }
        | Uop::BinaryLoad { .. }
        | Uop::ImulLoad { .. }
        | Uop::SetMemory { .. }
        | Uop::CmovLoad { .. }
        | Uop::Push { .. }
        | Uop::PushImmediate { .. }
        | Uop::Pop { .. }
        | Uop::Leave
        | Uop::JumpLoad { .. }
        | Uop::Call { .. }
        | Uop::CallTo { .. }
        | Uop::Return { .. } => (1, 1),
        Uop::BinaryStore { op, .. } | Uop::BinaryStoreImmediate { op, .. } if !op.writes() => (1, 1),
        Uop::BinaryStore { .. } | Uop::BinaryStoreImmediate { .. } | Uop::UnaryMemory { .. } => (1, 2),
        Uop::PushLoad { .. } | Uop::CallLoad { .. } => (2, 2),
        _ => (0, 0),
    }
}

/// Whether control never goes on behind it.
pub(super) const fn ends_block(uop: &Uop) -> bool {
    matches!(
        uop,
        Uop::Jump { .. }
            | Uop::JumpTo { .. }
            | Uop::JumpLoad { .. }
            | Uop::Call { .. }
            | Uop::CallTo { .. }
            | Uop::CallLoad { .. }
            | Uop::Return { .. }
    )
}
