//! The canonical digest of a machine: equal for states that no later step can tell apart, whatever host frames their
//! shadow pages got and in which order they were made. A search recognises states by it.
//!
//! What is in it: the VM's part of the MMU, every shadow page's content, vCPUs with their nested state, what processors have
//! cached, and guest memory. What is not: time, counters, general-purpose registers and the instruction pointer, exit
//! information, and the order in which shadow pages were made, which counts only once the page limit is near. Two states
//! that differ in nothing else are taken for one: a search may then miss what depends on it, and never reports what is not
//! there. ASIDs and the contents of the VMCB cache keep their numbers, so that some equal states of SVM stay apart.

mod digest;

use crate::machine::{LogicalProcessor, Machine};
use crate::vcpu::VendorState;
use cpu::Virt;
use cpu::tlb::permitted::remembered;
use digest::{Digester, FIRST, Names, fold, is_passing, renamed};
use mmu::page::ShadowPage;
use serde::Serialize;
use sim_core::addr::{Gpa, Gva, Hfn, Hpa, PAGE_BYTES};
use sim_core::{SimError, hash};
use std::collections::{BTreeMap, BTreeSet};
use svm::vmcb;
use vmx::Field;

/// What a page of guest memory holds, as whoever put it there knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestPage {
    /// Something that later steps overwrite before they use it.
    Passing,
    /// A VMCS or VMCB.
    ControlBlock,
    /// Anything else.
    Data,
}

impl Machine {
    /// The canonical digest. `kind` says what each page of guest memory holds.
    ///
    /// # Errors
    /// If a part of the machine can't be serialised, which is an error of ours.
    pub fn canonical(&self, kind: impl Fn(Gpa) -> GuestPage) -> Result<u64, SimError> {
        let names = self.names();
        let digest = |value: &dyn ErasedPart| value.part(&names);
        let tlbs: Vec<_> = self.processors.iter().map(|processor| &processor.core.tlb).collect();
        let parts = [digest(&self.vm)?, digest(&self.vcpus)?, digest(&self.host)?, digest(&tlbs)?];
        Ok(hash::digest(&(parts, self.memory(&names, kind))))
    }

    /// The same for a machine that is [watched](cpu::tlb::Tlb::watch) and may use any translation that the architecture
    /// permits: what its processors may remember of some addresses is in it too.
    ///
    /// # Errors
    /// If a part of the machine can't be serialised, or tables are not modelled.
    pub fn canonical_remembering(
        &self,
        kind: impl Fn(Gpa) -> GuestPage,
        addresses: &BTreeSet<Gva>,
    ) -> Result<u64, SimError> {
        let all: Result<Vec<_>, SimError> = self
            .processors
            .iter()
            .map(|LogicalProcessor { core, ext }| remembered(core, &ext.regime(core), &self.ground, addresses))
            .collect();
        Ok(hash::digest(&(self.canonical(kind)?, all?.part(&self.names())?)))
    }

    /// Shadow pages by what they are for, and tables without a shadow page by whose they are.
    fn names(&self) -> Names {
        let pages = &self.vm.pages;
        let purpose = |page: &ShadowPage| (page.gfn, page.role, page.is_tdp(), pages.is_obsolete(page), page.unsync);
        let mut by_purpose: BTreeMap<_, Vec<(u64, Hfn)>> = BTreeMap::new();
        for (hfn, page) in pages.all() {
            by_purpose.entry(purpose(page)).or_default().push((page.made, hfn));
        }
        let mut names = Names::new();
        for (purpose, mut same) in by_purpose {
            same.sort_unstable();
            let named = same.into_iter().zip(0u64..).map(|((_, hfn), rank)| (hfn, hash::digest(&(&purpose, rank))));
            names.extend(named);
        }
        for vcpu in &self.vcpus {
            for mmu in [&vcpu.mmu.root_mmu, &vcpu.mmu.guest_mmu, &vcpu.mmu.nested_mmu] {
                let tables = [mmu.pae_root, mmu.pml4_root, mmu.pml5_root];
                let own = tables.into_iter().zip(0u8..).filter_map(|(table, level)| Some((table?, level)));
                names.extend(own.map(|(table, level)| (table, hash::digest(&(vcpu.id, mmu.id, level)))));
            }
        }
        names.extend(self.vm.zero_page.map(|page| (page, hash::digest(&"zero page"))));
        names
    }

    /// Memory: guest memory by guest frame, L0's own frames by name and with the frames in them renamed.
    fn memory(&self, names: &Names, kind: impl Fn(Gpa) -> GuestPage) -> u64 {
        let blocks = self.control_blocks();
        let mut all: Vec<(u64, u64)> = Vec::new();
        for (hfn, digest) in self.ground.mem.written_frames() {
            let guest = self.vm.slots.frames_of(hfn);
            let Some((_, gfn)) = guest.first() else {
                // Only tables and control blocks point to tables.
                let block = blocks.contains(&hfn);
                match names.get(&hfn) {
                    _ if self.vm.frames.is_free(hfn) => {}
                    Some(name) => all.push((*name, self.content(hfn, names, block))),
                    None if block => all.push((hfn.0, self.content(hfn, names, block))),
                    None => all.push((hfn.0, digest)),
                }
                continue;
            };
            match kind(gfn.base()) {
                GuestPage::Passing => {}
                GuestPage::ControlBlock => all.push((gfn.0, self.content(hfn, &Names::new(), true))),
                GuestPage::Data => all.push((gfn.0, digest)),
            }
        }
        // In any order: names are in the order of host addresses.
        all.into_iter().fold(0, |sum, (name, content)| sum.wrapping_add(fold(name, content)))
    }

    /// The VMCSs or VMCBs that L0 runs guests on.
    fn control_blocks(&self) -> BTreeSet<Hfn> {
        let of = |vcpu: &crate::vcpu::Vcpu| match &vcpu.vendor {
            VendorState::Vmx(state) => vec![state.vmcs01, state.vmcs02],
            VendorState::Svm(state) => vec![state.vmcb01, state.vmcb02, state.nested.vmcb12],
        };
        self.vcpus.iter().flat_map(of).map(Hpa::frame).collect()
    }

    fn content(&self, hfn: Hfn, names: &Names, block: bool) -> u64 {
        let svm = self.vcpus.iter().any(|vcpu| matches!(vcpu.vendor, VendorState::Svm(_)));
        let left_out = |offset: u64| block && if svm { VMCB.contains(&offset) } else { VMCS.contains(&offset) };
        let mut page = [0; PAGE_BYTES as usize];
        self.ground.mem.read_bytes(hfn.base(), &mut page);
        let words = page.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).zip((0..).step_by(8));
        let kept = words.filter(|(word, offset)| *word != 0 && !left_out(*offset));
        kept.fold(FIRST, |digest, (word, offset)| {
            let (name, rest) = renamed(names, word).unwrap_or((0, word));
            fold(fold(fold(digest, offset), name), rest)
        })
    }
}

/// Words of a VMCS region that are left out.
static VMCS: std::sync::LazyLock<BTreeSet<u64>> = std::sync::LazyLock::new(|| {
    Field::ALL.iter().filter(|field| is_passing(**field)).map(|field| field.region_offset()).collect()
});

/// Words of a VMCB that are left out: exit information and where the guest's code stands.
static VMCB: std::sync::LazyLock<BTreeSet<u64>> = std::sync::LazyLock::new(|| {
    use vmcb::Field as F;
    let exit = [F::ExitCode, F::ExitInfo1, F::ExitInfo2, F::ExitIntInfo, F::NextRip, F::BytesFetched];
    let code = [F::Rip, F::Rsp, F::Rax, F::Rflags, F::Cr2];
    let fields = exit.into_iter().chain(code).map(|field| u64::from(field.offset()) & !7);
    // The bytes fetched fill two words.
    fields.chain([u64::from(F::BytesFetched.offset()) + 8]).collect()
});

/// A part of a machine, whatever its type.
trait ErasedPart {
    fn part(&self, names: &Names) -> Result<u64, SimError>;
}

impl<T: Serialize> ErasedPart for T {
    fn part(&self, names: &Names) -> Result<u64, SimError> {
        let digested = self.serialize(Digester::new(names));
        digested.map(|part| part.hash).map_err(|_| SimError::internal("a part of the machine that can't be digested"))
    }
}
