//! `strongroom member`: who is in the cluster, and changes of it.
//!
//! What a change comes to is decided by the leader, for a dry run and a real one alike; here it is only asked for and
//! shown.

mod list;
mod outcome;
mod progress;

use clap::{Args, Subcommand};

use self::outcome::Outcome;
use self::progress::CatchUp;
use super::{Exit, Failure, Global, Printer};
use crate::client::{Client, ClientError, EndpointAddress};
use crate::escrow::ids::NodeId;
use crate::proto::membership_change::Change;
use crate::proto::replace_member::Replacement;
use crate::proto::{
    AddMember, DemoteMember, MemberProgress, MembershipChange, PromoteMember, RemoveMember, ReplaceMember,
    TransferLeader,
};

/// List members, and change who they are.
#[derive(Debug, Args)]
pub(super) struct MemberCommand {
    #[command(subcommand)]
    action: MemberAction,
}

#[derive(Debug, Subcommand)]
enum MemberAction {
    /// Add a node that runs and belongs to no cluster yet.
    Add(AddCommand),
    /// Make a voter a learner: it gets everything and does not vote.
    Demote(NodeCommand),
    /// Show the members.
    List,
    /// Make a learner that has caught up a voter.
    Promote(NodeCommand),
    /// Take a member out for ever and rotate the data key.
    Remove(NodeCommand),
    /// Put one node in the place of another, and take that one out for ever.
    Replace(ReplaceCommand),
    /// Move the leadership.
    Transfer(TransferCommand),
}

#[derive(Debug, Args)]
struct AddCommand {
    /// Host and port of the peer service of the node to add.
    #[arg(value_name = "PEER_ADDRESS", value_parser = peer_address)]
    peer_address: String,
    /// Keep it a learner: it gets everything and does not vote.
    #[arg(long)]
    learner: bool,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct NodeCommand {
    /// The id of the node.
    #[arg(value_name = "ID", value_parser = node_id)]
    node: NodeId,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct ReplaceCommand {
    /// The id of the node that goes.
    #[arg(value_name = "OLD_ID", value_parser = node_id)]
    old: NodeId,
    /// Who comes: host and port of the peer service of a node to add, or the id of a learner.
    #[arg(value_name = "NEW", value_parser = replacement)]
    new: New,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Args)]
struct TransferCommand {
    /// The id of the voter that is to lead; the one that has most of the log if none is named.
    #[arg(value_name = "ID", value_parser = node_id)]
    to: Option<NodeId>,
    #[command(flatten)]
    how: How,
}

/// What every change takes.
#[derive(Debug, Clone, Copy, Args)]
struct How {
    /// Say what the change would come to, refuse what would be refused, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Allow fewer than three voters, or more than five.
    #[arg(long)]
    any_voter_count: bool,
}

/// Who comes in the place of a member.
#[derive(Debug, Clone)]
enum New {
    Added(String),
    Learner(NodeId),
}

fn peer_address(text: &str) -> Result<String, String> {
    let address: Result<EndpointAddress, _> = text.parse();
    address
        .map(|address| address.to_string())
        .map_err(|invalid| format!("peer_address: {}", invalid.expected))
}

fn node_id(text: &str) -> Result<NodeId, String> {
    text.parse().ok().filter(|id| *id > 0).ok_or_else(|| "node: the id of a node, from 1".to_owned())
}

fn replacement(text: &str) -> Result<New, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return node_id(text).map(New::Learner);
    }
    peer_address(text)
        .map(New::Added)
        .map_err(|_| "replacement: host:port of a node's peer service, or the id of a learner".to_owned())
}

impl MemberCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        match self.action.asked() {
            None => list::print(&client.status().await?, printer),
            Some((name, change)) => make(name, &change, &client, printer).await,
        }
    }
}

impl MemberAction {
    /// The change that is asked for, and its name; none to list.
    fn asked(self) -> Option<(&'static str, MembershipChange)> {
        let (name, change, how) = match self {
            Self::List => return None,
            Self::Add(AddCommand { peer_address, learner, how }) => {
                ("add", Change::Add(AddMember { peer_address, learner }), how)
            }
            Self::Demote(NodeCommand { node, how }) => ("demote", Change::Demote(DemoteMember { node }), how),
            Self::Promote(NodeCommand { node, how }) => {
                ("promote", Change::Promote(PromoteMember { node }), how)
            }
            Self::Remove(NodeCommand { node, how }) => ("remove", Change::Remove(RemoveMember { node }), how),
            Self::Replace(ReplaceCommand { old, new, how }) => {
                let replacement = Some(match new {
                    New::Added(address) => Replacement::PeerAddress(address),
                    New::Learner(learner) => Replacement::Learner(learner),
                });
                ("replace", Change::Replace(ReplaceMember { old, replacement }), how)
            }
            Self::Transfer(TransferCommand { to, how }) => {
                ("transfer", Change::Transfer(TransferLeader { to }), how)
            }
        };
        let How { dry_run, any_voter_count } = how;
        Some((name, MembershipChange { change: Some(change), dry_run, any_voter_count }))
    }
}

/// Makes a change, showing how far it is, and prints what it came to.
async fn make(
    name: &'static str,
    change: &MembershipChange,
    client: &Client,
    printer: Printer,
) -> Result<(), Failure> {
    let progress = CatchUp::new(printer);
    let mut steps = client.change_membership(change).await?;
    let mut last: Option<MemberProgress> = None;
    while let Some(step) = steps.next().await.map_err(broken_off)? {
        progress.show(&step);
        // Steps on the way say nothing of what the whole comes to.
        if step.before.is_some() {
            last = Some(step);
        }
    }
    progress.end();
    let ended = last.filter(|last| change.dry_run || last.step == "done");
    let Some(ended) = ended else {
        return Err(Failure::new(Exit::Unavailable, "the change ended without saying how")
            .with_hint("run the same command again: it goes on where it ended"));
    };
    let outcome = Outcome { change: name, dry_run: change.dry_run, ended: &ended };
    for warning in &ended.warnings {
        printer.note(&format!("warning: {warning}"));
    }
    printer.result(&outcome.json(), || outcome.text())
}

/// A change that was begun, and of which nothing more is heard.
fn broken_off(error: ClientError) -> Failure {
    let silent = matches!(error, ClientError::Unavailable { .. });
    let failure = Failure::from(error);
    if silent { failure.with_hint("run the same command again: it goes on where it ended") } else { failure }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_is_an_address_or_a_learner() {
        assert!(matches!(replacement("4"), Ok(New::Learner(4))));
        assert!(matches!(replacement("node-4:7421"), Ok(New::Added(address)) if address == "node-4:7421"));
        for wrong in ["", "0", "node-4", "99999999999999999999999"] {
            assert!(replacement(wrong).is_err(), "{wrong:?}");
        }
    }
}
