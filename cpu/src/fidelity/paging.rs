//! Paging: SDM 3A chapter 4 without 4.10, APM2 chapter 5 without 5.5, and the second stage (SDM 3C 28.2, APM2 15.25).

use sim_core::fidelity::{Clause, Grade};

const fn modelled(section: &'static str, title: &'static str) -> Clause {
    Clause { section, title, grade: Grade::Modelled, note: "" }
}

const fn simplified(section: &'static str, title: &'static str, note: &'static str) -> Clause {
    Clause { section, title, grade: Grade::Simplified, note }
}

const fn absent(section: &'static str, title: &'static str, note: &'static str) -> Clause {
    Clause { section, title, grade: Grade::NotModelled, note }
}

/// One row a clause, in the order of the manual.
pub const CLAUSES: &[Clause] = &[
    modelled("SDM 3A 4.1.1", "Four paging modes"),
    modelled("SDM 3A 4.1.2", "Paging-mode enabling"),
    modelled("SDM 3A 4.1.3", "Modifiers: WP, PSE, PGE, PCIDE, SMEP, SMAP, PKE, CET, PKS, NXE"),
    simplified("SDM 3A 4.1.4", "Enumeration of features by CPUID", "PAT, PSE-36 and PGE are always there"),
    modelled("SDM 3A 4.2", "Hierarchical paging structures: an overview"),
    modelled("SDM 3A 4.3", "32-bit paging: 4-KByte and 4-MByte pages, PSE-36 by MAXPHYADDR"),
    modelled("SDM 3A 4.4.1", "PDPTE registers: every load, with and without EPT"),
    modelled("SDM 3A 4.4.2", "Linear-address translation with PAE paging"),
    modelled("SDM 3A 4.4 (since 2023)", "Linear-address masking: LAM48 and LAM57, user and supervisor pointers"),
    modelled("SDM 3A 4.5.1", "Ordinary 4-level and 5-level paging"),
    modelled("SDM 3A 4.5.2", "Use of CR3 with ordinary 4-level and 5-level paging"),
    absent("SDM 3A 4.5.3", "HLAT paging", "bit 11 of entries restarts nothing; the VMX control is refused"),
    modelled("SDM 3A 4.5.4", "Linear-address translation: 4-KByte, 2-MByte and 1-GByte pages, reserved bits"),
    absent("SDM 3A 4.5.5", "Restart of HLAT paging", "see 4.5.3"),
    modelled("SDM 3A 4.6", "Access rights: modes of accesses and addresses, implicit accesses, shadow-stack addresses"),
    simplified(
        "SDM 3A 4.6.1",
        "Determination of access rights",
        "with CR4.CET = 1 and CR0.WP = 0, which no processor enters, the bullets for WP = 0 hold",
    ),
    modelled("SDM 3A 4.6.2", "Protection keys: PKRU for user-mode, IA32_PKRS for supervisor-mode addresses"),
    simplified("SDM 3A 4.7", "Page-fault exceptions: error code and CR2", "the HLAT and SGX flags are never set"),
    simplified(
        "SDM 3A 4.8",
        "Accessed and dirty flags",
        "set only by accesses that are allowed, upper levels first; never by speculation. The update is a locked compare \
         and exchange, and a changed entry starts the walk again",
    ),
    absent("SDM 3A 4.9.1", "Memory typing when the PAT is not supported", "the PAT is always there"),
    simplified(
        "SDM 3A 4.9.2",
        "Memory typing when the PAT is supported",
        "the type of a translation is told and changes no access; types of references to paging structures are not told",
    ),
    simplified("SDM 3A 4.9.3", "Caching information about memory typing", "a cached mapping keeps its type"),
    modelled("SDM 3A 4.11.1", "VMX transitions and paging"),
    modelled("SDM 3A 4.12", "Using paging for virtual memory: faults that restart"),
    modelled("SDM 3A 11.5.2.2", "Effective memory types of PAT and MTRRs (table 11-7)"),
    simplified("SDM 3A 11.11", "MTRRs by address", "undefined overlaps give UC; SMRRs are left out"),
    modelled("SDM 3A 11.12", "Page attribute table"),
    modelled("SDM 3C 28.2.1", "EPT overview"),
    modelled("SDM 3C 28.2.2", "EPT translation mechanism: four and five levels, all page sizes, capabilities"),
    modelled("SDM 3C 28.2.3.1", "EPT misconfigurations"),
    simplified(
        "SDM 3C 28.2.3.2",
        "EPT violations",
        "mode-based execute control and supervisor shadow stacks included; without guest-paging verification, \
         paging-write and sub-page write permission",
    ),
    modelled("SDM 3C 28.2.3.3", "Prioritization of EPT misconfigurations and EPT violations"),
    modelled("SDM 3C 28.2.4", "Accessed and dirty flags for EPT"),
    modelled("SDM 3C 28.2.5", "Page-modification logging"),
    simplified("SDM 3C 28.2.6.1", "Memory type of EPT paging structures", "checked by VM entry, not told"),
    modelled("SDM 3C 28.2.6.2", "Memory type of translated guest-physical addresses"),
    modelled("SDM 3C 25.5.7.1", "Convertible EPT violations: suppress #VE"),
    absent("SDM 3C 28.2 (since 2018)", "Sub-page write permissions", "bit 61 is ignored; the VMX control is refused"),
    modelled("APM2 5.1", "Page translation overview: modes, sizes, page-size extensions"),
    modelled("APM2 5.2", "Legacy-mode page translation"),
    modelled("APM2 5.3", "Long-mode page translation, 4-level and 5-level"),
    simplified(
        "APM2 5.3.3",
        "4-level translation tables",
        "bit 8 of upper entries is reserved only where the profile says so",
    ),
    modelled("APM2 5.4.1", "Field definitions: reserved bits, base addresses, NX"),
    simplified("APM2 5.4.2", "Accessed and dirty bits", "as for SDM 3A 4.8"),
    absent("APM2 5.10", "Upper address ignore", "pointers are masked by LAM alone"),
    modelled("APM2 5.6", "Page-protection checks: NX, U/S, R/W, WP, SMEP, SMAP"),
    modelled("APM2 5.6.7", "Memory protection keys"),
    modelled("APM2 5.6.9", "Shadow-stack protection"),
    modelled("APM2 5.7", "Protection across the levels of tables"),
    modelled("APM2 15.25.2", "Nested paging hierarchy"),
    modelled("APM2 15.25.3", "Enabling nested paging: format by the host's mode"),
    simplified(
        "APM2 15.25.5",
        "Nested table walk: user accesses, rights of both stages",
        "guest-physical addresses beyond the reach of the host's mode are refused by name",
    ),
    modelled("APM2 15.25.6", "Nested page faults: guest or nested, references to guest tables as writes"),
    simplified(
        "APM2 15.25.8",
        "Combining memory types and MTRRs",
        "the guest's and the host's PAT are combined, then with MTRRs by the SDM's table: UC stands for CD, WC for WC+",
    ),
    modelled("APM2 15.25.10", "Legacy PAE mode: PDPTEs read on demand"),
    simplified(
        "APM2 15.25.13",
        "Guest mode execute trap",
        "U/S gates fetches by the guest's privilege and leaves data alone, as kernels rely on",
    ),
    simplified(
        "APM2 15.25.14",
        "Supervisor shadow stacks",
        "a nested page counts as one if it is not writable and dirty, below writable tables",
    ),
    absent("APM2 15.34 to 15.36", "SEV, SEV-ES, SEV-SNP: encryption and reverse map", "no C bit, no RMP checks"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not wholly modelled says what is missing, and each clause has one row.
    #[test]
    fn rows_are_whole() {
        let mut sections: Vec<_> = CLAUSES.iter().map(|clause| (clause.section, clause.title)).collect();
        sections.sort_unstable();
        sections.dedup();
        assert_eq!(sections.len(), CLAUSES.len());
        for clause in CLAUSES {
            assert_eq!(clause.note.is_empty(), clause.grade == Grade::Modelled, "{}", clause.section);
        }
    }
}
