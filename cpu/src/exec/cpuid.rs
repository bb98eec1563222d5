//! CPUID: a few fixed leaves that say what this processor has and nothing more (SDM 2 CPUID; APM3 appendix E).
//!
//! The vendor follows the extension, for software picks VMX or SVM by it. No caches, topology, frequency or APIC
//! leaves: a leaf beyond the last reads as the last basic leaf does on hardware; here as zeroes.

use crate::core::{Core, Gpr};
use crate::exec::context::Context;
use crate::exec::{Done, Flow};
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

/// Leaf 1 ECX: CMPXCHG16B and PCID.
const LEAF1_ECX: u32 = bits([13, 17]);
/// Leaf 1 EDX: PSE, TSC, MSR, PAE, CMPXCHG8B, PGE, CMOV and PAT.
const LEAF1_EDX: u32 = bits([3, 4, 5, 6, 8, 13, 15, 16]);
/// Leaf 7 EBX: FSGSBASE, SMEP, INVPCID and SMAP.
const LEAF7_EBX: u32 = bits([0, 7, 10, 20]);
/// Leaf 7 ECX: UMIP, PKU and LA57.
const LEAF7_ECX: u32 = bits([2, 3, 16]);
/// Leaf 0x80000001 EDX: NX, 1-GByte pages and long mode.
const EXTENDED_EDX: u32 = bits([20, 26, 29]);
/// Leaf 0x80000001 ECX: LAHF in 64-bit mode.
const EXTENDED_ECX: u32 = bits([0]);

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
        (1, _) => [0, 0, LEAF1_ECX | vmx, LEAF1_EDX],
        (7, 0) => {
            let pku_on = u32::from(core.cr4.contains(Cr4::PKE)) << 4;
            [0, LEAF7_EBX, LEAF7_ECX | pku_on, 0]
        }
        (0x8000_0000, _) => vendor_leaf(LAST_EXTENDED, extension),
        (0x8000_0001, _) => [0, 0, EXTENDED_ECX | svm, EXTENDED_EDX],
        (0x8000_0008, _) => [core.maxphyaddr | (57 << 8), 0, 0, 0],
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
