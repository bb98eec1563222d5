//! Registers as `KVM_GET_SREGS` and `KVM_GET_REGS` spell them, and as the engine does.

use cpu::Gpr;
use cpu::core::Segments;
use hypervisor::Sregs;
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};

fn to_segment(segment: Segment) -> kvm_segment {
    let rights = segment.rights;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: rights.kind() as u8,
        present: rights.is_present().into(),
        dpl: rights.dpl(),
        db: rights.is_big().into(),
        s: rights.is_code_or_data().into(),
        l: rights.is_long().into(),
        g: rights.is_granular().into(),
        avl: 0,
        unusable: rights.is_unusable().into(),
        padding: 0,
    }
}

fn from_segment(segment: &kvm_segment) -> Segment {
    let bit = |value: u8, at: u32| u32::from(value) << at;
    let rights = u32::from(segment.type_)
        | bit(segment.s, 4)
        | bit(segment.dpl, 5)
        | bit(segment.present, 7)
        | bit(segment.l, 13)
        | bit(segment.db, 14)
        | bit(segment.g, 15)
        | bit(segment.unusable, 16);
    Segment { selector: segment.selector, base: segment.base, limit: segment.limit, rights: Rights(rights) }
}

const fn to_table(table: TableRegister) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, padding: [0; 3] }
}

const fn from_table(table: &kvm_dtable) -> TableRegister {
    TableRegister { base: table.base, limit: table.limit }
}

/// General registers in the order of their numbers.
pub(super) const fn gprs(regs: &kvm_regs) -> [u64; 16] {
    [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9, regs.r10,
        regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ]
}

/// One general register.
pub(super) const fn gpr(regs: &kvm_regs, register: Gpr) -> u64 {
    gprs(regs)[register as usize]
}

/// The engine's registers from the kernel's.
pub(super) fn read(sregs: &kvm_sregs, regs: &kvm_regs) -> Sregs {
    Sregs {
        segments: Segments {
            es: from_segment(&sregs.es),
            cs: from_segment(&sregs.cs),
            ss: from_segment(&sregs.ss),
            ds: from_segment(&sregs.ds),
            fs: from_segment(&sregs.fs),
            gs: from_segment(&sregs.gs),
            ldtr: from_segment(&sregs.ldt),
            tr: from_segment(&sregs.tr),
        },
        gdtr: from_table(&sregs.gdt),
        idtr: from_table(&sregs.idt),
        cr0: Cr0::from_bits_retain(sregs.cr0),
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: Cr4::from_bits_retain(sregs.cr4),
        cr8: sregs.cr8 as u8,
        efer: Efer::from_bits_retain(sregs.efer),
        gprs: gprs(regs),
        rip: regs.rip,
        rflags: Rflags::from_bits_retain(regs.rflags),
    }
}

/// The kernel's system registers from the engine's; what the engine does not know stays.
pub(super) fn write_sregs(into: &mut kvm_sregs, from: &Sregs) {
    let segments = &from.segments;
    for (to, segment) in [
        (&mut into.es, segments.es),
        (&mut into.cs, segments.cs),
        (&mut into.ss, segments.ss),
        (&mut into.ds, segments.ds),
        (&mut into.fs, segments.fs),
        (&mut into.gs, segments.gs),
        (&mut into.ldt, segments.ldtr),
        (&mut into.tr, segments.tr),
    ] {
        *to = to_segment(segment);
    }
    (into.gdt, into.idt) = (to_table(from.gdtr), to_table(from.idtr));
    (into.cr0, into.cr2, into.cr3, into.cr4) = (from.cr0.bits(), from.cr2, from.cr3, from.cr4.bits());
    (into.cr8, into.efer) = (from.cr8.into(), from.efer.bits());
}

/// The kernel's general registers from the engine's.
pub(super) const fn to_regs(from: &Sregs) -> kvm_regs {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = from.gprs;
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip: from.rip,
        rflags: from.rflags.bits(),
    }
}
