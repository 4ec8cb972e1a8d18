//! The policy of reveals, and what a second person decides.

use tonic::{Request, Response, Status};

use crate::escrow::command::{Action, Command, DecideApproval, Reply, SetPolicy};
use crate::escrow::ids::{Invalid, RequestId};
use crate::escrow::journal::{DegradedDecision, Noted};
use crate::escrow::lookup;
use crate::escrow::policy::Operation;
use crate::escrow::policy::document::Policy;
use crate::escrow::records::Approval;
use crate::proto::policy_service_server::PolicyService;
use crate::proto::{
    self, DecideApprovalRequest, DecideApprovalResponse, ListApprovalsRequest, ListApprovalsResponse,
    SetPolicyRequest, SetPolicyResponse, ShowPolicyRequest, ShowPolicyResponse,
};
use crate::raft::NodeError;

use super::escrow::unexpected;
use super::guard::Caller;
use super::{Context, now, status, wire};
use crate::raft::on_own_thread;

#[tonic::async_trait]
impl PolicyService for Context {
    async fn show_policy(
        &self,
        request: Request<ShowPolicyRequest>,
    ) -> Result<Response<ShowPolicyResponse>, Status> {
        self.admit(&request, Operation::ShowPolicy)?;
        let freshness = self.fresh(request.get_ref().consistency).await?;
        let view = self.node.view()?;
        let (record, policy) = (lookup::policy_record(&view)?, lookup::policy(&view)?);
        Ok(Response::new(ShowPolicyResponse {
            version: record.as_ref().map_or(0, |record| record.version),
            // Written anew, so that settings of this release which the record does not know are shown as well.
            policy: policy.to_json(),
            set_at_ms: record.as_ref().map(|record| record.set_at.0),
            set_by: record.map(|record| record.set_by.to_string()).unwrap_or_default(),
            freshness: Some(freshness),
        }))
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        let caller = self.admit(&request, Operation::SetPolicy)?;
        let SetPolicyRequest { request_id, policy, replaces } = request.into_inner();
        let policy = Policy::from_json(&policy)?.to_json();
        let Caller { identity, source } = caller;
        let command = Command {
            request: wire::request_id(&request_id)?,
            at: now(),
            by: identity,
            source,
            action: Action::SetPolicy(SetPolicy { policy, replaces }),
        };
        match self.committed(&command).await? {
            Reply::PolicySet { version } => {
                tracing::info!(version, "the policy is set");
                Ok(Response::new(SetPolicyResponse { version }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn list_approvals(
        &self,
        request: Request<ListApprovalsRequest>,
    ) -> Result<Response<ListApprovalsResponse>, Status> {
        self.admit(&request, Operation::Approve)?;
        let freshness = self.fresh(request.get_ref().consistency).await?;
        let node = self.node.clone();
        let read = move || {
            let view = node.view()?;
            Ok((lookup::policy(&view)?, lookup::approvals(&view, now())?, node.approvals_alone()?))
        };
        let (policy, known, alone) = on_own_thread(read).await?;
        let known = known.into_iter().map(|known| approval(known, &policy, false));
        let alone = alone.into_iter().map(|alone| approval(alone, &policy, true));
        Ok(Response::new(ListApprovalsResponse {
            approvals: known.chain(alone).collect(),
            freshness: Some(freshness),
        }))
    }

    async fn decide_approval(
        &self,
        request: Request<DecideApprovalRequest>,
    ) -> Result<Response<DecideApprovalResponse>, Status> {
        let (caller, denied) = self.admit_or_deny(&request, Operation::Approve)?;
        let asked = decision(&request.into_inner());
        if let Some(denied) = denied {
            if let Ok((request, decide)) = asked {
                self.record_denial(caller, request, Action::DecideApproval(decide)).await;
            }
            return Err(denied);
        }
        let (request, decide) = asked?;
        let DecideApproval { approval: id, granted } = decide;
        let Caller { identity, source } = caller;
        let action = Action::DecideApproval(decide);
        let command = Command { request, at: now(), by: identity, source, action };
        // Asked for first: nothing that is decided here alone may stand in a log as well, where it means nothing.
        let answer = match self.no_quorum().await? {
            None => self.decide_with_quorum(&command).await?,
            Some(no_quorum) if self.node.was_asked_alone(id) => {
                self.decide_at_this_node(&command, no_quorum).await?
            }
            Some(no_quorum) => return Err(no_quorum.into()),
        };
        tracing::info!(approval = %id, granted, "a reveal was decided by a second person");
        Ok(Response::new(answer))
    }
}

impl Context {
    async fn decide_with_quorum(&self, command: &Command) -> Result<DecideApprovalResponse, Status> {
        match self.committed(command).await? {
            Reply::ApprovalDecided => Ok(DecideApprovalResponse {
                freshness: Some(wire::freshness(&self.node, "quorum")),
                ..Default::default()
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Decides about what was asked for at this node without a quorum.
    async fn decide_at_this_node(
        &self,
        command: &Command,
        no_quorum: NodeError,
    ) -> Result<DecideApprovalResponse, Status> {
        let (entry, freshness) = self.decide_without_quorum(command, no_quorum).await?;
        match entry.what {
            Noted::ApprovalDecided(DegradedDecision { denied: Some(refusal), .. }) => {
                Err(status::degraded(refusal))
            }
            Noted::ApprovalDecided(_) => Ok(DecideApprovalResponse {
                freshness: Some(freshness),
                journal: entry.place.journal.to_string(),
                journal_sequence: entry.place.sequence,
            }),
            Noted::ApprovalAsked(_) | Noted::Reveal(_) => {
                Err(Status::internal("a decision was taken for a reveal"))
            }
        }
    }

    /// What is answered to `command`, once it is committed.
    pub(super) async fn committed(&self, command: &Command) -> Result<Reply, Status> {
        match self.node.propose(command).await?.reply {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }
}

fn decision(message: &DecideApprovalRequest) -> Result<(RequestId, DecideApproval), Invalid> {
    let approval = wire::uuid("approval", &message.approval).map(RequestId)?;
    Ok((wire::request_id(&message.request_id)?, DecideApproval { approval, granted: message.granted }))
}

fn approval(approval: Approval, policy: &Policy, degraded: bool) -> proto::Approval {
    let is_granted = policy.grants(&approval);
    let Approval {
        id,
        key_id,
        machine,
        asked_by,
        user,
        reason,
        asked_at,
        expires_at,
        granted_by,
        asked_again: _,
    } = approval;
    proto::Approval {
        id: id.to_string(),
        key_id: key_id.to_string(),
        machine: machine.to_string(),
        asked_by: asked_by.to_string(),
        user: user.map(|user| user.to_string()).unwrap_or_default(),
        reason,
        asked_at_ms: asked_at.0,
        expires_at_ms: expires_at.0,
        granted_by: granted_by.filter(|_| is_granted).map(|by| by.to_string()).unwrap_or_default(),
        degraded,
    }
}
