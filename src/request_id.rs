//! The id that follows a request through the logs of every node it passes.
//!
//! A caller sends it as metadata, the node that is asked draws one if there is none or it is not well formed, and what a
//! node asks of another for the request carries it on. It is for finding lines that belong together and means nothing
//! else: that a repeated command takes effect once rests on the id inside the message.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

/// The metadata key it travels under.
pub const REQUEST_ID_KEY: &str = "strongroom-request-id";
/// Longest id: it goes into every line of the request, and so does whatever a caller puts there.
pub const REQUEST_ID_MAX_BYTES: usize = 64;

tokio::task_local! {
    static CURRENT: TraceId;
}

/// An id of 1 to [`REQUEST_ID_MAX_BYTES`] letters, digits, `-`, `_` and `.`: nothing that could pass for another field
/// or line of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceId(Arc<str>);

impl TraceId {
    /// A fresh one.
    pub fn draw() -> Self {
        Self(Uuid::new_v4().to_string().into())
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The one of the request this task works on.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// Runs `work` as a part of the request with this id.
    pub async fn scope<T>(self, work: impl Future<Output = T>) -> T {
        CURRENT.scope(self, work).await
    }
}

/// Runs `work`, in a task of its own, as a part of the request that began it.
pub fn carried<T>(work: impl Future<Output = T> + Send) -> impl Future<Output = T> + Send {
    let current = TraceId::current();
    async move {
        match current {
            Some(id) => id.scope(work).await,
            None => work.await,
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not 1 to {REQUEST_ID_MAX_BYTES} letters, digits, hyphens, underscores and dots")]
pub struct Malformed;

impl FromStr for TraceId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let well_formed = (1..=REQUEST_ID_MAX_BYTES).contains(&text.len()) && text.bytes().all(allowed);
        if well_formed { Ok(Self(text.into())) } else { Err(Malformed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_and_cannot_pass_for_anything_else_in_a_log() {
        for good in ["a", "4bf92f35-77b3_4da6.a3ce", &"x".repeat(REQUEST_ID_MAX_BYTES)] {
            assert_eq!(good.parse::<TraceId>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a\"b", "a\nb", "ä", "a=b", &"x".repeat(REQUEST_ID_MAX_BYTES + 1)] {
            assert_eq!(bad.parse::<TraceId>(), Err(Malformed), "{bad:?}");
        }
        assert!(TraceId::draw().as_str().parse::<TraceId>().is_ok());
    }

    #[tokio::test]
    async fn a_task_of_a_request_knows_its_id_and_others_know_none() {
        let id = TraceId::draw();
        let seen =
            id.clone().scope(async { tokio::spawn(carried(async { TraceId::current() })).await.unwrap() });
        assert_eq!(seen.await, Some(id));
        assert_eq!(TraceId::current(), None);
        assert_eq!(tokio::spawn(carried(async { TraceId::current() })).await.unwrap(), None);
    }
}
