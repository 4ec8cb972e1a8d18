//! When this node last knew a quorum to be in contact.
//!
//! The leader knows it from acknowledgements; it tells followers how old its knowledge is with every append, and a
//! follower adds the time since that append came. So the age shown to a person is never younger than the truth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared between the network (which stamps appends), the peer service (which reads stamps) and readers.
#[derive(Debug, Clone)]
pub struct QuorumClock {
    started: Instant,
    /// Milliseconds after `started`, plus one; zero means never.
    seen: Arc<AtomicU64>,
}

impl Default for QuorumClock {
    fn default() -> Self {
        Self { started: Instant::now(), seen: Arc::new(AtomicU64::new(0)) }
    }
}

impl QuorumClock {
    /// A quorum was in contact `age` ago.
    pub fn saw(&self, age: Duration) {
        // An age from before this process started counts as its start: older than what is known is not news.
        if let Some(since_start) = self.started.elapsed().checked_sub(age) {
            self.seen.fetch_max(millis(since_start) + 1, Ordering::Relaxed);
        }
    }

    /// How long ago a quorum was last known to be in contact; `None` if not since this process started.
    pub fn age(&self) -> Option<Duration> {
        let seen = self.seen.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(millis(self.started.elapsed()).saturating_sub(seen)))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_sighting_never_makes_knowledge_younger_or_older() {
        let clock = QuorumClock::default();
        assert_eq!(clock.age(), None);
        clock.saw(Duration::from_secs(3600));
        assert_eq!(clock.age(), None, "before this process started");
        clock.saw(Duration::ZERO);
        let young = clock.age().expect("just seen");
        clock.saw(Duration::from_millis(1));
        assert!(clock.age().expect("seen") < young + Duration::from_secs(1));
    }
}
