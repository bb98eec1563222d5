//! The one table of exit codes: numbers and names (APM2 appendix C).
//!
//! Left out: the codes of SEV-SNP (VMEXIT_BUSY, IDLE_REQUIRED, INVALID_PMC), which the model never produces.

use std::fmt;

macro_rules! codes {
    (
        families { $($family:ident $first:literal [$($member:literal)*] $family_doc:literal;)* }
        single { $($name:ident $number:literal $text:literal)* }
    ) => {
        /// Why the guest was left: the content of EXITCODE.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ExitCode {
            $(#[doc = $family_doc] $family(u8),)*
            $(#[doc = $text] $name,)*
        }

        impl ExitCode {
            /// Every code, families first.
            #[must_use]
            pub fn all() -> Vec<Self> {
                let mut all = Vec::new();
                $(all.extend((0..[$($member),*].len() as u8).map(Self::$family));)*
                all.extend([$(Self::$name),*]);
                all
            }

            /// The number in EXITCODE.
            #[must_use]
            pub const fn number(self) -> u64 {
                match self {
                    $(Self::$family(index) => $first + index as u64,)*
                    $(Self::$name => $number,)*
                }
            }

            /// The manual's name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$family(index) => {
                        [$($member),*].get(usize::from(index)).copied().unwrap_or("no such exit code")
                    })*
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

codes! {
    families {
        CrRead 0x00 [
            "VMEXIT_CR0_READ" "VMEXIT_CR1_READ" "VMEXIT_CR2_READ" "VMEXIT_CR3_READ"
            "VMEXIT_CR4_READ" "VMEXIT_CR5_READ" "VMEXIT_CR6_READ" "VMEXIT_CR7_READ"
            "VMEXIT_CR8_READ" "VMEXIT_CR9_READ" "VMEXIT_CR10_READ" "VMEXIT_CR11_READ"
            "VMEXIT_CR12_READ" "VMEXIT_CR13_READ" "VMEXIT_CR14_READ" "VMEXIT_CR15_READ"
        ] "VMEXIT_CR0_READ to VMEXIT_CR15_READ";
        CrWrite 0x10 [
            "VMEXIT_CR0_WRITE" "VMEXIT_CR1_WRITE" "VMEXIT_CR2_WRITE" "VMEXIT_CR3_WRITE"
            "VMEXIT_CR4_WRITE" "VMEXIT_CR5_WRITE" "VMEXIT_CR6_WRITE" "VMEXIT_CR7_WRITE"
            "VMEXIT_CR8_WRITE" "VMEXIT_CR9_WRITE" "VMEXIT_CR10_WRITE" "VMEXIT_CR11_WRITE"
            "VMEXIT_CR12_WRITE" "VMEXIT_CR13_WRITE" "VMEXIT_CR14_WRITE" "VMEXIT_CR15_WRITE"
        ] "VMEXIT_CR0_WRITE to VMEXIT_CR15_WRITE";
        DrRead 0x20 [
            "VMEXIT_DR0_READ" "VMEXIT_DR1_READ" "VMEXIT_DR2_READ" "VMEXIT_DR3_READ"
            "VMEXIT_DR4_READ" "VMEXIT_DR5_READ" "VMEXIT_DR6_READ" "VMEXIT_DR7_READ"
            "VMEXIT_DR8_READ" "VMEXIT_DR9_READ" "VMEXIT_DR10_READ" "VMEXIT_DR11_READ"
            "VMEXIT_DR12_READ" "VMEXIT_DR13_READ" "VMEXIT_DR14_READ" "VMEXIT_DR15_READ"
        ] "VMEXIT_DR0_READ to VMEXIT_DR15_READ";
        DrWrite 0x30 [
            "VMEXIT_DR0_WRITE" "VMEXIT_DR1_WRITE" "VMEXIT_DR2_WRITE" "VMEXIT_DR3_WRITE"
            "VMEXIT_DR4_WRITE" "VMEXIT_DR5_WRITE" "VMEXIT_DR6_WRITE" "VMEXIT_DR7_WRITE"
            "VMEXIT_DR8_WRITE" "VMEXIT_DR9_WRITE" "VMEXIT_DR10_WRITE" "VMEXIT_DR11_WRITE"
            "VMEXIT_DR12_WRITE" "VMEXIT_DR13_WRITE" "VMEXIT_DR14_WRITE" "VMEXIT_DR15_WRITE"
        ] "VMEXIT_DR0_WRITE to VMEXIT_DR15_WRITE";
        Exception 0x40 [
            "VMEXIT_EXCP0" "VMEXIT_EXCP1" "VMEXIT_EXCP2" "VMEXIT_EXCP3" "VMEXIT_EXCP4" "VMEXIT_EXCP5"
            "VMEXIT_EXCP6" "VMEXIT_EXCP7" "VMEXIT_EXCP8" "VMEXIT_EXCP9" "VMEXIT_EXCP10" "VMEXIT_EXCP11"
            "VMEXIT_EXCP12" "VMEXIT_EXCP13" "VMEXIT_EXCP14" "VMEXIT_EXCP15" "VMEXIT_EXCP16" "VMEXIT_EXCP17"
            "VMEXIT_EXCP18" "VMEXIT_EXCP19" "VMEXIT_EXCP20" "VMEXIT_EXCP21" "VMEXIT_EXCP22" "VMEXIT_EXCP23"
            "VMEXIT_EXCP24" "VMEXIT_EXCP25" "VMEXIT_EXCP26" "VMEXIT_EXCP27" "VMEXIT_EXCP28" "VMEXIT_EXCP29"
            "VMEXIT_EXCP30" "VMEXIT_EXCP31"
        ] "VMEXIT_EXCP0 to VMEXIT_EXCP31";
        CrWriteTrap 0x90 [
            "VMEXIT_CR0_WRITE_TRAP" "VMEXIT_CR1_WRITE_TRAP" "VMEXIT_CR2_WRITE_TRAP" "VMEXIT_CR3_WRITE_TRAP"
            "VMEXIT_CR4_WRITE_TRAP" "VMEXIT_CR5_WRITE_TRAP" "VMEXIT_CR6_WRITE_TRAP" "VMEXIT_CR7_WRITE_TRAP"
            "VMEXIT_CR8_WRITE_TRAP" "VMEXIT_CR9_WRITE_TRAP" "VMEXIT_CR10_WRITE_TRAP" "VMEXIT_CR11_WRITE_TRAP"
            "VMEXIT_CR12_WRITE_TRAP" "VMEXIT_CR13_WRITE_TRAP" "VMEXIT_CR14_WRITE_TRAP" "VMEXIT_CR15_WRITE_TRAP"
        ] "VMEXIT_CR0_WRITE_TRAP to VMEXIT_CR15_WRITE_TRAP";
    }
    single {
        Intr              0x60 "VMEXIT_INTR"
        Nmi               0x61 "VMEXIT_NMI"
        Smi               0x62 "VMEXIT_SMI"
        Init              0x63 "VMEXIT_INIT"
        Vintr             0x64 "VMEXIT_VINTR"
        Cr0SelectiveWrite 0x65 "VMEXIT_CR0_SEL_WRITE"
        IdtrRead          0x66 "VMEXIT_IDTR_READ"
        GdtrRead          0x67 "VMEXIT_GDTR_READ"
        LdtrRead          0x68 "VMEXIT_LDTR_READ"
        TrRead            0x69 "VMEXIT_TR_READ"
        IdtrWrite         0x6a "VMEXIT_IDTR_WRITE"
        GdtrWrite         0x6b "VMEXIT_GDTR_WRITE"
        LdtrWrite         0x6c "VMEXIT_LDTR_WRITE"
        TrWrite           0x6d "VMEXIT_TR_WRITE"
        Rdtsc             0x6e "VMEXIT_RDTSC"
        Rdpmc             0x6f "VMEXIT_RDPMC"
        Pushf             0x70 "VMEXIT_PUSHF"
        Popf              0x71 "VMEXIT_POPF"
        Cpuid             0x72 "VMEXIT_CPUID"
        Rsm               0x73 "VMEXIT_RSM"
        Iret              0x74 "VMEXIT_IRET"
        SoftwareInterrupt 0x75 "VMEXIT_SWINT"
        Invd              0x76 "VMEXIT_INVD"
        Pause             0x77 "VMEXIT_PAUSE"
        Hlt               0x78 "VMEXIT_HLT"
        Invlpg            0x79 "VMEXIT_INVLPG"
        Invlpga           0x7a "VMEXIT_INVLPGA"
        Io                0x7b "VMEXIT_IOIO"
        Msr               0x7c "VMEXIT_MSR"
        TaskSwitch        0x7d "VMEXIT_TASK_SWITCH"
        FerrFreeze        0x7e "VMEXIT_FERR_FREEZE"
        Shutdown          0x7f "VMEXIT_SHUTDOWN"
        Vmrun             0x80 "VMEXIT_VMRUN"
        Vmmcall           0x81 "VMEXIT_VMMCALL"
        Vmload            0x82 "VMEXIT_VMLOAD"
        Vmsave            0x83 "VMEXIT_VMSAVE"
        Stgi              0x84 "VMEXIT_STGI"
        Clgi              0x85 "VMEXIT_CLGI"
        Skinit            0x86 "VMEXIT_SKINIT"
        Rdtscp            0x87 "VMEXIT_RDTSCP"
        Icebp             0x88 "VMEXIT_ICEBP"
        Wbinvd            0x89 "VMEXIT_WBINVD"
        Monitor           0x8a "VMEXIT_MONITOR"
        Mwait             0x8b "VMEXIT_MWAIT"
        MwaitConditional  0x8c "VMEXIT_MWAIT_CONDITIONAL"
        Xsetbv            0x8d "VMEXIT_XSETBV"
        Rdpru             0x8e "VMEXIT_RDPRU"
        EferWriteTrap     0x8f "VMEXIT_EFER_WRITE_TRAP"
        Invlpgb           0xa0 "VMEXIT_INVLPGB"
        InvlpgbIllegal    0xa1 "VMEXIT_INVLPGB_ILLEGAL"
        Invpcid           0xa2 "VMEXIT_INVPCID"
        Mcommit           0xa3 "VMEXIT_MCOMMIT"
        Tlbsync           0xa4 "VMEXIT_TLBSYNC"
        BusLock           0xa5 "VMEXIT_BUSLOCK"
        IdleHlt           0xa6 "VMEXIT_IDLE_HLT"
        NestedPageFault   0x400 "VMEXIT_NPF"
        AvicIncompleteIpi 0x401 "AVIC_INCOMPLETE_IPI"
        AvicNoAccel       0x402 "AVIC_NOACCEL"
        Vmgexit           0x403 "VMEXIT_VMGEXIT"
        Invalid           0xffff_ffff_ffff_ffff "VMEXIT_INVALID"
    }
}

impl ExitCode {
    /// The code with this number, if the manual gives it a name.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::all().into_iter().find(|code| code.number() == number)
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Numbers and names are unique, and a number gives its code back.
    #[test]
    fn numbers_are_a_bijection() {
        let all = ExitCode::all();
        let numbers: BTreeSet<_> = all.iter().map(|code| code.number()).collect();
        let names: BTreeSet<_> = all.iter().map(|code| code.name()).collect();
        assert_eq!((numbers.len(), names.len()), (all.len(), all.len()));
        for code in &all {
            assert_eq!(ExitCode::from_number(code.number()), Some(*code), "{code}");
        }
        for unknown in [0xa7, 0x3ff, 0x404, u64::MAX - 1] {
            assert_eq!(ExitCode::from_number(unknown), None, "{unknown:#x}");
        }
        println!("{} exit codes", all.len());
    }

    /// Samples of APM2 table C-1.
    #[test]
    fn numbers_match_the_manual() {
        for (code, number, name) in [
            (ExitCode::CrRead(0), 0x00, "VMEXIT_CR0_READ"),
            (ExitCode::CrWrite(3), 0x13, "VMEXIT_CR3_WRITE"),
            (ExitCode::DrWrite(7), 0x37, "VMEXIT_DR7_WRITE"),
            (ExitCode::Exception(14), 0x4e, "VMEXIT_EXCP14"),
            (ExitCode::Cr0SelectiveWrite, 0x65, "VMEXIT_CR0_SEL_WRITE"),
            (ExitCode::Hlt, 0x78, "VMEXIT_HLT"),
            (ExitCode::Io, 0x7b, "VMEXIT_IOIO"),
            (ExitCode::Vmrun, 0x80, "VMEXIT_VMRUN"),
            (ExitCode::CrWriteTrap(4), 0x94, "VMEXIT_CR4_WRITE_TRAP"),
            (ExitCode::NestedPageFault, 0x400, "VMEXIT_NPF"),
            (ExitCode::Invalid, u64::MAX, "VMEXIT_INVALID"),
        ] {
            assert_eq!((code.number(), code.name()), (number, name));
        }
    }
}
