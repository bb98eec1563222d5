//! How a VMX instruction fails: VMfailInvalid, or VMfailValid with a number (SDM 3C 30.2 and 30.4).

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a VMX instruction failed (SDM 3C 30.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VmFail {
    /// VMfailInvalid: there is no current VMCS to hold a number (RFLAGS.CF = 1).
    Invalid,
    /// VMfailValid: the number is in the VM-instruction error field (RFLAGS.ZF = 1).
    Valid(InstructionError),
}

macro_rules! errors {
    ($($name:ident = $number:literal, $text:literal;)*) => {
        /// VM-instruction error numbers (SDM 3C 30.4).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u32)]
        pub enum InstructionError {
            $(#[doc = $text] $name = $number,)*
        }

        impl InstructionError {
            /// Every number, in ascending order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The manual's description.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

errors! {
    VmcallInRoot = 1, "VMCALL executed in VMX root operation";
    VmclearAddress = 2, "VMCLEAR with invalid physical address";
    VmclearVmxonPointer = 3, "VMCLEAR with VMXON pointer";
    VmlaunchNotClear = 4, "VMLAUNCH with non-clear VMCS";
    VmresumeNotLaunched = 5, "VMRESUME with non-launched VMCS";
    VmresumeAfterVmxoff = 6, "VMRESUME after VMXOFF";
    EntryControls = 7, "VM entry with invalid control field(s)";
    EntryHostState = 8, "VM entry with invalid host-state field(s)";
    VmptrldAddress = 9, "VMPTRLD with invalid physical address";
    VmptrldVmxonPointer = 10, "VMPTRLD with VMXON pointer";
    VmptrldRevision = 11, "VMPTRLD with incorrect VMCS revision identifier";
    UnsupportedComponent = 12, "VMREAD/VMWRITE from/to unsupported VMCS component";
    ReadOnlyComponent = 13, "VMWRITE to read-only VMCS component";
    VmxonInRoot = 15, "VMXON executed in VMX root operation";
    ExecutivePointer = 16, "VM entry with invalid executive-VMCS pointer";
    ExecutiveNotLaunched = 17, "VM entry with non-launched executive VMCS";
    ExecutiveNotVmxon = 18, "VM entry with executive-VMCS pointer not VMXON pointer";
    VmcallNotClear = 19, "VMCALL with non-clear VMCS";
    VmcallExitControls = 20, "VMCALL with invalid VM-exit control fields";
    VmcallMsegRevision = 22, "VMCALL with incorrect MSEG revision identifier";
    VmxoffDualMonitor = 23, "VMXOFF under dual-monitor treatment of SMIs and SMM";
    VmcallSmmMonitor = 24, "VMCALL with invalid SMM-monitor features";
    ExecutiveControls = 25, "VM entry with invalid VM-execution control fields in executive VMCS";
    EntryBlockedByMovSs = 26, "VM entry with events blocked by MOV SS";
    InvalidationOperand = 28, "Invalid operand to INVEPT/INVVPID";
}

impl InstructionError {
    /// The number that VMREAD of the VM-instruction error field gives.
    #[must_use]
    pub const fn number(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for VmFail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid => f.write_str("VMfailInvalid"),
            Self::Valid(error) => write!(f, "VMfailValid({}): {}", error.number(), error.text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3C table 30-1: the numbers run from 1 to 28; 14, 21 and 27 are not used.
    #[test]
    fn numbers_are_the_manuals() {
        let numbers: Vec<_> = InstructionError::ALL.iter().map(|error| error.number()).collect();
        let expected: Vec<_> = (1..=28).filter(|number| ![14, 21, 27].contains(number)).collect();
        assert_eq!(numbers, expected);
        println!("{} instruction error numbers", numbers.len());
    }
}
