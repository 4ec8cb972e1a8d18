//! Trails that break off, by script.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use super::super::tests::{Ca, serve_routes};
use super::super::{ClientOptions, Preference};
use super::*;
use crate::escrow::ids::Role;
use crate::proto::AuditLine;
use crate::proto::audit_service_server::{AuditService, AuditServiceServer};

/// The last record of the trail; pages have two.
const HEAD: u64 = 9;

/// How a stream ends before it is complete.
#[derive(Debug, Clone, Copy)]
enum Break {
    /// After so many pages, with an error.
    Refused(usize),
    /// After so many pages, as if all were well.
    Silent(usize),
}

/// A node whose streams break as the script says, one after the other; then it goes through.
#[derive(Clone)]
struct Trail {
    breaks: Arc<Mutex<Vec<Break>>>,
    asked: Arc<Mutex<Vec<ReadAuditRequest>>>,
}

/// All that a node sends for `request`.
fn parts(request: &ReadAuditRequest) -> Vec<Result<AuditPart, Status>> {
    let to = if request.to == 0 { HEAD } else { request.to };
    let freshness = Some(crate::proto::Freshness { applied: 77, ..Default::default() });
    let mut parts = vec![Part::Begin(AuditBegin { freshness, head: HEAD, checkpoint: String::new() })];
    let mut numbers: Vec<u64> = (request.after + 1..=to).collect();
    if request.newest_first {
        numbers.reverse();
    }
    for pair in numbers.chunks(2) {
        let last = pair[pair.len() - 1];
        let records = pair.iter().map(|seq| AuditLine { seq: *seq, line: String::new() }).collect();
        let reached = if request.newest_first { last - 1 } else { last };
        parts.push(Part::Page(AuditPage { records, reached, truncated: false }));
    }
    parts.into_iter().map(|part| Ok(AuditPart { part: Some(part) })).collect()
}

#[tonic::async_trait]
impl AuditService for Trail {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<AuditPart, Status>> + Send>>;

    async fn read(&self, request: Request<ReadAuditRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let mut parts = parts(&request);
        self.asked.lock().unwrap().push(request);
        let mut breaks = self.breaks.lock().unwrap();
        if !breaks.is_empty() {
            match breaks.remove(0) {
                Break::Refused(pages) => {
                    parts.truncate(pages + 1);
                    parts.push(Err(Status::unavailable("this node is stopping; use another")));
                }
                Break::Silent(pages) => parts.truncate(pages + 1),
            }
        }
        Ok(Response::new(tokio_stream::iter(parts).boxed()))
    }

    async fn checkpoints(
        &self,
        _: Request<CheckpointsRequest>,
    ) -> Result<Response<CheckpointsResponse>, Status> {
        Ok(Response::new(CheckpointsResponse::default()))
    }
}

/// What a client reads of a node with this script, and what it asked for.
async fn read(
    breaks: Vec<Break>,
    request: ReadAuditRequest,
) -> (Result<Vec<u64>, ClientError>, Vec<ReadAuditRequest>) {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let trail = Trail { breaks: Arc::new(Mutex::new(breaks)), asked: Arc::default() };
    let routes = Routes::new(AuditServiceServer::new(trail.clone()));
    let node = tokio::spawn(serve_routes(listener, ca.tls(Role::Node, "1"), routes));
    let options = ClientOptions { preference: Preference::AsGiven, ..ClientOptions::default() };
    let endpoints = vec![address.to_string().parse().unwrap()];
    let client = Client::new(endpoints, ca.tls(Role::Auditor, "siem"), options).unwrap();
    let numbers = async {
        let mut trail = client.read_audit(&request).await?;
        let mut numbers = Vec::new();
        while let Some(page) = trail.next().await? {
            numbers.extend(page.records.iter().map(|record| record.seq));
        }
        Ok(numbers)
    };
    let numbers = numbers.await;
    node.abort();
    let asked = trail.asked.lock().unwrap().clone();
    (numbers, asked)
}

#[tokio::test]
async fn a_stream_that_breaks_is_gone_on_with_where_it_broke() {
    for newest_first in [false, true] {
        let breaks = vec![Break::Refused(1), Break::Silent(2)];
        let request = ReadAuditRequest { newest_first, ..Default::default() };
        let (numbers, asked) = read(breaks, request).await;
        let mut expected: Vec<u64> = (1..=HEAD).collect();
        if newest_first {
            expected.reverse();
        }
        assert_eq!(numbers.unwrap(), expected);
        let windows: Vec<(u64, u64)> = asked.iter().map(|request| (request.after, request.to)).collect();
        let expected = if newest_first { [(0, 0), (0, 7), (0, 3)] } else { [(0, 0), (2, 9), (6, 9)] };
        assert_eq!(windows, expected);
        // Whoever goes on has at least what the first one had.
        assert_eq!(asked[1].min_index, 77);
    }
}

#[tokio::test]
async fn a_stream_that_ends_before_it_is_complete_is_not_the_whole() {
    for breaks in [vec![Break::Silent(0)], vec![Break::Silent(2), Break::Silent(0)]] {
        let (numbers, _) = read(breaks.clone(), ReadAuditRequest::default()).await;
        let error = numbers.unwrap_err();
        assert!(matches!(error, ClientError::Unavailable { .. }), "{breaks:?}: {error}");
        assert!(error.to_string().contains("cut off"), "{error}");
    }
}
