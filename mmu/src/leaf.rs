//! Installing one leaf entry of any MMU (`mmu_set_spte`, KVM v5.17), and what became of it.

use crate::change::Change;
use crate::memslot::{AddressSpace, HostAccess, HostPage, first_of};
use crate::page::{ShadowPage, Shadowed};
use crate::plant::Plant;
use crate::role::ACCESS_WRITE;
use crate::spte::{self, AdType, Leaf, Purpose, Writable};
use crate::state::{Ctx, NxHugePages};
use crate::stats::Stat;
use crate::unsync::Tables;
use sim_core::addr::{Gfn, Hfn, Hpa, Level};
use sim_core::event::Event;

/// What became of a fault (`RET_PF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// An entry was made or changed.
    Fixed,
    /// The entry was good already.
    Spurious,
    /// The access can't be let through: the instruction must be emulated.
    Emulate,
    /// Something moved meanwhile: the guest faults anew.
    Retry,
}

/// Whether a fault is a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Reading or fetching will do, or nobody waits for the entry.
    Read,
    /// It must be writable.
    Write,
}

/// A leaf entry to install.
#[derive(Clone, Copy, Debug)]
pub struct Install {
    /// Where.
    pub sptep: Hpa,
    /// The level of the table that it is in.
    pub level: Level,
    /// The guest frame; of a large page, any in it.
    pub gfn: Gfn,
    /// What backs the frame, none for an address without a slot.
    pub page: Option<HostPage>,
    /// What guest and role allow.
    pub access: u32,
    /// What the fault wants.
    pub wants: Wants,
    /// Whether shadowed leaf tables in the page may go out of sync for it.
    pub tables: Tables,
    /// Why it is made.
    pub purpose: Purpose,
}

impl Ctx<'_> {
    /// `mmu_set_spte`.
    pub fn install(&mut self, install: &Install) -> Installed {
        let Some(page) = install.page else { return self.install_mmio(install) };
        let Install { sptep, level, gfn, .. } = *install;
        let first = first_of(level, gfn);
        let frame = Hfn(page.hfn.0 & !(level.frames() - 1));
        let old = self.ground.mem.read_u64(sptep);
        let old = self.make_room(sptep, level, old, frame);
        let (new, write) = self.leaf_value(install, first, HostPage { hfn: frame, ..page }, old);
        self.note_shadowed(sptep, Shadowed { gfn: first, access: install.access });
        if install.purpose == Purpose::Access {
            self.ground.record(Event::SpteRequested { gfn: first, hfn: frame, level });
        }
        let protected = write == Writable::No && install.wants == Wants::Write;
        if new == old {
            return if protected { Installed::Emulate } else { Installed::Spurious };
        }
        self.write_leaf(sptep, first, level, old, new);
        // A synchronisation writes its entries without a word (`FNAME(sync_page)`).
        if install.tables != Tables::StayInSync {
            self.ground.record(Event::SpteSet { gfn: first, level, spte: new, sptep });
        }
        if protected { Installed::Emulate } else { Installed::Fixed }
    }

    /// What stands where the leaf goes and can't stay: a table of smaller pages, or a leaf of another frame.
    fn make_room(&mut self, sptep: Hpa, level: Level, old: u64, frame: Hfn) -> u64 {
        if !spte::is_present(old) {
            return old;
        }
        if !spte::is_leaf(old, level) {
            self.remove_table(sptep, old);
            self.flush_remote();
            return 0;
        }
        if spte::frame(old) != frame {
            self.drop_leaf(sptep);
            return 0;
        }
        old
    }

    /// Takes the table below an entry out; one of the TDP MMU dies with it.
    fn remove_table(&mut self, sptep: Hpa, old: u64) {
        let child = spte::frame(old).base();
        if self.vm.pages.at(child).is_some_and(ShadowPage::is_tdp) {
            self.ground.mem.write_u64(sptep, 0);
            self.tdp_free_tree(child);
            self.commit_zap();
        } else {
            self.unlink(sptep);
        }
    }

    /// The entry's value, and whether it may be writable now (`make_spte`).
    fn leaf_value(&mut self, install: &Install, first: Gfn, page: HostPage, old: u64) -> (u64, Writable) {
        let format = self.vm.config.tdp.spte_format();
        let role = self.vm.pages.at(install.sptep.page_base()).map(|page| page.role).unwrap_or_default();
        let wants_write = install.access & ACCESS_WRITE != 0 && page.access == HostAccess::Writable;
        // An entry that is writable already was asked about when it became so. One of MMIO counts as such if it has the bit
        // (`is_writable_pte` does not ask whether the entry is present).
        let asked = format.is_writable(old);
        let refused = wants_write && !asked && !self.try_to_unsync(install.gfn, install.tables);
        let write = if refused { Writable::No } else { Writable::Yes };
        let executable = self.vm.plants.has(Plant::NxHugePageExecutable);
        let value = format.leaf(&Leaf {
            frame: page.hfn,
            level: install.level,
            access: install.access,
            host: page.access,
            write,
            ad: AdType::of(role, self.vm.config.pml),
            nx_huge: if executable { NxHugePages::Off } else { self.vm.config.nx_huge },
            purpose: install.purpose,
        });
        // What was asked about before takes a short way, which up to v6.12 left the dirty bit out.
        let value = if asked && !self.vm.changes.has(Change::WritableIsDirty) { format.clean(value) } else { value };
        let forgets = self.vm.plants.has(Plant::NoDirtyMark);
        if format.is_writable(value)
            && !forgets
            && let Some(slot) = self.vm.slots.find_mut(AddressSpace::of_role(role), first)
        {
            slot.mark_dirty(first);
        }
        (value, write)
    }

    /// What an indirect entry is the shadow of (`kvm_mmu_page_set_translation`, and `kvm_mmu_page_set_access` where it stays
    /// as it is).
    fn note_shadowed(&mut self, sptep: Hpa, shadowed: Shadowed) {
        if let Some(page) = self.vm.pages.at_mut(sptep.page_base())
            && page.is_indirect()
        {
            page.shadowed.insert((sptep.page_offset() / 8) as u16, shadowed);
        }
    }

    /// Writes a present leaf and keeps what follows from it: the reverse map, and the flush that lost permissions owe
    /// (`mmu_spte_update`, `rmap_add`).
    fn write_leaf(&mut self, sptep: Hpa, gfn: Gfn, level: Level, old: u64, new: u64) {
        self.ground.mem.write_u64(sptep, new);
        self.vm.pages.map(gfn, sptep);
        if !spte::is_present(old) {
            self.vm.stats.count(match level {
                Level::L1 => Stat::Pages4k,
                Level::L2 => Stat::Pages2m,
                _ => Stat::Pages1g,
            });
        }
        if self.vm.config.tdp.spte_format().update_owes_flush(old, new) {
            self.flush_remote();
        }
    }
}
