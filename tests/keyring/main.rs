//! The keyring in life, with real processes: nothing new is sealed with a data key that a removed node has.

#[path = "../common/mod.rs"]
mod common;
#[path = "../membership/steps.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod steps;

mod identities;
mod lagging;
mod rotation;
mod stored;
