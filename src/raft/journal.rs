//! Reveals without a quorum, and their approvals: decided here alone, put in the journal, told to whoever can be reached, and brought on
//! record once there is a leader again (P5).
//!
//! # What a crash leaves
//!
//! | behind which step | what becomes of the reveal |
//! |---|---|
//! | the entry is in the journal | it is put on record, though its key may not have been shown: the caller's retry finds it |
//! | a peer keeps it too | the same, by the peer if this node never comes back |
//! | it was proposed | it is proposed again, and changes nothing the second time: apply knows its hash |
//! | it is applied here | it is dropped from the journal, or will be |
//!
//! An entry is never dropped but for its own record in this node's replica: one that stands in its place is none. If the
//! disk was put back to an older copy, another journal is begun once nothing waits in that one, and `status` says so. A node that was removed can neither propose
//! nor apply: it tells the members what it has, what others told it among it, as often as it is started, and they put it
//! on record. One that is quarantined
//! tells them too, for nobody knows when it will be well, or whether it is removed before.

pub mod allowance;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, timeout};
use uuid::Uuid;

use crate::escrow::apply::check_entry;
use crate::escrow::command::{Action, Command, Reconcile, Refusal, Reply, Reveal};
use crate::escrow::disclosure::Asked;
use crate::escrow::ids::{Invalid, NodeId, RequestId};
use crate::escrow::journal::alone::{self, Circumstances, Verdict};
use crate::escrow::journal::{DegradedAsk, JournalEntry, Noted, approvals};
use crate::escrow::lookup;
use crate::escrow::records::{Approval, Source};
use crate::proto::peer::KeepJournalRequest;
use crate::store::format;
use crate::store::journal::{Appended, Decided, Journal, JournalStats};

use super::error::NodeError;
use super::node::Node;
use super::now;

/// Longest a reveal waits for peers to keep it too. A client gives a node a third of its ten seconds, and most of that
/// has gone into waiting for a quorum.
const TELL_TIMEOUT: Duration = Duration::from_millis(500);
/// Between two looks at what waits in the journal.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most entries told in one call, or proposed in one look of a node's own and of others'.
const BATCH_MAX: usize = 256;
/// How long an entry that was refused waits to be proposed again: nothing but an upgrade can change that.
const REFUSED_REST: Duration = Duration::from_secs(10);
/// How long a leader must have been there before a node proposes what another member told it, and could propose itself.
const TOLD_PATIENCE: Duration = Duration::from_secs(10);

/// What a node without a quorum answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alone {
    /// Nothing is decided here without a quorum: the policy says so, or what it is about is not known here.
    Closed,
    /// It is in the journal: done, asked for, or denied.
    Journalled(Box<JournalEntry>),
    /// Not well formed, or in conflict with what was asked before; nothing is in the journal.
    Refused(Refusal),
    /// The same was asked for before, and waits for a second person still.
    Waits(Box<DegradedAsk>),
}

impl Node {
    /// How full the journal is.
    pub fn journal_stats(&self) -> JournalStats {
        self.inner.journal.stats()
    }

    /// Whether this was asked for at this node without a quorum, and is not known to be on record.
    pub fn was_asked_alone(&self, approval: RequestId) -> bool {
        approvals::asked_for(&self.inner.journal.own(), approval).is_some()
    }

    /// What was asked for at this node without a quorum and can be approved or used here, as long as none answers.
    ///
    /// # Errors
    /// [`NodeError::Store`], [`NodeError::State`] if the replica cannot be read.
    pub fn approvals_alone(&self) -> Result<Vec<Approval>, NodeError> {
        if self.leader_in_contact().is_some() {
            return Ok(Vec::new());
        }
        let (own, view) = (self.inner.journal.own(), self.view()?);
        Ok(approvals::standing(&view, &own, now())?.iter().map(approvals::Standing::to_approval).collect())
    }

    /// Decides about the reveal or the approval that `command` asks for on what this node has, and puts that in the
    /// journal. When this returns it is on the disk here, and at every peer that could be reached.
    ///
    /// # Errors
    /// [`NodeError::Journal`] if the journal does not take it: then nothing may be shown. [`NodeError::Store`],
    /// [`NodeError::State`] if the replica cannot be read.
    pub async fn decide_alone(&self, command: &Command) -> Result<Alone, NodeError> {
        let (node, command) = (self.clone(), command.clone());
        // On a thread of its own, so that it ends also if the caller goes away.
        let decided = spawn_blocking(move || node.append_alone(&command));
        let alone = decided.await.map_err(|_| stopping())??;
        if let Alone::Journalled(entry) = &alone {
            self.tell_all(std::slice::from_ref(entry), &mut BTreeMap::new()).await;
        }
        Ok(alone)
    }

    fn append_alone(&self, command: &Command) -> Result<Alone, NodeError> {
        let Command { request, at, by, source, action } = command;
        let quorum_age = self.freshness().quorum_age;
        let quorum_age_ms = quorum_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        let drawn = RequestId(Uuid::new_v4());
        let appended = self.inner.journal.append::<Alone, NodeError>(|waiting| {
            // Read under the journal's lock: what was dropped from it before is in this view.
            let (position, view) = (self.applied_position(), self.view()?);
            let circumstances = Circumstances { request: *request, drawn, source, quorum_age_ms, position };
            let verdict = match action {
                Action::Reveal(Reveal { key_id, user, reason }) => {
                    let asked = Asked { by, key_id: *key_id, user: user.as_ref(), reason, at: *at };
                    alone::decide(&view, waiting, &circumstances, &asked)?
                }
                Action::DecideApproval(decide) => {
                    alone::decide_approval(&view, waiting, &circumstances, by, *at, decide)?
                }
                other => {
                    let why = format!("nothing is decided without a quorum about {}", other.kind());
                    return Err(NodeError::Fatal(why));
                }
            };
            Ok(match verdict {
                Verdict::Again(entry) => Decided::Nothing(Alone::Journalled(entry)),
                Verdict::Closed => Decided::Nothing(Alone::Closed),
                Verdict::Refused(refusal) => Decided::Nothing(Alone::Refused(refusal)),
                Verdict::Waits(ask) => Decided::Nothing(Alone::Waits(ask)),
                Verdict::Decided(what) => Decided::Entry(what),
            })
        })?;
        Ok(match appended {
            Appended::Nothing(alone) => alone,
            Appended::Entry(entry) => {
                tracing::warn!(
                    key_id = %entry.what.key_id(),
                    by = %entry.what.by(),
                    decided = summary(&entry.what),
                    sequence = entry.place.sequence,
                    "no quorum: what was decided here is in the journal"
                );
                Alone::Journalled(entry)
            }
        })
    }

    /// Keeps what `teller` has in its journal and is not on record, durably. It need not have decided that itself: a node that
    /// was removed hands over as well what others had told it, for these may be lost.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] for what a stranger tells or decided, or for too much; [`NodeError::Decode`];
    /// [`NodeError::Journal`].
    pub async fn keep_journal(&self, teller: NodeId, request: &KeepJournalRequest) -> Result<(), NodeError> {
        if request.entries.len() > BATCH_MAX {
            return Err(Invalid::new("entries", format!("at most {BATCH_MAX}")).into());
        }
        let entries: Vec<JournalEntry> =
            request.entries.iter().map(|entry| format::decode(entry)).collect::<Result<_, _>>()?;
        let node = self.clone();
        let keep = move || {
            let view = node.view()?;
            let Some(cluster) = lookup::cluster(&view)? else {
                return Err(Invalid::new("entries", "of a cluster that this node is a member of").into());
            };
            let deciders: BTreeSet<NodeId> = entries.iter().map(|entry| entry.what.source().node).collect();
            for id in deciders.iter().copied().chain([teller]) {
                if lookup::node(&view, id)?.is_none() {
                    let why = format!("of nodes that are or were members, which node {id} is not");
                    return Err(Invalid::new("entries", why).into());
                }
            }
            // A member speaks for itself; only of those that left may another one that left know more than is here.
            if !node.is_member(teller) {
                for id in deciders.into_iter().filter(|id| *id != teller) {
                    if !lookup::has_departed(&view, id)? {
                        let why =
                            format!("of nodes that left, as a node that left tells them; node {id} has not");
                        return Err(Invalid::new("entries", why).into());
                    }
                }
            }
            let mut waiting = Vec::new();
            for entry in entries {
                // A state that is wrong bears no witness.
                let known = node.quarantine().is_none() && lookup::reconciled(&view, &entry)?.is_some();
                match check_entry(&entry, &cluster.name) {
                    Ok(()) if known => {}
                    Ok(()) => waiting.push(entry),
                    // It would wait for ever.
                    Err(error) => {
                        tracing::warn!(teller, entry = %entry.place, %error, "an entry of a journal is not kept");
                    }
                }
            }
            node.keep_told(teller, waiting)
        };
        spawn_blocking(keep).await.map_err(|_| stopping())?
    }

    fn keep_told(&self, teller: NodeId, entries: Vec<JournalEntry>) -> Result<(), NodeError> {
        let now = Instant::now();
        let is_member = self.is_member(teller);
        let allowance = || self.inner.allowance.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_member {
            allowance().check(teller, now)?;
        }
        let new = self.inner.journal.keep(teller, entries)?;
        if !is_member {
            allowance().count(teller, new, now);
        }
        Ok(())
    }

    /// Brings what waits on record, or to others, until the node stops.
    pub(super) fn watch_journal(&self) {
        let (weak, stop) = (Arc::downgrade(&self.inner), self.inner.stop.clone());
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            let mut watch = Watch::default();
            let mut ticks = tokio::time::interval(LOOK_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let Some(inner) = weak.upgrade() else { return };
                watch.look(&Self { inner }).await;
            }
        }));
    }

    /// Tells every other node that is registered and has not left, those that do not have it; says who keeps what in
    /// `kept`.
    async fn tell_all<E: std::borrow::Borrow<JournalEntry>>(&self, entries: &[E], kept: &mut Kept) {
        let others = match self.registered_others() {
            Ok(others) => others,
            Err(error) => return tracing::warn!(%error, "looking for the other nodes in the replica"),
        };
        let told = join_all(others.into_iter().map(|(id, mut other)| {
            let has = kept.get(&id);
            let lacking = entries.iter().map(std::borrow::Borrow::borrow);
            let lacking = lacking.map(|entry: &JournalEntry| (entry.hash(), entry));
            let lacking = lacking.filter(|(hash, _)| has.is_none_or(|has| !has.contains(hash)));
            let (hashes, entries): (Vec<_>, Vec<_>) =
                lacking.take(BATCH_MAX).map(|(hash, entry)| (hash, format::encode(entry).into())).unzip();
            async move {
                if hashes.is_empty() {
                    return None;
                }
                match timeout(TELL_TIMEOUT, other.keep_journal(KeepJournalRequest { entries })).await {
                    Ok(Ok(_)) => Some((id, hashes)),
                    Ok(Err(status)) => {
                        self.heed(&status);
                        tracing::debug!(node = id, %status, "telling a reveal");
                        None
                    }
                    Err(_) => None,
                }
            }
        }))
        .await;
        for (id, hashes) in told.into_iter().flatten() {
            kept.entry(id).or_default().extend(hashes);
        }
    }

    /// Puts one entry on record.
    async fn reconcile(&self, entry: JournalEntry) -> Result<(), NodeError> {
        let place = entry.place;
        let command = Command {
            request: RequestId(Uuid::new_v4()),
            at: now(),
            by: self.inner.peers.identity(),
            source: Source { node: self.options().id, address: String::new() },
            action: Action::Reconcile(Reconcile { entry }),
        };
        match self.propose(&command).await?.reply {
            Reply::Reconciled { audit_sequence } => {
                tracing::info!(entry = %place, audit_sequence, "what was decided without a quorum is on record");
                Ok(())
            }
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(NodeError::Fatal(format!("unexpected answer {other:?}"))),
        }
    }
}

/// In a word, for the log.
fn summary(what: &Noted) -> &'static str {
    match what {
        Noted::ApprovalAsked(_) => "approval asked for",
        Noted::ApprovalDecided(decision) if decision.denied.is_some() => "approval denied",
        Noted::ApprovalDecided(decision) if decision.granted => "approval granted",
        Noted::ApprovalDecided(_) => "approval rejected",
        Noted::Reveal(reveal) if reveal.was_shown() => "shown",
        Noted::Reveal(_) => "denied",
    }
}

/// Which entries each other node keeps, by their hashes.
type Kept = BTreeMap<NodeId, BTreeSet<[u8; 32]>>;

/// What the task remembers between two looks.
#[derive(Default)]
struct Watch {
    /// Since when there has been a leader.
    led: Option<Instant>,
    /// Which entries each other one keeps.
    kept: Kept,
    /// Up to which entry of the log was looked for other entries in the places of this node's journal.
    compared: u64,
    /// There are some: its numbers are taken.
    is_forked: bool,
    /// Which entries were refused, by their hashes, and when.
    refused: BTreeMap<[u8; 32], Instant>,
    /// What was last complained about.
    trouble: String,
}

impl Watch {
    async fn look(&mut self, node: &Node) {
        let led = node.leader_in_contact().is_some();
        self.led = if led { self.led.or_else(|| Some(Instant::now())) } else { None };
        let journal = &node.inner.journal;
        if journal.is_empty() {
            self.kept.clear();
        }
        // A state that is wrong, or was left behind, says of nothing that it is on record. Others are told all the same.
        let is_expelled = node.expelled().is_some();
        let judges = node.quarantine().is_none() && !is_expelled;
        let compared = if judges { self.compare(node).await } else { Ok(()) };
        let outcome = match self.led {
            _ if journal.is_empty() => Ok(()),
            Some(since) if judges => self.bring_on_record(node, since).await,
            _ => {
                let mut entries = journal.own();
                // Who told it that may be lost, and told nobody else.
                entries.extend(is_expelled.then(|| journal.told()).into_iter().flatten());
                node.tell_all(&entries, &mut self.kept).await;
                Ok(())
            }
        };
        self.complain_of(compared.and(outcome));
    }

    fn complain_of(&mut self, outcome: Result<(), NodeError>) {
        if let Err(error) = outcome {
            let trouble = crate::error::chain(&error);
            if trouble != self.trouble {
                tracing::warn!(error = trouble, "reveals in the journal cannot be put on record yet");
                self.trouble = trouble;
            }
        }
    }

    /// Looks whether the numbers of this node's journal are taken, and begins another one if they are and nothing waits in
    /// it any more.
    async fn compare(&mut self, node: &Node) -> Result<(), NodeError> {
        let (journal, applied) = (node.inner.journal.clone(), node.applied());
        if applied != self.compared {
            let view = node.view()?;
            self.is_forked |= lookup::is_put_back(&view, &journal.last())?;
            for entry in journal.own() {
                self.is_forked |= lookup::is_displaced(&view, &entry)?;
            }
            self.compared = applied;
        }
        if !self.is_forked {
            return Ok(());
        }
        let old = journal.last().journal;
        if spawn_blocking(move || journal.begin_anew()).await.map_err(|_| stopping())?? {
            self.is_forked = false;
            tracing::error!(
                %old,
                "entries are on record that this node's journal does not know of: it was put back to an older copy, or another \
                 node uses it; a new one is begun"
            );
        }
        Ok(())
    }

    async fn bring_on_record(&mut self, node: &Node, since: Instant) -> Result<(), NodeError> {
        forget(node).await?;
        let journal = &node.inner.journal;
        self.refused.retain(|_, at| at.elapsed() < REFUSED_REST);
        let rests = |entry: &JournalEntry| self.refused.contains_key(&entry.hash());
        let patient = since.elapsed() < TOLD_PATIENCE;
        let is_due = |entry: &JournalEntry| !patient || !node.is_member(entry.what.source().node);
        let own = journal.own().into_iter().filter(|entry| !rests(entry)).take(BATCH_MAX);
        let told = journal.told_in_turns(BATCH_MAX, |entry| is_due(entry) && !rests(entry));
        let waiting: Vec<JournalEntry> = own.chain(told).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for entry in waiting {
            let hash = entry.hash();
            match node.reconcile(entry).await {
                Ok(()) => self.trouble.clear(),
                // This one only; the others need not wait for it, nor for another try.
                Err(error @ NodeError::Refused(_)) => {
                    self.refused.insert(hash, Instant::now());
                    outcome = Err(error);
                }
                Err(error) => return Err(error),
            }
        }
        forget(node).await?;
        outcome
    }
}

/// Drops what is on record in this node's own replica.
async fn forget(node: &Node) -> Result<(), NodeError> {
    let (view, journal) = (node.view()?, node.inner.journal.clone());
    let drop_recorded = move || {
        // What cannot be read is not known to be on record.
        let is_on_record = |entry: &JournalEntry| matches!(lookup::reconciled(&view, entry), Ok(Some(_)));
        journal.forget(is_on_record)
    };
    Ok(spawn_blocking(drop_recorded).await.map_err(|_| stopping())??)
}

fn stopping() -> NodeError {
    NodeError::Fatal("the node is stopping".to_owned())
}

/// Opens the journal of a data directory.
///
/// # Errors
/// As [`Journal::open`].
pub(super) fn open(directory: &crate::store::directory::DataDir) -> Result<Journal, NodeError> {
    Ok(Journal::open(&directory.journal())?)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
