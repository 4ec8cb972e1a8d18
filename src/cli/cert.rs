//! `strongroom cert`: the built-in CA.

mod report;
mod show;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};

use super::{Failure, Printer};
use crate::escrow::ids::{ClusterName, Identity, Invalid, Role};
use crate::tls::ca::{Authority, CA_CERTIFICATE_FILE, FileNames, IssueRequest, Issued, Selector, Validity};
use crate::tls::{CertificateFacts, TlsError, certificates_in, change_bundle};

pub use report::{CertReport, CertificateLine};

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Longest validity that may be asked for, in days.
const DAYS_MAX: u64 = 36_500;

/// A small certificate authority, for those who have none.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Make a certificate authority
    Ca(CaArgs),
    /// Issue a certificate
    Issue(IssueArgs),
    /// Issue a certificate anew, with a new key, before it ends
    Renew(RenewArgs),
    /// Revoke certificates and write the revocation list anew
    Revoke(RevokeArgs),
    /// List what was issued
    List(ListArgs),
    /// Show what a certificate file says, or a profile's or node's directory
    Show(ShowArgs),
    /// Show or change which CAs a bundle (ca.crt) holds
    Trust(TrustArgs),
}

/// Arguments of `cert ca`.
#[derive(Debug, Args)]
pub struct CaArgs {
    /// Directory to make it in; keep it private, and off the nodes
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Name of the cluster it speaks for
    #[arg(long, value_name = "NAME")]
    pub cluster: ClusterName,
    /// How long it is valid [default: 3650]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=DAYS_MAX))]
    pub days: Option<u64>,
}

/// Arguments of `cert issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Directory of the authority
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// agent, auditor, helpdesk, helpdesk-advanced, importer, node, officer or operator
    #[arg(long)]
    pub role: Role,
    /// Who: the machine id of an agent, the id of a node, otherwise a person or service
    #[arg(long)]
    pub name: String,
    /// Host name to be valid for as well; may be given several times
    #[arg(long, value_name = "HOST")]
    pub dns: Vec<String>,
    /// Address to be valid for as well; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    pub ip: Vec<IpAddr>,
    /// How long it is valid [default: 365 for nodes, otherwise 90]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=DAYS_MAX))]
    pub days: Option<u64>,
    /// Directory for ca.crt, client.crt and client.key (node.crt and node.key for nodes)
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Arguments of `cert renew`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["file", "identity"]))]
pub struct RenewArgs {
    /// Directory of the authority
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Certificate file to renew; of another CA too, if the bundle beside it holds this one
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Identity to renew instead
    #[arg(long, value_name = "spiffe://CLUSTER/ROLE/NAME", requires = "out")]
    pub identity: Option<Identity>,
    /// How long it is valid [default: 365 for nodes, otherwise 90]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=DAYS_MAX))]
    pub days: Option<u64>,
    /// Directory whose files are replaced [default: that of FILE]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// Arguments of `cert revoke`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("which").required(true).args(["serial", "identity", "file"]))]
pub struct RevokeArgs {
    /// Directory of the authority
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Serial number of one certificate
    #[arg(long, value_name = "HEX")]
    pub serial: Option<String>,
    /// Identity whose certificates are all revoked
    #[arg(long, value_name = "spiffe://CLUSTER/ROLE/NAME")]
    pub identity: Option<Identity>,
    /// File of the certificate to revoke
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// Arguments of `cert list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Directory of the authority
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
}

/// Arguments of `cert show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Certificate file (PEM), or a directory with client.crt or node.crt
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Arguments of `cert trust`.
#[derive(Debug, Args)]
pub struct TrustArgs {
    /// The bundle: ca.crt of a node or profile
    #[arg(long, value_name = "FILE")]
    pub bundle: PathBuf,
    /// File with a CA to believe as well; may be given several times
    #[arg(long, value_name = "FILE")]
    pub add: Vec<PathBuf>,
    /// File with a CA to believe no longer; may be given several times
    #[arg(long, value_name = "FILE")]
    pub remove: Vec<PathBuf>,
}

pub(super) fn run(command: CertCommand, printer: Printer) -> Result<(), Failure> {
    let flags = command.paths();
    let report = execute(command).map_err(|error| {
        let named = path_in(&error).and_then(|path| flags.iter().find(|(_, given)| path.starts_with(given)));
        let flag = named.map(|(flag, _)| *flag);
        let failure = Failure::from(error);
        match flag {
            Some(flag) => Failure { message: format!("{flag}: {}", failure.message), ..failure },
            None => failure,
        }
    })?;
    printer.result(&report, || report.to_string())
}

impl CertCommand {
    /// The paths that were given, each with the name of its flag, the more special ones first.
    fn paths(&self) -> Vec<(&'static str, PathBuf)> {
        let (file, out, dir) = match self {
            Self::Trust(args) => {
                let named = |flag, paths: &[PathBuf]| {
                    paths.iter().map(|path| (flag, path.clone())).collect::<Vec<_>>()
                };
                return [
                    named("add", &args.add),
                    named("remove", &args.remove),
                    vec![("bundle", args.bundle.clone())],
                ]
                .concat();
            }
            Self::Ca(args) => (None, None, Some(&args.dir)),
            Self::Issue(args) => (None, Some(&args.out), Some(&args.dir)),
            Self::Renew(args) => (args.file.as_ref(), args.out.as_ref(), Some(&args.dir)),
            Self::Revoke(args) => (args.file.as_ref(), None, Some(&args.dir)),
            Self::List(args) => (None, None, Some(&args.dir)),
            Self::Show(args) => (Some(&args.file), None, None),
        };
        let named = [("file", file), ("out", out), ("dir", dir)];
        named.into_iter().filter_map(|(flag, path)| Some((flag, path?.clone()))).collect()
    }
}

/// Which file an error is about.
fn path_in(error: &TlsError) -> Option<&Path> {
    match error {
        TlsError::Exists { path }
        | TlsError::File { path, .. }
        | TlsError::Index { path, .. }
        | TlsError::KeyExposed { path, .. }
        | TlsError::NotTrusted { path, .. }
        | TlsError::Own { path, .. }
        | TlsError::StillNeeded { path }
        | TlsError::Unusable { path, .. } => Some(path),
        _ => None,
    }
}

/// Does what the command says. Prints nothing.
///
/// # Errors
/// [`TlsError`]: [`TlsError::Invalid`] for bad input, [`TlsError::NotIssued`] for what does not exist,
/// [`TlsError::Exists`] and [`TlsError::NotRenewable`] for what conflicts, the rest failures.
pub fn execute(command: CertCommand) -> Result<CertReport, TlsError> {
    match command {
        CertCommand::Ca(args) => create(args),
        CertCommand::Issue(args) => issue(args),
        CertCommand::Renew(args) => renew(args),
        CertCommand::Revoke(args) => revoke(args),
        CertCommand::List(args) => list(&args.dir),
        CertCommand::Show(args) => show::show(&args.file),
        CertCommand::Trust(args) => trust(args),
    }
}

fn create(args: CaArgs) -> Result<CertReport, TlsError> {
    let authority = Authority::create(&args.dir, args.cluster, args.days.map(validity))?;
    Ok(CertReport::Written { certificate: authority.facts().into(), dir: args.dir })
}

fn issue(args: IssueArgs) -> Result<CertReport, TlsError> {
    let authority = Authority::open(&args.dir)?;
    let names = FileNames::for_role(args.role);
    // Before it is issued: afterwards there would be a certificate nobody has the key of.
    authority.refuse_to_overwrite(&args.out, names)?;
    authority.check_trusted_in(&args.out)?;
    let issued = authority.issue(IssueRequest {
        role: args.role,
        name: args.name,
        dns: args.dns,
        ips: args.ip,
        validity: args.days.map(validity),
    })?;
    authority.write_new(&args.out, &issued, names)?;
    Ok(written(&issued, args.out))
}

fn renew(args: RenewArgs) -> Result<CertReport, TlsError> {
    let authority = Authority::open(&args.dir)?;
    let which = selector(None, args.identity, args.file.as_deref())?;
    let identity = match authority.find(&which) {
        Ok(record) => record.identity,
        Err(error @ TlsError::NotIssued(_)) => match &args.file {
            Some(file) => return renew_from_another_ca(&authority, file, args.out, args.days),
            None => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let names = FileNames::for_role(identity.role);
    let out = match (args.out, args.file) {
        (Some(out), _) => out,
        (None, Some(file)) => directory_to_renew_in(&file, names)?,
        (None, None) => return Err(nothing_named().into()),
    };
    authority.check_trusted_in(&out)?;
    let issued = authority.renew(&which, args.days.map(validity))?;
    authority.replace(&out, &issued, names)?;
    Ok(written(&issued, out))
}

/// Issues to whom another CA of the cluster issued, with the same names: a step of a change of CA. That the bundle
/// holds this CA shows that it is meant.
fn renew_from_another_ca(
    authority: &Authority,
    file: &Path,
    out: Option<PathBuf>,
    days: Option<u64>,
) -> Result<CertReport, TlsError> {
    let facts = own_certificate(file)?;
    let identity = facts.identity?;
    if identity.cluster != *authority.cluster() {
        let expected = format!(
            "a certificate of cluster {}, which this CA is for; found {identity}",
            authority.cluster()
        );
        return Err(Invalid::new("file", expected).into());
    }
    let names = FileNames::for_role(identity.role);
    let out = out.map_or_else(|| directory_to_renew_in(file, names), Ok)?;
    if !out.join(CA_CERTIFICATE_FILE).exists() {
        return Err(TlsError::NotIssued(format!("with serial number {}", facts.serial)));
    }
    authority.check_trusted_in(&out)?;
    let issued = authority.issue(IssueRequest {
        role: identity.role,
        name: identity.name,
        dns: facts.dns,
        ips: facts.ips,
        validity: days.map(validity),
    })?;
    authority.replace(&out, &issued, names)?;
    Ok(written(&issued, out))
}

/// Where the files of a certificate are replaced: beside it, if it has the name that will be written.
fn directory_to_renew_in(file: &Path, names: FileNames) -> Result<PathBuf, Invalid> {
    match (file.parent(), file.file_name()) {
        (Some(dir), Some(name)) if name == names.certificate => Ok(dir.to_owned()),
        _ => Err(Invalid::new(
            "out",
            format!(
                "the directory to write {} and {} to, as the file has another name",
                names.certificate, names.key
            ),
        )),
    }
}

fn revoke(args: RevokeArgs) -> Result<CertReport, TlsError> {
    let authority = Authority::open(&args.dir)?;
    let revoked = authority.revoke(&selector(args.serial, args.identity, args.file.as_deref())?)?;
    Ok(CertReport::Certificates {
        certificates: revoked.iter().map(CertificateLine::from).collect(),
        revocation_list: Some(authority.revocation_list_path()),
        problems: Vec::new(),
    })
}

fn list(dir: &Path) -> Result<CertReport, TlsError> {
    let records = Authority::open(dir)?.list()?;
    Ok(CertReport::Certificates {
        certificates: records.iter().map(CertificateLine::from).collect(),
        revocation_list: None,
        problems: Vec::new(),
    })
}

fn trust(args: TrustArgs) -> Result<CertReport, TlsError> {
    let change = change_bundle(&args.bundle, &args.add, &args.remove)?;
    let certificates = change.authorities.iter().map(CertificateLine::from).collect();
    Ok(CertReport::Bundle { bundle: args.bundle, changed: change.changed, certificates })
}

fn validity(days: u64) -> Validity {
    Validity::For(DAY.saturating_mul(u32::try_from(days).unwrap_or(u32::MAX)))
}

fn written(issued: &Issued, dir: PathBuf) -> CertReport {
    CertReport::Written { certificate: (&issued.record).into(), dir }
}

fn selector(
    serial: Option<String>,
    identity: Option<Identity>,
    file: Option<&Path>,
) -> Result<Selector, TlsError> {
    match (serial, identity, file) {
        (Some(serial), _, _) => Ok(Selector::Serial(serial)),
        (_, Some(identity), _) => Ok(Selector::Identity(identity)),
        (_, _, Some(file)) => Ok(Selector::Serial(own_certificate(file)?.serial)),
        (None, None, None) => Err(nothing_named().into()),
    }
}

/// The first certificate of a file.
fn own_certificate(file: &Path) -> Result<CertificateFacts, TlsError> {
    certificates_in(file)?.into_iter().next().ok_or_else(|| nothing_named().into())
}

fn nothing_named() -> Invalid {
    Invalid::new("certificate", "a serial number, an identity or a certificate file")
}

#[cfg(test)]
mod tests;
