//! What the cluster stores: the rows of the replicated state.
//!
//! A secret appears here only as [`Sealed`]: this room never sees plaintext after validation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::compliance::ExemptionDecision;
use super::features::FeatureLevel;
use super::ids::{
    ClusterId, ClusterName, Identity, Invalid, KeyId, MachineId, NodeId, RequestId, Timestamp, UserName,
    VolumeId,
};
use super::journal::{DegradedAsk, DegradedDecision, DegradedReveal, JournalPlace};
use super::secrets::SecretKind;
use super::tally::Slots;

/// Where in the Raft log an entry stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// The term of the leader that proposed it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// A secret sealed by the keyring (AES-256-GCM; see the `seal` room). Opaque here.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The version of the data key that sealed it.
    pub key_version: u32,
    /// The nonce, drawn at random for this record.
    pub nonce: [u8; 12],
    /// Ciphertext and tag.
    pub ciphertext: Vec<u8>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed(key version {}, {} bytes)", self.key_version, self.ciphertext.len())
    }
}

/// A keyed hash of a secret: equal secrets of one cluster have equal fingerprints, and only who holds the
/// keyring can compute one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// The cluster itself: one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// The identity of this history.
    pub id: ClusterId,
    /// The trust domain.
    pub name: ClusterName,
    /// When it was initialised.
    pub created_at: Timestamp,
    /// The organisation's offline recovery recipient (an age X25519 public key).
    pub offline_recipient: String,
}

/// A member of the cluster, as registered when it was admitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its id.
    pub id: NodeId,
    /// Host and port other nodes reach it at.
    pub peer_address: String,
    /// Host and port clients reach it at.
    pub api_address: String,
    /// Where it stands: a site or availability zone; clients prefer their own. May be empty.
    pub zone: String,
    /// Identity of its data directory, drawn when the directory was made. A wiped disk has another one.
    pub storage: Uuid,
    /// The age X25519 public key the keyring is sealed to for it.
    pub recipient: String,
    /// When it was admitted.
    pub admitted_at: Timestamp,
}

/// A node that left the cluster. Its [`NodeRecord`] stays: an id is never used twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepartedNode {
    /// Its id.
    pub id: NodeId,
    /// When it left.
    pub at: Timestamp,
}

/// Up to which feature level commands are allowed: one row, absent at level 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureLevelRecord {
    /// The level.
    pub level: FeatureLevel,
    /// When it was raised to that.
    pub raised_at: Timestamp,
}

/// The keyring, sealed to every member's recipient and the offline one: one row.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyringRecord {
    /// Counts every replacement; a change names the generation it replaces.
    pub generation: u64,
    /// The data key version new secrets are sealed with.
    pub current_key_version: u32,
    /// An age file.
    pub age_file: Vec<u8>,
}

impl fmt::Debug for KeyringRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { generation, current_key_version, age_file } = self;
        write!(
            f,
            "KeyringRecord(generation {generation}, key version {current_key_version}, {} bytes)",
            age_file.len()
        )
    }
}

/// How far sealing every kept key under one data key has come: one row, absent before the first time.
///
/// A pass goes over all keys in the order of their ids. No key is newly kept under an older data key, so what lies
/// behind `after` needs no second look.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResealRecord {
    /// The data key.
    pub key_version: u32,
    /// The last key that was looked at; `None` if there was none.
    pub after: Option<KeyId>,
    /// How many keys were under older data keys when the pass began.
    pub to_do: u64,
    /// How many of them have been sealed anew.
    pub resealed: u64,
    /// How many were looked at and could not be.
    pub left: u64,
    /// All keys have been looked at.
    pub done: bool,
    /// The older data keys have been dropped.
    pub dropped: bool,
}

impl ResealRecord {
    /// How many keys are still under older data keys.
    pub fn remaining(&self) -> u64 {
        if self.done { self.left } else { self.to_do.saturating_sub(self.resealed) }
    }
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Its stable id.
    pub id: MachineId,
    /// Users seen on it, the one seen last at the end, each once; bounded by [`USERS_PER_MACHINE_MAX`].
    pub users: Vec<UserName>,
    /// When each of them was seen, in the same order.
    pub users_seen_at: Vec<Timestamp>,
    /// When it was first heard of, or told of by an import. When it was heard of last is in
    /// [`LastContact`](super::compliance::LastContact), which moves more often.
    pub first_seen: Timestamp,
    /// A key of it was revealed and its device has not rotated since.
    pub rotation_owed_since: Option<Timestamp>,
}

impl MachineRecord {
    /// A machine that is heard of for the first time at `at`.
    pub fn first_heard_of(id: MachineId, at: Timestamp) -> Self {
        let (users, users_seen_at) = (Vec::new(), Vec::new());
        Self { id, users, users_seen_at, first_seen: at, rotation_owed_since: None }
    }

    /// Notes that `user` was seen on it at `at`. Answers who is forgotten for that: nobody, somebody seen earlier, or
    /// `user`, if that was long ago. Who was seen later stays, in whatever order one hears of it.
    pub fn saw(&mut self, user: &UserName, at: Timestamp) -> Option<UserName> {
        let mut at = at;
        if let Some(place) = self.users.iter().position(|known| known == user) {
            self.users.remove(place);
            at = at.max(self.users_seen_at.remove(place));
        }
        let seen = self.users_seen_at.iter().zip(&self.users);
        let place = seen.take_while(|(then, known)| (**then, known.folded()) < (at, user.folded())).count();
        self.users.insert(place, user.clone());
        self.users_seen_at.insert(place, at);
        (self.users.len() > USERS_PER_MACHINE_MAX).then(|| {
            self.users_seen_at.remove(0);
            self.users.remove(0)
        })
    }
}

/// Most users kept for a machine; past it the one seen longest ago is forgotten.
pub const USERS_PER_MACHINE_MAX: usize = 64;
/// Most keys kept for one machine; past it an escrow is refused as a conflict to be looked into.
pub const KEYS_PER_MACHINE_MAX: usize = 1_024;
/// With room for no more than this many keys of a machine left, it is time to look into why it has so many.
pub const KEYS_LEFT_WARNING: usize = 128;

/// Where a key is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// Protects its volume.
    Active,
    /// Was revealed to a person; owes a rotation.
    Disclosed,
    /// Escrowed ahead of its use by the device. It may be in use already: the device confirms it only afterwards.
    Pending,
    /// Replaced by a newer key, kept for old disks and images; or never confirmed and displaced by later ones.
    Retired,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Disclosed => "disclosed",
            Self::Pending => "pending",
            Self::Retired => "retired",
        })
    }
}

impl FromStr for KeyState {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let all = [Self::Active, Self::Disclosed, Self::Pending, Self::Retired];
        let found = all.into_iter().find(|state| state.to_string() == text);
        found.ok_or_else(|| Invalid::new("state", "active, disclosed, pending or retired"))
    }
}

/// An escrowed recovery key. Its secret never changes; its state does, and the data key it is sealed under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// Its id.
    pub id: KeyId,
    /// The machine it belongs to.
    pub machine: MachineId,
    /// The volume it unlocks.
    pub volume: VolumeId,
    /// What kind of secret it is.
    pub kind: SecretKind,
    /// The secret.
    pub sealed: Sealed,
    /// A BitLocker key package, if one was given.
    pub sealed_package: Option<Sealed>,
    /// Keyed hash of the secret.
    pub fingerprint: Fingerprint,
    /// Where it is in its life.
    pub state: KeyState,
    /// When it was escrowed.
    pub escrowed_at: Timestamp,
    /// By whom.
    pub escrowed_by: Identity,
    /// Which log entry holds it.
    pub position: LogPosition,
}

/// What became of a key since it was escrowed, beside its state. Absent while there is nothing to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHistory {
    /// The key.
    pub key_id: KeyId,
    /// When it was first revealed; absent as well if that was before the cluster kept this.
    pub disclosed_at: Option<Timestamp>,
    /// Since when it is retired.
    pub retired_at: Option<Timestamp>,
    /// The key that its device confirmed to use instead. A retired key without one was never confirmed itself and was
    /// displaced: for all that is known its device may use it.
    pub replaced_by: Option<KeyId>,
}

/// The policy of reveals: one row, absent until an officer sets one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Counts every change, from 1.
    pub version: u64,
    /// The whole of it, as JSON.
    pub policy: String,
    /// When it was set.
    pub set_at: Timestamp,
    /// By whom.
    pub set_by: Identity,
}

/// How often keys were revealed of late, to one person or to all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevealTally {
    /// The person; `None` for all.
    pub person: Option<String>,
    /// When, and how often.
    pub slots: Slots,
}

/// How often a person was denied of late: see [`DENIALS_PER_HOUR_MAX`](super::disclosure::DENIALS_PER_HOUR_MAX).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenialTally {
    /// The person.
    pub person: String,
    /// When, and how often. Only what is on record.
    pub slots: Slots,
    /// How many came behind them that are not.
    pub unrecorded: u64,
}

/// How often a person asked for an exemption of late: see
/// [`EXEMPTION_REQUESTS_PER_HOUR_MAX`](super::apply::EXEMPTION_REQUESTS_PER_HOUR_MAX).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExemptionTally {
    /// The person.
    pub person: String,
    /// When, and how often.
    pub slots: Slots,
}

/// A reveal that a person asked for and a second one must approve. Gone once it is used, rejected or expired: the audit
/// trail has what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// The request that asked for it.
    pub id: RequestId,
    /// The key.
    pub key_id: KeyId,
    /// Its machine.
    pub machine: MachineId,
    /// Who asked.
    pub asked_by: Identity,
    /// For which user, if one was named.
    pub user: Option<UserName>,
    /// The reason given.
    pub reason: String,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// From then on it can neither be approved nor used.
    pub expires_at: Timestamp,
    /// Who approved it, once somebody has.
    pub granted_by: Option<Identity>,
    /// How often it was asked for again while it waited.
    pub asked_again: u64,
}

/// An approval that was used. One for each, for ever, as the audit records are: a node that was cut off may have used it as
/// well, and be heard of at any time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedApproval {
    /// The approval.
    pub approval: RequestId,
    /// The audit record of its first use.
    pub audit_sequence: u64,
}

/// An entry of a node's journal that is on record. One for each reveal without a quorum, for ever, as the audit records
/// are: without it an entry that comes late would be recorded a second time.
///
/// An entry is known by its hash, not by its place alone. A node whose disk was put back to an older copy numbers what it
/// decides then as it numbered what it has forgotten: both were decided, and both come on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReconciledEntry {
    /// Where it stands.
    pub place: JournalPlace,
    /// Its hash.
    pub hash: [u8; 32],
    /// The audit record that names it; `None` of a denial, if that of the same request had been committed.
    pub audit_sequence: Option<u64>,
}

impl KeyRecord {
    /// Whether every part of it is sealed under this data key.
    pub fn is_sealed_under(&self, key_version: u32) -> bool {
        let package = self.sealed_package.as_ref();
        self.sealed.key_version == key_version
            && package.is_none_or(|package| package.key_version == key_version)
    }
}

/// What an audit record is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AuditEvent {
    /// The cluster was initialised.
    ClusterInitialized,
    /// An escrow was refused because it would have overwritten a stored key.
    EscrowConflict {
        /// The key that stays as it is.
        key_id: KeyId,
        /// The machine the refused escrow named.
        machine: MachineId,
    },
    /// A node was admitted.
    NodeAdmitted {
        /// Which.
        node: NodeId,
    },
    /// A key was asked for.
    Reveal {
        /// The key.
        key_id: KeyId,
        /// Its machine, if the key exists.
        machine: Option<MachineId>,
        /// The user it was said to be for.
        user: Option<UserName>,
        /// The reason given.
        reason: String,
        /// `None` if the key was shown, otherwise why not.
        denied: Option<String>,
    },
    /// A new history was begun on what one node had, because a quorum was lost for ever.
    ClusterRecovered {
        /// The node that went on.
        survivor: NodeId,
        /// The members that were left behind.
        lost: Vec<NodeId>,
        /// The identity of the history that ended.
        previous: ClusterId,
    },
    /// Commands of a newer release were allowed.
    FeatureLevelRaised {
        /// Up to which level.
        level: FeatureLevel,
    },
    /// A node was removed.
    NodeRemoved {
        /// Which.
        node: NodeId,
    },
    /// The policy of reveals was replaced.
    PolicySet {
        /// Its version from now on.
        version: u64,
        /// The whole of it, as JSON.
        policy: String,
    },
    /// A reveal was asked for that a second person must approve.
    ApprovalAsked {
        /// Names it.
        approval: RequestId,
        /// The key.
        key_id: KeyId,
        /// Its machine.
        machine: MachineId,
        /// The user it was said to be for.
        user: Option<UserName>,
        /// The reason given.
        reason: String,
        /// From then on it can neither be approved nor used.
        expires_at: Timestamp,
    },
    /// A second person decided.
    ApprovalDecided {
        /// Names it.
        approval: RequestId,
        /// The key.
        key_id: KeyId,
        /// Its machine.
        machine: MachineId,
        /// The user it was said to be for.
        user: Option<UserName>,
        /// Who had asked.
        asked_by: Identity,
        /// Whether the key may be revealed.
        granted: bool,
    },
    /// An approval was used for the reveal whose record follows.
    ApprovalUsed {
        /// Names it.
        approval: RequestId,
        /// The key.
        key_id: KeyId,
        /// Its machine.
        machine: MachineId,
        /// The user it was said to be for.
        user: Option<UserName>,
        /// Who had asked, and used it.
        asked_by: Identity,
        /// Who had approved it.
        granted_by: Identity,
    },
    /// A key was asked for where there was no quorum, earlier than this was put on record. Who did that is the node
    /// that proposed it; who asked, and when, the reveal says.
    RevealReconciled {
        /// The entry of the journal.
        place: JournalPlace,
        /// What it says.
        reveal: Box<DegradedReveal>,
    },
    /// The data key was rotated by itself. A removal rotates it too, under its own record.
    KeyringRotated {
        /// The version of the new one.
        key_version: u32,
    },
    /// The data keys older than this one were dropped, no key being sealed under them any more.
    DataKeysDropped {
        /// The one that is kept.
        key_version: u32,
    },
    /// A device confirmed that it uses a key, and older ones were retired.
    KeyConfirmed {
        /// The key.
        key_id: KeyId,
        /// Its machine.
        machine: MachineId,
        /// The keys that were retired.
        replaced: Vec<KeyId>,
        /// Since when the machine still owes a rotation.
        rotation_owed_since: Option<Timestamp>,
    },
    /// Somebody may not decide about a reveal, or not about this one, and tried to.
    ApprovalRefused {
        /// What they named.
        approval: RequestId,
        /// The key, if it is still known what that was about.
        key_id: Option<KeyId>,
        /// Its machine, if that is.
        machine: Option<MachineId>,
        /// The user it was said to be for, if that is.
        user: Option<UserName>,
        /// Who had asked, if that is still known.
        asked_by: Option<Identity>,
        /// Whether they would have granted it.
        granted: bool,
        /// Why not.
        denied: String,
    },
    /// As [`AuditEvent::RevealReconciled`], of a reveal that was asked for and must be approved.
    ApprovalAskReconciled {
        /// The entry of the journal.
        place: JournalPlace,
        /// What it says.
        ask: Box<DegradedAsk>,
    },
    /// As [`AuditEvent::RevealReconciled`], of what a second person decided, or may not decide.
    ApprovalDecisionReconciled {
        /// The entry of the journal.
        place: JournalPlace,
        /// What it says.
        decision: Box<DegradedDecision>,
    },
    /// An exemption from the policy of compliance was asked for.
    ExemptionRequested {
        /// Names it.
        exemption: RequestId,
        /// The machine.
        machine: MachineId,
        /// The reason given.
        reason: String,
        /// Until when it is wanted; absent for good.
        until: Option<Timestamp>,
    },
    /// An officer decided about an exemption.
    ExemptionDecided {
        /// Names it.
        exemption: RequestId,
        /// The machine.
        machine: MachineId,
        /// Who had asked.
        asked_by: Identity,
        /// What was decided.
        decision: ExemptionDecision,
    },
    /// The policy of compliance was replaced.
    CompliancePolicySet {
        /// Its version from now on.
        version: u64,
        /// The whole of it, as JSON.
        policy: String,
    },
    /// Somebody was denied so often that more of it is not on record, but for its number: at the first such request, the
    /// tenth, the hundredth and so on.
    DenialsUnrecorded {
        /// How many, since the last that is on record.
        count: u64,
        /// Until when none is looked at.
        until: Timestamp,
    },
    /// A reveal was asked for again, in the same words, while it waits for a second person: for the first time, the tenth,
    /// the hundredth and so on.
    ApprovalAskedAgain {
        /// Names it.
        approval: RequestId,
        /// The key.
        key_id: KeyId,
        /// Its machine.
        machine: MachineId,
        /// The user it was said to be for.
        user: Option<UserName>,
        /// How often so far.
        times: u64,
    },
    /// An approval was used for the reveal whose record comes before, and it had been used: nodes that were cut off from each
    /// other had it both. A key was shown once more than a second person agreed to.
    ApprovalUsedAgain {
        /// Names it.
        approval: RequestId,
        /// The key.
        key_id: KeyId,
        /// Its machine, if the node that showed it knew the key.
        machine: Option<MachineId>,
        /// The user it was said to be for.
        user: Option<UserName>,
        /// Who used it again.
        used_by: Identity,
        /// The audit record of its first use.
        first_use: u64,
    },
    /// A key was shown where there was no quorum, for a request whose reveal is on record: it was committed as well, or
    /// another node had shown the key for it. Both are one reveal, which counts once; this says that the entry was there,
    /// so that each one that showed a key is named by a record.
    RevealRepeated {
        /// The entry of the journal.
        place: JournalPlace,
        /// The key.
        key_id: KeyId,
        /// The node that showed it.
        node: NodeId,
        /// When, by the clock of that node.
        at: Timestamp,
        /// The record of the reveal.
        audit_sequence: u64,
    },
}

/// One link of the audit chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Counts from 1 without gaps.
    pub sequence: u64,
    /// Hash of the record before (zeros for the first).
    pub previous: [u8; 32],
    /// When, by the stamp of the command.
    pub at: Timestamp,
    /// Who did it.
    pub by: Identity,
    /// Through which node, and from which network address where known.
    pub source: Source,
    /// Which log entry holds it.
    pub position: LogPosition,
    /// What was done.
    pub event: AuditEvent,
}

/// Where a request came in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The node that received it from the caller.
    pub node: NodeId,
    /// The caller's network address as that node saw it; empty where there is none.
    pub address: String,
}
