//! Compliance: what devices say, exemptions, the policy of it, and reports.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};
use uuid::Uuid;

use super::{Budget, Client, ClientError, Trouble, bounded};
use crate::escrow::ids::{MachineId, Timestamp};
use crate::proto;
use crate::proto::compliance_service_client::ComplianceServiceClient;
use crate::proto::report_chunk::Part;
use crate::proto::{PutManyRequest, PutManyResponse, ReportChunk, ReportHeader, ReportRow, ReportTotals};
use crate::request_id::TraceId;
use crate::rpc::status::HINT_KEY;

/// Documents and bytes of one batch of uploads, at most: what a node takes in one message.
pub const BATCH_DOCUMENTS_MAX: usize = 256;
/// See [`BATCH_DOCUMENTS_MAX`].
pub const BATCH_BYTES_MAX: usize = 192 * 1024;
/// Batches that wait for the connection.
const BATCHES_AHEAD: usize = 4;
/// How long a node may take for a batch of uploads.
const BATCH_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a node may take for its next batch of rows. Before the first ones it takes all down, and may sort.
const ROWS_TIMEOUT: Duration = Duration::from_secs(300);

/// What an officer decides about an exemption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is granted, until a time or for good.
    Grant(Option<Timestamp>),
    /// It is rejected.
    Reject,
    /// What was granted ends now.
    Revoke,
}

/// A report as it comes.
pub struct Report {
    header: ReportHeader,
    stream: Streaming<ReportChunk>,
    trace: TraceId,
    totals: Option<ReportTotals>,
}

impl Client {
    /// Keeps what a device says of itself: a JSON document.
    ///
    /// # Errors
    /// Any [`ClientError`]. After [`ClientError::Unavailable`] it may or may not be kept: doing it again is safe.
    pub async fn put_compliance(&self, document: &str) -> Result<proto::PutComplianceResponse, ClientError> {
        let request = proto::PutComplianceRequest { document: document.to_owned() };
        self.pool
            .call(|channel, budget| {
                let request = request.clone();
                async move { ComplianceServiceClient::new(channel).put(bounded(request, budget)).await }
            })
            .await
    }

    /// Keeps what many devices say, over one stream. Answers what became of each, in the order they were given. A stream
    /// that breaks goes on at another node, with what was not answered yet.
    ///
    /// # Errors
    /// Any [`ClientError`]; then some of them may be kept, and doing it again is safe.
    pub async fn put_compliance_many(
        &self,
        documents: &[String],
    ) -> Result<Vec<proto::UploadOutcome>, ClientError> {
        let batches = batches(documents);
        let mut answers: Vec<PutManyResponse> = Vec::new();
        while answers.len() < batches.len() {
            let before = answers.len();
            match self.upload(&batches[before..], &mut answers).await {
                Ok(()) => {}
                // Only if there was some progress: otherwise a node that breaks off every time would be asked for ever.
                Err(ClientError::Unavailable { .. } | ClientError::Temporary(_))
                    if answers.len() > before => {}
                Err(error) => return Err(error),
            }
        }
        let outcomes: Vec<_> = answers.into_iter().flat_map(|answer| answer.outcomes).collect();
        if outcomes.len() != documents.len() {
            return Err(ClientError::Malformed { what: "uploads were answered that were not made" });
        }
        Ok(outcomes)
    }

    /// Uploads batches over one stream, and notes the answers as they come.
    async fn upload(
        &self,
        batches: &[&[String]],
        answers: &mut Vec<PutManyResponse>,
    ) -> Result<(), ClientError> {
        let trace = TraceId::draw();
        let message = |batch: &[String]| PutManyRequest { documents: batch.to_vec() };
        let opened = self.pool.call_as(trace.clone(), |channel, budget: Budget| {
            let (requests, messages) = mpsc::channel(BATCHES_AHEAD);
            // There is room: it is the first.
            let _ = requests.try_send(message(batches[0]));
            let request = budget.unbounded(ReceiverStream::new(messages));
            async move {
                let mut stream = ComplianceServiceClient::new(channel).put_many(request).await?.into_inner();
                // With the first answer: a node that takes the stream and keeps nothing is no help.
                let first = stream.message().await?;
                let first = first.ok_or_else(|| Status::unavailable("the stream ended without an answer"))?;
                Ok(Response::new((requests, stream, first)))
            }
        });
        let (requests, mut stream, first) = opened.await?;
        answers.push(first);
        let send = async move {
            for batch in &batches[1..] {
                // Otherwise the node takes no more, and says why.
                if requests.send(message(batch)).await.is_err() {
                    break;
                }
            }
            // The node does not wait for more.
            drop(requests);
            std::future::pending::<Infallible>().await
        };
        let take = async {
            for _ in 1..batches.len() {
                answers.push(next(&mut stream, &trace, BATCH_TIMEOUT, "uploads").await?);
            }
            Ok(())
        };
        tokio::select! {
            taken = take => taken,
            never = send => match never {},
        }
    }

    /// What is known of one machine and how it stands, or stood `as_of` a time.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn compliance(
        &self,
        request: &proto::GetComplianceRequest,
    ) -> Result<proto::GetComplianceResponse, ClientError> {
        self.pool
            .call(|channel, budget| {
                let request = request.clone();
                async move { ComplianceServiceClient::new(channel).get(bounded(request, budget)).await }
            })
            .await
    }

    /// Asks that a machine need not be as the policy of compliance wants it. Answers what an officer names to decide it.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn request_exemption(
        &self,
        machine: &MachineId,
        reason: &str,
        until: Option<Timestamp>,
    ) -> Result<String, ClientError> {
        let trace = TraceId::draw();
        let request = proto::RequestExemptionRequest {
            request_id: trace.to_string(),
            machine: machine.to_string(),
            reason: reason.to_owned(),
            until_ms: until.map(|until| until.0),
        };
        let answer =
            self.pool.call_as(trace, |channel, budget| {
                let request = request.clone();
                async move {
                    ComplianceServiceClient::new(channel).request_exemption(bounded(request, budget)).await
                }
            });
        Ok(answer.await?.exemption)
    }

    /// Decides about the exemption of a machine, or ends one.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn decide_exemption(
        &self,
        machine: &MachineId,
        exemption: Uuid,
        decision: Decision,
    ) -> Result<(), ClientError> {
        let trace = TraceId::draw();
        let (decision, until) = match decision {
            Decision::Grant(until) => ("grant", until),
            Decision::Reject => ("reject", None),
            Decision::Revoke => ("revoke", None),
        };
        let request = proto::DecideExemptionRequest {
            request_id: trace.to_string(),
            machine: machine.to_string(),
            exemption: exemption.to_string(),
            decision: decision.to_owned(),
            until_ms: until.map(|until| until.0),
        };
        let answer =
            self.pool.call_as(trace, |channel, budget| {
                let request = request.clone();
                async move {
                    ComplianceServiceClient::new(channel).decide_exemption(bounded(request, budget)).await
                }
            });
        answer.await.map(drop)
    }

    /// Exemptions, by machine.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn exemptions(
        &self,
        request: &proto::ListExemptionsRequest,
    ) -> Result<proto::ListExemptionsResponse, ClientError> {
        self.pool
            .call(|channel, budget| {
                let request = request.clone();
                async move {
                    ComplianceServiceClient::new(channel).list_exemptions(bounded(request, budget)).await
                }
            })
            .await
    }

    /// The policy of compliance that is followed.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn compliance_policy(
        &self,
        consistency: proto::Consistency,
    ) -> Result<proto::ShowCompliancePolicyResponse, ClientError> {
        let request = proto::ShowCompliancePolicyRequest { consistency: consistency.into() };
        self.pool
            .call(|channel, budget| async move {
                ComplianceServiceClient::new(channel).show_compliance_policy(bounded(request, budget)).await
            })
            .await
    }

    /// Replaces version `replaces` of the policy of compliance by the JSON document `policy`, and answers the version it
    /// has now.
    ///
    /// # Errors
    /// Any [`ClientError`]; [`ClientError::Conflict`] if another version is followed.
    pub async fn set_compliance_policy(&self, policy: &str, replaces: u64) -> Result<u64, ClientError> {
        let trace = TraceId::draw();
        let request = proto::SetCompliancePolicyRequest {
            request_id: trace.to_string(),
            policy: policy.to_owned(),
            replaces,
        };
        let answer = self.pool.call_as(trace, |channel, budget| {
            let request = request.clone();
            async move {
                ComplianceServiceClient::new(channel).set_compliance_policy(bounded(request, budget)).await
            }
        });
        Ok(answer.await?.version)
    }

    /// Begins a report, at the first node that can make it: one that has taken down what it needs, and says where it was
    /// made. From there on it is of one state of one node: if that goes away, it has to be asked for again.
    ///
    /// # Errors
    /// Any [`ClientError`] of the beginning; the rest comes from [`Report::next`].
    pub async fn report(&self, request: &proto::ReportRequest) -> Result<Report, ClientError> {
        let (trace, began) = (TraceId::draw(), Instant::now());
        let mut troubles: Vec<Trouble> = Vec::new();
        for _ in 0..self.pool.endpoints() {
            let opened = self.pool.call_from(trace.clone(), |channel, budget| {
                // No deadline on the request: a long report takes as long as it takes.
                let request = budget.unbounded(request.clone());
                async move { ComplianceServiceClient::new(channel).report(request).await }
            });
            let (mut stream, begun) = opened.await?;
            // Those that it was not tried with yet do not answer.
            if troubles.iter().any(|trouble| trouble.endpoint == begun.address()) {
                break;
            }
            match message(&mut stream, ROWS_TIMEOUT).await {
                Ok(ReportChunk { part: Some(Part::Header(header)) }) => {
                    return Ok(Report { header, stream, trace, totals: None });
                }
                Ok(_) => {
                    let what = "a report did not begin with where it was made";
                    return Err(ClientError::Malformed { what });
                }
                Err(status) => {
                    let trouble = begun.broke_off(status);
                    troubles.push(trouble.map_err(|error| error.with_request_id(&trace))?);
                }
            }
        }
        Err(ClientError::Unavailable {
            waited: began.elapsed(),
            rounds: 1,
            reached: true,
            request_id: Some(trace),
            troubles,
        })
    }
}

impl Report {
    /// Where and when it was made, and its columns.
    pub fn header(&self) -> &ReportHeader {
        &self.header
    }

    /// The next rows, or `None` when there are no more.
    ///
    /// # Errors
    /// Any [`ClientError`]: what came before is a part of a report.
    pub async fn next(&mut self) -> Result<Option<Vec<ReportRow>>, ClientError> {
        if self.totals.is_some() {
            return Ok(None);
        }
        match next(&mut self.stream, &self.trace, ROWS_TIMEOUT, "the report").await?.part {
            Some(Part::Rows(rows)) => Ok(Some(rows.rows)),
            Some(Part::Totals(totals)) => {
                self.totals = Some(totals);
                Ok(None)
            }
            Some(Part::Header(_)) | None => {
                Err(ClientError::Malformed { what: "a part of a report that this release does not know" })
            }
        }
    }

    /// Its totals, once [`Report::next`] has said that there are no more rows.
    pub fn totals(&self) -> Option<ReportTotals> {
        self.totals
    }
}

/// Documents in batches that a node takes.
fn batches(documents: &[String]) -> Vec<&[String]> {
    let (mut batches, mut first, mut bytes) = (Vec::new(), 0, 0);
    for (place, document) in documents.iter().enumerate() {
        let has_room = place - first < BATCH_DOCUMENTS_MAX && bytes + document.len() <= BATCH_BYTES_MAX;
        if place > first && !has_room {
            batches.push(&documents[first..place]);
            (first, bytes) = (place, 0);
        }
        bytes += document.len();
    }
    if first < documents.len() {
        batches.push(&documents[first..]);
    }
    batches
}

/// The next message of a stream. A node says when it is done: a stream that ends without that was cut off, however it
/// looks.
async fn message<T>(stream: &mut Streaming<T>, patience: Duration) -> Result<T, Status> {
    match timeout(patience, stream.message()).await {
        Ok(message) => message?.ok_or_else(|| Status::unavailable("cut off")),
        Err(_) => Err(Status::deadline_exceeded(format!("nothing came for {} s", patience.as_secs()))),
    }
}

/// The next message of a stream of which some came. What goes wrong with it from there on is passing: `of` can be asked for
/// again, at another node.
async fn next<T>(
    stream: &mut Streaming<T>,
    trace: &TraceId,
    patience: Duration,
    of: &str,
) -> Result<T, ClientError> {
    let status = match message(stream, patience).await {
        Ok(message) => return Ok(message),
        Err(status) => status,
    };
    // Made on this side: it is the connection that broke.
    let broke = std::error::Error::source(&status).is_some();
    let what = match status.code() {
        _ if broke => format!("{of}: the connection broke"),
        Code::DataLoss | Code::Internal => format!("{of}: {}", status.message()),
        Code::DeadlineExceeded | Code::Unavailable if !status.metadata().contains_key(HINT_KEY) => {
            format!("{of}: {}", status.message())
        }
        _ => return Err(ClientError::from_last_status(status, "the cluster").with_request_id(trace)),
    };
    Err(ClientError::Unavailable {
        waited: Duration::ZERO,
        rounds: 1,
        reached: true,
        request_id: Some(trace.clone()),
        troubles: vec![Trouble::new("the cluster", what)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_to_what_a_node_takes_and_lose_nothing() {
        let documents: Vec<String> = (0..1_000).map(|number| "x".repeat(number % 3_000)).collect();
        let batches = batches(&documents);
        for batch in &batches {
            assert!((1..=BATCH_DOCUMENTS_MAX).contains(&batch.len()));
            assert!(batch.iter().map(String::len).sum::<usize>() <= BATCH_BYTES_MAX);
        }
        assert_eq!(batches.concat(), documents);
        // One that is larger than any batch may be goes by itself, to be refused by itself.
        let large = ["x".repeat(BATCH_BYTES_MAX + 1), "x".to_owned()];
        assert_eq!(super::batches(&large).len(), 2);
        assert!(super::batches(&[]).is_empty());
    }
}
