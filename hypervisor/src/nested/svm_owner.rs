//! Whose an exit of L2 is on SVM (`nested_svm_exit_special`, `nested_svm_intercept`, `check_selective_cr0_intercepted`;
//! APM2 15.9 to 15.13): the intercept word and bit of an exit code, and L1's permission maps.
//!
//! Left out: the traps after writes to control registers and EFER, which no CPUID bit offers to L1 outside of SEV-ES, and
//! whose writes L0 intercepts earlier.

use crate::exits::Exit;
use crate::run::Run;
use cpu::Gpr;
use cpu::virt::ControlRegister;
use mmu::plant::Plant;
use mmu::state::TdpMode;
use sim_core::addr::Gpa;
use sim_core::arch::control::Cr0;
use sim_core::arch::exception::{Exception, Vector};
use svm::vmcb::Field;
use svm::{ExitCode, Intercepts};

/// The intercept words of a VMCB with the exit codes of their bits (APM2 tables B-1 and C-1).
const WORDS: [(std::ops::RangeInclusive<u64>, Field); 8] = [
    (0x00..=0x0f, Field::InterceptCrReads),
    (0x10..=0x1f, Field::InterceptCrWrites),
    (0x20..=0x2f, Field::InterceptDrReads),
    (0x30..=0x3f, Field::InterceptDrWrites),
    (0x40..=0x5f, Field::InterceptExceptions),
    (0x60..=0x7f, Field::InterceptWord3),
    (0x80..=0x9f, Field::InterceptWord4),
    (0xa0..=0xbf, Field::InterceptWord5),
];

/// Who handles an exit of L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// L0: the tables that it maintains may be what is missing.
    L0,
    /// L1, whose VMCB hardware refused.
    L1,
    /// L1 if this bit of its intercept word is on.
    Bit(Field, u32),
    /// L1 if it intercepts ports and the port's bit is on.
    Io,
    /// L1 if it intercepts MSRs and the MSR's bit is on.
    Msr,
}

fn owner(code: ExitCode) -> Owner {
    match code {
        ExitCode::NestedPageFault
        | ExitCode::AvicIncompleteIpi
        | ExitCode::AvicNoAccel
        | ExitCode::Vmgexit
        // Physical events are the host's (`nested_svm_exit_special`).
        | ExitCode::Intr
        | ExitCode::Nmi
        | ExitCode::Smi => Owner::L0,
        ExitCode::Invalid => Owner::L1,
        ExitCode::Io => Owner::Io,
        ExitCode::Msr => Owner::Msr,
        other => {
            let number = other.number();
            let word = WORDS.iter().find(|(codes, _)| codes.contains(&number));
            word.map_or(Owner::L0, |(codes, field)| Owner::Bit(*field, (number - codes.start()) as u32))
        }
    }
}

/// Where an MSR's pair of bits is in an MSR permission map (APM2 15.11); one outside of the map is always intercepted.
fn msr_bits(index: u32) -> Option<u64> {
    const VECTORS: [u32; 3] = [0, 0xc000_0000, 0xc001_0000];
    let place = |(vector, first): (usize, &u32)| {
        let offset = index.checked_sub(*first).filter(|offset| *offset < 0x2000)?;
        Some(vector as u64 * 0x2000 + u64::from(offset))
    };
    VECTORS.iter().enumerate().find_map(place).map(|msr| 2 * msr)
}

/// Bits of CR0 whose change the selective intercept lets pass (`SVM_CR0_SELECTIVE_MASK`).
const SELECTIVE: Cr0 = Cr0::TS.union(Cr0::MP).union(Cr0::ET);

impl Run<'_> {
    /// `nested_svm_exit_handled`, after L0 has taken what it must handle itself.
    pub(crate) fn svm_l1_wants(&self, exit: &Exit) -> bool {
        let Some(code) = ExitCode::from_number(self.vmcb_get(Field::ExitCode)) else { return false };
        match (owner(code), exit) {
            (Owner::Bit(..), Exit::Exception(exception)) if exception.vector == Vector::PageFault => {
                self.vm.config.tdp != TdpMode::Off && self.svm_l1_intercepts(exception)
            }
            (Owner::L0, _) => false,
            (Owner::L1, _) => true,
            (Owner::Bit(word, bit), _) => self.vmcb12(word) >> bit & 1 == 1 || self.is_selective_cr0(exit),
            (Owner::Io, _) => {
                self.l1_has(Intercepts::IO) && !self.vm.plants.has(Plant::IgnoresIopm) && self.l1_wants_port()
            }
            (Owner::Msr, _) => self.l1_has(Intercepts::MSR) && self.l1_wants_msr_access(exit),
        }
    }

    /// Whether L1 set an intercept.
    pub(crate) fn l1_has(&self, intercept: Intercepts) -> bool {
        Intercepts::read(&self.ground.mem, self.svm_state().nested.vmcb12).contains(intercept)
    }

    /// A bit of one of L1's permission maps; one that is not in memory counts as set. The low 12 bits of the map's
    /// address are ignored.
    fn map_bit(&self, map: Field, bit: u64) -> bool {
        let at = Gpa(self.vmcb12(map) & !sim_core::addr::PAGE_OFFSET_MASK).offset(bit / 8);
        let byte = self.vm.slots.host(self.space(), at).map_or(0xff, |host| self.ground.mem.read(host, 1));
        byte >> (bit % 8) & 1 == 1
    }

    /// `nested_svm_intercept_ioio`: any port of the access.
    fn l1_wants_port(&self) -> bool {
        let info1 = self.vmcb_get(Field::ExitInfo1);
        let (first, bytes) = (info1 >> 16 & 0xffff, info1 >> 4 & 7);
        (first..first + bytes.max(1)).any(|port| self.map_bit(Field::IopmBase, port))
    }

    /// `nested_svm_exit_handled_msr`.
    fn l1_wants_msr_access(&self, exit: &Exit) -> bool {
        let write = u64::from(*exit == Exit::Wrmsr);
        let index = self.vcpu.gprs[Gpr::Rcx as usize] as u32;
        if self.vm.plants.has(Plant::IgnoresMsrpm) {
            return true;
        }
        msr_bits(index).is_none_or(|bit| self.map_bit(Field::MsrpmBase, bit + write))
    }

    /// Whether L1's selective intercept of CR0 writes asks for this one. L0 intercepts them all, so hardware reports the
    /// other code. LMSW exits whatever it writes (APM2 15.9).
    pub(crate) fn is_selective_cr0(&self, exit: &Exit) -> bool {
        let write = match *exit {
            Exit::CrWrite(ControlRegister::Cr0, gpr) => {
                (self.vcpu.cr0.bits() ^ self.cr_operand(gpr)) & !SELECTIVE.bits() != 0
            }
            Exit::Lmsw(_) => true,
            _ => false,
        };
        write && self.l1_has(Intercepts::SELECTIVE_CR0)
    }

    /// Whether L1 intercepts an exception.
    pub(crate) fn svm_l1_intercepts(&self, exception: &Exception) -> bool {
        self.vmcb12(Field::InterceptExceptions) >> exception.vector.number() & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every exit code of APM2 table C-1 has an owner: the codes below 0xc0 their own bit of an intercept word, or a
    /// permission map behind it, and the others are L0's or mean that L1's VMCB is bad.
    #[test]
    fn every_exit_code_has_an_owner() {
        for code in ExitCode::all() {
            let number = code.number();
            let expected = match number {
                0x60..=0x62 | 0x400..=0x403 => Owner::L0,
                0x7b => Owner::Io,
                0x7c => Owner::Msr,
                u64::MAX => Owner::L1,
                _ => {
                    let words = [
                        (0x00, Field::InterceptCrReads),
                        (0x10, Field::InterceptCrWrites),
                        (0x20, Field::InterceptDrReads),
                        (0x30, Field::InterceptDrWrites),
                        (0x40, Field::InterceptExceptions),
                        (0x60, Field::InterceptWord3),
                        (0x80, Field::InterceptWord4),
                        (0xa0, Field::InterceptWord5),
                    ];
                    let (first, word) = words.into_iter().rev().find(|(first, _)| *first <= number).expect("a word");
                    Owner::Bit(word, (number - first) as u32)
                }
            };
            assert_eq!(owner(code), expected, "{code}");
        }
    }

    /// APM2 15.11: the bits of MSRs at the edges of the map's vectors.
    #[test]
    fn msr_permission_bits() {
        for (index, bit) in [
            (0, Some(0)),
            (0x1fff, Some(0x3ffe)),
            (0x2000, None),
            (0xbfff_ffff, None),
            (0xc000_0080, Some(0x4100)),
            (0xc000_1fff, Some(0x7ffe)),
            (0xc000_2000, None),
            (0xc001_0114, Some(0x8228)),
            (0xc001_2000, None),
        ] {
            assert_eq!(msr_bits(index), bit, "{index:#x}");
        }
    }
}
