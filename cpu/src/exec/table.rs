//! The dispatch table: one mnemonic a row. `plain` instructions need only the processor and memory; `hooked` ones may
//! be intercepted, or are the extension's own. Rows stand by family; what is not in the table is not modelled.

use crate::exec::context::Context;
use crate::exec::{
    Done, Fault, arith, atomics, bits, branch, condition, control, cpuid, decimal, extension, far, flagops, interrupt,
    invalidate, io, iret, logic, moves, msr, shift, string, system, tables,
};
use crate::virt::Virt;
use iced_x86::{Instruction, Mnemonic};
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
                _ => Err(Fault::unmodelled(format!("instruction {insn} ({})", name(insn.mnemonic())))),
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
        Leave => moves::leave,
        Nop | Reservednop | Endbr32 | Endbr64 => moves::nop,
        Lfence | Mfence | Sfence => moves::nop,
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

        Xchg => atomics::xchg,
        Xadd => atomics::xadd,
        Cmpxchg => atomics::cmpxchg,
        Cmpxchg8b | Cmpxchg16b => atomics::cmpxchg_pair,
        Bt | Bts | Btr | Btc => bits::bit_test,
        Bsf | Bsr => bits::bit_scan,

        Jmp => branch::jmp,
        Ja | Jae | Jb | Jbe | Je | Jg | Jge | Jl => branch::jcc,
        Jle | Jne | Jno | Jnp | Jns | Jo | Jp | Js => branch::jcc,
        Call => branch::call,
        Ret => branch::ret,
        Retf => far::ret,
        Iret | Iretd | Iretq => iret::iret,
        Jcxz | Jecxz | Jrcxz => branch::jcxz,
        Loop | Loope | Loopne => branch::count_down,

        Movsb | Movsw | Movsd | Movsq => string::string,
        Stosb | Stosw | Stosd | Stosq => string::string,
        Lodsb | Lodsw | Lodsd | Lodsq => string::string,

        Clc => flagops::clc,
        Stc => flagops::stc,
        Cmc => flagops::cmc,
        Cld => flagops::cld,
        Std => flagops::std,
        Cli => flagops::cli,
        Sti => flagops::sti,
        Lahf => flagops::lahf,
        Sahf => flagops::sahf,
        Pushf | Pushfd | Pushfq => flagops::pushf,
        Popf | Popfd | Popfq => flagops::popf,

        Lgdt | Lidt => tables::load_table,
        Sgdt | Sidt => tables::store_table,
        Sldt | Str => tables::store_selector,
        Lldt => tables::lldt,
        Ltr => tables::ltr,
        Swapgs => msr::swapgs,
        Stac | Clac => system::alignment_flag,
        Rdfsbase | Rdgsbase | Wrfsbase | Wrgsbase => system::segment_base,
        Ud0 | Ud1 | Ud2 => system::undefined,
    }
    hooked {
        Mov => moves::mov,
        Clts => control::clts,
        Rdmsr => msr::rdmsr,
        Wrmsr => msr::wrmsr,
        Rdtsc => msr::rdtsc,
        Cpuid => cpuid::cpuid,
        Hlt => system::hlt,
        Pause => system::pause,
        Wbinvd => system::wbinvd,
        Invlpg => invalidate::invlpg,
        Invpcid => invalidate::invpcid,
        In => io::input,
        Out => io::output,
        Int => interrupt::int,
        Int1 => interrupt::int1,
        Int3 => interrupt::int3,
        Into => interrupt::into,

        Vmxon | Vmxoff | Vmclear | Vmptrld | Vmptrst | Vmread | Vmwrite => extension::extension,
        Vmlaunch | Vmresume | Vmcall | Invept | Invvpid => extension::extension,
        Vmrun | Vmload | Vmsave | Vmmcall | Stgi | Clgi | Invlpga => extension::extension,
    }
}

/// A mnemonic in lower case, as events show it.
pub(crate) fn name(mnemonic: Mnemonic) -> &'static str {
    static NAMES: OnceLock<Vec<String>> = OnceLock::new();
    let names = NAMES.get_or_init(|| Mnemonic::values().map(|each| format!("{each:?}").to_lowercase()).collect());
    names.get(mnemonic as usize).map_or("?", String::as_str)
}
