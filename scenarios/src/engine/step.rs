//! One step: write its code, run to the gate, read what it showed.

use super::shared::Shared;
use super::{Engine, Wanted};
use crate::file::{Action, Actor, GuestChange, HostStep, Mode, Observation, OutOfTurn, Privilege, Step, Vendor};
use crate::image::layout::{self, Seat};
use crate::snippet::{self, Access, Code, Snippet, gate};
use cpu::Gpr;
use hypervisor::Stop;
use iced_x86::code_asm::{cr0, cr4};
use mmu::state::Nesting;
use sim_core::arch::exception::{Exception, Vector};
use sim_core::event::Event;
use sim_core::{Gva, SimError};
use std::collections::BTreeMap;

impl Engine<'_> {
    /// Takes one step of the scenario: what it showed, and where it asks for that everything that it could have shown.
    pub(super) fn step(
        &mut self,
        number: u32,
        index: usize,
    ) -> Result<(Observation, Option<Vec<Observation>>), SimError> {
        let scenario = self.scenario;
        let step = scenario.steps.get(index).ok_or_else(|| SimError::internal("a step that is not there"))?;
        self.backend.begin_step(number, format!("{}: {}", actor_name(step), step.text));
        let possible = if step.actor == Actor::Host { None } else { self.possible(step)? };
        let observed = self.plain_step(step)?;
        self.backend.record(Event::Observed { step: number, text: observed.to_string() });
        Ok((observed, possible))
    }

    pub(super) fn host_step(&mut self, step: &Step) -> Result<Observation, SimError> {
        let vcpu = step.vcpu;
        let chair = usize::from(vcpu);
        if self.chairs[chair].level == Actor::Smm && needs_its_smm_state(&step.action) {
            return Err(SimError::unmodelled(format!("the host's step \"{}\" while SMM code runs", step.text)));
        }
        match &step.action {
            Action::ZapAll => self.backend.zap_all()?,
            Action::ZapGfn(gfn) => self.backend.zap_gfn(*gfn)?,
            Action::AddSlot(name) => {
                let slot = self.scenario.slots.iter().find(|slot| slot.name == *name);
                let slot = slot.ok_or_else(|| SimError::internal(format!("no slot {name} in the scenario")))?;
                self.backend.add_slot(slot)?;
            }
            Action::DeleteSlot(name) => self.backend.delete_slot(name)?,
            Action::SaveState => {
                self.chairs[chair].saved = Some((self.backend.save(vcpu)?, self.chairs[chair].l1_mode))
            }
            Action::SetSregs => {
                let (saved, _) = self.saved(vcpu)?;
                self.backend.set_saved_sregs(vcpu, &saved)?;
            }
            Action::SetNestedState => {
                let (saved, l1_mode) = self.saved(vcpu)?;
                self.backend.set_nested_state(vcpu, &saved)?;
                self.chairs[chair].level = match saved.nesting() {
                    Nesting::L1 => Actor::L1,
                    Nesting::L2 => Actor::L2,
                };
                self.chairs[chair].l1_mode = l1_mode;
            }
            Action::LeaveNested => {
                self.backend.leave_nested(vcpu)?;
                self.chairs[chair].level = Actor::L1;
            }
            Action::Host(step) => return self.host(vcpu, step),
            Action::HostRun => return self.host_run(vcpu),
            Action::UnloadMmu => self.backend.unload_mmu(vcpu)?,
            Action::FlushTlb => self.backend.flush_tlb(vcpu)?,
            Action::Migrate(cpu) => self.backend.migrate(vcpu, *cpu)?,
            other => return Err(SimError::internal(format!("{other} is no host step"))),
        }
        Ok(Observation::Ok)
    }

    fn saved(&self, vcpu: u8) -> Result<(crate::backend::Saved, Mode), SimError> {
        let saved = self.chairs[usize::from(vcpu)].saved.clone();
        saved.ok_or_else(|| SimError::unmodelled("restoring a state that no save-state step has saved"))
    }

    /// Runs whatever the vCPU would run next. The registers may be half restored, so either seat's slot may be it.
    pub(super) fn host_run(&mut self, vcpu: u8) -> Result<Observation, SimError> {
        for level in [Actor::L1, Actor::L2] {
            self.write_idle(Seat { vcpu, level })?;
        }
        self.go(vcpu)
    }

    pub(super) fn guest_step(&mut self, step: &Step) -> Result<Observation, SimError> {
        let seat = Seat { vcpu: step.vcpu, level: step.actor };
        let runs = self.chairs[usize::from(seat.vcpu)].level;
        if runs != seat.level && self.scenario.out_of_turn == OutOfTurn::Skip {
            return Ok(Observation::Skipped);
        }
        if runs != seat.level {
            let what = format!("the step \"{}\" while {} runs", step.text, runs.name());
            return Err(SimError::unmodelled(what));
        }
        if let Some(observed) = self.hold(step)? {
            return Ok(observed);
        }
        let observed = self.guest_action(seat, step)?;
        let chair = &mut self.chairs[usize::from(seat.vcpu)];
        chair.pauses = false;
        if observed == Observation::Paused {
            chair.paused = Some(Box::new(step.clone()));
        }
        Ok(observed)
    }

    fn guest_action(&mut self, seat: Seat, step: &Step) -> Result<Observation, SimError> {
        if seat.level == Actor::Smm && is_of_user(&step.action) {
            return Err(SimError::unmodelled("ring 3 in SMM code, which has no page for it"));
        }
        match &step.action {
            Action::Enter { guest, changes } => self.enter(seat.vcpu, guest, changes),
            Action::Map { .. }
            | Action::Unmap { .. }
            | Action::SetEntry { .. }
            | Action::Link { .. }
            | Action::NestedMap { .. }
            | Action::NestedUnmap { .. } => {
                let code = self.edit(seat, &step.action)?;
                self.take(seat, &[code])
            }
            Action::Rsm => self.rsm(seat),
            Action::Become { space } => self.become_space(seat, space),
            action => {
                let code = self.code(seat, action)?;
                let observed = self.take(seat, &code)?;
                Ok(self.with_value(seat, action, observed))
            }
        }
    }

    /// What a load shows that went well.
    pub(super) fn with_value(&self, seat: Seat, action: &Action, observed: Observation) -> Observation {
        match (action, observed) {
            (Action::Read { .. } | Action::ReadEntry(_) | Action::ReadCr8, Observation::Ok) => {
                Observation::Value(self.value_read(seat))
            }
            (_, observed) => observed,
        }
    }

    fn value_read(&self, seat: Seat) -> u64 {
        let value = self.backend.gpr(seat.vcpu, Gpr::Rax);
        if self.mode_of(seat).is_long() { value } else { value & 0xffff_ffff }
    }

    fn code(&self, seat: Seat, action: &Action) -> Result<Vec<Code>, SimError> {
        let snippet = Snippet::new(seat, self.mode_of(seat))?;
        let one = |code: Result<Code, SimError>| code.map(|code| vec![code]);
        match action {
            Action::MovCr3 { space, flush } => {
                one(snippet.mov_cr3(self.image.roots.get(space).copied().unwrap_or(0), *flush))
            }
            Action::MovCr0(flags) => one(snippet.mov_cr(cr0, *flags)),
            Action::MovCr4(flags) => one(snippet.mov_cr(cr4, *flags)),
            Action::MovCr8(priority) => one(snippet.mov_to_cr8(*priority)),
            Action::ReadCr8 => one(snippet.mov_from_cr8()),
            Action::WrmsrEfer(flags) => one(snippet.wrmsr_efer(*flags)),
            Action::Read { at, user } => snippet.access(Access::Read(*at), *user),
            Action::Write { at, value, user } => snippet.access(Access::Write(*at, *value), *user),
            Action::Exec { at, user } => snippet.access(Access::Exec(*at), *user),
            Action::Invlpg(at) => one(snippet.invlpg(*at)),
            Action::Invpcid(scope) => one(snippet.invpcid(*scope)),
            Action::Invlpga { at, asid } => one(snippet.invlpga(*at, *asid)),
            Action::ReadEntry(name) => one(snippet.read_entry(self.entry(name)?)),
            Action::Run => one(snippet.finish(gate::DONE)),
            Action::Exit => one(snippet.hypercall(self.run.vendor == Vendor::Intel)),
            Action::Invept(scope) => one(snippet.invept(*scope, self.current_eptp(seat.vcpu))),
            Action::Invvpid(scope) => one(snippet.invvpid(*scope)),
            other => Err(SimError::internal(format!("{other} is no guest step"))),
        }
    }

    fn current_eptp(&self, vcpu: u8) -> u64 {
        let chair = &self.chairs[usize::from(vcpu)];
        let fields = chair.guest.as_ref().and_then(|guest| chair.vmcs.get(guest));
        fields.and_then(|fields| fields.get(&vmx::Field::EptPointer)).copied().unwrap_or(0)
    }

    /// Writes code and runs it to the next gate.
    pub(super) fn take(&mut self, seat: Seat, code: &[Code]) -> Result<Observation, SimError> {
        for (at, bytes) in code {
            self.backend.write(*at, bytes)?;
        }
        self.go(seat.vcpu)
    }

    pub(super) fn go(&mut self, vcpu: u8) -> Result<Observation, SimError> {
        let stop = self.backend.run(vcpu)?;
        let Stop::Gate { port, .. } = stop else {
            return match stop {
                Stop::Shutdown => Ok(Observation::Exit("shutdown".to_owned())),
                Stop::Paused(_) => Ok(Observation::Paused),
                Stop::Halted | Stop::Gate { .. } => Ok(Observation::Exit("hlt".to_owned())),
            };
        };
        let rax = self.backend.gpr(vcpu, Gpr::Rax);
        Ok(match port {
            gate::FAULT => self.fault(vcpu),
            gate::EXIT => {
                self.chairs[usize::from(vcpu)].level = Actor::L1;
                self.exit_reason(rax)
            }
            gate::SMM => {
                let chair = &mut self.chairs[usize::from(vcpu)];
                chair.interrupted = Some(std::mem::replace(&mut chair.level, Actor::Smm));
                Observation::Ok
            }
            gate::STARTED => {
                let chair = &mut self.chairs[usize::from(vcpu)];
                (chair.level, chair.l1_mode) = (Actor::L1, Mode::Flat32);
                Observation::Ok
            }
            gate::VMFAIL => Observation::VmFail(rax as u32),
            _ => Observation::Ok,
        })
    }

    fn fault(&self, vcpu: u8) -> Observation {
        let [rbx, rcx, rdx] = [Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|gpr| self.backend.gpr(vcpu, gpr));
        match Vector::from_number(rbx as u8) {
            // How ring 3 says that it is done.
            Some(Vector::Breakpoint) => Observation::Ok,
            Some(vector) => Observation::Exception(Exception {
                vector,
                error: vector.has_error_code().then_some(rcx as u32),
                cr2: (vector == Vector::PageFault).then_some(Gva(rdx)),
            }),
            None => Observation::Exit(format!("vector-{}", rbx as u8)),
        }
    }

    /// The exit reason that L1 read from its VMCS or VMCB.
    fn exit_reason(&self, word: u64) -> Observation {
        match self.run.vendor {
            Vendor::Intel => {
                let name =
                    vmx::ExitReason::from_word(word).map_or_else(|| format!("{word}"), |reason| kebab(reason.name()));
                if word & u64::from(vmx::exit::reason::ENTRY_FAILURE) == 0 {
                    Observation::Exit(name)
                } else {
                    Observation::EntryFailed(Some(short_failure(word)))
                }
            }
            Vendor::Amd => match svm::ExitCode::from_number(word) {
                Some(svm::ExitCode::Invalid) => Observation::EntryFailed(Some("invalid".to_owned())),
                Some(code) => Observation::Exit(kebab(code.name().trim_start_matches("VMEXIT_"))),
                None => Observation::Exit(format!("{word}")),
            },
        }
    }

    fn enter(&mut self, vcpu: u8, guest: &str, changes: &[GuestChange]) -> Result<Observation, SimError> {
        let chair = usize::from(vcpu);
        if !changes.is_empty()
            && let Some(wanted) = self.chairs[chair].wanted.change().get_mut(guest)
        {
            wanted.change(changes);
        }
        let wanted = self.chairs[chair].wanted[guest].clone();
        self.chairs[chair].guest = Some(guest.to_owned());
        self.write_idle(Seat { vcpu, level: Actor::L2 })?;
        let code = match self.run.vendor {
            Vendor::Intel => self.vmx_enter_code(vcpu, guest, &wanted, changes)?,
            Vendor::Amd => self.svm_enter_code(vcpu, guest, &wanted, changes)?,
        };
        let observed = self.take(Seat { vcpu, level: Actor::L1 }, &[code])?;
        if observed == Observation::Ok {
            let chair = &mut self.chairs[chair];
            // An SMI that L1 held back comes as soon as L2 runs.
            let entered = chair.interrupted.as_mut().unwrap_or(&mut chair.level);
            *entered = Actor::L2;
            chair.launched.insert(guest.to_owned());
        }
        Ok(observed)
    }

    fn vmx_enter_code(
        &mut self,
        vcpu: u8,
        guest: &str,
        wanted: &Wanted,
        changes: &[GuestChange],
    ) -> Result<Code, SimError> {
        let l1 = self.backend.sregs(vcpu)?;
        let context = self.context(vcpu, &l1);
        let fields = context.vmcs(wanted)?;
        let chair = &self.chairs[usize::from(vcpu)];
        let launched = chair.launched.contains(guest);
        let written = chair.vmcs.get(guest).cloned().unwrap_or_default();
        let always = [vmx::Field::GuestRip, vmx::Field::GuestRflags, vmx::Field::GuestRsp];
        let changed = rewritten(&written, &fields, launched, changes, &always, |field| {
            field.kind() == vmx::vmcs::field::Kind::Guest
        });
        let region = layout::region(vcpu, self.guest_number(guest));
        let mode = chair.l1_mode;
        let how = if launched { vmx::Entry::Resume } else { vmx::Entry::Launch };
        self.chairs[usize::from(vcpu)].vmcs.change().insert(guest.to_owned(), Shared::new(fields));
        Snippet::new(Seat { vcpu, level: Actor::L1 }, mode)?.vmx_enter(region, &changed, how)
    }

    fn svm_enter_code(
        &mut self,
        vcpu: u8,
        guest: &str,
        wanted: &Wanted,
        changes: &[GuestChange],
    ) -> Result<Code, SimError> {
        use svm::vmcb::Field;
        let l1 = self.backend.sregs(vcpu)?;
        let fields = self.context(vcpu, &l1).vmcb(wanted)?;
        let chair = &self.chairs[usize::from(vcpu)];
        let launched = chair.launched.contains(guest);
        let written = chair.vmcb.get(guest).cloned().unwrap_or_default();
        let always = [Field::Rip, Field::Rflags, Field::Rsp];
        let changed = rewritten(&written, &fields, launched, changes, &always, |field| field.offset() >= 0x400);
        let region = layout::region(vcpu, self.guest_number(guest));
        let mode = chair.l1_mode;
        self.chairs[usize::from(vcpu)].vmcb.change().insert(guest.to_owned(), Shared::new(fields));
        Snippet::new(Seat { vcpu, level: Actor::L1 }, mode)?.svm_enter(layout::vmxon(vcpu), region, &changed)
    }

    /// Leaves SMM for whoever was interrupted, at the start of that seat's slot.
    fn rsm(&mut self, seat: Seat) -> Result<Observation, SimError> {
        let chair = &mut self.chairs[usize::from(seat.vcpu)];
        chair.level = chair.interrupted.take().unwrap_or(Actor::L1);
        for level in [Actor::L1, Actor::L2] {
            self.write_idle(Seat { vcpu: seat.vcpu, level })?;
        }
        let code = Snippet::new(seat, self.mode_of(seat))?.rsm()?;
        self.take(seat, &[code])
    }

    fn become_space(&mut self, seat: Seat, space: &str) -> Result<Observation, SimError> {
        let from = self.mode_of(seat);
        let to = self.scenario.spaces.get(space).map_or(from, |space| space.mode);
        let (new_cr0, new_cr4, new_efer) = super::guest_state::registers(to, self.run.vendor);
        let (new_cr4, new_efer) = self.backend.permitted(new_cr4, new_efer);
        let cr3 = self.image.roots.get(space).copied().unwrap_or(0);
        let registers = [new_cr0.bits(), new_cr4.bits(), new_efer.bits()];
        let code = snippet::become_mode(seat, from, to, cr3, registers)?;
        let observed = self.take(seat, &code)?;
        if observed == Observation::Ok {
            self.chairs[usize::from(seat.vcpu)].l1_mode = to;
            // The slot must hold code of the new mode before anything runs there again.
            self.write_idle(seat)?;
        }
        Ok(observed)
    }
}

/// What L1 writes before an entry: at the first, everything that differs from what it wrote before; later, guest state
/// only where the step changes it, since the guest's own changes since then must stay.
fn rewritten<F: Copy + Ord>(
    written: &BTreeMap<F, u64>,
    fields: &BTreeMap<F, u64>,
    launched: bool,
    changes: &[GuestChange],
    always: &[F],
    is_guest_state: impl Fn(F) -> bool,
) -> Vec<(F, u64)> {
    let differs = |field: &F, value: &u64| written.get(field) != Some(value);
    let keep = |field: &F, value: &u64| {
        let guest_state_stays = launched && is_guest_state(*field) && changes.is_empty();
        always.contains(field) || (differs(field, value) && !guest_state_stays)
    };
    fields.iter().filter(|(field, value)| keep(field, value)).map(|(field, value)| (*field, *value)).collect()
}

/// Whether userspace would have to know what an SMI has interrupted (`kvm_vcpu_events.smi`, `KVM_STATE_NESTED_SMM_*`), or
/// the vCPU would have to keep what comes until RSM.
const fn needs_its_smm_state(action: &Action) -> bool {
    matches!(
        action,
        Action::SaveState
            | Action::SetSregs
            | Action::SetNestedState
            | Action::LeaveNested
            | Action::Host(HostStep::InitVcpu | HostStep::Smi)
    )
}

pub(super) const fn is_of_user(action: &Action) -> bool {
    matches!(
        action,
        Action::Read { user: Privilege::User, .. }
            | Action::Write { user: Privilege::User, .. }
            | Action::Exec { user: Privilege::User, .. }
    )
}

fn actor_name(step: &Step) -> String {
    if step.vcpu == 0 { step.actor.name().to_owned() } else { format!("{}.{}", step.vcpu, step.actor.name()) }
}

/// A manual's name as an observation spells it: lower case, words joined by dashes.
fn kebab(name: &str) -> String {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect::<Vec<_>>().join("-")
}

fn short_failure(word: u64) -> String {
    match vmx::ExitReason::from_word(word) {
        Some(vmx::ExitReason::EntryGuestState) => "guest-state".to_owned(),
        Some(vmx::ExitReason::EntryMsrLoading) => "msr-load".to_owned(),
        _ => format!("reason-{}", word & 0xffff),
    }
}
