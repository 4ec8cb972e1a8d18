//! A node that starts and cannot use its state: it is lost (neither base nor snapshot reaches up to where its log begins),
//! or a committed entry cannot be applied to it, at this start or any other. Its log and its vote are there, so it may go
//! on as the voter it is; the state it takes from the others, before consensus starts.
//!
//! A state that an entry could not be applied to was wrong before that entry. So what takes its place is in quarantine
//! until a majority agrees. Should every replica fail at the same entry, nobody has a state to give, and each ends with
//! an error until a release is installed that can apply it; then all go on, and what was noted is forgotten.
//!
//! Whom to ask stands in the state that is lost. So a node that is well writes down who the members are, beside it.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::escrow::ids::{ClusterId, NodeId};
use crate::escrow::state::StateError;
use crate::metrics::RaftMetrics;
use crate::store::StoreError;
use crate::store::directory::DataDir;
use crate::store::quarantine::{Cause, Quarantine, Stage};
use crate::store::snapshot::Snapshots;
use crate::tls::Tls;

use super::error::NodeError;
use super::fetch::fetch;
use super::node::Node;
use super::peers::Peers;
use super::storage::{Storage, StorageOptions};
use super::types::Member;

/// How long the members are asked before the node gives up; whoever runs it starts it again.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two rounds of asking.
const RETRY: Duration = Duration::from_secs(1);

/// Who the members are, as last known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    cluster: ClusterId,
    members: Vec<KnownMember>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct KnownMember {
    id: NodeId,
    member: Member,
    voter: bool,
}

/// The file that says who the members are.
pub(super) struct Acquaintances {
    path: PathBuf,
    written: Option<Known>,
}

impl Acquaintances {
    pub fn of(directory: &DataDir) -> Self {
        Self { path: directory.members(), written: None }
    }

    /// Writes down who the members are, if that has changed. If it cannot be written, an older list may still do.
    pub fn remember(&mut self, node: &Node) {
        let Some(cluster) = node.inner.cluster.get().copied().or_else(|| Some(node.cluster().ok()??.id))
        else {
            return;
        };
        let members = node.members().into_iter();
        let members: Vec<_> =
            members.map(|(id, (member, voter))| KnownMember { id, member, voter }).collect();
        let known = Known { cluster, members };
        if known.members.is_empty() || self.written.as_ref() == Some(&known) {
            return;
        }
        match DataDir::write_file(&self.path, &known) {
            Ok(()) => self.written = Some(known),
            Err(error) => tracing::warn!(%error, "who the members are could not be written down"),
        }
    }
}

/// Opens the storage in `directory` and applies what is known to be committed; if its state is lost or an entry cannot be
/// applied to it, with one fetched from the other members. A quarantine for that is counted in `metrics`.
///
/// # Errors
/// [`StoreError::Unrecoverable`] if the state is lost and nobody to ask is known; [`NodeError::Inapplicable`] if an entry
/// cannot be applied and nobody gave another state within two minutes, [`NodeError::Transfer`] if nobody did for one
/// that is lost; otherwise as [`Storage::open`].
pub async fn open_storage(
    id: NodeId,
    directory: &DataDir,
    options: StorageOptions,
    tls: &Tls,
    metrics: &RaftMetrics,
) -> Result<Storage, NodeError> {
    let lost = match Storage::open(directory, options.clone()).await {
        Err(lost @ StoreError::Unrecoverable { .. }) => lost,
        opened => return applicable(opened?, id, directory, options, tls, metrics).await,
    };
    tracing::error!(error = %lost, "the state of this node is lost: it is fetched from the others");
    let StoreError::Unrecoverable { purged, .. } = &lost else { return Err(lost.into()) };
    let min_index = purged.unwrap_or(0).max(1);
    let Some(known) = DataDir::read_file::<Known>(&directory.members())? else {
        tracing::error!("who the other members are is not known here either");
        return Err(lost.into());
    };
    fetch_state(id, directory, known, tls, min_index).await?;
    Ok(Storage::open(directory, options).await?)
}

/// Applies what is known to be committed, as every start does; to another state if it cannot be applied to this one.
async fn applicable(
    storage: Storage,
    id: NodeId,
    directory: &DataDir,
    options: StorageOptions,
    tls: &Tls,
    metrics: &RaftMetrics,
) -> Result<Storage, NodeError> {
    let failure = match storage.replay_committed().await {
        Err(StoreError::State(error)) if is_of_the_state(&error) => error,
        // Whatever else is wrong says so itself when consensus starts.
        Err(_) => return Ok(storage),
        Ok(()) => {
            let noted = storage.quarantine.current();
            if noted.is_some_and(|noted| (noted.cause, noted.stage) == (Cause::Apply, Stage::Waiting)) {
                storage.quarantine.lift()?;
            }
            return Ok(storage);
        }
    };
    let index = storage.machine.applied_index() + 1;
    tracing::error!(
        %failure, index,
        "a committed entry cannot be applied to the state of this node: another is fetched from the others"
    );
    let note = |index, stage| Quarantine { cause: Cause::Apply, index, since_ms: super::now().0, stage };
    if storage.quarantine.current().is_none() {
        metrics.quarantines.inc();
    }
    storage.quarantine.set(note(index, Stage::Waiting))?;
    // It fails because it failed before, and lets go of the directory all the same.
    drop(storage.close().await);
    drop(storage);
    let inapplicable =
        |reason: String| NodeError::Inapplicable { index, failure: failure.to_string(), reason };
    let Some(known) = DataDir::read_file::<Known>(&directory.members())? else {
        return Err(inapplicable("who the other members are is not known here".to_owned()));
    };
    // Beyond the entry, so it is newer than all this node has, and its base is filled anew.
    let fetched = fetch_state(id, directory, known, tls, index).await;
    fetched.map_err(|error| inapplicable(crate::error::chain(&error)))?;
    let storage = Storage::open(directory, options).await?;
    storage.quarantine.set(note(storage.machine.applied_index(), Stage::Replaced))?;
    Ok(storage)
}

/// Whether it is the state that is wrong, and not the disk that cannot be read.
fn is_of_the_state(error: &StateError) -> bool {
    !error.0.is::<StoreError>()
}

async fn fetch_state(
    id: NodeId,
    directory: &DataDir,
    known: Known,
    tls: &Tls,
    min_index: u64,
) -> Result<(), NodeError> {
    let path = directory.snapshots();
    let opened = spawn_blocking(move || Snapshots::open(&path)).await;
    let snapshots = opened.map_err(|panic| StoreError::Stopped(panic.to_string()))??;
    let peers = Peers::new(tls.clone(), Arc::new(OnceLock::from(known.cluster)));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut last = NodeError::Transfer("no other member is known".to_owned());
        for other in known.members.iter().filter(|other| other.id != id) {
            match fetch(peers.member(other.id, &other.member), &snapshots, min_index).await {
                Ok(file) => {
                    let (snapshots, node) = (snapshots.clone(), other.id);
                    let kept = spawn_blocking(move || snapshots.keep(file)).await;
                    let kept = kept.map_err(|panic| StoreError::Stopped(panic.to_string()))??;
                    let index = kept.position().map_or(0, |position| position.index);
                    tracing::info!(node, index, "the state was fetched");
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(
                        node = other.id,
                        error = crate::error::chain(&error),
                        "no state from there"
                    );
                    last = error;
                }
            }
        }
        if Instant::now() >= deadline {
            return Err(last);
        }
        sleep(RETRY).await;
    }
}
