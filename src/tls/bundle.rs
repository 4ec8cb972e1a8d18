//! Bundles of CAs, the `ca.crt` of every node and profile: changed whole, and never so that a certificate beside them
//! is left without its CA.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;

use super::ca::{FileNames, cluster_of};
use super::certificate::CertificateFacts;
use super::credentials::certificates;
use super::error::TlsError;
use super::trust::{Side, TrustAnchors};
use super::{files, unix_now};
use crate::escrow::ids::Invalid;

/// Bytes of base64 a line of PEM has (RFC 7468 §2).
const PEM_LINE: usize = 64;

/// What became of a bundle.
#[derive(Debug)]
pub struct BundleChange {
    /// Whether the file was written: it was not if it was as asked for already.
    pub changed: bool,
    /// The CAs that are in it now.
    pub authorities: Vec<CertificateFacts>,
}

/// Puts the CAs of the files `add` into the bundle at `path` and takes those of `remove` out. What is there already, or
/// is not there, is left so: doing it twice is safe. The file is replaced at once.
///
/// # Errors
/// [`TlsError::File`] or [`TlsError::Unusable`] for a file that does not hold CAs, [`TlsError::Invalid`] for a CA of
/// another cluster, one that has expired, or if no CA would be left, [`TlsError::StillNeeded`] if a certificate in the
/// directory of the bundle would lose its CA. Nothing is written then.
pub fn change_bundle(path: &Path, add: &[PathBuf], remove: &[PathBuf]) -> Result<BundleChange, TlsError> {
    let before = TrustAnchors::from_pem_file(path)?;
    let mut bundle: Vec<CertificateDer<'static>> = before.certificates().cloned().collect();
    for file in add {
        let added = TrustAnchors::from_pem_file(file)?;
        for facts in added.authorities() {
            check_added(facts, &before)?;
        }
        for certificate in added.certificates().filter(|certificate| !before.holds(certificate)) {
            bundle.push(certificate.clone());
        }
    }
    for file in remove {
        let removed = TrustAnchors::from_pem_file(file)?;
        bundle.retain(|certificate| !removed.holds(certificate));
    }
    if bundle.is_empty() {
        return Err(Invalid::new("remove", "a CA that is not the last one of the bundle").into());
    }
    let pem: String = bundle.iter().map(|certificate| pem_of(certificate)).collect();
    // Read back before it is written: two CAs may not go together, or be too many.
    let after = TrustAnchors::from_pem(path, pem.as_bytes())?;
    let changed = !before.certificates().eq(after.certificates());
    if changed {
        check_neighbours(files::directory_of(path), &before, &after)?;
        files::replace(path, pem.as_bytes(), files::PUBLIC_MODE)?;
    }
    Ok(BundleChange { changed, authorities: after.authorities().cloned().collect() })
}

fn check_added(facts: &CertificateFacts, bundle: &TrustAnchors) -> Result<(), Invalid> {
    if facts.not_after < unix_now() {
        return Err(Invalid::new("add", format!("a CA that is valid; {} has expired", facts.subject)));
    }
    let Some(cluster) = cluster_of(facts) else { return Ok(()) };
    match bundle.authorities().filter_map(cluster_of).find(|other| *other != cluster) {
        None => Ok(()),
        Some(other) => Err(Invalid::new(
            "add",
            format!(
                "a CA of cluster {other}, as those of the bundle; {} is of cluster {cluster}",
                facts.subject
            ),
        )),
    }
}

/// The certificates that are used with this bundle still lead to a CA of it.
fn check_neighbours(directory: &Path, before: &TrustAnchors, after: &TrustAnchors) -> Result<(), TlsError> {
    for names in [FileNames::CLIENT, FileNames::NODE] {
        let path = directory.join(names.certificate);
        let Some(pem) = files::read_if_present(&path)? else { continue };
        let (chain, now) = (certificates(&path, &pem)?, unix_now());
        if before.verify(&chain, Side::Client, now).is_ok()
            && after.verify(&chain, Side::Client, now).is_err()
        {
            return Err(TlsError::StillNeeded { path });
        }
    }
    Ok(())
}

fn pem_of(certificate: &CertificateDer<'_>) -> String {
    let base64 = data_encoding::BASE64.encode(certificate);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for start in (0..base64.len()).step_by(PEM_LINE) {
        pem.push_str(&base64[start..base64.len().min(start + PEM_LINE)]);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
