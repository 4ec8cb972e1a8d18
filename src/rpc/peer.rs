//! What nodes ask of each other. Bodies are the raft room's own; this file only checks who asks and passes them on.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::escrow::ids::NodeId;
use crate::escrow::records::Source;
use crate::proto::MemberProgress;
use crate::proto::peer::peer_service_server::PeerService;
use crate::proto::peer::{
    AddMemberRequest, DescribeRequest, DescribeResponse, Envelope, ProveCustodyRequest, ProveCustodyResponse,
    ReadIndexRequest, ReadIndexResponse, SnapshotChunk,
};
use crate::raft::NodeError;

use super::guard::Caller;
use super::{Context, status};

type Frames = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;
type ProgressStream = Pin<Box<dyn Stream<Item = Result<MemberProgress, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Context {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        self.admit_peer(&request)?;
        self.describe_self().map(Response::new)
    }

    type AppendStream = Frames;

    async fn append(&self, request: Request<Streaming<Envelope>>) -> Result<Response<Frames>, Status> {
        let caller = peer_id(&self.admit_peer(&request)?)?;
        // A broken stream ends; the leader notices on its side and opens another.
        let frames = request
            .into_inner()
            .take_while(|frame| std::future::ready(frame.is_ok()))
            .filter_map(async |frame| frame.ok());
        Ok(Response::new(self.node.append(caller, frames).map(|answer| answer.map_err(Status::from)).boxed()))
    }

    async fn vote(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let caller = peer_id(&self.admit_peer(&request)?)?;
        Ok(Response::new(self.node.vote(caller, &request.into_inner().body).await?))
    }

    async fn pre_vote(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let caller = peer_id(&self.admit_peer(&request)?)?;
        Ok(Response::new(self.node.pre_vote(caller, &request.into_inner().body).await?))
    }

    async fn transfer_leader(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let caller = peer_id(&self.admit_peer(&request)?)?;
        Ok(Response::new(self.node.transfer_leader(caller, &request.into_inner().body).await?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<Envelope>, Status> {
        let caller = peer_id(&self.admit_peer(&request)?)?;
        Ok(Response::new(self.node.install_snapshot(caller, request.into_inner()).await?))
    }

    async fn propose(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        self.admit_peer(&request)?;
        let committed = self.node.commit_forwarded(request.into_inner().body.to_vec()).await?;
        Ok(Response::new(Envelope {
            body: crate::store::format::encode(&committed).into(),
            quorum_age_ms: None,
        }))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        self.admit_peer(&request)?;
        let index = self.node.read_index_as_leader().await.map_err(status::shared)?;
        Ok(Response::new(ReadIndexResponse { index }))
    }

    type AddMemberStream = ProgressStream;

    async fn add_member(
        &self,
        request: Request<AddMemberRequest>,
    ) -> Result<Response<ProgressStream>, Status> {
        self.admit_peer(&request)?;
        let request = request.into_inner();
        if self.node.leader() != Some(self.node.options().id) {
            return Err(NodeError::NotLeader(self.node.leader()).into());
        }
        let caller = Caller {
            identity: request.by.parse()?,
            source: Source { node: request.source_node, address: request.source_address },
        };
        Ok(Response::new(self.add_member_here(request.peer_address, request.learner, caller).boxed()))
    }

    async fn prove_custody(
        &self,
        request: Request<ProveCustodyRequest>,
    ) -> Result<Response<ProveCustodyResponse>, Status> {
        self.admit_peer(&request)?;
        let request = request.into_inner();
        let (outcome, proof, detail) = self.prove(request.key_id.parse()?, &request.nonce).await;
        Ok(Response::new(ProveCustodyResponse {
            outcome: outcome.to_owned(),
            proof: proof.into(),
            applied: self.node.applied(),
            detail,
        }))
    }
}

/// The node behind a call, as its certificate says.
fn peer_id(caller: &Caller) -> Result<NodeId, Status> {
    caller.identity.node_id().ok_or_else(|| Status::permission_denied("only nodes may use the peer service"))
}
