//! Looking at credentials before they are used: everything that is wrong with them, not the first thing.

use std::path::Path;

use super::error::TlsError;
use super::trust::TrustAnchors;
use super::{Tls, TlsPaths, certificates_in, files};

/// One of the files a process has its credentials in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialFile {
    /// What it trusts.
    Authorities,
    /// Its certificate.
    Certificate,
    /// Its private key.
    Key,
    /// Revocation lists.
    RevocationLists,
}

impl Tls {
    /// As [`Tls::load`], but looks at each file by itself first, and reports what is wrong with all of them.
    ///
    /// # Errors
    /// At least one fault, and the file to mend.
    pub fn load_or_all_faults(
        paths: TlsPaths,
        lists: Option<&Path>,
    ) -> Result<Self, Vec<(CredentialFile, TlsError)>> {
        let looks = [
            (CredentialFile::Authorities, TrustAnchors::from_pem_file(&paths.ca).map(drop)),
            (CredentialFile::Certificate, certificates_in(&paths.cert).map(drop)),
            (CredentialFile::Key, files::read_private(&paths.key).map(drop)),
            (CredentialFile::RevocationLists, lists.map_or(Ok(()), |path| files::read(path).map(drop))),
        ];
        let faults: Vec<_> = looks.into_iter().filter_map(|(file, look)| Some((file, look.err()?))).collect();
        if !faults.is_empty() {
            return Err(faults);
        }
        let of = |path: &Path| match path {
            path if path == paths.ca => CredentialFile::Authorities,
            path if path == paths.key => CredentialFile::Key,
            path if Some(path) == lists => CredentialFile::RevocationLists,
            _ => CredentialFile::Certificate,
        };
        Self::load(paths.clone()).map_err(|error| {
            let file = match &error {
                TlsError::File { path, .. }
                | TlsError::KeyExposed { path, .. }
                | TlsError::Unusable { path, .. } => of(path),
                TlsError::KeyMismatch { .. } => CredentialFile::Key,
                _ => CredentialFile::Certificate,
            };
            vec![(file, error)]
        })
    }
}
