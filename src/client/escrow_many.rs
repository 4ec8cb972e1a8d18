//! Keeping many keys over one stream, which goes on at another node where it breaks.
//!
//! What was sent and has no answer yet is remembered, and sent again from its first record on when the stream is opened
//! anew. That is safe: each record keeps its request id, and the same key is the same record wherever it comes in.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};
use uuid::Uuid;

use super::error::is_temporary;
use super::{Client, ClientError, Deposit, escrow_request, receipt};
use crate::escrow::ids::{KeyId, Timestamp};
use crate::escrow::records::Fingerprint;
use crate::proto::escrow_many_answer::Answer;
use crate::proto::escrow_service_client::EscrowServiceClient;
use crate::proto::{EscrowManyAnswer, EscrowManyRequest, EscrowManyResponse, RefusedRecord};
use crate::request_id::TraceId;

/// Most records that wait for their answer: enough to keep a node's batches full.
pub const UNANSWERED_MAX: usize = 2_048;
/// Most bytes of secrets among them.
const UNANSWERED_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Most records of one message.
const RECORDS_PER_MESSAGE_MAX: usize = 64;
/// A message takes no more records once it has so many bytes of secrets: one with the largest still fits.
const MESSAGE_FULL_BYTES: usize = 64 * 1024;
/// Messages that wait for the connection.
const MESSAGES_AHEAD: usize = 4;
/// Longest a node may be silent that owes answers. It gives up on a batch sooner.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// What became of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BulkAnswer {
    /// It is kept.
    Kept(BulkKept),
    /// It is not, and will not be if it is sent again as it is.
    Refused(BulkRefused),
}

/// What is known of a key that is kept. Not signed: [`Client::escrow`] of the same key answers a receipt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkKept {
    /// The id it is kept under.
    pub key_id: KeyId,
    /// Term of the entry that first kept it.
    pub term: u64,
    /// Index of that entry.
    pub index: u64,
    /// Keyed hash of the secret.
    pub fingerprint: Fingerprint,
    /// When it was first kept.
    pub at: Timestamp,
    /// It had been kept before.
    pub already_escrowed: bool,
}

/// Why a record is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BulkRefused {
    /// What it would have been answered by itself.
    pub code: Code,
    /// The field at fault, if it is one.
    pub field: Option<String>,
    /// Why, in words.
    pub message: String,
}

impl Client {
    /// Keeps every key that `deposits` gives, and says what became of each, in their order, to `answered`, with what came
    /// beside it. Reads no further ahead than [`UNANSWERED_MAX`]. Ends when all are answered.
    ///
    /// # Errors
    /// Any [`ClientError`]: those that were answered stand, of the others it is not known. Doing the same again is safe.
    pub async fn escrow_many<T: Send>(
        &self,
        deposits: impl Stream<Item = (T, Deposit)> + Unpin + Send,
        answered: impl FnMut(T, BulkAnswer) + Send,
    ) -> Result<(), ClientError> {
        let trace = TraceId::draw();
        let bulk = Bulk {
            client: self,
            trace: trace.clone(),
            deposits,
            answered,
            unanswered: VecDeque::new(),
            unanswered_bytes: 0,
            exhausted: false,
        };
        Box::pin(bulk.run()).await.map_err(|error| error.with_request_id(&trace))
    }
}

struct Bulk<'a, T, S, F> {
    client: &'a Client,
    trace: TraceId,
    deposits: S,
    answered: F,
    /// The first of them have been sent, as many as the open stream says.
    unanswered: VecDeque<Unanswered<T>>,
    unanswered_bytes: usize,
    /// `deposits` gives no more.
    exhausted: bool,
}

struct Unanswered<T> {
    beside: T,
    request_id: String,
    deposit: Deposit,
}

/// A stream to one node.
struct Open {
    /// Taken when everything is sent.
    requests: Option<mpsc::Sender<EscrowManyRequest>>,
    responses: Streaming<EscrowManyResponse>,
    /// How many of the unanswered were sent over it.
    sent: usize,
    /// Longest it may be silent.
    silent_until: Instant,
}

impl<T, S, F> Bulk<'_, T, S, F>
where
    S: Stream<Item = (T, Deposit)> + Unpin,
    F: FnMut(T, BulkAnswer),
{
    async fn run(mut self) -> Result<(), ClientError> {
        let mut stream: Option<Open> = None;
        loop {
            if self.exhausted && self.unanswered.is_empty() {
                return Ok(());
            }
            stream = match stream {
                Some(open) => self.go_on(open).await?,
                None if self.unanswered.is_empty() => {
                    self.wait_for_more().await;
                    None
                }
                None => Some(self.open().await?),
            };
        }
    }

    /// Sends the first of the unanswered to whichever node answers them.
    async fn open(&mut self) -> Result<Open, ClientError> {
        let first = self.message(0);
        let count = first.records.len();
        let trace = self.trace.clone();
        let opened = self.client.pool.call_as(trace, |channel, budget| {
            let (requests, messages) = mpsc::channel(MESSAGES_AHEAD);
            // There is room: it is the first.
            let _ = requests.try_send(first.clone());
            // No deadline on the request: many records take as long as they take.
            let request = budget.unbounded(ReceiverStream::new(messages));
            async move {
                let mut responses =
                    EscrowServiceClient::new(channel).escrow_many(request).await?.into_inner();
                // A node is taken once it has answered something: one that is cut off takes records and keeps none.
                let response = responses.message().await?;
                let response = response.ok_or_else(|| Status::unavailable("the answers were cut off"))?;
                Ok(Response::new((requests, responses, response)))
            }
        });
        let (requests, responses, response) = opened.await?;
        let silent_until = Instant::now() + ANSWER_TIMEOUT;
        let mut open = Open { requests: Some(requests), responses, sent: count, silent_until };
        self.settle(&mut open, response)?;
        Ok(open)
    }

    /// One step of an open stream; `None` if it broke and another one is needed.
    async fn go_on(&mut self, mut open: Open) -> Result<Option<Open>, ClientError> {
        if self.exhausted && open.sent == self.unanswered.len() {
            // Tells the node that there is no more, so that it does not wait for it.
            open.requests = None;
        }
        let owed = open.sent > 0;
        let has_unsent = open.sent < self.unanswered.len();
        let has_full_message = self.unanswered.len() - open.sent >= RECORDS_PER_MESSAGE_MAX;
        let reads = !self.exhausted && self.has_room() && !has_full_message;
        let requests = open.requests.clone().filter(|_| has_unsent);
        let next_message = async {
            match requests {
                Some(requests) => requests.reserve_owned().await.ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            response = next_response(&mut open.responses, owed.then_some(open.silent_until)) => match response {
                Ok(response) => self.settle(&mut open, response)?,
                // Nothing is lost with it.
                Err(_) if self.unanswered.is_empty() => return Ok(None),
                Err(status) if is_passing(&status) => return Ok(None),
                Err(status) => return Err(ClientError::from_last_status(status, "the cluster")),
            },
            deposit = self.deposits.next(), if reads => self.take(deposit),
            place = next_message => {
                // Without a place the node has ended the stream, and says why.
                if let Some(place) = place {
                    let message = self.message(open.sent);
                    if !owed {
                        open.silent_until = Instant::now() + ANSWER_TIMEOUT;
                    }
                    open.sent += message.records.len();
                    place.send(message);
                } else {
                    open.requests = None;
                }
            }
        }
        Ok(Some(open))
    }

    /// Hands the answers of `response` on.
    fn settle(&mut self, open: &mut Open, response: EscrowManyResponse) -> Result<(), ClientError> {
        open.silent_until = Instant::now() + ANSWER_TIMEOUT;
        for answer in response.answers {
            let what = "the node answered more records than it was sent";
            let unanswered = if open.sent > 0 { self.unanswered.pop_front() } else { None };
            let Some(Unanswered { beside, deposit, .. }) = unanswered else {
                return Err(ClientError::Malformed { what });
            };
            open.sent -= 1;
            self.unanswered_bytes -= bytes(&deposit);
            (self.answered)(beside, read(answer)?);
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.unanswered.len() < UNANSWERED_MAX && self.unanswered_bytes < UNANSWERED_MAX_BYTES
    }

    async fn wait_for_more(&mut self) {
        let deposit = self.deposits.next().await;
        self.take(deposit);
    }

    /// Takes a deposit, and what is there already for the same message.
    fn take(&mut self, deposit: Option<(T, Deposit)>) {
        let (mut taken, mut next) = (0, Some(deposit));
        while let Some(deposit) = next {
            match deposit {
                Some((beside, deposit)) => {
                    self.unanswered_bytes += bytes(&deposit);
                    let request_id = Uuid::new_v4().to_string();
                    self.unanswered.push_back(Unanswered { beside, request_id, deposit });
                }
                None => self.exhausted = true,
            }
            taken += 1;
            let goes_on = !self.exhausted && self.has_room() && taken < RECORDS_PER_MESSAGE_MAX;
            next = goes_on.then(|| self.deposits.next().now_or_never()).flatten();
        }
    }

    /// The unanswered behind `from`, as many as fit in one message; at least one, if there is any.
    fn message(&self, from: usize) -> EscrowManyRequest {
        let mut size = 0;
        let records = self.unanswered.iter().skip(from).take(RECORDS_PER_MESSAGE_MAX);
        let records = records.take_while(|unanswered| {
            let fits = size <= MESSAGE_FULL_BYTES;
            size += bytes(&unanswered.deposit);
            fits
        });
        EscrowManyRequest {
            records: records.map(|one| escrow_request(&one.request_id, &one.deposit)).collect(),
        }
    }
}

/// The next answers; an error if they are cut off, or do not come until `silent_until`.
async fn next_response(
    responses: &mut Streaming<EscrowManyResponse>,
    silent_until: Option<Instant>,
) -> Result<EscrowManyResponse, Status> {
    let response = match silent_until {
        Some(until) => timeout_at(until, responses.message())
            .await
            .unwrap_or_else(|_| Err(Status::unavailable("no answers came")))?,
        None => responses.message().await?,
    };
    response.ok_or_else(|| Status::unavailable("the answers were cut off"))
}

/// Whether another node may do better: it was not said by the node itself, or it says "not now".
fn is_passing(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || is_temporary(status.code())
}

fn bytes(deposit: &Deposit) -> usize {
    deposit.secret.expose().len() + deposit.package.as_ref().map_or(0, |package| package.expose().len())
}

impl From<RefusedRecord> for BulkRefused {
    fn from(RefusedRecord { code, field, message }: RefusedRecord) -> Self {
        let field = Some(field).filter(|field| !field.is_empty());
        Self { code: Code::from_i32(code), field, message }
    }
}

fn read(answer: EscrowManyAnswer) -> Result<BulkAnswer, ClientError> {
    let malformed = || ClientError::Malformed { what: "the node's answer to a record is not well formed" };
    match answer.answer.ok_or_else(malformed)? {
        Answer::Kept(kept) => Ok(BulkAnswer::Kept(BulkKept {
            key_id: kept.key_id.parse().map_err(|_| malformed())?,
            term: kept.term,
            index: kept.index,
            fingerprint: receipt::parse_fingerprint(&kept.fingerprint).ok_or_else(malformed)?,
            at: Timestamp(kept.at_ms),
            already_escrowed: kept.already_escrowed,
        })),
        Answer::Refused(refused) => Ok(BulkAnswer::Refused(refused.into())),
    }
}

#[cfg(test)]
mod tests;
