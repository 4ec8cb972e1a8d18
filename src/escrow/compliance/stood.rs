//! How a machine stood at a time, by what it had told: now by its newest report, of the past by its history.
//!
//! What counts at a time in the past is what the machine told of it, whenever that came in: a laptop that was away brings
//! its reports later. But whoever has it by then can let it tell what they like. So it is said whether any of it had come
//! in by that time.

use super::contact::LastContact;
use super::history::{ComplianceChange, around, as_of, is_too_old};
use super::record::ComplianceRecord;
use super::state::MachineState;
use crate::escrow::ids::Timestamp;

/// How a machine stood.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stood {
    /// In which state, if that is known.
    pub state: Option<MachineState>,
    /// Since when.
    pub since: Option<Timestamp>,
    /// When it had last told so by then.
    pub told_at: Option<Timestamp>,
    /// It is a time in the past, and all that the machine told of it came in later.
    pub told_later: bool,
    /// What it had told by then is not kept any more.
    pub is_dropped: bool,
    /// It is in that state still: nothing else was told since.
    pub is_newest: bool,
    /// When it was last heard of by then, as far as that is known.
    pub heard_at: Option<Timestamp>,
    /// It was never heard of, then or since: others alone have told of it.
    pub is_unheard: bool,
}

impl Stood {
    /// By the newest that is known.
    pub fn now(record: Option<&ComplianceRecord>, contact: Option<&LastContact>) -> Self {
        Self {
            state: record.map(|record| record.report.state()),
            since: record.map(|record| record.since),
            told_at: record.map(|record| record.at),
            told_later: false,
            is_dropped: false,
            is_newest: true,
            heard_at: contact.map(|contact| contact.at),
            is_unheard: contact.is_none(),
        }
    }

    /// Since when nothing was heard of it, if that is known: of a machine that was never heard of, since the cluster was
    /// told of it, at `first_seen`.
    pub fn silent_since(&self, first_seen: Timestamp) -> Option<Timestamp> {
        self.heard_at.or(self.is_unheard.then_some(first_seen))
    }

    /// At `at`, by the changes of its state, the oldest first.
    pub fn then(changes: &[ComplianceChange], contact: Option<&LastContact>, at: Timestamp) -> Self {
        let heard = contact.map(|contact| contact.at).filter(|heard| *heard <= at);
        let said = contact.and_then(|contact| contact.said.as_ref());
        let around = around(changes, at);
        // It may be there still, if nothing but confirmations came in since.
        let is_too_old = said.is_some_and(|said| is_too_old(around, said.at));
        let Some(run) = as_of(around, at).filter(|_| !is_too_old) else {
            let is_dropped = is_too_old || said.is_some_and(|said| said.dropped.is_some());
            let is_unheard = contact.is_none();
            return Self { is_dropped, heard_at: heard, is_unheard, ..Self::default() };
        };
        let told_at = run.told_by(at);
        Self {
            state: Some(run.state.clone()),
            since: Some(run.at),
            told_at,
            told_later: !run.told().any(|told| told.is_known_by(at)),
            is_dropped: false,
            is_newest: said.is_some_and(|said| said.run == run.moment()),
            heard_at: heard.or(told_at),
            is_unheard: false,
        }
    }
}
