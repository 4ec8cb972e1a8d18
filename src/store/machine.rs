//! The replicated state of this node: the overlay over the base, changed by one entry after the other.
//!
//! An entry takes effect in one step, in memory: its rows, where the state stands, the digest. The keeper brings whole
//! runs of entries to the base behind it. So the base always stands at the end of an entry, and whatever a crash
//! leaves of it, replaying the log from there gives the state again.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::StoreError;
use super::applied::{Applied, Effect};
use super::base;
use super::base_dir::BaseDir;
use super::compaction::{Compaction, CompactionLimits};
use super::digest::Digest;
use super::export::{self, RowSink};
use super::format::{self, Payload};
use super::keeper::{Keeper, Task, open_base};
use super::log::Log;
use super::pass::PassLimits;
use super::scrub::Scrub;
use super::shared::{Shared, Stop};
use super::snapshot::{SnapshotFile, Snapshots};
use super::view::{Transaction, View};
use crate::escrow::apply;
use crate::escrow::command::{Command, Reply};
use crate::escrow::records::LogPosition;
use crate::escrow::state::Table;
use crate::metrics::MachineMetrics;

/// Memory the overlay may take, in bytes; past it applying waits for the base.
pub const OVERLAY_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Size of what is written to the base at once, in bytes. sled holds off readers for as long as that takes.
pub const GENERATION_MAX_BYTES: usize = 1024 * 1024;
/// Memory of sled's page cache, in bytes; its own default is a gigabyte. While the base is compacted there are two.
pub const CACHE_BYTES: u64 = 32 * 1024 * 1024;
/// How long the keeper waits for more before it drains what is there.
pub const DRAIN_EVERY: Duration = Duration::from_secs(1);
/// How long the keeper waits for the views that hold back the base, before it answers [`StoreError::Busy`].
pub const VIEW_PATIENCE: Duration = Duration::from_secs(10);

/// With more of the overlay in use, an entry may have to wait for the base.
const APPLIES_AT_ONCE_MAX_PERCENT: usize = 50;
/// Bytes of entries read at once when the log is applied over a replaced state.
const REPLAY_MAX_BYTES: usize = 1024 * 1024;

/// Sizes and waits of a [`Machine`]; smaller in tests.
#[derive(Debug, Clone)]
pub struct MachineOptions {
    /// See [`CACHE_BYTES`].
    pub cache_bytes: u64,
    /// Bounds of a compaction of the base.
    pub compaction_limits: CompactionLimits,
    /// See [`DRAIN_EVERY`].
    pub drain_every: Duration,
    /// Whether an entry must follow the last one without a gap. Always, but in openraft's test suite, which applies
    /// single entries of a log.
    pub every_entry: bool,
    /// See [`GENERATION_MAX_BYTES`].
    pub generation_max_bytes: usize,
    /// Where it counts.
    pub metrics: MachineMetrics,
    /// See [`OVERLAY_MAX_BYTES`].
    pub overlay_max_bytes: usize,
    /// Bounds of a pass over the base: for a snapshot, for a report.
    pub pass_limits: PassLimits,
    /// See [`VIEW_PATIENCE`].
    pub view_patience: Duration,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self {
            cache_bytes: CACHE_BYTES,
            compaction_limits: CompactionLimits::default(),
            drain_every: DRAIN_EVERY,
            every_entry: true,
            generation_max_bytes: GENERATION_MAX_BYTES,
            metrics: MachineMetrics::default(),
            overlay_max_bytes: OVERLAY_MAX_BYTES,
            pass_limits: PassLimits::default(),
            view_patience: VIEW_PATIENCE,
        }
    }
}

/// What a machine takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineStats {
    /// Memory of the overlay, in bytes, about.
    pub overlay_bytes: usize,
    /// How much that may be: past it applying waits.
    pub overlay_max_bytes: usize,
    /// Rows in the overlay.
    pub overlay_rows: usize,
    /// Parts of the overlay that wait for the base.
    pub overlay_generations: usize,
    /// The base on disk, in bytes.
    pub base_bytes: u64,
    /// Rows of the state.
    pub rows: u64,
    /// Bytes of the keys and values of the state.
    pub row_bytes: u64,
}

/// The state of this node. Clones share it.
#[derive(Clone)]
pub struct Machine(Arc<Handle>);

struct Handle {
    /// One entry is applied after the other.
    applying: Mutex<()>,
    every_entry: bool,
    keeper: Option<JoinHandle<()>>,
    metrics: MachineMetrics,
    shared: Arc<Shared>,
    snapshots: Snapshots,
    /// Taken when dropped, which ends the keeper.
    tasks: Option<Sender<Task>>,
}

impl Machine {
    /// Opens the state in `dir`. Blocks; after a power loss it reads the whole base.
    ///
    /// A base that is damaged, behind the newest snapshot, or at an entry that `log` does not hold is rebuilt from that
    /// snapshot; the log is applied from there.
    ///
    /// # Errors
    /// [`StoreError::Unrecoverable`] if the log begins behind the snapshot: the state has to come from the peers.
    /// [`StoreError::Io`], [`StoreError::Base`].
    pub fn open(
        dir: &Path,
        options: &MachineOptions,
        snapshots: Snapshots,
        log: &Log,
    ) -> Result<Self, StoreError> {
        let mut base_dir = BaseDir::open(dir, options.cache_bytes)?;
        let opened = open_base(&mut base_dir, &snapshots, log)?;
        let base = opened.base.clone();
        let shared = Arc::new(Shared::new(opened, options.overlay_max_bytes, options.generation_max_bytes));
        let (tasks, received) = channel();
        let keeper = Keeper {
            base,
            compaction: Compaction::new(options.compaction_limits),
            dir: base_dir,
            scrub: Scrub::new(),
            drain_every: options.drain_every,
            metrics: options.metrics.clone(),
            pass_limits: options.pass_limits,
            retired: None,
            shared: shared.clone(),
            snapshots: snapshots.clone(),
            view_patience: options.view_patience,
        };
        let keeper =
            keeper.start(received).map_err(|error| StoreError::io("starting a thread for", dir, error))?;
        let (keeper, tasks) = (Some(keeper), Some(tasks));
        let (applying, every_entry, metrics) = (Mutex::new(()), options.every_entry, options.metrics.clone());
        Ok(Self(Arc::new(Handle { applying, every_entry, keeper, metrics, shared, snapshots, tasks })))
    }

    /// Where the state stands.
    pub fn applied(&self) -> Applied {
        self.0.shared.applied()
    }

    /// The index at which it stands; 0 before the first entry. For every request: it copies nothing else.
    pub fn applied_index(&self) -> u64 {
        self.0.shared.applied_index()
    }

    /// The digest of the state and the index it stands at. Earlier ones are in [`Applied::milestones`].
    pub fn digest(&self) -> Digest {
        self.applied().digest()
    }

    /// Digests to compare with another replica's: where this state stands, its milestones, and the digests after some of
    /// the last entries, ever further apart.
    pub fn digests(&self) -> Vec<Digest> {
        let back = |recent: &VecDeque<Digest>| {
            let steps = std::iter::successors(Some(1), |step| Some(step * 2));
            steps.map_while(|step| recent.len().checked_sub(step).map(|at| recent[at])).collect()
        };
        self.0.shared.digests(back)
    }

    /// Digests for another replica to compare with: as [`Machine::digests`], with those after the last entries at the
    /// indices it asks `about`, as far as they are still known ([`RECENT_MAX`](super::digest::RECENT_MAX)).
    pub fn digests_about(&self, about: &[u64]) -> Vec<Digest> {
        let asked = |recent: &VecDeque<Digest>| {
            recent.iter().filter(|digest| about.contains(&digest.index)).copied().collect()
        };
        self.0.shared.digests(asked)
    }

    /// Why the rows on the disk are not what was written there, if a scrub found that since the state was last replaced.
    pub fn suspicion(&self) -> Option<String> {
        self.0.shared.suspicion()
    }

    /// The snapshots of this state.
    pub fn snapshots(&self) -> &Snapshots {
        &self.0.snapshots
    }

    /// The state as it is now, to read from.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub fn view(&self) -> Result<View, StoreError> {
        self.0.shared.view()
    }

    /// Whether a read waits for nothing but the disk, as far as can be known: the base is not being written.
    pub fn reads_at_once(&self) -> bool {
        !base::is_being_written()
    }

    /// Whether an entry is applied at once, but for the disk: as [`Machine::reads_at_once`], and the overlay has room for many
    /// more.
    pub fn applies_at_once(&self) -> bool {
        self.reads_at_once() && !self.0.shared.is_overlay_over(APPLIES_AT_ONCE_MAX_PERCENT)
    }

    /// Applies the entry at `position`; each command in it is answered. Blocks: may read the disk, and waits while the overlay
    /// is full.
    ///
    /// # Errors
    /// Any error means that this replica must stop applying; nothing of the entry took effect.
    /// [`StoreError::Entry`] if the entry is not one this release understands, or does not follow the last one;
    /// [`StoreError::State`] if the storage fails; [`StoreError::Stopped`] if it failed before.
    pub fn apply(&self, position: LogPosition, payload: Payload<'_>) -> Result<Vec<Reply>, StoreError> {
        let _one_at_a_time = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let _last_word = LastWord(self);
        let began = Instant::now();
        let applied = self.apply_next(position, payload);
        if applied.is_ok() {
            self.0.metrics.apply.observe(began.elapsed());
        }
        if let Err(error @ (StoreError::State(_) | StoreError::Base(_) | StoreError::Damaged(_))) = &applied {
            self.distrust(error.to_string());
        }
        applied
    }

    /// Without this an orderly stop would vouch for a base that could not be read.
    fn distrust(&self, reason: String) {
        self.0.shared.stop(Stop::Failed(reason));
        // If the keeper is gone, it has seen to the base.
        drop(self.send(Task::Distrust));
    }

    fn apply_next(&self, position: LogPosition, payload: Payload<'_>) -> Result<Vec<Reply>, StoreError> {
        let mut applied = self.0.shared.wait_for_room()?;
        // An entry left out would be missing from this replica for ever, and from every snapshot it writes.
        let follows = |last: LogPosition| {
            let next = last.index + 1;
            position > last && (position.index == next || (!self.0.every_entry && position.index > next))
        };
        if !applied.position.is_none_or(follows) {
            let reason = format!("it comes after index {}", applied.index());
            return Err(StoreError::Entry { index: position.index, reason });
        }
        let mut transaction = Transaction::over(self.view()?);
        let mut replies = Vec::new();
        match payload {
            Payload::Blank => {}
            Payload::Commands(commands) => {
                for bytes in commands {
                    let command = decode_command(position, bytes)?;
                    replies.push(apply::apply(&mut transaction, position, &command)?);
                }
            }
            Payload::Membership(bytes) => applied.membership = Some((position, bytes.to_vec())),
        }
        let effect: Effect = transaction.finish(applied, position)?;
        if self.0.shared.commit(effect) {
            self.send(Task::Sealed)?;
        }
        Ok(replies)
    }

    /// Brings all that is applied by now into the base.
    ///
    /// # Errors
    /// [`StoreError::Base`], [`StoreError::Busy`], [`StoreError::Closed`].
    pub async fn drain(&self) -> Result<(), StoreError> {
        self.ask(Task::Drain).await
    }

    /// Writes a snapshot of the state as it is when its turn comes; applying goes on meanwhile. Durable when it
    /// returns.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the base is not what was written to it: then no snapshot is made of it.
    /// [`StoreError::Io`], [`StoreError::Base`], [`StoreError::Busy`], [`StoreError::Closed`].
    pub async fn snapshot(&self) -> Result<SnapshotFile, StoreError> {
        self.ask(Task::Snapshot).await
    }

    /// Hands the rows of `tables` to `sink`, one table after the other, as they are when its turn comes; applying goes on
    /// meanwhile. Answers the sink and where that state stands. If the caller goes away, it stops.
    ///
    /// # Errors
    /// What the sink answers. [`StoreError::Crowded`] if the overlay fills up meanwhile: then nobody's write waits for a
    /// report. [`StoreError::Base`], [`StoreError::Busy`], [`StoreError::Closed`].
    pub async fn export<S: RowSink + 'static>(
        &self,
        tables: &'static [Table],
        sink: S,
    ) -> Result<(S, Applied), StoreError> {
        self.ask(|done| Task::Export(export::job(tables, sink, done))).await
    }

    /// Replaces the state by that of a snapshot, which becomes the newest one; it is checked completely first. If the
    /// state is as new or newer it stays. Nothing may be applied meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if the file is damaged: the state is as before.
    /// [`StoreError::Io`], [`StoreError::Base`], [`StoreError::Closed`].
    pub async fn install(&self, file: SnapshotFile) -> Result<SnapshotFile, StoreError> {
        self.ask(|done| Task::Install(file, done)).await
    }

    /// Replaces a state that is wrong by that of a snapshot, and applies from `log` what it had applied beyond, so that it
    /// stands at the same entry as before: whoever applies entries notices nothing but a wait. Nothing may be installed
    /// meanwhile. Says where it stands and what the digest is there. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] if the file is damaged, is ahead of the state, or the log does not reach back to it: the
    /// state is as before. [`StoreError::Io`], [`StoreError::Base`], [`StoreError::Closed`]. If the log cannot be applied
    /// over the new state, this replica stops: opened again, it goes on from the new state.
    pub fn replace(&self, file: SnapshotFile, log: &Log) -> Result<Digest, StoreError> {
        let _nothing_is_applied = self.0.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let _last_word = LastWord(self);
        let (from, upto) = (file.position(), self.applied().position);
        let purged = log.state().map_err(StoreError::Log)?.purged;
        let refused = |reason: &str| {
            Err(StoreError::Snapshot { path: file.path().to_owned(), reason: reason.to_owned() })
        };
        match from {
            Some(_) if from > upto => return refused("it is ahead of the state it is to replace"),
            Some(position) if from >= purged && log.holds(position).map_err(StoreError::Log)? => {}
            _ => return refused("the log does not begin there"),
        }
        let (done, answer) = oneshot::channel();
        self.send(Task::Replace(file, done))?;
        answer.blocking_recv().map_err(|_| StoreError::Closed)??;
        let replayed = self.replay(upto, log);
        if let Err(error) = &replayed {
            // Behind where it stood, it would apply the next entry over a gap.
            self.0.shared.stop(Stop::Failed(format!("applying the log over a replaced state: {error}")));
        }
        replayed
    }

    /// Applies what `log` holds from here up to and with `upto`.
    fn replay(&self, upto: Option<LogPosition>, log: &Log) -> Result<Digest, StoreError> {
        let end = upto.map_or(0, |position| position.index + 1);
        loop {
            let next = self.applied_index() + 1;
            if next >= end {
                return Ok(self.digest());
            }
            let records = log.read_blocking(next, end, REPLAY_MAX_BYTES).map_err(StoreError::Log)?;
            if records.is_empty() {
                return Err(StoreError::Entry { index: next, reason: "the log does not hold it".to_owned() });
            }
            for (position, record) in records {
                let payload = Payload::decode(&record).map_err(|error| StoreError::Entry {
                    index: position.index,
                    reason: error.to_string(),
                })?;
                self.apply_next(position, payload)?;
            }
        }
    }

    /// Reads all rows again and compares them with the digest. Slow; the base is not written meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if they differ: this replica stops applying and is rebuilt when it is opened again.
    /// [`StoreError::Base`], [`StoreError::Busy`], [`StoreError::Closed`].
    pub async fn scrub(&self) -> Result<Digest, StoreError> {
        Ok(self.ask(Task::Scrub).await?.digest())
    }

    /// Brings everything to the base, syncs it and lets go of the directory. What was left out (a crash, or simply
    /// dropping the machine) is replayed from the log at the next start.
    ///
    /// # Errors
    /// [`StoreError::Stopped`] if it failed before: the base is read through when it is opened again.
    /// [`StoreError::Base`], [`StoreError::Busy`], [`StoreError::Io`].
    pub async fn close(&self) -> Result<(), StoreError> {
        self.0.shared.begin_closing();
        match self.ask(Task::Close).await {
            // The keeper is gone: it was closed before, or it panicked.
            Err(StoreError::Closed) => match self.0.shared.stopped() {
                Some(Stop::Closed) => Ok(()),
                Some(Stop::Failed(reason)) => Err(StoreError::Stopped(reason)),
                None => Err(StoreError::Stopped("the keeper of the base is gone".to_owned())),
            },
            closed => closed,
        }
    }

    /// Whether it is being closed, or was.
    pub fn is_closing(&self) -> bool {
        self.0.shared.is_closing()
    }

    /// What it takes. Looks at the files of the base: not for every request.
    ///
    /// # Errors
    /// [`StoreError::Base`], [`StoreError::Closed`].
    pub fn stats(&self) -> Result<MachineStats, StoreError> {
        let (overlay_bytes, overlay_rows, overlay_generations) = self.0.shared.overlay_stats();
        let applied = self.applied();
        let base_bytes = self.view()?.base.bytes_on_disk()?;
        Ok(MachineStats {
            overlay_bytes,
            overlay_max_bytes: self.0.shared.overlay_max_bytes(),
            overlay_rows,
            overlay_generations,
            base_bytes,
            rows: applied.rows,
            row_bytes: applied.bytes,
        })
    }

    fn send(&self, task: Task) -> Result<(), StoreError> {
        let tasks = self.0.tasks.as_ref().ok_or(StoreError::Closed)?;
        tasks.send(task).map_err(|_| StoreError::Closed)
    }

    async fn ask<T>(
        &self,
        task: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Task,
    ) -> Result<T, StoreError> {
        let (done, answer) = oneshot::channel();
        self.send(task(done))?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

/// sled may panic over damaged files, in the thread that applies as well.
struct LastWord<'a>(&'a Machine);

impl Drop for LastWord<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.distrust("applying an entry panicked".to_owned());
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.tasks = None;
        self.shared.begin_closing();
        if let Some(keeper) = self.keeper.take() {
            // It finishes what it is doing. A panic of it was reported by then.
            drop(keeper.join());
        }
    }
}

/// A command of the entry at `position`. It is committed, so whoever proposed it and whoever led could read it: what cannot
/// be read is not damage, but news.
fn decode_command(position: LogPosition, bytes: &[u8]) -> Result<Command, StoreError> {
    format::decode(bytes).map_err(|error| StoreError::Entry {
        index: position.index,
        reason: format!(
            "this release ({}) cannot apply it, because a newer one wrote it: this release is too old, install the one \
             that the other nodes run ({error})",
            env!("CARGO_PKG_VERSION")
        ),
    })
}
