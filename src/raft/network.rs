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
use crate::store::snapshot::SnapshotFile;

use super::peers::{PeerClient, Peers, Sent};
use super::quorum::QuorumClock;
use super::types::{Member, Snapshot, TypeConfig, Vote};

/// Bytes of a snapshot sent in one message.
const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;
/// Longest an append stream may take to be accepted by the peer; it then lives as long as the leadership.
const STREAM_SETUP_TIMEOUT: Duration = Duration::from_secs(2);

/// What precedes the bytes of a snapshot.
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
}

impl Network {
    /// A network over `peers` that stamps appends with the age of `quorum`.
    pub fn new(peers: Peers, quorum: QuorumClock) -> Self {
        Self { peers, quorum }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Peer {
        Peer {
            control: self.peers.control(target, node),
            data: self.peers.member(target, node),
            sent: self.peers.sent(target),
            quorum: self.quorum.clone(),
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
    quorum: QuorumClock,
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
        let frames = requests.map(move |request| {
            let body = format::encode(&request);
            // A heartbeat brings nothing nearer.
            if !request.entries.is_empty() {
                sent.add(body.len());
            }
            let quorum_age_ms = quorum.age().map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
            Envelope { body: body.into(), quorum_age_ms }
        });
        Box::pin(async move {
            let answers = within(STREAM_SETUP_TIMEOUT, self.data.append(frames)).await?.into_inner();
            let results =
                answers.map(|answer| answer.map_err(rpc_error).and_then(|frame| decode(&frame.body)));
            Ok(Box::pin(results) as BoxStream<'s, _>)
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = within(option.hard_ttl(), self.control.vote(envelope(&request))).await?;
        decode(&answer.into_inner().body)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = within(option.hard_ttl(), self.control.pre_vote(envelope(&request))).await?;
        decode(&answer.into_inner().body)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let chunks = snapshot_chunks(vote, snapshot, self.sent.clone());
        tokio::select! {
            closed = cancel => Err(closed.into()),
            // Bounded by the peer's keepalive, not by a clock: a large snapshot over a slow line takes what it takes.
            answer = self.data.install_snapshot(chunks) => {
                let answer = answer.map_err(|status| StreamingError::from(rpc_error(status)))?;
                Ok(decode(&answer.into_inner().body)?)
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let answer = within(option.hard_ttl(), self.control.transfer_leader(envelope(&request))).await?;
        decode(&answer.into_inner().body)
    }
}

/// The messages of one snapshot: its header, then its bytes. A read error ends the stream early, which the
/// receiver detects by length and hash.
fn snapshot_chunks(
    vote: Vote,
    snapshot: Snapshot,
    sent: Sent,
) -> impl Stream<Item = SnapshotChunk> + Send + 'static {
    let file = snapshot.snapshot;
    let header = SnapshotHeader { vote, bytes: file.bytes(), sha256: file.sha256() };
    let header = SnapshotChunk { part: Some(snapshot_chunk::Part::Header(format::encode(&header).into())) };
    let data = stream::unfold((file, sent, 0), |(file, sent, offset)| async move {
        match file.chunk(offset, SNAPSHOT_CHUNK_BYTES).await {
            Ok(chunk) if chunk.is_empty() => None,
            Ok(chunk) => {
                let next = offset + chunk.len() as u64;
                sent.add(chunk.len());
                Some((SnapshotChunk { part: Some(snapshot_chunk::Part::Data(chunk)) }, (file, sent, next)))
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
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, RPCError<TypeConfig>> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer.map_err(rpc_error),
        Err(_) => Err(Unreachable::from_string(format!("no answer within {} ms", limit.as_millis())).into()),
    }
}

/// `Unreachable` makes openraft back off before it tries again; anything else it retries at once.
fn rpc_error(status: tonic::Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition
        | Code::Unknown => Unreachable::new(&status).into(),
        _ => NetworkError::new(&status).into(),
    }
}
