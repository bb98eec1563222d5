//! The virtual-machine control structure (SDM 3C chapter 24): its fields as one table, and the region in memory that
//! holds them.

pub mod field;
pub mod region;
pub mod segment;
mod table;

pub use field::Field;
pub use region::{LaunchState, Region};
pub use segment::SegmentName;
