//! What the host does behind the guests' backs.

use super::*;

pub(super) fn zap_all(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("zap-all")
}

/// A frame of data, of tables or of code.
pub(super) fn frame(writer: &mut Writer<'_>) -> Option<u64> {
    Some(match writer.rng.below(3) {
        0 => 0x80 + writer.rng.below(0x20),
        1 => writer.rng.below(0x20),
        _ => *writer.rng.one(&FRAMES)? >> 12,
    })
}

pub(super) fn zap_gfn(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("zap-gfn {gfn:#x}"))
}

pub(super) fn log_dirty(writer: &mut Writer<'_>) -> Option<()> {
    let logging = if writer.rng.chance(2, 3) { "on" } else { "off" };
    writer.logs_dirty = logging == "on";
    writer.say(format!("log-dirty memory {logging}"))
}

pub(super) fn dirty_log(writer: &mut Writer<'_>) -> Option<()> {
    let keep = if writer.rng.chance(1, 3) && writer.world.within == Within::Model { " keep" } else { "" };
    if writer.logs_dirty { writer.say(format!("dirty-log memory{keep}")) } else { None }
}

pub(super) fn clear_dirty_log(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    if writer.logs_dirty { writer.say(format!("clear-dirty-log memory {gfn:#x}")) } else { None }
}

/// The host changes nothing in the end, but for a moment nobody may map the frame.
pub(super) fn invalidate(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("invalidate-begin {gfn:#x}"))?;
    writer.say(format!("invalidate-end {gfn:#x}"))
}

pub(super) fn move_page(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("move-page {gfn:#x}"))
}

pub(super) fn change_page(writer: &mut Writer<'_>) -> Option<()> {
    let (gfn, access) = (*writer.rng.one(&FRAMES)? >> 12, *writer.rng.one(&["read-only", "writable"])?);
    writer.say(format!("change-page {gfn:#x} {access}"))
}

pub(super) fn age_page(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("age-page {gfn:#x}"))
}

pub(super) fn test_age(writer: &mut Writer<'_>) -> Option<()> {
    let gfn = frame(writer)?;
    writer.say(format!("test-age {gfn:#x}"))
}

/// A slot goes, or comes back.
pub(super) fn slot(writer: &mut Writer<'_>) -> Option<()> {
    let names: Vec<&'static str> = writer.slots.keys().copied().collect();
    let name = writer.rng.one(&names).copied()?;
    let present = writer.slots.get_mut(name)?;
    let verb = if *present { "delete-slot" } else { "add-slot" };
    *present = !*present;
    writer.say(format!("{verb} {name}"))
}

/// The slot that can be at two places goes to the other one.
pub(super) fn move_slot(writer: &mut Writer<'_>) -> Option<()> {
    if writer.slots.get(MOVABLE) != Some(&true) {
        return None;
    }
    let home = SLOTS.iter().find(|slot| slot.name == MOVABLE)?.at;
    writer.moved = !writer.moved;
    let at = if writer.moved { ELSEWHERE } else { home };
    writer.say(format!("move-slot {MOVABLE} {at:#x}"))
}

/// User space changes what the code that runs could change itself.
pub(super) fn set_registers(writer: &mut Writer<'_>) -> Option<()> {
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

pub(super) fn set_efer(writer: &mut Writer<'_>) -> Option<()> {
    let flag = writer.flag(&["NXE"]);
    writer.say(format!("set-efer {flag}"))
}

/// User space saves the vCPU and puts it back, as a migration does.
pub(super) fn migrate(writer: &mut Writer<'_>) -> Option<()> {
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

pub(super) fn leave_nested(writer: &mut Writer<'_>) -> Option<()> {
    if !writer.world.leaves || writer.seat().level != Actor::L2 {
        return None;
    }
    writer.say("leave-nested")?;
    writer.seat_mut().level = Actor::L1;
    Some(())
}

pub(super) fn host_run(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("run")
}

pub(super) fn unload_mmu(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("unload-mmu")
}

/// The vCPU's thread moves to another logical processor, or stays.
pub(super) fn move_thread(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.processors == 1 {
        return None;
    }
    let processor = writer.rng.below(u64::from(writer.world.processors));
    writer.say(format!("migrate {processor}"))
}

/// SMM code that looks at memory and goes back. Where L1 holds the SMI back its steps are left out.
pub(super) fn smi(writer: &mut Writer<'_>) -> Option<()> {
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
pub(super) fn init_vcpu(writer: &mut Writer<'_>) -> Option<()> {
    if writer.world.signals != Signals::SmiAndInit {
        return None;
    }
    writer.say("init-vcpu")?;
    writer.seat_mut().l1_mode = Mode::Flat32;
    Some(())
}

pub(super) fn flush_tlb(writer: &mut Writer<'_>) -> Option<()> {
    writer.say("flush-tlb")
}
