//! A node compares its state with the others', puts itself aside if it is the one that differs, takes the state from
//! one that does not, and comes back once it agrees (P7).
//!
//! # While it is quarantined
//!
//! - It serves no clients: they are told to ask another node.
//! - It goes on voting and storing the log: neither rests on the state, and the log is not what differs. Without it the
//!   others might have no quorum.
//! - It does not stand for election and hands a leadership over, for a leader answers from its state; and while it
//!   leads, it takes no commands. Only if there has been no leader for [`LEADERLESS_PATIENCE`] does it stand: its log
//!   may be the longest there is, and then nobody else can lead before it has been handed on.
//! - It makes no snapshot of its rows and sends none, so the log that the repair needs is not purged either. What a
//!   repair fetched stands in for one: it is a peer's, and checked, so the log before it may go, whatever is wrong with
//!   the state of this node.
//! - If no repair succeeds, its log would grow without end. Past a bound
//!   ([`QUARANTINE_LOG_FACTOR`](crate::store::policy::QUARANTINE_LOG_FACTOR)) the node stops with an error that says to
//!   replace it, and does not start again until it is given more room. To certify a wrong state by a snapshot would be
//!   worse: should the others be lost, this log is what the right one can be made of.
//!
//! # The repair
//!
//! | step | what a crash behind it leaves |
//! |---|---|
//! | note the quarantine | the old state, quarantined |
//! | fetch a snapshot from a node whose state a majority has | the same; what came is removed at the start |
//! | load it into a base of its own, check every row | the same |
//! | put it in the place of the older snapshots | the same |
//! | bring that base into use, apply the log up to where the old state stood | the new state, quarantined; the log is applied at the start |
//! | note that it was replaced | the new state, quarantined |
//! | find that a majority of the voters agrees, at the same index or later | the new state, quarantined |
//! | remove the note | the new state |
//!
//! openraft sees none of it: the state stands at the same entry before and after, and nothing is applied between.
//!
//! Where the state is so wrong that an entry cannot be applied to it, the node stops, and [`rescue`](super::rescue) gives
//! it another at its next start.
//!
//! A node whose applying itself goes wrong would differ again; so the repair is repeated ever more slowly. It is done in a
//! task of its own ([`repair`](super::repair)): rounds go on meanwhile, so that a leadership is handed over and the
//! patience without a leader is kept while a snapshot comes in.

use std::collections::BTreeMap;
use std::sync::{PoisonError, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::async_runtime::WatchReceiver;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use crate::escrow::ids::{NodeId, Timestamp};
use crate::proto::peer::{DigestAt, DigestsRequest, DigestsResponse};
use crate::store::digest::{Digest, DigestValue, MILESTONES_MAX};
use crate::store::quarantine::{Cause, Quarantine, Stage};

use super::agreement::{Agreement, Testimony, Verdict, judge, sound, testimony};
use super::clock::{self, Moment, Skew};
use super::error::NodeError;
use super::node::{Inner, Node};
use super::repair::Repair;
use super::rescue::Acquaintances;
use super::storage::HeldLog;

/// Between two comparisons. Each costs a short question to every voter.
pub const COMPARE_EVERY: Duration = Duration::from_secs(2);
/// Longest a voter may take to say its digests.
const DIGESTS_TIMEOUT: Duration = Duration::from_secs(1);
/// Most indices a node may be asked about at once.
pub const ABOUT_MAX: usize = 64;
/// Most digests taken from one answer: what it was asked about, milestones, and where it stands.
const DIGESTS_MAX: usize = ABOUT_MAX + MILESTONES_MAX + 1;
/// How long a quarantined node waits for another to lead before it stands for election itself.
pub const LEADERLESS_PATIENCE: Duration = Duration::from_secs(10);
/// What the voters that answered have.
struct Round {
    own: Testimony,
    votes: bool,
    others: BTreeMap<NodeId, Testimony>,
    voters: usize,
    /// When it began, and how far this node's clock is ahead of each that said what it shows.
    began: Moment,
    leads: Vec<i64>,
    /// The voters that say that their disks are full, this node included.
    full: Vec<NodeId>,
}

/// What one voter answered.
struct Answer {
    /// Unless it bears no witness.
    testimony: Option<Testimony>,
    /// How far this node's clock is ahead of its, unless its release does not say.
    lead: Option<i64>,
    is_full: bool,
}

impl Round {
    fn verdict(&self) -> Verdict {
        judge(&self.own, self.votes, &self.others, self.voters)
    }

    fn skew(&self) -> Option<Skew> {
        clock::judge(&self.leads, self.votes, self.voters)
    }
}

/// What the task remembers between two rounds.
struct Healing {
    node: Weak<Inner>,
    acquaintances: Acquaintances,
    last: Option<Verdict>,
    led: Instant,
    repair: Repair,
    /// It was said that rows are damaged and nobody can help.
    told_of_damage: bool,
    /// It was said that the clock is wrong.
    told_of_clock: bool,
}

impl Node {
    /// Starts comparing, until the node stops.
    pub(super) fn watch_agreement(&self) {
        let mut healing = Healing {
            node: std::sync::Arc::downgrade(&self.inner),
            acquaintances: Acquaintances::of(&self.inner.directory),
            last: None,
            led: Instant::now(),
            repair: Repair::new(),
            told_of_damage: false,
            told_of_clock: false,
        };
        // Before anything else may happen: it must not stand for election the moment it starts.
        self.inner.raft.runtime_config().elect(self.quarantine().is_none());
        let stop = self.inner.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut ticks = tokio::time::interval(COMPARE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                // A round is never interrupted, and what came of a repair is noted between two: so what a round has
                // compared is judged by what was noted when it began.
                let repaired = tokio::select! {
                    _ = ticks.tick() => None,
                    repaired = healing.repair.ended() => Some(repaired),
                };
                let Some(inner) = healing.node.upgrade() else { return };
                match repaired {
                    None => healing.round(&Node { inner }).await,
                    Some(repaired) => healing.repaired(&Node { inner }, repaired),
                }
            }
        }));
    }

    /// Answers another node's question for digests.
    pub fn digests(&self, request: &DigestsRequest) -> DigestsResponse {
        let about = &request.about[..request.about.len().min(ABOUT_MAX)];
        let digests = self.inner.storage.machine.digests_about(about).into_iter();
        let digests = digests
            .map(|digest| DigestAt { index: digest.index, value: digest.value.to_bytes().to_vec().into() });
        DigestsResponse {
            digests: digests.collect(),
            quarantined: self.quarantine().is_some(),
            now_ms: Some(self.inner.clock.now().0),
            disk_full: Some(self.is_full()),
        }
    }

    /// Asks every other voter for its digests, its time and its room.
    async fn compare(&self) -> Round {
        let began = self.inner.clock.moment();
        // Before the others are asked: they have more time to get there.
        let own = self.inner.storage.machine.digests();
        let id = self.options().id;
        let mut voters = self.voters();
        voters.sort_unstable();
        voters.dedup();
        let asked = voters
            .iter()
            .filter(|voter| **voter != id)
            .map(|voter| self.ask_for_digests(*voter, &own, began));
        let votes = voters.contains(&id);
        let (mut others, mut leads) = (BTreeMap::new(), Vec::new());
        let mut full: Vec<NodeId> = (votes && self.is_full()).then_some(id).into_iter().collect();
        for (id, answer) in join_all(asked).await.into_iter().flatten() {
            others.extend(answer.testimony.map(|testimony| (id, testimony)));
            leads.extend(answer.lead);
            full.extend(answer.is_full.then_some(id));
        }
        full.sort_unstable();
        Round { own: testimony(own), votes, others, voters: voters.len(), began, leads, full }
    }

    /// What `id` has and what its clock shows, unless it does not answer.
    async fn ask_for_digests(&self, id: NodeId, own: &[Digest], began: Moment) -> Option<(NodeId, Answer)> {
        let about = own.iter().rev().take(ABOUT_MAX).map(|digest| digest.index).collect();
        let mut peer = self.member_client(id)?;
        let asked = self.inner.clock.moment();
        let answer = timeout(DIGESTS_TIMEOUT, peer.digests(DigestsRequest { about })).await.ok()?;
        let answer =
            answer.inspect_err(|status| tracing::debug!(node = id, %status, "asking for digests")).ok()?;
        let (answer, heard) = (answer.into_inner(), self.inner.clock.moment());
        let lead = answer.now_ms.map(|shown| began.lead_over(Timestamp(shown), asked, heard));
        let is_full = answer.disk_full.unwrap_or(false);
        if answer.quarantined {
            return Some((id, Answer { testimony: None, lead, is_full }));
        }
        let digests = answer.digests.into_iter().take(DIGESTS_MAX).filter_map(|digest| {
            let value = DigestValue::from_bytes(digest.value.as_ref().try_into().ok()?);
            Some(Digest { index: digest.index, value })
        });
        Some((id, Answer { testimony: Some(testimony(digests)), lead, is_full }))
    }

    /// Puts this node aside, or notes how far its repair is.
    fn set_aside(&self, cause: Cause, index: u64, stage: Stage) {
        let since_ms = self.quarantine().map_or_else(|| super::now().0, |earlier| earlier.since_ms);
        let quarantine = Quarantine { cause, index, since_ms, stage };
        if let Err(error) = self.inner.storage.quarantine.set(quarantine) {
            tracing::error!(%error, "the quarantine of this node would not outlive its process");
        }
        self.inner.raft.runtime_config().elect(false);
    }
}

/// Notes whose disks are full.
fn look_at_room(node: &Node, round: &Round) {
    if node.inner.room.note(&round.full, round.voters) {
        match &node.inner.room.full()[..] {
            [] => tracing::info!("a majority of the voters has room again"),
            full => {
                tracing::error!(?full, "no majority of the voters has room: what machines write has to wait")
            }
        }
    }
}

impl Healing {
    async fn round(&mut self, node: &Node) {
        self.acquaintances.remember(node);
        let round = node.compare().await;
        self.look_at_clock(node, &round).await;
        look_at_room(node, &round);
        let verdict = round.verdict();
        *node.inner.agreement.lock().unwrap_or_else(PoisonError::into_inner) = match (&verdict, &self.last) {
            // What was found before still is the last that is known.
            (Verdict::Unknown, Some(last)) => last.agreement(),
            (verdict, _) => verdict.agreement(),
        };
        self.say(&verdict);
        match node.quarantine() {
            None => self.look(node, &round, &verdict),
            Some(quarantine) => self.heal(node, quarantine, &round, &verdict).await,
        }
        if verdict != Verdict::Unknown {
            self.last = Some(verdict);
        }
    }

    /// Notes what the others' clocks say of this node's, and leads nobody by one that is wrong.
    async fn look_at_clock(&mut self, node: &Node, round: &Round) {
        node.inner.clock.note(round.skew(), round.began);
        if let Some(skew) = node.clock_fault() {
            if !std::mem::replace(&mut self.told_of_clock, true) {
                tracing::error!(%skew, "this node takes no commands until its clock is right");
            }
            if node.leader() == Some(node.options().id) {
                node.hand_over().await;
            }
        } else if std::mem::take(&mut self.told_of_clock) {
            tracing::info!("the clock of this node is right again");
        }
    }

    /// Says once what has changed.
    fn say(&self, verdict: &Verdict) {
        let before = self.last.as_ref().map(Verdict::agreement);
        match verdict {
            Verdict::Split { index, with } if !matches!(self.last, Some(Verdict::Split { .. })) => {
                tracing::error!(index, ?with, "nodes differ, and there is no majority to say which is wrong");
            }
            Verdict::Agrees { index, .. } if before.is_some_and(|before| before != verdict.agreement()) => {
                tracing::info!(index, "this node agrees with the others again");
            }
            _ => {}
        }
    }

    /// Whether a node that is well should put itself aside.
    ///
    /// What a scrub finds is single damaged rows. A secret in one does not open at all, so it can be shown to nobody as
    /// another's. Where there is nobody to take the state from, a lone survivor above all, the node goes on serving
    /// what it has, and says so.
    fn look(&mut self, node: &Node, round: &Round, verdict: &Verdict) {
        let found = match (verdict, node.inner.storage.machine.suspicion()) {
            (Verdict::Minority { index }, _) => Some((Cause::Differs, *index)),
            (_, Some(why)) => {
                let own = round.votes.then_some(&round.own);
                let can_be_repaired = !sound(own, &round.others, round.voters).is_empty();
                if !can_be_repaired {
                    *node.inner.agreement.lock().unwrap_or_else(PoisonError::into_inner) = Agreement::Differs;
                    if !std::mem::replace(&mut self.told_of_damage, true) {
                        tracing::error!(why, "rows are damaged, and there is nobody to take the state from");
                    }
                }
                can_be_repaired.then(|| (Cause::Scrub, node.applied()))
            }
            _ => None,
        };
        if let Some((cause, index)) = found {
            // Before it can be seen: whoever asks both must not find it in a quarantine that was not counted.
            node.options().metrics.raft.quarantines.inc();
            node.set_aside(cause, index, Stage::Waiting);
            if let Some(why) = node.quarantine() {
                tracing::error!(%why, "this node is quarantined: it serves no clients until it is repaired");
            }
            self.led = Instant::now();
            self.repair.hasten();
        }
    }

    /// Brings a node that is aside one step further.
    async fn heal(&mut self, node: &Node, quarantine: Quarantine, round: &Round, verdict: &Verdict) {
        self.yield_the_lead(node).await;
        match (quarantine.stage, verdict) {
            (Stage::Replaced, Verdict::Agrees { index, majority: true }) if *index >= quarantine.index => {
                self.come_back(node, *index);
            }
            (Stage::Replaced, Verdict::Minority { index }) if *index >= quarantine.index => {
                tracing::error!(index, "the state was replaced and differs again");
                node.set_aside(Cause::Differs, *index, Stage::Waiting);
            }
            (Stage::Replaced, _) => {}
            (Stage::Waiting, _) => self.begin_repair(node, quarantine, round),
        }
        self.bound_log(node);
    }

    fn begin_repair(&mut self, node: &Node, quarantine: Quarantine, round: &Round) {
        if !self.repair.is_due() {
            return;
        }
        // After a scrub it is the rows that are wrong, and not what this node knows their sum should be.
        let own = (quarantine.cause == Cause::Scrub && round.votes).then_some(&round.own);
        let from = sound(own, &round.others, round.voters);
        if from.is_empty() {
            tracing::debug!("no majority of the other voters agrees: there is nobody to take the state from");
            return;
        }
        let node = node.clone();
        self.repair.begin(async move { node.repair(&from).await });
    }

    /// Notes what came of a repair.
    fn repaired(&mut self, node: &Node, repaired: Result<Digest, NodeError>) {
        match (repaired, node.quarantine()) {
            (Ok(digest), Some(quarantine)) => {
                tracing::info!(index = digest.index, "the state was replaced; now it is compared");
                node.set_aside(quarantine.cause, digest.index, Stage::Replaced);
            }
            // Only its end lifts a quarantine.
            (Ok(_), None) => {}
            (Err(error), _) => {
                let (error, again) = (crate::error::chain(&error), self.repair.pause().as_secs());
                tracing::error!(error, again, "the repair failed; seconds until it is tried again");
            }
        }
    }

    /// Stops a node whose log would grow without end. A repair that is under way is not broken off for that.
    fn bound_log(&self, node: &Node) {
        let held = node.held_log().filter(HeldLog::is_too_much);
        if let Some(held) = held.filter(|_| !self.repair.is_under_way()) {
            node.inner.overfull.send_replace(Some(held));
        }
    }

    fn come_back(&mut self, node: &Node, index: u64) {
        if let Err(error) = node.inner.storage.quarantine.lift() {
            tracing::error!(%error, "this node is repaired, but stays aside while its note cannot be removed");
            return;
        }
        // One sealed to this node may have come from the wrong state.
        node.inner.keyring.forget();
        node.inner.raft.runtime_config().elect(true);
        self.repair.succeeded();
        node.options().metrics.raft.repairs.inc();
        tracing::info!(index, "this node is repaired, agrees with the others and serves again");
    }

    /// Leaves the leadership to others, as long as there are any to take it.
    async fn yield_the_lead(&mut self, node: &Node) {
        let leader = node.leader_in_contact();
        if leader.is_some() {
            self.led = Instant::now();
        }
        let leads =
            node.inner.raft.server_metrics().borrow_watched().current_leader == Some(node.options().id);
        node.inner.raft.runtime_config().elect(self.led.elapsed() >= LEADERLESS_PATIENCE);
        if leads {
            node.hand_over().await;
        }
    }
}
