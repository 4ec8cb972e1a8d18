//! The messages of a stream, one after the other.

use std::time::Duration;

use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::ClientError;
use super::attempts::made_here;
use crate::request_id::TraceId;
use crate::rpc::status::HINT_KEY;

/// The next message of a stream. A node says when it is done: a stream that ends without that was cut off, however it
/// looks.
pub(super) async fn message<T>(stream: &mut Streaming<T>, patience: Duration) -> Result<T, Status> {
    match timeout(patience, stream.message()).await {
        Ok(message) => message?.ok_or_else(|| Status::unavailable("cut off")),
        Err(_) => Err(Status::deadline_exceeded(format!("nothing came for {} s", patience.as_secs()))),
    }
}

/// The next message of a stream of which some came. What goes wrong with it from there on is passing: `of` can be asked for
/// again, at another node.
pub(super) async fn next<T>(
    stream: &mut Streaming<T>,
    trace: &TraceId,
    patience: Duration,
    of: &str,
) -> Result<T, ClientError> {
    let status = match message(stream, patience).await {
        Ok(message) => return Ok(message),
        Err(status) => status,
    };
    let what = match status.code() {
        _ if made_here(&status) => format!("{of}: the connection broke"),
        Code::DataLoss | Code::Internal => format!("{of}: {}", status.message()),
        Code::DeadlineExceeded | Code::Unavailable if !status.metadata().contains_key(HINT_KEY) => {
            format!("{of}: {}", status.message())
        }
        _ => return Err(ClientError::from_last_status(status, "the cluster").with_request_id(trace)),
    };
    Err(ClientError::broken_off(Duration::ZERO, what, trace))
}
