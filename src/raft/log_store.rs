//! openraft's log storage over [`store::log`](crate::store::log).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use futures_util::{Stream, stream};
use openraft::alias::CommittedLeaderIdOf;
use openraft::alias::{EntryOf, VoteOf};
use openraft::entry::EntryPayload;
use openraft::impls::leader_id_std::LeaderId;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{Entry, Membership, OptionalSend, Vote};

use super::types::{EncodedCommands, LogId, Member, TypeConfig};
use crate::escrow::ids::NodeId;
use crate::escrow::records::LogPosition;
use crate::store::format::{self, Payload};
use crate::store::log::{self, Log};

/// Most bytes of entries read at once for a follower; the rest follows in the next read.
pub const READ_MAX_BYTES: usize = 1024 * 1024;

/// The log as openraft sees it. Clones share it; readers are clones.
#[derive(Clone)]
pub struct LogStore {
    log: Log,
}

impl LogStore {
    /// Over an open log.
    pub fn new(log: Log) -> Self {
        Self { log }
    }

    /// The log below.
    pub fn log(&self) -> &Log {
        &self.log
    }

    async fn entries(&self, from: u64, to: u64, max_bytes: usize) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        let records = self.log.read(from, to, max_bytes).await?;
        records.iter().map(|(position, record)| decode_entry(*position, record)).collect()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    /// Reads as it is consumed: what a restart applies is the whole log since the base, more than fits into memory.
    async fn entries_stream<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<EntryOf<TypeConfig>>> + OptionalSend {
        let (from, to) = bounds(&range);
        let batches = Batches { store: self.clone(), read: Vec::new().into_iter(), next: None, from, to };
        Box::pin(stream::try_unfold(batches, Batches::next))
    }

    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        let (from, to) = bounds(&range);
        self.entries(from, to, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> io::Result<Vec<EntryOf<TypeConfig>>> {
        self.entries(start, end, READ_MAX_BYTES).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<TypeConfig>>> {
        let vote = self.log.vote()?;
        Ok(vote.map(|vote| Vote {
            leader_id: LeaderId { term: vote.term, voted_for: vote.node },
            committed: vote.committed,
        }))
    }
}

/// Entries read a batch at a time.
struct Batches {
    store: LogStore,
    read: std::vec::IntoIter<EntryOf<TypeConfig>>,
    /// The index behind the last entry handed out, once there is one.
    next: Option<u64>,
    from: u64,
    to: u64,
}

impl Batches {
    async fn next(mut self) -> io::Result<Option<(EntryOf<TypeConfig>, Self)>> {
        if self.read.as_slice().is_empty() {
            let from = self.next.unwrap_or(self.from);
            if from >= self.to {
                return Ok(None);
            }
            self.read = self.store.entries(from, self.to, READ_MAX_BYTES).await?.into_iter();
        }
        let Some(entry) = self.read.next() else { return Ok(None) };
        let index = entry.log_id.index;
        // The log may begin behind `from`; but between two batches a purge must not open a gap that is then applied.
        if let Some(next) = self.next.filter(|&next| next != index) {
            return Err(io::Error::other(format!("entry {next} was removed while it was read")));
        }
        self.next = Some(index + 1);
        Ok(Some((entry, self)))
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(&index) => index,
        Bound::Excluded(&index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(&index) => index.saturating_add(1),
        Bound::Excluded(&index) => index,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state()?;
        Ok(LogState { last_purged_log_id: state.purged.map(log_id), last_log_id: state.last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<TypeConfig>) -> io::Result<()> {
        let vote = log::Vote {
            term: vote.leader_id.term,
            committed: vote.committed,
            node: vote.leader_id.voted_for,
        };
        self.log.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        match committed {
            Some(committed) => self.log.save_committed(position(&committed)).await,
            None => Ok(()),
        }
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.log.committed()?.map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let records =
            entries.into_iter().map(|entry| (position(&entry.log_id), encode_entry(&entry))).collect();
        self.log.append(records, |result| callback.io_completed(result)).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.log.truncate_after(last.as_ref().map(position)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.log.purge(position(&upto)).await
    }
}

/// openraft's log id of a position.
pub fn log_id(position: LogPosition) -> LogId {
    LogId::new(CommittedLeaderIdOf::<TypeConfig>::new(position.term), position.index)
}

/// The position of openraft's log id.
pub fn position(log_id: &LogId) -> LogPosition {
    LogPosition { term: log_id.leader_id.term, index: log_id.index }
}

/// The bytes of a membership, as they rest in the log, the state and snapshots.
pub(super) fn encode_membership(membership: &Membership<NodeId, Member>) -> Vec<u8> {
    format::encode(membership)
}

/// The membership that [`encode_membership`] made `bytes` from.
pub(super) fn decode_membership(bytes: &[u8]) -> io::Result<Membership<NodeId, Member>> {
    format::decode(bytes).map_err(|error| invalid("a membership", error))
}

fn encode_entry(entry: &EntryOf<TypeConfig>) -> Vec<u8> {
    match &entry.payload {
        EntryPayload::Blank => Payload::Blank.encode(),
        EntryPayload::Normal(commands) => commands.payload().encode(),
        EntryPayload::Membership(membership) => Payload::Membership(&encode_membership(membership)).encode(),
    }
}

fn decode_entry(position: LogPosition, record: &Bytes) -> io::Result<EntryOf<TypeConfig>> {
    let payload = match Payload::decode(record).map_err(|error| invalid("a log record", error))? {
        Payload::Blank => EntryPayload::Blank,
        Payload::Commands(commands) => {
            // Parts of the record that is in memory, not copies.
            let commands = commands.into_iter().map(|command| record.slice_ref(command));
            EntryPayload::Normal(EncodedCommands(commands.collect()))
        }
        Payload::Membership(bytes) => EntryPayload::Membership(decode_membership(bytes)?),
    };
    Ok(Entry { log_id: log_id(position), payload })
}

fn invalid(what: &str, error: format::FormatError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, TryStreamExt};

    use super::*;
    use crate::store::log::LogOptions;

    /// More than two fit into no batch.
    const ENTRY_BYTES: usize = READ_MAX_BYTES / 5 * 2;

    async fn append(log: &Log, indexes: std::ops::RangeInclusive<u64>) {
        let record = Payload::Commands(vec![&[7; ENTRY_BYTES]]).encode();
        let entries = indexes.map(|index| (LogPosition { term: 1, index }, record.clone())).collect();
        log.append(entries, drop).await.unwrap();
        log.sync().await.unwrap();
    }

    #[tokio::test]
    async fn entries_to_apply_are_read_as_they_are_consumed() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = LogStore::new(Log::open(dir.path(), &LogOptions::default()).unwrap());
        append(&store.log, 1..=10).await;
        let mut reader = store.clone();
        let mut stream = reader.entries_stream(1..13).await;
        assert_eq!(stream.next().await.unwrap().unwrap().log_id.index, 1);
        // Had everything been read at once, these would be missing.
        append(&store.log, 11..=14).await;
        let rest: Vec<_> = stream.map_ok(|entry| entry.log_id.index).try_collect().await.unwrap();
        assert_eq!(rest, (2..13).collect::<Vec<_>>());

        let all = store.entries_stream(..).await.map_ok(|entry| entry.log_id.index);
        assert_eq!(all.try_collect::<Vec<_>>().await.unwrap(), (1..=14).collect::<Vec<_>>());
        assert_eq!(store.entries_stream(20..30).await.count().await, 0);
    }

    #[tokio::test]
    async fn a_gap_is_never_applied() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = LogStore::new(Log::open(dir.path(), &LogOptions::default()).unwrap());
        append(&store.log, 1..=10).await;
        let log = store.log.clone();
        let mut stream = store.entries_stream(1..11).await;
        assert_eq!(stream.next().await.unwrap().unwrap().log_id.index, 1);
        log.purge(LogPosition { term: 1, index: 7 }).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap().log_id.index, 2);
        assert!(stream.next().await.unwrap().is_err());
        assert!(stream.next().await.is_none());
        drop(stream);
        let left = store.entries_stream(1..11).await.map_ok(|entry| entry.log_id.index);
        assert_eq!(left.try_collect::<Vec<_>>().await.unwrap(), [8, 9, 10]);
    }
}
