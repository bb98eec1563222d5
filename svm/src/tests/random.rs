//! Random VMCBs and random events: VMRUN enters, exits or names what is not modelled, and never panics; the host comes
//! back whole. Sizes grow with the environment variable `ROLECALL_CASES`, a multiplier.

use super::field;
use crate::capability::{Capabilities, Features};
use crate::entry::Entered;
use crate::exit::ExitCode;
use crate::testing::{self, HSAVE, VMCB, machine};
use crate::unit::{Gif, Svm};
use crate::vmcb::{Field, SegmentField, write_segment};
use cpu::virt::{
    At, ControlRegister, ExtensionOpcode, StringIo, TableInstruction, TaskSwitchSource, Trap, Verdict, VirtInstruction,
};
use cpu::{Core, Gpr, Virt, profile};
use sim_core::addr::Gva;
use sim_core::arch::access::AccessKind;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::segment::{Rights, Segment};
use sim_core::{Ground, SimError};

/// A generator that is the same everywhere (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn flag(&mut self) -> bool {
        self.next() & (1 << 40) != 0
    }

    /// A value with few bits set, few clear, or anything.
    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => 0,
            1 => 1 << self.below(64),
            2 => self.next() & 0xffff,
            _ => self.next(),
        }
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

fn cases(base: u64) -> u64 {
    let factor = std::env::var("ROLECALL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    base * factor
}

/// A machine whose VMCB has some fields, some segments or every byte changed.
fn scramble(random: &mut Random) -> (Core, Ground) {
    let (mut core, mut ground) = machine();
    if random.flag() {
        testing::enable_nested_paging(&mut ground);
    }
    match random.below(8) {
        0 => {
            for at in (0..0x1000_u64).step_by(8) {
                let value = random.next();
                ground.mem.write_u64(VMCB.offset(at), value);
            }
        }
        _ => {
            for _ in 0..random.below(6) {
                let field = random.pick(Field::ALL);
                let old = crate::vmcb::read(&ground.mem, VMCB, field);
                let value = if random.flag() { old ^ (1 << random.below(64)) } else { random.value() };
                crate::vmcb::write(&mut ground.mem, VMCB, field, value);
            }
            if random.flag() {
                let rights = Rights(random.next() as u32 & 0x1_f0ff);
                let segment = Segment {
                    selector: random.next() as u16,
                    base: random.value(),
                    limit: random.next() as u32,
                    rights,
                };
                write_segment(&mut ground.mem, VMCB, random.pick(&SegmentField::ALL), &segment);
            }
        }
    }
    core.features = profile::Features::from_bits_truncate(random.next());
    (core, ground)
}

fn trap(random: &mut Random) -> Trap {
    let gpr = random.pick(&[Gpr::Rax, Gpr::Rdi, Gpr::R8, Gpr::R15]);
    let register = random.pick(&[
        ControlRegister::Cr0,
        ControlRegister::Cr2,
        ControlRegister::Cr3,
        ControlRegister::Cr4,
        ControlRegister::Cr8,
    ]);
    let table = random.pick(&[TableInstruction::Sgdt, TableInstruction::Lidt, TableInstruction::Str]);
    let string = random.flag().then_some(StringIo { address: Gva(1), repeated: true, address_bytes: 4, segment: 3 });
    let value = random.value();
    match random.below(24) {
        0 => Trap::Exception(Exception::plain(random.pick(&Vector::ALL))),
        1 => Trap::TripleFault,
        2 => Trap::CrWrite { register, gpr, value },
        3 => Trap::CrRead { register, gpr },
        4 => Trap::DrAccess { number: value as u8, gpr, kind: random.pick(&AccessKind::ALL) },
        5 => Trap::Io { port: value as u16, bytes: random.pick(&[1, 2, 4]), input: random.flag(), string },
        6 => Trap::Rdmsr(value as u32),
        7 => Trap::Wrmsr(value as u32, value),
        8 => Trap::Lmsw { value: value as u16, address: None },
        9 => Trap::DescriptorTable(table),
        10 => Trap::Interrupt(value as u8),
        11 => Trap::Nmi,
        12 => Trap::Init,
        13 => Trap::Retired,
        14 => Trap::Window,
        15 => Trap::Pause,
        16 => Trap::Hlt,
        17 => Trap::Mwait,
        18 => Trap::Invlpgb,
        19 => Trap::Extension(random.pick(&[ExtensionOpcode::Skinit, ExtensionOpcode::Vmrun, ExtensionOpcode::Vmxon])),
        20 => Trap::TaskSwitch { selector: 1, source: TaskSwitchSource::Jmp, error: Some(value as u32) },
        21 => Trap::Smi,
        22 => Trap::Int(value as u8),
        _ => Trap::Monitor,
    }
}

/// Host state that #VMEXIT must bring back (APM2 15.6).
fn host(core: &Core) -> (u64, u64, u64, u64, u64, [u64; 2]) {
    let system = [core.efer.bits(), core.cr4.bits()];
    (core.rip, core.gpr(Gpr::Rsp), core.gpr(Gpr::Rax), core.cr0.bits(), core.cr3, system)
}

#[derive(Default)]
struct Tally {
    entered: u64,
    invalid: u64,
    exited: u64,
    unmodelled: u64,
}

#[test]
fn any_vmcb_enters_or_is_refused() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut tally = Tally::default();
    let count = cases(20_000);
    for case in 0..count {
        let (mut core, mut ground) = scramble(&mut random);
        let features = Features::from_bits_truncate(random.next() as u32);
        let features = if random.flag() { Features::all() } else { features };
        let mut svm = Svm::new(Capabilities { features, ..Capabilities::default() });
        svm.set_hsave(HSAVE);
        let before = host(&core);
        let refusal = svm.explain(&core, &ground, VMCB).map(|check| check.name);
        match svm.enter(&mut core, &mut ground, VMCB) {
            Ok(Entered::Guest) => {
                tally.entered += 1;
                assert_eq!((refusal, svm.gif()), (None, Gif::Set), "case {case}");
                assert_ne!(svm.regime(&core).tag.context, 0, "case {case}: ASID 0 is the host's");
                if live(&mut random, &mut svm, &mut core, &mut ground, &mut tally) == Life::EndsByInit {
                    continue;
                }
            }
            Ok(Entered::Refused) => {
                let invalid = field(&ground, Field::ExitCode) == ExitCode::Invalid.number();
                assert_eq!(refusal.is_some(), invalid, "case {case}: {refusal:?}");
                tally.invalid += u64::from(invalid);
                tally.exited += u64::from(!invalid);
            }
            Err(SimError::Unmodelled { .. }) => {
                tally.unmodelled += 1;
                continue;
            }
            Err(error) => panic!("case {case}: {error}"),
        }
        if svm.guest().is_none() {
            assert_eq!(host(&core), before, "case {case}");
            assert_eq!((core.dr7, svm.gif()), (0x400, Gif::Clear), "case {case}");
        }
    }
    let Tally { entered, invalid, exited, unmodelled } = tally;
    println!("{count} random VMCBs: {entered} entered, {invalid} invalid, {exited} exits, {unmodelled} not modelled");
    assert!(entered > count / 8 && invalid > count / 8, "the cases must reach both ends");
}

/// What became of a guest.
#[derive(PartialEq, Eq)]
enum Life {
    /// It runs, or has exited.
    Goes,
    /// An INIT that nobody intercepts left the processor without a guest, and saved and loaded nothing.
    EndsByInit,
}

/// A few random events in the guest, until one exits.
fn live(random: &mut Random, svm: &mut Svm, core: &mut Core, ground: &mut Ground, tally: &mut Tally) -> Life {
    for _ in 0..6 {
        let _ = (svm.attention(core), svm.held(core), svm.tsc(ground, random.next()));
        if random.below(6) == 0 {
            let instruction = random.pick(&[
                VirtInstruction::Stgi,
                VirtInstruction::Clgi,
                VirtInstruction::Vmmcall,
                VirtInstruction::Vmload(VMCB.0),
                VirtInstruction::Vmsave(0x1_9000),
                VirtInstruction::Vmrun(0),
                VirtInstruction::Invlpga { address: Gva(1), asid: 3 },
            ]);
            let _ = svm.instruction(core, ground, &instruction, At::of(3));
        } else {
            let event = trap(random);
            let verdict = svm.trap(core, ground, &event, At::of(random.below(16) as u8));
            assert!(verdict != Ok(Verdict::Exited) || svm.guest().is_none(), "{event:?}");
            if matches!(event, Trap::Init) && verdict == Ok(Verdict::Continue) {
                assert!(svm.guest().is_none() && svm.gif() == Gif::Set);
                return Life::EndsByInit;
            }
            if matches!(event, Trap::Smi) && verdict == Ok(Verdict::Continue) {
                // APM2 15.22: the guest waits for RSM.
                assert!(svm.guest().is_none());
                let resumed = svm.trap(core, ground, &Trap::Rsm, At::of(2));
                assert!(resumed == Ok(Verdict::Continue) && svm.guest().is_some());
            }
        }
        if svm.guest().is_none() {
            tally.exited += 1;
            assert!(ExitCode::from_number(field(ground, Field::ExitCode)).is_some());
            return Life::Goes;
        }
    }
    Life::Goes
}
