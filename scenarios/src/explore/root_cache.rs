//! The smallest space that still has the bugs: roles and root cache of one vCPU without TDP, on VMX, and nothing below them.
//!
//! Role computation, initialisation, the look-up of a root for a new CR3, building and giving up roots are the code of the
//! `mmu` crate. Around it stand the few lines of the vCPU loop that call it: MOV to CR3, control-register writes, nested
//! entry and exit with the two halves of `nested_vmx_load_cr3` in the order of the kernel at hand, and the reload before the
//! guest runs. What is held against it is I2, root-role, and I4, root-pgd.
//!
//! Left out: shadow pages below the roots, processors, requests (they are serviced at once), and zapping: the shadow page of
//! every root that there can be exists from the start, as a shadow page outlives its roots. So a state is 64 bits, and
//! two states are the same exactly if these are.

use mmu::cpuid::GuestCpuid;
use mmu::frames::Frames;
use mmu::load::Which;
use mmu::memslot::{AddressSpace, Memslot, Memslots};
use mmu::request::Requests;
use mmu::role::PageRole;
use mmu::state::{Config, Mmu, Nesting, PREV_ROOTS, RoleRegs, Root, TdpMode};
use mmu::{ChangeSet, Ctx, VcpuMmu, View, Vm};
use search::{Move, Space};
use sim_core::addr::{Gfn, Hfn, Hpa, PAGE_BYTES};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::event::{Detail, EventLog, MmuId};
use sim_core::{Ground, SimError};

/// A bit of a control register that roles depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bit {
    /// CR0.WP.
    Wp,
    /// CR4.SMEP.
    Smep,
    /// EFER.NXE.
    Nxe,
}

/// One event. The guest's are those of whoever runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// MOV to CR3, to the tables of this number.
    MovCr3(u8),
    /// A write that turns a bit over.
    Turn(Bit),
    /// Nested VM-entry, with L2's registers as it left them.
    Enter,
    /// Nested VM-entry with this CR3.
    EnterWith(u8),
    /// Nested VM-exit to L1's registers as they were at the entry.
    Exit,
    /// Nested VM-exit to those with one bit turned over.
    ExitTurned(Bit),
    /// The host gives up every root.
    FreeAll,
    /// The current root is given up.
    FreeCurrent,
    /// A previous root is given up, as INVPCID does.
    FreePrevious(u8),
}

/// The space.
#[derive(Clone, Debug)]
pub struct RootCache {
    changes: ChangeSet,
    cr3s: u8,
    events: Vec<Event>,
}

/// CR3 and bits of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Registers {
    cr3: u8,
    /// See [`number`].
    bits: u8,
}

/// A state, unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unpacked {
    in_l2: bool,
    l1: Registers,
    l2: Registers,
    /// The current root and the previous ones: numbers of root pages from 1, 0 for none.
    roots: [u8; 1 + PREV_ROOTS],
}

/// A state: see [`Unpacked`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packed(u64);

impl Unpacked {
    fn pack(self) -> Packed {
        let registers = |registers: Registers| u64::from(registers.cr3 | registers.bits << 2);
        let roots = self.roots.iter().rev().fold(0, |word, root| word << 8 | u64::from(*root));
        Packed(roots << 11 | registers(self.l2) << 6 | registers(self.l1) << 1 | u64::from(self.in_l2))
    }

    fn unpack(Packed(word): Packed) -> Self {
        let registers = |word: u64| Registers { cr3: (word & 3) as u8, bits: (word >> 2 & 7) as u8 };
        let root = |index: u32| (word >> (11 + 8 * index)) as u8;
        Self {
            in_l2: word & 1 == 1,
            l1: registers(word >> 1),
            l2: registers(word >> 6),
            roots: [root(0), root(1), root(2), root(3)],
        }
    }
}

/// What a state violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// I2: the root's shadow page has another role than the MMU; they differ in these bits.
    RootRole(PageRole),
    /// I4: the root was built for another CR3.
    RootPgd,
}

/// What takes steps: a VM whose root pages are all there, and a vCPU that is set up anew for each step.
#[derive(Clone)]
pub struct Player {
    vm: Vm,
    ground: Ground,
    vcpu: VcpuMmu,
    /// Root pages by number from 1.
    pages: Vec<Root>,
    /// The MMU without roots, by level and bits, as its initialisation leaves it.
    mmus: Vec<Mmu>,
    state: Unpacked,
}

/// Guest frames of the tables that CR3 can name.
const TABLES: u64 = 0x10;

const fn pgd(cr3: u8) -> u64 {
    (TABLES + cr3 as u64) * PAGE_BYTES
}

fn view(in_l2: bool, registers: Registers) -> View {
    let on = |bit: u8| registers.bits >> bit & 1 == 1;
    let cr0 = if on(0) { Cr0::PG.union(Cr0::WP) } else { Cr0::PG };
    let cr4 = if on(1) { Cr4::PAE.union(Cr4::SMEP) } else { Cr4::PAE };
    let long = Efer::LME.union(Efer::LMA);
    View {
        regs: RoleRegs::new(cr0, cr4, if on(2) { long.union(Efer::NXE) } else { long }),
        cr3: pgd(registers.cr3),
        pdptes: [0; 4],
        nesting: if in_l2 { Nesting::L2 } else { Nesting::L1 },
        smm: mmu::state::Smm::Outside,
        nested_pgd: 0,
    }
}

impl RootCache {
    /// A space with so many CR3 values (1 to 4), in which these bits change.
    #[must_use]
    pub fn new(changes: ChangeSet, cr3s: u8, bits: &[Bit]) -> Self {
        let cr3s = cr3s.clamp(1, 4);
        let mut events: Vec<Event> = (0..cr3s).map(Event::MovCr3).collect();
        events.extend(bits.iter().copied().map(Event::Turn));
        events.push(Event::Enter);
        events.extend((0..cr3s).map(Event::EnterWith));
        events.push(Event::Exit);
        events.extend(bits.iter().copied().map(Event::ExitTurned));
        events.extend([Event::FreeAll, Event::FreeCurrent]);
        events.extend((0..PREV_ROOTS as u8).map(Event::FreePrevious));
        Self { changes, cr3s, events }
    }

    /// The events by number.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The first state: L1 with every bit on, and no root yet.
    #[must_use]
    pub fn first(&self) -> Packed {
        let registers = Registers { cr3: 0, bits: 7 };
        Unpacked { l1: registers, l2: registers, ..Unpacked::default() }.pack()
    }

    /// What takes steps.
    ///
    /// # Errors
    /// If the model's memory does not hold its root pages, which is an error of ours.
    pub fn new_player(&self) -> Result<Player, SimError> {
        let mut slots = Memslots::default();
        let ram = Memslot::new("ram", Gfn(0), 0x100, Hfn(0x1000));
        slots.add(AddressSpace::Normal, ram).map_err(|_| SimError::internal("a slot of the model overlaps"))?;
        let vm = Vm::new(self.changes, Config::new(TdpMode::Off, 40), Frames::new(Hfn(0x100), Hfn(0x200)));
        let vm = Vm { slots, ..vm };
        let vcpu = VcpuMmu::new(GuestCpuid::of_host(&vm.config));
        let mut ground = Ground::new(0x2000);
        ground.log = EventLog::new(Detail::Nothing);
        let (pages, mmus) = (Vec::new(), Vec::new());
        let mut player = Player { vm, ground, vcpu, pages, mmus, state: Unpacked::default() };
        player.furnish(self.cr3s)?;
        Ok(player)
    }
}

impl Player {
    /// Makes the shadow page of every root that there can be, and every shape of the MMU.
    fn furnish(&mut self, cr3s: u8) -> Result<(), SimError> {
        for (in_l2, bits) in [false, true].into_iter().flat_map(|in_l2| (0..8).map(move |bits| (in_l2, bits))) {
            for cr3 in 0..cr3s {
                let view = view(in_l2, Registers { cr3, bits });
                self.mmu(|ctx, vcpu| {
                    ctx.init_mmu(vcpu, &view);
                    ctx.reload(vcpu, &view).map(|_| ())
                })?;
                let root = std::mem::replace(&mut self.vcpu.root_mmu.root, Root::NONE);
                if self.pages.iter().all(|page| page.hpa != root.hpa) {
                    self.pages.push(root);
                }
            }
            self.mmus.push(self.vcpu.root_mmu.clone());
        }
        Ok(())
    }

    fn mmu<T>(&mut self, call: impl FnOnce(&mut Ctx<'_>, &mut VcpuMmu) -> T) -> T {
        call(&mut Ctx { vm: &mut self.vm, ground: &mut self.ground }, &mut self.vcpu)
    }

    fn registers(&mut self) -> &mut Registers {
        if self.state.in_l2 { &mut self.state.l2 } else { &mut self.state.l1 }
    }

    fn view(&self) -> View {
        view(self.state.in_l2, if self.state.in_l2 { self.state.l2 } else { self.state.l1 })
    }

    /// The vCPU as a state has it.
    fn set(&mut self, state: Packed) {
        self.state = Unpacked::unpack(state);
        let Unpacked { in_l2, l1, l2, roots } = self.state;
        let bits = if in_l2 { l2.bits } else { l1.bits };
        let mmu = &mut self.vcpu.root_mmu;
        mmu.clone_from(&self.mmus[usize::from(in_l2) * 8 + usize::from(bits)]);
        let root = |number: u8| usize::from(number).checked_sub(1).map_or(Root::NONE, |at| self.pages[at]);
        mmu.root = root(roots[0]);
        mmu.prev = [root(roots[1]), root(roots[2]), root(roots[3])];
        // Pending already, so that posting it again costs nothing: the reload follows in any case.
        self.vcpu.requests = Requests::LOAD_MMU_PGD;
    }

    /// The state of the vCPU.
    fn packed(&mut self) -> Packed {
        let mmu = &self.vcpu.root_mmu;
        let number = |hpa: Hpa| {
            let at = hpa.is_valid().then(|| self.pages.iter().position(|page| page.hpa == hpa)).flatten();
            at.map_or(0, |at| at as u8 + 1)
        };
        let [first, second, third] = mmu.prev;
        self.state.roots = [number(mmu.root.hpa), number(first.hpa), number(second.hpa), number(third.hpa)];
        self.state.pack()
    }

    /// Takes one event from a state: where it leads. None if it can't happen there.
    ///
    /// # Errors
    /// If host memory runs out, which it can't.
    pub fn take(&mut self, from: Packed, event: Event) -> Result<Option<Packed>, SimError> {
        self.set(from);
        if !self.happen(event) {
            return Ok(None);
        }
        let view = self.view();
        self.mmu(|ctx, vcpu| ctx.reload(vcpu, &view))?;
        Ok(Some(self.packed()))
    }

    fn happen(&mut self, event: Event) -> bool {
        match (event, self.state.in_l2) {
            (Event::MovCr3(cr3), _) => self.mov_cr3(cr3),
            (Event::Turn(bit), _) => {
                self.registers().bits ^= number(bit);
                let view = self.view();
                self.mmu(|ctx, vcpu| ctx.reset_context(vcpu, &view));
            }
            (Event::Enter, false) => self.transition(true, self.state.l2),
            (Event::EnterWith(cr3), false) => self.transition(true, Registers { cr3, ..self.state.l2 }),
            (Event::Exit, true) => self.transition(false, self.state.l1),
            (Event::ExitTurned(bit), true) => {
                let l1 = self.state.l1;
                self.transition(false, Registers { bits: l1.bits ^ number(bit), ..l1 });
            }
            (Event::FreeAll, _) => self.mmu(|ctx, vcpu| ctx.unload(vcpu)),
            (Event::FreeCurrent, _) => self.free(Which::Current),
            (Event::FreePrevious(index), _) => {
                if !self.vcpu.root_mmu.prev[usize::from(index)].is_valid() {
                    return false;
                }
                self.free(Which::Prev(usize::from(index)));
            }
            (Event::Enter | Event::EnterWith(_), true) | (Event::Exit | Event::ExitTurned(_), false) => return false,
        }
        true
    }

    fn free(&mut self, which: Which) {
        self.mmu(|ctx, vcpu| ctx.free_roots(vcpu, MmuId::Root, which));
    }

    /// `kvm_set_cr3`.
    fn mov_cr3(&mut self, cr3: u8) {
        if self.registers().cr3 != cr3 {
            let view = self.view();
            self.mmu(|ctx, vcpu| ctx.new_pgd(vcpu, &view, pgd(cr3)));
            self.registers().cr3 = cr3;
        }
    }

    /// `nested_vmx_load_cr3` with what comes before it.
    fn transition(&mut self, in_l2: bool, registers: Registers) {
        self.state.in_l2 = in_l2;
        // CR3 is still the old one while the new root is looked up.
        let before = self.registers().cr3;
        *self.registers() = registers;
        let after = self.view();
        let first = View { cr3: pgd(before), ..after };
        if self.vm.changes.load_cr3_inits_first() {
            self.mmu(|ctx, vcpu| ctx.init_mmu(vcpu, &after));
            self.mmu(|ctx, vcpu| ctx.new_pgd(vcpu, &after, after.cr3));
        } else {
            self.mmu(|ctx, vcpu| ctx.new_pgd(vcpu, &first, after.cr3));
            self.mmu(|ctx, vcpu| ctx.init_mmu(vcpu, &after));
        }
    }

    /// What is wrong with the state that the last event led to.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        let mmu = &self.vcpu.root_mmu;
        let role = self.vm.pages.at(mmu.root.hpa)?.role;
        if role != mmu.root_role {
            return Some(Violation::RootRole(PageRole(role.0 ^ mmu.root_role.0)));
        }
        (mmu.root.pgd != self.view().cr3).then_some(Violation::RootPgd)
    }
}

const fn number(bit: Bit) -> u8 {
    match bit {
        Bit::Wp => 1,
        Bit::Smep => 2,
        Bit::Nxe => 4,
    }
}

impl Space for RootCache {
    type State = Packed;
    type Player = Player;
    type Note = Result<Violation, SimError>;
    type Error = SimError;
    const BATCH: usize = 16_384;

    fn steps(&self) -> u16 {
        self.events.len() as u16
    }

    fn player(&self) -> Result<Player, SimError> {
        self.new_player()
    }

    fn start(&self, _: &mut Player) -> Result<(u64, Packed), SimError> {
        let first = self.first();
        Ok((digest(first), first))
    }

    fn take(&self, player: &mut Player, from: &Packed, _: u32, by: Move, notes: &mut Vec<Self::Note>) -> Option<u64> {
        match player.take(*from, self.events[usize::from(by.step)]) {
            Ok(to) => {
                notes.extend(to.and_then(|_| player.violation()).map(Ok));
                to.map(digest)
            }
            Err(error) => {
                notes.push(Err(error));
                None
            }
        }
    }

    fn keep(&self, player: &mut Player) -> Packed {
        player.packed()
    }
}

/// A bijection, so that states are told apart exactly (the finalizer of splitmix64).
const fn digest(Packed(word): Packed) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
