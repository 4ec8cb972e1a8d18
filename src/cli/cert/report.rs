//! What `strongroom cert` says it did.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::escrow::ids::Identity;
use crate::tls::ca::index::IndexRecord;
use crate::tls::{CertificateFacts, calendar, unix_now};

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
            revoked_at: record.revoked_at.map(calendar),
            names: record.dns.iter().cloned().chain(addresses).collect(),
        }
    }
}

impl From<&CertificateFacts> for CertificateLine {
    fn from(facts: &CertificateFacts) -> Self {
        let addresses = facts.ips.iter().map(IpAddr::to_string);
        Self {
            identity: facts.identity.as_ref().map_or_else(|_| facts.subject.clone(), Identity::to_string),
            serial: facts.serial.clone(),
            not_before: calendar(facts.not_before),
            not_after: calendar(facts.not_after),
            state: state(facts.not_before, facts.not_after),
            revoked_at: None,
            names: facts.dns.iter().cloned().chain(addresses).collect(),
        }
    }
}

fn state(not_before: u64, not_after: u64) -> &'static str {
    let now = unix_now();
    match () {
        () if now < not_before => "not yet valid",
        () if now > not_after => "expired",
        () => "valid",
    }
}

impl fmt::Display for CertReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificates { certificates, revocation_list } => {
                write!(f, "{}", table(certificates))?;
                match revocation_list {
                    Some(path) => write!(f, "\nrevocation list: {}", path.display()),
                    None => Ok(()),
                }
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

fn table(certificates: &[CertificateLine]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(["IDENTITY", "STATE", "VALID FROM", "VALID UNTIL", "SERIAL", "NAMES"]);
    for line in certificates {
        let names = line.names.join(", ");
        table.add_row([&line.identity, line.state, &line.not_before, &line.not_after, &line.serial, &names]);
    }
    table
}
