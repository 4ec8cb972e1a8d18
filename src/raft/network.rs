//! openraft's network over the peer service: one pipelined append stream a peer, snapshots in chunks over a
//! connection of their own.

use std::future::Future;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tonic::Code;

use crate::escrow::ids::NodeId;
use crate::proto::peer::{Envelope, SnapshotChunk, snapshot_chunk};
use crate::store::format;
use crate::store::quarantine::QuarantineNote;
use crate::store::snapshot::SnapshotFile;

use super::link::Link;
use super::peers::{PeerClient, Peers, Sent};
use super::quorum::QuorumClock;
use super::types::{Member, Snapshot, TypeConfig, Vote};

/// Bytes of a snapshot sent in one message.
const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;
/// Longest an append stream may take to be accepted by the peer; it then lives as long as the leadership.
const STREAM_SETUP_TIMEOUT: Duration = Duration::from_secs(2);

/// What precedes the bytes of a snapshot that was asked for.
#[derive(Serialize, Deserialize)]
pub struct OfferHeader {
    /// Length of the file that follows.
    pub bytes: u64,
    /// SHA-256 of the file that follows.
    pub sha256: [u8; 32],
}

/// What precedes the bytes of a snapshot from the leader.
#[derive(Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// The vote of the leader that sends it.
    pub vote: Vote,
    /// Length of the file that follows.
    pub bytes: u64,
    /// SHA-256 of the file that follows.
    pub sha256: [u8; 32],
}

/// Makes a [`Peer`] for every member.
pub struct Network {
    peers: Peers,
    quorum: QuorumClock,
    quarantine: QuarantineNote,
}

impl Network {
    /// A network over `peers` that stamps appends with the age of `quorum`, and sends no snapshot in `quarantine`.
    pub fn new(peers: Peers, quorum: QuorumClock, quarantine: QuarantineNote) -> Self {
        Self { peers, quorum, quarantine }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Peer {
        let (link, data) = self.peers.member_link(target, node);
        Peer {
            control: self.peers.control(target, node),
            data,
            link,
            sent: self.peers.sent(target),
            quorum: self.quorum.clone(),
            quarantine: self.quarantine.clone(),
        }
    }
}

/// The way to one member. openraft makes one each for replication, heartbeats and snapshots, and each has a
/// connection of its own for what it sends, so that a snapshot or a large append never delays a heartbeat. What an
/// election needs goes over one connection that is kept: openraft makes a new `Peer` for each vote, and a handshake
/// would take a good part of an election's time.
pub struct Peer {
    control: PeerClient,
    data: PeerClient,
    /// Counts the bytes of log and snapshots, for whoever watches a learner catch up.
    sent: Sent,
    /// What `data` calls over.
    link: Link,
    quorum: QuorumClock,
    quarantine: QuarantineNote,
}

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let mut answers = self.stream_append(stream::iter([request]), option).await?;
        match answers.next().await {
            Some(Ok(Ok(matched))) if matched == last => Ok(AppendEntriesResponse::Success),
            Some(Ok(Ok(matched))) => Ok(AppendEntriesResponse::PartialSuccess(matched)),
            Some(Ok(refused @ Err(_))) => Ok(refused.into()),
            Some(Err(error)) => Err(error),
            None => {
                Err(NetworkError::from_string("the peer closed the append stream without an answer").into())
            }
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<
            BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>>,
            RPCError<TypeConfig>,
        >,
    >
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let (quorum, sent) = (self.quorum.clone(), self.sent.clone());
        // A stream that would live as long as the leadership moves on when its connection should not be used any more:
        // it ends before its next frame, and openraft opens another.
        let mut requests = requests.take_until(Box::pin(self.link.outdated()));
        let frame = move |request: AppendEntriesRequest<TypeConfig>| {
            let body = format::encode(&request);
            // A heartbeat brings nothing nearer.
            if !request.entries.is_empty() {
                sent.add(body.len());
            }
            let quorum_age_ms = quorum.age().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            Envelope { body: body.into(), quorum_age_ms }
        };
        Box::pin(async move {
            // openraft's pause after a failure is in its first request, not in its next call: who dials before asking
            // for one dials a member that is away again and again, without a pause.
            let Some(first) = requests.next().await else {
                return Ok(Box::pin(stream::empty()) as BoxStream<'s, _>);
            };
            let frames = stream::iter([first]).chain(requests).map(frame);
            let link = self.link.clone();
            let answers = within(STREAM_SETUP_TIMEOUT, &link, self.data.append(frames)).await?.into_inner();
            let results = answers.map(move |answer| {
                answer.map_err(|status| rpc_error(&link, &status)).and_then(|frame| decode(&frame.body))
            });
            Ok(Box::pin(results) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = within(option.hard_ttl(), &self.link, self.control.vote(envelope(&request))).await?;
        decode(&answer.into_inner().body)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = within(option.hard_ttl(), &self.link, self.control.pre_vote(envelope(&request))).await?;
        decode(&answer.into_inner().body)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        if self.quarantine.current().is_some() {
            // Never: the follower would take what is wrong for the state. It is asked again after a pause.
            let why = "this node is quarantined and sends its state to nobody";
            return Err(StreamingError::from(RPCError::from(Unreachable::<TypeConfig>::from_string(why))));
        }
        let chunks = snapshot_chunks(vote, snapshot, self.sent.clone());
        tokio::select! {
            closed = cancel => Err(closed.into()),
            // Bounded by the peer's keepalive, not by a clock: a large snapshot over a slow line takes what it takes.
            answer = self.data.install_snapshot(chunks) => {
                let answer = answer.map_err(|status| StreamingError::from(rpc_error(&self.link, &status)))?;
                Ok(decode(&answer.into_inner().body)?)
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let call = self.control.transfer_leader(envelope(&request));
        let answer = within(option.hard_ttl(), &self.link, call).await?;
        decode(&answer.into_inner().body)
    }
}

/// The messages of a snapshot from the leader: its header, then its bytes, which are counted.
fn snapshot_chunks(
    vote: Vote,
    snapshot: Snapshot,
    sent: Sent,
) -> impl Stream<Item = SnapshotChunk> + Send + 'static {
    let file = snapshot.snapshot;
    let header = SnapshotHeader { vote, bytes: file.bytes(), sha256: file.sha256() };
    file_chunks(format::encode(&header), file).inspect(move |chunk| {
        if let Some(snapshot_chunk::Part::Data(data)) = &chunk.part {
            sent.add(data.len());
        }
    })
}

/// A header and the bytes of a file. A read error ends the stream early, which the receiver detects by length and
/// hash.
pub(super) fn file_chunks(
    header: Vec<u8>,
    file: SnapshotFile,
) -> impl Stream<Item = SnapshotChunk> + Send + 'static {
    let header = SnapshotChunk { part: Some(snapshot_chunk::Part::Header(header.into())) };
    let data = stream::unfold((file, 0), |(file, offset)| async move {
        match file.chunk(offset, SNAPSHOT_CHUNK_BYTES).await {
            Ok(chunk) if chunk.is_empty() => None,
            Ok(chunk) => {
                let next = offset + chunk.len() as u64;
                Some((SnapshotChunk { part: Some(snapshot_chunk::Part::Data(chunk)) }, (file, next)))
            }
            Err(error) => {
                tracing::error!(%error, "reading a snapshot to send");
                None
            }
        }
    });
    stream::once(async { header }).chain(data)
}

/// A message of this room, encoded.
pub fn envelope<T: Serialize>(message: &T) -> Envelope {
    Envelope { body: format::encode(message).into(), quorum_age_ms: None }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, RPCError<TypeConfig>> {
    format::decode(body).map_err(|error| NetworkError::new(&error).into())
}

async fn within<T>(
    limit: Duration,
    link: &Link,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, RPCError<TypeConfig>> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(|status| rpc_error(link, &status)),
        Err(_) => Err(Unreachable::from_string(format!("no answer within {} ms", limit.as_millis())).into()),
    }
}

/// `Unreachable` makes openraft back off before it tries again; anything else it retries at once.
fn rpc_error(link: &Link, status: &tonic::Status) -> RPCError<TypeConfig> {
    link.refused(status);
    match status.code() {
        Code::Unavailable
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Unknown => Unreachable::new(status).into(),
        _ => NetworkError::new(status).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};

    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use uuid::Uuid;

    use super::*;
    use crate::escrow::ids::Role;
    use crate::tls::tests::TestCa;

    #[tokio::test]
    async fn an_append_stream_asks_for_its_first_request_before_it_dials() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer_address = listener.local_addr().unwrap().to_string();
        let (asked, mut order) = mpsc::unbounded_channel();
        let dialed = asked.clone();
        // Whoever answers never completes a handshake, so that nothing is asked for because of it.
        tokio::spawn(async move {
            let connection = listener.accept().await.unwrap();
            dialed.send("dialed").unwrap();
            std::future::pending::<()>().await;
            drop(connection);
        });

        let peers = Peers::new(TestCa::new("acme").tls(Role::Node, "1"), Arc::new(OnceLock::new()));
        let dir = tempfile::tempdir().unwrap();
        let note = QuarantineNote::open(&dir.path().join("quarantine.json")).unwrap();
        let mut network = Network::new(peers, QuorumClock::default(), note);
        let member =
            Member { peer_address, api_address: String::new(), zone: String::new(), storage: Uuid::nil() };
        let mut peer = network.new_client(2, &member).await;
        let requests = stream::once(async move {
            asked.send("asked").unwrap();
            AppendEntriesRequest {
                vote: Vote::new(1, 1),
                prev_log_id: None,
                leader_commit: None,
                entries: Vec::new(),
            }
        });
        let option = RPCOption::new(Duration::from_secs(1));
        tokio::spawn(async move { drop(peer.stream_append(Box::pin(requests), option).await) });
        assert_eq!(order.recv().await, Some("asked"));
        assert_eq!(order.recv().await, Some("dialed"));
    }
}
