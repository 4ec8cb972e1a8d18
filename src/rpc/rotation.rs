//! Rotation, as a device meets it: what it owes, and its word that it uses another key now.

use tonic::{Request, Status};

use crate::escrow::command::{Action, Command, ConfirmKey, Reply};
use crate::escrow::ids::{Invalid, KeyId, MachineId};
use crate::escrow::policy::{self, Operation};
use crate::escrow::{lookup, rotation};
use crate::proto::{ConfirmKeyRequest, ConfirmKeyResponse, RotationKey, RotationRequest, RotationResponse};
use crate::raft::NodeError;

use super::escrow::unexpected;
use super::guard::Caller;
use super::{Context, now, wire};
use crate::raft::on_own_thread;

impl Context {
    /// What a machine owes, as this replica knows. Without a quorum too: a device that hears of its debt late is worse off
    /// than one that hears of a debt it has just settled.
    pub(super) async fn standing(
        &self,
        request: Request<RotationRequest>,
    ) -> Result<RotationResponse, Status> {
        let caller = self.admit(&request, Operation::Escrow)?;
        let RotationRequest { machine, min_index } = request.into_inner();
        let machine = own_machine(&caller, &machine)?;
        self.node.wait_applied(min_index).await?;
        self.node.cluster()?.ok_or(NodeError::NoCluster)?;
        // Taken before the rows are read: what is said is at least as fresh as it says.
        let freshness = wire::freshness(&self.node, "local");
        let node = self.node.clone();
        let standing = on_own_thread(move || {
            let view = node.view()?;
            let Some(machine) = lookup::machine(&view, &machine)? else { return Ok(None) };
            Ok(Some(rotation::standing(&view, &machine)?))
        })
        .await?;
        let (owed_since, keys) =
            standing.map_or((None, Vec::new()), |standing| (standing.owed_since, standing.keys));
        let keys = keys.into_iter().map(|(key, owes_since)| RotationKey {
            key_id: key.id.to_string(),
            volume: key.volume.to_string(),
            kind: key.kind.to_string(),
            state: key.state.to_string(),
            escrowed_at_ms: key.escrowed_at.0,
            owes_since_ms: owes_since.map(|since| since.0),
        });
        Ok(RotationResponse {
            owed_since_ms: owed_since.map(|since| since.0),
            keys: keys.collect(),
            freshness: Some(freshness),
        })
    }

    /// Puts it on record that a device uses a key.
    pub(super) async fn confirm(
        &self,
        request: Request<ConfirmKeyRequest>,
    ) -> Result<ConfirmKeyResponse, Status> {
        let caller = self.admit(&request, Operation::Escrow)?;
        let ConfirmKeyRequest { request_id, machine, key_id } = request.into_inner();
        let confirm = ConfirmKey { machine: own_machine(&caller, &machine)?, key_id: parse_key_id(&key_id)? };
        let command = Command {
            request: wire::request_id(&request_id)?,
            at: now(),
            by: caller.identity,
            source: caller.source,
            action: Action::ConfirmKey(confirm),
        };
        let committed = self.node.propose(&command).await?;
        match committed.reply {
            Reply::KeyConfirmed(confirmed) => {
                let (key_id, replaced) = (confirmed.key_id, confirmed.replaced.len());
                tracing::info!(%key_id, replaced, "a device confirmed its key");
                Ok(ConfirmKeyResponse {
                    key_id: key_id.to_string(),
                    state: confirmed.state.to_string(),
                    replaced: confirmed.replaced.iter().map(ToString::to_string).collect(),
                    owed_since_ms: confirmed.rotation_owed_since.map(|since| since.0),
                    index: committed.position.index,
                })
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(unexpected(&other)),
        }
    }
}

fn parse_key_id(text: &str) -> Result<KeyId, Invalid> {
    text.parse()
}

/// The machine that is asked about, if the caller may speak for it.
fn own_machine(caller: &Caller, machine: &str) -> Result<MachineId, Status> {
    let machine: MachineId = machine.parse()?;
    if policy::may_escrow(&caller.identity, &machine) {
        return Ok(machine);
    }
    let (role, name) = (caller.identity.role, &caller.identity.name);
    Err(Status::permission_denied(format!("{role} {name} may not speak for machine {machine}")))
}
