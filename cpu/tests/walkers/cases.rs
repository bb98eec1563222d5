//! Worlds to judge: tables of both stages in one memory, and the registers that select them.
//!
//! First-stage tables are at guest-physical frames 1 to 5; the second stage maps guest-physical address a to host
//! address a + [`OFFSET`] through tables at host frames 16 to 24, so that a walker that confuses the two spaces finds
//! nothing. No two tables share a frame, for the manuals leave open in which order aliased entries would change.

use crate::spec::{First, Levels, Second, World};

/// Where the second stage puts guest-physical memory; a multiple of 1 GiB, so that pages of every size can do it.
pub(crate) const OFFSET: u64 = 0x4000_0000;
/// The table of each depth of the first stage, guest-physical.
const TABLES: [u64; 5] = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000];
/// The second stage's tables: one for each level from the top, then those below the second gigabyte, the second and the
/// third two megabytes.
const STAGE: [u64; 9] = [0x1_0000, 0x1_1000, 0x1_2000, 0x1_3000, 0x1_4000, 0x1_5000, 0x1_6000, 0x1_7000, 0x1_8000];

const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;

/// A deterministic source of bits (splitmix64).
pub(crate) struct Source(pub(crate) u64);

impl Source {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `of`.
    pub(crate) fn below(&mut self, of: u64) -> u64 {
        self.next() % of
    }

    /// True in `percent` of 100.
    pub(crate) fn often(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn one_of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    fn bits(&mut self, choices: &[(u64, u64)]) -> u64 {
        choices.iter().fold(0, |bits, (bit, percent)| if self.often(*percent) { bits | bit } else { bits })
    }
}

/// One world, and what memory holds.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) world: World,
    pub(crate) linear: u64,
    /// Host-physical address, bytes, value.
    pub(crate) entries: Vec<(u64, usize, u64)>,
}

/// The shifts of the first stage's tables.
fn shifts(levels: Levels) -> &'static [u32] {
    match levels {
        Levels::Unpaged => &[],
        Levels::Two => &[22, 12],
        Levels::Three => &[30, 21, 12],
        Levels::Four => &[39, 30, 21, 12],
        Levels::Five => &[48, 39, 30, 21, 12],
    }
}

/// Flags of a first-stage or nested entry: mostly present and open.
fn ordinary_flags(source: &mut Source, wide: bool) -> u64 {
    let flags = source.bits(&[(1, 97), (2, 85), (4, 85), (0x20, 50), (0x40, 50), (0x18, 10), (0x100, 20), (0xe00, 10)]);
    let high = if wide { source.bits(&[(NX, 12), (0x7f0 << 48, 5)]) } else { 0 };
    flags | high
}

/// A first-stage leaf, now and then a shadow-stack page, with a key.
fn leaf_flags(source: &mut Source, wide: bool) -> u64 {
    let flags = ordinary_flags(source, wide);
    let flags = if source.often(15) { flags & !2 | 0x40 } else { flags };
    if wide && source.often(60) { flags | source.below(16) << 59 } else { flags }
}

/// Flags of an EPT entry.
fn extended_flags(source: &mut Source, is_leaf: bool) -> u64 {
    let rights = if source.often(75) { 7 } else { source.below(8) };
    let other = source.bits(&[(0x100, 50), (0x200, 50), (0x400, 70), (0x800, 10), (0xfff << 52, 10), (NX, 50)]);
    let memory_type = if source.often(95) { source.one_of(&[0, 1, 4, 5, 6]) } else { source.below(8) };
    rights | other | if is_leaf { memory_type << 3 | source.bits(&[(0x40, 20)]) } else { 0 }
}

/// Now and then one bit of an entry that nothing else would flip.
fn flip(source: &mut Source, entry: u64, wide: bool) -> u64 {
    if source.often(4) { entry ^ 1 << source.below(if wide { 64 } else { 32 }) } else { entry }
}

fn first(source: &mut Source) -> First {
    let levels = source.one_of(&[
        Levels::Unpaged,
        Levels::Two,
        Levels::Two,
        Levels::Three,
        Levels::Three,
        Levels::Four,
        Levels::Four,
        Levels::Four,
        Levels::Five,
    ]);
    let is_long = levels >= Levels::Four;
    First {
        levels,
        cr3: TABLES[0] | source.bits(&[(0x8, 10), (0x10, 10)]),
        pdptes: [0; 4],
        wp: source.often(70),
        pse: levels != Levels::Two || source.often(70),
        smep: source.often(40),
        smap: source.often(40),
        ac: source.often(50),
        nxe: source.often(80),
        pke: is_long && source.often(50),
        pks: is_long && source.often(50),
        pkru: if source.often(80) { source.next() as u32 } else { 0 },
        pkrs: if source.often(80) { source.next() as u32 } else { 0 },
        has_1g: source.often(80),
    }
}

fn second(source: &mut Source, is_paged: bool) -> Second {
    match source.below(8) {
        0..=2 => Second::Absent,
        3..=5 => {
            let five = source.often(25);
            let flags = source.bits(&[(0x40, 50)]) | if five { 4 << 3 } else { 3 << 3 } | 6;
            Second::Ept { eptp: STAGE[if five { 0 } else { 1 }] | flags, mbec: is_paged && source.often(40) }
        }
        _ => {
            let levels = source.one_of(&[Levels::Two, Levels::Three, Levels::Four, Levels::Four, Levels::Five]);
            let root = match levels {
                Levels::Five => STAGE[0],
                Levels::Four => STAGE[1],
                _ => STAGE[2],
            };
            Second::Npt { ncr3: root, levels, nxe: source.often(70), pse: levels != Levels::Two || source.often(80) }
        }
    }
}

/// A random case.
pub(crate) fn random(source: &mut Source) -> Case {
    let first = first(source);
    let second = second(source, first.levels != Levels::Unpaged);
    let maxphyaddr = source.one_of(&[36, 40, 46, if matches!(second, Second::Absent) { 52 } else { 45 }]);
    let world = World { maxphyaddr, reserves_bit_8: source.often(30), first, second };
    let mut case = Case { world, linear: 0, entries: Vec::new() };
    first_stage(source, &mut case);
    second_stage(source, &mut case);
    case
}

/// Where the second stage puts a guest-physical address.
fn host(world: &World, gpa: u64) -> u64 {
    if matches!(world.second, Second::Absent) { gpa } else { gpa + OFFSET }
}

fn first_stage(source: &mut Source, case: &mut Case) {
    let levels = case.world.first.levels;
    let shifts = shifts(levels);
    let wide = levels != Levels::Two;
    let size = if wide { 8 } else { 4 };
    let smallest = shifts.len();
    // How many tables: fewer if a large page ends the walk.
    let depth = if smallest == 0 || source.often(60) {
        smallest
    } else {
        let largest = if levels >= Levels::Four { smallest - 2 } else { smallest - 1 };
        largest + source.below((smallest - largest + 1) as u64) as usize
    };
    // Offsets below the page keep the final address inside what the second stage maps.
    case.linear = 0x5678 % shifts.get(depth.wrapping_sub(1)).map_or(u64::MAX, |shift| 1 << shift);
    for (number, shift) in shifts.iter().take(depth).enumerate() {
        let index = 1 + source.below(3);
        case.linear += index << shift;
        let is_leaf = number + 1 == depth;
        let target = if is_leaf { page_of(*shift) } else { TABLES[number + 1] };
        let is_pdpte = levels == Levels::Three && number == 0;
        let flags = match (is_pdpte, is_leaf) {
            (true, _) => source.bits(&[(1, 95), (0x18, 10), (0xe00, 10)]),
            (false, true) => leaf_flags(source, wide) | if depth == smallest { source.bits(&[(PS, 20)]) } else { PS },
            (false, false) => ordinary_flags(source, wide) & !PS,
        };
        let entry = flip(source, target | flags, wide);
        if is_pdpte {
            // The registers never hold what a load would have refused.
            case.world.first.pdptes[index as usize] = target | flags;
        }
        case.entries.push((host(&case.world, TABLES[number]) + index * size, size as usize, entry));
    }
    if shifts.is_empty() {
        case.linear = source.one_of(&[0x5678, 0x20_5678, 0x40_5678, 0x4000_5678]);
    }
}

/// The guest-physical page that a leaf with this shift maps.
const fn page_of(shift: u32) -> u64 {
    match shift {
        12 => 0x8000,
        21 => 0x20_0000,
        22 => 0x40_0000,
        _ => 0x4000_0000,
    }
}

fn second_stage(source: &mut Source, case: &mut Case) {
    match case.world.second {
        Second::Absent => {}
        Second::Npt { levels: Levels::Two, .. } => {
            for (index, table) in [(0, STAGE[4]), (1, STAGE[6]), (256, STAGE[8])] {
                let large = source.often(30);
                let base = OFFSET + (index << 22);
                push_stage(source, case, STAGE[2] + 4 * index, 4, (table, base, large));
                if !large {
                    small_pages(source, case, (table, base), 4);
                }
            }
        }
        Second::Npt { levels, .. } => {
            let from = match levels {
                Levels::Five => 0,
                Levels::Four => 1,
                _ => 2,
            };
            stage_tree(source, case, from);
        }
        Second::Ept { eptp, .. } => stage_tree(source, case, if eptp >> 3 & 7 == 4 { 0 } else { 1 }),
    }
}

/// Tables of 8-byte entries from this level down: guest-physical 0 to 6 MiB, and the beginning of the second gigabyte.
fn stage_tree(source: &mut Source, case: &mut Case, from: usize) {
    for number in from..2 {
        push_stage(source, case, STAGE[number], 8, (STAGE[number + 1], 0, false));
    }
    let may_1g = !matches!(case.world.second, Second::Npt { levels: Levels::Three, .. });
    for (index, directory) in [(0, STAGE[3]), (1, STAGE[7])] {
        let large = may_1g && source.often(12);
        push_stage(source, case, STAGE[2] + 8 * index, 8, (directory, OFFSET + (index << 30), large));
        let below: &[(u64, u64)] =
            if index == 0 { &[(0, STAGE[4]), (1, STAGE[5]), (2, STAGE[6])] } else { &[(0, STAGE[8])] };
        for (entry, table) in below.iter().filter(|_| !large) {
            let large = source.often(20);
            let base = OFFSET + (index << 30) + (entry << 21);
            push_stage(source, case, directory + 8 * entry, 8, (*table, base, large));
            if !large {
                small_pages(source, case, (*table, base), 8);
            }
        }
    }
}

/// One entry of the second stage: to a table, or a large page.
fn push_stage(source: &mut Source, case: &mut Case, at: u64, size: u64, (table, base, large): (u64, u64, bool)) {
    let wide = size == 8;
    let is_pdpte = matches!(case.world.second, Second::Npt { levels: Levels::Three, .. }) && at & !0xfff == STAGE[2];
    let flags = match case.world.second {
        Second::Ept { .. } => extended_flags(source, large),
        _ if is_pdpte => source.bits(&[(1, 97), (0xe00, 10)]),
        _ => ordinary_flags(source, wide),
    };
    let entry = if large { base | PS } else { table } | flags & !PS;
    let entry = flip(source, entry, wide);
    case.entries.push((at, size as usize, entry));
}

/// The 4 KiB pages that a case may touch: the first stage's tables and final pages.
fn small_pages(source: &mut Source, case: &mut Case, (table, base): (u64, u64), size: u64) {
    for index in [1, 2, 3, 4, 5, 8] {
        let flags = match case.world.second {
            Second::Ept { .. } => extended_flags(source, true) | source.bits(&[(PS, 20)]),
            _ => ordinary_flags(source, size == 8) | source.bits(&[(PS, 20)]),
        };
        let entry = flip(source, (base + (index << 12)) | flags, size == 8);
        case.entries.push((table + size * index, size as usize, entry));
    }
}
