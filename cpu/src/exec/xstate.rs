//! FXSAVE, XSAVE and their kin, MXCSR, XGETBV, and the x87 instructions that find the x87 unit in its initial state
//! (SDM 1 10.5 and 13; SDM 2, each instruction's page).
//!
//! State components 0 (x87) and 1 (SSE) exist. There is no x87 unit: its state is always the initial one, so what would
//! change it is named as not modelled, and so is saving a component that does not exist here. FXSAVE saves XMM registers
//! whether or not CR4.OSFXSR is set, which the manual leaves open.

use crate::core::{Gpr, VectorState};
use crate::exec::bitfield::require;
use crate::exec::context::Context;
use crate::exec::operand::is_memory;
use crate::exec::vector::require_sse;
use crate::exec::{Done, Fault, Flow};
use crate::profile::Features;
use crate::virt::{Trap, Virt};
use iced_x86::{Instruction, Mnemonic, Register};
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::arch::exception::{Exception, Vector};

/// The bits of MXCSR that exist.
const MXCSR_MASK: u32 = 0xffff;
const MXCSR_INITIAL: u32 = 0x1f80;
/// The x87 control word after FNINIT.
const CONTROL_WORD_INITIAL: u16 = 0x37f;

/// State component 0.
const X87: u64 = 1 << 0;
/// State component 1.
const SSE: u64 = 1 << 1;
/// Bit 63 of XCOMP_BV: the area is compacted.
const COMPACTED: u64 = 1 << 63;

/// Where parts of the legacy area are (SDM 1 table 10-2).
const AREA_MXCSR: usize = 24;
const AREA_XMM: usize = 160;
const AREA_BYTES: usize = 512;
/// The XSAVE header, behind the legacy area.
const HEADER_BYTES: usize = 64;

/// #NM with CR0.TS; with CR0.EM, #UD for SSE's own and #NM for the x87 unit's instructions.
fn require_x87(cx: &Context<'_>) -> Result<(), Fault> {
    if cx.core.cr0.intersects(Cr0::EM.union(Cr0::TS)) {
        return Err(Exception::plain(Vector::DeviceNotAvailable).into());
    }
    Ok(())
}

fn require_xsave(cx: &Context<'_>) -> Result<(), Fault> {
    require(cx, Features::XSAVE)?;
    if !cx.core.cr4.contains(Cr4::OSXSAVE) {
        return Err(Exception::ud().into());
    }
    Ok(())
}

/// #GP(0) if MXCSR would get a bit that does not exist.
fn require_mxcsr(value: u32) -> Result<u32, Fault> {
    if value & !MXCSR_MASK == 0 { Ok(value) } else { Err(Exception::gp0().into()) }
}

/// Names a saved x87 state that is not the initial one.
fn require_initial_x87(area: &[u8]) -> Result<(), Fault> {
    let initial = half(area, 0) == CONTROL_WORD_INITIAL && half(area, 2) == 0 && area[4] == 0;
    if initial { Ok(()) } else { Err(Fault::unmodelled("x87 state other than the initial one")) }
}

fn half(area: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([area[at], area[at + 1]])
}

fn quad(area: &[u8], at: usize) -> u64 {
    (0..8).fold(0, |value, index| value | u64::from(area[at + index]) << (8 * index))
}

fn mxcsr(area: &[u8]) -> u32 {
    quad(area, AREA_MXCSR) as u32
}

/// How many XMM registers the code's width reaches.
fn xmm_count(cx: &Context<'_>) -> usize {
    if cx.is_64bit() { 16 } else { 8 }
}

/// A save area in memory: its bytes as they are now, or as they are to become.
struct Area {
    bytes: Vec<u8>,
}

/// Reads `bytes` bytes, a multiple of 16, of an aligned memory operand.
fn load(cx: &mut Context<'_>, insn: &Instruction, bytes: usize) -> Result<Area, Fault> {
    let mut area = Vec::with_capacity(bytes);
    for at in (0..bytes).step_by(16) {
        let span = area_span(cx, insn, at, AccessKind::Read)?;
        area.extend(cx.load(&span).to_le_bytes());
    }
    Ok(Area { bytes: area })
}

fn area_span(
    cx: &mut Context<'_>,
    insn: &Instruction,
    at: usize,
    kind: AccessKind,
) -> Result<crate::access::Span, Fault> {
    let offset = cx.effective_address(insn, 0).wrapping_add(at as u64);
    let address = cx.linear(Context::operand_segment(insn, 0), offset, 16, kind)?;
    let access = cx.explicit(kind);
    cx.span(address, 16, access)
}

/// Writes the ranges of an area that `written` names, in units of 16 bytes; all of them fault before any is written.
fn store(cx: &mut Context<'_>, insn: &Instruction, area: &Area, written: impl Fn(usize) -> bool) -> Result<(), Fault> {
    let mut spans = Vec::new();
    for (index, chunk) in area.bytes.chunks_exact(16).enumerate() {
        if written(16 * index) {
            spans.push((area_span(cx, insn, 16 * index, AccessKind::Write)?, chunk));
        }
    }
    for (span, chunk) in spans {
        let value = chunk.iter().rev().fold(0, |value: u128, byte| value << 8 | u128::from(*byte));
        cx.store(&span, value);
    }
    Ok(())
}

/// Puts the initial x87 state into an area.
fn put_x87(area: &mut [u8]) {
    area[..AREA_MXCSR].fill(0);
    area[..2].copy_from_slice(&CONTROL_WORD_INITIAL.to_le_bytes());
    area[32..AREA_XMM].fill(0);
}

fn put_mxcsr(cx: &Context<'_>, area: &mut [u8]) {
    area[AREA_MXCSR..AREA_MXCSR + 4].copy_from_slice(&cx.core.vectors.mxcsr.to_le_bytes());
    area[AREA_MXCSR + 4..AREA_MXCSR + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

fn put_xmm(cx: &Context<'_>, area: &mut [u8]) {
    for (index, value) in cx.core.vectors.xmm.iter().enumerate().take(xmm_count(cx)) {
        area[AREA_XMM + 16 * index..AREA_XMM + 16 * (index + 1)].copy_from_slice(&value.to_le_bytes());
    }
}

fn take_xmm(cx: &mut Context<'_>, area: &[u8]) {
    for index in 0..xmm_count(cx) {
        let at = AREA_XMM + 16 * index;
        let (low, high) = (quad(area, at), quad(area, at + 8));
        cx.core.vectors.xmm[index] = u128::from(high) << 64 | u128::from(low);
    }
}

/// FXSAVE: the last 48 bytes, and in 32-bit code the upper XMM registers, stay as they are.
pub(crate) fn fxsave(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require(cx, Features::SSE2)?;
    require_x87(cx)?;
    cx.require_alignment(insn, 0, 16)?;
    let mut area = Area { bytes: vec![0; AREA_BYTES] };
    put_x87(&mut area.bytes);
    put_mxcsr(cx, &mut area.bytes);
    put_xmm(cx, &mut area.bytes);
    let end = AREA_XMM + 16 * xmm_count(cx);
    store(cx, insn, &area, |at| at < end)?;
    Ok(Flow::Next)
}

/// FXRSTOR.
pub(crate) fn fxrstor(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require(cx, Features::SSE2)?;
    require_x87(cx)?;
    cx.require_alignment(insn, 0, 16)?;
    let area = load(cx, insn, AREA_BYTES)?.bytes;
    let mxcsr = require_mxcsr(mxcsr(&area))?;
    require_initial_x87(&area)?;
    cx.core.vectors.mxcsr = mxcsr;
    take_xmm(cx, &area);
    Ok(Flow::Next)
}

/// LDMXCSR.
pub(crate) fn ldmxcsr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_sse(cx)?;
    let value = cx.value(insn, 0)? as u32;
    cx.core.vectors.mxcsr = require_mxcsr(value)?;
    Ok(Flow::Next)
}

/// STMXCSR.
pub(crate) fn stmxcsr(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_sse(cx)?;
    let span = cx.memory(insn, 0, 4, AccessKind::Write)?;
    cx.store(&span, cx.core.vectors.mxcsr.into());
    Ok(Flow::Next)
}

/// XGETBV: XCR0, or with ECX = 1 its components that are in use.
pub(crate) fn xgetbv(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    require_xsave(cx)?;
    let value = match cx.core.gpr(Gpr::Rcx) as u32 {
        0 => cx.core.xcr0,
        1 => cx.core.xcr0 & in_use(cx),
        _ => return Err(Exception::gp0().into()),
    };
    cx.set_register(Register::EAX, value & 0xffff_ffff);
    cx.set_register(Register::EDX, value >> 32);
    Ok(Flow::Next)
}

/// XINUSE: the x87 unit never is; SSE is if a register is not 0 (SDM 1 13.6).
fn in_use(cx: &Context<'_>) -> u64 {
    let count = xmm_count(cx);
    if cx.core.vectors.xmm[..count].iter().any(|value| *value != 0) { SSE } else { 0 }
}

/// The components that an instruction asks for: EDX:EAX of those enabled.
fn requested(cx: &Context<'_>, enabled: u64) -> Result<u64, Fault> {
    let wanted = cx.core.gpr(Gpr::Rdx) << 32 | (cx.core.gpr(Gpr::Rax) & 0xffff_ffff);
    let requested = wanted & enabled;
    if requested & !(X87 | SSE) != 0 {
        return Err(Fault::unmodelled(format!("XSAVE state components {:#x}", requested & !(X87 | SSE))));
    }
    Ok(requested)
}

/// What XSAVE and its variants check before their operand: #UD, #NM, then #GP(0) for an operand not on 64 bytes.
fn check_operand(cx: &Context<'_>, insn: &Instruction) -> Result<(), Fault> {
    require_xsave(cx)?;
    if cx.core.cr0.contains(Cr0::TS) {
        return Err(Exception::plain(Vector::DeviceNotAvailable).into());
    }
    cx.require_alignment(insn, 0, 64)
}

/// Which of the form's two optimizations a variant of XSAVE uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// XSAVE: every component that is asked for.
    Plain,
    /// XSAVEOPT: not those in their initial state.
    Optimized,
    /// XSAVEC and XSAVES: nor those, and the header says that the area is compacted.
    Compacted,
}

fn save(cx: &mut Context<'_>, insn: &Instruction, form: Form, requested: u64) -> Done {
    // MXCSR belongs to SSE, but does not make it in use unless the form is a compacted one (SDM 1 13.10, 13.11).
    let odd_mxcsr = form == Form::Compacted && cx.core.vectors.mxcsr != MXCSR_INITIAL;
    let in_use = in_use(cx) | if odd_mxcsr { SSE } else { 0 };
    let written = if form == Form::Plain { requested } else { requested & in_use };
    let mut area = Area { bytes: vec![0; AREA_BYTES + HEADER_BYTES] };
    let old = area_span(cx, insn, AREA_BYTES, AccessKind::Read)?;
    let old = cx.load(&old);
    let (components, layout) = match form {
        Form::Compacted => (requested & in_use, requested | COMPACTED),
        Form::Plain | Form::Optimized => (old as u64 & !requested | requested & in_use, (old >> 64) as u64),
    };
    put_x87(&mut area.bytes);
    put_xmm(cx, &mut area.bytes);
    let header = u128::from(layout) << 64 | u128::from(components);
    area.bytes[AREA_BYTES..AREA_BYTES + 16].copy_from_slice(&header.to_le_bytes());
    // The sixteen bytes that hold MXCSR hold x87 pointers too: what is not asked for keeps its bytes.
    let mixed = area_span(cx, insn, 16, AccessKind::Read)?;
    let mixed = cx.load(&mixed).to_le_bytes();
    if written & X87 == 0 {
        area.bytes[16..AREA_MXCSR].copy_from_slice(&mixed[..8]);
    }
    area.bytes[AREA_MXCSR..AREA_MXCSR + 8].copy_from_slice(&mixed[8..]);
    if requested & SSE != 0 && (form != Form::Compacted || written & SSE != 0) {
        put_mxcsr(cx, &mut area.bytes);
    }
    let xmm_end = AREA_XMM + 16 * xmm_count(cx);
    store(cx, insn, &area, |at| match at {
        16 => (written | requested & SSE) != 0,
        AREA_BYTES => true,
        _ if at < AREA_XMM => written & X87 != 0,
        _ => at < xmm_end && written & SSE != 0,
    })?;
    Ok(Flow::Next)
}

/// XSAVE, XSAVEOPT and XSAVEC.
pub(crate) fn xsave(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    check_operand(cx, insn)?;
    let requested = requested(cx, cx.core.xcr0)?;
    let form = match insn.mnemonic() {
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => Form::Compacted,
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => Form::Optimized,
        _ => Form::Plain,
    };
    save(cx, insn, form, requested)
}

/// XSAVES: XSAVEC of supervisor state too, in ring 0.
pub(crate) fn xsaves<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    require_xsave(cx)?;
    cx.require_cpl0()?;
    let wanted = cx.core.gpr(Gpr::Rdx) << 32 | (cx.core.gpr(Gpr::Rax) & 0xffff_ffff);
    cx.ask(virt, &Trap::Xsaves(wanted))?;
    check_operand(cx, insn)?;
    let requested = requested(cx, cx.core.xcr0 | cx.core.msrs.xss)?;
    save(cx, insn, Form::Compacted, requested)
}

/// The header of an area: XSTATE_BV and XCOMP_BV, #GP(0) unless the instruction may restore from it (SDM 1 13.8, 13.12).
fn header(area: &[u8], enabled: u64, compacted: bool) -> Result<(u64, u64), Fault> {
    let header = &area[AREA_BYTES..];
    let (components, layout) = (quad(header, 0), quad(header, 8));
    let reserved = header[16..].iter().any(|byte| *byte != 0);
    let broken = if layout & COMPACTED != 0 {
        reserved || layout & !(enabled | COMPACTED) != 0 || components & !layout != 0
    } else {
        compacted || components & !enabled != 0 || layout != 0 || quad(header, 16) != 0
    };
    if broken { Err(Exception::gp0().into()) } else { Ok((components, layout)) }
}

fn restore(cx: &mut Context<'_>, insn: &Instruction, enabled: u64, compacted: bool) -> Done {
    let requested = requested(cx, enabled)?;
    let area = load(cx, insn, AREA_BYTES + HEADER_BYTES)?.bytes;
    let (components, layout) = header(&area, enabled, compacted)?;
    let present = requested & components;
    // The standard form takes MXCSR from memory even where it initializes the registers.
    let from_memory = if layout & COMPACTED != 0 { present & SSE != 0 } else { requested & SSE != 0 };
    let mxcsr = if from_memory { require_mxcsr(mxcsr(&area))? } else { MXCSR_INITIAL };
    if present & X87 != 0 {
        require_initial_x87(&area)?;
    }
    if requested & SSE != 0 {
        cx.core.vectors.mxcsr = mxcsr;
        if present & SSE != 0 {
            take_xmm(cx, &area);
        } else {
            let count = xmm_count(cx);
            cx.core.vectors.xmm[..count].copy_from_slice(&VectorState::default().xmm[..count]);
        }
    }
    Ok(Flow::Next)
}

/// XRSTOR, of either form.
pub(crate) fn xrstor(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    check_operand(cx, insn)?;
    restore(cx, insn, cx.core.xcr0, false)
}

/// XRSTORS: of the compacted form alone, with supervisor state, in ring 0.
pub(crate) fn xrstors<V: Virt>(cx: &mut Context<'_>, virt: &mut V, insn: &Instruction) -> Done {
    require_xsave(cx)?;
    cx.require_cpl0()?;
    let wanted = cx.core.gpr(Gpr::Rdx) << 32 | (cx.core.gpr(Gpr::Rax) & 0xffff_ffff);
    cx.ask(virt, &Trap::Xrstors(wanted))?;
    check_operand(cx, insn)?;
    restore(cx, insn, cx.core.xcr0 | cx.core.msrs.xss, true)
}

/// FNINIT, FNCLEX and EMMS: the x87 unit already is as they leave it.
pub(crate) fn x87_reset(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    if insn.mnemonic() == Mnemonic::Emms && cx.core.cr0.contains(Cr0::EM) {
        return Err(Exception::ud().into());
    }
    require_x87(cx)?;
    Ok(Flow::Next)
}

/// FWAIT: #NM if CR0.TS and CR0.MP.
pub(crate) fn fwait(cx: &mut Context<'_>, _insn: &Instruction) -> Done {
    if cx.core.cr0.contains(Cr0::TS.union(Cr0::MP)) {
        return Err(Exception::plain(Vector::DeviceNotAvailable).into());
    }
    Ok(Flow::Next)
}

/// FNSTCW and FNSTSW.
pub(crate) fn x87_store_word(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_x87(cx)?;
    let value = if insn.mnemonic() == Mnemonic::Fnstcw { CONTROL_WORD_INITIAL } else { 0 };
    if is_memory(insn, 0) {
        let span = cx.memory(insn, 0, 2, AccessKind::Write)?;
        cx.store(&span, value.into());
    } else {
        cx.set_register(insn.op0_register(), value.into());
    }
    Ok(Flow::Next)
}

/// FLDCW of the control word that is already there.
pub(crate) fn x87_load_control(cx: &mut Context<'_>, insn: &Instruction) -> Done {
    require_x87(cx)?;
    let value = cx.value(insn, 0)? as u16;
    if value == CONTROL_WORD_INITIAL {
        return Ok(Flow::Next);
    }
    Err(Fault::unmodelled(format!("x87 control word {value:#x}")))
}
