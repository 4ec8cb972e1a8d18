//! What `strongroom cert` says it did.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::cli::output::table;
use crate::escrow::ids::Identity;
use crate::tls::ca::index::IndexRecord;
use crate::tls::{CertificateFacts, calendar, unix_now};

/// The state of a certificate that can be used now.
const VALID: &str = "valid";
const DAY_SECONDS: u64 = 24 * 3600;

/// What a `cert` command did. As JSON by serde; as text by `Display`, without a line end.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum CertReport {
    /// Certificates, each on its own.
    Certificates {
        /// In the order they were issued, or stand in the file.
        certificates: Vec<CertificateLine>,
        /// The revocation list that was written, if one was.
        #[serde(skip_serializing_if = "Option::is_none")]
        revocation_list: Option<PathBuf>,
        /// What keeps them from being used, or soon will.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        problems: Vec<String>,
    },
    /// The CAs of a bundle.
    Bundle {
        /// The file.
        bundle: PathBuf,
        /// Whether it was written.
        changed: bool,
        /// They.
        certificates: Vec<CertificateLine>,
    },
    /// One certificate and the directory it was written to.
    Written {
        /// It.
        certificate: CertificateLine,
        /// Where.
        dir: PathBuf,
    },
}

/// A certificate as it is shown.
#[derive(Debug, Clone, Serialize)]
pub struct CertificateLine {
    /// Whom it is for; of a CA, its name.
    pub identity: String,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// First valid second, RFC 3339.
    pub not_before: String,
    /// Last valid second, RFC 3339.
    pub not_after: String,
    /// `valid`, `expired`, `not yet valid` or `revoked`. A file does not know of a revocation.
    pub state: &'static str,
    /// Whole days until `not_after`, of a certificate that is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub days_left: Option<u64>,
    /// Who issued it, of a certificate that was read from a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// The file it is in, of a directory that was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// When it was revoked, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<String>,
    /// Host names and addresses.
    pub names: Vec<String>,
}

impl From<&IndexRecord> for CertificateLine {
    fn from(record: &IndexRecord) -> Self {
        let state = match record.revoked_at {
            Some(_) => "revoked",
            None => state(record.not_before, record.not_after),
        };
        let addresses = record.ips.iter().map(IpAddr::to_string);
        Self {
            identity: record.identity.to_string(),
            serial: record.serial.clone(),
            not_before: calendar(record.not_before),
            not_after: calendar(record.not_after),
            state,
            days_left: days_left(state, record.not_after),
            issuer: None,
            file: None,
            revoked_at: record.revoked_at.map(calendar),
            names: record.dns.iter().cloned().chain(addresses).collect(),
        }
    }
}

impl From<&CertificateFacts> for CertificateLine {
    fn from(facts: &CertificateFacts) -> Self {
        let addresses = facts.ips.iter().map(IpAddr::to_string);
        let state = state(facts.not_before, facts.not_after);
        Self {
            identity: facts.identity.as_ref().map_or_else(|_| facts.subject.clone(), Identity::to_string),
            serial: facts.serial.clone(),
            not_before: calendar(facts.not_before),
            not_after: calendar(facts.not_after),
            state,
            days_left: days_left(state, facts.not_after),
            issuer: Some(facts.issuer.clone()),
            file: None,
            revoked_at: None,
            names: facts.dns.iter().cloned().chain(addresses).collect(),
        }
    }
}

impl CertificateLine {
    pub(super) fn in_file(self, file: String) -> Self {
        Self { file: Some(file), ..self }
    }

    /// The state, and under it how long it lasts.
    fn state_cell(&self) -> String {
        match self.days_left {
            None => self.state.to_owned(),
            Some(0) => format!("{}\nends today", self.state),
            Some(1) => format!("{}\nfor 1 day", self.state),
            Some(days) => format!("{}\nfor {days} days", self.state),
        }
    }
}

fn days_left(state: &str, not_after: u64) -> Option<u64> {
    (state == VALID).then(|| not_after.saturating_sub(unix_now()) / DAY_SECONDS)
}

fn state(not_before: u64, not_after: u64) -> &'static str {
    let now = unix_now();
    match () {
        () if now < not_before => "not yet valid",
        () if now > not_after => "expired",
        () => VALID,
    }
}

impl fmt::Display for CertReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificates { certificates, revocation_list, problems } => {
                match certificates.as_slice() {
                    [] => f.write_str("no certificates")?,
                    certificates => f.write_str(&text_of(certificates))?,
                }
                if let Some(path) = revocation_list {
                    write!(f, "\n\nrevocation list: {}", path.display())?;
                }
                if !problems.is_empty() {
                    writeln!(f)?;
                }
                problems.iter().try_for_each(|problem| write!(f, "\nproblem: {problem}"))
            }
            Self::Bundle { bundle, changed, certificates } => {
                let done = if *changed { "holds now" } else { "holds" };
                write!(f, "{} {done}:\n\n{}", bundle.display(), text_of(certificates))
            }
            Self::Written { certificate, dir } => {
                let CertificateLine { identity, serial, not_after, .. } = certificate;
                writeln!(f, "{identity}")?;
                writeln!(f, "  serial      {serial}")?;
                writeln!(f, "  valid until {not_after}")?;
                write!(f, "  files in    {}", dir.display())
            }
        }
    }
}

/// Two lines a certificate and a third one for its names, so that a whole serial number fits in 80 columns.
fn text_of(certificates: &[CertificateLine]) -> String {
    let header = ["IDENTITY, SERIAL, NAMES", "STATE", "VALID FROM, UNTIL"];
    let rows = certificates.iter().map(|line| {
        let CertificateLine { identity, serial, not_before, not_after, names, issuer, file, .. } = line;
        let file = file.iter().map(|file| format!("{file}: ")).collect::<String>();
        let issuer = issuer.iter().filter(|issuer| *issuer != identity).map(|issuer| {
            // The common name tells two CAs apart, and fits.
            format!("\n  by {}", issuer.rsplit_once("CN=").map_or(issuer.as_str(), |(_, name)| name))
        });
        let issuer: String = issuer.collect();
        let names: String = names.iter().map(|name| format!("\n  {name}")).collect();
        vec![
            format!("{file}{identity}\n  {serial}{issuer}{names}"),
            line.state_cell(),
            format!("{not_before}\n{not_after}"),
        ]
    });
    table(&header, &[], rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_certificates_fits_in_80_columns_and_shows_whole_serial_numbers() {
        let line = CertificateLine {
            identity: "spiffe://acme/helpdesk-advanced/desk".into(),
            serial: "56646563dc6fcacbf5e10b18511e02d55f75187c".into(),
            not_before: "2026-11-22T04:56:39Z".into(),
            not_after: "2027-02-20T05:01:39Z".into(),
            state: "not yet valid",
            days_left: Some(36_500),
            issuer: Some("O=acme, CN=Strongroom CA 511e02d5".into()),
            file: None,
            revoked_at: None,
            names: vec!["strongroom-1.acme.example".into(), "192.0.2.1".into()],
        };
        let text = text_of(&[line.clone(), line]);
        assert!(text.contains("56646563dc6fcacbf5e10b18511e02d55f75187c"), "{text}");
        assert!(text.contains("  192.0.2.1"), "{text}");
        for line in text.lines() {
            assert!(line.len() <= 80, "{}: {line}", line.len());
        }
    }
}
