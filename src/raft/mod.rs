//! Consensus: the only room that names openraft.

pub mod log_store;
pub mod state_machine;
pub mod storage;
pub mod types;
