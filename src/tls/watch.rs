//! Looking after the credentials while they are in use: reload, and warnings in time.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Tls, TlsError, calendar, unix_now};

/// From when on it is warned, once a day, that the own certificate is about to expire.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
/// Between two warnings of the same kind.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 3600);

impl Tls {
    /// Looks at the files every so often until `stop`, and logs what came of it.
    pub async fn watch(&self, every: Duration, stop: CancellationToken) {
        let mut warnings = Warnings::default();
        self.warn(&mut warnings);
        while stop.run_until_cancelled(tokio::time::sleep(every)).await.is_some() {
            let this = self.clone();
            let outcome = tokio::task::spawn_blocking(move || this.reload()).await;
            match outcome {
                Ok(Ok(true)) => {
                    warnings = Warnings::default();
                    tracing::info!(identity = %self.identity(), expires_at = calendar(self.expires_at()), "credentials reloaded");
                }
                Ok(Ok(false)) => warnings.failure = None,
                Ok(Err(error)) => warnings.reload_failed(&error),
                // The runtime is shutting down, or reload panicked: the next round says so again.
                Err(error) => tracing::error!(%error, "credentials could not be looked at"),
            }
            self.warn(&mut warnings);
        }
    }

    fn warn(&self, warnings: &mut Warnings) {
        let current = self.shared.current.load();
        let now = unix_now();
        let expires_soon = current.expires_at < now + EXPIRY_WARNING.as_secs();
        let mut stale = current.trust.stale_revocation_lists(now).peekable();
        if (!expires_soon && stale.peek().is_none() && current.own_fault.is_none()) || !warnings.are_due() {
            return;
        }
        if let Some(fault) = &current.own_fault {
            tracing::error!(%fault, "our own certificate is refused by others: renew it");
        } else if expires_soon {
            tracing::warn!(
                expires_at = calendar(current.expires_at),
                "our certificate is about to expire: renew it"
            );
        }
        for issuer in stale {
            tracing::warn!(
                issuer,
                "the revocation list is out of date; what it revokes stays revoked: replace it"
            );
        }
    }
}

/// What [`Tls::watch`] has said already.
#[derive(Default)]
struct Warnings {
    last: Option<Instant>,
    failure: Option<String>,
}

impl Warnings {
    fn are_due(&mut self) -> bool {
        let due = self.last.is_none_or(|last| last.elapsed() >= WARNING_INTERVAL);
        if due {
            self.last = Some(Instant::now());
        }
        due
    }

    /// Files that stay bad are reported once, not every round.
    fn reload_failed(&mut self, error: &TlsError) {
        let message = error.to_string();
        if self.failure.as_ref() != Some(&message) {
            tracing::error!(error = message, "new credentials are not usable, the old ones stay in use");
            self.failure = Some(message);
        }
    }
}
