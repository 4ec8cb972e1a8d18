//! Rotation: what a device asks and says.

use super::{Client, ClientError, bounded};
use crate::escrow::ids::{KeyId, MachineId};
use crate::proto;
use crate::proto::escrow_service_client::EscrowServiceClient;
use crate::request_id::TraceId;

impl Client {
    /// Whether `machine` owes a rotation, as the node that answers knows, once it has applied `min_index`.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn rotation(
        &self,
        machine: &MachineId,
        min_index: u64,
    ) -> Result<proto::RotationResponse, ClientError> {
        let request = proto::RotationRequest { machine: machine.to_string(), min_index };
        self.pool
            .call(|channel, budget| {
                let request = request.clone();
                async move { EscrowServiceClient::new(channel).rotation(bounded(request, budget)).await }
            })
            .await
    }

    /// Says that a volume of `machine` is opened by this key now and by no older one of its kind.
    ///
    /// # Errors
    /// Any [`ClientError`]. After [`ClientError::Unavailable`] it may or may not be on record: saying it again is safe.
    pub async fn confirm_key(
        &self,
        machine: &MachineId,
        key_id: KeyId,
    ) -> Result<proto::ConfirmKeyResponse, ClientError> {
        let trace = TraceId::draw();
        let request = proto::ConfirmKeyRequest {
            request_id: trace.to_string(),
            machine: machine.to_string(),
            key_id: key_id.to_string(),
        };
        self.pool
            .call_as(trace, |channel, budget| {
                let request = request.clone();
                async move { EscrowServiceClient::new(channel).confirm_key(bounded(request, budget)).await }
            })
            .await
    }
}
