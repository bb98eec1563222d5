//! MMU initialisation (`kvm_init_mmu` and its kin): compute the roles, return early if nothing changed, else store them
//! and everything that follows from them. It never touches roots.

use crate::change::Change;
use crate::compute::{self, Roles};
use crate::load::Which;
use crate::plant::Plant;
use crate::role::ExtRole;
use crate::state::{Ctx, NestedTdp, Paging, RoleRegs, TdpMode, VcpuMmu, View};
use crate::stats::Stat;
use sim_core::arch::control::{Cr0, Cr4};
use sim_core::event::{Event, MmuId};

/// What an initialisation stores beside the roles.
struct Shape {
    root_level: u8,
    shadow_root_level: u8,
    paging: Paging,
}

impl Ctx<'_> {
    /// `kvm_init_mmu`: initialises the MMU that the vCPU's registers drive.
    pub fn init_mmu(&mut self, vcpu: &mut VcpuMmu, view: &View) {
        if vcpu.nested_tdp == NestedTdp::Active {
            self.init_nested_walk(vcpu, view);
        } else if self.vm.config.tdp == TdpMode::Off {
            self.init_shadow(vcpu, view);
        } else {
            self.init_tdp(vcpu, view);
        }
    }

    /// `init_kvm_tdp_mmu`.
    fn init_tdp(&mut self, vcpu: &mut VcpuMmu, view: &View) {
        let roles = compute::tdp(&self.vm.config, self.vm.changes, view.regs, view);
        let shape = Shape {
            root_level: view.regs.root_level(),
            shadow_root_level: self.vm.config.tdp_root_level(),
            paging: Paging::Tdp,
        };
        self.store(vcpu, MmuId::Root, roles, &shape);
    }

    /// `init_kvm_softmmu`.
    fn init_shadow(&mut self, vcpu: &mut VcpuMmu, view: &View) {
        let roles = compute::shadow(self.vm.changes, view.regs, view);
        let shape = Self::shadow_shape(view.regs, roles);
        self.store(vcpu, MmuId::Root, roles, &shape);
    }

    /// `init_kvm_nested_mmu`.
    fn init_nested_walk(&mut self, vcpu: &mut VcpuMmu, view: &View) {
        let roles = compute::nested_walk(self.vm.changes, view.regs, view);
        let shape = Shape { shadow_root_level: 0, ..Self::shadow_shape(view.regs, roles) };
        self.store(vcpu, MmuId::Nested, roles, &shape);
    }

    /// `kvm_init_shadow_npt_mmu`. `l1` is what vmcb01 holds; `nested_cr3` becomes the root to look up.
    pub fn init_nested_npt(&mut self, vcpu: &mut VcpuMmu, view: &View, l1: RoleRegs, nested_cr3: u64) {
        if self.vm.changes.skips_nested_npt_init() {
            // What stays in force is the TDP MMU that the vCPU had: L2's addresses are taken for L1's.
            let roles = compute::tdp(&self.vm.config, self.vm.changes, view.regs, view);
            let level = self.vm.config.tdp_root_level();
            let shape = Shape { root_level: view.regs.root_level(), shadow_root_level: level, paging: Paging::Tdp };
            self.init_nested_tdp(vcpu, roles, &shape, nested_cr3);
            return;
        }
        let l1 = if self.vm.changes.has(Change::NptRegsOfVmcb01) { l1 } else { view.regs };
        // KVM passes CR0 as PG alone and masks protection keys: nested tables have neither WP=0 nor keys.
        let regs = RoleRegs::new(Cr0::PG, l1.cr4 - Cr4::PKE, l1.efer);
        let roles = compute::nested_npt(&self.vm.config, self.vm.changes, regs, view);
        let shape = Self::shadow_shape(regs, roles);
        self.init_nested_tdp(vcpu, roles, &shape, nested_cr3);
    }

    /// `kvm_init_shadow_ept_mmu`. `eptp` is raw.
    pub fn init_nested_ept(&mut self, vcpu: &mut VcpuMmu, view: &View, eptp: u64) {
        let smm = vcpu.root_mmu.root_role.smm();
        let roles = compute::nested_ept(self.vm.changes, eptp, smm, view.regs);
        let level = roles.1.level() as u8;
        let shape = Shape { root_level: level, shadow_root_level: level, paging: Paging::Ept };
        self.init_nested_tdp(vcpu, roles, &shape, eptp);
    }

    /// The two halves of a nested TDP initialisation, in the order that the point of history has.
    fn init_nested_tdp(&mut self, vcpu: &mut VcpuMmu, roles: Roles, shape: &Shape, pgd: u64) {
        if self.vm.changes.nested_tdp_inits_first() {
            self.store(vcpu, MmuId::Guest, roles, shape);
            self.new_pgd_for_role(vcpu, pgd, roles.1);
        } else {
            self.new_pgd_for_role(vcpu, pgd, roles.1);
            self.store(vcpu, MmuId::Guest, roles, shape);
        }
    }

    fn shadow_shape(regs: RoleRegs, (_, root): Roles) -> Shape {
        let paging = match (regs.cr0.contains(Cr0::PG), regs.cr4.contains(Cr4::PAE)) {
            (false, _) => Paging::NonPaging,
            (true, true) => Paging::Paging64,
            (true, false) => Paging::Paging32,
        };
        Shape { root_level: regs.root_level(), shadow_root_level: root.level() as u8, paging }
    }

    fn store(&mut self, vcpu: &mut VcpuMmu, id: MmuId, (cpu_role, root_role): Roles, shape: &Shape) {
        let forgets = self.vm.plants.has(Plant::RoleForgetsWp);
        let root_role = if forgets { root_role.with_cr0_wp(0) } else { root_role };
        let passes = !self.vm.plants.has(Plant::PassthroughForgotten);
        let root_role = if passes { root_role } else { root_role.with_passthrough(0) };
        let limits = vcpu.cpuid.limits();
        let mmu = vcpu.get_mut(id);
        let old = mmu.root_role;
        self.ground.record(Event::MmuInit { mmu: id, old: old.word(), new: root_role.word() });
        let same_width = !self.vm.changes.role_tells_maxphyaddr() || mmu.limits.maxphyaddr == limits.maxphyaddr;
        if mmu.cpu_role == cpu_role && old == root_role && same_width && self.vm.changes.has(Change::InitShortcut) {
            return;
        }
        self.vm.stats.count(Stat::MmuInit);
        debug_assert!(cpu_role.ext.contains(ExtRole::VALID), "a role without VALID would never be stored");
        mmu.cpu_role = cpu_role;
        mmu.root_role = root_role;
        mmu.root_level = shape.root_level;
        mmu.shadow_root_level = shape.shadow_root_level;
        mmu.paging = shape.paging;
        if !self.vm.plants.has(Plant::InitKeepsLimits) {
            mmu.limits = limits;
        }
    }

    /// `arch.mmu` and `arch.walk_mmu` are `root_mmu` again. Before nested tables had an MMU of their own (v4.20 on VMX, v5.0 on
    /// SVM), one MMU served both, and each switch gave up its roots.
    pub fn leave_nested_tdp(&mut self, vcpu: &mut VcpuMmu) {
        vcpu.nested_tdp = NestedTdp::Inactive;
        let own = match self.vm.config.tdp {
            TdpMode::Npt => Change::NptGuestMmu,
            TdpMode::Ept | TdpMode::Off => Change::GuestMmu,
        };
        if !self.vm.changes.has(own) {
            self.free_roots(vcpu, MmuId::Guest, Which::All);
        }
    }

    /// `__kvm_mmu_refresh_passthrough_bits`: CR0.WP as a guest that owns it has it by now, before its tables are walked for
    /// the emulator. What else depends on WP stays as it was stored.
    pub fn refresh_wp(&mut self, vcpu: &mut VcpuMmu, view: &View) {
        let owned = self.vm.config.tdp == TdpMode::Ept && self.vm.changes.refreshes_owned_wp();
        if !owned || !view.regs.cr0.contains(Cr0::PG) || self.vm.plants.has(Plant::EmulatorKeepsWp) {
            return;
        }
        let id = if vcpu.nested_tdp == NestedTdp::Active { MmuId::Nested } else { MmuId::Root };
        let role = &mut vcpu.get_mut(id).cpu_role;
        role.base = role.base.with_cr0_wp(u32::from(view.regs.cr0.contains(Cr0::WP)));
    }

    /// `kvm_mmu_reset_context`: gives up every root, then initialises.
    pub fn reset_context(&mut self, vcpu: &mut VcpuMmu, view: &View) {
        self.unload(vcpu);
        self.init_mmu(vcpu, view);
    }
}
