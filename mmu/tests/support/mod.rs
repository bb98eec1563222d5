//! A machine without a processor: the MMU with guest memory, and the few lines of vCPU loop around it that matter to
//! roots (kvm-mmu.md A.5.5, A.9.1, A.10.2 to A.10.6, A.11.1 to A.11.4). Nothing is executed; tests say what happens.

pub(crate) mod guest;
pub(crate) mod host;
pub(crate) mod structure;

use mmu::audit::{self, Finding, Subject};
use mmu::change::{POINTS, Point};
use mmu::fault::FaultOutcome;
use mmu::frames::Frames;
use mmu::load::Which;
use mmu::memslot::{AddressSpace, Memslot, Memslots, Visibility};
use mmu::permission::Attempt;
use mmu::request::{Effects, Requests};
use mmu::state::{Config, NestedTdp, Nesting, RoleRegs, Smm, TdpMode};
use mmu::{Change, ChangeSet, Ctx, VcpuMmu, View, Vm};
use sim_core::Ground;
use sim_core::addr::{Gfn, Gpa, Hfn};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::PageFaultError;
use sim_core::event::MmuId;

/// Guest memory: guest frames 0 to this, at [`RAM_AT`].
pub(crate) const RAM_FRAMES: u64 = 0x1000;
/// The host frame behind guest frame 0.
pub(crate) const RAM_AT: Hfn = Hfn(0x1_0000);
/// A slot that only KVM knows of, as the APIC-access page is.
pub(crate) const PRIVATE: Gfn = Gfn(0xf_ee00);
/// The host frame behind it.
pub(crate) const PRIVATE_AT: Hfn = Hfn(0x2_0000);
/// A guest frame without a slot.
pub(crate) const UNBACKED: Gfn = Gfn(0x7_f000);
/// The host frames that tables are made of.
pub(crate) const TABLE_FRAMES: std::ops::Range<u64> = 0x100..0x400;

/// The changes in force at a named point.
pub(crate) fn at(point: &str) -> ChangeSet {
    ChangeSet::at(Point::by_name(point).expect("a point of history"))
}

/// Every point that was merged, so that no variant is in it, from v5.17 on: older ones have the bugs that these tests would find.
pub(crate) fn merged_points() -> Vec<&'static str> {
    let merged = |point: &&Point| {
        let recent = point.lineage().iter().any(|before| before.name == "v5.17");
        // What adds nothing that is modelled is the same kernel as the one before.
        let other = !point.adds().is_empty() || point.name == "v5.17";
        recent && other && point.changes().iter().all(|c| c.info().kind != mmu::change::Kind::Variant)
    };
    POINTS.iter().filter(merged).map(|point| point.name).collect()
}

/// Paging modes as registers.
pub(crate) mod mode {
    use super::*;

    const LONG: Efer = Efer::LME.union(Efer::LMA).union(Efer::NXE);
    const PAGED: Cr0 = Cr0::PG.union(Cr0::WP);

    /// 64-bit, WP and NX on.
    pub(crate) fn long() -> RoleRegs {
        RoleRegs::new(PAGED, Cr4::PAE, LONG)
    }

    /// 32-bit with 8-byte entries.
    pub(crate) fn pae() -> RoleRegs {
        RoleRegs::new(PAGED, Cr4::PAE, Efer::NXE)
    }

    /// 32-bit with 4-byte entries and large pages.
    pub(crate) fn legacy() -> RoleRegs {
        RoleRegs::new(PAGED, Cr4::PSE, Efer::empty())
    }

    /// CR0.PG = 0.
    pub(crate) fn unpaged() -> RoleRegs {
        RoleRegs::new(Cr0::empty(), Cr4::empty(), Efer::empty())
    }
}

/// One access: any of [`W`], [`U`] and [`F`] together.
pub(crate) fn access(error: PageFaultError) -> Attempt {
    Attempt { error, smap_suppressed: false }
}

pub(crate) const R: PageFaultError = PageFaultError::empty();
pub(crate) const W: PageFaultError = PageFaultError::W;
pub(crate) const U: PageFaultError = PageFaultError::U;
pub(crate) const F: PageFaultError = PageFaultError::F;

/// What a nested transition posts (kvm-mmu.md E.5). The tag of a row is L0's EPT, or vmcs12's VPID with a vpid02.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TransitionFlush {
    /// VMX, no VPID in vmcs12.
    VmxWithoutVpid,
    /// VMX, vpid12 as before, without a tag.
    VmxUntagged,
    /// VMX, vpid12 as before, with a tag.
    VmxTagged,
    /// SVM.
    Svm,
}

impl TransitionFlush {
    pub(crate) const ALL: [Self; 4] = [Self::VmxWithoutVpid, Self::VmxUntagged, Self::VmxTagged, Self::Svm];

    /// What either edge posts.
    pub(crate) const fn posts(self) -> Requests {
        match self {
            Self::VmxWithoutVpid => Requests::TLB_FLUSH_GUEST,
            Self::VmxUntagged => Requests::TLB_FLUSH_CURRENT,
            Self::VmxTagged => Requests::empty(),
            Self::Svm => Requests::MMU_SYNC.union(Requests::TLB_FLUSH_CURRENT),
        }
    }
}

/// One vCPU.
#[derive(Clone, Debug)]
pub(crate) struct Cpu {
    pub(crate) mmu: VcpuMmu,
    pub(crate) regs: RoleRegs,
    pub(crate) cr3: u64,
    pub(crate) pdptes: [u64; 4],
    pub(crate) nesting: Nesting,
    pub(crate) nested_pgd: u64,
    /// L1's registers while L2 runs: vmcb01's.
    pub(crate) l1: RoleRegs,
}

/// What L1 puts in its VMCS or VMCB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest {
    pub(crate) regs: RoleRegs,
    pub(crate) cr3: u64,
    /// EPTP or nested CR3, raw.
    pub(crate) nested: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) vm: Vm,
    pub(crate) ground: Ground,
    pub(crate) cpus: Vec<Cpu>,
    pub(crate) flush: TransitionFlush,
}

impl Machine {
    /// `count` vCPUs in L1, 64-bit, with CR3 = `cr3` and nothing loaded.
    pub(crate) fn new(changes: ChangeSet, tdp: TdpMode, regs: RoleRegs, cr3: u64, count: usize) -> Self {
        let mut slots = Memslots::default();
        for (name, gfn, frames, hfn, visibility) in [
            ("ram", Gfn(0), RAM_FRAMES, RAM_AT, Visibility::Public),
            ("apic", PRIVATE, 1, PRIVATE_AT, Visibility::Private),
        ] {
            let slot = Memslot { visibility, ..Memslot::new(name, gfn, frames, hfn) };
            slots.add(AddressSpace::Normal, slot).expect("slots don't overlap");
        }
        let frames = Frames::new(Hfn(TABLE_FRAMES.start), Hfn(TABLE_FRAMES.end));
        let vm = Vm { slots, ..Vm::new(changes, Config::new(tdp, 40), frames) };
        let mmu = VcpuMmu::new(mmu::cpuid::GuestCpuid::of_host(&vm.config));
        let cpu = Cpu { mmu, regs, cr3, pdptes: [0; 4], nesting: Nesting::L1, nested_pgd: 0, l1: regs };
        let flush = if tdp == TdpMode::Npt { TransitionFlush::Svm } else { TransitionFlush::VmxTagged };
        let mut machine = Self { vm, ground: Ground::new(0x2_0001), cpus: vec![cpu; count], flush };
        for cpu in 0..count {
            machine.mmu(cpu, |ctx, vcpu, view| ctx.init_mmu(vcpu, view));
        }
        machine
    }

    pub(crate) fn view(&self, cpu: usize) -> View {
        let Cpu { regs, cr3, pdptes, nesting, nested_pgd, .. } = self.cpus[cpu];
        View { regs, cr3, pdptes, nesting, smm: Smm::Outside, nested_pgd }
    }

    /// Calls the MMU for a vCPU and hands out what it owes to all of them.
    pub(crate) fn mmu<T>(&mut self, cpu: usize, f: impl FnOnce(&mut Ctx<'_>, &mut VcpuMmu, &View) -> T) -> T {
        let view = self.view(cpu);
        let mut ctx = Ctx { vm: &mut self.vm, ground: &mut self.ground };
        let result = f(&mut ctx, &mut self.cpus[cpu].mmu, &view);
        let owed = std::mem::take(&mut self.vm.broadcast);
        for cpu in &mut self.cpus {
            cpu.mmu.requests.post(&mut self.ground, owed);
        }
        result
    }

    fn tdp(&self) -> bool {
        self.vm.config.tdp != TdpMode::Off
    }

    fn post(&mut self, cpu: usize, requests: Requests) {
        self.cpus[cpu].mmu.requests.post(&mut self.ground, requests);
    }

    fn take(&mut self, cpu: usize, request: Requests) -> bool {
        self.cpus[cpu].mmu.requests.take(&mut self.ground, request)
    }

    /// `load_pdptrs` (kvm-mmu.md A.9.5).
    pub(crate) fn load_pdptes(&mut self, cpu: usize, cr3: u64) {
        let read = |index: u64| self.read((cr3 & 0xffff_ffe0) + index * 8, 8);
        let pdptes = [0, 1, 2, 3].map(read);
        if !self.tdp() && pdptes != self.cpus[cpu].pdptes {
            self.mmu(cpu, |ctx, vcpu, _| ctx.free_roots(vcpu, MmuId::Root, Which::Current));
        }
        self.cpus[cpu].pdptes = pdptes;
        self.post(cpu, Requests::LOAD_MMU_PGD);
    }

    /// `kvm_set_cr3` without PCIDs (kvm-mmu.md A.9.1, A.9.2).
    pub(crate) fn mov_cr3(&mut self, cpu: usize, cr3: u64) {
        let pae = self.cpus[cpu].regs.root_level() == 3;
        if pae {
            self.load_pdptes(cpu, cr3);
        }
        if cr3 != self.cpus[cpu].cr3 {
            self.mmu(cpu, |ctx, vcpu, view| ctx.new_pgd(vcpu, view, cr3));
        }
        self.cpus[cpu].cr3 = cr3;
        let owed =
            if self.tdp() { Requests::TLB_FLUSH_GUEST } else { Requests::MMU_SYNC | Requests::TLB_FLUSH_CURRENT };
        self.post(cpu, owed);
    }

    /// A write to CR0, CR4 or EFER that changes a role bit; CR3 with it, as a mode switch does.
    pub(crate) fn set_regs(&mut self, cpu: usize, regs: RoleRegs, cr3: u64) {
        (self.cpus[cpu].regs, self.cpus[cpu].cr3) = (regs, cr3);
        if regs.root_level() == 3 {
            self.load_pdptes(cpu, cr3);
        }
        self.mmu(cpu, |ctx, vcpu, view| ctx.reset_context(vcpu, view));
    }

    /// `nested_vmx_load_cr3`, `nested_svm_load_cr3`: both orders (kvm-mmu.md A.10.1, A.11.1).
    fn nested_load_cr3(&mut self, cpu: usize, cr3: u64) {
        let own_tables = self.cpus[cpu].mmu.nested_tdp == NestedTdp::Inactive;
        if own_tables && self.cpus[cpu].regs.root_level() == 3 {
            self.load_pdptes(cpu, cr3);
        }
        let inits_first = self.vm.changes.load_cr3_inits_first();
        if inits_first {
            self.cpus[cpu].cr3 = cr3;
            self.mmu(cpu, |ctx, vcpu, view| ctx.init_mmu(vcpu, view));
        }
        if own_tables {
            self.mmu(cpu, |ctx, vcpu, view| ctx.new_pgd(vcpu, view, cr3));
        }
        if !inits_first {
            self.cpus[cpu].cr3 = cr3;
            self.mmu(cpu, |ctx, vcpu, view| ctx.init_mmu(vcpu, view));
        }
    }

    /// VM-Enter of L2 or VMRUN (kvm-mmu.md A.10.2, A.10.4, A.11.2).
    pub(crate) fn enter(&mut self, cpu: usize, guest: Guest) {
        let svm = self.flush == TransitionFlush::Svm;
        let late = svm && !self.vm.changes.has(Change::NnptGuestModeFirst);
        self.cpus[cpu].l1 = self.cpus[cpu].regs;
        if !svm {
            self.service_local(cpu);
        }
        if !late {
            self.cpus[cpu].nesting = Nesting::L2;
        }
        let flush = self.flush.posts();
        self.post(cpu, flush);
        if let Some(pgd) = guest.nested {
            self.cpus[cpu].nested_pgd = pgd;
            self.cpus[cpu].mmu.nested_tdp = NestedTdp::Active;
            let l1 = self.cpus[cpu].l1;
            self.mmu(cpu, |ctx, vcpu, view| {
                if svm { ctx.init_nested_npt(vcpu, view, l1, pgd) } else { ctx.init_nested_ept(vcpu, view, pgd) }
            });
        }
        self.cpus[cpu].nesting = Nesting::L2;
        self.cpus[cpu].regs = guest.regs;
        self.nested_load_cr3(cpu, guest.cr3);
    }

    /// VM-Exit to L1 or #VMEXIT (kvm-mmu.md A.10.5, A.10.6, A.11.4) with these host registers.
    pub(crate) fn exit(&mut self, cpu: usize, regs: RoleRegs, cr3: u64) {
        let flush = self.flush.posts();
        let svm = self.flush == TransitionFlush::Svm;
        if svm {
            self.post(cpu, flush);
        } else {
            self.service_local(cpu);
        }
        self.cpus[cpu].nesting = Nesting::L1;
        self.cpus[cpu].regs = regs;
        self.cpus[cpu].mmu.nested_tdp = NestedTdp::Inactive;
        self.nested_load_cr3(cpu, cr3);
        if !svm {
            self.post(cpu, flush);
        }
    }

    /// `kvm_mmu_zap_all_fast`.
    pub(crate) fn zap_all_fast(&mut self) {
        self.mmu(0, |ctx, _, _| ctx.zap_all_fast());
    }

    pub(crate) fn unload(&mut self, cpu: usize) {
        self.mmu(cpu, |ctx, vcpu, _| ctx.unload(vcpu));
    }

    /// Everything that `vcpu_enter_guest` does before the reload, in its order (kvm-mmu.md A.5.5).
    pub(crate) fn service(&mut self, cpu: usize) {
        if self.take(cpu, Requests::MMU_RELOAD) {
            self.unload(cpu);
        }
        if self.take(cpu, Requests::MMU_FREE_OBSOLETE_ROOTS) {
            self.mmu(cpu, |ctx, vcpu, _| ctx.free_obsolete_roots(vcpu));
        }
        if self.take(cpu, Requests::MMU_SYNC) {
            self.mmu(cpu, |ctx, vcpu, view| ctx.sync_roots(vcpu, view)).expect("host memory");
        }
        self.take(cpu, Requests::LOAD_MMU_PGD);
        if self.take(cpu, Requests::TLB_FLUSH) {
            self.take(cpu, Requests::TLB_FLUSH_CURRENT);
        }
        self.service_local(cpu);
    }

    fn service_local(&mut self, cpu: usize) {
        self.take(cpu, Requests::TLB_FLUSH_CURRENT);
        if self.take(cpu, Requests::TLB_FLUSH_GUEST) && !self.tdp() {
            self.mmu(cpu, |ctx, vcpu, view| {
                ctx.sync_roots(vcpu, view).expect("host memory");
                ctx.sync_prev_roots(vcpu);
            });
        }
    }

    pub(crate) fn reload(&mut self, cpu: usize) -> Effects {
        self.mmu(cpu, |ctx, vcpu, view| ctx.reload(vcpu, view)).expect("host memory")
    }

    /// Up to checkpoint E: requests, reload, and again while a reload posts more.
    pub(crate) fn run(&mut self, cpu: usize) -> Effects {
        self.service(cpu);
        let effects = self.reload(cpu);
        while !(self.cpus[cpu].mmu.requests - Requests::TRIPLE_FAULT).is_empty() {
            self.service(cpu);
            self.reload(cpu);
        }
        effects
    }

    pub(crate) fn fault(&mut self, cpu: usize, address: u64, error: PageFaultError) -> FaultOutcome {
        self.mmu(cpu, |ctx, vcpu, view| ctx.page_fault(vcpu, view, address, access(error))).expect("host memory")
    }

    /// Reads guest memory.
    pub(crate) fn read(&self, gpa: u64, bytes: usize) -> u64 {
        self.ground.mem.read(self.vm.slots.host(AddressSpace::Normal, Gpa(gpa)).expect("a backed address"), bytes)
    }

    /// Writes guest memory as a guest does that L0 does not notice.
    pub(crate) fn write(&mut self, gpa: u64, value: u64, bytes: usize) {
        self.ground.mem.write(
            self.vm.slots.host(AddressSpace::Normal, Gpa(gpa)).expect("a backed address"),
            value,
            bytes,
        );
    }

    /// Writes guest memory as the emulator does.
    pub(crate) fn emulated_write(&mut self, gpa: u64, value: u64, bytes: usize) {
        self.write(gpa, value, bytes);
        self.mmu(0, |ctx, _, view| ctx.pte_write(view, Gpa(gpa), bytes as u64));
    }

    /// I10 over all vCPUs, and whatever the kernel would have warned of.
    pub(crate) fn at_rest(&self) -> Vec<String> {
        let holders: Vec<_> =
            self.cpus.iter().enumerate().map(|(id, cpu)| (id as u8, &cpu.mmu, self.view(id))).collect();
        let findings =
            audit::at_rest(&self.vm, &self.ground.mem, &holders, 0, &self.ground.log, audit::Extent::Everything);
        findings
            .iter()
            .map(ToString::to_string)
            .chain(self.vm.warned.iter().map(|warned| warned.what.to_owned()))
            .collect()
    }

    /// I1 to I9 of a vCPU, with hardware pointing where the loop would have it point.
    pub(crate) fn at_entry(&self, cpu: usize) -> Vec<Finding> {
        let state = &self.cpus[cpu];
        let active = state.mmu.active();
        let level = if self.vm.config.tdp == TdpMode::Ept { u64::from(active.shadow_root_level - 1) << 3 } else { 0 };
        let nested_npt = self.flush == TransitionFlush::Svm && state.mmu.nested_tdp == NestedTdp::Active;
        audit::at_entry(&Subject {
            vm: &self.vm,
            mem: &self.ground.mem,
            vcpu: &state.mmu,
            id: cpu as u8,
            step: 0,
            view: self.view(cpu),
            nested_regs: nested_npt.then_some(state.l1),
            hardware: active.root.hpa.0 | level,
            log: &self.ground.log,
        })
    }
}
