//! Address translation: formats as data, one walker, one step a function.

pub mod pdpte;
pub mod translate;
