//! Changing who is in the cluster, with real processes: under load, against the guard rails, and with leaders, members
//! and operators that go away in the middle.

#[path = "../common/mod.rs"]
mod common;

mod guard_rails;
mod keyring;
mod leaders_killed;
mod learners;
mod outsiders;
mod printed;
mod proxied;
mod removed;
mod replaced;
mod steps;
