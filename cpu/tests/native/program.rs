//! The native program: a small static ELF64 executable that this file assembles. It reads cases from its standard
//! input, runs each until a signal ends it, and writes to its standard output what the signal frame and memory hold.
//!
//! The kernel's interface that it uses is the System V ABI's: system-call numbers, `struct sigaction`, `stack_t` and
//! the signal frame's `struct ucontext`.

use crate::record::{BASE16, CODE, DATA, DATA_BYTES, LIMIT16, PROGRAM, READ_ONLY, TAIL, TAIL_BYTES, WORK};
use crate::record::{WINDOW, WINDOW_BYTES, case, result};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

const CASE: u64 = WORK;
const RESULT: u64 = WORK + 0x1000;
const STACK_TOP: u64 = WORK + 0x4000;
const ARGUMENTS: u64 = WORK + 0x5000;
const SIGNAL_STACK: u64 = WORK + 0x8000;
const SIGNAL_STACK_BYTES: u64 = 0x1_0000;
const WORK_BYTES: u64 = 0x2_0000;

/// Seconds until the kernel ends a program that hangs.
const ALARM: u32 = 300;

mod call {
    pub(super) const READ: u32 = 0;
    pub(super) const WRITE: u32 = 1;
    pub(super) const MMAP: u32 = 9;
    pub(super) const MPROTECT: u32 = 10;
    pub(super) const SIGACTION: u32 = 13;
    pub(super) const SIGRETURN: u32 = 15;
    pub(super) const ALARM: u32 = 37;
    pub(super) const EXIT: u32 = 60;
    pub(super) const SIGALTSTACK: u32 = 131;
    pub(super) const MODIFY_LDT: u32 = 154;
}

/// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV.
const SIGNALS: [u32; 5] = [4, 5, 7, 8, 11];
/// SA_SIGINFO, SA_RESTORER, SA_ONSTACK, SA_NODEFER.
const ACTION_FLAGS: u64 = 0x4 | 0x0400_0000 | 0x0800_0000 | 0x4000_0000;
/// Where the signal frame's registers are in `struct ucontext`, how many bytes, and where its FXSAVE area's address is.
const MACHINE_CONTEXT: i32 = 40;
const MACHINE_CONTEXT_BYTES: u32 = 184;
const FLOATING_STATE: i32 = MACHINE_CONTEXT + 184;

type Assembled = Result<(), IcedError>;

fn map(a: &mut CodeAssembler, at: u64, bytes: u64, protection: u32) -> Assembled {
    const PRIVATE_FIXED_ANONYMOUS: u32 = 0x32;
    a.mov(rdi, at)?;
    a.mov(rsi, bytes)?;
    a.mov(edx, protection)?;
    a.mov(r10d, PRIVATE_FIXED_ANONYMOUS)?;
    a.mov(r8, -1_i64)?;
    a.xor(r9d, r9d)?;
    a.mov(eax, call::MMAP)?;
    a.syscall()
}

/// Memory: code, data, a page that becomes read-only after it was filled, and the program's own.
fn map_all(a: &mut CodeAssembler) -> Assembled {
    map(a, CODE, 0x1000, 7)?;
    map(a, DATA, DATA_BYTES as u64, 3)?;
    map(a, WORK, WORK_BYTES, 3)?;
    map(a, READ_ONLY, 0x1000, 3)?;
    a.mov(rdi, READ_ONLY)?;
    a.mov(ecx, 0x1000)?;
    a.mov(eax, 0x5a)?;
    a.rep().stosb()?;
    a.mov(rdi, READ_ONLY)?;
    a.mov(esi, 0x1000)?;
    a.mov(edx, 1)?;
    a.mov(eax, call::MPROTECT)?;
    a.syscall()
}

/// 16-bit code and data in LDT entries 0 and 1. A kernel without LDTs refuses, and 16-bit cases then fail to start.
fn local_descriptors(a: &mut CodeAssembler) -> Assembled {
    /// contents, in bits 2:1 of the kernel's `struct user_desc` flags.
    const CODE_CONTENTS: u32 = 2 << 1;
    for (entry, base, flags) in [(0, CODE, CODE_CONTENTS), (1, BASE16, 0)] {
        a.mov(rdi, ARGUMENTS)?;
        for (field, value) in [entry, base as u32, LIMIT16, flags].into_iter().enumerate() {
            a.mov(dword_ptr(rdi + 4 * field), value)?;
        }
        a.mov(rsi, ARGUMENTS)?;
        a.mov(edi, 0x11)?;
        a.mov(edx, 16)?;
        a.mov(eax, call::MODIFY_LDT)?;
        a.syscall()?;
    }
    Ok(())
}

fn signals(a: &mut CodeAssembler, handler: CodeLabel, restorer: CodeLabel) -> Assembled {
    a.mov(rdi, ARGUMENTS)?;
    a.mov(rax, SIGNAL_STACK)?;
    a.mov(qword_ptr(rdi), rax)?;
    a.mov(qword_ptr(rdi + 8), 0)?;
    a.mov(rax, SIGNAL_STACK_BYTES)?;
    a.mov(qword_ptr(rdi + 16), rax)?;
    a.xor(esi, esi)?;
    a.mov(eax, call::SIGALTSTACK)?;
    a.syscall()?;
    a.mov(rsi, ARGUMENTS)?;
    a.lea(rax, ptr(handler))?;
    a.mov(qword_ptr(rsi), rax)?;
    a.mov(rax, ACTION_FLAGS)?;
    a.mov(qword_ptr(rsi + 8), rax)?;
    a.lea(rax, ptr(restorer))?;
    a.mov(qword_ptr(rsi + 16), rax)?;
    a.mov(qword_ptr(rsi + 24), 0)?;
    for signal in SIGNALS {
        a.mov(edi, signal)?;
        a.xor(edx, edx)?;
        a.mov(r10d, 8)?;
        a.mov(eax, call::SIGACTION)?;
        a.syscall()?;
    }
    a.mov(edi, ALARM)?;
    a.mov(eax, call::ALARM)?;
    a.syscall()
}

/// Reads or writes a whole record; at the end of the input, or on an error, goes to `end`.
fn transfer(a: &mut CodeAssembler, number: u32, at: u64, bytes: usize, end: CodeLabel) -> Assembled {
    let mut again = a.create_label();
    let mut whole = a.create_label();
    a.mov(rbx, at)?;
    a.mov(r12d, bytes as u32)?;
    a.set_label(&mut again)?;
    a.mov(edi, if number == call::READ { 0 } else { 1 })?;
    a.mov(rsi, rbx)?;
    a.mov(edx, r12d)?;
    a.mov(eax, number)?;
    a.syscall()?;
    a.test(rax, rax)?;
    a.jle(end)?;
    a.add(rbx, rax)?;
    a.sub(r12d, eax)?;
    a.jnz(again)?;
    a.set_label(&mut whole)?;
    a.nop()
}

fn copy(a: &mut CodeAssembler, to: u64, from: u64, bytes: usize) -> Assembled {
    a.mov(rdi, to)?;
    a.mov(rsi, from)?;
    a.mov(ecx, bytes as u32)?;
    a.rep().movsb()
}

/// Memory as the case wants it.
fn prepare(a: &mut CodeAssembler) -> Assembled {
    a.mov(rdi, CODE)?;
    a.mov(ecx, 0x1000)?;
    a.mov(eax, 0xcc)?;
    a.rep().stosb()?;
    a.mov(rdi, DATA)?;
    a.mov(ecx, DATA_BYTES as u32)?;
    a.xor(eax, eax)?;
    a.rep().stosb()?;
    copy(a, WINDOW, CASE + case::WINDOW as u64, WINDOW_BYTES)?;
    copy(a, TAIL, CASE + case::TAIL as u64, TAIL_BYTES)?;
    // The code may end with its page: no more bytes than there are.
    let mut fits = a.create_label();
    a.mov(rsi, CASE + case::CODE as u64)?;
    a.mov(rdi, CODE)?;
    a.mov(rbx, CASE)?;
    a.mov(rax, qword_ptr(rbx + case::OFFSET))?;
    a.add(rdi, rax)?;
    a.mov(ecx, 0x1000)?;
    a.sub(ecx, eax)?;
    a.cmp(ecx, 16)?;
    a.jbe(fits)?;
    a.mov(ecx, 16)?;
    a.set_label(&mut fits)?;
    a.rep().movsb()
}

/// Loads everything from the case and goes to its instruction.
fn start(a: &mut CodeAssembler) -> Assembled {
    a.mov(rbx, CASE)?;
    a.ldmxcsr(dword_ptr(rbx + case::MXCSR))?;
    let xmm = [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15];
    for (index, register) in xmm.into_iter().enumerate() {
        a.movdqu(register, xmmword_ptr(rbx + case::XMM + 16 * index))?;
    }
    a.xor(eax, eax)?;
    a.mov(fs, eax)?;
    a.mov(gs, eax)?;
    a.mov(ds, word_ptr(rbx + case::DS))?;
    a.mov(es, word_ptr(rbx + case::ES))?;
    // IRETQ takes the instruction pointer, CS, the flags, RSP and SS from here.
    a.lea(rsp, ptr(rbx + case::RIP))?;
    let rest = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    for (index, register) in rest.into_iter().enumerate() {
        if register != rbx && register != rsp {
            a.mov(register, qword_ptr(rbx + 8 * index))?;
        }
    }
    a.mov(rbx, qword_ptr(rbx + 24))?;
    a.iretq()
}

/// The signal handler: RDI is the signal and RDX the frame. It never returns.
fn handle(a: &mut CodeAssembler) -> Assembled {
    a.push(0x202)?;
    a.popfq()?;
    a.mov(rbx, RESULT)?;
    a.mov(qword_ptr(rbx + result::SIGNAL), rdi)?;
    for (index, segment) in [ds, es, fs, gs].into_iter().enumerate() {
        a.xor(eax, eax)?;
        a.mov(eax, segment)?;
        a.mov(qword_ptr(rbx + result::SELECTORS + 8 * index), rax)?;
    }
    a.lea(rsi, ptr(rdx + MACHINE_CONTEXT))?;
    a.mov(rdi, RESULT)?;
    a.mov(ecx, MACHINE_CONTEXT_BYTES)?;
    a.rep().movsb()?;
    a.mov(rdx, qword_ptr(rdx + FLOATING_STATE))?;
    a.mov(eax, dword_ptr(rdx + 24))?;
    a.mov(qword_ptr(rbx + result::MXCSR), rax)?;
    a.lea(rsi, ptr(rdx + 160))?;
    a.mov(rdi, RESULT + result::XMM as u64)?;
    a.mov(ecx, 256)?;
    a.rep().movsb()?;
    copy(a, RESULT + result::WINDOW as u64, WINDOW, WINDOW_BYTES)?;
    copy(a, RESULT + result::TAIL as u64, TAIL, TAIL_BYTES)?;
    let mut fold = a.create_label();
    a.mov(rsi, DATA)?;
    a.mov(ecx, DATA_BYTES as u32 / 8)?;
    a.xor(eax, eax)?;
    a.set_label(&mut fold)?;
    a.rol(rax, 5)?;
    a.xor(rax, qword_ptr(rsi))?;
    a.add(rsi, 8)?;
    a.dec(ecx)?;
    a.jnz(fold)?;
    a.mov(qword_ptr(rbx + result::CHECKSUM), rax)
}

fn assemble() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut handler, mut restorer, mut next, mut end) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    map_all(&mut a)?;
    local_descriptors(&mut a)?;
    signals(&mut a, handler, restorer)?;
    a.set_label(&mut next)?;
    a.mov(rsp, STACK_TOP)?;
    transfer(&mut a, call::READ, CASE, case::BYTES, end)?;
    prepare(&mut a)?;
    start(&mut a)?;
    a.set_label(&mut handler)?;
    handle(&mut a)?;
    transfer(&mut a, call::WRITE, RESULT, result::BYTES, end)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    a.mov(edi, eax)?;
    a.mov(eax, call::EXIT)?;
    a.syscall()?;
    a.set_label(&mut restorer)?;
    a.mov(eax, call::SIGRETURN)?;
    a.syscall()?;
    a.assemble(PROGRAM + HEADERS)
}

const HEADERS: u64 = 64 + 2 * 56;

/// The executable: a header, one segment with everything, and the note that no stack is executable.
pub(crate) fn executable() -> Vec<u8> {
    let code = assemble().expect("a program of valid instructions");
    let total = HEADERS + code.len() as u64;
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |elf: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    let word = |elf: &mut Vec<u8>, value: u32| elf.extend(value.to_le_bytes());
    let quad = |elf: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| elf.extend(v.to_le_bytes()));
    half(&mut elf, &[2, 62]);
    word(&mut elf, 1);
    quad(&mut elf, &[PROGRAM + HEADERS, 64, 0]);
    word(&mut elf, 0);
    half(&mut elf, &[64, 56, 2, 64, 0, 0]);
    word(&mut elf, 1);
    word(&mut elf, 5);
    quad(&mut elf, &[0, PROGRAM, PROGRAM, total, total, 0x1000]);
    word(&mut elf, 0x6474_e551);
    word(&mut elf, 6);
    quad(&mut elf, &[0, 0, 0, 0, 0, 16]);
    elf.extend(code);
    elf
}

/// Whether an instruction pointer is the program's own: then a case could not even start.
pub(crate) const fn is_own(rip: u64) -> bool {
    rip >= PROGRAM && rip < PROGRAM + 0x1000
}
