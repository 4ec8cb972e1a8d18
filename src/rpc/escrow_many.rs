//! Keeping many keys: the stream of an importer.
//!
//! Records are checked and sealed as they come and gathered to batches, each of which is one log entry. Some batches are
//! under way at once, so that the next is on its way while one waits for its quorum; answers go back in the order of the
//! records. A node reads no further while it has a batch that waits for its turn, and none goes on while its answers are
//! not taken: what it holds of one stream is bounded, and so is the number of streams.
//!
//! A record is refused by itself. What concerns all of them (no quorum in time, a certificate that has ended, a node that
//! stops) ends the stream, and the importer goes on at whichever node from the first record without an answer.

mod batch;

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::FuturesOrdered;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming};
use tracing::Instrument as _;

use self::batch::{Batch, outcome};
use crate::escrow::ids::Invalid;
use crate::escrow::policy::Operation;
use crate::metrics::EscrowOutcome;
use crate::proto;
use crate::proto::{EscrowManyAnswer, EscrowManyRequest, EscrowManyResponse};
use crate::request_id::carried;
use crate::tls::PeerCertificate;

use super::Context;
use super::guard::{Caller, Connection};

/// Most importers that are served at once: more would take the log from those who wait for a key.
pub const IMPORTS_MAX: usize = 4;
/// Most records of one message.
pub const RECORDS_PER_MESSAGE_MAX: usize = 256;
/// Most batches of one importer that wait for their quorum at once.
const BATCHES_UNDER_WAY_MAX: usize = 4;
/// Longest an importer may send nothing: a place is not kept for somebody who comes back with a new stream anyway.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest an importer may leave answers waiting.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Answers as they go out.
pub(super) type AnswerStream = Pin<Box<dyn Stream<Item = Result<EscrowManyResponse, Status>> + Send>>;

impl Context {
    /// Begins to serve an importer.
    pub(super) fn import(
        &self,
        request: Request<Streaming<EscrowManyRequest>>,
    ) -> Result<AnswerStream, Status> {
        let caller = self.admit(&request, Operation::EscrowMany)?;
        let connection = request.extensions().get::<Connection>();
        let certificate = connection.map(|connection| connection.certificate.clone());
        let Ok(place) = self.imports.clone().try_acquire_owned() else {
            let why = format!("{IMPORTS_MAX} importers are served here already; use another node");
            return Err(Status::unavailable(why));
        };
        let (answers, stream) = mpsc::channel(1);
        let import = Import {
            context: self.clone(),
            caller,
            certificate,
            unsealed: VecDeque::new(),
            batch: Batch::default(),
            under_way: FuturesOrdered::new(),
            answers,
            tally: Tally::default(),
            _place: place,
        };
        tokio::spawn(carried(import.serve(request.into_inner())).in_current_span());
        Ok(Box::pin(ReceiverStream::new(stream)))
    }
}

/// One importer while it is served.
struct Import {
    context: Context,
    caller: Caller,
    certificate: Option<PeerCertificate>,
    /// What came and is in no batch yet.
    unsealed: VecDeque<proto::EscrowRequest>,
    batch: Batch,
    /// Batches that wait for their quorum, in the order of their records.
    under_way: FuturesOrdered<JoinHandle<Result<Vec<EscrowManyAnswer>, Status>>>,
    answers: mpsc::Sender<Result<EscrowManyResponse, Status>>,
    tally: Tally,
    _place: OwnedSemaphorePermit,
}

/// What was answered so far.
#[derive(Debug, Default)]
struct Tally {
    kept: u64,
    already_kept: u64,
    refused: u64,
}

impl Import {
    async fn serve(mut self, records: Streaming<EscrowManyRequest>) {
        tracing::info!(by = %self.caller.identity, "an import begins");
        let ended = self.work(records).await;
        let Tally { kept, already_kept, refused } = self.tally;
        match ended {
            Ok(()) => {
                tracing::info!(by = %self.caller.identity, kept, already_kept, refused, "an import is done")
            }
            Err(status) => {
                let why = status.message();
                tracing::info!(by = %self.caller.identity, kept, already_kept, refused, why, "an import breaks off");
                // Nobody to tell it to any more is no matter.
                let _ = timeout(STALL_TIMEOUT, self.answers.send(Err(status))).await;
            }
        }
    }

    /// Answers everything that comes. What was read before the end of the stream, whatever ended it, is still answered.
    async fn work(&mut self, mut records: Streaming<EscrowManyRequest>) -> Result<(), Status> {
        let mut end: Option<Result<(), Status>> = None;
        let mut idle_until = Instant::now() + IDLE_TIMEOUT;
        loop {
            self.gather()?;
            if self.may_send(end.is_some()) {
                self.send_batch()?;
                continue;
            }
            let is_idle = self.batch.slots.is_empty() && self.under_way.is_empty();
            if is_idle && let Some(end) = end {
                return end;
            }
            let reads = end.is_none() && self.unsealed.is_empty() && !self.batch.is_full();
            let due = self.batch.due.filter(|_| self.under_way.len() < BATCHES_UNDER_WAY_MAX);
            let draining = self.context.draining.clone();
            tokio::select! {
                biased;
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => {
                    let answers = done.map_err(|error| Status::internal(format!("a batch ended: {error}")))??;
                    self.answer(answers).await?;
                }
                message = records.message(), if reads => {
                    idle_until = Instant::now() + IDLE_TIMEOUT;
                    match message.and_then(|message| message.map(checked).transpose()) {
                        Ok(Some(records)) => self.unsealed = records,
                        Ok(None) => end = Some(Ok(())),
                        Err(status) => end = Some(Err(status)),
                    }
                }
                () = draining.cancelled(), if end.is_none() => {
                    end = Some(Err(Status::unavailable("this node is stopping; use another")));
                }
                () = sleep_until(due.unwrap_or(idle_until)), if due.is_some() => self.send_batch()?,
                () = sleep_until(idle_until), if is_idle && reads => {
                    end = Some(Err(Status::unavailable("nothing was sent for a long time")));
                }
            }
        }
    }

    /// Checks and seals what came, as far as the batch has room.
    fn gather(&mut self) -> Result<(), Status> {
        if self.unsealed.is_empty() || self.batch.is_full() {
            return Ok(());
        }
        let keyring = self.context.node.keyring()?;
        while !self.batch.is_full()
            && let Some(record) = self.unsealed.pop_front()
        {
            self.batch.add(record, &keyring)?;
        }
        Ok(())
    }

    /// Whether the batch is to go on its way at once.
    fn may_send(&self, ended: bool) -> bool {
        let wanted = self.batch.is_full() || self.under_way.is_empty() || ended;
        !self.batch.slots.is_empty() && wanted && self.under_way.len() < BATCHES_UNDER_WAY_MAX
    }

    fn send_batch(&mut self) -> Result<(), Status> {
        // A stream outlives the moment in which it was admitted.
        if let Some(certificate) = &self.certificate {
            let checked = self.context.tls.check(certificate);
            checked.map_err(|error| Status::permission_denied(error.to_string()))?;
        }
        self.context.refuse_in_quarantine()?;
        let (batch, context, caller) =
            (std::mem::take(&mut self.batch), self.context.clone(), self.caller.clone());
        let work = async move { context.unless_removed(context.keep_batch(batch, &caller)).await };
        self.under_way.push_back(tokio::spawn(carried(work).in_current_span()));
        Ok(())
    }

    async fn answer(&mut self, answers: Vec<EscrowManyAnswer>) -> Result<(), Status> {
        for answer in &answers {
            let outcome = outcome(answer);
            match outcome {
                EscrowOutcome::Kept => self.tally.kept += 1,
                EscrowOutcome::AlreadyKept => self.tally.already_kept += 1,
                _ => self.tally.refused += 1,
            }
            self.context.node.options().metrics.escrows.count(outcome);
        }
        let sent = timeout(STALL_TIMEOUT, self.answers.send(Ok(EscrowManyResponse { answers }))).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the importer went away")),
            Err(_) => Err(Status::unavailable("the importer does not take its answers")),
        }
    }
}

fn checked(message: EscrowManyRequest) -> Result<VecDeque<proto::EscrowRequest>, Status> {
    let count = message.records.len();
    if (1..=RECORDS_PER_MESSAGE_MAX).contains(&count) {
        return Ok(message.records.into());
    }
    let expected = format!("1 to {RECORDS_PER_MESSAGE_MAX} in one message, not {count}");
    Err(Invalid::new("records", expected).into())
}
