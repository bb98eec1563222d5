//! The CPU's hook, answered by SVM. SVM has no shadow of a control register and fixes no bit of one.

use crate::decode_assist::instruction_bytes;
use crate::exit::{Exit, ExitCode};
use crate::inject::NMI_VECTOR;
use crate::intercept::{Intercepts, Situation, WriteTrap, decide, pause};
use crate::interrupts::{Due, VirtualFlags, due};
use crate::msr::VmCr;
use crate::unit::{Gif, Monitor, Svm};
use cpu::core::Blocking;
use cpu::exception::inject;
use cpu::exec::Fault;
use cpu::virt::{
    At, ControlRegister, Delivery, EventKind, ExtensionOpcode, HeldEvents, Trap, Verdict, VirtDone, VirtInstruction,
};
use cpu::{Activity, Core, Regime, Tag, Virt};
use sim_core::arch::exception::{Exception, Vector};
use sim_core::arch::msr;
use sim_core::{Ground, SimError};

/// What GIF = 0 holds back (APM2 15.17).
pub(crate) const HELD_BY_GIF: HeldEvents = HeldEvents::INTERRUPT
    .union(HeldEvents::NMI)
    .union(HeldEvents::SMI)
    .union(HeldEvents::INIT)
    .union(HeldEvents::DEBUG);
/// The error code of #SX for an INIT (APM2 15.28).
const SX_INIT: u32 = 1;

impl Virt for Svm {
    fn regime(&self, _core: &Core) -> Regime {
        self.running.as_ref().map_or_else(Regime::default, |running| Regime {
            tag: Tag { context: running.controls.asid, ept_root: None },
            second: running.controls.second,
        })
    }

    fn trap(&mut self, core: &mut Core, ground: &mut Ground, trap: &Trap, at: At) -> Result<Verdict, SimError> {
        match trap {
            Trap::Getsec => return Ok(Verdict::Raise(Exception::ud())),
            Trap::Extension(ExtensionOpcode::Skinit) => return self.skinit(core, ground, at),
            Trap::Extension(opcode) if is_vmx(*opcode) => return Ok(Verdict::Raise(Exception::ud())),
            _ => {}
        }
        if self.running.is_some() {
            match trap {
                Trap::Retired => return Ok(self.retired(core, ground)),
                Trap::Window => return self.window(core, ground),
                Trap::Pause => return Ok(self.paused(core, ground, at)),
                _ => {}
            }
            if let Some(exit) = self.decided(core, ground, trap, at)? {
                if matches!(trap, Trap::Exception(exception) if exception.vector == Vector::Debug) {
                    // APM2 15.12.2: DR6 and DR7 are as if the exception had been taken.
                    core.take_debug();
                }
                self.exit(core, ground, &exit);
                return Ok(Verdict::Exited);
            }
        }
        Ok(self.passed(trap))
    }

    fn instruction(
        &mut self,
        core: &mut Core,
        ground: &mut Ground,
        instruction: &VirtInstruction,
        at: At,
    ) -> Result<VirtDone, Fault> {
        self.execute(core, ground, instruction, at)
    }

    fn cr_read(&self, _ground: &Ground, _register: ControlRegister, actual: u64) -> u64 {
        actual
    }

    fn cr_write(&self, _ground: &Ground, _register: ControlRegister, _current: u64, operand: u64) -> u64 {
        operand
    }

    fn cr_fixed(&self, _register: ControlRegister) -> (u64, u64) {
        (0, 0)
    }

    fn rdmsr(&self, _core: &Core, index: u32) -> Option<Result<u64, Exception>> {
        self.read_msr(index).map(Ok)
    }

    fn wrmsr(&mut self, core: &mut Core, index: u32, value: u64) -> Option<Result<(), Exception>> {
        self.write_msr(core, index, value)
    }

    fn attention(&self, core: &Core) -> bool {
        self.running.as_ref().is_some_and(|running| {
            running.write_trap.is_some() || running.controls.traps_writes() || due(running, self.gif, core).is_some()
        })
    }

    fn held(&self, _core: &Core) -> HeldEvents {
        if self.gif == Gif::Clear {
            return HELD_BY_GIF;
        }
        let masked = self.running.as_ref().is_some_and(|running| {
            running.virtual_interrupts.has(VirtualFlags::INTR_MASKING) && !running.host.interrupts
        });
        if masked { HeldEvents::INTERRUPT } else { HeldEvents::empty() }
    }

    fn tsc(&self, _ground: &Ground, now: u64) -> u64 {
        self.scaled_tsc(now)
    }
}

impl Svm {
    /// The exit for a trap in a guest, if it is intercepted.
    fn decided(&self, core: &mut Core, ground: &mut Ground, trap: &Trap, at: At) -> Result<Option<Exit>, SimError> {
        let Some(running) = &self.running else { return Ok(None) };
        let capabilities = &self.capabilities;
        let situation = Situation { running, capabilities, mem: &ground.mem, core, monitor: self.monitor };
        let Some(exit) = decide(&situation, trap, at)? else { return Ok(None) };
        Ok(Some(Exit { bytes: instruction_bytes(self, core, ground, trap), ..exit }))
    }

    /// What a trap that nothing intercepts still means to the unit.
    fn passed(&mut self, trap: &Trap) -> Verdict {
        let monitor = self.monitor;
        self.monitor = match trap {
            Trap::Monitor => Monitor::Armed,
            Trap::Mwait => Monitor::Idle,
            _ => monitor,
        };
        match trap {
            Trap::Smi => self.enter_smm(),
            Trap::Rsm => self.leave_smm(),
            _ => {}
        }
        if matches!(trap, Trap::Init) && self.vm_cr.contains(VmCr::R_INIT) {
            return Verdict::Raise(Exception::with_error(Vector::Security, SX_INIT));
        }
        if matches!(trap, Trap::Init) {
            // INIT clears EFER.SVME (APM2 14.1.3): no guest is left, and nobody is told.
            (self.running, self.gif) = (None, Gif::Set);
        }
        let Some(running) = &mut self.running else { return Verdict::Continue };
        let write = match *trap {
            Trap::CrWrite { register, value, .. } => {
                if register == ControlRegister::Cr8 && value <= 0xf {
                    // APM2 15.21.2: a write of CR8 reaches V_TPR whether or not the guest has the physical TPR too.
                    running.virtual_interrupts.set_tpr(value as u8);
                }
                Some(WriteTrap::of(register))
            }
            Trap::Clts | Trap::Lmsw { .. } => Some(WriteTrap::Cr(0)),
            Trap::Wrmsr(msr::EFER, _) => Some(WriteTrap::Efer),
            // The instruction did not finish, so there is nothing to trap.
            Trap::Exception(_) => {
                running.write_trap = None;
                None
            }
            Trap::Invlpgb | Trap::Tlbsync if !running.controls.invlpgb => return Verdict::Raise(Exception::ud()),
            _ => None,
        };
        if let Some(write) = write.filter(|write| running.controls.intercepts.contains(write.intercept())) {
            running.write_trap = Some(write);
        }
        Verdict::Continue
    }

    /// An instruction has retired: a trapped write exits behind it (APM2 15.9).
    fn retired(&mut self, core: &mut Core, ground: &mut Ground) -> Verdict {
        let Some(write) = self.running.as_mut().and_then(|running| running.write_trap.take()) else {
            return Verdict::Continue;
        };
        self.exit(core, ground, &Exit::event(write.code(), write.value(core), 0));
        Verdict::Exited
    }

    /// Between two instructions: trapped writes, physical events that the guest can't mask, and virtual events.
    fn window(&mut self, core: &mut Core, ground: &mut Ground) -> Result<Verdict, SimError> {
        if self.retired(core, ground) == Verdict::Exited {
            return Ok(Verdict::Exited);
        }
        let Some(running) = &mut self.running else { return Ok(Verdict::Continue) };
        let Some(event) = due(running, self.gif, core) else { return Ok(Verdict::Continue) };
        let intercepts = running.controls.intercepts;
        let (vector, kind) = match event {
            Due::PhysicalNmi => return Ok(self.stop(core, ground, ExitCode::Nmi)),
            Due::PhysicalInterrupt if intercepts.contains(Intercepts::INTR) => {
                return Ok(self.stop(core, ground, ExitCode::Intr));
            }
            Due::PhysicalInterrupt => {
                return Err(SimError::unmodelled("V_INTR_MASKING with a physical interrupt that is not intercepted"));
            }
            Due::Interrupt(_) if intercepts.contains(Intercepts::VINTR) => {
                return Ok(self.stop(core, ground, ExitCode::Vintr));
            }
            Due::Interrupt(vector) => {
                running.virtual_interrupts.set(VirtualFlags::IRQ, false);
                (vector, EventKind::ExternalInterrupt)
            }
            Due::Nmi => {
                running.virtual_interrupts.set(VirtualFlags::NMI, false);
                core.blocking.insert(Blocking::NMI);
                (NMI_VECTOR, EventKind::Nmi)
            }
        };
        core.activity = Activity::Active;
        inject(core, self, ground, Delivery { vector, kind, error: None, length: 0 })?;
        Ok(if self.running.is_some() { Verdict::Continue } else { Verdict::Exited })
    }

    fn stop(&mut self, core: &mut Core, ground: &mut Ground, code: ExitCode) -> Verdict {
        self.exit(core, ground, &Exit::event(code, 0, 0));
        Verdict::Exited
    }

    /// PAUSE, by its filter.
    fn paused(&mut self, core: &mut Core, ground: &mut Ground, at: At) -> Verdict {
        let Some(running) = &mut self.running else { return Verdict::Continue };
        let (exits, filter) = pause(&running.controls, &self.capabilities, running.pause, ground.clock.now());
        running.pause = filter;
        if !exits {
            return Verdict::Continue;
        }
        let next = crate::intercept::next_rip(core, at);
        self.exit(core, ground, &Exit::instruction(ExitCode::Pause, next));
        Verdict::Exited
    }
}

const fn is_vmx(opcode: ExtensionOpcode) -> bool {
    !matches!(
        opcode,
        ExtensionOpcode::Vmrun
            | ExtensionOpcode::Vmload
            | ExtensionOpcode::Vmsave
            | ExtensionOpcode::Stgi
            | ExtensionOpcode::Clgi
            | ExtensionOpcode::Skinit
            | ExtensionOpcode::Vmmcall
            | ExtensionOpcode::Invlpga
    )
}
