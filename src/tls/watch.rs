//! Looking after the credentials while they are in use: reload, and warnings in time.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::credentials::Files;
use super::expiry::{CertificateExpiry, CertificateKind, Urgency};
use super::revocation::Retained;
use super::{Tls, TlsError, calendar, lock, unix_now};

/// Between two warnings about the same thing.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// Why the files that lie there are not in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadFailure {
    /// What is wrong with them, naming the file.
    pub reason: String,
    /// Since when that is known (Unix seconds).
    pub since: u64,
}

/// Something about the credentials in use that a person should look after.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CredentialsProblem {
    /// Connections are refused over it, or soon will be.
    pub urgent: bool,
    /// What it is and what to do, as a sentence without a full stop.
    pub text: String,
}

/// What a look at the files found, other than what is in use.
#[derive(PartialEq, Eq)]
pub(super) enum Sighting {
    Content([u8; 32]),
    Unreadable(String),
}

impl Tls {
    /// Looks at the files every so often until `stop`, takes over what is new and good, and logs what came of it, and
    /// what will have to be done: at the start, and then once a day for each certificate.
    ///
    /// New files count once two looks in a row have seen the same: while they are copied, a pair does not match, or a
    /// bundle ends after its first CA.
    pub async fn watch(&self, every: Duration, stop: CancellationToken) {
        let (mut said, mut seen) = (Said::default(), None);
        said.tell(&self.problems());
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let this = self.clone();
            let before = seen.take();
            match tokio::task::spawn_blocking(move || this.look(before)).await {
                Ok((now, taken_over)) => {
                    seen = now;
                    if taken_over {
                        self.log_reload();
                    }
                }
                // The runtime is shutting down, or the look panicked: the next one says so again.
                Err(error) => tracing::error!(%error, "credentials could not be looked at"),
            }
            said.tell(&self.problems());
        }
    }

    fn log_reload(&self) {
        tracing::info!(
            identity = %self.identity(),
            serial = self.serial(),
            expires_at = calendar(self.expires_at()),
            authorities = self.shared.current.load().trust.authorities().count(),
            "credentials reloaded"
        );
    }

    /// One look at the files; `before` is what the one before saw. Returns what it saw that is not in use, and whether
    /// it took it over.
    pub(super) fn look(&self, before: Option<Sighting>) -> (Option<Sighting>, bool) {
        let _one_at_a_time = lock(&self.shared.reloading);
        let files = match Files::read(&self.shared.paths) {
            Ok(files) => files,
            Err(error) => {
                let seen = Some(Sighting::Unreadable(error.to_string()));
                if seen == before {
                    self.note_reload(Err(&error));
                }
                return (seen, false);
            }
        };
        let digest = files.digest();
        if digest == self.shared.current.load().digest {
            self.note_reload(Ok(()));
            return (None, false);
        }
        let seen = Some(Sighting::Content(digest));
        if seen != before {
            return (seen, false);
        }
        (seen, self.take_over(&files).is_ok())
    }

    /// Remembers how the last reload ended, for [`Tls::reload_failure`].
    pub(super) fn note_reload(&self, outcome: Result<(), &TlsError>) {
        let mut failure = lock(&self.shared.failure);
        match outcome.map_err(ToString::to_string) {
            Ok(()) => *failure = None,
            Err(reason) if failure.as_ref().is_some_and(|known| known.reason == reason) => {}
            Err(reason) => *failure = Some(ReloadFailure { reason, since: unix_now() }),
        }
    }

    /// Why the files that lie there are not in use, if they are not; what was read before them is.
    pub fn reload_failure(&self) -> Option<ReloadFailure> {
        lock(&self.shared.failure).clone()
    }

    /// The certificates in use and the time they have: the own one, then the CAs in the order of the bundle.
    pub fn expiries(&self) -> Vec<CertificateExpiry> {
        let current = self.shared.current.load();
        let own = CertificateExpiry {
            kind: CertificateKind::Own,
            subject: current.identity.to_string(),
            serial: current.serial.clone(),
            not_before: current.not_before,
            not_after: current.expires_at,
        };
        let authorities = current.trust.authorities().map(|facts| CertificateExpiry {
            kind: CertificateKind::Authority,
            subject: facts.subject.clone(),
            serial: facts.serial.clone(),
            not_before: facts.not_before,
            not_after: facts.not_after,
        });
        std::iter::once(own).chain(authorities).collect()
    }

    /// The last second (Unix) in which all CAs of the bundle are valid. Between the change to a new CA and the removal
    /// of the old one from the bundle, it is the old one's.
    pub fn authorities_expire_at(&self) -> u64 {
        let current = self.shared.current.load();
        // A bundle without a CA is not accepted.
        current.trust.authorities().map(|facts| facts.not_after).min().unwrap_or(0)
    }

    /// What a person should look after, the urgent first.
    pub fn problems(&self) -> Vec<CredentialsProblem> {
        let now = unix_now();
        let current = self.shared.current.load();
        let mut problems = Vec::new();
        let mut add = |urgent, text: String| problems.push(CredentialsProblem { urgent, text });
        if let Some(fault) = &current.own_fault {
            add(true, format!("the certificate of {} {fault}: others refuse it, renew it", current.identity));
        }
        for expiry in self.expiries() {
            if let Some(advice) = expiry.advice(now) {
                add(expiry.urgency(now) >= Urgency::Urgent, advice);
            }
        }
        if let Some(ReloadFailure { reason, since }) = self.reload_failure() {
            let since = calendar(since);
            add(
                false,
                format!("since {since} new credentials are not usable, the old ones stay in use: {reason}"),
            );
        }
        for Retained { issuer, in_force, in_file } in current.trust.retained_revocation_lists() {
            let text = match in_file {
                None => format!(
                    "the revocation list of {issuer} is gone from its file: the one that was read before ({in_force}) stays in force until a restart, put it back"
                ),
                Some(in_file) => format!(
                    "the revocation list of {issuer} in its file ({in_file}) is older than the one that was read before ({in_force}), and is ignored until a restart: put the newest one there"
                ),
            };
            add(false, text);
        }
        for issuer in current.trust.foreign_revocation_lists() {
            add(
                false,
                format!(
                    "a revocation list of {issuer} is not used: that is no CA that is trusted here. Trust it, or take the list out of its file"
                ),
            );
        }
        for issuer in current.trust.authorities_without_list() {
            add(
                false,
                format!("there is no revocation list of {issuer}: what it has revoked is not known here"),
            );
        }
        for issuer in current.trust.stale_revocation_lists(now) {
            add(
                false,
                format!(
                    "the revocation list of {issuer} is out of date: what it revokes stays revoked, replace it"
                ),
            );
        }
        problems.sort_by_key(|problem| !problem.urgent);
        problems
    }
}

/// What was said already, and when.
#[derive(Default)]
struct Said(BTreeMap<CredentialsProblem, Instant>);

impl Said {
    /// Logs what is new, or was last said a day ago.
    fn tell(&mut self, problems: &[CredentialsProblem]) {
        self.0.retain(|known, at| problems.contains(known) && at.elapsed() < WARNING_INTERVAL);
        for problem in problems {
            if self.0.contains_key(problem) {
                continue;
            }
            self.0.insert(problem.clone(), Instant::now());
            match problem.urgent {
                true => tracing::error!("{}", problem.text),
                false => tracing::warn!("{}", problem.text),
            }
        }
    }
}
