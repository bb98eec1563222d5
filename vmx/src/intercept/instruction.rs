//! Instructions that exit always, or by one control (SDM 3C 25.1.2, 25.1.3), and those that do not exist without a control
//! (25.3).

use super::{Controls, Decision};
use crate::controls::{PrimaryProc, SecondaryProc};
use crate::exit::Exit;
use crate::exit::reason::ExitReason;
use crate::instructions::information;
use crate::vmcs::Field;
use cpu::Core;
use cpu::virt::{At, TableInstruction, Trap};
use sim_core::arch::exception::Exception;

/// What makes an instruction exit: always, or a control.
enum When {
    Always,
    Primary(PrimaryProc),
    Secondary(SecondaryProc),
    /// A bit of the XSS-exiting bitmap that is set in IA32_XSS and asked for.
    Components(u64),
}

/// One instruction's rule.
struct Rule {
    /// The control without which the instruction is #UD.
    needs: SecondaryProc,
    when: When,
    reason: ExitReason,
    qualification: u64,
    information: u32,
}

impl Rule {
    const fn new(when: When, reason: ExitReason) -> Self {
        Self { needs: SecondaryProc::empty(), when, reason, qualification: 0, information: 0 }
    }

    const fn qualified(self, qualification: u64) -> Self {
        Self { qualification, ..self }
    }

    const fn informed(self, information: u32) -> Self {
        Self { information, ..self }
    }

    const fn needing(self, needs: SecondaryProc) -> Self {
        Self { needs, ..self }
    }
}

/// The rule of an instruction; none for what VMX never intercepts.
fn rule(controls: &Controls<'_>, trap: &Trap, at: At) -> Option<Rule> {
    use ExitReason as Reason;
    use When::{Always, Components, Primary, Secondary};
    let operands = &at.operand;
    let displacement = information::displacement(operands);
    Some(match *trap {
        Trap::Cpuid => Rule::new(Always, Reason::Cpuid),
        Trap::Getsec => Rule::new(Always, Reason::Getsec),
        Trap::Invd => Rule::new(Always, Reason::Invd),
        Trap::Xsetbv => Rule::new(Always, Reason::Xsetbv),
        Trap::Hlt => Rule::new(Primary(PrimaryProc::HLT_EXITING), Reason::Hlt),
        Trap::Invlpg(gva) => Rule::new(Primary(PrimaryProc::INVLPG_EXITING), Reason::Invlpg).qualified(gva.0),
        Trap::Invpcid => Rule::new(Primary(PrimaryProc::INVLPG_EXITING), Reason::Invpcid)
            .needing(SecondaryProc::ENABLE_INVPCID)
            .qualified(displacement)
            .informed(information::invalidation(operands)),
        Trap::Rdtsc => Rule::new(Primary(PrimaryProc::RDTSC_EXITING), Reason::Rdtsc),
        Trap::Rdtscp => {
            Rule::new(Primary(PrimaryProc::RDTSC_EXITING), Reason::Rdtscp).needing(SecondaryProc::ENABLE_RDTSCP)
        }
        Trap::Rdpmc => Rule::new(Primary(PrimaryProc::RDPMC_EXITING), Reason::Rdpmc),
        Trap::Monitor => Rule::new(Primary(PrimaryProc::MONITOR_EXITING), Reason::Monitor),
        Trap::Mwait => {
            Rule::new(Primary(PrimaryProc::MWAIT_EXITING), Reason::Mwait).qualified(controls.is_armed.into())
        }
        Trap::Wbinvd => Rule::new(Secondary(SecondaryProc::WBINVD_EXITING), Reason::Wbinvd),
        Trap::Rdrand => {
            Rule::new(Secondary(SecondaryProc::RDRAND_EXITING), Reason::Rdrand).informed(information::random(operands))
        }
        Trap::Rdseed => {
            Rule::new(Secondary(SecondaryProc::RDSEED_EXITING), Reason::Rdseed).informed(information::random(operands))
        }
        Trap::DescriptorTable(instruction) => {
            Rule::new(Secondary(SecondaryProc::DESCRIPTOR_TABLE_EXITING), table_reason(instruction))
                .qualified(displacement)
                .informed(information::descriptor_table(instruction, operands))
        }
        Trap::Xsaves(asked) => xsave_area(Components(asked), Reason::Xsaves, at),
        Trap::Xrstors(asked) => xsave_area(Components(asked), Reason::Xrstors, at),
        _ => return None,
    })
}

fn xsave_area(when: When, reason: ExitReason, at: At) -> Rule {
    Rule::new(when, reason)
        .needing(SecondaryProc::ENABLE_XSAVES_XRSTORS)
        .qualified(information::displacement(&at.operand))
        .informed(information::memory_only(&at.operand))
}

const fn table_reason(instruction: TableInstruction) -> ExitReason {
    match instruction {
        TableInstruction::Sgdt | TableInstruction::Sidt | TableInstruction::Lgdt | TableInstruction::Lidt => {
            ExitReason::GdtrIdtr
        }
        TableInstruction::Sldt | TableInstruction::Str | TableInstruction::Lldt | TableInstruction::Ltr => {
            ExitReason::LdtrTr
        }
    }
}

/// What becomes of an instruction.
pub(super) fn decide(controls: &Controls<'_>, core: &Core, trap: &Trap, at: At) -> Decision {
    let Some(rule) = rule(controls, trap, at) else { return Decision::Pass };
    if !controls.secondary.contains(rule.needs) {
        return Decision::Raise(Exception::ud());
    }
    let exits = match rule.when {
        When::Always => true,
        When::Primary(control) => controls.primary.contains(control),
        When::Secondary(control) => controls.secondary.contains(control),
        When::Components(asked) => asked & core.msrs.xss & controls.get(Field::XssExitingBitmap) != 0,
    };
    Decision::exits(exits, || {
        Exit::instruction(rule.reason, at.length).qualified(rule.qualification).informed(rule.information)
    })
}
