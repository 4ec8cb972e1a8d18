//! What is seen of every request: its id, how it was answered, how long that took.
//!
//! A client's request has an id from here on, its own or a fresh one; all that is logged for it carries it, and so does
//! what this node asks of others for it. A peer's call has the id of the request it is made for, if any.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use tonic::{Code, Status};
use tracing::{Instrument, Span};

use crate::metrics::{CODES, MethodMetrics, RequestMetrics};
use crate::request_id::{REQUEST_ID_KEY, TraceId};

/// Services that are not the node's work: health and reflection.
const EXEMPT_PREFIX: &str = "/grpc.";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// A client.
    Client,
    /// Another node.
    Peer,
}

#[derive(Clone)]
struct Observer {
    side: Side,
    metrics: RequestMetrics,
}

/// The same router, its requests counted, timed and logged.
pub(super) fn requests(router: Router, side: Side, metrics: &RequestMetrics) -> Router {
    router.layer(from_fn_with_state(Observer { side, metrics: metrics.clone() }, observe))
}

async fn observe(State(observer): State<Observer>, request: Request, next: Next) -> Response {
    if request.uri().path().starts_with(EXEMPT_PREFIX) {
        return next.run(request).await;
    }
    let metrics = observer.metrics.method(request.uri().path());
    let given = request.headers().get(REQUEST_ID_KEY).and_then(|id| id.to_str().ok());
    let given = given.and_then(|id| id.parse::<TraceId>().ok());
    let id = given.or_else(|| (observer.side == Side::Client).then(TraceId::draw));
    // Of the highest level, so that whatever is logged of the request has its id.
    let span = match &id {
        Some(id) => tracing::error_span!("request", request_id = %id, method = metrics.method),
        None => Span::none(),
    };
    // From here on: if the caller goes away meanwhile, this is dropped and tells so.
    let mut ending =
        Ending { began: Instant::now(), metrics, side: observer.side, span: span.clone(), told: false };
    let answering = next.run(request).instrument(span);
    let response = match id {
        Some(id) => id.scope(answering).await,
        None => answering.await,
    };
    if let Some(code) = code_in(response.headers()) {
        ending.tell(code);
        return response;
    }
    response.map(|body| Body::new(Observed { body, ending }))
}

fn code_in(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

/// The end of one request, told once: by its answer, or by nobody waiting for one any more.
struct Ending {
    began: Instant,
    metrics: MethodMetrics,
    side: Side,
    span: Span,
    told: bool,
}

impl Ending {
    fn tell(&mut self, code: Code) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        let took = self.began.elapsed();
        self.metrics.answered(code as usize, took);
        if self.side == Side::Peer {
            return;
        }
        let (code_name, ms) = (CODES.get(code as usize).copied().unwrap_or_default(), took.as_millis());
        let _in_request = self.span.enter();
        match code {
            Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated => tracing::info!(code = code_name, ms, "refused"),
            Code::DataLoss | Code::Internal | Code::Unknown => {
                tracing::warn!(code = code_name, ms, "a request failed");
            }
            _ => tracing::debug!(code = code_name, ms, "answered"),
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.tell(Code::Cancelled);
    }
}

/// A body that says at its end how the request was answered: gRPC tells it in the trailers.
struct Observed {
    body: Body,
    ending: Ending,
}

impl HttpBody for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(code) = frame.trailers_ref().and_then(code_in) {
                    self.ending.tell(code);
                }
            }
            Some(Err(_)) => self.ending.tell(Code::Unknown),
            // Not gRPC, which has trailers.
            None => self.ending.tell(Code::Unknown),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::routing::any;
    use tower::ServiceExt as _;

    use super::*;
    use crate::metrics::Values;

    const ESCROW: &str = "/strongroom.v1.EscrowService/Escrow";

    fn request(id: Option<&str>) -> Request {
        let mut request = Request::builder().uri(ESCROW);
        if let Some(id) = id {
            request = request.header(REQUEST_ID_KEY, id);
        }
        request.body(Body::empty()).unwrap()
    }

    /// What a request with this id, if any, is worked on as.
    async fn worked_on_as(side: Side, id: Option<&str>) -> Option<String> {
        let work = any(async || TraceId::current().map_or("none".to_owned(), |id| id.to_string()));
        let router = requests(Router::new().route(ESCROW, work), side, &RequestMetrics::default());
        let response = router.oneshot(request(id)).await.unwrap();
        let body = to_bytes(response.into_body(), 1_000).await.unwrap();
        let id = String::from_utf8(body.to_vec()).unwrap();
        (id != "none").then_some(id)
    }

    #[tokio::test]
    async fn a_client_s_request_always_has_an_id_and_a_peer_s_only_if_it_was_given_one() {
        assert_eq!(worked_on_as(Side::Client, Some("abc-1")).await.as_deref(), Some("abc-1"));
        assert_eq!(worked_on_as(Side::Peer, Some("abc-1")).await.as_deref(), Some("abc-1"));
        assert_eq!(worked_on_as(Side::Peer, None).await, None);
        for bad in ["a b", &"x".repeat(1_000), ""] {
            let drawn = worked_on_as(Side::Client, Some(bad)).await.expect("one is drawn");
            assert_ne!(drawn, bad);
            assert_eq!(worked_on_as(Side::Peer, Some(bad)).await, None);
        }
        let [one, other] = [worked_on_as(Side::Client, None).await, worked_on_as(Side::Client, None).await];
        assert_ne!(one, other);
    }

    fn counted(metrics: &RequestMetrics) -> Vec<(String, u64)> {
        let Values::Counter(samples) =
            crate::metrics::Metrics { requests: metrics.clone(), ..Default::default() }
                .collect()
                .swap_remove(0)
                .values
        else {
            panic!("requests are counted")
        };
        let of_escrow =
            samples.into_iter().filter(|sample| sample.labels[1].1 == "Escrow" && sample.value > 0);
        of_escrow.map(|sample| (sample.labels[2].1.clone(), sample.value)).collect()
    }

    #[tokio::test]
    async fn the_code_is_read_where_grpc_puts_it() {
        let metrics = RequestMetrics::default();
        let refused = any(async || Status::not_found("no such thing").into_http::<Body>());
        let router = requests(Router::new().route(ESCROW, refused), Side::Client, &metrics);
        router.oneshot(request(None)).await.unwrap();
        assert_eq!(counted(&metrics), [("NOT_FOUND".to_owned(), 1)], "in the head");

        struct Trailing(bool);
        impl HttpBody for Trailing {
            type Data = Bytes;
            type Error = axum::Error;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let first = !std::mem::replace(&mut self.0, true);
                Poll::Ready(first.then(|| Ok(Frame::trailers(trailers))))
            }
        }
        let metrics = RequestMetrics::default();
        let kept = any(async || Response::new(Body::new(Trailing(false))));
        let router = requests(Router::new().route(ESCROW, kept), Side::Client, &metrics);
        let response = router.clone().oneshot(request(None)).await.unwrap();
        assert_eq!(counted(&metrics), [], "it is not over");
        to_bytes(response.into_body(), 1_000).await.unwrap();
        assert_eq!(counted(&metrics), [("OK".to_owned(), 1)], "in the trailers, once");

        drop(router.oneshot(request(None)).await.unwrap());
        assert_eq!(
            counted(&metrics),
            [("OK".to_owned(), 1), ("CANCELLED".to_owned(), 1)],
            "nobody waited for it"
        );
    }
}
