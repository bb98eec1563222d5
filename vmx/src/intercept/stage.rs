//! EPT violations, misconfigurations, and a full page-modification log (SDM 3C 27.2.1, table 27-7).

use super::{Controls, Decision};
use crate::capability::ept_vpid;
use crate::exit::reason::ExitReason;
use crate::exit::{Exit, ResumeFlag};
use crate::unit::Vmx;
use cpu::Core;
use cpu::virt::{EptFlags, SecondStage, StageFault, StageFaultKind, StagePurpose};
use sim_core::SimError;
use sim_core::arch::access::AccessKind;

impl Vmx {
    /// What a failed second-stage translation becomes.
    pub(super) fn stage(&self, controls: &Controls<'_>, core: &Core, fault: &StageFault) -> Result<Decision, SimError> {
        let exit = |reason| Exit { resume_flag: ResumeFlag::OfAccess, ..Exit::plain(reason) };
        let unblocking = u64::from(self.unblocking(core));
        Ok(match fault.kind {
            StageFaultKind::EptMisconfiguration => {
                Decision::Exit(Exit { guest_physical: Some(fault.gpa), ..exit(ExitReason::EptMisconfiguration) })
            }
            StageFaultKind::LogFull => Decision::Exit(Exit {
                guest_physical: Some(fault.gpa),
                linear: fault.gva,
                ..exit(ExitReason::PmlFull).qualified(unblocking)
            }),
            StageFaultKind::EptViolation { allowed } => {
                let qualification = self.violation(fault, allowed);
                let mut exit = Exit {
                    guest_physical: Some(fault.gpa),
                    linear: fault.gva,
                    ..exit(ExitReason::EptViolation).qualified(qualification)
                };
                if self.converts(core, controls.ground, controls.region, fault) {
                    return Ok(Decision::Convert(exit));
                }
                exit.qualification |= unblocking;
                Decision::Exit(exit)
            }
            StageFaultKind::NestedPageFault { .. } | StageFaultKind::NestedShadowStack => {
                return Err(SimError::internal("nested page fault under EPT"));
            }
        })
    }

    /// The qualification, with bit 12 still to be told (SDM 3C table 27-7).
    fn violation(&self, fault: &StageFault, allowed: u8) -> u64 {
        let SecondStage::Ept { eptp, controls } = self.guest.regime.second else { return 0 };
        // With EPT's accessed and dirty flags a reference to a guest table is a read and a write (table 27-7, note).
        let has_flags = eptp & 1 << 6 != 0;
        let access = match (fault.access.kind, fault.purpose) {
            (AccessKind::Read, _) => 0b001,
            (AccessKind::Write, StagePurpose::Table) if has_flags => 0b011,
            (AccessKind::Write, _) => 0b010,
            (AccessKind::Fetch, _) => 0b100,
        };
        // Bit 6 tells of user-mode execution only with mode-based execute control.
        let told = if controls.flags.contains(EptFlags::MODE_BASED_EXECUTE) { 0b1111 } else { 0b0111 };
        let linear = match (fault.gva, fault.purpose) {
            (None, _) => 0,
            (Some(_), StagePurpose::Table) => 1 << 7,
            (Some(_), StagePurpose::Final) => 1 << 7 | 1 << 8,
        };
        let is_advanced = self.capabilities.ept_vpid & ept_vpid::ADVANCED_INFORMATION != 0 && linear == 0x180;
        let first = fault.first.filter(|_| is_advanced).map_or(0, |first| u64::from(first.bits()) << 9);
        // Of the page's bit 60 the walker tells only with supervisor shadow-stack control.
        let shadow_stack = u64::from(fault.access.shadow_stack) << 13 | u64::from(allowed >> 4 & 1) << 14;
        access | u64::from(allowed & told) << 3 | linear | first | shadow_stack
    }
}
