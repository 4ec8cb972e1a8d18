//! Keeping many recovery keys in one entry, as an import brings them: one round of consensus for all of them.
//!
//! Each is judged as an escrow of its own (`escrow.rs`), in the order in which they stand, so one that is refused, or
//! that was sealed with an old data key, does not hold up the others. Each has its own request id: a retry may come in
//! another batch, and a contradiction is still on record once.

use super::{Halt, Turn, escrow};
use crate::escrow::command::{Action, BatchedEscrow, Command, Escrow, EscrowAnswer, Refusal, Reply};
use crate::escrow::ids::Invalid;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::{KeyState, Sealed};
use crate::escrow::state::{State, StateError};

/// Most escrows of one entry. More would gain little, and whoever waits behind the entry waits for all of them.
pub const ESCROWS_PER_ENTRY_MAX: usize = 256;
/// Most sealed bytes of one entry: room for the largest secret with its package, and a quarter of the largest command.
pub const ESCROWS_PER_ENTRY_MAX_BYTES: usize = 512 * 1024;

/// What an escrow counts towards [`ESCROWS_PER_ENTRY_MAX_BYTES`].
pub fn sealed_bytes(escrow: &Escrow) -> usize {
    let length = |sealed: &Sealed| sealed.ciphertext.len();
    length(&escrow.sealed) + escrow.sealed_package.as_ref().map_or(0, length)
}

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, escrows: &[BatchedEscrow]) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::EscrowMany) {
        let why = format!("role {} may not {}", turn.by().role, Operation::EscrowMany);
        return Err(Refusal::Denied(why).into());
    }
    if !(1..=ESCROWS_PER_ENTRY_MAX).contains(&escrows.len()) {
        let expected = format!("1 to {ESCROWS_PER_ENTRY_MAX} at once, not {}", escrows.len());
        return Err(Invalid::new("escrows", expected).into());
    }
    let bytes: usize = escrows.iter().map(|one| sealed_bytes(&one.escrow)).sum();
    if bytes > ESCROWS_PER_ENTRY_MAX_BYTES {
        let expected = format!("at most {ESCROWS_PER_ENTRY_MAX_BYTES} sealed bytes at once, not {bytes}");
        return Err(Invalid::new("escrows", expected).into());
    }
    let answers: Result<_, StateError> = escrows.iter().map(|one| apply_one(turn, one)).collect();
    Ok(Reply::EscrowedMany(answers?))
}

/// As if it had come by itself, but for its place in the log.
fn apply_one<S: State>(turn: &mut Turn<'_, S>, one: &BatchedEscrow) -> Result<EscrowAnswer, StateError> {
    let command = Command {
        request: one.request,
        at: turn.at,
        by: turn.command.by.clone(),
        source: turn.command.source.clone(),
        action: Action::Escrow(one.escrow.clone()),
    };
    let mut single = Turn {
        state: &mut *turn.state,
        command: &command,
        position: turn.position,
        at: turn.at,
        heads: turn.heads.clone(),
        heads_before: turn.heads_before.clone(),
    };
    let reply = escrow::apply(&mut single, &one.escrow, KeyState::Active).or_else(Halt::into_reply)?;
    turn.heads = single.heads;
    Ok(match reply {
        Reply::Escrowed(escrowed) => EscrowAnswer::Escrowed(escrowed),
        Reply::OldDataKey { current } => EscrowAnswer::OldDataKey { current },
        Reply::Refused(refusal) => EscrowAnswer::Refused(refusal),
        // An escrow gets no other answer; one that is remembered of something else is not this one's.
        _ => EscrowAnswer::Refused(Refusal::Conflict(format!(
            "request id {} was used for another request: draw a new one for each",
            one.request
        ))),
    })
}
