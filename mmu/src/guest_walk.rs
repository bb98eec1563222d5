//! L0's software walk of a guest's tables (`FNAME(walk_addr_generic)`), for tables of 8-byte and 4-byte entries and for
//! L1's EPT tables. It is software: it shares nothing with the silicon's walker, and its rules come from the MMU's
//! stored CPU role.
//!
//! L2's own tables are walked through L1's nested tables (`nested_mmu` above `guest_mmu`), for emulation.
//!
//! Left out: protection keys.

use crate::change::Change;
use crate::entry_rules::reserved;
use crate::load::guest_pgd;
use crate::memslot::{AddressSpace, HostMemory, Memslot, Protection};
use crate::permission::{Attempt, faults};
use crate::plant::Plant;
use crate::role::{ACCESS_ALL, ACCESS_EXEC, ACCESS_USER, ACCESS_WRITE, ExtRole};
use crate::state::{Ctx, Mmu, Paging, VcpuMmu, View};
use serde::{Deserialize, Serialize};
use sim_core::addr::{ENTRY_FRAME_MASK, Gfn, Gpa, Hfn, Hpa, Level};
use sim_core::arch::control::Cr4;
use sim_core::arch::exception::PageFaultError;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;

/// What the walk saw of one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Table {
    /// The table's frame.
    pub gfn: Gfn,
    /// The entry's address.
    pub entry_at: Gpa,
    /// The entry.
    pub entry: u64,
    /// The AND of the permissions above the table (`pt_access`).
    pub access: u32,
}

/// A walk that reached memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GuestWalk {
    /// The level of the leaf entry.
    pub level: Level,
    /// The frame of the address, inside a large page too.
    pub gfn: Gfn,
    /// The AND of all permissions, without write if the leaf is clean (`pte_access`).
    pub access: u32,
    /// What was seen at each level, the table of level n at n - 1.
    pub tables: [Table; 5],
}

/// What the walk gives to an EPT violation's exit qualification (SDM 3C table 27-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EptViolation {
    /// The access: bit 0 a read, which stands for "user" in a walk, bit 1 a write, bit 2 a fetch.
    pub access: u32,
    /// What the entries permit, in the same bits.
    pub granted: u32,
}

impl EptViolation {
    fn new(attempt: Attempt, granted: u32) -> Self {
        let bit = |flag: PageFaultError, bit: u32| if attempt.error.contains(flag) { bit } else { 0 };
        let access = bit(PageFaultError::U, 1) | bit(PageFaultError::W, 2) | bit(PageFaultError::F, 4);
        Self { access, granted }
    }

    /// Bits 5:0 of the exit qualification.
    #[must_use]
    pub const fn qualification(self) -> u64 {
        (self.access | self.granted << 3) as u64
    }
}

/// A walk that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkFault {
    /// A page fault, with its error code.
    Page(PageFaultError),
    /// An EPT violation.
    EptViolation(EptViolation),
    /// An EPT misconfiguration.
    EptMisconfiguration,
}

/// A walk of L2's tables that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NestedFault {
    /// In L2's own tables.
    Own(WalkFault),
    /// In L1's nested tables, at a guest-physical address of L2.
    Stage(Gpa, WalkFault),
}

/// The bits of one entry format.
pub(crate) struct EntryFormat {
    pub(crate) bytes: usize,
    pub(crate) accessed: u64,
    pub(crate) dirty: u64,
}

impl EntryFormat {
    pub(crate) const fn of(mmu: &Mmu) -> Self {
        match mmu.paging {
            Paging::Paging32 => Self { bytes: 4, accessed: 1 << 5, dirty: 1 << 6 },
            // EPT has accessed and dirty bits only if the EPTP asks for them.
            Paging::Ept if mmu.cpu_role.base.ad_disabled() == 1 => Self { bytes: 8, accessed: 0, dirty: 0 },
            Paging::Ept => Self { bytes: 8, accessed: 1 << 8, dirty: 1 << 9 },
            _ => Self { bytes: 8, accessed: 1 << 5, dirty: 1 << 6 },
        }
    }
}

impl Ctx<'_> {
    /// Walks the tables that the MMU shadows, for an access with this error code, and sets accessed and dirty bits.
    ///
    /// # Errors
    /// What the guest is to be told.
    pub fn walk_guest(
        &mut self,
        mmu: &Mmu,
        view: &View,
        address: u64,
        attempt: Attempt,
    ) -> Result<GuestWalk, WalkFault> {
        self.walk_through(mmu, None, view, address, attempt).map_err(|fault| match fault {
            NestedFault::Own(fault) | NestedFault::Stage(_, fault) => fault,
        })
    }

    /// Walks L2's own tables, which lie at guest-physical addresses of L2, through L1's nested tables
    /// (`translate_nested_gpa`). The frame that is found is L2's too.
    ///
    /// # Errors
    /// Whose tables the walk failed in, and what is to be told.
    pub fn walk_nested(
        &mut self,
        vcpu: &VcpuMmu,
        view: &View,
        address: u64,
        attempt: Attempt,
    ) -> Result<GuestWalk, NestedFault> {
        let (own, stage) = (vcpu.nested_mmu.clone(), vcpu.guest_mmu.clone());
        self.walk_through(&own, Some(&stage), view, address, attempt)
    }

    /// Walks until no entry changes between being read and being marked (`retry_walk`). Each time there is a bit more set in
    /// the tables, so that it ends.
    fn walk_through(
        &mut self,
        mmu: &Mmu,
        stage: Option<&Mmu>,
        view: &View,
        address: u64,
        attempt: Attempt,
    ) -> Result<GuestWalk, NestedFault> {
        // Tables are read and their accessed bits set: a user's write, to nested tables (APM2 15.25.6).
        const TABLE: Attempt = Attempt { error: PageFaultError::U.union(PageFaultError::W), smap_suppressed: false };
        let own = NestedFault::Own;
        let start = self.walk_start(mmu, view, address);
        let told = self.told(mmu, view, attempt);
        let (mut level, mut table) = start.ok_or_else(|| own(not_present(mmu, attempt, told)))?;
        let format = EntryFormat::of(mmu);
        let mut access = ACCESS_ALL;
        let mut tables = [Table::default(); 5];
        loop {
            let mut entry_at = table.base().offset(index(mmu, level, address) * format.bytes as u64);
            if let Some(stage) = stage {
                let walk = self.walk_guest(stage, view, entry_at.0, TABLE);
                let walk = walk.map_err(|fault| NestedFault::Stage(entry_at, fault))?;
                entry_at = walk.gfn.base().offset(entry_at.page_offset());
            }
            let entry = match self.vm.slots.host(view.space(), entry_at) {
                Some(hpa) => self.ground.mem.read(hpa, format.bytes),
                None if mmu.paging == Paging::Ept => {
                    // KVM has not taken the missing table's permissions into account yet.
                    return Err(own(WalkFault::EptViolation(EptViolation::new(attempt, ept_permissions(access)))));
                }
                None => return Err(own(not_present(mmu, attempt, told))),
            };
            tables[usize::from(level.number()) - 1] = Table { gfn: table, entry_at, entry, access };
            if !entry_present(mmu, entry) {
                return Err(own(not_present(mmu, attempt, told)));
            }
            if reserved(self.vm.config.rules, mmu, level, entry) {
                return Err(own(match mmu.paging {
                    Paging::Ept => WalkFault::EptMisconfiguration,
                    _ => WalkFault::Page(told | PageFaultError::P | PageFaultError::RSVD),
                }));
            }
            access &= entry_access(mmu, entry);
            if is_leaf(mmu, level, entry) {
                break;
            }
            table = Gpa(entry & ENTRY_FRAME_MASK).frame();
            level = level.down().ok_or_else(|| own(not_present(mmu, attempt, told)))?;
        }
        if faults(mmu.paging, mmu.cpu_role, access, attempt) {
            return Err(own(match mmu.paging {
                Paging::Ept => WalkFault::EptViolation(EptViolation::new(attempt, self.permissions_told(access))),
                _ => WalkFault::Page(told | PageFaultError::P),
            }));
        }
        let write = attempt.error.contains(PageFaultError::W);
        if self.set_accessed_dirty(view.space(), &format, &mut tables, (level, write)) == Marked::Overtaken {
            return self.walk_through(mmu, stage, view, address, attempt);
        }
        let leaf = tables[usize::from(level.number()) - 1].entry;
        let clean = format.dirty != 0 && leaf & format.dirty == 0 && !write;
        if clean && !self.vm.plants.has(Plant::CleanIsWritable) {
            // A clean page is mapped read-only, so that the first write is seen and D set (protect_clean_gpte).
            access &= !ACCESS_WRITE;
        }
        Ok(GuestWalk { level, gfn: frame_of(mmu, level, leaf, address), access, tables })
    }

    /// Walks the tables that the guest's CR3 names although L0 does not shadow them (TDP): for emulation only, so no
    /// permission is checked and no bit set.
    #[must_use]
    pub fn walk_cpu_tables(&mut self, vcpu: &VcpuMmu, view: &View, address: u64) -> Option<Gpa> {
        let paging = if view.regs.cr4.contains(Cr4::PAE) { Paging::Paging64 } else { Paging::Paging32 };
        let mmu = Mmu { paging, ..vcpu.root_mmu.clone() };
        let (mut level, mut table) = self.walk_start(&mmu, view, address)?;
        let format = EntryFormat::of(&mmu);
        loop {
            let at = table.base().offset(index(&mmu, level, address) * format.bytes as u64);
            let entry = read_entry(self, view.space(), at, format.bytes).filter(|entry| entry_present(&mmu, *entry))?;
            if is_leaf(&mmu, level, entry) {
                return Some(frame_of(&mmu, level, entry, address).base().offset(address & 0xfff));
            }
            table = Gpa(entry & ENTRY_FRAME_MASK).frame();
            level = level.down()?;
        }
    }

    /// Where the walk begins: for PAE, the directory that a PDPTE register names.
    fn walk_start(&self, mmu: &Mmu, view: &View, address: u64) -> Option<(Level, Gfn)> {
        if mmu.paging != Paging::Paging32 && mmu.root_level == 3 {
            let gfn = self.present_pdpte(mmu.id, view, address >> 30 & 3)?;
            return Some((Level::L2, gfn));
        }
        let root = Gpa(guest_pgd(mmu.id, view) & ENTRY_FRAME_MASK).frame();
        Some((Level::from_number(mmu.root_level)?, root))
    }

    /// The error code without P and RSVD: W and U as given, F only if the mode reports fetches. Up to v5.13 the vCPU's own
    /// CR4.SMEP says so, which is L2's where L1's nested tables are walked.
    fn told(&self, mmu: &Mmu, view: &View, attempt: Attempt) -> PageFaultError {
        let by_role = self.vm.changes.has(Change::NpfFetchByRole);
        let of_vcpu = view.regs.cr4.contains(Cr4::SMEP);
        let smep = if by_role { mmu.cpu_role.ext.contains(ExtRole::CR4_SMEP) } else { of_vcpu };
        let kept = PageFaultError::W | PageFaultError::U;
        let fetches = mmu.cpu_role.base.efer_nx() == 1 || smep;
        attempt.error & if fetches { kept | PageFaultError::F } else { kept }
    }

    fn permissions_told(&self, access: u32) -> u32 {
        ept_permissions(if self.vm.plants.has(Plant::EptViolationWrongRights) { ACCESS_ALL } else { access })
    }

    /// `FNAME(update_accessed_dirty_bits)`, from the root down.
    fn set_accessed_dirty(
        &mut self,
        space: AddressSpace,
        format: &EntryFormat,
        tables: &mut [Table; 5],
        (leaf, write): (Level, bool),
    ) -> Marked {
        let first = usize::from(leaf.number()) - 1;
        for (below, table) in tables[first..].iter_mut().enumerate().rev() {
            let dirty = if below == 0 && write { format.dirty } else { 0 };
            let accessed = if self.vm.plants.has(Plant::NoAccessedFlag) { 0 } else { format.accessed };
            let updated = table.entry | accessed | dirty;
            if table.entry == 0 || updated == table.entry {
                continue;
            }
            // Tables in a read-only slot keep their bits as they are.
            let slot = self.vm.slots.find(space, table.entry_at.frame());
            let writable = slot.filter(|slot| slot.protection == Protection::ReadWrite);
            let places = writable
                .and_then(|slot| Some((self.place_of_entry(slot, table.entry_at)?, host_of(slot, table.entry_at)?)));
            let Some((place, host)) = places else { continue };
            if self.ground.mem.read(place, format.bytes) == table.entry {
                self.ground.mem.write(place, updated, format.bytes);
                table.entry = updated;
            } else if place == host {
                // The entry serves two levels of the walk, or the walk of an upper stage marked it.
                return Marked::Overtaken;
            } else {
                self.warn("a guest's tables are walked for ever, for its entry is elsewhere (FNAME(cmpxchg_gpte))");
            }
        }
        Marked::All
    }

    /// Where accessed and dirty bits of a guest's entry are set (`FNAME(cmpxchg_gpte)`). Before 2a8859f373b0 memory without
    /// struct pages was taken to lie at the offset of its mapping, which a driver sets to anything: 0 here.
    fn place_of_entry(&self, slot: &Memslot, at: Gpa) -> Option<Hpa> {
        if slot.memory == HostMemory::Device && !self.vm.changes.has(Change::EntryAtUserAddress) {
            return Some(Hfn(at.frame().0 - slot.gfn.0).base().offset(at.page_offset()));
        }
        host_of(slot, at)
    }
}

/// What came of marking the entries of a walk as used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marked {
    /// All that can be are.
    All,
    /// One is no longer what the walk read.
    Overtaken,
}

fn host_of(slot: &Memslot, at: Gpa) -> Option<Hpa> {
    slot.translate(at.frame()).map(|hfn| hfn.base().offset(at.page_offset()))
}

const fn index(mmu: &Mmu, level: Level, address: u64) -> u64 {
    match mmu.paging {
        Paging::Paging32 => (address >> if level.number() == 2 { 22 } else { 12 }) & 0x3ff,
        _ => level.index(address),
    }
}

pub(crate) const fn entry_present(mmu: &Mmu, entry: u64) -> bool {
    match mmu.paging {
        Paging::Ept => entry & 7 != 0,
        _ => entry & PRESENT != 0,
    }
}

/// An entry's permissions as an access mask. For EPT, "user" stands for readable.
pub(crate) fn entry_access(mmu: &Mmu, entry: u64) -> u32 {
    let mask = |bit: u64, access: u32| if entry & bit != 0 { access } else { 0 };
    match mmu.paging {
        Paging::Ept => mask(1, ACCESS_USER) | mask(2, ACCESS_WRITE) | mask(4, ACCESS_EXEC),
        Paging::Paging32 => mask(2, ACCESS_WRITE) | mask(4, ACCESS_USER) | ACCESS_EXEC,
        _ => mask(2, ACCESS_WRITE) | mask(4, ACCESS_USER) | if entry >> 63 == 1 { 0 } else { ACCESS_EXEC },
    }
}

fn is_leaf(mmu: &Mmu, level: Level, entry: u64) -> bool {
    let may_be_large = match mmu.paging {
        Paging::Paging32 => level == Level::L2 && mmu.cpu_role.ext.contains(ExtRole::CR4_PSE),
        _ => matches!(level, Level::L2 | Level::L3),
    };
    level == Level::L1 || (may_be_large && entry & LARGE != 0)
}

fn frame_of(mmu: &Mmu, level: Level, leaf: u64, address: u64) -> Gfn {
    if mmu.paging == Paging::Paging32 && level == Level::L2 {
        let high = (leaf >> 13 & 0xf) << 32;
        return Gpa(high | leaf & 0xffc0_0000 | address & 0x003f_ffff).frame();
    }
    let span = level.bytes();
    Gpa(leaf & ENTRY_FRAME_MASK & !(span - 1) | address & (span - 1)).frame()
}

fn not_present(mmu: &Mmu, attempt: Attempt, told: PageFaultError) -> WalkFault {
    match mmu.paging {
        Paging::Ept => WalkFault::EptViolation(EptViolation::new(attempt, 0)),
        _ => WalkFault::Page(told),
    }
}

const fn ept_permissions(access: u32) -> u32 {
    (if access & ACCESS_USER != 0 { 1 } else { 0 })
        | (if access & ACCESS_WRITE != 0 { 2 } else { 0 })
        | if access & ACCESS_EXEC != 0 { 4 } else { 0 }
}

/// Where an entry of a shadow page's guest table is: quadrants split a table of 4-byte entries.
#[must_use]
pub(crate) fn gpte_at(gfn: Gfn, role: crate::role::PageRole, index: u64) -> (Gpa, usize) {
    if role.has_4_byte_gpte() == 1 {
        (gfn.base().offset((u64::from(role.quadrant()) * 512 + index) * 4), 4)
    } else {
        (gfn.base().offset(index * 8), 8)
    }
}

/// Reads a guest entry through the slots, if one backs it.
pub(crate) fn read_entry(ctx: &Ctx<'_>, space: AddressSpace, at: Gpa, bytes: usize) -> Option<u64> {
    ctx.vm.slots.host(space, at).map(|hpa: Hpa| ctx.ground.mem.read(hpa, bytes))
}
