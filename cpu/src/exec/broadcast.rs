//! INVLPGB and TLBSYNC (APM3): invalidation that reaches every processor.
//!
//! It is carried out on the processor that executes it, at once; its event tells the scope, by which a machine with more
//! processors carries it out on the others, and TLBSYNC has nothing to wait for. A guest reaches its own ASID alone.

use crate::exec::context::Context;
use crate::exec::{Done, Fault, Flow};
use crate::profile::Features;
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, Register};
use sim_core::addr::{Gva, PAGE_OFFSET_MASK};
use sim_core::arch::exception::Exception;
use sim_core::event::{Broadcast, BroadcastReach, FlushScope};

/// How many further pages one INVLPGB may name (CPUID Fn8000_0008 EDX bits 15:0).
const COUNT_MAX: u64 = 7;
/// Bits of rAX that must be zero.
const RAX_RESERVED: u64 = 0xfc0;
const ADDRESS_VALID: u64 = 1 << 0;
const PCID_VALID: u64 = 1 << 1;
const ASID_VALID: u64 = 1 << 2;
/// Bit 3 and the two above it: global entries, final translations only, nested translations.
const REACH_SHIFT: u32 = 3;

fn require_offered(cx: &Context<'_>) -> Result<(), Fault> {
    if !cx.core.features.contains(Features::INVLPGB) {
        return Err(Exception::ud().into());
    }
    cx.require_cpl0()?;
    Ok(())
}

/// INVLPGB.
pub(crate) fn invlpgb<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require_offered(cx)?;
    cx.ask(virt, &Trap::Invlpgb)?;
    let registers = [Register::RAX, Register::ECX, Register::EDX].map(|register| cx.register(register));
    let guest = cx.regime.tag.context;
    let operands = operands(registers).ok_or(Exception::gp0())?;
    let asid = if guest == 0 { operands.asid } else { Some(guest) };
    cx.core.tlb.flush(cx.ground, FlushScope::Broadcast(Broadcast { asid, ..operands }));
    Ok(Flow::Next)
}

/// What rAX, ECX and EDX say; none if they may not.
fn operands([rax, ecx, edx]: [u64; 3]) -> Option<Broadcast> {
    let more = ecx & 0xffff;
    if rax & RAX_RESERVED != 0 || more > COUNT_MAX {
        return None;
    }
    let given = |valid: u64| rax & valid != 0;
    Some(Broadcast {
        asid: given(ASID_VALID).then_some((edx & 0xffff) as u32),
        pcid: given(PCID_VALID).then_some((edx >> 16 & 0xfff) as u16),
        gva: given(ADDRESS_VALID).then_some(Gva(rax & !PAGE_OFFSET_MASK)),
        more: more as u16,
        stride: if ecx >> 31 & 1 == 1 { 21 } else { 12 },
        reach: BroadcastReach::from_bits_truncate((rax >> REACH_SHIFT) as u8),
    })
}

/// TLBSYNC.
pub(crate) fn tlbsync<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    require_offered(cx)?;
    cx.ask(virt, &Trap::Tlbsync)?;
    Ok(Flow::Next)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// APM3 INVLPGB, the register operands.
    #[test]
    fn register_operands() {
        let all = Broadcast { asid: None, pcid: None, gva: None, more: 0, stride: 12, reach: BroadcastReach::empty() };
        for (registers, expected) in [
            ([0, 0, u64::MAX], Some(all.clone())),
            ([0x1234_5001, 3, 0], Some(Broadcast { gva: Some(Gva(0x1234_5000)), more: 3, ..all.clone() })),
            ([2, 0, 0x0007_0005], Some(Broadcast { pcid: Some(7), ..all.clone() })),
            ([4, 1 << 31, 0x0007_0005], Some(Broadcast { asid: Some(5), stride: 21, ..all.clone() })),
            ([0x38, 0, 0], Some(Broadcast { reach: BroadcastReach::all(), ..all.clone() })),
            ([0x40, 0, 0], None),
            ([0, COUNT_MAX, 0], Some(Broadcast { more: 7, ..all })),
            ([0, COUNT_MAX + 1, 0], None),
        ] {
            assert_eq!(operands(registers), expected, "{registers:x?}");
        }
    }
}
