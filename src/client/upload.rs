//! What many devices say, over one stream, which goes on at another node where it breaks.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::parts::next;
use super::{Budget, Client, ClientError};
use crate::proto::compliance_service_client::ComplianceServiceClient;
use crate::proto::{PutManyRequest, PutManyResponse, UploadOutcome};
use crate::request_id::TraceId;

/// Documents and bytes of one batch of uploads, at most: what a node takes in one message.
pub const BATCH_DOCUMENTS_MAX: usize = 256;
/// See [`BATCH_DOCUMENTS_MAX`].
pub const BATCH_BYTES_MAX: usize = 192 * 1024;
/// Batches that wait for the connection.
const BATCHES_AHEAD: usize = 4;
/// How long a node may take for a batch of uploads.
const BATCH_TIMEOUT: Duration = Duration::from_secs(20);

impl Client {
    /// Keeps what many devices say, over one stream. Answers what became of each, in the order they were given. A stream
    /// that breaks goes on at another node, with what was not answered yet.
    ///
    /// # Errors
    /// Any [`ClientError`]; then some of them may be kept, and doing it again is safe.
    pub async fn put_compliance_many(&self, documents: &[String]) -> Result<Vec<UploadOutcome>, ClientError> {
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
