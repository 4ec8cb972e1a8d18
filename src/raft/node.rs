//! One member of the cluster: what it is, what its replica holds, how fresh that is. Asking the leader is in `leader`,
//! answering peers in `peer_side`, changing who is a member in `membership`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, RaftMetrics, ServerState};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::escrow::command::Reply;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, ClusterName, NodeId};
use crate::escrow::lookup;
use crate::escrow::records::{ClusterRecord, LogPosition};
use crate::metrics::Metrics;
use crate::seal::{Keyring, NodeKey, SealError};
use crate::store::digest::Digest;
use crate::store::directory::DataDir;
use crate::store::journal::Journal;
use crate::store::quarantine::Quarantine;
use crate::store::spool::{SpoolLimits, Spools};
use crate::store::view::View;
use crate::tls::Tls;

use super::agreement::Agreement;
use super::clock::{Clock, Skew};
use super::compaction;
use super::contacts::Contacts;
use super::error::NodeError;
use super::expelled::Expulsion;
use super::features::{self, HeldBack};
use super::fetch::OFFERS_MAX;
use super::groups::Groups;
use super::journal;
use super::keyring::KeyringCache;
use super::leader::{self, PROPOSALS_MAX_KIB, PROPOSE_TIMEOUT};
use super::membership::{Turns, failure_tolerance, spawn_settling};
use super::network::Network;
use super::opening::OpeningBoard;
use super::pace::hand_over;
use super::peers::{PeerClient, Peers};
use super::quorum::QuorumClock;
use super::read_index::ReadIndex;
use super::room::Room;
use super::storage::{HeldLog, Storage};
use super::types::{Member, Raft, TypeConfig};
use super::usage::UsageMeter;

/// Longest a reader waits for this replica to apply the index it needs.
pub const APPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// A leader that has given no sign of a quorum for this many of the longest election timeouts is not called one any
/// more: an election would have found another by then.
pub const LEADER_LOST_ELECTIONS: u64 = 3;

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
    /// Up to which feature level it says that it can apply commands: what its release supports, or less.
    pub feature_level: FeatureLevel,
    /// Where it counts.
    pub metrics: Metrics,
}

impl NodeOptions {
    /// How openraft is set up for a node of `cluster`.
    ///
    /// # Errors
    /// [`NodeError::Fatal`] if the times contradict each other.
    pub fn consensus(&self, cluster: &ClusterName) -> Result<openraft::Config, NodeError> {
        let config = openraft::Config {
            cluster_name: cluster.to_string(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            // A node that comes back from a partition asks first and does not depose a working leader.
            enable_pre_vote: Some(true),
            // A leader sends entries before they are on its own disk, and followers may make up the majority that commits
            // them. After a power loss it may have lost what is committed: were it to go on leading its old term, it would
            // put other entries in the same places, and nobody could tell them apart.
            enable_leader_restore: Some(false),
            max_in_snapshot_log_to_keep: self.keep_entries,
            // Snapshots are taken by weight, not by count: see `raft::compaction`.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            ..Default::default()
        };
        config.validate().map_err(|error| NodeError::Fatal(error.to_string()))
    }
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
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub role: &'static str,
    /// Current term.
    pub term: u64,
    /// The leader, if one is in contact.
    pub leader: Option<NodeId>,
    /// Index of its last log entry.
    pub last_log: u64,
    /// Term of its last log entry.
    pub last_log_term: u64,
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
    pub(super) storage: Storage,
    /// Holds the lock on the data directory for as long as anything may write there.
    pub(super) directory: DataDir,
    pub(super) stop: CancellationToken,
    pub(super) peers: Peers,
    pub(super) cluster: Arc<OnceLock<ClusterId>>,
    pub(super) keyring: KeyringCache,
    pub(super) quorum: QuorumClock,
    /// Room for commands under way, in KiB.
    pub(super) proposals: Arc<Semaphore>,
    pub(super) groups: Groups,
    pub(super) reads: OnceLock<ReadIndex>,
    pub(super) leader_reads: OnceLock<ReadIndex>,
    pub(super) turns: Turns,
    pub(super) expulsion: Expulsion,
    pub(super) journal: Journal,
    /// How much nodes that were removed have told it of late.
    pub(super) allowance: std::sync::Mutex<journal::allowance::Allowance>,
    /// Who keeps this leader from raising the feature level.
    pub(super) held_back: std::sync::Mutex<Vec<HeldBack>>,
    pub(super) contacts: Contacts,
    pub(super) usage: UsageMeter,
    pub(super) opening: OpeningBoard,
    /// Where reports put what they read.
    pub(super) spools: Spools,
    /// Room for snapshots on their way to who asked for one.
    pub(super) offers: Arc<Semaphore>,
    /// What the last comparison with the others came to.
    pub(super) agreement: std::sync::Mutex<Agreement>,
    pub(super) clock: Clock,
    /// Whose disks are full, if writes wait for that.
    pub(super) room: Room,
    /// The log is more than a quarantined node may keep: it is to stop.
    pub(super) overfull: watch::Sender<Option<HeldLog>>,
}

impl Node {
    /// Starts taking part with what `storage` holds. A node that belongs to no cluster waits to be added.
    ///
    /// # Errors
    /// [`NodeError::Fatal`] if the consensus core does not start; [`NodeError::State`] if the replica cannot be read;
    /// [`NodeError::FeatureLevel`] if it stands at a feature level that this node does not support;
    /// [`NodeError::Unrepaired`] if it is quarantined and its log is more than it may keep.
    pub async fn start(
        options: NodeOptions,
        directory: DataDir,
        storage: Storage,
        tls: Tls,
        key: NodeKey,
    ) -> Result<Self, NodeError> {
        // Before anything takes part: an entry that this release cannot apply may be the next one.
        level_is_supported(&storage, &options)?;
        // As well: with each start it would take more of it.
        if let Some(held) = storage.held_log()?.filter(HeldLog::is_too_much) {
            return Err(NodeError::Unrepaired(held));
        }
        let config = openraft::Config {
            // The log is cut a little at a time: see `raft::compaction`.
            max_in_snapshot_log_to_keep: u64::MAX,
            ..options.consensus(&tls.identity().cluster)?
        };
        let expulsion = Expulsion::load(directory.removal_mark())?;
        let journal = journal::open(&directory)?;
        let spools = Spools::open(&directory.reports(), SpoolLimits::default())?;
        let quorum = QuorumClock::default();
        let cluster = Arc::new(OnceLock::new());
        let peers = Peers::new(tls, cluster.clone());
        let network = Network::new(peers.clone(), quorum.clone(), storage.quarantine.clone());
        let (log, machine) = (storage.log_store(), storage.state_machine());
        let raft = Raft::new(options.id, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| NodeError::Fatal(error.to_string()))?;
        // Starting has applied what was known to be committed, which may be more than the base had. From here on nothing
        // fails: tasks that hold the storage must not be left behind by a start that did.
        if let Err(error) = look_at_what_was_applied(&storage, &options, &cluster) {
            // It has taken no part yet; if it does not stop by itself, the end of the process stops it.
            drop(raft.shutdown().await);
            return Err(error);
        }
        let stop = CancellationToken::new();
        compaction::spawn(raft.clone(), storage.clone(), options.keep_entries, stop.clone());
        let groups = leader::groups(raft.clone());
        let usage = UsageMeter::default();
        usage.spawn(storage.clone(), directory.path().to_owned(), stop.clone());
        let node = Self {
            inner: Arc::new(Inner {
                options,
                raft,
                storage,
                directory,
                stop,
                peers,
                cluster,
                keyring: KeyringCache::new(key),
                quorum,
                proposals: Arc::new(Semaphore::new(PROPOSALS_MAX_KIB)),
                groups,
                reads: OnceLock::new(),
                leader_reads: OnceLock::new(),
                turns: Turns::default(),
                expulsion,
                journal,
                allowance: std::sync::Mutex::default(),
                held_back: std::sync::Mutex::default(),
                contacts: Contacts::default(),
                usage,
                opening: OpeningBoard::default(),
                spools,
                offers: Arc::new(Semaphore::new(OFFERS_MAX)),
                agreement: std::sync::Mutex::default(),
                clock: Clock::default(),
                room: Room::default(),
                overfull: watch::Sender::default(),
            }),
        };
        node.start_reads();
        node.watch_quorum();
        node.watch_leader();
        node.watch_agreement();
        node.watch_expulsion();
        spawn_settling(Arc::downgrade(&node.inner), node.inner.stop.clone());
        node.watch_features();
        node.watch_resealing();
        node.watch_opening();
        node.watch_journal();
        Ok(node)
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

    /// Runs what reads a few rows of this replica, or opens the keyring: here if the disk is quick, else where it holds up
    /// nobody else.
    ///
    /// # Errors
    /// What `read` answers.
    pub(crate) async fn read_briefly<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, NodeError> {
        let (node, storage) = (self.clone(), &self.inner.storage);
        let read = move || read(&node);
        let read = if storage.machine.reads_at_once() {
            storage.pace.run(read).await
        } else {
            hand_over(read).await
        };
        read.map_err(NodeError::cut_off)?
    }

    /// Index this replica has applied; 0 before the first.
    pub fn applied(&self) -> u64 {
        self.inner.storage.machine.applied_index()
    }

    /// The entry of the log this replica has applied last.
    pub fn applied_position(&self) -> LogPosition {
        self.inner.storage.machine.applied().position.unwrap_or_default()
    }

    /// How fresh this replica is. What is read after this was asked is at least as fresh.
    pub fn freshness(&self) -> Freshness {
        // In a statement of its own: the borrow is a read lock, and another of the same watch taken while it lasts
        // (`leader_in_contact` below) deadlocks with a writer that waits between the two.
        let term = self.inner.raft.server_metrics().borrow_watched().vote.leader_id.term;
        Freshness {
            applied: self.applied(),
            term,
            leader_known: self.leader_in_contact().is_some(),
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
    /// [`NodeError::NoCluster`] if there is none yet; [`NodeError::Excluded`] if it is not sealed to this node (any
    /// more): another node has it, so the caller is to go there; [`NodeError::Keyring`] if it cannot be used.
    pub fn keyring(&self) -> Result<Arc<Keyring>, NodeError> {
        self.keyring_in(&self.view()?)
    }

    /// As [`Node::keyring`], at the entry where `view` stands: what is read through the same view opens with it. Of
    /// a later one the data key may have been dropped.
    ///
    /// # Errors
    /// As [`Node::keyring`].
    pub fn keyring_in(&self, view: &View) -> Result<Arc<Keyring>, NodeError> {
        let record = lookup::keyring(view)?.ok_or(NodeError::NoCluster)?;
        self.inner.keyring.open(&record).map_err(|error| match error {
            SealError::NotARecipient => NodeError::Excluded(
                "the keyring is not sealed to it: it was removed, or has lost its identity".into(),
            ),
            error => error.into(),
        })
    }

    /// What the keyring is sealed to for this node.
    pub fn recipient(&self) -> String {
        self.inner.keyring.recipient()
    }

    /// Who this node is and where it is reached.
    pub fn options(&self) -> &NodeOptions {
        &self.inner.options
    }

    /// The leader this node knows, dead or alive: whom to ask.
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.raft.server_metrics().borrow_watched().current_leader
    }

    /// The leader, if there has been a sign of a quorum lately: whom to show.
    pub fn leader_in_contact(&self) -> Option<NodeId> {
        let lost = Duration::from_millis(LEADER_LOST_ELECTIONS * self.inner.options.election_max_ms);
        self.leader().filter(|_| self.inner.quorum.age().is_some_and(|age| age <= lost))
    }

    /// Members by id, with whether they vote.
    pub fn members(&self) -> BTreeMap<NodeId, (Member, bool)> {
        let metrics = self.metrics();
        let voters: Vec<_> = metrics.membership_config.voter_ids().collect();
        let nodes = metrics.membership_config.nodes();
        nodes.map(|(id, member)| (*id, (member.clone(), voters.contains(id)))).collect()
    }

    /// Ids of the voters, of both halves of a joint configuration.
    pub fn voters(&self) -> Vec<NodeId> {
        self.metrics().membership_config.voter_ids().collect()
    }

    /// How many voters may fail before writes stop; of a joint configuration, the half that tolerates less counts.
    pub fn failure_tolerance(&self) -> u32 {
        let metrics = self.metrics();
        let halves = metrics.membership_config.get_joint_config();
        halves.iter().map(|half| failure_tolerance(half.len())).min().unwrap_or(0)
    }

    /// The client of a member that is kept for whatever is short.
    pub fn member_client(&self, id: NodeId) -> Option<PeerClient> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let member = metrics.membership_config.get_node(&id)?;
        Some(self.inner.peers.control(id, member))
    }

    /// A client of a member with a connection of its own, for what is long.
    pub(super) fn member_connection(&self, id: NodeId) -> Option<PeerClient> {
        let metrics = self.inner.raft.metrics();
        let metrics = metrics.borrow_watched();
        let member = metrics.membership_config.get_node(&id)?;
        Some(self.inner.peers.member(id, member))
    }

    /// Whether `id` is a member, voter or learner, as this node knows it.
    pub fn is_member(&self, id: NodeId) -> bool {
        self.inner.raft.metrics().borrow_watched().membership_config.get_node(&id).is_some()
    }

    /// Whether its state is that of the others, as last compared.
    pub fn agreement(&self) -> Agreement {
        *self.inner.agreement.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far its clock is from those of the others.
    pub fn clock_skew(&self) -> Skew {
        self.inner.clock.skew()
    }

    /// Why this node stamps no commands and leads nobody; `None` if its clock is right as far as is known.
    pub fn clock_fault(&self) -> Option<Skew> {
        Some(self.clock_skew()).filter(|skew| skew.is_too_much())
    }

    /// Why this node has put itself aside; `None` if it has not. While it has, it serves no clients, leads only if
    /// nobody else can, and gives its state to nobody.
    pub fn quarantine(&self) -> Option<Quarantine> {
        self.inner.storage.quarantine.current()
    }

    /// What this node knows about itself.
    pub fn vitals(&self) -> Vitals {
        let metrics = self.metrics();
        Vitals {
            role: match metrics.state {
                ServerState::Leader if self.leader_in_contact().is_some() => "leader",
                // A leader without a quorum is one in its own eyes only.
                ServerState::Candidate | ServerState::Leader => "candidate",
                ServerState::Follower => "follower",
                ServerState::Learner => "learner",
                ServerState::Shutdown => "stopped",
            },
            term: metrics.current_term,
            leader: self.leader_in_contact(),
            last_log: metrics.last_log_index.unwrap_or(0),
            last_log_term: self.inner.storage.last_log_term(),
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
        let metrics = self.inner.raft.metrics();
        let running = &metrics.borrow_watched().running_state;
        running.clone().map_err(|fatal| NodeError::Fatal(fatal.to_string()))
    }

    /// The log that waits for the end of a quarantine; `None` for a node that is well, or if its log is broken, which
    /// stops it by itself.
    pub fn held_log(&self) -> Option<HeldLog> {
        self.inner.storage.held_log().ok().flatten()
    }

    /// Resolves when this node cannot go on, with the reason: the consensus core has stopped by itself, or the log is
    /// more than a quarantined node may keep.
    pub async fn stopped(&self) -> NodeError {
        let mut overfull = self.inner.overfull.subscribe();
        let overfull = async {
            // The sender lives as long as this handle.
            let held = overfull.wait_for(Option::is_some).await.ok().and_then(|held| *held);
            match held {
                Some(held) => NodeError::Unrepaired(held),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            error = overfull => error,
            error = self.core_stopped() => error,
        }
    }

    async fn core_stopped(&self) -> NodeError {
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
        led.map_err(|_| NodeError::NoQuorum(PROPOSE_TIMEOUT))?;
        // What an earlier attempt may have committed is applied before anybody looks.
        let index = self.read_index().await.map_err(|error| fatal(error.to_string()))?;
        self.wait_applied(index).await
    }

    /// Hands the leadership over if this node has it, so that stopping costs the others no election timeout.
    ///
    /// One that does not take it at once (it may be stopping itself, or be gone) is given up for the next, so that it
    /// costs no more than half of the shortest election. From the first attempt on this node neither takes commands
    /// nor sends heartbeats, so the others elect by themselves if nobody takes over; that is waited for as well, no longer
    /// than an election takes.
    pub async fn hand_over(&self) {
        let options = &self.inner.options;
        let patience = Duration::from_millis(options.election_min_ms / 2);
        let successors = self.successors(patience).await;
        for successor in &successors {
            tracing::info!(successor, "handing the leadership over");
            if self.inner.raft.trigger().transfer_leader(*successor).await.is_err() {
                return;
            }
            if self.another_leads(patience).await {
                return;
            }
            tracing::warn!(successor, "it did not take the leadership over in time");
        }
        if successors.is_empty() || self.another_leads(Duration::from_millis(options.election_max_ms)).await {
            return;
        }
        tracing::warn!("nobody took the leadership over in time; the others will elect");
    }

    /// Whether this node knows of another leader within `limit`.
    async fn another_leads(&self, limit: Duration) -> bool {
        let id = self.inner.options.id;
        let is_another = |leader: Option<NodeId>| leader.is_some_and(|leader| leader != id);
        let wait = self.inner.raft.wait(Some(limit));
        wait.metrics(|metrics| is_another(metrics.current_leader), "another leader").await.is_ok()
    }

    /// The other voters lately in contact, if this node leads: those that say within `patience` that they have applied
    /// most first, then those that have most of the log. A leader has to apply what it has before it does anything.
    async fn successors(&self, patience: Duration) -> Vec<NodeId> {
        let metrics = self.metrics();
        let voters: Vec<_> = metrics.membership_config.voter_ids().collect();
        let (Some(matched), Some(heard)) = (metrics.replication, metrics.heartbeat) else {
            return Vec::new();
        };
        let lately = Duration::from_millis(self.inner.options.election_min_ms);
        let in_contact =
            |id: &NodeId| heard.get(id).copied().flatten().is_some_and(|heard| heard.elapsed() <= lately);
        let others =
            matched.into_iter().filter(|(id, _)| *id != metrics.id && voters.contains(id) && in_contact(id));
        let asked = others.map(|(id, matched)| async move {
            let answer = timeout(patience, self.reach(id)).await;
            let (willing, applied) =
                answer.map_or((false, 0), |(standing, applied)| (standing.is_willing(), applied));
            (Reverse((willing, applied, matched)), id)
        });
        let mut others = join_all(asked).await;
        others.sort_unstable();
        others.into_iter().map(|(_, id)| id).collect()
    }

    /// Waits until the consensus core has answered a question: it runs, and is not stuck.
    ///
    /// # Errors
    /// [`NodeError::Fatal`] if it has stopped.
    pub async fn responsive(&self) -> Result<(), NodeError> {
        let answer = self.inner.raft.is_initialized().await;
        answer.map(drop).map_err(|error| NodeError::Fatal(error.to_string()))
    }

    /// Stops taking part.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        // On a task of its own: openraft 0.10.0-alpha.37 panics here if a request was the first to wait for a core that failed,
        // and was cut off meanwhile. The node ends all the same, and by what stopped the core.
        let raft = self.inner.raft.clone();
        if let Err(error) = tokio::spawn(async move { raft.shutdown().await }).await.flatten() {
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

    /// Notes on the quorum clock what the leader learns from acknowledgements.
    fn watch_quorum(&self) {
        let (mut metrics, quorum) = (self.inner.raft.metrics(), self.inner.quorum.clone());
        tokio::spawn(async move {
            loop {
                {
                    let metrics = metrics.borrow_and_update();
                    let leads = metrics.state == ServerState::Leader;
                    quorum
                        .set_alone(leads && metrics.membership_config.voter_ids().all(|id| id == metrics.id));
                    if let Some(acked) = metrics.last_quorum_acked.filter(|_| leads) {
                        quorum.saw(acked.elapsed());
                    }
                }
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// How many hold this node, this one included: its directory is free when the last of them lets go.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.inner)
    }
}

/// What a start depends on of the replica: that this node supports the commands that are allowed, and which cluster
/// calls are addressed to.
fn look_at_what_was_applied(
    storage: &Storage,
    options: &NodeOptions,
    cluster: &OnceLock<ClusterId>,
) -> Result<(), NodeError> {
    level_is_supported(storage, options)?;
    if let Some(record) = lookup::cluster(&storage.machine.view()?)? {
        let _ = cluster.set(record.id);
    }
    Ok(())
}

/// Whether this node supports the commands that its replica says are allowed.
fn level_is_supported(storage: &Storage, options: &NodeOptions) -> Result<(), NodeError> {
    features::check(lookup::feature_level(&storage.machine.view()?)?, options.feature_level)
}
