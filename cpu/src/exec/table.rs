//! The dispatch table: one mnemonic a row. `plain` instructions need only the processor and memory; `hooked` ones may
//! be intercepted, or are the extension's own. Rows stand by family; what is not in the table is not modelled.

use crate::exec::context::Context;
use crate::exec::{
    Done, Fault, arith, atomics, bitfield, bits, branch, broadcast, condition, control, cpuid, decimal, extension, far,
    flagops, frame, ibt, interrupt, invalidate, io, iret, logic, moves, msr, packed, privileged, probe,
    shadow_instructions, shift, string, syscall, system, tables, vector, xstate,
};
use crate::smm;
use crate::virt::Virt;
use iced_x86::{CpuidFeature, Instruction, Mnemonic};
use std::sync::OnceLock;

macro_rules! table {
    (plain { $($($plain:ident)|+ => $run:path,)* } hooked { $($($hooked:ident)|+ => $ask:path,)* }) => {
        /// Every mnemonic that is modelled.
        pub const MODELLED: &[Mnemonic] = &[$($(Mnemonic::$plain,)+)* $($(Mnemonic::$hooked,)+)*];

        /// Executes one decoded instruction.
        pub(crate) fn execute<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
            match insn.mnemonic() {
                $($(Mnemonic::$plain)|+ => $run(cx, insn),)*
                $($(Mnemonic::$hooked)|+ => $ask(cx, virt, insn),)*
                _ => Err(unmodelled(insn)),
            }
        }
    };
}

table! {
    plain {
        Movzx => moves::movzx,
        Movsx | Movsxd => moves::movsx,
        Lea => moves::lea,
        Push => moves::push,
        Pop => moves::pop,
        Leave => frame::leave,
        Enter => frame::enter,
        Pusha | Pushad => frame::pusha,
        Popa | Popad => frame::popa,
        Xlatb => moves::xlat,
        Salc => moves::salc,
        Bound => moves::bound,
        Lds | Les | Lfs | Lgs | Lss => moves::load_pointer,
        Movnti => vector::move_non_temporal,
        Clflush | Clflushopt | Clwb => vector::cache_line,
        Nop | Reservednop => moves::nop,
        Endbr32 | Endbr64 => ibt::endbranch,
        Rdsspd | Rdsspq => shadow_instructions::rdssp,
        Incsspd | Incsspq => shadow_instructions::incssp,
        Saveprevssp => shadow_instructions::saveprevssp,
        Rstorssp => shadow_instructions::rstorssp,
        Wrssd | Wrssq => shadow_instructions::wrss,
        Wrussd | Wrussq => shadow_instructions::wruss,
        Setssbsy | Clrssbsy => shadow_instructions::busy,
        Lfence | Mfence | Sfence => moves::nop,
        Prefetch | Prefetchwt1 | Prefetchit0 | Prefetchit1 | Cldemote => moves::nop,
        Prefetchnta | Prefetcht0 | Prefetcht1 | Prefetcht2 | Prefetchw => moves::nop,
        Bswap => bits::bswap,
        Cmova | Cmovae | Cmovb | Cmovbe | Cmove | Cmovg | Cmovge | Cmovl => condition::cmov,
        Cmovle | Cmovne | Cmovno | Cmovnp | Cmovns | Cmovo | Cmovp | Cmovs => condition::cmov,
        Seta | Setae | Setb | Setbe | Sete | Setg | Setge | Setl => condition::set,
        Setle | Setne | Setno | Setnp | Setns | Seto | Setp | Sets => condition::set,

        Add => arith::add,
        Adc => arith::adc,
        Sub => arith::sub,
        Sbb => arith::sbb,
        Cmp => arith::cmp,
        Inc => arith::inc,
        Dec => arith::dec,
        Neg => arith::neg,
        Mul => arith::mul,
        Imul => arith::imul,
        Div => arith::div,
        Idiv => arith::idiv,
        Cbw | Cwde | Cdqe => arith::widen_accumulator,
        Cwd | Cdq | Cqo => arith::widen_to_pair,

        Aaa | Aas => decimal::ascii_adjust,
        Aam => decimal::aam,
        Aad => decimal::aad,
        Daa | Das => decimal::decimal_adjust,

        And => logic::and,
        Or => logic::or,
        Xor => logic::xor,
        Test => logic::test,
        Not => logic::not,
        Shl | Sal => shift::shl,
        Shr => shift::shr,
        Sar => shift::sar,
        Rol => shift::rol,
        Ror => shift::ror,
        Rcl => shift::rcl,
        Rcr => shift::rcr,

        Shld | Shrd => shift::double,

        Xchg => atomics::xchg,
        Xadd => atomics::xadd,
        Cmpxchg => atomics::cmpxchg,
        Cmpxchg8b | Cmpxchg16b => atomics::cmpxchg_pair,
        Bt | Bts | Btr | Btc => bits::bit_test,
        Bsf | Bsr => bits::bit_scan,

        Popcnt => bitfield::popcnt,
        Lzcnt | Tzcnt => bitfield::zero_count,
        Andn | Blsi | Blsmsk | Blsr => bitfield::lowest_bit,
        Bextr | Bzhi => bitfield::field,
        Pdep | Pext => bitfield::scatter,
        Mulx => bitfield::mulx,
        Rorx | Sarx | Shlx | Shrx => bitfield::shift_without_flags,
        Movbe => bitfield::movbe,
        Crc32 => bitfield::crc32,
        Adcx | Adox => bitfield::add_with_flag,

        Ja | Jae | Jb | Jbe | Je | Jg | Jge | Jl => branch::jcc,
        Jle | Jne | Jno | Jnp | Jns | Jo | Jp | Js => branch::jcc,
        Ret => branch::ret,
        Retf => far::ret,
        Jcxz | Jecxz | Jrcxz => branch::jcxz,
        Loop | Loope | Loopne => branch::count_down,

        Movsb | Movsw | Movsq => string::transfer,
        Movsd => vector::movsd,
        Stosb | Stosw | Stosd | Stosq => string::transfer,
        Lodsb | Lodsw | Lodsd | Lodsq => string::transfer,
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => string::compare,
        Scasb | Scasw | Scasd | Scasq => string::compare,

        Clc => flagops::clc,
        Stc => flagops::stc,
        Cmc => flagops::cmc,
        Cld => flagops::cld,
        Std => flagops::std,
        Cli => flagops::cli,
        Sti => flagops::sti,
        Lahf => flagops::lahf,
        Sahf => flagops::sahf,

        Lar | Lsl => probe::rights_or_limit,
        Verr | Verw => probe::verify,
        Arpl => probe::arpl,
        Rdpid => privileged::rdpid,
        Rdpkru | Wrpkru => privileged::pkru,
        Swapgs => msr::swapgs,
        Stac | Clac => system::alignment_flag,
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => system::segment_base,
        Ud0 | Ud1 | Ud2 => system::undefined,

        Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq => vector::move_aligned,
        Movups | Movupd | Movdqu => vector::move_unaligned,
        Movd | Movq => vector::move_integer,
        Movss => vector::move_scalar,
        Movlps | Movlpd | Movhps | Movhpd | Movlhps | Movhlps => vector::move_half,
        Maskmovdqu => vector::move_masked,
        Pmovmskb | Movmskps | Movmskpd => vector::sign_mask,
        Pinsrw => vector::insert_word,
        Pextrw => vector::extract_word,
        Pand | Andps | Andpd => packed::and,
        Pandn | Andnps | Andnpd => packed::and_not,
        Por | Orps | Orpd => packed::or,
        Pxor | Xorps | Xorpd => packed::xor,
        Paddb | Paddw | Paddd | Paddq => packed::add,
        Psubb | Psubw | Psubd | Psubq => packed::sub,
        Paddsb | Paddsw => packed::add_signed,
        Paddusb | Paddusw => packed::add_unsigned,
        Psubsb | Psubsw => packed::sub_signed,
        Psubusb | Psubusw => packed::sub_unsigned,
        Pavgb | Pavgw => packed::average,
        Pminub => packed::minimum_unsigned,
        Pmaxub => packed::maximum_unsigned,
        Pminsw => packed::minimum_signed,
        Pmaxsw => packed::maximum_signed,
        Pcmpeqb | Pcmpeqw | Pcmpeqd => packed::equal,
        Pcmpgtb | Pcmpgtw | Pcmpgtd => packed::greater,
        Pmullw => packed::multiply_low,
        Pmulhw => packed::multiply_high,
        Pmulhuw => packed::multiply_high_unsigned,
        Pmuludq => packed::multiply_low_dwords,
        Pmaddwd => packed::multiply_add,
        Psadbw => packed::sum_of_differences,
        Punpcklbw | Punpcklwd | Punpckldq | Punpcklqdq | Unpcklps | Unpcklpd => packed::unpack_low,
        Punpckhbw | Punpckhwd | Punpckhdq | Punpckhqdq | Unpckhps | Unpckhpd => packed::unpack_high,
        Packsswb | Packssdw | Packuswb => packed::pack,
        Psllw | Pslld | Psllq | Psrlw | Psrld | Psrlq | Psraw | Psrad => packed::shift,
        Pslldq | Psrldq => packed::shift_bytes,
        Ldmxcsr => xstate::ldmxcsr,
        Stmxcsr => xstate::stmxcsr,
        Fxsave | Fxsave64 => xstate::fxsave,
        Fxrstor | Fxrstor64 => xstate::fxrstor,
        Xsave | Xsave64 | Xsaveopt | Xsaveopt64 | Xsavec | Xsavec64 => xstate::xsave,
        Xrstor | Xrstor64 => xstate::xrstor,
        Xgetbv => xstate::xgetbv,
        Fninit | Fnclex | Emms => xstate::x87_reset,
        Fnstcw | Fnstsw => xstate::x87_store_word,
        Fldcw => xstate::x87_load_control,
        Wait => xstate::fwait,
        Pshufd | Pshuflw | Pshufhw | Shufps | Shufpd => packed::shuffle,
    }
    hooked {
        Mov => moves::mov,
        Clts => control::clts,
        Rdmsr => msr::rdmsr,
        Wrmsr => msr::wrmsr,
        Rdtsc => privileged::rdtsc,
        Syscall => syscall::syscall,
        Sysret | Sysretq => syscall::sysret,
        Sysenter => syscall::sysenter,
        Sysexit | Sysexitq => syscall::sysexit,
        Rdtscp => privileged::rdtscp,
        Rdpmc => privileged::rdpmc,
        Rdpru => privileged::rdpru,
        Rdrand | Rdseed => privileged::random,
        Monitor => privileged::monitor,
        Mwait => privileged::mwait,
        Xsetbv => privileged::xsetbv,
        Getsec | Getsecq => privileged::getsec,
        Lmsw => control::lmsw,
        Smsw => control::smsw,
        Lgdt | Lidt => tables::load_table,
        Sgdt | Sidt => tables::store_table,
        Sldt | Str => tables::store_selector,
        Lldt => tables::lldt,
        Ltr => tables::ltr,
        Iret | Iretd | Iretq => iret::iret,
        Jmp => branch::jmp,
        Call => branch::call,
        Pushf | Pushfd | Pushfq => flagops::pushf,
        Popf | Popfd | Popfq => flagops::popf,
        Rsm => smm::rsm,
        Cpuid => cpuid::cpuid,
        Hlt => system::hlt,
        Pause => system::pause,
        Wbinvd | Wbnoinvd => system::wbinvd,
        Invd => privileged::invd,
        Invlpg => invalidate::invlpg,
        Invpcid => invalidate::invpcid,
        Invlpgb => broadcast::invlpgb,
        Tlbsync => broadcast::tlbsync,
        In => io::input,
        Out => io::output,
        Insb | Insw | Insd => string::input,
        Outsb | Outsw | Outsd => string::output,
        Xsaves | Xsaves64 => xstate::xsaves,
        Xrstors | Xrstors64 => xstate::xrstors,
        Int => interrupt::int,
        Int1 => interrupt::int1,
        Int3 => interrupt::int3,
        Into => interrupt::into,

        Vmxon | Vmxoff | Vmclear | Vmptrld | Vmptrst | Vmread | Vmwrite => extension::extension,
        Vmlaunch | Vmresume | Vmcall | Vmfunc | Skinit | Invept | Invvpid => extension::extension,
        Vmrun | Vmload | Vmsave | Vmmcall | Stgi | Clgi | Invlpga => extension::extension,
    }
}

/// Names an instruction that is not in the table, with the part of the processor that is left out where it is known.
fn unmodelled(insn: &Instruction) -> Fault {
    let part = match insn.cpuid_features() {
        [CpuidFeature::SSE | CpuidFeature::SSE2, ..] => "SSE floating point: ",
        [CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387, ..] => "x87: ",
        _ => "",
    };
    Fault::unmodelled(format!("{part}instruction {insn} ({})", name(insn.mnemonic())))
}

/// A mnemonic in lower case, as events show it.
pub(crate) fn name(mnemonic: Mnemonic) -> &'static str {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    let names = NAMES.get_or_init(|| Mnemonic::values().map(|each| format!("{each:?}").to_lowercase()).collect());
    names.get(mnemonic as usize).map_or("?", String::as_str)
}
