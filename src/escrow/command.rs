//! What can be asked of the state, and what it answers.

use serde::{Deserialize, Serialize};

use super::compliance::{ExemptionDecision, MachineReport, Merged};
use super::features::FeatureLevel;
use super::ids::{
    ClusterId, ClusterName, Identity, KeyId, MachineId, NodeId, RequestId, Timestamp, UserName, VolumeId,
};
use super::inventory::ImportedMachine;
use super::journal::JournalEntry;
use super::records::{
    Fingerprint, KeyState, KeyringRecord, LogPosition, NodeRecord, ResealRecord, Sealed, Source,
};
use super::secrets::SecretKind;

/// One replicated command. Everything that varies (time, ids, nonces) was drawn before it was proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The same for every retry of one attempt.
    pub request: RequestId,
    /// The proposer's clock. Apply never goes back: an earlier stamp counts as the last one applied.
    pub at: Timestamp,
    /// Who asks: the caller whom the receiving node authenticated, not the node that proposes for them.
    pub by: Identity,
    /// Through which node.
    pub source: Source,
    /// What is asked.
    pub action: Action,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// The first entry of a new cluster.
    Initialize(Initialize),
    /// Keep a recovery key.
    Escrow(Escrow),
    /// Show a recovery key: authorisation, disclosure, audit and rotation debt together.
    Reveal(Reveal),
    /// Register a node and hand it the keyring.
    AdmitNode(AdmitNode),
    /// Allow the commands of a newer release.
    RaiseFeatureLevel(RaiseFeatureLevel),
    /// Begin a new history on what one node has.
    RecoverCluster(RecoverCluster),
    /// Note that a node left, and replace the keyring by one with a new data key that is not sealed to it.
    RemoveNode(RemoveNode),
    /// Replace the policy of reveals.
    SetPolicy(SetPolicy),
    /// Grant or reject a reveal that another person asked for.
    DecideApproval(DecideApproval),
    /// Put on record what a node decided without a quorum.
    Reconcile(Reconcile),
    /// Replace the keyring by one with a new data key, sealed to the same members.
    RotateKeyring(RotateKeyring),
    /// Seal some of the kept keys under the current data key.
    Reseal(Reseal),
    /// Replace the keyring by one without the data keys that no kept key needs any more.
    DropDataKeys(DropDataKeys),
    /// Keep a recovery key that its device is about to use, beside the one in use.
    EscrowPending(Escrow),
    /// Note that a volume is opened by this key now, and by no older one of its kind.
    ConfirmKey(ConfirmKey),
    /// Keep what devices say of themselves.
    ReportCompliance(ReportCompliance),
    /// Note that devices say what they said before.
    NoteContact(NoteContact),
    /// Ask that a machine need not be as the policy of compliance wants it.
    RequestExemption(RequestExemption),
    /// Grant, reject or end an exemption.
    DecideExemption(DecideExemption),
    /// Replace the policy of compliance.
    SetCompliancePolicy(SetCompliancePolicy),
    /// Keep many recovery keys, each judged as [`Action::Escrow`] is. At most
    /// [`ESCROWS_PER_ENTRY_MAX`](super::apply::ESCROWS_PER_ENTRY_MAX) of them.
    EscrowMany(Vec<BatchedEscrow>),
    /// Note what an importer knows of machines. At most
    /// [`MACHINES_PER_ENTRY_MAX`](super::apply::MACHINES_PER_ENTRY_MAX) of them.
    ImportMachines(Vec<ImportedMachine>),
}

impl Action {
    /// Whether machines and imports do it, all day, and again if need be. All else people do, and nodes about themselves.
    pub fn is_routine(&self) -> bool {
        matches!(
            self,
            Self::Escrow(_)
                | Self::EscrowMany(_)
                | Self::EscrowPending(_)
                | Self::ImportMachines(_)
                | Self::NoteContact(_)
                | Self::ReportCompliance(_)
        )
    }

    /// Its name, for logs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Initialize(_) => "initialize",
            Self::Escrow(_) => "escrow",
            Self::Reveal(_) => "reveal",
            Self::AdmitNode(_) => "admit-node",
            Self::RaiseFeatureLevel(_) => "raise-feature-level",
            Self::RecoverCluster(_) => "recover-cluster",
            Self::RemoveNode(_) => "remove-node",
            Self::SetPolicy(_) => "set-policy",
            Self::DecideApproval(_) => "decide-approval",
            Self::Reconcile(_) => "reconcile",
            Self::RotateKeyring(_) => "rotate-keyring",
            Self::Reseal(_) => "reseal",
            Self::DropDataKeys(_) => "drop-data-keys",
            Self::EscrowPending(_) => "escrow-pending",
            Self::ConfirmKey(_) => "confirm-key",
            Self::ReportCompliance(_) => "report-compliance",
            Self::NoteContact(_) => "note-contact",
            Self::RequestExemption(_) => "request-exemption",
            Self::DecideExemption(_) => "decide-exemption",
            Self::SetCompliancePolicy(_) => "set-compliance-policy",
            Self::EscrowMany(_) => "escrow-many",
            Self::ImportMachines(_) => "import-machines",
        }
    }
}

/// The first entry of a new cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Initialize {
    /// The identity of the new history.
    pub cluster: ClusterId,
    /// The trust domain.
    pub name: ClusterName,
    /// The organisation's offline recovery recipient.
    pub offline_recipient: String,
    /// The first node; its `admitted_at` is set by apply.
    pub node: NodeRecord,
    /// The first keyring.
    pub keyring: KeyringRecord,
}

/// A recovery key to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escrow {
    /// The id under which it is kept if it is new.
    pub key_id: KeyId,
    /// Whether the caller named the id. If not, a key of the same machine, volume, kind and fingerprint counts
    /// as the same key, so that repeating a command line does not make a second record.
    pub key_id_given: bool,
    /// The machine it belongs to.
    pub machine: MachineId,
    /// The volume it unlocks.
    pub volume: VolumeId,
    /// What kind of secret it is.
    pub kind: SecretKind,
    /// The secret.
    pub sealed: Sealed,
    /// A BitLocker key package, if any.
    pub sealed_package: Option<Sealed>,
    /// Keyed hash of the secret.
    pub fingerprint: Fingerprint,
    /// A user of the machine, if known.
    pub user: Option<UserName>,
}

/// One of many recovery keys to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchedEscrow {
    /// The same for every retry of this one, whatever batch it comes in: a contradiction leaves one audit record.
    pub request: RequestId,
    /// The key.
    pub escrow: Escrow,
}

/// A recovery key to show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reveal {
    /// Which.
    pub key_id: KeyId,
    /// The user it is for; required of [`Role::Helpdesk`](super::ids::Role::Helpdesk).
    pub user: Option<UserName>,
    /// Why; not blank.
    pub reason: String,
}

/// A node to register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmitNode {
    /// The node; its `admitted_at` is set by apply.
    pub node: NodeRecord,
    /// The keyring sealed to it as well; replaces exactly the generation before it.
    pub keyring: KeyringRecord,
}

/// A feature level to allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaiseFeatureLevel {
    /// Every member can apply the commands of it.
    pub level: FeatureLevel,
}

/// A new history on what one node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverCluster {
    /// The identity of the new history.
    pub cluster: ClusterId,
    /// The node that goes on; every other registered node has departed.
    pub survivor: NodeId,
    /// The keyring with a new data key, sealed to the survivor and the offline recipient alone; replaces exactly the
    /// generation before it.
    pub keyring: KeyringRecord,
}

/// A node that leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveNode {
    /// Which.
    pub node: NodeId,
    /// The keyring with a new data key, not sealed to it any more; replaces exactly the generation before it.
    pub keyring: KeyringRecord,
}

/// A policy of reveals to follow from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetPolicy {
    /// The whole of it, as JSON.
    pub policy: String,
    /// The version it replaces, so that two officers do not overwrite each other; 0 for the one that every cluster
    /// begins with.
    pub replaces: u64,
}

/// What a second person decides about a reveal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecideApproval {
    /// The request for approval that was looked at: another one by the same person is not decided by this.
    pub approval: RequestId,
    /// Whether the key may be revealed.
    pub granted: bool,
}

/// What a node decided without a quorum, to be put on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reconcile {
    /// The entry of its journal.
    pub entry: JournalEntry,
}

/// A new data key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotateKeyring {
    /// The keyring with it; replaces exactly the generation before it.
    pub keyring: KeyringRecord,
}

/// Some of the kept keys, sealed under the current data key: a step of a pass over all of them, in the order of ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reseal {
    /// The data key they are sealed under, which must be the current one.
    pub key_version: u32,
    /// Where the pass stands; `None` begins a new one.
    pub after: Option<KeyId>,
    /// Of a pass that begins: how many keys were found under older data keys.
    pub to_do: u64,
    /// How many keys behind `after` this step looks at, whether they need it or not; at most
    /// [`RESEAL_ROWS_MAX`](super::apply::RESEAL_ROWS_MAX).
    pub rows: u32,
    /// Those of them that are sealed anew.
    pub keys: Vec<ResealedKey>,
}

/// One kept key, sealed anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResealedKey {
    /// Which.
    pub key_id: KeyId,
    /// [`sealed_digest`](super::apply::sealed_digest) of what it was opened from: nothing else is replaced.
    pub was: [u8; 32],
    /// The same secret.
    pub sealed: Sealed,
    /// The same package, if there is one.
    pub sealed_package: Option<Sealed>,
}

/// The end of a pass after which no key is sealed under an older data key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropDataKeys {
    /// The keyring with the current data key alone; replaces exactly the generation before it.
    pub keyring: KeyringRecord,
}

/// A key that a device uses now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfirmKey {
    /// Whose it is.
    pub machine: MachineId,
    /// Which.
    pub key_id: KeyId,
}

/// What one or several devices say of themselves. Each is answered by itself: one that is wrong does not hold up others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportCompliance {
    /// At most [`COMPLIANCE_BATCH_MAX`](super::apply::COMPLIANCE_BATCH_MAX) of them.
    pub reports: Vec<MachineReport>,
}

/// Devices that say what they said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteContact {
    /// At most [`COMPLIANCE_BATCH_MAX`](super::apply::COMPLIANCE_BATCH_MAX) of them.
    pub contacts: Vec<Contact>,
}

/// One device that says what it said before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contact {
    /// The machine.
    pub machine: MachineId,
    /// When, by the device's clock.
    pub at: Timestamp,
    /// [`MachineReport::digest`] of what it says.
    pub digest: [u8; 32],
}

/// An exemption to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestExemption {
    /// Of which machine.
    pub machine: MachineId,
    /// Why; not blank.
    pub reason: String,
    /// Until when; absent for good.
    pub until: Option<Timestamp>,
}

/// What an officer decides about an exemption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecideExemption {
    /// Of which machine.
    pub machine: MachineId,
    /// The request that was looked at, or for a grant that is to end the one it was granted to: another one is not
    /// decided by this.
    pub exemption: RequestId,
    /// What.
    pub decision: ExemptionDecision,
}

/// A policy of compliance to follow from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetCompliancePolicy {
    /// The whole of it, as JSON.
    pub policy: String,
    /// The version it replaces, so that two officers do not overwrite each other; 0 for the one that every cluster
    /// begins with.
    pub replaces: u64,
}

/// What apply answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The key is kept, now or since an earlier entry.
    Escrowed(Escrowed),
    /// The node is registered and the keyring replaced.
    NodeAdmitted,
    /// The cluster is initialised.
    Initialized,
    /// The command changed nothing (a refused reveal or conflict still left its audit record).
    Refused(Refusal),
    /// The key may be shown: its reveal is on record.
    Revealed(Revealed),
    /// The new history has begun.
    ClusterRecovered,
    /// Commands of this level, at least, are allowed.
    FeatureLevel(FeatureLevel),
    /// The node has departed and the keyring is replaced.
    NodeRemoved,
    /// The policy is followed from now on, as this version.
    PolicySet {
        /// Counts every change, from 1.
        version: u64,
    },
    /// A second person must approve this reveal. Nothing is shown.
    ApprovalAsked(ApprovalAsked),
    /// The decision is on record.
    ApprovalDecided,
    /// The entry of the journal is on record, now or since an earlier entry.
    Reconciled {
        /// The audit record of it; `None` if that was the denial of the same request, which had been committed.
        audit_sequence: Option<u64>,
    },
    /// Nothing was kept: the secret is sealed with an older data key than the current one, which a node that was
    /// removed has. Seal it again with the keyring as this entry found it.
    OldDataKey {
        /// The version that was current.
        current: u32,
    },
    /// The keyring has a new data key, of this version.
    KeyringRotated {
        /// Of the new data key.
        key_version: u32,
    },
    /// A step is done: so far has the pass come.
    Resealed(ResealRecord),
    /// The keyring holds no older data keys any more.
    DataKeysDropped,
    /// The key is the one in use, now or since an earlier entry.
    KeyConfirmed(KeyConfirmed),
    /// What became of each upload, in the order they were given.
    ComplianceNoted(Vec<UploadOutcome>),
    /// The exemption waits for an officer.
    ExemptionRequested {
        /// What the officer names.
        exemption: RequestId,
    },
    /// The decision is on record.
    ExemptionDecided,
    /// The policy of compliance is followed from now on, as this version.
    CompliancePolicySet {
        /// Counts every change, from 1.
        version: u64,
    },
    /// What became of each of many, in their order.
    EscrowedMany(Vec<EscrowAnswer>),
    /// What became of each machine that was imported, in the order they were given.
    MachinesImported(Vec<ImportOutcome>),
}

/// What became of a machine that was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportOutcome {
    /// Something of it was not known before.
    Noted,
    /// All of it was known.
    KnownBefore,
    /// It was refused, and changed nothing.
    Refused(Refusal),
}

/// What became of the upload of one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UploadOutcome {
    /// It was taken.
    Taken {
        /// As what.
        merged: Merged,
        /// Since when its machine owes a rotation: the device is told so with the answer.
        rotation_owed_since: Option<Timestamp>,
    },
    /// It was refused, and changed nothing.
    Refused(Refusal),
}

/// What became of one of many escrows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EscrowAnswer {
    /// As [`Reply::Escrowed`].
    Escrowed(Escrowed),
    /// As [`Reply::OldDataKey`]: this one is to be sealed again.
    OldDataKey {
        /// The version that was current.
        current: u32,
    },
    /// As [`Reply::Refused`]: the others are not touched by it.
    Refused(Refusal),
}

/// A reveal that waits for a second person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalAsked {
    /// What the second person names.
    pub approval: RequestId,
    /// From then on it can neither be approved nor used.
    pub expires_at: Timestamp,
}

/// A key that is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyConfirmed {
    /// Which.
    pub key_id: KeyId,
    /// Active, or disclosed if somebody saw it before it was confirmed: then it owes a rotation itself.
    pub state: KeyState,
    /// The keys that this command retired, in the order of their ids.
    pub replaced: Vec<KeyId>,
    /// Since when its machine still owes a rotation, for this volume or another one.
    pub rotation_owed_since: Option<Timestamp>,
}

/// A key that is kept: what a receipt certifies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Escrowed {
    /// Its id; of an already escrowed key, the one it was first kept under.
    pub key_id: KeyId,
    /// Its machine.
    pub machine: MachineId,
    /// Its volume.
    pub volume: VolumeId,
    /// Keyed hash of the secret.
    pub fingerprint: Fingerprint,
    /// When it was first kept.
    pub at: Timestamp,
    /// The entry that first kept it.
    pub position: LogPosition,
    /// It had been kept before this command.
    pub already_escrowed: bool,
    /// How many more keys of its machine can be kept, if this command kept it.
    pub keys_left: Option<usize>,
}

/// A reveal that is on record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revealed {
    /// The key to show.
    pub key_id: KeyId,
    /// The audit record of it.
    pub audit_sequence: u64,
    /// When.
    pub at: Timestamp,
    /// The entry that decided it: a replica opens the key only after it applied this entry.
    pub position: LogPosition,
}

/// Why a command changed nothing. The same on every replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// It contradicts what is stored.
    #[error("{0}")]
    Conflict(String),
    /// The caller may not.
    #[error("{0}")]
    Denied(String),
    /// A field is not well formed.
    #[error(transparent)]
    Invalid(#[from] super::ids::Invalid),
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
}
