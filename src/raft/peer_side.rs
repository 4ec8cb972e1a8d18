//! Answering peers: encoded messages in, encoded messages out.
//!
//! Who calls has been proved by the connection; here it is held against what the message says, so that a node can
//! neither stand for election nor lead in another's name.

use std::collections::VecDeque;
use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};

use crate::escrow::ids::NodeId;
use crate::mutation::Mutation;
use crate::proto::peer::{Envelope, SnapshotChunk, snapshot_chunk};
use crate::store::format;

use super::error::NodeError;
use super::network::{SnapshotHeader, envelope};
use super::node::Node;
use super::state_machine::snapshot_of;
use super::types::{TypeConfig, Vote};

impl Node {
    /// Whether a call addressed to `cluster` and `storage` (where the caller names them) is meant for this node.
    ///
    /// # Errors
    /// A sentence that says which does not match.
    pub fn check_addressee(&self, cluster: Option<&str>, storage: Option<&str>) -> Result<(), String> {
        let own_storage = self.inner.options.member.storage.to_string();
        let storage = storage.filter(|_| !Mutation::IgnoreStorageId.is_active());
        if let Some(wanted) = storage.filter(|wanted| *wanted != own_storage) {
            return Err(format!(
                "node {} has data directory {own_storage}, the cluster knows it by {wanted}: its disk was replaced or wiped; remove the node and add it under a new id",
                self.inner.options.id
            ));
        }
        match (cluster, self.inner.cluster.get()) {
            (Some(wanted), Some(own)) if wanted != own.to_string() => {
                Err(format!("this node belongs to cluster {own}, the call is for {wanted}"))
            }
            _ => Ok(()),
        }
    }

    /// Takes a stream of appends from `caller` and answers each, in order.
    pub fn append<S>(
        &self,
        caller: NodeId,
        frames: S,
    ) -> impl Stream<Item = Result<Envelope, NodeError>> + Send + 'static
    where
        S: Stream<Item = Envelope> + Send + 'static,
    {
        // Ages wait here for the answers to their frames, which come in the same order.
        let ages = Arc::new(Mutex::new(VecDeque::new()));
        let waiting = ages.clone();
        // A frame that is not what it should be ends the stream; a leader sees it closed and starts another.
        let requests = frames
            .map(move |frame| {
                let request: AppendEntriesRequest<TypeConfig> = format::decode(&frame.body)?;
                check_leads(caller, &request.vote)?;
                waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(frame.quorum_age_ms);
                Ok::<_, NodeError>(request)
            })
            .inspect(move |request| {
                if let Err(error) = request {
                    tracing::error!(%error, caller, "an append is refused");
                }
            })
            .take_while(|request| ready(request.is_ok()))
            .filter_map(|request| ready(request.ok()));
        let (quorum, contacts) = (self.inner.quorum.clone(), self.inner.contacts.clone());
        self.inner.raft.stream_append(requests).map(move |answer| {
            let answer = answer.map_err(|fatal| NodeError::Fatal(fatal.to_string()))?;
            let age = ages.lock().unwrap_or_else(PoisonError::into_inner).pop_front().flatten();
            if answer.is_ok() {
                contacts.heard(caller);
            }
            // Only a leader this node accepts may tell it about a quorum.
            if let (Ok(_), Some(age)) = (&answer, age) {
                quorum.saw(Duration::from_millis(age));
            }
            Ok(envelope(&answer))
        })
    }

    /// Answers a vote request of `caller`.
    ///
    /// # Errors
    /// [`NodeError::Decode`], [`NodeError::Imposter`], [`NodeError::Fatal`].
    pub async fn vote(&self, caller: NodeId, request: &[u8]) -> Result<Envelope, NodeError> {
        let request: VoteRequest<TypeConfig> = format::decode(request)?;
        check_leads(caller, &request.vote)?;
        let answer =
            self.inner.raft.vote(request).await.map_err(|error| NodeError::Fatal(error.to_string()))?;
        Ok(envelope(&answer))
    }

    /// Answers whether it would vote for `caller`.
    ///
    /// # Errors
    /// As [`Node::vote`].
    pub async fn pre_vote(&self, caller: NodeId, request: &[u8]) -> Result<Envelope, NodeError> {
        let request: VoteRequest<TypeConfig> = format::decode(request)?;
        check_leads(caller, &request.vote)?;
        let answer =
            self.inner.raft.pre_vote(request).await.map_err(|error| NodeError::Fatal(error.to_string()))?;
        Ok(envelope(&answer))
    }

    /// Takes the leadership over from `caller` if asked to.
    ///
    /// # Errors
    /// As [`Node::vote`].
    pub async fn transfer_leader(&self, caller: NodeId, request: &[u8]) -> Result<Envelope, NodeError> {
        let request: TransferLeaderRequest<TypeConfig> = format::decode(request)?;
        check_leads(caller, request.from_leader())?;
        let answer = self.inner.raft.handle_transfer_leader(request).await;
        Ok(envelope(&answer.map_err(|error| NodeError::Fatal(error.to_string()))?))
    }

    /// Receives a snapshot from `caller` and installs it. The old state stays until the whole file has arrived and its
    /// hash fits.
    ///
    /// # Errors
    /// [`NodeError::Transfer`] or [`NodeError::Store`] if it does not arrive whole; [`NodeError::Fatal`] if installing
    /// it fails.
    pub async fn install_snapshot<S, E>(&self, caller: NodeId, mut chunks: S) -> Result<Envelope, NodeError>
    where
        S: Stream<Item = Result<SnapshotChunk, E>> + Send + Unpin,
        E: std::fmt::Display,
    {
        let broken = |why: &str| NodeError::Transfer(why.to_owned());
        let first = chunks.next().await.ok_or_else(|| broken("it is empty"))?;
        let Ok(SnapshotChunk { part: Some(snapshot_chunk::Part::Header(header)) }) = first else {
            return Err(broken("it does not begin with a header"));
        };
        let header: SnapshotHeader = format::decode(&header)?;
        check_leads(caller, &header.vote)?;
        let mut receiver =
            self.inner.storage.machine.snapshots().receive(header.bytes, header.sha256).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| broken(&error.to_string()))?;
            let Some(snapshot_chunk::Part::Data(data)) = chunk.part else {
                return Err(broken("a second header"));
            };
            receiver.write(&data).await?;
        }
        // What it covers is what the file says, whose hash has been checked, and nothing beside it.
        let snapshot = snapshot_of(receiver.finish().await?).map_err(|error| broken(&error.to_string()))?;
        let answer = self.inner.raft.install_full_snapshot(header.vote, snapshot).await;
        Ok(envelope(&answer.map_err(|error| NodeError::Fatal(error.to_string()))?))
    }
}

/// Whether `caller` speaks for itself: the candidate or leader of a vote must be who sends it.
fn check_leads(caller: NodeId, vote: &Vote) -> Result<(), NodeError> {
    let named = vote.leader_id.voted_for;
    if named == caller { Ok(()) } else { Err(NodeError::Imposter { caller, named }) }
}
