//! What a node without a quorum decides about a reveal, and the entry of its journal that says so.
//!
//! An entry holds who asked for what, when and on what knowledge it was decided: all that its audit record will need, and
//! no secret. Entries of one journal are numbered without gaps and chained by their hashes. After the heal each is put on
//! record by [`Reconcile`](super::command::Reconcile), known by its place, so that it may be proposed by anybody who has
//! it, any number of times.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::command::Refusal;
use super::digest::Canonical;
use super::disclosure::{self, Asked, Decision, Granted, Grounds};
use super::ids::{Identity, KeyId, MachineId, RequestId, Timestamp, UserName};
use super::lookup;
use super::policy::document::{Policy, WithoutQuorum};
use super::records::{Approval, LogPosition, RevealTally, Source};
use super::state::{Rows, StateError};

/// Names what is hashed and the version of its layout.
const ENTRY_LABEL: &str = "strongroom journal entry v1";
/// Longest refusal that is kept in an entry, in bytes: ours are far shorter.
pub const REFUSAL_MAX_BYTES: usize = 1_000;

/// Where an entry stands: in which journal, as which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JournalPlace {
    /// Drawn when the journal was begun; the data directory of a node has one.
    pub journal: Uuid,
    /// Counts from 1 without gaps.
    pub sequence: u64,
}

impl JournalPlace {
    /// Its row key.
    pub fn row_key(&self) -> Vec<u8> {
        let mut key = self.journal.as_bytes().to_vec();
        key.extend_from_slice(&self.sequence.to_be_bytes());
        key
    }
}

impl std::fmt::Display for JournalPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of journal {}", self.sequence, self.journal)
    }
}

/// One link of a node's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// Where it stands.
    pub place: JournalPlace,
    /// Hash of the entry before (zeros for the first).
    pub previous: [u8; 32],
    /// What it says.
    pub reveal: DegradedReveal,
}

/// A reveal that was decided without a quorum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradedReveal {
    /// The caller's request. The same one may also have been proposed, and be committed later.
    pub request: RequestId,
    /// When it was decided, by the clock of the node.
    pub at: Timestamp,
    /// Who asked.
    pub by: Identity,
    /// Through which node, which is the one that decided, and from where.
    pub source: Source,
    /// The key.
    pub key_id: KeyId,
    /// Its machine, if the node knew the key.
    pub machine: Option<MachineId>,
    /// The user it was said to be for.
    pub user: Option<UserName>,
    /// The reason given.
    pub reason: String,
    /// `None` if the key was shown, otherwise why not.
    pub denied: Option<Refusal>,
    /// The approval it used, if one was needed.
    pub approval: Option<RequestId>,
    /// What the node went by.
    pub knowledge: Knowledge,
}

/// How much a node knew when it decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Knowledge {
    /// The last entry of the log it had applied.
    pub position: LogPosition,
    /// Milliseconds since it last knew a quorum to be in contact; `None` if not since it started.
    pub quorum_age_ms: Option<u64>,
    /// The version of the policy it followed; 0 for the one every cluster begins with.
    pub policy_version: u64,
}

impl JournalEntry {
    /// SHA-256 over its canonical bytes, the hash of the entry before it among them.
    pub fn hash(&self) -> [u8; 32] {
        let Self { place, previous, reveal } = self;
        let DegradedReveal { request, at, by, source, .. } = reveal;
        let canonical = Canonical::new(ENTRY_LABEL)
            .bytes(place.journal.as_bytes())
            .number(place.sequence)
            .bytes(previous)
            .bytes(request.0.as_bytes())
            .number(at.0)
            .text(&by.to_string())
            .number(source.node)
            .text(&source.address);
        reveal.hashed_into(canonical).sha256()
    }
}

impl DegradedReveal {
    /// What was asked, decided and known, as it is hashed here and in audit records.
    pub(super) fn hashed_into(&self, canonical: Canonical) -> Canonical {
        let Self { key_id, machine, user, reason, denied, approval, knowledge, .. } = self;
        let Knowledge { position, quorum_age_ms, policy_version } = knowledge;
        let canonical = canonical
            .bytes(key_id.0.as_bytes())
            .optional_text(machine.as_ref().map(|machine| machine.as_str()))
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .text(reason)
            .number(denied.as_ref().map_or(0, refusal_number))
            .optional_text(denied.as_ref().map(ToString::to_string).as_deref())
            .optional_text(approval.as_ref().map(ToString::to_string).as_deref())
            .number(position.term)
            .number(position.index)
            .number(*policy_version);
        match quorum_age_ms {
            None => canonical.number(0),
            Some(age) => canonical.number(1).number(*age),
        }
    }

    /// Whether it is what `other` asks for again: a retry.
    fn asks_the_same_as(&self, other: &Asked<'_>) -> bool {
        self.by == *other.by
            && self.key_id == other.key_id
            && self.user.as_ref() == other.user
            && self.reason == other.reason
    }

    /// Whether the key was shown.
    pub fn was_shown(&self) -> bool {
        self.denied.is_none()
    }
}

fn refusal_number(refusal: &Refusal) -> u64 {
    match refusal {
        Refusal::Conflict(_) => 1,
        Refusal::Denied(_) => 2,
        Refusal::Invalid(_) => 3,
        Refusal::NotFound(_) => 4,
    }
}

/// What a node without a quorum comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// This very request was decided before, by this entry.
    Again(Box<JournalEntry>),
    /// The policy shows nobody a key while no quorum answers.
    Closed,
    /// To be put in the journal. If it is granted, then the key may be shown.
    Decided(Box<DegradedReveal>),
    /// Not well formed, or under an id that was used for another request: it leaves nothing.
    Refused(Refusal),
}

/// Decides about a reveal without a quorum, by the same rules as apply: on this replica, its policy and limits, and the
/// entries of journals that are not on record in it yet.
///
/// # Errors
/// [`StateError`] if the storage fails.
pub fn decide<R: Rows>(
    rows: &R,
    pending: &[&JournalEntry],
    request: RequestId,
    asked: &Asked<'_>,
    source: &Source,
    quorum_age_ms: Option<u64>,
    position: LogPosition,
) -> Result<Verdict, StateError> {
    if let Some(before) = pending.iter().find(|entry| entry.reveal.request == request) {
        return Ok(if before.reveal.asks_the_same_as(asked) {
            Verdict::Again(Box::new((*before).clone()))
        } else {
            let why = format!("request id {request} was used for another request: draw a new one for each");
            Verdict::Refused(Refusal::Conflict(why))
        });
    }
    let (policy, policy_version) = match lookup::policy_record(rows)? {
        Some(record) => (Policy::stored(&record.policy)?, record.version),
        None => (Policy::default(), 0),
    };
    if policy.without_quorum == WithoutQuorum::Deny {
        return Ok(Verdict::Closed);
    }
    if let Err(invalid) = policy.reasons.admit(asked.reason) {
        return Ok(Verdict::Refused(invalid.into()));
    }
    let mut unrecorded = Vec::new();
    for entry in pending {
        if lookup::reconciled(rows, &entry.place)?.is_none() {
            unrecorded.push(&entry.reveal);
        }
    }
    // A clock that was set back shortens no limit and revives no approval. Only this node's: another's that ran ahead
    // would let limits and approvals expire here.
    let own = unrecorded.iter().filter(|reveal| reveal.source.node == source.node);
    let last = own.map(|reveal| reveal.at).max().unwrap_or_default();
    let at = asked.at.max(lookup::heads(rows)?.last_stamp).max(last);
    let asked = Asked { at, ..*asked };
    let person = asked.by.person();
    let grounds = Grounds {
        policy: &policy,
        person: tally(rows, Some(person), &unrecorded, at)?,
        cluster: tally(rows, None, &unrecorded, at)?,
        always_approve: policy.without_quorum == WithoutQuorum::Approve,
    };
    let mut decided = DegradedReveal {
        request,
        at,
        by: asked.by.clone(),
        source: source.clone(),
        key_id: asked.key_id,
        machine: None,
        user: asked.user.cloned(),
        reason: asked.reason.to_owned(),
        denied: None,
        approval: None,
        knowledge: Knowledge { position, quorum_age_ms, policy_version },
    };
    match disclosure::decide(rows, &grounds, &asked)? {
        Decision::Granted(granted) => {
            let Granted { key, approval, .. } = *granted;
            decided.machine = Some(key.machine);
            if approval.as_ref().is_some_and(|approval| is_used(approval, &unrecorded)) {
                decided.denied = Some(needs_another("the approval of this reveal was used already"));
            } else {
                decided.approval = approval.map(|approval| approval.id);
            }
        }
        Decision::NeedsApproval { key, .. } => {
            decided.machine = Some(key.machine);
            decided.denied = Some(needs_another("nobody has approved this reveal"));
        }
        Decision::Denied { refusal, machine } => {
            decided.machine = machine;
            decided.denied = Some(refusal);
        }
    }
    Ok(Verdict::Decided(Box::new(decided)))
}

/// An approval is used once, on record or not.
fn is_used(approval: &Approval, unrecorded: &[&DegradedReveal]) -> bool {
    unrecorded.iter().any(|reveal| reveal.approval == Some(approval.id))
}

fn needs_another(why: &str) -> Refusal {
    Refusal::Denied(format!(
        "{why}, and without a quorum none can be asked for: a second person can approve it once a quorum answers again"
    ))
}

/// How often keys were revealed of late, those of the journals counted as well.
fn tally<R: Rows>(
    rows: &R,
    person: Option<String>,
    unrecorded: &[&DegradedReveal],
    now: Timestamp,
) -> Result<RevealTally, StateError> {
    let row = rows.row(&RevealTally::row_key(person.as_deref()))?;
    let mut tally = row.unwrap_or_else(|| RevealTally::none(person.clone()));
    for reveal in unrecorded {
        if reveal.was_shown() && person.as_ref().is_none_or(|person| reveal.by.person() == *person) {
            tally.count_late(reveal.at, now);
        }
    }
    Ok(tally)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
