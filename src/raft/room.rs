//! Whether a majority of the voters has room on their disks.
//!
//! A node that cannot write its log ends: openraft takes that for fatal, and nobody knows what is on the disk then. The
//! others go on, but disks of one size fill at one time: all nodes would end, and none would show what it has. So before
//! that, once no majority has more than [`RESERVE_BYTES`] left, no node passes on what machines and imports write all day.
//! It says why; what is left stays for what people do, reveals above all, and for the log's own records. Once there is room
//! again, the next comparison (`healing`) finds it, and writes go on.
//!
//! A minority without room changes nothing: it costs no more than any node that is down, while refusing would cost
//! everybody.

use std::sync::{Mutex, PoisonError};

use crate::escrow::command::Action;
use crate::escrow::ids::NodeId;

use super::error::NodeError;
use super::node::Node;

/// What is kept free. More than is written between two looks at a disk, two comparisons included, by a bulk import; and
/// reveals of years.
pub const RESERVE_BYTES: u64 = 64 << 20;

/// The voters without room, as long as those that have it are no majority.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Vec<NodeId>>);

impl Room {
    /// Takes what a comparison has found; answers whether that is news.
    pub(super) fn note(&self, full: &[NodeId], voters: usize) -> bool {
        let full = if is_enough(full.len(), voters) { Vec::new() } else { full.to_vec() };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = known.is_empty() != full.is_empty();
        *known = full;
        is_news
    }

    /// Who has none, if writes have to wait for that.
    pub(super) fn full(&self) -> Vec<NodeId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether the voters that are not `full` are a majority. Who did not answer counts as having room: whoever cannot be
/// reached takes no part in a majority anyway.
fn is_enough(full: usize, voters: usize) -> bool {
    voters.saturating_sub(full) > voters / 2
}

impl Node {
    /// Whether this node has so little room that it counts as having none.
    pub(super) fn is_full(&self) -> bool {
        self.usage().is_some_and(|usage| usage.space.free < RESERVE_BYTES)
    }

    /// Refuses what can wait while no majority has room.
    ///
    /// # Errors
    /// [`NodeError::NoRoom`].
    pub(super) fn check_room(&self, action: &Action) -> Result<(), NodeError> {
        let full = self.inner.room.full();
        if full.is_empty() || !action.is_routine() { Ok(()) } else { Err(NodeError::NoRoom(full)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_wait_while_those_with_room_are_no_majority() {
        let room = Room::default();
        assert!(!room.note(&[2], 3), "two of three have room");
        assert!(room.full().is_empty());
        assert!(room.note(&[2, 3], 3));
        assert!(!room.note(&[1, 2, 3], 3), "no news");
        assert_eq!(room.full(), [1, 2, 3]);
        assert!(room.note(&[], 3));
        assert!(room.full().is_empty());
        assert!(!room.note(&[1, 2], 5));
        assert!(room.note(&[1, 2, 3], 5));
        assert!(Room::default().note(&[1, 2], 4), "two of four are no majority");
        assert!(Room::default().note(&[1], 1));
    }
}
