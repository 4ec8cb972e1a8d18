//! raft-log behind a lock, and which of its calls may block.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use bytes::Bytes;
use raft_log::RaftLog;
use tokio::task::spawn_blocking;

use super::wal::{Cause, OnFlush, Record, Wal};
use super::{LogState, QUEUE_MAX_BYTES, QUEUE_MAX_FLUSHES};
use crate::escrow::records::LogPosition;
use crate::metrics::LogMetrics;

/// What clones of a log share.
pub(super) struct Inner {
    wal: RwLock<RaftLog<Wal>>,
    chunk_max_bytes: u64,
    /// Bytes until the open chunk is full: the write that fills it makes a file and syncs a directory.
    chunk_room: AtomicU64,
    /// Flushes asked for and not yet told. Shared with the callbacks, which must not hold the log itself: dropping it
    /// joins the thread they run on.
    pub flushing: Arc<AtomicU64>,
    /// A write failed. Set and read under the lock of `wal`.
    failed: AtomicBool,
    /// Shared with the callbacks.
    cause: Cause,
    pub metrics: Arc<LogMetrics>,
}

pub(super) fn next_index(position: Option<LogPosition>) -> u64 {
    position.map_or(0, |position| position.index + 1)
}

pub(super) fn state_of(wal: &RaftLog<Wal>) -> LogState {
    let state = wal.log_state();
    LogState {
        committed: state.committed().copied(),
        purged: state.purged().copied(),
        last: state.last().copied(),
    }
}

pub(super) fn holds(wal: &RaftLog<Wal>, position: LogPosition) -> io::Result<bool> {
    if position.index < next_index(state_of(wal).purged) {
        return Ok(true);
    }
    match wal.read(position.index, position.index + 1).next() {
        Some(entry) => Ok(entry?.0 == position),
        None => Ok(false),
    }
}

impl Inner {
    pub fn new(wal: RaftLog<Wal>, chunk_max_bytes: u64, metrics: LogMetrics) -> Self {
        let chunk_room = AtomicU64::new(chunk_room(&wal, chunk_max_bytes));
        let failed = AtomicBool::new(false);
        Self {
            wal: RwLock::new(wal),
            chunk_max_bytes,
            chunk_room,
            flushing: Arc::default(),
            failed,
            cause: Cause::default(),
            metrics: Arc::new(metrics),
        }
    }

    pub fn read(&self) -> io::Result<RwLockReadGuard<'_, RaftLog<Wal>>> {
        self.wal.read().map_err(|_| broken())
    }

    fn lock(&self) -> io::Result<RwLockWriteGuard<'_, RaftLog<Wal>>> {
        self.wal.write().map_err(|_| broken())
    }

    /// Runs a write of about `bytes`: here if it only fills memory, off the async threads if it may block.
    pub async fn write(
        self: &Arc<Self>,
        bytes: usize,
        write: impl FnOnce(&mut RaftLog<Wal>) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let stays_in_chunk = (bytes as u64) < self.chunk_room.load(Ordering::Relaxed);
        let queue_is_short = self.flushing.load(Ordering::Relaxed) < QUEUE_MAX_FLUSHES;
        if stays_in_chunk && queue_is_short && bytes < QUEUE_MAX_BYTES / 8 {
            return self.write_now(write);
        }
        let inner = self.clone();
        spawn_blocking(move || inner.write_now(write)).await.map_err(io::Error::other)?
    }

    fn write_now(&self, write: impl FnOnce(&mut RaftLog<Wal>) -> io::Result<()>) -> io::Result<()> {
        let mut wal = self.lock()?;
        // raft-log goes on after a chunk it could not begin, and half of a failed write may be in its memory: what is
        // written behind that could be acknowledged without what it follows.
        if self.failed.load(Ordering::Relaxed) {
            return Err(self.cause.behind(io::Error::other("the log stopped after an earlier error")));
        }
        let before = wal.on_disk_size();
        let result = write(&mut wal).map_err(|error| self.cause.behind(error));
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        let written = wal.on_disk_size().saturating_sub(before);
        let room = self.chunk_room.load(Ordering::Relaxed);
        let room = if written < room { room - written } else { chunk_room(&wal, self.chunk_max_bytes) };
        self.chunk_room.store(room, Ordering::Relaxed);
        result
    }

    pub fn read_range(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<(LogPosition, Bytes)>> {
        let wal = self.read()?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in wal.read(from, to.max(from)) {
            let (position, Record(record)) = entry?;
            bytes += record.len();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push((position, record));
        }
        Ok(entries)
    }

    /// A flush callback that is counted while it waits, and timed.
    pub fn counted(&self, tell: impl FnOnce(io::Result<()>) + Send + 'static) -> OnFlush {
        self.flushing.fetch_add(1, Ordering::Relaxed);
        let (flushing, metrics, began) = (self.flushing.clone(), self.metrics.clone(), Instant::now());
        OnFlush::new(self.cause.clone(), move |result| {
            flushing.fetch_sub(1, Ordering::Relaxed);
            match &result {
                Ok(()) => metrics.flush.observe(began.elapsed()),
                Err(_) => drop(metrics.flush_failures.inc()),
            }
            tell(result);
        })
    }

    /// A flush callback for a write that nobody waits for: its error is taken note of.
    pub fn noted(&self) -> OnFlush {
        OnFlush::new(self.cause.clone(), drop)
    }
}

/// Bytes that fit into the open chunk.
fn chunk_room(wal: &RaftLog<Wal>, chunk_max_bytes: u64) -> u64 {
    chunk_max_bytes.saturating_sub(wal.stat().open_chunk.size)
}

fn broken() -> io::Error {
    io::Error::other("the log is unusable after a panic")
}
