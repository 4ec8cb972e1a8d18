//! The overlay: rows that were applied and are not in the base yet, in memory.
//!
//! Two views of the same rows. `rows` is one ordered map for readers; it is persistent (a copy shares its nodes), so a
//! reader keeps the state at its index for the price of a pointer while applies go on. `active` and `sealed` hold the
//! same rows by generation, in the order in which they go to the base: a generation ends with an entry, so that the
//! base always stands at the end of one.
//!
//! The only row of a table (the keyring, the policy) is asked for all the time. `rows` has it for good, or that there is
//! none, also while the base has the same; so it has any row whose key within its table is empty.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;
use rpds::RedBlackTreeMapSync;

use super::applied::Applied;

/// A row's new value, or `None` where the row was removed.
pub(super) type Change = Option<Bytes>;
/// Changed rows in the order of keys.
pub(super) type Changes = BTreeMap<Bytes, Change>;
/// Changed rows as readers see them, and those of [`is_only_row`] in any case.
pub(super) type OverlayRows = RedBlackTreeMapSync<Bytes, Slot>;

/// Held by every view. When the last view that began before a generation was sealed is gone, the generation may go to
/// the base: that view would read rows from the base that are newer than it.
pub(super) type Epoch = Sender<Infallible>;

/// What a row costs in the maps beyond its bytes, rounded up.
const ROW_OVERHEAD_BYTES: usize = 256;

/// A row, and the generation that changed it last; 0 if it was as it is when the base was opened.
#[derive(Debug, Clone)]
pub(super) struct Slot {
    pub change: Change,
    generation: u64,
}

/// The changes of a run of entries, complete: ready for the base.
pub(super) struct Sealed {
    pub changes: Changes,
    /// The state after its last entry.
    pub upto: Applied,
    bytes: usize,
    number: u64,
    /// Disconnected when no view from before it is left.
    views_before: std::sync::Mutex<Receiver<Infallible>>,
}

impl Sealed {
    /// Counts generations.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether no view from before this generation is left; waits for at most `patience`.
    pub fn views_are_gone(&self, patience: std::time::Duration) -> bool {
        use std::sync::mpsc::RecvTimeoutError;
        let views = self.views_before.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        matches!(views.recv_timeout(patience), Err(RecvTimeoutError::Disconnected))
    }
}

/// See the module.
pub(super) struct Overlay {
    rows: OverlayRows,
    active: Changes,
    active_bytes: usize,
    active_number: u64,
    sealed: VecDeque<Arc<Sealed>>,
    bytes: usize,
    epoch: Epoch,
    views: Receiver<Infallible>,
}

impl Overlay {
    /// Over a base that has these only rows, by [`is_only_row`].
    pub fn new(only_rows: Changes) -> Self {
        let (epoch, views) = channel();
        let resting = |change| Slot { change, generation: 0 };
        Self {
            rows: only_rows.into_iter().map(|(key, change)| (key, resting(change))).collect(),
            active: Changes::new(),
            active_bytes: 0,
            active_number: 1,
            sealed: VecDeque::new(),
            bytes: 0,
            epoch,
            views,
        }
    }

    /// The rows as they are now, and the token that keeps the base from running ahead of them.
    pub fn share(&self) -> (OverlayRows, Epoch) {
        (self.rows.clone(), self.epoch.clone())
    }

    /// Ends it; the receiver is disconnected when no view of the last epoch is left.
    pub fn into_views(self) -> Receiver<Infallible> {
        self.views
    }

    /// Memory it takes, in bytes, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Memory the unsealed part takes, in bytes, about.
    pub fn active_bytes(&self) -> usize {
        self.active_bytes
    }

    /// Rows changed and not in the base yet; each as often as there are generations that changed it.
    pub fn len(&self) -> usize {
        self.sealed.iter().map(|sealed| sealed.changes.len()).sum::<usize>() + self.active.len()
    }

    /// The generation that was sealed last, if it still waits for the base.
    pub fn newest_sealed(&self) -> Option<u64> {
        self.sealed.back().map(|sealed| sealed.number)
    }

    /// Generations that wait for the base.
    pub fn sealed_len(&self) -> usize {
        self.sealed.len()
    }

    /// Takes the changes of one entry.
    pub fn put(&mut self, changes: Changes) {
        for (key, change) in changes {
            let size = row_bytes(&key, &change);
            let slot = Slot { change: change.clone(), generation: self.active_number };
            self.rows.insert_mut(key.clone(), slot);
            let replaced = self.active.insert(key.clone(), change).map_or(0, |old| row_bytes(&key, &old));
            self.active_bytes = self.active_bytes + size - replaced;
            self.bytes = self.bytes + size - replaced;
        }
    }

    /// Ends the active generation with the state `upto`, which is that after the last entry taken. Says which number it has.
    pub fn seal(&mut self, upto: Applied) -> u64 {
        let (epoch, views) = channel();
        self.epoch = epoch;
        let views_before = std::mem::replace(&mut self.views, views);
        let number = self.active_number;
        self.sealed.push_back(Arc::new(Sealed {
            changes: std::mem::take(&mut self.active),
            upto,
            bytes: std::mem::take(&mut self.active_bytes),
            number,
            views_before: views_before.into(),
        }));
        self.active_number += 1;
        number
    }

    /// The generation that goes to the base next.
    pub fn oldest(&self) -> Option<Arc<Sealed>> {
        self.sealed.front().cloned()
    }

    /// Forgets the oldest generation, which is in the base now.
    pub fn forget_oldest(&mut self) {
        let Some(sealed) = self.sealed.pop_front() else { return };
        for key in sealed.changes.keys().filter(|key| !is_only_row(key)) {
            // Changed again since: the newer change still masks the base.
            if self.rows.get(key).is_some_and(|slot| slot.generation == sealed.number) {
                self.rows.remove_mut(key);
            }
        }
        self.bytes -= sealed.bytes;
    }
}

/// Whether a key among those of all tables is that of a table's only row: it is the table's number alone.
pub(super) fn is_only_row(key: &[u8]) -> bool {
    key.len() == 1
}

/// What a changed row costs in memory, about.
pub(super) fn row_bytes(key: &Bytes, change: &Change) -> usize {
    ROW_OVERHEAD_BYTES + key.len() + change.as_ref().map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn change(key: &'static str, value: Option<&'static str>) -> Changes {
        Changes::from([(Bytes::from(key), value.map(Bytes::from))])
    }

    fn empty() -> Overlay {
        Overlay::new(Changes::new())
    }

    fn seen(rows: &OverlayRows, key: &str) -> Option<Change> {
        rows.get(key.as_bytes()).map(|slot| slot.change.clone())
    }

    #[test]
    fn a_row_changed_again_outlives_its_older_generation() {
        let mut overlay = empty();
        overlay.put(change("aa", Some("1")));
        overlay.put(change("bb", Some("1")));
        overlay.seal(Applied::default());
        overlay.put(change("aa", None));
        overlay.forget_oldest();
        let (rows, _) = overlay.share();
        assert_eq!(seen(&rows, "aa"), Some(None));
        assert_eq!(seen(&rows, "bb"), None);
        overlay.seal(Applied::default());
        overlay.forget_oldest();
        assert_eq!((overlay.bytes(), overlay.len(), overlay.sealed_len()), (0, 0, 0));
    }

    #[test]
    fn a_shared_view_does_not_move_and_holds_back_the_generations_after_it() {
        let mut overlay = empty();
        overlay.put(change("aa", Some("1")));
        let (rows, view) = overlay.share();
        overlay.put(change("aa", Some("2")));
        overlay.seal(Applied::default());
        let later = overlay.share();
        assert_eq!(seen(&rows, "aa"), Some(Some("1".into())));
        let sealed = overlay.oldest().unwrap();
        assert!(!sealed.views_are_gone(Duration::ZERO));
        drop(view);
        assert!(sealed.views_are_gone(Duration::ZERO));
        drop(later);
    }

    #[test]
    fn the_only_row_of_a_table_stays_when_the_base_has_it() {
        let resting = Changes::from([("r".into(), Some("1".into())), ("s".into(), None)]);
        let mut overlay = Overlay::new(resting);
        let (before, _) = overlay.share();
        overlay.put(change("r", None));
        overlay.put(change("s", Some("2")));
        overlay.seal(Applied::default());
        overlay.forget_oldest();
        assert_eq!((overlay.bytes(), overlay.len()), (0, 0));
        let (rows, _) = overlay.share();
        assert_eq!([seen(&rows, "r"), seen(&rows, "s")], [Some(None), Some(Some("2".into()))]);
        assert_eq!([seen(&before, "r"), seen(&before, "s")], [Some(Some("1".into())), Some(None)]);
    }
}
