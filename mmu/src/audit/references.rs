//! I10, at function exit: previous roots have shadow pages, and every shadow page counts exactly the slots that hold
//! it, over all vCPUs and both MMUs. Several slots may hold one page (kvm-mmu.md E.6).

use crate::audit::{Audit, Finding, Moment};
use crate::load::{PAE_ROOTS, pae_target};
use crate::state::{Mmu, View};
use crate::{VcpuMmu, Vm};
use sim_core::addr::Hpa;
use sim_core::event::EventLog;
use sim_core::memory::PhysMem;
use std::collections::BTreeMap;

/// A vCPU to look at: its number, its MMUs, its registers.
pub type Holder<'a> = (u8, &'a VcpuMmu, View);

/// Every broken reference.
#[must_use]
pub fn at_rest(vm: &Vm, mem: &PhysMem, holders: &[Holder<'_>], step: u32, log: &EventLog) -> Vec<Finding> {
    let mut held: BTreeMap<Hpa, u32> = BTreeMap::new();
    let mut findings = Vec::new();
    for (id, vcpu, view) in holders {
        for mmu in [&vcpu.root_mmu, &vcpu.guest_mmu] {
            let report = |what: &str, slot: String, root: crate::state::Root| {
                let subject = crate::audit::Subject {
                    vm,
                    mem,
                    vcpu,
                    id: *id,
                    step,
                    view: *view,
                    nested_regs: None,
                    hardware: 0,
                    log,
                };
                let mut finding = Finding::new(Audit::RootReferences, &subject, what);
                (finding.moment, finding.mmu, finding.slot) = (Moment::Rest, mmu.id, slot);
                (finding.root, finding.pgd) = (root.hpa, root.pgd);
                finding
            };
            for (index, root) in mmu.prev.iter().enumerate().filter(|(_, root)| root.is_valid()) {
                match vm.pages.at(root.hpa) {
                    Some(_) => *held.entry(root.hpa).or_default() += 1,
                    None => findings.push(report(
                        "a cached root has no shadow page (pae_root, pml4_root, or freed)",
                        format!("p{index}"),
                        *root,
                    )),
                }
            }
            for table in current_tables(vm, mem, mmu) {
                *held.entry(table).or_default() += 1;
            }
        }
    }
    findings.extend(miscounted(vm, &held, holders, step, log, mem));
    findings
}

/// Shadow pages that a current root holds: itself, or what `pae_root` leads to.
fn current_tables(vm: &Vm, mem: &PhysMem, mmu: &Mmu) -> Vec<Hpa> {
    if !mmu.root.is_valid() {
        return Vec::new();
    }
    if vm.pages.at(mmu.root.hpa).is_some() {
        return vec![mmu.root.hpa];
    }
    let Some(table) = mmu.pae_root.filter(|_| !vm.is_dummy_root(mmu.root.hpa)) else { return Vec::new() };
    let entries = (0..PAE_ROOTS).map(|index| mem.read_u64(table.base().offset(index * 8)));
    entries.filter(|entry| *entry != 0).map(pae_target).collect()
}

fn miscounted(
    vm: &Vm,
    held: &BTreeMap<Hpa, u32>,
    holders: &[Holder<'_>],
    step: u32,
    log: &EventLog,
    mem: &PhysMem,
) -> Vec<Finding> {
    let Some((id, vcpu, view)) = holders.first() else { return Vec::new() };
    let subject =
        crate::audit::Subject { vm, mem, vcpu, id: *id, step, view: *view, nested_regs: None, hardware: 0, log };
    let wrong = vm.pages.all().filter_map(|(hfn, page)| {
        let slots = held.get(&hfn.base()).copied().unwrap_or(0);
        (slots != page.root_count).then(|| {
            let what = format!("gfn {} role {}: root_count {}, slots {slots}", page.gfn, page.role, page.root_count);
            let mut finding = Finding::new(Audit::RootReferences, &subject, what);
            (finding.moment, finding.root) = (Moment::Rest, hfn.base());
            finding
        })
    });
    wrong.collect()
}
