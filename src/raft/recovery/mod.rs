//! Beginning a new history on what one node has, after a quorum was lost for ever.
//!
//! First [`survey`]: what this node's storage holds, and what every other member that can be reached says of itself. A
//! [`Survey`] judges from that who survives, who has most of the log, what may be lost, and what speaks against it.
//! Then the log of one survivor gets a membership of that node alone ([`Storage::append_sole_voter`]); the node leads
//! itself, applies what it has, and commits the command that gives the history a new identity
//! ([`Node::recover_cluster`]). All of that without a port: nobody hears of the moment in between.

mod survey;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use openraft::Membership;
use tokio::task::spawn_blocking;
use uuid::Uuid;

pub use self::survey::{Allowed, Asked, KnownMembership, Loss, Objection, Survey, Survivor};

use crate::escrow::command::{Action, Command, RecoverCluster, Reply};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterId, NodeId, RequestId};
use crate::escrow::lookup;
use crate::escrow::records::{KeyringRecord, LogPosition, Source};
use crate::proto::peer::{self, DescribeResponse};
use crate::seal::NodeKey;
use crate::store::StoreError;
use crate::store::format::Payload;
use crate::store::log::Vote;
use crate::tls::ExpectedPeer;

use super::error::NodeError;
use super::log_store::{READ_MAX_BYTES, decode_membership, encode_membership};
use super::node::Node;
use super::now;
use super::peers::{Peers, describe};
use super::storage::Storage;
use super::types::Member;

/// Longest a member may take to say what it has before it counts as lost.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest this node may take to lead itself and to apply all that its log holds.
const LEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Asks every member that `local` or anybody who answers knows of. `running`: it is the node that runs here which said
/// what `local` is.
pub async fn survey(node: NodeId, local: Survivor, running: bool, peers: &Peers) -> Survey {
    let mut asked: BTreeMap<NodeId, Asked> = BTreeMap::new();
    let mut known = local.membership.members.clone();
    loop {
        let more: Vec<_> = known.iter().filter(|(id, _)| **id != node && !asked.contains_key(*id)).collect();
        if more.is_empty() {
            return Survey { node, running, local, asked };
        }
        let answers = join_all(more.into_iter().map(|(id, member)| async {
            let found = ask(peers, *id, &member.peer_address).await;
            (*id, Asked { member: member.clone(), found })
        }))
        .await;
        for (id, answer) in answers {
            if let Ok(found) = &answer.found {
                for (id, member) in &found.membership.members {
                    known.entry(*id).or_insert_with(|| member.clone());
                }
            }
            asked.insert(id, answer);
        }
    }
}

/// Asks the node at `address`, which must be `id`, what it has.
///
/// # Errors
/// In words, why it did not say.
pub async fn ask(peers: &Peers, id: NodeId, address: &str) -> Result<Survivor, String> {
    let mut client = peers.stranger(address, ExpectedPeer::Node(id));
    let described = describe(&mut client, ASK_TIMEOUT).await;
    let described = described.map_err(|status| crate::error::status(&status))?;
    survivor(described).ok_or_else(|| "its answer cannot be read".to_owned())
}

fn survivor(described: DescribeResponse) -> Option<Survivor> {
    let status = described.status?;
    let cluster = match described.cluster.as_str() {
        "" => None,
        id => Some(ClusterId(id.parse().ok()?)),
    };
    Some(Survivor {
        storage: described.storage.parse().ok()?,
        cluster,
        last: LogPosition { term: status.last_log_term, index: status.last_log },
        committed: status.committed,
        applied: status.applied,
        leader: described.leader,
        quorum_age_ms: described.quorum_age_ms,
        unfit: (!status.quarantine.is_empty()).then_some(status.quarantine),
        membership: known(described.membership.unwrap_or_default())?,
    })
}

fn known(membership: peer::KnownMembership) -> Option<KnownMembership> {
    let mut members = BTreeMap::new();
    for member in membership.members {
        let storage: Uuid = member.storage.parse().ok()?;
        members.insert(member.id, Member { peer_address: member.peer_address, storage, ..Member::default() });
    }
    let voters = membership.voters.into_iter().map(|set| set.ids.into_iter().collect()).collect();
    Some(KnownMembership { voters, members })
}

impl From<KnownMembership> for peer::KnownMembership {
    fn from(known: KnownMembership) -> Self {
        let voters = known.voters.into_iter().map(|set| peer::VoterSet { ids: set.into_iter().collect() });
        let members = known.members.into_iter().map(|(id, member)| peer::KnownMember {
            id,
            peer_address: member.peer_address,
            storage: member.storage.to_string(),
        });
        Self { voters: voters.collect(), members: members.collect() }
    }
}

fn known_of(membership: &Membership<NodeId, Member>) -> KnownMembership {
    KnownMembership {
        voters: membership.get_joint_config().clone(),
        members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
    }
}

impl Storage {
    /// Applies what is known to be committed, as every start does, so that the state can be looked at without one.
    ///
    /// # Errors
    /// As [`Machine::apply`](crate::store::machine::Machine::apply); the log cannot be read.
    pub async fn replay_committed(&self) -> Result<(), StoreError> {
        let committed = self.log.committed().map_err(StoreError::Log)?.map_or(0, |position| position.index);
        let mut next = self.machine.applied().position.map_or(0, |position| position.index + 1);
        while next <= committed {
            let batch = self.log.read(next, committed + 1, READ_MAX_BYTES).await.map_err(StoreError::Log)?;
            let Some((last, _)) = batch.last() else { return Ok(()) };
            next = last.index + 1;
            let machine = self.machine.clone();
            let apply = move || {
                batch.into_iter().try_for_each(|(position, record)| {
                    let payload = Payload::decode(&record).map_err(|error| StoreError::Entry {
                        index: position.index,
                        reason: error.to_string(),
                    })?;
                    machine.apply(position, payload).map(drop)
                })
            };
            spawn_blocking(apply).await.map_err(|panic| StoreError::Stopped(panic.to_string()))??;
        }
        Ok(())
    }

    /// What this storage, of the node with data directory `storage`, holds.
    ///
    /// # Errors
    /// [`NodeError::Store`], [`NodeError::State`] if it cannot be read.
    pub async fn survivor(&self, storage: Uuid) -> Result<Survivor, NodeError> {
        let log = self.log.state().map_err(StoreError::Log)?;
        let cluster = lookup::cluster(&self.machine.view()?)?.map(|cluster| cluster.id);
        let applied = self.machine.applied().position;
        Ok(Survivor {
            storage,
            cluster,
            last: log.last.max(applied).unwrap_or_default(),
            committed: log.committed.max(applied).map_or(0, |position| position.index),
            applied: applied.map_or(0, |position| position.index),
            leader: None,
            quorum_age_ms: None,
            unfit: self.quarantine.current().map(|why| why.to_string()),
            membership: self.last_membership().await?,
        })
    }

    /// The last membership in the log, or the one that was applied if the log has none behind it.
    async fn last_membership(&self) -> Result<KnownMembership, StoreError> {
        let applied = self.machine.applied();
        let mut membership = applied.membership.map(|(_, bytes)| bytes);
        let mut next = applied.position.map_or(0, |position| position.index + 1);
        loop {
            let batch = self.log.read(next, u64::MAX, READ_MAX_BYTES).await.map_err(StoreError::Log)?;
            let Some((last, _)) = batch.last() else { break };
            next = last.index + 1;
            for (_, record) in &batch {
                if let Ok(Payload::Membership(bytes)) = Payload::decode(record) {
                    membership = Some(bytes.to_vec());
                }
            }
        }
        match membership {
            Some(bytes) => Ok(known_of(&decode_membership(&bytes).map_err(StoreError::Log)?)),
            None => Ok(KnownMembership::default()),
        }
    }

    /// Where [`Storage::append_sole_voter`] would put its entry: behind the last one, in a term that this node knows
    /// nothing of.
    ///
    /// # Errors
    /// [`StoreError::Log`].
    pub fn next_position(&self) -> Result<LogPosition, StoreError> {
        let last = self.log.state().map_err(StoreError::Log)?.last.max(self.machine.applied().position);
        let vote = self.log.vote().map_err(StoreError::Log)?.map_or(0, |vote| vote.term);
        let last = last.unwrap_or_default();
        Ok(LogPosition { term: vote.max(last.term) + 1, index: last.index + 1 })
    }

    /// Makes `member`, this node, the only voter, by an entry at `position`. Durable when it returns. What stands in
    /// the log before it stays, and is committed with it: some of it may have been acknowledged.
    ///
    /// # Errors
    /// [`StoreError::Log`] if it cannot be written; whether it was is to be seen in the log then.
    pub async fn append_sole_voter(
        &self,
        position: LogPosition,
        id: NodeId,
        member: Member,
    ) -> Result<(), StoreError> {
        let nodes = BTreeMap::from([(id, member)]);
        let membership = Membership::new(vec![BTreeSet::from([id])], nodes)
            .map_err(|error| StoreError::Log(std::io::Error::other(error.to_string())))?;
        // The vote first: the term must not be used by anybody this node would vote for.
        let vote = Vote { term: position.term, committed: false, node: id };
        self.log.save_vote(vote).await.map_err(StoreError::Log)?;
        let record = Payload::Membership(&encode_membership(&membership)).encode();
        self.log.append(vec![(position, record)], drop).await.map_err(StoreError::Log)?;
        self.log.sync().await.map_err(StoreError::Log)
    }

    /// The keyring that a new history would begin with, to see beforehand that there will be one.
    ///
    /// # Errors
    /// As [`Node::recover_cluster`].
    pub fn rotated_keyring(&self, key: &NodeKey) -> Result<KeyringRecord, NodeError> {
        let view = self.machine.view()?;
        let (record, cluster) =
            lookup::keyring(&view)?.zip(lookup::cluster(&view)?).ok_or(NodeError::NoCluster)?;
        let keyring = crate::seal::Keyring::open(&record.age_file, key)?;
        sealed_again(&keyring, &record, vec![key.recipient(), cluster.offline_recipient])
    }
}

/// `keyring` with a new data key, sealed to `recipients`: what replaces `record`.
fn sealed_again(
    keyring: &crate::seal::Keyring,
    record: &KeyringRecord,
    recipients: Vec<String>,
) -> Result<KeyringRecord, NodeError> {
    let rotated = keyring.rotated()?;
    Ok(KeyringRecord {
        generation: record.generation + 1,
        current_key_version: rotated.current_version(),
        age_file: rotated.seal_to(&recipients)?,
    })
}

impl Node {
    /// Who the members are, as the last membership in this node's log has it; `None` if there is none.
    pub fn known_membership(&self) -> Option<KnownMembership> {
        let metrics = self.metrics();
        let known = known_of(metrics.membership_config.membership());
        (!known.members.is_empty()).then_some(known)
    }

    /// Waits until this node, the only voter, leads and has applied all of its log.
    ///
    /// # Errors
    /// [`NodeError::Fatal`] if it stopped, or is not the only voter; [`NodeError::NoQuorum`] if that takes longer than
    /// two minutes.
    pub async fn lead_alone(&self) -> Result<(), NodeError> {
        let id = self.options().id;
        let wait = self.inner.raft.wait(Some(LEAD_TIMEOUT));
        let caught_up = wait.metrics(
            |metrics| {
                metrics.current_leader == Some(id)
                    && metrics.last_applied.map(|applied| applied.index) >= metrics.last_log_index
            },
            "leading alone",
        );
        if caught_up.await.is_err() {
            self.running()?;
            return Err(NodeError::NoQuorum(LEAD_TIMEOUT));
        }
        match self.voters() {
            voters if voters == [id] => Ok(()),
            voters => Err(NodeError::Fatal(format!("the voters are {voters:?}, not this node alone"))),
        }
    }

    /// As the only voter: begins the new history `cluster`. Doing it twice is doing it once.
    ///
    /// # Errors
    /// As [`Node::propose`]; [`NodeError::Keyring`] if the keyring is not sealed to this node or has no room for another
    /// data key; [`NodeError::Refused`].
    pub async fn recover_cluster(&self, cluster: ClusterId) -> Result<(), NodeError> {
        let needed = FeatureLevel(2);
        if self.feature_level()? < needed {
            self.raise_feature_level(needed).await?;
        }
        let (current, record) = {
            let view = self.view()?;
            lookup::cluster(&view)?.zip(lookup::keyring(&view)?).ok_or(NodeError::NoCluster)?
        };
        if current.id == cluster {
            return Ok(());
        }
        let recipients = vec![self.recipient(), current.offline_recipient];
        let keyring = sealed_again(&*self.keyring()?, &record, recipients)?;
        let survivor = self.options().id;
        let command = Command {
            request: RequestId(Uuid::new_v4()),
            at: now(),
            by: self.inner.peers.identity(),
            source: Source { node: survivor, address: String::new() },
            action: Action::RecoverCluster(RecoverCluster { cluster, survivor, keyring }),
        };
        match self.propose(&command).await?.reply {
            Reply::ClusterRecovered => Ok(()),
            Reply::Refused(refusal) => Err(refusal.into()),
            other => Err(NodeError::Fatal(format!("unexpected answer {other:?}"))),
        }
    }
}
