//! One member of the cluster: propose a command, confirm a read, answer peers, say how fresh this replica is.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use openraft::{Instant as _, RaftMetrics, ReadPolicy, ServerState};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::escrow::command::{Command, Reply};
use crate::escrow::ids::{ClusterId, NodeId};
use crate::escrow::lookup;
use crate::escrow::records::{ClusterRecord, LogPosition};
use crate::proto::peer::{Envelope, SnapshotChunk, snapshot_chunk};
use crate::seal::{Keyring, NodeKey};
use crate::store::digest::Digest;
use crate::store::directory::DataDir;
use crate::store::format;
use crate::store::view::View;
use crate::tls::Tls;

use super::compaction;
use super::error::NodeError;
use super::keyring::KeyringCache;
use super::network::{Network, SnapshotHeader, envelope};
use super::peers::{PeerClient, Peers};
use super::quorum::QuorumClock;
use super::read_index::ReadIndex;
use super::storage::Storage;
use super::types::{EncodedCommand, Member, Raft, Snapshot, TypeConfig};

/// Longest a proposal waits for a quorum, an election included, before its caller is told that none answered.
pub const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest a quorum read waits for its confirmation.
pub const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest a reader waits for this replica to apply the index it needs.
pub const APPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// Most proposals under way at one node; past it callers are told to try again.
pub const PROPOSALS_MAX: usize = 4_096;
/// Between two attempts at a leader that is not there yet, unless news of one comes first.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// A leader that has not heard of a quorum for this many heartbeats appends nothing until it does.
const QUORUM_FRESH_HEARTBEATS: u64 = 3;
/// Longest a leader that is stopping waits for another to take over.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(3);

/// What a node is told about itself and its timing.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Its id.
    pub id: NodeId,
    /// Where it is reached.
    pub member: Member,
    /// Milliseconds between heartbeats.
    pub heartbeat_ms: u64,
    /// A follower that hears nothing this long (milliseconds) asks for an election, at the earliest…
    pub election_min_ms: u64,
    /// … and at the latest.
    pub election_max_ms: u64,
    /// Entries kept behind a snapshot, so that a follower that lags a little needs no snapshot.
    pub keep_entries: u64,
}

/// A committed command and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Where it stands in the log.
    pub position: LogPosition,
    /// What apply answered.
    pub reply: Reply,
}

/// What a node knows about itself, for status.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// `leader`, `follower`, `candidate` or `learner`.
    pub role: &'static str,
    /// Current term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<NodeId>,
    /// Index of its last log entry.
    pub last_log: u64,
    /// Index it knows to be committed.
    pub committed: u64,
    /// Index it has applied, and the digest of the state there.
    pub digest: Digest,
    /// Index up to which its log is purged.
    pub purged: u64,
    /// Index its newest snapshot covers.
    pub snapshot: u64,
}

/// How fresh what this node shows is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// Index applied here.
    pub applied: u64,
    /// Current term.
    pub term: u64,
    /// Whether a leader is known here.
    pub leader_known: bool,
    /// Since a quorum was last known to be in contact; `None` if not since this node started.
    pub quorum_age: Option<Duration>,
}

/// A member of the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) options: NodeOptions,
    pub(super) raft: Raft,
    storage: Storage,
    /// Holds the lock on the data directory for as long as anything may write there.
    _directory: DataDir,
    stop: CancellationToken,
    pub(super) peers: Peers,
    cluster: Arc<OnceLock<ClusterId>>,
    keyring: KeyringCache,
    quorum: QuorumClock,
    proposals: Semaphore,
    reads: OnceLock<ReadIndex>,
    leader_reads: OnceLock<ReadIndex>,
    pub(super) membership_change: Mutex<()>,
    forwarding: std::sync::Mutex<BTreeMap<NodeId, (Member, PeerClient)>>,
}

impl Node {
    /// Starts taking part with what `storage` holds. A node that belongs to no cluster waits to be added.
    ///
    /// # Errors
    /// [`NodeError::Fatal`] if the consensus core does not start; [`NodeError::State`] if the replica cannot be read.
    pub async fn start(
        options: NodeOptions,
        directory: DataDir,
        storage: Storage,
        tls: Tls,
        key: NodeKey,
    ) -> Result<Self, NodeError> {
        let config = openraft::Config {
            cluster_name: tls.identity().cluster.to_string(),
            heartbeat_interval: options.heartbeat_ms,
            election_timeout_min: options.election_min_ms,
            election_timeout_max: options.election_max_ms,
            // A node that comes back from a partition asks first and does not depose a working leader.
            enable_pre_vote: Some(true),
            max_in_snapshot_log_to_keep: options.keep_entries,
            // Snapshots are taken by weight, not by count: see `raft::compaction`.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            ..Default::default()
        };
        let config = config.validate().map_err(|error| NodeError::Fatal(error.to_string()))?;
        let quorum = QuorumClock::default();
        let cluster = Arc::new(OnceLock::new());
        let peers = Peers::new(tls, cluster.clone());
        let network = Network::new(peers.clone(), quorum.clone());
        let (log, machine) = (storage.log_store(), storage.state_machine());
        let raft = Raft::new(options.id, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| NodeError::Fatal(error.to_string()))?;
        let stop = CancellationToken::new();
        compaction::spawn(raft.clone(), storage.clone(), stop.clone());
        let node = Self {
            inner: Arc::new(Inner {
                options,
                raft,
                storage,
                _directory: directory,
                stop,
                peers,
                cluster,
                keyring: KeyringCache::new(key),
                quorum,
                proposals: Semaphore::new(PROPOSALS_MAX),
                reads: OnceLock::new(),
                leader_reads: OnceLock::new(),
                membership_change: Mutex::new(()),
                forwarding: std::sync::Mutex::default(),
            }),
        };
        node.start_reads();
        node.watch_quorum();
        node.cluster()?;
        Ok(node)
    }

    /// Commits a command, here or through the leader, and answers what apply answered there. An election under way
    /// is waited for.
    ///
    /// # Errors
    /// [`NodeError::NoQuorum`] after [`PROPOSE_TIMEOUT`]: the command may still take effect, and repeating it with
    /// its request id is safe. [`NodeError::Overloaded`]: nothing was started.
    pub async fn propose(&self, command: &Command) -> Result<Committed, NodeError> {
        self.propose_within(command, PROPOSE_TIMEOUT).await
    }

    /// As [`Node::propose`], waiting at most `limit`.
    ///
    /// # Errors
    /// As [`Node::propose`].
    pub async fn propose_within(&self, command: &Command, limit: Duration) -> Result<Committed, NodeError> {
        let _permit = self.proposal_permit()?;
        let body = format::encode(command);
        let deadline = Instant::now() + limit;
        let mut metrics = self.inner.raft.server_metrics();
        loop {
            metrics.borrow_and_update();
            let outcome = timeout_at(deadline, self.propose_once(&body, deadline)).await;
            match outcome {
                Ok(Ok(Some(committed))) => return Ok(committed),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(NodeError::NoQuorum(limit)),
            }
            if Instant::now() >= deadline {
                return Err(NodeError::NoQuorum(limit));
            }
            // News of another leader cuts the wait short; either way the next attempt looks again.
            let _ = timeout(RETRY_INTERVAL, metrics.changed()).await;
        }
    }

    /// One attempt at whoever leads now; `None` if there is reason to look again.
    async fn propose_once(&self, body: &[u8], deadline: Instant) -> Result<Option<Committed>, NodeError> {
        match self.leader() {
            None => Ok(None),
            Some(id) if id == self.inner.options.id => match self.commit(body.to_vec()).await {
                Ok(committed) => Ok(Some(committed)),
                Err(NodeError::NotLeader(_) | NodeError::NoQuorum(_)) => Ok(None),
                Err(error) => Err(error),
            },
            Some(id) => {
                let Some(mut leader) = self.forwarding_client(id) else { return Ok(None) };
                let mut request =
                    tonic::Request::new(Envelope { body: body.to_vec().into(), quorum_age_ms: None });
                request.set_timeout(deadline.saturating_duration_since(Instant::now()));
                match leader.propose(request).await {
                    Ok(answer) => Ok(Some(format::decode(&answer.into_inner().body)?)),
                    // Unknown whether it was done: the request id makes trying again safe.
                    Err(status) => {
                        tracing::debug!(leader = id, %status, "forwarding a proposal");
                        Ok(None)
                    }
                }
            }
        }
    }

    /// Commits an encoded command as the leader, for a peer that forwards it.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if this node does not lead; [`NodeError::NoQuorum`] without having written anything
    /// if it leads but has lost touch with the majority.
    pub async fn commit_forwarded(&self, body: Vec<u8>) -> Result<Committed, NodeError> {
        let _permit = self.proposal_permit()?;
        match timeout(PROPOSE_TIMEOUT, self.commit(body)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(NodeError::NoQuorum(PROPOSE_TIMEOUT)),
        }
    }

    async fn commit(&self, body: Vec<u8>) -> Result<Committed, NodeError> {
        // A leader cut off from the majority would append what nobody may ever confirm. Better to hold the command
        // back, with nothing stored, than to leave the caller with an unknown outcome.
        let fresh = Duration::from_millis(QUORUM_FRESH_HEARTBEATS * self.inner.options.heartbeat_ms);
        if self.voters().len() > 1 && self.inner.quorum.age().is_none_or(|age| age > fresh) {
            return Err(NodeError::NoQuorum(fresh));
        }
        let written =
            self.inner.raft.client_write(EncodedCommand(body)).await.map_err(|error| match error {
                RaftError::APIError(
                    ClientWriteError::ForwardToLeader(to) | ClientWriteError::LogEntryDiscarded(to),
                ) => NodeError::NotLeader(to.leader_id),
                other => NodeError::Fatal(other.to_string()),
            })?;
        let position =
            LogPosition { term: written.log_id.committed_leader_id().term, index: written.log_id.index };
        let reply = written
            .data
            .0
            .ok_or_else(|| NodeError::Fatal("a command was applied without an answer".to_owned()))?;
        Ok(Committed { position, reply })
    }

    /// An index such that a replica which has applied it has everything acknowledged before this call.
    ///
    /// # Errors
    /// [`NodeError::NoQuorum`] after [`READ_TIMEOUT`].
    pub async fn read_index(&self) -> Result<u64, Arc<NodeError>> {
        self.inner.reads.get().expect("set when started").confirm().await
    }

    /// As [`Node::read_index`], but only if this node leads; for peers that ask it.
    ///
    /// # Errors
    /// [`NodeError::NotLeader`] if it does not.
    pub async fn read_index_as_leader(&self) -> Result<u64, Arc<NodeError>> {
        self.inner.leader_reads.get().expect("set when started").confirm().await
    }

    fn start_reads(&self) {
        // Weak: the batchers' tasks must not keep the node alive that owns them.
        let weak = Arc::downgrade(&self.inner);
        let leader_reads = ReadIndex::new({
            let weak = weak.clone();
            move || {
                let inner = weak.upgrade();
                async move {
                    let inner = inner.ok_or_else(|| NodeError::Fatal("the node is stopping".to_owned()))?;
                    Self { inner }.confirm_leadership().await
                }
            }
        });
        let reads = ReadIndex::new(move || {
            let inner = weak.upgrade();
            async move {
                let inner = inner.ok_or_else(|| NodeError::Fatal("the node is stopping".to_owned()))?;
                Self { inner }.confirm_read().await
            }
        });
        let _ = self.inner.leader_reads.set(leader_reads);
        let _ = self.inner.reads.set(reads);
    }

    async fn confirm_leadership(&self) -> Result<u64, NodeError> {
        match self.inner.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(NodeError::NotLeader(to.leader_id))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(NodeError::NoQuorum(READ_TIMEOUT))
            }
            Err(RaftError::Fatal(fatal)) => Err(NodeError::Fatal(fatal.to_string())),
        }
    }

    async fn confirm_read(&self) -> Result<u64, NodeError> {
        let deadline = Instant::now() + READ_TIMEOUT;
        let mut metrics = self.inner.raft.server_metrics();
        loop {
            metrics.borrow_and_update();
            match timeout_at(deadline, self.confirm_read_once()).await {
                Ok(Some(index)) => return Ok(index),
                Ok(None) if Instant::now() < deadline => {}
                _ => return Err(NodeError::NoQuorum(READ_TIMEOUT)),
            }
            let _ = timeout(RETRY_INTERVAL, metrics.changed()).await;
        }
    }

    async fn confirm_read_once(&self) -> Option<u64> {
        let leader = self.leader()?;
        if leader == self.inner.options.id {
            return self.read_index_as_leader().await.ok();
        }
        let mut client = self.forwarding_client(leader)?;
        match client.read_index(crate::proto::peer::ReadIndexRequest {}).await {
            Ok(answer) => Some(answer.into_inner().index),
            Err(status) => {
                tracing::debug!(leader, %status, "asking for a read index");
                None
            }
        }
    }

    /// Waits until this replica has applied `index`.
    ///
    /// # Errors
    /// [`NodeError::Behind`] after [`APPLY_TIMEOUT`].
    pub async fn wait_applied(&self, index: u64) -> Result<(), NodeError> {
        if self.applied() >= index {
            return Ok(());
        }
        let waited =
            self.inner.raft.wait(Some(APPLY_TIMEOUT)).applied_index_at_least(Some(index), "reading").await;
        waited.map(drop).map_err(|_| NodeError::Behind { applied: self.applied(), wanted: index })
    }

    /// This replica as it is now.
    ///
    /// # Errors
    /// [`NodeError::Store`] if it cannot be read.
    pub fn view(&self) -> Result<View, NodeError> {
        Ok(self.inner.storage.machine.view()?)
    }

    /// Index this replica has applied; 0 before the first.
    pub fn applied(&self) -> u64 {
        self.inner.storage.machine.applied().index()
    }

    /// How fresh this replica is.
    pub fn freshness(&self) -> Freshness {
        let metrics = self.metrics();
        Freshness {
            applied: self.applied(),
            term: metrics.current_term,
            leader_known: metrics.current_leader.is_some(),
            quorum_age: self.inner.quorum.age(),
        }
    }

    /// The cluster this node belongs to, as its replica has it.
    ///
    /// # Errors
    /// [`NodeError::State`] if the replica cannot be read.
    pub fn cluster(&self) -> Result<Option<ClusterRecord>, NodeError> {
        let record = lookup::cluster(&self.view()?)?;
        if let Some(record) = &record {
            let _ = self.inner.cluster.set(record.id);
        }
        Ok(record)
    }

    /// The keyring as this replica has it, opened with this node's private key.
    ///
    /// # Errors
    /// [`NodeError::NoCluster`] if there is none yet; [`NodeError::Keyring`] if it is not sealed to this node.
    pub fn keyring(&self) -> Result<Arc<Keyring>, NodeError> {
        let record = lookup::keyring(&self.view()?)?.ok_or(NodeError::NoCluster)?;
        Ok(self.inner.keyring.open(&record)?)
    }

    /// What the keyring is sealed to for this node.
    pub fn recipient(&self) -> String {
        self.inner.keyring.recipient()
    }

    /// Who this node is and where it is reached.
    pub fn options(&self) -> &NodeOptions {
        &self.inner.options
    }

    /// The leader this node knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.raft.server_metrics().borrow_watched().current_leader
    }

    /// Members by id, with whether they vote.
    pub fn members(&self) -> BTreeMap<NodeId, (Member, bool)> {
        let metrics = self.metrics();
        let voters = self.voters();
        let nodes = metrics.membership_config.nodes();
        nodes.map(|(id, member)| (*id, (member.clone(), voters.contains(id)))).collect()
    }

    /// Ids of the voters, of both halves of a joint configuration.
    pub fn voters(&self) -> Vec<NodeId> {
        self.metrics().membership_config.voter_ids().collect()
    }

    /// A client of a member, kept for forwarding.
    pub fn forwarding_client(&self, id: NodeId) -> Option<PeerClient> {
        let (member, _) = self.members().remove(&id)?;
        let mut forwarding = self.inner.forwarding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match forwarding.get(&id) {
            Some((known, client)) if *known == member => Some(client.clone()),
            _ => {
                let client = self.inner.peers.member(id, &member);
                forwarding.insert(id, (member, client.clone()));
                Some(client)
            }
        }
    }

    /// What this node knows about itself.
    pub fn vitals(&self) -> Vitals {
        let metrics = self.metrics();
        Vitals {
            role: match metrics.state {
                ServerState::Leader => "leader",
                ServerState::Candidate => "candidate",
                ServerState::Follower => "follower",
                ServerState::Learner | ServerState::Shutdown => "learner",
            },
            term: metrics.current_term,
            leader: metrics.current_leader,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: metrics.local_committed.map_or(0, |id| id.index),
            digest: self.inner.storage.machine.digest(),
            purged: metrics.purged.map_or(0, |id| id.index),
            snapshot: metrics.snapshot.map_or(0, |id| id.index),
        }
    }

    /// Whether the consensus core runs.
    ///
    /// # Errors
    /// [`NodeError::Fatal`] with what stopped it.
    pub fn running(&self) -> Result<(), NodeError> {
        self.metrics().running_state.map_err(|fatal| NodeError::Fatal(fatal.to_string()))
    }

    /// Resolves when the consensus core has stopped by itself, with what stopped it.
    pub async fn stopped(&self) -> NodeError {
        let mut metrics = self.inner.raft.metrics();
        loop {
            if let Err(error) = self.running() {
                return error;
            }
            if metrics.changed().await.is_err() {
                return NodeError::Fatal("the consensus core has ended".to_owned());
            }
        }
    }

    /// Makes this node the only voter of a new group, and waits until it leads.
    ///
    /// # Errors
    /// [`NodeError::Fatal`] if it already belongs to one; [`NodeError::NoQuorum`] if it does not become the leader.
    pub async fn form_cluster(&self) -> Result<(), NodeError> {
        let options = &self.inner.options;
        let members = BTreeMap::from([(options.id, options.member.clone())]);
        let fatal = |error: String| NodeError::Fatal(error);
        // A crash between this step and the first command leaves a group of one without a cluster record: go on there.
        if !self.inner.raft.is_initialized().await.map_err(|error| fatal(error.to_string()))? {
            self.inner.raft.initialize(members).await.map_err(|error| fatal(error.to_string()))?;
        }
        let led =
            self.inner.raft.wait(Some(PROPOSE_TIMEOUT)).current_leader(options.id, "forming a cluster").await;
        led.map(drop).map_err(|_| NodeError::NoQuorum(PROPOSE_TIMEOUT))
    }

    /// Hands the leadership over if this node has it, so that stopping costs the others no election timeout.
    pub async fn hand_over(&self) {
        let Some(successor) = self.successor() else { return };
        let id = self.inner.options.id;
        tracing::info!(successor, "handing the leadership over");
        if self.inner.raft.trigger().transfer_leader(successor).await.is_err() {
            return;
        }
        let moved = self
            .inner
            .raft
            .wait(Some(HANDOVER_TIMEOUT))
            .metrics(|metrics| metrics.current_leader.is_some_and(|leader| leader != id), "another leader")
            .await;
        if moved.is_err() {
            tracing::warn!(successor, "nobody took the leadership over in time; the others will elect");
        }
    }

    /// The other voter that has most of the log, if this node leads.
    fn successor(&self) -> Option<NodeId> {
        let metrics = self.metrics();
        let voters: Vec<_> = metrics.membership_config.voter_ids().collect();
        let matched = metrics.replication?;
        let others = matched.into_iter().filter(|(id, _)| *id != metrics.id && voters.contains(id));
        others.max_by_key(|(_, matched)| *matched).map(|(id, _)| id)
    }

    /// Stops taking part.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::error!(%error, "stopping the consensus core");
        }
        if let Err(error) = self.inner.storage.close().await {
            tracing::error!(%error, "closing the storage");
        }
    }

    /// What the consensus core last said of itself.
    pub(super) fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.inner.raft.metrics().borrow_watched().clone()
    }

    fn proposal_permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, NodeError> {
        self.inner.proposals.try_acquire().map_err(|_| NodeError::Overloaded { limit: PROPOSALS_MAX })
    }

    /// Notes on the quorum clock what the leader learns from acknowledgements.
    fn watch_quorum(&self) {
        let (mut metrics, quorum) = (self.inner.raft.metrics(), self.inner.quorum.clone());
        tokio::spawn(async move {
            while metrics.changed().await.is_ok() {
                let acked = metrics.borrow_and_update().last_quorum_acked;
                if let Some(acked) = acked {
                    quorum.saw(acked.elapsed());
                }
            }
        });
    }

    /// How many hold this node, this one included: its directory is free when the last of them lets go.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.inner)
    }
}

/// Answers to peers: encoded messages in, encoded messages out.
impl Node {
    /// Whether a call addressed to `cluster` and `storage` (where the caller names them) is meant for this node.
    ///
    /// # Errors
    /// A sentence that says which does not match.
    pub fn check_addressee(&self, cluster: Option<&str>, storage: Option<&str>) -> Result<(), String> {
        let own_storage = self.inner.options.member.storage.to_string();
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

    /// Takes a stream of appends and answers each, in order.
    pub fn append<S>(&self, frames: S) -> impl Stream<Item = Result<Envelope, NodeError>> + Send + 'static
    where
        S: Stream<Item = Envelope> + Send + 'static,
    {
        let quorum = self.inner.quorum.clone();
        // A frame that does not decode ends the stream; the leader sees it closed and starts another.
        let requests = frames
            .map(move |frame| {
                let request = format::decode::<AppendEntriesRequest<TypeConfig>>(&frame.body);
                (request, frame.quorum_age_ms)
            })
            .take_while(|(request, _)| {
                if let Err(error) = request {
                    tracing::error!(%error, "an append does not decode");
                }
                std::future::ready(request.is_ok())
            })
            .filter_map(|(request, age)| std::future::ready(request.ok().map(|request| (request, age))));
        let ages = Arc::new(std::sync::Mutex::new(std::collections::VecDeque::new()));
        let requests = {
            let ages = ages.clone();
            requests.map(move |(request, age)| {
                ages.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_back(age);
                request
            })
        };
        self.inner.raft.stream_append(requests).map(move |answer| {
            let answer = answer.map_err(|fatal| NodeError::Fatal(fatal.to_string()))?;
            let age = ages.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pop_front().flatten();
            // Only a leader this node accepts may tell it about a quorum.
            if let (Ok(_), Some(age)) = (&answer, age) {
                quorum.saw(Duration::from_millis(age));
            }
            Ok(envelope(&answer))
        })
    }

    /// Answers a vote request.
    ///
    /// # Errors
    /// [`NodeError::Decode`], [`NodeError::Fatal`].
    pub async fn vote(&self, request: &[u8]) -> Result<Envelope, NodeError> {
        let request: VoteRequest<TypeConfig> = format::decode(request)?;
        let answer =
            self.inner.raft.vote(request).await.map_err(|error| NodeError::Fatal(error.to_string()))?;
        Ok(envelope(&answer))
    }

    /// Answers whether it would vote.
    ///
    /// # Errors
    /// As [`Node::vote`].
    pub async fn pre_vote(&self, request: &[u8]) -> Result<Envelope, NodeError> {
        let request: VoteRequest<TypeConfig> = format::decode(request)?;
        let answer =
            self.inner.raft.pre_vote(request).await.map_err(|error| NodeError::Fatal(error.to_string()))?;
        Ok(envelope(&answer))
    }

    /// Takes the leadership over if asked to.
    ///
    /// # Errors
    /// As [`Node::vote`].
    pub async fn transfer_leader(&self, request: &[u8]) -> Result<Envelope, NodeError> {
        let request = format::decode(request)?;
        let answer = self
            .inner
            .raft
            .handle_transfer_leader(request)
            .await
            .map_err(|error| NodeError::Fatal(error.to_string()))?;
        Ok(envelope(&answer))
    }

    /// Receives a snapshot and installs it. The old state stays until the whole file has arrived and its hash fits.
    ///
    /// # Errors
    /// [`NodeError::Store`] if it does not arrive whole; [`NodeError::Fatal`] if installing it fails.
    pub async fn install_snapshot<S, E>(&self, chunks: S) -> Result<Envelope, NodeError>
    where
        S: Stream<Item = Result<SnapshotChunk, E>> + Send + Unpin,
        E: std::fmt::Display,
    {
        let mut chunks = chunks;
        let broken = |why: String| NodeError::Fatal(format!("receiving a snapshot: {why}"));
        let first = chunks.next().await.ok_or_else(|| broken("it is empty".to_owned()))?;
        let Ok(SnapshotChunk { part: Some(snapshot_chunk::Part::Header(header)) }) = first else {
            return Err(broken("it does not begin with a header".to_owned()));
        };
        let header: SnapshotHeader = format::decode(&header)?;
        let mut receiver =
            self.inner.storage.machine.snapshots().receive(header.bytes, header.sha256).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| broken(error.to_string()))?;
            let Some(snapshot_chunk::Part::Data(data)) = chunk.part else {
                return Err(broken("a second header".to_owned()));
            };
            receiver.write(&data).await?;
        }
        let file = receiver.finish().await?;
        let snapshot = Snapshot { meta: header.meta, snapshot: file };
        let answer = self
            .inner
            .raft
            .install_full_snapshot(header.vote, snapshot)
            .await
            .map_err(|error| NodeError::Fatal(error.to_string()))?;
        Ok(envelope(&answer))
    }
}
