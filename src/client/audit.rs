//! Reading the audit trail, from whichever node answers: a stream that breaks goes on at another one.

use std::time::Duration;

use tonic::Streaming;

use super::attempts::made_here;
use super::{Client, ClientError, bounded};
use crate::proto::audit_part::Part;
use crate::proto::audit_service_client::AuditServiceClient;
use crate::proto::{
    AuditBegin, AuditPage, AuditPart, CheckpointsRequest, CheckpointsResponse, ReadAuditRequest,
};
use crate::request_id::TraceId;

/// How long a node may take for one page: it looks at a few hundred records.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// Records of the audit trail as they come.
pub struct AuditTrail {
    client: Client,
    /// What is still to be read.
    request: ReadAuditRequest,
    stream: Streaming<AuditPart>,
    trace: TraceId,
    begin: AuditBegin,
    /// Something came since the stream was opened.
    progress: bool,
    /// Nothing more is to come.
    complete: bool,
}

impl Client {
    /// Reads the audit trail.
    ///
    /// # Errors
    /// Any [`ClientError`] of the beginning; the rest comes from [`AuditTrail::next`].
    pub async fn read_audit(&self, request: &ReadAuditRequest) -> Result<AuditTrail, ClientError> {
        let trace = TraceId::draw();
        let (stream, begin) = self.open_audit(request, &trace).await?;
        let mut request = request.clone();
        // Where the trail stands now is where it ends, also if the rest comes from another node; which must have it.
        request.to = if request.to == 0 { begin.head } else { request.to.min(begin.head) };
        request.min_index = begin.freshness.as_ref().map_or(0, |freshness| freshness.applied);
        request.consistency = crate::proto::Consistency::Local.into();
        let complete = request.after >= request.to;
        Ok(AuditTrail { client: self.clone(), request, stream, trace, begin, progress: false, complete })
    }

    /// Where every member says that its audit trail stands.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn audit_checkpoints(&self) -> Result<CheckpointsResponse, ClientError> {
        self.pool
            .call(|channel, budget| async move {
                AuditServiceClient::new(channel).checkpoints(bounded(CheckpointsRequest {}, budget)).await
            })
            .await
    }

    async fn open_audit(
        &self,
        request: &ReadAuditRequest,
        trace: &TraceId,
    ) -> Result<(Streaming<AuditPart>, AuditBegin), ClientError> {
        let mut stream = self
            .pool
            .call_as(trace.clone(), |channel, budget| {
                // No deadline on the request: a long trail takes as long as it takes.
                let request = budget.unbounded(request.clone());
                async move { AuditServiceClient::new(channel).read(request).await }
            })
            .await?;
        match next_part(&mut stream, trace).await? {
            Part::Begin(begin) => Ok((stream, begin)),
            Part::Page(_) => {
                Err(ClientError::Malformed { what: "the audit trail did not begin with where it stands" })
            }
        }
    }
}

impl AuditTrail {
    /// What the node that answered first said of its trail.
    pub fn begin(&self) -> &AuditBegin {
        &self.begin
    }

    /// The next page, or `None` when there is no more.
    ///
    /// # Errors
    /// Any [`ClientError`]. What came before is good.
    pub async fn next(&mut self) -> Result<Option<AuditPage>, ClientError> {
        while !self.complete {
            match next_part(&mut self.stream, &self.trace).await {
                Ok(Part::Page(page)) => {
                    self.note(&page);
                    return Ok(Some(page));
                }
                Ok(Part::Begin(_)) => {
                    return Err(ClientError::Malformed { what: "the audit trail began twice" });
                }
                // Only if there was some progress: otherwise a node that breaks off every time would be asked for ever.
                Err(ClientError::Unavailable { .. } | ClientError::Temporary(_)) if self.progress => {
                    self.progress = false;
                    (self.stream, _) = self.client.open_audit(&self.request, &self.trace).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    fn note(&mut self, page: &AuditPage) {
        self.progress = true;
        if self.request.newest_first {
            self.request.to = page.reached;
            // A node takes 0 for the newest record; there is nothing below the first.
            self.complete = page.reached <= self.request.after;
        } else {
            self.request.after = page.reached;
            self.complete = page.reached >= self.request.to;
        }
        if self.request.limit > 0 {
            self.request.limit = self.request.limit.saturating_sub(page.records.len() as u64);
            self.complete |= self.request.limit == 0;
        }
    }
}

async fn next_part(stream: &mut Streaming<AuditPart>, trace: &TraceId) -> Result<Part, ClientError> {
    let broken = |waited, what| ClientError::broken_off(waited, what, trace);
    match tokio::time::timeout(PAGE_TIMEOUT, stream.message()).await {
        Ok(Ok(Some(AuditPart { part: Some(part) }))) => Ok(part),
        Ok(Ok(Some(AuditPart { part: None }))) => {
            Err(ClientError::Malformed { what: "a part of the audit trail that this release does not know" })
        }
        // A node says when it is done: a stream that ends without that was cut off, however it looks.
        Ok(Ok(None)) => Err(broken(Duration::ZERO, "the audit trail was cut off")),
        Ok(Err(status)) if made_here(&status) => Err(broken(Duration::ZERO, "the connection broke")),
        Ok(Err(status)) => Err(ClientError::from_last_status(status, "the cluster").with_request_id(trace)),
        Err(_) => Err(broken(PAGE_TIMEOUT, "no page of the audit trail came")),
    }
}

#[cfg(test)]
mod tests;
