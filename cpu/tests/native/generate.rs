//! Random cases: an instruction of a family with random prefixes and operands, then registers that make its memory
//! operand land where something can happen.

use crate::record::{CODE, Case, DATA, Mode, READ_ONLY, TAIL, TAIL_BYTES, WINDOW, WINDOW_BYTES};
use iced_x86::{
    Code, Decoder, DecoderError, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix, Mnemonic,
    OpCodeOperandKind, OpCodeTableKind, OpKind, Register,
};

/// A splitmix64 sequence.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Whether something that happens `in_hundred` times of a hundred happens.
    pub(crate) fn chance(&mut self, in_hundred: u64) -> bool {
        self.below(100) < in_hundred
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A value with a good chance of being at an edge.
    pub(crate) fn value(&mut self) -> u64 {
        let edge = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63];
        match self.below(8) {
            0 => self.pick(&edge),
            1 => self.pick(&edge).wrapping_neg(),
            2 => !self.pick(&edge),
            3 => self.below(64),
            4 => self.next() >> self.below(64),
            5 => u64::MAX << self.below(64),
            _ => self.next(),
        }
    }
}

/// What a family is made of, and what its cases begin with.
#[derive(Clone, Copy)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) mnemonics: &'static [Mnemonic],
    pub(crate) modes: &'static [Mode],
    pub(crate) registers: Registers,
}

/// What general-purpose registers hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registers {
    /// Anything.
    Any,
    /// Small numbers half the time: bit indices, divisors, counts.
    Small,
    /// rSI and rDI point into the data and rCX is a count.
    String,
    /// rAX and its pair often equal what is in memory.
    Compare,
    /// rBP points into the data too.
    Frame,
    /// Registers and memory hold selectors, and far pointers to the code; far transfers are wanted.
    Selectors,
}

/// The encodings of a family in a mode: those without a register file that the simulator lacks.
pub(crate) fn encodings(family: &Family, mode: Mode) -> Vec<Code> {
    Code::values()
        .filter(|code| family.mnemonics.contains(&code.mnemonic()))
        .filter(|code| {
            let info = code.op_code();
            let fits = match mode {
                Mode::Bits64 => info.mode64(),
                Mode::Bits32 => info.mode32(),
                Mode::Bits16 => info.mode16(),
            };
            let mmx = (0..info.op_count()).any(|operand| is_mmx(info.op_kind(operand)));
            fits && !mmx && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        })
        .collect()
}

const fn is_mmx(kind: OpCodeOperandKind) -> bool {
    matches!(kind, OpCodeOperandKind::mm_reg | OpCodeOperandKind::mm_rm | OpCodeOperandKind::mm_or_mem)
}

fn legacy_prefixes(random: &mut Random, bytes: &mut Vec<u8>) {
    const PREFIXES: [u8; 9] = [0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0xf0, 0xf2, 0xf3];
    while random.chance(22) {
        bytes.push(random.pick(&PREFIXES));
    }
}

/// Bytes that begin like an encoding; whether they are it, the decoder says.
fn attempt(random: &mut Random, code: Code, mode: Mode) -> Vec<u8> {
    let info = code.op_code();
    let mut bytes = Vec::new();
    legacy_prefixes(random, &mut bytes);
    if info.encoding() == EncodingKind::VEX {
        let map = match info.table() {
            OpCodeTableKind::T0F => 1,
            OpCodeTableKind::T0F38 => 2,
            _ => 3,
        };
        bytes.extend([0xc4, (random.next() as u8 & 0xe0) | map, random.next() as u8 & !0x04]);
        let prefix = match info.mandatory_prefix() {
            MandatoryPrefix::P66 => 1,
            MandatoryPrefix::PF3 => 2,
            MandatoryPrefix::PF2 => 3,
            _ => 0,
        };
        let last = bytes.len() - 1;
        bytes[last] = (bytes[last] & !3) | prefix;
        bytes.push(info.op_code() as u8);
    } else {
        match info.mandatory_prefix() {
            MandatoryPrefix::P66 => bytes.push(0x66),
            MandatoryPrefix::PF3 => bytes.push(0xf3),
            MandatoryPrefix::PF2 => bytes.push(0xf2),
            _ => {}
        }
        if info.operand_size() != 0 && info.operand_size() != mode.bitness().min(32) && info.operand_size() < 64 {
            bytes.push(0x66);
        }
        if mode == Mode::Bits64 && (random.chance(50) || info.operand_size() == 64) {
            bytes.push(0x40 | random.next() as u8 & 0xf);
        }
        match info.table() {
            OpCodeTableKind::T0F => bytes.push(0x0f),
            OpCodeTableKind::T0F38 => bytes.extend([0x0f, 0x38]),
            OpCodeTableKind::T0F3A => bytes.extend([0x0f, 0x3a]),
            _ => {}
        }
        if info.op_code_len() == 2 {
            bytes.push((info.op_code() >> 8) as u8);
        }
        bytes.push(info.op_code() as u8);
    }
    if info.op_code_len() == 1 {
        let reg = if info.is_group() { info.group_index() as u8 } else { random.next() as u8 & 7 };
        bytes.push((random.next() as u8 & 0xc7) | reg << 3);
    }
    while bytes.len() < 15 {
        let byte = if random.chance(30) { random.below(3) as u8 } else { random.next() as u8 };
        bytes.push(byte);
    }
    bytes.truncate(15);
    bytes
}

pub(crate) fn decode(bytes: &[u8], mode: Mode) -> Option<(Instruction, Decoder<'_>)> {
    let mut decoder = Decoder::new(mode.bitness(), bytes, DecoderOptions::NONE);
    let insn = decoder.decode();
    (decoder.last_error() == DecoderError::None).then_some((insn, decoder))
}

/// An instruction of the family, exactly its bytes.
pub(crate) fn instruction(random: &mut Random, family: &Family, codes: &[Code], mode: Mode) -> Vec<u8> {
    loop {
        let code = random.pick(codes);
        let bytes = attempt(random, code, mode);
        // A LOCK where it is not legal is #UD, which the processor must say too.
        if let Some((insn, _)) = decode(&bytes, mode) {
            if family.mnemonics.contains(&insn.mnemonic()) && is_wanted(&insn, family.registers) {
                return bytes[..insn.len()].to_vec();
            }
        } else if bytes.contains(&0xf0) && random.chance(20) && !is_alternative_cr8(&bytes) {
            return bytes;
        }
    }
}

/// LOCK MOV CR0 is MOV CR8 on AMD's processors (APM3 MOV CRn), not #UD.
fn is_alternative_cr8(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| matches!(pair, [0x0f, 0x20 | 0x22]))
}

/// Never a load of FS or GS, which could leave a base behind that the next case would see. Of instructions that have a
/// near and a far form, or that need not load a segment register, those of the kind that the registers are for.
fn is_wanted(insn: &Instruction, registers: Registers) -> bool {
    let loads = matches!(insn.op0_register(), Register::FS | Register::GS) && insn.mnemonic() != Mnemonic::Push;
    let far = match insn.mnemonic() {
        Mnemonic::Jmp | Mnemonic::Call => is_far(insn),
        Mnemonic::Mov | Mnemonic::Pop => insn.op0_register().is_segment_register(),
        _ => registers == Registers::Selectors,
    };
    !loads && (far || insn.mnemonic() == Mnemonic::Pop) == (registers == Registers::Selectors)
}

/// Whether an instruction transfers control to another segment.
pub(crate) fn is_far(insn: &Instruction) -> bool {
    matches!(insn.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32)
        || insn.is_jmp_far_indirect()
        || insn.is_call_far_indirect()
}

/// Clears TF and AC in the flags that POPF finds on the stack: neither single-stepping nor alignment checks are compared.
fn tame_flags(case: &mut Case) {
    for at in [1, 2] {
        let address = (case.gprs[4] & 0xffff_ffff) + at;
        for (start, bytes) in [(WINDOW, &mut case.window[..]), (TAIL, &mut case.tail[..])] {
            if let Some(byte) = address.checked_sub(start).and_then(|index| bytes.get_mut(index as usize)) {
                *byte &= if at == 1 { !0x01 } else { !0x04 };
            }
        }
    }
}

/// Makes RET find an address of the code page, most of the time.
fn aim_return(random: &mut Random, case: &mut Case) {
    let wanted = CODE - case.mode.bases().0 + random.below(0x1000);
    let at = (case.gprs[4] & 0xffff_ffff).wrapping_sub(WINDOW) as usize;
    if random.chance(70) && at <= WINDOW_BYTES - 8 {
        case.window[at..at + 8].copy_from_slice(&wanted.to_le_bytes());
    }
}

/// Somewhere for a memory operand.
fn target(random: &mut Random, mode: Mode) -> u64 {
    let near = |random: &mut Random, at: u64, bytes: usize| at + random.below(bytes as u64);
    match random.below(100) {
        0..45 => near(random, WINDOW + 32, WINDOW_BYTES - 64),
        45..78 => near(random, WINDOW + 32, WINDOW_BYTES - 64) & !0xf,
        78..88 => near(random, TAIL, TAIL_BYTES),
        88..92 => near(random, READ_ONLY, 0xfe0),
        92..95 => near(random, DATA - 0x20, 0x20),
        95..97 => DATA + 0x3000 + random.below(0x800),
        97..99 if mode == Mode::Bits64 => random.pick(&[0x7fff_ffff_fff8, 0x8000_0000_0000, 0x1234_5678_9abc_def0]),
        _ if mode == Mode::Bits64 => 0xffff_9000_0000_0000 + random.below(0x1000),
        _ => DATA + 0x2800,
    }
}

/// Sets registers, or the displacement, so that the memory operand is where it is wanted.
fn aim(random: &mut Random, case: &mut Case) {
    let bytes = case.code.clone();
    let Some((insn, decoder)) = decode(&bytes, case.mode) else { return };
    if !(0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory) {
        return;
    }
    let base_of_data = if matches!(insn.memory_segment(), Register::SS) { 0 } else { case.mode.bases().1 };
    let wanted = target(random, case.mode).wrapping_sub(base_of_data);
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let scale = u64::from(insn.memory_index_scale());
    let displacement = insn.memory_displacement64();
    let number = |register: Register| register.full_register().number();
    if index != Register::None && index != base && random.chance(80) {
        case.gprs[number(index)] = random.below(16);
    }
    let indexed = if index == Register::None { 0 } else { case.gprs[number(index)].wrapping_mul(scale) };
    if base.is_gpr() && base != index {
        case.gprs[number(base)] = wanted.wrapping_sub(displacement).wrapping_sub(indexed);
        return;
    }
    let constants = decoder.get_constant_offsets(&insn);
    let (at, size) = (constants.displacement_offset(), constants.displacement_size());
    let value = match base {
        Register::RIP | Register::EIP => wanted.wrapping_sub(CODE + case.offset + insn.len() as u64),
        Register::None => wanted.wrapping_sub(indexed),
        _ => return,
    };
    if constants.has_displacement() {
        case.code[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// Makes relative branches land in the page, or just outside it.
fn aim_branch(random: &mut Random, case: &mut Case) {
    let bytes = case.code.clone();
    let Some((insn, decoder)) = decode(&bytes, case.mode) else { return };
    let constants = decoder.get_constant_offsets(&insn);
    let near = matches!(insn.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    if near && constants.has_immediate() && constants.immediate_size() > 1 && random.chance(90) {
        let value = random.below(0x1800).wrapping_sub(0xc00) as i64;
        let (at, size) = (constants.immediate_offset(), constants.immediate_size());
        case.code[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

fn fill(random: &mut Random, bytes: &mut [u8]) {
    let repeated = random.chance(30).then(|| random.next() as u8);
    for byte in bytes {
        *byte = match repeated {
            Some(value) if random.chance(95) => value,
            _ if random.chance(25) => random.pick(&[0, 1, 0x7f, 0x80, 0xff]),
            _ => random.next() as u8,
        };
    }
}

/// A far pointer to the code page, or to nowhere good: an offset and a selector, each `size` bytes.
fn far_pointer(random: &mut Random) -> (u64, u64) {
    const SELECTORS: [u64; 14] = [0x33, 0x33, 0x23, 0x23, 0x07, 0x07, 0x2b, 0x0f, 0, 3, 0x10, 0x1b, 0x7b, 0x43];
    let selector = if random.chance(95) { random.pick(&SELECTORS) } else { random.below(0x10000) };
    let selector = if random.chance(10) { selector ^ random.below(4) } else { selector };
    let base = if selector >> 2 == 1 { CODE } else { 0 };
    let offset = if random.chance(90) { CODE - base + random.below(0x1000) } else { random.value() };
    (offset, selector)
}

/// Puts a far pointer, or a frame of IRET, where the instruction will find it.
fn aim_far(random: &mut Random, case: &mut Case) {
    let (offset, selector) = far_pointer(random);
    for register in &mut case.gprs[..4] {
        *register = far_pointer(random).1 | *register << 16;
    }
    let Some((insn, _)) = decode(&case.code.clone(), case.mode) else { return };
    let flags = 0x202 | (random.next() & STATUS);
    let stack = WINDOW + 64;
    let (rsp, ss) = (stack + random.below(8) * 8, if random.chance(80) || selector == 0x0f { 0x2b } else { selector });
    let size = match insn.code() {
        Code::Retfw | Code::Retfw_imm16 | Code::Iretw => 2,
        Code::Retfd | Code::Retfd_imm16 | Code::Iretd => 4,
        Code::Retfq | Code::Retfq_imm16 | Code::Iretq => 8,
        Code::Popw_DS | Code::Popw_ES | Code::Popw_SS | Code::Popd_DS | Code::Popd_ES | Code::Popd_SS => 0,
        _ => {
            // The pointer that an operand in memory is: wherever in the window that is, one is there.
            let bytes = (insn.memory_size().size().saturating_sub(2)).min(8);
            let mut pointer = offset.to_le_bytes()[..bytes].to_vec();
            pointer.extend(&(selector as u16).to_le_bytes());
            for chunk in case.window.chunks_exact_mut(16).chain(case.tail.chunks_exact_mut(16)) {
                chunk[..pointer.len()].copy_from_slice(&pointer);
            }
            return;
        }
    };
    case.gprs[4] = stack;
    let frame = if size == 0 { vec![selector] } else { vec![offset, selector, flags, rsp, ss] };
    let size = if size == 0 { 8 } else { size };
    for (index, value) in frame.into_iter().enumerate() {
        let at = 64 + index * size;
        case.window[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

fn registers(random: &mut Random, kind: Registers, case: &mut Case) {
    for register in &mut case.gprs {
        *register = if kind == Registers::Small && random.chance(60) { random.below(128) } else { random.value() };
    }
    case.gprs[4] = WINDOW + 64 + 8 * random.below(16);
    if random.chance(8) {
        case.gprs[4] = random.pick(&[TAIL + 60, DATA + 4, READ_ONLY + 0x80, WINDOW + 127, DATA + 0x2000]);
    }
    let data = case.mode.bases().1;
    if kind == Registers::String {
        let bytes = TAIL_BYTES as u64 + 16;
        for register in [6, 7] {
            let somewhere = match random.below(10) {
                0 => TAIL + random.below(bytes),
                1 => READ_ONLY + random.below(64),
                2 => DATA - 8 + random.below(16),
                _ => WINDOW + random.below(WINDOW_BYTES as u64),
            };
            let dirty = if case.mode == Mode::Bits64 { 0 } else { random.next() << 32 };
            case.gprs[register] = somewhere.wrapping_sub(data) | dirty;
        }
        case.gprs[1] = random.below(40);
    }
    if kind == Registers::Frame && random.chance(85) {
        case.gprs[5] = WINDOW + 64 + random.below(128);
    }
}

/// Puts into the accumulator pair, half the time, what memory already holds.
fn match_memory(random: &mut Random, case: &mut Case) {
    let at = random.below(WINDOW_BYTES as u64 - 16) as usize;
    let quad = u64::from_le_bytes(case.window[at..at + 8].try_into().expect("as many bytes"));
    if random.chance(50) {
        for bytes in case.window.chunks_exact_mut(8).chain(case.tail.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&quad.to_le_bytes());
        }
    }
    (case.gprs[0], case.gprs[2]) = (quad, if random.chance(80) { quad } else { random.value() });
    let pair32 = quad >> 32;
    if random.chance(40) {
        case.gprs[2] = pair32;
    }
}

const STATUS: u64 = 0x8d5;
const DIRECTION: u64 = 0x400;

/// A case around the given instruction bytes.
pub(crate) fn case(random: &mut Random, mode: Mode, kind: Registers, code: Vec<u8>) -> Case {
    let mut case = Case {
        mode,
        gprs: [0; 16],
        rflags: 0x202 | (random.next() & STATUS),
        mxcsr: 0x1f80,
        xmm: [0; 16],
        code,
        offset: 0x800 + random.below(16),
        window: [0; WINDOW_BYTES],
        tail: [0; TAIL_BYTES],
    };
    if random.chance(30) {
        case.rflags |= DIRECTION;
    }
    if random.chance(4) {
        // The instruction ends with its page, or reaches beyond it.
        case.offset = 0x1000 - case.code.len() as u64 + u64::from(random.chance(30));
    }
    fill(random, &mut case.window);
    fill(random, &mut case.tail);
    registers(random, kind, &mut case);
    for register in &mut case.xmm {
        let mut bytes = [0; 16];
        fill(random, &mut bytes);
        *register = u128::from_le_bytes(bytes);
    }
    if kind == Registers::Compare {
        match_memory(random, &mut case);
    }
    if kind == Registers::Selectors {
        aim_far(random, &mut case);
    }
    aim(random, &mut case);
    match decode(&case.code, mode).map(|(insn, _)| insn.mnemonic()) {
        Some(Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq) => tame_flags(&mut case),
        Some(Mnemonic::Ret) => aim_return(random, &mut case),
        _ => {}
    }
    aim_branch(random, &mut case);
    if mode != Mode::Bits64 {
        for register in &mut case.gprs {
            *register &= 0xffff_ffff;
        }
        case.gprs[8..].fill(0);
    }
    case
}
