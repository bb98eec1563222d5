//! The steps of a random scenario: one table that says how often each verb comes and how its arguments are chosen.
//!
//! A new verb joins with one row here. A row that has nothing to say where it is asked (no nested guest, no paging) gives
//! none, and another is asked. The rows' functions are in [`guest`], [`nested`] and [`host`].

mod guest;
mod host;
mod nested;

use super::rng::Rng;
use super::world::{
    Big, ELSEWHERE, FAR, FRAMES, LARGE, LARGE_FRAMES, MOVABLE, REGIONS, SLOTS, SMALL, Signals, Space, Within, World,
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
    ($($verb:literal $actors:ident $weight:literal $write:path;)*) => {
        &[$(Row { verb: $verb, actors: $actors, weight: $weight, write: $write },)*]
    };
}

/// Every verb that random scenarios use. A weight of 0 is of a verb that comes with another.
pub(super) const ROWS: &[Row] = rows! {
    "read" GUESTS 26 guest::read;
    "write" GUESTS 16 guest::store;
    "exec" GUESTS 10 guest::exec;
    "map" GUESTS 12 guest::map;
    "unmap" GUESTS 4 guest::unmap;
    "set-entry" GUESTS 12 guest::set_entry;
    "link" GUESTS 5 guest::link;
    "read-entry" GUESTS 3 guest::read_entry;
    "mov-cr3" GUESTS 10 guest::mov_cr3;
    "mov-cr0" GUESTS 5 guest::mov_cr0;
    "mov-cr4" GUESTS 6 guest::mov_cr4;
    "wrmsr-efer" GUESTS 3 guest::wrmsr_efer;
    "invlpg" GUESTS 8 guest::invlpg;
    "invpcid" GUESTS 4 guest::invpcid;
    "run" GUESTS 1 guest::run;
    "become" L1 3 guest::become_space;
    "enter" L1 22 nested::enter;
    "invept" L1 3 nested::invept;
    "invvpid" L1 4 nested::invvpid;
    "invlpga" L1 3 nested::invlpga;
    "nested-map" L1 5 nested::nested_map;
    "nested-unmap" L1 1 nested::nested_unmap;
    "exit" L2 22 nested::exit;
    "zap-all" HOST 2 host::zap_all;
    "zap-gfn" HOST 5 host::zap_gfn;
    "add-slot" HOST 4 host::slot;
    "delete-slot" HOST 0 host::slot;
    "move-slot" HOST 2 host::move_slot;
    "save-state" HOST 3 host::migrate;
    "set-registers" HOST 3 host::set_registers;
    "set-efer" HOST 1 host::set_efer;
    "set-sregs" HOST 0 host::migrate;
    "set-nested-state" HOST 0 host::migrate;
    "leave-nested" HOST 6 host::leave_nested;
    "run" HOST 1 host::host_run;
    "unload-mmu" HOST 2 host::unload_mmu;
    "flush-tlb" HOST 2 host::flush_tlb;
    "migrate" HOST 4 host::move_thread;
    "log-dirty" HOST 3 host::log_dirty;
    "dirty-log" HOST 3 host::dirty_log;
    "clear-dirty-log" HOST 2 host::clear_dirty_log;
    "invalidate-begin" HOST 2 host::invalidate;
    "invalidate-end" HOST 0 host::invalidate;
    "move-page" HOST 3 host::move_page;
    "change-page" HOST 2 host::change_page;
    "age-page" HOST 3 host::age_page;
    "test-age" HOST 1 host::test_age;
    "smi" HOST 4 host::smi;
    "rsm" SMM 0 host::smi;
    "init-vcpu" HOST 1 host::init_vcpu;
};

/// What no ioctl does, or not as the model does it: flushes from outside, ageing and accesses of the host, half an
/// invalidation, and clearing a dirty log by hand.
const NO_IOCTL: [&str; 7] =
    ["flush-tlb", "age-page", "test-age", "change-page", "invalidate-begin", "clear-dirty-log", "migrate"];

impl Row {
    fn weight_for(&self, actor: Actor, world: &World) -> u64 {
        let left_out = world.within == Within::Kernel && NO_IOCTL.contains(&self.verb);
        if self.actors.contains(&actor) && !left_out { self.weight } else { 0 }
    }
}

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
        let row = self.rng.weighted(ROWS, |row| row.weight_for(actor, self.world));
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
                let _ = guest::mov_cr3(self);
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
        if mode.is_long() && self.world.has_pcids() {
            self.flag(&["SMEP", "SMAP", "PGE", "PCIDE"])
        } else {
            self.flag(&["SMEP", "SMAP", "PGE"])
        }
    }
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
