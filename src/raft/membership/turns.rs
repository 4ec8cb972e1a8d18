//! Whose turn it is to change the membership.
//!
//! Two locks, so that what is met says who it is: only operators take the first, and only one at a time; who then
//! waits for the second waits for the leader's own work, which is short. With one lock and a note of who holds it,
//! there would be a moment in which it is held and the note is not made yet.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard, mpsc};
use tokio::time::{Instant, sleep, timeout};

use crate::proto::MemberProgress;

use super::SETTLE_TIMEOUT;
use super::refused::Refused;

/// How long it may take until it shows that nobody listens any more to the change that is under way.
const CALLER_GRACE: Duration = Duration::from_millis(500);
/// Between two looks at it.
const POLL: Duration = Duration::from_millis(20);

/// The turns of one node.
pub(in crate::raft) struct Turns {
    /// Held for as long as an operator's change lasts.
    operator: Mutex<()>,
    /// Where the operator's change under way tells its caller; weak, for the caller waits for the last sender.
    caller: std::sync::Mutex<Option<mpsc::WeakSender<MemberProgress>>>,
    /// Held by who changes the configuration, or wants nobody to.
    configuration: Mutex<()>,
    /// Longest that what is about to end is waited for.
    patience: Duration,
}

/// An operator's turn. In this order: who finds the first one free must not meet the second one taken.
pub(super) struct OperatorTurn<'a> {
    _configuration: MutexGuard<'a, ()>,
    _operator: MutexGuard<'a, ()>,
}

/// Holds off changes for as long as it lives.
pub(in crate::raft) struct BackgroundTurn<'a> {
    _configuration: MutexGuard<'a, ()>,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            operator: Mutex::default(),
            caller: std::sync::Mutex::default(),
            configuration: Mutex::default(),
            patience: SETTLE_TIMEOUT,
        }
    }
}

impl Turns {
    /// The turn of an operator whose caller is told through `caller`. Work of the leader's own is waited for, and so is
    /// the change of a caller that has gone, which ends at its next step: who repeats a command that broke off must not
    /// be turned away by what is left of it. Another operator's change is not waited for.
    ///
    /// # Errors
    /// [`Refused`] with what to do instead.
    pub(super) async fn operator(
        &self,
        caller: &mpsc::Sender<MemberProgress>,
    ) -> Result<OperatorTurn<'_>, Refused> {
        let operator = self.only_operator().await?;
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(caller.downgrade());
        let configuration = timeout(self.patience, self.configuration.lock()).await.map_err(|_| {
            Refused::unavailable(
                "the leader is still settling the membership",
                "run the same command again in a moment",
            )
        })?;
        Ok(OperatorTurn { _configuration: configuration, _operator: operator })
    }

    /// The turn of short work of the leader's own; none while an operator's change is under way.
    pub(super) fn background(&self) -> Option<BackgroundTurn<'_>> {
        let configuration = self.configuration.try_lock().ok()?;
        Some(BackgroundTurn { _configuration: configuration })
    }

    async fn only_operator(&self) -> Result<MutexGuard<'_, ()>, Refused> {
        let began = Instant::now();
        loop {
            if let Ok(operator) = self.operator.try_lock() {
                return Ok(operator);
            }
            let patience = if self.caller_has_gone() { self.patience } else { CALLER_GRACE };
            if began.elapsed() >= patience {
                return Err(Refused::conflict(
                    "another membership change is under way",
                    "try again when it is done; `strongroom member list` shows the members",
                ));
            }
            sleep(POLL).await;
        }
    }

    /// Whether nobody hears any more what becomes of the change that is under way.
    fn caller_has_gone(&self) -> bool {
        let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
        let caller = caller.as_ref();
        caller.is_some_and(|caller| caller.upgrade().is_none_or(|caller| caller.is_closed()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::raft::membership::refused::Obstacle;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_operator_is_never_turned_away_by_the_leaders_own_work() {
        let (turns, stop) = (Arc::new(Turns::default()), Arc::new(AtomicBool::new(false)));
        let background = std::thread::spawn({
            let (turns, stop) = (turns.clone(), stop.clone());
            move || {
                let mut taken = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    taken += u64::from(turns.background().is_some());
                }
                taken
            }
        });
        let (caller, _progress) = mpsc::channel(1);
        for _ in 0..20_000 {
            turns.operator(&caller).await.expect("whenever it comes");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(background.join().unwrap() > 0, "the two met");
    }

    #[tokio::test]
    async fn work_of_the_leaders_own_is_waited_for_and_makes_way() {
        let turns = Turns { patience: CALLER_GRACE, ..Turns::default() };
        let (caller, _progress) = mpsc::channel(1);
        let background = turns.background().expect("nobody else");
        // The one waits before the other lets go: both run on this thread, one after the other.
        let (turn, ()) = tokio::join!(turns.operator(&caller), async move { drop(background) });
        let turn = turn.expect("it waited");
        assert!(turns.background().is_none(), "not during a change");
        drop(turn);
        let _stuck = turns.background().expect("after it");
        let refused = turns.operator(&caller).await.err().expect("not for ever");
        assert_eq!(refused.obstacle, Obstacle::Unavailable, "{refused}");
    }

    #[tokio::test]
    async fn a_second_operator_is_turned_away_unless_the_first_has_gone() {
        let turns = Turns::default();
        let ((first, progress), (second, _listening)) = (mpsc::channel(1), mpsc::channel(1));
        let turn = turns.operator(&first).await.expect("nobody else");
        let refused = turns.operator(&second).await.err().expect("one at a time");
        assert_eq!(refused.obstacle, Obstacle::Conflict, "{refused}");

        drop(progress);
        let began = Instant::now();
        let ends_late = async move {
            while began.elapsed() < CALLER_GRACE * 2 {
                sleep(POLL).await;
            }
            drop(turn);
        };
        let (turn, ()) = tokio::join!(turns.operator(&second), ends_late);
        turn.expect("it waited for what was left of the first");
    }
}
