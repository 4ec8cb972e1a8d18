//! When each other member was last heard from.
//!
//! A node hears from another when that one calls it or answers it: either proves that it runs and can be reached one
//! way at least. The leader's heartbeats and appends come all the time; the others are heard from when a status is asked
//! for, when they forward something, or at an election.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::escrow::ids::NodeId;

/// Most nodes that are remembered; past it a new one is left out. Far more than a cluster ever has members.
const CONTACTS_MAX: usize = 256;

/// The last sign of life of each node. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Contacts(Arc<Mutex<BTreeMap<NodeId, Instant>>>);

impl Contacts {
    /// Node `id` was heard from just now.
    pub(super) fn heard(&self, id: NodeId) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.len() < CONTACTS_MAX || last.contains_key(&id) {
            last.insert(id, Instant::now());
        }
    }

    /// How long ago node `id` was heard from; `None` if not since this process started.
    pub(super) fn age(&self, id: NodeId) -> Option<Duration> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.get(&id).map(Instant::elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_remembered_by_its_last_sign_of_life_and_strangers_have_a_bound() {
        let contacts = Contacts::default();
        assert_eq!(contacts.age(2), None);
        contacts.heard(2);
        let first = contacts.0.lock().unwrap()[&2];
        assert!(contacts.age(2).is_some_and(|age| age <= first.elapsed()));
        (1_000..2_000).for_each(|id| contacts.heard(id));
        assert!(contacts.0.lock().unwrap().len() <= CONTACTS_MAX);
        contacts.heard(2);
        assert!(contacts.0.lock().unwrap()[&2] >= first, "those known before are still heard");
        assert_eq!(contacts.age(1_999), None);
    }
}
