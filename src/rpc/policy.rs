//! The policy of reveals, and what a second person decides.

use tonic::{Request, Response, Status};

use crate::escrow::command::{Action, Command, DecideApproval, Reply, SetPolicy};
use crate::escrow::ids::RequestId;
use crate::escrow::lookup;
use crate::escrow::policy::Operation;
use crate::escrow::policy::document::Policy;
use crate::escrow::records::Approval;
use crate::proto::policy_service_server::PolicyService;
use crate::proto::{
    self, DecideApprovalRequest, DecideApprovalResponse, ListApprovalsRequest, ListApprovalsResponse,
    SetPolicyRequest, SetPolicyResponse, ShowPolicyRequest, ShowPolicyResponse,
};

use super::escrow::unexpected;
use super::guard::Caller;
use super::{Context, now, wire};

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
        let action = Action::SetPolicy(SetPolicy { policy, replaces });
        match self.decided(&request_id, caller, action).await? {
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
        let approvals = lookup::approvals(&self.node.view()?, now())?;
        Ok(Response::new(ListApprovalsResponse {
            approvals: approvals.into_iter().map(approval).collect(),
            freshness: Some(freshness),
        }))
    }

    async fn decide_approval(
        &self,
        request: Request<DecideApprovalRequest>,
    ) -> Result<Response<DecideApprovalResponse>, Status> {
        let caller = self.admit(&request, Operation::Approve)?;
        let DecideApprovalRequest { request_id, approval, granted } = request.into_inner();
        let id = wire::uuid("approval", &approval).map(RequestId)?;
        // It may have been asked for at another node a moment ago.
        self.fresh(proto::Consistency::Quorum.into()).await?;
        let asked = lookup::approvals(&self.node.view()?, now())?;
        let asked = asked.into_iter().find(|asked| asked.id == id).ok_or_else(|| {
            Status::not_found(format!(
                "no reveal {id} waits for approval: it was decided, used, asked for anew, or has expired"
            ))
        })?;
        let action = Action::DecideApproval(DecideApproval {
            key_id: asked.key_id,
            person: asked.asked_by.person(),
            approval: id,
            granted,
        });
        match self.decided(&request_id, caller, action).await? {
            Reply::ApprovalDecided => {
                tracing::info!(approval = %id, granted, "a reveal was decided by a second person");
                Ok(Response::new(DecideApprovalResponse {}))
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Context {
    /// Commits what `caller` decides.
    pub(super) async fn decided(
        &self,
        request_id: &str,
        caller: Caller,
        action: Action,
    ) -> Result<Reply, Status> {
        let Caller { identity, source } = caller;
        let request = wire::request_id(request_id)?;
        let command = Command { request, at: now(), by: identity, source, action };
        match self.node.propose(&command).await?.reply {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }
}

fn approval(approval: Approval) -> proto::Approval {
    let Approval { id, key_id, machine, asked_by, user, reason, asked_at, expires_at, granted_by } = approval;
    proto::Approval {
        id: id.to_string(),
        key_id: key_id.to_string(),
        machine: machine.to_string(),
        asked_by: asked_by.to_string(),
        user: user.map(|user| user.to_string()).unwrap_or_default(),
        reason,
        asked_at_ms: asked_at.0,
        expires_at_ms: expires_at.0,
        granted_by: granted_by.map(|by| by.to_string()).unwrap_or_default(),
    }
}
