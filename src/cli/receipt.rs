//! `strongroom receipt`: receipts for people and for files, and their check, which needs no node.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use super::output::facts;
use super::whole_file::{Place, WholeFile};
use super::{Exit, Failure, Global, Printer};
use crate::error::chain;
use crate::seal::receipt::disclosure::DisclosureReceipt;
use crate::seal::receipt::{Receipt, ReceiptError};
use crate::tls::ca::CA_CERTIFICATE_FILE;
use crate::tls::{CertificateFault, TlsError, TrustAnchors};

/// Most bytes of a receipt file: a receipt with a long certificate chain is a tenth of that.
const RECEIPT_MAX_BYTES: u64 = 256 * 1024;

/// Check receipts.
#[derive(Debug, Args)]
pub(super) struct ReceiptCommand {
    #[command(subcommand)]
    action: ReceiptAction,
}

#[derive(Debug, Subcommand)]
enum ReceiptAction {
    /// Check a receipt against the certificate authority alone; no node is asked.
    Verify(VerifyCommand),
}

#[derive(Debug, Args)]
struct VerifyCommand {
    /// The receipt, as JSON.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The certificate authority, PEM [default: ca.crt of the profile].
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

impl ReceiptCommand {
    pub(super) fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let ReceiptAction::Verify(VerifyCommand { file, ca }) = self.action;
        let ca = match ca {
            Some(ca) => ca,
            None => global
                .profile()
                .map_err(|failure| failure.with_hint("give --ca FILE, or --profile DIR with a ca.crt in it"))?
                .join(CA_CERTIFICATE_FILE),
        };
        let receipt = read(&file)?;
        let trust = TrustAnchors::from_pem_file(&ca)
            .map_err(|error| Failure::new(Exit::Invalid, format!("ca: {}", chain(&error))))?;
        match receipt {
            AnyReceipt::Escrow(receipt) => {
                receipt.verify(&trust)?;
                let document = json!({ "verified": true, "receipt": receipt });
                printer.result(&document, || format!("the receipt holds\n\n{}", text(&receipt)))
            }
            AnyReceipt::Disclosure(receipt) => {
                receipt.verify(&trust)?;
                let degraded = receipt.audit_sequence.is_none();
                let document = json!({ "verified": true, "degraded": degraded, "receipt": receipt });
                printer.result(&document, || format!("the receipt holds\n\n{}", disclosure_text(&receipt)))
            }
        }
    }
}

impl From<ReceiptError> for Failure {
    fn from(error: ReceiptError) -> Self {
        match &error {
            ReceiptError::Unverified(TlsError::Signature(_)) => {
                Self::new(Exit::Failed, "the receipt does not verify: it is not what its node signed")
                    .with_hint("somebody changed it, or the file is damaged: it proves nothing")
            }
            ReceiptError::Unverified(TlsError::Peer(CertificateFault::UnknownAuthority)) => {
                Self::new(Exit::Failed, chain(&error)).with_hint(
                    "after a change of CA, give the one of the receipt's time with --ca FILE: keep the ca.crt of a CA \
                     that was replaced as long as its receipts count",
                )
            }
            _ => Self::new(Exit::Failed, chain(&error)).with_hint(
                "check that the certificate authority is the one of the cluster that gave the receipt",
            ),
        }
    }
}

/// A receipt of either kind.
enum AnyReceipt {
    Escrow(Box<Receipt>),
    Disclosure(Box<DisclosureReceipt>),
}

impl AnyReceipt {
    /// Only the receipt of a reveal says of itself what it is.
    fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        let document: Value = serde_json::from_slice(json)?;
        if document.get("receipt").is_some() {
            return serde_json::from_slice(json).map(|receipt| Self::Disclosure(Box::new(receipt)));
        }
        serde_json::from_slice(json).map(|receipt| Self::Escrow(Box::new(receipt)))
    }
}

fn read(path: &Path) -> Result<AnyReceipt, Failure> {
    let invalid = |what: String| Failure::new(Exit::Invalid, format!("receipt: {}: {what}", path.display()));
    let unreadable = |error: io::Error| invalid(error.to_string());
    let mut json = Vec::new();
    let file = fs::File::open(path).map_err(unreadable)?;
    file.take(RECEIPT_MAX_BYTES + 1).read_to_end(&mut json).map_err(unreadable)?;
    if json.len() as u64 > RECEIPT_MAX_BYTES {
        return Err(invalid(format!("more than {RECEIPT_MAX_BYTES} bytes, which no receipt has")));
    }
    AnyReceipt::from_json(&json).map_err(|error| invalid(format!("not a receipt: {error}")))
}

/// Makes sure that there can be a receipt at `path`, before there is one.
///
/// # Errors
/// [`Exit::Invalid`] if there cannot.
pub(super) fn prepare(path: &Path) -> Result<WholeFile, Failure> {
    WholeFile::prepare("receipt_out", path, Place::NewOrOld)
}

/// Writes the receipt, as JSON.
///
/// # Errors
/// [`io::Error`] of the file system.
pub(super) fn write(file: WholeFile, receipt: &impl Serialize) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(receipt)?;
    json.push(b'\n');
    file.write(&json)
}

/// A receipt for people.
pub(super) fn text(receipt: &Receipt) -> String {
    let kept = if receipt.already_escrowed { "kept since an earlier escrow" } else { "kept" };
    facts(&[
        ("key", receipt.key_id.to_string()),
        ("machine", receipt.machine.to_string()),
        ("volume", receipt.volume.to_string()),
        ("state", kept.to_owned()),
        ("at", receipt.at.to_string()),
        ("entry", format!("{} of term {}", receipt.index, receipt.term)),
        ("fingerprint", receipt.fingerprint.to_string()),
        ("cluster", receipt.cluster.to_string()),
        ("signed by", receipt.node.to_string()),
    ])
}

/// A receipt of a reveal for people.
fn disclosure_text(receipt: &DisclosureReceipt) -> String {
    let entry = format!("{} of term {}", receipt.index, receipt.term);
    let mut noted = match (receipt.audit_sequence, &receipt.journal) {
        (Some(sequence), _) => vec![("audit", format!("record {sequence}")), ("entry", entry)],
        (None, place) => vec![
            ("audit", "none when it was signed: shown without a quorum".to_owned()),
            ("noted as", place.as_ref().map(ToString::to_string).unwrap_or_default()),
            ("knew up to", entry),
        ],
    };
    let user = receipt.user.as_ref().map_or_else(|| "none named".to_owned(), ToString::to_string);
    let mut all = vec![
        ("shown", receipt.key_id.to_string()),
        ("machine", receipt.machine.to_string()),
        ("volume", receipt.volume.to_string()),
        ("to", receipt.to.to_string()),
        ("user", user),
        ("reason", receipt.reason.clone()),
        ("at", receipt.at.to_string()),
        ("state", receipt.state.to_string()),
    ];
    all.append(&mut noted);
    all.extend([
        ("fingerprint", receipt.fingerprint.to_string()),
        ("cluster", receipt.cluster.to_string()),
        ("signed by", receipt.node.to_string()),
    ]);
    facts(&all)
}
