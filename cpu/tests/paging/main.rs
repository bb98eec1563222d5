//! Paging feature by feature, each against its manual's own sentences: protection keys, shadow stacks, page sizes,
//! accessed and dirty flags, memory types, and both second stages. Each test enumerates its space whole and prints how
//! many walks that were. What ordinary permission bits do is in `first_stage` and `second_stage`.

mod attributes;
mod ept;
#[path = "../harness/mod.rs"]
mod harness;
mod keys;
mod marks;
mod modes;
mod npt;
mod registers;
mod shadow_stacks;
mod support;
