//! Compares the two ends of a case, leaving out what the manuals leave undefined, and what the vendor does otherwise.

use crate::generate::decode;
use crate::record::{Case, Ended};
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, RflagsBits};
use sim_core::arch::rflags::Rflags;

/// The flags that are compared: RF is the exception's own, TF never set, IF and IOPL out of reach.
const COMPARED: Rflags = Rflags::STATUS.union(Rflags::DF).union(Rflags::NT).union(Rflags::AC).union(Rflags::ID);

const BREAKPOINT: u8 = 3;
const INVALID_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
/// The error-code bit of a fetch.
const FETCH: u32 = 1 << 4;

/// The flags that the decoder's own database says are left undefined.
fn listed(insn: &Instruction) -> Rflags {
    let bits = insn.rflags_undefined();
    [
        (RflagsBits::OF, Rflags::OF),
        (RflagsBits::SF, Rflags::SF),
        (RflagsBits::ZF, Rflags::ZF),
        (RflagsBits::AF, Rflags::AF),
        (RflagsBits::CF, Rflags::CF),
        (RflagsBits::PF, Rflags::PF),
    ]
    .into_iter()
    .filter_map(|(listed, flag)| (bits & listed != 0).then_some(flag))
    .collect()
}

/// A shift's or rotate's count as the processor masks it, and its operand's bits.
fn count(insn: &Instruction, case: &Case) -> (u64, u64) {
    let last = insn.op_count() - 1;
    let bytes = match insn.op0_kind() {
        OpKind::Register => insn.op0_register().size(),
        _ => insn.memory_size().size(),
    };
    let raw = match insn.op_kind(last) {
        OpKind::Register => case.gprs[1],
        _ => insn.immediate(last),
    };
    (raw & if bytes == 8 { 0x3f } else { 0x1f }, 8 * bytes as u64)
}

/// Flags that SDM 2 leaves undefined after this instruction with these operands.
fn undefined(insn: &Instruction, case: &Case) -> Rflags {
    match insn.mnemonic() {
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => match count(insn, case).0 {
            0 | 1 => Rflags::empty(),
            _ => Rflags::OF,
        },
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => match count(insn, case) {
            (0, _) => Rflags::empty(),
            (1, _) => Rflags::AF,
            (count, bits) if count >= bits && insn.mnemonic() != Mnemonic::Sar => Rflags::AF | Rflags::OF | Rflags::CF,
            _ => Rflags::AF | Rflags::OF,
        },
        Mnemonic::Shld | Mnemonic::Shrd => match count(insn, case).0 {
            0 => Rflags::empty(),
            1 => Rflags::AF,
            _ => Rflags::AF | Rflags::OF,
        },
        _ => listed(insn),
    }
}

/// Why this host's processor need not agree with the simulator about this case.
fn excused(insn: &Instruction, case: &Case, native: &Ended, simulated: &Ended) -> Option<&'static str> {
    let prefixed = |byte| case.code[..case.code.len().min(insn.len()) - 1].contains(&byte);
    let faulted = native.vector != BREAKPOINT;
    let near = insn.is_jcc_short_or_near() || insn.is_jmp_short_or_near() || insn.is_call_near();
    match insn.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd => {
            let (count, bits) = count(insn, case);
            (count > bits).then_some("SDM 2 SHLD: a count above the operand's size leaves everything undefined")
        }
        Mnemonic::Bswap if insn.op0_register().size() == 2 => Some("SDM 2 BSWAP: undefined for 16 bits"),
        Mnemonic::Jmp | Mnemonic::Call if insn.memory_size() == MemorySize::SegPtr64 => {
            Some("APM3 CALL, JMP: AMD's far pointers have 32-bit offsets at most; SDM 2 has m16:64")
        }
        Mnemonic::Call if faulted && (insn.is_call_far() || insn.is_call_far_indirect()) => {
            Some("SDM 2 CALL: what a far call that faults has written below the stack pointer is open")
        }
        Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
            if native.vector == PAGE_FAULT && matches!(simulated.vector, PAGE_FAULT | GENERAL_PROTECTION) =>
        {
            Some("SDM 2 RET: AMD reads the whole frame, SS before RSP, before it judges the selectors")
        }
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
            if (native.vector, simulated.vector) == (GENERAL_PROTECTION, GENERAL_PROTECTION) && native.error == 0 =>
        {
            Some("SDM 2 IRET: AMD judges the new instruction pointer before the stack segment")
        }
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
            if insn.is_string_instruction() && faulted && simulated.vector != BREAKPOINT =>
        {
            Some("SDM 2 CMPS: which operand is read first is open, and AMD's own processors differ")
        }
        Mnemonic::Popa | Mnemonic::Popad if faulted => {
            Some("SDM 2 POPA: a fault in the middle may leave registers popped, for the restart pops them again")
        }
        Mnemonic::Call if (native.vector, simulated.vector) == (PAGE_FAULT, GENERAL_PROTECTION) => {
            Some("SDM 2 CALL judges the target before the stack; AMD writes the stack first")
        }
        Mnemonic::Ud0 | Mnemonic::Ud1 if native.vector == INVALID_OPCODE => {
            Some("SDM 2 UD: whether UD0 and UD1 fetch a ModRM byte depends on the processor")
        }
        Mnemonic::Reservednop | Mnemonic::Nop if case.code.windows(2).any(|pair| pair == [0x0f, 0x0d]) => Some(
            "APM3 PREFETCH: 0F 0D of a register is #UD on AMD's processors, and a reserved NOP in SDM 2D table A-3",
        ),
        Mnemonic::Loope | Mnemonic::Loopne if prefixed(0xf2) || prefixed(0xf3) => {
            Some("SDM 2A 2.1.1: a repeat prefix here is reserved; AMD lets it choose the condition")
        }
        _ if case.mode.bitness() == 64 && prefixed(0x66) && (near || is_near_transfer(insn)) => {
            Some("APM3 1.2.2: AMD lets 66 truncate near branches in 64-bit mode; SDM 2 ignores it")
        }
        _ => None,
    }
}

/// The same for bytes that are no instruction.
fn excused_undefined(case: &Case, native: &Ended, simulated: &Ended) -> Option<&'static str> {
    let has = |wanted: fn([u8; 2]) -> bool| case.code.windows(2).any(|pair| wanted([pair[0], pair[1]]));
    let either = |ended: &Ended| {
        let fetch = ended.vector == PAGE_FAULT && ended.error & FETCH != 0;
        fetch || matches!(ended.vector, INVALID_OPCODE | GENERAL_PROTECTION)
    };
    if case.code.len() < 15 {
        return None;
    }
    if either(native) && either(simulated) {
        Some("SDM 2A 2.3.11: an undefined opcode that is also too long may raise either, or fault in its fetch")
    } else if case.code.contains(&0x66) && has(|pair| matches!(pair, [0x0f, 0x80..=0x8f])) {
        Some("APM3 1.2.2: AMD lets 66 shorten near branches in 64-bit mode; in SDM 2 this one is too long")
    } else if case.code.contains(&0xf0) && has(|pair| pair == [0x0f, 0x00]) {
        Some("SDM 3A table 6-2: #UD for LOCK comes before the operand; AMD reads the operand of VERR and VERW first")
    } else {
        None
    }
}

fn is_near_transfer(insn: &Instruction) -> bool {
    let named = matches!(
        insn.mnemonic(),
        Mnemonic::Jmp | Mnemonic::Call | Mnemonic::Ret | Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne
    );
    named || insn.is_jcc_short_or_near() || insn.is_jcx_short()
}

/// What differs, if anything does.
pub(crate) fn differs(case: &Case, native: &Ended, simulated: &Ended) -> Option<String> {
    let insn = decode(&case.code, case.mode).map(|(insn, _)| insn);
    let excuse = match &insn {
        Some(insn) => excused(insn, case, native, simulated),
        None => excused_undefined(case, native, simulated),
    };
    if excuse.is_some() {
        return None;
    }
    // The next fetch may fault where the instruction ends with its page.
    let completed = native.vector == BREAKPOINT || native.rip != case.rip();
    let open = insn.as_ref().filter(|_| completed).map_or(Rflags::empty(), |insn| undefined(insn, case));
    let flags = |ended: &Ended| (Rflags::from_bits_truncate(ended.rflags) & COMPARED).difference(open);
    // The kernel shows a user every address of its own as present: its half, and the last page of the user's.
    let kernel_half = native.vector == PAGE_FAULT && native.cr2 >= 0x7fff_ffff_f000;
    let error = |ended: &Ended| if kernel_half { ended.error | 1 } else { ended.error };
    let mut text = String::new();
    let mut note = |what: &str, native: u128, simulated: u128| {
        if native != simulated {
            text += &format!("\n  {what}: native {native:#x}, simulated {simulated:#x}");
        }
    };
    note("vector", native.vector.into(), simulated.vector.into());
    note("error code", error(native).into(), error(simulated).into());
    note("CR2", native.cr2.into(), simulated.cr2.into());
    note("RIP", native.rip.into(), simulated.rip.into());
    note("RFLAGS", flags(native).bits().into(), flags(simulated).bits().into());
    note("MXCSR", native.mxcsr.into(), simulated.mxcsr.into());
    for (number, (a, b)) in native.gprs.iter().zip(&simulated.gprs).enumerate() {
        note(&format!("register {number}"), (*a).into(), (*b).into());
    }
    for (number, (a, b)) in native.xmm.iter().zip(&simulated.xmm).enumerate() {
        note(&format!("xmm{number}"), *a, *b);
    }
    for (number, (a, b)) in native.selectors.iter().zip(&simulated.selectors).enumerate() {
        // The kernel's IRET makes every null selector 0 (SDM 2 IRET).
        let shown = |selector: u16| u128::from(if selector < 4 { 0 } else { selector });
        note(&format!("selector {number}"), shown(*a), shown(*b));
    }
    note("checksum", native.checksum.into(), simulated.checksum.into());
    for (name, a, b) in [("window", &native.window[..], &simulated.window[..]), ("tail", &native.tail, &simulated.tail)]
    {
        if let Some(at) = (0..a.len()).find(|at| a[*at] != b[*at]) {
            note(&format!("{name} byte {at}"), a[at].into(), b[at].into());
        }
    }
    (!text.is_empty()).then(|| describe(case, insn.as_ref(), &text))
}

fn describe(case: &Case, insn: Option<&Instruction>, text: &str) -> String {
    let shown = insn.map_or_else(|| "(invalid)".to_owned(), Instruction::to_string);
    let (code, flags) = (&case.code, Rflags::from_bits_truncate(case.rflags));
    format!("{shown} {code:02x?} in {:?}, registers {:x?}, {flags:?}{text}", case.mode, case.gprs)
}
