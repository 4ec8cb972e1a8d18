//! Consensus: the only room that names openraft.

pub mod log_store;
pub mod types;
