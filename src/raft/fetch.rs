//! Snapshots that a node asks for because its own state is lost or wrong; those the leader sends by itself are in
//! `network`. Both ends stream a file, never hold it in memory, and what came counts only once its length and hash are
//! those announced.
//!
//! Neither end can hold the other for ever: each gives up when nothing moves for a while ([`OFFER_STALL_MAX`],
//! [`CHUNK_TIMEOUT`]), and when the whole takes longer than the slowest line it is made for
//! ([`TRANSFER_BYTES_PER_SECOND_MIN`]). A reader that is gone is noticed by the connection's keepalive.

use std::pin::pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;

use crate::escrow::ids::NodeId;
use crate::proto::peer::{FetchSnapshotRequest, SnapshotChunk, snapshot_chunk};
use crate::store::format;
use crate::store::snapshot::{SnapshotFile, Snapshots};

use super::agreement::Agreement;
use super::error::NodeError;
use super::network::{OfferHeader, file_chunks};
use super::node::Node;
use super::peers::PeerClient;

/// Most snapshots on their way to who asked for one; past it a node is told to ask another, or later.
pub(super) const OFFERS_MAX: usize = 2;
/// Longest wait for a snapshot's header: a peer may have to write one first, of a whole state.
const HEADER_TIMEOUT: Duration = Duration::from_secs(600);
/// Longest wait for the next part of it: a peer that stalls is given up for another.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest a reader may leave the next part untaken: its place is then free for another.
const OFFER_STALL_MAX: Duration = Duration::from_secs(30);
/// Parts of a snapshot read ahead of who takes them.
const OFFER_CHUNKS_AHEAD: usize = 1;
/// The slowest a whole snapshot may move, in bytes a second: a branch office's line.
const TRANSFER_BYTES_PER_SECOND_MIN: u64 = 16 * 1024;
/// What a transfer may take beside that, however short it is.
const TRANSFER_GRACE: Duration = Duration::from_secs(60);

/// Longest the transfer of a snapshot of `bytes` may take.
fn transfer_limit(bytes: u64) -> Duration {
    TRANSFER_GRACE + Duration::from_secs(bytes / TRANSFER_BYTES_PER_SECOND_MIN)
}

/// How long a reader may take.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Over one part.
    part: Duration,
    /// Over the whole.
    whole: Duration,
}

/// Passes the parts of a snapshot on, in a task that has the `permit` of the offer: a transport does not ask
/// for the next part as long as its reader takes none, so the stream itself would never notice. A reader that is
/// given up sees the stream end early, which it detects by the announced length.
fn hand_out(
    chunks: impl Stream<Item = SnapshotChunk> + Send + 'static,
    pace: Pace,
    permit: OwnedSemaphorePermit,
) -> (impl Future<Output = ()> + Send + 'static, ReceiverStream<SnapshotChunk>) {
    let (sender, receiver) = mpsc::channel(OFFER_CHUNKS_AHEAD);
    let work = async move {
        let _permit = permit;
        let mut chunks = pin!(chunks);
        let deadline = Instant::now() + pace.whole;
        while let Some(chunk) = chunks.next().await {
            let patience = deadline.min(Instant::now() + pace.part);
            match timeout_at(patience, sender.send(chunk)).await {
                Ok(Ok(())) => {}
                // The reader is gone.
                Ok(Err(_)) => return,
                Err(_) => {
                    tracing::warn!("a snapshot is not taken, or too slowly: its reader is given up");
                    return;
                }
            }
        }
    };
    (work, ReceiverStream::new(receiver))
}

impl Node {
    /// A snapshot of this node's state that covers `min_index`, for `caller`: the newest there is, or a new one.
    ///
    /// # Errors
    /// [`NodeError::Quarantined`] if its state is known to be wrong, [`NodeError::Transfer`] if it may be;
    /// [`NodeError::Behind`] if it is not there yet; [`NodeError::Overloaded`] if two are under way;
    /// [`NodeError::Store`] if none can be written.
    pub async fn offer_snapshot(
        &self,
        caller: NodeId,
        min_index: u64,
    ) -> Result<impl Stream<Item = SnapshotChunk> + Send + 'static, NodeError> {
        if let Some(why) = self.quarantine() {
            return Err(NodeError::Quarantined(why));
        }
        if self.agreement() == Agreement::Differs {
            return Err(NodeError::Transfer(
                "this node differs from others and may be the one at fault".into(),
            ));
        }
        if self.applied() < min_index {
            return Err(NodeError::Behind { applied: self.applied(), wanted: min_index });
        }
        let permit = self.inner.offers.clone().try_acquire_owned();
        let permit = permit
            .map_err(|_| NodeError::Overloaded { what: "snapshots on their way", limit: OFFERS_MAX })?;
        let machine = &self.inner.storage.machine;
        let covers =
            |file: &SnapshotFile| file.position().is_some_and(|position| position.index >= min_index);
        let file = match machine.snapshots().newest().filter(covers) {
            Some(newest) => newest,
            None => machine.snapshot().await?,
        };
        // What was found out while it was written counts too.
        if let Some(why) = self.quarantine() {
            return Err(NodeError::Quarantined(why));
        }
        tracing::info!(node = caller, bytes = file.bytes(), "a snapshot goes to a node that asked for one");
        let header = OfferHeader { bytes: file.bytes(), sha256: file.sha256() };
        let chunks = file_chunks(format::encode(&header), file);
        let pace = Pace { part: OFFER_STALL_MAX, whole: transfer_limit(header.bytes) };
        let (work, chunks) = hand_out(chunks, pace, permit);
        tokio::spawn(self.inner.stop.clone().run_until_cancelled_owned(work));
        Ok(chunks)
    }
}

/// Asks `peer` for a snapshot that covers `min_index` and receives it among `snapshots`, as a temporary file: dropped,
/// it leaves nothing. Its rows are checked when it is put to use.
///
/// # Errors
/// [`NodeError::Transfer`] if the peer refuses, stalls or breaks off; [`NodeError::Store`] if what came is not what was
/// announced, or does not fit on the disk.
pub(super) async fn fetch(
    mut peer: PeerClient,
    snapshots: &Snapshots,
    min_index: u64,
) -> Result<SnapshotFile, NodeError> {
    let broken = |why: String| NodeError::Transfer(why);
    let late = |limit: Duration| broken(format!("nothing came for {} s", limit.as_secs()));
    let asked = timeout(HEADER_TIMEOUT, peer.fetch_snapshot(FetchSnapshotRequest { min_index })).await;
    let asked = asked.map_err(|_| late(HEADER_TIMEOUT))?;
    let mut chunks = asked.map_err(|status| broken(crate::error::status(&status)))?.into_inner();
    let first = timeout(HEADER_TIMEOUT, chunks.message()).await.map_err(|_| late(HEADER_TIMEOUT))?;
    let first = first.map_err(|status| broken(crate::error::status(&status)))?;
    let Some(SnapshotChunk { part: Some(snapshot_chunk::Part::Header(header)) }) = first else {
        return Err(broken("it does not begin with a header".to_owned()));
    };
    let header: OfferHeader = format::decode(&header)?;
    let limit = transfer_limit(header.bytes);
    let received = async {
        let mut receiver = snapshots.receive(header.bytes, header.sha256).await?;
        loop {
            let chunk = timeout(CHUNK_TIMEOUT, chunks.message()).await.map_err(|_| late(CHUNK_TIMEOUT))?;
            match chunk.map_err(|status| broken(crate::error::status(&status)))? {
                Some(SnapshotChunk { part: Some(snapshot_chunk::Part::Data(data)) }) => {
                    receiver.write(&data).await?;
                }
                Some(_) => return Err(broken("a second header".to_owned())),
                None => return Ok(receiver.finish().await?),
            }
        }
    };
    let too_slow = |_| broken(format!("it was not complete after {} s", limit.as_secs()));
    timeout(limit, received).await.map_err(too_slow)?
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::stream;
    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;

    use super::*;

    const CHUNKS: usize = 10;
    /// Longer than a test may take.
    const LONG: Duration = Duration::from_secs(3_600);
    const SHORT: Duration = Duration::from_millis(50);
    /// Longest a test waits for what should happen soon.
    const SOON: Duration = Duration::from_secs(30);

    /// An offer of a snapshot in chunks that are ready at once.
    fn offer(pace: Pace) -> (Arc<Semaphore>, JoinHandle<()>, ReceiverStream<SnapshotChunk>) {
        let offers = Arc::new(Semaphore::new(1));
        let permit = offers.clone().try_acquire_owned().unwrap();
        let chunks = stream::iter(std::iter::repeat_n(SnapshotChunk::default(), CHUNKS));
        let (work, chunks) = hand_out(chunks, pace, permit);
        (offers, tokio::spawn(work), chunks)
    }

    async fn soon(work: JoinHandle<()>) {
        timeout(SOON, work).await.expect("it does not wait for its reader for ever").unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_stops_taking_is_given_up_and_sees_the_end() {
        let (offers, work, mut chunks) = offer(Pace { part: SHORT, whole: LONG });
        assert!(chunks.next().await.is_some());
        assert_eq!(offers.available_permits(), 0);
        soon(work).await;
        assert_eq!(offers.available_permits(), 1, "another may ask");
        assert_eq!(chunks.count().await, OFFER_CHUNKS_AHEAD, "it is cut short");
    }

    #[tokio::test]
    async fn a_reader_that_takes_every_part_in_time_is_given_up_when_the_whole_takes_too_long() {
        let (offers, work, chunks) = offer(Pace { part: LONG, whole: Duration::ZERO });
        soon(work).await;
        assert_eq!(offers.available_permits(), 1, "another may ask");
        assert!(chunks.count().await < CHUNKS, "it is cut short");
        assert!(transfer_limit(u64::MAX) > transfer_limit(1 << 30));
        assert!(transfer_limit(0) >= OFFER_STALL_MAX, "the shortest gets as long as one part may take");
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_frees_its_place_and_one_that_takes_all_gets_all() {
        let (offers, work, mut chunks) = offer(Pace { part: LONG, whole: LONG });
        assert!(chunks.next().await.is_some());
        drop(chunks);
        soon(work).await;
        assert_eq!(offers.available_permits(), 1);

        let (offers, work, chunks) = offer(Pace { part: LONG, whole: LONG });
        assert_eq!(chunks.count().await, CHUNKS);
        soon(work).await;
        assert_eq!(offers.available_permits(), 1);
    }
}
