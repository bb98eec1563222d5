//! The first-stage walker against the literal specification in `spec` (SDM 3A 4.3 to 4.8): whole spaces of permission
//! bits, control bits and accesses, then every single reserved bit, then accessed and dirty flags.

#[allow(dead_code, reason = "each test file uses its own part")]
mod spec;

use cpu::paging::translate::translate;
use cpu::tlb::Tlb;
use cpu::{Core, Fault, Regime};
use sim_core::arch::access::{Access, AccessKind, Privilege};
use sim_core::arch::control::{Cr0, Cr4, Efer};
use sim_core::arch::exception::Vector;
use sim_core::arch::rflags::Rflags;
use sim_core::{Ground, Gva, Hpa};
use spec::{Answer, Mode, Registers, What, Who};

const P: u64 = 1;
const PS: u64 = 1 << 7;
const NX: u64 = 1 << 63;
/// Table `n` of the walk, from the root, is in this frame.
const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];

const WHO: [Who; 3] = [Who::User, Who::Supervisor, Who::Implicit];
const WHAT: [What; 3] = [What::Read, What::Write, What::Fetch];

/// All sums of some of the bits.
fn combinations(bits: &[u64]) -> Vec<u64> {
    bits.iter().fold(vec![0], |sums, bit| sums.iter().flat_map(|sum| [*sum, sum | bit]).collect())
}

fn access(who: Who, what: What) -> Access {
    let kind = match what {
        What::Read => AccessKind::Read,
        What::Write => AccessKind::Write,
        What::Fetch => AccessKind::Fetch,
    };
    match who {
        Who::User => Access::new(kind, Privilege::User),
        Who::Supervisor => Access::new(kind, Privilege::Supervisor),
        Who::Implicit => Access::implicit(kind),
    }
}

fn core(registers: &Registers) -> Core {
    let mut core = Core::flat32(registers.maxphyaddr);
    core.cr0 |= Cr0::PG;
    core.cr0.set(Cr0::WP, registers.wp);
    core.cr3 = registers.cr3;
    core.pdptes = registers.pdptes;
    core.cr4.set(Cr4::PAE, registers.mode != Mode::Bits32);
    core.cr4.set(Cr4::PSE, registers.pse);
    core.cr4.set(Cr4::SMEP, registers.smep);
    core.cr4.set(Cr4::SMAP, registers.smap);
    core.rflags.set(Rflags::AC, registers.ac);
    core.efer.set(Efer::NXE, registers.nxe);
    core.efer.set(Efer::LMA | Efer::LME, registers.mode == Mode::FourLevel);
    core
}

/// One table walk laid out in memory: entries from the root down.
struct Layout {
    mode: Mode,
    linear: u64,
    entries: Vec<(u64, u64)>,
}

impl Layout {
    /// A walk through these entries, whose address fields this fills in; the last one maps the page at `page`.
    fn new(mode: Mode, flags: &[u64], page: u64) -> Self {
        let (linear, indices): (u64, &[u64]) = match mode {
            Mode::Bits32 => ((3 << 22) | (5 << 12) | 0x678, &[3, 5]),
            Mode::Pae => ((2 << 30) | (3 << 21) | (5 << 12) | 0x678, &[3, 5]),
            Mode::FourLevel => ((1 << 39) | (2 << 30) | (3 << 21) | (5 << 12) | 0x678, &[1, 2, 3, 5]),
        };
        let bytes = if mode == Mode::Bits32 { 4 } else { 8 };
        let entry = |(depth, flags): (usize, &u64)| {
            let is_last = depth + 1 == flags_len(flags_of(flags, depth), depth);
            let _ = is_last;
            (TABLES[depth] + indices[depth] * bytes, *flags)
        };
        let mut entries: Vec<_> = flags.iter().enumerate().map(entry).collect();
        let last = entries.len() - 1;
        for (depth, (_, value)) in entries.iter_mut().enumerate() {
            *value |= if depth == last { page } else { TABLES[depth + 1] };
        }
        Self { mode, linear, entries }
    }
}
