//! The PDPTE registers of PAE paging (SDM 3A 4.4.1).

use super::entry::{Decoded, decode};
use super::format::{self, Limits, NoExecute, Offers};
use super::second::{Request, Walker};
use crate::exec::Fault;
use crate::tlb::Tlb;
use crate::virt::{Regime, SecondStage, StagePurpose};
use sim_core::arch::access::{Access, AccessKind};
use sim_core::arch::control::PagingMode;
use sim_core::arch::exception::Exception;
use sim_core::{Gpa, Ground};

/// Reads and checks the four PDPTEs that `cr3` points to, without changing any register.
///
/// With nested paging there are no PDPTE registers: the walker reads a guest's PDPTEs on demand (APM2 15.25.10). The
/// load then touches no memory, checks nothing and gives zeroes.
///
/// # Errors
/// #GP(0) if a present entry has a reserved bit set, or the second-stage fault of reading them.
pub fn load(maxphyaddr: u32, regime: &Regime, ground: &mut Ground, cr3: u64) -> Result<[u64; 4], Fault> {
    if matches!(regime.second, SecondStage::Npt { .. }) {
        return Ok([0; 4]);
    }
    let pdptes = read(maxphyaddr, regime, ground, cr3)?;
    let is_malformed = |entry: &u64| {
        let limits = Limits { maxphyaddr, no_execute: NoExecute::Reserved, offers: Offers::all() };
        decode(&format::PAE.levels[0], *entry, limits) == Decoded::Malformed
    };
    if pdptes.iter().any(is_malformed) { Err(Exception::gp0().into()) } else { Ok(pdptes) }
}

/// Reads the entries through the second stage, for which they are a plain read without a linear address (SDM 3C
/// 28.2.3.2: loads of the PDPTE registers never count as writes). They share a page, so one translation serves all four.
fn read(maxphyaddr: u32, regime: &Regime, ground: &mut Ground, cr3: u64) -> Result<[u64; 4], Fault> {
    let mut tlb = Tlb::default();
    let mut walker = Walker::detached(maxphyaddr, &mut tlb, regime, ground);
    let gpa = Gpa(cr3 & format::root_mask(PagingMode::Pae));
    let access = Access::implicit(AccessKind::Read);
    let request = Request { gpa, gva: None, access, purpose: StagePurpose::Table, first: None };
    let table = walker.second_stage(&request)?.hpa;
    Ok([0, 1, 2, 3].map(|index| walker.read(table.offset(8 * index), 8)))
}
