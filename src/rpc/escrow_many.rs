//! Keeping many keys: the stream of an importer.
//!
//! Records are checked and sealed as they come and gathered to batches, each of which is one log entry. Some batches are
//! under way at once, so that the next is on its way while one waits for its quorum; answers go back in the order of the
//! records. A node reads no further while it has a batch that waits for its turn, and none goes on while its answers are
//! not taken: what it holds of one stream is bounded, and so is the number of streams, see [`serving`](super::serving).
//!
//! A record is refused by itself. What concerns all of them (no quorum in time, a certificate that has ended, a node that
//! stops) ends the stream, and the importer goes on at whichever node from the first record without an answer.

mod batch;

use std::collections::VecDeque;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Status, Streaming};
use tracing::Instrument as _;

use self::batch::{Batch, outcome};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::Invalid;
use crate::escrow::policy::Operation;
use crate::metrics::EscrowOutcome;
use crate::proto;
use crate::proto::{EscrowManyAnswer, EscrowManyRequest, EscrowManyResponse};
use crate::request_id::carried;

use super::Context;
use super::guard::Caller;
use super::serving::{Answers, Serving};

/// Most importers that are served at once: more would take the log from those who wait for a key.
pub const IMPORTS_MAX: usize = 4;
/// Most records of one message.
pub const RECORDS_PER_MESSAGE_MAX: usize = 256;
/// Most batches of one importer that wait for their quorum at once.
const BATCHES_UNDER_WAY_MAX: usize = 4;
/// Answers that wait for the importer to take them.
const ANSWERS_AHEAD: usize = 1;

impl Context {
    /// Begins to serve an importer.
    pub(super) async fn import(
        &self,
        request: Request<Streaming<EscrowManyRequest>>,
    ) -> Result<Answers<EscrowManyResponse>, Status> {
        let caller = self.admit(&request, Operation::EscrowMany)?;
        self.require_level(FeatureLevel::BULK).await?;
        let (serving, answers) = Serving::begin(self, &request, self.imports.take()?, ANSWERS_AHEAD);
        let import = Import {
            context: self.clone(),
            caller,
            unsealed: VecDeque::new(),
            batch: Batch::default(),
            under_way: FuturesOrdered::new(),
            tally: Tally::default(),
        };
        tokio::spawn(carried(import.serve(serving, request.into_inner())).in_current_span());
        Ok(answers)
    }
}

/// One importer while it is served.
struct Import {
    context: Context,
    caller: Caller,
    /// What came and is in no batch yet.
    unsealed: VecDeque<proto::EscrowRequest>,
    batch: Batch,
    /// Batches that wait for their quorum, in the order of their records.
    under_way: FuturesOrdered<JoinHandle<Result<Vec<EscrowManyAnswer>, Status>>>,
    tally: Tally,
}

/// What was answered so far.
#[derive(Debug, Default)]
struct Tally {
    kept: u64,
    already_kept: u64,
    refused: u64,
}

impl Import {
    async fn serve(mut self, serving: Serving<EscrowManyResponse>, records: Streaming<EscrowManyRequest>) {
        tracing::info!(by = %self.caller.identity, "an import begins");
        let ended = self.work(&serving, records).await;
        let Tally { kept, already_kept, refused } = self.tally;
        match ended {
            Ok(()) => {
                tracing::info!(by = %self.caller.identity, kept, already_kept, refused, "an import is done")
            }
            Err(status) => {
                let why = status.message();
                tracing::info!(by = %self.caller.identity, kept, already_kept, refused, why, "an import breaks off");
                serving.end(status);
            }
        }
    }

    /// Answers everything that comes. What was read before the end of the stream, whatever ended it, is still answered.
    async fn work(
        &mut self,
        serving: &Serving<EscrowManyResponse>,
        mut records: Streaming<EscrowManyRequest>,
    ) -> Result<(), Status> {
        let mut end: Option<Result<(), Status>> = None;
        loop {
            self.gather()?;
            if self.may_send(end.is_some()) {
                self.send_batch(serving)?;
                continue;
            }
            let is_idle = self.batch.slots.is_empty() && self.under_way.is_empty();
            if is_idle && let Some(end) = end {
                return end;
            }
            let reads = end.is_none() && self.unsealed.is_empty() && !self.batch.is_full();
            let due = self.batch.due.filter(|_| self.under_way.len() < BATCHES_UNDER_WAY_MAX);
            tokio::select! {
                biased;
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => {
                    let answers = done.map_err(|error| Status::internal(format!("a batch ended: {error}")))??;
                    self.answer(serving, answers).await?;
                }
                message = serving.next(&mut records), if reads => {
                    match message.and_then(|message| message.map(checked).transpose()) {
                        Ok(Some(records)) => self.unsealed = records,
                        Ok(None) => end = Some(Ok(())),
                        Err(status) => end = Some(Err(status)),
                    }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.send_batch(serving)?;
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

    fn send_batch(&mut self, serving: &Serving<EscrowManyResponse>) -> Result<(), Status> {
        serving.check()?;
        let (batch, context, caller) =
            (std::mem::take(&mut self.batch), self.context.clone(), self.caller.clone());
        let work = async move { context.unless_removed(context.keep_batch(batch, &caller)).await };
        self.under_way.push_back(tokio::spawn(carried(work).in_current_span()));
        Ok(())
    }

    async fn answer(
        &mut self,
        serving: &Serving<EscrowManyResponse>,
        answers: Vec<EscrowManyAnswer>,
    ) -> Result<(), Status> {
        for answer in &answers {
            let outcome = outcome(answer);
            match outcome {
                EscrowOutcome::Kept => self.tally.kept += 1,
                EscrowOutcome::AlreadyKept => self.tally.already_kept += 1,
                _ => self.tally.refused += 1,
            }
            self.context.node.options().metrics.escrows.count(outcome);
        }
        serving.send(EscrowManyResponse { answers }).await
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
