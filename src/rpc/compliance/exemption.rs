//! Exemptions over the wire.

use tonic::{Request, Status};

use super::{Context, unexpected};
use crate::escrow::command::{Action, DecideExemption, Reply, RequestExemption};
use crate::escrow::compliance::{Exemption, ExemptionDecision, ExemptionRequest};
use crate::escrow::ids::{Invalid, MachineId, RequestId, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::Operation;
use crate::escrow::state::Rows;
use crate::proto::{
    self, DecideExemptionRequest, DecideExemptionResponse, ListExemptionsRequest, ListExemptionsResponse,
    RequestExemptionRequest, RequestExemptionResponse,
};
use crate::raft::NodeError;
use crate::raft::on_own_thread;
use crate::rpc::{now, wire};

/// How many exemptions are listed if no limit is given, and at most.
const LIMIT_DEFAULT: usize = 100;
const LIMIT_MAX: usize = 1_000;
/// Most rows looked at for one listing, and at a time.
const ROWS_MAX: usize = 10_000;
const PAGE: usize = 256;

impl Context {
    pub(super) async fn request_exemption(
        &self,
        request: Request<RequestExemptionRequest>,
    ) -> Result<RequestExemptionResponse, Status> {
        let caller = self.admit(&request, Operation::RequestExemption)?;
        let RequestExemptionRequest { request_id, machine, reason, until_ms } = request.into_inner();
        let machine: MachineId = machine.parse().map_err(|error: Invalid| Status::from(error))?;
        let until = until_ms.map(Timestamp);
        let action = Action::RequestExemption(RequestExemption { machine, reason, until });
        match self.decided(&request_id, caller, action).await? {
            Reply::ExemptionRequested { exemption } => {
                Ok(RequestExemptionResponse { exemption: exemption.to_string() })
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn decide_exemption(
        &self,
        request: Request<DecideExemptionRequest>,
    ) -> Result<DecideExemptionResponse, Status> {
        let caller = self.admit(&request, Operation::DecideExemption)?;
        let DecideExemptionRequest { request_id, machine, exemption, decision, until_ms } =
            request.into_inner();
        let machine: MachineId = machine.parse().map_err(|error: Invalid| Status::from(error))?;
        let exemption = wire::uuid("exemption", &exemption).map(RequestId)?;
        let decision = read_decision(&decision, until_ms.map(Timestamp))?;
        let action = Action::DecideExemption(DecideExemption { machine, exemption, decision });
        match self.decided(&request_id, caller, action).await? {
            Reply::ExemptionDecided => {
                tracing::info!(%exemption, decision = decision.as_str(), "an exemption was decided");
                Ok(DecideExemptionResponse {})
            }
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn list_exemptions(
        &self,
        request: Request<ListExemptionsRequest>,
    ) -> Result<ListExemptionsResponse, Status> {
        self.admit(&request, Operation::ReadCompliance)?;
        let ListExemptionsRequest { waiting, after, limit, consistency, machine } = request.into_inner();
        let limit = match usize::try_from(limit).unwrap_or(usize::MAX) {
            0 => LIMIT_DEFAULT,
            limit if limit <= LIMIT_MAX => limit,
            _ => return Err(Invalid::new("limit", format!("at most {LIMIT_MAX}")).into()),
        };
        let after: Option<MachineId> = wire::optional(&after, str::parse)?;
        let freshness = self.fresh(consistency).await?;
        let (node, at) = (self.node.clone(), now());
        let machine: Option<MachineId> = wire::optional(&machine, str::parse)?;
        let listed = on_own_thread(move || {
            let view = node.view()?;
            let Some(machine) = machine else { return list(&view, after, waiting, limit, at) };
            let exemption = lookup::exemption(&view, &machine)?;
            Ok((exemption.map(|exemption| shown(&exemption, waiting, at)).unwrap_or_default(), None))
        });
        let (exemptions, next) = listed.await?;
        let next = next.map(|machine| machine.to_string()).unwrap_or_default();
        Ok(ListExemptionsResponse { exemptions, next, freshness: Some(freshness) })
    }
}

fn read_decision(decision: &str, until: Option<Timestamp>) -> Result<ExemptionDecision, Invalid> {
    match (decision, until) {
        ("grant", until) => Ok(ExemptionDecision::Grant { until }),
        ("reject", None) => Ok(ExemptionDecision::Reject),
        ("revoke", None) => Ok(ExemptionDecision::Revoke),
        ("reject" | "revoke", Some(_)) => Err(Invalid::new("until", "left out: only a grant has an end")),
        _ => Err(Invalid::new("decision", "one of grant, reject, revoke")),
    }
}

/// About `limit` exemptions of machines behind `after`, and where to go on if there is more.
fn list<S: Rows>(
    rows: &S,
    mut after: Option<MachineId>,
    waiting: bool,
    limit: usize,
    at: Timestamp,
) -> Result<(Vec<proto::Exemption>, Option<MachineId>), NodeError> {
    let mut listed = Vec::new();
    let mut looked_at = 0;
    loop {
        let behind = after.as_ref().map(MachineId::row_key);
        let page: Vec<Exemption> = rows.rows(&[], behind.as_deref(), PAGE)?;
        let is_last = page.len() < PAGE;
        for exemption in page {
            if listed.len() >= limit || looked_at == ROWS_MAX {
                return Ok((listed, after));
            }
            looked_at += 1;
            listed.extend(shown(&exemption, waiting, at));
            after = Some(exemption.machine);
        }
        if is_last {
            return Ok((listed, None));
        }
    }
}

/// What there is of an exemption: what waits for a decision, what was granted, and what was rejected last.
fn shown(exemption: &Exemption, waiting: bool, at: Timestamp) -> Vec<proto::Exemption> {
    let Exemption { machine, request, grant, rejection, .. } = exemption;
    let of = |request: &ExemptionRequest, state: &str, until: Option<Timestamp>| proto::Exemption {
        machine: machine.to_string(),
        state: state.to_owned(),
        exemption: request.id.to_string(),
        reason: request.reason.clone(),
        asked_by: request.by.to_string(),
        asked_at_ms: request.at.0,
        until_ms: until.map(|until| until.0),
        ..Default::default()
    };
    let mut shown: Vec<_> = request.iter().map(|request| of(request, "requested", request.until)).collect();
    if waiting {
        return shown;
    }
    shown.extend(grant.iter().map(|grant| {
        let state = if exemption.in_force(at).is_some() { "granted" } else { "ended" };
        let (decided_by, decided_at_ms) = (grant.by.to_string(), Some(grant.at.0));
        proto::Exemption { decided_by, decided_at_ms, ..of(&grant.request, state, grant.until) }
    }));
    shown.extend(rejection.iter().map(|rejection| {
        let (decided_by, decided_at_ms) = (rejection.by.to_string(), Some(rejection.at.0));
        let asked = of(&rejection.request, "rejected", rejection.request.until);
        proto::Exemption { decided_by, decided_at_ms, ..asked }
    }));
    shown
}
