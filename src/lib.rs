//! Strongroom: a replicated escrow for disk-encryption recovery keys and compliance records.
//!
//! # Crate map
//!
//! The folders are the architecture, and imports go one way, down this list:
//!
//! | room | what it is for |
//! |---|---|
//! | `main.rs` | flags to command to exit code; the only exit point |
//! | [`cli`] | one file per command; prints, asks nothing, holds no domain logic |
//! | [`import`] | keys and machines out of other systems' files: CSV, and LDIF of Active Directory; pure |
//! | [`client`] | the caller's library: endpoints, nearest node, failover, retries |
//! | [`server`] | builds a node from its configuration, serves it, drains it |
//! | [`http`] | the admin port: `/metrics`, `/livez`, `/readyz` |
//! | [`rpc`] | the gRPC services, [`rpc::wire`] (protobuf to domain) and [`rpc::guard`] (identity to role) |
//! | [`raft`] | the only room that names openraft: propose, read, membership, peer network |
//! | [`store`] | the only room that names sled and raft-log: log, machine, snapshots, formats |
//! | [`seal`] | the keyring, sealing and opening of secrets, receipts, checkpoints of the audit trail |
//! | [`tls`] | identities, certificates, reload, the built-in CA |
//! | [`escrow`] | the pure domain: no async, no I/O, no clock, no randomness |
//! | [`config`], [`error`], [`metrics`], [`mutation`], [`private_file`], [`proto`], [`request_id`], [`secret`], [`telemetry`] | leaves; [`proto`] is generated and [`metrics`] counts by its methods, [`config`] uses the domain's ids; [`mutation`] breaks rules in builds for tests |
//!
//! A write travels `rpc/escrow.rs` → `raft/leader.rs` → `store/log` → `store/machine.rs` → [`escrow::apply`], and the
//! reply comes back the same way. A reveal that no quorum answers travels `rpc/recovery.rs` → [`raft::journal`] →
//! [`escrow::journal::alone`] → [`store::journal`], and comes on record later by way of `escrow/apply/reconcile.rs`. A report
//! travels `rpc/report` → [`store::export`] → [`store::spool`] → [`escrow::reports`], and is printed by `cli/report`. An
//! import travels [`import`] → `client/escrow_many.rs` → `rpc/escrow_many.rs`, and from there as one write for many keys; its machines travel
//! `client/machines.rs` → `rpc/machines.rs` beside them.

pub mod cli;
pub mod client;
pub mod config;
pub mod error;
pub mod escrow;
pub mod http;
pub mod import;
pub mod metrics;
pub mod mutation;
pub mod private_file;
pub mod proto;
pub mod raft;
pub mod request_id;
pub mod rpc;
pub mod seal;
pub mod secret;
pub mod server;
pub mod store;
pub mod telemetry;
pub mod tls;
