//! Exemptions from the policy of compliance: asked for, granted, rejected, ended. Each step is on record.

use super::{Halt, REASON_MAX_BYTES, Turn, requests, reveal};
use crate::escrow::command::{DecideExemption, Refusal, Reply, RequestExemption};
use crate::escrow::compliance::{
    Exemption, ExemptionDecision, ExemptionGrant, ExemptionRejection, ExemptionRequest,
};
use crate::escrow::ids::{Invalid, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::AuditEvent;
use crate::escrow::state::{Row, State};

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
        ExemptionDecision::Revoke => revoked(turn, decide, before)?,
        ExemptionDecision::Grant { .. } | ExemptionDecision::Reject => decided(turn, decide, before)?,
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

fn decided<S: State>(
    turn: &Turn<'_, S>,
    decide: &DecideExemption,
    before: Exemption,
) -> Result<(ExemptionRequest, Exemption), Halt> {
    let Some(request) = before.request.clone().filter(|request| request.id == decide.exemption) else {
        return Err(gone(decide).into());
    };
    if request.by.person() == turn.by().person() {
        let why = "nobody decides about an exemption that they asked for themselves".to_owned();
        return Err(Refusal::Denied(why).into());
    }
    let (by, at) = (turn.by().clone(), turn.at);
    let after = match decide.decision {
        ExemptionDecision::Grant { until } => {
            check_until(turn, until)?;
            let grant = ExemptionGrant { request: request.clone(), by, at, until };
            Exemption { request: None, grant: Some(grant), rejection: None, ..before.without_grant(turn.at) }
        }
        ExemptionDecision::Reject | ExemptionDecision::Revoke => {
            let rejection = ExemptionRejection { request: request.clone(), by, at };
            Exemption { request: None, rejection: Some(rejection), ..before }
        }
    };
    Ok((request, after))
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
    let expected = "why the machine need not comply";
    reveal::check_reason(reason).map_err(|_| {
        Invalid::new(
            "reason",
            format!("{expected}, 1 to {REASON_MAX_BYTES} bytes without control characters"),
        )
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
