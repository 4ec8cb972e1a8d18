//! What a node without a quorum notes in its journal, and by which rules it decides ([`alone`], [`approvals`]).
//!
//! An entry holds who asked for what, when and on what knowledge it was decided: all that its audit record will need, and
//! no secret. Entries of one journal are numbered without gaps and chained by their hashes. After the heal each is put on
//! record by [`Reconcile`](super::command::Reconcile), known by its hash, so that it may be proposed by anybody who has
//! it, any number of times.

pub mod alone;
pub mod approvals;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::command::Refusal;
use super::digest::Canonical;
use super::ids::{Identity, KeyId, MachineId, RequestId, Timestamp, UserName};
use super::records::{LogPosition, Source};

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
    pub what: Noted,
}

/// What was decided without a quorum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Noted {
    /// A key was shown, or not.
    Reveal(DegradedReveal),
    /// A reveal was asked for that a second person must approve.
    ApprovalAsked(DegradedAsk),
    /// A second person decided about one, or may not.
    ApprovalDecided(DegradedDecision),
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
    /// The approval it used, if one was needed: given while there was a quorum, or in this journal.
    pub approval: Option<RequestId>,
    /// What the node went by.
    pub knowledge: Knowledge,
}

/// A reveal that was asked for without a quorum, and must be approved at the same node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradedAsk {
    /// The caller's request.
    pub request: RequestId,
    /// When it was asked for, by the clock of the node.
    pub at: Timestamp,
    /// Who asked.
    pub by: Identity,
    /// Through which node, and from where.
    pub source: Source,
    /// What the second person names. Not the caller's request: that one may be committed later, and then be a request for
    /// approval of its own.
    pub approval: RequestId,
    /// The key.
    pub key_id: KeyId,
    /// Its machine.
    pub machine: MachineId,
    /// The user it was said to be for.
    pub user: Option<UserName>,
    /// The reason given.
    pub reason: String,
    /// From then on it can neither be approved nor used.
    pub expires_at: Timestamp,
    /// What the node went by.
    pub knowledge: Knowledge,
}

/// What a second person decided without a quorum about a reveal that was asked for in the same journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DegradedDecision {
    /// The caller's request.
    pub request: RequestId,
    /// When it was decided, by the clock of the node.
    pub at: Timestamp,
    /// Who decided, or tried to.
    pub by: Identity,
    /// Through which node, and from where.
    pub source: Source,
    /// Names what it is about.
    pub approval: RequestId,
    /// The key.
    pub key_id: KeyId,
    /// Who had asked.
    pub asked_by: Identity,
    /// Whether the key may be revealed, or would have been.
    pub granted: bool,
    /// `None` if it counts, otherwise why not.
    pub denied: Option<Refusal>,
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
        let Self { place, previous, what } = self;
        let canonical = Canonical::new(ENTRY_LABEL)
            .bytes(place.journal.as_bytes())
            .number(place.sequence)
            .bytes(previous);
        let canonical = match what {
            Noted::Reveal(reveal) => reveal.hashed_into(canonical.number(1)),
            Noted::ApprovalAsked(ask) => ask.hashed_into(canonical.number(2)),
            Noted::ApprovalDecided(decision) => decision.hashed_into(canonical.number(3)),
        };
        canonical.sha256()
    }
}

/// Reads a field that everything noted has.
macro_rules! common {
    ($noted:expr, $field:ident) => {
        match $noted {
            Noted::Reveal(DegradedReveal { $field, .. })
            | Noted::ApprovalAsked(DegradedAsk { $field, .. })
            | Noted::ApprovalDecided(DegradedDecision { $field, .. }) => $field,
        }
    };
}

impl Noted {
    /// The caller's request.
    pub fn request(&self) -> RequestId {
        *common!(self, request)
    }

    /// When it was decided.
    pub fn at(&self) -> Timestamp {
        *common!(self, at)
    }

    /// Who asked.
    pub fn by(&self) -> &Identity {
        common!(self, by)
    }

    /// The key it is about.
    pub fn key_id(&self) -> KeyId {
        *common!(self, key_id)
    }

    /// Through which node, which is the one that decided, and from where.
    pub fn source(&self) -> &Source {
        common!(self, source)
    }

    /// Whether what was asked for was denied.
    pub fn is_denial(&self) -> bool {
        match self {
            Self::Reveal(reveal) => !reveal.was_shown(),
            Self::ApprovalAsked(_) => false,
            Self::ApprovalDecided(decision) => decision.denied.is_some(),
        }
    }

    /// The reveal, if it is one.
    pub fn reveal(&self) -> Option<&DegradedReveal> {
        match self {
            Self::Reveal(reveal) => Some(reveal),
            Self::ApprovalAsked(_) | Self::ApprovalDecided(_) => None,
        }
    }
}

impl DegradedReveal {
    /// As it is hashed here and in audit records.
    pub(super) fn hashed_into(&self, canonical: Canonical) -> Canonical {
        let Self { request, at, by, source, key_id, machine, user, reason, denied, approval, knowledge } =
            self;
        let canonical = came_in(canonical, *request, *at, by, source)
            .bytes(key_id.0.as_bytes())
            .optional_text(machine.as_ref().map(|machine| machine.as_str()))
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .text(reason);
        let canonical = refused(canonical, denied.as_ref())
            .optional_text(approval.as_ref().map(ToString::to_string).as_deref());
        knowledge.hashed_into(canonical)
    }

    /// Whether the key was shown.
    pub fn was_shown(&self) -> bool {
        self.denied.is_none()
    }
}

impl DegradedAsk {
    /// As it is hashed here and in audit records.
    pub(super) fn hashed_into(&self, canonical: Canonical) -> Canonical {
        let Self { request, at, by, source, approval, key_id, machine, user, reason, expires_at, knowledge } =
            self;
        let canonical = came_in(canonical, *request, *at, by, source)
            .bytes(approval.0.as_bytes())
            .bytes(key_id.0.as_bytes())
            .text(machine.as_str())
            .optional_text(user.as_ref().map(ToString::to_string).as_deref())
            .text(reason)
            .number(expires_at.0);
        knowledge.hashed_into(canonical)
    }
}

impl DegradedDecision {
    /// As it is hashed here and in audit records.
    pub(super) fn hashed_into(&self, canonical: Canonical) -> Canonical {
        let Self { request, at, by, source, approval, key_id, asked_by, granted, denied, knowledge } = self;
        let canonical = came_in(canonical, *request, *at, by, source)
            .bytes(approval.0.as_bytes())
            .bytes(key_id.0.as_bytes())
            .text(&asked_by.to_string())
            .number(u64::from(*granted));
        knowledge.hashed_into(refused(canonical, denied.as_ref()))
    }
}

impl Knowledge {
    fn hashed_into(&self, canonical: Canonical) -> Canonical {
        let Self { position, quorum_age_ms, policy_version } = self;
        let canonical = canonical.number(position.term).number(position.index).number(*policy_version);
        match quorum_age_ms {
            None => canonical.number(0),
            Some(age) => canonical.number(1).number(*age),
        }
    }
}

fn came_in(
    canonical: Canonical,
    request: RequestId,
    at: Timestamp,
    by: &Identity,
    source: &Source,
) -> Canonical {
    let canonical = canonical.bytes(request.0.as_bytes()).number(at.0).text(&by.to_string());
    canonical.number(source.node).text(&source.address)
}

fn refused(canonical: Canonical, denied: Option<&Refusal>) -> Canonical {
    let number = match denied {
        None => 0,
        Some(Refusal::Conflict(_)) => 1,
        Some(Refusal::Denied(_)) => 2,
        Some(Refusal::Invalid(_)) => 3,
        Some(Refusal::NotFound(_)) => 4,
    };
    canonical.number(number).optional_text(denied.map(ToString::to_string).as_deref())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
