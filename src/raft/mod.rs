//! Consensus: the only room that names openraft.

pub mod types;
