//! `strongroom cert show`: what a certificate file says, or a directory of a profile or node, and whether it works.

use std::path::Path;

use super::report::{CertReport, CertificateLine};
use crate::error::chain;
use crate::escrow::ids::Invalid;
use crate::tls::ca::{CA_CERTIFICATE_FILE, FileNames};
use crate::tls::{Tls, TlsError, TlsPaths, certificates_in};

pub(super) fn show(path: &Path) -> Result<CertReport, TlsError> {
    if path.is_dir() {
        return directory(path);
    }
    let certificates = certificates_in(path)?.iter().map(CertificateLine::from).collect();
    Ok(CertReport::Certificates { certificates, revocation_list: None, problems: Vec::new() })
}

fn directory(path: &Path) -> Result<CertReport, TlsError> {
    let (mut certificates, mut problems) = (Vec::new(), Vec::new());
    for names in [FileNames::CLIENT, FileNames::NODE] {
        if !path.join(names.certificate).exists() {
            continue;
        }
        match Tls::load(TlsPaths::in_directory(path, names)) {
            Ok(tls) => problems.extend(tls.problems().into_iter().map(|problem| problem.text)),
            Err(error) => problems.push(chain(&error)),
        }
    }
    for name in [FileNames::CLIENT.certificate, FileNames::NODE.certificate, CA_CERTIFICATE_FILE] {
        let file = path.join(name);
        if !file.exists() {
            continue;
        }
        match certificates_in(&file) {
            Ok(found) => certificates
                .extend(found.iter().map(|facts| CertificateLine::from(facts).in_file(name.to_owned()))),
            Err(error) => problems.push(chain(&error)),
        }
    }
    if certificates.is_empty() && problems.is_empty() {
        return Err(Invalid::new(
            "file",
            format!(
                "a certificate file, or a directory with {}, {} or {CA_CERTIFICATE_FILE}, which {} is not",
                FileNames::CLIENT.certificate,
                FileNames::NODE.certificate,
                path.display()
            ),
        )
        .into());
    }
    problems.dedup();
    Ok(CertReport::Certificates { certificates, revocation_list: None, problems })
}
