//! What a KVM can do, found by trying: nothing is inferred from its version.

use super::raw::failed;
use super::vendor_words;
use crate::file::{Action, Mode, PageSize, RunConfig, Scenario, Vendor};
use kvm_bindings::{
    CpuId, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_NESTED_STATE, KVM_CAP_X86_SMM, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use sim_core::SimError;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use std::collections::BTreeSet;
use std::fmt;

/// KVM_X86_QUIRK_FIX_HYPERCALL_INSN: where it is on, a hypercall of the wrong vendor is patched over and over.
const QUIRK_FIX_HYPERCALL: u64 = 1 << 5;

/// CPUID.80000001H:EDX.Page1GB.
const PAGE1GB: u32 = 1 << 26;

/// Something that not every KVM can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ability {
    /// Paging without long mode.
    LegacyPaging,
    /// 5-level paging.
    La57,
    /// Process-context identifiers.
    Pcid,
    /// 1 GiB pages.
    GiantPages,
    /// VMX or SVM for guests.
    Nested,
    /// System-management mode.
    Smm,
}

impl Ability {
    const ALL: [Self; 6] = [Self::LegacyPaging, Self::La57, Self::Pcid, Self::GiantPages, Self::Nested, Self::Smm];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LegacyPaging => "paging without long mode",
            Self::La57 => "5-level paging",
            Self::Pcid => "PCIDs",
            Self::GiantPages => "1 GiB pages",
            Self::Nested => "nested guests",
            Self::Smm => "SMM",
        }
    }
}

/// What this KVM can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abilities(BTreeSet<Ability>);

impl fmt::Display for Abilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |wanted: bool| {
            let names: Vec<_> =
                Ability::ALL.into_iter().filter(|one| self.has(*one) == wanted).map(Ability::name).collect();
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        };
        write!(f, "has {}; lacks {}", names(true), names(false))
    }
}

impl Abilities {
    /// Tries them on a VM made for it.
    ///
    /// # Errors
    /// If no VM can be made.
    pub fn of(kvm: &kvm_ioctls::Kvm) -> Result<Self, SimError> {
        let vm = kvm.create_vm().map_err(|error| failed("KVM_CREATE_VM", &error))?;
        let takes = |id: u64, cr0: Cr0, cr4: Cr4, efer: Efer| {
            let fd = vm.create_vcpu(id).map_err(|error| failed("KVM_CREATE_VCPU", &error))?;
            fd.set_cpuid2(&cpuid(kvm, Vendor::Intel, 40)?).map_err(|error| failed("KVM_SET_CPUID2", &error))?;
            Ok::<_, SimError>(keeps(&fd, cr0, cr4, efer))
        };
        let (paged, long) = (Cr0::PE | Cr0::PG, Efer::LME | Efer::LMA);
        let has = |cap: u32| kvm.check_extension_raw(cap.into()) > 0;
        let giant = cpuid(kvm, Vendor::Intel, 40)?
            .as_slice()
            .iter()
            .any(|entry| entry.function == 0x8000_0001 && entry.edx & PAGE1GB != 0);
        let found = [
            (Ability::LegacyPaging, takes(0, paged, Cr4::PAE, Efer::empty())?),
            (Ability::La57, takes(1, paged, Cr4::PAE | Cr4::LA57, long)?),
            (Ability::Pcid, takes(2, paged, Cr4::PAE | Cr4::PCIDE, long)?),
            (Ability::GiantPages, giant),
            (Ability::Nested, has(KVM_CAP_NESTED_STATE)),
            (Ability::Smm, has(KVM_CAP_X86_SMM)),
        ];
        Ok(Self(found.into_iter().filter(|(_, found)| *found).map(|(one, _)| one).collect()))
    }

    /// Whether it can do this.
    #[must_use]
    pub fn has(&self, ability: Ability) -> bool {
        self.0.contains(&ability)
    }

    /// Whether a run can be judged here.
    ///
    /// # Errors
    /// What it needs that is not here.
    pub fn suffice(&self, scenario: &Scenario, run: &RunConfig) -> Result<(), SimError> {
        let modes = modes(scenario, run);
        let in_mode = |wanted: &[Mode]| modes.iter().any(|mode| wanted.contains(mode));
        let lacks = [
            (enters(scenario, run), "nested guests"),
            (in_mode(&[Mode::Legacy32, Mode::Pae]) && !self.has(Ability::LegacyPaging), "paging without long mode"),
            (in_mode(&[Mode::Long5]) && !self.has(Ability::La57), "5-level paging"),
            (in_mode(&[Mode::Real]), "steps in real-address mode"),
            (sets_cr4(scenario, run, Cr4::PCIDE) && !self.has(Ability::Pcid), "PCIDs"),
            (sets_cr4(scenario, run, Cr4::LA57) && !self.has(Ability::La57), "5-level paging"),
            (maps_1g(scenario, run) && !self.has(Ability::GiantPages), "1 GiB pages"),
            (uses_invlpga(scenario, run) && !self.has(Ability::Nested), "INVLPGA"),
            (!run.plants.is_empty(), "planted mistakes"),
        ];
        match lacks.iter().find(|(lacking, _)| *lacking) {
            Some((_, what)) => Err(SimError::unmodelled(format!("{what} on this KVM"))),
            None => Ok(()),
        }
    }
}

/// Whether a run ever enters a nested guest.
pub fn enters(scenario: &Scenario, run: &RunConfig) -> bool {
    run.steps.iter().any(|index| matches!(scenario.steps[*index].action, Action::Enter { .. }))
}

fn actions<'a>(scenario: &'a Scenario, run: &'a RunConfig) -> impl Iterator<Item = &'a Action> {
    run.steps.iter().map(|index| &scenario.steps[*index].action)
}

/// Whether L1 has a bit of CR4 at the start or sets it later.
fn sets_cr4(scenario: &Scenario, run: &RunConfig, bit: Cr4) -> bool {
    let sets = |action: &Action| matches!(action, Action::MovCr4(flags) if flags.set & bit.bits() != 0);
    scenario.first_level.cr4.set & bit.bits() != 0 || actions(scenario, run).any(sets)
}

/// Whether a space has a 1 GiB page at the start or gets one later.
fn maps_1g(scenario: &Scenario, run: &RunConfig) -> bool {
    let loaded = actions(scenario, run).filter_map(|action| match action {
        Action::MovCr3 { space, .. } | Action::Become { space } => Some(space),
        Action::Link { other, .. } => Some(other),
        _ => None,
    });
    let mut spaces = std::iter::once(&scenario.first_level.space).chain(loaded);
    spaces.any(|name| {
        let space = scenario.spaces.get(name);
        space.is_some_and(|space| space.map.iter().any(|mapping| mapping.size == PageSize::Size1G))
    }) || actions(scenario, run)
        .any(|action| matches!(action, Action::Map { mapping, .. } if mapping.size == PageSize::Size1G))
}

/// Whether L1 executes INVLPGA, which is undefined without SVM.
fn uses_invlpga(scenario: &Scenario, run: &RunConfig) -> bool {
    actions(scenario, run).any(|action| matches!(action, Action::Invlpga { .. }))
}

/// The paging modes that L1 is in during a run.
fn modes(scenario: &Scenario, run: &RunConfig) -> Vec<Mode> {
    let later = run.steps.iter().filter_map(|index| match &scenario.steps[*index].action {
        Action::Become { space } => Some(space),
        _ => None,
    });
    let spaces = std::iter::once(&scenario.first_level.space).chain(later);
    spaces.filter_map(|name| scenario.spaces.get(name)).map(|space| space.mode).collect()
}

/// Whether KVM_SET_SREGS takes the mode and keeps it.
fn keeps(fd: &VcpuFd, cr0: Cr0, cr4: Cr4, efer: Efer) -> bool {
    let Ok(mut sregs) = fd.get_sregs() else { return false };
    (sregs.cr0, sregs.cr4, sregs.efer) = (cr0.bits() | Cr0::ET.bits(), cr4.bits(), efer.bits());
    if efer.contains(Efer::LMA) {
        (sregs.cs.l, sregs.cs.db) = (1, 0);
    }
    let wanted = (sregs.cr0 & cr0.bits(), sregs.cr4, sregs.efer);
    let taken = fd.set_sregs(&sregs).is_ok();
    taken && fd.get_sregs().is_ok_and(|got| (got.cr0 & cr0.bits(), got.cr4, got.efer) == wanted)
}

/// Where the kernel lets that be, hypercalls are left as the guest wrote them.
pub(super) fn disable_quirks(vm: &VmFd) -> Result<(), SimError> {
    let offered = vm.check_extension_raw(KVM_CAP_DISABLE_QUIRKS2.into());
    if u64::from(offered.unsigned_abs()) & QUIRK_FIX_HYPERCALL == 0 {
        return Ok(());
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_DISABLE_QUIRKS2, ..kvm_enable_cap::default() };
    cap.args[0] = QUIRK_FIX_HYPERCALL;
    vm.enable_cap(&cap).map_err(|error| failed("KVM_CAP_DISABLE_QUIRKS2", &error))
}

/// The CPUID of a run: what this KVM supports, with the run's vendor and address width, and SMEP and SMAP.
pub(super) fn cpuid(kvm: &kvm_ioctls::Kvm, vendor: Vendor, maxphyaddr: u32) -> Result<CpuId, SimError> {
    const SMEP_SMAP: u32 = 1 << 7 | 1 << 20;
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let mut cpuid = supported.map_err(|error| failed("KVM_GET_SUPPORTED_CPUID", &error))?;
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (0, _) => [entry.ebx, entry.edx, entry.ecx] = vendor_words(vendor),
            (7, 0) => entry.ebx |= SMEP_SMAP,
            (0x8000_0008, _) => entry.eax = (entry.eax & !0xff) | maxphyaddr,
            _ => {}
        }
    }
    Ok(cpuid)
}
