//! What a change comes to: decided from what is known, before anything is done.
//!
//! Pure, so that a dry run and a real change cannot differ and every guard rail can be tested. Who asks gathers a
//! [`Situation`] first; a change that takes long is planned anew before the step that matters.

use std::collections::{BTreeMap, BTreeSet};

use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::NodeId;

use super::refused::Refused;

/// Fewest voters a cluster is run with: below, no failure is tolerated.
pub const VOTERS_MIN: usize = 3;
/// Most voters a cluster is run with: each further one makes every write wait for more.
pub const VOTERS_MAX: usize = 5;
/// A node that has this many entries still to receive, or to apply, is caught up: under load some are always on their
/// way.
pub const LAG_MAX_ENTRIES: u64 = 256;

/// Who the members are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who gets everything and does not vote.
    pub learners: BTreeSet<NodeId>,
    /// Who leads.
    pub leader: Option<NodeId>,
}

impl Members {
    /// How many voters make a majority.
    pub fn quorum(&self) -> usize {
        quorum(self.voters.len())
    }

    fn contains(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// How many of `voters` make a majority.
pub fn quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many voters may fail before writes stop: `n - (n / 2 + 1)`.
pub fn failure_tolerance(voters: usize) -> u32 {
    u32::try_from(voters.saturating_sub(quorum(voters))).unwrap_or(u32::MAX)
}

/// How a member is, as the leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// It answers.
    pub reachable: bool,
    /// Entries of the leader's log that it has still to receive: until then it confirms nothing new.
    pub lag: u64,
    /// Entries of the leader's log that it has still to apply: until then it neither reads nor leads.
    pub unapplied: u64,
    /// It is stopping, has put itself aside or has a wrong clock: it takes no leadership.
    pub draining: bool,
    /// Up to which feature level it can apply commands, if it answers.
    pub supports: FeatureLevel,
}

impl Default for Standing {
    /// Of one that does not answer.
    fn default() -> Self {
        Self { reachable: false, lag: 0, unapplied: 0, draining: false, supports: FeatureLevel::FIRST }
    }
}

impl Standing {
    /// Whether a majority may count on it: one that lags confirms nothing new for a while.
    fn sound(self) -> bool {
        self.reachable && self.lag <= LAG_MAX_ENTRIES
    }

    /// Whether it may lead: a leader that has entries of others still to apply keeps everybody waiting.
    fn may_lead(self) -> bool {
        self.sound() && self.unapplied <= LAG_MAX_ENTRIES && self.is_willing()
    }

    /// Whether it answers and takes a leadership.
    pub(in crate::raft) fn is_willing(self) -> bool {
        self.reachable && !self.draining
    }
}

/// What is known when a change is planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// Who the members are; the leader is the node that plans.
    pub members: Members,
    /// How each member is. One that is missing does not answer.
    pub standing: BTreeMap<NodeId, Standing>,
    /// Every node that was ever admitted.
    pub registered: BTreeSet<NodeId>,
    /// Those of them that left.
    pub departed: BTreeSet<NodeId>,
    /// Up to which feature level commands are allowed.
    pub level: FeatureLevel,
}

/// What is asked, with every address resolved to the node that answers there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Add a node that may join.
    Add {
        /// Which.
        node: NodeId,
        /// Keep it a learner.
        learner: bool,
    },
    /// Make a voter a learner.
    Demote(NodeId),
    /// Make a learner a voter.
    Promote(NodeId),
    /// Take a node out for ever.
    Remove(NodeId),
    /// Put one node in the place of another.
    Replace {
        /// Who goes.
        old: NodeId,
        /// Who comes.
        new: NodeId,
        /// Who comes has just been found fit to join; otherwise it must be a learner.
        joins: bool,
    },
    /// Move the leadership.
    Transfer(Option<NodeId>),
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It is so already.
    Nothing,
    /// Register, make a learner, catch up; then make it a voter if it is to vote.
    Add {
        /// Which.
        node: NodeId,
        /// Make it a voter at the end.
        vote: bool,
    },
    /// Make it a learner.
    Demote(NodeId),
    /// Make it a voter.
    Promote(NodeId),
    /// Take it out.
    Remove(NodeId),
    /// Put `new` in the place of `old`.
    Replace {
        /// Who goes.
        old: NodeId,
        /// Who comes.
        new: NodeId,
    },
    /// Hand the leadership over.
    Transfer(NodeId),
}

/// What a change comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Who the members are.
    pub before: Members,
    /// Who they are then.
    pub after: Members,
    /// What to know about it although it is not refused.
    pub warnings: Vec<String>,
    /// What is to be done.
    pub work: Work,
    /// The leader loses its vote by this: it hands over to this voter first, which carries the change out.
    pub hand_over: Option<NodeId>,
}

/// Plans a change, or says why it must not be.
///
/// # Errors
/// [`Refused`], with what to do instead.
pub fn plan(situation: &Situation, asked: Asked, any_voter_count: bool) -> Result<Plan, Refused> {
    let draft = Draft { situation, after: situation.members.clone() };
    let (work, after) = match asked {
        Asked::Add { node, learner } => draft.add(node, learner)?,
        Asked::Demote(node) => draft.demote(node)?,
        Asked::Promote(node) => draft.promote(node)?,
        Asked::Remove(node) => draft.remove(node)?,
        Asked::Replace { old, new, joins } => draft.replace(old, new, joins)?,
        Asked::Transfer(to) => draft.transfer(to)?,
    };
    finish(situation, asked, any_voter_count, work, after)
}

/// Judges what the change would come to, whatever it is.
fn finish(
    situation: &Situation,
    asked: Asked,
    any_voter_count: bool,
    work: Work,
    mut after: Members,
) -> Result<Plan, Refused> {
    let before = &situation.members;
    let mut warnings = Vec::new();
    let mut hand_over = None;
    if work == Work::Nothing {
        warnings.push(format!("there is nothing to change: {}", is_so_already(asked)));
    } else {
        let gone = match work {
            Work::Remove(node) | Work::Replace { old: node, .. } => Some(node),
            _ => None,
        };
        if let Some(gone) = gone {
            check_level(situation, gone)?;
        }
        if before.voters != after.voters {
            check_count(before.voters.len(), after.voters.len(), any_voter_count)?;
            check_quorum(situation, &before.voters, "now", gone)?;
            check_quorum(situation, &after.voters, "then", gone)?;
            if after.voters.len().is_multiple_of(2) {
                warnings.push(format!(
                    "{} voters tolerate no more failures than {}: an odd number is better",
                    after.voters.len(),
                    after.voters.len() - 1
                ));
            }
        }
        if let Some(leader) = before.leader.filter(|leader| !after.voters.contains(leader)) {
            let successor = successor(situation, |node| node != leader && after.voters.contains(&node));
            let successor = successor.ok_or_else(|| no_successor(situation))?;
            (hand_over, after.leader) = (Some(successor), Some(successor));
        }
    }
    Ok(Plan { before: before.clone(), after, warnings, work, hand_over })
}

fn is_so_already(asked: Asked) -> String {
    match asked {
        Asked::Add { node, learner: true } => format!("node {node} is a learner already"),
        Asked::Add { node, .. } | Asked::Promote(node) => format!("node {node} is a voter already"),
        Asked::Demote(node) => format!("node {node} is a learner already"),
        Asked::Remove(node) => format!("node {node} left already"),
        Asked::Replace { old, new, .. } => format!("node {old} left already, node {new} is a member"),
        Asked::Transfer(to) => format!("node {} leads already", to.unwrap_or_default()),
    }
}

/// The change that is asked for, by itself.
struct Draft<'a> {
    situation: &'a Situation,
    after: Members,
}

type Drafted = Result<(Work, Members), Refused>;

impl Draft<'_> {
    fn add(mut self, node: NodeId, learner: bool) -> Drafted {
        let before = &self.situation.members;
        if before.voters.contains(&node) {
            return if learner {
                Err(Refused::conflict(
                    format!("node {node} is a voter"),
                    format!("make it a learner with `member demote {node}`"),
                ))
            } else {
                Ok((Work::Nothing, self.after))
            };
        }
        if learner && before.learners.contains(&node) {
            return Ok((Work::Nothing, self.after));
        }
        if learner {
            self.after.learners.insert(node);
        } else {
            self.after.learners.remove(&node);
            self.after.voters.insert(node);
        }
        Ok((Work::Add { node, vote: !learner }, self.after))
    }

    fn demote(mut self, node: NodeId) -> Drafted {
        self.member(node)?;
        if !self.after.voters.remove(&node) {
            return Ok((Work::Nothing, self.after));
        }
        self.after.learners.insert(node);
        Ok((Work::Demote(node), self.after))
    }

    fn promote(mut self, node: NodeId) -> Drafted {
        self.member(node)?;
        if self.after.voters.contains(&node) {
            return Ok((Work::Nothing, self.after));
        }
        if self.situation.departed.contains(&node) {
            return Err(Refused::conflict(format!("node {node} is being removed"), "add another node"));
        }
        self.caught_up(node)?;
        self.after.learners.remove(&node);
        self.after.voters.insert(node);
        Ok((Work::Promote(node), self.after))
    }

    fn remove(mut self, node: NodeId) -> Drafted {
        let before = &self.situation.members;
        if !before.contains(node) {
            return if self.situation.departed.contains(&node) {
                Ok((Work::Nothing, self.after))
            } else if self.situation.registered.contains(&node) {
                // Admitted, and never made a member: it has the keyring, so it must be noted that it leaves.
                Ok((Work::Remove(node), self.after))
            } else {
                Err(unknown(node, before))
            };
        }
        self.after.voters.remove(&node);
        self.after.learners.remove(&node);
        Ok((Work::Remove(node), self.after))
    }

    fn replace(mut self, old: NodeId, new: NodeId, joins: bool) -> Drafted {
        let Situation { members: before, registered, departed, .. } = self.situation;
        if old == new {
            return Err(Refused::conflict(
                format!("node {old} cannot replace itself"),
                "name another node, with an id never used before and an empty data directory",
            ));
        }
        if !before.contains(old) {
            return if departed.contains(&old) && before.voters.contains(&new) {
                Ok((Work::Nothing, self.after))
            } else if departed.contains(&old) && before.learners.contains(&new) {
                Err(Refused::conflict(
                    format!("node {old} left already, and node {new} is a learner"),
                    format!("make it a voter with `member promote {new}` if it is to vote"),
                ))
            } else if departed.contains(&old) {
                Err(Refused::conflict(
                    format!("node {old} left already"),
                    "add the new node with `member add`",
                ))
            } else if registered.contains(&old) {
                Err(Refused::conflict(
                    format!("node {old} was admitted and is no member"),
                    format!("take it out with `member remove {old}`, then add the new one with `member add`"),
                ))
            } else {
                Err(unknown(old, before))
            };
        }
        if before.voters.contains(&new) {
            return Err(Refused::conflict(
                format!("node {new} is a voter already: it cannot take the place of another"),
                format!("name a new node or a learner, or only remove node {old} with `member remove {old}`"),
            ));
        }
        if !joins && !before.learners.contains(&new) {
            return Err(unknown(new, before));
        }
        if departed.contains(&new) {
            return Err(Refused::conflict(format!("node {new} is being removed"), "name another node"));
        }
        if self.after.voters.remove(&old) {
            self.after.learners.remove(&new);
            self.after.voters.insert(new);
        } else {
            self.after.learners.remove(&old);
            self.after.learners.insert(new);
        }
        Ok((Work::Replace { old, new }, self.after))
    }

    fn transfer(mut self, to: Option<NodeId>) -> Drafted {
        let before = &self.situation.members;
        let to = match to {
            Some(to) if before.leader == Some(to) => return Ok((Work::Nothing, self.after)),
            Some(to) => {
                self.member(to)?;
                if !before.voters.contains(&to) {
                    return Err(Refused::conflict(
                        format!("node {to} is a learner, and a learner cannot lead"),
                        format!("make it a voter first with `member promote {to}`, or name a voter"),
                    ));
                }
                self.caught_up(to)?;
                if self.standing(to).draining || self.situation.departed.contains(&to) {
                    return Err(Refused::conflict(
                        format!("node {to} is stopping or being removed"),
                        "name another voter",
                    ));
                }
                to
            }
            None => successor(self.situation, |node| Some(node) != before.leader)
                .ok_or_else(|| no_successor(self.situation))?,
        };
        self.after.leader = Some(to);
        Ok((Work::Transfer(to), self.after))
    }

    fn member(&self, node: NodeId) -> Result<(), Refused> {
        let members = &self.situation.members;
        if members.contains(node) { Ok(()) } else { Err(unknown(node, members)) }
    }

    fn standing(&self, node: NodeId) -> Standing {
        self.situation.standing.get(&node).copied().unwrap_or_default()
    }

    fn caught_up(&self, node: NodeId) -> Result<(), Refused> {
        let Standing { reachable, lag, unapplied, .. } = self.standing(node);
        let lags = |left: u64, what: &str| {
            Refused::conflict(
                format!(
                    "node {node} lags: it has {left} entries still to {what}, and may have at most {LAG_MAX_ENTRIES}"
                ),
                "wait until `strongroom status` shows that it has caught up; if it does not, look at its log",
            )
        };
        if lag > LAG_MAX_ENTRIES {
            return Err(lags(lag, "receive"));
        }
        // What it has applied only itself can say.
        if !reachable {
            return Err(Refused::conflict(
                format!("node {node} cannot be reached"),
                "start it, then try again",
            ));
        }
        if unapplied > LAG_MAX_ENTRIES {
            return Err(lags(unapplied, "apply"));
        }
        Ok(())
    }
}

/// Of the voters that `may` and can lead, the one that lags least.
fn successor(situation: &Situation, may: impl Fn(NodeId) -> bool) -> Option<NodeId> {
    let standing = |node: &NodeId| situation.standing.get(node).copied().unwrap_or_default();
    let able = situation.members.voters.iter().copied();
    let able =
        able.filter(|node| may(*node) && standing(node).may_lead() && !situation.departed.contains(node));
    able.min_by_key(|node| (standing(node).lag, standing(node).unapplied))
}

fn no_successor(situation: &Situation) -> Refused {
    Refused::conflict(
        format!(
            "no other voter can take the leadership over{}",
            ailing(situation, &situation.members.voters, Standing::may_lead)
        ),
        "bring another voter back, or add one, first",
    )
}

fn unknown(node: NodeId, members: &Members) -> Refused {
    Refused::not_found(
        format!("node {node} is no member: the voters are {}", ids(&members.voters)),
        "see `strongroom member list`",
    )
}

/// The command that notes who left must be one that everybody who stays can apply. Who leaves is not asked: it may be
/// gone, and taking it out is then the only way on.
fn check_level(situation: &Situation, gone: NodeId) -> Result<(), Refused> {
    if situation.level >= FeatureLevel::DEPARTURES {
        return Ok(());
    }
    let stays = |node: &&NodeId| situation.members.contains(**node) && **node != gone;
    let holding =
        situation.standing.iter().filter(|(node, _)| stays(node)).find_map(
            |(node, standing)| match standing {
                Standing { reachable: false, .. } => Some(format!("node {node} cannot be asked")),
                Standing { supports, .. } if *supports < FeatureLevel::DEPARTURES => {
                    Some(format!("node {node} supports level {supports} only"))
                }
                _ => None,
            },
        );
    let Some(holding) = holding else { return Ok(()) };
    Err(Refused::conflict(
        format!(
            "removing a node needs feature level {}, the cluster is at {}: {holding}",
            FeatureLevel::DEPARTURES,
            situation.level
        ),
        "upgrade and start every member that is to stay, then try again",
    ))
}

fn check_count(before: usize, after: usize, any: bool) -> Result<(), Refused> {
    if after == 0 {
        return Err(Refused::conflict(
            "the last voter cannot go: nobody would have what the cluster keeps",
            "add another voter first, or replace this one",
        ));
    }
    if any {
        return Ok(());
    }
    // Growing towards the least, and shrinking towards the most, is how one gets there.
    if after < VOTERS_MIN && after < before {
        return Err(Refused::conflict(
            format!("{after} voters would be left, and fewer than {VOTERS_MIN} tolerate no failure"),
            "use `member replace` to exchange a node; if so few are meant, say --any-voter-count",
        ));
    }
    if after > VOTERS_MAX && after > before {
        return Err(Refused::conflict(
            format!("there would be {after} voters, and more than {VOTERS_MAX} only make writes slower"),
            "add it as a read replica with `member add --learner`; if so many are meant, say --any-voter-count",
        ));
    }
    Ok(())
}

/// Of these voters a majority must be sound without `gone`: until the change is through, both the old and the new
/// voters must agree to every write, and who is told that it goes owes nobody an answer.
fn check_quorum(
    situation: &Situation,
    voters: &BTreeSet<NodeId>,
    when: &str,
    gone: Option<NodeId>,
) -> Result<(), Refused> {
    let counted = voters.iter().filter(|node| {
        let known = situation.members.contains(**node);
        let standing = situation.standing.get(*node).copied().unwrap_or_default();
        // Who is not a member yet has just been asked, and votes only once it has caught up.
        let learner = !situation.members.voters.contains(*node);
        Some(**node) != gone && (standing.sound() || !known || (learner && standing.reachable))
    });
    let (counted, quorum) = (counted.count(), quorum(voters.len()));
    if counted >= quorum {
        return Ok(());
    }
    let mut others = voters.clone();
    if let Some(gone) = gone {
        others.remove(&gone);
    }
    Err(Refused::conflict(
        format!(
            "the cluster would lose its quorum: of the voters {when} ({}), {quorum} must agree to every write, and only {counted} can{}",
            ids(voters),
            ailing(situation, &others, Standing::sound)
        ),
        "bring back the voters that are missing first; a voter that will not come back is exchanged with `member replace`",
    ))
}

/// Which of `nodes` are not as they would have to be, and why.
fn ailing(situation: &Situation, nodes: &BTreeSet<NodeId>, well: fn(Standing) -> bool) -> String {
    let said: Vec<String> = nodes
        .iter()
        .filter(|node| situation.members.contains(**node))
        .filter_map(|node| {
            let standing = situation.standing.get(node).copied().unwrap_or_default();
            if well(standing) {
                None
            } else if !standing.reachable {
                Some(format!("node {node} cannot be reached"))
            } else if !standing.sound() {
                Some(format!("node {node} lags by {} entries", standing.lag))
            } else if standing.draining {
                Some(format!("node {node} is stopping or in quarantine"))
            } else {
                Some(format!("node {node} has {} entries still to apply", standing.unapplied))
            }
        })
        .collect();
    if said.is_empty() { String::new() } else { format!(": {}", said.join(", ")) }
}

pub(super) fn ids(nodes: &BTreeSet<NodeId>) -> String {
    if nodes.is_empty() {
        return "none".to_owned();
    }
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
