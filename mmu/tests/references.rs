//! Random lives of two vCPUs that share a VM, at every merged point of history: after each operation no reference is
//! miscounted, no structure is broken, no frame lost, and no warning given; at each checkpoint E the root is coherent
//! (kvm-mmu.md A.12); in the end nothing is left.

#[expect(dead_code, reason = "each test uses its part of the machine")]
mod support;

use mmu::fault::FaultOutcome;
use mmu::state::{NestedTdp, Nesting, RoleRegs, TdpMode};
use mmu::{Change, ChangeSet};
use proptest::prelude::*;
use sim_core::addr::Gpa;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use support::guest::{ALL, EPT_ALL, Layout, P, Space};
use support::{Guest, Machine, PRIVATE, TransitionFlush, UNBACKED, W, access, at, merged_points, mode, structure};

/// Registers that a vCPU may run with.
const MODES: usize = 8;

fn regs(which: usize) -> RoleRegs {
    let mut regs = mode::long();
    match which {
        0 => {}
        1 => regs.cr0 = Cr0::PG,
        2 => (regs.cr0, regs.cr4) = (Cr0::PG, Cr4::PAE | Cr4::SMEP),
        3 => regs.cr4 = Cr4::PAE | Cr4::SMEP | Cr4::SMAP,
        4 => regs.efer -= Efer::NXE,
        5 => return mode::pae(),
        6 => return mode::legacy(),
        _ => return mode::unpaged(),
    }
    regs
}

/// The four address spaces of each layout, and of EPT.
fn space(layout: Layout, which: usize) -> Space {
    let kind = match layout {
        Layout::Four => 0,
        Layout::Pae => 1,
        Layout::Legacy => 2,
        Layout::Ept => 3,
    };
    Space::new(layout, 0x800 + kind * 0x100 + which as u64 * 0x20)
}

fn layout(regs: RoleRegs) -> Layout {
    match regs.root_level() {
        3 => Layout::Pae,
        2 => Layout::Legacy,
        _ => Layout::Four,
    }
}

fn cr3(regs: RoleRegs, which: usize) -> u64 {
    space(layout(regs), which).root
}

const PAGES: [u64; 8] = [0x40_0000, 0x40_1000, 0x40_2000, 0x40_3000, 0x40_4000, 0x40_5000, 0x4080_6000, 0xc060_7000];
/// The page that maps its own leaf table.
const OWN_LEAF: u64 = PAGES[2];

/// Data, read-only data, the own leaf table, the own directory, a private slot, no slot, supervisor data, code.
fn build(machine: &mut Machine, layout: Layout, which: usize) {
    let mut space = space(layout, which);
    let (all, read_only) = if layout == Layout::Ept { (EPT_ALL, 5 | 6 << 3) } else { (ALL, P | 4) };
    let leaf = space.entry(machine, OWN_LEAF, 1) & !0xfff;
    let directory = space.entry(machine, OWN_LEAF, 2) & !0xfff;
    let supervisor = if layout == Layout::Ept { 1 | 6 << 3 } else { P | 2 };
    for (page, entry) in PAGES.into_iter().zip([
        0x30_0000 | all,
        0x30_1000 | read_only,
        leaf | all,
        directory | all,
        PRIVATE.base().0 | all,
        UNBACKED.base().0 | all,
        0x30_2000 | supervisor,
        0x30_3000 | all,
    ]) {
        space.map(machine, page, entry);
    }
}

#[derive(Clone, Debug)]
enum Op {
    MovCr3 { cr3: usize },
    SetRegs { regs: usize, cr3: usize },
    Enter { regs: usize, cr3: usize, nested: usize },
    Exit { regs: usize, cr3: usize },
    Run,
    Reload,
    Unload,
    ZapAll,
    ZapGfn { page: usize },
    Fault { page: usize, error: u32 },
    WriteLeaf { to: u64 },
    WriteDirectory,
}

fn op() -> impl Strategy<Value = Op> {
    let (regs, cr3) = (0..MODES, 0..4usize);
    prop_oneof![
        3 => cr3.clone().prop_map(|cr3| Op::MovCr3 { cr3 }),
        1 => (regs.clone(), cr3.clone()).prop_map(|(regs, cr3)| Op::SetRegs { regs, cr3 }),
        3 => (regs.clone(), cr3.clone(), 0..4usize).prop_map(|(regs, cr3, nested)| Op::Enter { regs, cr3, nested }),
        3 => (regs, cr3).prop_map(|(regs, cr3)| Op::Exit { regs, cr3 }),
        3 => Just(Op::Run),
        1 => Just(Op::Reload),
        1 => Just(Op::Unload),
        1 => Just(Op::ZapAll),
        1 => (0..PAGES.len()).prop_map(|page| Op::ZapGfn { page }),
        6 => (0..PAGES.len(), 0..6u32).prop_map(|(page, error)| Op::Fault { page, error }),
        3 => (0..4u64).prop_map(|to| Op::WriteLeaf { to }),
        1 => Just(Op::WriteDirectory),
    ]
}

#[derive(Clone, Copy, Debug)]
struct Setup {
    changes: ChangeSet,
    tdp: TdpMode,
    nested_tdp: bool,
    flush: TransitionFlush,
}

impl Setup {
    /// C-1: until d2e5f3334169 look-ups without TDP are blind to the andnot bits, so a transition that changes CR0.WP
    /// or CR4.SMEP against what that side's cached roots were made for is incoherent, rightly. Up to there a side
    /// keeps the registers that it set itself.
    fn registers_change_at_transitions(self) -> bool {
        self.tdp != TdpMode::Off || self.changes.has(Change::LookupStoredRole)
    }
}

struct Life {
    setup: Setup,
    machine: Machine,
    /// Each vCPU's registers as L1 and L2 left them.
    sides: [[usize; 2]; 2],
}

impl Life {
    fn new(setup: Setup) -> Self {
        let mut machine = Machine::new(setup.changes, setup.tdp, regs(0), cr3(regs(0), 0), 2);
        machine.flush = setup.flush;
        for layout in [Layout::Four, Layout::Pae, Layout::Legacy, Layout::Ept] {
            for which in 0..4 {
                build(&mut machine, layout, which);
            }
        }
        Self { setup, machine, sides: [[0; 2]; 2] }
    }

    fn apply(&mut self, cpu: usize, op: &Op) {
        let l2 = self.machine.cpus[cpu].nesting == Nesting::L2;
        match *op {
            Op::MovCr3 { cr3: which } => {
                let to = cr3(self.machine.cpus[cpu].regs, which);
                // With nested TDP L0 does not see L2's CR3 change.
                if self.machine.cpus[cpu].mmu.nested_tdp == NestedTdp::Active {
                    self.machine.cpus[cpu].cr3 = to;
                } else {
                    self.machine.mov_cr3(cpu, to);
                }
            }
            Op::SetRegs { regs: which, cr3: space } => {
                self.sides[cpu][usize::from(l2)] = which;
                self.machine.set_regs(cpu, regs(which), cr3(regs(which), space));
            }
            Op::Enter { regs: which, cr3: space, nested } if !l2 => {
                let which = self.side(cpu, 1, which);
                let nested = self.setup.nested_tdp.then(|| self.nested_root(cpu, nested));
                self.machine.enter(cpu, Guest { regs: regs(which), cr3: cr3(regs(which), space), nested });
            }
            Op::Exit { regs: which, cr3: space } if l2 => {
                // SVM gives L1 back what it had at VMRUN; so does a VMX L1 that must not change sides.
                let which = if self.setup.flush == TransitionFlush::Svm {
                    self.sides[cpu][0]
                } else {
                    self.side(cpu, 0, which)
                };
                self.machine.exit(cpu, regs(which), cr3(regs(which), space));
            }
            Op::Enter { .. } | Op::Exit { .. } => {}
            Op::Run => self.run(cpu),
            Op::Reload => drop(self.machine.reload(cpu)),
            Op::Unload => self.machine.unload(cpu),
            Op::ZapAll => self.machine.zap_all_fast(),
            Op::ZapGfn { page } => {
                let gfn = Gpa(0x30_0000 + (page as u64) * 0x1000).frame();
                self.machine.mmu(cpu, |ctx, _, _| ctx.zap_gfn(gfn));
            }
            Op::Fault { page, error } => drop(self.fault(cpu, PAGES[page], error)),
            Op::WriteLeaf { to } => self.write_leaf(cpu, to),
            Op::WriteDirectory => self.write_directory(cpu),
        }
    }

    /// The registers that a side gets at a transition.
    fn side(&mut self, cpu: usize, side: usize, which: usize) -> usize {
        if self.setup.registers_change_at_transitions() {
            self.sides[cpu][side] = which;
        }
        self.sides[cpu][side]
    }

    fn nested_root(&self, cpu: usize, which: usize) -> u64 {
        match self.setup.tdp {
            TdpMode::Ept => space(Layout::Ept, which % 2).root | 0x1e | (which as u64 & 2) << 5,
            _ => cr3(self.machine.cpus[cpu].regs, which),
        }
    }

    /// An access as the hardware of this setup would report it, once the vCPU runs.
    fn fault(&mut self, cpu: usize, address: u64, error: u32) -> FaultOutcome {
        self.run(cpu);
        let all = [support::R, W, support::F, support::U, W | support::U, support::F | support::U];
        let nested = self.machine.cpus[cpu].mmu.nested_tdp == NestedTdp::Active;
        let error = match (nested, self.setup.tdp) {
            (true, TdpMode::Ept) => [support::U, W, support::F][error as usize % 3],
            (true, _) => all[error as usize % 3 + 3],
            _ => all[error as usize],
        };
        let attempt = access(error);
        self.machine.mmu(cpu, |ctx, vcpu, view| ctx.page_fault(vcpu, view, address, attempt)).expect("host memory")
    }

    /// The guest writes its own leaf table, where it may: data page 0 is mapped elsewhere, read-only, or not at all.
    fn write_leaf(&mut self, cpu: usize, to: u64) {
        let Some((mut space, error)) = self.active_space(cpu) else { return };
        let outcome = self.fault(cpu, OWN_LEAF, error);
        let entry = space.entry(&mut self.machine, PAGES[0], 1);
        let ept = space.layout == Layout::Ept;
        let all = if ept { EPT_ALL } else { ALL };
        let value = [0, 0x30_0000 | all, 0x30_4000 | all, 0x30_0000 | if ept { 1 | 6 << 3 } else { P | 4 }];
        match outcome {
            FaultOutcome::Fixed => self.machine.write(entry, value[to as usize], space.bytes()),
            FaultOutcome::EmulateWrite(_) => {
                self.machine.emulated_write(entry, value[to as usize], space.bytes());
            }
            FaultOutcome::Retry | FaultOutcome::Inject(_) | FaultOutcome::Mmio(_) => {}
        }
    }

    /// The guest writes its directory: the entry it had, as far as the tables go.
    fn write_directory(&mut self, cpu: usize) {
        let Some((mut space, error)) = self.active_space(cpu) else { return };
        let entry = space.entry(&mut self.machine, PAGES[0], 2);
        let value = self.machine.read(entry, space.bytes());
        match self.fault(cpu, PAGES[3], error) {
            FaultOutcome::Fixed => self.machine.write(entry, value, space.bytes()),
            FaultOutcome::EmulateWrite(_) => self.machine.emulated_write(entry, value, space.bytes()),
            FaultOutcome::Retry | FaultOutcome::Inject(_) | FaultOutcome::Mmio(_) => {}
        }
    }

    /// The tables that the active MMU shadows, and the index of a user write in [`Self::fault`].
    fn active_space(&self, cpu: usize) -> Option<(Space, u32)> {
        let state = &self.machine.cpus[cpu];
        let nested = state.mmu.nested_tdp == NestedTdp::Active;
        let (layout, root) = match (nested, self.setup.tdp) {
            (true, TdpMode::Ept) => (Layout::Ept, state.nested_pgd & !0xfff),
            (true, _) => (layout(state.l1), state.nested_pgd),
            (false, TdpMode::Off) if state.regs.root_level() > 0 => (layout(state.regs), state.cr3),
            (false, _) => return None,
        };
        let which = (0..4).find(|which| space(layout, *which).root == root)?;
        Some((space(layout, which), 4))
    }

    /// Up to checkpoint E, and a look at it.
    fn run(&mut self, cpu: usize) {
        self.machine.run(cpu);
        let known = |finding: &mmu::audit::Finding| finding.known == Some("C-2");
        let found: Vec<_> = self.machine.at_entry(cpu).into_iter().filter(|found| !known(found)).collect();
        assert!(found.is_empty(), "checkpoint E: {}", found.iter().map(ToString::to_string).collect::<String>());
    }

    fn check(&self) {
        let found = self.machine.at_rest();
        assert!(found.is_empty(), "{found:?}");
        let broken = structure::broken(&self.machine);
        assert!(broken.is_empty(), "{broken:#?}");
    }

    fn end(mut self) {
        for cpu in 0..2 {
            self.machine.unload(cpu);
        }
        self.machine.zap_all_fast();
        self.check();
        assert_eq!(self.machine.vm.pages.all().count(), 0);
        assert_eq!(self.machine.vm.pages.reverse_map().count(), 0);
        assert!(self.machine.vm.pages.zapped.is_empty());
    }
}

fn live(setup: Setup, ops: &[(usize, Op)]) {
    let mut life = Life::new(setup);
    for (cpu, op) in ops {
        life.apply(*cpu, op);
        life.check();
    }
    life.end();
}

fn at_every_merged_point(tdp: TdpMode, nested_tdp: bool, flush: TransitionFlush, ops: &[(usize, Op)]) {
    for point in merged_points() {
        live(Setup { changes: at(point), tdp, nested_tdp, flush }, ops);
    }
}

fn lives() -> impl Strategy<Value = Vec<(usize, Op)>> {
    proptest::collection::vec((0..2usize, op()), 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn shadow_paging_on_vmx(ops in lives(), flush in 0..3usize) {
        at_every_merged_point(TdpMode::Off, false, TransitionFlush::ALL[flush], &ops);
    }

    #[test]
    fn shadow_paging_on_svm(ops in lives()) {
        at_every_merged_point(TdpMode::Off, false, TransitionFlush::Svm, &ops);
    }

    #[test]
    fn ept_without_nested_ept(ops in lives()) {
        at_every_merged_point(TdpMode::Ept, false, TransitionFlush::VmxTagged, &ops);
    }

    #[test]
    fn nested_ept(ops in lives()) {
        at_every_merged_point(TdpMode::Ept, true, TransitionFlush::VmxTagged, &ops);
    }

    #[test]
    fn npt_without_nested_npt(ops in lives()) {
        at_every_merged_point(TdpMode::Npt, false, TransitionFlush::Svm, &ops);
    }

    #[test]
    fn nested_npt(ops in lives()) {
        at_every_merged_point(TdpMode::Npt, true, TransitionFlush::Svm, &ops);
    }
}

/// C-1 (ii), kvm-mmu.md B.3.7: the exception that [`Setup::registers_change_at_transitions`] makes is real, is gone with
/// d2e5f3334169, and is the only thing that E finds.
#[test]
fn host_smep_without_wp_hits_a_root_made_without() {
    for point in merged_points() {
        let setup =
            Setup { changes: at(point), tdp: TdpMode::Off, nested_tdp: false, flush: TransitionFlush::VmxTagged };
        let mut life = Life::new(setup);
        life.apply(0, &Op::SetRegs { regs: 1, cr3: 0 });
        life.apply(0, &Op::Run);
        life.machine.enter(0, Guest { regs: regs(0), cr3: cr3(regs(0), 1), nested: None });
        life.machine.run(0);
        life.machine.exit(0, regs(2), cr3(regs(2), 0));
        life.machine.run(0);
        let found: Vec<_> = life.machine.at_entry(0).iter().map(mmu::audit::Finding::kind).collect();
        let want = (!setup.changes.has(Change::LookupStoredRole))
            .then(|| (mmu::audit::Audit::RootRole, sim_core::event::MmuId::Root, vec!["smep_andnot_wp"]));
        assert_eq!(found, Vec::from_iter(want), "{point}");
        life.check();
    }
}
