//! Protobuf to domain and back. Everything a caller sends is checked here, before anything else sees it.

use std::time::Duration;

use uuid::Uuid;

use crate::escrow::apply::{NODE_ADDRESS_MAX_BYTES, check_reason};
use crate::escrow::ids::{Invalid, KeyId, MachineId, RequestId, UserName, VolumeId};
use crate::escrow::lookup::{self, FoundKey, Query};
use crate::escrow::records::{KeyringRecord, ResealRecord};
use crate::escrow::secrets::{self, SecretKind};
use crate::escrow::state::{Rows, StateError};
use crate::proto;
use crate::raft;
use crate::raft::membership::{Change, ChangeKind, Replacement};
use crate::seal::receipt::Receipt;
use crate::secret::Secret;

/// A well-formed escrow request.
pub struct EscrowRequest {
    /// The same for every retry.
    pub request: RequestId,
    /// The machine.
    pub machine: MachineId,
    /// The volume.
    pub volume: VolumeId,
    /// What kind of secret.
    pub kind: SecretKind,
    /// The id, if the caller named one.
    pub key_id: Option<KeyId>,
    /// The secret, in its canonical form.
    pub secret: Secret,
    /// A key package, if any.
    pub package: Option<Secret>,
    /// A user of the machine, if named.
    pub user: Option<UserName>,
    /// The device is about to use it.
    pub pending: bool,
}

impl TryFrom<proto::EscrowRequest> for EscrowRequest {
    type Error = Invalid;

    fn try_from(message: proto::EscrowRequest) -> Result<Self, Invalid> {
        // First into wiped memory, so that a refusal below leaves no copy.
        let secret = Secret::new(message.secret);
        let package = (!message.package.is_empty()).then(|| Secret::new(message.package));
        let kind: SecretKind = message.kind.parse()?;
        if let Some(package) = &package {
            secrets::package(package.expose())?;
        }
        Ok(Self {
            request: request_id(&message.request_id)?,
            machine: message.machine.parse()?,
            volume: message.volume.parse()?,
            kind,
            key_id: optional(&message.key_id, str::parse)?,
            secret: secrets::canonical(kind, &secret)?,
            package,
            user: optional(&message.user, str::parse)?,
            pending: message.pending,
        })
    }
}

/// A well-formed recover request.
pub struct RecoverRequest {
    /// The same for every retry.
    pub request: RequestId,
    /// The key.
    pub key_id: KeyId,
    /// Why.
    pub reason: String,
    /// For whom, if named.
    pub user: Option<UserName>,
    /// Whether the key package is wanted as well.
    pub package: bool,
}

impl TryFrom<proto::RecoverRequest> for RecoverRequest {
    type Error = Invalid;

    fn try_from(message: proto::RecoverRequest) -> Result<Self, Invalid> {
        Ok(Self {
            request: request_id(&message.request_id)?,
            key_id: message.key_id.parse()?,
            reason: check_reason(&message.reason)?.to_owned(),
            user: optional(&message.user, str::parse)?,
            package: message.package,
        })
    }
}

/// The query of a find request.
///
/// # Errors
/// [`Invalid`] naming the field.
pub fn query(message: &proto::FindRequest) -> Result<Query, Invalid> {
    Ok(Query {
        key_id_prefix: optional(&message.key_id_prefix, str::parse)?,
        machine: optional(&message.machine, str::parse)?,
        user: optional(&message.user, str::parse)?,
        limit: message.limit as usize,
        names_asked_only: false,
        seen_by: None,
    })
}

/// Whether a read asks for a quorum.
///
/// # Errors
/// [`Invalid`] for a number that is no consistency level.
pub fn wants_quorum(consistency: i32) -> Result<bool, Invalid> {
    match proto::Consistency::try_from(consistency) {
        Ok(proto::Consistency::Quorum) => Ok(true),
        Ok(proto::Consistency::Local | proto::Consistency::Unspecified) => Ok(false),
        Err(_) => Err(Invalid::new("consistency", "local or quorum")),
    }
}

/// A request id.
///
/// # Errors
/// [`Invalid`] if it is missing or no UUID.
pub fn request_id(text: &str) -> Result<RequestId, Invalid> {
    uuid("request_id", text)
        .map(RequestId)
        .map_err(|_| Invalid::new("request_id", "a UUID, the same for every retry of one attempt"))
}

/// An id that the cluster or a caller drew.
///
/// # Errors
/// [`Invalid`] for `field` if it is missing or no UUID.
pub fn uuid(field: &str, text: &str) -> Result<Uuid, Invalid> {
    let id = Uuid::try_parse(text).ok().filter(|id| !id.is_nil());
    id.ok_or_else(|| Invalid::new(field, "a UUID: 32 hexadecimal digits in groups of 8-4-4-4-12"))
}

/// Whether `text` can be dialled.
///
/// # Errors
/// [`Invalid`] if it is not a host and a port.
pub fn check_address(text: &str) -> Result<(), Invalid> {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let well_formed = text.len() <= NODE_ADDRESS_MAX_BYTES
        && text.rsplit_once(':').is_some_and(|(host, digits)| !host.is_empty() && port(digits));
    if well_formed { Ok(()) } else { Err(Invalid::new("peer_address", "host:port of a node's peer service")) }
}

/// A membership change.
///
/// # Errors
/// [`Invalid`] naming the field.
pub fn membership_change(message: &proto::MembershipChange) -> Result<Change, Invalid> {
    use proto::membership_change::Change as Asked;
    use proto::replace_member::Replacement as Given;
    let node = |id: u64, field: &str| {
        if id > 0 { Ok(id) } else { Err(Invalid::new(field, "the id of a node, from 1")) }
    };
    let kind = match message.change.as_ref() {
        None => return Err(Invalid::new("change", "add, promote, demote, remove, replace or transfer")),
        Some(Asked::Add(add)) => {
            check_address(&add.peer_address)?;
            ChangeKind::Add { peer_address: add.peer_address.clone(), learner: add.learner }
        }
        Some(Asked::Promote(promote)) => ChangeKind::Promote { node: node(promote.node, "node")? },
        Some(Asked::Demote(demote)) => ChangeKind::Demote { node: node(demote.node, "node")? },
        Some(Asked::Remove(remove)) => ChangeKind::Remove { node: node(remove.node, "node")? },
        Some(Asked::Replace(replace)) => {
            let new = match &replace.replacement {
                None => return Err(Invalid::new("replacement", "a peer address or the id of a learner")),
                Some(Given::Learner(learner)) => Replacement::Learner(node(*learner, "replacement.learner")?),
                Some(Given::PeerAddress(address)) => {
                    check_address(address)?;
                    Replacement::Added(address.clone())
                }
            };
            ChangeKind::Replace { old: node(replace.old, "old")?, new }
        }
        Some(Asked::Transfer(transfer)) => {
            ChangeKind::Transfer { to: transfer.to.map(|to| node(to, "to")).transpose()? }
        }
    };
    Ok(Change { kind, dry_run: message.dry_run, any_voter_count: message.any_voter_count })
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An empty protobuf string means absent.
pub(super) fn optional<T>(
    text: &str,
    parse: impl FnOnce(&str) -> Result<T, Invalid>,
) -> Result<Option<T>, Invalid> {
    if text.is_empty() { Ok(None) } else { parse(text).map(Some) }
}

/// Freshness of `node` as it goes out.
pub fn freshness(node: &raft::Node, consistency: &str) -> proto::Freshness {
    let freshness = node.freshness();
    proto::Freshness {
        node: node.options().id,
        consistency: consistency.to_owned(),
        applied: freshness.applied,
        term: freshness.term,
        leader_known: freshness.leader_known,
        quorum_age_ms: freshness.quorum_age.map(millis),
    }
}

/// A key as it is listed: never its secret.
pub fn key(found: FoundKey) -> proto::Key {
    let FoundKey { key, history, owes_since, users, rotation_owed_since } = found;
    proto::Key {
        key_id: key.id.to_string(),
        machine: key.machine.to_string(),
        volume: key.volume.to_string(),
        kind: key.kind.to_string(),
        state: key.state.to_string(),
        escrowed_at_ms: key.escrowed_at.0,
        escrowed_by: key.escrowed_by.to_string(),
        fingerprint: key.fingerprint.to_string(),
        users: users.iter().map(ToString::to_string).collect(),
        index: key.position.index,
        rotation_owed_since_ms: rotation_owed_since.map(|since| since.0),
        owes_since_ms: owes_since.map(|since| since.0),
        retired_at_ms: history.retired_at.map(|at| at.0),
        has_package: key.sealed_package.is_some(),
        replaced_by: history.replaced_by.map(|id| id.to_string()).unwrap_or_default(),
    }
}

/// The keyring as a replica has it; `None` while there is none.
///
/// # Errors
/// [`StateError`] if the replica cannot be read.
pub fn keyring_status<S: Rows>(rows: &S) -> Result<Option<proto::KeyringStatus>, StateError> {
    let Some(KeyringRecord { generation, current_key_version, .. }) = lookup::keyring(rows)? else {
        return Ok(None);
    };
    let pass = lookup::resealing(rows)?.filter(|pass| pass.key_version == current_key_version);
    // There is nothing older than the first.
    let is_first = current_key_version == 1;
    Ok(Some(proto::KeyringStatus {
        key_version: current_key_version,
        generation,
        keys_under_old_data_keys: pass.as_ref().map(ResealRecord::remaining).or(is_first.then_some(0)),
        keys_not_resealed: pass.as_ref().map_or(0, |pass| pass.left),
        has_old_data_keys: !is_first && !pass.is_some_and(|pass| pass.dropped),
    }))
}

/// A receipt as it goes out.
pub fn receipt(receipt: Receipt) -> proto::Receipt {
    proto::Receipt {
        cluster: receipt.cluster.to_string(),
        cluster_name: receipt.cluster_name.to_string(),
        term: receipt.term,
        index: receipt.index,
        machine: receipt.machine.to_string(),
        volume: receipt.volume.to_string(),
        key_id: receipt.key_id.to_string(),
        fingerprint: receipt.fingerprint.to_string(),
        at_ms: receipt.at.0,
        already_escrowed: receipt.already_escrowed,
        node: receipt.node.to_string(),
        signature: receipt.signature,
        certificates: receipt.certificates,
    }
}
