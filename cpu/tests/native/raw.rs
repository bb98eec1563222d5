//! Bytes of no family: anything, with many prefixes or none. What does not decode must be #UD, or #GP(0) where it is
//! longer than an instruction may be.

use crate::generate::{Random, Registers, case, decode, is_far};
use crate::record::{Case, Mode};
use iced_x86::{FlowControl, Instruction, Mnemonic, Register};

/// Instructions that the kernel acts on, that tell what differs between machines, or that leave something behind for the
/// next case.
const LEFT_OUT: &[Mnemonic] = {
    use Mnemonic::*;
    &[
        Int,
        Int1,
        Int3,
        Into,
        Syscall,
        Sysenter,
        Sysexit,
        Sysexitq,
        Sysret,
        Sysretq,
        Iret,
        Iretd,
        Iretq,
        Retf,
        Rdtsc,
        Rdtscp,
        Rdpmc,
        Cpuid,
        Rdrand,
        Rdseed,
        Rdpid,
        Rdpru,
        Xgetbv,
        Xsetbv,
        Sgdt,
        Sidt,
        Smsw,
        Sldt,
        Str,
        Lsl,
        Lar,
        Verr,
        Verw,
        Lfs,
        Lgs,
        Lss,
        Popf,
        Popfd,
        Popfq,
        Monitor,
        Mwait,
        Monitorx,
        Mwaitx,
        Rdfsbase,
        Rdgsbase,
        Wrfsbase,
        Wrgsbase,
        Vmcall,
        Vmmcall,
        Vmlaunch,
        Vmresume,
        Vmxoff,
        Vmxon,
        Vmclear,
        Vmptrld,
        Vmptrst,
        Vmread,
        Vmwrite,
        Vmfunc,
        Invept,
        Invvpid,
        Vmrun,
        Vmload,
        Vmsave,
        Stgi,
        Clgi,
        Skinit,
        Invlpga,
        Invlpgb,
        Tlbsync,
        Rdpkru,
        Wrpkru,
        Xsave,
        Xsave64,
        Xsaveopt,
        Xsaveopt64,
        Xsavec,
        Xsavec64,
        Xsaves,
        Xsaves64,
        Xrstor,
        Xrstor64,
        Xrstors,
        Xrstors64,
        Fxsave,
        Fxsave64,
        Fxrstor,
        Fxrstor64,
        Getsec,
        Rdsspd,
        Rdsspq,
        Incsspd,
        Incsspq,
        Saveprevssp,
        Rstorssp,
        Wrssd,
        Wrssq,
        Wrussd,
        Wrussq,
        Setssbsy,
        Clrssbsy,
        Maskmovdqu,
        Maskmovq,
        Rsm,
        Endbr32,
        Endbr64,
    ]
};

/// Whether an instruction may run as a case.
fn may_run(insn: &Instruction) -> bool {
    let base = matches!(insn.op0_register(), Register::FS | Register::GS) && insn.mnemonic() != Mnemonic::Push;
    !is_far(insn) && !base && insn.flow_control() != FlowControl::Interrupt && !LEFT_OUT.contains(&insn.mnemonic())
}

/// Random bytes that may run, and no more than the instruction that they begin with.
pub(crate) fn random_case(random: &mut Random, mode: Mode) -> Case {
    const PREFIXES: [u8; 11] = [0x66, 0x67, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0xf0, 0xf2, 0xf3];
    loop {
        let mut bytes = Vec::new();
        let prefixes = if random.chance(15) { random.below(15) } else { random.below(3) };
        for _ in 0..prefixes {
            let rex = mode == Mode::Bits64 && random.chance(30);
            let legacy = PREFIXES[random.below(11) as usize];
            bytes.push(if rex { 0x40 | random.below(16) as u8 } else { legacy });
        }
        if random.chance(50) {
            bytes.push(0x0f);
        }
        while bytes.len() < 16 {
            bytes.push(random.next() as u8);
        }
        bytes.truncate(15);
        match decode(&bytes, mode) {
            Some((insn, _)) if !may_run(&insn) => continue,
            Some((insn, _)) => bytes.truncate(insn.len()),
            None if bytes.windows(2).any(|pair| matches!(pair, [0x0f, 0x20 | 0x22])) => continue,
            None => {}
        }
        return case(random, mode, Registers::String, bytes);
    }
}
