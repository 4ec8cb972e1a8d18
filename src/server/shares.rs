//! How much of something each identity has: no one may take all of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::escrow::ids::Identity;

/// Counts by identity. Clones count together.
#[derive(Clone, Default)]
pub(super) struct Shares(Arc<Mutex<HashMap<Identity, usize>>>);

/// One of an identity's; given back when dropped.
pub(super) struct Share {
    shares: Shares,
    holder: Identity,
}

impl Shares {
    /// One more for `holder`, unless it has `limit` already.
    pub(super) fn take(&self, holder: &Identity, limit: usize) -> Option<Share> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = held.get(holder).copied().unwrap_or(0);
        if count >= limit {
            return None;
        }
        held.insert(holder.clone(), count + 1);
        Some(Share { shares: self.clone(), holder: holder.clone() })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.0.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(&self.holder) {
            Some(count) if *count > 1 => *count -= 1,
            // Forgotten when it has none: what is kept is bounded by what is held.
            _ => drop(held.remove(&self.holder)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_gets_its_share_and_no_more_until_it_gives_back() {
        let shares = Shares::default();
        let [one, other]: [Identity; 2] =
            ["spiffe://test/agent/PC-1", "spiffe://test/agent/PC-2"].map(|id| id.parse().unwrap());
        let first = shares.take(&one, 2);
        let second = shares.take(&one, 2);
        assert!(first.is_some() && second.is_some());
        assert!(shares.take(&one, 2).is_none(), "its share is taken");
        assert!(shares.take(&other, 2).is_some(), "another's is not");
        drop(first);
        assert!(shares.take(&one, 2).is_some());
        drop(second);
        assert!(shares.0.lock().unwrap().is_empty(), "nothing is kept of who has nothing");
    }
}
