//! What a guest of either level says: accesses, table edits, control registers, invalidations.

use super::*;

pub(super) fn read(writer: &mut Writer<'_>) -> Option<()> {
    let (at, user) = (writer.data_address(), writer.user());
    writer.say(format!("read {at:#x}{user}"))
}

/// A store at the start of a page keeps the RET there.
pub(super) fn store(writer: &mut Writer<'_>) -> Option<()> {
    let (at, user) = (writer.data_address(), writer.user());
    let value = writer.rng.below(0x10000) << 8 | 0xc3;
    writer.say(format!("write {at:#x} {value:#x}{user}"))
}

pub(super) fn exec(writer: &mut Writer<'_>) -> Option<()> {
    let at = loop {
        let at = writer.address();
        if !SLOTS.iter().any(|slot| slot.at == at) {
            break at;
        }
    };
    let user = writer.user();
    writer.say(format!("exec {at:#x}{user}"))
}

pub(super) fn map(writer: &mut Writer<'_>) -> Option<()> {
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

pub(super) fn unmap(writer: &mut Writer<'_>) -> Option<()> {
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

pub(super) fn set_entry(writer: &mut Writer<'_>) -> Option<()> {
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
pub(super) fn link(writer: &mut Writer<'_>) -> Option<()> {
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

pub(super) fn read_entry(writer: &mut Writer<'_>) -> Option<()> {
    let space = writer.paged_space()?;
    let at = writer.small_address(&space);
    let level = *writer.rng.one(space.levels_at(at, writer.world.pdptes))?;
    writer.say(format!("read-entry {} {level} {at:#x}", space.name))
}

pub(super) fn mov_cr3(writer: &mut Writer<'_>) -> Option<()> {
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

pub(super) fn mov_cr0(writer: &mut Writer<'_>) -> Option<()> {
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

pub(super) fn mov_cr4(writer: &mut Writer<'_>) -> Option<()> {
    let flag = writer.cr4_flag(writer.mode());
    writer.say(format!("mov-cr4 {flag}"))
}

pub(super) fn wrmsr_efer(writer: &mut Writer<'_>) -> Option<()> {
    let flag = writer.flag(&["NXE"]);
    writer.say(format!("wrmsr-efer {flag}"))
}

pub(super) fn invlpg(writer: &mut Writer<'_>) -> Option<()> {
    let at = writer.address();
    writer.say(format!("invlpg {at:#x}"))
}

pub(super) fn invpcid(writer: &mut Writer<'_>) -> Option<()> {
    if !writer.world.has_pcids() {
        return None;
    }
    let (at, pcid) = (writer.address(), writer.rng.below(3));
    let what = match writer.rng.below(4) {
        0 => format!("address {pcid} {at:#x}"),
        1 => format!("single {pcid}"),
        2 => "all".to_owned(),
        _ => "all-but-global".to_owned(),
    };
    writer.say(format!("invpcid {what}"))
}

pub(super) fn run(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("run")
}

/// VMX can't leave paging (SDM 3C 23.8), so L1 switches modes where it has no guests, or on SVM.
pub(super) fn become_space(writer: &mut Writer<'_>) -> Option<()> {
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
