//! Beginning a new history on this node's data, after a quorum was lost for ever.
//!
//! Works on a stopped node and opens no port. The steps, and what a crash between any two of them leaves:
//!
//! 1. look at what this node has and what the others say; refuse, or go on. Nothing is changed by that;
//! 2. note the new identity in the data directory. *Crash:* the log has no new entry yet: the node starts as before;
//! 3. append the membership of this node alone. *Crash:* the node does not serve any more, for it would be a quorum of
//!    the old cluster; running the same command again goes on with the identity of the note;
//! 4. lead, apply all there is, commit the new identity. *Crash:* as before; the command counts once;
//! 5. stop, and remove the note. *Crash:* running the command again only removes it.

use std::path::Path;

use uuid::Uuid;

use super::{Claimed, ServerError, claim};
use crate::config::Config;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, NodeId};
use crate::raft::node::LEADER_LOST_ELECTIONS;
use crate::raft::peers::Peers;
use crate::raft::recovery::{Allowed, Objection, Survey, Survivor, ask, survey};
use crate::raft::storage::Storage;
use crate::raft::{Node, NodeError, NodeOptions};
use crate::seal::NodeKey;
use crate::store::StoreError;
use crate::store::directory::{DataDir, holds_data};
use crate::store::recovery::RecoveryNote;
use crate::tls::Tls;

/// What the operator asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// What they take upon themselves.
    pub allowed: Allowed,
    /// The identity of the cluster that is to end, repeated.
    pub confirmed: Option<ClusterId>,
}

/// What is known, and what speaks against going on.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What this node has, and what the others say.
    pub survey: Survey,
    /// Why the new history would not be begun here; none if it was begun already.
    pub objections: Vec<Objection>,
    /// It was begun and is not complete: under this identity.
    pub begun: Option<RecoveryNote>,
}

/// A new history that was begun.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// The node that goes on.
    pub survivor: NodeId,
    /// The members that are left behind.
    pub lost: Vec<NodeId>,
    /// The identity of the history that ended.
    pub previous: ClusterId,
    /// The new one.
    pub cluster: ClusterId,
}

/// Why no new history was begun.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The node could not be opened or run. After the new history was begun, repeating the command goes on with it.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// It must not be, here and now. Nothing was changed.
    #[error("no new history is begun: {}", .0.objections.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Box<Plan>),
    /// It cannot be undone, and the operator has not said which cluster is meant. Nothing was changed.
    #[error("nothing was changed: ending the history of cluster {cluster} has to be confirmed with its id")]
    Unconfirmed {
        /// What would be done, and on what grounds.
        plan: Box<Plan>,
        /// What has to be confirmed.
        cluster: ClusterId,
    },
}

impl From<NodeError> for RecoverError {
    fn from(error: NodeError) -> Self {
        Self::Server(error.into())
    }
}

impl From<StoreError> for RecoverError {
    fn from(error: StoreError) -> Self {
        Self::Server(error.into())
    }
}

/// A node whose storage is open and that takes no part yet.
struct Opened {
    tls: Tls,
    directory: DataDir,
    key: NodeKey,
    options: NodeOptions,
    storage: Storage,
}

/// Finds out what this node has and what the others say. The node may run; if it does not, its storage is opened as a
/// start of the node would: the newest part of the log is written anew as it is, and what is committed is applied.
///
/// # Errors
/// [`ServerError`]: the node's data, key or certificate cannot be used.
pub async fn plan(config: &Config, allowed: &Allowed) -> Result<Plan, ServerError> {
    match open_existing(config).await {
        Ok(opened) => {
            let planned = look(&opened, config, allowed).await;
            opened.storage.close().await?;
            planned
        }
        Err(ServerError::Store(StoreError::Locked(path))) => {
            let tls = super::load_tls(config)?;
            let peers = Peers::new(tls, std::sync::Arc::default());
            // It is in use by the node itself, unless it does not answer.
            let Ok(local) = ask(&peers, config.node_id, &config.advertise.peer).await else {
                return Err(StoreError::Locked(path).into());
            };
            let survey = survey(config.node_id, local, true, &peers).await;
            let objections = survey.objections(allowed, live_ms(config));
            Ok(Plan { survey, objections, begun: None })
        }
        Err(error) => Err(error),
    }
}

/// Begins a new history on this node's data: see the module for the steps.
///
/// # Errors
/// [`RecoverError`].
pub async fn recover(config: &Config, request: &Request) -> Result<Recovered, RecoverError> {
    let opened = open_existing(config).await?;
    match prepare(&opened, config, request).await {
        Ok(note) => {
            let RecoveryNote { previous, cluster, lost, .. } = note;
            begin(opened, cluster).await?;
            Ok(Recovered { survivor: config.node_id, lost, previous, cluster })
        }
        Err(error) => {
            // Closed in order, so that the next start need not replay.
            opened.storage.close().await?;
            Err(error)
        }
    }
}

/// Opens a node that has run before. A wrong path must not become an empty data directory.
async fn open_existing(config: &Config) -> Result<Opened, ServerError> {
    if !holds_data(&config.data_dir) {
        let reason = "holds no data of a node: there is nothing to go on from".to_owned();
        return Err(StoreError::Directory { path: config.data_dir.clone(), reason }.into());
    }
    let Claimed { tls, directory, key, options, storage } = claim(config)?;
    // As it is. A start would fetch a state that is lost from the others; here it is asked what this node has.
    let storage = Storage::open(&directory, storage).await?;
    storage.replay_committed().await?;
    Ok(Opened { tls, directory, key, options, storage })
}

async fn look(opened: &Opened, config: &Config, allowed: &Allowed) -> Result<Plan, ServerError> {
    let mut local = opened.storage.survivor(opened.directory.storage()).await?;
    if let Some(why) = opened.directory.removal_mark().read()? {
        local.unfit = Some(why);
    }
    if let Some(note) = begun(&opened.directory, &opened.storage)? {
        let survey = alone(config, local);
        return Ok(Plan { survey, objections: Vec::new(), begun: Some(note) });
    }
    let peers = Peers::new(opened.tls.clone(), std::sync::Arc::default());
    let survey = survey(config.node_id, local, false, &peers).await;
    let objections = survey.objections(allowed, live_ms(config));
    Ok(Plan { survey, objections, begun: None })
}

/// What is known of an attempt that is continued: the others have no say in it any more.
fn alone(config: &Config, local: Survivor) -> Survey {
    Survey { node: config.node_id, running: false, local, asked: std::collections::BTreeMap::new() }
}

/// Everything that can be found wrong before something is changed.
async fn prepare(opened: &Opened, config: &Config, request: &Request) -> Result<RecoveryNote, RecoverError> {
    let plan = look(opened, config, &request.allowed).await?;
    if !plan.objections.is_empty() {
        // Of an attempt that changed nothing: the node may start again as it was.
        opened.directory.remove_recovery_note()?;
        return Err(RecoverError::Refused(Box::new(plan)));
    }
    let begun = plan.begun.as_ref().map(|note| note.previous);
    let Some(previous) = begun.or(plan.survey.local.cluster) else {
        return Err(NodeError::NoCluster.into());
    };
    if request.confirmed != Some(previous) {
        return Err(RecoverError::Unconfirmed { plan: Box::new(plan), cluster: previous });
    }
    let supported = opened.options.feature_level;
    if supported < FeatureLevel::DEPARTURES {
        return Err(NodeError::FeatureLevel { level: FeatureLevel::DEPARTURES, supported }.into());
    }
    if let Some(note) = plan.begun {
        return Ok(note);
    }
    // To find out now, and not after the log was changed.
    opened.storage.rotated_keyring(&opened.key)?;
    let cluster = ClusterId(Uuid::new_v4());
    let position = opened.storage.next_position()?;
    let lost = plan.survey.asked.into_keys().collect();
    let note = RecoveryNote { previous, cluster, position, lost };
    opened.directory.write_recovery_note(&note)?;
    let (id, member) = (opened.options.id, opened.options.member.clone());
    opened.storage.append_sole_voter(position, id, member).await?;
    Ok(note)
}

/// Runs the node, without ports, until the new history has its identity.
async fn begin(opened: Opened, cluster: ClusterId) -> Result<(), RecoverError> {
    let Opened { tls, directory, key, options, storage } = opened;
    let data_dir = directory.path().to_owned();
    let node = Node::start(options, directory, storage, tls, key).await?;
    let recovered = async {
        node.lead_alone().await?;
        node.recover_cluster(cluster).await
    };
    let recovered = recovered.await;
    node.stop().await;
    super::released(&node).await;
    drop(node);
    recovered?;
    complete(&data_dir)
}

/// The new history stands, durably: the node may serve it.
fn complete(data_dir: &Path) -> Result<(), RecoverError> {
    Ok(DataDir::open_or_create(data_dir)?.remove_recovery_note()?)
}

/// The note of a recovery that has changed the log.
fn begun(directory: &DataDir, storage: &Storage) -> Result<Option<RecoveryNote>, StoreError> {
    match directory.recovery_note()? {
        Some(note) if storage.log.holds(note.position).map_err(StoreError::Log)? => Ok(Some(note)),
        _ => Ok(None),
    }
}

/// Refuses to serve data on which a new history was begun and is not complete; forgets one that was not begun.
///
/// # Errors
/// [`ServerError::RecoveryUnfinished`], [`ServerError::Store`].
pub(super) fn refuse_unfinished(directory: &DataDir, storage: &Storage) -> Result<(), ServerError> {
    match begun(directory, storage)? {
        Some(note) => Err(ServerError::RecoveryUnfinished(note.previous)),
        None => Ok(directory.remove_recovery_note()?),
    }
}

/// A quorum that was seen so lately counts as there: that long a node calls its leader one.
fn live_ms(config: &Config) -> u64 {
    LEADER_LOST_ELECTIONS * config.raft.election_max_ms
}
