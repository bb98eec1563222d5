//! The families: mnemonics, the modes that they are compared in, and the registers that make their cases interesting.

use crate::generate::{Family, Registers};
use crate::record::Mode::{self, Bits16, Bits32, Bits64};
use iced_x86::Mnemonic::{self, *};

const ALL: &[Mode] = &[Bits64, Bits32, Bits16];
const LEGACY: &[Mode] = &[Bits32, Bits16];
const LONG: &[Mode] = &[Bits64];

const fn family(
    name: &'static str,
    modes: &'static [Mode],
    registers: Registers,
    mnemonics: &'static [Mnemonic],
) -> Family {
    Family { name, mnemonics, modes, registers }
}

/// Every family but those of raw bytes.
pub(crate) const FAMILIES: &[Family] = &[
    family("arithmetic", ALL, Registers::Any, &[Add, Adc, Sub, Sbb, Cmp, Inc, Dec, Neg]),
    family("logic", ALL, Registers::Any, &[And, Or, Xor, Test, Not]),
    family("shift", ALL, Registers::Small, &[Shl, Sal, Shr, Sar, Rol, Ror, Rcl, Rcr]),
    family("multiply", ALL, Registers::Any, &[Mul, Imul]),
    family("divide", ALL, Registers::Small, &[Div, Idiv]),
    family("double_shift", ALL, Registers::Small, &[Shld, Shrd]),
    family("count", ALL, Registers::Small, &[Popcnt, Lzcnt, Tzcnt]),
    family(
        "bmi",
        &[Bits64, Bits32],
        Registers::Small,
        &[Andn, Blsi, Blsmsk, Blsr, Bextr, Bzhi, Pdep, Pext, Mulx, Rorx, Sarx, Shlx, Shrx],
    ),
    family("movbe", ALL, Registers::Any, &[Movbe, Crc32, Adcx, Adox, Movnti]),
    family("cache", ALL, Registers::Any, &[Clflush, Clflushopt, Clwb, Prefetchnta, Prefetcht0, Prefetchw]),
    family("bits", ALL, Registers::Small, &[Bt, Bts, Btr, Btc, Bsf, Bsr, Bswap]),
    family("moves", ALL, Registers::Any, &[Movzx, Movsx, Movsxd, Lea, Xchg]),
    family("widen", ALL, Registers::Any, &[Cbw, Cwde, Cdqe, Cwd, Cdq, Cqo]),
    family(
        "condition",
        ALL,
        Registers::Any,
        &[
            Cmova, Cmovae, Cmovb, Cmovbe, Cmove, Cmovg, Cmovge, Cmovl, Cmovle, Cmovne, Cmovno, Cmovnp, Cmovns, Cmovo,
            Cmovp, Cmovs, Seta, Setae, Setb, Setbe, Sete, Setg, Setge, Setl, Setle, Setne, Setno, Setnp, Setns, Seto,
            Setp, Sets,
        ],
    ),
    family(
        "branch",
        ALL,
        Registers::Small,
        &[
            Ja, Jae, Jb, Jbe, Je, Jg, Jge, Jl, Jle, Jne, Jno, Jnp, Jns, Jo, Jp, Js, Jcxz, Jecxz, Jrcxz, Loop, Loope,
            Loopne,
        ],
    ),
    family("stack", ALL, Registers::Frame, &[Push, Pop, Leave]),
    family("frame", ALL, Registers::Frame, &[Enter, Leave, Pusha, Pushad, Popa, Popad]),
    family("table", ALL, Registers::String, &[Xlatb]),
    family("bound", LEGACY, Registers::Small, &[Bound, Lds, Les]),
    family("ports", ALL, Registers::String, &[Insb, Insw, Insd, Outsb, Outsw, Outsd, In, Out]),
    family("exchange", ALL, Registers::Compare, &[Xadd, Cmpxchg, Cmpxchg8b, Cmpxchg16b, Xchg]),
    family("flags", ALL, Registers::Any, &[Clc, Stc, Cmc, Cld, Std, Lahf, Sahf, Pushf, Pushfd, Pushfq]),
    family("decimal", LEGACY, Registers::Any, &[Aaa, Aas, Aam, Aad, Daa, Das]),
    family("cmpxchg16b", LONG, Registers::Compare, &[Cmpxchg16b]),
    family("mov", ALL, Registers::Any, &[Mov, Nop]),
    family(
        "privileged",
        ALL,
        Registers::Any,
        &[
            Hlt, Cli, Sti, Lgdt, Lidt, Lldt, Ltr, Clts, Invd, Wbinvd, Invlpg, Invpcid, Rdmsr, Wrmsr, Swapgs, Stac,
            Clac, Ud0, Ud1, Ud2,
        ],
    ),
    family("segments", ALL, Registers::Selectors, &[Mov, Pop, Lds, Les]),
    family("far", ALL, Registers::Selectors, &[Jmp, Call, Retf, Iret, Iretd, Iretq]),
    family("popf", ALL, Registers::Any, &[Popf, Popfd, Popfq]),
    family("call", ALL, Registers::Frame, &[Jmp, Call, Ret]),
    family(
        "string",
        ALL,
        Registers::String,
        &[Movsb, Movsw, Movsq, Stosb, Stosw, Stosd, Stosq, Lodsb, Lodsw, Lodsd, Lodsq],
    ),
    family("string_compare", ALL, Registers::String, &[Cmpsb, Cmpsw, Cmpsq, Scasb, Scasw, Scasd, Scasq]),
    family(
        "vector_move",
        &[Bits64, Bits32],
        Registers::Any,
        &[
            Movaps, Movapd, Movdqa, Movntps, Movntpd, Movntdq, Movups, Movupd, Movdqu, Movd, Movq, Movss, Movsd,
            Movlps, Movlpd, Movhps, Movhpd, Movlhps, Movhlps, Pmovmskb, Movmskps, Movmskpd, Pinsrw, Pextrw, Ldmxcsr,
            Stmxcsr,
        ],
    ),
    family(
        "packed",
        &[Bits64, Bits32],
        Registers::Any,
        &[
            Pand, Andps, Andpd, Pandn, Andnps, Andnpd, Por, Orps, Orpd, Pxor, Xorps, Xorpd, Paddb, Paddw, Paddd, Paddq,
            Psubb, Psubw, Psubd, Psubq, Paddsb, Paddsw, Paddusb, Paddusw, Psubsb, Psubsw, Psubusb, Psubusw, Pavgb,
            Pavgw, Pminub, Pmaxub, Pminsw, Pmaxsw, Pcmpeqb, Pcmpeqw, Pcmpeqd, Pcmpgtb, Pcmpgtw, Pcmpgtd, Pmullw,
            Pmulhw, Pmulhuw, Pmuludq, Pmaddwd, Psadbw,
        ],
    ),
    family(
        "shuffle",
        &[Bits64, Bits32],
        Registers::Any,
        &[
            Punpcklbw, Punpcklwd, Punpckldq, Punpcklqdq, Unpcklps, Unpcklpd, Punpckhbw, Punpckhwd, Punpckhdq,
            Punpckhqdq, Unpckhps, Unpckhpd, Packsswb, Packssdw, Packuswb, Psllw, Pslld, Psllq, Psrlw, Psrld, Psrlq,
            Psraw, Psrad, Pslldq, Psrldq, Pshufd, Pshuflw, Pshufhw, Shufps, Shufpd,
        ],
    ),
];
