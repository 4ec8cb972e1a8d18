//! The certificates of the other systems, from a CA like our own clusters have: keys of the same kind, and the same TLS 1.3 on
//! the side of the client.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use hyper_util::rt::TokioIo;
use strongroom::escrow::ids::Role;
use strongroom::tls::ca::{Authority, FileNames, IssueRequest, Issued};
use strongroom::tls::{ExpectedPeer, Tls, TlsPaths};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// What the clients are called.
pub const CLIENT: &str = "bench";

/// A CA, and the certificates of a server and of a client. A server shows its own to the others of its kind as well.
pub struct Trust {
    authority: Authority,
    server: Issued,
    client: Issued,
    dir: TempDir,
}

impl Trust {
    pub fn new(dir: TempDir) -> Self {
        let cluster = CLIENT.parse().expect("a cluster name");
        let authority = Authority::create(&dir.path().join("ca"), cluster, None).expect("a CA");
        let mut server = IssueRequest::new(Role::Node, "1");
        server.ips.push(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let server = authority.issue(server).expect("a certificate");
        let client = authority.issue(IssueRequest::new(Role::Importer, CLIENT)).expect("a certificate");
        let trust = Self { authority, server, client, dir };
        trust.write(&trust.dir.path().join("files"));
        trust
    }

    /// Writes `ca.crt`, `node.crt` and `node.key`, and `client.crt` and `client.key` to `dir`.
    pub fn write(&self, dir: &Path) {
        for (issued, names) in [(&self.server, FileNames::NODE), (&self.client, FileNames::CLIENT)] {
            self.authority.replace(dir, issued, names).expect("files");
        }
    }

    /// TLS of the client, or of the server, of this process.
    pub fn tls(&self, names: FileNames) -> Tls {
        Tls::load(TlsPaths::in_directory(&self.dir.path().join("files"), names)).expect("credentials")
    }
}

/// A connection to `address`. Requests are small and waited for, so nothing is held back.
pub async fn tcp(address: &str) -> std::io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

/// HTTP/2 over TLS to `address`, as our own client makes it.
pub async fn channel(tls: &Tls, address: &str) -> Result<Channel, String> {
    let (tls, address) = (tls.clone(), address.to_owned());
    let connector = tower::service_fn(move |_: Uri| {
        let (tls, address) = (tls.clone(), address.clone());
        async move {
            let tcp = tcp(&address).await?;
            let stream = tls.connect(tcp, ExpectedPeer::AnyNode).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://node.test");
    endpoint.connect_with_connector(connector).await.map_err(|error| chain(&error))
}

/// An error with what it comes from.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
