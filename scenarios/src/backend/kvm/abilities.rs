//! What a KVM can do, found by trying: nothing is inferred from its version.

use super::raw::failed;
use super::{Engines, vendor_words};
use crate::file::{Action, ControlRegister, Flags, GuestChange, HostStep, Mode, PageSize, RunConfig, Scenario, Vendor};
use kvm_bindings::{
    CpuId, KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_MP_STATE, KVM_CAP_NESTED_STATE, KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CAP_X86_SMM, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use sim_core::SimError;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::OnceLock;
use vmx::controls::SecondaryProc;

/// KVM_X86_QUIRK_FIX_HYPERCALL_INSN: where it is on, a hypercall of the wrong vendor is patched over and over.
const QUIRK_FIX_HYPERCALL: u64 = 1 << 5;

/// A bit of CPUID: leaf, subleaf, register (0 for EAX) and bit.
type Said = (u32, u32, usize, u32);

const VMX: Said = (1, 0, 2, 5);
const SMEP: Said = (7, 0, 1, 7);
const INVPCID: Said = (7, 0, 1, 10);
const SMAP: Said = (7, 0, 1, 20);
const SVM: Said = (0x8000_0001, 0, 2, 2);
const PAGE1GB: Said = (0x8000_0001, 0, 3, 26);
const NPT: Said = (0x8000_000a, 0, 3, 0);

/// IA32_VMX_PROCBASED_CTLS2, whose upper half says which secondary controls may be 1 (SDM 3D A.3.3).
const VMX_SECONDARY: u32 = 0x48b;

/// What VMX offers to guests.
#[derive(Clone, Copy, Default)]
struct VmxOffers {
    ept: bool,
    vpid: bool,
}

impl VmxOffers {
    /// Nothing where this KVM has no such MSR.
    fn of(kvm: &kvm_ioctls::Kvm) -> Self {
        let entry = kvm_msr_entry { index: VMX_SECONDARY, ..kvm_msr_entry::default() };
        let word = Msrs::from_entries(&[entry]).ok().and_then(|mut msrs| {
            let read = kvm.get_msrs(&mut msrs).ok()?;
            msrs.as_slice().first().filter(|_| read == 1).map(|entry| entry.data >> 32)
        });
        let offered = SecondaryProc::from_bits_retain(word.unwrap_or_default() as u32);
        Self { ept: offered.contains(SecondaryProc::ENABLE_EPT), vpid: offered.contains(SecondaryProc::ENABLE_VPID) }
    }
}

/// Something that not every KVM can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Ability {
    /// Paging without long mode.
    LegacyPaging,
    /// 5-level paging.
    La57,
    /// Process-context identifiers.
    Pcid,
    /// 1 GiB pages.
    GiantPages,
    /// CR4.SMEP.
    Smep,
    /// CR4.SMAP.
    Smap,
    /// INVPCID.
    Invpcid,
    /// VMX or SVM for guests.
    Nested,
    /// EPT or nested NPT for guests of guests.
    NestedTdp,
    /// VPIDs for guests of guests.
    NestedVpid,
    /// System-management mode.
    Smm,
    /// INIT and start-up IPIs from userspace.
    Init,
}

impl Ability {
    const ALL: [Self; 12] = [
        Self::LegacyPaging,
        Self::La57,
        Self::Pcid,
        Self::GiantPages,
        Self::Smep,
        Self::Smap,
        Self::Invpcid,
        Self::Nested,
        Self::NestedTdp,
        Self::NestedVpid,
        Self::Smm,
        Self::Init,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::LegacyPaging => "paging without long mode",
            Self::La57 => "5-level paging",
            Self::Pcid => "PCIDs",
            Self::GiantPages => "1 GiB pages",
            Self::Smep => "SMEP",
            Self::Smap => "SMAP",
            Self::Invpcid => "INVPCID",
            Self::Nested => "nested guests",
            Self::NestedTdp => "two-dimensional paging for nested guests",
            Self::NestedVpid => "VPIDs for nested guests",
            Self::Smm => "SMM",
            Self::Init => "INIT",
        }
    }
}

/// What this KVM can do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What was found in this process: the kernel below stays what it is.
static FOUND: OnceLock<Abilities> = OnceLock::new();

impl Abilities {
    /// Tries them on a VM made for it.
    ///
    /// # Errors
    /// If no VM can be made.
    pub fn of(kvm: &kvm_ioctls::Kvm, engines: Engines) -> Result<Self, SimError> {
        if let Some(found) = FOUND.get() {
            return Ok(found.clone());
        }
        let found = Self::probe(kvm, engines)?;
        Ok(FOUND.get_or_init(|| found).clone())
    }

    fn probe(kvm: &kvm_ioctls::Kvm, engines: Engines) -> Result<Self, SimError> {
        let vm = kvm.create_vm().map_err(|error| failed("KVM_CREATE_VM", &error))?;
        let vendor = match engines {
            Engines::Hardware(vendor) => vendor,
            Engines::Split => Vendor::Intel,
        };
        let said = cpuid(kvm, engines, vendor, 40)?;
        let takes = |id: u64, cr4: Cr4, efer: Efer| {
            let fd = vm.create_vcpu(id).map_err(|error| failed("KVM_CREATE_VCPU", &error))?;
            fd.set_cpuid2(&said).map_err(|error| failed("KVM_SET_CPUID2", &error))?;
            Ok::<_, SimError>(keeps(&fd, Cr0::PE | Cr0::PG, cr4, efer))
        };
        let long = Efer::LME | Efer::LMA;
        let has = |cap: u32| kvm.check_extension_raw(cap.into()) > 0;
        let says = |(leaf, index, register, bit): Said| {
            said.as_slice().iter().any(|entry| {
                let words = [entry.eax, entry.ebx, entry.ecx, entry.edx];
                (entry.function, entry.index) == (leaf, index) && words[register] >> bit & 1 == 1
            })
        };
        let vmx = match vendor {
            Vendor::Intel => VmxOffers::of(kvm),
            Vendor::Amd => VmxOffers::default(),
        };
        let nests = has(KVM_CAP_NESTED_STATE) && says(if vendor == Vendor::Intel { VMX } else { SVM });
        let found = [
            (Ability::LegacyPaging, takes(0, Cr4::PAE, Efer::empty())?),
            (Ability::La57, takes(1, Cr4::PAE | Cr4::LA57, long)?),
            (Ability::Pcid, takes(2, Cr4::PAE | Cr4::PCIDE, long)?),
            (Ability::GiantPages, says(PAGE1GB)),
            (Ability::Smep, says(SMEP)),
            (Ability::Smap, says(SMAP)),
            (Ability::Invpcid, says(INVPCID)),
            (Ability::Nested, nests),
            (Ability::NestedTdp, nests && (vmx.ept || says(NPT))),
            (Ability::NestedVpid, nests && (vmx.vpid || vendor == Vendor::Amd)),
            (Ability::Smm, has(KVM_CAP_X86_SMM)),
            (Ability::Init, has(KVM_CAP_SPLIT_IRQCHIP) && has(KVM_CAP_SIGNAL_MSI) && has(KVM_CAP_MP_STATE)),
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
        let sets = |bit: Cr4| sets_cr4(scenario, run, bit);
        let has = |wanted: fn(&Action) -> bool| actions(scenario, run).any(wanted);
        let nests = enters(scenario, run);
        let needs = [
            (nests, Ability::Nested),
            (nests && run.nested_tdp, Ability::NestedTdp),
            (nests && run.vpid && has_vpids(scenario, run), Ability::NestedVpid),
            (in_mode(&[Mode::Legacy32, Mode::Pae]), Ability::LegacyPaging),
            (in_mode(&[Mode::Long5]) || sets(Cr4::LA57), Ability::La57),
            (sets(Cr4::PCIDE), Ability::Pcid),
            (sets(Cr4::SMEP), Ability::Smep),
            (sets(Cr4::SMAP), Ability::Smap),
            (maps_1g(scenario, run), Ability::GiantPages),
            (has(|action| matches!(action, Action::Invpcid(_))), Ability::Invpcid),
            // Without SVM it is undefined.
            (has(|action| matches!(action, Action::Invlpga { .. })), Ability::Nested),
            (has(|action| matches!(action, Action::Host(HostStep::Smi))), Ability::Smm),
            (sends_init(scenario, run), Ability::Init),
        ];
        if let Some((_, ability)) = needs.iter().find(|(needed, ability)| *needed && !self.has(*ability)) {
            return Err(SimError::unmodelled(format!("{} on this KVM", ability.name())));
        }
        let lacks = [
            (in_mode(&[Mode::Real]), "steps in real-address mode"),
            (!scenario.machine.silicon_without.is_empty(), "silicon that lacks something"),
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

/// Whether a vCPU gets an INIT in a run.
pub(super) fn sends_init(scenario: &Scenario, run: &RunConfig) -> bool {
    actions(scenario, run).any(|action| matches!(action, Action::Host(HostStep::InitVcpu)))
}

fn actions<'a>(scenario: &'a Scenario, run: &'a RunConfig) -> impl Iterator<Item = &'a Action> {
    run.steps.iter().map(|index| &scenario.steps[*index].action)
}

/// Whether anyone has a bit of CR4 at the start or sets it later.
fn sets_cr4(scenario: &Scenario, run: &RunConfig, bit: Cr4) -> bool {
    let has = |flags: &Flags| flags.register == ControlRegister::Cr4 && flags.set & bit.bits() != 0;
    let changes = |change: &GuestChange| matches!(change, GuestChange::Register(flags) if has(flags));
    let sets = |action: &Action| match action {
        Action::MovCr4(flags) => has(flags),
        Action::Enter { guest, changes: list } => {
            scenario.guests.get(guest).is_some_and(|guest| has(&guest.cr4)) || list.iter().any(changes)
        }
        _ => false,
    };
    has(&scenario.first_level.cr4) || actions(scenario, run).any(sets)
}

/// Whether a nested guest that is entered has a VPID.
fn has_vpids(scenario: &Scenario, run: &RunConfig) -> bool {
    actions(scenario, run).any(|action| match action {
        Action::Enter { guest, changes } => {
            scenario.guests.get(guest).is_some_and(|guest| guest.vpid.is_some())
                || changes.iter().any(|change| matches!(change, GuestChange::Vpid(_)))
        }
        _ => false,
    })
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

/// The paging modes that a run is in, of L1 and of nested guests.
fn modes(scenario: &Scenario, run: &RunConfig) -> Vec<Mode> {
    let later = actions(scenario, run).filter_map(|action| match action {
        Action::Become { space } => Some(space),
        Action::Enter { guest, .. } => scenario.guests.get(guest).map(|guest| &guest.space),
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

/// The CPUID of a run: what this KVM supports, with the run's vendor and address width. A KVM that emulates the guest's kernel
/// has SMEP and SMAP whatever it says.
pub(super) fn cpuid(
    kvm: &kvm_ioctls::Kvm,
    engines: Engines,
    vendor: Vendor,
    maxphyaddr: u32,
) -> Result<CpuId, SimError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
    let mut cpuid = supported.map_err(|error| failed("KVM_GET_SUPPORTED_CPUID", &error))?;
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (0, _) => [entry.ebx, entry.edx, entry.ecx] = vendor_words(vendor),
            (7, 0) if engines == Engines::Split => entry.ebx |= 1 << SMEP.3 | 1 << SMAP.3,
            (0x8000_0008, _) => entry.eax = (entry.eax & !0xff) | maxphyaddr,
            _ => {}
        }
    }
    Ok(cpuid)
}
