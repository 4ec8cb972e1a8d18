//! Reading the audit trail, and signing where it stands.
//!
//! A reader gets page after page, each read from the state as it is at that moment: records are only ever appended, so the
//! pages are one trail, and no view is held while they are sent, behind which the store would have to wait. Reading is not
//! on record itself (an auditor can read where nothing can be written, and verifying does not change what is verified); who
//! read is in the node's log.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::escrow::audit::line::render;
use crate::escrow::audit::query::{Filter, Window};
use crate::escrow::ids::{Invalid, NodeId, Timestamp};
use crate::escrow::lookup;
use crate::escrow::policy::Operation;
use crate::escrow::records::{AuditRecord, LogPosition};
use crate::proto::audit_part::Part;
use crate::proto::audit_service_server::AuditService;
use crate::proto::peer::AuditCheckpointRequest;
use crate::proto::{
    AuditBegin, AuditLine, AuditPage, AuditPart, CheckpointsRequest, CheckpointsResponse, NodeCheckpoint,
    ReadAuditRequest,
};
use crate::raft::NodeError;
use crate::request_id::carried;
use crate::seal::checkpoint::Checkpoint;

use super::serving::{Answers, Places, Serving};
use super::{Context, now, status, wire};
use crate::raft::on_own_thread;

/// Most readers of the trail at once: more would take the disk from those who wait for a key.
pub const READERS_MAX: usize = 4;
/// Pages that are read ahead of what a reader has taken.
const PAGES_AHEAD: usize = 1;
/// Longest a member may take to sign a checkpoint.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest name of an actor to look for: a whole identity.
const ACTOR_MAX_BYTES: usize = 256;

/// The audit service of one node. Clones share its places.
#[derive(Clone)]
pub struct AuditDesk {
    context: Context,
    places: Places,
}

impl AuditDesk {
    /// With room for [`READERS_MAX`] readers.
    pub fn new(context: Context) -> Self {
        Self { context, places: Places::new("readers of the audit trail", READERS_MAX) }
    }
}

#[tonic::async_trait]
impl AuditService for AuditDesk {
    type ReadStream = Answers<AuditPart>;

    async fn read(&self, request: Request<ReadAuditRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let context = &self.context;
        let caller = context.admit(&request, Operation::ReadAudit)?;
        let filter = filter(request.get_ref().filter.as_ref())?;
        let quorum = wire::wants_quorum(request.get_ref().consistency)?;
        let (serving, answers) = Serving::begin(context, &request, self.places.take()?, PAGES_AHEAD);
        let request = request.into_inner();
        if quorum {
            let index = context.node.read_index().await.map_err(status::shared)?;
            context.node.wait_applied(index).await?;
        }
        context.node.wait_applied(request.min_index).await?;
        // Taken before the rows are read: what is shown is at least as fresh as it says.
        let freshness = wire::freshness(&context.node, if quorum { "quorum" } else { "local" });
        let checkpoint = context.checkpoint().await?;
        let head = checkpoint.seq;
        let window = window(&request, head)?;
        let end = if request.newest_first { window.after } else { window.to };
        let node = context.node.clone();
        let (window, filter) =
            on_own_thread(move || Ok((window.within(&node.view()?, &filter)?, filter))).await?;
        tracing::info!(by = %caller.identity, after = window.after, to = window.to, "the audit trail is read");

        let begin = AuditBegin { freshness: Some(freshness), head, checkpoint: checkpoint.render() };
        let reader = Reader {
            context: context.clone(),
            window,
            end,
            filter,
            newest_first: request.newest_first,
            left: (request.limit > 0).then_some(request.limit),
        };
        tokio::spawn(carried(reader.serve(serving, begin)).in_current_span());
        Ok(Response::new(answers))
    }

    async fn checkpoints(
        &self,
        request: Request<CheckpointsRequest>,
    ) -> Result<Response<CheckpointsResponse>, Status> {
        self.context.admit(&request, Operation::ReadAudit)?;
        let members = self.context.node.members();
        let asked = members.keys().map(|id| self.context.checkpoint_of(*id));
        Ok(Response::new(CheckpointsResponse { nodes: join_all(asked).await }))
    }
}

/// One reader while it is served.
struct Reader {
    context: Context,
    window: Window,
    /// Where everything that was asked for has been looked at: the last page says so, so that a stream which ends
    /// before is known to be cut off.
    end: u64,
    filter: Filter,
    newest_first: bool,
    /// How many records more are asked for; `None` for all.
    left: Option<u64>,
}

impl Reader {
    /// Sends everything. Ends early if the reader goes away or stops taking what it gets.
    async fn serve(mut self, serving: Serving<AuditPart>, begin: AuditBegin) {
        if let Err(why) = self.send(&serving, begin).await {
            serving.end(why);
        }
    }

    async fn send(&mut self, serving: &Serving<AuditPart>, begin: AuditBegin) -> Result<(), Status> {
        serving.send(AuditPart { part: Some(Part::Begin(begin)) }).await?;
        loop {
            serving.check()?;
            let page = self.next_page().await?;
            let last = page.reached == self.end || self.left == Some(0);
            serving.send(AuditPart { part: Some(Part::Page(page)) }).await?;
            if last {
                return Ok(());
            }
        }
    }

    async fn next_page(&mut self) -> Result<AuditPage, Status> {
        let (node, filter, newest_first) =
            (self.context.node.clone(), self.filter.clone(), self.newest_first);
        let mut window = self.window;
        let (mut records, window) = on_own_thread(move || {
            if window.is_empty() {
                return Ok((Vec::new(), window));
            }
            let records = window.next_page(&node.view()?, &filter, newest_first)?;
            Ok((records, window))
        })
        .await?;
        self.window = window;
        let mut cut = false;
        if let Some(left) = &mut self.left {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            cut = records.len() > room;
            records.truncate(room);
            *left -= records.len() as u64;
        }
        let truncated = cut || (self.left == Some(0) && !window.is_empty());
        let reached = match records.last() {
            Some(last) if cut => last.sequence - u64::from(self.newest_first),
            _ if window.is_empty() => self.end,
            _ if self.newest_first => window.to,
            _ => window.after,
        };
        Ok(AuditPage { records: records.iter().map(line).collect(), reached, truncated })
    }
}

fn line(record: &AuditRecord) -> AuditLine {
    AuditLine { seq: record.sequence, line: render(record) }
}

impl Context {
    /// This node's word for where its trail stands.
    ///
    /// # Errors
    /// `UNAVAILABLE` if it belongs to no cluster, `INTERNAL` if it cannot read or sign.
    pub(super) async fn checkpoint(&self) -> Result<Checkpoint, Status> {
        let node = self.node.clone();
        let (cluster, position, head) = on_own_thread(move || {
            // One view for all three: they belong to one entry.
            let view = node.view()?;
            let cluster = lookup::cluster(&view)?.ok_or(NodeError::NoCluster)?;
            let position = view.position().unwrap_or_default();
            Ok((
                cluster.id,
                LogPosition { term: position.term, index: position.index },
                lookup::heads(&view)?.audit,
            ))
        })
        .await?;
        Checkpoint::sign(head, position, cluster, now(), &self.tls)
            .map_err(|error| Status::internal(crate::error::chain(&error)))
    }

    /// A member's word, or why there is none.
    async fn checkpoint_of(&self, id: NodeId) -> NodeCheckpoint {
        let answer = if id == self.node.options().id {
            let own = self.checkpoint().await.map(|checkpoint| checkpoint.render());
            own.map_err(|status| crate::error::status(&status))
        } else {
            self.ask_for_checkpoint(id).await
        };
        match answer {
            Ok(checkpoint) => NodeCheckpoint { node: id, checkpoint, detail: String::new() },
            Err(detail) => NodeCheckpoint { node: id, checkpoint: String::new(), detail },
        }
    }

    async fn ask_for_checkpoint(&self, id: NodeId) -> Result<String, String> {
        let mut client = self.node.member_client(id).ok_or("no longer a member")?;
        match timeout(CHECKPOINT_TIMEOUT, client.audit_checkpoint(AuditCheckpointRequest {})).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().checkpoint),
            Ok(Err(status)) => Err(crate::error::status(&status)),
            Err(_) => Err(format!("no answer within {} s", CHECKPOINT_TIMEOUT.as_secs())),
        }
    }
}

/// What is asked for, of a trail that ends at `head`.
fn window(request: &ReadAuditRequest, head: u64) -> Result<Window, Invalid> {
    if request.after > head {
        return Err(Invalid::new(
            "after",
            format!("at most {head}, where the audit trail of this node ends"),
        ));
    }
    let to = if request.to == 0 { head } else { request.to.min(head) };
    Ok(Window { after: request.after, to })
}

fn filter(message: Option<&crate::proto::AuditFilter>) -> Result<Filter, Invalid> {
    let Some(message) = message else { return Ok(Filter::default()) };
    if message.actor.len() > ACTOR_MAX_BYTES {
        return Err(Invalid::new("actor", "an identity, role/name, or a name"));
    }
    if !message.machine.is_empty() {
        message.machine.parse::<crate::escrow::ids::MachineId>()?;
    }
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    Ok(Filter {
        since: message.since_ms.map(Timestamp),
        until: message.until_ms.map(Timestamp),
        actor: some(&message.actor),
        machine: some(&message.machine),
        key_id: some(&message.key_id_prefix).map(|text| text.parse()).transpose()?,
        user: some(&message.user).map(|text| text.parse()).transpose()?,
        outcome: some(&message.outcome).map(|text| text.parse()).transpose()?,
        source: some(&message.source).map(|text| text.parse()).transpose()?,
    })
}
