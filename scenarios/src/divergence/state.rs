//! What an MMU is like between two steps, as rows for a person: who runs, the registers that roles are made of, and for
//! each MMU in use its role, its root and the previous ones, and the requests that wait.
//!
//! Left out: shadow pages, entries and what a TLB holds.

use crate::backend::{Backend, Sim};
use crate::report::log;
use mmu::state::{Mmu, Nesting, Paging, Smm};
use sim_core::SimError;

/// One fact about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is about.
    pub name: String,
    /// What it is.
    pub value: String,
}

/// The rows of a machine; on the bare one only registers.
pub(super) fn rows(backend: &mut Backend, vcpus: u8, names: &mut log::Names) -> Result<Vec<Row>, SimError> {
    let mut rows = Vec::new();
    for vcpu in 0..vcpus {
        let sregs = backend.sregs(vcpu)?;
        let (cr0, cr4, efer) = (sregs.cr0.bits(), sregs.cr4.bits(), sregs.efer.bits());
        let mut add = |name: &str, value: String| {
            let name = if vcpus > 1 { format!("{vcpu}. {name}") } else { name.to_owned() };
            rows.push(Row { name, value });
        };
        if let Backend::Sim(sim) = &*backend {
            of_vcpu(sim, vcpu, names, &mut add);
        }
        add("cr0, cr3, cr4, efer", format!("{cr0:#x}, {:#x}, {cr4:#x}, {efer:#x}", sregs.cr3));
    }
    Ok(rows)
}

fn of_vcpu(sim: &Sim, vcpu: u8, names: &mut log::Names, add: &mut impl FnMut(&str, String)) {
    let machine = sim.machine();
    let Some(vcpu) = machine.vcpus.get(usize::from(vcpu)) else { return };
    let level = match vcpu.nesting {
        Nesting::L1 => "L1",
        Nesting::L2 => "L2",
    };
    let smm = if vcpu.smm == Smm::Inside { " in SMM" } else { "" };
    add("runs", format!("{level}{smm}"));
    if vcpu.nested_pgd != 0 {
        add("nested pgd", format!("{:#x}", vcpu.nested_pgd));
    }
    let mmus = [&vcpu.mmu.root_mmu, &vcpu.mmu.guest_mmu, &vcpu.mmu.nested_mmu];
    let in_use = |mmu: &&&Mmu| mmu.paging != Paging::Uninitialised;
    for mmu in mmus.iter().filter(in_use) {
        let mut root = |root| names.root(machine.vm.root_view(root));
        let (current, prev) = (root(mmu.root), mmu.prev.map(root).join(", "));
        add(&format!("{} role", mmu.id), format!("{}  {}", mmu.root_role.word(), mmu.root_role.describe()));
        add(&format!("{} root", mmu.id), format!("{current} | [{prev}]"));
    }
    let requests = vcpu.mmu.requests.names().join(" ");
    add("requests", if requests.is_empty() { "-".to_owned() } else { requests });
}
