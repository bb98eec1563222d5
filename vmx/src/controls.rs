//! The VM-execution, VM-exit and VM-entry control bits (SDM 3C 24.6 to 24.8), all of them by their names in the
//! manual. Which of them a processor lets software set is [`crate::capability`]'s matter.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

macro_rules! controls {
    ($($(#[$doc:meta])* $group:ident { $($name:ident = $bit:literal,)* })*) => {
        $(
            bitflags! {
                $(#[$doc])*
                #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
                pub struct $group: u32 {
                    $(
                        #[doc = concat!("Bit ", stringify!($bit), ".")]
                        const $name = 1 << $bit;
                    )*
                }
            }
        )*
    };
}

controls! {
    /// Pin-based VM-execution controls (SDM 3C table 24-5).
    PinBased {
        EXTERNAL_INTERRUPT_EXITING = 0,
        NMI_EXITING = 3,
        VIRTUAL_NMIS = 5,
        ACTIVATE_PREEMPTION_TIMER = 6,
        PROCESS_POSTED_INTERRUPTS = 7,
    }

    /// Primary processor-based VM-execution controls (SDM 3C table 24-6).
    PrimaryProc {
        INTERRUPT_WINDOW_EXITING = 2,
        USE_TSC_OFFSETTING = 3,
        HLT_EXITING = 7,
        INVLPG_EXITING = 9,
        MWAIT_EXITING = 10,
        RDPMC_EXITING = 11,
        RDTSC_EXITING = 12,
        CR3_LOAD_EXITING = 15,
        CR3_STORE_EXITING = 16,
        ACTIVATE_TERTIARY_CONTROLS = 17,
        CR8_LOAD_EXITING = 19,
        CR8_STORE_EXITING = 20,
        USE_TPR_SHADOW = 21,
        NMI_WINDOW_EXITING = 22,
        MOV_DR_EXITING = 23,
        UNCONDITIONAL_IO_EXITING = 24,
        USE_IO_BITMAPS = 25,
        MONITOR_TRAP_FLAG = 27,
        USE_MSR_BITMAPS = 28,
        MONITOR_EXITING = 29,
        PAUSE_EXITING = 30,
        ACTIVATE_SECONDARY_CONTROLS = 31,
    }

    /// Secondary processor-based VM-execution controls (SDM 3C table 24-7).
    SecondaryProc {
        VIRTUALIZE_APIC_ACCESSES = 0,
        ENABLE_EPT = 1,
        DESCRIPTOR_TABLE_EXITING = 2,
        ENABLE_RDTSCP = 3,
        VIRTUALIZE_X2APIC_MODE = 4,
        ENABLE_VPID = 5,
        WBINVD_EXITING = 6,
        UNRESTRICTED_GUEST = 7,
        APIC_REGISTER_VIRTUALIZATION = 8,
        VIRTUAL_INTERRUPT_DELIVERY = 9,
        PAUSE_LOOP_EXITING = 10,
        RDRAND_EXITING = 11,
        ENABLE_INVPCID = 12,
        ENABLE_VM_FUNCTIONS = 13,
        VMCS_SHADOWING = 14,
        ENABLE_ENCLS_EXITING = 15,
        RDSEED_EXITING = 16,
        ENABLE_PML = 17,
        EPT_VIOLATION_VE = 18,
        CONCEAL_VMX_FROM_PT = 19,
        ENABLE_XSAVES_XRSTORS = 20,
        MODE_BASED_EXECUTE_CONTROL = 22,
        SUB_PAGE_WRITE_PERMISSIONS = 23,
        PT_USES_GUEST_PHYSICAL = 24,
        USE_TSC_SCALING = 25,
        ENABLE_USER_WAIT_AND_PAUSE = 26,
        ENABLE_PCONFIG = 27,
        ENABLE_ENCLV_EXITING = 28,
    }

    /// VM-exit controls (SDM 3C table 24-13).
    ExitControls {
        SAVE_DEBUG_CONTROLS = 2,
        HOST_ADDRESS_SPACE_SIZE = 9,
        LOAD_PERF_GLOBAL_CTRL = 12,
        ACKNOWLEDGE_INTERRUPT_ON_EXIT = 15,
        SAVE_PAT = 18,
        LOAD_PAT = 19,
        SAVE_EFER = 20,
        LOAD_EFER = 21,
        SAVE_PREEMPTION_TIMER = 22,
        CLEAR_BNDCFGS = 23,
        CONCEAL_VMX_FROM_PT = 24,
        CLEAR_RTIT_CTL = 25,
        CLEAR_LBR_CTL = 26,
        LOAD_CET_STATE = 28,
        LOAD_PKRS = 29,
        SAVE_PERF_GLOBAL_CTRL = 30,
        ACTIVATE_SECONDARY_CONTROLS = 31,
    }

    /// VM-entry controls (SDM 3C table 24-15).
    EntryControls {
        LOAD_DEBUG_CONTROLS = 2,
        IA32E_MODE_GUEST = 9,
        ENTRY_TO_SMM = 10,
        DEACTIVATE_DUAL_MONITOR = 11,
        LOAD_PERF_GLOBAL_CTRL = 13,
        LOAD_PAT = 14,
        LOAD_EFER = 15,
        LOAD_BNDCFGS = 16,
        CONCEAL_VMX_FROM_PT = 17,
        LOAD_RTIT_CTL = 18,
        LOAD_CET_STATE = 20,
        LOAD_LBR_CTL = 21,
        LOAD_PKRS = 22,
    }
}

/// Bits of one control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Control {
    /// Pin-based.
    Pin(PinBased),
    /// Primary processor-based.
    Primary(PrimaryProc),
    /// Secondary processor-based.
    Secondary(SecondaryProc),
    /// VM-exit.
    Exit(ExitControls),
    /// VM-entry.
    Entry(EntryControls),
}

macro_rules! into_control {
    ($($group:ident => $variant:ident),* $(,)?) => {
        $(
            impl From<$group> for Control {
                fn from(bits: $group) -> Self {
                    Self::$variant(bits)
                }
            }
        )*

        impl Control {
            /// The bits as their group's word.
            #[must_use]
            pub const fn bits(self) -> u32 {
                match self {
                    $(Self::$variant(bits) => bits.bits(),)*
                }
            }

            /// The names of the bits, and the number of any bit that has none.
            #[must_use]
            pub fn names(self) -> Vec<String> {
                let (mut names, rest) = match self {
                    $(Self::$variant(bits) => {
                        let mut named = bits.iter_names();
                        let names: Vec<_> = named.by_ref().map(|(name, _)| name.to_owned()).collect();
                        (names, named.remaining().bits())
                    })*
                };
                names.extend((0..32).filter(|bit| rest >> bit & 1 != 0).map(|bit| format!("reserved bit {bit}")));
                names
            }
        }
    };
}

into_control! {
    PinBased => Pin,
    PrimaryProc => Primary,
    SecondaryProc => Secondary,
    ExitControls => Exit,
    EntryControls => Entry,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SDM 3C tables 24-5 to 24-15, samples.
    #[test]
    fn bits_have_the_manuals_positions() {
        for (control, word) in [
            (Control::from(PinBased::NMI_EXITING), 0x8),
            (PrimaryProc::CR3_LOAD_EXITING.into(), 0x8000),
            (PrimaryProc::ACTIVATE_SECONDARY_CONTROLS.into(), 0x8000_0000),
            (SecondaryProc::ENABLE_EPT.into(), 0x2),
            (SecondaryProc::ENABLE_VPID.into(), 0x20),
            (SecondaryProc::UNRESTRICTED_GUEST.into(), 0x80),
            (ExitControls::HOST_ADDRESS_SPACE_SIZE.into(), 0x200),
            (ExitControls::LOAD_EFER.into(), 0x20_0000),
            (EntryControls::IA32E_MODE_GUEST.into(), 0x200),
            (EntryControls::LOAD_EFER.into(), 0x8000),
        ] {
            assert_eq!(control.bits(), word, "{control:?}");
        }
        let odd = SecondaryProc::from_bits_retain(SecondaryProc::ENABLE_PML.bits() | 1 << 31);
        assert_eq!(Control::from(odd).names(), ["ENABLE_PML", "reserved bit 31"]);
    }
}
