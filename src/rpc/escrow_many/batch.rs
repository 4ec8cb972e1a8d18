//! Records that share a log entry: sealed together, committed together, each answered by itself.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};
use uuid::Uuid;

use crate::escrow::apply::{
    ESCROWS_PER_ENTRY_MAX, ESCROWS_PER_ENTRY_MAX_BYTES, SEALED_OVERHEAD_MAX_BYTES, sealed_bytes,
};
use crate::escrow::command::{Action, BatchedEscrow, Command, EscrowAnswer, Escrowed, Reply};
use crate::escrow::ids::{Invalid, KeyId, RequestId};
use crate::escrow::secrets::SECRET_MAX_BYTES;
use crate::metrics::EscrowOutcome;
use crate::proto;
use crate::proto::escrow_many_answer::Answer;
use crate::proto::{EscrowManyAnswer, KeptRecord};
use crate::raft::leader::PROPOSE_TIMEOUT;
use crate::raft::{Committed, NodeError};
use crate::rpc::escrow::{SEALINGS_MAX, failed_as, seal, unexpected};
use crate::rpc::guard::Caller;
use crate::rpc::{Context, now, status, wire};
use crate::seal::Keyring;

/// How long records wait for more to share their entry with, if another batch is under way; if none is, they do not wait.
const LINGER: Duration = Duration::from_millis(2);
/// A batch takes no more once it has so many bytes: the largest escrow, a secret with its package, might not fit.
const BATCH_FULL_BYTES: usize =
    ESCROWS_PER_ENTRY_MAX_BYTES - 2 * (SECRET_MAX_BYTES + SEALED_OVERHEAD_MAX_BYTES);

/// Records that will share an entry, and those between them that need none.
#[derive(Default)]
pub(super) struct Batch {
    /// In the order of the records: refused here, or the next one of `sealed`.
    pub(super) slots: Vec<Option<EscrowManyAnswer>>,
    sealed: Vec<BatchedEscrow>,
    /// What `sealed` is made from, should it be sealed again.
    wanted: Vec<wire::EscrowRequest>,
    bytes: usize,
    /// When it goes on its way at the latest.
    pub(super) due: Option<Instant>,
}

impl Batch {
    pub(super) fn is_full(&self) -> bool {
        self.slots.len() >= ESCROWS_PER_ENTRY_MAX || self.bytes > BATCH_FULL_BYTES
    }

    pub(super) fn add(&mut self, record: proto::EscrowRequest, keyring: &Keyring) -> Result<(), NodeError> {
        self.due.get_or_insert_with(|| Instant::now() + LINGER);
        let wanted = match wanted(record) {
            Ok(wanted) => wanted,
            Err(invalid) => {
                self.slots.push(Some(refused(&invalid.into())));
                return Ok(());
            }
        };
        let key_id = wanted.key_id.unwrap_or_else(|| KeyId(Uuid::new_v4()));
        let escrow = seal(keyring, &wanted, key_id)?;
        self.bytes += sealed_bytes(&escrow);
        self.sealed.push(BatchedEscrow { request: wanted.request, escrow });
        self.wanted.push(wanted);
        self.slots.push(None);
        Ok(())
    }
}

impl Context {
    /// Commits a batch; seals anew what was sealed with an old data key. Takes no longer than one proposal may, an election
    /// included, so that the importer hears of it.
    pub(super) async fn keep_batch(
        &self,
        batch: Batch,
        caller: &Caller,
    ) -> Result<Vec<EscrowManyAnswer>, Status> {
        let Batch { mut slots, mut sealed, mut wanted, .. } = batch;
        // Where in `slots` the answers to `sealed` go.
        let mut places: Vec<usize> =
            slots.iter().enumerate().filter_map(|(place, slot)| slot.is_none().then_some(place)).collect();
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        for _ in 0..SEALINGS_MAX {
            if sealed.is_empty() {
                return Ok(slots.into_iter().flatten().collect());
            }
            let (position, answers, asked) = self.propose_batch(sealed, caller, deadline).await?;
            let mut again = (Vec::new(), Vec::new(), Vec::new());
            for (((answer, one), place), wanted) in answers.into_iter().zip(asked).zip(places).zip(wanted) {
                match answer {
                    EscrowAnswer::Escrowed(escrowed) => slots[place] = Some(kept(&escrowed)),
                    EscrowAnswer::Refused(refusal) => slots[place] = Some(refused(&refusal.into())),
                    EscrowAnswer::OldDataKey { .. } => {
                        again.0.push(one);
                        again.1.push(place);
                        again.2.push(wanted);
                    }
                }
            }
            (sealed, places, wanted) = again;
            if !sealed.is_empty() {
                self.seal_again(&mut sealed, &wanted, position, deadline).await?;
            }
        }
        Err(NodeError::Overloaded {
            what: "rotations of the data key during one import",
            limit: SEALINGS_MAX,
        }
        .into())
    }

    /// One entry: where it stands, what became of each, and what was asked.
    async fn propose_batch(
        &self,
        sealed: Vec<BatchedEscrow>,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<(u64, Vec<EscrowAnswer>, Vec<BatchedEscrow>), Status> {
        let command = Command {
            request: RequestId(Uuid::new_v4()),
            at: now(),
            by: caller.identity.clone(),
            source: caller.source.clone(),
            action: Action::EscrowMany(sealed),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let Committed { position, reply } = self.node.propose_within(&command, left).await?;
        match (reply, command.action) {
            (Reply::EscrowedMany(answers), Action::EscrowMany(asked)) if answers.len() == asked.len() => {
                Ok((position.index, answers, asked))
            }
            (Reply::Refused(refusal), _) => Err(refusal.into()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Seals with the keyring that was current at `index`, or a newer one.
    async fn seal_again(
        &self,
        sealed: &mut [BatchedEscrow],
        wanted: &[wire::EscrowRequest],
        index: u64,
        deadline: Instant,
    ) -> Result<(), NodeError> {
        self.node.options().metrics.sealed_again.inc_by(sealed.len() as u64);
        tracing::debug!(index, count = sealed.len(), "sealed with an old data key: sealing again");
        let behind = || NodeError::Behind { applied: self.node.applied(), wanted: index };
        let caught_up = timeout_at(deadline, self.node.wait_applied(index)).await;
        caught_up.unwrap_or_else(|_| Err(behind()))?;
        let keyring = self.node.keyring()?;
        for (one, wanted) in sealed.iter_mut().zip(wanted) {
            one.escrow = seal(&keyring, wanted, one.escrow.key_id)?;
        }
        Ok(())
    }
}

fn wanted(record: proto::EscrowRequest) -> Result<wire::EscrowRequest, Invalid> {
    let wanted = wire::EscrowRequest::try_from(record)?;
    if wanted.pending {
        return Err(Invalid::new(
            "pending",
            "not set: a device escrows the key it is about to use by itself",
        ));
    }
    Ok(wanted)
}

fn kept(escrowed: &Escrowed) -> EscrowManyAnswer {
    let kept = KeptRecord {
        key_id: escrowed.key_id.to_string(),
        term: escrowed.position.term,
        index: escrowed.position.index,
        fingerprint: escrowed.fingerprint.to_string(),
        at_ms: escrowed.at.0,
        already_escrowed: escrowed.already_escrowed,
    };
    EscrowManyAnswer { answer: Some(Answer::Kept(kept)) }
}

fn refused(status: &Status) -> EscrowManyAnswer {
    EscrowManyAnswer { answer: Some(Answer::Refused(status::refused(status))) }
}

/// What a record was answered, as it is counted.
pub(super) fn outcome(answer: &EscrowManyAnswer) -> EscrowOutcome {
    match &answer.answer {
        Some(Answer::Kept(kept)) if kept.already_escrowed => EscrowOutcome::AlreadyKept,
        Some(Answer::Kept(_)) => EscrowOutcome::Kept,
        Some(Answer::Refused(refused)) => failed_as(Code::from_i32(refused.code)),
        None => EscrowOutcome::Failed,
    }
}
