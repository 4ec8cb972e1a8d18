//! Quorum reads: many readers share one confirmation, and it began after each of them arrived.
//!
//! ReadIndex (Raft dissertation, §6.4): the leader notes its commit index, has a majority confirm that it still
//! leads, and whoever has applied that index may answer. A confirmation already under way when a reader arrives
//! may have noted an index from before a write that reader knows of, so the reader waits for the next one.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::error::NodeError;

/// Most readers waiting for one confirmation; past it a reader is told to try again.
pub const READERS_MAX: usize = 4_096;

type Waiter = oneshot::Sender<Result<u64, Arc<NodeError>>>;

/// Collects readers and confirms for all of them at once.
#[derive(Clone)]
pub struct ReadIndex {
    arrivals: mpsc::Sender<Waiter>,
}

impl ReadIndex {
    /// Starts confirming with `confirm`, which answers the index a read must wait for. Ends when dropped.
    pub fn new<F>(confirm: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<u64, NodeError>> + Send,
    {
        let (arrivals, mut arrived) = mpsc::channel::<Waiter>(READERS_MAX);
        tokio::spawn(async move {
            let mut waiters = Vec::new();
            while arrived.recv_many(&mut waiters, READERS_MAX).await > 0 {
                let answer = confirm().await.map_err(Arc::new);
                for waiter in waiters.drain(..) {
                    // A reader that gave up is no concern of ours.
                    let _ = waiter.send(answer.clone());
                }
            }
        });
        Self { arrivals }
    }

    /// An index such that a replica which has applied it has everything acknowledged before this call.
    ///
    /// # Errors
    /// Whatever confirming failed with, or [`NodeError::Overloaded`] past [`READERS_MAX`] waiting readers.
    pub async fn confirm(&self) -> Result<u64, Arc<NodeError>> {
        let (waiter, answer) = oneshot::channel();
        self.arrivals
            .try_send(waiter)
            .map_err(|_| NodeError::Overloaded { what: "quorum reads", limit: READERS_MAX })?;
        answer.await.map_err(|_| NodeError::Fatal("the node is stopping".to_owned()))?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn readers_share_a_confirmation_that_began_after_they_arrived() {
        let began = Arc::new(AtomicU64::new(0));
        let gate = Arc::new(Semaphore::new(0));
        let reads = {
            let (began, gate) = (began.clone(), gate.clone());
            ReadIndex::new(move || {
                let (began, gate) = (began.clone(), gate.clone());
                async move {
                    let round = began.fetch_add(1, Ordering::SeqCst) + 1;
                    gate.acquire().await.expect("the gate stays open").forget();
                    Ok(round)
                }
            })
        };
        let read = || {
            let reads = reads.clone();
            tokio::spawn(async move { reads.confirm().await.expect("confirms") })
        };
        let first = read();
        while began.load(Ordering::SeqCst) < 1 {
            tokio::task::yield_now().await;
        }
        let late: Vec<_> = (0..100).map(|_| read()).collect();
        // Let all of them arrive while the first confirmation is still under way.
        while reads.arrivals.capacity() > READERS_MAX - 100 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.expect("ran"), 1);
        for reader in late {
            assert_eq!(reader.await.expect("ran"), 2, "never the confirmation that began before it arrived");
        }
        assert_eq!(began.load(Ordering::SeqCst), 2);
    }
}
