//! The domain: what is escrowed, who may see it, and what is kept of that. Pure: no async, no I/O, no clock,
//! no randomness, so that every replica that applies the same entries reaches the same state.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod command;
pub mod ids;
pub mod records;
pub mod secrets;
pub mod state;
