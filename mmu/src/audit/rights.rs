//! I14, I15, I18 and the rule that gives a page table its worth: no entry of L0's grants more than the guest's own tables,
//! the slot and the role together do, and it leads to the frame that they name. Each guest entry is read again here and
//! taken apart from the manuals (SDM 3A tables 4-14 to 4-20, SDM 3C tables 28-1 to 28-6).
//!
//! Tables that are out of sync are passed over: what the guest has changed there without an invalidation, it may see
//! either way.

use super::rest::{Entries, Rest};
use super::structure::{Kind, kind};
use crate::audit::Audit;
use crate::change::Change;
use crate::memslot::{AddressSpace, HostAccess, Memslot, Visibility};
use crate::page::{Owner, ShadowPage};
use crate::role::PageRole;
use crate::state::{NxHugePages, TdpMode};
use sim_core::addr::{Gfn, Gpa, Hpa};
use std::collections::BTreeSet;

/// A 64-bit L1 with 5-level nested NPT on a host whose own nested tables have four: the level-4 root has the frame of the
/// guest's level-5 table, whose level-4 table is not shadowed and so not write-protected. Derived from the sources of
/// v5.17 to v6.14, not reported.
const FIVE_LEVELS_IN_FOUR: &str = "nnpt-5-in-4";
/// `sync_mmio_spte` gives an MMIO entry whose guest entry is as before the generation of now, without asking whether a slot
/// has come to back the frame. Derived from v5.17 as described, not seen on a kernel.
const RESTAMPED_MMIO: &str = "mmio-restamped";
/// A table counts against large pages in the memory slot of its shadow's own address space alone
/// (`kvm_memslots_for_spte_role` in `account_shadowed`), so that the other space may map a large page around it, and
/// dirty logging splits that into small ones that may become writable. Derived from v5.17 to v6.14, not seen on a kernel.
const SMM_MAPS_TABLES: &str = "smm-maps-tables";
const READ: u8 = 1;
const WRITE: u8 = 2;
const EXECUTE: u8 = 4;
const USER: u8 = 8;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What an entry in memory grants: of L0's, in hardware's eyes.
fn granted(entry: u64, ept: bool) -> u8 {
    let bit = |bit: u32, right: u8| if entry >> bit & 1 == 1 { right } else { 0 };
    if ept {
        return bit(0, READ | USER) | bit(1, WRITE) | bit(2, EXECUTE);
    }
    if entry & 1 == 0 {
        return 0;
    }
    READ | bit(1, WRITE) | bit(2, USER) | if entry >> 63 == 0 { EXECUTE } else { 0 }
}

/// A guest's entry: where it leads, what it grants, and whether it was ever used.
#[derive(Clone, Copy, Debug)]
struct GuestEntry {
    frame: Gfn,
    rights: u8,
    used: bool,
    clean: bool,
    large: bool,
}

/// Every broken rule.
pub(super) fn check(rest: &mut Rest<'_>) {
    let pages: Vec<_> = rest.vm.pages.all().map(|(hfn, page)| (hfn.base(), page)).collect();
    let dead = below_invalid_roots(rest);
    for (table, page) in pages.iter().filter(|(table, page)| page.role.invalid() == 0 && !dead.contains(table)) {
        for (sptep, entry) in Entries::of(rest.mem, *table) {
            match kind(entry, page.role.level()) {
                Kind::Empty => empty(rest, page, sptep, entry),
                Kind::Table(child) => below(rest, page, sptep, child),
                Kind::Leaf => leaf(rest, page, sptep, entry),
            }
        }
        if page.role.direct() == 0 && !page.unsync {
            protected(rest, page);
        }
    }
}

/// Tables that only invalid roots of the TDP MMU lead to: nothing enters a guest with them any more.
fn below_invalid_roots(rest: &Rest<'_>) -> BTreeSet<Hpa> {
    let invalid = |page: &ShadowPage| page.owner == Owner::Tdp && page.role.invalid() == 1;
    let mut queue: Vec<(Hpa, u32)> = rest
        .vm
        .pages
        .all()
        .filter(|(_, page)| invalid(page))
        .map(|(hfn, page)| (hfn.base(), page.role.level()))
        .collect();
    let mut dead = BTreeSet::new();
    while let Some((table, level)) = queue.pop() {
        for (_, entry) in Entries::of(rest.mem, table) {
            if let Kind::Table(child) = kind(entry, level)
                && dead.insert(child)
            {
                queue.push((child, level - 1));
            }
        }
    }
    dead
}

/// Whether an entry of `table` can be part of a large page of the other address space around the shadowed table.
fn maps_around(rest: &Rest<'_>, table: &ShadowPage, shadowed: &ShadowPage) -> bool {
    let other = AddressSpace::of_role(table.role) != AddressSpace::of_role(shadowed.role);
    let split = table.is_tdp() && rest.vm.changes.has(Change::EagerSplit);
    other && (table.role.level() > 1 || split)
}

/// I14: a table in sync can't be written unnoticed.
fn protected(rest: &mut Rest<'_>, page: &ShadowPage) {
    let ept = rest.vm.config.tdp == TdpMode::Ept;
    let promise = if ept { 1 << 58 } else { 1 << 10 };
    for sptep in rest.vm.pages.all_mappings(page.gfn) {
        if rest.mem.read_u64(sptep) & (2 | promise) == 0 {
            continue;
        }
        let table = rest.vm.pages.at(sptep.page_base());
        let excused = table.is_some_and(|table| maps_around(rest, table, page));
        let what = format!("gfn {} holds a table in sync, and the entry at {sptep} lets it be written", page.gfn);
        rest.find_known(Audit::TablesProtected, what, excused.then_some(SMM_MAPS_TABLES));
    }
}

/// I16: an entry that is not present is empty, or marks an address that no slot backs now.
fn empty(rest: &mut Rest<'_>, page: &ShadowPage, sptep: Hpa, entry: u64) {
    let ept = rest.vm.config.tdp == TdpMode::Ept;
    let faults = if ept { entry & 7 == 6 } else { entry & 1 == 1 && entry >> rest.vm.config.maxphyaddr & 0xfff != 0 };
    if !faults {
        rest.find(
            Audit::MmioEntries,
            format!("{entry:#x} at {sptep} is neither empty nor one that hardware faults on"),
        );
        return;
    }
    let generation = entry >> 3 & 0xff | (entry >> 52 & 0x7ff) << 8;
    let space = if page.role.smm() == 1 { AddressSpace::Smm } else { AddressSpace::Normal };
    let current = rest.vm.slots.generation(space) & ((1 << rest.vm.config.mmio_generation_bits) - 1);
    let gfn = Gpa(entry & FRAME & !(1 << 51)).frame();
    let backed = slot_of(rest, page.role, gfn);
    let visible = backed.is_some_and(|slot| slot.visibility == Visibility::Public || !is_l2s(rest, page.role));
    if generation == current && visible {
        let what = format!("gfn {gfn} is MMIO by the entry at {sptep}, and a slot backs it");
        rest.find_known(Audit::MmioEntries, what, (page.role.direct() == 0).then_some(RESTAMPED_MMIO));
    }
}

/// Whether a page is for L2: its role says so, or it shadows tables though L0 has two-dimensional paging, which only
/// nested tables need. Up to v6.13 the role of nested NPT tables does not say so (C-2).
fn is_l2s(rest: &Rest<'_>, role: PageRole) -> bool {
    role.guest_mode() == 1 || (rest.vm.config.tdp != TdpMode::Off && role.direct() == 0)
}

fn slot_of<'a>(rest: &Rest<'a>, role: PageRole, gfn: Gfn) -> Option<&'a Memslot> {
    let space = if role.smm() == 0 { AddressSpace::Normal } else { AddressSpace::Smm };
    rest.vm.slots.all(space).iter().find(|slot| slot.holds(gfn))
}

/// Rights of a shadow page's role.
fn rights_of(role: PageRole) -> u8 {
    let has = |bit: u32, right: u8| if role.access() & bit != 0 { right } else { 0 };
    READ | has(1, EXECUTE) | has(2, WRITE) | has(4, USER)
}

/// The table below may grant what the table above and the guest's entry both do.
fn below(rest: &mut Rest<'_>, page: &ShadowPage, sptep: Hpa, child: Hpa) {
    if page.role.direct() == 1 || page.role.passthrough() == 1 {
        return;
    }
    let Some(lower) = rest.vm.pages.at(child) else { return };
    let Some(guest) = guest_entry(rest, page, sptep) else {
        rest.find(Audit::Permissions, format!("a table is linked at {sptep}, where the guest's entry is not present"));
        return;
    };
    if lower.role.direct() == 0 && guest.frame != lower.gfn {
        let what = format!("the entry at {sptep} shadows gfn {}, the guest's leads to {}", lower.gfn, guest.frame);
        let cut = page.role.level() == 4 && next_leads_to(rest, page.role, guest.frame, sptep, lower.gfn);
        // A root of five levels above the shadow of the same table, from before roots could say that they pass through.
        let same = page.role.level() == 5 && lower.gfn == page.gfn && !rest.vm.changes.has(Change::PassthroughRoots);
        rest.find_known(Audit::Permissions, what, if cut { Some(FIVE_LEVELS_IN_FOUR) } else { same.then_some("C-19") });
        return;
    }
    let allowed = rights_of(page.role) & guest.rights;
    let allowed = if lower.role.direct() == 1 { converted(page.role, guest, allowed) } else { allowed };
    let excess = rights_of(lower.role) & !allowed;
    if excess != 0 {
        let what = format!("the table below {sptep} has {}, more than the guest's entries grant", text(excess));
        rest.find(Audit::Permissions, what);
    }
}

/// Whether the guest's table below, at the same index, is what leads to a frame: a level was passed over.
fn next_leads_to(rest: &Rest<'_>, role: PageRole, table: Gfn, sptep: Hpa, gfn: Gfn) -> bool {
    let at = slot_of(rest, role, table).and_then(|slot| slot.page(table)).map(|page| page.hfn.base());
    at.is_some_and(|at| Gpa(rest.mem.read_u64(at.offset(sptep.page_offset())) & FRAME).frame() == gfn)
}

/// With CR0.WP = 0 a supervisor page may be writable whatever the guest's entry says, if it is no user page any more.
fn converted(role: PageRole, guest: GuestEntry, allowed: u8) -> u8 {
    let without_wp = role.cr0_wp() == 0;
    let dirty = if guest.clean && guest.large { allowed & !WRITE } else { allowed };
    if without_wp { dirty | WRITE } else { dirty }
}

/// A leaf: the frame and the rights.
fn leaf(rest: &mut Rest<'_>, page: &ShadowPage, sptep: Hpa, entry: u64) {
    legal_bits(rest, sptep, entry);
    let ept = rest.vm.config.tdp == TdpMode::Ept;
    let index = sptep.page_offset() / 8;
    let span = 1u64 << (9 * (page.role.level() - 1));
    let known = if page.role.direct() == 1 {
        Some(Gfn(page.gfn.0 + index * span))
    } else {
        page.shadowed.get(&(index as u16)).map(|shadowed| shadowed.gfn)
    };
    let Some(gfn) = known else { return };
    let has = granted(entry, ept);
    if page.role.level() > 1 && has & EXECUTE != 0 && rest.vm.config.nx_huge == NxHugePages::On {
        rest.find(Audit::Permissions, format!("the large leaf at {sptep} is executable, which none may be"));
    }
    backed(rest, page, (sptep, entry), gfn, (has, span));
    if page.role.direct() == 1 {
        let excess = has & !rights_of(page.role) & !READ;
        let converted = page.role.cr0_wp() == 0 && excess == WRITE;
        if excess != 0 && !converted {
            rest.find(Audit::Permissions, format!("the leaf at {sptep} has {} beyond its table's role", text(excess)));
        }
        return;
    }
    if page.unsync {
        return;
    }
    let Some(guest) = guest_entry(rest, page, sptep) else {
        rest.find(Audit::Permissions, format!("a leaf at {sptep}, where the guest's entry is not present"));
        return;
    };
    if guest.frame != gfn || !guest.used {
        let what = format!(
            "the leaf at {sptep} maps gfn {gfn}; the guest's entry leads to {}, used: {}",
            guest.frame, guest.used
        );
        rest.find(Audit::Permissions, what);
        return;
    }
    let allowed = rights_of(page.role) & guest.rights & if guest.clean { !WRITE } else { !0 };
    // Without write protection the supervisor may write any page; then the user may not reach it.
    let quirk = page.role.cr0_wp() == 0 && has & (WRITE | USER) == WRITE;
    let excess = has & !allowed & !if quirk { WRITE } else { 0 };
    // Execute without NX in the guest: the bit does not exist there.
    if excess & !READ != 0 {
        rest.find(Audit::Permissions, format!("the leaf at {sptep} of gfn {gfn} grants {} too much", text(excess)));
    }
}

/// Slot and host: the frame is the one behind the guest's, and can be written only if both let it.
fn backed(rest: &mut Rest<'_>, page: &ShadowPage, (sptep, entry): (Hpa, u64), gfn: Gfn, (has, span): (u8, u64)) {
    let Some(slot) = slot_of(rest, page.role, gfn) else {
        rest.find(Audit::Backing, format!("the leaf at {sptep} maps gfn {gfn}, which no slot backs"));
        return;
    };
    if slot.visibility == Visibility::Private && is_l2s(rest, page.role) {
        rest.find(
            Audit::PrivateSlots,
            format!("L2's leaf at {sptep} maps gfn {gfn} of the private slot {}", slot.name),
        );
    }
    let first = Gfn(gfn.0 & !(span - 1));
    let last = Gfn(first.0 + span - 1);
    let (low, high) = (slot.page(first), slot.page(last));
    let frame = Gpa(entry & FRAME).frame().0 & !(span - 1);
    let moved = slot.moved.range(first..=last).next().is_some() && span > 1;
    match (low, high) {
        (Some(low), Some(high)) if low.hfn.0 == frame && high.hfn.0 == frame + span - 1 && !moved => {
            if has & WRITE != 0 && low.access == HostAccess::ReadOnly {
                rest.find(Audit::Backing, format!("the leaf at {sptep} lets gfn {gfn} be written, the host does not"));
            }
        }
        _ => {
            let what =
                format!("the leaf at {sptep} of gfn {gfn} leads to frame {frame:#x}, where the host has another");
            rest.find(Audit::Backing, what);
        }
    }
}

/// I15: W, MMU-writable and host-writable form a chain, no address bit beyond MAXPHYADDR is set, and a leaf permits something
/// unless its rights are saved while access is tracked.
fn legal_bits(rest: &mut Rest<'_>, sptep: Hpa, entry: u64) {
    let ept = rest.vm.config.tdp == TdpMode::Ept;
    let (host, mmu) = if ept { (57, 58) } else { (9, 10) };
    let [write, mmu, host] = [1, mmu, host].map(|bit: u32| entry >> bit & 1 == 1);
    if (write && !mmu) || (mmu && !host) {
        rest.find(Audit::EntryBits, format!("{entry:#x} at {sptep}: writable {write}, MMU {mmu}, host {host}"));
    }
    if ept && entry & 7 == 0 && entry >> 54 & 7 == 0 {
        rest.find(Audit::EntryBits, format!("{entry:#x} at {sptep} is present and permits nothing"));
    }
    let above = FRAME >> rest.vm.config.maxphyaddr << rest.vm.config.maxphyaddr;
    let reserved = if ept { entry & 7 == 2 || entry & 7 == 6 } else { entry >> 52 & 0x7ff != 0 && entry & 1 == 1 };
    if entry & above != 0 || reserved {
        rest.find(Audit::EntryBits, format!("{entry:#x} at {sptep} has bits that are reserved in hardware"));
    }
}

/// The guest's entry that an entry of an indirect page shadows, none if it is not present.
fn guest_entry(rest: &Rest<'_>, page: &ShadowPage, sptep: Hpa) -> Option<GuestEntry> {
    let role = page.role;
    let index = sptep.page_offset() / 8;
    let (offset, bytes) = if role.has_4_byte_gpte() == 1 {
        // A directory of 4-byte entries is shadowed by four tables, each with two entries for one; a table by two.
        let own = u64::from(role.quadrant()) * 512 + index;
        (if role.level() == 2 { own / 2 * 4 } else { own * 4 }, 4)
    } else {
        (index * 8, 8)
    };
    let at = page.gfn.base().offset(offset);
    let host = slot_of(rest, role, at.frame())?.page(at.frame())?.hfn.base().offset(at.page_offset());
    let entry = rest.mem.read(host, bytes);
    let nested_ept = rest.vm.config.tdp == TdpMode::Ept;
    if nested_ept {
        let flags = role.ad_disabled() == 0;
        let leaf = role.level() == 1 || entry >> 7 & 1 == 1;
        return (entry & 7 != 0).then(|| GuestEntry {
            frame: Gpa(entry & FRAME).frame(),
            rights: granted(entry, true),
            used: !flags || entry >> 8 & 1 == 1,
            clean: flags && leaf && entry >> 9 & 1 == 0,
            large: role.level() > 1 && leaf,
        });
    }
    let wide = bytes == 8;
    let leaf = role.level() == 1 || entry >> 7 & 1 == 1;
    let no_execute = wide && entry >> 63 == 1;
    let rights = READ
        | if entry & 2 != 0 { WRITE } else { 0 }
        | if entry & 4 != 0 { USER } else { 0 }
        | if no_execute { 0 } else { EXECUTE };
    (entry & 1 == 1).then(|| GuestEntry {
        frame: Gpa(entry & if wide { FRAME } else { 0xffff_f000 }).frame(),
        rights,
        used: entry >> 5 & 1 == 1,
        clean: leaf && entry >> 6 & 1 == 0,
        large: role.level() > 1 && leaf,
    })
}

/// The rights' names.
fn text(rights: u8) -> String {
    let names = [(READ, "read"), (WRITE, "write"), (EXECUTE, "execute"), (USER, "user")];
    let named: Vec<&str> = names.iter().filter(|(bit, _)| rights & bit != 0).map(|(_, name)| *name).collect();
    named.join(" and ")
}
