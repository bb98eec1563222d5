//! Memslots: which guest frames are backed by which host frames (`struct kvm_memory_slot`, KVM v5.17), one set an
//! address space (SMM has its own), with what KVM keeps a slot: the dirty bitmap, where large pages are not allowed
//! (`lpage_info`), and which frames may not be written (`gfn_track`).
//!
//! Userspace addresses do not exist: a slot names host frames directly, and what the host does with single pages behind
//! a slot (moves them, makes them read-only, takes them away) is kept with the slot.

use crate::role::PageRole;
use crate::state::Smm;
use serde::{Deserialize, Serialize};
use sim_core::addr::{Gfn, Gpa, Hfn, Hpa, Level};
use std::collections::{BTreeMap, BTreeSet};

/// Which set of slots a vCPU sees (`as_id`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum AddressSpace {
    /// Outside SMM.
    #[default]
    Normal,
    /// In SMM.
    Smm,
}

impl AddressSpace {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Normal, Self::Smm];

    /// The address space of a vCPU (`kvm_arch_vcpu_memslots_id`).
    #[must_use]
    pub const fn of(smm: Smm) -> Self {
        match smm {
            Smm::Outside => Self::Normal,
            Smm::Inside => Self::Smm,
        }
    }

    /// The address space of a shadow page (`kvm_memslots_for_spte_role`).
    #[must_use]
    pub const fn of_role(role: PageRole) -> Self {
        if role.smm() == 0 { Self::Normal } else { Self::Smm }
    }

    /// Its number.
    #[must_use]
    pub const fn id(self) -> u8 {
        self as u8
    }
}

/// Who may see a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Visibility {
    /// Made by userspace: L1 and L2 see it.
    Public,
    /// Internal to KVM (the APIC-access page, the TSS and identity-map pages): never visible to L2
    /// (KVM 3a2936dedd20).
    Private,
}

/// Whether the guest may write a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protection {
    /// Readable and writable.
    ReadWrite,
    /// `KVM_MEM_READONLY`: writes exit as MMIO.
    ReadOnly,
}

/// What sort of memory the host has behind a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HostMemory {
    /// Pages of its own.
    #[default]
    Pages,
    /// Frames without struct pages, as a device's memory is mapped (`VM_PFNMAP`).
    Device,
}

/// Whether writes to a slot are recorded (`KVM_MEM_LOG_DIRTY_PAGES`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DirtyLogging {
    /// They are not.
    #[default]
    Off,
    /// They are.
    On,
}

/// Whether the host lets a page be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HostAccess {
    /// It does.
    #[default]
    Writable,
    /// It does not: a read-only slot, or a page that the host shares (KSM).
    ReadOnly,
}

/// What backs one guest frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostPage {
    /// The host frame.
    pub hfn: Hfn,
    /// Whether the host lets it be written.
    pub access: HostAccess,
}

/// One memslot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Memslot {
    /// Its name in the scenario.
    pub name: String,
    /// Its first guest frame.
    pub gfn: Gfn,
    /// Its size in 4 KiB frames.
    pub frames: u64,
    /// The host frame behind the first guest frame; the rest follow.
    pub hfn: Hfn,
    /// Who may see it.
    pub visibility: Visibility,
    /// Whether the guest may write it.
    pub protection: Protection,
    /// What the host has behind it.
    pub memory: HostMemory,
    /// Whether writes are recorded.
    pub logging: DirtyLogging,
    /// Frames written since they were last asked for (`dirty_bitmap`).
    pub dirty: BTreeSet<Gfn>,
    /// Pages that the host has moved or protected since the slot was made.
    pub moved: BTreeMap<Gfn, HostPage>,
    /// How many reasons forbid a large page, by level and first frame (`lpage_info.disallow_lpage`).
    pub no_large: BTreeMap<(Level, Gfn), u32>,
    /// How many shadow pages above level 1 forbid writing a frame (`gfn_track`, write mode).
    pub tracked: BTreeMap<Gfn, u32>,
}

impl Memslot {
    /// A public, writable slot without dirty logging.
    #[must_use]
    pub fn new(name: &str, gfn: Gfn, frames: u64, hfn: Hfn) -> Self {
        Self {
            name: name.to_owned(),
            gfn,
            frames,
            hfn,
            visibility: Visibility::Public,
            protection: Protection::ReadWrite,
            memory: HostMemory::Pages,
            logging: DirtyLogging::Off,
            dirty: BTreeSet::new(),
            moved: BTreeMap::new(),
            no_large: BTreeMap::new(),
            tracked: BTreeMap::new(),
        }
    }

    /// Whether a guest frame is inside the slot.
    #[must_use]
    pub const fn holds(&self, gfn: Gfn) -> bool {
        match gfn.0.checked_sub(self.gfn.0) {
            Some(offset) => offset < self.frames,
            None => false,
        }
    }

    /// The host frame behind a guest frame, if the slot has it.
    #[must_use]
    pub fn translate(&self, gfn: Gfn) -> Option<Hfn> {
        self.page(gfn).map(|page| page.hfn)
    }

    /// What backs a guest frame, if the slot has it (`gfn_to_pfn`).
    #[must_use]
    pub fn page(&self, gfn: Gfn) -> Option<HostPage> {
        if !self.holds(gfn) {
            return None;
        }
        let access = match self.protection {
            Protection::ReadWrite => HostAccess::Writable,
            Protection::ReadOnly => HostAccess::ReadOnly,
        };
        let own = HostPage { hfn: self.hfn.offset(gfn.0 - self.gfn.0), access };
        Some(self.moved.get(&gfn).map_or(own, |page| match access {
            HostAccess::Writable => *page,
            HostAccess::ReadOnly => HostPage { access, ..*page },
        }))
    }

    /// Counts one more reason against large pages around a frame (`kvm_mmu_gfn_disallow_lpage`).
    pub fn disallow_large(&mut self, gfn: Gfn) {
        for level in [Level::L2, Level::L3] {
            *self.no_large.entry((level, first_of(level, gfn))).or_default() += 1;
        }
    }

    /// Takes one reason back (`kvm_mmu_gfn_allow_lpage`). False if there was none, which KVM warns about.
    pub fn allow_large(&mut self, gfn: Gfn) -> bool {
        let mut balanced = true;
        for level in [Level::L2, Level::L3] {
            let key = (level, first_of(level, gfn));
            match self.no_large.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                Some(_) => {
                    self.no_large.remove(&key);
                }
                None => balanced = false,
            }
        }
        balanced
    }

    /// Whether a large page of this level may cover a frame: the slot reaches that far on both sides, host and guest
    /// addresses are aligned alike, and nothing speaks against it (`lpage_info`, `kvm_alloc_memslot_metadata`).
    #[must_use]
    pub fn allows_large(&self, level: Level, gfn: Gfn) -> bool {
        let (first, frames) = (first_of(level, gfn), level.frames());
        let inside = first.0 >= self.gfn.0 && first.0 + frames <= self.gfn.0 + self.frames;
        let aligned = (self.hfn.0 ^ self.gfn.0) & (frames - 1) == 0;
        inside && aligned && !self.no_large.contains_key(&(level, first))
    }

    /// Records a write, if the slot logs (`mark_page_dirty_in_slot`).
    pub fn mark_dirty(&mut self, gfn: Gfn) {
        if self.logging == DirtyLogging::On {
            self.dirty.insert(gfn);
        }
    }
}

/// The first frame of the page of a level that a frame is in.
#[must_use]
pub const fn first_of(level: Level, gfn: Gfn) -> Gfn {
    Gfn(gfn.0 & !(level.frames() - 1))
}

/// Whether the slots are being changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Update {
    /// They are not.
    #[default]
    Idle,
    /// The new slots are installed, and vCPUs may still use the old (`KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS`).
    InProgress,
}

/// Two slots of one address space that hold the same guest frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("memslot {slot} overlaps {other}")]
pub struct Overlap {
    /// The slot that was to be added.
    pub slot: String,
    /// The slot that is there.
    pub other: String,
}

/// A VM's memslots, none of an address space overlapping, by first guest frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Memslots {
    slots: [Vec<Memslot>; 2],
    /// Counts the updates of each address space, in steps of their number (`generation`, without the in-progress bit).
    updates: [u64; 2],
    /// Whether an update is under way.
    pub update: Update,
}

impl Memslots {
    /// Every slot of an address space, by first guest frame.
    #[must_use]
    pub fn all(&self, space: AddressSpace) -> &[Memslot] {
        &self.slots[space as usize]
    }

    /// Every slot of an address space, to change.
    pub fn all_mut(&mut self, space: AddressSpace) -> &mut [Memslot] {
        &mut self.slots[space as usize]
    }

    /// Whether any slot logs (`cpu_dirty_logging_count`).
    #[must_use]
    pub fn logging(&self) -> DirtyLogging {
        let logs = |slot: &Memslot| slot.logging == DirtyLogging::On;
        let any = AddressSpace::ALL.into_iter().any(|space| self.all(space).iter().any(logs));
        if any { DirtyLogging::On } else { DirtyLogging::Off }
    }

    /// The slot that holds a guest frame.
    #[must_use]
    pub fn find(&self, space: AddressSpace, gfn: Gfn) -> Option<&Memslot> {
        self.all(space).iter().find(|slot| slot.holds(gfn))
    }

    /// The slot that holds a guest frame, to change.
    pub fn find_mut(&mut self, space: AddressSpace, gfn: Gfn) -> Option<&mut Memslot> {
        self.all_mut(space).iter_mut().find(|slot| slot.holds(gfn))
    }

    /// The slot with this name.
    #[must_use]
    pub fn named(&self, space: AddressSpace, name: &str) -> Option<&Memslot> {
        self.all(space).iter().find(|slot| slot.name == name)
    }

    /// Adds a slot.
    ///
    /// # Errors
    /// If it overlaps another of the address space; nothing has changed then.
    pub fn add(&mut self, space: AddressSpace, slot: Memslot) -> Result<(), Overlap> {
        let slots = &mut self.slots[space as usize];
        let end = |slot: &Memslot| slot.gfn.0.saturating_add(slot.frames);
        if let Some(other) = slots.iter().find(|other| other.gfn.0 < end(&slot) && slot.gfn.0 < end(other)) {
            return Err(Overlap { slot: slot.name, other: other.name.clone() });
        }
        let at = slots.partition_point(|other| other.gfn < slot.gfn);
        slots.insert(at, slot);
        Ok(())
    }

    /// Removes the slot with this name.
    pub fn remove(&mut self, space: AddressSpace, name: &str) -> Option<Memslot> {
        let at = self.all(space).iter().position(|slot| slot.name == name)?;
        Some(self.slots[space as usize].remove(at))
    }

    /// The host address of a guest address, if a slot backs it.
    #[must_use]
    pub fn host(&self, space: AddressSpace, gpa: Gpa) -> Option<Hpa> {
        let frame = self.find(space, gpa.frame())?.translate(gpa.frame())?;
        Some(frame.base().offset(gpa.page_offset()))
    }

    /// The guest frames that a host frame is behind, in both address spaces (`kvm_handle_hva_range` walks userspace
    /// addresses for this).
    #[must_use]
    pub fn frames_of(&self, hfn: Hfn) -> Vec<(AddressSpace, Gfn)> {
        let of_slot = |space: AddressSpace, slot: &Memslot| -> Vec<(AddressSpace, Gfn)> {
            let own = hfn.0.checked_sub(slot.hfn.0).filter(|offset| *offset < slot.frames);
            let own = own.map(|offset| slot.gfn.offset(offset)).filter(|gfn| !slot.moved.contains_key(gfn));
            let moved = slot.moved.iter().filter(|(_, page)| page.hfn == hfn).map(|(gfn, _)| *gfn);
            own.into_iter().chain(moved).map(|gfn| (space, gfn)).collect()
        };
        let in_space = |space| self.all(space).iter().flat_map(move |slot| of_slot(space, slot));
        AddressSpace::ALL.into_iter().flat_map(in_space).collect()
    }

    /// The new slots become visible, and what vCPUs cached of the old is stale (`install_new_memslots`).
    pub fn begin_update(&mut self) {
        self.update = Update::InProgress;
    }

    /// The update of these address spaces is done.
    pub fn end_update(&mut self, spaces: &[AddressSpace]) {
        self.update = Update::Idle;
        for space in spaces {
            self.updates[*space as usize] += AddressSpace::ALL.len() as u64;
        }
    }

    /// The generation of an address space's slots: no two spaces ever share one.
    #[must_use]
    pub const fn generation(&self, space: AddressSpace) -> u64 {
        self.updates[space as usize] + space as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lpage_info`: a slot whose ends or whose host frames are not aligned allows no large page there.
    #[test]
    fn large_pages_need_room_and_alignment() {
        let slot = |gfn, frames, hfn| Memslot::new("memory", Gfn(gfn), frames, Hfn(hfn));
        for (slot, gfn, allowed) in [
            (slot(0, 1024, 0x200), 0x1ff, true),
            (slot(0, 1024, 0x201), 0x1ff, false),
            (slot(1, 1024, 1), 0x1ff, false),
            (slot(1, 1024, 1), 0x200, true),
            (slot(0, 1000, 0x400), 0x3ff, false),
        ] {
            assert_eq!(slot.allows_large(Level::L2, Gfn(gfn)), allowed, "{slot:?} {gfn:#x}");
        }
    }

    /// KVM warns when more reasons are taken back than were given.
    #[test]
    fn reasons_against_large_pages_are_counted() {
        let mut slot = Memslot::new("memory", Gfn(0), 1024, Hfn(0x200));
        slot.disallow_large(Gfn(5));
        slot.disallow_large(Gfn(7));
        assert!(slot.allow_large(Gfn(5)) && !slot.allows_large(Level::L2, Gfn(0)));
        assert!(slot.allow_large(Gfn(7)) && slot.allows_large(Level::L2, Gfn(0)));
        assert!(!slot.allow_large(Gfn(7)));
    }

    /// A page that the host moved is found at its new frame only, and a read-only slot stays read-only.
    #[test]
    fn moved_pages_are_found_where_they_are() {
        let mut slots = Memslots::default();
        let mut slot = Memslot::new("memory", Gfn(0x10), 4, Hfn(0x100));
        slot.protection = Protection::ReadOnly;
        slot.moved.insert(Gfn(0x12), HostPage { hfn: Hfn(0x500), access: HostAccess::Writable });
        slots.add(AddressSpace::Smm, slot).expect("room");
        assert_eq!(slots.frames_of(Hfn(0x500)), [(AddressSpace::Smm, Gfn(0x12))]);
        assert_eq!(slots.frames_of(Hfn(0x102)), []);
        let page = slots.find(AddressSpace::Smm, Gfn(0x12)).and_then(|slot| slot.page(Gfn(0x12)));
        assert_eq!(page, Some(HostPage { hfn: Hfn(0x500), access: HostAccess::ReadOnly }));
        assert_eq!(slots.find(AddressSpace::Normal, Gfn(0x12)), None);
    }
}
