//! What a node without a quorum decides by itself: about reveals, and for the second person who must approve them.
//!
//! The rules are those of apply, on what the node has: its replica, and the entries of journals that are not on record in
//! it yet.

use super::approvals::{Standing, asked_for, standing};
use super::{DegradedAsk, DegradedDecision, DegradedReveal, JournalEntry, Knowledge, Noted};
use crate::escrow::apply::gone;
use crate::escrow::command::{DecideApproval, Refusal};
use crate::escrow::disclosure::{self, Asked, Decision, Granted, Grounds, check_denials};
use crate::escrow::ids::{Identity, MachineId, RequestId, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::document::{Policy, WithoutQuorum};
use crate::escrow::records::{Approval, LogPosition, RevealTally, Source};
use crate::escrow::state::{Rows, StateError};

/// Most requests for approval of one person that wait to be put on record: whoever asks over and over leaves room for
/// others.
pub const ASKED_BY_ONE_MAX: usize = 32;

/// What waits in the journals of a node to be put on record.
#[derive(Debug, Clone, Copy)]
pub struct Waiting<'a> {
    /// What it decided itself, in order. None of these is dropped before those ahead of it.
    pub own: &'a [JournalEntry],
    /// What other nodes decided and told it.
    pub told: &'a [JournalEntry],
}

impl<'a> Waiting<'a> {
    fn all(self) -> impl Iterator<Item = &'a JournalEntry> {
        self.own.iter().chain(self.told)
    }

    /// What was decided about a request before; here, if it was decided here as well.
    fn of(self, request: RequestId) -> Option<&'a JournalEntry> {
        self.all().find(|entry| entry.what.request() == request)
    }
}

/// How a request came in that no quorum answers.
#[derive(Debug, Clone, Copy)]
pub struct Circumstances<'a> {
    /// The request.
    pub request: RequestId,
    /// Drawn at random: what the second person names, if this becomes a request for approval.
    pub drawn: RequestId,
    /// Through which node, which is the one that decides, and from where.
    pub source: &'a Source,
    /// Milliseconds since this node last knew a quorum to be in contact.
    pub quorum_age_ms: Option<u64>,
    /// The last entry of the log it has applied.
    pub position: LogPosition,
}

/// What a node without a quorum comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This very request was decided before, by this entry.
    Again(Box<JournalEntry>),
    /// Nothing is decided here without a quorum: the policy says so, or what it is about is not known here.
    Closed,
    /// To be put in the journal. If it is a reveal that is granted, then the key may be shown.
    Decided(Box<Noted>),
    /// Not well formed, or in conflict with what was asked before: it leaves nothing.
    Refused(Refusal),
    /// The same was asked for before, here or at another node, and must be approved there: it leaves nothing.
    Waits(Box<DegradedAsk>),
}

/// Decides about a reveal without a quorum.
///
/// # Errors
/// [`StateError`] if the storage fails.
pub fn decide<R: Rows>(
    rows: &R,
    waiting: &Waiting<'_>,
    circumstances: &Circumstances<'_>,
    asked: &Asked<'_>,
) -> Result<Verdict, StateError> {
    let before = match waiting.of(circumstances.request) {
        // Whoever left says what it showed, and gets nobody a key by that.
        Some(entry) if lookup::has_departed(rows, entry.what.source().node)? => None,
        before => before,
    };
    let elsewhere = before.and_then(|before| before.what.asked_elsewhere(circumstances));
    if let Some(before) = before
        && (elsewhere.is_none() || !before.what.is_of_reveal(asked))
    {
        return Ok(again(before, before.what.is_of_reveal(asked)));
    }
    let Some(ground) = Ground::survey(rows, waiting, circumstances, asked.at)? else {
        return Ok(Verdict::Closed);
    };
    if let Err(invalid) = ground.policy.reasons.admit(asked.reason) {
        return Ok(Verdict::Refused(invalid.into()));
    }
    if let Err(refusal) = ground.check_denials(rows, asked.by)? {
        return Ok(Verdict::Refused(refusal));
    }
    let asked = Asked { at: ground.at, ..*asked };
    let grounds = Grounds {
        policy: &ground.policy,
        person: ground.tally(rows, Some(asked.by.person()))?,
        cluster: ground.tally(rows, None)?,
        always_approve: ground.policy.without_quorum == WithoutQuorum::Approve,
    };
    let note = |machine, denied, approval| ground.reveal(circumstances, &asked, machine, denied, approval);
    let machine = match disclosure::decide(rows, &grounds, &asked)? {
        Decision::Granted(granted) => {
            let Granted { key, approval, .. } = *granted;
            if !approval.as_ref().is_some_and(|approval| ground.is_used(approval)) {
                return Ok(note(Some(key.machine), None, approval.map(|approval| approval.id)));
            }
            key.machine
        }
        // One that a quorum knows of and nobody has granted is a quorum's to decide.
        Decision::NeedsApproval { key, .. } => key.machine,
        Decision::Denied { refusal, machine } => return Ok(note(machine, Some(refusal), None)),
    };
    let standing = standing(rows, waiting.own, ground.at)?;
    Ok(match standing.iter().find(|before| before.ask.is_for(&asked)) {
        Some(standing) if ground.policy.grants(&standing.to_approval()) => {
            note(Some(machine), None, Some(standing.ask.approval))
        }
        Some(Standing { ask, .. }) => Verdict::Waits(Box::new((*ask).clone())),
        // The caller went on to this node with the request that another one has answered.
        None => match elsewhere {
            Some(ask) => Verdict::Waits(Box::new(ask.clone())),
            None => ground.ask(waiting, circumstances, &asked, machine),
        },
    })
}

/// Decides for a second person, `by`, about a reveal that was asked for at this node without a quorum.
///
/// # Errors
/// [`StateError`] if the storage fails.
pub fn decide_approval<R: Rows>(
    rows: &R,
    waiting: &Waiting<'_>,
    circumstances: &Circumstances<'_>,
    by: &Identity,
    at: Timestamp,
    decide: &DecideApproval,
) -> Result<Verdict, StateError> {
    if let Some(before) = waiting.of(circumstances.request) {
        return Ok(again(before, before.what.is_of_decision(by, decide)));
    }
    let Some(known) = asked_for(waiting.own, decide.approval) else { return Ok(Verdict::Closed) };
    let Some(ground) = Ground::survey(rows, waiting, circumstances, at)? else {
        return Ok(Verdict::Closed);
    };
    if let Err(refusal) = ground.check_denials(rows, by)? {
        return Ok(Verdict::Refused(refusal));
    }
    let standing = standing(rows, waiting.own, ground.at)?;
    let denied = match standing.iter().find(|asked| asked.ask.approval == decide.approval) {
        None => Some(gone(decide.approval)),
        Some(asked) => match ground.policy.may_approve(by, &asked.ask.by.person()) {
            Err(refusal) => Some(refusal),
            Ok(()) if decide.granted && ground.policy.grants(&asked.to_approval()) => {
                let why = format!("reveal {} is approved already", decide.approval);
                return Ok(Verdict::Refused(Refusal::Conflict(why)));
            }
            Ok(()) => None,
        },
    };
    Ok(Verdict::Decided(Box::new(Noted::ApprovalDecided(DegradedDecision {
        request: circumstances.request,
        at: ground.at,
        by: by.clone(),
        source: circumstances.source.clone(),
        approval: decide.approval,
        key_id: known.key_id,
        asked_by: known.by.clone(),
        granted: decide.granted,
        denied,
        knowledge: ground.knowledge,
    }))))
}

fn again(before: &JournalEntry, same: bool) -> Verdict {
    if same {
        return Verdict::Again(Box::new(before.clone()));
    }
    let request = before.what.request();
    let why = format!("request id {request} was used for another request: draw a new one for each");
    Verdict::Refused(Refusal::Conflict(why))
}

impl Noted {
    /// The request for approval, if it is one of another node: no answer of this one, which may have one of its own.
    fn asked_elsewhere(&self, circumstances: &Circumstances<'_>) -> Option<&DegradedAsk> {
        match self {
            Self::ApprovalAsked(ask) => Some(ask).filter(|ask| ask.source.node != circumstances.source.node),
            Self::ApprovalDecided(_) | Self::Reveal(_) => None,
        }
    }

    /// Whether it came of the reveal that is asked for: a retry.
    fn is_of_reveal(&self, asked: &Asked<'_>) -> bool {
        match self {
            Self::Reveal(DegradedReveal { by, key_id, user, reason, .. }) => {
                by == asked.by
                    && *key_id == asked.key_id
                    && user.as_ref() == asked.user
                    && reason == asked.reason
            }
            Self::ApprovalAsked(ask) => ask.is_for(asked),
            Self::ApprovalDecided(_) => false,
        }
    }

    fn is_of_decision(&self, by: &Identity, decide: &DecideApproval) -> bool {
        matches!(self, Self::ApprovalDecided(before)
            if before.by == *by && before.approval == decide.approval && before.granted == decide.granted)
    }
}

impl DegradedAsk {
    /// Whether it is of this reveal, word for word: who approves it approves the reason and the user as well.
    fn is_for(&self, asked: &Asked<'_>) -> bool {
        self.by == *asked.by
            && self.key_id == asked.key_id
            && self.user.as_ref() == asked.user
            && self.reason == asked.reason
    }
}

/// What a decision rests on.
struct Ground<'a> {
    policy: Policy,
    knowledge: Knowledge,
    /// What is in journals and not on record in this replica.
    unrecorded: Vec<&'a Noted>,
    at: Timestamp,
}

impl<'a> Ground<'a> {
    /// `None` if the policy closes everything while no quorum answers.
    fn survey<R: Rows>(
        rows: &R,
        waiting: &Waiting<'a>,
        circumstances: &Circumstances<'_>,
        at: Timestamp,
    ) -> Result<Option<Self>, StateError> {
        let (policy, policy_version) = match lookup::policy_record(rows)? {
            Some(record) => (Policy::stored(&record.policy)?, record.version),
            None => (Policy::default(), 0),
        };
        if policy.without_quorum == WithoutQuorum::Deny {
            return Ok(None);
        }
        let mut unrecorded = Vec::new();
        for entry in waiting.all() {
            if lookup::reconciled(rows, entry)?.is_none() {
                unrecorded.push(&entry.what);
            }
        }
        // A clock that was set back shortens no limit and revives no approval. Only this node's: another's that ran ahead
        // would let limits and approvals expire here.
        let own = unrecorded.iter().filter(|noted| noted.source().node == circumstances.source.node);
        let last = own.map(|noted| noted.at()).max().unwrap_or_default();
        let at = at.max(lookup::heads(rows)?.last_stamp).max(last);
        let Circumstances { position, quorum_age_ms, .. } = *circumstances;
        let knowledge = Knowledge { position, quorum_age_ms, policy_version };
        Ok(Some(Self { policy, knowledge, unrecorded, at }))
    }

    /// How often keys were revealed of late, those of the journals counted as well.
    fn tally<R: Rows>(&self, rows: &R, person: Option<String>) -> Result<RevealTally, StateError> {
        let row = rows.row(&RevealTally::row_key(person.as_deref()))?;
        let mut tally = row.unwrap_or_else(|| RevealTally::none(person.clone()));
        for reveal in self.unrecorded.iter().filter_map(|noted| noted.reveal()) {
            if reveal.was_shown() && person.as_ref().is_none_or(|person| reveal.by.person() == *person) {
                tally.slots.count_late(reveal.at, self.at);
            }
        }
        Ok(tally)
    }

    /// As apply does: what was denied of late counts, that of the journals as well. What is refused here leaves nothing.
    fn check_denials<R: Rows>(&self, rows: &R, by: &Identity) -> Result<Result<(), Refusal>, StateError> {
        let person = by.person();
        let mut denied = lookup::denials(rows, &person)?.slots;
        let unrecorded = self.unrecorded.iter().filter(|noted| noted.is_denial());
        for noted in unrecorded.filter(|noted| noted.by().person() == person) {
            denied.count_late(noted.at(), self.at);
        }
        Ok(check_denials(&denied, self.at))
    }

    /// An approval that was given under a quorum is used once, on record or not.
    fn is_used(&self, approval: &Approval) -> bool {
        let mut reveals = self.unrecorded.iter().filter_map(|noted| noted.reveal());
        reveals.any(|reveal| reveal.approval == Some(approval.id))
    }

    fn reveal(
        &self,
        circumstances: &Circumstances<'_>,
        asked: &Asked<'_>,
        machine: Option<MachineId>,
        denied: Option<Refusal>,
        approval: Option<RequestId>,
    ) -> Verdict {
        Verdict::Decided(Box::new(Noted::Reveal(DegradedReveal {
            request: circumstances.request,
            at: self.at,
            by: asked.by.clone(),
            source: circumstances.source.clone(),
            key_id: asked.key_id,
            machine,
            user: asked.user.cloned(),
            reason: asked.reason.to_owned(),
            denied,
            approval,
            knowledge: self.knowledge,
        })))
    }

    fn ask(
        &self,
        waiting: &Waiting<'_>,
        circumstances: &Circumstances<'_>,
        asked: &Asked<'_>,
        machine: MachineId,
    ) -> Verdict {
        let person = asked.by.person();
        let theirs = waiting
            .own
            .iter()
            .filter(|entry| matches!(&entry.what, Noted::ApprovalAsked(ask) if ask.by.person() == person));
        if theirs.count() >= ASKED_BY_ONE_MAX {
            return Verdict::Refused(Refusal::Conflict(format!(
                "you have asked for {ASKED_BY_ONE_MAX} approvals since there is no quorum, as many as one person can"
            )));
        }
        Verdict::Decided(Box::new(Noted::ApprovalAsked(DegradedAsk {
            request: circumstances.request,
            at: self.at,
            by: asked.by.clone(),
            source: circumstances.source.clone(),
            approval: circumstances.drawn,
            key_id: asked.key_id,
            machine,
            user: asked.user.cloned(),
            reason: asked.reason.to_owned(),
            expires_at: Timestamp(self.at.0 + u64::from(self.policy.approval.expires_minutes) * 60_000),
            knowledge: self.knowledge,
        })))
    }
}
