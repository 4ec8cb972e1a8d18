//! Short work over the store, done where it comes up for as long as the disk is quick.
//!
//! Such work may have to wait for the disk, and a thread of the runtime that waits holds up what else would run there,
//! votes and heartbeats above all. But to hand it to a thread that may wait, and to be woken behind it, takes several
//! times what the work takes itself while all that it reads is in memory, which is nearly always. So it is done at once,
//! and timed: after it took long, such work is handed over for a while.
//!
//! It is done at once by one thread of several at a time. A disk that hangs under it costs the runtime that one, and the
//! others go on.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

/// What took longer has waited for a disk, and not for a processor alone that others had meanwhile.
const SLOW: Duration = Duration::from_millis(100);
/// For how long work is handed over then. A disk that stays slow holds up one thread of the runtime once in this time.
const HANDED_OVER: Duration = Duration::from_secs(2);

/// Whether the disk is quick. Clones share what they know.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    began: Instant,
    /// Until when work is handed over, in milliseconds from the beginning.
    handed_over_until: Arc<AtomicU64>,
    /// A thread of the runtime is at it.
    is_taken: Arc<AtomicBool>,
}

/// The one turn at work on a thread of the runtime; given back when dropped.
struct Turn<'a>(&'a AtomicBool);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Pace {
    pub fn new() -> Self {
        Self { began: Instant::now(), handed_over_until: Arc::default(), is_taken: Arc::default() }
    }

    /// Does `work`, which is short unless it has to wait: here, or on a thread of its own if such work took long of late, or
    /// others are at it.
    ///
    /// # Errors
    /// It panicked, or the runtime is stopping.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let Some(_turn) = self.turn() else { return hand_over(work).await };
        let began = Instant::now();
        // As on a thread of its own, where a panic ends nothing but the work.
        let done = catch_unwind(AssertUnwindSafe(work));
        if began.elapsed() > SLOW {
            self.handed_over_until.store(self.elapsed_ms(HANDED_OVER), Ordering::Relaxed);
        }
        done.map_err(|_| io::Error::other("it panicked, see the log"))
    }

    fn turn(&self) -> Option<Turn<'_>> {
        let is_slow = self.elapsed_ms(Duration::ZERO) < self.handed_over_until.load(Ordering::Relaxed);
        // The only one is never to wait.
        if is_slow || Handle::current().metrics().num_workers() < 2 {
            return None;
        }
        (!self.is_taken.swap(true, Ordering::Acquire)).then(|| Turn(&self.is_taken))
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
    use std::sync::mpsc::channel;
    use std::thread::{self, ThreadId};

    use super::*;

    /// In a task of its own: where a test waits is no thread of the runtime.
    async fn runs_here(pace: &Pace) -> bool {
        let pace = pace.clone();
        let task = tokio::spawn(async move {
            let here: ThreadId = thread::current().id();
            pace.run(|| thread::current().id()).await.unwrap() == here
        });
        task.await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_is_done_here_until_it_takes_long_and_then_elsewhere() {
        let pace = Pace::new();
        assert!(runs_here(&pace).await);
        let slow = || {
            let began = Instant::now();
            while began.elapsed() <= SLOW {
                thread::yield_now();
            }
        };
        pace.run(slow).await.unwrap();
        assert!(!runs_here(&pace.clone()).await);
        pace.handed_over_until.store(0, Ordering::Relaxed);
        assert!(runs_here(&pace).await, "tried again later");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_that_hangs_keeps_one_thread_alone() {
        let pace = Pace::new();
        let ((release, hung), (begun, has_begun)) = (channel::<()>(), channel());
        let hangs = pace.clone();
        let hanging = tokio::spawn(async move {
            hangs
                .run(move || {
                    begun.send(()).unwrap();
                    hung.recv().unwrap();
                })
                .await
        });
        spawn_blocking(move || has_begun.recv().unwrap()).await.unwrap();
        assert!(!runs_here(&pace).await);
        release.send(()).unwrap();
        hanging.await.unwrap().unwrap();
        pace.handed_over_until.store(0, Ordering::Relaxed);
        assert!(runs_here(&pace).await);
    }

    #[tokio::test]
    async fn the_only_thread_is_never_to_wait() {
        assert!(!runs_here(&Pace::new()).await);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_panic_ends_nothing_but_the_work() {
        let pace = Pace::new();
        assert!(pace.run(|| panic!("on purpose") as ()).await.is_err());
        // To print it may take long.
        pace.handed_over_until.store(0, Ordering::Relaxed);
        assert!(runs_here(&pace).await);
    }
}
