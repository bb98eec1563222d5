//! TLB tags and flushes on SVM (KVM v5.17 svm.c: `pre_svm_run`, `new_asid`, `svm_flush_tlb_current`,
//! `svm_flush_tlb_gva`).
//!
//! L1 and L2 of a vCPU share one ASID; each of its two VMCBs remembers where it ran last and with which generation. A
//! flush is a command in the VMCB that runs next, or, without FLUSHBYASID, a generation that no processor has.

use crate::nested::svm::Loaded;
use crate::run::Run;
use crate::tags::{FlushAll, VmcbTag};
use crate::translations::Tags;
use ::mmu::plant::Plant;
use sim_core::{Gva, SimError};
use svm::capability::Features;
use svm::vmcb::Field;

/// TLB_CONTROL: flush every entry of every ASID (APM2 15.16.2).
const FLUSH_ALL: u64 = 1;
/// TLB_CONTROL: flush this guest's entries.
const FLUSH_ASID: u64 = 3;

impl Run<'_> {
    fn vmcb_tag(&mut self) -> &mut VmcbTag {
        let state = self.svm_state_mut();
        match state.nested.loaded {
            Loaded::Vmcb01 => &mut state.tags[0],
            Loaded::Vmcb02 => &mut state.tags[1],
        }
    }

    /// `pre_svm_run`, and the write of the ASID in `svm_vcpu_run`.
    pub(crate) fn svm_pre_run(&mut self) {
        let here = self.cpu;
        let generation = self.host.cpus[usize::from(here)].asids.generation;
        let plants = self.vm.plants;
        let tag = self.vmcb_tag();
        if tag.cpu != Some(here) {
            let kept = if plants.has(Plant::KeepAsidOnMigration) { tag.generation } else { 0 };
            *tag = VmcbTag { cpu: Some(here), generation: kept };
        }
        let keeps = tag.generation != 0 && plants.has(Plant::KeepAsidOfOldGeneration);
        if tag.generation != generation && !keeps {
            let new = self.host.cpus[usize::from(here)].asids.assign();
            if new.flush == FlushAll::Yes && !plants.has(Plant::NoFlushAtNewGeneration) {
                self.vmcb_set(Field::TlbControl, FLUSH_ALL);
            }
            self.vmcb_tag().generation = new.generation;
            self.svm_state_mut().asid = new.asid;
        }
        let asid = self.svm_state().asid;
        self.vmcb_set(Field::Asid, u64::from(asid));
    }

    /// `svm_flush_tlb_current`, which is what every flush of SVM's comes to.
    pub(crate) fn svm_flush_asid(&mut self) -> Result<(), SimError> {
        if self.svm_parts().0.capabilities().has(Features::FLUSH_BY_ASID) {
            self.vmcb_set(Field::TlbControl, FLUSH_ASID);
        } else {
            let tag = self.vmcb_tag();
            tag.generation = tag.generation.wrapping_sub(1);
        }
        Ok(())
    }

    /// The tags of the guest that has just run.
    pub(crate) fn svm_tags(&self) -> Tags {
        Tags { context: Some(self.vmcb_get(Field::Asid) as u32), ept_root: None }
    }

    /// `svm_flush_tlb_gva`.
    pub(crate) fn svm_flush_gva(&mut self, address: u64) -> Result<(), SimError> {
        let asid = self.vmcb_get(Field::Asid) as u32;
        let (unit, core, ground) = self.svm_parts();
        unit.invlpga(core, ground, Gva(address), asid);
        Ok(())
    }
}
