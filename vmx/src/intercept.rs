//! What leaves a guest (SDM 3C chapter 25): each trap of the CPU, the control that intercepts it, the exit reason and
//! the exit qualification. Pure: the caller performs the exit.
//!
//! Left out: VM-exits for #DB (the pending debug exceptions of the qualification are not modelled); the operand form
//! of an I/O instruction (the qualification always says DX).

use crate::controls::{PrimaryProc, SecondaryProc};
use crate::exit::reason::ExitReason;
use crate::exit::{Exit, Interruption, ResumeFlag};
use crate::unit::Vmx;
use crate::vmcs::{Field, Region};
use cpu::virt::{At, ControlRegister, SecondStage, StageFault, StageFaultKind, StagePurpose, Trap};
use cpu::{Core, Gpr};
use sim_core::arch::access::AccessKind;
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::{Ground, Hpa, SimError};

/// The processor-based execution controls of a VMCS.
pub(crate) struct Controls<'a> {
    ground: &'a Ground,
    region: Region,
    primary: PrimaryProc,
    /// All 0 unless the primary controls activate them (SDM 3C 24.6.2).
    pub(crate) secondary: SecondaryProc,
}

impl<'a> Controls<'a> {
    pub(crate) fn of(ground: &'a Ground, region: Region) -> Self {
        let primary = PrimaryProc::from_bits_retain(region.get(ground, Field::PrimaryControls) as u32);
        let secondary = match primary.contains(PrimaryProc::ACTIVATE_SECONDARY_CONTROLS) {
            true => SecondaryProc::from_bits_retain(region.get(ground, Field::SecondaryControls) as u32),
            false => SecondaryProc::empty(),
        };
        Self { ground, region, primary, secondary }
    }

    fn get(&self, field: Field) -> u64 {
        self.region.get(self.ground, field)
    }
}

/// Access types of a control-register exit, bits 5:4 of the qualification (SDM 3C table 27-3).
#[derive(Clone, Copy)]
enum CrAccess {
    MovTo = 0,
    MovFrom = 1,
    Clts = 2,
}

impl Vmx {
    /// The VM-exit that a trap of the running guest causes, if any.
    pub(crate) fn intercepted(
        &self,
        core: &Core,
        ground: &Ground,
        trap: &Trap,
        at: At,
    ) -> Result<Option<Exit>, SimError> {
        let Some(region) = self.guest_region() else { return Ok(None) };
        let controls = Controls::of(ground, region);
        Ok(match *trap {
            Trap::Exception(exception) => exception_exit(&controls, core, &exception, at)?,
            Trap::TripleFault => Some(Exit::plain(ExitReason::TripleFault)),
            Trap::CrWrite { register, gpr, value } => {
                self.cr_write_exits(&controls, register, value).then(|| cr_exit(register, CrAccess::MovTo, gpr, at))
            }
            Trap::CrRead { register, gpr } => {
                cr_read_exits(&controls, register).then(|| cr_exit(register, CrAccess::MovFrom, gpr, at))
            }
            Trap::Clts => clts_exits(&controls).then(|| cr_exit(ControlRegister::Cr0, CrAccess::Clts, Gpr::Rax, at)),
            Trap::Io { port, bytes, input, .. } => io_exits(&controls, port, bytes)
                .then(|| Exit::instruction(ExitReason::Io, at.length).qualified(io_qualification(port, bytes, input))),
            Trap::Rdmsr(index) => {
                msr_exits(&controls, index, MsrAccess::Read).then(|| Exit::instruction(ExitReason::Rdmsr, at.length))
            }
            Trap::Wrmsr(index, _) => {
                msr_exits(&controls, index, MsrAccess::Write).then(|| Exit::instruction(ExitReason::Wrmsr, at.length))
            }
            Trap::Stage(fault) => Some(stage_exit(self.guest.regime.second, &fault)?),
            Trap::Invlpg(_) | Trap::Invpcid | Trap::Cpuid | Trap::Hlt | Trap::Rdtsc | Trap::Wbinvd | Trap::Pause => {
                instruction_exit(&controls, trap, at)?
            }
            // What no control of VMX, or none that the capabilities offer, lets exit.
            Trap::Int(_)
            | Trap::Icebp
            | Trap::Iret
            | Trap::Pushf
            | Trap::Popf
            | Trap::Smsw
            | Trap::Lmsw { .. }
            | Trap::DescriptorTable(_)
            | Trap::DrAccess { .. }
            | Trap::Rdtscp
            | Trap::Rdpmc
            | Trap::Rdrand
            | Trap::Rdseed
            | Trap::Rdpru
            | Trap::Monitor
            | Trap::Mwait
            | Trap::Invlpgb
            | Trap::Tlbsync
            | Trap::Retired
            | Trap::Window
            | Trap::Extension(_) => None,
            ref other => return Err(SimError::unmodelled(format!("VM-exit for {other:?}"))),
        })
    }

    /// MOV to CR0 and CR4 exits if a bit owned by the host would differ from the read shadow (SDM 3C 25.1.3).
    fn cr_write_exits(&self, controls: &Controls<'_>, register: ControlRegister, value: u64) -> bool {
        match register {
            ControlRegister::Cr0 | ControlRegister::Cr4 => self
                .mask_and_shadow(controls.ground, register)
                .is_some_and(|(mask, shadow)| (value ^ shadow) & mask != 0),
            ControlRegister::Cr3 => {
                let targets = Field::CR3_TARGETS.into_iter().take(controls.get(Field::Cr3TargetCount) as usize);
                controls.primary.contains(PrimaryProc::CR3_LOAD_EXITING)
                    && targets.into_iter().all(|field| controls.get(field) != value)
            }
            ControlRegister::Cr8 => controls.primary.contains(PrimaryProc::CR8_LOAD_EXITING),
            ControlRegister::Cr2 => false,
        }
    }
}

fn cr_read_exits(controls: &Controls<'_>, register: ControlRegister) -> bool {
    match register {
        ControlRegister::Cr3 => controls.primary.contains(PrimaryProc::CR3_STORE_EXITING),
        ControlRegister::Cr8 => controls.primary.contains(PrimaryProc::CR8_STORE_EXITING),
        ControlRegister::Cr0 | ControlRegister::Cr2 | ControlRegister::Cr4 => false,
    }
}

/// CLTS exits if CR0.TS is set in both the mask and the shadow (SDM 3C 25.1.3).
fn clts_exits(controls: &Controls<'_>) -> bool {
    controls.get(Field::Cr0GuestHostMask) & controls.get(Field::Cr0ReadShadow) & Cr0::TS.bits() != 0
}

/// SDM 3C table 27-3.
const fn cr_exit(register: ControlRegister, access: CrAccess, gpr: Gpr, at: At) -> Exit {
    let number = register.number() as u64;
    let qualification = number | (access as u64) << 4 | (gpr as u64) << 8;
    Exit::instruction(ExitReason::CrAccess, at.length).qualified(qualification)
}

/// What makes an instruction exit: always, or a control.
enum When {
    Always,
    Primary(PrimaryProc),
    Secondary(SecondaryProc),
}

/// The instructions that a single control intercepts (SDM 3C 25.1.2, 25.1.3).
fn instruction_exit(controls: &Controls<'_>, trap: &Trap, at: At) -> Result<Option<Exit>, SimError> {
    let (when, reason, qualification) = match trap {
        Trap::Cpuid => (When::Always, ExitReason::Cpuid, 0),
        Trap::Hlt => (When::Primary(PrimaryProc::HLT_EXITING), ExitReason::Hlt, 0),
        Trap::Invlpg(gva) => (When::Primary(PrimaryProc::INVLPG_EXITING), ExitReason::Invlpg, gva.0),
        Trap::Invpcid => {
            if !controls.secondary.contains(SecondaryProc::ENABLE_INVPCID) {
                return Err(SimError::unmodelled("INVPCID in a guest without \"enable INVPCID\" (#UD)"));
            }
            (When::Primary(PrimaryProc::INVLPG_EXITING), ExitReason::Invpcid, 0)
        }
        Trap::Rdtsc => (When::Primary(PrimaryProc::RDTSC_EXITING), ExitReason::Rdtsc, 0),
        Trap::Wbinvd => (When::Secondary(SecondaryProc::WBINVD_EXITING), ExitReason::Wbinvd, 0),
        Trap::Pause => (When::Primary(PrimaryProc::PAUSE_EXITING), ExitReason::Pause, 0),
        other => return Err(SimError::internal(format!("not an instruction of one control: {other:?}"))),
    };
    let exits = match when {
        When::Always => true,
        When::Primary(control) => controls.primary.contains(control),
        When::Secondary(control) => controls.secondary.contains(control),
    };
    Ok(exits.then(|| Exit::instruction(reason, at.length).qualified(qualification)))
}

/// The exception bitmap, with the page-fault error-code mask and match (SDM 3C 24.6.3, 25.2).
fn exception_exit(
    controls: &Controls<'_>,
    core: &Core,
    exception: &Exception,
    at: At,
) -> Result<Option<Exit>, SimError> {
    let bit = controls.get(Field::ExceptionBitmap) >> exception.vector.number() & 1 != 0;
    let exits = if exception.vector == Vector::PageFault {
        let error = u64::from(exception.error.unwrap_or(0));
        let matches = error & controls.get(Field::PageFaultErrorMask) == controls.get(Field::PageFaultErrorMatch);
        matches == bit
    } else {
        bit
    };
    if !exits {
        return Ok(None);
    }
    let (length, resume_flag) = match exception.vector {
        Vector::Debug => return Err(SimError::unmodelled("VM-exit for #DB")),
        Vector::Breakpoint | Vector::Overflow => (at.length, ResumeFlag::Kept),
        Vector::DoubleFault => (0, ResumeFlag::Kept),
        _ => (0, ResumeFlag::Set),
    };
    Ok(Some(Exit {
        qualification: exception.cr2.map_or(0, |address| address.0),
        interruption: Some(Interruption::of(exception, core.cr0)),
        length,
        resume_flag,
        ..Exit::plain(ExitReason::ExceptionOrNmi)
    }))
}

/// I/O bitmaps if they are used, else "unconditional I/O exiting" (SDM 3C 25.1.3). An access that wraps around the
/// port space exits.
fn io_exits(controls: &Controls<'_>, port: u16, bytes: u8) -> bool {
    if !controls.primary.contains(PrimaryProc::USE_IO_BITMAPS) {
        return controls.primary.contains(PrimaryProc::UNCONDITIONAL_IO_EXITING);
    }
    let ports = u32::from(port)..u32::from(port) + u32::from(bytes);
    ports.into_iter().any(|port| match port {
        0..=0x7fff => bit_of(controls, Field::IoBitmapA, port),
        0x8000..=0xffff => bit_of(controls, Field::IoBitmapB, port - 0x8000),
        _ => true,
    })
}

/// SDM 3C table 27-5.
fn io_qualification(port: u16, bytes: u8, input: bool) -> u64 {
    u64::from(bytes - 1) | u64::from(input) << 3 | u64::from(port) << 16
}

/// Which MSR bitmap.
#[derive(Clone, Copy)]
enum MsrAccess {
    Read = 0,
    Write = 0x800,
}

/// MSR bitmaps: 1 KiB each for reads of low and of high MSRs, then for writes; every other MSR exits (SDM 3C 24.6.9).
fn msr_exits(controls: &Controls<'_>, index: u32, access: MsrAccess) -> bool {
    if !controls.primary.contains(PrimaryProc::USE_MSR_BITMAPS) {
        return true;
    }
    let first_bit = match index {
        0..=0x1fff => index,
        0xc000_0000..=0xc000_1fff => index - 0xc000_0000 + 0x400 * 8,
        _ => return true,
    };
    bit_of(controls, Field::MsrBitmaps, first_bit + access as u32 * 8)
}

fn bit_of(controls: &Controls<'_>, bitmap: Field, bit: u32) -> bool {
    let at = Hpa(controls.get(bitmap)).offset(u64::from(bit / 8));
    controls.ground.mem.read(at, 1) >> (bit % 8) & 1 != 0
}

/// EPT violation and misconfiguration (SDM 3C 27.2.1, table 27-7).
fn stage_exit(second: SecondStage, fault: &StageFault) -> Result<Exit, SimError> {
    let allowed = match fault.kind {
        StageFaultKind::EptViolation { allowed } => u64::from(allowed) & 0xf,
        StageFaultKind::EptMisconfiguration => {
            return Ok(Exit {
                guest_physical: Some(fault.gpa),
                resume_flag: ResumeFlag::Set,
                ..Exit::plain(ExitReason::EptMisconfiguration)
            });
        }
        StageFaultKind::LogFull => return Err(SimError::unmodelled("page-modification log full")),
        StageFaultKind::NestedPageFault { .. } | StageFaultKind::NestedShadowStack => {
            return Err(SimError::internal("nested page fault under EPT"));
        }
    };
    // With EPT's accessed and dirty flags a reference to a guest table is a read and a write (table 27-7, note).
    let has_flags = matches!(second, SecondStage::Ept { eptp, .. } if eptp & 1 << 6 != 0);
    let access = match (fault.access.kind, fault.purpose) {
        (AccessKind::Read, _) => 0b001,
        (AccessKind::Write, StagePurpose::Table) if has_flags => 0b011,
        (AccessKind::Write, _) => 0b010,
        (AccessKind::Fetch, _) => 0b100,
    };
    let linear = match (fault.gva, fault.purpose) {
        (None, _) => 0,
        (Some(_), StagePurpose::Table) => 1 << 7,
        (Some(_), StagePurpose::Final) => 1 << 7 | 1 << 8,
    };
    Ok(Exit {
        guest_physical: Some(fault.gpa),
        linear: fault.gva,
        resume_flag: ResumeFlag::Set,
        ..Exit::plain(ExitReason::EptViolation).qualified(access | allowed << 3 | linear)
    })
}
