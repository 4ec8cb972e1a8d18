//! What clients asked for, and what they were told.

use std::collections::BTreeMap;

use strongroom::escrow::ids::{KeyId, NodeId};
use strongroom::escrow::journal::JournalPlace;

use crate::common::Kept;

/// A reveal that was asked for.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// By the profile of this name.
    pub by: &'static str,
    /// At this node; `None` for whichever answered.
    pub at: Option<NodeId>,
    pub key: KeyId,
    pub outcome: Outcome,
}

/// What the caller of a reveal was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: it may be on record, or not.
    Unknown,
    /// No.
    Refused,
    /// Nothing, for this person was denied too often of late: it leaves no record of its own.
    NotLookedAt,
    /// The key, with its audit record.
    Shown { sequence: u64 },
    /// The key, without a quorum, with the entry of the node's journal.
    ShownAlone { entry: JournalPlace },
}

/// Everything in one or several runs.
#[derive(Debug, Default)]
pub struct Asked {
    /// Reveals, each by the reason that was given for it.
    pub reveals: BTreeMap<String, Attempt>,
    /// Keys that were acknowledged.
    pub kept: Vec<Kept>,
    /// Lookups that were answered, as `quorum` and as `local`.
    pub lookups: (u64, u64),
}

impl Asked {
    pub fn extend(&mut self, more: Self) {
        self.reveals.extend(more.reveals);
        self.kept.extend(more.kept);
    }
}

/// How often clients were told what.
#[derive(Debug, Default)]
pub struct Tally {
    unknown: u64,
    refused: u64,
    not_looked_at: u64,
    shown: u64,
    shown_alone: u64,
    escrows: u64,
    quorum_lookups: u64,
    local_lookups: u64,
}

impl Tally {
    pub fn count(&mut self, asked: &Asked) {
        for attempt in asked.reveals.values() {
            *match attempt.outcome {
                Outcome::Unknown => &mut self.unknown,
                Outcome::Refused => &mut self.refused,
                Outcome::NotLookedAt => &mut self.not_looked_at,
                Outcome::Shown { .. } => &mut self.shown,
                Outcome::ShownAlone { .. } => &mut self.shown_alone,
            } += 1;
        }
        self.escrows += asked.kept.len() as u64;
        self.quorum_lookups += asked.lookups.0;
        self.local_lookups += asked.lookups.1;
    }

    /// Whether there was a side with a quorum and one without, and both had something to do.
    pub fn is_a_partition(&self) -> bool {
        let Self {
            unknown: _,
            not_looked_at: _,
            refused,
            shown,
            shown_alone,
            escrows,
            quorum_lookups,
            local_lookups,
        } = self;
        [refused, shown, shown_alone, escrows, quorum_lookups, local_lookups]
            .into_iter()
            .all(|told| *told > 0)
    }
}
