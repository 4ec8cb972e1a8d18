//! Dialling a node: TCP, our own TLS, HTTP/2.
//!
//! TLS ends here and not in tonic, so that a refused certificate is told apart from a node that is away, and so
//! that the connection is used once: a lost one is noticed by the call that meets it and dialled anew, never
//! behind the caller's back.

use std::error::Error;
use std::io;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use crate::tls::{ExpectedPeer, PeerCertificate, Tls, TlsError};

/// How long TCP, TLS and HTTP/2 together may take until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait for the TCP handshake that measures an endpoint. Slower ones rank last.
const MEASURE_TIMEOUT: Duration = Duration::from_millis(500);
/// How often a connection with calls in flight is probed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a probe may stay unanswered until the connection counts as lost.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    /// The node is not there, or not answering.
    #[error("{}", without_number(.0))]
    Away(#[source] io::Error),
    /// HTTP/2 did not begin.
    #[error("HTTP/2 did not begin: {0}")]
    Http(#[source] tonic::transport::Error),
    /// It took too long.
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    Slow,
    /// One end refused the other, or TLS failed.
    #[error("{0}")]
    Tls(#[source] TlsError),
}

/// What the system said, without its number for it.
fn without_number(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error ").map_or(text.clone(), |(words, _)| words.to_owned())
}

/// Connects to `address` as the identity in `tls`; with what proved who answers.
pub(super) async fn dial(address: &str, tls: &Tls) -> Result<(Channel, PeerCertificate), DialError> {
    timeout(CONNECT_TIMEOUT, async {
        let tcp = TcpStream::connect(address).await.map_err(DialError::Away)?;
        // Requests are small and waited for: Nagle's algorithm would hold them back.
        tcp.set_nodelay(true).map_err(DialError::Away)?;
        let stream = tls.connect(tcp, ExpectedPeer::AnyNode).await.map_err(DialError::Tls)?;
        let server = tls.server_certificate(&stream, ExpectedPeer::AnyNode).map_err(DialError::Tls)?;
        let mut only = Some(TokioIo::new(stream));
        let once = tower::service_fn(move |_| {
            let stream = only.take().ok_or(io::ErrorKind::NotConnected);
            std::future::ready(stream.map_err(io::Error::from))
        });
        // The scheme says what tonic sees: the stream it gets is already decrypted.
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
            .map_err(DialError::Http)?
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .connect_with_connector(once)
            .await
            .map_err(DialError::Http)?;
        Ok((channel, server))
    })
    .await
    .unwrap_or(Err(DialError::Slow))
}

/// The round-trip to `address`: what a TCP handshake takes. `None` if it does not answer in time.
pub(super) async fn round_trip(address: &str) -> Option<Duration> {
    let started = Instant::now();
    match timeout(MEASURE_TIMEOUT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => Some(started.elapsed()),
        _ => None,
    }
}

/// What to tell the caller if `error` is one end's refusal of the other's certificate; `None` if it is something
/// else, which another attempt may overcome.
pub(super) fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(DialError::Tls(peer @ TlsError::Peer(_))) = error.downcast_ref() {
        return Some(format!("we refused the server: {peer}"));
    }
    TlsError::refusal_by_peer(error)
}
