//! MOV to and from control registers, CLTS, LMSW, SMSW, and what writing CR0, CR3, CR4 and EFER checks and invalidates.
//!
//! SDM 3A 2.5 (bits), 4.1.1 and 4.1.2 (mode changes), 4.4.1 (PDPTE registers), 4.10.1 (PCIDs), 4.10.4.1 (which writes
//! invalidate what), SDM 2 MOV-Control Registers (faults). Checks are tables: one named rule a row, true if broken.

use crate::core::Core;
use crate::exec::context::{Context, gpr_of};
use crate::exec::operand::is_memory;
use crate::exec::{Done, Fault, Flow};
use crate::paging::{lam, pdpte};
use crate::profile::{Features, Habits};
use crate::tlb;
use crate::virt::{ControlRegister, Trap, Virt};
use iced_x86::{Instruction, Register};
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::{CR3_NO_FLUSH, CR3_PCID_MASK, Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::exception::Exception;
use sim_core::clock::Cost;
use sim_core::event::FlushScope;

/// A rule that a new register value breaks, if the function says so.
pub type Rule<T> = (&'static str, fn(&Core, T) -> bool);

/// What MOV to CR0 checks (SDM 2 MOV-Control Registers; SDM 3A 4.1.2).
pub const CR0_RULES: &[Rule<Cr0>] = &[
    ("PG without PE", |_, new| new.contains(Cr0::PG) && !new.contains(Cr0::PE)),
    ("NW without CD", |_, new| new.contains(Cr0::NW) && !new.contains(Cr0::CD)),
    ("PG with LME, without PAE", |core, new| enters_long_mode(core, new) && !core.cr4.contains(Cr4::PAE)),
    ("PG with LME, from a CS with L = 1", |core, new| enters_long_mode(core, new) && core.segments.cs.rights.is_long()),
    ("PG with LME, with a 16-bit TSS", |core, new| enters_long_mode(core, new) && has_16bit_tss(core)),
    ("clearing PG in 64-bit mode", |core, new| clears_paging(core, new) && is_64bit(core)),
    ("clearing PG with PCIDE", |core, new| clears_paging(core, new) && core.cr4.contains(Cr4::PCIDE)),
    ("clearing WP with CET", |core, new| core.cr4.contains(Cr4::CET) && !new.contains(Cr0::WP)),
];

/// What MOV to CR4 checks beside reserved bits.
pub const CR4_RULES: &[Rule<Cr4>] = &[
    ("clearing PAE in IA-32e mode", |core, new| is_long(core) && !new.contains(Cr4::PAE)),
    ("changing LA57 in IA-32e mode", |core, new| {
        is_long(core) && core.cr4.symmetric_difference(new).contains(Cr4::LA57)
    }),
    ("setting PCIDE outside IA-32e mode", |core, new| sets_pcide(core, new) && !is_long(core)),
    ("setting CET without WP", |core, new| new.contains(Cr4::CET) && !core.cr0.contains(Cr0::WP)),
    ("setting PCIDE with a PCID in CR3", |core, new| sets_pcide(core, new) && core.cr3 & CR3_PCID_MASK != 0),
];

/// What WRMSR to IA32_EFER checks beside reserved bits (SDM 3A 4.1.1; SDM 4 table 2-2).
pub const EFER_RULES: &[Rule<Efer>] = &[("changing LME with paging", |core, new| {
    core.cr0.contains(Cr0::PG) && core.efer.symmetric_difference(new).contains(Efer::LME)
})];

/// Bits of CR4 that need a feature, but for CET, which needs one of two. SMX and user interrupts no processor here has.
const CR4_FEATURES: &[(Features, Cr4)] = &[
    (Features::UMIP, Cr4::UMIP),
    (Features::LA57, Cr4::LA57),
    (Features::FSGSBASE, Cr4::FSGSBASE),
    (Features::PCID, Cr4::PCIDE),
    (Features::XSAVE, Cr4::OSXSAVE),
    (Features::SMEP, Cr4::SMEP),
    (Features::SMAP, Cr4::SMAP),
    (Features::PKU, Cr4::PKE),
    (Features::PKS, Cr4::PKS),
    (Features::LAM, Cr4::LAM_SUP),
];

/// The bits of CR4 that a processor with these features has.
#[must_use]
pub fn cr4_supported(features: Features) -> Cr4 {
    let absent = CR4_FEATURES.iter().filter(|(feature, _)| !features.contains(*feature));
    let enforced = features.intersects(Features::CET_SS.union(Features::CET_IBT));
    let flow = if enforced { Cr4::empty() } else { Cr4::CET };
    let all = Cr4::all().difference(flow).difference(Cr4::SMXE).difference(Cr4::UINTR);
    absent.fold(all, |bits, (_, bit)| bits.difference(*bit))
}

const fn is_long(core: &Core) -> bool {
    core.efer.contains(Efer::LMA)
}

const fn is_64bit(core: &Core) -> bool {
    is_long(core) && core.segments.cs.rights.is_long()
}

const fn enters_long_mode(core: &Core, new: Cr0) -> bool {
    new.contains(Cr0::PG) && !core.cr0.contains(Cr0::PG) && core.efer.contains(Efer::LME)
}

const fn clears_paging(core: &Core, new: Cr0) -> bool {
    core.cr0.contains(Cr0::PG) && !new.contains(Cr0::PG)
}

const fn has_16bit_tss(core: &Core) -> bool {
    let tr = core.segments.tr.rights;
    !tr.is_unusable() && matches!(tr.kind(), 1 | 3)
}

const fn sets_pcide(core: &Core, new: Cr4) -> bool {
    new.contains(Cr4::PCIDE) && !core.cr4.contains(Cr4::PCIDE)
}

/// The first rule that a new value breaks.
pub fn broken<T: Copy>(rules: &[Rule<T>], core: &Core, new: T) -> Option<&'static str> {
    rules.iter().find(|(_, is_broken)| is_broken(core, new)).map(|(name, _)| *name)
}

fn require<T: Copy>(rules: &[Rule<T>], core: &Core, new: T) -> Result<(), Fault> {
    if broken(rules, core, new).is_some() { Err(Exception::gp0().into()) } else { Ok(()) }
}

/// #GP(0) if the extension does not let the register have this value now.
fn require_fixed<V: Virt>(virt: &V, register: ControlRegister, value: u64) -> Result<(), Fault> {
    let (ones, zeros) = virt.cr_fixed(register);
    if value & ones == ones && value & zeros == 0 { Ok(()) } else { Err(Exception::gp0().into()) }
}

const fn control_register(register: Register) -> Option<ControlRegister> {
    match register {
        Register::CR0 => Some(ControlRegister::Cr0),
        Register::CR2 => Some(ControlRegister::Cr2),
        Register::CR3 => Some(ControlRegister::Cr3),
        Register::CR4 => Some(ControlRegister::Cr4),
        Register::CR8 => Some(ControlRegister::Cr8),
        _ => None,
    }
}

/// MOV to or from a control register.
pub(crate) fn mov_cr<V: Virt>(cx: &mut Context<'_>, virt: &mut V, to: Register, from: Register) -> Done {
    let name = if to.is_cr() { to } else { from };
    let register = control_register(name).ok_or(Exception::ud())?;
    cx.require_cpl0()?;
    cx.ground.charge(Cost::SystemRegister);
    if to.is_cr() {
        let value = cx.register(from);
        let trap = Trap::CrWrite { register, gpr: gpr_of(from), value };
        cx.ask(virt, &trap)?;
        write(cx, virt, register, value)?;
    } else {
        let trap = Trap::CrRead { register, gpr: gpr_of(to) };
        cx.ask(virt, &trap)?;
        let value = read(cx, virt, register);
        cx.set_register(to, value);
    }
    Ok(Flow::Next)
}

fn read<V: Virt>(cx: &Context<'_>, virt: &V, register: ControlRegister) -> u64 {
    match register {
        ControlRegister::Cr0 => virt.cr_read(cx.ground, register, cx.core.cr0.bits()),
        ControlRegister::Cr2 => cx.core.cr2.0,
        ControlRegister::Cr3 => cx.core.cr3,
        ControlRegister::Cr4 => virt.cr_read(cx.ground, register, cx.core.cr4.bits()),
        ControlRegister::Cr8 => virt.cr_read(cx.ground, register, cx.core.cr8.into()),
    }
}

fn write<V: Virt>(cx: &mut Context<'_>, virt: &V, register: ControlRegister, value: u64) -> Result<(), Fault> {
    match register {
        ControlRegister::Cr0 => write_cr0(cx, virt, value),
        ControlRegister::Cr2 => {
            cx.core.cr2 = Gva(value);
            Ok(())
        }
        ControlRegister::Cr3 => write_cr3(cx, value),
        ControlRegister::Cr4 => write_cr4(cx, virt, value),
        ControlRegister::Cr8 => write_cr8(cx, virt, value),
    }
}

/// CR8 is the class of the local APIC's task priority (SDM 3A 10.8.6.1).
fn write_cr8<V: Virt>(cx: &mut Context<'_>, virt: &V, value: u64) -> Result<(), Fault> {
    if value > 0xf {
        return Err(Exception::gp0().into());
    }
    let value = virt.cr_write(cx.ground, ControlRegister::Cr8, cx.core.cr8.into(), value) as u8;
    if value != cx.core.cr8 {
        cx.core.cr8 = value;
        cx.core.apic.subclass = 0;
    }
    Ok(())
}

/// Reads the PDPTE registers anew if the registers that are about to be select PAE paging and `reload` says so.
fn pdptes(cx: &mut Context<'_>, mode: PagingMode, reload: bool, cr3: u64) -> Result<[u64; 4], Fault> {
    if mode != PagingMode::Pae || !reload {
        return Ok(cx.core.pdptes);
    }
    pdpte::load(cx.core.maxphyaddr, &cx.regime, cx.ground, cr3)
}

/// Invalidates with a change of the registers: what was current before is no more when it ends.
fn flush(cx: &mut Context<'_>, scope: FlushScope) {
    cx.core.tlb.flush(cx.ground, scope);
    tlb::note(cx.core, &cx.regime, cx.ground);
}

fn write_cr0<V: Virt>(cx: &mut Context<'_>, virt: &V, operand: u64) -> Result<(), Fault> {
    let value = virt.cr_write(cx.ground, ControlRegister::Cr0, cx.core.cr0.bits(), operand);
    if value >> 32 != 0 {
        return Err(Exception::gp0().into());
    }
    // Reserved bits below 32 ignore what is written, and ET is always 1.
    let new = Cr0::from_bits_truncate(value).union(Cr0::ET);
    require(CR0_RULES, cx.core, new)?;
    require_fixed(virt, ControlRegister::Cr0, new.bits())?;
    let efer = active(cx.core.efer, new);
    let changed = cx.core.cr0.symmetric_difference(new);
    let mode = PagingMode::of(new, cx.core.cr4, efer);
    let profile = cx.core.tlb.profile();
    let reload = changed.intersects(Cr0::PG.union(Cr0::CD).union(Cr0::NW));
    let reload = reload || profile.has(Habits::CR0_ALWAYS_LOADS_PDPTES);
    cx.core.pdptes = pdptes(cx, mode, reload, cx.core.cr3)?;
    cx.core.cr0 = new;
    cx.core.efer = efer;
    // Only clearing PG invalidates: nothing is cached for linear addresses while it is clear.
    if changed.difference(new).contains(Cr0::PG) {
        flush(cx, FlushScope::Context(cx.regime.tag.context));
    } else if changed.intersects(Cr0::PE.union(Cr0::WP)) && profile.has(Habits::PERMISSIONS_FLUSH) {
        flush(cx, FlushScope::All);
    }
    Ok(())
}

/// EFER with LMA as CR0.PG and LME make it (SDM 3A 4.1.1).
fn active(efer: Efer, cr0: Cr0) -> Efer {
    let mut efer = efer;
    efer.set(Efer::LMA, cr0.contains(Cr0::PG) && efer.contains(Efer::LME));
    efer
}

/// CR3, with what its change checks, reloads and invalidates.
pub(crate) fn write_cr3(cx: &mut Context<'_>, operand: u64) -> Result<(), Fault> {
    let tagged = cx.core.cr4.contains(Cr4::PCIDE);
    let keeps = tagged && operand & CR3_NO_FLUSH != 0;
    let value = if tagged { operand & !CR3_NO_FLUSH } else { operand };
    if cx.is_long_mode() && lam::without_enables(cx.core.features, value) >> cx.core.maxphyaddr != 0 {
        return Err(Exception::gp0().into());
    }
    cx.core.pdptes = pdptes(cx, cx.core.paging_mode(), true, value)?;
    cx.core.cr3 = value;
    if !keeps || cx.core.tlb.profile().has(Habits::CR3_ALWAYS_FLUSHES) {
        flush(cx, FlushScope::Pcid(cx.regime.tag.context, cx.core.pcid()));
    }
    Ok(())
}

fn write_cr4<V: Virt>(cx: &mut Context<'_>, virt: &V, operand: u64) -> Result<(), Fault> {
    let value = virt.cr_write(cx.ground, ControlRegister::Cr4, cx.core.cr4.bits(), operand);
    let supported = cr4_supported(cx.core.features);
    let new = Cr4::from_bits(value).filter(|new| supported.contains(*new)).ok_or(Exception::gp0())?;
    require(CR4_RULES, cx.core, new)?;
    require_fixed(virt, ControlRegister::Cr4, new.bits())?;
    let changed = cx.core.cr4.symmetric_difference(new);
    let mode = PagingMode::of(cx.core.cr0, new, cx.core.efer);
    let reload = changed.intersects(Cr4::PAE.union(Cr4::PGE).union(Cr4::PSE).union(Cr4::SMEP));
    let (profile, permissions) = (cx.core.tlb.profile(), changed.intersects(PERMISSIONS));
    let reload = reload || permissions && profile.has(Habits::PERMISSIONS_LOAD_PDPTES);
    cx.core.pdptes = pdptes(cx, mode, reload, cx.core.cr3)?;
    cx.core.cr4 = new;
    if permissions && profile.has(Habits::PERMISSIONS_FLUSH) {
        flush(cx, FlushScope::All);
    } else if let Some(scope) = cr4_scope(cx.regime.tag.context, cx.core.pcid(), changed, new) {
        flush(cx, scope);
    }
    Ok(())
}

/// What need not invalidate anything, and does in some processors ([`Habits`]).
const PERMISSIONS: Cr4 = Cr4::SMEP.union(Cr4::SMAP).union(Cr4::PKE).union(Cr4::PCIDE);

/// What a change of CR4 must invalidate: PGE and clearing PCIDE reach every PCID and global entries; PAE and setting SMEP
/// only what was made under the current PCID (SDM 3A 4.10.4.1). PSE is AMD's rule (APM2 5.5.2), for every processor.
fn cr4_scope(context: u32, pcid: u16, changed: Cr4, new: Cr4) -> Option<FlushScope> {
    let (set, cleared) = (changed.intersection(new), changed.difference(new));
    if changed.intersects(Cr4::PGE.union(Cr4::PSE)) || cleared.contains(Cr4::PCIDE) {
        Some(FlushScope::Context(context))
    } else if changed.contains(Cr4::PAE) || set.contains(Cr4::SMEP) {
        Some(FlushScope::PcidWithGlobals(context, pcid))
    } else {
        None
    }
}

/// WRMSR to IA32_EFER; `allowed` are the bits that exist. LMA can't be written.
pub(crate) fn write_efer(cx: &mut Context<'_>, allowed: Efer, value: u64) -> Result<(), Fault> {
    let new = Efer::from_bits(value).filter(|new| allowed.contains(*new)).ok_or(Exception::gp0())?;
    require(EFER_RULES, cx.core, new)?;
    cx.core.efer = new.difference(Efer::LMA).union(cx.core.efer.intersection(Efer::LMA));
    Ok(())
}

/// CLTS.
pub(crate) fn clts<V: Virt>(cx: &mut Context<'_>, virt: &mut V, _insn: &Instruction) -> Done {
    cx.require_cpl0()?;
    cx.ask(virt, &Trap::Clts)?;
    let old = cx.core.cr0.bits();
    let operand = old & !Cr0::TS.bits();
    // A guest/host mask that covers TS keeps the register's bit (SDM 3C 25.3).
    cx.core.cr0 = Cr0::from_bits_truncate(virt.cr_write(cx.ground, ControlRegister::Cr0, old, operand));
    Ok(Flow::Next)
}

/// LMSW: the low four bits of CR0, of which PE can't be cleared.
pub(crate) fn lmsw<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    const LOW: u64 = 0xf;
    cx.require_cpl0()?;
    let (value, address) = if is_memory(insn, 0) {
        let address = cx.operand_address(insn, 0, 2, AccessKind::Read)?;
        let span = cx.memory(insn, 0, 2, AccessKind::Read)?;
        (cx.load(&span) as u16, Some(address))
    } else {
        (cx.register(insn.op0_register()) as u16, None)
    };
    cx.at.operand = cx.describe(insn);
    cx.ask(virt, &Trap::Lmsw { value, address })?;
    let old = cx.core.cr0.bits();
    let operand = (old & !LOW) | (u64::from(value) & LOW) | (old & Cr0::PE.bits());
    write_cr0(cx, virt, operand)?;
    Ok(Flow::Next)
}

/// SMSW: 16 bits of CR0 to memory, as many as the operand has to a register.
pub(crate) fn smsw<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    if cx.core.cr4.contains(Cr4::UMIP) {
        cx.require_cpl0()?;
    }
    cx.at.operand = cx.describe(insn);
    cx.ask(virt, &Trap::Smsw)?;
    let value = virt.cr_read(cx.ground, ControlRegister::Cr0, cx.core.cr0.bits());
    if is_memory(insn, 0) {
        let span = cx.memory(insn, 0, 2, AccessKind::Write)?;
        cx.store(&span, u128::from(value & 0xffff));
    } else {
        cx.set_register(insn.op0_register(), value);
    }
    Ok(Flow::Next)
}
