//! The keyring, sealing and opening of secrets, receipts.

pub mod receipt;
