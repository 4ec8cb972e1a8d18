//! Keeping keys. Plaintext never leaves the node that received it: what is forwarded and replicated is sealed here.

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status, Streaming};
use uuid::Uuid;

use crate::escrow::command::{Action, Command, Escrow, Escrowed, Reply};
use crate::escrow::ids::KeyId;
use crate::escrow::policy::{self, Operation};
use crate::escrow::records::KEYS_LEFT_WARNING;
use crate::metrics::EscrowOutcome;
use crate::proto::escrow_service_server::EscrowService;
use crate::proto::{
    ConfirmKeyRequest, ConfirmKeyResponse, EscrowManyRequest, EscrowManyResponse, EscrowRequest,
    EscrowResponse, ImportMachinesRequest, ImportMachinesResponse, RotationRequest, RotationResponse,
};
use crate::raft::leader::PROPOSE_TIMEOUT;
use crate::raft::{Committed, NodeError};
use crate::seal::receipt::Receipt;
use crate::seal::{Keyring, Part, SealContext};

use super::guard::Caller;
use super::serving::Answers;
use super::{Context, now, wire};

/// How often one secret is sealed: twice if the data key was rotated meanwhile, and it is not rotated all the time.
pub(super) const SEALINGS_MAX: usize = 4;

#[tonic::async_trait]
impl EscrowService for Context {
    type EscrowManyStream = Answers<EscrowManyResponse>;

    async fn escrow(&self, request: Request<EscrowRequest>) -> Result<Response<EscrowResponse>, Status> {
        let answer = self.unless_removed(self.keep(request)).await;
        self.node.options().metrics.escrows.count(outcome(&answer));
        answer.map(|receipt| Response::new(EscrowResponse { receipt: Some(receipt) }))
    }

    async fn rotation(
        &self,
        request: Request<RotationRequest>,
    ) -> Result<Response<RotationResponse>, Status> {
        self.standing(request).await.map(Response::new)
    }

    async fn confirm_key(
        &self,
        request: Request<ConfirmKeyRequest>,
    ) -> Result<Response<ConfirmKeyResponse>, Status> {
        self.confirm(request).await.map(Response::new)
    }

    async fn escrow_many(
        &self,
        request: Request<Streaming<EscrowManyRequest>>,
    ) -> Result<Response<Self::EscrowManyStream>, Status> {
        self.import(request).await.map(Response::new)
    }

    async fn import_machines(
        &self,
        request: Request<ImportMachinesRequest>,
    ) -> Result<Response<ImportMachinesResponse>, Status> {
        self.unless_removed(self.note_machines(request)).await.map(Response::new)
    }
}

/// What the caller is told, as it is counted.
fn outcome(answer: &Result<crate::proto::Receipt, Status>) -> EscrowOutcome {
    match answer {
        Ok(receipt) if receipt.already_escrowed => EscrowOutcome::AlreadyKept,
        Ok(_) => EscrowOutcome::Kept,
        Err(status) => failed_as(status.code()),
    }
}

/// A refusal or failure, as it is counted.
pub(super) fn failed_as(code: Code) -> EscrowOutcome {
    match code {
        Code::AlreadyExists => EscrowOutcome::Conflict,
        Code::InvalidArgument => EscrowOutcome::Invalid,
        Code::PermissionDenied | Code::Unauthenticated => EscrowOutcome::Denied,
        Code::ResourceExhausted | Code::Unavailable => EscrowOutcome::Unavailable,
        _ => EscrowOutcome::Failed,
    }
}

impl Context {
    async fn keep(&self, request: Request<EscrowRequest>) -> Result<crate::proto::Receipt, Status> {
        let caller = self.admit(&request, Operation::Escrow)?;
        let wanted = wire::EscrowRequest::try_from(request.into_inner())?;
        if !policy::may_escrow(&caller.identity, &wanted.machine) {
            return Err(Status::permission_denied(format!(
                "{} {} may not escrow for {}",
                caller.identity.role, caller.identity.name, wanted.machine
            )));
        }
        match self.propose_sealed(&wanted, &caller).await? {
            Reply::Escrowed(escrowed) => {
                let (key_id, index, already) =
                    (escrowed.key_id, escrowed.position.index, escrowed.already_escrowed);
                tracing::debug!(%key_id, index, already, "escrowed");
                // In time: a machine that can keep no more keys can rotate no more.
                if let Some(left) = escrowed.keys_left.filter(|left| *left <= KEYS_LEFT_WARNING) {
                    tracing::warn!(machine = %escrowed.machine, left, "few more keys of this machine can be kept");
                }
                self.receipt(escrowed)
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(unexpected(&other)),
        }
    }

    /// Seals and proposes; seals anew if the data key was rotated since this replica's keyring. All of it takes no
    /// longer than one proposal may, so that the caller hears of it.
    async fn propose_sealed(
        &self,
        wanted: &wire::EscrowRequest,
        caller: &Caller,
    ) -> Result<Reply, NodeError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let key_id = wanted.key_id.unwrap_or_else(|| KeyId(Uuid::new_v4()));
        for _ in 0..SEALINGS_MAX {
            let keyring = self.node.keyring()?;
            let escrow = seal(&keyring, wanted, key_id)?;
            let command = Command {
                request: wanted.request,
                at: now(),
                by: caller.identity.clone(),
                source: caller.source.clone(),
                action: if wanted.pending { Action::EscrowPending(escrow) } else { Action::Escrow(escrow) },
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let Committed { position, reply } = self.node.propose_within(&command, left).await?;
            let Reply::OldDataKey { current } = reply else { return Ok(reply) };
            self.node.options().metrics.sealed_again.inc();
            tracing::debug!(index = position.index, current, "sealed with an old data key: sealing again");
            // The keyring that was current there, or a newer one, is in this replica once it has applied that entry.
            let behind = || NodeError::Behind { applied: self.node.applied(), wanted: position.index };
            let caught_up = timeout_at(deadline, self.node.wait_applied(position.index)).await;
            caught_up.unwrap_or_else(|_| Err(behind()))?;
        }
        Err(NodeError::Overloaded {
            what: "rotations of the data key during one escrow",
            limit: SEALINGS_MAX,
        })
    }

    fn receipt(&self, escrowed: Escrowed) -> Result<crate::proto::Receipt, Status> {
        let cluster = self.node.cluster()?.ok_or(NodeError::NoCluster)?;
        let receipt = Receipt::sign(&escrowed, cluster.id, &self.tls).map_err(|error| {
            Status::internal(format!("signing the receipt: {}", crate::error::chain(&error)))
        })?;
        Ok(wire::receipt(receipt))
    }
}

/// What is kept of `wanted`: nothing in it can be read without the keyring.
pub(super) fn seal(
    keyring: &Keyring,
    wanted: &wire::EscrowRequest,
    key_id: KeyId,
) -> Result<Escrow, NodeError> {
    let context = |part| SealContext {
        machine: &wanted.machine,
        volume: &wanted.volume,
        key_id,
        kind: wanted.kind,
        part,
    };
    let sealed = keyring.seal(&context(Part::Secret), &wanted.secret)?;
    let sealed_package = match &wanted.package {
        Some(package) => Some(keyring.seal(&context(Part::Package), package)?),
        None => None,
    };
    let fingerprint = keyring.fingerprint(&wanted.secret);
    Ok(Escrow {
        key_id,
        key_id_given: wanted.key_id.is_some(),
        machine: wanted.machine.clone(),
        volume: wanted.volume.clone(),
        kind: wanted.kind,
        sealed,
        sealed_package,
        fingerprint,
        user: wanted.user.clone(),
    })
}

/// An answer of apply that does not belong to the command: a fault of ours.
pub(super) fn unexpected(reply: &Reply) -> Status {
    tracing::error!(?reply, "an answer that does not belong to its command");
    Status::internal("the cluster gave an answer that does not belong to the request")
}
