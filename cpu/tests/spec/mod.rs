//! First-stage paging written down a second time, slowly and literally, straight from the manual's lists: one bit at a
//! time, one bullet an arm. It shares no code with the walker that it judges, and uses plain numbers where the walker
//! has types (SDM 3A 4.3 to 4.8).

/// The kinds of tables under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// 32-bit paging.
    Bits32,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    FourLevel,
    /// 5-level paging.
    FiveLevel,
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
    /// A data read.
    Read,
    /// A data write.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// The registers that matter.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "control bits, as the manual names them")]
pub(crate) struct Registers {
    /// The kind of tables.
    pub(crate) mode: Mode,
    /// CR3.
    pub cr3: u64,
    /// The PDPTE registers.
    pub(crate) pdptes: [u64; 4],
    /// CR0.WP.
    pub(crate) wp: bool,
    /// CR4.PSE.
    pub(crate) pse: bool,
    /// CR4.SMEP.
    pub(crate) smep: bool,
    /// CR4.SMAP.
    pub(crate) smap: bool,
    /// EFLAGS.AC.
    pub(crate) ac: bool,
    /// IA32_EFER.NXE.
    pub(crate) nxe: bool,
    /// MAXPHYADDR.
    pub(crate) maxphyaddr: u32,
}

/// What must happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The physical address, or the error code of the page fault.
    pub(crate) result: Result<u64, u32>,
    /// Where each entry used is, and what it holds afterwards.
    pub(crate) entries: Vec<(u64, u64)>,
}

struct Visited {
    at: u64,
    value: u64,
    is_register: bool,
    is_page: bool,
}

fn bit(value: u64, number: u32) -> bool {
    (value >> number) % 2 == 1
}

/// Bits `high` to `low` of a value.
fn field(value: u64, high: u32, low: u32) -> u64 {
    (low..=high).filter(|number| bit(value, *number)).map(|number| 1 << (number - low)).sum()
}

/// For each table from the top: the linear-address bits that index it, and whether bit 7 can make its entry a page.
fn tables(registers: &Registers) -> Vec<((u32, u32), bool)> {
    match registers.mode {
        Mode::Bits32 => vec![((31, 22), registers.pse), ((21, 12), false)],
        Mode::Pae => vec![((31, 30), false), ((29, 21), true), ((20, 12), false)],
        Mode::FourLevel => vec![((47, 39), false), ((38, 30), true), ((29, 21), true), ((20, 12), false)],
        Mode::FiveLevel => {
            vec![((56, 48), false), ((47, 39), false), ((38, 30), true), ((29, 21), true), ((20, 12), false)]
        }
    }
}

/// Tables 4-4 to 4-19: is this bit of a present entry reserved?
fn is_reserved(registers: &Registers, low: u32, is_page: bool, number: u32) -> bool {
    let m = registers.maxphyaddr;
    match (registers.mode, low, is_page, number) {
        (Mode::Bits32, 22, true, 13..=21) => number >= m.min(40) - 19,
        (Mode::Bits32, ..) => false,
        (_, _, _, 63) => !registers.nxe,
        (Mode::Pae, _, _, 52..=62) => true,
        (Mode::FourLevel | Mode::FiveLevel, _, _, 52..=62) => false,
        (_, _, _, 13..=51) if number >= m => true,
        (Mode::FourLevel | Mode::FiveLevel, 39 | 48, false, 7) => true,
        (Mode::FourLevel | Mode::FiveLevel, 30, true, 13..=29) => true,
        (_, 21, true, 13..=20) => true,
        _ => false,
    }
}

/// What one access to one linear address does.
pub(crate) fn specify(
    memory: &dyn Fn(u64, usize) -> u64,
    registers: &Registers,
    linear: u64,
    who: Who,
    what: What,
) -> Answer {
    let mut visited = Vec::new();
    let found = find(memory, registers, linear, &mut visited);
    let result = match found {
        Err(flags) => Err(flags),
        Ok(_) if !is_allowed(registers, &visited, who, what) => Err(1),
        Ok(physical) => Ok(physical),
    };
    let in_memory = visited.iter().filter(|entry| !entry.is_register);
    let entries = in_memory.map(|entry| (entry.at, after(entry, result.is_ok(), what))).collect();
    Answer { result: result.map_err(|flags| flags + origin_flags(registers, who, what)), entries }
}

/// Goes down the tables. An error is the P and RSVD flags of the error code.
fn find(
    memory: &dyn Fn(u64, usize) -> u64,
    registers: &Registers,
    linear: u64,
    visited: &mut Vec<Visited>,
) -> Result<u64, u32> {
    let size: u64 = if registers.mode == Mode::Bits32 { 4 } else { 8 };
    let mut table = match registers.mode {
        Mode::Bits32 => field(registers.cr3, 31, 12) * 4096,
        Mode::Pae => 0,
        Mode::FourLevel | Mode::FiveLevel => field(registers.cr3, 51, 12) * 4096,
    };
    for ((high, low), bit_7_makes_a_page) in tables(registers) {
        let index = field(linear, high, low);
        let is_register = registers.mode == Mode::Pae && low == 30;
        let at = table + index * size;
        let value = if is_register { registers.pdptes[index as usize] } else { memory(at, size as usize) };
        if !bit(value, 0) {
            return Err(0);
        }
        let is_page = low == 12 || (bit_7_makes_a_page && bit(value, 7));
        let is_bad = |number: &u32| bit(value, *number) && is_reserved(registers, low, is_page, *number);
        if !is_register && (0..64).any(|number| is_bad(&number)) {
            return Err(1 + 8);
        }
        visited.push(Visited { at, value, is_register, is_page });
        if is_page {
            return Ok(page_address(registers, value, low) + field(linear, low - 1, 0));
        }
        table = field(value, 51, 12) * 4096;
    }
    panic!("the last table maps pages");
}

fn page_address(registers: &Registers, value: u64, low: u32) -> u64 {
    if registers.mode == Mode::Bits32 && low == 22 {
        field(value, 20, 13) * (1 << 32) + field(value, 31, 22) * (1 << 22)
    } else {
        field(value, 51, low) * (1 << low)
    }
}

/// 4.6.1, bullet by bullet.
fn is_allowed(registers: &Registers, visited: &[Visited], who: Who, what: What) -> bool {
    let tables: Vec<&Visited> = visited.iter().filter(|entry| !entry.is_register).collect();
    let r_w_everywhere = tables.iter().all(|entry| bit(entry.value, 1));
    let user_mode_address = tables.iter().all(|entry| bit(entry.value, 2));
    let xd_nowhere = registers.mode == Mode::Bits32 || tables.iter().all(|entry| !bit(entry.value, 63));
    let ac_opens = registers.ac && who == Who::Supervisor;
    match (who, user_mode_address, what) {
        (Who::User, false, _) => false,
        (Who::User, true, What::Read) => true,
        (Who::User, true, What::Write) => r_w_everywhere,
        (Who::User, true, What::Fetch) => xd_nowhere,
        (_, false, What::Read) => true,
        (_, false, What::Write) if registers.wp => r_w_everywhere,
        (_, false, What::Write) => true,
        (_, false, What::Fetch) => xd_nowhere,
        (_, true, What::Read) if registers.smap => ac_opens,
        (_, true, What::Read) => true,
        (_, true, What::Write) if registers.wp && registers.smap => ac_opens && r_w_everywhere,
        (_, true, What::Write) if registers.wp => r_w_everywhere,
        (_, true, What::Write) if registers.smap => ac_opens,
        (_, true, What::Write) => true,
        (_, true, What::Fetch) if registers.smep => false,
        (_, true, What::Fetch) => xd_nowhere,
    }
}

/// 4.8: what the entry holds after the access.
fn after(entry: &Visited, is_done: bool, what: What) -> u64 {
    let mut value = entry.value;
    if is_done && !bit(value, 5) {
        value += 0x20;
    }
    if is_done && entry.is_page && what == What::Write && !bit(value, 6) {
        value += 0x40;
    }
    value
}

/// 4.7: the W/R, U/S and I/D flags of the error code.
fn origin_flags(registers: &Registers, who: Who, what: What) -> u32 {
    let pae = registers.mode != Mode::Bits32;
    let mut flags = 0;
    if what == What::Write {
        flags += 2;
    }
    if who == Who::User {
        flags += 4;
    }
    if what == What::Fetch && (registers.smep || (pae && registers.nxe)) {
        flags += 16;
    }
    flags
}
