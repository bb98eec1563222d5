//! The VMX unit of one logical processor: its mode of operation, its current VMCS, and the instructions that change
//! them, as L0 software calls them (SDM 3C chapters 23, 24.11, 30.3).
//!
//! L0 runs at privilege level 0 and keeps the rules that an instruction would answer with an exception; where it does
//! not (VMX operation off, for example), the call fails with VMfailInvalid.

use crate::capability::Capabilities;
use crate::capability::offered::misc;
use crate::controls::SecondaryProc;
use crate::error::{InstructionError, VmFail};
use crate::guest::GuestMode;
use crate::smm::Interrupted;
use crate::vmcs::field::{Half, Kind};
use crate::vmcs::{Field, LaunchState, Region};
use cpu::Core;
use cpu::virt::VirtInstruction;
use serde::{Deserialize, Serialize};
use sim_core::arch::control::Cr4;
use sim_core::arch::rflags::Rflags;
use sim_core::clock::Cost;
use sim_core::{Ground, Hpa};

/// The mode of operation (SDM 3C 23.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// Outside VMX operation.
    #[default]
    Off,
    /// VMX root operation: the host.
    Root,
    /// VMX non-root operation: a guest.
    NonRoot,
}

/// The VMX unit of one logical processor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Vmx {
    pub(crate) capabilities: Capabilities,
    pub(crate) operation: Operation,
    pub(crate) current: Option<Hpa>,
    pub(crate) guest: GuestMode,
    pub(crate) exiting: Option<VirtInstruction>,
    /// What an SMI interrupted, while the processor is in system-management mode.
    pub(crate) interrupted: Option<Interrupted>,
    vmxon_region: Option<Hpa>,
    /// MAXPHYADDR, noted at VMXON.
    physical_width: u32,
}

impl Vmx {
    /// A unit outside VMX operation.
    #[must_use]
    pub fn new(capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            operation: Operation::Off,
            current: None,
            guest: GuestMode::default(),
            exiting: None,
            interrupted: None,
            vmxon_region: None,
            physical_width: 0,
        }
    }

    /// What the processor can do.
    #[must_use]
    pub const fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The mode of operation.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// The current-VMCS pointer, if it is valid.
    #[must_use]
    pub const fn current(&self) -> Option<Hpa> {
        self.current
    }

    /// The VMX instruction that caused the last VM-exit, with its operands; none after any other VM-exit. It stands for
    /// the VM-exit instruction-information field and the exit qualification, from which L0 would find the operands by
    /// itself, and for the read of guest memory that it would then make.
    #[must_use]
    pub const fn exiting_instruction(&self) -> Option<VirtInstruction> {
        self.exiting
    }

    /// VMXON (SDM 3C 30.3): enters VMX root operation without a current VMCS.
    ///
    /// # Errors
    /// VMfailInvalid for a bad region or CR4.VMXE = 0; VMfail(15) in root operation.
    pub fn vmxon(&mut self, core: &mut Core, ground: &mut Ground, region: Hpa) -> Result<(), VmFail> {
        let done = match self.operation {
            Operation::Off => self.start(core, ground, region),
            Operation::Root => Err(self.vmfail(ground, InstructionError::VmxonInRoot)),
            Operation::NonRoot => Err(VmFail::Invalid),
        };
        show(core, done)
    }

    fn start(&mut self, core: &Core, ground: &mut Ground, region: Hpa) -> Result<(), VmFail> {
        ground.charge(Cost::VmcsAccess);
        let is_region = Region::is_pointer(region.0, core.maxphyaddr)
            && Region(region).revision_word(ground) == self.capabilities.revision;
        if !core.cr4.contains(Cr4::VMXE) || !is_region {
            return Err(VmFail::Invalid);
        }
        self.operation = Operation::Root;
        self.current = None;
        self.vmxon_region = Some(region);
        self.physical_width = core.maxphyaddr;
        Ok(())
    }

    /// VMXOFF (SDM 3C 30.3): leaves VMX operation. The VMCS that was current keeps its content.
    ///
    /// # Errors
    /// VMfailInvalid outside root operation.
    pub fn vmxoff(&mut self, core: &mut Core, ground: &mut Ground) -> Result<(), VmFail> {
        let done = self.in_root().map(|()| {
            ground.charge(Cost::VmcsAccess);
            self.operation = Operation::Off;
            self.current = None;
            self.vmxon_region = None;
        });
        show(core, done)
    }

    /// VMCLEAR (SDM 3C 30.3): makes the launch state clear, and the VMCS not current.
    ///
    /// # Errors
    /// VMfail(2) for a bad address, VMfail(3) for the VMXON region; VMfailInvalid outside root operation.
    pub fn vmclear(&mut self, ground: &mut Ground, region: Hpa) -> Result<(), VmFail> {
        self.in_root()?;
        ground.charge(Cost::VmcsAccess);
        if !Region::is_pointer(region.0, self.physical_width) {
            return Err(self.vmfail(ground, InstructionError::VmclearAddress));
        }
        if self.vmxon_region == Some(region) {
            return Err(self.vmfail(ground, InstructionError::VmclearVmxonPointer));
        }
        Region(region).set_launch_state(ground, LaunchState::Clear);
        if self.current == Some(region) {
            self.current = None;
        }
        Ok(())
    }

    /// VMPTRLD (SDM 3C 30.3): makes a VMCS current.
    ///
    /// # Errors
    /// VMfail(9) for a bad address, VMfail(10) for the VMXON region, VMfail(11) for a wrong revision identifier;
    /// VMfailInvalid outside root operation.
    pub fn vmptrld(&mut self, ground: &mut Ground, region: Hpa) -> Result<(), VmFail> {
        self.in_root()?;
        ground.charge(Cost::VmcsAccess);
        let error = if !Region::is_pointer(region.0, self.physical_width) {
            InstructionError::VmptrldAddress
        } else if self.vmxon_region == Some(region) {
            InstructionError::VmptrldVmxonPointer
        } else if !self.is_vmcs(ground, Region(region)) {
            InstructionError::VmptrldRevision
        } else {
            self.current = Some(region);
            return Ok(());
        };
        Err(self.vmfail(ground, error))
    }

    /// Whether a region has this processor's revision identifier, and the shadow-VMCS indicator only if there is VMCS
    /// shadowing (SDM 3C 24.2).
    pub(crate) fn is_vmcs(&self, ground: &Ground, region: Region) -> bool {
        let may_be_shadow = self.capabilities.offers(SecondaryProc::VMCS_SHADOWING);
        region.revision_word(ground) & 0x7fff_ffff == self.capabilities.revision
            && (may_be_shadow || !region.is_shadow(ground))
    }

    /// The current VMCS.
    #[expect(clippy::expect_used, reason = "L0 reads and writes fields only after VMPTRLD; a guest never gets here")]
    fn current_region(&self) -> Region {
        Region(self.current.expect("a current VMCS"))
    }

    /// Reads a field of the current VMCS, whole. For L0; takes no time.
    ///
    /// # Panics
    /// If there is no current VMCS: an error of L0.
    #[must_use]
    pub fn vmread(&self, ground: &Ground, field: Field) -> u64 {
        self.current_region().get(ground, field)
    }

    /// Writes a field of the current VMCS, whole; bits beyond its width are dropped. For L0; takes no time.
    ///
    /// # Panics
    /// If there is no current VMCS: an error of L0.
    pub fn vmwrite(&mut self, ground: &mut Ground, field: Field, value: u64) {
        self.current_region().set(ground, field, value);
    }

    /// VMREAD as an instruction does it (SDM 3C 30.3): the field by its encoding, from the current VMCS or, for a guest,
    /// from its shadow VMCS.
    pub(crate) fn read_operand(&self, ground: &mut Ground, region: Region, operand: u64) -> Result<u64, VmFail> {
        match self.component(operand) {
            None => Err(fail_in(ground, region, InstructionError::UnsupportedComponent)),
            Some((field, Half::Full)) => Ok(region.get(ground, field)),
            Some((field, Half::High)) => Ok(region.get(ground, field) >> 32),
        }
    }

    /// VMWRITE as an instruction does it (SDM 3C 30.3).
    pub(crate) fn write_operand(
        &self,
        ground: &mut Ground,
        region: Region,
        operand: u64,
        value: u64,
    ) -> Result<(), VmFail> {
        let may_write_any = self.capabilities.misc & misc::VMWRITE_ANY != 0;
        match self.component(operand) {
            None => return Err(fail_in(ground, region, InstructionError::UnsupportedComponent)),
            Some((field, _)) if field.kind() == Kind::Information && !may_write_any => {
                return Err(fail_in(ground, region, InstructionError::ReadOnlyComponent));
            }
            Some((field, Half::Full)) => region.set(ground, field, value),
            Some((field, Half::High)) => {
                let low = region.get(ground, field) & 0xffff_ffff;
                region.set(ground, field, value << 32 | low);
            }
        }
        Ok(())
    }

    fn component(&self, operand: u64) -> Option<(Field, Half)> {
        Field::from_operand(operand).filter(|(field, _)| self.capabilities.has_field(*field))
    }

    fn in_root(&self) -> Result<(), VmFail> {
        if self.operation == Operation::Root { Ok(()) } else { Err(VmFail::Invalid) }
    }

    /// VMfail(error): with a current VMCS the number goes there (SDM 3C 30.2).
    pub(crate) fn vmfail(&self, ground: &mut Ground, error: InstructionError) -> VmFail {
        match self.current {
            None => VmFail::Invalid,
            Some(region) => fail_in(ground, Region(region), error),
        }
    }
}

/// VMfailValid with its number in a VMCS.
fn fail_in(ground: &mut Ground, region: Region, error: InstructionError) -> VmFail {
    region.set(ground, Field::InstructionError, error.number().into());
    VmFail::Valid(error)
}

/// Shows an instruction's result in RFLAGS (SDM 3C 30.2): VMsucceed clears the status flags, VMfailInvalid sets CF,
/// VMfailValid sets ZF.
pub(crate) fn show<T>(core: &mut Core, done: Result<T, VmFail>) -> Result<T, VmFail> {
    core.rflags.remove(Rflags::STATUS);
    match done {
        Ok(_) => {}
        Err(VmFail::Invalid) => core.rflags.insert(Rflags::CF),
        Err(VmFail::Valid(_)) => core.rflags.insert(Rflags::ZF),
    }
    done
}
