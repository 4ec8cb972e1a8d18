//! openraft's log storage over a simulated [`Disk`]: what takes a sync takes its time.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use openraft::AsyncRuntime as _;
use openraft::OptionalSend;
use openraft::alias::VoteOf;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft_rt_sim::SimRuntime;
use strongroom::raft::types::{LogId, Vote};

use crate::disk::{Disk, Write};
use crate::host::Life;
use crate::mutation::Mutation;
use crate::types::{Entry, Simulated};

/// The log of one life of a node; readers are clones. After the crash that ends it, nothing is read or written by it.
#[derive(Clone)]
pub struct SimulatedLog {
    life: Arc<Life>,
}

impl SimulatedLog {
    pub fn new(life: Arc<Life>) -> Self {
        Self { life }
    }

    fn on_disk<T>(&self, work: impl FnOnce(&mut Disk) -> T) -> io::Result<T> {
        self.life.check()?;
        Ok(work(&mut self.life.host.disk()))
    }

    async fn sync(&self, upto: u64) -> io::Result<()> {
        let took = self.life.world.sync_takes(self.life.host.id);
        SimRuntime::sleep(took).await;
        self.on_disk(|disk| disk.sync(upto))
    }

    async fn write_and_sync(&self, write: Write) -> io::Result<()> {
        let upto = self.on_disk(|disk| disk.write(write))?;
        self.sync(upto).await
    }

    fn is_mutated(&self, mutation: Mutation) -> bool {
        self.life.world.is_mutated(mutation)
    }
}

impl RaftLogReader<Simulated> for SimulatedLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.on_disk(|disk| disk.written().entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Simulated>>> {
        self.on_disk(|disk| disk.written().vote)
    }
}

impl RaftLogStorage<Simulated> for SimulatedLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Simulated>> {
        self.on_disk(|disk| {
            let content = disk.written();
            LogState { last_purged_log_id: content.purged, last_log_id: content.last() }
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if vote.committed {
            let (term, leader) = (vote.leader_id.term, vote.leader_id.voted_for);
            self.life.world.ledger().leads(term, leader);
        }
        if self.is_mutated(Mutation::ForgetVote) {
            return self.on_disk(|disk| disk.write_in_vain(Write::Vote(*vote)));
        }
        self.write_and_sync(Write::Vote(*vote)).await
    }

    /// Written and not synced, as in the product.
    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let Some(committed) = committed else { return Ok(()) };
        self.on_disk(|disk| {
            if disk.written().last() >= Some(committed) {
                disk.write(Write::Committed(committed));
            }
        })
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.on_disk(|disk| disk.written().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Simulated>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let upto = self.on_disk(|disk| disk.write(Write::Append(entries)))?;
        let early = self.is_mutated(Mutation::AcknowledgeBeforeFsync);
        let log = self.clone();
        SimRuntime::spawn(async move {
            if early {
                callback.io_completed(Ok(()));
                // Whether it ever comes to the disk is nobody's concern any more.
                return drop(log.sync(upto).await);
            }
            let synced = log.sync(upto).await;
            callback.io_completed(synced);
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.life.world.count("logs truncated");
        self.write_and_sync(Write::Truncate(last)).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.life.world.count("logs purged");
        self.on_disk(|disk| disk.write(Write::Purge(upto))).map(drop)
    }
}
