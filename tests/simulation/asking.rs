//! A node's side of a request: asking whoever leads, again and again, as `raft::leader` does. That one cannot be used: it
//! knows the leader by gRPC.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::raft::ClientWriteResponse;
use openraft::{AsyncRuntime as _, ReadPolicy};
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::command::Command;
use strongroom::escrow::ids::{KeyId, NodeId, RequestId};
use strongroom::escrow::lookup;
use strongroom::escrow::records::KeyRecord;
use strongroom::raft::Committed;
use strongroom::raft::leader::{PROPOSE_TIMEOUT, READ_TIMEOUT};
use strongroom::raft::log_store::position;
use strongroom::raft::node::APPLY_TIMEOUT;
use strongroom::raft::types::EncodedCommands;
use uuid::Uuid;

use crate::host::Life;
use crate::mutation::Mutation;
use crate::types::{Raft, Simulated};
use crate::world::World;

/// Between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);
/// Longest an attempt waits for a leader that has fallen silent.
const ATTEMPT: Duration = Duration::from_millis(900);

/// What a quorum read, or a local one, found.
pub struct Seen {
    /// Where the replica stood.
    pub index: u64,
    pub key: Option<KeyRecord>,
}

enum Attempt<T> {
    Done(T),
    /// Somebody else leads, or nobody.
    Again,
}

impl World {
    /// Commits a command that came in at node `at`; `None` if that is not known, or did not happen.
    pub async fn propose(self: &Arc<Self>, at: NodeId, command: &Command) -> Option<Committed> {
        let life = self.life_of(at)?;
        let (world, mut command) = (self.clone(), command.clone());
        let answer = self.at_the_leader(&life, PROPOSE_TIMEOUT, "propose", move |raft| {
            if world.is_mutated(Mutation::RetryAsNewRequest) {
                command.request = RequestId(Uuid::from_u128(world.draw(u64::MAX).into()));
            }
            let commands = EncodedCommands::one(&command);
            async move { written(raft.client_write(commands).await) }
        });
        let committed = answer.await.filter(|_| life.is_on())?;
        self.acknowledged(committed.position);
        Some(committed)
    }

    /// Looks a key up at node `at`, after all that was acknowledged before; `None` without a quorum.
    pub async fn quorum_read(self: &Arc<Self>, at: NodeId, key: KeyId) -> Option<Seen> {
        if self.is_mutated(Mutation::ReadWithoutReadIndex) {
            return self.local_read(at, key);
        }
        let life = self.life_of(at)?;
        let index = self.at_the_leader(&life, READ_TIMEOUT, "read index", |raft| async move {
            match raft.get_read_log_id(ReadPolicy::ReadIndex).await {
                Ok((read, _)) => Ok(Attempt::Done(read.index())),
                Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Ok(Attempt::Again),
                Err(error) => Err(error.to_string()),
            }
        });
        let (index, raft) = (index.await?, life.raft()?);
        let waited = raft.wait(Some(APPLY_TIMEOUT)).applied_index_at_least(Some(index), "reading").await;
        waited.ok()?;
        self.local_read(at, key)
    }

    /// Looks a key up in the replica of node `at` as it is.
    pub fn local_read(self: &Arc<Self>, at: NodeId, key: KeyId) -> Option<Seen> {
        let storage = self.life_of(at)?.storage().ok()?;
        let view = storage.machine.view().expect("it is open");
        let key = lookup::key(&view, key).expect("read");
        Some(Seen { index: view.position().map_or(0, |position| position.index), key })
    }

    /// Repeats a question at whoever leads until it is answered or time is up.
    async fn at_the_leader<T, F, Fut>(
        self: &Arc<Self>,
        life: &Life,
        limit: Duration,
        what: &'static str,
        mut question: F,
    ) -> Option<T>
    where
        T: Send + 'static,
        F: FnMut(Raft) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<Attempt<T>, String>> + Send,
    {
        let end = Self::elapsed() + limit;
        while life.is_on() && Self::elapsed() < end {
            let raft = life.raft()?;
            let leader = raft.server_metrics().borrow_watched().current_leader;
            let patience = ATTEMPT.min(end - Self::elapsed());
            let answer = match leader {
                None => Err("nobody leads".to_owned()),
                Some(leader) if leader == life.host.id => {
                    let asked = SimRuntime::timeout(patience, question(raft)).await;
                    asked.unwrap_or_else(|_| Err("no answer".to_owned()))
                }
                Some(leader) => {
                    let call = self.call(life, leader, what, question.clone());
                    match SimRuntime::timeout(patience, call).await {
                        Ok(Ok(answer)) => answer,
                        _ => Err("no answer".to_owned()),
                    }
                }
            };
            if let Ok(Attempt::Done(answer)) = answer {
                return Some(answer);
            }
            SimRuntime::sleep(RETRY_INTERVAL).await;
        }
        None
    }
}

fn written(
    answer: Result<ClientWriteResponse<Simulated>, RaftError<Simulated, ClientWriteError<Simulated>>>,
) -> Result<Attempt<Committed>, String> {
    match answer {
        Ok(written) => {
            let reply = written.data.0.into_iter().next().ok_or("a command was applied without an answer")?;
            Ok(Attempt::Done(Committed { position: position(&written.log_id), reply }))
        }
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Ok(Attempt::Again),
        Err(error) => Err(error.to_string()),
    }
}
