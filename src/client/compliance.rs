//! Compliance: what a device says, exemptions, and the policy of it.

use uuid::Uuid;

use super::{Client, ClientError, bounded};
use crate::escrow::ids::{MachineId, Timestamp};
use crate::proto;
use crate::proto::compliance_service_client::ComplianceServiceClient;
use crate::request_id::TraceId;

/// What an officer decides about an exemption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It is granted, until a time or for good.
    Grant(Option<Timestamp>),
    /// It is rejected.
    Reject,
    /// What was granted ends now.
    Revoke,
}

impl Client {
    /// Keeps what a device says of itself: a JSON document.
    ///
    /// # Errors
    /// Any [`ClientError`]. After [`ClientError::Unavailable`] it may or may not be kept: doing it again is safe.
    pub async fn put_compliance(&self, document: &str) -> Result<proto::PutComplianceResponse, ClientError> {
        let request = proto::PutComplianceRequest { document: document.to_owned() };
        self.pool
            .call(|channel, budget| {
                let request = request.clone();
                async move { ComplianceServiceClient::new(channel).put(bounded(request, budget)).await }
            })
            .await
    }

    /// What is known of one machine and how it stands, or stood `as_of` a time.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn compliance(
        &self,
        request: &proto::GetComplianceRequest,
    ) -> Result<proto::GetComplianceResponse, ClientError> {
        self.pool
            .call(|channel, budget| {
                let request = request.clone();
                async move { ComplianceServiceClient::new(channel).get(bounded(request, budget)).await }
            })
            .await
    }

    /// Asks that a machine need not be as the policy of compliance wants it. Answers what an officer names to decide it.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn request_exemption(
        &self,
        machine: &MachineId,
        reason: &str,
        until: Option<Timestamp>,
    ) -> Result<String, ClientError> {
        let trace = TraceId::draw();
        let request = proto::RequestExemptionRequest {
            request_id: trace.to_string(),
            machine: machine.to_string(),
            reason: reason.to_owned(),
            until_ms: until.map(|until| until.0),
        };
        let answer =
            self.pool.call_as(trace, |channel, budget| {
                let request = request.clone();
                async move {
                    ComplianceServiceClient::new(channel).request_exemption(bounded(request, budget)).await
                }
            });
        Ok(answer.await?.exemption)
    }

    /// Decides about the exemption of a machine, or ends one.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn decide_exemption(
        &self,
        machine: &MachineId,
        exemption: Uuid,
        decision: Decision,
    ) -> Result<(), ClientError> {
        let trace = TraceId::draw();
        let (decision, until) = match decision {
            Decision::Grant(until) => ("grant", until),
            Decision::Reject => ("reject", None),
            Decision::Revoke => ("revoke", None),
        };
        let request = proto::DecideExemptionRequest {
            request_id: trace.to_string(),
            machine: machine.to_string(),
            exemption: exemption.to_string(),
            decision: decision.to_owned(),
            until_ms: until.map(|until| until.0),
        };
        let answer =
            self.pool.call_as(trace, |channel, budget| {
                let request = request.clone();
                async move {
                    ComplianceServiceClient::new(channel).decide_exemption(bounded(request, budget)).await
                }
            });
        answer.await.map(drop)
    }

    /// Exemptions, by machine.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn exemptions(
        &self,
        request: &proto::ListExemptionsRequest,
    ) -> Result<proto::ListExemptionsResponse, ClientError> {
        self.pool
            .call(|channel, budget| {
                let request = request.clone();
                async move {
                    ComplianceServiceClient::new(channel).list_exemptions(bounded(request, budget)).await
                }
            })
            .await
    }

    /// The policy of compliance that is followed.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn compliance_policy(
        &self,
        consistency: proto::Consistency,
    ) -> Result<proto::ShowCompliancePolicyResponse, ClientError> {
        let request = proto::ShowCompliancePolicyRequest { consistency: consistency.into() };
        self.pool
            .call(|channel, budget| async move {
                ComplianceServiceClient::new(channel).show_compliance_policy(bounded(request, budget)).await
            })
            .await
    }

    /// Replaces version `replaces` of the policy of compliance by the JSON document `policy`, and answers the version it
    /// has now.
    ///
    /// # Errors
    /// Any [`ClientError`]; [`ClientError::Conflict`] if another version is followed.
    pub async fn set_compliance_policy(&self, policy: &str, replaces: u64) -> Result<u64, ClientError> {
        let trace = TraceId::draw();
        let request = proto::SetCompliancePolicyRequest {
            request_id: trace.to_string(),
            policy: policy.to_owned(),
            replaces,
        };
        let answer = self.pool.call_as(trace, |channel, budget| {
            let request = request.clone();
            async move {
                ComplianceServiceClient::new(channel).set_compliance_policy(bounded(request, budget)).await
            }
        });
        Ok(answer.await?.version)
    }
}
