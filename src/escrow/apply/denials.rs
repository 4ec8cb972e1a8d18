//! How many denials of one person leave a record.
//!
//! So many an hour are judged and on record. What comes behind them is not looked at, answered alike whatever it asks, and
//! neither remembered nor on record but for its number: at the first one, the tenth, the hundredth and so on, so that the
//! trail says how much there was of it, also of somebody who then goes away.

use super::{Halt, Turn};
use crate::escrow::disclosure::{DENIALS_PER_HOUR_MAX, check_denials};
use crate::escrow::lookup;
use crate::escrow::records::{AuditEvent, DenialTally};
use crate::escrow::state::{State, StateError};
use crate::escrow::tally::HOUR_MS;

/// Refuses a request of who was denied too often of late.
pub(super) fn admit<S: State>(turn: &mut Turn<'_, S>) -> Result<(), Halt> {
    let tally = lookup::denials(turn.state, &turn.by().person())?;
    let Err(refusal) = check_denials(&tally.slots, turn.at) else { return Ok(()) };
    leave_out(turn, tally);
    Err(refusal.into())
}

/// Puts what contradicts the state on record and counts it, unless there was too much of it of late. Says whether it did.
pub(super) fn record<S: State>(turn: &mut Turn<'_, S>, event: AuditEvent) -> Result<bool, StateError> {
    let tally = lookup::denials(turn.state, &turn.by().person())?;
    if check_denials(&tally.slots, turn.at).is_err() {
        leave_out(turn, tally);
        return Ok(false);
    }
    turn.audit(event);
    count(turn)?;
    Ok(true)
}

/// Counts a denial that is on record.
pub(super) fn count<S: State>(turn: &mut Turn<'_, S>) -> Result<(), StateError> {
    let mut tally = lookup::denials(turn.state, &turn.by().person())?;
    tally.slots.count(turn.at);
    tally.unrecorded = 0;
    turn.state.put(&tally);
    Ok(())
}

fn leave_out<S: State>(turn: &mut Turn<'_, S>, tally: DenialTally) {
    let count = tally.unrecorded + 1;
    if is_power_of_ten(count) {
        let until = tally.slots.free_at(HOUR_MS, turn.at, DENIALS_PER_HOUR_MAX);
        turn.audit(AuditEvent::DenialsUnrecorded { count, until });
    }
    turn.state.put(&DenialTally { unrecorded: count, ..tally });
}

/// Whether `count` is 1, 10, 100 and so on: how often something is on record that somebody may repeat without an end.
pub(super) fn is_power_of_ten(count: u64) -> bool {
    count.checked_ilog10().is_some_and(|digits| 10_u64.pow(digits) == count)
}
