//! CPUID: a few fixed leaves that say what this processor has and nothing more (SDM 2 CPUID; APM3 appendix E).
//!
//! The vendor follows the extension, for software picks VMX or SVM by it. No caches, topology, frequency or APIC
//! leaves: a leaf beyond the last reads as the last basic leaf does on hardware; here as zeroes.

use crate::core::{Core, Gpr};
use crate::exec::context::Context;
use crate::exec::{Done, Flow};
use crate::profile::Features;
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, Register};
use sim_core::arch::control::Cr4;
use sim_core::arch::extension::Extension;
use sim_core::arch::msr;

/// EAX, EBX, ECX and EDX.
pub type Leaf = [u32; 4];

/// IA32_VMX_BASIC, which every processor with VMX has (SDM 3D appendix A.1).
const VMX_BASIC: u32 = 0x480;
const LAST_BASIC: u32 = 7;
const LAST_EXTENDED: u32 = 0x8000_0008;

const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let mut value = 0;
    let mut index = 0;
    while index < N {
        value |= 1 << numbers[index];
        index += 1;
    }
    value
}

/// Leaf 1 ECX: CMPXCHG16B.
const LEAF1_ECX: u32 = bits([13]);
/// Leaf 1 EDX: PSE, TSC, MSR, PAE, CMPXCHG8B, PGE, CMOV and PAT.
const LEAF1_EDX: u32 = bits([3, 4, 5, 6, 8, 13, 15, 16]);
/// Leaf 0x80000001 EDX: long mode.
const EXTENDED_EDX: u32 = bits([29]);
/// Leaf 0x80000001 ECX: LAHF in 64-bit mode.
const EXTENDED_ECX: u32 = bits([0]);

/// Where features show: leaf (subleaf 0), register 0 to 3 for EAX to EDX, bit (SDM 2 CPUID; APM3 appendix E).
const SHOWN: &[(Features, u32, usize, u32)] = &[
    (Features::MONITOR, 1, 2, 3),
    (Features::PCID, 1, 2, 17),
    (Features::X2APIC, 1, 2, 21),
    (Features::MOVBE, 1, 2, 22),
    (Features::POPCNT, 1, 2, 23),
    (Features::XSAVE, 1, 2, 26),
    (Features::RDRAND, 1, 2, 30),
    (Features::X2APIC, 1, 3, 9),
    (Features::SSE2, 1, 3, 24),
    (Features::SSE2, 1, 3, 25),
    (Features::SSE2, 1, 3, 26),
    (Features::FSGSBASE, 7, 1, 0),
    (Features::BMI, 7, 1, 3),
    (Features::SMEP, 7, 1, 7),
    (Features::BMI, 7, 1, 8),
    (Features::INVPCID, 7, 1, 10),
    (Features::RDRAND, 7, 1, 18),
    (Features::ADX, 7, 1, 19),
    (Features::SMAP, 7, 1, 20),
    (Features::CLFLUSHOPT, 7, 1, 23),
    (Features::CLFLUSHOPT, 7, 1, 24),
    (Features::UMIP, 7, 2, 2),
    (Features::PKU, 7, 2, 3),
    (Features::LA57, 7, 2, 16),
    (Features::CET_SS, 7, 2, 7),
    (Features::CET_IBT, 7, 3, 20),
    (Features::RDPID, 7, 2, 22),
    (Features::PKS, 7, 2, 31),
    (Features::BMI, 0x8000_0001, 2, 5),
    (Features::NX, 0x8000_0001, 3, 20),
    (Features::PAGE_1G, 0x8000_0001, 3, 26),
    (Features::RDTSCP, 0x8000_0001, 3, 27),
    (Features::INVLPGB, 0x8000_0008, 1, 3),
    (Features::RDPRU, 0x8000_0008, 1, 4),
];

/// Adds the bits of the features that there are to a leaf.
fn with_features(core: &Core, index: u32, leaf: Leaf) -> Leaf {
    let mut leaf = leaf;
    for (_, _, register, bit) in
        SHOWN.iter().filter(|(feature, at, ..)| *at == index && core.features.contains(*feature))
    {
        leaf[*register] |= 1 << bit;
    }
    leaf
}

const fn vendor(extension: Option<Extension>) -> [u8; 12] {
    match extension {
        Some(Extension::Vmx) => *b"GenuineIntel",
        Some(Extension::Svm) => *b"AuthenticAMD",
        None => *b"rolecall cpu",
    }
}

fn vendor_leaf(last: u32, extension: Option<Extension>) -> Leaf {
    let name = vendor(extension);
    let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    [last, word(0), word(8), word(4)]
}

/// What a leaf says.
#[must_use]
pub fn leaf(core: &Core, extension: Option<Extension>, index: u32, subleaf: u32) -> Leaf {
    let vmx = u32::from(extension == Some(Extension::Vmx)) << 5;
    let svm = u32::from(extension == Some(Extension::Svm)) << 2;
    match (index, subleaf) {
        (0, _) => vendor_leaf(LAST_BASIC, extension),
        (1, _) => {
            let xsave_on = u32::from(core.cr4.contains(Cr4::OSXSAVE)) << 27;
            with_features(core, index, [0, core.apic.id << 24, LEAF1_ECX | vmx | xsave_on, LEAF1_EDX])
        }
        (7, 0) => {
            let pku_on = u32::from(core.cr4.contains(Cr4::PKE)) << 4;
            with_features(core, index, [0, 0, pku_on, 0])
        }
        (0x8000_0000, _) => vendor_leaf(LAST_EXTENDED, extension),
        (0x8000_0001, _) => with_features(core, index, [0, 0, EXTENDED_ECX | svm, EXTENDED_EDX]),
        (0x8000_0008, _) => with_features(core, index, [core.maxphyaddr | (57 << 8), 0, 0, 0]),
        _ => [0; 4],
    }
}

/// Which extension the processor has, told by the MSRs it answers for.
pub(crate) fn extension<V: Virt>(core: &Core, virt: &V) -> Option<Extension> {
    if virt.rdmsr(core, VMX_BASIC).is_some() {
        Some(Extension::Vmx)
    } else {
        virt.rdmsr(core, msr::VM_CR).map(|_| Extension::Svm)
    }
}

pub(crate) fn cpuid<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.ask(virt, &Trap::Cpuid)?;
    let index = cx.core.gpr(Gpr::Rax) as u32;
    let subleaf = cx.core.gpr(Gpr::Rcx) as u32;
    let values = leaf(cx.core, extension(cx.core, virt), index, subleaf);
    for (register, value) in [Register::EAX, Register::EBX, Register::ECX, Register::EDX].into_iter().zip(values) {
        cx.set_register(register, u64::from(value));
    }
    Ok(Flow::Next)
}
