//! The keeper: the one thread that writes the base. It drains the overlay, takes snapshots, installs them and hands out
//! tables, one after the other. While it reads the base for long (a pass) it drains in between, so that what is applied
//! meanwhile finds room.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::StoreError;
use super::applied::Applied;
use super::base::Base;
use super::base_dir::{self, BaseDir};
use super::compaction::{Compacted, Compaction};
use super::export::ExportJob;
use super::log::Log;
use super::overlay::Changes;
use super::pass::{self, Pass, PassLimits};
use super::scrub::{self, Scrub, Step};
use super::shared::{Opened, Shared, Stop};
use super::snapshot::{SnapshotFile, Snapshots};
use crate::escrow::records::LogPosition;
use crate::metrics::{MachineMetrics, SnapshotAction};
use crate::mutation::Mutation;

/// Rows written to a fresh base at once.
const LOAD_BATCH_ROWS: usize = 256;
/// How long an installation waits for readers of the old rows, before it leaves their files to the next start.
const OLD_READERS_PATIENCE: Duration = Duration::from_secs(1);

/// What can be asked of the keeper.
pub(super) enum Task {
    /// Drain all, sync the base and stop.
    Close(oneshot::Sender<Result<(), StoreError>>),
    /// Something else found the base damaged: it is read through before it is used again.
    Distrust,
    /// Bring all that is applied by now into the base.
    Drain(oneshot::Sender<Result<(), StoreError>>),
    /// Hand whole tables out. What is answered, and to whom, is in it.
    Export(ExportJob),
    /// Replace the state.
    Install(SnapshotFile, oneshot::Sender<Result<SnapshotFile, StoreError>>),
    /// Replace the state whatever it is.
    Replace(SnapshotFile, oneshot::Sender<Result<SnapshotFile, StoreError>>),
    /// Read all rows again and compare.
    Scrub(oneshot::Sender<Result<Applied, StoreError>>),
    /// A generation was sealed.
    Sealed,
    /// Write a snapshot.
    Snapshot(oneshot::Sender<Result<SnapshotFile, StoreError>>),
}

/// See the module.
pub(super) struct Keeper {
    pub base: Base,
    pub compaction: Compaction,
    pub dir: BaseDir,
    pub scrub: Scrub,
    pub drain_every: Duration,
    pub metrics: MachineMetrics,
    pub pass_limits: PassLimits,
    /// A base that was compacted, with its number, until no view has it open.
    pub retired: Option<(u64, Base)>,
    pub shared: Arc<Shared>,
    pub snapshots: Snapshots,
    pub view_patience: Duration,
}

/// Opens the base, or rebuilds it from the newest snapshot if the node cannot go on from it.
pub(super) fn open_base(dir: &mut BaseDir, snapshots: &Snapshots, log: &Log) -> Result<Opened, StoreError> {
    let snapshot = snapshots.newest();
    let durable = snapshot.as_ref().map_or_else(Applied::default, |file| file.applied().clone());
    let purged = index(log.state().map_err(StoreError::Log)?.purged);
    let mut damaged = false;
    let current = dir.open_current();
    match current.and_then(|current| current.map(|(base, applied)| Opened::new(base, applied)).transpose()) {
        Ok(Some(opened)) => {
            if index(opened.applied.position) >= purged && can_go_on(&opened.applied, &durable, log)? {
                return Ok(opened);
            }
            let (base, snapshot) = (opened.applied.index(), durable.index());
            tracing::warn!(base, snapshot, purged, "log and base do not meet: the base is rebuilt");
        }
        Ok(None) => {}
        // A lack of files, of space or of rights says nothing about the base: it stays, for when that is mended.
        Err(error) if !error.is_damage() => return Err(error),
        Err(error) => {
            tracing::error!(%error, "the base cannot be used");
            damaged = true;
        }
    }
    if index(durable.position) < purged {
        return Err(StoreError::Unrecoverable { purged, snapshot: index(durable.position) });
    }
    if damaged {
        dir.set_aside()?;
    }
    let before = dir.number();
    let (number, base) = dir.create()?;
    load(&base, snapshot.as_ref())?;
    dir.switch_to(number)?;
    dir.remove(before)?;
    Opened::new(base, durable)
}

fn index(position: Option<LogPosition>) -> Option<u64> {
    position.map(|position| position.index)
}

/// Whether a base that stands at `applied` may be used. Behind the snapshot it is missing what the log may not have any
/// more. Ahead of it, it must stand at an entry the log holds: entries that a quorum has may be applied before this
/// node's own log has them on the disk, and when a power loss takes them from the log, only a base that was never
/// synced would hold them.
fn can_go_on(applied: &Applied, durable: &Applied, log: &Log) -> Result<bool, StoreError> {
    match applied.position {
        Some(position) if applied.position > durable.position => log.holds(position).map_err(StoreError::Log),
        position => Ok(position == durable.position),
    }
}

/// Fills an empty base with the rows of a snapshot, checking all of it. Where the state stands is written last.
fn load(base: &Base, snapshot: Option<&SnapshotFile>) -> Result<(), StoreError> {
    let Some(snapshot) = snapshot else {
        base.write(&Changes::new(), &Applied::default())?;
        return base.flush();
    };
    let unfinished = Applied::default();
    let mut batch = Changes::new();
    snapshot.read_rows(|key, value| {
        batch.insert(key, Some(value));
        if batch.len() >= LOAD_BATCH_ROWS {
            base.write(&std::mem::take(&mut batch), &unfinished)?;
        }
        Ok(())
    })?;
    base.write(&batch, snapshot.applied())?;
    base.flush()
}

/// If the keeper panics (sled may, over damaged files), nobody must wait for it for ever, nor use the base again as
/// it is.
struct LastWord {
    shared: Arc<Shared>,
    witness: PathBuf,
}

impl Drop for LastWord {
    fn drop(&mut self) {
        if std::thread::panicking() {
            base_dir::distrust(&self.witness);
            self.shared.stop(Stop::Failed("the keeper of the base panicked".to_owned()));
        }
    }
}

impl Keeper {
    /// Starts the thread; it ends after [`Task::Close`], or when nobody can send any more.
    pub fn start(self, tasks: Receiver<Task>) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("strongroom-base".to_owned()).spawn(move || self.run(&tasks))
    }

    fn run(mut self, tasks: &Receiver<Task>) {
        let _last_word = LastWord { shared: self.shared.clone(), witness: self.dir.witness_path() };
        let (mut flushed, mut quiet_since) = (true, Instant::now());
        loop {
            let task = tasks.recv_timeout(self.compaction.rest(self.drain_every));
            self.scrub_on();
            self.compact_on();
            if matches!(task, Err(RecvTimeoutError::Timeout)) && quiet_since.elapsed() < self.drain_every {
                continue;
            }
            quiet_since = Instant::now();
            match task {
                Ok(Task::Close(done)) => return self.close(done),
                Ok(Task::Distrust) => self.dir.distrust(),
                Ok(Task::Drain(done)) => {
                    let drained = self.drain().map(drop);
                    self.answer(done, drained);
                }
                Ok(Task::Export(job)) => job(&mut self),
                Ok(Task::Install(file, done)) => {
                    let began = Instant::now();
                    let installed = self.install(file);
                    self.count(SnapshotAction::Install, began, &installed);
                    self.answer(done, installed);
                }
                Ok(Task::Replace(file, done)) => {
                    let replaced = self.replace(file);
                    self.answer(done, replaced);
                }
                Ok(Task::Scrub(done)) => {
                    let scrubbed = self.scrub();
                    self.answer(done, scrubbed);
                }
                Ok(Task::Sealed) => {
                    let written = self.write_sealed(self.shared.newest_sealed());
                    self.look_at(&written);
                }
                Ok(Task::Snapshot(done)) => {
                    let snapshot = self.snapshot();
                    self.answer(done, snapshot);
                }
                // Nothing came for a while: drain what little there is, and hand it to the operating system.
                Err(RecvTimeoutError::Timeout) if self.shared.overlay_len() > 0 => {
                    let drained = self.drain();
                    self.look_at(&drained);
                }
                Err(RecvTimeoutError::Timeout) => {
                    if !flushed {
                        let done = self.base.flush();
                        self.look_at(&done);
                    }
                    flushed = true;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
            flushed = false;
        }
    }

    fn count(&self, action: SnapshotAction, began: Instant, done: &Result<SnapshotFile, StoreError>) {
        let Ok(file) = done else { return self.metrics.snapshot_failures.count(action) };
        let (took, bytes) = match action {
            SnapshotAction::Build => (&self.metrics.snapshot_build, &self.metrics.snapshot_built_bytes),
            SnapshotAction::Install => {
                (&self.metrics.snapshot_install, &self.metrics.snapshot_installed_bytes)
            }
        };
        took.observe(began.elapsed());
        bytes.inc_by(file.bytes());
    }

    pub(super) fn answer<T>(
        &self,
        done: oneshot::Sender<Result<T, StoreError>>,
        result: Result<T, StoreError>,
    ) {
        self.look_at(&result);
        // Whoever asked may have gone away.
        drop(done.send(result));
    }

    /// After a failure of the base nothing may go on over it, and it is read through before it is used again.
    fn look_at<T>(&self, result: &Result<T, StoreError>) {
        match result {
            Err(error) if error.is_of_the_base() => {
                tracing::error!(%error, "the base has failed");
                self.dir.distrust();
                self.shared.stop(Stop::Failed(error.to_string()));
            }
            // Nobody waits for it any more, or writes came first: no fault.
            Err(error @ (StoreError::Abandoned | StoreError::Crowded)) => {
                tracing::debug!(%error, "the keeper of the base gives up a report");
            }
            Err(error) => tracing::warn!(%error, "the keeper of the base could not do as it was asked"),
            Ok(_) => {}
        }
    }

    /// Brings the sealed generations up to `newest` into the base, oldest first, and none that is sealed meanwhile: whoever
    /// drains is told where the base stands then.
    fn write_sealed(&mut self, newest: Option<u64>) -> Result<(), StoreError> {
        while self.write_oldest(newest, self.view_patience, |_, _| Ok(()))? {}
        Ok(())
    }

    /// Brings the oldest generation into the base, if there is one up to `newest`; before it is written, `before` may look at what
    /// the rows are still. Says whether there was one.
    pub(super) fn write_oldest(
        &mut self,
        newest: Option<u64>,
        view_patience: Duration,
        before: impl FnOnce(&Base, &Changes) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let Some(sealed) = self.shared.oldest_sealed().filter(|sealed| Some(sealed.number()) <= newest)
        else {
            return Ok(false);
        };
        if !sealed.views_are_gone(view_patience) {
            return Err(StoreError::Busy);
        }
        self.scrub.before_write(&self.base, &sealed.changes)?;
        before(&self.base, &sealed.changes)?;
        self.base.write(&sealed.changes, &sealed.upto)?;
        self.compaction.wrote(&sealed.changes, &self.dir);
        self.shared.forget_oldest();
        Ok(true)
    }

    /// Brings all that is applied by now into the base, and says where that is.
    pub(super) fn drain(&mut self) -> Result<Applied, StoreError> {
        let (upto, newest) = self.shared.seal();
        self.write_sealed(Some(newest))?;
        Ok(upto)
    }

    /// Writes a snapshot of the state as it is when this begins. Applies go on, and so does the base.
    fn snapshot(&mut self) -> Result<SnapshotFile, StoreError> {
        let upto = self.drain()?;
        if let Some(newest) = self.snapshots.newest().filter(|newest| newest.position() == upto.position) {
            return Ok(newest);
        }
        let began = Instant::now();
        let snapshots = self.snapshots.clone();
        let written = snapshots.write(&upto, Pass::over(self, [pass::everything()]).at_leisure());
        self.count(SnapshotAction::Build, began, &written);
        written
    }

    fn scrub(&mut self) -> Result<Applied, StoreError> {
        let upto = self.drain()?;
        if upto.describes(&self.base.recount()?) {
            return Ok(upto);
        }
        Err(StoreError::Damaged("the rows of the base do not match the digest".to_owned()))
    }

    /// Reads the base on, a little. What it finds stops nothing: whoever runs the node puts it aside.
    fn scrub_on(&mut self) {
        let why = match self.scrub.step(&self.base) {
            Ok(Step::More | Step::Matches) => return,
            Ok(Step::Mismatch) => "the rows of the base do not match its digest".to_owned(),
            Err(error) if error.is_damage() => error.to_string(),
            Err(error) => {
                tracing::warn!(%error, "the base could not be read again; tried anew later");
                return self.scrub.begin_again(scrub::PASS_EVERY);
            }
        };
        self.suspect(&why);
    }

    /// What was read of the base is not what was written to it. That stops nothing: whoever runs the node puts it aside.
    fn suspect(&mut self, why: &str) {
        if self.shared.suspicion().is_none() {
            tracing::error!(why, "the base is not what was written to it");
        }
        self.scrub.begin_again(scrub::PASS_EVERY);
        // If this process ends first, the next one reads it through before it uses it.
        self.dir.distrust();
        self.shared.suspect(why);
    }

    /// Goes on with a compaction, a little, and with removing what the last one left. A base that is not to be believed is
    /// not copied: its copy would be.
    fn compact_on(&mut self) {
        if let Some((number, old)) = self.retired.take_if(|(_, base)| base.is_unshared()) {
            self.dir.discard(number, old);
        }
        if self.shared.failure().is_some() || self.shared.suspicion().is_some() {
            return self.compaction.abandon(&self.dir);
        }
        if self.retired.is_some() && !self.compaction.is_under_way() {
            return self.compaction.put_off();
        }
        match self.compaction.step(&self.base, &self.dir) {
            Ok(None) => {}
            Ok(Some(compacted)) => self.switch_to(compacted),
            Err(error) if error.is_damage() => self.suspect(&error.to_string()),
            Err(error) => {
                tracing::warn!(%error, "the base could not be read to write it anew; tried again later")
            }
        }
    }

    /// Lets a copy of the base take its place. If that cannot be noted on the disk, the old one stays. A scrub goes on: the
    /// rows are the same.
    fn switch_to(&mut self, Compacted { number, base }: Compacted) {
        let before = self.dir.number();
        if let Err(error) = self.dir.switch_to(number) {
            return tracing::warn!(%error, "the base that was written anew cannot take its place");
        }
        self.shared.swap_base(base.clone());
        let old = std::mem::replace(&mut self.base, base);
        let (files, now) = (old.bytes_on_disk().ok(), self.base.bytes_on_disk().ok());
        tracing::info!(files, now, "the base was written anew");
        self.retired = Some((before, old));
    }

    /// Replaces the state by that of a snapshot if it is newer. Until all of it is checked, nothing that is in use is touched; after
    /// that the file is made durable first, and whatever a crash leaves undone from then on is done at the next start.
    fn install(&mut self, file: SnapshotFile) -> Result<SnapshotFile, StoreError> {
        if file.position() <= self.shared.applied().position {
            // Older than the state: the state stays. The file still counts as a snapshot if it is the newest one,
            // for the log may now be purged up to it.
            file.verify()?;
            return self.snapshots.adopt(file);
        }
        self.put_in_place(file, Snapshots::adopt)
    }

    /// As [`Keeper::install`], but also if the state is newer, for that state is wrong; and so may older snapshots be,
    /// whatever index they stand at. A crash on the way leaves the old base in use, or the new one.
    fn replace(&mut self, file: SnapshotFile) -> Result<SnapshotFile, StoreError> {
        self.put_in_place(file, Snapshots::replace)
    }

    fn put_in_place(
        &mut self,
        file: SnapshotFile,
        publish: fn(&Snapshots, SnapshotFile) -> Result<SnapshotFile, StoreError>,
    ) -> Result<SnapshotFile, StoreError> {
        self.compaction.abandon(&self.dir);
        let before = self.dir.number();
        let fresh = self.dir.create().and_then(|(number, fresh)| {
            if Mutation::MergeSnapshot.is_active() {
                let old = self.base.rows().map(|row| row.map(|(key, value)| (key, Some(value))));
                fresh.write(&old.collect::<Result<_, _>>()?, &Applied::default())?;
            }
            load(&fresh, Some(&file))?;
            Ok((number, Opened::new(fresh, file.applied().clone())?))
        });
        let (number, fresh) = match fresh {
            Ok(fresh) => fresh,
            Err(error) => {
                self.dir.remove(before + 1)?;
                // The base that is in use has no part in this, and goes on.
                return Err(error.of_a_fresh_base(file.path()));
            }
        };
        let file = match publish(&self.snapshots, file) {
            Ok(file) => file,
            Err(error) => {
                drop(fresh);
                self.dir.remove(number)?;
                return Err(error);
            }
        };
        self.dir.switch_to(number)?;
        let old = std::mem::replace(&mut self.base, fresh.base.clone());
        let views = self.shared.replace(fresh);
        self.scrub.begin_again(scrub::STEP_EVERY);
        // Readers of the old rows finish; if one takes long, the next start removes its files.
        if matches!(views.recv_timeout(OLD_READERS_PATIENCE), Err(RecvTimeoutError::Disconnected)) {
            self.dir.discard(before, old);
        }
        Ok(file)
    }

    /// Drains, syncs and lets go of the base before it answers, so that the directory is free by then. After a failure
    /// it only lets go: vouched for here, a base known to be damaged would be trusted at every start to come.
    fn close(mut self, done: oneshot::Sender<Result<(), StoreError>>) {
        self.compaction.abandon(&self.dir);
        let closed = match self.shared.failure() {
            Some(_) => Ok(()),
            None => self.drain().and_then(|_| self.base.flush()),
        };
        self.look_at(&closed);
        let Self { base, dir, shared, retired, .. } = self;
        shared.stop(Stop::Closed);
        drop((base, retired));
        // sled is closed now, unless a view still holds it: then it writes nothing, but its files are not all synced.
        let closed = match shared.failure() {
            Some(reason) => {
                dir.distrust();
                closed.and(Err(StoreError::Stopped(reason)))
            }
            // Read through at the next start, like any base that nobody vouches for.
            None if shared.suspicion().is_some() => {
                dir.distrust();
                closed
            }
            None => {
                let synced = closed.and_then(|()| dir.sync_files()).and_then(|()| dir.witness(true));
                // A reader who holds on to an old state is no fault of the disk.
                if synced.as_ref().is_err_and(|error| !matches!(error, StoreError::Busy)) {
                    // What the kernel could not write it may have dropped, and this boot's word would be taken for it.
                    dir.distrust();
                }
                synced
            }
        };
        drop(done.send(closed));
    }
}
