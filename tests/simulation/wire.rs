//! openraft's network over the simulated one: unary calls that may overtake each other and come twice, or, as the product
//! has it, one stream of appends in order, with many under way.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use openraft::AsyncRuntime as _;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use openraft_rt_sim::SimRuntime;
use strongroom::escrow::ids::NodeId;
use strongroom::raft::types::{Member, Snapshot, Vote};
use strongroom::store::snapshot::SnapshotFile;

use crate::host::Life;
use crate::transfer;
use crate::types::{Raft, Simulated};

/// Frames of a stream under way at once.
const UNDER_WAY_MAX: usize = 16;
/// Until a stream that brings nothing any more is given up.
const KEEPALIVE: Duration = Duration::from_secs(1);
/// Until a snapshot that brings nothing any more is given up.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3);

type Rpc<T> = Result<T, RPCError<Simulated>>;

/// Makes a [`Wire`] for every member, for one life of a node.
pub struct Wires {
    life: Arc<Life>,
}

impl Wires {
    pub fn new(life: Arc<Life>) -> Self {
        Self { life }
    }
}

impl RaftNetworkFactory<Simulated> for Wires {
    type Network = Wire;

    async fn new_client(&mut self, target: NodeId, _node: &Member) -> Wire {
        Wire { life: self.life.clone(), to: target }
    }
}

/// The way to one member.
pub struct Wire {
    life: Arc<Life>,
    to: NodeId,
}

fn unreachable(why: impl ToString) -> RPCError<Simulated> {
    Unreachable::from_string(why.to_string()).into()
}

impl Wire {
    async fn ask<T, E, F, Fut>(&self, limit: Duration, what: &'static str, work: F) -> Rpc<T>
    where
        T: Send + 'static,
        E: ToString + Send + 'static,
        F: Fn(Raft) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send,
    {
        let call = self.life.world.call(&self.life, self.to, what, work);
        match SimRuntime::timeout(limit, call).await {
            Ok(Ok(answer)) => answer.map_err(unreachable),
            Ok(Err(refused)) => Err(unreachable(format!("{refused:?}"))),
            Err(_) => Err(unreachable("no answer")),
        }
    }

    /// Only leaders append.
    fn note_leader(&self, vote: &Vote) {
        self.life.world.ledger().leads(vote.leader_id.term, vote.leader_id.voted_for);
    }

    async fn stream<'s, S>(
        &'s self,
        mut requests: S,
    ) -> Rpc<BoxStream<'s, Rpc<StreamAppendResult<Simulated>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Simulated>> + OptionalSend + Unpin + 'static,
    {
        let Some(first) = requests.next().await else { return Ok(Box::pin(stream::empty())) };
        self.note_leader(&first.vote);
        let (life, to) = (self.life.clone(), self.to);
        let (world, from) = (life.world.clone(), life.host.id);
        let target = world.life_of(to).filter(|_| world.leg(from, to).is_some() && life.is_on());
        let target = target.ok_or_else(|| unreachable("no connection"))?;
        let raft = target.raft().ok_or_else(|| unreachable("it is not up"))?;
        let broken = Arc::new(AtomicBool::new(false));
        let frames = {
            let (world, broken) = (world.clone(), broken.clone());
            let frames = stream::iter([first]).chain(requests).map(move |request| {
                let leg = world.leg(from, to).filter(|_| life.is_on());
                world.event(|| format!("{from} -> {to} frame {leg:?}"));
                arrive(leg, request)
            });
            frames.buffered(UNDER_WAY_MAX).take_while(move |frame| {
                broken.fetch_or(frame.is_none(), Ordering::Relaxed);
                std::future::ready(frame.is_some())
            })
        };
        let answers = raft.stream_append(frames.filter_map(std::future::ready)).map(move |answer| {
            let leg = world.leg(to, from).filter(|_| target.is_on());
            arrive(leg, answer)
        });
        let answers = answers.buffered(UNDER_WAY_MAX).map(|answer| match answer {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(fatal)) => Err(unreachable(fatal)),
            None => Err(unreachable("the stream is broken")),
        });
        // It ends without an answer to what was lost on the way there.
        let end = stream::once(async move { broken.load(Ordering::Relaxed) });
        let end =
            end.filter_map(|broken| std::future::ready(broken.then(|| Err(unreachable("it is broken")))));
        Ok(Box::pin(answers.chain(end)))
    }
}

/// What is sent, once it has come; after a while, nothing, if it never does.
async fn arrive<T>(leg: Option<Duration>, sent: T) -> Option<T> {
    SimRuntime::sleep(leg.unwrap_or(KEEPALIVE)).await;
    leg.map(|_| sent)
}

impl RaftNetworkV2<Simulated> for Wire {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Simulated>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<Simulated>> {
        self.note_leader(&request.vote);
        self.ask(option.hard_ttl(), "append", move |raft| {
            let request = request.clone();
            async move { raft.append_entries(request).await }
        })
        .await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        requests: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<Simulated>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Simulated>> + OptionalSend + Unpin + 'static,
    {
        if self.life.world.streams {
            Box::pin(self.stream(requests))
        } else {
            stream_append_sequential(self, requests, option)
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Simulated>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Simulated>> {
        let vote = request.vote;
        let answer = self
            .ask(option.hard_ttl(), "vote", move |raft| {
                let request = request.clone();
                async move { raft.vote(request).await }
            })
            .await?;
        if answer.vote_granted {
            self.life.world.ledger().votes(self.to, &vote);
        }
        Ok(answer)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Simulated>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<Simulated>> {
        self.ask(option.hard_ttl(), "pre-vote", move |raft| {
            let request = request.clone();
            async move { raft.pre_vote(request).await }
        })
        .await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Simulated>, StreamingError<Simulated>> {
        let sent = transfer::Sent::read(&self.life.world, &snapshot).map_err(unreachable)?;
        let (world, to) = (self.life.world.clone(), self.to);
        let sent = self.ask(SNAPSHOT_PATIENCE, "snapshot", move |raft| {
            let (world, sent) = (world.clone(), sent.clone());
            async move { transfer::receive(&world, to, &raft, vote, sent).await }
        });
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            answer = sent => Ok(answer?),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Simulated>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<Simulated>> {
        self.life.world.count("leaderships handed over");
        self.ask(option.hard_ttl(), "transfer", move |raft| {
            let request = request.clone();
            async move { raft.handle_transfer_leader(request).await }
        })
        .await
    }
}
