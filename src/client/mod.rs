//! The caller's library: knows the endpoints of a cluster, talks to the nearest node, and falls over to the next
//! one by itself.
//!
//! A call goes to the endpoint that ranks first: own zone, then lowest round-trip, endpoints that just failed
//! last. A connection failure or an `UNAVAILABLE` moves on to the next endpoint at once; after a round without
//! success the client waits a jittered, growing while and tries again, until the call's deadline. Everything
//! else a node answers is definite and is handed back as it is: who is at fault is the variant of
//! [`ClientError`].
//!
//! Every call has a request id, which goes with each of its attempts and is in the error if it fails: the nodes' logs
//! hold it.
//!
//! Retrying is safe because every attempt of one call carries the same request id: a node that already did what
//! was asked answers the same again.

mod attempts;
mod audit;
mod compliance;
mod connection;
mod endpoint;
mod error;
mod escrow_many;
mod machines;
mod parts;
mod receipt;
mod report;
mod rotation;
mod upload;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::{Request, Status, Streaming};
use uuid::Uuid;

pub use self::attempts::ATTEMPT_TIMEOUT;
pub use self::audit::AuditTrail;
pub use self::compliance::Decision;
pub use self::endpoint::EndpointAddress;
pub use self::error::{Answer, ClientError, Trouble};
pub use self::escrow_many::{BulkAnswer, BulkKept, BulkRefused, UNANSWERED_MAX};
pub use self::machines::MachineNoted;
pub use self::report::Report;

use self::attempts::{Pool, made_here};
use crate::escrow::ids::{KeyId, MachineId, UserName, VolumeId};
use crate::escrow::secrets::SecretKind;
use crate::proto;
use crate::proto::cluster_service_client::ClusterServiceClient;
use crate::proto::escrow_service_client::EscrowServiceClient;
use crate::proto::policy_service_client::PolicyServiceClient;
use crate::proto::recovery_service_client::RecoveryServiceClient;
use crate::request_id::{REQUEST_ID_KEY, TraceId};
use crate::seal::receipt::Receipt;
use crate::seal::receipt::disclosure::DisclosureReceipt;
use crate::secret::Secret;
use crate::tls::Tls;

/// How long a call may take from end to end unless told otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a membership change may be silent: the server reports progress far more often.
const PROGRESS_TIMEOUT: Duration = Duration::from_secs(60);

/// Most endpoints of one client: more than any cluster has nodes.
pub const ENDPOINTS_MAX: usize = 16;

/// How a [`Client`] behaves.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The caller's own zone: its nodes are preferred. `None` if it has none.
    pub zone: Option<String>,
    /// The bound of a call from end to end, retries included.
    pub timeout: Duration,
    /// Which endpoint to ask first.
    pub preference: Preference,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self { zone: None, timeout: CALL_TIMEOUT, preference: Preference::Nearest }
    }
}

/// Which endpoint to ask first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preference {
    /// The order in which the endpoints were given. Nothing is measured.
    AsGiven,
    /// Own zone, then the lowest round-trip.
    Nearest,
}

/// A recovery key to be kept.
#[derive(Debug, Clone)]
pub struct Deposit {
    /// The machine it belongs to.
    pub machine: MachineId,
    /// The volume it unlocks.
    pub volume: VolumeId,
    /// What kind of secret it is.
    pub kind: SecretKind,
    /// Its id; `None` lets the cluster choose, and makes the same secret of the same volume the same key.
    pub key_id: Option<KeyId>,
    /// The secret, as text in the format of its kind.
    pub secret: Secret,
    /// A BitLocker key package, binary.
    pub package: Option<Secret>,
    /// A user of the machine.
    pub user: Option<UserName>,
    /// The device is about to use it: kept beside the key in use until [`Client::confirm_key`].
    pub pending: bool,
}

/// A recovery key that was shown: its secret apart from everything that may be printed or logged.
#[derive(Debug)]
pub struct Recovered {
    /// The secret.
    pub secret: Secret,
    /// The key package, if it was asked for and is kept.
    pub package: Option<Secret>,
    /// Proof that it was shown; a node of an older release gives none.
    pub receipt: Option<DisclosureReceipt>,
    /// All the rest; its `secret` and `package` are empty.
    pub details: proto::RecoverResponse,
}

/// A caller's connections to one cluster. Cheap to clone; clones share connections and what was measured.
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
}

impl Client {
    /// A client of the cluster behind `endpoints`, as the identity in `tls`. Connects when first used.
    ///
    /// # Errors
    /// [`ClientError::Endpoints`] if there is none, or more than [`ENDPOINTS_MAX`].
    pub fn new(
        endpoints: Vec<EndpointAddress>,
        tls: Tls,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        if endpoints.is_empty() || endpoints.len() > ENDPOINTS_MAX {
            return Err(ClientError::Endpoints { given: endpoints.len() });
        }
        Ok(Self { pool: Arc::new(Pool::new(endpoints, tls, options)) })
    }

    /// Keeps a recovery key. Answers with the receipt, once a quorum has the key on disk.
    ///
    /// # Errors
    /// Any [`ClientError`]. After [`ClientError::Unavailable`] the key may or may not be kept: doing it again is
    /// safe.
    pub async fn escrow(&self, deposit: &Deposit) -> Result<Receipt, ClientError> {
        let trace = TraceId::draw();
        let request_id = trace.to_string();
        let response = self
            .pool
            .call_as(trace, |channel, budget| {
                let request = escrow_request(&request_id, deposit);
                async move { EscrowServiceClient::new(channel).escrow(bounded(request, budget)).await }
            })
            .await?;
        let message = response.receipt;
        receipt::receipt(
            message.ok_or(ClientError::Malformed { what: "an escrow was answered without a receipt" })?,
        )
    }

    /// Looks keys up; never a secret.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn find(&self, request: &proto::FindRequest) -> Result<proto::FindResponse, ClientError> {
        self.pool
            .call(|channel, budget| {
                let request = request.clone();
                async move { RecoveryServiceClient::new(channel).find(bounded(request, budget)).await }
            })
            .await
    }

    /// Shows one secret, which puts the reveal on record.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn recover(
        &self,
        key_id: KeyId,
        reason: &str,
        user: Option<&UserName>,
    ) -> Result<Recovered, ClientError> {
        self.recover_with(key_id, reason, user, false).await
    }

    /// As [`Client::recover`], and shows the key package beside the secret as well, if `package` is set and one is kept.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn recover_with(
        &self,
        key_id: KeyId,
        reason: &str,
        user: Option<&UserName>,
        package: bool,
    ) -> Result<Recovered, ClientError> {
        let trace = TraceId::draw();
        let request = proto::RecoverRequest {
            request_id: trace.to_string(),
            key_id: key_id.to_string(),
            reason: reason.to_owned(),
            user: user.map(ToString::to_string).unwrap_or_default(),
            package,
        };
        let mut details = self
            .pool
            .call_as(trace, |channel, budget| {
                let request = request.clone();
                async move { RecoveryServiceClient::new(channel).recover(bounded(request, budget)).await }
            })
            .await?;
        let secret = Secret::new(std::mem::take(&mut details.secret).into());
        let package = Secret::new(std::mem::take(&mut details.package).into());
        let package = Some(package).filter(|package| !package.expose().is_empty());
        let receipt = details.receipt.take().and_then(receipt::disclosure);
        Ok(Recovered { secret, package, receipt, details })
    }

    /// Challenges every member: does it hold this key, and can it open it? With `secret`: is it this one?
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn custody(
        &self,
        key_id: KeyId,
        secret: Option<&Secret>,
    ) -> Result<proto::CustodyResponse, ClientError> {
        self.pool
            .call(|channel, budget| {
                let secret = secret.map(|secret| secret.expose().to_vec()).unwrap_or_default();
                let request = proto::CustodyRequest { key_id: key_id.to_string(), secret };
                async move { RecoveryServiceClient::new(channel).custody(bounded(request, budget)).await }
            })
            .await
    }

    /// The policy of reveals that is followed.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn policy(
        &self,
        consistency: proto::Consistency,
    ) -> Result<proto::ShowPolicyResponse, ClientError> {
        let request = proto::ShowPolicyRequest { consistency: consistency.into() };
        self.pool
            .call(|channel, budget| async move {
                PolicyServiceClient::new(channel).show_policy(bounded(request, budget)).await
            })
            .await
    }

    /// Replaces version `replaces` of the policy of reveals by the JSON document `policy`, and answers the version it
    /// has now.
    ///
    /// # Errors
    /// Any [`ClientError`]; [`ClientError::Conflict`] if another version is followed.
    pub async fn set_policy(&self, policy: &str, replaces: u64) -> Result<u64, ClientError> {
        let trace = TraceId::draw();
        let request =
            proto::SetPolicyRequest { request_id: trace.to_string(), policy: policy.to_owned(), replaces };
        let answer = self.pool.call_as(trace, |channel, budget| {
            let request = request.clone();
            async move { PolicyServiceClient::new(channel).set_policy(bounded(request, budget)).await }
        });
        Ok(answer.await?.version)
    }

    /// Reveals that wait for a second person, or were approved and not used yet.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn approvals(
        &self,
        consistency: proto::Consistency,
    ) -> Result<proto::ListApprovalsResponse, ClientError> {
        let request = proto::ListApprovalsRequest { consistency: consistency.into() };
        self.pool
            .call(|channel, budget| async move {
                PolicyServiceClient::new(channel).list_approvals(bounded(request, budget)).await
            })
            .await
    }

    /// Grants or rejects a reveal that another person asked for. One that was asked for without a quorum is decided by the
    /// endpoint where it was.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn decide_approval(
        &self,
        approval: Uuid,
        granted: bool,
    ) -> Result<proto::DecideApprovalResponse, ClientError> {
        let trace = TraceId::draw();
        let request = proto::DecideApprovalRequest {
            request_id: trace.to_string(),
            approval: approval.to_string(),
            granted,
        };
        let answer = self.pool.call_as(trace, |channel, budget| {
            let request = request.clone();
            async move { PolicyServiceClient::new(channel).decide_approval(bounded(request, budget)).await }
        });
        answer.await
    }

    /// The cluster as the answering node sees it. A node that belongs to no cluster is only listened to if no other
    /// one answers.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn status(&self) -> Result<proto::StatusResponse, ClientError> {
        let outsider = Mutex::new(None);
        let others = self.pool.endpoints() > 1;
        let answer = self
            .pool
            .call(|channel, budget| {
                let outsider = &outsider;
                async move {
                    let request = bounded(proto::StatusRequest {}, budget);
                    let response = ClusterServiceClient::new(channel).status(request).await?;
                    if others && response.get_ref().cluster.is_empty() {
                        *outsider.lock().unwrap_or_else(PoisonError::into_inner) =
                            Some(response.into_inner());
                        return Err(Status::unavailable("this node belongs to no cluster yet"));
                    }
                    Ok(response)
                }
            })
            .await;
        match (answer, outsider.into_inner().unwrap_or_else(PoisonError::into_inner)) {
            (Err(ClientError::Unavailable { .. }), Some(outsider)) => Ok(outsider),
            (answer, _) => answer,
        }
    }

    /// Changes who is a member, or who leads.
    ///
    /// # Errors
    /// Any [`ClientError`] of the beginning; the rest comes from [`MembershipChange::next`].
    pub async fn change_membership(
        &self,
        change: &proto::MembershipChange,
    ) -> Result<MembershipChange, ClientError> {
        let trace = TraceId::draw();
        let progress = self
            .pool
            .call_as(trace.clone(), |channel, budget| {
                // No deadline on the request: catching up takes as long as there is state to send.
                let request = budget.unbounded(change.clone());
                async move { ClusterServiceClient::new(channel).change_membership(request).await }
            })
            .await?;
        Ok(MembershipChange { progress, trace })
    }

    /// Replaces the data key by a new one and answers its version. What is kept is sealed under it in the background.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn rotate_keyring(&self) -> Result<u32, ClientError> {
        let trace = TraceId::draw();
        let request = proto::RotateKeyringRequest { request_id: trace.to_string() };
        let answer =
            self.pool
                .call_as(trace, |channel, budget| {
                    let request = request.clone();
                    async move {
                        ClusterServiceClient::new(channel).rotate_keyring(bounded(request, budget)).await
                    }
                })
                .await?;
        Ok(answer.key_version)
    }

    /// Adds the node whose peer service is at `peer_address`, as a voter or, if asked, as a learner.
    ///
    /// # Errors
    /// As [`Client::change_membership`].
    pub async fn add_member(
        &self,
        peer_address: &str,
        learner: bool,
    ) -> Result<MembershipChange, ClientError> {
        let add = proto::AddMember { peer_address: peer_address.to_owned(), learner };
        let change = Some(proto::membership_change::Change::Add(add));
        self.change_membership(&proto::MembershipChange { change, ..Default::default() }).await
    }
}

/// A membership change that is under way.
pub struct MembershipChange {
    progress: Streaming<proto::MemberProgress>,
    trace: TraceId,
}

impl MembershipChange {
    /// The next step, or `None` when the change is complete.
    ///
    /// # Errors
    /// Any [`ClientError`]. The change is not undone: asking for the same again goes on where it ended.
    pub async fn next(&mut self) -> Result<Option<proto::MemberProgress>, ClientError> {
        let (waited, what) = match tokio::time::timeout(PROGRESS_TIMEOUT, self.progress.message()).await {
            Ok(Ok(message)) => return Ok(message),
            // The change may go on without the connection.
            Ok(Err(status)) if made_here(&status) => {
                (Duration::ZERO, "the connection broke while the membership was changed")
            }
            Ok(Err(status)) => {
                return Err(ClientError::from_last_status(status, "the cluster").with_request_id(&self.trace));
            }
            Err(_) => (PROGRESS_TIMEOUT, "no progress of the membership change was reported"),
        };
        Err(ClientError::broken_off(waited, what, &self.trace))
    }
}

/// What one attempt has: time, and the id of the call it belongs to.
#[derive(Debug, Clone)]
struct Budget {
    time: Duration,
    trace: TraceId,
}

impl Budget {
    /// A request that carries the id and says nothing of time.
    fn unbounded<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Ok(id) = self.trace.as_str().parse() {
            request.metadata_mut().insert(REQUEST_ID_KEY, id);
        }
        request
    }
}

/// Tells the server how long the client will wait for this attempt, and which call it belongs to.
fn bounded<T>(message: T, budget: Budget) -> Request<T> {
    let mut request = budget.unbounded(message);
    request.set_timeout(budget.time);
    request
}

fn escrow_request(request_id: &str, deposit: &Deposit) -> proto::EscrowRequest {
    let Deposit { machine, volume, kind, key_id, secret, package, user, pending } = deposit;
    proto::EscrowRequest {
        request_id: request_id.to_owned(),
        machine: machine.to_string(),
        volume: volume.to_string(),
        kind: kind.to_string(),
        key_id: key_id.map(|id| id.to_string()).unwrap_or_default(),
        secret: secret.expose().to_vec(),
        package: package.as_ref().map(|package| package.expose().to_vec()).unwrap_or_default(),
        user: user.as_ref().map(ToString::to_string).unwrap_or_default(),
        pending: *pending,
    }
}

#[cfg(test)]
mod tests;
