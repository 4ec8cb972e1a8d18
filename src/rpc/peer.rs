//! What nodes ask of each other. Bodies are the raft room's own; this file only checks who asks and passes them on.

use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::escrow::ids::NodeId;
use crate::escrow::records::Source;
use crate::proto::MemberProgress;
use crate::proto::peer::peer_service_server::PeerService;
use crate::proto::peer::{
    AuditCheckpointRequest, AuditCheckpointResponse, DescribeRequest, DescribeResponse, DigestsRequest,
    DigestsResponse, Envelope, FetchSnapshotRequest, ForwardedChange, KeepJournalRequest,
    KeepJournalResponse, ProveCustodyRequest, ProveCustodyResponse, ReadIndexRequest, ReadIndexResponse,
    SnapshotChunk,
};
use crate::raft::NodeError;
use crate::raft::leader::Forwarded;
use crate::store::format;

use super::guard::{Caller, PeerCaller};
use super::{Context, status, wire};

type Frames = Pin<Box<dyn Stream<Item = Result<Envelope, Status>> + Send>>;
type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotChunk, Status>> + Send>>;
type ProgressStream = Pin<Box<dyn Stream<Item = Result<MemberProgress, Status>> + Send>>;

#[tonic::async_trait]
impl PeerService for Context {
    async fn describe(
        &self,
        request: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        self.admit_stranger(&request)?;
        self.describe_self().map(Response::new)
    }

    type AppendStream = Frames;

    async fn append(&self, request: Request<Streaming<Envelope>>) -> Result<Response<Frames>, Status> {
        let caller = self.admit_peer(&request)?;
        let id = caller.id;
        // The credentials alone: a stream that ends late must not keep the node.
        let tls = self.tls.clone();
        let frames = while_admitted(request.into_inner(), move || caller.check(&tls));
        Ok(Response::new(self.node.append(id, frames).map(|answer| answer.map_err(Status::from)).boxed()))
    }

    async fn vote(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let caller = self.admit_peer(&request)?.id;
        Ok(Response::new(self.node.vote(caller, &request.into_inner().body).await?))
    }

    async fn pre_vote(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let caller = self.admit_peer(&request)?.id;
        Ok(Response::new(self.node.pre_vote(caller, &request.into_inner().body).await?))
    }

    async fn transfer_leader(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let caller = self.admit_peer(&request)?.id;
        if self.is_draining() {
            // Said at once, so that a leader that is stopping too does not wait for this node to take over.
            return Err(Status::failed_precondition("this node is stopping and takes no leadership over"));
        }
        if let Some(why) = self.node.quarantine() {
            return Err(Status::failed_precondition(format!("this node is quarantined: {why}")));
        }
        if let Some(skew) = self.node.clock_fault() {
            return Err(Status::failed_precondition(format!("this node does not lead: {skew}")));
        }
        Ok(Response::new(self.node.transfer_leader(caller, &request.into_inner().body).await?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<Envelope>, Status> {
        let caller = self.admit_peer(&request)?.id;
        Ok(Response::new(self.node.install_snapshot(caller, request.into_inner()).await?))
    }

    async fn propose(&self, request: Request<Envelope>) -> Result<Response<Envelope>, Status> {
        let caller = self.admit_member(&request)?;
        let command = Forwarded::decode(request.into_inner().body)?;
        check_source(&caller, command.source)?;
        let committed = self.node.commit_forwarded(command).await?;
        Ok(Response::new(Envelope { body: format::encode(&committed).into(), quorum_age_ms: None }))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexResponse>, Status> {
        self.admit_member(&request)?;
        let index = self.node.read_index_as_leader().await.map_err(status::shared)?;
        Ok(Response::new(ReadIndexResponse { index }))
    }

    type ChangeMembershipStream = ProgressStream;

    async fn change_membership(
        &self,
        request: Request<ForwardedChange>,
    ) -> Result<Response<ProgressStream>, Status> {
        let caller = self.admit_member(&request)?;
        let request = request.into_inner();
        check_source(&caller, request.source_node)?;
        if self.node.leader() != Some(self.node.options().id) {
            return Err(NodeError::NotLeader(self.node.leader()).into());
        }
        let change = wire::membership_change(&request.change.unwrap_or_default())?;
        let caller = Caller {
            identity: request.by.parse()?,
            source: Source { node: request.source_node, address: request.source_address },
        };
        Ok(Response::new(self.change_membership_here(change, caller).boxed()))
    }

    async fn digests(&self, request: Request<DigestsRequest>) -> Result<Response<DigestsResponse>, Status> {
        self.admit_member(&request)?;
        Ok(Response::new(self.node.digests(&request.into_inner())))
    }

    type FetchSnapshotStream = SnapshotStream;

    async fn fetch_snapshot(
        &self,
        request: Request<FetchSnapshotRequest>,
    ) -> Result<Response<SnapshotStream>, Status> {
        let caller = self.admit_member(&request)?.id;
        let chunks = self.node.offer_snapshot(caller, request.into_inner().min_index).await?;
        Ok(Response::new(chunks.map(Ok).boxed()))
    }

    async fn keep_journal(
        &self,
        request: Request<KeepJournalRequest>,
    ) -> Result<Response<KeepJournalResponse>, Status> {
        let caller = self.admit_teller(&request)?;
        self.node.keep_journal(caller, &request.into_inner()).await?;
        Ok(Response::new(KeepJournalResponse {}))
    }

    async fn prove_custody(
        &self,
        request: Request<ProveCustodyRequest>,
    ) -> Result<Response<ProveCustodyResponse>, Status> {
        self.admit_member(&request)?;
        self.refuse_in_quarantine()?;
        let ProveCustodyRequest { key_id, nonce, min_index } = request.into_inner();
        // One that lags says what it has.
        drop(self.node.wait_applied(min_index).await);
        let (outcome, proof, detail) = self.prove(key_id.parse()?, &nonce).await;
        Ok(Response::new(ProveCustodyResponse {
            outcome: outcome.to_owned(),
            proof: proof.into(),
            applied: self.node.applied(),
            detail,
        }))
    }

    async fn audit_checkpoint(
        &self,
        request: Request<AuditCheckpointRequest>,
    ) -> Result<Response<AuditCheckpointResponse>, Status> {
        self.admit_member(&request)?;
        self.refuse_in_quarantine()?;
        Ok(Response::new(AuditCheckpointResponse { checkpoint: self.checkpoint().await?.render() }))
    }
}

/// Who passes a request on names itself as the node it came in through: the audit trail rests on that.
fn check_source(caller: &PeerCaller, source: NodeId) -> Result<(), Status> {
    if source == caller.id {
        return Ok(());
    }
    tracing::warn!(node = caller.id, source, "a node named another as the source of a request");
    Err(Status::permission_denied(format!("node {} may not speak for node {source}", caller.id)))
}

/// The frames of a stream until it breaks or `admitted` refuses: a stream lives as long as a leadership, so its
/// certificate may expire or be revoked under way. Whoever sends notices the end and opens another, which is judged
/// anew.
fn while_admitted<S, A>(frames: S, admitted: A) -> impl Stream<Item = Envelope> + Send + 'static
where
    S: Stream<Item = Result<Envelope, Status>> + Send + 'static,
    A: Fn() -> Result<(), Status> + Send + 'static,
{
    frames
        .map(move |frame| {
            let frame = frame.ok()?;
            match admitted() {
                Ok(()) => Some(frame),
                Err(status) => {
                    tracing::warn!(%status, "an append stream is ended");
                    None
                }
            }
        })
        .take_while(|frame| std::future::ready(frame.is_some()))
        .filter_map(std::future::ready)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::escrow::ids::Role;
    use crate::tls::ca::{IssueRequest, Selector};
    use crate::tls::tests::TestCa;
    use crate::tls::{ExpectedPeer, RevocationFile, Tls};

    #[tokio::test]
    async fn a_revocation_ends_a_stream_that_is_already_open() {
        let ca = TestCa::new("acme");
        let (mut paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
        paths.crl = RevocationFile::Required(ca.authority.revocation_list_path());
        let node = Tls::load(paths).unwrap();
        let (leader, issued) = ca.profile(IssueRequest::new(Role::Node, "2"));
        let leader = Tls::load(leader).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = async {
            let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            leader.connect(tcp, ExpectedPeer::Node(1)).await.unwrap()
        };
        let accept = async { node.accept(listener.accept().await.unwrap().0).await.unwrap() };
        let (_connected, (_accepted, certificate)) = tokio::join!(connect, accept);

        let (sender, frames) = mpsc::channel(1);
        let judge = node.clone();
        let mut taken = Box::pin(while_admitted(ReceiverStream::new(frames), move || {
            judge.check(&certificate).map_err(|error| Status::permission_denied(error.to_string()))
        }));
        sender.send(Ok(Envelope::default())).await.unwrap();
        assert!(taken.next().await.is_some(), "a frame of a good certificate is taken");
        ca.authority.revoke(&Selector::Serial(issued.record.serial)).unwrap();
        assert!(node.reload().unwrap());
        sender.send(Ok(Envelope::default())).await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(20), taken.next()).await;
        assert!(next.expect("the stream ends by itself").is_none(), "no frame is taken after the revocation");
    }
}
