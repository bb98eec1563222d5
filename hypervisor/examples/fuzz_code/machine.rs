//! Machines: every mode of the processor, outside and inside of guests, with tables that are valid but for some entries.

use super::code;
use super::random::Random;
use cpu::profile::Features;
use cpu::{Core, Gpr};
use hypervisor::machine::Ext;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Rights, Segment, TableRegister};
use sim_core::event::{Detail, EventLog};
use sim_core::{Ground, Hpa};
use svm::{Intercepts, Svm, vmcb};
use vmx::controls::{PrimaryProc, SecondaryProc};
use vmx::vmcs::Region;
use vmx::{Capabilities, Entry, Field, Vmx};

const CODE: u64 = 0x8000;
const GDT: u64 = 0x2000;
const IDT: u64 = 0x3000;
const TSS: u64 = 0x4000;
const STACK: u64 = 0x7000;
/// PML5, PML4, PDPT, two page directories and a page table; then the PAE PDPT and the 32-bit directory and table.
const TABLES: u64 = 0x1_0000;
const PAE_PDPT: u64 = 0x1_6000;
const LEGACY: u64 = 0x1_8000;
/// The same once more for the second stage.
const NESTED: u64 = 0x2_0000;
const REGION: u64 = 0x3_0000;
const FRAMES: u64 = 0x400;

/// A processor, its extension and its memory.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) core: Core,
    pub(crate) ext: Ext,
    pub(crate) ground: Ground,
    pub(crate) name: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Real,
    Protected16,
    Protected32,
    Virtual8086,
    Legacy,
    Pae,
    Compatibility,
    Long4,
    Long5,
}

const MODES: [(Mode, &str); 12] = [
    (Mode::Real, "real mode"),
    (Mode::Protected16, "16-bit protected mode"),
    (Mode::Protected32, "32-bit protected mode"),
    (Mode::Virtual8086, "virtual-8086 mode"),
    (Mode::Legacy, "32-bit paging"),
    (Mode::Pae, "PAE paging"),
    (Mode::Compatibility, "compatibility mode"),
    (Mode::Long4, "64-bit mode"),
    (Mode::Long4, "64-bit mode"),
    (Mode::Long4, "64-bit mode"),
    (Mode::Long5, "5-level paging"),
    (Mode::Long5, "5-level paging"),
];

impl Machine {
    /// A machine whose next instruction is random code.
    pub(crate) fn build(random: &mut Random) -> Self {
        let (mode, name) = random.pick(&MODES);
        let mut ground = Ground::new(FRAMES);
        ground.log = EventLog::new(random.pick(&[Detail::Nothing, Detail::Transitions]));
        tables(random, &mut ground);
        let start = if random.one_in(4) { CODE + 0x1000 - random.below(40) } else { CODE + random.below(256) };
        let code = code::generate(random);
        ground.mem.write_bytes(Hpa(start), &code);
        let mut core = Core::flat32(random.pick(&[36, 40, 46, 52]));
        if random.one_in(2) {
            core.features = Features::from_bits_truncate(random.next() | random.next());
        }
        let ext = extension(random, &mut core, &mut ground);
        registers(random, &mut core, mode);
        core.rip = start;
        Self { core, ext, ground, name }
    }
}

/// Descriptor tables, TSS, page tables: identity, but for some entries.
fn tables(random: &mut Random, ground: &mut Ground) {
    const DESCRIPTORS: [u64; 12] = [
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x0000_8b00_4000_0067,
        0x00af_9b00_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x008f_9b00_0000_ffff,
        0x0000_8900_4000_0067,
        0x0000_8200_2000_00ff,
        0x0000_ec00_0008_8100,
        0x0000_e500_0018_0000,
    ];
    let mem = &mut ground.mem;
    for index in 1..32 {
        let raw = if random.one_in(8) { random.next() } else { random.pick(&DESCRIPTORS) };
        let fixed = DESCRIPTORS.get(index as usize - 1).copied().filter(|_| !random.one_in(16));
        mem.write_u64(Hpa(GDT + 8 * index), fixed.unwrap_or(raw));
    }
    for vector in 0..64 {
        let selector = random.pick(&[0x08, 0x20, 0x08, 0x18]);
        let kind = random.pick(&[0x8e, 0xee, 0x8f, 0xef, 0x85, 0x8e]);
        let gate = ((CODE + 0x100 + 4 * vector) & 0xffff) | selector << 16 | kind << 40;
        mem.write_u64(Hpa(IDT + 8 * vector), if random.one_in(16) { random.next() } else { gate });
    }
    for word in 0..16 {
        mem.write_u64(Hpa(TSS + 8 * word), random.pick(&[STACK, STACK - 0x100, 0, 0x10, 0x8_0000]));
    }
    mem.write(Hpa(TSS + 0x66), 0x68, 2);
    for root in [TABLES, NESTED] {
        let leaf = if root == NESTED { 0x37 } else { 7 };
        for level in 0..4 {
            mem.write_u64(Hpa(root + 0x1000 * level), (root + 0x1000 * (level + 1)) | 7);
        }
        mem.write_u64(Hpa(root + 0x3008), 0x20_0080 | leaf);
        for page in 0..512 {
            let odd = if random.one_in(64) {
                {
                    let any = random.next();
                    random.pick(&[0, 1, 5, 3, 1 << 63 | 7, 1 << 59 | 7, any])
                }
            } else {
                leaf
            };
            mem.write_u64(Hpa(root + 0x4000 + 8 * page), page << 12 | odd);
        }
    }
    mem.write_u64(Hpa(PAE_PDPT), (TABLES + 0x3000) | 1);
    mem.write_u32(Hpa(LEGACY), LEGACY as u32 + 0x1007);
    mem.write_u32(Hpa(LEGACY + 4), 0x40_0087);
    for page in 0..1024 {
        let odd = if random.one_in(64) { random.next() as u32 } else { 7 };
        mem.write_u32(Hpa(LEGACY + 0x1000 + 4 * page), (page as u32) << 12 | odd);
    }
}

/// Registers of a mode, at a privilege level, with odd values here and there.
fn registers(random: &mut Random, core: &mut Core, mode: Mode) {
    let cpl: u8 = if matches!(mode, Mode::Real) { 0 } else { random.pick(&[0, 0, 3, 3, 1]) };
    let dpl = u32::from(cpl) << 5;
    let (cs, paging, long) = match mode {
        Mode::Real | Mode::Virtual8086 => (0x9b, false, false),
        Mode::Protected16 => (0x809b, false, false),
        Mode::Protected32 => (Rights::CODE32.0, false, false),
        Mode::Legacy | Mode::Pae => (Rights::CODE32.0, true, false),
        Mode::Compatibility => (Rights::CODE32.0, true, true),
        Mode::Long4 | Mode::Long5 => (Rights::CODE64.0, true, true),
    };
    core.cr0 = Cr0::ET | Cr0::NE;
    core.cr0.set(Cr0::PE, mode != Mode::Real);
    core.cr0.set(Cr0::PG, paging);
    core.cr0 |= Cr0::from_bits_truncate(random.some_of((Cr0::WP | Cr0::AM).bits()));
    core.cr4.set(Cr4::PAE, long || mode == Mode::Pae);
    core.cr4.set(Cr4::LA57, mode == Mode::Long5);
    let optional = Cr4::PGE | Cr4::SMEP | Cr4::SMAP | Cr4::UMIP | Cr4::PSE | Cr4::DE | Cr4::FSGSBASE | Cr4::OSFXSR;
    core.cr4 |= Cr4::from_bits_truncate(random.some_of(optional.bits()));
    if random.one_in(4) {
        core.cr4 |= Cr4::from_bits_truncate(random.some_of((Cr4::PKE | Cr4::OSXSAVE | Cr4::PCIDE).bits()));
    }
    core.efer.set(Efer::LME | Efer::LMA, long);
    core.efer |= Efer::from_bits_truncate(random.some_of((Efer::NXE | Efer::SCE).bits()));
    core.cr3 = match mode {
        Mode::Legacy => LEGACY,
        Mode::Pae => PAE_PDPT,
        Mode::Long5 => TABLES,
        _ => TABLES + 0x1000,
    };
    core.pdptes = [(TABLES + 0x3000) | 1, 0, 0, 0];
    core.rflags = Rflags::FIXED | Rflags::from_bits_truncate(random.some_of((Rflags::STATUS | Rflags::IF).bits()));
    core.rflags.set(Rflags::VM, mode == Mode::Virtual8086);
    if random.one_in(8) {
        core.rflags |= Rflags::from_bits_truncate(random.some_of(0x25_7500));
    }
    core.segments.cs = Segment { rights: Rights(cs | dpl), ..Segment::flat(0x08 | u16::from(cpl), Rights(cs)) };
    let data = Segment { rights: Rights(Rights::DATA.0 | dpl), ..Segment::flat(0x10 | u16::from(cpl), Rights::DATA) };
    let segments = &mut core.segments;
    (segments.ss, segments.ds, segments.es, segments.fs, segments.gs) = (data, data, data, data, data);
    segments.tr = Segment { selector: 0x18, base: TSS, limit: 0x67, rights: Rights::BUSY_TSS };
    core.gdtr = TableRegister { base: GDT, limit: 0xff };
    core.idtr = TableRegister { base: IDT, limit: 0x3ff };
    for register in 0..16 {
        core.gprs[register] = match random.below(8) {
            0..=3 => random.below(FRAMES << 12),
            4 => random.below(64),
            5 => random.pick(&[
                0xc000_0080,
                0xc000_0081,
                0x10,
                0x1b,
                0x174,
                0x1d9,
                0x277,
                0x3a,
                0x480,
                0xda0,
                0xc001_0117,
            ]),
            6 => random.pick(&[0x7fff_ffff_fff8, 0xffff_8000_0000_0000, REGION, REGION + 0x1000, 0x1_0000_0000]),
            _ => random.next(),
        };
    }
    core.set_gpr(Gpr::Rsp, if random.one_in(8) { random.next() } else { STACK - 8 * random.below(32) });
    odd_registers(random, core);
}

/// Debug registers, pending events, keys and bases, in some machines.
fn odd_registers(random: &mut Random, core: &mut Core) {
    if random.one_in(8) {
        core.dr7 = 0x400 | random.some_of(0xffff_03ff);
        core.dr = [0; 4].map(|_| CODE + random.below(512));
    }
    if random.one_in(16) {
        core.pins.interrupt = Some(random.next() as u8);
    }
    if random.one_in(8) {
        core.pkru = random.next() as u32;
        core.msrs.pat = 0x0007_0406_0007_0406;
        core.segments.fs.base = random.next();
        core.segments.gs.base = random.below(FRAMES << 12);
        core.msrs.lstar = CODE + 0x80;
        core.msrs.star = 0x0018_0008_0000_0000;
    }
}

/// No extension in use, a host that has turned it on, or a guest with and without a second stage.
fn extension(random: &mut Random, core: &mut Core, ground: &mut Ground) -> Ext {
    if random.one_in(2) {
        Ext::Vmx(Box::new(intel(random, core, ground)))
    } else {
        Ext::Svm(Box::new(amd(random, core, ground)))
    }
}

fn host(core: &mut Core) {
    core.cr0 |= Cr0::PG | Cr0::PE | Cr0::NE | Cr0::WP;
    core.cr4 |= Cr4::PAE;
    core.efer |= Efer::LME | Efer::LMA;
    core.cr3 = TABLES + 0x1000;
    core.segments.cs.rights = Rights::CODE64;
}

fn intel(random: &mut Random, core: &mut Core, ground: &mut Ground) -> Vmx {
    let capabilities = Capabilities::default();
    let mut vmx = Vmx::new(capabilities);
    if random.one_in(3) {
        return vmx;
    }
    host(core);
    core.cr4 |= Cr4::VMXE;
    for region in [REGION, REGION + 0x1000] {
        ground.mem.write_u32(Hpa(region), capabilities.revision);
    }
    let entered_root = vmx.vmxon(core, ground, Hpa(REGION)).is_ok();
    if !entered_root || vmx.vmclear(ground, Hpa(REGION + 0x1000)).is_err() || random.one_in(3) {
        return vmx;
    }
    let _ = vmx.vmptrld(ground, Hpa(REGION + 0x1000));
    let known = PrimaryProc::UNCONDITIONAL_IO_EXITING | PrimaryProc::CR3_LOAD_EXITING | PrimaryProc::CR3_STORE_EXITING;
    let primary = u64::from(capabilities.primary.may & !known.bits());
    let secondary = u64::from(capabilities.secondary.may & !SecondaryProc::UNRESTRICTED_GUEST.bits());
    let without = if random.one_in(2) { u64::from(SecondaryProc::ENABLE_EPT.bits()) } else { 0 };
    let mut fields = vec![
        (Field::PinBasedControls, capabilities.pin.may.into()),
        (Field::PrimaryControls, primary),
        (Field::SecondaryControls, secondary & !without),
        (Field::ExitControls, capabilities.exit.may.into()),
        (Field::EntryControls, capabilities.entry.may.into()),
        (Field::IoBitmapA, REGION + 0x2000),
        (Field::IoBitmapB, REGION + 0x3000),
        (Field::MsrBitmaps, REGION + 0x4000),
        (Field::ExceptionBitmap, random.next() & 0xffff_ffff & random.next()),
        (Field::Vpid, 7),
        (Field::EptPointer, (NESTED + 0x1000) | 0x5e),
        (Field::VmcsLinkPointer, u64::MAX),
        (Field::HostCr0, core.cr0.bits()),
        (Field::HostCr3, core.cr3),
        (Field::HostCr4, core.cr4.bits()),
        (Field::HostEfer, core.efer.bits()),
        (Field::HostPat, 0x0007_0406_0007_0406),
        (Field::HostCsSelector, 0x20),
        (Field::HostTrSelector, 0x18),
        (Field::HostTrBase, TSS),
        (Field::HostGdtrBase, GDT),
        (Field::HostIdtrBase, IDT),
        (Field::HostRsp, STACK),
        (Field::HostRip, CODE + 0x40),
        (Field::GuestCr0, core.cr0.bits()),
        (Field::GuestCr3, core.cr3),
        (Field::GuestCr4, core.cr4.bits()),
        (Field::GuestEfer, core.efer.bits()),
        (Field::GuestPat, 0x0007_0406_0007_0406),
        (Field::GuestDr7, 0x400),
        (Field::GuestRflags, 2),
        (Field::GuestCsSelector, 8),
        (Field::GuestCsLimit, 0xffff_ffff),
        (Field::GuestCsRights, Rights::CODE64.0.into()),
        (Field::GuestTrSelector, 0x18),
        (Field::GuestTrLimit, 0x67),
        (Field::GuestTrRights, Rights::BUSY_TSS.0.into()),
    ];
    use Field::{GuestDsRights, GuestEsRights, GuestFsRights, GuestGsRights, GuestLdtrRights, GuestSsRights};
    let unusable = [GuestLdtrRights, GuestSsRights, GuestDsRights, GuestEsRights, GuestFsRights, GuestGsRights];
    fields.extend(unusable.map(|field| (field, Rights::UNUSABLE.0.into())));
    if random.one_in(4) {
        let index = random.below(fields.len() as u64) as usize;
        fields[index].1 ^= 1 << random.below(64);
    }
    for (field, value) in fields {
        Region(Hpa(REGION + 0x1000)).set(ground, field, value);
    }
    let _ = vmx.enter(core, ground, Entry::Launch);
    vmx
}

fn amd(random: &mut Random, core: &mut Core, ground: &mut Ground) -> Svm {
    let mut svm = Svm::new(svm::Capabilities::default());
    if random.one_in(3) {
        return svm;
    }
    host(core);
    core.efer |= Efer::SVME;
    svm.set_hsave(Hpa(REGION + 0x1000));
    if random.one_in(3) {
        return svm;
    }
    let region = Hpa(REGION);
    let mem = &mut ground.mem;
    use vmcb::Field as F;
    for (field, value) in [
        (F::IopmBase, REGION + 0x4000),
        (F::MsrpmBase, REGION + 0x8000),
        (F::Asid, 5),
        (F::Efer, core.efer.bits()),
        (F::Cr0, core.cr0.bits()),
        (F::Cr3, core.cr3),
        (F::Cr4, core.cr4.bits()),
        (F::Dr6, 0xffff_0ff0),
        (F::Dr7, 0x400),
        (F::Rflags, 2),
        (F::Rip, CODE),
        (F::GuestPat, 0x0007_0406_0007_0406),
        (F::NestedControl, random.below(2)),
        (F::NestedCr3, NESTED + 0x1000),
    ] {
        vmcb::write(mem, region, field, value);
    }
    let intercepts = Intercepts::from_bits_truncate((random.next() & random.next()).into());
    (intercepts | Intercepts::VMRUN).write(mem, region);
    vmcb::write_segment(mem, region, vmcb::SegmentField::Cs, &Segment::flat(8, Rights::CODE64));
    vmcb::write_segment(mem, region, vmcb::SegmentField::Ss, &Segment::flat(0x10, Rights::DATA));
    let _ = svm.enter(core, ground, region);
    svm
}
