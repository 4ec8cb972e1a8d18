//! Group commit: commands that come while others are on their way to the disks go into the log together, as one entry.
//!
//! What an entry costs every replica (a place in the log, a turn through consensus, an answer) is the same for one command
//! and for many. So few entries are under way at a time. A command that finds one of those free goes at once, alone: where
//! little is asked nobody waits for company. The others gather until one is free. What people do, reveals above all, never
//! waits behind what machines do all day.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::node::Committed;
use super::types::EncodedCommands;
use crate::escrow::command::Reply;
use crate::escrow::ids::NodeId;
use crate::escrow::records::LogPosition;

/// Entries under way at a time. Not one alone: while one rests on its way, the next is made.
const UNDER_WAY_MAX: usize = 2;
/// Most commands of an entry.
pub const COMMANDS_PER_ENTRY_MAX: usize = 256;
/// An entry ends with the command that brings it to so many bytes.
pub const ENTRY_FULL_BYTES: usize = 256 * 1024;
/// Where an entry came to stand, and what was answered to its commands.
pub(super) struct Written {
    pub position: LogPosition,
    pub replies: Vec<Reply>,
}

/// Why an entry, or a command of it, is not known to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unwritten {
    /// A newer leader may have overwritten it, or not.
    Discarded,
    /// Consensus has ended, for this reason.
    Failed(String),
    /// It was to be asked of another node. Nothing was begun.
    NotLeader(Option<NodeId>),
}

type Outcome = Result<Written, Unwritten>;
type Write = dyn Fn(EncodedCommands) -> Pin<Box<dyn Future<Output = Outcome> + Send>> + Send + Sync;

/// Permit that a command takes among those under way, for as long as it is kept, whether or not its caller still waits. It is
/// what bounds how much gathers.
pub(super) type Permit = Arc<OwnedSemaphorePermit>;

/// A command that gathers.
struct Waiting {
    command: Bytes,
    caller: Caller,
}

struct Caller {
    answer: oneshot::Sender<Result<Committed, Unwritten>>,
    _permit: Permit,
}

/// See the module.
pub(super) struct Groups {
    gathered: mpsc::UnboundedSender<Waiting>,
    under_way: Arc<Semaphore>,
    write: Arc<Write>,
}

impl Groups {
    /// Has entries written by `write`. Ends when dropped.
    pub fn new<F>(write: impl Fn(EncodedCommands) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Outcome> + Send + 'static,
    {
        let (gathered, gathering) = mpsc::unbounded_channel();
        let write: Arc<Write> = Arc::new(move |commands| Box::pin(write(commands)));
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        tokio::spawn(gather(gathering, under_way.clone(), write.clone()));
        Self { gathered, under_way, write }
    }

    /// Commits an encoded command, alone or with others.
    ///
    /// # Errors
    /// What writing its entry failed with.
    pub async fn commit(&self, command: Bytes, permit: Permit) -> Result<Committed, Unwritten> {
        if let Ok(_under_way) = self.under_way.try_acquire() {
            return self.commit_alone(command).await;
        }
        let (answer, answered) = oneshot::channel();
        let caller = Caller { answer, _permit: permit };
        self.gathered.send(Waiting { command, caller }).map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }

    /// Commits an encoded command at once, in an entry of its own, whatever else is under way.
    ///
    /// # Errors
    /// As [`Groups::commit`].
    pub async fn commit_alone(&self, command: Bytes) -> Result<Committed, Unwritten> {
        let written = (self.write)(EncodedCommands(vec![command])).await?;
        let [reply] = <[Reply; 1]>::try_from(written.replies).map_err(|_| unanswered())?;
        Ok(Committed { position: written.position, reply })
    }
}

fn stopping() -> Unwritten {
    Unwritten::Failed("the node is stopping".to_owned())
}

fn unanswered() -> Unwritten {
    Unwritten::Failed("a command was applied without an answer".to_owned())
}

/// Writes what gathers, as soon as an entry may be under way.
async fn gather(
    mut gathering: mpsc::UnboundedReceiver<Waiting>,
    under_way: Arc<Semaphore>,
    write: Arc<Write>,
) {
    while let Some(first) = gathering.recv().await {
        let Ok(turn) = under_way.clone().acquire_owned().await else { return };
        let (commands, callers) = group(first, &mut gathering);
        if callers.is_empty() {
            continue;
        }
        let written = write(EncodedCommands(commands));
        tokio::spawn(async move {
            answer(callers, written.await);
            drop(turn);
        });
    }
}

/// The next entry: `first`, and what has gathered behind it. Whoever has gone away meanwhile has nothing written.
fn group(first: Waiting, gathering: &mut mpsc::UnboundedReceiver<Waiting>) -> (Vec<Bytes>, Vec<Caller>) {
    let (mut commands, mut callers, mut bytes) = (Vec::new(), Vec::new(), 0);
    let mut next = Some(first);
    while let Some(Waiting { command, caller }) = next {
        if !caller.answer.is_closed() {
            bytes += command.len();
            commands.push(command);
            callers.push(caller);
        }
        let is_full = commands.len() >= COMMANDS_PER_ENTRY_MAX || bytes >= ENTRY_FULL_BYTES;
        next = if is_full { None } else { gathering.try_recv().ok() };
    }
    (commands, callers)
}

/// Tells everyone what became of their command.
fn answer(callers: Vec<Caller>, written: Outcome) {
    let whole = written.and_then(|written| {
        if written.replies.len() == callers.len() { Ok(written) } else { Err(unanswered()) }
    });
    match whole {
        Ok(Written { position, replies }) => {
            for (caller, reply) in callers.into_iter().zip(replies) {
                // Whoever gave up is no concern of ours.
                let _ = caller.answer.send(Ok(Committed { position, reply }));
            }
        }
        Err(error) => {
            for caller in callers {
                let _ = caller.answer.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::escrow::command::Refusal;

    /// Writes entries when it is let, and answers each command with itself.
    #[derive(Clone)]
    struct Log {
        entries: Arc<Mutex<Vec<Vec<Bytes>>>>,
        gate: Arc<Semaphore>,
        answers: fn(usize) -> usize,
    }

    fn echo(command: &Bytes) -> Reply {
        Reply::Refused(Refusal::Conflict(String::from_utf8_lossy(command).into_owned()))
    }

    impl Log {
        fn new() -> Self {
            Self { entries: Arc::default(), gate: Arc::new(Semaphore::new(0)), answers: |commands| commands }
        }

        fn groups(&self) -> Arc<Groups> {
            let log = self.clone();
            Arc::new(Groups::new(move |EncodedCommands(commands)| {
                let log = log.clone();
                log.entries.lock().unwrap().push(commands.clone());
                let index = log.entries.lock().unwrap().len() as u64;
                async move {
                    log.gate.acquire().await.unwrap().forget();
                    let replies = commands.iter().map(echo).take((log.answers)(commands.len())).collect();
                    if commands[0] == "fails" {
                        return Err(Unwritten::NotLeader(Some(3)));
                    }
                    Ok(Written { position: LogPosition { term: 1, index }, replies })
                }
            }))
        }

        fn sizes(&self) -> Vec<usize> {
            self.entries.lock().unwrap().iter().map(Vec::len).collect()
        }
    }

    type Task = tokio::task::JoinHandle<Result<Committed, Unwritten>>;

    async fn begin(groups: &Arc<Groups>, command: impl Into<Bytes>) -> Task {
        begin_in(groups, command, &Arc::new(Semaphore::new(1))).await
    }

    async fn begin_in(groups: &Arc<Groups>, command: impl Into<Bytes>, rooms: &Arc<Semaphore>) -> Task {
        let (groups, command, permit) = (groups.clone(), command.into(), rooms.clone().try_acquire_owned());
        let task = tokio::spawn(async move { groups.commit(command, Arc::new(permit.unwrap())).await });
        // On the one thread of the test: it has come as far as it can.
        tokio::task::yield_now().await;
        task
    }

    #[tokio::test]
    async fn the_first_go_alone_and_at_once_and_the_others_gather_until_one_is_through() {
        let (log, mut tasks) = (Log::new(), Vec::new());
        let groups = log.groups();
        for number in 0..100 {
            tasks.push(begin(&groups, number.to_string()).await);
        }
        assert_eq!(log.sizes(), [1, 1]);
        log.gate.add_permits(100);
        for (number, task) in tasks.into_iter().enumerate() {
            let committed = task.await.unwrap().unwrap();
            assert_eq!(committed.reply, echo(&number.to_string().into()));
            assert_eq!(committed.position.index, if number < 2 { number as u64 + 1 } else { 3 });
        }
        assert_eq!(log.sizes(), [1, 1, 98]);
    }

    #[tokio::test]
    async fn an_entry_is_bounded() {
        let (log, mut tasks) = (Log::new(), Vec::new());
        let groups = log.groups();
        for _ in 0..2 + COMMANDS_PER_ENTRY_MAX + 1 {
            tasks.push(begin(&groups, "small").await);
        }
        for _ in 0..3 {
            tasks.push(begin(&groups, vec![7; ENTRY_FULL_BYTES - 10]).await);
        }
        log.gate.add_permits(1_000);
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        assert_eq!(log.sizes(), [1, 1, COMMANDS_PER_ENTRY_MAX, 3, 1]);
    }

    #[tokio::test]
    async fn everyone_hears_of_a_failure_and_the_next_goes_on() {
        let log = Log::new();
        let groups = log.groups();
        let first = [begin(&groups, "alone").await, begin(&groups, "fails").await];
        let second = [begin(&groups, "fails").await, begin(&groups, "too").await];
        log.gate.add_permits(3);
        let [alone, fails] = first;
        assert!(alone.await.unwrap().is_ok());
        for task in second.into_iter().chain([fails]) {
            assert_eq!(task.await.unwrap().unwrap_err(), Unwritten::NotLeader(Some(3)));
        }
        log.gate.add_permits(1);
        assert!(begin(&groups, "next").await.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn what_gathers_takes_room_until_it_is_gone_and_what_is_urgent_does_not_wait_for_it() {
        let (log, rooms) = (Log::new(), Arc::new(Semaphore::new(5)));
        let groups = log.groups();
        let first = [begin(&groups, "one").await, begin(&groups, "two").await];
        let mut gone = Vec::new();
        for _ in 0..5 {
            gone.push(begin_in(&groups, "gone", &rooms).await);
        }
        for task in &gone {
            task.abort();
        }
        for task in gone {
            assert!(task.await.unwrap_err().is_cancelled());
        }
        assert_eq!(rooms.available_permits(), 0, "their commands are still kept");
        let urgent = tokio::spawn({
            let groups = groups.clone();
            async move { groups.commit_alone("urgent".into()).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(log.sizes(), [1, 1, 1]);
        log.gate.add_permits(3);
        for task in first.into_iter().chain([urgent]) {
            assert!(task.await.unwrap().is_ok());
        }
        drop(rooms.acquire_many(5).await.unwrap());
        assert_eq!(log.sizes(), [1, 1, 1], "nothing of who has gone away was written");
    }

    #[tokio::test]
    async fn who_has_gone_away_has_nothing_written_and_a_lack_of_answers_is_a_fault() {
        let log = Log { answers: |commands| commands.min(1), ..Log::new() };
        let groups = log.groups();
        let first = [begin(&groups, "one").await, begin(&groups, "two").await];
        let gone = begin(&groups, "gone").await;
        let rest = [begin(&groups, "three").await, begin(&groups, "four").await];
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        log.gate.add_permits(3);
        for task in first {
            assert!(task.await.unwrap().is_ok());
        }
        for task in rest {
            assert_eq!(task.await.unwrap().unwrap_err(), unanswered());
        }
        assert_eq!(log.sizes(), [1, 1, 2]);
    }
}
