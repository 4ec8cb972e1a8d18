//! Repairing the state of a quarantined node: what is done, and the task it is done in, beside the rounds of
//! [`healing`](super::healing), which must not wait for a long download.

use std::future::{Future, pending};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::escrow::ids::NodeId;
use crate::store::StoreError;
use crate::store::digest::Digest;
use crate::store::snapshot::SnapshotFile;

use super::error::NodeError;
use super::fetch::fetch;
use super::node::Node;
use super::state_machine::StateMachine;

/// From one attempt at a repair to the next; doubled each time, up to [`REPAIR_EVERY_MAX`].
const REPAIR_EVERY_MIN: Duration = Duration::from_secs(2);
/// See [`REPAIR_EVERY_MIN`].
const REPAIR_EVERY_MAX: Duration = Duration::from_secs(600);
/// Longest a fetched snapshot waits for this node to have applied what it covers.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(30);

/// The repair that is under way, if one is, and when the next may begin. Dropped, it ends.
pub(super) struct Repair {
    due: Instant,
    under_way: Option<AbortOnDropHandle<Result<Digest, NodeError>>>,
    wait: Duration,
}

impl Repair {
    /// None is under way, and one may begin.
    pub fn new() -> Self {
        Self { due: Instant::now(), under_way: None, wait: REPAIR_EVERY_MIN }
    }

    /// Whether one may begin: none is under way, and the last ended long enough ago.
    pub fn is_due(&self) -> bool {
        self.under_way.is_none() && Instant::now() >= self.due
    }

    /// Whether one is under way.
    pub fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// How long until the next one may begin.
    pub fn pause(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    /// The next one may begin at once.
    pub fn hasten(&mut self) {
        self.due = Instant::now();
    }

    /// It was of use: the next one does not wait longer for it.
    pub fn succeeded(&mut self) {
        self.wait = REPAIR_EVERY_MIN;
    }

    /// Does `work` in a task of its own, unless there is one.
    pub fn begin(&mut self, work: impl Future<Output = Result<Digest, NodeError>> + Send + 'static) {
        if self.under_way.is_none() {
            self.under_way = Some(AbortOnDropHandle::new(tokio::spawn(work)));
        }
    }

    /// Resolves when the one that is under way has ended, with what came of it; a panic is a failure like others. Never
    /// if none is under way. Dropped before that, it can be asked again.
    pub async fn ended(&mut self) -> Result<Digest, NodeError> {
        let Some(task) = &mut self.under_way else { return pending().await };
        let ended = task.await;
        self.under_way = None;
        self.due = Instant::now() + self.wait;
        self.wait = (self.wait * 2).min(REPAIR_EVERY_MAX);
        ended.unwrap_or_else(|panic| Err(StoreError::Stopped(panic.to_string()).into()))
    }
}

impl Node {
    /// Takes the state from one of `from`, the first that gives it.
    pub(super) async fn repair(&self, from: &[NodeId]) -> Result<Digest, NodeError> {
        let storage = &self.inner.storage;
        let log = storage.log.state().map_err(StoreError::Log)?;
        let newest = storage.machine.snapshots().newest().and_then(|file| file.position());
        // The log has to reach back to it. And no older than this node's own newest, which would count again after a
        // power loss at the wrong moment. One as old will do: in a cluster at rest there may be no newer one for hours.
        let min_index = log.purged.max(newest).map_or(0, |position| position.index).max(1);
        let mut outcome = Err(NodeError::Transfer("no node has a state to take".to_owned()));
        for id in from {
            let Some(peer) = self.member_connection(*id) else { continue };
            tracing::info!(node = id, "fetching the state");
            outcome = match fetch(peer, storage.machine.snapshots(), min_index).await {
                Ok(file) => self.replace_state(file).await,
                Err(error) => Err(error),
            };
            match &outcome {
                Ok(_) => break,
                Err(error) => tracing::warn!(node = id, %error, "the state could not be taken from there"),
            }
        }
        outcome
    }

    async fn replace_state(&self, file: SnapshotFile) -> Result<Digest, NodeError> {
        let index = file.position().map_or(0, |position| position.index);
        let wait = self.inner.raft.wait(Some(CATCH_UP_TIMEOUT));
        if wait.applied_index_at_least(Some(index), "repairing").await.is_err() {
            return Err(NodeError::Behind { applied: self.applied(), wanted: index });
        }
        let (machine, log) = (self.inner.storage.machine.clone(), self.inner.storage.log.clone());
        // In the place of openraft's own applying and installing, so that neither comes between.
        let replaced = self.inner.raft.with_state_machine(move |_: &mut StateMachine| {
            let replace = spawn_blocking(move || machine.replace(file, &log));
            Box::pin(async move { replace.await.map_err(|panic| StoreError::Stopped(panic.to_string()))? })
        });
        Ok(replaced.await.map_err(|fatal| NodeError::Fatal(fatal.to_string()))??)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::store::digest::DigestValue;

    const DIGEST: Digest = Digest { index: 7, value: DigestValue([0; 4]) };
    /// Longest a test waits for what should happen soon.
    const SOON: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn one_at_a_time_and_the_next_after_a_pause_that_grows() {
        let mut repair = Repair::new();
        assert!(repair.is_due() && !repair.is_under_way());
        let (begun, (end, ending)) = (Arc::new(AtomicUsize::new(0)), oneshot::channel::<()>());
        let count = begun.clone();
        repair.begin(async move {
            count.fetch_add(1, Ordering::SeqCst);
            drop(ending.await);
            Ok(DIGEST)
        });
        let count = begun.clone();
        repair.begin(async move {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(DIGEST)
        });
        assert!(repair.is_under_way() && !repair.is_due());
        // Who waits for it is not held up by it.
        tokio::select! {
            biased;
            _ = repair.ended() => panic!("it has not ended"),
            () = tokio::task::yield_now() => {}
        }
        end.send(()).unwrap();
        assert_eq!(repair.ended().await.unwrap(), DIGEST);
        assert_eq!(begun.load(Ordering::SeqCst), 1, "the second never began");
        assert!(!repair.is_under_way() && !repair.is_due(), "the next has to wait");
        assert!(repair.pause() <= REPAIR_EVERY_MIN);
        repair.hasten();
        repair.begin(async { Ok(DIGEST) });
        assert_eq!(repair.ended().await.unwrap(), DIGEST);
        assert!(repair.pause() > REPAIR_EVERY_MIN);
        repair.succeeded();
        repair.begin(async { Ok(DIGEST) });
        assert_eq!(repair.ended().await.unwrap(), DIGEST);
        assert!(repair.pause() <= REPAIR_EVERY_MIN);
    }

    #[tokio::test]
    async fn a_panic_is_a_repair_that_failed() {
        let mut repair = Repair::new();
        repair.begin(async { panic!("of the repair") });
        let error = repair.ended().await.expect_err("a panic");
        assert!(error.to_string().contains("panic"), "{error}");
        assert!(!repair.is_under_way(), "another may follow");
    }

    #[tokio::test]
    async fn who_owns_it_ends_it() {
        let (alive, ended) = oneshot::channel::<()>();
        let mut repair = Repair::new();
        repair.begin(async move {
            let _alive = alive;
            pending().await
        });
        tokio::task::yield_now().await;
        drop(repair);
        tokio::time::timeout(SOON, ended).await.expect("it ends").expect_err("it was dropped");
    }
}
