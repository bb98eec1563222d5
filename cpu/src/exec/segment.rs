//! Segment descriptors, and loading them (SDM 3A 3.4.5, 5.4 to 5.6; MOV, LLDT and LTR in SDM 2).
//!
//! The processor sets the accessed bit in memory when it
//! loads a code or data segment that lacks it (SDM 3A 3.4.5.1).

use crate::access::kind;
use crate::exec::Fault;
use crate::exec::context::Context;
use iced_x86::Register;
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::{Rights, Segment, TableRegister};

/// The table-indicator bit of a selector: LDT instead of GDT.
const TABLE_INDICATOR: u16 = 1 << 2;
/// The index and table indicator: what an error code keeps of a selector.
const SELECTOR_ERROR: u16 = 0xfffc;

/// A descriptor as it stands in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Its linear address.
    pub(crate) at: u64,
    /// The low quadword.
    pub(crate) raw: u64,
}

impl Descriptor {
    /// The access rights, in the layout of [`Rights`].
    pub(crate) const fn rights(&self) -> Rights {
        Rights(((self.raw >> 40) & 0xf0ff) as u32)
    }

    /// The base, 32 bits.
    const fn base(&self) -> u64 {
        ((self.raw >> 16) & 0xff_ffff) | ((self.raw >> 56) << 24)
    }

    /// The limit in bytes.
    const fn limit(&self) -> u32 {
        let limit = ((self.raw & 0xffff) | ((self.raw >> 32) & 0xf_0000)) as u32;
        if self.rights().is_granular() { (limit << 12) | 0xfff } else { limit }
    }

    /// The segment that the descriptor describes.
    pub(crate) const fn segment(&self, selector: u16) -> Segment {
        Segment { selector, base: self.base(), limit: self.limit(), rights: self.rights() }
    }

    /// Whether it is a code segment.
    pub(crate) const fn is_code(&self) -> bool {
        self.rights().is_code_or_data() && self.rights().kind() & kind::CODE != 0
    }

    /// Whether it is a conforming code segment.
    pub(crate) const fn is_conforming(&self) -> bool {
        self.is_code() && self.rights().kind() & kind::CONFORMING != 0
    }

    /// Whether it is writable data.
    pub(crate) const fn is_writable_data(&self) -> bool {
        let rights = self.rights();
        rights.is_code_or_data() && rights.kind() & (kind::CODE | kind::WRITABLE) == kind::WRITABLE
    }

    /// Whether data can be read through it.
    pub(crate) const fn is_readable(&self) -> bool {
        let rights = self.rights();
        rights.is_code_or_data() && (rights.kind() & kind::CODE == 0 || rights.kind() & kind::WRITABLE != 0)
    }
}

/// The requested privilege level of a selector.
pub(crate) const fn rpl(selector: u16) -> u8 {
    (selector & 3) as u8
}

/// Whether a selector is null (index 0 of the GDT).
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & SELECTOR_ERROR == 0
}

/// A segment register that holds a null selector; it keeps a privilege level, which for SS is CPL.
pub(crate) const fn null_segment(selector: u16, dpl: u8) -> Segment {
    Segment { selector, base: 0, limit: 0, rights: Rights(Rights::UNUSABLE.0 | ((dpl as u32) << 5)) }
}

/// An exception whose error code names a selector.
pub(crate) const fn selector_fault(vector: Vector, selector: u16) -> Exception {
    Exception::with_error(vector, (selector & SELECTOR_ERROR) as u32)
}

/// #GP with a selector.
pub(crate) const fn gp(selector: u16) -> Exception {
    selector_fault(Vector::GeneralProtection, selector)
}

impl Context<'_> {
    /// Reads the descriptor of a selector; `missing` is the fault if it is beyond its table.
    pub(crate) fn descriptor(&mut self, selector: u16, missing: Exception) -> Result<Descriptor, Fault> {
        let table = if selector & TABLE_INDICATOR == 0 { self.core.gdtr } else { self.ldt(missing)? };
        let offset = selector & 0xfff8;
        if u32::from(offset) + 7 > u32::from(table.limit) {
            return Err(missing.into());
        }
        let at = table.base.wrapping_add(u64::from(offset));
        Ok(Descriptor { at, raw: self.read_system(at, 8)? })
    }

    fn ldt(&self, missing: Exception) -> Result<TableRegister, Fault> {
        let ldtr = self.core.segments.ldtr;
        if ldtr.rights.is_unusable() {
            return Err(missing.into());
        }
        Ok(TableRegister { base: ldtr.base, limit: u16::try_from(ldtr.limit).unwrap_or(u16::MAX) })
    }

    /// Sets bits of a descriptor's type in memory if they are clear, and returns the descriptor as it is then.
    pub(crate) fn mark(&mut self, descriptor: Descriptor, bits: u32) -> Result<Descriptor, Fault> {
        let raw = descriptor.raw | (u64::from(bits) << 40);
        if raw != descriptor.raw {
            let span = self.system_span(descriptor.at.wrapping_add(5), 1, AccessKind::Write)?;
            self.store(&span, u128::from((raw >> 40) as u8));
        }
        Ok(Descriptor { raw, ..descriptor })
    }

    /// Marks a code or data segment accessed.
    pub(crate) fn mark_accessed(&mut self, descriptor: Descriptor) -> Result<Descriptor, Fault> {
        self.mark(descriptor, kind::ACCESSED)
    }

    /// Loads ES, SS, DS, FS or GS as MOV and POP do (SDM 2 MOV).
    pub(crate) fn load_segment(&mut self, name: Register, selector: u16) -> Result<(), Fault> {
        let segment = if self.has_paragraphs() {
            real_mode_segment(self.segment(name), selector)
        } else if name == Register::SS {
            self.stack_segment(selector)?
        } else {
            self.data_segment(selector)?
        };
        *self.segment_mut(name) = segment;
        Ok(())
    }

    fn stack_segment(&mut self, selector: u16) -> Result<Segment, Fault> {
        let cpl = self.core.cpl();
        if is_null(selector) {
            let allowed = self.is_64bit() && cpl < 3 && rpl(selector) == cpl;
            return if allowed { Ok(null_segment(selector, cpl)) } else { Err(Exception::gp0().into()) };
        }
        let descriptor = self.descriptor(selector, gp(selector))?;
        let fits = descriptor.is_writable_data() && descriptor.rights().dpl() == cpl && rpl(selector) == cpl;
        if !fits {
            return Err(gp(selector).into());
        }
        if !descriptor.rights().is_present() {
            return Err(selector_fault(Vector::StackFault, selector).into());
        }
        Ok(self.mark_accessed(descriptor)?.segment(selector))
    }

    fn data_segment(&mut self, selector: u16) -> Result<Segment, Fault> {
        if is_null(selector) {
            return Ok(null_segment(selector, 0));
        }
        let descriptor = self.descriptor(selector, gp(selector))?;
        let floor = self.core.cpl().max(rpl(selector));
        let privileged = descriptor.is_conforming() || floor <= descriptor.rights().dpl();
        if !descriptor.is_readable() || !privileged {
            return Err(gp(selector).into());
        }
        if !descriptor.rights().is_present() {
            return Err(selector_fault(Vector::SegmentNotPresent, selector).into());
        }
        Ok(self.mark_accessed(descriptor)?.segment(selector))
    }
}

/// Real mode: the base is 16 times the selector, and limit and rights stay (SDM 3A 20.1.1).
pub(crate) const fn real_mode_segment(old: Segment, selector: u16) -> Segment {
    Segment { selector, base: (selector as u64) << 4, ..old }
}
