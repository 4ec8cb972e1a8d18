//! Noting the machines that an importer knows of: one message, one entry; each of them is answered by itself.

use tonic::{Request, Status};
use uuid::Uuid;

use super::escrow::unexpected;
use super::guard::Caller;
use super::{Context, now, status};
use crate::escrow::apply::MACHINES_PER_ENTRY_MAX;
use crate::escrow::command::{Action, Command, ImportOutcome, Reply};
use crate::escrow::compliance::facts::USERS_MAX;
use crate::escrow::compliance::words::MachineType;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Invalid, RequestId};
use crate::escrow::inventory::{Description, ImportedMachine};
use crate::escrow::policy::Operation;
use crate::proto::{self, ImportMachinesRequest, ImportMachinesResponse, MachineAnswer};
use crate::raft::Committed;

impl Context {
    pub(super) async fn note_machines(
        &self,
        request: Request<ImportMachinesRequest>,
    ) -> Result<ImportMachinesResponse, Status> {
        let caller = self.admit(&request, Operation::EscrowMany)?;
        self.require_level(FeatureLevel::BULK).await?;
        let machines = request.into_inner().machines;
        if !(1..=MACHINES_PER_ENTRY_MAX).contains(&machines.len()) {
            let expected = format!("1 to {MACHINES_PER_ENTRY_MAX} in one message, not {}", machines.len());
            return Err(Invalid::new("machines", expected).into());
        }
        let mut answers: Vec<Option<MachineAnswer>> = vec![None; machines.len()];
        let (mut places, mut well_formed) = (Vec::new(), Vec::new());
        for (place, machine) in machines.into_iter().enumerate() {
            match read(machine) {
                Ok(machine) => {
                    places.push(place);
                    well_formed.push(machine);
                }
                Err(invalid) => answers[place] = Some(refused(&invalid.into())),
            }
        }
        let mut index = 0;
        if !well_formed.is_empty() {
            let (entry, outcomes) = self.propose_machines(&caller, well_formed).await?;
            index = entry;
            for (place, outcome) in places.into_iter().zip(outcomes) {
                answers[place] = Some(answer(outcome));
            }
        }
        let answers: Option<Vec<_>> = answers.into_iter().collect();
        let answers = answers.ok_or_else(|| unexpected(&Reply::MachinesImported(Vec::new())))?;
        Ok(ImportMachinesResponse { answers, index })
    }

    async fn propose_machines(
        &self,
        caller: &Caller,
        machines: Vec<ImportedMachine>,
    ) -> Result<(u64, Vec<ImportOutcome>), Status> {
        let command = Command {
            // What is kept answers for itself: nothing is remembered by request.
            request: RequestId(Uuid::new_v4()),
            at: now(),
            by: caller.identity.clone(),
            source: caller.source.clone(),
            action: Action::ImportMachines(machines),
        };
        let Committed { position, reply } = self.node.propose(&command).await?;
        match reply {
            Reply::MachinesImported(outcomes) => {
                let (by, index, machines) = (&caller.identity, position.index, outcomes.len());
                tracing::debug!(%by, index, machines, "machines were imported");
                Ok((position.index, outcomes))
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(unexpected(&other)),
        }
    }
}

fn read(message: proto::ImportedMachine) -> Result<ImportedMachine, Invalid> {
    let proto::ImportedMachine { machine, domain, name, make, model, r#type, os, users } = message;
    if users.len() > USERS_MAX {
        return Err(Invalid::new("users", format!("at most {USERS_MAX} entries, not {}", users.len())));
    }
    let machine_type = if r#type.is_empty() { MachineType::Unknown } else { r#type.parse()? };
    let imported = ImportedMachine {
        machine: machine.parse()?,
        description: Description { domain, name, make, model, machine_type, os },
        users: users.iter().map(|user| user.parse()).collect::<Result<_, _>>()?,
    };
    imported.check()?;
    Ok(imported)
}

fn answer(outcome: ImportOutcome) -> MachineAnswer {
    match outcome {
        ImportOutcome::Noted => MachineAnswer::default(),
        ImportOutcome::KnownBefore => MachineAnswer { known_before: true, refused: None },
        ImportOutcome::Refused(refusal) => refused(&refusal.into()),
    }
}

fn refused(status: &Status) -> MachineAnswer {
    MachineAnswer { known_before: false, refused: Some(status::refused(status)) }
}
