//! Linear memory as instructions use it: segmentation checks, then paging for each page touched, then the bytes.
//!
//! A span is a range whose pages are already translated for its access. An instruction that reads and writes one
//! place makes one span with the write access, so that it faults as a write before it changes anything (SDM 3A 4.7).
//! SDM 3A 5.3 to 5.5 (limit and type checks), SDM 1 3.3.7.1 (canonical addresses). Alignment checks: SDM
//! 3A 6.15, interrupt 17.

use crate::core::{Bitness, Core};
use crate::exec::Fault;
use crate::exec::context::{Context, Effects};
use crate::exec::debug;
use crate::paging::lam;
use crate::paging::translate::translate;
use crate::virt::{At, Regime};
use iced_x86::Register;
use sim_core::Ground;
use sim_core::addr::{Gva, Hpa, PAGE_BYTES};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment};
use sim_core::clock::Cost;

/// The longest access, in bytes.
pub(crate) const SPAN_BYTES_MAX: usize = 16;

/// A range of at most [`SPAN_BYTES_MAX`] bytes, translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    first: Hpa,
    second: Hpa,
    in_first: usize,
    bytes: usize,
}

/// The segment types that data accesses distinguish (SDM 3A 3.4.5.1).
pub(crate) mod kind {
    /// Code, not data.
    pub(crate) const CODE: u32 = 1 << 3;
    /// Expand-down data, or conforming code.
    pub(crate) const EXPAND_DOWN: u32 = 1 << 2;
    /// Conforming code.
    pub(crate) const CONFORMING: u32 = 1 << 2;
    /// Writable data, or readable code.
    pub(crate) const WRITABLE: u32 = 1 << 1;
    /// Accessed.
    pub(crate) const ACCESSED: u32 = 1 << 0;
}

/// Whether a segment of these rights lets data be accessed this way (SDM 3A 5.5).
const fn is_allowed(rights: Rights, access: AccessKind) -> bool {
    let code = rights.kind() & kind::CODE != 0;
    let second = rights.kind() & kind::WRITABLE != 0;
    match access {
        AccessKind::Read => !code || second,
        AccessKind::Write => !code && second,
        // CS was checked when it was loaded. After a reset and in SMM it is a data segment, from which code goes on to
        // protected mode (SDM 3A table 9-1, 9.9.1; 3C 34.5.1).
        AccessKind::Fetch => true,
    }
}

/// Whether `bytes` bytes from `offset` lie inside the segment (SDM 3A 5.3).
const fn is_inside(segment: &Segment, offset: u64, bytes: u64) -> bool {
    let last = offset + (bytes - 1);
    let rights = segment.rights;
    if rights.kind() & (kind::CODE | kind::EXPAND_DOWN) == kind::EXPAND_DOWN {
        let top = if rights.is_big() { 0xffff_ffff } else { 0xffff };
        offset > segment.limit as u64 && last <= top
    } else {
        last <= segment.limit as u64
    }
}

/// The fault of a bad segment access: #SS(0) through SS, #GP(0) through any other.
pub(crate) const fn segment_fault(name: Register) -> Exception {
    match name {
        Register::SS => Exception::with_error(Vector::StackFault, 0),
        _ => Exception::gp0(),
    }
}

impl Context<'_> {
    /// An explicit access at the current privilege level.
    pub(crate) fn explicit(&self, kind: AccessKind) -> Access {
        Access::new(kind, privilege_of(self.core.cpl()))
    }

    /// Forms the linear address of `bytes` bytes at `offset` in a named segment, with its checks.
    pub(crate) fn linear(
        &self,
        name: Register,
        offset: u64,
        bytes: usize,
        access: AccessKind,
    ) -> Result<Gva, Exception> {
        self.linear_in(&self.segment(name), name, offset, bytes, access)
    }

    /// [`Self::linear`] in a segment that need not be loaded; `name` says which base rule and which fault apply.
    pub(crate) fn linear_in(
        &self,
        segment: &Segment,
        name: Register,
        offset: u64,
        bytes: usize,
        access: AccessKind,
    ) -> Result<Gva, Exception> {
        let address = match self.core.bitness() {
            Bitness::Bits64 if access == AccessKind::Fetch => {
                self.if_canonical(Self::flat(segment, name, offset), bytes)
            }
            Bitness::Bits64 => self.canonical(segment, name, offset, bytes),
            Bitness::Bits16 | Bitness::Bits32 => self.limited(segment, offset & 0xffff_ffff, bytes, access),
        };
        address.ok_or_else(|| segment_fault(name))
    }

    /// Data in 64-bit mode: only FS and GS have a base, nothing has a limit, and the address without its metadata must be
    /// canonical (SDM 3A 5.3.1, 4.4).
    pub(crate) fn canonical(&self, segment: &Segment, name: Register, offset: u64, bytes: usize) -> Option<Gva> {
        self.if_canonical(lam::data_address(self.core, Self::flat(segment, name, offset)), bytes)
    }

    const fn flat(segment: &Segment, name: Register, offset: u64) -> Gva {
        let based = matches!(name, Register::FS | Register::GS);
        Gva(if based { segment.base.wrapping_add(offset) } else { offset })
    }

    fn if_canonical(&self, address: Gva, bytes: usize) -> Option<Gva> {
        let width = self.core.linear_width();
        let last = address.offset(bytes as u64 - 1);
        (address.is_canonical(width) && last.is_canonical(width)).then_some(address)
    }

    /// Elsewhere: type, then limit. Real and virtual-8086 mode check the limit alone.
    pub(crate) fn limited(&self, segment: &Segment, offset: u64, bytes: usize, access: AccessKind) -> Option<Gva> {
        let typed = self.has_paragraphs() || (!segment.rights.is_unusable() && is_allowed(segment.rights, access));
        let inside = is_inside(segment, offset, bytes as u64);
        (typed && inside).then_some(Gva(segment.base.wrapping_add(offset) & 0xffff_ffff))
    }

    /// Translates every page of a linear range for one access.
    pub(crate) fn span(&mut self, address: Gva, bytes: usize, access: Access) -> Result<Span, Fault> {
        let in_first = ((PAGE_BYTES - address.page_offset()) as usize).min(bytes);
        let first = self.translate(address, access)?;
        let second = if in_first == bytes {
            first
        } else {
            // Outside 64-bit mode linear addresses wrap at 32 bits, except those of system structures in IA-32e mode.
            let wraps = !self.is_64bit() && address.0 >> 32 == 0;
            let next = address.offset(in_first as u64).0;
            self.translate(Gva(if wraps { next & 0xffff_ffff } else { next }), access)?
        };
        self.watch(address, bytes, access)?;
        Ok(Span { first, second, in_first, bytes })
    }

    /// Data breakpoints and alignment checks of an explicit access; both are rare.
    fn watch(&mut self, address: Gva, bytes: usize, access: Access) -> Result<(), Exception> {
        if access.implicit {
            return Ok(());
        }
        let natural = if bytes == 6 { 4 } else { bytes.next_power_of_two().min(8) };
        let checks = self.core.cr0.contains(Cr0::AM) && self.core.rflags.contains(Rflags::AC);
        if checks && self.core.cpl() == 3 && address.0 & (natural as u64 - 1) != 0 {
            return Err(Exception::with_error(Vector::AlignmentCheck, 0));
        }
        if self.core.dr7 & debug::ENABLES != 0 {
            self.effects.breakpoints |= debug::data_matches(self.core, address, bytes as u64, access.kind);
        }
        Ok(())
    }

    fn translate(&mut self, address: Gva, access: Access) -> Result<Hpa, Fault> {
        translate(self.core, &self.regime, self.ground, address, access)
    }

    /// Reads a span, little-endian.
    pub(crate) fn load(&mut self, span: &Span) -> u128 {
        self.ground.charge(Cost::DataAccess);
        let mut buffer = [0; SPAN_BYTES_MAX];
        let (first, second) = buffer[..span.bytes].split_at_mut(span.in_first);
        self.ground.mem.read_bytes(span.first, first);
        self.ground.mem.read_bytes(span.second, second);
        u128::from_le_bytes(buffer)
    }

    /// Writes a span, little-endian.
    pub(crate) fn store(&mut self, span: &Span, value: u128) {
        self.ground.charge(Cost::DataAccess);
        let buffer = value.to_le_bytes();
        let (first, second) = buffer[..span.bytes].split_at(span.in_first);
        self.ground.mem.write_bytes(span.first, first);
        self.ground.mem.write_bytes(span.second, second);
    }

    /// Reads a system structure that the processor itself needs: a descriptor table or a TSS (SDM 3A 4.6).
    pub(crate) fn read_system(&mut self, address: u64, bytes: usize) -> Result<u64, Fault> {
        let span = self.system_span(address, bytes, AccessKind::Read)?;
        Ok(self.load(&span) as u64)
    }

    /// Translates a range of a system structure.
    pub(crate) fn system_span(&mut self, address: u64, bytes: usize, kind: AccessKind) -> Result<Span, Fault> {
        let address = Gva(if self.is_long_mode() { address } else { address & 0xffff_ffff });
        let width = self.core.linear_width();
        let last = address.offset(bytes as u64 - 1);
        if self.is_long_mode() && !(address.is_canonical(width) && last.is_canonical(width)) {
            return Err(Exception::gp0().into());
        }
        self.span(address, bytes, Access::implicit(kind))
    }

    /// Reads at most one page's worth of instruction bytes.
    pub(crate) fn fetch_bytes(&mut self, address: Gva, buffer: &mut [u8]) -> Result<(), Fault> {
        let access = self.explicit(AccessKind::Fetch);
        let at = self.translate(address, access)?;
        self.ground.mem.read_bytes(at, buffer);
        Ok(())
    }
}

/// The privilege of accesses at a privilege level (SDM 3A 4.6).
pub(crate) const fn privilege_of(cpl: u8) -> Privilege {
    if cpl == 3 { Privilege::User } else { Privilege::Supervisor }
}

/// Writes `bytes` bytes (1 to 8) at a linear address, explicitly at the current privilege level: for results that an
/// extension's instruction stores, such as VMREAD and VMPTRST. The address is already checked for segmentation.
///
/// # Errors
/// The page fault or the second-stage fault of the access; then nothing is written.
pub fn write_linear(
    core: &mut Core,
    regime: &Regime,
    ground: &mut Ground,
    address: Gva,
    value: u64,
    bytes: usize,
) -> Result<(), Fault> {
    let mut cx = Context { core, ground, regime: *regime, at: At::default(), effects: Effects::default() };
    let access = cx.explicit(AccessKind::Write);
    let span = cx.span(address, bytes, access)?;
    cx.store(&span, u128::from(value));
    Ok(())
}
