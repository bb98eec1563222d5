//! Nested transitions, and what L1 does to its nested tables and tags.

use super::*;

pub(super) fn enter(writer: &mut Writer<'_>) -> Option<()> {
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
pub(super) fn guest_change(writer: &mut Writer<'_>, mode: Mode) -> Option<(&'static str, String)> {
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

pub(super) fn invept(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.vendor != Vendor::Intel || !writer.world.nested_tdp || writer.world.guests.is_empty() {
        return None;
    }
    let scope = *writer.rng.one(&["single", "global"])?;
    writer.say(format!("invept {scope}"))
}

pub(super) fn invvpid(writer: &mut Writer<'_>) -> Option<()> {
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

pub(super) fn invlpga(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.vendor != Vendor::Amd || writer.world.guests.is_empty() {
        return None;
    }
    let (at, asid) = (writer.address(), writer.rng.below(3));
    writer.say(format!("invlpga {at:#x} {asid}"))
}

/// L1's nested tables map whole regions with large pages. 4 MiB pages need regions aligned to them.
pub(super) fn region(writer: &mut Writer<'_>) -> Option<(u64, &'static str)> {
    let size = match (writer.world.vendor, writer.seat().l1_mode) {
        (Vendor::Amd, mode) => large_size(mode),
        (Vendor::Intel, _) => large_size(Mode::Long4),
    };
    let legal: Vec<u64> = REGIONS.into_iter().filter(|region| region.is_multiple_of(size.bytes())).collect();
    Some((*writer.rng.one(&legal)?, size.name()))
}

pub(super) fn nested_map(writer: &mut Writer<'_>) -> Option<()> {
    let tables = *writer.rng.one(&writer.world.tables)?;
    let (from, size) = region(writer)?;
    let (other, _) = region(writer)?;
    let to = if writer.rng.chance(1, 2) { from } else { other };
    const RIGHTS: [(&str, u64); 4] = [("r", 2), ("rw", 2), ("rx", 1), ("rwx", 5)];
    let rights = writer.rng.weighted(&RIGHTS, |(_, weight)| *weight)?.0;
    writer.say(format!("nested-map {tables} {from:#x} -> {to:#x} {rights} {size}"))?;
    nested_flush(writer)
}

pub(super) fn nested_unmap(writer: &mut Writer<'_>) -> Option<()> {
    let tables = *writer.rng.one(&writer.world.tables)?;
    let (from, _) = region(writer)?;
    writer.say(format!("nested-unmap {tables} {from:#x}"))?;
    nested_flush(writer)
}

pub(super) fn nested_flush(writer: &mut Writer<'_>) -> Option<()> {
    if writer.rng.chance(1, 2) {
        let _ = invept(writer);
    }
    Some(())
}

pub(super) fn exit(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("exit")?;
    writer.seat_mut().level = Actor::L1;
    Some(())
}
