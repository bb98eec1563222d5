//! Which clauses of SDM 3C (VMX) are modelled, and how far. Paging under EPT (28.3) and the TLB's rules (28.4) are also in
//! the tables of `cpu`, which does the walking and the caching.

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
    modelled("SDM 3C 23.3", "introduction to VMX operation: root and non-root operation"),
    modelled("SDM 3C 23.5", "virtual-machine control structure"),
    modelled("SDM 3C 23.6", "discovering support for VMX: capability MSRs from a profile"),
    simplified(
        "SDM 3C 23.7",
        "enabling and entering VMX operation",
        "IA32_FEATURE_CONTROL is locked with VMX enabled outside SMX; A20M is not modelled",
    ),
    modelled("SDM 3C 23.8", "restrictions on VMX operation: fixed bits of CR0 and CR4, INIT blocked in root operation"),
    modelled("SDM 3C 24.1", "launch state of a VMCS"),
    modelled("SDM 3C 24.2", "format of the VMCS region: revision identifier, shadow-VMCS indicator, abort indicator"),
    simplified(
        "SDM 3C 24.3",
        "organization of VMCS data",
        "the processor keeps everything in the region itself and caches controls only while the guest runs",
    ),
    modelled("SDM 3C 24.4.1", "guest register state, with CET and PKRS"),
    simplified(
        "SDM 3C 24.4.2",
        "guest non-register state",
        "guest interrupt status only holds a value; UINV and FRED state do not exist",
    ),
    modelled("SDM 3C 24.5", "host-state area"),
    modelled("SDM 3C 24.6.1", "pin-based VM-execution controls"),
    simplified(
        "SDM 3C 24.6.2",
        "processor-based VM-execution controls",
        "tertiary controls are not offered; SGX, processor trace, sub-page permissions, user waits, PCONFIG fail by name",
    ),
    modelled("SDM 3C 24.6.3", "exception bitmap with page-fault error-code mask and match"),
    modelled("SDM 3C 24.6.4", "I/O-bitmap addresses"),
    modelled("SDM 3C 24.6.5", "time-stamp counter offset and multiplier"),
    modelled("SDM 3C 24.6.6", "guest/host masks and read shadows for CR0 and CR4"),
    modelled("SDM 3C 24.6.7", "CR3-target controls"),
    simplified("SDM 3C 24.6.8", "controls for APIC virtualization", "the TPR shadow alone; the others fail by name"),
    modelled("SDM 3C 24.6.9", "MSR-bitmap address"),
    absent("SDM 3C 24.6.10", "executive-VMCS pointer", "dual-monitor treatment of SMM is not offered"),
    modelled("SDM 3C 24.6.11", "extended-page-table pointer"),
    modelled("SDM 3C 24.6.12", "virtual-processor identifier"),
    modelled("SDM 3C 24.6.13", "controls for PAUSE-loop exiting"),
    modelled("SDM 3C 24.6.14", "VM-function controls"),
    modelled("SDM 3C 24.6.15", "VMCS shadowing bitmap addresses"),
    absent("SDM 3C 24.6.16", "ENCLS-exiting bitmap", "SGX does not exist; the control fails by name"),
    modelled("SDM 3C 24.6.17", "control field for page-modification logging"),
    modelled("SDM 3C 24.6.18", "controls for virtualization exceptions"),
    modelled("SDM 3C 24.6.19", "XSS-exiting bitmap"),
    absent("SDM 3C 24.6.20", "sub-page-permission-table pointer", "checked; the control fails by name"),
    absent(
        "SDM 3C 24.6.21",
        "fields for hypervisor-managed linear-address translation",
        "tertiary controls are not offered",
    ),
    absent("SDM 3C 24.6.22", "fields for PASID translation, instruction time-out and the rest", "not offered"),
    simplified(
        "SDM 3C 24.7.1",
        "VM-exit controls",
        "secondary VM-exit controls are not offered; performance, MPX, trace and last-branch controls fail by name",
    ),
    modelled("SDM 3C 24.7.2", "VM-exit controls for MSRs"),
    simplified(
        "SDM 3C 24.8.1",
        "VM-entry controls",
        "performance, MPX, trace and last-branch controls and entry to SMM fail by name; FRED is not offered",
    ),
    modelled("SDM 3C 24.8.2", "VM-entry controls for MSRs"),
    simplified("SDM 3C 24.8.3", "VM-entry controls for event injection", "nested exceptions of FRED are reserved bits"),
    modelled("SDM 3C 24.9.1", "basic VM-exit information"),
    simplified(
        "SDM 3C 24.9.2",
        "information for VM exits due to vectored events",
        "enclave interruption does not exist",
    ),
    modelled("SDM 3C 24.9.3", "information for VM exits that occur during event delivery"),
    simplified(
        "SDM 3C 24.9.4",
        "information for VM exits due to instruction execution",
        "the I/O RCX to RIP fields stay 0",
    ),
    modelled("SDM 3C 24.9.5", "VM-instruction error field"),
    modelled("SDM 3C 24.10", "VMCS types: ordinary and shadow"),
    modelled("SDM 3C 24.11.1", "software use of VMCS: clear, current, launched"),
    modelled("SDM 3C 24.11.2", "VMREAD, VMWRITE and encodings of VMCS fields"),
    modelled("SDM 3C 24.11.3", "initializing a VMCS"),
    simplified("SDM 3C 24.11.4", "software access to related structures", "accesses of the processor are never cached"),
    modelled("SDM 3C 24.11.5", "VMXON region"),
    simplified(
        "SDM 3C 25.1.1",
        "relative priority of faults and VM exits",
        "operands of VMX instructions are read before the VM-exit of the instruction",
    ),
    modelled("SDM 3C 25.1.2", "instructions that cause VM exits unconditionally"),
    simplified(
        "SDM 3C 25.1.3",
        "instructions that cause VM exits conditionally",
        "ENCLS, ENCLV, PCONFIG, TPAUSE, UMWAIT and LOADIWKEY do not exist",
    ),
    simplified(
        "SDM 3C 25.2",
        "other causes of VM exits",
        "machine checks do not exist; an SMI of a guest goes to SMM without an exit (default treatment)",
    ),
    simplified(
        "SDM 3C 25.3",
        "changes to instruction behavior in VMX non-root operation",
        "WRMSR of the TSC is not offset",
    ),
    modelled("SDM 3C 25.4.1", "event blocking"),
    modelled("SDM 3C 25.4.2", "treatment of task switches"),
    modelled("SDM 3C 25.5.1", "VMX-preemption timer: the simulated TSC, shifted right by 5"),
    modelled("SDM 3C 25.5.2", "monitor trap flag"),
    absent("SDM 3C 25.5.3", "translation of guest-physical addresses by processor trace", "the control fails by name"),
    simplified("SDM 3C 25.5.4", "APIC virtualization", "the TPR shadow alone; the others fail by name"),
    modelled("SDM 3C 25.5.6", "VM functions: EPTP switching"),
    modelled("SDM 3C 25.5.7", "virtualization exceptions"),
    modelled("SDM 3C 25.6", "unrestricted guests"),
    modelled("SDM 3C 26.1", "basic VM-entry checks"),
    simplified(
        "SDM 3C 26.2.1",
        "checks on VMX controls",
        "every row of the table; controls that no profile offers fail as settings that are not allowed",
    ),
    modelled("SDM 3C 26.2.2", "checks on host control registers, MSRs and SSP"),
    modelled("SDM 3C 26.2.3", "checks on host segment and descriptor-table registers"),
    modelled("SDM 3C 26.2.4", "checks related to address-space size"),
    simplified(
        "SDM 3C 26.3.1.1",
        "checks on guest control registers, debug registers and MSRs",
        "IA32_RTIT_CTL, IA32_LBR_CTL and UINV have no rows: their controls fail by name",
    ),
    modelled("SDM 3C 26.3.1.2", "checks on guest segment registers"),
    modelled("SDM 3C 26.3.1.3", "checks on guest descriptor-table registers"),
    modelled("SDM 3C 26.3.1.4", "checks on guest RIP, RFLAGS and SSP"),
    simplified(
        "SDM 3C 26.3.1.5",
        "checks on guest non-register state",
        "blocking by STI does not forbid the injection of an NMI (processors differ); SGX and RTM bits must be 0",
    ),
    modelled("SDM 3C 26.3.1.6", "checks on guest page-directory-pointer-table entries"),
    modelled("SDM 3C 26.3.2", "loading guest state"),
    modelled("SDM 3C 26.3.2.5", "updating non-register state: caches of translations"),
    modelled("SDM 3C 26.3.3", "clearing address-range monitoring: none is modelled"),
    simplified("SDM 3C 26.4", "loading MSRs", "the MSRs of the model; IA32_TIME_STAMP_COUNTER can't be loaded"),
    absent("SDM 3C 26.5", "trace-address pre-translation", "processor trace does not exist"),
    simplified(
        "SDM 3C 26.6",
        "event injection",
        "pending debug exceptions are dropped by any injected event; virtual-8086 redirection is the CPU's",
    ),
    modelled("SDM 3C 26.7.1", "interruptibility state"),
    modelled("SDM 3C 26.7.2", "activity state"),
    simplified(
        "SDM 3C 26.7.3",
        "delivery of pending debug exceptions after VM entry",
        "left to the CPU's next boundary",
    ),
    modelled("SDM 3C 26.7.4", "VMX-preemption timer"),
    modelled("SDM 3C 26.7.5", "interrupt-window exiting and virtual-interrupt delivery: the window alone"),
    modelled("SDM 3C 26.7.6", "NMI-window exiting"),
    simplified(
        "SDM 3C 26.7.7",
        "VM exits induced by the TPR threshold",
        "by MOV to CR8; entry checks the threshold instead",
    ),
    modelled("SDM 3C 26.7.8", "pending MTF VM exits"),
    modelled("SDM 3C 26.8", "VM-entry failures during or after loading guest state"),
    absent("SDM 3C 26.9", "machine-check events during VM entry", "machine checks do not exist"),
    simplified("SDM 3C 27.1", "architectural state before a VM exit", "bits of IA32_DEBUGCTL.LBR are the CPU's"),
    simplified(
        "SDM 3C 27.2.1",
        "basic VM-exit information",
        "I/O qualifications always say DX; any MONITOR since VM-entry arms MWAIT",
    ),
    modelled("SDM 3C 27.2.2", "information for VM exits due to vectored events"),
    modelled("SDM 3C 27.2.3", "information about NMI unblocking due to IRET"),
    modelled("SDM 3C 27.2.4", "information for VM exits during event delivery"),
    modelled("SDM 3C 27.2.5", "information for VM exits due to instruction execution: lengths and operands"),
    modelled("SDM 3C 27.3.1", "saving control registers, debug registers and MSRs"),
    simplified(
        "SDM 3C 27.3.2",
        "saving segment and descriptor-table registers",
        "unusable registers are saved as they are",
    ),
    modelled("SDM 3C 27.3.3", "saving RIP, RSP, RFLAGS and SSP"),
    modelled("SDM 3C 27.3.4", "saving non-register state"),
    simplified("SDM 3C 27.4", "saving MSRs", "the MSRs of the model"),
    modelled("SDM 3C 27.5.1", "loading host control registers, debug registers and MSRs"),
    modelled("SDM 3C 27.5.2", "loading host segment and descriptor-table registers"),
    modelled("SDM 3C 27.5.3", "loading host RIP, RSP, RFLAGS and SSP"),
    modelled("SDM 3C 27.5.4", "checking and loading host page-directory-pointer-table entries"),
    modelled("SDM 3C 27.5.5", "updating non-register state"),
    modelled("SDM 3C 27.5.6", "clearing address-range monitoring: none is modelled"),
    simplified("SDM 3C 27.6", "loading MSRs", "the MSRs of the model"),
    simplified("SDM 3C 27.7", "VMX aborts", "indicators 1, 2, 4 and 6; the others can't happen"),
    absent("SDM 3C 27.8", "machine-check events during VM exit", "machine checks do not exist"),
    absent("SDM 3C 27.9", "user-interrupt recognition after VM exit", "user interrupts do not exist"),
    modelled("SDM 3C 28.1", "virtual processor identifiers"),
    absent("SDM 3C 28.2", "hypervisor-managed linear-address translation", "tertiary controls are not offered"),
    modelled("SDM 3C 28.3.1", "EPT overview: which EPTP is in force"),
    simplified(
        "SDM 3C 28.3.3",
        "EPT-induced VM exits",
        "guest-paging verification (bit 15) and asynchronous accesses (bit 16) are not there",
    ),
    absent("SDM 3C 28.3.4", "sub-page write permissions", "the control fails by name"),
    modelled("SDM 3C 28.3.6", "page-modification logging: the log-full exit"),
    modelled("SDM 3C 28.4.3.1", "operations that invalidate cached mappings: VM-entry and VM-exit without VPIDs"),
    modelled("SDM 3C 28.4.3.3", "guidelines for use of INVVPID and INVEPT"),
    modelled("SDM 3C 29.1", "virtual APIC state: the virtual TPR"),
    modelled("SDM 3C 29.1.2", "TPR virtualization without virtual-interrupt delivery"),
    absent("SDM 3C 29.2", "evaluation and delivery of virtual interrupts", "the control fails by name"),
    modelled("SDM 3C 29.3", "virtualizing CR8-based TPR accesses"),
    absent("SDM 3C 29.4", "virtualizing memory-mapped APIC accesses", "the control fails by name"),
    absent("SDM 3C 29.5", "virtualizing MSR-based APIC accesses", "the control fails by name"),
    absent("SDM 3C 29.6", "posted-interrupt processing", "the control fails by name"),
    modelled("SDM 3C 30.2", "conventions: VMsucceed, VMfailInvalid, VMfailValid"),
    modelled("SDM 3C 30.3 INVEPT", "invalidate translations derived from EPT"),
    modelled("SDM 3C 30.3 INVVPID", "invalidate translations based on VPID"),
    simplified("SDM 3C 30.3 VMCALL", "call to VM monitor", "no SMM monitor can be called: VM-instruction error 1"),
    modelled("SDM 3C 30.3 VMCLEAR", "clear virtual-machine control structure"),
    modelled("SDM 3C 30.3 VMFUNC", "invoke VM function"),
    modelled("SDM 3C 30.3 VMLAUNCH/VMRESUME", "launch or resume virtual machine"),
    modelled("SDM 3C 30.3 VMPTRLD", "load pointer to virtual-machine control structure"),
    modelled("SDM 3C 30.3 VMPTRST", "store pointer to virtual-machine control structure"),
    modelled("SDM 3C 30.3 VMREAD", "read field from virtual-machine control structure"),
    simplified(
        "SDM 3C 30.3 VMRESUME",
        "VM-instruction error 6 after VMXOFF",
        "the launch state is kept: error 5 or success",
    ),
    modelled("SDM 3C 30.3 VMWRITE", "write field to virtual-machine control structure"),
    simplified("SDM 3C 30.3 VMXOFF", "leave VMX operation", "dual-monitor treatment (error 23) is not offered"),
    modelled("SDM 3C 30.3 VMXON", "enter VMX operation"),
    modelled("SDM 3C 30.4", "VM-instruction error numbers"),
    absent(
        "SDM 3C 31",
        "virtual-machine monitor programming considerations",
        "guidance for software: nothing to model",
    ),
    simplified(
        "SDM 3C 34.14",
        "default treatment of SMIs and SMM with VMX operation",
        "an SMI leaves VMX operation, RSM comes back",
    ),
    absent("SDM 3C 34.15", "dual-monitor treatment of SMIs and SMM", "not offered: IA32_VMX_BASIC bit 49 is 0"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_honest() {
        for clause in CLAUSES {
            assert_eq!(clause.note.is_empty(), clause.grade == Grade::Modelled, "{}", clause.section);
        }
        let count = |grade| CLAUSES.iter().filter(|clause| clause.grade == grade).count();
        let [modelled, simplified, absent] = [Grade::Modelled, Grade::Simplified, Grade::NotModelled].map(count);
        println!("vmx clauses: {modelled} modelled, {simplified} simplified, {absent} not modelled");
    }
}
