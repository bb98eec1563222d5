//! The processor beside paging: execution, exceptions and interrupts, debug, system management, MSRs and CPUID.

use sim_core::fidelity::Grade::{Modelled, NotModelled, Simplified};
use sim_core::fidelity::{Clause, Grade};

const fn row(section: &'static str, title: &'static str, grade: Grade, note: &'static str) -> Clause {
    Clause { section, title, grade, note }
}

/// One row a clause, in the order of the manual.
pub const CLAUSES: &[Clause] = &[
    row("SDM 3A 2.2", "modes of operation", Modelled, ""),
    row("SDM 3A 2.2.1", "extended feature enable register", Modelled, ""),
    row("SDM 3A 2.4", "memory-management registers", Modelled, ""),
    row("SDM 3A 2.5", "control registers", Simplified, "CR0.EM, MP, TS and NE reach no x87 unit"),
    row("SDM 3A 2.6", "extended control registers", Simplified, "XCR0 names x87 and SSE only"),
    row("SDM 3A 2.8", "system instructions", Simplified, "GETSEC fails by name; no performance counters for RDPMC"),
    row("SDM 3A 3.4", "logical and linear addresses, descriptors", Modelled, ""),
    row("SDM 3A 5.3", "limit checking", Modelled, ""),
    row("SDM 3A 5.4, 5.5", "type and privilege checking of data", Modelled, ""),
    row("SDM 3A 5.8.1", "direct calls and jumps to code segments", Modelled, ""),
    row("SDM 3A 5.8.2 to 5.8.5", "call gates and their stack switches", Modelled, ""),
    row("SDM 3A 5.8.6", "returning from a called procedure", Modelled, ""),
    row("SDM 3A 5.8.7, 5.8.8", "SYSENTER, SYSEXIT, SYSCALL, SYSRET", Modelled, ""),
    row(
        "SDM 3A 5.10",
        "pointer validation: LAR, LSL, VERR, VERW, ARPL",
        Simplified,
        "the upper half of a 16-byte descriptor is not looked at",
    ),
    row("SDM 3A 6.4, 6.5", "sources and classes of exceptions", Simplified, "no machine checks"),
    row("SDM 3A 6.7", "nonmaskable interrupts and their blocking", Modelled, ""),
    row("SDM 3A 6.8", "enabling and disabling interrupts; STI, MOV SS", Modelled, ""),
    row("SDM 3A 6.9", "priority among events", Simplified, "no machine check, FLUSH or STOPCLK"),
    row("SDM 3A 6.11, 6.12", "IDT, interrupt, trap and task gates", Modelled, ""),
    row("SDM 3A 6.13", "error codes", Modelled, ""),
    row("SDM 3A 6.14", "64-bit mode interrupts, IST", Modelled, ""),
    row("SDM 3A 6.15", "exception reference, double and triple faults", Simplified, "#MF and #MC are never raised"),
    row("SDM 3A 6.15 interrupt 17", "alignment checks", Simplified, "operands of 16 bytes count as 8"),
    row(
        "SDM 3A 7",
        "task management",
        Simplified,
        "with CET they fail by name; one order of checks on the new segments",
    ),
    row("SDM 3A 8.4, 9.1", "INIT, start-up IPIs, state after INIT", Modelled, ""),
    row(
        "SDM 3A 10.6, 10.8, 10.12",
        "local APIC",
        Simplified,
        "x2APIC mode without local vectors, timer and lowest-priority delivery; no xAPIC page",
    ),
    row("SDM 3A 20.1", "real-address mode", Modelled, ""),
    row("SDM 3A 20.2, 20.3.1", "virtual-8086 mode and its interrupts", Modelled, ""),
    row("SDM 3A 20.3.2, 20.3.3, 20.4", "CR4.VME and PVI, virtual interrupts", NotModelled, "fail by name"),
    row(
        "SDM 3B 17.2",
        "debug registers",
        Simplified,
        "I/O breakpoints fail by name when armed with CR4.DE; a disabled breakpoint sets no DR6 bit",
    ),
    row("SDM 3B 17.3", "debug exceptions", Simplified, "no RTM or bus-lock detection"),
    row("SDM 3B 17.4", "last branch recording", NotModelled, "DebugCtl.BTF works"),
    row("SDM 3B 17.17", "time-stamp counter", Modelled, ""),
    row("SDM 1 17.2", "shadow stacks", Simplified, "task switches fail by name; XSAVES does not manage the state"),
    row("SDM 1 17.3", "indirect-branch tracking", Simplified, "the legacy code-page bitmap fails by name"),
    row("SDM 3C 34.3", "system-management interrupt", Modelled, ""),
    row(
        "SDM 3C 34.4",
        "SMRAM and the save state",
        Simplified,
        "the AMD64 layout of APM2 table 10-1 for both vendors; SMRAM is ordinary memory",
    ),
    row("SDM 3C 34.5", "SMI handler environment", Modelled, ""),
    row(
        "SDM 3C 34.10 to 34.12",
        "auto HALT restart, SMBASE relocation, I/O restart",
        Simplified,
        "no I/O instruction restart",
    ),
    row("APM2 4", "segmented virtual memory", Modelled, ""),
    row("APM2 6.1", "fast system call and return", Modelled, ""),
    row("APM2 8.2, 8.4", "vectors and error codes", Simplified, "no machine checks"),
    row("APM2 8.5", "priorities", Simplified, "no machine check"),
    row("APM2 8.7 to 8.9", "control transfers by interrupt", Simplified, "CR4.VME and PVI fail by name"),
    row("APM2 10", "system-management mode", Simplified, "no TSEG or ASeg protection, no I/O restart"),
    row("APM2 12", "task management", Simplified, "as SDM 3A 7"),
    row("APM2 13.1", "software-debug resources", Simplified, "as SDM 3B 17"),
    row("APM2 14.1", "processor initialization", Modelled, ""),
    row("APM2 16", "APIC", Simplified, "as SDM 3A 10"),
    row(
        "APM2 18",
        "shadow stacks",
        Simplified,
        "as SDM 1 17.2, with Intel's rule that a token and its frame share 32 bytes",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_whole_says_why() {
        for clause in CLAUSES {
            assert_eq!(clause.note.is_empty(), clause.grade == Modelled, "{}", clause.section);
        }
    }
}
