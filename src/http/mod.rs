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

mod metrics;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

pub use metrics::{Metric, Sample, Values};

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

async fn readyz<A: Admin>(State(admin): State<A>) -> Response {
    match admin.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reasons) => {
            let lines = reasons.iter().map(|reason| format!("{reason}\n")).collect::<String>();
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{lines}")).into_response()
        }
    }
}

async fn metrics_page<A: Admin>(State(admin): State<A>) -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::encode(admin.metrics()))
}

async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "no such page: there are /livez, /readyz and /metrics\n")
}

#[cfg(test)]
mod tests;
