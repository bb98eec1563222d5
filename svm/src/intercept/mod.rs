//! Intercept bits of the VMCB, and what the model does with each (APM2 15.7 to 15.14, table B-1).
//!
//! A bit falls into one of three classes ([`Support`]). Most are honoured. Some are accepted although nothing comes of
//! them, because the event can't happen in the model. The rest would have to stop something that the CPU does without
//! asking; setting one of those is refused by name at VMRUN.

mod controls;
mod decide;
mod info;
mod maps;

pub(crate) use controls::{Controls, WriteTrap};
pub(crate) use decide::{Situation, decide, instruction_row, next_rip, pause};
pub(crate) use info::stage_exit;
pub(crate) use maps::{IOPM_BYTES, MSRPM_BYTES};

use crate::vmcb::{self, Field, Image};
use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use sim_core::Hpa;
use sim_core::memory::PhysMem;

/// What the model does about an intercept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Support {
    /// The event exits.
    Honoured,
    /// The event can't happen in the model, so the bit may be set and has no effect.
    NeverHappens,
    /// The event happens and can't be stopped: VMRUN says that the bit is not modelled.
    Unmodelled,
}

macro_rules! intercepts {
    ($($name:ident $word:literal $bit:literal $support:ident $text:literal)*) => {
        bitflags! {
            /// The intercept words at 00Ch (bits 31:0), 010h (bits 63:32) and 014h (bits 95:64).
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
            pub struct Intercepts: u128 {
                $(#[doc = $text] const $name = 1 << (32 * ($word - 3) + $bit);)*
            }
        }

        /// Every intercept bit with its support and its name.
        pub const TABLE: &[(Intercepts, Support, &str)] =
            &[$((Intercepts::$name, Support::$support, $text),)*];
    };
}

intercepts! {
    INTR          3  0 Honoured     "physical maskable interrupt"
    NMI           3  1 Honoured     "NMI"
    SMI           3  2 Honoured     "SMI"
    INIT          3  3 Honoured     "INIT"
    VINTR         3  4 Honoured     "virtual maskable interrupt"
    SELECTIVE_CR0 3  5 Honoured     "CR0 writes that change bits other than TS or MP"
    IDTR_READ     3  6 Honoured     "reads of IDTR"
    GDTR_READ     3  7 Honoured     "reads of GDTR"
    LDTR_READ     3  8 Honoured     "reads of LDTR"
    TR_READ       3  9 Honoured     "reads of TR"
    IDTR_WRITE    3 10 Honoured     "writes of IDTR"
    GDTR_WRITE    3 11 Honoured     "writes of GDTR"
    LDTR_WRITE    3 12 Honoured     "writes of LDTR"
    TR_WRITE      3 13 Honoured     "writes of TR"
    RDTSC         3 14 Honoured     "RDTSC"
    RDPMC         3 15 Honoured     "RDPMC"
    PUSHF         3 16 Honoured     "PUSHF"
    POPF          3 17 Honoured     "POPF"
    CPUID         3 18 Honoured     "CPUID"
    RSM           3 19 Honoured     "RSM"
    IRET          3 20 Honoured     "IRET"
    INTN          3 21 Honoured     "INTn"
    INVD          3 22 Honoured     "INVD"
    PAUSE         3 23 Honoured     "PAUSE"
    HLT           3 24 Honoured     "HLT"
    INVLPG        3 25 Honoured     "INVLPG"
    INVLPGA       3 26 Honoured     "INVLPGA"
    IO            3 27 Honoured     "IOIO_PROT"
    MSR           3 28 Honoured     "MSR_PROT"
    TASK_SWITCH   3 29 Honoured     "task switches"
    FERR_FREEZE   3 30 NeverHappens "FERR_FREEZE"
    SHUTDOWN      3 31 Honoured     "shutdown events"
    VMRUN         4  0 Honoured     "VMRUN"
    VMMCALL       4  1 Honoured     "VMMCALL"
    VMLOAD        4  2 Honoured     "VMLOAD"
    VMSAVE        4  3 Honoured     "VMSAVE"
    STGI          4  4 Honoured     "STGI"
    CLGI          4  5 Honoured     "CLGI"
    SKINIT        4  6 Honoured     "SKINIT"
    RDTSCP        4  7 Honoured     "RDTSCP"
    ICEBP         4  8 Honoured     "ICEBP"
    WBINVD        4  9 Honoured     "WBINVD and WBNOINVD"
    MONITOR       4 10 Honoured     "MONITOR"
    MWAIT         4 11 Honoured     "MWAIT"
    MWAIT_ARMED   4 12 Honoured     "MWAIT if the monitor is armed"
    XSETBV        4 13 Honoured     "XSETBV"
    RDPRU         4 14 Honoured     "RDPRU"
    EFER_TRAP     4 15 Honoured     "EFER writes, after they finish"
    CR0_TRAP      4 16 Honoured     "CR0 writes, after they finish"
    CR1_TRAP      4 17 NeverHappens "CR1 writes, after they finish"
    CR2_TRAP      4 18 Honoured     "CR2 writes, after they finish"
    CR3_TRAP      4 19 Honoured     "CR3 writes, after they finish"
    CR4_TRAP      4 20 Honoured     "CR4 writes, after they finish"
    CR5_TRAP      4 21 NeverHappens "CR5 writes, after they finish"
    CR6_TRAP      4 22 NeverHappens "CR6 writes, after they finish"
    CR7_TRAP      4 23 NeverHappens "CR7 writes, after they finish"
    CR8_TRAP      4 24 Honoured     "CR8 writes, after they finish"
    CR9_TRAP      4 25 NeverHappens "CR9 writes, after they finish"
    CR10_TRAP     4 26 NeverHappens "CR10 writes, after they finish"
    CR11_TRAP     4 27 NeverHappens "CR11 writes, after they finish"
    CR12_TRAP     4 28 NeverHappens "CR12 writes, after they finish"
    CR13_TRAP     4 29 NeverHappens "CR13 writes, after they finish"
    CR14_TRAP     4 30 NeverHappens "CR14 writes, after they finish"
    CR15_TRAP     4 31 NeverHappens "CR15 writes, after they finish"
    INVLPGB       5  0 Honoured     "INVLPGB"
    INVLPGB_BAD   5  1 Honoured     "INVLPGB, illegally specified"
    INVPCID       5  2 Honoured     "INVPCID"
    MCOMMIT       5  3 NeverHappens "MCOMMIT"
    TLBSYNC       5  4 Honoured     "TLBSYNC"
    BUS_LOCK      5  5 Unmodelled   "bus locks beyond the threshold"
    IDLE_HLT      5  6 Honoured     "HLT while no virtual event is pending"
}

impl Intercepts {
    /// The words of a VMCB; reserved bits are ignored.
    #[must_use]
    pub fn read(mem: &PhysMem, vmcb: Hpa) -> Self {
        Self::of_words(|field| vmcb::read(mem, vmcb, field))
    }

    /// The words of a VMCB as VMRUN sees it.
    #[must_use]
    pub fn of(image: &Image) -> Self {
        Self::of_words(|field| image.field(field))
    }

    fn of_words(read: impl Fn(Field) -> u64) -> Self {
        let word = |field| u128::from(read(field));
        Self::from_bits_truncate(
            word(Field::InterceptWord3) | word(Field::InterceptWord4) << 32 | word(Field::InterceptWord5) << 64,
        )
    }

    /// Writes the words of a VMCB.
    pub fn write(self, mem: &mut PhysMem, vmcb: Hpa) {
        for (field, shift) in [(Field::InterceptWord3, 0), (Field::InterceptWord4, 32), (Field::InterceptWord5, 64)] {
            vmcb::write(mem, vmcb, field, u64::from((self.bits() >> shift) as u32));
        }
    }

    /// The name of a set bit that the model can't honour, if there is one.
    #[must_use]
    pub(crate) fn unmodelled(self) -> Option<&'static str> {
        let mut set = TABLE.iter().filter(|(bit, support, _)| *support == Support::Unmodelled && self.contains(*bit));
        set.next().map(|(_, _, name)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// APM2 table B-1: samples of bit positions, by word.
    #[test]
    fn positions_match_the_manual() {
        for (bit, offset, position) in [
            (Intercepts::SELECTIVE_CR0, 0x00c, 5),
            (Intercepts::CPUID, 0x00c, 18),
            (Intercepts::INVLPGA, 0x00c, 26),
            (Intercepts::SHUTDOWN, 0x00c, 31),
            (Intercepts::VMRUN, 0x010, 0),
            (Intercepts::CLGI, 0x010, 5),
            (Intercepts::WBINVD, 0x010, 9),
            (Intercepts::CR0_TRAP, 0x010, 16),
            (Intercepts::INVPCID, 0x014, 2),
        ] {
            let mut mem = PhysMem::new(2);
            bit.write(&mut mem, Hpa(0x1000));
            assert_eq!(mem.read_u32(Hpa(0x1000 + offset)), 1 << position, "{bit:?}");
            assert_eq!(Intercepts::read(&mem, Hpa(0x1000)), bit);
        }
    }

    /// The table names every bit once.
    #[test]
    fn table_is_complete() {
        let union = TABLE.iter().fold(Intercepts::empty(), |sum, (bit, _, _)| {
            assert!(!sum.intersects(*bit));
            sum | *bit
        });
        assert_eq!(union, Intercepts::all());
        let count = |support| TABLE.iter().filter(|row| row.1 == support).count();
        println!(
            "{} intercept bits: {} honoured, {} never happen, {} unmodelled",
            TABLE.len(),
            count(Support::Honoured),
            count(Support::NeverHappens),
            count(Support::Unmodelled)
        );
    }
}
