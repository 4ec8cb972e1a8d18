//! The cluster as operators see it.

use std::pin::Pin;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::NodeId;
use crate::escrow::policy::Operation;
use crate::proto::cluster_service_server::ClusterService;
use crate::proto::peer::{DescribeRequest, DescribeResponse};
use crate::proto::{MemberProgress, MembershipChange, NodeStatus, StatusRequest, StatusResponse, peer};
use crate::raft::features::held_back;
use crate::raft::membership::{Change, PROGRESS_MAX};
use crate::raft::types::Member;

use super::guard::Caller;
use super::{Context, now, wire};

/// Longest a member may take to describe itself before it is shown as unreachable.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(1);

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
        Ok(Response::new(StatusResponse {
            cluster: cluster.as_ref().map(|cluster| cluster.id.to_string()).unwrap_or_default(),
            cluster_name: self.tls.identity().cluster.to_string(),
            leader: vitals.leader,
            term: vitals.term,
            nodes,
            failure_tolerance: self.node.failure_tolerance(),
            answered_by: self.node.options().id,
            feature_level: feature_level.0,
            warnings,
            ..StatusResponse::default()
        }))
    }

    type ChangeMembershipStream = ProgressStream;

    async fn change_membership(
        &self,
        request: Request<MembershipChange>,
    ) -> Result<Response<ProgressStream>, Status> {
        let caller = self.admit(&request, Operation::ChangeMembership)?;
        let change = request.into_inner();
        let parsed = wire::membership_change(&change)?;
        let leader = self.node.leader();
        if leader == Some(self.node.options().id) {
            return Ok(Response::new(self.change_membership_here(parsed, caller).boxed()));
        }
        // Followers proxy, never redirect.
        let mut leader = leader
            .and_then(|leader| self.node.member_client(leader))
            .ok_or_else(|| Status::unavailable("no leader is known here; try again"))?;
        let request = peer::ForwardedChange {
            change: Some(change),
            by: caller.identity.to_string(),
            source_node: caller.source.node,
            source_address: caller.source.address,
        };
        Ok(Response::new(leader.change_membership(request).await?.into_inner().boxed()))
    }
}

impl Context {
    /// Changes the membership with this node as the leader.
    pub(super) fn change_membership_here(
        &self,
        change: Change,
        caller: Caller,
    ) -> impl Stream<Item = Result<MemberProgress, Status>> + Send + 'static {
        let (steps, progress) = mpsc::channel(PROGRESS_MAX);
        let (failed, failure) = mpsc::channel(1);
        let node = self.node.clone();
        // Runs to its end even if the caller goes away: a half-made change helps nobody.
        tokio::spawn(async move {
            let Caller { identity, source } = caller;
            let changed = node.change_membership(&change, &identity, source, now(), &steps).await;
            if let Err(error) = changed {
                tracing::warn!(%error, ?change, "changing the membership");
                let _ = failed.send(Err(error.into())).await;
            }
        });
        ReceiverStream::new(progress).map(Ok).chain(ReceiverStream::new(failure))
    }

    /// What this node says of itself.
    pub(super) fn describe_self(&self) -> Result<DescribeResponse, Status> {
        let (options, vitals) = (self.node.options(), self.node.vitals());
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
            certificate_expires_at: self.tls.expires_at(),
            last_log_term: vitals.last_log_term,
            feature_level: options.feature_level.0,
            draining: self.is_draining(),
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
            ..about
        }
    }

    async fn ask_to_describe(&self, id: NodeId) -> Option<DescribeResponse> {
        let mut client = self.node.member_client(id)?;
        let answer = tokio::time::timeout(DESCRIBE_TIMEOUT, client.describe(DescribeRequest {})).await;
        answer.ok()?.map(Response::into_inner).ok()
    }
}

/// Why the feature level stays where it is although a newer release runs on some of the members.
fn feature_level_warnings(level: FeatureLevel, nodes: &[NodeStatus]) -> Vec<String> {
    let supports =
        |node: &NodeStatus| node.reachable.then(|| FeatureLevel(node.feature_level).max(FeatureLevel::FIRST));
    let members: Vec<_> = nodes.iter().map(|node| (node.id, supports(node))).collect();
    let holding = held_back(level, &members);
    holding.iter().map(|held| format!("the feature level stays at {level}: {held}")).collect()
}
