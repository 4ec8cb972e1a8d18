//! Compliance over the wire: what devices say, exemptions, the policy of it, and reports.

mod exemption;
mod upload;

use tonic::{Request, Response, Status, Streaming};

use super::escrow::unexpected;
use super::guard::Caller;
use super::report::{REPORTS_MAX, columns, names_users, without_repeats};
use super::serving::{Answers, Places};
use super::{Context, now, wire};
use crate::escrow::command::{Action, Command, Reply, SetCompliancePolicy};
use crate::escrow::compliance::{CompliancePolicy, Stood};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Invalid, MachineId, Role, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::Operation;
use crate::escrow::reports::{Bundle, ReportKind};
use crate::proto::compliance_service_server::ComplianceService;
use crate::proto::{
    DecideExemptionRequest, DecideExemptionResponse, GetComplianceRequest, GetComplianceResponse,
    ListExemptionsRequest, ListExemptionsResponse, PutComplianceRequest, PutComplianceResponse,
    PutManyRequest, PutManyResponse, ReportChunk, ReportRequest, RequestExemptionRequest,
    RequestExemptionResponse, SetCompliancePolicyRequest, SetCompliancePolicyResponse,
    ShowCompliancePolicyRequest, ShowCompliancePolicyResponse,
};
use crate::raft::on_own_thread;

/// Most streams of uploads that a node takes at once. Each has a few entries of the log under way.
pub const UPLOADERS_MAX: usize = 16;

/// The compliance service of one node. Clones share its places.
#[derive(Clone)]
pub struct ComplianceDesk {
    context: Context,
    reports: Places,
    uploaders: Places,
}

impl ComplianceDesk {
    /// With room for [`UPLOADERS_MAX`] streams and [`REPORTS_MAX`] reports.
    pub fn new(context: Context) -> Self {
        let reports = Places::new("reports", REPORTS_MAX);
        Self { context, reports, uploaders: Places::new("streams of uploads", UPLOADERS_MAX) }
    }
}

#[tonic::async_trait]
impl ComplianceService for ComplianceDesk {
    type PutManyStream = Answers<PutManyResponse>;
    type ReportStream = Answers<ReportChunk>;

    async fn put(
        &self,
        request: Request<PutComplianceRequest>,
    ) -> Result<Response<PutComplianceResponse>, Status> {
        let caller = self.context.admit(&request, Operation::ReportCompliance)?;
        self.context.require_level(FeatureLevel::COMPLIANCE).await?;
        let kept = self.context.keep_one(&caller, request.into_inner());
        self.context.unless_removed(kept).await.map(Response::new)
    }

    async fn put_many(
        &self,
        request: Request<Streaming<PutManyRequest>>,
    ) -> Result<Response<Self::PutManyStream>, Status> {
        self.context.upload(&self.uploaders, request).await.map(Response::new)
    }

    async fn get(
        &self,
        request: Request<GetComplianceRequest>,
    ) -> Result<Response<GetComplianceResponse>, Status> {
        let caller = self.context.admit(&request, Operation::ReadCompliance)?;
        let known = self.context.known(caller.identity.role, request.into_inner());
        self.context.unless_removed(known).await.map(Response::new)
    }

    async fn request_exemption(
        &self,
        request: Request<RequestExemptionRequest>,
    ) -> Result<Response<RequestExemptionResponse>, Status> {
        self.context.request_exemption(request).await.map(Response::new)
    }

    async fn decide_exemption(
        &self,
        request: Request<DecideExemptionRequest>,
    ) -> Result<Response<DecideExemptionResponse>, Status> {
        self.context.decide_exemption(request).await.map(Response::new)
    }

    async fn list_exemptions(
        &self,
        request: Request<ListExemptionsRequest>,
    ) -> Result<Response<ListExemptionsResponse>, Status> {
        self.context.list_exemptions(request).await.map(Response::new)
    }

    async fn show_compliance_policy(
        &self,
        request: Request<ShowCompliancePolicyRequest>,
    ) -> Result<Response<ShowCompliancePolicyResponse>, Status> {
        self.context.admit(&request, Operation::ReadCompliance)?;
        let freshness = self.context.fresh(request.get_ref().consistency).await?;
        let node = self.context.node.clone();
        let (record, policy) = on_own_thread(move || {
            let view = node.view()?;
            Ok((lookup::compliance_policy_record(&view)?, lookup::compliance_policy(&view)?))
        })
        .await?;
        Ok(Response::new(ShowCompliancePolicyResponse {
            version: record.as_ref().map_or(0, |record| record.version),
            // Written anew, so that settings of this release which the record does not know are shown as well.
            policy: policy.to_json(),
            set_at_ms: record.as_ref().map(|record| record.set_at.0),
            set_by: record.map(|record| record.set_by.to_string()).unwrap_or_default(),
            freshness: Some(freshness),
        }))
    }

    async fn set_compliance_policy(
        &self,
        request: Request<SetCompliancePolicyRequest>,
    ) -> Result<Response<SetCompliancePolicyResponse>, Status> {
        let caller = self.context.admit(&request, Operation::SetCompliancePolicy)?;
        let SetCompliancePolicyRequest { request_id, policy, replaces } = request.into_inner();
        let policy = CompliancePolicy::from_json(&policy)?.to_json();
        let action = Action::SetCompliancePolicy(SetCompliancePolicy { policy, replaces });
        match self.context.decided(&request_id, caller, action).await? {
            Reply::CompliancePolicySet { version } => {
                tracing::info!(version, "the policy of compliance is set");
                Ok(Response::new(SetCompliancePolicyResponse { version }))
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<Self::ReportStream>, Status> {
        self.context.begin_report(&self.reports, request).await.map(Response::new)
    }
}

impl Context {
    /// Commits what `caller` decides.
    async fn decided(&self, request_id: &str, caller: Caller, action: Action) -> Result<Reply, Status> {
        let Caller { identity, source } = caller;
        let request = wire::request_id(request_id)?;
        self.require_level(FeatureLevel::COMPLIANCE).await?;
        self.committed(&Command { request, at: now(), by: identity, source, action }).await
    }

    async fn known(
        &self,
        role: Role,
        request: GetComplianceRequest,
    ) -> Result<GetComplianceResponse, Status> {
        let machine: MachineId = request.machine.parse().map_err(|error: Invalid| Status::from(error))?;
        let as_of = request.as_of_ms.map(Timestamp);
        self.node.wait_applied(request.min_index).await?;
        let freshness = self.fresh(request.consistency).await?;
        let computer = self.computer(machine, as_of, names_users(role)).await?;
        let Bundle { changes, contact, compliance, .. } = &*computer.bundle;
        let (record, contact) = (compliance.as_ref(), contact.as_ref());
        // Of the past, what is known is the state: the document is the newest.
        let stood = match as_of {
            Some(at) => Stood::then(changes, contact, at),
            None => Stood::now(record, contact),
        };
        Ok(GetComplianceResponse {
            document: record.map(|record| record.report.to_json()).unwrap_or_default(),
            at_ms: record.map(|record| record.at.0),
            state_since_ms: stood.since.map(|since| since.0),
            clock_ahead: record.is_some_and(|record| record.clock_ahead()),
            columns: columns(ReportKind::Computer),
            rows: without_repeats(computer.rows),
            freshness: Some(freshness),
        })
    }
}
