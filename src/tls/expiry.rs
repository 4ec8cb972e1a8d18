//! How near certificates are to their end, and from when on that is said.

use std::time::Duration;

use super::calendar;

/// Left of a certificate's time when it is first warned: 30 days, or a third of its whole time if that is less.
pub const EXPIRY_WARNING: Duration = days(30);
/// Left of a certificate's time when it is urgent: 7 days, or a tenth of its whole time if that is less.
pub const EXPIRY_URGENT: Duration = days(7);
/// As [`EXPIRY_WARNING`], of a CA: a change of CA takes several steps on every machine.
pub const AUTHORITY_EXPIRY_WARNING: Duration = days(90);
/// As [`EXPIRY_URGENT`], of a CA.
pub const AUTHORITY_EXPIRY_URGENT: Duration = days(30);
/// The share of its whole time that is left when a short-lived certificate is warned about: one third.
pub const EXPIRY_WARNING_SHARE: u64 = 3;
/// The share that is left when it is urgent: one tenth.
pub const EXPIRY_URGENT_SHARE: u64 = 10;

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3600)
}

/// Whose end it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateKind {
    /// The certificate this process shows.
    Own,
    /// A CA it believes.
    Authority,
}

/// How near an end is; the later ones are worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Far off.
    None,
    /// It is time to plan it.
    Soon,
    /// It is time to do it.
    Urgent,
    /// It is past.
    Over,
}

/// A certificate in use and the time it has. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateExpiry {
    /// Which one.
    pub kind: CertificateKind,
    /// The own identity, or the CA's subject.
    pub subject: String,
    /// Its serial number, hexadecimal.
    pub serial: String,
    /// First valid second.
    pub not_before: u64,
    /// Last valid second.
    pub not_after: u64,
}

impl Urgency {
    /// How near the end of a certificate is that is valid from `not_before` to `not_after`, at `now` (Unix seconds). The
    /// one rule of logs, `status`, `--check` and the alert rules in `cluster/observability`.
    pub fn of(kind: CertificateKind, not_before: u64, not_after: u64, now: u64) -> Self {
        let lifetime = not_after.saturating_sub(not_before);
        let (warning, urgent) = match kind {
            CertificateKind::Own => (EXPIRY_WARNING, EXPIRY_URGENT),
            CertificateKind::Authority => (AUTHORITY_EXPIRY_WARNING, AUTHORITY_EXPIRY_URGENT),
        };
        let warning = warning.as_secs().min(lifetime / EXPIRY_WARNING_SHARE);
        let urgent = urgent.as_secs().min(lifetime / EXPIRY_URGENT_SHARE);
        match not_after.checked_sub(now) {
            None => Self::Over,
            Some(left) if left < urgent => Self::Urgent,
            Some(left) if left < warning => Self::Soon,
            Some(_) => Self::None,
        }
    }
}

impl CertificateExpiry {
    /// How near its end is at `now` (Unix seconds).
    pub fn urgency(&self, now: u64) -> Urgency {
        Urgency::of(self.kind, self.not_before, self.not_after, now)
    }

    /// What to know and to do at `now`, as a sentence; `None` while there is nothing.
    pub fn advice(&self, now: u64) -> Option<String> {
        let verb = match self.urgency(now) {
            Urgency::None => return None,
            Urgency::Soon | Urgency::Urgent => "expires",
            Urgency::Over => "expired",
        };
        let at = calendar(self.not_after);
        let subject = &self.subject;
        Some(match self.kind {
            CertificateKind::Own => format!("the certificate of {subject} {verb} at {at}: renew it"),
            CertificateKind::Authority => {
                format!("the CA {subject} {verb} at {at}: replace it, or take it out of the bundle")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn expiry(kind: CertificateKind, days: u64) -> CertificateExpiry {
        let (subject, serial) = ("spiffe://acme/node/1".to_owned(), "00".to_owned());
        CertificateExpiry { kind, subject, serial, not_before: 1_000, not_after: 1_000 + days * DAY }
    }

    #[test]
    fn warnings_begin_at_a_fixed_time_before_the_end_or_at_a_share_of_a_short_life() {
        use Urgency::{None, Over, Soon, Urgent};
        let left = |kind, days, left: u64| {
            let expiry = expiry(kind, days);
            expiry.urgency(expiry.not_after - left * 3600)
        };
        for (kind, days, hours, expected) in [
            (CertificateKind::Own, 365, 31 * 24, None),
            (CertificateKind::Own, 365, 29 * 24, Soon),
            (CertificateKind::Own, 365, 6 * 24, Urgent),
            (CertificateKind::Own, 30, 11 * 24, None),
            (CertificateKind::Own, 30, 9 * 24, Soon),
            (CertificateKind::Own, 30, 2 * 24, Urgent),
            (CertificateKind::Own, 1, 9, None),
            (CertificateKind::Own, 1, 7, Soon),
            (CertificateKind::Own, 1, 2, Urgent),
            (CertificateKind::Own, 1, 0, Urgent),
            (CertificateKind::Authority, 3_650, 91 * 24, None),
            (CertificateKind::Authority, 3_650, 89 * 24, Soon),
            (CertificateKind::Authority, 3_650, 29 * 24, Urgent),
        ] {
            assert_eq!(left(kind, days, hours), expected, "{kind:?} of {days} days, {hours} hours left");
        }
        let ended = expiry(CertificateKind::Own, 1);
        assert_eq!(ended.urgency(ended.not_after + 1), Over);
        assert!(ended.advice(ended.not_after + 1).unwrap().contains("expired at"));
        assert_eq!(ended.advice(ended.not_before), Option::None);
    }
}
