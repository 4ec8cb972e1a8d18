//! What clients were told of one key, in the order of time, and whether a single copy of that key could have told it.
//!
//! A history is linearizable if each operation can be taken to happen at one moment between its call and its answer.
//! That is so of all keys together exactly if it is so of each by itself, so each is checked by itself: by the checker of
//! Wing, Gong and Lowe in `todc-utils`. An operation whose caller was told nothing may happen at any time after its call,
//! or never: it is answered at the end of all time, where it changes nothing that anybody sees.

use std::time::Instant;

use todc_utils::{Action, History, Specification, WGLChecker};

/// A key as it is to whoever asks a quorum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Seen {
    Absent,
    Active,
    Disclosed,
}

/// What a client was told, or left to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// By a quorum read.
    Found(Seen),
    /// It is kept, and was `before` this request: or since an attempt of this request that got no answer.
    Kept { before: bool },
    /// An escrow without an answer.
    MaybeKept,
    /// A reveal without an answer, or without a quorum: that comes on record later.
    MaybeShown,
    /// A reveal was denied by a quorum: there is no such key.
    NotThere,
    /// A reveal, by a quorum.
    Shown,
}

/// One request of a client.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub called: Instant,
    /// `None` if it may happen at any later time.
    pub answered: Option<Instant>,
    pub told: Told,
}

impl Told {
    /// Whether it may happen at any time after the call, or never.
    fn is_open(self) -> bool {
        matches!(self, Self::MaybeKept | Self::MaybeShown)
    }
}

/// A single copy of a key.
struct OneCopy;

impl Specification for OneCopy {
    type State = Seen;
    type Operation = Told;

    fn init() -> Seen {
        Seen::Absent
    }

    fn apply(told: &Told, seen: &Seen) -> (bool, Seen) {
        let is_absent = *seen == Seen::Absent;
        let kept = if is_absent { Seen::Active } else { *seen };
        let shown = if is_absent { Seen::Absent } else { Seen::Disclosed };
        match told {
            Told::Found(found) => (found == seen, *seen),
            Told::Kept { before: false } => (is_absent, kept),
            Told::Kept { before: true } | Told::MaybeKept => (true, kept),
            Told::MaybeShown => (true, shown),
            Told::NotThere => (is_absent, *seen),
            Told::Shown => (!is_absent, shown),
        }
    }
}

/// Whether a single copy of the key could have told this.
pub fn is_linearizable(operations: &[Operation]) -> bool {
    // Of open ones the first of a kind stands for all: whenever another might happen it might, and once is enough. Without
    // that the search would try every subset of them.
    let first_open =
        |told| operations.iter().filter(move |one| one.told == told).min_by_key(|one| one.called);
    let open = [Told::MaybeKept, Told::MaybeShown].into_iter().filter_map(first_open);
    let counted = operations.iter().filter(|one| !one.told.is_open()).chain(open);
    let mut actions: Vec<_> = counted
        .enumerate()
        .flat_map(|(client, one)| {
            let answered = one.answered.filter(|_| !one.told.is_open());
            [
                (Some(one.called), client, Action::Call(one.told)),
                (answered, client, Action::Response(one.told)),
            ]
        })
        .collect();
    if actions.is_empty() {
        return true;
    }
    // At the same moment, calls come first: who is told something meanwhile may be told of it.
    actions.sort_by_key(|(at, _, action)| (at.is_none(), *at, matches!(action, Action::Response(_))));
    let actions = actions.into_iter().map(|(_, client, action)| (client, action)).collect();
    WGLChecker::<OneCopy>::is_linearizable(History::from_actions(actions))
}

/// A history in words, in the order of calls, by milliseconds since its beginning.
pub fn in_words(operations: &[Operation]) -> String {
    let mut operations = operations.to_vec();
    operations.sort_by_key(|one| one.called);
    let Some(began) = operations.first().map(|one| one.called) else { return String::new() };
    let ms = |at: Instant| (at - began).as_micros() as f64 / 1_000.0;
    let line = |one: &Operation| {
        let until = one.answered.map_or("…".to_owned(), |at| format!("{:.3}", ms(at)));
        format!("\n  {:.3} to {until}: {:?}", ms(one.called), one.told)
    };
    operations.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Seen::{Absent, Active, Disclosed};
    use super::Told::{Found, Kept, MaybeKept, MaybeShown, NotThere, Shown};
    use super::*;

    /// Operations by when they are called and answered, in milliseconds.
    type Handwritten = [(u64, u64, Told)];

    const NEW: Told = Kept { before: false };
    const AGAIN: Told = Kept { before: true };

    /// One that is open is answered at any time, whatever is written.
    fn holds(history: &Handwritten) -> bool {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let operation = |(called, answered, told): &(u64, u64, Told)| Operation {
            called: at(*called),
            answered: (!told.is_open()).then(|| at(*answered)),
            told: *told,
        };
        is_linearizable(&history.iter().map(operation).collect::<Vec<_>>())
    }

    #[test]
    fn what_a_single_copy_could_have_told_is_accepted() {
        let accepted: &[&Handwritten] = &[
            &[],
            &[(0, 1, Found(Absent)), (2, 5, NEW), (6, 7, Found(Active)), (8, 9, AGAIN)],
            // While it is on its way, either is true; once it was seen it stays.
            &[(0, 9, NEW), (1, 2, Found(Absent)), (3, 4, Found(Active)), (5, 6, Found(Active))],
            &[(0, 9, NEW), (0, 9, Found(Absent)), (0, 9, Found(Active))],
            // Two ask for the same at once: one is first.
            &[(0, 9, NEW), (0, 9, AGAIN)],
            // The answer to the first attempt was lost, and the second found it kept.
            &[(0, 9, AGAIN), (10, 11, Found(Active))],
            // No answer: it happens late, or never.
            &[(0, 0, MaybeKept), (1, 2, Found(Absent)), (100, 101, Found(Active)), (102, 103, AGAIN)],
            &[(0, 0, MaybeKept), (1, 2, Found(Absent)), (3, 4, NEW)],
            &[(0, 1, NEW), (2, 3, MaybeShown), (4, 5, Found(Active)), (90, 91, Found(Disclosed))],
            &[(0, 1, NEW), (2, 3, MaybeShown), (2, 3, MaybeShown), (4, 5, Found(Active))],
            &[(0, 1, NotThere), (2, 5, NEW), (3, 4, NotThere), (6, 7, Shown), (8, 9, Found(Disclosed))],
        ];
        for history in accepted {
            assert!(holds(history), "{history:?}");
        }
    }

    #[test]
    fn what_no_single_copy_could_have_told_is_refused() {
        let refused: &[(&str, &Handwritten)] = &[
            ("acknowledged, and gone", &[(0, 1, NEW), (2, 3, Found(Absent))]),
            ("seen, and gone", &[(0, 9, NEW), (1, 2, Found(Active)), (3, 4, Found(Absent))]),
            ("seen before anybody asked for it", &[(0, 1, Found(Active)), (2, 3, NEW)]),
            ("kept twice for the first time", &[(0, 1, NEW), (2, 3, NEW)]),
            (
                "kept for the first time after it was seen",
                &[(0, 9, MaybeKept), (1, 2, Found(Active)), (3, 4, NEW)],
            ),
            ("shown, and not disclosed", &[(0, 1, NEW), (2, 3, Shown), (4, 5, Found(Active))]),
            ("disclosed, and nobody asked", &[(0, 1, NEW), (2, 3, Found(Disclosed))]),
            (
                "disclosed, and active again",
                &[(0, 1, NEW), (2, 3, MaybeShown), (4, 5, Found(Disclosed)), (6, 7, Found(Active))],
            ),
            ("shown before it was kept", &[(0, 1, Shown), (2, 3, NEW)]),
            ("denied though it was kept", &[(0, 1, NEW), (2, 3, NotThere)]),
            (
                "two readers, one after the other, an old leader's answer last",
                &[(0, 20, NEW), (5, 8, Found(Active)), (9, 12, Found(Absent)), (13, 14, Found(Active))],
            ),
        ];
        for (what, history) in refused {
            assert!(!holds(history), "{what}: {history:?}");
        }
    }

    /// However many had no answer, the search stays short.
    #[test]
    fn many_operations_without_an_answer_are_checked_in_no_time() {
        let mut history = vec![(0, 1, NEW)];
        history.extend((0..200).map(|n| (2 + n, 2 + n, MaybeShown)));
        history.extend((0..200).map(|n| (2 + n, 3 + n, Found(Active))));
        assert!(holds(&history));
        history.extend([(500, 501, Found(Disclosed)), (502, 503, Found(Active))]);
        assert!(!holds(&history));
    }
}
