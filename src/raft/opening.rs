//! Opening every kept secret, over and over, so that one that does not open is known before somebody needs it.
//!
//! Digests and scrubs say that a row is what was written there, and the same everywhere. Whether it opens, they do not say:
//! it may have been sealed wrongly, or this node may have lost what opens it. So each node goes over all keys of its own
//! replica with its own private identity, opens every secret and package, holds the secret against its fingerprint and
//! lets go of it. The first that does not open is an alarm at once, in the log, in `status` and in metrics; it stays one
//! until a whole pass has opened everything.
//!
//! A key that opens at another node is mended by replacing this one; one that opens nowhere has to be escrowed again by
//! its device: `custody` tells which.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::escrow::ids::{KeyId, Timestamp};
use crate::escrow::lookup;

use super::error::NodeError;
use super::node::Node;
use super::{now, on_own_thread};

/// Keys opened in one step.
const STEP_KEYS: usize = 64;
/// Rest after each step, …
const STEP_REST: Duration = Duration::from_millis(50);
/// … or this many times as long as the step took, if that is longer: at most 1,280 keys a second, and a fifth of a core.
const STEP_REST_TIMES: u32 = 4;
/// From the end of a pass to the beginning of the next.
const PASS_EVERY: Duration = Duration::from_secs(6 * 3_600);
/// Between two looks at whether there is a keyring that opens, and a state to go by.
const RETRY_EVERY: Duration = Duration::from_secs(5);
/// Most keys that are named; the log names every one.
pub const NAMED_MAX: usize = 8;

/// What opening every secret came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opening {
    /// The last complete pass.
    pub complete: Option<CompletePass>,
    /// How many keys do not open: of the pass under way, or of the last complete one if those were more.
    pub unopened: u64,
    /// Some of them.
    pub named: Vec<KeyId>,
    /// Why none can be opened, if the keyring itself cannot; empty if it can.
    pub fault: String,
}

/// A pass over all keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletePass {
    /// When it ended.
    pub at: Timestamp,
    /// How many keys were opened.
    pub opened: u64,
}

/// Where it can be read. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct OpeningBoard(Arc<Mutex<Opening>>);

impl OpeningBoard {
    pub(super) fn read(&self) -> Opening {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut Opening)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A pass under way.
#[derive(Debug, Default)]
struct Pass {
    after: Option<KeyId>,
    opened: u64,
    unopened: u64,
    named: Vec<KeyId>,
}

/// One step of it.
struct Step {
    opened: u64,
    unopened: Vec<KeyId>,
    /// The key to go on behind; `None` at the end.
    last: Option<KeyId>,
}

impl Pass {
    fn add(&mut self, step: Step) {
        self.after = step.last;
        self.opened += step.opened;
        self.unopened += step.unopened.len() as u64;
        let room = NAMED_MAX - self.named.len();
        self.named.extend(step.unopened.into_iter().take(room));
    }

    /// What is to be read of it while it goes on: an alarm of the pass before stands until this one is complete.
    fn show(&self, shown: &mut Opening) {
        shown.fault.clear();
        if self.unopened >= shown.unopened.max(1) {
            shown.unopened = self.unopened;
            shown.named.clone_from(&self.named);
        }
    }

    fn complete(self, at: Timestamp, shown: &mut Opening) {
        let Self { opened, unopened, named, .. } = self;
        let complete = Some(CompletePass { at, opened });
        *shown = Opening { complete, unopened, named, fault: String::new() };
    }
}

impl Node {
    /// What opening every kept secret here came to.
    pub fn opening(&self) -> Opening {
        self.inner.opening.read()
    }

    /// Starts opening kept secrets. Ends with the node.
    pub(super) fn watch_opening(&self) {
        let (weak, stop) = (Arc::downgrade(&self.inner), self.inner.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut pass = Pass::default();
            loop {
                let Some(inner) = weak.upgrade() else { return };
                let rest = Self { inner }.open_more(&mut pass).await;
                sleep(rest).await;
            }
        }));
    }

    /// Opens the next keys, and answers how long to rest.
    async fn open_more(&self, pass: &mut Pass) -> Duration {
        // Of a state that is known to be wrong, or is not there yet, there is nothing to say. What comes instead is gone over
        // from the beginning.
        if self.quarantine().is_some() || !matches!(self.cluster(), Ok(Some(_))) {
            *pass = Pass::default();
            return RETRY_EVERY;
        }
        let (node, after, began) = (self.clone(), pass.after, Instant::now());
        let board = &self.inner.opening;
        match on_own_thread(move || node.open_behind(after)).await {
            Ok(step) => {
                let is_last = step.last.is_none();
                pass.add(step);
                if !is_last {
                    board.change(|shown| pass.show(shown));
                    return STEP_REST.max(began.elapsed() * STEP_REST_TIMES);
                }
                let pass = std::mem::take(pass);
                tracing::debug!(opened = pass.opened, unopened = pass.unopened, "every kept key was tried");
                board.change(|shown| pass.complete(now(), shown));
                PASS_EVERY
            }
            Err(error) => {
                let fault = crate::error::chain(&error);
                if board.read().fault != fault {
                    tracing::error!(%error, "no kept key can be opened here");
                }
                board.change(|shown| shown.fault = fault);
                RETRY_EVERY
            }
        }
    }

    /// Opens the keys behind `after`.
    fn open_behind(&self, after: Option<KeyId>) -> Result<Step, NodeError> {
        let view = self.view()?;
        let keyring = self.keyring_in(&view)?;
        let keys = lookup::keys_after(&view, after, STEP_KEYS)?;
        // The base stands still behind a view, and opening takes longer than reading.
        drop(view);
        let mut step = Step { opened: 0, unopened: Vec::new(), last: None };
        for key in &keys {
            match keyring.check_kept(key) {
                Ok(()) => step.opened += 1,
                Err(error) => {
                    let (key_id, machine) = (key.id, &key.machine);
                    tracing::error!(%error, %key_id, %machine, "a kept key cannot be opened");
                    step.unopened.push(key_id);
                }
            }
        }
        step.last = keys.last().filter(|_| keys.len() == STEP_KEYS).map(|key| key.id);
        Ok(step)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn step(opened: u64, unopened: &[u128], last: Option<u128>) -> Step {
        let id = |number: u128| KeyId(Uuid::from_u128(number));
        Step { opened, unopened: unopened.iter().copied().map(id).collect(), last: last.map(id) }
    }

    #[test]
    fn the_first_key_that_does_not_open_is_an_alarm_at_once_and_until_a_whole_pass_opened_all() {
        let mut shown = Opening::default();
        let mut pass = Pass::default();
        pass.add(step(63, &[7], Some(64)));
        pass.show(&mut shown);
        assert_eq!((shown.unopened, shown.complete), (1, None), "it does not wait for the end");
        pass.add(step(10, &[], None));
        pass.complete(Timestamp(5), &mut shown);
        assert_eq!((shown.unopened, shown.named.len()), (1, 1));

        let mut next = Pass::default();
        next.add(step(64, &[], Some(64)));
        next.show(&mut shown);
        assert_eq!(shown.unopened, 1, "it may be the next one");
        next.add(step(10, &[], None));
        next.complete(Timestamp(9), &mut shown);
        let complete = Some(CompletePass { at: Timestamp(9), opened: 74 });
        assert_eq!(shown, Opening { complete, ..Opening::default() });
    }

    #[test]
    fn keys_are_named_up_to_a_bound_and_all_are_counted() {
        let many: Vec<u128> = (0..60).collect();
        let mut pass = Pass::default();
        pass.add(step(4, &many, Some(64)));
        pass.add(step(4, &many, None));
        let mut shown = Opening::default();
        pass.complete(Timestamp(1), &mut shown);
        assert_eq!((shown.unopened, shown.named.len()), (120, NAMED_MAX));
    }
}
