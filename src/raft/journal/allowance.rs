//! How much nodes that were removed may tell.
//!
//! What they tell comes on record and is dropped, so that no bound on what waits is one on what they make the audit trail
//! grow by. A journal that is handed over has a few thousand entries at most, once.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::escrow::ids::{Invalid, NodeId};
use crate::store::journal::OWN_ENTRIES_MAX;

/// Most new entries in a [`PERIOD`]: a whole journal.
const ENTRIES_MAX: usize = OWN_ENTRIES_MAX;
/// After it, as many again.
const PERIOD: Duration = Duration::from_secs(3_600);

/// Since when each of them has told how much, as long as this process runs.
#[derive(Debug, Default)]
pub struct Allowance(BTreeMap<NodeId, (Instant, usize)>);

impl Allowance {
    /// # Errors
    /// [`Invalid`] if `teller` has told enough for now.
    pub fn check(&mut self, teller: NodeId, now: Instant) -> Result<(), Invalid> {
        self.0.retain(|_, (since, _)| now.duration_since(*since) < PERIOD);
        match self.0.get(&teller) {
            Some((_, told)) if *told >= ENTRIES_MAX => {
                let why = format!("at most {ENTRIES_MAX} in an hour of a node that was removed");
                Err(Invalid::new("entries", why))
            }
            _ => Ok(()),
        }
    }

    /// Counts `entries` more of `teller`.
    pub fn count(&mut self, teller: NodeId, entries: usize, now: Instant) {
        if entries > 0 {
            self.0.entry(teller).or_insert((now, 0)).1 += entries;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_can_be_told_and_then_no_more_until_an_hour_has_passed() {
        let (mut allowance, start) = (Allowance::default(), Instant::now());
        for _ in 0..2 {
            allowance.check(4, start).unwrap();
            allowance.count(4, ENTRIES_MAX / 2, start + Duration::from_secs(60));
        }
        let end = start + Duration::from_secs(60) + PERIOD;
        allowance.check(4, end - Duration::from_secs(1)).unwrap_err();
        allowance.check(5, start).unwrap();
        allowance.check(4, end).unwrap();
        allowance.count(4, 0, end);
        assert!(allowance.0.is_empty(), "nobody is remembered who tells nothing new");
    }
}
