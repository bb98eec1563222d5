//! System-management mode: SMI, RSM and the save state (APM2 chapter 10; SDM 3C 34.4 to 34.6).
//!
//! Both vendors' processors use the AMD64 save-state layout of APM2 table 10-1 here; Intel's own 64-bit layout is largely
//! undocumented. Two reserved places keep what the manual says is preserved but gives no place: the interrupt shadow at
//! FECBh and pending debug exceptions at FEF0h. SMRAM is ordinary memory (no SMRR, no TSEG protection), and I/O
//! instruction restart and the dual-monitor treatment are left out.

use crate::core::{Activity, Blocking, Core, Passed, Segments};
use crate::exec::context::Context;
use crate::exec::{Done, Flow};
use crate::paging::pdpte;
use crate::virt::{Trap, Virt};
use iced_x86::Instruction;
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::exception::Exception;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::event::FlushScope;
use sim_core::{Ground, Hpa};

/// Where the save state begins above SMBASE.
pub const SAVE_STATE: u64 = 0xfe00;
/// Bytes of the save state.
pub const SAVE_STATE_BYTES: usize = 0x200;
/// Where SMM code begins above SMBASE.
pub const ENTRY: u64 = 0x8000;

/// The save state, without where it is. Software that takes SMIs for a guest writes the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaveState(pub [u8; SAVE_STATE_BYTES]);

/// Which segment and data registers SMM code starts with: 4-GByte segments that real mode would not load.
#[must_use]
pub fn segments(smbase: u64, interrupted: &Segments) -> Segments {
    let data = Segment { selector: 0, base: 0, limit: 0xffff_ffff, rights: Rights(0x8093) };
    let cs = Segment { selector: (smbase >> 4) as u16, base: smbase, ..data };
    Segments { es: data, cs, ss: data, ds: data, fs: data, gs: data, ..*interrupted }
}

/// Offsets of APM2 table 10-1.
mod offset {
    /// Whether a guest was interrupted (SVM).
    pub(super) const GUEST: u64 = 0xfed8;
    /// Where its VMCB is.
    pub(super) const VMCB: u64 = 0xfee0;
    pub(super) const GDTR: u64 = 0xfe60;
    pub(super) const IDTR: u64 = 0xfe80;
    pub(super) const AUTO_HALT: u64 = 0xfec9;
    pub(super) const NMI_MASK: u64 = 0xfeca;
    pub(super) const SHADOW: u64 = 0xfecb;
    pub(super) const EFER: u64 = 0xfed0;
    pub(super) const PENDING_DEBUG: u64 = 0xfef0;
    pub(super) const REVISION: u64 = 0xfefc;
    pub(super) const SMBASE: u64 = 0xff00;
    pub(super) const SSP: u64 = 0xff18;
    pub(super) const CR4: u64 = 0xff48;
    pub(super) const CR3: u64 = 0xff50;
    pub(super) const CR0: u64 = 0xff58;
    pub(super) const DR7: u64 = 0xff60;
    pub(super) const DR6: u64 = 0xff68;
    pub(super) const RFLAGS: u64 = 0xff70;
    pub(super) const RIP: u64 = 0xff78;
    /// RAX; the other registers stand below it, in the order of their numbers.
    pub(super) const RAX: u64 = 0xfff8;
}

/// The SMM-revision identifier: 64-bit layout, SMBASE relocation (bit 17).
const REVISION: u32 = 0x0002_0064;

/// The segment registers and where they stand.
type Slot = (u64, fn(&mut Core) -> &mut Segment);

const SEGMENTS: [Slot; 8] = [
    (0xfe00, |core| &mut core.segments.es),
    (0xfe10, |core| &mut core.segments.cs),
    (0xfe20, |core| &mut core.segments.ss),
    (0xfe30, |core| &mut core.segments.ds),
    (0xfe40, |core| &mut core.segments.fs),
    (0xfe50, |core| &mut core.segments.gs),
    (0xfe70, |core| &mut core.segments.ldtr),
    (0xfe90, |core| &mut core.segments.tr),
];

/// Attributes as the save state has them, 12 bits: the descriptor's bits 47:40 and 55:52. An unusable segment is one
/// that is not present.
const fn attributes(rights: Rights) -> u64 {
    let kept = (rights.0 & 0xff) | ((rights.0 >> 4) & 0xf00);
    (if rights.is_unusable() { kept & !0x80 } else { kept }) as u64
}

const fn rights(attributes: u64) -> Rights {
    let raw = (attributes & 0xff) | ((attributes & 0xf00) << 4);
    let unusable = if attributes & 0x80 == 0 { Rights::UNUSABLE.0 } else { 0 };
    Rights(raw as u32 | unusable)
}

/// An SMI that nothing intercepted: saves the state at SMBASE and goes to SMBASE + 8000h in a real mode with 4-GByte
/// segments (APM2 10.3.4; SDM 3C 34.5).
pub(crate) fn enter(core: &mut Core, ground: &mut Ground) {
    let smbase = core.msrs.smbase;
    ground.mem.write_bytes(save_state_at(smbase), &SaveState::of(core).0);
    core.segments = segments(smbase, &core.segments);
    core.rip = ENTRY;
    core.rflags = Rflags::FIXED;
    core.cr0 = core.cr0.difference(CLEARED);
    core.cr4 = Cr4::empty();
    core.efer = Efer::empty();
    core.dr7 = 0x400;
    core.pending_debug = 0;
    core.passed = Passed::Nothing;
    core.activity = Activity::Active;
    core.blocking = Blocking::SMI.union(Blocking::NMI);
    core.tlb.flush(ground, FlushScope::All);
}

/// Bits of CR0 that an SMI clears.
pub const CLEARED: Cr0 = Cr0::PE.union(Cr0::EM).union(Cr0::TS).union(Cr0::PG);

/// Where the save state of a processor with this SMBASE is.
#[must_use]
pub const fn save_state_at(smbase: u64) -> Hpa {
    Hpa(smbase.wrapping_add(SAVE_STATE) & 0xffff_ffff)
}

impl SaveState {
    /// What an SMI saves of a processor.
    #[must_use]
    pub fn of(core: &Core) -> Self {
        let mut state = Self([0; SAVE_STATE_BYTES]);
        state.save(&mut core.clone());
        state
    }

    /// The guest that was interrupted, as the address of its VMCB, if any was (APM2 table 10-1).
    #[must_use]
    pub fn guest(&self) -> Option<u64> {
        (self.read(offset::GUEST, 8) & 1 != 0).then(|| self.read(offset::VMCB, 8))
    }

    /// EFER as it was.
    #[must_use]
    pub fn efer(&self) -> Efer {
        Efer::from_bits_retain(self.read(offset::EFER, 8))
    }

    /// Says that the guest of a VMCB was interrupted.
    pub fn set_guest(&mut self, vmcb: u64) {
        self.write(offset::GUEST, 1, 8);
        self.write(offset::VMCB, vmcb, 8);
    }

    fn place(at: u64) -> usize {
        (at - SAVE_STATE) as usize
    }

    fn read(&self, at: u64, bytes: usize) -> u64 {
        let start = Self::place(at);
        self.0[start..start + bytes].iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    fn write(&mut self, at: u64, value: u64, bytes: usize) {
        let start = Self::place(at);
        self.0[start..start + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
    }

    fn save(&mut self, core: &mut Core) {
        for (slot, of) in SEGMENTS {
            let segment = *of(core);
            self.write(slot, u64::from(segment.selector) | attributes(segment.rights) << 16, 4);
            self.write(slot + 4, segment.limit.into(), 4);
            self.write(slot + 8, segment.base, 8);
        }
        for (slot, table) in [(offset::GDTR, core.gdtr), (offset::IDTR, core.idtr)] {
            self.write(slot + 4, table.limit.into(), 2);
            self.write(slot + 8, table.base, 8);
        }
        let halted = u64::from(core.activity == Activity::Halted);
        let masked = u64::from(core.blocking.contains(Blocking::NMI));
        let shadow = core.blocking.intersection(crate::boundary::SHADOW).bits();
        for (slot, value) in [(offset::AUTO_HALT, halted), (offset::NMI_MASK, masked), (offset::SHADOW, shadow.into())]
        {
            self.write(slot, value, 1);
        }
        self.write(offset::REVISION, REVISION.into(), 4);
        self.write(offset::SMBASE, core.msrs.smbase, 4);
        for (slot, value) in [
            (offset::EFER, core.efer.bits()),
            (offset::PENDING_DEBUG, core.pending_debug),
            (offset::SSP, core.ssp),
            (offset::CR4, core.cr4.bits()),
            (offset::CR3, core.cr3),
            (offset::CR0, core.cr0.bits()),
            (offset::DR7, core.dr7),
            (offset::DR6, core.dr6),
            (offset::RFLAGS, core.rflags.bits()),
            (offset::RIP, core.rip),
        ] {
            self.write(slot, value, 8);
        }
        for (number, value) in core.gprs.iter().enumerate() {
            self.write(offset::RAX - 8 * number as u64, *value, 8);
        }
    }
}

/// RSM: back to what the save state says; #UD outside system-management mode (SDM 2 RSM; APM2 10.3.7).
pub(crate) fn rsm<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    if !cx.core.blocking.contains(Blocking::SMI) {
        return Err(Exception::ud().into());
    }
    cx.ask(virt, &Trap::Rsm)?;
    // The tables of PDPTEs are those of whoever goes on.
    cx.regime = virt.regime(cx.core);
    let mut state = SaveState([0; SAVE_STATE_BYTES]);
    cx.ground.mem.read_bytes(save_state_at(cx.core.msrs.smbase), &mut state.0);
    let Some(restored) = state.restored(cx.core) else { return Ok(Flow::Shutdown) };
    let pdptes = match restored.paging_mode() {
        PagingMode::Pae => pdpte::load(restored.maxphyaddr, &cx.regime, cx.ground, restored.cr3),
        _ => Ok(restored.pdptes),
    };
    let Ok(pdptes) = pdptes else { return Ok(Flow::Shutdown) };
    *cx.core = Core { pdptes, ..restored };
    cx.core.tlb.flush(cx.ground, FlushScope::All);
    cx.effects.shadow = cx.core.blocking.intersection(crate::boundary::SHADOW);
    cx.effects.keeps_resume = true;
    Ok(if cx.core.activity == Activity::Halted { Flow::Resumed } else { Flow::Jumped })
}

impl SaveState {
    /// The processor as the save state describes it; none if it describes one that can't be, which is a shutdown (SDM 3C
    /// 34.4.1; APM2 10.3.7): reserved bits, PG without PE, NW without CD, IA-32e mode without PAE.
    #[must_use]
    pub fn restored(&self, core: &Core) -> Option<Core> {
        let quad = |slot| self.read(slot, 8);
        let byte = |slot| self.read(slot, 1);
        let (cr0, cr4, efer) = (quad(offset::CR0), quad(offset::CR4), quad(offset::EFER));
        let cr0 = if cr0 >> 32 == 0 { Cr0::from_bits_truncate(cr0).union(Cr0::ET) } else { return None };
        let (cr4, efer) = (Cr4::from_bits(cr4)?, Efer::from_bits(efer)?);
        let long = efer.contains(Efer::LME) && cr0.contains(Cr0::PG);
        let impossible = (cr0.contains(Cr0::PG) && !cr0.contains(Cr0::PE))
            || (cr0.contains(Cr0::NW) && !cr0.contains(Cr0::CD))
            || (long && !cr4.contains(Cr4::PAE))
            || long != efer.contains(Efer::LMA)
            || (cr4.contains(Cr4::PCIDE) && !long);
        if impossible {
            return None;
        }
        let mut new = core.clone();
        for (slot, of) in SEGMENTS {
            let word = self.read(slot, 4);
            let limit = self.read(slot + 4, 4) as u32;
            let segment = Segment { selector: word as u16, base: quad(slot + 8), limit, rights: rights(word >> 16) };
            *of(&mut new) = segment;
        }
        let table = |slot| TableRegister { base: quad(slot + 8), limit: self.read(slot + 4, 2) as u16 };
        (new.gdtr, new.idtr) = (table(offset::GDTR), table(offset::IDTR));
        (new.cr0, new.cr4, new.efer) = (cr0, cr4, efer);
        new.cr3 = quad(offset::CR3);
        new.ssp = quad(offset::SSP);
        new.dr7 = quad(offset::DR7) & crate::exec::debug::DR7_WRITABLE | crate::exec::debug::DR7_FIXED;
        new.dr6 = quad(offset::DR6);
        new.rflags = Rflags::from_bits_truncate(quad(offset::RFLAGS)).union(Rflags::FIXED);
        new.rip = quad(offset::RIP);
        for (number, value) in new.gprs.iter_mut().enumerate() {
            *value = quad(offset::RAX - 8 * number as u64);
        }
        new.msrs.smbase = self.read(offset::SMBASE, 4);
        new.pending_debug = quad(offset::PENDING_DEBUG);
        new.blocking = Blocking::from_bits_truncate(byte(offset::SHADOW) as u8).intersection(crate::boundary::SHADOW);
        if byte(offset::NMI_MASK) & 1 != 0 {
            new.blocking.insert(Blocking::NMI);
        }
        new.activity = if byte(offset::AUTO_HALT) & 1 != 0 { Activity::Halted } else { Activity::Active };
        Some(new)
    }
}
