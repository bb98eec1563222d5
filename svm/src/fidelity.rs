//! Which clauses of APM2 chapter 15 (SVM) are modelled, and how far.
//!
//! Sections are numbered as in revision 3.40 and later of the manual.

use sim_core::fidelity::{Clause, Grade};

macro_rules! clauses {
    ($($grade:ident $section:literal $title:literal, $note:literal;)*) => {
        /// One row a clause, in the order of the manual.
        pub const CLAUSES: &[Clause] = &[
            $(Clause { section: concat!("APM2 ", $section), title: $title, grade: Grade::$grade, note: $note },)*
        ];
    };
}

clauses! {
    Modelled "15.1" "The virtual machine monitor", "";
    Modelled "15.2" "SVM hardware overview", "";
    Simplified "15.3" "SVM processor and platform extensions", "no I/O, so no DMA protection and no IOMMU";
    Modelled "15.4" "Enabling SVM: EFER.SVME, VM_CR.SVMDIS", "";
    Simplified "15.5.1" "VMRUN: host state saved, guest state loaded",
        "the host save area holds hidden parts of segment registers; CPL is kept in SS.DPL; EFER.LMA is LME and PG";
    Simplified "15.5.1" "VMRUN: canonicalization and consistency checks",
        "a table of names, each with a function that breaks it; an ASID beyond the last is refused by name";
    Simplified "15.5.1" "Segment state in the VMCB", "reserved and ignored attribute bits are kept as they are";
    Modelled "15.5.2" "VMSAVE and VMLOAD", "";
    Simplified "15.6" "#VMEXIT", "host segments come from the host save area and not from the host's GDT";
    Modelled "15.7.1" "State saved on exit: nRIP, EXITCODE, EXITINFO1, EXITINFO2", "";
    Modelled "15.7.2" "Intercepts during IDT interrupt delivery: EXITINTINFO", "";
    Modelled "15.8" "Decode assists: MOV CRx and DRx, INTn, INVLPG", "";
    Simplified "15.8" "Decode assists: instruction bytes of nested and intercepted #PF",
        "told for faults of data accesses; a fault of an event's delivery tells none";
    Modelled "15.9" "Instruction intercepts", "";
    Simplified "15.9" "MWAIT with an armed monitor", "stores to the monitored line do not disarm it";
    Simplified "15.9" "MCOMMIT", "the processor does not execute it";
    Modelled "15.9" "Writes of EFER and control registers that trap after they finish", "";
    Modelled "15.10.1" "I/O permissions map", "";
    Modelled "15.10.2" "IN and OUT behaviour: EXITINFO1", "";
    Modelled "15.11" "MSR intercepts and the MSR permissions map", "";
    Simplified "15.12" "Exception intercepts", "#MC does not happen; #DB of a task switch is the processor's";
    Modelled "15.13.1" "INTR intercept", "";
    Modelled "15.13.2" "NMI intercept", "";
    Simplified "15.13.3" "SMI intercept", "SMIs come from the pin only; HWCR.SMMLOCK is not modelled";
    Modelled "15.13.4" "INIT intercept", "";
    Modelled "15.13.5" "Virtual interrupt intercept", "";
    Modelled "15.14.1" "Task switch intercept", "";
    NotModelled "15.14.2" "Ferr_Freeze intercept", "there is no legacy FERR signal: the bit is accepted and never acts";
    Simplified "15.14.3" "Shutdown intercept",
        "a shutdown that nothing intercepts, met while an injected event is delivered, is refused by name";
    Modelled "15.14.4" "PAUSE intercept filtering: count and threshold", "";
    NotModelled "15.14" "Bus-lock threshold", "the intercept bit is refused by name";
    Modelled "15.15.1" "VMCB clean bits", "";
    Modelled "15.15.2" "Guidelines for clearing clean bits", "";
    Simplified "15.15.3" "VMCB clean field",
        "the copies of the last 16 VMCBs are kept and always used, as no processor promises";
    Modelled "15.16" "TLB control: ASIDs and TLB_CONTROL at VMRUN", "";
    Modelled "15.16" "INVLPGA", "";
    Simplified "15.16" "INVLPGB and TLBSYNC in guests",
        "the enable and the intercepts; legality of the operands only as far as reserved bits go";
    Simplified "15.17" "Global interrupt flag, STGI and CLGI", "STGI without EFER.SVME is #UD even with SKINIT";
    Modelled "15.18" "VMMCALL", "";
    NotModelled "15.19" "Paged real mode", "refused by name";
    Simplified "15.20" "Event injection",
        "an injected NMI masks further NMIs only where NMIs are virtual";
    Simplified "15.21.1" "Physical INTR masking in EFLAGS (V_INTR_MASKING)",
        "with a physical interrupt that is not intercepted, refused by name";
    Modelled "15.21.2" "Virtualizing APIC.TPR: V_TPR and CR8", "";
    NotModelled "15.21.3" "TPR access in 32-bit mode by LOCK MOV CR0", "the processor does not decode it";
    Modelled "15.21.4" "Injecting virtual interrupts", "";
    Modelled "15.21.5" "Interrupt shadows", "";
    Modelled "15.21.6" "Virtual interrupt intercept as interrupt window", "";
    NotModelled "15.21.7" "Interrupt masking in the local APIC", "there is no local APIC";
    Modelled "15.21.8" "INIT support", "";
    Modelled "15.21.9" "NMI support", "";
    Modelled "15.21.10" "NMI virtualization", "";
    Simplified "15.22" "SMM support", "SMI and RSM intercepts; the save state tells nothing of a guest; no SMM_CTL, no containerized SMM";
    NotModelled "15.23" "Last-branch record virtualization", "refused by name";
    NotModelled "15.24" "External access protection (DEV)", "there is no I/O";
    Modelled "15.25.1" "Traditional paging versus nested paging", "";
    Modelled "15.25.2" "Replicated state", "";
    Modelled "15.25.3" "Enabling nested paging", "";
    Modelled "15.25.4" "Nested paging and VMRUN/#VMEXIT: nCR3, G_PAT", "";
    Simplified "15.25.5" "Nested table walk", "as the row of paging says";
    Modelled "15.25.6" "Nested versus guest page faults, fault ordering: EXITINFO1", "";
    Modelled "15.25.7" "Combining nested and guest attributes", "";
    Simplified "15.25.8" "Combining memory types, MTRRs", "memory types are attributes of translations and act on nothing";
    Modelled "15.25.9" "Page splintering", "";
    Modelled "15.25.10" "Legacy PAE mode: no PDPTE registers under nested paging", "";
    NotModelled "15.25.11" "A20 masking", "there is no A20 gate";
    Modelled "15.25.12" "Detecting nested paging support", "";
    Simplified "15.25.13" "Guest mode execute trap", "the bit reaches the walker; the walk is as the row of paging says";
    Simplified "15.25.14" "Supervisor shadow stacks", "the bit reaches the walker; the walk is as the row of paging says";
    NotModelled "15.26" "Security", "SKINIT is refused by name";
    NotModelled "15.27" "Secure startup with SKINIT", "legality and intercept only; refused by name where it would act";
    Modelled "15.28" "Security exception (#SX): redirected INIT", "";
    NotModelled "15.29" "Advanced virtual interrupt controller", "AVIC and x2AVIC are refused by name";
    Simplified "15.30.1" "VM_CR", "DPD and DIS_A20M hold their value and do nothing";
    NotModelled "15.30.2" "IGNNE", "#GP(0): the MSR is absent";
    NotModelled "15.30.3" "SMM_CTL", "#GP(0): the MSR is absent";
    Modelled "15.30.4" "VM_HSAVE_PA", "";
    Modelled "15.30.5" "TSC_RATIO", "";
    Modelled "15.31" "SVM lock: VM_CR.LOCK and SVM_KEY", "";
    NotModelled "15.32" "SMM lock: HWCR.SMMLOCK and SMM_KEY", "the MSRs are absent";
    Simplified "15.33.1" "VMLOAD and VMSAVE virtualization",
        "without nested paging or outside long mode, refused by name";
    Modelled "15.33.2" "Virtual GIF", "";
    NotModelled "15.34" "Secure encrypted virtualization (SEV)", "refused by name";
    NotModelled "15.35" "SEV-ES", "refused by name";
    NotModelled "15.36" "SEV-SNP", "refused by name, as SEV is";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows follow the manual, and what is not modelled as the manual says tells what differs.
    #[test]
    fn rows_are_in_order_and_explained() {
        let number = |clause: &Clause| {
            let digits = clause.section.trim_start_matches("APM2 ").split('.');
            digits.map(|digits| digits.parse::<u32>().unwrap()).collect::<Vec<_>>()
        };
        let keys: Vec<_> = CLAUSES.iter().map(|clause| number(clause)[..2].to_vec()).collect();
        assert!(keys.is_sorted(), "{keys:?}");
        for clause in CLAUSES {
            assert_eq!(clause.note.is_empty(), clause.grade == Grade::Modelled, "{} {}", clause.section, clause.title);
        }
        for section in 1..=36 {
            assert!(keys.contains(&vec![15, section]), "15.{section}");
        }
        println!("{} clauses of APM2 chapter 15", CLAUSES.len());
    }
}
