//! The built-in certificate authority, for those who have none: a directory.
//!
//! | file | what it holds |
//! |---|---|
//! | `ca.crt` | its certificate; give it to everybody |
//! | `ca.key` | its private key (mode 0600); whoever reads it can be anybody, so keep the directory off the nodes |
//! | `issued.jsonl` | what it issued and revoked, see [`index`] |
//! | `crl.pem` | its revocation list; give it to the nodes whenever it changes |
//!
//! A CA lives ten years, a certificate 90 days, a node's a year: nodes are renewed by hand, and a cluster whose
//! certificates all end in one forgotten week is a cluster nobody can recover a key from.

pub mod index;
mod params;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateRevocationListParams, Issuer, KeyPair, RevokedCertParams, SerialNumber};

use super::certificate::CertificateFacts;
use super::credentials::certificates;
use super::error::TlsError;
use super::trust::TrustAnchors;
use super::{files, unix_now};
use crate::escrow::ids::{ClusterName, Identity, Invalid, Role};
use crate::secret::Secret;
use index::{IndexRecord, LockedIndex};
pub(super) use params::cluster_of;
use params::{authority_params, date, generate_key, leaf_params, random_serial};

/// The CA's certificate, in its directory and in every profile.
pub const CA_CERTIFICATE_FILE: &str = "ca.crt";
/// The CA's private key.
pub const CA_KEY_FILE: &str = "ca.key";
/// The revocation list.
pub const CRL_FILE: &str = "crl.pem";
/// What was issued and revoked.
pub const INDEX_FILE: &str = "issued.jsonl";

/// How long a CA is valid unless said otherwise.
pub const CA_VALIDITY: Duration = days(3_650);
/// How long a certificate is valid unless said otherwise.
pub const CLIENT_VALIDITY: Duration = days(90);
/// How long a node's certificate is valid unless said otherwise.
pub const NODE_VALIDITY: Duration = days(365);
/// Validity begins this much before it is issued, for clocks that are behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// Longest a revoked certificate stays on the list past its end, for clocks that are behind.
const REVOKED_KEPT_PAST_END: Duration = days(1);
const NANOS_PER_SECOND: u64 = 1_000_000_000;

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 24 * 3600)
}

/// A certificate authority that is open.
pub struct Authority {
    dir: PathBuf,
    cluster: ClusterName,
    facts: CertificateFacts,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// What to issue.
#[derive(Debug, Clone)]
pub struct IssueRequest {
    /// What the identity may do.
    pub role: Role,
    /// Who it is within the role.
    pub name: String,
    /// Further DNS names, for callers that check host names (a browser, a load balancer).
    pub dns: Vec<String>,
    /// Further addresses, likewise.
    pub ips: Vec<IpAddr>,
    /// `None`: the default of the role.
    pub validity: Option<Validity>,
}

impl IssueRequest {
    /// A request with the role's default validity and no further names.
    pub fn new(role: Role, name: impl Into<String>) -> Self {
        Self { role, name: name.into(), dns: Vec::new(), ips: Vec::new(), validity: None }
    }
}

/// When a certificate is valid. Never past its CA: it is cut off there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// Exactly so, in Unix seconds, past and future included.
    Between {
        /// First valid second.
        not_before: u64,
        /// Last valid second.
        not_after: u64,
    },
    /// From now (backdated by [`BACKDATE`]) for so long.
    For(Duration),
}

impl Validity {
    fn default_for(role: Role) -> Self {
        Self::For(if role == Role::Node { NODE_VALIDITY } else { CLIENT_VALIDITY })
    }

    fn bounds(self, now: u64) -> (u64, u64) {
        match self {
            Self::Between { not_before, not_after } => (not_before, not_after),
            Self::For(length) => (now - BACKDATE.as_secs().min(now), now.saturating_add(length.as_secs())),
        }
    }
}

/// A new certificate and its key.
#[derive(Debug, Clone)]
pub struct Issued {
    /// What the index keeps of it.
    pub record: IndexRecord,
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The private key, PKCS#8 PEM. It is kept nowhere else.
    pub key_pem: Secret,
}

/// Which certificates are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// All of an identity.
    Identity(Identity),
    /// One, by its serial number (hexadecimal).
    Serial(String),
}

impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity(identity) => write!(f, "for {identity}"),
            Self::Serial(serial) => write!(f, "with serial number {serial}"),
        }
    }
}

impl Selector {
    fn matches(&self, record: &IndexRecord) -> bool {
        match self {
            Self::Identity(identity) => record.identity == *identity,
            Self::Serial(serial) => record.serial == serial.to_ascii_lowercase(),
        }
    }
}

/// Names of the files a certificate is delivered in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileNames {
    /// The certificate.
    pub certificate: &'static str,
    /// Its private key.
    pub key: &'static str,
}

impl FileNames {
    /// A profile of the command line: `client.crt`, `client.key`.
    pub const CLIENT: Self = Self { certificate: "client.crt", key: "client.key" };
    /// A node: `node.crt`, `node.key`.
    pub const NODE: Self = Self { certificate: "node.crt", key: "node.key" };

    /// The usual names for a role.
    pub fn for_role(role: Role) -> Self {
        if role == Role::Node { Self::NODE } else { Self::CLIENT }
    }
}

impl Authority {
    /// Makes a new CA for a cluster in `dir`, which is created where missing (mode 0700). `validity` `None`:
    /// [`CA_VALIDITY`].
    ///
    /// # Errors
    /// [`TlsError::Exists`] if there is a CA already, [`TlsError::File`], [`TlsError::Generate`].
    pub fn create(dir: &Path, cluster: ClusterName, validity: Option<Validity>) -> Result<Self, TlsError> {
        files::create_directory(dir)?;
        let key = generate_key()?;
        let (not_before, not_after) = validity.unwrap_or(Validity::For(CA_VALIDITY)).bounds(unix_now());
        let params = authority_params(&cluster, not_before, not_after)?;
        let certificate = params.self_signed(&key).map_err(TlsError::Generate)?;
        let key_pem = Secret::from(key.serialize_pem());
        files::create(&dir.join(CA_KEY_FILE), key_pem.expose(), files::PRIVATE_MODE)?;
        files::create(&dir.join(CA_CERTIFICATE_FILE), certificate.pem().as_bytes(), files::PUBLIC_MODE)?;
        files::create(&dir.join(INDEX_FILE), b"", files::PUBLIC_MODE)?;
        let authority = Self::open(dir)?;
        authority.write_revocation_list(&[])?;
        Ok(authority)
    }

    /// Opens the CA in `dir`.
    ///
    /// # Errors
    /// [`TlsError::File`], [`TlsError::KeyExposed`], [`TlsError::KeyMismatch`], or [`TlsError::Unusable`] if this is
    /// not a CA of ours.
    pub fn open(dir: &Path) -> Result<Self, TlsError> {
        let (certificate_path, key_path) = (dir.join(CA_CERTIFICATE_FILE), dir.join(CA_KEY_FILE));
        let unusable = |what: String| TlsError::Unusable { path: certificate_path.clone(), what };
        let pem = files::read(&certificate_path)?;
        let chain = certificates(&certificate_path, &pem)?;
        let [certificate] = chain.as_slice() else {
            return Err(unusable("holds several certificates; the CA's own is expected".to_owned()));
        };
        let facts = CertificateFacts::parse(certificate).map_err(|fault| unusable(fault.to_string()))?;
        let cluster = cluster_of(&facts)
            .ok_or_else(|| unusable("was not made by this command: it names no cluster".to_owned()))?;

        let key_pem = files::read_private(&key_path)?;
        let key = std::str::from_utf8(&key_pem).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
        let key = key.ok_or_else(|| TlsError::Unusable {
            path: key_path.clone(),
            what: "holds no private key (PEM, PKCS#8)".to_owned(),
        })?;
        if !facts.is_key(&rcgen::PublicKeyData::subject_public_key_info(&key)) {
            return Err(TlsError::KeyMismatch { key: key_path, certificate: certificate_path });
        }
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(TlsError::Generate)?;
        let certificate_pem = String::from_utf8_lossy(&pem).into_owned();
        Ok(Self { dir: dir.to_owned(), cluster, facts, certificate_pem, issuer })
    }

    /// The cluster it speaks for.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// What its certificate says.
    pub fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// Its revocation list, for `crl` in the configuration of nodes.
    pub fn revocation_list_path(&self) -> PathBuf {
        self.dir.join(CRL_FILE)
    }

    /// Issues a certificate with a new key and enters it in the index.
    ///
    /// # Errors
    /// [`TlsError::Invalid`] for a name that is not well formed, [`TlsError::Own`] if the CA has expired,
    /// [`TlsError::File`], [`TlsError::Generate`].
    pub fn issue(&self, request: IssueRequest) -> Result<Issued, TlsError> {
        self.issue_into(&mut self.index()?, request)
    }

    /// The certificate meant that lasts longest, of those that are not revoked.
    ///
    /// # Errors
    /// [`TlsError::NotIssued`] if there is none, [`TlsError::NotRenewable`] if all are revoked.
    pub fn find(&self, which: &Selector) -> Result<IndexRecord, TlsError> {
        latest(self.index()?.load()?, which)
    }

    /// Issues a new certificate, with a new key, to whom an earlier one was issued, with the same names. The earlier
    /// one stays valid until it ends or is revoked, so that the holder can change over while working.
    ///
    /// # Errors
    /// As [`Authority::issue`] and [`Authority::find`].
    pub fn renew(&self, which: &Selector, validity: Option<Validity>) -> Result<Issued, TlsError> {
        let mut index = self.index()?;
        let IndexRecord { identity, dns, ips, .. } = latest(index.load()?, which)?;
        let request = IssueRequest { role: identity.role, name: identity.name, dns, ips, validity };
        self.issue_into(&mut index, request)
    }

    /// Revokes every certificate meant and writes the revocation list anew. What was revoked before stays as it
    /// was; revoking again repairs a revocation list that was lost. Returns all that are meant.
    ///
    /// # Errors
    /// [`TlsError::NotIssued`] if there is none, [`TlsError::File`], [`TlsError::Generate`].
    pub fn revoke(&self, which: &Selector) -> Result<Vec<IndexRecord>, TlsError> {
        let mut index = self.index()?;
        let now = unix_now();
        let mut records = index.load()?;
        let mut meant = Vec::new();
        for record in records.iter_mut().filter(|record| which.matches(record)) {
            if record.revoked_at.is_none() {
                record.revoked_at = Some(now);
                index.append(record)?;
            }
            meant.push(record.clone());
        }
        if meant.is_empty() {
            return Err(TlsError::NotIssued(which.to_string()));
        }
        self.write_revocation_list(&records)?;
        Ok(meant)
    }

    /// Everything it issued, in the order it did.
    ///
    /// # Errors
    /// [`TlsError::File`], [`TlsError::Index`].
    pub fn list(&self) -> Result<Vec<IndexRecord>, TlsError> {
        self.index()?.load()
    }

    /// Writes new files for a certificate: `ca.crt`, the certificate and its key (mode 0600). Nothing is overwritten.
    ///
    /// # Errors
    /// [`TlsError::Exists`], [`TlsError::File`].
    pub fn write_new(&self, dir: &Path, issued: &Issued, names: FileNames) -> Result<(), TlsError> {
        self.refuse_to_overwrite(dir, names)?;
        self.replace(dir, issued, names)
    }

    /// As [`Authority::write_new`] with [`FileNames::CLIENT`]: a directory for `--profile`.
    ///
    /// # Errors
    /// As [`Authority::write_new`].
    pub fn write_profile(&self, dir: &Path, issued: &Issued) -> Result<(), TlsError> {
        self.write_new(dir, issued, FileNames::CLIENT)
    }

    /// Writes the files for a certificate, replacing those that are there, each at once. A process that reloads
    /// between two of them sees a key that does not match, keeps what it has, and looks again.
    ///
    /// # Errors
    /// [`TlsError::File`].
    pub fn replace(&self, dir: &Path, issued: &Issued, names: FileNames) -> Result<(), TlsError> {
        files::create_directory(dir)?;
        files::replace(&dir.join(names.key), issued.key_pem.expose(), files::PRIVATE_MODE)?;
        files::replace(&dir.join(names.certificate), issued.cert_pem.as_bytes(), files::PUBLIC_MODE)?;
        let bundle = dir.join(CA_CERTIFICATE_FILE);
        // A bundle that is there may hold a second CA on purpose, while one replaces the other.
        if bundle.exists() {
            return Ok(());
        }
        files::create(&bundle, self.certificate_pem.as_bytes(), files::PUBLIC_MODE)
    }

    /// Fails if there is a bundle in `dir` and this CA is not in it: what it issues there would be refused by its own
    /// process. To be asked before a certificate is issued.
    ///
    /// # Errors
    /// [`TlsError::NotTrusted`]; [`TlsError::Unusable`] if the bundle is none.
    pub fn check_trusted_in(&self, dir: &Path) -> Result<(), TlsError> {
        let path = dir.join(CA_CERTIFICATE_FILE);
        let Some(pem) = files::read_if_present(&path)? else { return Ok(()) };
        let own = certificates(&path, self.certificate_pem.as_bytes())?;
        let bundle = TrustAnchors::from_pem(&path, &pem)?;
        if own.iter().all(|certificate| bundle.holds(certificate)) {
            return Ok(());
        }
        Err(TlsError::NotTrusted { path, authority: self.dir.join(CA_CERTIFICATE_FILE) })
    }

    /// Fails if the files of a certificate are there already; to be asked before one is issued.
    ///
    /// # Errors
    /// [`TlsError::Exists`].
    pub fn refuse_to_overwrite(&self, dir: &Path, names: FileNames) -> Result<(), TlsError> {
        let taken =
            [names.key, names.certificate].map(|name| dir.join(name)).into_iter().find(|path| path.exists());
        taken.map_or(Ok(()), |path| Err(TlsError::Exists { path }))
    }

    fn index(&self) -> Result<LockedIndex, TlsError> {
        LockedIndex::lock(self.dir.join(INDEX_FILE))
    }

    fn issue_into(&self, index: &mut LockedIndex, request: IssueRequest) -> Result<Issued, TlsError> {
        let IssueRequest { role, name, dns, ips, validity } = request;
        let identity = Identity::new(self.cluster.clone(), role, &name)?;
        let now = unix_now();
        if now > self.facts.not_after {
            let fault = super::CertificateFault::Expired { since: self.facts.not_after };
            return Err(TlsError::Own { path: self.dir.join(CA_CERTIFICATE_FILE), fault });
        }
        let (not_before, not_after) = validity.unwrap_or(Validity::default_for(role)).bounds(now);
        let serial = random_serial()?;
        let record = IndexRecord {
            serial: data_encoding::HEXLOWER.encode(&serial),
            identity,
            dns,
            ips,
            not_before,
            not_after: not_after.min(self.facts.not_after),
            revoked_at: None,
        };
        let key = generate_key()?;
        let params = leaf_params(&record, &serial)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(TlsError::Generate)?;
        // Before anybody gets it: a certificate the index does not know could never be revoked.
        index.append(&record)?;
        Ok(Issued { record, cert_pem: certificate.pem(), key_pem: Secret::from(key.serialize_pem()) })
    }

    /// The time (Unix seconds) and the number of a new list: later and larger than those of the list there is, and later
    /// than every revocation. A process that runs goes by them, and a clock that was ahead once must not keep it from
    /// what is revoked after.
    fn next_list(&self, now: u64, records: &[IndexRecord]) -> Result<(u64, u64), TlsError> {
        let path = self.dir.join(CRL_FILE);
        // One that is lost, cut short or somebody else's is made anew; how far it had come is not known then.
        let previous = files::read_if_present(&path)?.and_then(|pem| {
            let own = certificates(&path, self.certificate_pem.as_bytes()).ok()?;
            let trust = TrustAnchors::from_pem(&path, self.certificate_pem.as_bytes()).ok()?;
            let trust = trust.with_revocation_lists(&path, &pem, &[]).ok()?;
            let list = trust.newest_list_of(own.first()?)?;
            Some((list.made_at(), list.number().unwrap_or(0)))
        });
        let (made_at, number) = previous.unwrap_or_default();
        let revoked_at = records.iter().filter_map(|record| record.revoked_at).max().unwrap_or(0);
        let ahead = revoked_at.saturating_add(u64::from(revoked_at > now));
        let this_update = now.max(made_at.saturating_add(1)).max(ahead);
        let seconds = this_update.saturating_mul(NANOS_PER_SECOND);
        Ok((this_update, list_number().max(number.saturating_add(1)).max(seconds)))
    }

    fn write_revocation_list(&self, records: &[IndexRecord]) -> Result<(), TlsError> {
        let now = unix_now();
        let (this_update, number) = self.next_list(now, records)?;
        let mut revoked_certs = Vec::new();
        for record in records {
            let still_matters = record.not_after.saturating_add(REVOKED_KEPT_PAST_END.as_secs()) >= now;
            let (Some(revoked_at), true) = (record.revoked_at, still_matters) else { continue };
            let serial = data_encoding::HEXLOWER.decode(record.serial.as_bytes()).map_err(|_| {
                Invalid::new(
                    "serial",
                    format!("hexadecimal digits, in {INDEX_FILE}; found {:?}", record.serial),
                )
            })?;
            revoked_certs.push(RevokedCertParams {
                serial_number: SerialNumber::from(serial),
                revocation_time: date(revoked_at)?,
                reason_code: None,
                invalidity_date: None,
            });
        }
        let list = CertificateRevocationListParams {
            this_update: date(this_update)?,
            // It changes when something is revoked and not otherwise, so it does not go out of date before its CA.
            next_update: date(self.facts.not_after.max(this_update.saturating_add(1)))?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).and_then(|list| list.pem()).map_err(TlsError::Generate)?;
        files::replace(&self.dir.join(CRL_FILE), list.as_bytes(), files::PUBLIC_MODE)
    }
}

fn latest(mut records: Vec<IndexRecord>, which: &Selector) -> Result<IndexRecord, TlsError> {
    records.retain(|record| which.matches(record));
    if records.is_empty() {
        return Err(TlsError::NotIssued(which.to_string()));
    }
    records.retain(|record| record.revoked_at.is_none());
    let latest = records.into_iter().max_by_key(|record| record.not_after);
    latest.ok_or_else(|| TlsError::NotRenewable(which.to_string()))
}

/// What the number of a list is at least: nanoseconds since 1970.
fn list_number() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
