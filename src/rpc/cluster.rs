//! The cluster as operators see it.

use std::pin::Pin;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};
use tracing::Instrument;

use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::NodeId;
use crate::escrow::policy::Operation;
use crate::proto::cluster_service_server::ClusterService;
use crate::proto::peer::DescribeResponse;
use crate::proto::{
    MemberProgress, MembershipChange, NodeStatus, RotateKeyringRequest, RotateKeyringResponse, StatusRequest,
    StatusResponse, peer,
};
use crate::raft::features::{held_back, supported_by};
use crate::raft::leader::NOT_BEGUN_KEY;
use crate::raft::membership::{Change, Order, PROGRESS_MAX, Refused};
use crate::raft::peers::describe;
use crate::raft::types::Member;
use crate::raft::{NodeError, RotationOrder};
use crate::request_id::carried;

use super::guard::Caller;
use super::{Context, health, now, wire};

/// Longest a member may take to describe itself before it is shown as unreachable.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest a membership change looks for a leader that takes it.
const LEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two attempts.
const LEADER_POLL: Duration = Duration::from_millis(50);

type ProgressStream = Pin<Box<dyn Stream<Item = Result<MemberProgress, Status>> + Send>>;

#[tonic::async_trait]
impl ClusterService for Context {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.admit(&request, Operation::Status)?;
        let cluster = self.node.cluster()?;
        let vitals = self.node.vitals();
        let mut members = self.node.members();
        if members.is_empty() {
            // Not added yet: all there is to show is this node.
            let options = self.node.options();
            members.insert(options.id, (options.member.clone(), false));
        }
        let nodes =
            join_all(members.iter().map(|(id, (member, voter))| self.node_status(*id, member, *voter))).await;
        let feature_level = self.node.feature_level()?;
        let warnings = feature_level_warnings(feature_level, &nodes);
        let mut status = StatusResponse {
            cluster: cluster.as_ref().map(|cluster| cluster.id.to_string()).unwrap_or_default(),
            cluster_name: self.tls.identity().cluster.to_string(),
            leader: vitals.leader,
            term: vitals.term,
            nodes,
            failure_tolerance: self.node.failure_tolerance(),
            answered_by: self.node.options().id,
            feature_level: feature_level.0,
            warnings,
            keyring: wire::keyring_status(&self.node.view()?)?,
            ..StatusResponse::default()
        };
        health::judge(&mut status, now().0 / 1_000);
        Ok(Response::new(status))
    }

    async fn rotate_keyring(
        &self,
        request: Request<RotateKeyringRequest>,
    ) -> Result<Response<RotateKeyringResponse>, Status> {
        let Caller { identity: by, source } = self.admit(&request, Operation::RotateKeyring)?;
        let request = wire::request_id(&request.into_inner().request_id)?;
        let order = RotationOrder { request, by: by.clone(), source };
        let key_version = self.node.rotate_data_key(order).await?;
        tracing::info!(%by, key_version, "the data key is rotated");
        Ok(Response::new(RotateKeyringResponse { key_version }))
    }

    type ChangeMembershipStream = ProgressStream;

    async fn change_membership(
        &self,
        request: Request<MembershipChange>,
    ) -> Result<Response<ProgressStream>, Status> {
        let caller = self.admit(&request, Operation::ChangeMembership)?;
        let change = request.into_inner();
        let parsed = wire::membership_change(&change)?;
        // Said at once, while the caller still looks for a node that takes it: one that waits to be added knows nobody, and
        // one that left knows a leader that does not answer it.
        if self.node.leader().is_none() {
            return Err(NodeError::NotLeader(None).into());
        }
        self.node.check_stays()?;
        let (steps, progress) = mpsc::channel(PROGRESS_MAX);
        let (failed, failure) = mpsc::channel(1);
        let context = self.clone();
        // Runs to its end even if the caller goes away: a half-made change helps nobody.
        let work = async move {
            if let Err(status) = context.change_at_the_leader(change, parsed, caller, steps).await {
                let _ = failed.send(Err(status)).await;
            }
        };
        tokio::spawn(carried(work).in_current_span());
        Ok(Response::new(ReceiverStream::new(progress).map(Ok).chain(ReceiverStream::new(failure)).boxed()))
    }
}

impl Context {
    /// Changes the membership at whoever leads. Followers proxy, never redirect. What was not begun because the
    /// leadership was elsewhere is asked again there, for a while; what was begun is for the operator to repeat.
    async fn change_at_the_leader(
        &self,
        change: MembershipChange,
        parsed: Change,
        caller: Caller,
        steps: mpsc::Sender<MemberProgress>,
    ) -> Result<(), Status> {
        let deadline = Instant::now() + LEADER_TIMEOUT;
        loop {
            let outcome = match self.node.leader() {
                None => Err(NodeError::NotLeader(None).into()),
                Some(leader) if leader == self.node.options().id => {
                    self.change_here(&parsed, caller.clone(), steps.clone()).await
                }
                // The leader does without this node: a stop waits neither for the change nor for its next step.
                Some(leader) => {
                    let there = self.change_there(leader, &change, &caller, &steps);
                    let there = self.draining.run_until_cancelled(there).await;
                    there.unwrap_or_else(|| Err(NodeError::from(stopped_passing_on()).into()))
                }
            };
            let Err(status) = outcome else { return Ok(()) };
            let not_begun = status.metadata().contains_key(NOT_BEGUN_KEY);
            if !not_begun || Instant::now() >= deadline || self.is_draining() {
                return Err(status);
            }
            tokio::time::sleep(LEADER_POLL).await;
        }
    }

    /// Changes the membership with this node as the leader.
    async fn change_here(
        &self,
        change: &Change,
        caller: Caller,
        progress: mpsc::Sender<MemberProgress>,
    ) -> Result<(), Status> {
        let Caller { identity: by, source } = caller;
        let order = Order { by, source, at: now(), progress };
        self.node.change_membership(change, &order).await.map_err(|error| {
            // Handed over, or asked of the wrong node: another one makes the change.
            if !matches!(error, NodeError::NotLeader(_)) {
                tracing::warn!(%error, by = %order.by, ?change, "the membership is not changed");
            }
            error.into()
        })
    }

    /// Changes the membership at another node that leads.
    async fn change_there(
        &self,
        leader: NodeId,
        change: &MembershipChange,
        caller: &Caller,
        progress: &mpsc::Sender<MemberProgress>,
    ) -> Result<(), Status> {
        let Some(mut client) = self.node.member_client(leader) else {
            return Err(NodeError::NotLeader(Some(leader)).into());
        };
        let request = peer::ForwardedChange {
            change: Some(change.clone()),
            by: caller.identity.to_string(),
            source_node: caller.source.node,
            source_address: caller.source.address.clone(),
        };
        let asked = client.change_membership(request).await;
        let mut steps = match asked {
            Ok(steps) => steps.into_inner(),
            // The leader is gone, or was stopped: whoever leads next is asked, and goes on with what was begun if any.
            Err(status) if is_broken(&status) => return Err(NodeError::NotLeader(Some(leader)).into()),
            Err(status) => return Err(status),
        };
        while let Some(step) = steps.message().await.map_err(lost)? {
            // The leader notices when nobody listens any more: it gives up waiting, and finishes what it has begun.
            if progress.send(step).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Changes the membership with this node as the leader, for a peer.
    pub(super) fn change_membership_here(
        &self,
        change: Change,
        caller: Caller,
    ) -> impl Stream<Item = Result<MemberProgress, Status>> + Send + 'static {
        let (steps, progress) = mpsc::channel(PROGRESS_MAX);
        let (failed, failure) = mpsc::channel(1);
        let context = self.clone();
        let work = async move {
            if let Err(status) = context.change_here(&change, caller, steps).await {
                let _ = failed.send(Err(status)).await;
            }
        };
        tokio::spawn(carried(work).in_current_span());
        ReceiverStream::new(progress).map(Ok).chain(ReceiverStream::new(failure))
    }

    /// What this node says of itself.
    pub(super) fn describe_self(&self) -> Result<DescribeResponse, Status> {
        let (options, vitals) = (self.node.options(), self.node.vitals());
        // Zeros if it is not known: the node has just started, or its disk does not answer.
        let usage = self.node.usage();
        let machine = usage.map(|usage| usage.machine);
        let journal = self.node.journal_stats();
        let opening = self.node.opening();
        let status = NodeStatus {
            id: options.id,
            role: vitals.role.to_owned(),
            zone: options.member.zone.clone(),
            api_address: options.member.api_address.clone(),
            peer_address: options.member.peer_address.clone(),
            applied: vitals.digest.index,
            committed: vitals.committed,
            last_log: vitals.last_log,
            digest: vitals.digest.value.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            purged: vitals.purged,
            snapshot: vitals.snapshot,
            certificate_not_before: self.tls.not_before(),
            certificate_expires_at: self.tls.expires_at(),
            last_log_term: vitals.last_log_term,
            agreement: self.node.agreement().to_string(),
            quarantine: self.node.held_log().map(|held| held.to_string()).unwrap_or_default(),
            feature_level: options.feature_level.0,
            draining: self.is_draining(),
            disk_free_bytes: usage.map_or(0, |usage| usage.space.free),
            disk_size_bytes: usage.map_or(0, |usage| usage.space.size),
            disk_used_bytes: usage.map_or(0, |usage| usage.disk_bytes()),
            overlay_bytes: machine.map_or(0, |machine| machine.overlay_bytes as u64),
            overlay_max_bytes: machine.map_or(0, |machine| machine.overlay_max_bytes as u64),
            journal_own: journal.own as u64,
            journal_told: journal.told as u64,
            journal_oldest_age_ms: journal.oldest.map(|at| now().0.saturating_sub(at.0)),
            journal_fault: journal.fault,
            journal_begun_anew: journal.begun_anew,
            keys_not_opened: opening.unopened,
            not_opened: opening.named.iter().map(ToString::to_string).collect(),
            opening_fault: opening.fault,
            opened_all_at_ms: opening.complete.map(|pass| pass.at.0),
            keys_opened: opening.complete.map_or(0, |pass| pass.opened),
            clock_ahead_ms: self.node.clock_skew().0,
            clock_fault: self.node.clock_fault().map(|skew| skew.to_string()).unwrap_or_default(),
            ..NodeStatus::default()
        };
        Ok(DescribeResponse {
            status: Some(status),
            storage: options.member.storage.to_string(),
            recipient: self.node.recipient(),
            cluster: self.node.cluster()?.map(|cluster| cluster.id.to_string()).unwrap_or_default(),
            term: vitals.term,
            leader: vitals.leader,
            quorum_age_ms: self.node.freshness().quorum_age.map(wire::millis),
            membership: self.node.known_membership().map(Into::into),
        })
    }

    async fn node_status(&self, id: NodeId, member: &Member, voter: bool) -> NodeStatus {
        let described = if id == self.node.options().id {
            self.describe_self().ok()
        } else {
            self.ask_to_describe(id).await
        };
        let unreachable = NodeStatus { role: "unreachable".to_owned(), ..NodeStatus::default() };
        let reachable = described.is_some();
        let about = described.and_then(|described| described.status).unwrap_or(unreachable);
        NodeStatus {
            id,
            zone: member.zone.clone(),
            api_address: member.api_address.clone(),
            peer_address: member.peer_address.clone(),
            voter,
            reachable,
            last_contact_ms: self.last_contact_ms(id),
            ..about
        }
    }

    /// Since this node last heard from another: an answer just now, a call of its own, and at the leader its
    /// acknowledgements. Of this node itself, always zero.
    fn last_contact_ms(&self, id: NodeId) -> Option<u64> {
        if id == self.node.options().id {
            return Some(0);
        }
        self.node.peers().into_iter().find(|peer| peer.id == id)?.last_contact.map(wire::millis)
    }

    async fn ask_to_describe(&self, id: NodeId) -> Option<DescribeResponse> {
        let mut client = self.node.member_client(id)?;
        let described = describe(&mut client, DESCRIBE_TIMEOUT).await.ok()?;
        self.node.heard_from(id);
        Some(described)
    }
}

/// This node stops, and what it passes on to the leader with it.
fn stopped_passing_on() -> Refused {
    Refused::interrupted("the node that passed it on to the leader is stopping")
}

/// A connection to the leader that breaks says nothing of what became of the change there.
fn lost(status: Status) -> Status {
    if is_broken(&status) {
        let why = crate::error::status(&status);
        return NodeError::from(Refused::interrupted(format!("the leader went away: {why}"))).into();
    }
    status
}

/// Whether it is the connection that failed: what a node answers for good says what to do.
fn is_broken(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled)
        && status.metadata().is_empty()
}

/// Why the feature level stays where it is although a newer release runs on some of the members.
fn feature_level_warnings(level: FeatureLevel, nodes: &[NodeStatus]) -> Vec<String> {
    let supports = |node: &NodeStatus| node.reachable.then(|| supported_by(node));
    let members: Vec<_> = nodes.iter().map(|node| (node.id, supports(node))).collect();
    let holding = held_back(level, &members);
    holding.iter().map(|held| format!("the feature level stays at {level}: {held}")).collect()
}
