//! A walk of a guest's tables as the manuals tell it, one bit at a time: SDM 3A 4.3 to 4.8 (32-bit, PAE, 4-level and
//! 5-level paging, access rights, accessed and dirty flags), SDM 3C 28.3.2 and 28.3.3 (EPT).
//!
//! Where KVM knowingly differs from the manual, the statement says so in its place.

use crate::support::{self, F, Machine, R, U, W};
use crate::{Case, Format};
use mmu::cpuid::GuestFeatures;
use mmu::entry_rules::{ExecuteOnly, UpperGlobal};
use mmu::guest_walk::WalkFault;
use mmu::permission::Attempt;
use mmu::state::RoleRegs;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::PageFaultError as Error;

/// What a walk comes to: the guest-physical frame, the rights (read is user under EPT), and the entries written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) gfn: u64,
    pub(crate) level: u32,
    pub(crate) write: bool,
    pub(crate) user: bool,
    pub(crate) execute: bool,
    pub(crate) written: Vec<(u64, u64)>,
}

/// SDM 3A 4.3 to 4.8 and SDM 3C 28.3.2, 28.3.3.
pub(crate) struct Manual<'a> {
    pub(crate) case: &'a Case,
    pub(crate) machine: &'a Machine,
}

impl Manual<'_> {
    fn ept(&self) -> bool {
        self.case.format == Format::Ept
    }

    fn is_present(&self, entry: u64) -> bool {
        if self.ept() { (0..3).any(|bit| entry >> bit & 1 == 1) } else { entry & 1 == 1 }
    }

    /// Whether a set bit is a reserved one: SDM 3A tables 4-4 to 4-20, SDM 3C tables 28-1 to 28-6, APM2 5.3.3.
    fn is_reserved(&self, level: u32, large: bool, bit: u32) -> bool {
        let case = self.case;
        let nxe = case.regs.efer.contains(Efer::NXE);
        let page_size = 12 + 9 * (level - 1);
        let physical = bit >= case.cpuid.maxphyaddr;
        let offset_of_large = large && (12..page_size).contains(&bit);
        match case.format {
            // Table 4-4 with M = 36, which is what KVM takes M to be whatever the CPUID says.
            Format::Bits32 => large && (17..=21).contains(&bit),
            Format::Ept => {
                (bit < 52 && physical)
                    || offset_of_large
                    || (level >= 4 && (3..=7).contains(&bit))
                    || (matches!(level, 2 | 3) && !large && (3..=6).contains(&bit))
            }
            Format::Pae if bit == 63 => !nxe,
            Format::Pae => physical || (offset_of_large && bit != 12),
            Format::Four | Format::Five => {
                (bit < 52 && physical)
                    || (bit == 63 && !nxe)
                    || (offset_of_large && bit != 12)
                    || (level >= 4 && (bit == 7 || (bit == 8 && case.rules.upper_global == UpperGlobal::Reserved)))
                    || (level == 3 && bit == 7 && !case.cpuid.features.contains(GuestFeatures::PAGE_1G))
            }
        }
    }

    /// A reserved bit, or a combination that EPT does not have (SDM 3C 28.3.3.1).
    fn is_malformed(&self, level: u32, entry: u64) -> bool {
        let large = level > 1 && self.case.has_large(level) && entry >> 7 & 1 == 1;
        let reserved = (0..64).any(|bit| entry >> bit & 1 == 1 && self.is_reserved(level, large, bit));
        if !self.ept() {
            return reserved;
        }
        let (read, write, execute) = (entry & 1 == 1, entry >> 1 & 1 == 1, entry >> 2 & 1 == 1);
        let lone_execute = execute && !read && !write && self.case.rules.execute_only == ExecuteOnly::Reserved;
        let kind_exists = matches!(entry >> 3 & 7, 0 | 1 | 4 | 5 | 6);
        reserved || (write && !read) || lone_execute || ((level == 1 || large) && !kind_exists)
    }

    /// The error code of a page fault (SDM 3A 4.7), of which KVM asks only for NXE, not for PAE with it.
    fn page_fault(&self, more: Error) -> WalkFault {
        let RoleRegs { cr4, efer, .. } = self.case.regs;
        let told = if efer.contains(Efer::NXE) || cr4.contains(Cr4::SMEP) { W | U | F } else { W | U };
        WalkFault::Page(self.case.attempt.error & told | more)
    }

    /// Bits 5:0 of the exit qualification (SDM 3C table 27-7).
    fn violation(&self, granted: u64) -> Result<Reached, Told> {
        let error = self.case.attempt.error;
        let bit = |flag: Error, bit: u64| u64::from(error.contains(flag)) << bit;
        Err(Told::Violation(bit(U, 0) | bit(W, 1) | bit(F, 2) | granted << 3))
    }

    /// SDM 3A 4.6.1.
    fn allows(&self, write: bool, user: bool, execute: bool) -> bool {
        let Case { regs, attempt: Attempt { error, smap_suppressed }, .. } = *self.case;
        let (wp, nxe) = (regs.cr0.contains(Cr0::WP), regs.efer.contains(Efer::NXE));
        let (smep, smap) = (regs.cr4.contains(Cr4::SMEP), regs.cr4.contains(Cr4::SMAP) && !smap_suppressed);
        let (writes, as_user, fetches) = (error.contains(W), error.contains(U), error.contains(F));
        if self.ept() {
            return (!as_user || user) && (!writes || write) && (!fetches || execute);
        }
        match (as_user, fetches) {
            (true, true) => user && (execute || !nxe),
            (true, false) => user && (!writes || write),
            (false, true) => (execute || !nxe) && !(smep && user),
            (false, false) => (!smap || !user) && (!writes || write || !wp),
        }
    }

    /// The whole walk. Nothing is written; what would be is told.
    pub(crate) fn walk(&self) -> Result<Reached, Told> {
        let case = self.case;
        let (accessed, dirty) = match (case.format, case.ept_ad) {
            (Format::Ept, true) => (1 << 8, 1 << 9),
            (Format::Ept, false) => (0, 0),
            _ => (1 << 5, 1 << 6),
        };
        let mut level = case.levels();
        let mut table = case.table(level);
        let (mut write, mut user, mut execute) = (true, true, true);
        let mut seen = Vec::new();
        loop {
            let at = case.entry_at(table, level);
            let granted = u64::from(user) | u64::from(write) << 1 | u64::from(execute) << 2;
            // Nothing is behind the address: KVM tells what hardware would tell of an entry that is not present.
            if at >> 12 >= support::RAM_FRAMES {
                return if self.ept() { self.violation(granted) } else { Err(self.page_fault(R).into()) };
            }
            let entry = self.machine.read(at, case.bytes());
            if !self.is_present(entry) {
                return if self.ept() { self.violation(0) } else { Err(self.page_fault(R).into()) };
            }
            if self.is_malformed(level, entry) {
                return Err(if self.ept() {
                    Told::Misconfiguration
                } else {
                    self.page_fault(Error::P | Error::RSVD).into()
                });
            }
            seen.push((at, entry));
            write &= entry >> 1 & 1 == 1;
            user &= entry >> if self.ept() { 0 } else { 2 } & 1 == 1;
            execute &= if self.ept() { entry >> 2 & 1 == 1 } else { entry >> 63 == 0 };
            if level == 1 || (case.has_large(level) && entry >> 7 & 1 == 1) {
                break;
            }
            table = (12..52).filter(|bit| entry >> bit & 1 == 1).map(|bit| 1 << bit).sum();
            level -= 1;
        }
        if !self.allows(write, user, execute) {
            let granted = u64::from(user) | u64::from(write) << 1 | u64::from(execute) << 2;
            return if self.ept() { self.violation(granted) } else { Err(self.page_fault(Error::P).into()) };
        }
        let leaf = seen.len() - 1;
        let flags = |index| accessed | if index == leaf && case.attempt.error.contains(W) { dirty } else { 0 };
        let updated = |(index, (at, entry)): (usize, &(u64, u64))| (*at, entry | flags(index));
        let written: Vec<_> = seen.iter().enumerate().map(updated).collect();
        let clean = dirty != 0 && written[leaf].1 & dirty == 0;
        Ok(Reached { gfn: self.frame(level, seen[leaf].1), level, write: write && !clean, user, execute, written })
    }

    /// SDM 3A figures 4-2 to 4-11: the page's bits from the entry, the offset's from the address.
    fn frame(&self, level: u32, leaf: u64) -> u64 {
        let case = self.case;
        let size = if case.format == Format::Bits32 && level == 2 { 22 } else { 12 + 9 * (level - 1) };
        let top = if case.format == Format::Bits32 { 32 } else { 52 };
        let own = |bit: &u32| if *bit < size { case.address } else { leaf } >> bit & 1 == 1;
        let mut gpa: u64 = (12..top).filter(own).map(|bit| 1u64 << bit).sum();
        if size == 22 {
            // Bits 16:13 of the entry are bits 35:32 of the address.
            gpa |= (13..17).filter(|bit| leaf >> bit & 1 == 1).map(|bit| 1u64 << (bit + 19)).sum::<u64>();
        }
        gpa >> 12
    }
}

/// What the guest is told of a walk that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Page(Error),
    Violation(u64),
    Misconfiguration,
}

impl From<WalkFault> for Told {
    fn from(fault: WalkFault) -> Self {
        match fault {
            WalkFault::Page(error) => Self::Page(error),
            WalkFault::EptViolation(violation) => Self::Violation(violation.qualification()),
            WalkFault::EptMisconfiguration => Self::Misconfiguration,
        }
    }
}
