//! `strongroom member`: list members and add one.

use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::output::table;
use super::{Exit, Failure, Global, Printer};
use crate::client::{Client, EndpointAddress};
use crate::proto::{MemberProgress, StatusResponse};

/// List and add members.
#[derive(Debug, Args)]
pub(super) struct MemberCommand {
    #[command(subcommand)]
    action: MemberAction,
}

#[derive(Debug, Subcommand)]
enum MemberAction {
    /// Add a node that runs and belongs to no cluster yet.
    Add(AddCommand),
    /// Show the members.
    List,
}

#[derive(Debug, Args)]
struct AddCommand {
    /// Host and port of the peer service of the node to add.
    #[arg(value_name = "PEER_ADDRESS", value_parser = peer_address)]
    peer_address: String,
    /// Keep it a learner: it gets everything and does not vote.
    #[arg(long)]
    learner: bool,
    /// Say what would happen, and change nothing.
    #[arg(long)]
    dry_run: bool,
}

fn peer_address(text: &str) -> Result<String, String> {
    let address: Result<EndpointAddress, _> = text.parse();
    address
        .map(|address| address.to_string())
        .map_err(|invalid| format!("peer_address: {}", invalid.expected))
}

impl MemberCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        match self.action {
            MemberAction::Add(add) if add.dry_run => plan(&add, &client.status().await?, printer),
            MemberAction::Add(add) => change(&add, &client, printer).await,
            MemberAction::List => list(&client.status().await?, printer),
        }
    }
}

fn list(status: &StatusResponse, printer: Printer) -> Result<(), Failure> {
    let members: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "id": node.id,
                "role": node.role,
                "voter": node.voter,
                "zone": node.zone,
                "api": node.api_address,
                "peer": node.peer_address,
                "reachable": node.reachable,
            })
        })
        .collect();
    printer.result(&json!({ "members": members, "leader": status.leader }), || members_text(status))
}

fn members_text(status: &StatusResponse) -> String {
    let rows = status.nodes.iter().map(|node| {
        let votes = if node.voter { "yes" } else { "no" };
        let zone = if node.zone.is_empty() { "-" } else { &node.zone };
        let text = [&node.role, votes, zone, &node.peer_address, &node.api_address];
        std::iter::once(node.id.to_string()).chain(text.map(str::to_owned)).collect()
    });
    table(&["NODE", "ROLE", "VOTES", "ZONE", "PEER", "API"], &[0], rows.collect())
}

/// What adding the node would do, from what the cluster says of itself. Nothing is changed.
fn plan(add: &AddCommand, status: &StatusResponse, printer: Printer) -> Result<(), Failure> {
    let before = voters(status);
    let member = status.nodes.iter().find(|node| node.peer_address == add.peer_address);
    if let Some(member) = member.filter(|member| member.voter || add.learner) {
        let role = if member.voter { "voter" } else { "learner" };
        let document = json!({
            "dry_run": true,
            "peer": add.peer_address,
            "role": role,
            "voters_before": before,
            "voters_after_count": before.len(),
            "failure_tolerance_before": status.failure_tolerance,
            "failure_tolerance_after": status.failure_tolerance,
        });
        return printer.result(&document, || {
            format!(
                "{} is node {} already, a {role}: there is nothing to change",
                add.peer_address, member.id
            )
        });
    }
    if status.leader.is_none() {
        return Err(Failure::new(Exit::Unavailable, "the cluster has no leader to make the change"));
    }
    let count = before.len() + usize::from(!add.learner);
    let tolerance = count.saturating_sub(1) / 2;
    let reachable = status.nodes.iter().filter(|node| node.voter && node.reachable).count();
    let role = if add.learner { "learner" } else { "voter" };
    let document = json!({
        "dry_run": true,
        "peer": add.peer_address,
        "role": role,
        "voters_before": before,
        "voters_after_count": count,
        "voters_reachable": reachable,
        "failure_tolerance_before": status.failure_tolerance,
        "failure_tolerance_after": tolerance,
    });
    printer.result(&document, || {
        format!(
            "would add {} as a {role}\nvoters now: {}, of which {reachable} can be reached; then: {count}\n\
             failures tolerated now: {}; then: {tolerance}\nnothing was changed, and the node was not asked",
            add.peer_address,
            ids(&before),
            status.failure_tolerance,
        )
    })
}

async fn change(add: &AddCommand, client: &Client, printer: Printer) -> Result<(), Failure> {
    let bar = progress_bar(printer);
    let mut change = client.add_member(&add.peer_address, add.learner).await?;
    let mut last: Option<MemberProgress> = None;
    while let Some(progress) = change.next().await? {
        bar.set_length(progress.target.max(1));
        bar.set_position(progress.matched);
        bar.set_message(progress.step.clone());
        last = Some(progress);
    }
    bar.finish_and_clear();
    let Some(done) = last else {
        return Err(Failure::new(Exit::Failed, "the membership change ended without saying how")
            .with_hint("`strongroom member list` shows what became of it; adding the node again is safe"));
    };
    let document = json!({
        "node": done.node,
        "step": done.step,
        "voters_before": done.before.clone().unwrap_or_default().voters,
        "voters_after": done.after.clone().unwrap_or_default().voters,
    });
    let (before, after) = (done.before.unwrap_or_default().voters, done.after.unwrap_or_default().voters);
    printer.result(&document, || {
        let role = if after.contains(&done.node) { "voter" } else { "learner" };
        format!("node {} is a {role}: voters were {}, now {}", done.node, ids(&before), ids(&after))
    })
}

/// Progress in entries, on a terminal; hidden elsewhere.
fn progress_bar(printer: Printer) -> ProgressBar {
    /// How often the spinner turns while nothing is reported.
    const TICK: Duration = Duration::from_millis(120);
    let target = if printer.watched() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(1), target);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg:12} {bar:30} {pos}/{len} entries") {
        bar.set_style(style);
    }
    bar.set_message("connecting");
    bar.enable_steady_tick(TICK);
    bar
}

fn voters(status: &StatusResponse) -> Vec<u64> {
    status.nodes.iter().filter(|node| node.voter).map(|node| node.id).collect()
}

fn ids(ids: &[u64]) -> String {
    if ids.is_empty() {
        return "none".to_owned();
    }
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Format;
    use crate::proto::NodeStatus;

    #[test]
    fn a_dry_run_says_what_the_change_would_come_to() {
        let node = NodeStatus { id: 1, peer_address: "n1:7421".into(), voter: true, ..NodeStatus::default() };
        let learner = NodeStatus { id: 2, peer_address: "n2:7421".into(), ..NodeStatus::default() };
        let status =
            StatusResponse { leader: Some(1), nodes: vec![node, learner], ..StatusResponse::default() };
        let leaderless = StatusResponse { leader: None, ..status.clone() };
        let exit = |peer: &str, status: &StatusResponse| {
            let add = AddCommand { peer_address: peer.into(), learner: false, dry_run: true };
            plan(&add, status, Printer::new(Format::Json)).err().map(|failure| failure.exit)
        };
        assert_eq!(exit("n3:7421", &status), None);
        assert_eq!(exit("n3:7421", &leaderless), Some(Exit::Unavailable));
        assert_eq!(exit("n2:7421", &leaderless), Some(Exit::Unavailable), "a learner would become a voter");
        assert_eq!(exit("n1:7421", &leaderless), None, "adding a voter again changes nothing");
    }

    #[test]
    fn the_table_of_members_fits_in_80_columns_and_shows_the_addresses_of_both_ports() {
        let node = NodeStatus {
            id: 1,
            role: "unreachable".into(),
            zone: "west-1".into(),
            api_address: "192.168.100.1:7420".into(),
            peer_address: "192.168.100.1:7421".into(),
            ..NodeStatus::default()
        };
        let text = members_text(&StatusResponse { nodes: vec![node], ..StatusResponse::default() });
        assert!(text.contains("192.168.100.1:7421  192.168.100.1:7420"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
}
