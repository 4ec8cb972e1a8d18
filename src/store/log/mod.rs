//! The Raft log, the truth of this node: entries, the vote and the commit index, over raft-log.
//!
//! What was read in the source of raft-log 0.4.6 and its chunked-wal 0.2.3, and what rests on it:
//! - *Durability.* One worker thread writes what is queued and ends a batch with one `fdatasync`; then it runs the
//!   batch's callbacks. A new chunk file is followed by an fsync of the directory before any of its records can be
//!   acknowledged, so ours only has to sync the directory above.
//! - *Errors.* After any failed write or fsync (a full disk, say) the worker stops for good: the batch is told the
//!   error, everything behind it is dropped (our callback's `Drop` tells it), every later flush fails. That is what we
//!   want, for after a failed fsync nobody knows what is on the disk: the node must open the log again. An error met
//!   before the worker, such as a chunk file that cannot be made, does not stop it; so `Inner` refuses every write that
//!   follows a refused one.
//! - *Opening.* A record cut short, or zeros to the end, at the end of the *last* chunk is a write that was never
//!   acknowledged, and is cut off. Damage anywhere else fails to open: an acknowledged entry may be gone, and a voter
//!   that forgets one can lose it for the cluster. Such a node is replaced, not repaired. That a damaged length does not
//!   pass for a record cut short is seen to by `wal`.
//!   It syncs nothing of what it reads; `settle` does that.
//! - *Memory.* Payloads of the open chunk always stay in memory, so the chunk size is also a bound on memory.

mod inner;
mod settle;
mod wal;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft_log::api::raft_log_writer::RaftLogWriter;
use raft_log::{Config, RaftLog};
use tokio::task::spawn_blocking;

use self::inner::{Inner, holds, next_index, state_of};
use self::settle::settle;
use self::wal::Record;
use super::StoreError;
use super::directory::create_dir;
use crate::escrow::ids::NodeId;
use crate::escrow::records::LogPosition;
use crate::metrics::LogMetrics;
use crate::mutation::Mutation;

/// Size at which a chunk file is closed, in bytes. A purge frees whole chunks only.
pub const CHUNK_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Payloads kept in memory for readers (apply, followers that are not far behind), in bytes.
pub const CACHE_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Entries kept in memory for readers.
pub const CACHE_MAX_ENTRIES: usize = 65_536;
/// Bytes that may wait for the worker; past it an append waits.
pub const QUEUE_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Flushes that may wait for the worker before an append moves off the async thread; raft-log blocks at 1,024.
const QUEUE_MAX_FLUSHES: u64 = 512;
/// How long the worker waits for more writes before it syncs. Paid by every lonely write, to which the kernel's timer
/// slack adds some 50 µs; writes that arrive while a sync runs share the next one anyway. Measured (`benches/store.rs`,
/// 64 in flight): at 1 µs the worker syncs for the first writer that comes back from the last sync and makes the others
/// wait for a second one, from 20 µs on it takes them along; 50 µs leaves room for slower machines. At zero it would
/// take one write a sync, however many wait.
pub const FLUSH_BATCH_WAIT: Duration = Duration::from_micros(50);
/// Buffer for reading chunks at opening, in bytes.
const READ_BUFFER_BYTES: usize = 1024 * 1024;
/// Reads that begin so close to the end are served from memory; others may go to the disk.
const HOT_ENTRIES: u64 = 64;
/// What a record takes beyond its payload, rounded up.
const RECORD_OVERHEAD_BYTES: usize = 64;

/// Sizes and waits of a [`Log`]; smaller in tests.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// See [`CACHE_MAX_BYTES`].
    pub cache_max_bytes: usize,
    /// See [`CHUNK_MAX_BYTES`].
    pub chunk_max_bytes: usize,
    /// See [`FLUSH_BATCH_WAIT`].
    pub flush_batch_wait: Duration,
    /// Where it counts.
    pub metrics: LogMetrics,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            cache_max_bytes: CACHE_MAX_BYTES,
            chunk_max_bytes: CHUNK_MAX_BYTES,
            flush_batch_wait: FLUSH_BATCH_WAIT,
            metrics: LogMetrics::default(),
        }
    }
}

/// Whom this node voted for, and whether a quorum agreed.
///
/// Ordered so that in one term a leader that won replaces any vote: a node may have voted for another candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vote {
    /// The term.
    pub term: u64,
    /// A quorum granted it: `node` leads the term.
    pub committed: bool,
    /// The candidate or leader.
    pub node: NodeId,
}

/// What the log holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogState {
    /// How far entries are known to be committed, as last saved.
    pub committed: Option<LogPosition>,
    /// The last entry removed from the front.
    pub purged: Option<LogPosition>,
    /// The last entry, or `purged` if there is none behind it.
    pub last: Option<LogPosition>,
}

/// An open Raft log. Clones share it.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

impl Log {
    /// Opens the log in `dir`, or begins an empty one. Blocks: reads all records that are not purged, and writes the
    /// newest chunks anew, so that all it holds is on the disk.
    ///
    /// # Errors
    /// [`StoreError::Log`] if it is damaged (see the module), [`StoreError::Locked`] if it is open, [`StoreError::Io`].
    pub fn open(dir: &Path, options: &LogOptions) -> Result<Self, StoreError> {
        create_dir(dir).map_err(|error| StoreError::io("creating", dir, error))?;
        // Without it a write that was never synced, and is found here, would count as durable.
        settle(dir)?;
        Self::open_settled(dir, options)
    }

    fn open_settled(dir: &Path, options: &LogOptions) -> Result<Self, StoreError> {
        let path = dir.to_str().ok_or_else(|| StoreError::Directory {
            path: dir.to_owned(),
            reason: "the path of the log must be UTF-8".to_owned(),
        })?;
        let mut config = Config::new(path);
        config.log_cache_capacity = Some(options.cache_max_bytes);
        config.log_cache_max_items = Some(CACHE_MAX_ENTRIES);
        config.wal.chunk_max_size = Some(options.chunk_max_bytes);
        config.wal.chunk_max_records = Some(usize::MAX);
        config.wal.flush_batch_wait = Some(options.flush_batch_wait.max(Duration::from_nanos(1)));
        config.wal.flush_queue_max_bytes = Some(QUEUE_MAX_BYTES);
        config.wal.read_buffer_size = Some(READ_BUFFER_BYTES);
        let wal = RaftLog::open(Arc::new(config)).map_err(StoreError::Log)?;
        Ok(Self(Arc::new(Inner::new(wal, options.chunk_max_bytes as u64, options.metrics.clone()))))
    }

    /// Appends entries, in order and behind the last one. They can be read at once; `on_flush` is told, on another
    /// thread, once they are on the disk or never will be.
    ///
    /// # Errors
    /// The entries do not follow the last one, or the log stopped after an earlier error. `on_flush` is told as well.
    pub async fn append(
        &self,
        entries: Vec<(LogPosition, Vec<u8>)>,
        on_flush: impl FnOnce(io::Result<()>) + Send + 'static,
    ) -> io::Result<()> {
        let on_flush = self.0.counted(on_flush);
        let payload = entries.iter().map(|(_, record)| record.len()).sum::<usize>();
        let bytes = payload + entries.len() * RECORD_OVERHEAD_BYTES;
        self.0.metrics.appended_entries.inc_by(entries.len() as u64);
        self.0.metrics.appended_bytes.inc_by(payload as u64);
        self.0
            .write(bytes, move |wal| {
                wal.append(entries.into_iter().map(|(id, record)| (id, Record(record.into()))))?;
                wal.flush(!Mutation::AcknowledgeBeforeFsync.is_active(), Some(on_flush))
            })
            .await
    }

    /// Removes all entries behind `last`; all of them for `None`. On the disk when it returns: were a conflicting tail
    /// to come back after a snapshot was installed over it, log and state would contradict each other.
    ///
    /// # Errors
    /// There is no entry `last`, or a committed one would go, or it cannot be written.
    pub async fn truncate_after(&self, last: Option<LogPosition>) -> io::Result<()> {
        let next = next_index(last);
        self.0
            .write(RECORD_OVERHEAD_BYTES, move |wal| {
                let state = state_of(wal);
                if next >= next_index(state.last) {
                    return Ok(());
                }
                let next = next.max(next_index(state.purged));
                wal.truncate(next).map(drop)
            })
            .await?;
        self.sync().await
    }

    /// Removes all entries up to and with `upto`, of which the state is durable elsewhere. The log may end before it,
    /// or hold something else there (a tail that was never committed): then nothing is left of it.
    ///
    /// Files are unlinked after the record of the purge is synced: without that order a crash could leave a gap.
    ///
    /// # Errors
    /// The log stopped after an earlier error.
    pub async fn purge(&self, upto: LogPosition) -> io::Result<()> {
        let on_flush = self.0.noted();
        self.0
            .write(RECORD_OVERHEAD_BYTES, move |wal| {
                let state = state_of(wal);
                if upto.index < next_index(state.purged) {
                    return Ok(());
                }
                if !holds(wal, upto)? && state.last > state.purged {
                    wal.truncate(next_index(state.purged.max(state.committed)))?;
                }
                wal.purge(upto)?;
                wal.flush(true, Some(on_flush))
            })
            .await
    }

    /// Whether the log holds this very entry, or has purged it.
    ///
    /// # Errors
    /// A chunk cannot be read.
    pub fn holds(&self, position: LogPosition) -> io::Result<bool> {
        holds(&*self.0.read()?, position)
    }

    /// The entries from `from` up to, not with, `to` that are there, as far as `max_bytes` allows but at least one.
    ///
    /// # Errors
    /// A chunk cannot be read or does not decode.
    pub async fn read(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<(LogPosition, Bytes)>> {
        let last = self.state()?.last.map_or(0, |position| position.index);
        if last.saturating_sub(from) <= HOT_ENTRIES {
            return self.0.read_range(from, to, max_bytes);
        }
        let inner = self.0.clone();
        spawn_blocking(move || inner.read_range(from, to, max_bytes)).await.map_err(io::Error::other)?
    }

    /// As [`Log::read`], for a thread that may block.
    ///
    /// # Errors
    /// As [`Log::read`].
    pub fn read_blocking(
        &self,
        from: u64,
        to: u64,
        max_bytes: usize,
    ) -> io::Result<Vec<(LogPosition, Bytes)>> {
        self.0.read_range(from, to, max_bytes)
    }

    /// The last entry there is, unless all are purged. Blocks.
    ///
    /// # Errors
    /// A chunk cannot be read or does not decode.
    pub fn last_entry(&self) -> io::Result<Option<(LogPosition, Bytes)>> {
        let Some(last) = self.state()?.last else { return Ok(None) };
        Ok(self.0.read_range(last.index, last.index + 1, usize::MAX)?.pop())
    }

    /// Saves the vote. On the disk when it returns: without that, a node that crashed could vote twice in one term.
    ///
    /// # Errors
    /// It would go back to an older vote, or cannot be written.
    pub async fn save_vote(&self, vote: Vote) -> io::Result<()> {
        if Mutation::ForgetVote.is_active() {
            return Ok(());
        }
        let (tell, told) = tokio::sync::oneshot::channel();
        // Whoever waits is below: if that future was dropped, nobody needs to know.
        let on_flush = self.0.counted(move |result| drop(tell.send(result)));
        self.0
            .write(RECORD_OVERHEAD_BYTES, move |wal| {
                wal.save_vote(vote)?;
                wal.flush(true, Some(on_flush))
            })
            .await?;
        told.await.map_err(io::Error::other)?
    }

    /// The last saved vote.
    ///
    /// # Errors
    /// The log is broken by an earlier panic.
    pub fn vote(&self) -> io::Result<Option<Vote>> {
        Ok(self.0.read()?.log_state().vote().copied())
    }

    /// Saves how far entries are known to be committed. Written, so that it outlives this process, but not synced:
    /// the next append's sync takes it along. After a power loss a lone survivor could know of a commit less.
    /// One past the end of the log, or before the last one, is left out.
    ///
    /// # Errors
    /// The log stopped after an earlier error.
    pub async fn save_committed(&self, committed: LogPosition) -> io::Result<()> {
        let on_flush = self.0.noted();
        self.0
            .write(RECORD_OVERHEAD_BYTES, move |wal| {
                let state = state_of(wal);
                if Some(committed) <= state.committed || Some(committed) > state.last {
                    return Ok(());
                }
                wal.commit(committed)?;
                wal.flush(false, Some(on_flush))
            })
            .await
    }

    /// The last saved commit.
    ///
    /// # Errors
    /// The log is broken by an earlier panic.
    pub fn committed(&self) -> io::Result<Option<LogPosition>> {
        Ok(self.state()?.committed)
    }

    /// What the log holds.
    ///
    /// # Errors
    /// The log is broken by an earlier panic.
    pub fn state(&self) -> io::Result<LogState> {
        Ok(state_of(&*self.0.read()?))
    }

    /// Bytes the log takes on disk.
    ///
    /// # Errors
    /// The log is broken by an earlier panic.
    pub fn bytes_on_disk(&self) -> io::Result<u64> {
        Ok(self.0.read()?.on_disk_size())
    }

    /// About how many bytes on disk came after the entry `index`; within a chunk, by the share of its entries.
    ///
    /// Taken from the files, not counted in memory, so that restarts do not make it forget.
    ///
    /// # Errors
    /// The log is broken by an earlier panic.
    pub fn bytes_since(&self, index: Option<u64>) -> io::Result<u64> {
        let stat = self.0.read()?.stat();
        let next = index.map_or(0, |index| index + 1);
        let mut first = 0;
        let mut bytes = 0;
        for chunk in stat.closed_chunks.iter().chain([&stat.open_chunk]) {
            let end = next_index(chunk.log_state.last().copied());
            let all = end.saturating_sub(first);
            bytes += match end.saturating_sub(next.max(first)) {
                // A chunk without entries (votes, commits) behind the index counts too: a log of those must shrink.
                0 if all == 0 && end >= next => chunk.size,
                newer => u64::try_from(u128::from(chunk.size) * u128::from(newer) / u128::from(all.max(1)))
                    .unwrap_or(chunk.size),
            };
            first = first.max(end);
        }
        Ok(bytes)
    }

    /// The entry to purge up to, so that no more than one chunk is freed and nothing behind `upto` goes. `None` if all up to
    /// there is purged.
    ///
    /// # Errors
    /// The log is broken by an earlier panic.
    pub fn next_cut(&self, upto: u64) -> io::Result<Option<u64>> {
        let wal = self.0.read()?;
        let purged = next_index(state_of(&wal).purged);
        // Asked again and again, and mostly when there is nothing: without a look at the chunks.
        if upto < purged {
            return Ok(None);
        }
        let stat = wal.stat();
        let mut ends = stat.closed_chunks.iter().map(|chunk| next_index(chunk.log_state.last().copied()));
        let oldest = ends.find(|end| *end > purged).map(|end| end - 1);
        Ok(Some(oldest.map_or(upto, |oldest| oldest.min(upto))))
    }

    /// Waits until everything written so far is on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub async fn sync(&self) -> io::Result<()> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let on_flush = self.0.counted(move |result| drop(tell.send(result)));
        self.0.write(0, move |wal| wal.flush(true, Some(on_flush))).await?;
        told.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests;
