//! Which clauses of the manuals the processor models, and how far: one table a subject.

pub mod paging;
pub mod processor;
pub mod tlb;
