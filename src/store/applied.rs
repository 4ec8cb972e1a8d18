//! What is known of the state besides its rows: carried by every batch, every snapshot and every comparison.

use serde::{Deserialize, Serialize};

use super::digest::{Digest, DigestValue, MILESTONE_EVERY, MILESTONES_MAX};
use super::overlay::Changes;
use crate::escrow::records::LogPosition;

/// Where the state stands. Rests in the same batch as the rows it describes: kept apart, a crash between the two
/// would apply an entry twice or never (seen in etcd 3.5.0 to 3.5.2).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The last entry applied.
    pub position: Option<LogPosition>,
    /// The last membership applied and the entry that set it; its bytes are the raft room's.
    pub membership: Option<(LogPosition, Vec<u8>)>,
    /// The digest of all rows.
    pub digest: DigestValue,
    /// The digests at the last multiples of [`MILESTONE_EVERY`], the newest at the end.
    pub milestones: Vec<Digest>,
    /// How many rows there are.
    pub rows: u64,
    /// Bytes of all keys and values.
    pub bytes: u64,
}

impl Applied {
    /// Its index; 0 before the first entry.
    pub fn index(&self) -> u64 {
        self.position.map_or(0, |position| position.index)
    }

    /// The digest and the index it stands at.
    pub fn digest(&self) -> Digest {
        Digest { index: self.index(), value: self.digest }
    }

    /// Takes in one changed row: its value before and after.
    pub(super) fn change(&mut self, key: &[u8], before: Option<&[u8]>, after: Option<&[u8]>) {
        let size = |value: &[u8]| (key.len() + value.len()) as u64;
        if let Some(before) = before {
            self.digest.remove(key, before);
            // A scrub may find less than was counted; then the sums are wrong, and that is the finding.
            self.rows = self.rows.wrapping_sub(1);
            self.bytes = self.bytes.wrapping_sub(size(before));
        }
        if let Some(after) = after {
            self.digest.add(key, after);
            self.rows = self.rows.wrapping_add(1);
            self.bytes = self.bytes.wrapping_add(size(after));
        }
    }

    /// Moves on to the entry at `position`, whose changes were all taken in.
    pub(super) fn advance(&mut self, position: LogPosition) {
        self.position = Some(position);
        if position.index.is_multiple_of(MILESTONE_EVERY) {
            self.milestones.push(self.digest());
            let surplus = self.milestones.len().saturating_sub(MILESTONES_MAX);
            self.milestones.drain(..surplus);
        }
    }

    /// Whether rows that were read one by one are those this describes.
    pub(super) fn describes(&self, counted: &Self) -> bool {
        (self.digest, self.rows, self.bytes) == (counted.digest, counted.rows, counted.bytes)
    }
}

/// What one entry does to the state, before it takes effect.
#[derive(Debug, Default)]
pub(super) struct Effect {
    pub changes: Changes,
    pub applied: Applied,
}
