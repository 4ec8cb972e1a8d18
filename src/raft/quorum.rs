//! When this node last knew a quorum to be in contact.
//!
//! The leader knows it from acknowledgements; it tells followers how old its knowledge is with every append, and a
//! follower adds the time since that append came. What the append spent on the way is not counted, so a follower's age
//! may be too young by that much; the peer connection's keepalive (a few seconds) bounds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Shared between the network (which stamps appends), the peer service (which reads stamps) and readers.
#[derive(Debug, Clone)]
pub struct QuorumClock {
    started: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Milliseconds after `started`, plus one; zero means never.
    seen: AtomicU64,
    /// This node leads and is the only voter: it is the quorum.
    alone: AtomicBool,
}

impl Default for QuorumClock {
    fn default() -> Self {
        Self { started: since_boot(), shared: Arc::default() }
    }
}

impl QuorumClock {
    /// A quorum was in contact `age` ago.
    pub fn saw(&self, age: Duration) {
        // An age from before this process started counts as unknown: older than what is known is not news.
        if let Some(since_start) = self.elapsed().checked_sub(age) {
            self.shared.seen.fetch_max(millis(since_start) + 1, Ordering::Relaxed);
        }
    }

    /// Whether this node is its own quorum: a leader that is the only voter hears from nobody.
    pub fn set_alone(&self, alone: bool) {
        self.shared.alone.store(alone, Ordering::Relaxed);
    }

    /// How long ago a quorum was last known to be in contact; `None` if not since this process started.
    pub fn age(&self) -> Option<Duration> {
        if self.shared.alone.load(Ordering::Relaxed) {
            return Some(Duration::ZERO);
        }
        let seen = self.shared.seen.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_millis(millis(self.elapsed()).saturating_sub(seen)))
    }

    fn elapsed(&self) -> Duration {
        since_boot().saturating_sub(self.started)
    }
}

/// A clock that goes on while the machine is suspended: what was known before is old when it wakes.
pub(super) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
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

    #[test]
    fn a_leader_without_other_voters_is_its_own_quorum() {
        let clock = QuorumClock::default();
        clock.set_alone(true);
        assert_eq!(clock.age(), Some(Duration::ZERO));
        clock.set_alone(false);
        assert_eq!(clock.age(), None);
    }
}
