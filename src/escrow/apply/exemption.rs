//! Exemptions from the policy of compliance: asked for, granted, rejected, ended. Each step is on record, and so are the
//! steps of one request few: what one person can put on record is bounded by how often they may ask within an hour.

use super::{Halt, REASON_MAX_BYTES, Turn, requests, reveal};
use crate::escrow::command::{DecideExemption, Refusal, Reply, RequestExemption};
use crate::escrow::compliance::{
    Exemption, ExemptionDecision, ExemptionGrant, ExemptionRejection, ExemptionRequest,
};
use crate::escrow::ids::{Invalid, Timestamp, is_plain};
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::AuditEvent;
use crate::escrow::state::{Row, State};
use crate::escrow::tally::HOUR_MS;

/// How many exemptions one person may ask for within an hour: each leaves a record for ever.
pub const EXEMPTION_REQUESTS_PER_HOUR_MAX: u32 = 100;

/// Puts a request down for an officer. An earlier one that waits ends; what was granted goes on.
pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, asked: &RequestExemption) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::RequestExemption) {
        let why = format!("role {} does not request exemptions", turn.by().role);
        return Err(Refusal::Denied(why).into());
    }
    let reason = check_reason(&asked.reason)?;
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    check_until(turn, asked.until)?;
    if lookup::machine(turn.state, &asked.machine)?.is_none() {
        return Err(Refusal::NotFound(format!("no machine {} is known", asked.machine)).into());
    }
    count(turn)?;
    let before = lookup::exemption(turn.state, &asked.machine)?;
    let before = before.unwrap_or_else(|| Exemption::none(asked.machine.clone()));
    let id = turn.command.request;
    turn.audit(AuditEvent::ExemptionRequested {
        exemption: id,
        machine: asked.machine.clone(),
        reason: reason.to_owned(),
        until: asked.until,
    });
    let request = ExemptionRequest {
        id,
        by: turn.by().clone(),
        at: turn.at,
        reason: reason.to_owned(),
        until: asked.until,
    };
    turn.state.put(&Exemption { request: Some(request), rejection: None, ..before });
    requests::remember(turn, Reply::ExemptionRequested { exemption: id })
}

/// Counts a request of this person, and refuses one too many.
fn count<S: State>(turn: &mut Turn<'_, S>) -> Result<(), Halt> {
    let person = turn.by().person();
    let mut tally = lookup::exemption_requests(turn.state, &person)?;
    if tally.slots.within(HOUR_MS, turn.at) >= u64::from(EXEMPTION_REQUESTS_PER_HOUR_MAX) {
        let free_at = tally.slots.free_at(HOUR_MS, turn.at, EXEMPTION_REQUESTS_PER_HOUR_MAX);
        let why = format!(
            "{EXEMPTION_REQUESTS_PER_HOUR_MAX} exemptions were asked for by you within an hour; the next one can be at {free_at}"
        );
        return Err(Refusal::Denied(why).into());
    }
    tally.slots.count(turn.at);
    turn.state.put(&tally);
    Ok(())
}

/// Decides about a request, or ends what was granted.
pub(super) fn apply_decision<S: State>(
    turn: &mut Turn<'_, S>,
    decide: &DecideExemption,
) -> Result<Reply, Halt> {
    if !allows(turn.by().role, Operation::DecideExemption) {
        let why = format!("role {} does not decide about exemptions", turn.by().role);
        return Err(Refusal::Denied(why).into());
    }
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    let before = lookup::exemption(turn.state, &decide.machine)?;
    let before = before.unwrap_or_else(|| Exemption::none(decide.machine.clone()));
    let (request, after) = match decide.decision {
        ExemptionDecision::Grant { until } => granted(turn, decide, until, before)?,
        ExemptionDecision::Reject => rejected(turn, decide, before)?,
        ExemptionDecision::Revoke => revoked(turn, decide, before)?,
    };
    turn.audit(AuditEvent::ExemptionDecided {
        exemption: request.id,
        machine: decide.machine.clone(),
        asked_by: request.by,
        decision: decide.decision,
    });
    if after == Exemption::none(decide.machine.clone()) {
        turn.state.delete::<Exemption>(&after.key());
    } else {
        turn.state.put(&after);
    }
    requests::remember(turn, Reply::ExemptionDecided)
}

/// What waits and is meant, if `turn`'s person may decide about it.
fn waiting<S: State>(
    turn: &Turn<'_, S>,
    decide: &DecideExemption,
    before: &Exemption,
) -> Result<ExemptionRequest, Halt> {
    let Some(request) = before.request.clone().filter(|request| request.id == decide.exemption) else {
        return Err(gone(decide).into());
    };
    if request.by.person() == turn.by().person() {
        let why = "nobody decides about an exemption that they asked for themselves".to_owned();
        return Err(Refusal::Denied(why).into());
    }
    Ok(request)
}

fn granted<S: State>(
    turn: &Turn<'_, S>,
    decide: &DecideExemption,
    until: Option<Timestamp>,
    before: Exemption,
) -> Result<(ExemptionRequest, Exemption), Halt> {
    let request = waiting(turn, decide, &before)?;
    check_until(turn, until)?;
    let grant = ExemptionGrant { request: request.clone(), by: turn.by().clone(), at: turn.at, until };
    let after =
        Exemption { request: None, grant: Some(grant), rejection: None, ..before.without_grant(turn.at) };
    Ok((request, after))
}

fn rejected<S: State>(
    turn: &Turn<'_, S>,
    decide: &DecideExemption,
    before: Exemption,
) -> Result<(ExemptionRequest, Exemption), Halt> {
    let request = waiting(turn, decide, &before)?;
    let rejection = ExemptionRejection { request: request.clone(), by: turn.by().clone(), at: turn.at };
    Ok((request, Exemption { request: None, rejection: Some(rejection), ..before }))
}

fn revoked<S: State>(
    turn: &Turn<'_, S>,
    decide: &DecideExemption,
    before: Exemption,
) -> Result<(ExemptionRequest, Exemption), Halt> {
    let in_force = before.in_force(turn.at).filter(|grant| grant.request.id == decide.exemption);
    let Some(grant) = in_force.cloned() else { return Err(gone(decide).into()) };
    Ok((grant.request, before.without_grant(turn.at)))
}

fn check_reason(reason: &str) -> Result<&str, Invalid> {
    reveal::check_reason(reason).ok().filter(|reason| is_plain(reason)).ok_or_else(|| {
        let expected = "why the machine need not comply";
        let bounds = format!("1 to {REASON_MAX_BYTES} bytes without control or invisible characters");
        Invalid::new("reason", format!("{expected}, {bounds}"))
    })
}

fn check_until<S: State>(turn: &Turn<'_, S>, until: Option<Timestamp>) -> Result<(), Invalid> {
    match until {
        Some(until) if until <= turn.at => {
            Err(Invalid::new("until", format!("a time after {}, or left out for good", turn.at)))
        }
        _ => Ok(()),
    }
}

fn gone(decide: &DecideExemption) -> Refusal {
    let DecideExemption { machine, exemption, decision } = decide;
    Refusal::NotFound(match decision {
        ExemptionDecision::Revoke => {
            format!(
                "machine {machine} has no exemption {exemption} in force: it ended, or another took its place"
            )
        }
        _ => format!(
            "no exemption {exemption} of machine {machine} waits for a decision: it was decided, or asked for anew"
        ),
    })
}
