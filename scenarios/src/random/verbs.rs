//! The steps of a random scenario: one table that says how often each verb comes and how its arguments are chosen.
//!
//! A new verb joins with one row here. A row that has nothing to say where it is asked (no nested guest, no paging) gives
//! none, and another is asked.

use super::rng::Rng;
use super::world::{
    Big, ELSEWHERE, FAR, FRAMES, LARGE, LARGE_FRAMES, MOVABLE, REGIONS, SLOTS, SMALL, Signals, Space, World,
    large_size, rights,
};
use crate::file::{Actor, Mode, Vendor};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One row: how often a verb comes, and what it says.
pub(super) struct Row {
    /// Its name in [`crate::file::VERBS`].
    pub(super) verb: &'static str,
    pub(super) actors: &'static [Actor],
    pub(super) weight: u64,
    write: fn(&mut Writer<'_>) -> Option<()>,
}

const GUESTS: &[Actor] = &[Actor::L1, Actor::L2];
const L1: &[Actor] = &[Actor::L1];
const L2: &[Actor] = &[Actor::L2];
const SMM: &[Actor] = &[Actor::Smm];
const HOST: &[Actor] = &[Actor::Host];

macro_rules! rows {
    ($($verb:literal $actors:ident $weight:literal $write:ident;)*) => {
        &[$(Row { verb: $verb, actors: $actors, weight: $weight, write: $write },)*]
    };
}

/// Every verb that random scenarios use. A weight of 0 is of a verb that comes with another.
pub(super) const ROWS: &[Row] = rows! {
    "read" GUESTS 26 read;
    "write" GUESTS 16 store;
    "exec" GUESTS 10 exec;
    "map" GUESTS 12 map;
    "unmap" GUESTS 4 unmap;
    "set-entry" GUESTS 12 set_entry;
    "link" GUESTS 5 link;
    "read-entry" GUESTS 3 read_entry;
    "mov-cr3" GUESTS 10 mov_cr3;
    "mov-cr0" GUESTS 5 mov_cr0;
    "mov-cr4" GUESTS 6 mov_cr4;
    "wrmsr-efer" GUESTS 3 wrmsr_efer;
    "invlpg" GUESTS 8 invlpg;
    "invpcid" GUESTS 4 invpcid;
    "run" GUESTS 1 run;
    "become" L1 3 become_space;
    "enter" L1 22 enter;
    "invept" L1 3 invept;
    "invvpid" L1 4 invvpid;
    "invlpga" L1 3 invlpga;
    "nested-map" L1 5 nested_map;
    "nested-unmap" L1 1 nested_unmap;
    "exit" L2 22 exit;
    "zap-all" HOST 2 zap_all;
    "zap-gfn" HOST 5 zap_gfn;
    "add-slot" HOST 4 slot;
    "delete-slot" HOST 0 slot;
    "move-slot" HOST 2 move_slot;
    "save-state" HOST 3 migrate;
    "set-registers" HOST 3 set_registers;
    "set-efer" HOST 1 set_efer;
    "set-sregs" HOST 0 migrate;
    "set-nested-state" HOST 0 migrate;
    "leave-nested" HOST 6 leave_nested;
    "run" HOST 1 host_run;
    "unload-mmu" HOST 2 unload_mmu;
    "flush-tlb" HOST 2 flush_tlb;
    "migrate" HOST 4 move_thread;
    "log-dirty" HOST 3 log_dirty;
    "dirty-log" HOST 3 dirty_log;
    "clear-dirty-log" HOST 2 clear_dirty_log;
    "invalidate-begin" HOST 2 invalidate;
    "invalidate-end" HOST 0 invalidate;
    "move-page" HOST 3 move_page;
    "change-page" HOST 2 change_page;
    "age-page" HOST 3 age_page;
    "test-age" HOST 1 test_age;
    "smi" HOST 4 smi;
    "rsm" SMM 0 smi;
    "init-vcpu" HOST 1 init_vcpu;
};

/// How often the host acts, in percent of the steps.
const HOST_PERCENT: u64 = 12;

/// What the generator knows of a vCPU, if every step did what it seems to.
#[derive(Clone, Debug)]
struct Seat {
    level: Actor,
    guest: usize,
    l1_mode: Mode,
    l1_space: &'static str,
    l2_spaces: Vec<&'static str>,
}

/// Writes the steps of one scenario.
pub(super) struct Writer<'a> {
    rng: &'a mut Rng,
    world: &'a mut World,
    seats: Vec<Seat>,
    slots: BTreeMap<&'static str, bool>,
    vcpu: usize,
    actor: Actor,
    /// Linear addresses whose entries were edited lately: accesses go there more often.
    hot: Vec<u64>,
    /// Whether writes to main memory are logged.
    logs_dirty: bool,
    /// Whether the slot that can be at two places is at the second.
    moved: bool,
    lines: Vec<String>,
}

/// The steps of a scenario on a machine, one a line.
pub(super) fn steps(rng: &mut Rng, world: &mut World) -> String {
    let count = 12 + rng.below(36) as usize;
    let seat = Seat {
        level: Actor::L1,
        guest: 0,
        l1_mode: world.l1_mode,
        l1_space: world.l1_space,
        l2_spaces: world.guests.iter().map(|guest| guest.space).collect(),
    };
    let seats = vec![seat; usize::from(world.vcpus)];
    let slots = world.slots.clone();
    let mut writer = Writer {
        rng,
        world,
        seats,
        slots,
        vcpu: 0,
        actor: Actor::L1,
        hot: Vec::new(),
        logs_dirty: false,
        moved: false,
        lines: Vec::new(),
    };
    while writer.lines.len() < count {
        writer.next();
    }
    writer.lines.iter().map(|line| format!("{line}\n")).collect()
}

impl Writer<'_> {
    fn next(&mut self) {
        if self.rng.chance(1, 3) {
            self.vcpu = self.rng.below(u64::from(self.world.vcpus)) as usize;
        }
        self.actor = if self.rng.chance(HOST_PERCENT, 100) { Actor::Host } else { self.seat().level };
        let actor = self.actor;
        let row = self.rng.weighted(ROWS, |row| if row.actors.contains(&actor) { row.weight } else { 0 });
        // A row with nothing to say leaves the turn to another.
        let _ = row.and_then(|row| (row.write)(self));
    }

    fn seat(&self) -> &Seat {
        &self.seats[self.vcpu]
    }

    fn seat_mut(&mut self) -> &mut Seat {
        &mut self.seats[self.vcpu]
    }

    /// A step of the actor whose turn it is.
    fn say(&mut self, what: impl AsRef<str>) -> Option<()> {
        let vcpu = if self.vcpu == 0 { String::new() } else { format!("{}.", self.vcpu) };
        self.lines.push(format!("{vcpu}{}: {}", self.actor.name(), what.as_ref()));
        Some(())
    }

    /// The mode of the code that runs.
    fn mode(&self) -> Mode {
        match self.actor {
            Actor::L2 => self.world.guests.get(self.seat().guest).map_or(Mode::Long4, |guest| guest.mode),
            _ => self.seat().l1_mode,
        }
    }

    /// The space whose tables the code runs on.
    fn own_space(&self) -> &'static str {
        match self.actor {
            Actor::L2 => self.seat().l2_spaces.get(self.seat().guest).copied().unwrap_or(self.world.l1_space),
            _ => self.seat().l1_space,
        }
    }

    fn set_own_space(&mut self, space: &'static str) {
        let (actor, seat) = (self.actor, self.seat_mut());
        let guest = seat.guest;
        match (actor, seat.l2_spaces.get_mut(guest)) {
            (Actor::L2, Some(own)) => *own = space,
            _ => seat.l1_space = space,
        }
    }

    /// What to choose in the host's turn as if it were the turn of the code that the host stops.
    fn as_guest<T>(&mut self, choose: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let level = self.seat().level;
        let actor = std::mem::replace(&mut self.actor, level);
        let chosen = choose(self);
        self.actor = actor;
        chosen
    }

    /// A paged space to edit: the one in use, more often than not.
    fn paged_space(&mut self) -> Option<Space> {
        let own = self.own_space();
        let all: Vec<&'static str> =
            self.world.spaces.iter().filter(|space| space.mode.has_paging()).map(|space| space.name).collect();
        let name = if all.contains(&own) && self.rng.chance(2, 3) { own } else { self.rng.one(&all).copied()? };
        self.world.space(name).cloned()
    }

    /// An address to access.
    fn address(&mut self) -> u64 {
        if !self.mode().has_paging() {
            let slots: Vec<u64> =
                SLOTS.iter().filter(|slot| self.slots.contains_key(slot.name)).map(|slot| slot.at).collect();
            let may_touch_slots = !(self.actor == Actor::L2 && self.world.nested_tdp);
            return match self.rng.one(&slots) {
                Some(slot) if may_touch_slots && self.rng.chance(1, 6) => *slot,
                _ => self.rng.one(&FRAMES).copied().unwrap_or(FRAMES[0]),
            };
        }
        match self.rng.one(&self.hot) {
            Some(at) if self.rng.chance(1, 2) => *at,
            _ => self.mapped_address(),
        }
    }

    fn mapped_address(&mut self) -> u64 {
        let all: Vec<u64> = SMALL.iter().chain(&FAR).chain(&LARGE).copied().collect();
        self.rng.one(&all).copied().unwrap_or(SMALL[0])
    }

    /// An address to load from or store to, which may be a slot's. L0 emulates no access of an L2 that has nested paging.
    fn data_address(&mut self) -> u64 {
        let slots: Vec<u64> =
            SLOTS.iter().filter(|slot| self.slots.contains_key(slot.name)).map(|slot| slot.linear).collect();
        let may_touch_slots = self.mode().has_paging() && !(self.actor == Actor::L2 && self.world.nested_tdp);
        match self.rng.one(&slots) {
            Some(slot) if may_touch_slots && self.rng.chance(1, 6) => *slot,
            _ => self.address(),
        }
    }

    /// CPL 3, now and then. The task-state segment is that of the bitness that L1 starts in, so behind a switch to the
    /// other there is no way back from CPL 3.
    fn user(&mut self) -> &'static str {
        let has_stack = self.actor == Actor::L2 || self.seat().l1_mode.is_long() == self.world.l1_mode.is_long();
        if has_stack && self.rng.chance(1, 3) { " user" } else { "" }
    }

    /// An address whose entry in a space can be edited one small page at a time.
    fn small_address(&mut self, space: &Space) -> u64 {
        let big: &[u64] = if space.big == Big::Table { &LARGE } else { &[] };
        let all: Vec<u64> = SMALL.iter().chain(&FAR).chain(big).copied().collect();
        self.rng.one(&all).copied().unwrap_or(SMALL[0])
    }

    /// After an edit: what makes it take effect, or nothing, and often an access.
    fn after_edit(&mut self, at: u64) {
        self.hot.push(at);
        if self.hot.len() > 4 {
            self.hot.remove(0);
        }
        match self.rng.below(6) {
            0..3 => {
                let _ = self.say(format!("invlpg {at:#x}"));
            }
            3 => {
                let _ = mov_cr3(self);
            }
            _ => {}
        }
        if self.rng.chance(1, 2) {
            let user = self.user();
            let _ = self.say(format!("read {at:#x}{user}"));
        }
    }

    fn flag(&mut self, flags: &[&str]) -> String {
        let sign = if self.rng.chance(1, 2) { '+' } else { '-' };
        format!("{sign}{}", self.rng.one(flags).copied().unwrap_or("WP"))
    }

    fn cr4_flag(&mut self, mode: Mode) -> String {
        if mode.is_long() { self.flag(&["SMEP", "SMAP", "PGE", "PCIDE"]) } else { self.flag(&["SMEP", "SMAP", "PGE"]) }
    }
}

fn read(writer: &mut Writer<'_>) -> Option<()> {
    let (at, user) = (writer.data_address(), writer.user());
    writer.say(format!("read {at:#x}{user}"))
}

/// A store at the start of a page keeps the RET there.
fn store(writer: &mut Writer<'_>) -> Option<()> {
    let (at, user) = (writer.data_address(), writer.user());
    let value = writer.rng.below(0x10000) << 8 | 0xc3;
    writer.say(format!("write {at:#x} {value:#x}{user}"))
}

fn exec(writer: &mut Writer<'_>) -> Option<()> {
    let at = loop {
        let at = writer.address();
        if !SLOTS.iter().any(|slot| slot.at == at) {
            break at;
        }
    };
    let user = writer.user();
    writer.say(format!("exec {at:#x}{user}"))
}

fn map(writer: &mut Writer<'_>) -> Option<()> {
    let space = writer.paged_space()?;
    let name = space.name;
    let rights = rights(writer.rng);
    if space.big != Big::Table && writer.rng.chance(1, 5) || writer.rng.chance(1, 20) {
        let frame = *writer.rng.one(&LARGE_FRAMES)?;
        let size = large_size(space.mode).name();
        writer.say(format!("map {name} {:#x} -> {frame:#x} {rights} {size}", LARGE[0]))?;
        writer.set_big(name, Big::Page);
        writer.after_edit(LARGE[0]);
        return Some(());
    }
    let at = writer.small_address(&space);
    let frame = *writer.rng.one(&FRAMES)?;
    writer.say(format!("map {name} {at:#x} -> {frame:#x} {rights}"))?;
    writer.after_edit(at);
    Some(())
}

fn unmap(writer: &mut Writer<'_>) -> Option<()> {
    let space = writer.paged_space()?;
    let name = space.name;
    if space.big == Big::Page && writer.rng.chance(1, 4) {
        writer.say(format!("unmap {name} {:#x}", LARGE[0]))?;
        writer.set_big(name, Big::Nothing);
        writer.after_edit(LARGE[0]);
        return Some(());
    }
    let at = writer.small_address(&space);
    writer.say(format!("unmap {name} {at:#x}"))?;
    writer.after_edit(at);
    Some(())
}

impl Writer<'_> {
    fn set_big(&mut self, name: &str, big: Big) {
        if let Some(space) = self.world.spaces.iter_mut().find(|space| space.name == name) {
            space.big = big;
        }
    }
}

fn set_entry(writer: &mut Writer<'_>) -> Option<()> {
    let space = writer.paged_space()?;
    let large = space.big == Big::Page && writer.rng.chance(1, 5);
    let at = if large { LARGE[0] } else { writer.small_address(&space) };
    let level = if large { 2 } else { *writer.rng.one(space.levels_at(at, writer.world.pdptes))? };
    let bit = match (space.mode, level) {
        // A PDPTE of PAE paging has no permissions (SDM 3A table 4-8).
        (Mode::Pae, 3) => "P",
        (Mode::Legacy32, _) => *writer.rng.one(&["P", "W", "U", "A", "D"])?,
        _ => *writer.rng.one(&["P", "W", "U", "A", "D", "XD", "W", "U"])?,
    };
    let bit = if level > 1 && !large && bit == "D" { "A" } else { bit };
    let sign = if writer.rng.chance(1, 2) { '+' } else { '-' };
    writer.say(format!("set-entry {} {level} {at:#x} {sign}{bit}", space.name))?;
    writer.after_edit(at);
    Some(())
}

/// An entry becomes another space's: from then on the two share the table below it.
fn link(writer: &mut Writer<'_>) -> Option<()> {
    let space = writer.paged_space()?;
    let others: Vec<&'static str> =
        writer.world.spaces_of(space.mode).into_iter().filter(|name| *name != space.name).collect();
    let other = writer.rng.one(&others).copied()?;
    let big = writer.rng.chance(1, 4);
    let at = if big { LARGE[0] } else { *writer.rng.one(&[SMALL[0], SMALL[1], FAR[0]])? };
    let level = if big { 2 } else { *writer.rng.one(space.levels_at(at, writer.world.pdptes))? };
    writer.say(format!("link {} {level} {at:#x} {other}", space.name))?;
    if big {
        let kind = writer.world.space(other)?.big;
        writer.set_big(space.name, kind);
    }
    writer.after_edit(at);
    Some(())
}

fn read_entry(writer: &mut Writer<'_>) -> Option<()> {
    let space = writer.paged_space()?;
    let at = writer.small_address(&space);
    let level = *writer.rng.one(space.levels_at(at, writer.world.pdptes))?;
    writer.say(format!("read-entry {} {level} {at:#x}", space.name))
}

fn mov_cr3(writer: &mut Writer<'_>) -> Option<()> {
    let mode = writer.mode();
    if !mode.has_paging() {
        return None;
    }
    let space = writer.rng.one(&writer.world.spaces_of(mode)).copied()?;
    let no_flush = mode.is_long() && writer.rng.chance(1, 5);
    writer.say(format!("mov-cr3 {space}{}", if no_flush { " noflush" } else { "" }))?;
    writer.set_own_space(space);
    Some(())
}

fn mov_cr0(writer: &mut Writer<'_>) -> Option<()> {
    let mode = writer.mode();
    if mode.has_paging() && !mode.is_long() && writer.rng.chance(1, 6) {
        // Paging goes off, and on again before anything that needs it.
        writer.say("mov-cr0 -PG")?;
        let frame = *writer.rng.one(&FRAMES)?;
        writer.say(format!("read {frame:#x}"))?;
        return writer.say("mov-cr0 +PG");
    }
    let flag = writer.flag(&["WP"]);
    writer.say(format!("mov-cr0 {flag}"))
}

fn mov_cr4(writer: &mut Writer<'_>) -> Option<()> {
    let flag = writer.cr4_flag(writer.mode());
    writer.say(format!("mov-cr4 {flag}"))
}

fn wrmsr_efer(writer: &mut Writer<'_>) -> Option<()> {
    let flag = writer.flag(&["NXE"]);
    writer.say(format!("wrmsr-efer {flag}"))
}

fn invlpg(writer: &mut Writer<'_>) -> Option<()> {
    let at = writer.address();
    writer.say(format!("invlpg {at:#x}"))
}

fn invpcid(writer: &mut Writer<'_>) -> Option<()> {
    let (at, pcid) = (writer.address(), writer.rng.below(3));
    let what = match writer.rng.below(4) {
        0 => format!("address {pcid} {at:#x}"),
        1 => format!("single {pcid}"),
        2 => "all".to_owned(),
        _ => "all-but-global".to_owned(),
    };
    writer.say(format!("invpcid {what}"))
}

fn run(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("run")
}

/// VMX can't leave paging (SDM 3C 23.8), so L1 switches modes where it has no guests, or on SVM.
fn become_space(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.vendor == Vendor::Intel && !writer.world.guests.is_empty() {
        return None;
    }
    let runs_guests = !writer.world.guests.is_empty();
    let guests_are_long = writer.world.guests.iter().any(|guest| guest.mode.is_long());
    let is_legal =
        |space: &&Space| !runs_guests || (space.mode.has_paging() && (space.mode.is_long() || !guests_are_long));
    let spaces: Vec<Space> = writer.world.spaces.iter().filter(is_legal).cloned().collect();
    let space = writer.rng.one(&spaces)?;
    writer.say(format!("become {}", space.name))?;
    let seat = writer.seat_mut();
    (seat.l1_mode, seat.l1_space) = (space.mode, space.name);
    Some(())
}

fn enter(writer: &mut Writer<'_>) -> Option<()> {
    let guests = writer.world.guests.len() as u64;
    if guests == 0 {
        return None;
    }
    let number = writer.rng.below(guests) as usize;
    let guest = writer.world.guests[number].clone();
    let mut changes: Vec<(&'static str, String)> = Vec::new();
    for _ in 0..writer.rng.below(4) {
        if let Some((key, value)) = guest_change(writer, guest.mode)
            && !changes.iter().any(|(known, _)| *known == key)
        {
            changes.push((key, value));
        }
    }
    let text: String = changes.iter().map(|(key, value)| format!(" {key}={value}")).collect();
    writer.say(format!("enter {}{text}", guest.name))?;
    let new_space = changes.iter().find(|(key, _)| *key == "cr3").map(|(_, value)| value.clone());
    let new_host = changes.iter().find(|(key, _)| *key == "host-cr3").map(|(_, value)| value.clone());
    let find = |world: &World, name: Option<String>| Some(world.space(&name?)?.name);
    let (new_space, new_host) = (find(writer.world, new_space), find(writer.world, new_host));
    let seat = writer.seat_mut();
    seat.level = Actor::L2;
    seat.guest = number;
    seat.l1_space = new_host.unwrap_or(seat.l1_space);
    if let (Some(space), Some(own)) = (new_space, seat.l2_spaces.get_mut(number)) {
        *own = space;
    }
    Some(())
}

/// One change to a VMCS or VMCB, as key and value.
fn guest_change(writer: &mut Writer<'_>, mode: Mode) -> Option<(&'static str, String)> {
    let l1_mode = writer.seat().l1_mode;
    let is_intel = writer.world.vendor == Vendor::Intel;
    Some(match (writer.rng.below(12), is_intel) {
        (0..3, _) if mode.has_paging() => ("cr3", (*writer.rng.one(&writer.world.spaces_of(mode))?).to_owned()),
        (3, _) => ("cr0", writer.flag(&["WP"])),
        (4, _) => ("cr4", writer.cr4_flag(mode)),
        (5, _) => ("efer", writer.flag(&["NXE"])),
        (6, true) => ("host-cr3", (*writer.rng.one(&writer.world.spaces_of(l1_mode))?).to_owned()),
        (7, true) => ("host-cr0", writer.flag(&["WP"])),
        (8, true) => ("host-cr4", writer.cr4_flag(l1_mode)),
        (9, true) => ("host-efer", writer.flag(&["NXE"])),
        (10, true) => ("vpid", writer.rng.below(3).to_string()),
        (6, false) => ("asid", (1 + writer.rng.below(2)).to_string()),
        (7..9, false) => ("tlb", (*writer.rng.one(&["nothing", "all", "guest", "guest-non-global"])?).to_owned()),
        (11, _) if !writer.world.tables.is_empty() => ("nested", (*writer.rng.one(&writer.world.tables)?).to_owned()),
        _ => return None,
    })
}

fn invept(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.vendor != Vendor::Intel || !writer.world.nested_tdp || writer.world.guests.is_empty() {
        return None;
    }
    let scope = *writer.rng.one(&["single", "global"])?;
    writer.say(format!("invept {scope}"))
}

fn invvpid(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.vendor != Vendor::Intel || writer.world.guests.is_empty() {
        return None;
    }
    let (vpid, at) = (1 + writer.rng.below(2), writer.address());
    let what = match writer.rng.below(4) {
        0 => format!("single {vpid}"),
        1 => "all".to_owned(),
        2 => format!("but-global {vpid}"),
        _ => format!("address {vpid} {at:#x}"),
    };
    writer.say(format!("invvpid {what}"))
}

fn invlpga(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.vendor != Vendor::Amd || writer.world.guests.is_empty() {
        return None;
    }
    let (at, asid) = (writer.address(), writer.rng.below(3));
    writer.say(format!("invlpga {at:#x} {asid}"))
}

/// L1's nested tables map whole regions with large pages. 4 MiB pages need regions aligned to them.
fn region(writer: &mut Writer<'_>) -> Option<(u64, &'static str)> {
    let size = match (writer.world.vendor, writer.seat().l1_mode) {
        (Vendor::Amd, mode) => large_size(mode),
        (Vendor::Intel, _) => large_size(Mode::Long4),
    };
    let legal: Vec<u64> = REGIONS.into_iter().filter(|region| region.is_multiple_of(size.bytes())).collect();
    Some((*writer.rng.one(&legal)?, size.name()))
}

fn nested_map(writer: &mut Writer<'_>) -> Option<()> {
    let tables = *writer.rng.one(&writer.world.tables)?;
    let (from, size) = region(writer)?;
    let (other, _) = region(writer)?;
    let to = if writer.rng.chance(1, 2) { from } else { other };
    const RIGHTS: [(&str, u64); 4] = [("r", 2), ("rw", 2), ("rx", 1), ("rwx", 5)];
    let rights = writer.rng.weighted(&RIGHTS, |(_, weight)| *weight)?.0;
    writer.say(format!("nested-map {tables} {from:#x} -> {to:#x} {rights} {size}"))?;
    nested_flush(writer)
}

fn nested_unmap(writer: &mut Writer<'_>) -> Option<()> {
    let tables = *writer.rng.one(&writer.world.tables)?;
    let (from, _) = region(writer)?;
    writer.say(format!("nested-unmap {tables} {from:#x}"))?;
    nested_flush(writer)
}

fn nested_flush(writer: &mut Writer<'_>) -> Option<()> {
    if writer.rng.chance(1, 2) {
        let _ = invept(writer);
    }
    Some(())
}

fn exit(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("exit")?;
    writer.seat_mut().level = Actor::L1;
    Some(())
}

fn zap_all(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("zap-all")
}

/// A frame of data, of tables or of code.
fn frame(writer: &mut Writer<'_>) -> Option<u64> {
    Some(match writer.rng.below(3) {
        0 => 0x80 + writer.rng.below(0x20),
        1 => writer.rng.below(0x20),
        _ => *writer.rng.one(&FRAMES)? >> 12,
    })
}

fn zap_gfn(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("zap-gfn {gfn:#x}"))
}

fn log_dirty(writer: &mut Writer<'_>) -> Option<()> {
    let logging = if writer.rng.chance(2, 3) { "on" } else { "off" };
    writer.logs_dirty = logging == "on";
    writer.say(format!("log-dirty memory {logging}"))
}

fn dirty_log(writer: &mut Writer<'_>) -> Option<()> {
    let keep = if writer.rng.chance(1, 3) { " keep" } else { "" };
    if writer.logs_dirty { writer.say(format!("dirty-log memory{keep}")) } else { None }
}

fn clear_dirty_log(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    if writer.logs_dirty { writer.say(format!("clear-dirty-log memory {gfn:#x}")) } else { None }
}

/// The host changes nothing in the end, but for a moment nobody may map the frame.
fn invalidate(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("invalidate-begin {gfn:#x}"))?;
    writer.say(format!("invalidate-end {gfn:#x}"))
}

fn move_page(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("move-page {gfn:#x}"))
}

fn change_page(writer: &mut Writer<'_>) -> Option<()> {
    let (gfn, access) = (*writer.rng.one(&FRAMES)? >> 12, *writer.rng.one(&["read-only", "writable"])?);
    writer.say(format!("change-page {gfn:#x} {access}"))
}

fn age_page(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("age-page {gfn:#x}"))
}

fn test_age(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("test-age {gfn:#x}"))
}

/// A slot goes, or comes back.
fn slot(writer: &mut Writer<'_>) -> Option<()> {
    let names: Vec<&'static str> = writer.slots.keys().copied().collect();
    let name = writer.rng.one(&names).copied()?;
    let present = writer.slots.get_mut(name)?;
    let verb = if *present { "delete-slot" } else { "add-slot" };
    *present = !*present;
    writer.say(format!("{verb} {name}"))
}

/// The slot that can be at two places goes to the other one.
fn move_slot(writer: &mut Writer<'_>) -> Option<()> {
    if writer.slots.get(MOVABLE) != Some(&true) {
        return None;
    }
    let home = SLOTS.iter().find(|slot| slot.name == MOVABLE)?.at;
    writer.moved = !writer.moved;
    let at = if writer.moved { ELSEWHERE } else { home };
    writer.say(format!("move-slot {MOVABLE} {at:#x}"))
}

/// User space changes what the code that runs could change itself.
fn set_registers(writer: &mut Writer<'_>) -> Option<()> {
    writer
        .as_guest(|writer| {
            let mode = writer.mode();
            let mut changes = String::new();
            let space = if mode.has_paging() && writer.rng.chance(1, 2) {
                writer.rng.one(&writer.world.spaces_of(mode)).copied()
            } else {
                None
            };
            if let Some(space) = space {
                let _ = write!(changes, " cr3={space}");
            }
            let count = if changes.is_empty() { 1 } else { 0 } + writer.rng.below(2);
            let first = writer.rng.below(3);
            for index in 0..count {
                let _ = match (first + index) % 3 {
                    0 => write!(changes, " cr0={}", writer.flag(&["WP"])),
                    1 => write!(changes, " cr4={}", writer.cr4_flag(mode)),
                    _ => write!(changes, " efer={}", writer.flag(&["NXE"])),
                };
            }
            Some((space, changes))
        })
        .and_then(|(space, changes)| {
            writer.say(format!("set-registers{changes}"))?;
            writer.as_guest(|writer| {
                if let Some(space) = space {
                    writer.set_own_space(space);
                }
                Some(())
            })
        })
}

fn set_efer(writer: &mut Writer<'_>) -> Option<()> {
    let flag = writer.flag(&["NXE"]);
    writer.say(format!("set-efer {flag}"))
}

/// User space saves the vCPU and puts it back, as a migration does.
fn migrate(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("save-state")?;
    if writer.rng.chance(1, 4) {
        writer.say("unload-mmu")?;
    }
    match writer.rng.below(4) {
        0 => writer.say("set-sregs"),
        1 => writer.say("set-nested-state"),
        2 => {
            writer.say("set-nested-state")?;
            writer.say("set-sregs")
        }
        _ => {
            writer.say("set-sregs")?;
            writer.say("set-nested-state")
        }
    }
}

fn leave_nested(writer: &mut Writer<'_>) -> Option<()> {
    if !writer.world.leaves || writer.seat().level != Actor::L2 {
        return None;
    }
    writer.say("leave-nested")?;
    writer.seat_mut().level = Actor::L1;
    Some(())
}

fn host_run(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("run")
}

fn unload_mmu(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("unload-mmu")
}

/// The vCPU's thread moves to another logical processor, or stays.
fn move_thread(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.processors == 1 {
        return None;
    }
    let processor = writer.rng.below(u64::from(writer.world.processors));
    writer.say(format!("migrate {processor}"))
}

/// SMM code that looks at memory and goes back. Where L1 holds the SMI back its steps are left out.
fn smi(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.signals == Signals::None {
        return None;
    }
    writer.say("smi")?;
    writer.actor = Actor::Smm;
    for _ in 0..writer.rng.below(3) {
        let at = *writer.rng.one(&FRAMES)?;
        if writer.rng.chance(1, 2) {
            let value = writer.rng.below(0x10000) << 8 | 0xc3;
            writer.say(format!("write {at:#x} {value:#x}"))?;
        } else {
            writer.say(format!("read {at:#x}"))?;
        }
    }
    writer.say("rsm")
}

/// The vCPU starts anew, in 32-bit code without paging.
fn init_vcpu(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.signals != Signals::SmiAndInit {
        return None;
    }
    writer.say("init-vcpu")?;
    writer.seat_mut().l1_mode = Mode::Flat32;
    Some(())
}

fn flush_tlb(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("flush-tlb")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::VERBS;

    /// Every row is of a verb of the language, said by those who may.
    #[test]
    fn rows_are_of_verbs() {
        for row in ROWS {
            let of = |actor: &Actor| VERBS.iter().any(|verb| verb.name == row.verb && verb.actors.contains(actor));
            assert!(row.actors.iter().all(of), "{} is no verb", row.verb);
        }
    }
}
