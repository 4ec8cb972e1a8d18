//! The domain: what is escrowed, who may see it, and what is kept of that. Pure: no async, no I/O, no clock,
//! no randomness, so that every replica that applies the same entries reaches the same state.
//!
//! What flows through: the text of a secret is checked by [`secrets::canonical`] at the node that receives it and
//! sealed there; the [`command`] that carries it is proposed, and once it is committed [`apply::apply`] decides on
//! every replica what it changes and what is answered. [`lookup`] reads the same rows.
//!
//! | file | what it holds |
//! |---|---|
//! | [`ids`] | names of things, each validated when it is made |
//! | [`secrets`] | kinds of recovery secrets and their formats |
//! | [`records`] | what is stored: machines, keys, nodes, the keyring, audit records |
//! | [`command`] | what can be asked of the state, and what it answers |
//! | [`features`] | which commands every member can apply |
//! | [`policy`] | which role may ask for what, and the policy of reveals |
//! | [`disclosure`] | who may see a key: the rules of a reveal |
//! | [`journal`] | what a node decides without a quorum, and writes down |
//! | [`inventory`] | what others say of machines: a directory, or a list of what was bought |
//! | [`rotation`] | which keys owe a rotation, and which wait to be confirmed |
//! | [`compliance`] | what devices say of their volumes, what is wanted of them, and how each machine stands |
//! | [`reports`] | what is read of all that for people: machine by machine, and of the audit trail |
//! | [`state`] | the tables, as apply and lookups see them |
//! | [`rows`] | in which table and under which key each record lives |
//! | [`apply`] | what a command does to the state |
//! | [`audit`] | the hash chain of audit records: its lines in exports, reading it in parts, checking it |
//! | [`lookup`] | what can be read |
//! | [`tally`] | counting what happened of late |
//! | [`memory`] | a state in memory, for tests |

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod apply;
pub mod audit;
pub mod command;
pub mod compliance;
mod digest;
pub mod disclosure;
pub mod features;
pub mod ids;
pub mod inventory;
pub mod journal;
pub mod lookup;
pub mod memory;
pub mod policy;
pub mod records;
pub mod reports;
pub mod rotation;
pub mod rows;
pub mod secrets;
pub mod state;
pub mod tally;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod properties;
