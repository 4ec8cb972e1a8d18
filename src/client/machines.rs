//! Noting many machines: some of them in a message, some messages under way at once. One that goes unanswered at a node is
//! sent to another by itself, which is safe: a machine that is known already is answered so.

use futures_util::stream::{Stream, StreamExt as _};

use super::{BulkRefused, Client, ClientError, bounded};
use crate::escrow::inventory::ImportedMachine;
use crate::proto::escrow_service_client::EscrowServiceClient;
use crate::proto::{self, ImportMachinesRequest, MachineAnswer};
use crate::request_id::TraceId;

/// Most machines of one message: with every field as long as it may be, they are not more than a node takes.
pub const MACHINES_PER_MESSAGE_MAX: usize = 64;
/// Most messages under way at once.
const MESSAGES_UNDER_WAY_MAX: usize = 4;

/// What became of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineNoted {
    /// Something of it was not known before.
    New,
    /// All of it was known.
    KnownBefore,
    /// It is not, and will not be if it is sent again as it is.
    Refused(BulkRefused),
}

impl Client {
    /// Notes every machine that `machines` gives, and says what became of each, in their order, to `answered`, with what
    /// came beside it. Ends when all are answered.
    ///
    /// # Errors
    /// Any [`ClientError`]: those that were answered stand, of the others it is not known. Doing the same again is safe.
    pub async fn import_machines<T: Send>(
        &self,
        machines: impl Stream<Item = (T, ImportedMachine)> + Send,
        mut answered: impl FnMut(T, MachineNoted) + Send,
    ) -> Result<(), ClientError> {
        let trace = TraceId::draw();
        // What is there already goes together; nothing waits for more.
        let messages = machines.ready_chunks(MACHINES_PER_MESSAGE_MAX).map(|chunk| {
            let (beside, machines): (Vec<T>, Vec<_>) = chunk.into_iter().unzip();
            let request = ImportMachinesRequest { machines: machines.into_iter().map(message).collect() };
            let trace = trace.clone();
            async move { (beside, self.note(trace, request).await) }
        });
        let mut messages = std::pin::pin!(messages.buffered(MESSAGES_UNDER_WAY_MAX));
        while let Some((beside, answers)) = messages.next().await {
            let answers = answers?;
            if answers.len() != beside.len() {
                let what = "the node answered other machines than it was sent";
                return Err(ClientError::Malformed { what });
            }
            for (beside, answer) in beside.into_iter().zip(answers) {
                answered(beside, read(answer));
            }
        }
        Ok(())
    }

    async fn note(
        &self,
        trace: TraceId,
        request: ImportMachinesRequest,
    ) -> Result<Vec<MachineAnswer>, ClientError> {
        let answer = self.pool.call_as(trace, |channel, budget| {
            let request = request.clone();
            async move { EscrowServiceClient::new(channel).import_machines(bounded(request, budget)).await }
        });
        Ok(answer.await?.answers)
    }
}

fn message(imported: ImportedMachine) -> proto::ImportedMachine {
    let ImportedMachine { machine, description, users } = imported;
    proto::ImportedMachine {
        machine: machine.into(),
        domain: description.domain,
        name: description.name,
        make: description.make,
        model: description.model,
        r#type: description.machine_type.to_string(),
        os: description.os,
        users: users.into_iter().map(String::from).collect(),
    }
}

fn read(answer: MachineAnswer) -> MachineNoted {
    match answer {
        MachineAnswer { refused: Some(refused), .. } => MachineNoted::Refused(refused.into()),
        MachineAnswer { known_before: true, .. } => MachineNoted::KnownBefore,
        MachineAnswer { .. } => MachineNoted::New,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::escrow::compliance::facts::{TEXT_MAX_BYTES, USERS_MAX};
    use crate::escrow::compliance::words::MachineType;
    use crate::escrow::ids::{MACHINE_ID_MAX_BYTES, USER_PART_MAX_BYTES};
    use crate::escrow::inventory::Description;
    use crate::rpc::API_MESSAGE_MAX_BYTES;

    #[test]
    fn a_node_takes_a_message_of_the_longest_machines() {
        let text = || "x".repeat(TEXT_MAX_BYTES);
        let part = "u".repeat(USER_PART_MAX_BYTES);
        let longest = ImportedMachine {
            machine: "m".repeat(MACHINE_ID_MAX_BYTES).parse().unwrap(),
            description: Description {
                domain: text(),
                name: text(),
                make: text(),
                model: text(),
                machine_type: MachineType::Portable,
                os: text(),
            },
            users: vec![format!(r"{part}\{part}").parse().unwrap(); USERS_MAX],
        };
        longest.check().unwrap();
        let machines = vec![message(longest); MACHINES_PER_MESSAGE_MAX];
        assert!(ImportMachinesRequest { machines }.encoded_len() < API_MESSAGE_MAX_BYTES);
    }
}
