//! L0's use of VMCS shadowing (SDM 3C 24.6.15; KVM v5.17 nested.c: `copy_shadow_to_vmcs12`, `copy_vmcs12_to_shadow`,
//! `vmcs_shadow_fields.h`): L1 reads and writes the fields that it touches most without an exit, in a shadow VMCS behind
//! vmcs01's link pointer. L0's own copy, vmcs12, is brought up to date before L0 reads it, and the shadow before L1 runs.
//!
//! The lists of fields are those of `vmcs_shadow_fields.h` that the model has.

use super::vmx::refused;
use crate::run::Run;
use ::mmu::plant::Plant;
use ::mmu::state::Nesting;
use serde::{Deserialize, Serialize};
use sim_core::{Ground, Hpa, SimError};
use vmx::Field;
use vmx::controls::SecondaryProc;

/// Fields that L1 only reads (`SHADOW_FIELD_RO`).
const READ: &[Field] = &[
    Field::ExitReason,
    Field::ExitInterruptionInformation,
    Field::ExitInstructionLength,
    Field::IdtVectoringInformation,
    Field::IdtVectoringErrorCode,
    Field::ExitInterruptionErrorCode,
    Field::ExitQualification,
    Field::GuestLinearAddress,
];

/// Fields that L1 reads and writes (`SHADOW_FIELD_RW`).
const WRITTEN: &[Field] = &[
    Field::PrimaryControls,
    Field::ExceptionBitmap,
    Field::EntryExceptionErrorCode,
    Field::EntryInterruptionInformation,
    Field::EntryInstructionLength,
    Field::TprThreshold,
    Field::GuestRip,
    Field::GuestRsp,
    Field::GuestRflags,
    Field::GuestCr0,
    Field::GuestCr3,
    Field::GuestCr4,
    Field::Cr0GuestHostMask,
    Field::Cr0ReadShadow,
    Field::Cr4GuestHostMask,
    Field::Cr4ReadShadow,
];

/// What the shadow VMCS holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Contents {
    /// Nothing that counts: L1 has no current VMCS.
    Unused,
    /// What vmcs12 held, and what L1 has written since.
    Live,
    /// Less than vmcs12 (`need_vmcs12_to_shadow_sync`).
    Stale,
}

/// A vCPU's shadow VMCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShadowVmcs {
    /// Its region.
    pub region: Hpa,
    /// What is in it.
    pub contents: Contents,
}

/// Makes a shadow VMCS, and the bitmaps of the fields that leave L1: every one but those of the lists.
///
/// # Errors
/// If host memory runs out.
pub(super) fn create(
    ground: &mut Ground,
    frames: &mut ::mmu::frames::Frames,
    revision: u32,
) -> Result<(ShadowVmcs, [(Field, u64); 2]), SimError> {
    let region = frames.take(ground)?.base();
    ground.mem.write_u32(region, revision | 1 << 31);
    let maps = [(Field::VmreadBitmap, [READ, WRITTEN]), (Field::VmwriteBitmap, [&[], WRITTEN])];
    let mut fields = [(Field::VmreadBitmap, 0); 2];
    for ((field, lists), slot) in maps.into_iter().zip(&mut fields) {
        let bitmap = frames.take(ground)?.base();
        ground.mem.write_bytes(bitmap, &[0xff; 4096]);
        for shadowed in lists.into_iter().flatten() {
            let (byte, bit) = (u64::from(shadowed.encoding() / 8), shadowed.encoding() % 8);
            let old = ground.mem.read(bitmap.offset(byte), 1);
            ground.mem.write(bitmap.offset(byte), old & !(1 << bit), 1);
        }
        *slot = (field, bitmap.0);
    }
    Ok((ShadowVmcs { region, contents: Contents::Unused }, fields))
}

impl Run<'_> {
    fn set_shadow(&mut self, contents: Contents) {
        if let Some(shadow) = &mut self.vmx_state_mut().shadow {
            shadow.contents = contents;
        }
    }

    /// L1 has a current VMCS from now on, or none (`set_current_vmptr`, `vmx_disable_shadow_vmcs`). vmcs01 is in use.
    pub(crate) fn vmx_use_shadow(&mut self, contents: Contents) {
        let Some(ShadowVmcs { region, .. }) = self.vmx_state().shadow else { return };
        let mut controls = SecondaryProc::from_bits_retain(self.vmread(Field::SecondaryControls) as u32);
        controls.set(SecondaryProc::VMCS_SHADOWING, contents != Contents::Unused);
        let link = if contents == Contents::Unused { u64::MAX } else { region.0 };
        self.vmwrite(Field::SecondaryControls, u64::from(controls.bits()));
        self.vmwrite(Field::VmcsLinkPointer, link);
        self.set_shadow(contents);
    }

    /// `copy_shadow_to_vmcs12`: what L1 wrote without an exit, before L0 looks at vmcs12.
    ///
    /// # Errors
    /// If hardware refuses the shadow VMCS.
    pub(crate) fn vmx_copy_shadow(&mut self) -> Result<(), SimError> {
        let Some(ShadowVmcs { region, contents: Contents::Live }) = self.vmx_state().shadow else { return Ok(()) };
        if self.vcpu.nesting == Nesting::L2 || self.vm.plants.has(Plant::ShadowNotCopied) {
            return Ok(());
        }
        let values =
            self.on_shadow(region, |run| WRITTEN.iter().map(|field| (*field, run.vmread(*field))).collect())?;
        let values: Vec<(Field, u64)> = values;
        values.into_iter().for_each(|(field, value)| self.vmcs12_set(field, value));
        Ok(())
    }

    /// vmcs12 was written behind the shadow's back.
    pub(crate) fn vmx_shadow_is_stale(&mut self) {
        if self.vmx_state().shadow.is_some_and(|shadow| shadow.contents == Contents::Live) {
            self.set_shadow(Contents::Stale);
        }
    }

    /// `copy_vmcs12_to_shadow`, last thing before L1 runs (`vmx_prepare_switch_to_guest`).
    ///
    /// # Errors
    /// If hardware refuses the shadow VMCS.
    pub(crate) fn vmx_fill_shadow(&mut self) -> Result<(), SimError> {
        let Some(ShadowVmcs { region, contents: Contents::Stale }) = self.vmx_state().shadow else { return Ok(()) };
        if self.vcpu.nesting == Nesting::L2 || self.vm.plants.has(Plant::ShadowNotFilled) {
            return Ok(());
        }
        let values: Vec<_> = [READ, WRITTEN].concat().iter().map(|field| (*field, self.vmcs12().get(*field))).collect();
        self.on_shadow(region, |run| values.into_iter().for_each(|(field, value)| run.vmwrite(field, value)))?;
        self.set_shadow(Contents::Live);
        Ok(())
    }

    /// Works on the shadow VMCS as the current one, and gives the processor its VMCS back.
    fn on_shadow<T>(&mut self, region: Hpa, work: impl FnOnce(&mut Self) -> T) -> Result<T, SimError> {
        let loaded = self.vmx_state().loaded;
        let (unit, _, ground) = self.vmx_parts();
        unit.vmptrld(ground, region).map_err(refused)?;
        let result = work(self);
        let (unit, _, ground) = self.vmx_parts();
        unit.vmclear(ground, region).map_err(refused)?;
        unit.vmptrld(ground, loaded).map_err(refused)?;
        Ok(result)
    }
}
