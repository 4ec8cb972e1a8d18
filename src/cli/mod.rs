//! One file per command.

pub mod cert;
