//! `strongroom audit`: read the audit trail, take it elsewhere, and check that nothing was done to it.

mod export;
mod file;
mod list;
mod progress;
mod verify;

use clap::{Args, Subcommand};

pub(super) use self::list::time;

use super::{Exit, Failure, Global, Printer};
use crate::error::chain;
use crate::escrow::audit::check::Signed;
use crate::seal::checkpoint::{Checkpoint, CheckpointError};
use crate::tls::ca::CA_CERTIFICATE_FILE;
use crate::tls::{CertificateFault, TlsError, TrustAnchors};

/// Read, export and verify the audit trail.
#[derive(Debug, Args)]
pub(super) struct AuditCommand {
    #[command(subcommand)]
    action: AuditAction,
}

#[derive(Debug, Subcommand)]
enum AuditAction {
    /// Write the whole trail as JSON lines, or what was added since an earlier export.
    Export(export::ExportCommand),
    /// Show records of the trail, the newest first.
    List(list::ListCommand),
    /// Check the trail of the cluster, or exported files: nothing was altered, deleted, inserted, moved or cut off.
    Verify(verify::VerifyCommand),
}

impl AuditCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        match self.action {
            AuditAction::Export(export) => export.run(global, printer).await,
            AuditAction::List(list) => list.run(global, printer).await,
            AuditAction::Verify(verify) => verify.run(global, printer).await,
        }
    }
}

/// The CAs that nodes are believed by: those of the profile if no file is named.
fn trust_of(ca: Option<&std::path::Path>, global: &Global) -> Result<TrustAnchors, Failure> {
    let of_profile;
    let ca = match ca {
        Some(ca) => ca,
        None => {
            let profile = global.profile().map_err(|failure| {
                failure.with_hint("give --ca FILE, or --profile DIR with a ca.crt in it")
            })?;
            of_profile = profile.join(CA_CERTIFICATE_FILE);
            &of_profile
        }
    };
    TrustAnchors::from_pem_file(ca)
        .map_err(|error| Failure::new(Exit::Invalid, format!("ca: {}", chain(&error))))
}

/// What a node has signed, if it has; `place` says where the checkpoint stands.
fn believed(checkpoint: &Checkpoint, trust: &TrustAnchors, place: &str) -> Result<Signed, Failure> {
    checkpoint.verify(trust).map_err(|error| {
        let failure = Failure::new(
            Exit::Failed,
            format!("{place}: the checkpoint of record {} proves nothing: {}", checkpoint.seq, chain(&error)),
        );
        let unknown = CertificateFault::UnknownAuthority;
        failure.with_hint(match error {
            CheckpointError::Unverified(TlsError::Peer(fault)) if fault == unknown => {
                "after a change of CA, give the ones of the checkpoints' times in one file with --ca FILE"
            }
            _ => "somebody changed it, or the file is damaged",
        })
    })
}
