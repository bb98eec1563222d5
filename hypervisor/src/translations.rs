//! I17: what a processor's translation caches still say for the guest that has just run on it, against the memory that the
//! VM has now (kvm-mmu.md A.12).
//!
//! The guest's own tables may have changed without an invalidation, so a cached translation need not be one of now. But
//! wherever it leads, L0 answers for it: to a frame behind a slot that this guest may see, never to one that was given
//! back or holds a table of L0's; and writable only where a fresh translation of that frame could be. The auditor looks
//! after an exit: whatever was owed had to be flushed before the entry.
//!
//! Left out: processors on which the guest does not run now (they are looked at when it does), and entries of
//! paging-structure caches, whose tables are L0's own and flushed with the rest.

use crate::run::Run;
use crate::vcpu::VendorState;
use cpu::paging::entry::Rights;
use mmu::audit::{Audit, Finding, Moment};
use mmu::memslot::{AddressSpace, DirtyLogging, HostAccess, Memslot, Visibility};
use mmu::page::ShadowPage;
use mmu::state::Nesting;
use sim_core::addr::{Gfn, Hfn, Hpa, PAGE_SHIFT};
use sim_core::event::{Detail, Event};
use std::collections::BTreeSet;

/// The tags under which a guest's translations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tags {
    /// VPID or ASID; none on a processor that drops everything at each transition.
    pub(crate) context: Option<u32>,
    /// The EPT root, under EPT.
    pub(crate) ept_root: Option<Hpa>,
}

/// A cached translation, as far as L0 answers for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Reach {
    /// The first host frame.
    first: Hfn,
    /// How many follow each other.
    frames: u64,
    /// Whether it lets them be written without another walk.
    writable: bool,
}

impl Run<'_> {
    /// Looks at the caches of the processor that the vCPU has just left.
    pub(crate) fn audit_translations(&mut self) {
        let wrong = self.reaches(self.tags()).into_iter().find_map(|reach| self.misled(reach));
        if let Some(what) = wrong {
            let mut finding = Finding::new(Audit::CachedTranslations, &self.subject(), what);
            finding.moment = Moment::Rest;
            self.ground.record(Event::Finding { audit: finding.audit.name(), text: finding.to_string() });
            self.findings.push(finding);
        }
    }

    /// Tells what a flush that is about to happen is good for.
    pub(crate) fn judge_flush(&mut self, request: &'static str) {
        if self.ground.log.detail() == Detail::Nothing {
            return;
        }
        let reaches = self.reaches(self.tags());
        let needed = reaches.iter().find_map(|reach| self.misled(*reach));
        self.ground.record(Event::FlushJudged { request, cached: reaches.len() as u32, needed });
    }

    fn tags(&self) -> Tags {
        match self.vcpu.vendor {
            VendorState::Vmx(_) => self.vmx_tags(),
            VendorState::Svm(_) => self.svm_tags(),
        }
    }

    /// Every translation that the guest could use.
    fn reaches(&self, tags: Tags) -> BTreeSet<Reach> {
        let tlb = &self.processor.core.tlb;
        let reach = |hpa: Hpa, shift: u32, writable: bool| Reach {
            first: hpa.frame(),
            frames: 1 << (shift - PAGE_SHIFT),
            writable,
        };
        let linear = tlb
            .mappings()
            .into_iter()
            .filter(|mapping| Some(mapping.space.context) == tags.context && mapping.space.ept_root == tags.ept_root);
        let linear = linear.map(|mapping| {
            let both = mapping.rights & mapping.stage_rights;
            reach(mapping.hpa, mapping.shift, mapping.is_dirty && both.contains(Rights::WRITE))
        });
        let physical =
            tlb.guest_physical_mappings().into_iter().filter(|mapping| Some(mapping.ept_root) == tags.ept_root);
        let physical = physical.map(|mapping| {
            reach(mapping.hpa, mapping.shift, mapping.is_dirty && mapping.rights.contains(Rights::WRITE))
        });
        linear.chain(physical).collect()
    }

    /// What is wrong with where a translation leads, in words.
    fn misled(&self, reach: Reach) -> Option<String> {
        // The ends of a large page say enough: slots and moved pages are looked at by the audit of entries.
        let ends = if reach.frames == 1 { vec![0] } else { vec![0, reach.frames - 1] };
        ends.into_iter().find_map(|offset| self.misled_frame(reach.first.offset(offset), reach.writable))
    }

    fn misled_frame(&self, hfn: Hfn, writable: bool) -> Option<String> {
        let space = AddressSpace::of(self.vcpu.smm);
        let behind: Vec<Gfn> =
            self.vm.slots.frames_of(hfn).into_iter().filter(|(of, _)| *of == space).map(|(_, gfn)| gfn).collect();
        let slots: Vec<(Gfn, &Memslot)> =
            behind.iter().filter_map(|gfn| Some((*gfn, self.vm.slots.find(space, *gfn)?))).collect();
        let Some((gfn, slot)) = slots.first() else {
            return Some(format!("a cached translation leads to host frame {hfn}, which backs nothing any more"));
        };
        let hidden = |slot: &Memslot| slot.visibility == Visibility::Private && self.vcpu.nesting == Nesting::L2;
        if slots.iter().all(|(_, slot)| hidden(slot)) {
            return Some(format!("L2 has a cached translation into the private slot {}", slot.name));
        }
        if !writable {
            return None;
        }
        let read_only = slot.page(*gfn).is_some_and(|page| page.access == HostAccess::ReadOnly);
        let logged = slot.logging == DirtyLogging::On && !slot.dirty.contains(gfn);
        let tables = self.vm.pages.tables_at(*gfn);
        let in_sync = |table: &&Hpa| self.vm.pages.at(**table).is_some_and(|page: &ShadowPage| !page.unsync);
        if read_only {
            Some(format!("a cached translation lets gfn {gfn} be written, which the host does not"))
        } else if logged {
            Some(format!("a cached translation lets gfn {gfn} be written, and the dirty log would not know"))
        } else if tables.iter().any(|table| in_sync(&table)) {
            Some(format!("a cached translation lets gfn {gfn} be written, which holds a table in sync"))
        } else {
            None
        }
    }
}
