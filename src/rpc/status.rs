//! Errors as gRPC statuses: the one place where they become codes.

use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Status};

use crate::error::chain;
use crate::escrow::command::{ApprovalAsked, Refusal};
use crate::escrow::ids::Invalid;
use crate::escrow::journal::DegradedAsk;
use crate::escrow::records::Source;
use crate::escrow::state::StateError;
use crate::proto::RefusedRecord;
use crate::raft::NodeError;
use crate::raft::leader::NOT_BEGUN_KEY;
use crate::raft::membership::Obstacle;
use crate::store::StoreError;

/// Metadata key of the field at fault.
pub const FIELD_KEY: &str = "strongroom-field";
/// Metadata key of an answer that was given without a quorum: a node that has one may answer otherwise.
pub const DEGRADED_KEY: &str = "strongroom-degraded";
/// Metadata key of what the caller may do about it.
pub const HINT_KEY: &str = "strongroom-hint";

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Self {
        let code = match &error {
            NodeError::Invalid(invalid) => return invalid.clone().into(),
            NodeError::Refused(refusal) => return refusal.clone().into(),
            NodeError::Change(refused) => match refused.obstacle {
                Obstacle::Conflict => Code::FailedPrecondition,
                Obstacle::NotFound => Code::NotFound,
                Obstacle::Unavailable => Code::Unavailable,
            },
            NodeError::NoRoom(_) | NodeError::Overloaded { .. } => Code::ResourceExhausted,
            NodeError::Decode(_) | NodeError::TooLarge { .. } => Code::InvalidArgument,
            NodeError::Imposter { .. } => Code::PermissionDenied,
            NodeError::Behind { .. }
            | NodeError::Clock(_)
            | NodeError::Declined(_)
            | NodeError::Excluded(_)
            | NodeError::FeatureLevel { .. }
            | NodeError::Inapplicable { .. }
            | NodeError::Journal(_)
            | NodeError::NoCluster
            | NodeError::NoQuorum(_)
            | NodeError::NotLeader(_)
            | NodeError::Quarantined(_)
            | NodeError::Transfer(_)
            | NodeError::Unconfirmed(_)
            | NodeError::Unrepaired(_)
            | NodeError::Fatal(_) => Code::Unavailable,
            // There is no room for a report just now.
            NodeError::Store(StoreError::Crowded | StoreError::SpoolFull(_)) => Code::ResourceExhausted,
            NodeError::Store(StoreError::Abandoned | StoreError::Busy | StoreError::Closed) => {
                Code::Unavailable
            }
            NodeError::Keyring(_) | NodeError::State(_) | NodeError::Store(_) => Code::Internal,
        };
        if code == Code::Internal {
            tracing::error!(error = chain(&error), "a request failed");
        }
        if let NodeError::Journal(error) = &error {
            tracing::error!(error = chain(error), "no key is shown without a quorum");
        }
        let status = Self::new(code, chain(&error));
        match &error {
            NodeError::Change(refused) => with(status, HINT_KEY, &refused.instead),
            NodeError::NoCluster => with(status, HINT_KEY, "add this node with: strongroom member add"),
            NodeError::NoRoom(_) => {
                with(status, HINT_KEY, "make room on these disks; writes resume by themselves")
            }
            NodeError::Clock(_)
            | NodeError::NoQuorum(_)
            | NodeError::NotLeader(_)
            | NodeError::Overloaded { .. }
            | NodeError::Quarantined(_) => with(status, NOT_BEGUN_KEY, "true"),
            NodeError::Unconfirmed(_) => with(
                status,
                HINT_KEY,
                "the outcome is unknown; repeating the request with the same id is safe",
            ),
            _ => status,
        }
    }
}

/// A refusal that was decided without a quorum.
pub fn degraded(refusal: Refusal) -> Status {
    with(refusal.into(), DEGRADED_KEY, "true")
}

/// A failure that several readers share.
pub fn shared(error: Arc<NodeError>) -> Status {
    match Arc::try_unwrap(error) {
        Ok(error) => error.into(),
        Err(error) => match &*error {
            NodeError::NoQuorum(waited) => NodeError::NoQuorum(*waited).into(),
            NodeError::NotLeader(leader) => NodeError::NotLeader(*leader).into(),
            error => Status::unavailable(chain(error)),
        },
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict(why) => Self::already_exists(why),
            Refusal::Denied(why) => Self::permission_denied(why),
            Refusal::Invalid(invalid) => invalid.into(),
            Refusal::NotFound(what) => Self::not_found(what),
        }
    }
}

impl From<Invalid> for Status {
    fn from(invalid: Invalid) -> Self {
        with(Self::invalid_argument(invalid.to_string()), FIELD_KEY, &invalid.field)
    }
}

impl From<StateError> for Status {
    fn from(error: StateError) -> Self {
        NodeError::State(error).into()
    }
}

/// What is answered to a reveal that waits for a second person.
pub fn needs_approval(asked: &ApprovalAsked) -> Status {
    let ApprovalAsked { approval, expires_at } = asked;
    let why = format!("another person must approve this reveal: request {approval}, until {expires_at}");
    let hint = format!(
        "once somebody has run `strongroom approval grant {approval}`, run the same command again, word for word"
    );
    with(Status::permission_denied(why), HINT_KEY, &hint)
}

/// What is answered to a reveal that was asked for without a quorum, and waits for a second person at one node.
pub fn needs_approval_alone(ask: &DegradedAsk) -> Status {
    let DegradedAsk { approval, expires_at, source: Source { node, .. }, .. } = ask;
    let why = format!(
        "another person must approve this reveal: request {approval}, until {expires_at}, at node {node}, which decides without a quorum"
    );
    let hint = format!(
        "once somebody has run `strongroom approval grant {approval}` at that node, run the same command again there, word for word; with a quorum, ask anew"
    );
    with(with(Status::permission_denied(why), HINT_KEY, &hint), DEGRADED_KEY, "true")
}

/// What is answered of a record in a stream or message that would have ended with `status` by itself.
pub(super) fn refused(status: &Status) -> RefusedRecord {
    let field = status.metadata().get(FIELD_KEY).and_then(|field| field.to_str().ok()).unwrap_or_default();
    RefusedRecord {
        code: status.code().into(),
        field: field.to_owned(),
        message: status.message().to_owned(),
    }
}

/// The same status with `value` under `key`.
pub(super) fn with(mut status: Status, key: &'static str, value: &str) -> Status {
    if let Ok(value) = value.parse::<MetadataValue<Ascii>>() {
        status.metadata_mut().insert(key, value);
    }
    status
}
