//! Tests of the unit as the CPU sees it: transitions, intercepts, instructions.

mod bare;
mod clean;
mod injection;
mod instructions;
mod intercepts;
mod interrupts;
mod random;
mod transitions;

use crate::entry::Entered;
use crate::exit::ExitCode;
use crate::testing::VMCB;
use crate::unit::Svm;
use crate::vmcb::{self, Field};
use cpu::Core;
use sim_core::Ground;

/// Enters the guest of the machine.
fn enter(svm: &mut Svm, core: &mut Core, ground: &mut Ground) {
    assert_eq!(svm.enter(core, ground, VMCB), Ok(Entered::Guest));
    assert_eq!(svm.guest(), Some(VMCB));
}

fn field(ground: &Ground, field: Field) -> u64 {
    vmcb::read(&ground.mem, VMCB, field)
}

fn set(ground: &mut Ground, field: Field, value: u64) {
    vmcb::write(&mut ground.mem, VMCB, field, value);
}

/// EXITCODE, EXITINFO1, EXITINFO2 and nRIP.
fn report(ground: &Ground) -> (Option<ExitCode>, u64, u64, u64) {
    let code = ExitCode::from_number(field(ground, Field::ExitCode));
    (code, field(ground, Field::ExitInfo1), field(ground, Field::ExitInfo2), field(ground, Field::NextRip))
}
