//! Looking at all that a node needs before it starts. Everything that is wrong is reported at once, before a socket
//! opens; nothing is changed, and no directory is made.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Access, access};

use super::tls_paths;
use crate::config::Config;
use crate::error::chain;
use crate::escrow::ids::{Invalid, Role};
use crate::seal::{NodeKey, SealError};
use crate::store::directory::{DataDir, Inspection, Owner};
use crate::store::is_of_the_disk;
use crate::tls::{CertificateKind, CredentialFile, Tls, unix_now};

/// How the kernel writes that a socket listens (`TCP_LISTEN`, include/net/tcp_states.h).
const LISTENING: &str = "0A";

/// What was found, by the fields of the configuration.
#[derive(Debug, Default)]
pub struct Findings {
    /// What keeps the node from running.
    pub problems: Vec<Invalid>,
    /// What it can run with, but somebody should know.
    pub warnings: Vec<Invalid>,
}

/// Looks at the files, directories and addresses that `config` names.
pub fn preflight(config: &Config) -> Findings {
    let mut findings = Findings::default();
    findings.credentials(config);
    let directory = findings.data_dir(config);
    findings.node_key(config, directory.is_some_and(|directory| directory.has_log));
    findings.addresses(config);
    findings
}

/// Which ports of `config` somebody listens on already, for a check: this node, if it runs. Asks the kernel's tables
/// and opens no socket, so it can miss one that is opened a moment later.
pub fn ports_in_use(config: &Config) -> Vec<Invalid> {
    let taken = listening_ports();
    let ports = [
        ("listen.admin", config.listen.admin),
        ("listen.api", config.listen.api),
        ("listen.peer", config.listen.peer),
    ];
    let in_use = ports.into_iter().filter(|(_, address)| taken.contains(&address.port()));
    in_use
        .map(|(field, address)| {
            let text = format!("somebody listens on port {} already; this node, if it runs", address.port());
            Invalid::new(field, text)
        })
        .collect()
}

impl Findings {
    fn refuse(&mut self, field: &str, why: impl Into<String>) {
        self.problems.push(Invalid::new(field, why));
    }

    fn warn(&mut self, field: &str, what: impl Into<String>) {
        self.warnings.push(Invalid::new(field, what));
    }

    fn credentials(&mut self, config: &Config) {
        let tls = match Tls::load_or_all_faults(tls_paths(config), config.tls.crl.as_deref()) {
            Ok(tls) => tls,
            Err(faults) => {
                for (file, error) in faults {
                    self.refuse(field_of(file), chain(&error));
                }
                return;
            }
        };
        let identity = tls.identity();
        if identity.cluster != config.cluster || identity.node_id() != Some(config.node_id) {
            let expected = format!("spiffe://{}/{}/{}", config.cluster, Role::Node, config.node_id);
            self.refuse("tls.cert", format!("is for {identity}, but the configuration says {expected}"));
        }
        for expiry in tls.expiries() {
            let field = match expiry.kind {
                CertificateKind::Own => "tls.cert",
                CertificateKind::Authority => "tls.ca",
            };
            if let Some(advice) = expiry.advice(unix_now()) {
                self.warn(field, advice);
            }
        }
        if config.tls.crl.is_none() {
            self.warn("tls.crl", "none is configured: revoked certificates are believed until they expire");
        }
    }

    /// The directory as it is, if it can be looked at.
    fn data_dir(&mut self, config: &Config) -> Option<Inspection> {
        const FIELD: &str = "data_dir";
        let path = &config.data_dir;
        match DataDir::inspect(path) {
            // Nothing that another configuration would mend: if it has not passed by then, opening the directory fails, and the
            // service manager tries again.
            Err(error) if error.is_of_the_disk() => {
                self.warn(FIELD, chain(&error));
                // As if it had run: no new identity is drawn for it.
                Some(Inspection { storage: None, owner: None, has_log: true })
            }
            Err(error) => {
                self.refuse(FIELD, chain(&error));
                None
            }
            Ok(None) => {
                let above = path.ancestors().skip(1).map(here_if_empty).find(|above| above.exists());
                if let Some(above) = above {
                    self.must_be_writable(FIELD, above);
                }
                None
            }
            Ok(Some(found)) => {
                let own = Owner { cluster: config.cluster.clone(), node: config.node_id };
                if let Some(Err(error)) = found.owner.as_ref().map(|owner| owner.check(&own, path)) {
                    self.refuse(FIELD, chain(&error));
                }
                self.must_be_writable(FIELD, path);
                self.must_be_ours(FIELD, path);
                Some(found)
            }
        }
    }

    fn must_be_writable(&mut self, field: &str, directory: &Path) {
        let shown = directory.display();
        if !directory.is_dir() {
            self.refuse(field, format!("{shown} is not a directory"));
        } else if let Err(error) = access(directory, Access::WRITE_OK | Access::EXEC_OK) {
            self.refuse(field, format!("{shown} cannot be written to: {}", std::io::Error::from(error)));
        }
    }

    /// Files that another user leaves behind stop the node when it runs as its own user again.
    fn must_be_ours(&mut self, field: &str, directory: &Path) {
        let user = rustix::process::geteuid().as_raw();
        if let Some(owner) = fs::metadata(directory).map(|is| is.uid()).ok().filter(|owner| *owner != user) {
            let text =
                format!("belongs to user id {owner}, but this process is {user}: run it as the node's user");
            self.warn(field, text);
        }
    }

    fn node_key(&mut self, config: &Config, has_run: bool) {
        const FIELD: &str = "identity.node_key";
        let path = &config.identity.node_key;
        match NodeKey::load(path) {
            Ok(_) => return,
            Err(SealError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
            // As of the data directory, in which it may lie.
            Err(SealError::Io { source, .. }) if is_of_the_disk(&source) => {
                return self.warn(FIELD, format!("{}: {source}", path.display()));
            }
            Err(error) => return self.refuse(FIELD, chain(&error)),
        }
        if has_run {
            // A new one would be drawn, and the keyring is not sealed to that.
            let why = "is missing, and the data directory holds a log: without the identity the node had, it cannot \
                       open a single key; bring it back, or remove the node and add it under a new id";
            return self.refuse(FIELD, format!("{} {why}", path.display()));
        }
        match path.parent().map(here_if_empty) {
            Some(above) if above != config.data_dir => self.must_be_writable(FIELD, above),
            _ => {}
        }
    }

    fn addresses(&mut self, config: &Config) {
        for (field, advertised, listen) in [
            ("advertise.api", &config.advertise.api, config.listen.api),
            ("advertise.peer", &config.advertise.peer, config.listen.peer),
        ] {
            if is_loopback(advertised) && !listen.ip().is_loopback() {
                self.warn(field, format!("nobody on another host reaches {advertised}"));
            }
        }
        if !config.listen.admin.ip().is_loopback() {
            let text =
                "is open beyond this host without TLS: it shows metrics and health, and changes nothing";
            self.warn("listen.admin", text);
        }
    }
}

fn field_of(file: CredentialFile) -> &'static str {
    match file {
        CredentialFile::Authorities => "tls.ca",
        CredentialFile::Certificate => "tls.cert",
        CredentialFile::Key => "tls.key",
        CredentialFile::RevocationLists => "tls.crl",
    }
}

fn here_if_empty(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn is_loopback(advertised: &str) -> bool {
    match advertised.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => advertised.starts_with("localhost:"),
    }
}

/// The local ports of this network namespace that are listened on, as far as the system tells (proc(5), /proc/net/tcp).
fn listening_ports() -> BTreeSet<u16> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    tables.iter().flat_map(|table| table.lines().skip(1).filter_map(listening_port)).collect()
}

fn listening_port(line: &str) -> Option<u16> {
    let mut words = line.split_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    let port = local.rsplit_once(':')?.1;
    u16::from_str_radix(port, 16).ok().filter(|_| state == LISTENING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_of_sockets_is_read() {
        let listening = "   0: 0100007F:1CFC 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0";
        assert_eq!(listening_port(listening), Some(7420));
        assert_eq!(listening_port(&listening.replace(" 0A ", " 01 ")), None, "connected, not listening");
        assert_eq!(listening_port("nonsense"), None);
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(listening_ports().contains(&socket.local_addr().unwrap().port()));
    }
}
