//! Handshakes over real connections on loopback, with certificates made on the spot.

mod files;
mod grpc;
mod handshake;
mod reload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

use super::ca::{Authority, CA_CERTIFICATE_FILE, FileNames, IssueRequest, Issued, Validity};
use super::*;
use crate::escrow::ids::Role;

/// More than any of these steps takes: what is waited for and does not come fails the test.
const PATIENCE: Duration = Duration::from_secs(20);

/// A CA in a directory of its own, and places for what it issues.
pub(crate) struct TestCa {
    pub(crate) dir: TempDir,
    pub(crate) authority: Authority,
}

impl TestCa {
    pub(crate) fn new(cluster: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(&dir.path().join("ca"), cluster.parse().unwrap(), None).unwrap();
        Self { dir, authority }
    }

    pub(crate) fn place(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Issues and writes a profile; returns where, and what.
    pub(crate) fn profile(&self, request: IssueRequest) -> (TlsPaths, Issued) {
        let issued = self.authority.issue(request).unwrap();
        let dir = self.place(&issued.record.serial);
        self.authority.write_profile(&dir, &issued).unwrap();
        (TlsPaths::profile(&dir), issued)
    }

    pub(crate) fn tls(&self, role: Role, name: &str) -> Tls {
        Tls::load(self.profile(IssueRequest::new(role, name)).0).unwrap()
    }

    pub(crate) fn ca_pem(&self) -> Vec<u8> {
        std::fs::read(self.place("ca").join(CA_CERTIFICATE_FILE)).unwrap()
    }
}

/// What both ends saw of one connection.
struct Outcome {
    server: Result<PeerCertificate, TlsError>,
    client: Result<client::TlsStream<TcpStream>, TlsError>,
    /// The error of the client's first read, if its handshake was done.
    first_read: Option<std::io::Error>,
}

impl Outcome {
    /// The server's verdict on the client.
    fn server_fault(self) -> CertificateFault {
        match self.server {
            Err(TlsError::Peer(fault)) => fault,
            other => panic!("the server should have refused the client's certificate: {other:?}"),
        }
    }

    /// How a client is told of a refusal.
    fn told(&self) -> String {
        let error = self.first_read.as_ref().expect("the client's first read fails");
        TlsError::refusal_by_peer(error).unwrap_or_else(|| panic!("not recognised as a refusal: {error:?}"))
    }
}

/// Connects over loopback. The client sends at once, as HTTP/2 does, and then reads.
async fn connect(server: &Tls, client: &Tls, expected: ExpectedPeer) -> Outcome {
    let (at_server, at_client) = loopback().await;
    let serve = async {
        let (stream, peer) = server.accept(at_server).await?;
        drop(stream);
        Ok(peer)
    };
    let call = async {
        let mut stream = match client.connect(at_client, expected).await {
            Ok(stream) => stream,
            Err(error) => return (Err(error), None),
        };
        let sent = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let flushed = match sent {
            Ok(()) => stream.flush().await,
            failed => failed,
        };
        let read = match flushed {
            Ok(()) => stream.read_u8().await.map(drop),
            failed => failed,
        };
        // Hanging up is what the server waits for after a refusal.
        stream.get_mut().0.shutdown().await.ok();
        (Ok(stream), read.err())
    };
    let both = Box::pin(async { tokio::join!(serve, call) });
    let (server, (client, first_read)) = tokio::time::timeout(PATIENCE, both).await.expect("in time");
    Outcome { server, client, first_read }
}

async fn loopback() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), client);
    (accepted.unwrap().0, connected.unwrap())
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
}
