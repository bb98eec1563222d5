//! Address translation (SDM 3A chapter 4, SDM 3C 28.2; APM2 chapter 5, 15.25): formats as data, one walk engine, one
//! step a function.
//!
//! [`translate`](mod@translate) asks the TLB, then `walk` finds the page in the first stage; every reference it makes goes through
//! the second stage (`second`: none, `ept` or `npt`). All three kinds of table are walked by `descent` over [`format`](mod@format)
//! data. The accessed and dirty flags are set once a stage's walk has found a page and allowed the access, from the
//! root down, and before the page itself is accessed.
//!
//! Left out: HLAT, sub-page write permission, and what encrypts memory (TME-MK, SEV).

pub mod context;
pub(crate) mod descent;
pub mod entry;
mod ept;
mod fault;
pub mod format;
pub mod lam;
pub mod memory_type;
mod npt;
pub mod pdpte;
pub mod permission;
pub(crate) mod second;
pub mod translate;
pub mod walk;
