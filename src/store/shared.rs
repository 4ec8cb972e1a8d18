//! What the machine's users and its keeper share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::StoreError;
use super::applied::{Applied, Effect};
use super::base::Base;
use super::digest::{Digest, RECENT_MAX};
use super::overlay::{Changes, Overlay, Sealed};
use super::view::View;

/// Why nothing is applied any more.
#[derive(Debug, Clone)]
pub(super) enum Stop {
    Closed,
    Failed(String),
}

/// A base, and what is known of it before anything is applied over it.
pub(super) struct Opened {
    pub base: Base,
    /// Where it stands.
    pub applied: Applied,
    /// What [`Base::only_rows`] says.
    pub only_rows: Changes,
}

impl Opened {
    /// Reads the only rows of a base that stands at `applied`.
    pub fn new(base: Base, applied: Applied) -> Result<Self, StoreError> {
        let only_rows = base.read_apart(Base::only_rows)?;
        Ok(Self { base, applied, only_rows })
    }
}

/// See the module.
pub(super) struct Shared {
    state: Mutex<State>,
    /// The overlay shrank, or it all stopped.
    room: Condvar,
    overlay_max_bytes: usize,
    generation_max_bytes: usize,
    /// It is about to be closed: what takes long and can be done again later gives way.
    closing: AtomicBool,
}

struct State {
    applied: Applied,
    /// `None` once closed.
    base: Option<Base>,
    overlay: Overlay,
    /// The digests after the last entries, the newest at the end.
    recent: VecDeque<Digest>,
    stop: Option<Stop>,
    /// Why the rows are not to be believed, if a scrub found so.
    suspicion: Option<String>,
}

impl Shared {
    pub fn new(opened: Opened, overlay_max_bytes: usize, generation_max_bytes: usize) -> Self {
        let Opened { base, applied, only_rows } = opened;
        let state = State {
            applied,
            base: Some(base),
            overlay: Overlay::new(only_rows),
            recent: VecDeque::new(),
            stop: None,
            suspicion: None,
        };
        let (room, closing) = (Condvar::new(), AtomicBool::new(false));
        Self { state: state.into(), room, overlay_max_bytes, generation_max_bytes, closing }
    }

    /// No code panics while it holds the lock with the state half changed: what is under it is always whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn applied(&self) -> Applied {
        self.lock().applied.clone()
    }

    pub fn applied_index(&self) -> u64 {
        self.lock().applied.index()
    }

    /// The state as it is now, to read from. After a failure of the base too: what can still be read is right.
    pub fn view(&self) -> Result<View, StoreError> {
        let state = self.lock();
        let base = state.base.clone().ok_or(StoreError::Closed)?;
        let (rows, epoch) = state.overlay.share();
        Ok(View { base, position: state.applied.position, rows, _epoch: epoch })
    }

    /// Waits until the overlay has room, then answers where the state stands.
    pub fn wait_for_room(&self) -> Result<Applied, StoreError> {
        let full =
            |state: &mut State| state.stop.is_none() && state.overlay.bytes() >= self.overlay_max_bytes;
        let state = self.room.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        match &state.stop {
            None => Ok(state.applied.clone()),
            Some(Stop::Closed) => Err(StoreError::Closed),
            Some(Stop::Failed(reason)) => Err(StoreError::Stopped(reason.clone())),
        }
    }

    /// Lets the effect of one entry be seen, all of it at once. Says whether that sealed a generation.
    pub fn commit(&self, effect: Effect) -> bool {
        let mut state = self.lock();
        state.overlay.put(effect.changes);
        state.applied = effect.applied;
        if state.recent.len() == RECENT_MAX {
            state.recent.pop_front();
        }
        let digest = state.applied.digest();
        state.recent.push_back(digest);
        if state.overlay.active_bytes() < self.generation_max_bytes {
            return false;
        }
        let upto = state.applied.clone();
        state.overlay.seal(upto);
        true
    }

    /// Seals what is applied by now. Says where that is, and the number of the generation it ends with: another may be
    /// sealed right behind it.
    pub fn seal(&self) -> (Applied, u64) {
        let mut state = self.lock();
        let upto = state.applied.clone();
        let number = state.overlay.seal(upto.clone());
        (upto, number)
    }

    pub fn oldest_sealed(&self) -> Option<Arc<Sealed>> {
        self.lock().overlay.oldest()
    }

    /// The number of the generation that was sealed last, if it is not in the base yet.
    pub fn newest_sealed(&self) -> Option<u64> {
        self.lock().overlay.newest_sealed()
    }

    /// The oldest generation is in the base.
    pub fn forget_oldest(&self) {
        self.lock().overlay.forget_oldest();
        self.room.notify_all();
    }

    /// Puts a copy of the base in its place. Views that were made before go on reading the old one.
    pub fn swap_base(&self, copy: Base) {
        let mut state = self.lock();
        if state.base.is_some() {
            state.base = Some(copy);
        }
    }

    /// Puts another state in the place of this one. The receiver is disconnected when no view of the old one is left.
    pub fn replace(&self, opened: Opened) -> Receiver<std::convert::Infallible> {
        let Opened { base, applied, only_rows } = opened;
        let mut state = self.lock();
        let old = std::mem::replace(&mut state.overlay, Overlay::new(only_rows));
        state.base = Some(base);
        state.applied = applied;
        // They were of another state.
        state.recent.clear();
        state.suspicion = None;
        drop(state);
        self.room.notify_all();
        old.into_views()
    }

    /// Ends applying; reading too if it is closed.
    pub fn stop(&self, stop: Stop) {
        let mut state = self.lock();
        let base = if matches!(stop, Stop::Closed) { state.base.take() } else { None };
        state.stop.get_or_insert(stop);
        drop(state);
        drop(base);
        self.room.notify_all();
    }

    /// Says that it will be closed next.
    pub fn begin_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Whether it will be closed next.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Why nothing is applied any more, if so.
    pub fn stopped(&self) -> Option<Stop> {
        self.lock().stop.clone()
    }

    /// What failed, if something did.
    pub fn failure(&self) -> Option<String> {
        match self.stopped() {
            Some(Stop::Failed(reason)) => Some(reason),
            Some(Stop::Closed) | None => None,
        }
    }

    /// The rows in the base are not what was written there.
    pub fn suspect(&self, why: &str) {
        self.lock().suspicion.get_or_insert_with(|| why.to_owned());
    }

    /// What [`Shared::suspect`] was told of the state as it is.
    pub fn suspicion(&self) -> Option<String> {
        self.lock().suspicion.clone()
    }

    /// Digests of this state: where it stands, its milestones, and as many as `pick` takes of those after the last
    /// entries.
    pub fn digests(&self, pick: impl Fn(&VecDeque<Digest>) -> Vec<Digest>) -> Vec<Digest> {
        let state = self.lock();
        let mut digests = state.applied.milestones.clone();
        digests.extend(pick(&state.recent));
        digests.push(state.applied.digest());
        digests
    }

    /// Whether the overlay holds more than `percent` of what it may: applying will have to wait for the base soon.
    pub fn is_overlay_over(&self, percent: usize) -> bool {
        self.lock().overlay.bytes() > self.overlay_max_bytes / 100 * percent
    }

    pub fn overlay_len(&self) -> usize {
        self.lock().overlay.len()
    }

    pub fn overlay_max_bytes(&self) -> usize {
        self.overlay_max_bytes
    }

    /// Bytes, rows and sealed generations in the overlay.
    pub fn overlay_stats(&self) -> (usize, usize, usize) {
        let state = self.lock();
        (state.overlay.bytes(), state.overlay.len(), state.overlay.sealed_len())
    }
}
