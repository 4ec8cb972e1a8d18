//! Snapshots that a node asks for because its own state is lost or wrong; those the leader sends by itself are in
//! `network`. Both ends stream a file, never hold it in memory, and what came counts only once its length and hash are
//! those announced.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use tokio::time::timeout;

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
        let permit = Arc::new(permit);
        Ok(chunks.inspect(move |_| drop(permit.clone())))
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
}
