//! Whose an exit of L2 is on VMX (`nested_vmx_l0_wants_exit`, `nested_vmx_l1_wants_exit`; SDM 3C 25): one row an exit
//! reason, and the few rules that need more than a control of vmcs12.
//!
//! Left out, for L0 does not offer the control to L1: VMREAD and VMWRITE bitmaps, ENCLS bitmaps, and the reasons that
//! virtual-APIC pages, the monitor trap flag and page-modification logging bring along.

use crate::exits::Exit;
use crate::nested::vmcs12::Vmcs12;
use crate::run::Run;
use cpu::Gpr;
use cpu::virt::ControlRegister;
use mmu::state::TdpMode;
use sim_core::SimError;
use sim_core::addr::Gpa;
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, Vector};
use vmx::controls::{PrimaryProc, SecondaryProc};
use vmx::{ExitReason, Field};

/// Who handles an exit of L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// L0, whatever L1 asked for; if L1 has to know, L0 tells it in words of its own.
    L0,
    /// L1: the instruction exits unconditionally, or nobody but L1 can have asked.
    L1,
    /// L1 if the control is on.
    Primary(PrimaryProc),
    /// L1 if the control is on.
    Secondary(SecondaryProc),
    /// L1 if both controls are on.
    Both(PrimaryProc, SecondaryProc),
    /// L1 if either control is on.
    Either(PrimaryProc, SecondaryProc),
    /// L1's exception bitmap says.
    Exception,
    /// L1's masks, shadows and CR3-target values say.
    CrAccess,
    /// L1's I/O bitmaps say.
    Io,
    /// L1's MSR bitmaps say.
    Msr(MsrAccess),
}

/// Which half of an MSR bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MsrAccess {
    Read,
    Write,
}

/// The owner of every basic exit reason.
const fn owner(reason: ExitReason) -> Owner {
    use ExitReason as R;
    match reason {
        R::ExceptionOrNmi => Owner::Exception,
        R::ExternalInterrupt
        | R::EptViolation
        | R::EptMisconfiguration
        | R::PreemptionTimer
        | R::PmlFull
        | R::Vmfunc
        | R::EntryMachineCheck => Owner::L0,
        R::TripleFault
        | R::Init
        | R::StartUp
        | R::IoSmi
        | R::OtherSmi
        | R::TaskSwitch
        | R::Cpuid
        | R::Getsec
        | R::Invd
        | R::Rsm
        | R::Vmcall
        | R::Vmclear
        | R::Vmlaunch
        | R::Vmptrld
        | R::Vmptrst
        | R::Vmread
        | R::Vmresume
        | R::Vmwrite
        | R::Vmxoff
        | R::Vmxon
        | R::Invept
        | R::Invvpid
        | R::Xsetbv
        | R::EntryGuestState
        | R::EntryMsrLoading
        | R::ApicAccess
        | R::ApicWrite
        | R::VirtualizedEoi
        | R::SppEvent
        | R::Loadiwkey => Owner::L1,
        R::InterruptWindow => Owner::Primary(PrimaryProc::INTERRUPT_WINDOW_EXITING),
        R::NmiWindow => Owner::Primary(PrimaryProc::NMI_WINDOW_EXITING),
        R::Hlt => Owner::Primary(PrimaryProc::HLT_EXITING),
        R::Invlpg => Owner::Primary(PrimaryProc::INVLPG_EXITING),
        R::Rdpmc => Owner::Primary(PrimaryProc::RDPMC_EXITING),
        R::Rdtsc | R::Rdtscp => Owner::Primary(PrimaryProc::RDTSC_EXITING),
        R::CrAccess => Owner::CrAccess,
        R::MovDr => Owner::Primary(PrimaryProc::MOV_DR_EXITING),
        R::Io => Owner::Io,
        R::Rdmsr => Owner::Msr(MsrAccess::Read),
        R::Wrmsr => Owner::Msr(MsrAccess::Write),
        R::Mwait => Owner::Primary(PrimaryProc::MWAIT_EXITING),
        R::MonitorTrapFlag => Owner::Primary(PrimaryProc::MONITOR_TRAP_FLAG),
        R::Monitor => Owner::Primary(PrimaryProc::MONITOR_EXITING),
        R::Pause => Owner::Either(PrimaryProc::PAUSE_EXITING, SecondaryProc::PAUSE_LOOP_EXITING),
        R::TprBelowThreshold => Owner::Primary(PrimaryProc::USE_TPR_SHADOW),
        R::GdtrIdtr | R::LdtrTr => Owner::Secondary(SecondaryProc::DESCRIPTOR_TABLE_EXITING),
        R::Wbinvd => Owner::Secondary(SecondaryProc::WBINVD_EXITING),
        R::Rdrand => Owner::Secondary(SecondaryProc::RDRAND_EXITING),
        R::Rdseed => Owner::Secondary(SecondaryProc::RDSEED_EXITING),
        R::Invpcid => Owner::Both(PrimaryProc::INVLPG_EXITING, SecondaryProc::ENABLE_INVPCID),
        R::Encls => Owner::Secondary(SecondaryProc::ENABLE_ENCLS_EXITING),
        R::Xsaves | R::Xrstors => Owner::Secondary(SecondaryProc::ENABLE_XSAVES_XRSTORS),
        R::Umwait | R::Tpause => Owner::Secondary(SecondaryProc::ENABLE_USER_WAIT_AND_PAUSE),
    }
}

impl Owner {
    /// The answer where vmcs12's controls alone give it.
    fn by_controls(self, vmcs12: &Vmcs12) -> Option<bool> {
        let (primary, secondary) = (vmcs12.primary(), vmcs12.secondary());
        match self {
            Self::L0 => Some(false),
            Self::L1 => Some(true),
            Self::Primary(control) => Some(primary.contains(control)),
            Self::Secondary(control) => Some(secondary.contains(control)),
            Self::Both(one, other) => Some(primary.contains(one) && secondary.contains(other)),
            Self::Either(one, other) => Some(primary.contains(one) || secondary.contains(other)),
            Self::Exception | Self::CrAccess | Self::Io | Self::Msr(_) => None,
        }
    }
}

/// Where an MSR's bit is in the MSR bitmaps: reads of the low and the high range, then writes (SDM 3C 24.6.9). Any other
/// MSR always exits.
fn msr_bit(index: u32, access: MsrAccess) -> Option<u64> {
    let half = match index {
        0..=0x1fff => 0,
        0xc000_0000..=0xc000_1fff => 0x400,
        _ => return None,
    };
    let table = if access == MsrAccess::Read { 0 } else { 0x800 };
    Some((table + half) * 8 + u64::from(index & 0x1fff))
}

/// Whether LMSW changes a bit of CR0 that L1 owns: it can set PE but not clear it, and does not reach beyond TS.
const fn lmsw_is_l1s(mask: u64, shadow: u64, source: u64) -> bool {
    let changed = mask & (shadow ^ source);
    changed & 0xe != 0 || (changed & source & 1 != 0)
}

impl Run<'_> {
    /// `nested_vmx_reflect_vmexit`'s question, after L0 has taken what it must handle itself.
    pub(crate) fn vmx_l1_wants(&self, exit: &Exit) -> Result<bool, SimError> {
        let word = self.vmread(Field::ExitReason);
        let reason = ExitReason::from_word(word).ok_or_else(|| SimError::internal(format!("exit reason {word:#x}")))?;
        let (owner, vmcs12) = (owner(reason), self.vmcs12());
        if let Some(answer) = owner.by_controls(vmcs12) {
            return Ok(answer);
        }
        Ok(match owner {
            Owner::Msr(access) => self.l1_wants_msr(access),
            Owner::Io => self.l1_wants_io(),
            Owner::CrAccess => self.l1_wants_cr_access(exit),
            _ => match exit {
                // A shadow of L0's may be what is missing.
                Exit::Exception(exception) if exception.vector == Vector::PageFault => {
                    self.vm.config.tdp != TdpMode::Off && self.vmx_l1_intercepts(exception)
                }
                Exit::Exception(exception) => self.vmx_l1_intercepts(exception),
                _ => false,
            },
        })
    }

    /// A bit of one of L1's bitmaps; one that is not in memory counts as set.
    fn l1_bit(&self, bitmap: Field, bit: u64) -> bool {
        let at = Gpa(self.vmcs12().get(bitmap)).offset(bit / 8);
        let byte = self.vm.slots.host(self.space(), at).map_or(0xff, |host| self.ground.mem.read(host, 1));
        byte >> (bit % 8) & 1 == 1
    }

    fn l1_wants_msr(&self, access: MsrAccess) -> bool {
        let index = self.vcpu.gprs[Gpr::Rcx as usize] as u32;
        !self.vmcs12().primary().contains(PrimaryProc::USE_MSR_BITMAPS)
            || msr_bit(index, access).is_none_or(|bit| self.l1_bit(Field::MsrBitmaps, bit))
    }

    /// `nested_vmx_check_io_bitmaps`: any port of the access; one that wraps around the port space always exits.
    fn l1_wants_io(&self) -> bool {
        let primary = self.vmcs12().primary();
        if !primary.contains(PrimaryProc::USE_IO_BITMAPS) {
            return primary.contains(PrimaryProc::UNCONDITIONAL_IO_EXITING);
        }
        let qualification = self.vmread(Field::ExitQualification);
        let (first, bytes) = (qualification >> 16 & 0xffff, (qualification & 7) + 1);
        (first..first + bytes).any(|port| match port {
            0..=0x7fff => self.l1_bit(Field::IoBitmapA, port),
            0x8000..=0xffff => self.l1_bit(Field::IoBitmapB, port - 0x8000),
            _ => true,
        })
    }

    /// `nested_vmx_exit_handled_cr`.
    fn l1_wants_cr_access(&self, exit: &Exit) -> bool {
        let vmcs12 = self.vmcs12();
        let (get, primary) = (|field| vmcs12.get(field), vmcs12.primary());
        let differs = |mask, shadow, value: u64| get(mask) & (get(shadow) ^ value) != 0;
        let cr0 = (get(Field::Cr0GuestHostMask), get(Field::Cr0ReadShadow));
        match *exit {
            Exit::CrWrite(register, gpr) => {
                let value = self.cr_operand(gpr);
                match register {
                    ControlRegister::Cr0 => differs(Field::Cr0GuestHostMask, Field::Cr0ReadShadow, value),
                    ControlRegister::Cr4 => differs(Field::Cr4GuestHostMask, Field::Cr4ReadShadow, value),
                    ControlRegister::Cr3 => {
                        primary.contains(PrimaryProc::CR3_LOAD_EXITING) && !self.is_cr3_target(value)
                    }
                    ControlRegister::Cr8 => primary.contains(PrimaryProc::CR8_LOAD_EXITING),
                    ControlRegister::Cr2 => false,
                }
            }
            Exit::CrRead(ControlRegister::Cr3, _) => primary.contains(PrimaryProc::CR3_STORE_EXITING),
            Exit::CrRead(ControlRegister::Cr8, _) => primary.contains(PrimaryProc::CR8_STORE_EXITING),
            Exit::Clts => cr0.0 & cr0.1 & Cr0::TS.bits() != 0,
            Exit::Lmsw(source) => lmsw_is_l1s(cr0.0, cr0.1, u64::from(source)),
            _ => false,
        }
    }

    /// Whether MOV to CR3 of a value does not exit whatever L1 asked for (SDM 3C 24.6.7).
    fn is_cr3_target(&self, value: u64) -> bool {
        const TARGETS: [Field; 4] = [Field::Cr3Target0, Field::Cr3Target1, Field::Cr3Target2, Field::Cr3Target3];
        let count = self.vmcs12().get(Field::Cr3TargetCount) as usize;
        TARGETS.into_iter().take(count).any(|target| self.vmcs12().get(target) == value)
    }

    /// Whether L1 intercepts an exception: its bitmap, and for page faults the error-code mask and match, which turn
    /// the bit around (SDM 3C 25.2).
    pub(crate) fn vmx_l1_intercepts(&self, exception: &Exception) -> bool {
        let vmcs12 = self.vmcs12();
        let bit = vmcs12.get(Field::ExceptionBitmap) >> exception.vector.number() & 1 == 1;
        if exception.vector != Vector::PageFault {
            return bit;
        }
        let error = u64::from(exception.error.unwrap_or(0));
        let matches = error & vmcs12.get(Field::PageFaultErrorMask) == vmcs12.get(Field::PageFaultErrorMatch);
        bit == matches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What L1 is asked for at every exit reason (SDM 3C 25.1.2 and 25.1.3): with every control on, L1 has all exits but
    /// those that L0's own tables and timers make; with none, those of the instructions that exit unconditionally.
    #[test]
    fn every_reason_has_an_owner() {
        let mut all = Vmcs12::default();
        all.set(Field::PrimaryControls, u64::from(u32::MAX));
        all.set(Field::SecondaryControls, u64::from(u32::MAX));
        let none = Vmcs12::default();
        for reason in ExitReason::ALL {
            let number = reason.number();
            let l0 = [1, 41, 48, 49, 52, 59, 62].contains(&number);
            let decided_by_more = [0, 28, 30, 31, 32].contains(&number);
            let unconditional = [2, 3, 4, 5, 6, 9, 10, 11, 13, 17, 33, 34, 44, 45, 50, 53, 55, 56, 66, 69]
                .contains(&number)
                || (18..=27).contains(&number);
            let answers = [&all, &none].map(|vmcs12| owner(*reason).by_controls(vmcs12));
            let expected = if decided_by_more { [None; 2] } else { [Some(!l0), Some(unconditional)] };
            assert_eq!(answers, expected, "{}", reason.name());
        }
    }

    /// Each control asks for the exits of its own reasons and for no others (SDM 3C 24.6.2, tables 24-6 and 24-7).
    #[test]
    fn controls_ask_for_their_own_reasons() {
        const ACTIVATE: u32 = PrimaryProc::ACTIVATE_SECONDARY_CONTROLS.bits();
        let rows: [(u32, u32, &[u16]); 16] = [
            (PrimaryProc::INTERRUPT_WINDOW_EXITING.bits(), 0, &[7]),
            (PrimaryProc::NMI_WINDOW_EXITING.bits(), 0, &[8]),
            (PrimaryProc::HLT_EXITING.bits(), 0, &[12]),
            (PrimaryProc::INVLPG_EXITING.bits(), 0, &[14]),
            (PrimaryProc::INVLPG_EXITING.bits(), SecondaryProc::ENABLE_INVPCID.bits(), &[14, 58]),
            (0, SecondaryProc::ENABLE_INVPCID.bits(), &[]),
            (PrimaryProc::MWAIT_EXITING.bits(), 0, &[36]),
            (PrimaryProc::MONITOR_EXITING.bits(), 0, &[39]),
            (PrimaryProc::RDPMC_EXITING.bits(), 0, &[15]),
            (PrimaryProc::RDTSC_EXITING.bits(), 0, &[16, 51]),
            (PrimaryProc::MOV_DR_EXITING.bits(), 0, &[29]),
            (PrimaryProc::PAUSE_EXITING.bits(), 0, &[40]),
            (0, SecondaryProc::PAUSE_LOOP_EXITING.bits(), &[40]),
            (0, SecondaryProc::DESCRIPTOR_TABLE_EXITING.bits(), &[46, 47]),
            (0, SecondaryProc::WBINVD_EXITING.bits(), &[54]),
            (0, SecondaryProc::RDRAND_EXITING.bits() | SecondaryProc::RDSEED_EXITING.bits(), &[57, 61]),
        ];
        for (primary, secondary, expected) in rows {
            let mut vmcs12 = Vmcs12::default();
            vmcs12.set(Field::PrimaryControls, u64::from(primary | ACTIVATE));
            vmcs12.set(Field::SecondaryControls, u64::from(secondary));
            let asked: Vec<u16> = ExitReason::ALL
                .iter()
                .filter(|reason| owner(**reason) != Owner::L1 && owner(**reason).by_controls(&vmcs12) == Some(true))
                .map(|reason| reason.number())
                .collect();
            assert_eq!(asked, expected, "{primary:#x} {secondary:#x}");
        }
    }

    /// All values of mask, shadow and source in the four bits that LMSW reaches (SDM 3C 25.1.3).
    #[test]
    fn lmsw_exits_for_bits_that_it_can_change() {
        for (mask, shadow, source) in (0..16u64)
            .flat_map(|mask| (0..16u64).flat_map(move |shadow| (0..16u64).map(move |source| (mask, shadow, source))))
        {
            let bit = |index: u64| {
                let [owned, shown, wanted] = [mask, shadow, source].map(|word| word >> index & 1 == 1);
                owned && shown != wanted && (index != 0 || wanted)
            };
            assert_eq!(lmsw_is_l1s(mask, shadow, source), (0..4).any(bit), "{mask:x} {shadow:x} {source:x}");
        }
    }

    /// SDM 3C 24.6.9: four bitmaps of 1 KiB.
    #[test]
    fn msr_bitmap_bits() {
        for (index, read) in [
            (0, Some(0)),
            (0x1fff, Some(0x1fff)),
            (0x2000, None),
            (0xbfff_ffff, None),
            (0xc000_0000, Some(0x2000)),
            (0xc000_0080, Some(0x2080)),
            (0xc000_1fff, Some(0x3fff)),
            (0xc000_2000, None),
        ] {
            assert_eq!(msr_bit(index, MsrAccess::Read), read, "{index:#x}");
            assert_eq!(msr_bit(index, MsrAccess::Write), read.map(|bit| bit + 0x4000), "{index:#x}");
        }
    }
}
