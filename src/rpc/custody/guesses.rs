//! How often somebody may try whether a secret is the kept one.
//!
//! Secrets of most kinds are drawn from so many that no number of tries finds one. A generic one may be a word. So few
//! tries that fail are allowed in an hour; who gives the right secret is not held up. Counted at each node by itself and
//! in memory only: with five nodes and a restart now and then it is still some dozens an hour.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tonic::Status;

/// Most wrong secrets of one person within [`WINDOW`].
const WRONG_MAX: usize = 10;
/// How long a wrong secret counts.
const WINDOW: Duration = Duration::from_secs(3_600);
/// Most people whose wrong secrets are counted; while there are as many, nobody else's secret is compared.
const PEOPLE_MAX: usize = 10_000;

/// When each person gave secrets that were wrong, or are being compared. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Guesses(Arc<Mutex<HashMap<String, VecDeque<Instant>>>>);

impl Guesses {
    /// Counts a secret of `person` that is about to be compared.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if as many as are allowed were wrong of late; nothing is compared then.
    pub(super) fn take(&self, person: &str) -> Result<(), Status> {
        self.take_at(person, Instant::now())
    }

    fn take_at(&self, person: &str, now: Instant) -> Result<(), Status> {
        let mut all = self.lock();
        all.retain(|_, times| {
            times.retain(|at| now.duration_since(*at) < WINDOW);
            !times.is_empty()
        });
        if all.len() >= PEOPLE_MAX && !all.contains_key(person) {
            return Err(Status::permission_denied(
                "too many people gave wrong secrets: try again in an hour",
            ));
        }
        let times = all.entry(person.to_owned()).or_default();
        if times.len() >= WRONG_MAX {
            return Err(Status::permission_denied(format!(
                "{WRONG_MAX} secrets you gave within an hour were not the kept one: no more are compared until an hour is over"
            )));
        }
        times.push_back(now);
        Ok(())
    }

    /// Takes back what was counted last: it was the right one, or there was nothing to compare it with.
    pub(super) fn give_back(&self, person: &str) {
        if let Some(times) = self.lock().get_mut(person) {
            times.pop_back();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, VecDeque<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_wrong_secrets_an_hour_and_any_number_of_right_ones() {
        let guesses = Guesses::default();
        let began = Instant::now();
        let at = |minutes: u64| began + Duration::from_secs(minutes * 60);
        for _ in 0..100 {
            guesses.take_at("desk1", at(0)).unwrap();
            guesses.give_back("desk1");
        }
        for minute in 0..WRONG_MAX as u64 {
            guesses.take_at("desk1", at(minute)).unwrap();
        }
        assert_eq!(guesses.take_at("desk1", at(59)).unwrap_err().code(), tonic::Code::PermissionDenied);
        guesses.take_at("desk2", at(59)).unwrap();
        guesses.take_at("desk1", at(60)).unwrap();
        assert!(guesses.take_at("desk1", at(60)).is_err(), "only the first of them is an hour old");
        guesses.take_at("desk3", at(200)).unwrap();
        assert_eq!(guesses.lock().len(), 1, "who gave none for an hour is forgotten");
    }

    #[test]
    fn those_who_are_counted_are_bounded() {
        let guesses = Guesses::default();
        let now = Instant::now();
        for person in 0..PEOPLE_MAX {
            guesses.lock().insert(person.to_string(), VecDeque::from([now]));
        }
        assert!(guesses.take_at("another", now).is_err());
        guesses.take_at("7", now).unwrap();
        guesses.take_at("another", now + WINDOW).unwrap();
    }
}
