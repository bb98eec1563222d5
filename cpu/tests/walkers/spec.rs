//! Both stages of address translation written down a second time, slowly and literally: one manual sentence an arm,
//! plain numbers, no tables of formats. It shares no code and no structure with the walkers that it judges.
//!
//! SDM 3A 4.3 to 4.7 (paging, access rights, protection keys, shadow stacks, error codes, accessed and dirty flags),
//! SDM 3C 28.3 (EPT), APM2 15.25 (nested paging). Where the manuals leave an order open (when accessed flags of upper
//! entries are set, and which of two second-stage faults comes first), it takes the order: find the page, judge the
//! access, mark the first stage's entries root first, translate the final address. Left out: GMET, the guest-mode
//! execute trap, whose data accesses the manual does not settle; MBEC without paging; memory types.

use std::collections::BTreeMap;

/// How many levels of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Levels {
    /// CR0.PG = 0.
    Unpaged,
    /// 32-bit paging.
    Two,
    /// PAE paging.
    Three,
    /// 4-level paging.
    Four,
    /// 5-level paging.
    Five,
}

/// Who makes the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Software at CPL 3.
    User,
    /// Software at CPL 0 to 2.
    Supervisor,
    /// The processor, for a descriptor table or a TSS.
    Implicit,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Read,
    Write,
    Fetch,
    ShadowRead,
    ShadowWrite,
}

/// The registers of the first stage.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "control bits, as the manual names them")]
pub(crate) struct First {
    pub(crate) levels: Levels,
    pub(crate) cr3: u64,
    pub(crate) pdptes: [u64; 4],
    pub(crate) wp: bool,
    pub(crate) pse: bool,
    pub(crate) smep: bool,
    pub(crate) smap: bool,
    pub(crate) ac: bool,
    pub(crate) nxe: bool,
    pub(crate) pke: bool,
    pub(crate) pks: bool,
    pub(crate) pkru: u32,
    pub(crate) pkrs: u32,
    pub(crate) has_1g: bool,
}

/// The second stage.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Second {
    Absent,
    Ept { eptp: u64, mbec: bool },
    Npt { ncr3: u64, levels: Levels, nxe: bool, pse: bool },
}

/// Everything that a translation depends on, beside memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    pub(crate) maxphyaddr: u32,
    /// AMD's rule: bit 8 of entries above the page directory that refer to a table is reserved (APM2 5.3.3).
    pub(crate) reserves_bit_8: bool,
    pub(crate) first: First,
    pub(crate) second: Second,
}

/// How an access ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// At this host-physical address.
    Reaches(u64),
    /// In a page fault with this error code.
    PageFault(u32),
    /// In an EPT violation or misconfiguration, or a nested page fault.
    Stage(StageFault),
    /// The manual does not say: a guest-physical address that the host's paging mode has no bits for.
    Unsaid,
}

/// A fault of the second stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StageFault {
    pub(crate) gpa: u64,
    /// Whether the address was that of a table.
    pub(crate) of_table: bool,
    /// 1 read, 2 write, 4 fetch.
    pub(crate) access: u8,
    pub(crate) kind: Kind,
}

/// What kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The rights that the entries gave (1 read, 2 write, 4 execute, 8 execute for users with MBEC); the first
    /// stage's word on the address (1 user, 2 writable, 4 execute-disabled) for a final address; whether bit 63 of the
    /// entry that decided is clear.
    Violation {
        allowed: u8,
        first: Option<u8>,
        convertible: bool,
    },
    Misconfiguration,
    Nested {
        present: bool,
        reserved: bool,
    },
    /// See [`Outcome::Unsaid`].
    Unsaid,
}

/// The outcome, and every word that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) written: BTreeMap<u64, u64>,
}

fn bit(value: u64, number: u32) -> bool {
    (value >> number) % 2 == 1
}

/// Bits `high` to `low` of a value.
fn field(value: u64, high: u32, low: u32) -> u64 {
    (low..=high).filter(|number| bit(value, *number)).map(|number| 1 << (number - low)).sum()
}

/// An entry of an ordinary table that was used, and whether it maps the page.
#[derive(Clone, Copy)]
struct Used {
    at: u64,
    value: u64,
    is_leaf: bool,
    is_register: bool,
}

/// The lowest linear-address bit that a table's index takes, from the top.
fn index_bits(levels: Levels) -> &'static [(u32, u32)] {
    match levels {
        Levels::Unpaged => &[],
        Levels::Two => &[(31, 22), (21, 12)],
        Levels::Three => &[(31, 30), (29, 21), (20, 12)],
        Levels::Four => &[(47, 39), (38, 30), (29, 21), (20, 12)],
        Levels::Five => &[(56, 48), (47, 39), (38, 30), (29, 21), (20, 12)],
    }
}

/// Ordinary tables, of either stage.
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "control bits and capabilities, as the manual names them")]
struct Ordinary {
    levels: Levels,
    pse: bool,
    nxe: bool,
    has_1g: bool,
    reserves_bit_8: bool,
    maxphyaddr: u32,
}

impl Ordinary {
    /// Does bit 7 make an entry with this lowest index bit map a page?
    fn is_large(self, low: u32, value: u64) -> bool {
        let may = match (self.levels, low) {
            (Levels::Two, 22) => self.pse,
            (Levels::Three | Levels::Four | Levels::Five, 21) => true,
            (Levels::Four | Levels::Five, 30) => self.has_1g,
            _ => false,
        };
        may && bit(value, 7)
    }

    /// SDM 3A tables 4-4 to 4-20: is one of the reserved bits of a present entry set?
    fn is_malformed(self, low: u32, value: u64) -> bool {
        let large = self.is_large(low, value);
        (0..64).filter(|number| bit(value, *number)).any(|number| match (self.levels, low, number) {
            (Levels::Two, 22, 13..=21) => large && number >= self.maxphyaddr.min(40) - 19,
            (Levels::Two, ..) => false,
            (Levels::Three, 30, 1 | 2 | 5..=8 | 63) => true,
            (_, _, 63) => !self.nxe,
            (Levels::Three, _, 52..=62) => true,
            (_, _, 52..=62) => false,
            (_, _, 12..=51) if number >= self.maxphyaddr => true,
            (Levels::Four | Levels::Five, 39 | 48, 7) => true,
            (Levels::Four | Levels::Five, 39 | 48, 8) => self.reserves_bit_8 && !large,
            (Levels::Four | Levels::Five, 30, 7) => !self.has_1g,
            (Levels::Four | Levels::Five, 30, 13..=29) => large,
            (_, 21, 13..=20) => large,
            _ => false,
        })
    }

    fn target(self, low: u32, value: u64) -> u64 {
        match (self.levels, low, self.is_large(low, value)) {
            (Levels::Two, 22, true) => field(value, 20, 13) * (1 << 32) + field(value, 31, 22) * (1 << 22),
            (_, _, true) => field(value, 51, low) * (1 << low),
            _ => field(value, 51, 12) * 4096,
        }
    }
}

/// Why a walk of ordinary tables found no page.
enum Lost {
    NotPresent,
    Reserved,
    Stage(StageFault),
}

/// One translation under way.
pub(crate) struct Spec<'a> {
    world: World,
    memory: &'a dyn Fn(u64, usize) -> u64,
    written: BTreeMap<u64, u64>,
    linear: u64,
}

/// What one access to one linear address does.
pub(crate) fn specify(world: World, memory: &dyn Fn(u64, usize) -> u64, linear: u64, who: Who, what: What) -> Answer {
    let mut spec = Spec { world, memory, written: BTreeMap::new(), linear };
    let outcome = match spec.access(who, what) {
        Ok(at) => Outcome::Reaches(at),
        Err(Outcome::Stage(StageFault { kind: Kind::Unsaid, .. })) => Outcome::Unsaid,
        Err(outcome) => outcome,
    };
    Answer { outcome, written: spec.written }
}

impl Spec<'_> {
    fn read(&self, at: u64, bytes: usize) -> u64 {
        self.written.get(&at).copied().unwrap_or_else(|| (self.memory)(at, bytes))
    }

    fn access(&mut self, who: Who, what: What) -> Result<u64, Outcome> {
        let first = self.world.first;
        let final_access = match what {
            What::Read | What::ShadowRead => 1,
            What::Write | What::ShadowWrite => 2,
            What::Fetch => 4,
        };
        if first.levels == Levels::Unpaged {
            return self.physical(self.linear, false, final_access, None).map_err(Outcome::Stage);
        }
        let fault = |flags: u32| Outcome::PageFault(flags + origin(first, who, what));
        let mut used = Vec::new();
        let gpa = self.first_stage(&mut used).map_err(|lost| match lost {
            Lost::NotPresent => fault(0),
            Lost::Reserved => fault(1 + 8),
            Lost::Stage(stage) => Outcome::Stage(stage),
        })?;
        let address = Address::of(first, &used);
        let key_forbids = address.key_forbids(first, who, what);
        if key_forbids || !address.allows(first, who, what) {
            return Err(fault(1 + if key_forbids { 32 } else { 0 }));
        }
        for entry in used {
            self.mark_first_stage(entry, final_access).map_err(Outcome::Stage)?;
        }
        self.physical(gpa, false, final_access, Some(address)).map_err(Outcome::Stage)
    }

    /// SDM 3A 4.3 to 4.5: goes down the first stage's tables.
    fn first_stage(&mut self, used: &mut Vec<Used>) -> Result<u64, Lost> {
        let first = self.world.first;
        let tables = Ordinary {
            levels: first.levels,
            pse: first.pse,
            nxe: first.nxe,
            has_1g: first.has_1g,
            reserves_bit_8: self.world.reserves_bit_8,
            maxphyaddr: self.world.maxphyaddr,
        };
        // APM2 15.25.10: with nested paging a guest's PDPTEs are read from memory, else they are in registers.
        let has_registers = first.levels == Levels::Three && !matches!(self.world.second, Second::Npt { .. });
        let size: usize = if first.levels == Levels::Two { 4 } else { 8 };
        let mut table = match first.levels {
            Levels::Two => field(first.cr3, 31, 12) * 4096,
            Levels::Three => field(first.cr3, 31, 5) * 32,
            _ => field(first.cr3, 51, 12) * 4096,
        };
        for (high, low) in index_bits(first.levels).iter().copied() {
            let index = field(self.linear, high, low);
            let is_register = has_registers && low == 30;
            let at = table + index * size as u64;
            let value = if is_register {
                first.pdptes[index as usize]
            } else {
                let host = self.physical(at, true, self.table_access(), None).map_err(Lost::Stage)?;
                self.read(host, size)
            };
            if !bit(value, 0) {
                return Err(Lost::NotPresent);
            }
            // PDPTE registers were checked when they were loaded.
            if !is_register && tables.is_malformed(low, value) {
                return Err(Lost::Reserved);
            }
            let is_leaf = low == 12 || tables.is_large(low, value);
            let has_no_rights = first.levels == Levels::Three && low == 30;
            if !has_no_rights {
                used.push(Used { at, value, is_leaf, is_register });
            }
            table = tables.target(low, value);
            if is_leaf {
                return Ok(table + field(self.linear, low - 1, 0));
            }
        }
        unreachable!("the last table maps pages")
    }

    /// How the second stage sees a reference to a table of the first: APM2 15.25.6, always a write; SDM 3C 28.3.3.2, a
    /// write if EPT's accessed and dirty flags are on.
    fn table_access(&self) -> u8 {
        match self.world.second {
            Second::Ept { eptp, .. } if bit(eptp, 6) => 2,
            Second::Npt { .. } => 2,
            _ => 1,
        }
    }

    /// SDM 3A 4.8.
    fn mark_first_stage(&mut self, entry: Used, access: u8) -> Result<(), StageFault> {
        let mut value = entry.value;
        if !bit(value, 5) {
            value += 0x20;
        }
        if entry.is_leaf && access == 2 && !bit(value, 6) {
            value += 0x40;
        }
        if value != entry.value && !entry.is_register {
            let host = self.physical(entry.at, true, 2, None)?;
            self.written.insert(host, value);
        }
        Ok(())
    }

    fn physical(&mut self, gpa: u64, of_table: bool, access: u8, address: Option<Address>) -> Result<u64, StageFault> {
        match self.world.second {
            Second::Absent => Ok(gpa),
            Second::Ept { eptp, mbec } => self.extended(gpa, of_table, access, address, (eptp, mbec)),
            Second::Npt { ncr3, levels, nxe, pse } => {
                let World { maxphyaddr, reserves_bit_8, first: First { has_1g, .. }, .. } = self.world;
                let tables = Ordinary { levels, pse, nxe, has_1g, reserves_bit_8, maxphyaddr };
                self.nested(gpa, of_table, access, (ncr3, tables))
            }
        }
    }

    /// SDM 3C 28.3.2 and 28.3.3.
    fn extended(
        &mut self,
        gpa: u64,
        of_table: bool,
        access: u8,
        address: Option<Address>,
        (eptp, mbec): (u64, bool),
    ) -> Result<u64, StageFault> {
        let fault = |kind| StageFault { gpa, of_table, access, kind };
        let violation = |allowed: u8, entry: u64| {
            let first = address.filter(|_| !of_table).map(Address::told);
            fault(Kind::Violation { allowed, first, convertible: !bit(entry, 63) })
        };
        let levels = if field(eptp, 5, 3) == 4 { Levels::Five } else { Levels::Four };
        let mut table = field(eptp, 51, 12) * 4096;
        let mut allowed = if mbec { 15 } else { 7 };
        let mut used = Vec::new();
        for (high, low) in index_bits(levels).iter().copied() {
            let at = table + 8 * field(gpa, high, low);
            let value = self.read(at, 8);
            let is_present = field(value, 2, 0) != 0 || (mbec && bit(value, 10));
            if !is_present {
                return Err(violation(0, value));
            }
            let is_leaf = low == 12 || (low <= 30 && bit(value, 7));
            if is_misconfigured(value, low, is_leaf, self.world.maxphyaddr) {
                return Err(fault(Kind::Misconfiguration));
            }
            let execute_user = if mbec && bit(value, 10) { 8 } else { 0 };
            allowed &= (field(value, 2, 0) + execute_user) as u8;
            used.push((at, value));
            table = field(value, 51, if is_leaf { low } else { 12 }) * (1 << if is_leaf { low } else { 12 });
            if is_leaf {
                let needed =
                    if access == 4 && mbec && address.is_some_and(|address| address.user) { 8 } else { access };
                if allowed & needed == 0 {
                    return Err(violation(allowed, value));
                }
                if bit(eptp, 6) {
                    self.mark(&used, 1 << 8, if access == 2 { 1 << 9 } else { 0 });
                }
                return Ok(table + field(gpa, low - 1, 0));
            }
        }
        unreachable!("the last table maps pages")
    }

    /// APM2 15.25.5 and 15.25.6: every nested access is a user access.
    fn nested(
        &mut self,
        gpa: u64,
        of_table: bool,
        access: u8,
        (ncr3, tables): (u64, Ordinary),
    ) -> Result<u64, StageFault> {
        let fault = |present, reserved| StageFault { gpa, of_table, access, kind: Kind::Nested { present, reserved } };
        if tables.levels < Levels::Four && gpa >= 1 << 32 {
            return Err(StageFault { gpa, of_table, access, kind: Kind::Unsaid });
        }
        let size: usize = if tables.levels == Levels::Two { 4 } else { 8 };
        let mut table = match tables.levels {
            Levels::Two => field(ncr3, 31, 12) * 4096,
            Levels::Three => field(ncr3, 31, 5) * 32,
            _ => field(ncr3, 51, 12) * 4096,
        };
        let (mut writable, mut user, mut executable) = (true, true, true);
        let mut used = Vec::new();
        for (high, low) in index_bits(tables.levels).iter().copied() {
            let at = table + size as u64 * field(gpa, high, low);
            let value = self.read(at, size);
            if !bit(value, 0) {
                return Err(fault(false, false));
            }
            if tables.is_malformed(low, value) {
                return Err(fault(true, true));
            }
            if !(tables.levels == Levels::Three && low == 30) {
                writable &= bit(value, 1);
                user &= bit(value, 2);
                executable &= tables.levels == Levels::Two || !bit(value, 63);
                used.push((at, value));
            }
            table = tables.target(low, value);
            if low == 12 || tables.is_large(low, value) {
                let allowed = match access {
                    1 => user,
                    2 => user && writable,
                    _ => user && executable,
                };
                if !allowed {
                    return Err(fault(true, false));
                }
                self.mark(&used, 1 << 5, if access == 2 { 1 << 6 } else { 0 });
                return Ok(table + field(gpa, low - 1, 0));
            }
        }
        unreachable!("the last table maps pages")
    }

    /// Sets the accessed flag of all entries and the dirty flag of the last.
    fn mark(&mut self, used: &[(u64, u64)], accessed: u64, dirty: u64) {
        for (number, (at, value)) in used.iter().enumerate() {
            let flags = accessed | if number + 1 == used.len() { dirty } else { 0 };
            if value & flags != flags {
                self.written.insert(*at, value | flags);
            }
        }
    }
}

/// SDM 3C 28.3.3.1, with execute-only translations supported.
fn is_misconfigured(value: u64, low: u32, is_leaf: bool, maxphyaddr: u32) -> bool {
    let write_without_read = bit(value, 1) && !bit(value, 0);
    let reserved = (0..52).filter(|number| bit(value, *number)).any(|number| match (low, number) {
        (_, 12..=51) if number >= maxphyaddr => true,
        (39 | 48, 3..=7) => true,
        (30 | 21, 3..=6) => !is_leaf,
        (30, 12..=29) | (21, 12..=20) => is_leaf,
        _ => false,
    });
    let bad_memory_type = is_leaf && matches!(field(value, 5, 3), 2 | 3 | 7);
    write_without_read || reserved || bad_memory_type
}

/// What all entries together say of a linear address (SDM 3A 4.6).
#[derive(Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "the manual's properties of an address, one by one")]
struct Address {
    user: bool,
    writable: bool,
    execute_disabled: bool,
    shadow_stack: bool,
    key: u32,
}

impl Address {
    fn of(first: First, used: &[Used]) -> Self {
        let all = |number: u32| used.iter().all(|entry| bit(entry.value, number));
        let above = used.iter().filter(|entry| !entry.is_leaf).all(|entry| bit(entry.value, 1));
        let leaf = used.iter().find(|entry| entry.is_leaf).map_or(0, |entry| entry.value);
        Self {
            user: all(2),
            writable: all(1),
            execute_disabled: first.levels != Levels::Two && used.iter().any(|entry| bit(entry.value, 63)),
            // 4.6: R/W is 1 in every entry but the one that maps the page, where it is 0 and D is 1.
            shadow_stack: above && !bit(leaf, 1) && bit(leaf, 6),
            key: if first.levels >= Levels::Four { field(leaf, 62, 59) as u32 } else { 0 },
        }
    }

    /// Bits 11:9 of the exit qualification (SDM 3C table 27-7).
    fn told(self) -> u8 {
        u8::from(self.user) + 2 * u8::from(self.writable) + 4 * u8::from(self.execute_disabled)
    }

    /// 4.6.2: does the key's right forbid this data access?
    fn key_forbids(self, first: First, who: Who, what: What) -> bool {
        let is_write = matches!(what, What::Write | What::ShadowWrite);
        let rights = match (first.levels >= Levels::Four, self.user) {
            (false, _) => return false,
            (true, true) if first.pke => first.pkru,
            (true, false) if first.pks => first.pkrs,
            (true, _) => return false,
        };
        let access_disable = bit(rights.into(), 2 * self.key);
        let write_disable = bit(rights.into(), 2 * self.key + 1);
        // 4.7: for supervisor-mode addresses it is CR0.WP alone that lets a key forbid a write.
        let checks_writes = first.wp || (self.user && who == Who::User);
        what != What::Fetch && (access_disable || (is_write && write_disable && checks_writes))
    }

    /// 4.6.1, bullet by bullet.
    fn allows(self, first: First, who: Who, what: What) -> bool {
        let smap_opens = !first.smap || (first.ac && who == Who::Supervisor);
        match (who, what, self.user) {
            (Who::User, _, false) => false,
            (Who::User, What::Read, true) => true,
            (Who::User, What::Write, true) => self.writable,
            (Who::User, What::Fetch, true) => !self.execute_disabled,
            (Who::User, What::ShadowRead | What::ShadowWrite, true) => self.shadow_stack,
            (_, What::Read, false) => true,
            (_, What::Read, true) => smap_opens,
            (_, What::Write, false) => self.writable || !first.wp,
            (_, What::Write, true) => (self.writable || !first.wp) && smap_opens,
            (_, What::Fetch, false) => !self.execute_disabled,
            (_, What::Fetch, true) => !first.smep && !self.execute_disabled,
            (_, What::ShadowRead | What::ShadowWrite, false) => self.shadow_stack,
            (_, What::ShadowRead | What::ShadowWrite, true) => false,
        }
    }
}

/// 4.7: the W/R, U/S, I/D and SS flags of the error code.
fn origin(first: First, who: Who, what: What) -> u32 {
    let write = if matches!(what, What::Write | What::ShadowWrite) { 2 } else { 0 };
    let user = if who == Who::User { 4 } else { 0 };
    let tells_fetches = first.smep || (first.levels != Levels::Two && first.nxe);
    let fetch = if what == What::Fetch && tells_fetches { 16 } else { 0 };
    let shadow = if matches!(what, What::ShadowRead | What::ShadowWrite) { 64 } else { 0 };
    write + user + fetch + shadow
}
