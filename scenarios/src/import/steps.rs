//! From events to steps: what a trace tells of what its guest did, one step or one comment an event.
//!
//! | event | step |
//! |---|---|
//! | `kvm_nested_vmenter`, `kvm_nested_vmexit_inject` | `enter l2`, `exit` |
//! | a root made or found, without two-dimensional paging | `mov-cr3`, `become`, `enter l2 cr3=`; WP, SMEP and SMAP from its role |
//! | `kvm_cr`, `kvm_msr` | `mov-cr3`, `mov-cr0`, `mov-cr4`, `wrmsr-efer`, of the bits that roles know |
//! | `kvm_page_fault`, else `kvm_mmu_pagetable_walk`, else `kvm_mmu_set_spte` | `read`, `write`, `exec` |
//! | `kvm_exit` for INVLPG, `kvm_invlpga` | `invlpg`, `invlpga` |
//! | `kvm_mmu_zap_all_fast`, `kvm_smm_transition` | `zap-all`, `smi`, `rsm` |
//!
//! Left out: what the guest did without an event of KVM's, the guest's tables, and the order of threads beyond that of lines.

use super::event::{Fate, Smm, Told};
use super::machine::{Machine, only};
use super::memory::{Memory, Touched, name};
use super::page::{Page, Seen};
use super::reason::{Meaning, Reason};
use super::trace::{Entry, Trace};
use crate::file::{Action, Actor, ControlRegister, Flags, Flush, GuestChange, HostStep, Mode, Privilege, Vendor};
use mmu::PageRole;
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::PageFaultError;
use std::collections::{BTreeMap, BTreeSet};

/// Steps of a skeleton, and comments.
const MOST: usize = 1000;
/// vCPUs of a scenario.
const MOST_VCPUS: usize = 4;
/// IA32_EFER.
const EFER: u64 = 0xc000_0080;
/// What a store writes: a RET, so that the page can be executed afterwards.
const STORED: u64 = 0xc3;

/// A line of the skeleton's steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A step, its line in the trace, and what else is to be said.
    Step(u8, Actor, Action, usize, String),
    /// Something that can't be a step.
    Comment(usize, String),
}

/// What a level has in registers, as far as steps set it: the bits that roles know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Registers {
    cr0: u64,
    cr4: u64,
    efer: u64,
}

impl Registers {
    /// What the engine starts a guest with.
    const START: Self = Self { cr0: Cr0::WP.bits(), cr4: 0, efer: Efer::NXE.bits() };
    /// The bits that are followed.
    const FOLLOWED: [(ControlRegister, u64); 3] = [
        (ControlRegister::Cr0, Cr0::WP.bits()),
        (ControlRegister::Cr4, Cr4::SMEP.bits() | Cr4::SMAP.bits() | Cr4::PGE.bits()),
        (ControlRegister::Efer, Efer::NXE.bits()),
    ];

    const fn of(&mut self, register: ControlRegister) -> &mut u64 {
        match register {
            ControlRegister::Cr0 => &mut self.cr0,
            ControlRegister::Cr4 => &mut self.cr4,
            ControlRegister::Efer => &mut self.efer,
        }
    }

    /// The change to these bits of a register, which it then has.
    fn change(&mut self, register: ControlRegister, mask: u64, value: u64) -> Option<Flags> {
        let have = self.of(register);
        let differs = (*have ^ value) & mask;
        *have ^= differs;
        let flags = Flags { register, set: value & differs, clear: !value & differs };
        (!flags.is_empty()).then_some(flags)
    }

    /// The changes that a role tells.
    fn follow(&mut self, role: Seen) -> Vec<Flags> {
        let (wp, smep, smap) =
            (PageRole(0).with_cr0_wp(1), PageRole(0).with_smep_andnot_wp(1), PageRole(0).with_smap_andnot_wp(1));
        if !role.knows(PageRole(wp.0 | smep.0 | smap.0)) || role.word.direct() == 1 {
            return Vec::new();
        }
        let bit = |is: u32, bits: u64| if is == 1 { bits } else { 0 };
        let mut changes = Vec::new();
        changes.extend(self.change(ControlRegister::Cr0, Cr0::WP.bits(), bit(role.word.cr0_wp(), Cr0::WP.bits())));
        if role.word.cr0_wp() == 0 {
            let value =
                bit(role.word.smep_andnot_wp(), Cr4::SMEP.bits()) | bit(role.word.smap_andnot_wp(), Cr4::SMAP.bits());
            changes.extend(self.change(ControlRegister::Cr4, Cr4::SMEP.bits() | Cr4::SMAP.bits(), value));
        }
        changes
    }
}

/// A vCPU on the way.
#[derive(Clone, Debug)]
struct Vcpu {
    number: u8,
    /// L1 or L2.
    level: Actor,
    /// The spaces of L1 and of L2.
    spaces: [Option<usize>; 2],
    registers: [Registers; 2],
    /// The item of the entry that began L2, while its root is not known.
    entered: Option<usize>,
    /// The root before, if nothing came between.
    last_root: Option<Seen>,
}

impl Vcpu {
    const fn index(&self) -> usize {
        match self.level {
            Actor::L2 => 1,
            Actor::L1 | Actor::Smm | Actor::Host => 0,
        }
    }
}

/// The steps, and what they need.
#[derive(Clone, Debug, Default)]
pub(super) struct Steps {
    /// In the trace's order.
    pub(super) items: Vec<Item>,
    /// Spaces and pages.
    pub(super) memory: Memory,
    /// Threads and their vCPUs.
    pub(super) vcpus: BTreeMap<u32, u8>,
    /// Threads for which there is no vCPU left.
    pub(super) without: BTreeSet<u32>,
    /// L1's first space, and L2's.
    pub(super) first: [Option<usize>; 2],
    /// Changes to L1's first registers, and L2's.
    pub(super) flags: [Vec<Flags>; 2],
    /// The line where there was no room for more.
    pub(super) full: Option<usize>,
    /// What is taken for accesses.
    pub(super) accesses: Accesses,
}

/// What is taken for a guest's accesses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Accesses {
    /// Page faults.
    #[default]
    Faults,
    /// Walks of the guest's tables.
    Walks,
    /// Entries that were written.
    Entries,
}

struct Walk<'a> {
    trace: &'a Trace,
    vendor: Option<Vendor>,
    /// Two-dimensional paging, which is assumed not to be where a trace does not tell.
    is_tdp: bool,
    roots: &'a BTreeSet<Seen>,
    tells_registers: bool,
    tells_entries: bool,
    threads: BTreeMap<u32, Vcpu>,
    /// Pages that were touched and are left out.
    refused: BTreeSet<Touched>,
    steps: Steps,
}

/// The steps of a trace.
pub(super) fn of(trace: &Trace, machine: &Machine, roots: &BTreeSet<Seen>) -> Steps {
    let has = |test: fn(&Told) -> bool| trace.entries.iter().any(|entry| test(&entry.told));
    let accesses = if has(|told| matches!(told, Told::Fault { .. })) {
        Accesses::Faults
    } else if has(|told| matches!(told, Told::Walk { .. })) {
        Accesses::Walks
    } else {
        Accesses::Entries
    };
    let mut walk = Walk {
        trace,
        vendor: only(&machine.vendor),
        is_tdp: only(&machine.tdp) == Some(true),
        roots,
        tells_registers: has(|told| matches!(told, Told::CrWrite { .. } | Told::MsrWrite { .. })),
        tells_entries: has(|told| matches!(told, Told::Enter { .. })),
        threads: BTreeMap::new(),
        refused: BTreeSet::new(),
        steps: Steps { accesses, ..Steps::default() },
    };
    walk.threads();
    for entry in &trace.entries {
        if walk.steps.items.len() >= MOST {
            walk.steps.full = Some(entry.line);
            break;
        }
        walk.entry(entry);
    }
    walk.steps
}

/// Whether only a vCPU's thread has such events.
const fn is_guests(told: &Told) -> bool {
    !matches!(told, Told::Page(Fate::Zapped, _) | Told::ZapAll | Told::TdpEntry | Told::Lost(_))
}

impl Walk<'_> {
    /// The threads that are vCPUs, in the order in which they appear.
    fn threads(&mut self) {
        for entry in self.trace.entries.iter().filter(|entry| is_guests(&entry.told)) {
            if self.threads.contains_key(&entry.pid) {
                continue;
            }
            if self.threads.len() == MOST_VCPUS {
                self.steps.without.insert(entry.pid);
                continue;
            }
            let number = self.threads.len() as u8;
            self.steps.vcpus.insert(entry.pid, number);
            let vcpu = Vcpu {
                number,
                level: Actor::L1,
                spaces: [None; 2],
                registers: [Registers::START; 2],
                entered: None,
                last_root: None,
            };
            self.threads.insert(entry.pid, vcpu);
        }
    }

    fn comment(&mut self, line: usize, text: impl Into<String>) {
        self.steps.items.push(Item::Comment(line, text.into()));
    }

    fn step(&mut self, vcpu: u8, actor: Actor, action: Action, line: usize, note: impl Into<String>) {
        self.steps.items.push(Item::Step(vcpu, actor, action, line, note.into()));
    }

    fn entry(&mut self, entry: &Entry) {
        match &entry.told {
            Told::ZapAll => return self.step(0, Actor::Host, Action::ZapAll, entry.line, ""),
            Told::Lost(count) => return self.comment(entry.line, format!("{count} events were lost here")),
            _ => {}
        }
        let Some(mut vcpu) = self.threads.remove(&entry.pid) else { return };
        self.guest(&mut vcpu, entry);
        vcpu.last_root = match &entry.told {
            Told::Page(Fate::Made | Fate::Found, page) if self.roots.contains(&page.role.valid()) => {
                Some(page.role.valid())
            }
            _ => None,
        };
        self.threads.insert(entry.pid, vcpu);
    }

    /// What a vCPU's thread tells.
    fn guest(&mut self, vcpu: &mut Vcpu, entry: &Entry) {
        let line = entry.line;
        match &entry.told {
            Told::Page(fate, page) => self.page(vcpu, line, *fate, page),
            Told::Enter { cr3, .. } => self.enter(vcpu, line, *cr3),
            Told::EnterFailed(why) => {
                vcpu.level = Actor::L1;
                self.comment(line, format!("the entry before failed: {why}"));
            }
            Told::Leave(reason) => self.leave(vcpu, line, reason),
            Told::CrWrite { register, value } => self.control(vcpu, line, *register, *value),
            Told::MsrWrite { index: EFER, value } => self.registers(vcpu, line, ControlRegister::Efer, *value),
            Told::Exit(reason) => self.exit(vcpu, line, reason),
            Told::Fault { address, error } if self.steps.accesses == Accesses::Faults => {
                self.fault(vcpu, line, *address, *error);
            }
            Told::Walk { address, error } if self.steps.accesses == Accesses::Walks => {
                self.access(vcpu, line, Touched::Linear(*address), *error, privilege_of(*error));
            }
            Told::Entry { gfn, level: 1 } if self.steps.accesses == Accesses::Entries => {
                self.access(vcpu, line, Touched::Frame(*gfn), 0, Privilege::Supervisor);
            }
            Told::Invlpga { address, asid } => match u16::try_from(*asid) {
                Ok(asid) if self.vendor == Some(Vendor::Amd) && Mode::Long4.holds(*address) => {
                    self.step(vcpu.number, Actor::L1, Action::Invlpga { at: *address, asid }, line, "");
                }
                _ => self.comment(line, format!("INVLPGA of {address:#x} for ASID {asid}")),
            },
            Told::Smm(Smm::Enters) => self.step(vcpu.number, Actor::Host, Action::Host(HostStep::Smi), line, ""),
            Told::Smm(Smm::Leaves) => self.step(vcpu.number, Actor::Smm, Action::Rsm, line, ""),
            _ => {}
        }
    }

    fn enter(&mut self, vcpu: &mut Vcpu, line: usize, cr3: Option<u64>) {
        if vcpu.level == Actor::L2 {
            self.step(vcpu.number, Actor::L2, Action::Exit, line, "L2 ran before; its exit is not told");
        }
        vcpu.level = Actor::L2;
        let mode = self.steps.memory.mode(vcpu.spaces[1].or(vcpu.spaces[0]));
        let space =
            cr3.filter(|_| mode.has_paging()).and_then(|cr3| self.steps.memory.space(Some(frame_of(cr3)), mode));
        let changes = self.l2_space(vcpu, space);
        vcpu.entered = Some(self.steps.items.len());
        self.step(vcpu.number, Actor::L1, Action::Enter { guest: "l2".to_owned(), changes }, line, "");
    }

    /// L2 runs in a space from its entry on: the change that the entry makes, if it makes one.
    fn l2_space(&mut self, vcpu: &mut Vcpu, space: Option<usize>) -> Vec<GuestChange> {
        let Some(space) = space else { return Vec::new() };
        let first = *self.steps.first[1].get_or_insert(space);
        let before = vcpu.spaces[1].replace(space).unwrap_or(first);
        if before == space { Vec::new() } else { vec![GuestChange::Cr3(name(space))] }
    }

    fn leave(&mut self, vcpu: &mut Vcpu, line: usize, reason: &Reason) {
        vcpu.entered = None;
        if vcpu.level == Actor::L1 {
            return self.comment(line, format!("L2 exits for {}; its entry is not told", reason.name));
        }
        vcpu.level = Actor::L1;
        self.step(vcpu.number, Actor::L2, Action::Exit, line, format!("for {}", reason.name));
    }

    fn page(&mut self, vcpu: &mut Vcpu, line: usize, fate: Fate, page: &Page) {
        let role = page.role.valid();
        match fate {
            Fate::Made | Fate::Found if self.roots.contains(&role) => {
                if self.is_tdp {
                    self.comment(line, format!("tables of L1's for L2 at gfn {:#x}: role {role}", page.gfn));
                } else {
                    self.root(vcpu, line, page.gfn, role);
                }
            }
            Fate::Unsync => {
                let what = format!("the guest writes to the table at gfn {:#x}; which entry is not told", page.gfn);
                self.comment(line, what);
            }
            _ => {}
        }
    }

    /// A root of the shadow MMU: the level that runs is in another space, or has other registers.
    fn root(&mut self, vcpu: &mut Vcpu, line: usize, gfn: u64, role: Seen) {
        let mode = mode_of(role);
        // The four roots of 32-bit modes come one after the other.
        if vcpu
            .last_root
            .is_some_and(|last| role.word.level() == 2 && last.shared() == role.shared() && mode_of(last) == mode)
        {
            return;
        }
        let gfn = if mode.has_paging() { Some(gfn) } else { None };
        let Some(space) = self.steps.memory.space(gfn, mode) else {
            return self.comment(line, format!("a root of role {role} in another space: a skeleton has no more"));
        };
        let level = vcpu.index();
        if let Some(entered) = vcpu.entered.take() {
            let mut more = self.l2_space(vcpu, Some(space));
            more.extend(vcpu.registers[level].follow(role).into_iter().map(GuestChange::Register));
            if let Some(Item::Step(_, _, Action::Enter { changes, .. }, ..)) = self.steps.items.get_mut(entered) {
                let is_cr3 = |change: &GuestChange| matches!(change, GuestChange::Cr3(_));
                if more.iter().any(is_cr3) {
                    changes.retain(|change| !is_cr3(change));
                }
                changes.extend(more);
            }
            return;
        }
        let before = vcpu.spaces[level].replace(space);
        let is_first = self.steps.first[level].is_none();
        let first = *self.steps.first[level].get_or_insert(space);
        let flags = vcpu.registers[level].follow(role);
        if is_first && before.is_none() {
            self.steps.flags[level] = flags;
            return;
        }
        self.switch(vcpu, line, before.unwrap_or(first), space, &format!("a root of role {role}"));
        for flags in flags {
            self.step(vcpu.number, vcpu.level, action_of(flags), line, format!("a root of role {role}"));
        }
    }

    /// A switch from one space to another.
    fn switch(&mut self, vcpu: &Vcpu, line: usize, from: usize, to: usize, why: &str) {
        let [before, after] = [from, to].map(|space| self.steps.memory.mode(Some(space)));
        let space = name(to);
        match (from == to, before == after, vcpu.level) {
            (true, ..) => {}
            (false, true, level) if after.has_paging() => {
                self.step(vcpu.number, level, Action::MovCr3 { space, flush: Flush::Yes }, line, why);
            }
            (false, _, Actor::L1) => self.step(vcpu.number, Actor::L1, Action::Become { space }, line, why),
            (false, ..) => self.comment(line, format!("{}: L2 changes its paging mode to {}", why, after.name())),
        }
    }

    fn control(&mut self, vcpu: &mut Vcpu, line: usize, register: u64, value: u64) {
        match register {
            0 => self.registers(vcpu, line, ControlRegister::Cr0, value),
            3 => {
                let level = vcpu.index();
                let mode = self.steps.memory.mode(vcpu.spaces[level].or(vcpu.spaces[0]));
                let space = if mode.has_paging() { self.steps.memory.space(Some(frame_of(value)), mode) } else { None };
                let Some(space) = space else {
                    return self.comment(line, format!("CR3 becomes {value:#x}: a skeleton has no such space"));
                };
                vcpu.entered = None;
                let before = vcpu.spaces[level].replace(space);
                match (before, self.steps.first[level]) {
                    (Some(before), _) | (None, Some(before)) => {
                        self.switch(vcpu, line, before, space, "CR3 is written")
                    }
                    (None, None) => self.steps.first[level] = Some(space),
                }
            }
            4 => self.registers(vcpu, line, ControlRegister::Cr4, value),
            _ => {}
        }
    }

    fn registers(&mut self, vcpu: &mut Vcpu, line: usize, register: ControlRegister, value: u64) {
        let mask = Registers::FOLLOWED.iter().find(|(followed, _)| *followed == register).map_or(0, |(_, mask)| *mask);
        let level = vcpu.index();
        match vcpu.registers[level].change(register, mask, value) {
            Some(flags) => self.step(vcpu.number, vcpu.level, action_of(flags), line, format!("it becomes {value:#x}")),
            None => self.comment(line, format!("{} becomes {value:#x}: no bit that is followed", register.name())),
        }
    }

    fn exit(&mut self, vcpu: &Vcpu, line: usize, reason: &Reason) {
        let mode = self.steps.memory.mode(vcpu.spaces[vcpu.index()]);
        match (reason.meaning, reason.info) {
            (Meaning::Invlpg, Some(at)) if at != 0 && mode.holds(at) => {
                self.step(vcpu.number, vcpu.level, Action::Invlpg(at), line, "");
            }
            (Meaning::Invlpg, _) => self.comment(line, "INVLPG; its address is not told"),
            (Meaning::Control | Meaning::Msr, _) if !self.tells_registers => {
                self.comment(line, format!("{}: what was written is told by kvm:kvm_cr and kvm:kvm_msr", reason.name));
            }
            (Meaning::Enter, _) if !self.tells_entries => {
                self.comment(line, format!("{}: entries are told by kvm:kvm_nested_vmenter", reason.name));
            }
            (Meaning::Invalidate, _) => self.comment(line, format!("{}; of what is not told", reason.name)),
            _ => {}
        }
    }

    /// The error code is an exit qualification on Intel's second stage (SDM 3C table 27-7).
    fn fault(&mut self, vcpu: &Vcpu, line: usize, address: u64, error: u64) {
        if !self.is_tdp {
            return self.access(vcpu, line, Touched::Linear(address), error, privilege_of(error));
        }
        let (write, fetch) = (PageFaultError::W, PageFaultError::F);
        let kind = match self.vendor {
            Some(Vendor::Intel) if error & 4 != 0 => fetch,
            Some(Vendor::Intel) if error & 2 != 0 => write,
            Some(Vendor::Intel) => PageFaultError::empty(),
            _ => PageFaultError::from_bits_truncate(error as u32) & (write | fetch),
        };
        self.access(vcpu, line, Touched::Frame(frame_of(address)), u64::from(kind.bits()), Privilege::Supervisor);
    }

    fn access(&mut self, vcpu: &Vcpu, line: usize, touched: Touched, error: u64, user: Privilege) {
        let mode = self.steps.memory.mode(vcpu.spaces[vcpu.index()]);
        let error = PageFaultError::from_bits_truncate(error as u32);
        let told = match touched {
            Touched::Linear(at) => format!("{at:#x}"),
            Touched::Frame(gfn) => format!("gfn {gfn:#x}"),
        };
        let page = match self.steps.memory.touch(touched, mode, user == Privilege::User) {
            Ok(page) => page,
            Err(why) => {
                // Once a page: the guest's code is there again and again.
                if self.refused.insert(touched.page()) {
                    self.comment(line, format!("accesses to the page of {told}: {why}"));
                }
                return;
            }
        };
        let action = match touched {
            _ if error.contains(PageFaultError::F) => Action::Exec { at: page, user },
            Touched::Linear(at) if error.contains(PageFaultError::W) => {
                Action::Write { at: page | at & 0xff8, value: STORED, user }
            }
            Touched::Linear(at) => Action::Read { at: page | at & 0xff8, user },
            Touched::Frame(_) if error.contains(PageFaultError::W) => Action::Write { at: page, value: STORED, user },
            Touched::Frame(_) => Action::Read { at: page, user },
        };
        // A fault that is handled twice is one access.
        let is_again = matches!(self.steps.items.last(), Some(Item::Step(number, level, last, ..))
            if (*number, *level) == (vcpu.number, vcpu.level) && *last == action);
        if !is_again {
            self.step(vcpu.number, vcpu.level, action, line, told);
        }
    }
}

fn privilege_of(error: u64) -> Privilege {
    if error & u64::from(PageFaultError::U.bits()) == 0 { Privilege::Supervisor } else { Privilege::User }
}

/// The frame of an address or CR3 value.
const fn frame_of(value: u64) -> u64 {
    value >> 12 & ((1 << 40) - 1)
}

/// The paging mode of whoever runs on a root of the shadow MMU.
const fn mode_of(role: Seen) -> Mode {
    let word = role.word;
    match (word.direct(), word.has_4_byte_gpte(), word.level()) {
        (1, ..) => Mode::Flat32,
        (_, 1, _) => Mode::Legacy32,
        (_, _, 5) => Mode::Long5,
        (_, _, 4) => Mode::Long4,
        _ => Mode::Pae,
    }
}

const fn action_of(flags: Flags) -> Action {
    match flags.register {
        ControlRegister::Cr0 => Action::MovCr0(flags),
        ControlRegister::Cr4 => Action::MovCr4(flags),
        ControlRegister::Efer => Action::WrmsrEfer(flags),
    }
}
