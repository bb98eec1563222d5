//! #VMEXIT: guest state to the VMCB, host state from the host save area (APM2 15.6).
//!
//! The save area holds whole segment registers, so that leaving a guest reads no descriptor table; APM2 15.6 leaves that
//! to the implementation. CR2, DR0 to DR3, DR6 and the registers of VMLOAD keep the guest's values, as the manual says.
//!
//! EXITINTINFO tells the event whose delivery the exit interrupted, injected or the guest's own (APM2 15.7.2).

mod code;

pub use code::ExitCode;

use crate::capability::Features;
use crate::entry::INTERRUPT_SHADOW;
use crate::inject::EventInjection;
use crate::interrupts::{VirtualFlags, VirtualInterrupts};
use crate::unit::{Gif, HostSide, Monitor, Running, Svm};
use crate::vmcb::{self, CleanBits, Field, Image, SegmentField, TableField};
use cpu::core::Blocking;
use cpu::paging::pdpte;
use cpu::profile;
use cpu::{Activity, Core, Gpr, Regime, SecondStage};
use sim_core::addr::Gva;
use sim_core::arch::control::{Cr0, Cr4, Efer, PagingMode};
use sim_core::arch::extension::Extension;
use sim_core::arch::rflags::Rflags;
use sim_core::arch::segment::{Segment, TableRegister};
use sim_core::clock::Cost;
use sim_core::event::{Event, FlushScope};
use sim_core::memory::PhysMem;
use sim_core::{Ground, Hpa};

/// DR7 with every breakpoint disabled.
const DR7_DISABLED: u64 = 0x400;
/// Groups of the save area that #VMEXIT writes whole.
const SAVED_GROUPS: CleanBits =
    CleanBits::CRX.union(CleanBits::DRX).union(CleanBits::DT).union(CleanBits::SEG).union(CleanBits::CR2);

/// What a #VMEXIT reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: ExitCode,
    pub(crate) info1: u64,
    pub(crate) info2: u64,
    /// nRIP: the next instruction for instruction intercepts, else 0 (APM2 15.7.1).
    pub(crate) next: u64,
    /// The guest instruction bytes, and how many (APM2 15.8).
    pub(crate) bytes: InstructionBytes,
}

/// The bytes at the guest's rIP, as far as they were fetched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InstructionBytes {
    pub(crate) bytes: [u8; 15],
    pub(crate) count: u8,
}

impl Exit {
    /// An exit because of an instruction.
    pub(crate) const fn instruction(code: ExitCode, next: u64) -> Self {
        Self { code, info1: 0, info2: 0, next, bytes: InstructionBytes { bytes: [0; 15], count: 0 } }
    }

    /// An exit because of something else.
    pub(crate) const fn event(code: ExitCode, info1: u64, info2: u64) -> Self {
        Self { info1, info2, ..Self::instruction(code, 0) }
    }
}

impl Svm {
    /// Leaves the running guest. Does nothing in the host.
    pub(crate) fn exit(&mut self, core: &mut Core, ground: &mut Ground, exit: &Exit) {
        let Some(running) = self.running.take() else { return };
        let vmcb = running.vmcb;
        save_state(core, &mut ground.mem, vmcb);
        for (field, value) in [
            (Field::Dr6, core.dr6),
            (Field::Dr7, core.dr7),
            (Field::Cr2, core.cr2.0),
            (Field::ExitIntInfo, core.delivering.take().map_or(0, |event| EventInjection::of_delivery(&event).0)),
            (Field::InterruptShadow, shadow(core)),
        ] {
            vmcb::write(&mut ground.mem, vmcb, field, value);
        }
        self.cache.refresh(&ground.mem, vmcb, SAVED_GROUPS);
        if matches!(running.controls.second, SecondStage::Npt { .. }) {
            self.write_back(&mut ground.mem, vmcb, Field::GuestPat, core.msrs.pat);
            core.msrs.pat = vmcb::read(&ground.mem, self.hsave, Field::GuestPat);
        }
        if core.features.contains(profile::Features::CET_SS) {
            for (field, value) in shadow_stack(core) {
                self.write_back(&mut ground.mem, vmcb, field, value);
            }
        }
        self.save_virtual_interrupts(core, &mut ground.mem, &running);
        restore_host_side(core, &running);
        self.leave(core, ground, vmcb, exit);
    }

    /// Writes a field of the guest's to memory and to the processor's copy.
    fn write_back(&mut self, mem: &mut PhysMem, vmcb: Hpa, field: Field, value: u64) {
        vmcb::write(mem, vmcb, field, value);
        self.cache.update(vmcb, field, value);
    }

    /// V_TPR, V_IRQ, VGIF and the virtual NMI's bits go back; the rest of the field stays software's.
    fn save_virtual_interrupts(&mut self, core: &Core, mem: &mut PhysMem, running: &Running) {
        let mut word = running.virtual_interrupts;
        if word.has(VirtualFlags::INTR_MASKING) {
            word.set_tpr(core.cr8);
        }
        if word.has(VirtualFlags::NMI_ENABLE) {
            word.set(VirtualFlags::NMI_MASK, core.blocking.contains(Blocking::NMI));
        }
        let merge = |old: u64| (old & !VirtualInterrupts::WRITTEN_BACK) | (word.0 & VirtualInterrupts::WRITTEN_BACK);
        let old = vmcb::read(mem, running.vmcb, Field::VirtualInterrupt);
        vmcb::write(mem, running.vmcb, Field::VirtualInterrupt, merge(old));
        if let Some(copy) = self.cache.get(running.vmcb) {
            let old = copy.field(Field::VirtualInterrupt);
            self.cache.update(running.vmcb, Field::VirtualInterrupt, merge(old));
        }
    }

    /// The part of #VMEXIT that a refused VMRUN shares: no guest state is saved, because none was loaded.
    pub(crate) fn leave(&mut self, core: &mut Core, ground: &mut Ground, vmcb: Hpa, exit: &Exit) {
        let mem = &mut ground.mem;
        vmcb::write(mem, vmcb, Field::ExitCode, exit.code.number());
        vmcb::write(mem, vmcb, Field::ExitInfo1, exit.info1);
        vmcb::write(mem, vmcb, Field::ExitInfo2, exit.info2);
        if self.capabilities.has(Features::NRIP_SAVE) {
            vmcb::write(mem, vmcb, Field::NextRip, exit.next);
        }
        if self.capabilities.has(Features::DECODE_ASSISTS) {
            vmcb::write_instruction(mem, vmcb, &exit.bytes.bytes[..usize::from(exit.bytes.count)]);
        }
        let injection = EventInjection(vmcb::read(mem, vmcb, Field::EventInjection));
        vmcb::write(mem, vmcb, Field::EventInjection, injection.spent().0);
        self.gif = Gif::Clear;
        self.monitor = Monitor::Idle;
        self.exiting = None;
        load_host(core, ground, self.hsave);
        let event = Event::VmExit {
            extension: Extension::Svm,
            region: vmcb,
            reason: exit.code.number(),
            name: exit.code.name(),
            qualification: exit.info1,
        };
        ground.spend(Cost::VmExit, event);
        flush_by_habit(core, ground);
    }
}

/// VMRUN and #VMEXIT invalidate nothing unless TLB_CONTROL says so (APM2 15.16.2); a processor may have the habit.
pub(crate) fn flush_by_habit(core: &mut Core, ground: &mut Ground) {
    if core.tlb.profile().has(profile::Habits::TRANSITIONS_FLUSH) {
        core.tlb.flush(ground, FlushScope::All);
    }
}

/// The field at 068h.
const fn shadow(core: &Core) -> u64 {
    if core.blocking.intersects(Blocking::STI.union(Blocking::MOV_SS)) { INTERRUPT_SHADOW } else { 0 }
}

const fn shadow_stack(core: &Core) -> [(Field, u64); 3] {
    [(Field::SCet, core.msrs.s_cet), (Field::Ssp, core.ssp), (Field::IsstAddress, core.msrs.interrupt_ssp_table)]
}

/// What the guest had virtual versions of becomes the host's again.
fn restore_host_side(core: &mut Core, running: &Running) {
    let HostSide { cr8, nmi_blocked, .. } = running.host;
    if running.virtual_interrupts.has(VirtualFlags::INTR_MASKING) {
        core.cr8 = cr8;
    }
    if running.virtual_interrupts.has(VirtualFlags::NMI_ENABLE) {
        core.blocking.set(Blocking::NMI, nmi_blocked);
    }
}

/// Saves what both VMRUN (host) and #VMEXIT (guest) save.
pub(crate) fn save_state(core: &Core, mem: &mut PhysMem, area: Hpa) {
    let segments = &core.segments;
    for (field, segment) in [
        (SegmentField::Es, &segments.es),
        (SegmentField::Cs, &segments.cs),
        (SegmentField::Ss, &segments.ss),
        (SegmentField::Ds, &segments.ds),
    ] {
        vmcb::write_segment(mem, area, field, segment);
    }
    vmcb::write_table(mem, area, TableField::Gdtr, core.gdtr);
    vmcb::write_table(mem, area, TableField::Idtr, core.idtr);
    for (field, value) in [
        (Field::Efer, core.efer.bits()),
        (Field::Cr0, core.cr0.bits()),
        (Field::Cr3, core.cr3),
        (Field::Cr4, core.cr4.bits()),
        (Field::Rflags, core.rflags.bits()),
        (Field::Rip, core.rip),
        (Field::Rsp, core.gpr(Gpr::Rsp)),
        (Field::Rax, core.gpr(Gpr::Rax)),
        (Field::Cpl, u64::from(core.cpl())),
    ] {
        vmcb::write(mem, area, field, value);
    }
}

/// The host's shadow-stack registers go to the host save area too (APM2 15.5.1).
pub(crate) fn save_host(core: &Core, mem: &mut PhysMem, area: Hpa) {
    save_state(core, mem, area);
    vmcb::write(mem, area, Field::GuestPat, core.msrs.pat);
    if core.features.contains(profile::Features::CET_SS) {
        for (field, value) in shadow_stack(core) {
            vmcb::write(mem, area, field, value);
        }
    }
}

/// Loads what [`save_state`] saved. Bits that the model doesn't name are dropped.
pub(crate) fn load_state(core: &mut Core, image: &Image) {
    core.efer = Efer::from_bits_truncate(image.field(Field::Efer));
    core.cr0 = Cr0::from_bits_truncate(image.field(Field::Cr0)) | Cr0::ET;
    core.cr3 = image.field(Field::Cr3);
    core.cr4 = Cr4::from_bits_truncate(image.field(Field::Cr4));
    core.rflags = Rflags::from_bits_truncate(image.field(Field::Rflags)) | Rflags::FIXED;
    core.rip = image.field(Field::Rip);
    core.set_gpr(Gpr::Rsp, image.field(Field::Rsp));
    core.set_gpr(Gpr::Rax, image.field(Field::Rax));
    // APM2 15.5.1: bases are sign-extended from the highest implemented bit rather than checked.
    let canonical = |base| Gva(base).canonical(core.linear_width()).0;
    let segment = |field| {
        let segment = image.segment(field);
        Segment { base: canonical(segment.base), ..segment }
    };
    let table = |field| {
        let table = image.table(field);
        TableRegister { base: canonical(table.base), ..table }
    };
    let (gdtr, idtr) = (table(TableField::Gdtr), table(TableField::Idtr));
    let [es, cs, ss, ds] = [SegmentField::Es, SegmentField::Cs, SegmentField::Ss, SegmentField::Ds].map(segment);
    (core.gdtr, core.idtr) = (gdtr, idtr);
    (core.segments.es, core.segments.cs, core.segments.ss, core.segments.ds) = (es, cs, ss, ds);
    core.activity = Activity::Active;
}

/// APM2 15.6: the host comes back with CR0.PE set, RFLAGS.VM clear, breakpoints disabled, at CPL 0; in PAE mode its
/// PDPTEs are read again, and illegal ones shut the processor down.
fn load_host(core: &mut Core, ground: &mut Ground, hsave: Hpa) {
    let image = Image::read(&ground.mem, hsave);
    load_state(core, &image);
    core.cr0.insert(Cr0::PE);
    core.rflags.remove(Rflags::VM);
    core.dr7 = DR7_DISABLED;
    core.pending_debug = 0;
    core.blocking.remove(Blocking::STI | Blocking::MOV_SS);
    if core.features.contains(profile::Features::CET_SS) {
        core.msrs.s_cet = image.field(Field::SCet);
        core.ssp = image.field(Field::Ssp);
        core.msrs.interrupt_ssp_table = image.field(Field::IsstAddress);
    }
    if core.paging_mode() == PagingMode::Pae {
        match pdpte::load(core.maxphyaddr, &Regime::default(), ground, core.cr3) {
            Ok(pdptes) => core.pdptes = pdptes,
            Err(_) => core.activity = Activity::Shutdown,
        }
    }
}
