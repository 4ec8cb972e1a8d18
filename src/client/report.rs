//! Reports, from the first node that can make them.

use std::time::{Duration, Instant};

use tonic::Streaming;

use super::parts::{message, next};
use super::{Client, ClientError, Trouble};
use crate::proto::compliance_service_client::ComplianceServiceClient;
use crate::proto::report_chunk::Part;
use crate::proto::{ReportChunk, ReportHeader, ReportRequest, ReportRow, ReportTotals};
use crate::request_id::TraceId;

/// How long a node may take for its next batch of rows. Before the first ones it takes all down, and may sort.
const ROWS_TIMEOUT: Duration = Duration::from_secs(300);

/// A report as it comes.
pub struct Report {
    header: ReportHeader,
    stream: Streaming<ReportChunk>,
    trace: TraceId,
    totals: Option<ReportTotals>,
}

impl Client {
    /// Begins a report, at the first node that can make it: one that has taken down what it needs, and says where it was
    /// made. From there on it is of one state of one node: if that goes away, it has to be asked for again.
    ///
    /// # Errors
    /// Any [`ClientError`] of the beginning; the rest comes from [`Report::next`].
    pub async fn report(&self, request: &ReportRequest) -> Result<Report, ClientError> {
        let (trace, began) = (TraceId::draw(), Instant::now());
        let mut troubles: Vec<Trouble> = Vec::new();
        for _ in 0..self.pool.endpoints() {
            let opened = self.pool.call_from(trace.clone(), |channel, budget| {
                // No deadline on the request: a long report takes as long as it takes.
                let request = budget.unbounded(request.clone());
                async move { ComplianceServiceClient::new(channel).report(request).await }
            });
            let (mut stream, begun) = match opened.await {
                Ok(opened) => opened,
                Err(ClientError::Unavailable { troubles: others, .. }) if !troubles.is_empty() => {
                    let known = |other: &Trouble| troubles.iter().any(|one| one.endpoint == other.endpoint);
                    let others: Vec<_> = others.into_iter().filter(|other| !known(other)).collect();
                    troubles.extend(others);
                    break;
                }
                Err(error) => return Err(error),
            };
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
    pub fn totals(&self) -> Option<&ReportTotals> {
        self.totals.as_ref()
    }
}
