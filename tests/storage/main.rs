//! The storage of a node: what must hold across crashes, snapshots and damage.

#![allow(clippy::unwrap_used)]

#[path = "../common/base.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod base;
mod compaction;
mod crash;
#[path = "../nemesis/disks.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod disks;
mod export;
mod power_cut;
mod properties;
mod replace;
#[path = "../common/rows.rs"]
mod rows;
mod sample;
mod snapshots;
mod support;
