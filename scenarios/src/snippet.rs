//! Guest steps as real instructions: each compiles to a few instructions at the start of its seat's code slot and ends
//! in a gate, an OUT that comes back to the engine. After the gate the slot jumps to its own start, so the next step is
//! whatever the engine has written there by then.
//!
//! Registers are scratch: a snippet loads what it needs and leaves results in RAX, RCX and RDX.

use crate::file::{Flags, Flush, InveptScope, InvpcidScope, InvvpidScope, Mode, Privilege};
use crate::image::descriptors::{self, CODE32, CODE64, USER_CODE32, USER_CODE64, USER_DATA};
use crate::image::layout::{GATES, HANDLER_BYTES, HANDLERS32, HANDLERS64, LANDING, Seat, VECTORS};
use crate::image::tables::Entry;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use sim_core::arch::control::CR3_NO_FLUSH;
use sim_core::arch::exception::Vector;
use sim_core::{Gpa, SimError};

/// Ports of the gates.
pub mod gate {
    /// The step is done.
    pub const DONE: u16 = 0xe0;
    /// An exception handler ran: vector in BL, error code in RCX, CR2 in RDX.
    pub const FAULT: u16 = 0xe1;
    /// L2 exited to L1: the reason is in RAX.
    pub const EXIT: u16 = 0xe2;
    /// A VMX instruction failed: the VM-instruction error is in RAX, 0 for VMfailInvalid.
    pub const VMFAIL: u16 = 0xe3;
    /// SMM code begins.
    pub const SMM: u16 = 0xe4;
    /// A vCPU that a start-up IPI has started is in 32-bit mode.
    pub const STARTED: u16 = 0xe5;
}

/// Code for an address.
pub type Code = (Gpa, Vec<u8>);

/// A VMCS region and what L1 writes into it.
pub type VmcsContents = (Gpa, Vec<(vmx::Field, u64)>);

/// The assembler of one snippet.
pub struct Snippet {
    asm: CodeAssembler,
    seat: Seat,
    mode: Mode,
    at: Gpa,
}

fn failed(error: IcedError) -> SimError {
    SimError::internal(format!("assembling a step: {error}"))
}

const fn bitness(mode: Mode) -> u32 {
    if mode.is_long() { 64 } else { 32 }
}

/// Both widths of an instruction: 64-bit registers in 64-bit code, their lower halves in 32-bit code.
macro_rules! wide {
    ($self:ident, $method:ident($long:expr), $($legacy:expr),+) => {
        if $self.mode.is_long() { $self.asm.$method($long) } else { $self.asm.$method($($legacy),+) }
    };
    ($self:ident, $method:ident($a:expr, $b:expr) | ($c:expr, $d:expr)) => {
        if $self.mode.is_long() { $self.asm.$method($a, $b) } else { $self.asm.$method($c, $d) }
    };
}

impl Snippet {
    /// A snippet at the start of a seat's slot.
    ///
    /// # Errors
    /// Never, for both bitnesses exist.
    pub fn new(seat: Seat, mode: Mode) -> Result<Self, SimError> {
        let mut snippet = Self::at(seat, mode, seat.slot())?;
        let stack = seat.stack().0;
        wide!(snippet, mov(rsp, stack) | (esp, stack as u32)).map_err(failed)?;
        Ok(snippet)
    }

    fn at(seat: Seat, mode: Mode, at: Gpa) -> Result<Self, SimError> {
        if mode == Mode::Real {
            return Err(SimError::unmodelled("guest steps in real-address mode"));
        }
        Ok(Self { asm: CodeAssembler::new(bitness(mode)).map_err(failed)?, seat, mode, at })
    }

    /// The code, ending in a gate.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn finish(mut self, port: u16) -> Result<Code, SimError> {
        self.gate(port).map_err(failed)?;
        let bytes = self.asm.assemble(self.at.0).map_err(failed)?;
        Ok((self.at, bytes))
    }

    /// On to the resident gate of a port.
    fn gate(&mut self, port: u16) -> Result<(), IcedError> {
        self.asm.jmp(gate_at(self.seat, port).0)
    }

    /// Loads a register pair's wide register with a number: 0 is RAX, 1 RBX, 2 RCX, 3 RDX.
    fn load(&mut self, register: usize, value: u64) -> Result<(), IcedError> {
        const LONG: [AsmRegister64; 4] = [rax, rbx, rcx, rdx];
        const SHORT: [AsmRegister32; 4] = [eax, ebx, ecx, edx];
        wide!(self, mov(LONG[register], value) | (SHORT[register], value as u32))
    }

    /// MOV to CR3.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn mov_cr3(mut self, value: u64, flush: Flush) -> Result<Code, SimError> {
        let no_flush = if flush == Flush::No { CR3_NO_FLUSH } else { 0 };
        self.load(0, value | no_flush).map_err(failed)?;
        wide!(self, mov(cr3, rax) | (cr3, eax)).map_err(failed)?;
        self.finish(gate::DONE)
    }

    /// MOV to CR0 or CR4 of its value with bits changed.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn mov_cr(mut self, register: AsmRegisterCr, flags: Flags) -> Result<Code, SimError> {
        self.change_cr(register, flags).map_err(failed)?;
        self.finish(gate::DONE)
    }

    fn change_cr(&mut self, register: AsmRegisterCr, flags: Flags) -> Result<(), IcedError> {
        wide!(self, mov(rax, register) | (eax, register))?;
        self.asm.or(eax, flags.set as u32 as i32)?;
        self.asm.and(eax, !(flags.clear as u32) as i32)?;
        wide!(self, mov(register, rax) | (register, eax))
    }

    /// MOV to CR8, which only 64-bit code can encode.
    ///
    /// # Errors
    /// If the code is not 64-bit.
    pub fn mov_to_cr8(mut self, priority: u8) -> Result<Code, SimError> {
        self.needs_64_bit("MOV to CR8")?;
        self.load(0, priority.into()).and_then(|()| self.asm.mov(cr8, rax)).map_err(failed)?;
        self.finish(gate::DONE)
    }

    /// MOV from CR8.
    ///
    /// # Errors
    /// If the code is not 64-bit.
    pub fn mov_from_cr8(mut self) -> Result<Code, SimError> {
        self.needs_64_bit("MOV from CR8")?;
        self.asm.mov(rax, cr8).map_err(failed)?;
        self.finish(gate::DONE)
    }

    fn needs_64_bit(&self, what: &str) -> Result<(), SimError> {
        if self.mode.is_long() { Ok(()) } else { Err(SimError::unmodelled(format!("{what} in code of 32 bits"))) }
    }

    /// WRMSR to EFER of its value with bits changed.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn wrmsr_efer(mut self, flags: Flags) -> Result<Code, SimError> {
        self.change_efer(flags).map_err(failed)?;
        self.finish(gate::DONE)
    }

    fn change_efer(&mut self, flags: Flags) -> Result<(), IcedError> {
        self.asm.mov(ecx, sim_core::arch::msr::EFER)?;
        self.asm.rdmsr()?;
        self.asm.or(eax, flags.set as u32 as i32)?;
        self.asm.and(eax, !(flags.clear as u32) as i32)?;
        self.asm.wrmsr()
    }

    /// A load, a store, or a call of an address, by supervisor or user code. User code is a second piece.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn access(mut self, access: Access, user: Privilege) -> Result<Vec<Code>, SimError> {
        if user == Privilege::Supervisor {
            self.touch(access).map_err(failed)?;
            return Ok(vec![self.finish(gate::DONE)?]);
        }
        let mut inner = Self::at(self.seat, self.mode, self.seat.user_slot())?;
        inner.touch(access).map_err(failed)?;
        // Ring 3 comes back through the one gate that it may use.
        inner.asm.int3().map_err(failed)?;
        let inner_at = inner.at;
        let user_code = inner.asm.assemble(inner_at.0).map_err(failed)?;
        self.drop_to_user(inner_at).map_err(failed)?;
        Ok(vec![(inner_at, user_code), self.finish(gate::DONE)?])
    }

    fn touch(&mut self, access: Access) -> Result<(), IcedError> {
        match access {
            Access::Read(at) => {
                self.load(1, at)?;
                wide!(self, mov(rax, qword_ptr(rbx)) | (eax, dword_ptr(ebx)))
            }
            Access::Write(at, value) => {
                self.load(1, at)?;
                self.load(0, value)?;
                wide!(self, mov(qword_ptr(rbx), rax) | (dword_ptr(ebx), eax))
            }
            Access::Exec(at) => {
                self.load(1, at)?;
                if self.mode.is_long() { self.asm.call(rbx) } else { self.asm.call(ebx) }
            }
        }
    }

    /// IRET to ring 3.
    fn drop_to_user(&mut self, target: Gpa) -> Result<(), IcedError> {
        let stack = self.seat.user_stack().0;
        let code = if self.mode.is_long() { USER_CODE64 } else { USER_CODE32 };
        if !self.mode.is_long() {
            // IRET to ring 3 would null ring 0's data segments (SDM 2A IRET).
            self.asm.mov(eax, u32::from(USER_DATA))?;
            self.asm.mov(ds, eax)?;
            self.asm.mov(es, eax)?;
        }
        for value in [u64::from(USER_DATA), stack, 2, u64::from(code), target.0] {
            self.load(0, value)?;
            if self.mode.is_long() { self.asm.push(rax)? } else { self.asm.push(eax)? }
        }
        if self.mode.is_long() { self.asm.iretq() } else { self.asm.iretd() }
    }

    /// INVLPG.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn invlpg(mut self, at: u64) -> Result<Code, SimError> {
        self.load(1, at).map_err(failed)?;
        if self.mode.is_long() { self.asm.invlpg(byte_ptr(rbx)) } else { self.asm.invlpg(byte_ptr(ebx)) }
            .map_err(failed)?;
        self.finish(gate::DONE)
    }

    /// VMCALL or VMMCALL: the exit to L1.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn hypercall(mut self, intel: bool) -> Result<Code, SimError> {
        if intel { self.asm.vmcall() } else { self.asm.vmmcall() }.map_err(failed)?;
        self.finish(gate::DONE)
    }

    fn store_operand(&mut self, offset: u64, value: u64) -> Result<(), IcedError> {
        let at = self.seat.operands().0 + offset;
        self.load(1, at)?;
        if self.mode.is_long() {
            self.asm.mov(rax, value)?;
            self.asm.mov(qword_ptr(rbx), rax)
        } else {
            self.asm.mov(dword_ptr(ebx), value as u32)?;
            self.asm.mov(dword_ptr(ebx + 4), (value >> 32) as u32)
        }
    }

    /// A VMX instruction with a 64-bit operand in memory, which must succeed.
    fn vmx_pointer(&mut self, which: VmxPointer, value: u64) -> Result<(), IcedError> {
        self.store_operand(0, value)?;
        let operand = if self.mode.is_long() { qword_ptr(rbx) } else { qword_ptr(ebx) };
        match which {
            VmxPointer::Vmxon => self.asm.vmxon(operand)?,
            VmxPointer::Vmclear => self.asm.vmclear(operand)?,
            VmxPointer::Vmptrld => self.asm.vmptrld(operand)?,
        }
        self.fail_gate()
    }

    /// Leaves through the VMfail gate if the instruction before failed.
    fn fail_gate(&mut self) -> Result<(), IcedError> {
        let (mut valid, mut go_on, mut out) =
            (self.asm.create_label(), self.asm.create_label(), self.asm.create_label());
        self.asm.ja(go_on)?;
        self.asm.jz(valid)?;
        self.asm.xor(eax, eax)?;
        self.asm.jmp(out)?;
        self.asm.set_label(&mut valid)?;
        self.vmread_rax(vmx::Field::InstructionError)?;
        self.asm.set_label(&mut out)?;
        self.gate(gate::VMFAIL)?;
        self.asm.set_label(&mut go_on)?;
        self.asm.nop()
    }

    fn vmread_rax(&mut self, field: vmx::Field) -> Result<(), IcedError> {
        self.load(2, u64::from(field.encoding()))?;
        wide!(self, vmread(rax, rcx) | (eax, ecx))
    }

    /// 32-bit code writes a 64-bit field in two halves (SDM 3C 24.11.2); the low one clears nothing of the high one.
    fn vmwrites(&mut self, fields: &[(vmx::Field, u64)]) -> Result<(), IcedError> {
        for (field, value) in fields {
            self.vmwrite(field.encoding(), *value)?;
            if !self.mode.is_long() && field.width() == vmx::vmcs::field::Width::W64 {
                self.vmwrite(field.encoding() | 1, value >> 32)?;
            }
        }
        Ok(())
    }

    fn vmwrite(&mut self, encoding: u32, value: u64) -> Result<(), IcedError> {
        self.load(2, u64::from(encoding))?;
        self.load(0, value)?;
        wide!(self, vmwrite(rcx, rax) | (ecx, eax))
    }

    /// VMXON if asked for, and for each guest VMCLEAR, VMPTRLD and its fields.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn vmx_setup(mut self, vmxon: Option<Gpa>, guests: &[VmcsContents]) -> Result<Code, SimError> {
        if let Some(vmxon) = vmxon {
            self.vmx_pointer(VmxPointer::Vmxon, vmxon.0).map_err(failed)?;
        }
        for (region, fields) in guests {
            self.vmx_pointer(VmxPointer::Vmclear, region.0).map_err(failed)?;
            self.vmx_pointer(VmxPointer::Vmptrld, region.0).map_err(failed)?;
            self.vmwrites(fields).map_err(failed)?;
        }
        self.finish(gate::DONE)
    }

    /// Changed fields, then VMLAUNCH or VMRESUME.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn vmx_enter(mut self, region: Gpa, fields: &[(vmx::Field, u64)], how: vmx::Entry) -> Result<Code, SimError> {
        self.vmx_pointer(VmxPointer::Vmptrld, region.0).map_err(failed)?;
        self.vmwrites(fields).map_err(failed)?;
        match how {
            vmx::Entry::Launch => self.asm.vmlaunch(),
            vmx::Entry::Resume => self.asm.vmresume(),
        }
        .map_err(failed)?;
        self.fail_gate().map_err(failed)?;
        self.finish(gate::DONE)
    }

    /// Stores into the VMCB, then VMRUN between VMSAVE and VMLOAD, as every SVM hypervisor has it; behind it the exit
    /// code is in RAX.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn svm_enter(mut self, host: Gpa, region: Gpa, fields: &[(svm::vmcb::Field, u64)]) -> Result<Code, SimError> {
        for (field, value) in fields {
            self.store_field(region, *field, *value).map_err(failed)?;
        }
        self.vmrun_bracket(host, region).map_err(failed)?;
        self.load(1, region.0 + u64::from(svm::vmcb::Field::ExitCode.offset())).map_err(failed)?;
        wide!(self, mov(rax, qword_ptr(rbx)) | (eax, dword_ptr(ebx))).map_err(failed)?;
        self.finish(gate::EXIT)
    }

    fn vmrun_bracket(&mut self, host: Gpa, region: Gpa) -> Result<(), IcedError> {
        self.load(0, host.0)?;
        self.asm.vmsave()?;
        self.load(0, region.0)?;
        self.asm.vmload()?;
        self.asm.vmrun()?;
        self.asm.vmsave()?;
        self.load(0, host.0)?;
        self.asm.vmload()
    }

    fn store_field(&mut self, region: Gpa, field: svm::vmcb::Field, value: u64) -> Result<(), IcedError> {
        self.load(1, region.0 + u64::from(field.offset()))?;
        self.load(0, value)?;
        match (field.bytes(), self.mode.is_long()) {
            (8, true) => self.asm.mov(qword_ptr(rbx), rax),
            (8, false) => {
                self.asm.mov(dword_ptr(ebx), eax)?;
                self.asm.mov(dword_ptr(ebx + 4), (value >> 32) as u32)
            }
            (4, true) => self.asm.mov(dword_ptr(rbx), eax),
            (4, false) => self.asm.mov(dword_ptr(ebx), eax),
            (2, true) => self.asm.mov(word_ptr(rbx), ax),
            (2, false) => self.asm.mov(word_ptr(ebx), ax),
            (_, true) => self.asm.mov(byte_ptr(rbx), al),
            (_, false) => self.asm.mov(byte_ptr(ebx), al),
        }
    }

    /// INVEPT.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn invept(mut self, scope: InveptScope, eptp: u64) -> Result<Code, SimError> {
        let kind = if scope == InveptScope::Single { 1 } else { 2 };
        self.invalidate(kind, [eptp, 0], |asm, long| {
            if long { asm.invept(rcx, xmmword_ptr(rbx)) } else { asm.invept(ecx, xmmword_ptr(ebx)) }
        })
        .map_err(failed)?;
        self.finish(gate::DONE)
    }

    /// INVVPID.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn invvpid(mut self, scope: InvvpidScope) -> Result<Code, SimError> {
        let (kind, descriptor) = match scope {
            InvvpidScope::Address { vpid, at } => (0, [u64::from(vpid), at]),
            InvvpidScope::Single(vpid) => (1, [u64::from(vpid), 0]),
            InvvpidScope::All => (2, [0, 0]),
            InvvpidScope::ButGlobal(vpid) => (3, [u64::from(vpid), 0]),
        };
        self.invalidate(kind, descriptor, |asm, long| {
            if long { asm.invvpid(rcx, xmmword_ptr(rbx)) } else { asm.invvpid(ecx, xmmword_ptr(ebx)) }
        })
        .map_err(failed)?;
        self.finish(gate::DONE)
    }

    fn invalidate(
        &mut self,
        kind: u64,
        descriptor: [u64; 2],
        instruction: impl FnOnce(&mut CodeAssembler, bool) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        self.described(kind, descriptor, instruction)?;
        self.fail_gate()
    }

    /// An instruction with a type in RCX and a 128-bit descriptor at RBX.
    fn described(
        &mut self,
        kind: u64,
        descriptor: [u64; 2],
        instruction: impl FnOnce(&mut CodeAssembler, bool) -> Result<(), IcedError>,
    ) -> Result<(), IcedError> {
        self.store_operand(8, descriptor[1])?;
        self.store_operand(0, descriptor[0])?;
        self.load(2, kind)?;
        let long = self.mode.is_long();
        instruction(&mut self.asm, long)
    }

    /// INVPCID.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn invpcid(mut self, scope: InvpcidScope) -> Result<Code, SimError> {
        let (kind, descriptor) = match scope {
            InvpcidScope::Address { pcid, at } => (0, [u64::from(pcid), at]),
            InvpcidScope::Single(pcid) => (1, [u64::from(pcid), 0]),
            InvpcidScope::All => (2, [0, 0]),
            InvpcidScope::AllButGlobal => (3, [0, 0]),
        };
        self.described(kind, descriptor, |asm, long| {
            if long { asm.invpcid(rcx, xmmword_ptr(rbx)) } else { asm.invpcid(ecx, xmmword_ptr(ebx)) }
        })
        .map_err(failed)?;
        self.finish(gate::DONE)
    }

    /// INVLPGA.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn invlpga(mut self, at: u64, asid: u16) -> Result<Code, SimError> {
        use iced_x86::{Code, Instruction};
        self.load(0, at).map_err(failed)?;
        self.load(2, u64::from(asid)).map_err(failed)?;
        let code = if self.mode.is_long() { Code::Invlpgaq } else { Code::Invlpgad };
        self.asm.add_instruction(Instruction::with(code)).map_err(failed)?;
        self.finish(gate::DONE)
    }

    /// RSM; what it goes back to ends the step.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn rsm(mut self) -> Result<Code, SimError> {
        self.asm.rsm().map_err(failed)?;
        self.finish(gate::DONE)
    }

    /// Changes an entry of page tables, which are mapped onto themselves: the bits of `keep` stay. Of a wide entry that
    /// 32-bit code writes in two halves, the half with the present bit comes last.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn edit(mut self, entry: Entry, keep: u64, set: u64) -> Result<Code, SimError> {
        self.edit_parts(entry, keep, set).map_err(failed)?;
        self.finish(gate::DONE)
    }

    fn edit_parts(&mut self, entry: Entry, keep: u64, set: u64) -> Result<(), IcedError> {
        let at = entry.at.0;
        if self.mode.is_long() && entry.bytes == 8 {
            self.load(1, at)?;
            self.load(2, keep)?;
            self.load(3, set)?;
            if keep == 0 {
                return self.asm.mov(qword_ptr(rbx), rdx);
            }
            self.asm.mov(rax, qword_ptr(rbx))?;
            self.asm.and(rax, rcx)?;
            self.asm.or(rax, rdx)?;
            return self.asm.mov(qword_ptr(rbx), rax);
        }
        for part in (0..entry.bytes as u64 / 4).rev() {
            self.load(1, at + 4 * part)?;
            self.load(2, keep >> (32 * part) & 0xffff_ffff)?;
            self.load(3, set >> (32 * part) & 0xffff_ffff)?;
            let place = if self.mode.is_long() { dword_ptr(rbx) } else { dword_ptr(ebx) };
            if keep == 0 {
                self.asm.mov(place, edx)?;
                continue;
            }
            self.asm.mov(eax, place)?;
            self.asm.and(eax, ecx)?;
            self.asm.or(eax, edx)?;
            self.asm.mov(place, eax)?;
        }
        Ok(())
    }

    /// Loads an entry of page tables into RAX.
    ///
    /// # Errors
    /// If an instruction can't be encoded.
    pub fn read_entry(mut self, entry: Entry) -> Result<Code, SimError> {
        self.load(1, entry.at.0).map_err(failed)?;
        match (self.mode.is_long(), entry.bytes) {
            (true, 8) => self.asm.mov(rax, qword_ptr(rbx)),
            (true, _) => self.asm.mov(eax, dword_ptr(rbx)),
            (false, _) => self.asm.mov(eax, dword_ptr(ebx)),
        }
        .map_err(failed)?;
        self.finish(gate::DONE)
    }
}

/// An access that a step makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load of eight bytes, or four in 32-bit code.
    Read(u64),
    /// A store of eight bytes, or four in 32-bit code.
    Write(u64, u64),
    /// A call of an address, where a RET must be.
    Exec(u64),
}

/// VMX instructions with a 64-bit operand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VmxPointer {
    Vmxon,
    Vmclear,
    Vmptrld,
}

/// Code that stays in a seat's slot page: gates, exception handlers, and where a VM-exit lands.
///
/// # Errors
/// If an instruction can't be encoded.
pub fn resident(seat: Seat) -> Result<Vec<Code>, SimError> {
    let ports = [gate::DONE, gate::FAULT, gate::EXIT, gate::VMFAIL, gate::SMM, gate::STARTED];
    let mut pieces = ports.map(|port| resident_gate(seat, port)).into_iter().collect::<Result<Vec<_>, _>>()?;
    for (mode, base, landing) in [(Mode::Long4, HANDLERS64, LANDING), (Mode::Pae, HANDLERS32, LANDING + 0x40)] {
        for vector in 0..VECTORS {
            let at = seat.slot().offset(base + vector * HANDLER_BYTES);
            pieces.push(handler(seat, mode, at, vector as u8)?);
        }
        let mut snippet = Snippet::at(seat, mode, seat.slot().offset(landing))?;
        snippet.vmread_rax(vmx::Field::ExitReason).map_err(failed)?;
        pieces.push(snippet.finish(gate::EXIT)?);
    }
    Ok(pieces)
}

/// Where the gate of a port is. It must not be in the snippet: rip points behind the OUT when the next step's code is
/// written.
fn gate_at(seat: Seat, port: u16) -> Gpa {
    seat.slot().offset(GATES + u64::from(port - gate::DONE) * HANDLER_BYTES)
}

/// OUT to a port, then back to the start of the slot; the same bytes in 32- and 64-bit code.
fn resident_gate(seat: Seat, port: u16) -> Result<Code, SimError> {
    let mut snippet = Snippet::at(seat, Mode::Long4, gate_at(seat, port))?;
    snippet.asm.out(u32::from(port), al).map_err(failed)?;
    snippet.asm.jmp(seat.slot().0).map_err(failed)?;
    let at = snippet.at;
    Ok((at, snippet.asm.assemble(at.0).map_err(failed)?))
}

/// Where a VM-exit lands in code of a mode.
#[must_use]
pub fn landing(seat: Seat, mode: Mode) -> Gpa {
    seat.slot().offset(if mode.is_long() { LANDING } else { LANDING + 0x40 })
}

fn handler(seat: Seat, mode: Mode, at: Gpa, vector: u8) -> Result<Code, SimError> {
    let mut snippet = Snippet::at(seat, mode, at)?;
    let has_error = Vector::from_number(vector).is_some_and(Vector::has_error_code);
    let asm = &mut snippet.asm;
    match (has_error, mode.is_long()) {
        (true, true) => asm.pop(rcx),
        (true, false) => asm.pop(ecx),
        (false, _) => asm.xor(ecx, ecx),
    }
    .map_err(failed)?;
    wide!(snippet, mov(rdx, cr2) | (edx, cr2)).map_err(failed)?;
    snippet.asm.mov(bl, u32::from(vector)).map_err(failed)?;
    snippet.finish(gate::FAULT)
}

/// Where real-mode code begins: its linear address, and its offset from the base of CS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealModeEntry {
    /// The linear address.
    pub at: Gpa,
    /// The offset.
    pub offset: u16,
}

/// Real-mode code that goes to flat 32-bit code without paging, with the seat's descriptor tables, and to a gate there
/// (SDM 3A 9.9.1). Both tables' registers are loaded from what stands behind the code.
///
/// # Errors
/// If an instruction can't be encoded.
pub fn from_real_mode(seat: Seat, entry: RealModeEntry, port: u16) -> Result<Vec<Code>, SimError> {
    const TABLES: u16 = 0x40;
    const FLAT: u64 = 0x60;
    let table = |index: u16| fword_ptr(u32::from(entry.offset + TABLES + 8 * index)).cs();
    let flat = entry.at.offset(FLAT);
    let mut asm = CodeAssembler::new(16).map_err(failed)?;
    asm.lgdt(table(0)).map_err(failed)?;
    asm.lidt(table(1)).map_err(failed)?;
    asm.mov(eax, cr0).map_err(failed)?;
    asm.or(al, 1).map_err(failed)?;
    asm.mov(cr0, eax).map_err(failed)?;
    let far = iced_x86::Instruction::with_far_branch(iced_x86::Code::Jmp_ptr1632, CODE32, flat.0 as u32);
    asm.add_instruction(far.map_err(failed)?).map_err(failed)?;
    let registers = [descriptors::gdtr(), descriptors::idtr(seat, Mode::Flat32)];
    let tables = registers.iter().flat_map(|table| (table.base << 16 | u64::from(table.limit)).to_le_bytes()).collect();
    let mut snippet = Snippet::at(seat, Mode::Flat32, flat)?;
    snippet.asm.mov(eax, u32::from(descriptors::DATA)).map_err(failed)?;
    for register in [ds, es, ss, fs, gs] {
        snippet.asm.mov(register, eax).map_err(failed)?;
    }
    let code = asm.assemble(u64::from(entry.offset)).map_err(failed)?;
    Ok(vec![(entry.at, code), (entry.at.offset(u64::from(TABLES)), tables), snippet.finish(port)?])
}

/// A switch of L1 to another paging mode and address space, as an operating system does it: to 32-bit code, paging off,
/// the new CR4, EFER and CR3, paging on, and to 64-bit code if that is the mode (SDM 3A 9.8.5).
///
/// # Errors
/// If an instruction can't be encoded.
pub fn become_mode(seat: Seat, from: Mode, to: Mode, root: u64, registers: [u64; 3]) -> Result<Vec<Code>, SimError> {
    let (switch, end) = (seat.slot().offset(0x200), seat.slot().offset(0x400));
    let mut start = Snippet::new(seat, from)?;
    if from.is_long() {
        // Ring 3 left the data segments and SS null, which only 64-bit code can use (SDM 2A IRET, 3A 6.14.2).
        start.asm.mov(eax, u32::from(descriptors::DATA)).map_err(failed)?;
        for register in [ds, es, ss] {
            start.asm.mov(register, eax).map_err(failed)?;
        }
        start.asm.push(i32::from(CODE32)).map_err(failed)?;
        start.asm.push(switch.0 as i32).map_err(failed)?;
        start.asm.add_instruction(iced_x86::Instruction::with(iced_x86::Code::Retfq)).map_err(failed)?;
    } else {
        start.asm.jmp(switch.0).map_err(failed)?;
    }
    let mut middle = Snippet::at(seat, Mode::Flat32, switch)?;
    paging_off_and_on(&mut middle.asm, to, root, registers).map_err(failed)?;
    let selector = if to.is_long() { CODE64 } else { CODE32 };
    middle.asm.push(u32::from(selector) as i32).map_err(failed)?;
    middle.asm.push(end.0 as i32).map_err(failed)?;
    middle.asm.retf().map_err(failed)?;
    let mut last = Snippet::at(seat, to, end)?;
    load_idt(&mut last).map_err(failed)?;
    let start_at = start.at;
    Ok(vec![
        (start_at, start.asm.assemble(start_at.0).map_err(failed)?),
        (switch, middle.asm.assemble(switch.0).map_err(failed)?),
        last.finish(gate::DONE)?,
    ])
}

fn paging_off_and_on(asm: &mut CodeAssembler, to: Mode, cr3_value: u64, registers: [u64; 3]) -> Result<(), IcedError> {
    use sim_core::arch::control::{Cr0, Efer};
    let [cr0_value, cr4_value, efer_value] = registers;
    asm.mov(eax, cr0)?;
    asm.and(eax, !(Cr0::PG.bits() as u32) as i32)?;
    asm.mov(cr0, eax)?;
    asm.mov(eax, cr4_value as u32)?;
    asm.mov(cr4, eax)?;
    asm.mov(ecx, sim_core::arch::msr::EFER)?;
    asm.xor(edx, edx)?;
    asm.mov(eax, (efer_value & !Efer::LMA.bits()) as u32)?;
    asm.wrmsr()?;
    asm.mov(eax, cr3_value as u32)?;
    asm.mov(cr3, eax)?;
    if to.has_paging() {
        asm.mov(eax, cr0_value as u32)?;
        asm.mov(cr0, eax)?;
    }
    Ok(())
}

fn load_idt(snippet: &mut Snippet) -> Result<(), IcedError> {
    let table = descriptors::idtr(snippet.seat, snippet.mode);
    snippet.store_operand(0x10, u64::from(table.limit) | table.base << 16)?;
    snippet.store_operand(0x18, table.base >> 48)?;
    snippet.load(1, snippet.seat.operands().0 + 0x10)?;
    if snippet.mode.is_long() { snippet.asm.lidt(fword_ptr(rbx)) } else { snippet.asm.lidt(fword_ptr(ebx)) }
}
