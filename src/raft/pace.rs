//! Short work over the store, done where it comes up for as long as the disk is quick.
//!
//! Such work may have to wait for the disk, and a thread of the runtime that waits holds up what else would run there,
//! votes and heartbeats above all. But to hand it to a thread that may wait, and to be woken behind it, takes several
//! times what the work takes itself while all that it reads is in memory, which is nearly always. So it is done at once,
//! and timed: after it took long, such work is handed over for a while.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;

/// What took longer has waited: for a disk, or for a processor, which is as good a reason to hold up nobody.
const SLOW: Duration = Duration::from_millis(20);
/// For how long work is handed over then. A disk that stays slow holds up a thread of the runtime once in this time.
const HANDED_OVER: Duration = Duration::from_secs(2);

/// Whether the disk is quick. Clones share what they know.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    began: Instant,
    /// Until when work is handed over, in milliseconds from the beginning.
    handed_over_until: Arc<AtomicU64>,
}

impl Pace {
    pub fn new() -> Self {
        Self { began: Instant::now(), handed_over_until: Arc::default() }
    }

    /// Does `work`, which is short unless it has to wait: here, or on a thread of its own if such work took long of late.
    ///
    /// # Errors
    /// It panicked, or the runtime is stopping.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        if self.elapsed_ms(Duration::ZERO) < self.handed_over_until.load(Ordering::Relaxed) {
            return hand_over(work).await;
        }
        let began = Instant::now();
        // As on a thread of its own, where a panic ends nothing but the work.
        let done = catch_unwind(AssertUnwindSafe(work));
        if began.elapsed() > SLOW {
            self.handed_over_until.store(self.elapsed_ms(HANDED_OVER), Ordering::Relaxed);
        }
        done.map_err(|_| io::Error::other("it panicked, see the log"))
    }

    fn elapsed_ms(&self, more: Duration) -> u64 {
        u64::try_from((self.began.elapsed() + more).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Does `work`, which may take long, on a thread of its own.
///
/// # Errors
/// As [`Pace::run`].
pub(super) async fn hand_over<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use super::*;

    async fn where_it_runs(pace: &Pace) -> ThreadId {
        pace.run(|| thread::current().id()).await.unwrap()
    }

    #[tokio::test]
    async fn work_is_done_here_until_it_takes_long_and_then_elsewhere() {
        let (pace, here) = (Pace::new(), thread::current().id());
        assert_eq!(where_it_runs(&pace).await, here);
        let slow = || {
            let began = Instant::now();
            while began.elapsed() <= SLOW {
                thread::yield_now();
            }
        };
        pace.run(slow).await.unwrap();
        assert_ne!(where_it_runs(&pace.clone()).await, here);
        pace.handed_over_until.store(0, Ordering::Relaxed);
        assert_eq!(where_it_runs(&pace).await, here, "tried again later");
    }

    #[tokio::test]
    async fn a_panic_ends_nothing_but_the_work() {
        let pace = Pace::new();
        assert!(pace.run(|| panic!("on purpose") as ()).await.is_err());
        assert!(pace.run(|| ()).await.is_ok());
    }
}
