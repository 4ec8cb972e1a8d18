//! The admin port: is the process alive, is the node ready, and how is it doing.
//!
//! Plain HTTP without TLS or identity, so on loopback unless configured otherwise. Nothing here names a machine, a
//! user or a key, and nothing can be changed through it.
//!
//! | path | answer |
//! |---|---|
//! | `/livez` | 200 as long as the process answers: restart it otherwise |
//! | `/readyz` | 200 if requests may be sent here, otherwise 503 with the reasons, one a line |
//! | `/metrics` | every metric, for Prometheus |

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::task::spawn_blocking;

use crate::metrics::{Format, Metric, encode};

/// What the admin port needs to know of a node.
pub trait Admin: Clone + Send + Sync + 'static {
    /// Whether requests may be sent to the node.
    ///
    /// # Errors
    /// The reasons why not, each one line.
    fn ready(&self) -> Result<(), Vec<String>>;

    /// Every metric as it is now.
    fn metrics(&self) -> Vec<Metric>;
}

/// The pages of the admin port.
pub fn admin<A: Admin>(state: A) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz::<A>))
        .route("/metrics", get(metrics_page::<A>))
        .fallback(not_found)
        .with_state(state)
}

async fn livez() -> &'static str {
    "ok\n"
}

/// Both pages may look at the disk, which may hang: they hold up nobody but who asked.
async fn looked_up<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Result<T, Response> {
    let stopping = |_| (StatusCode::SERVICE_UNAVAILABLE, "the node is stopping\n").into_response();
    spawn_blocking(look).await.map_err(stopping)
}

async fn readyz<A: Admin>(State(admin): State<A>) -> Result<Response, Response> {
    Ok(match looked_up(move || admin.ready()).await? {
        Ok(()) => "ready\n".into_response(),
        Err(reasons) => {
            let lines = reasons.iter().map(|reason| format!("{reason}\n")).collect::<String>();
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{lines}")).into_response()
        }
    })
}

async fn metrics_page<A: Admin>(State(admin): State<A>, headers: HeaderMap) -> Result<Response, Response> {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::accepted_by(accept);
    let page = looked_up(move || encode(admin.metrics(), format)).await?;
    Ok(([(CONTENT_TYPE, format.content_type())], page).into_response())
}

async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "no such page: there are /livez, /readyz and /metrics\n")
}

#[cfg(test)]
mod tests;
