//! `strongroom approval`: the second person's part in a reveal.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use super::find::Consistency;
use super::output::facts;
use super::recover::{freshness_json, freshness_text};
use super::{Failure, Global, Printer};
use crate::escrow::ids::Timestamp;
use crate::proto;

/// See and decide reveals that another person asked for.
#[derive(Debug, Args)]
pub(super) struct ApprovalCommand {
    #[command(subcommand)]
    action: ApprovalAction,
}

#[derive(Debug, Subcommand)]
enum ApprovalAction {
    /// Allow a reveal, once.
    Grant(DecideCommand),
    /// List reveals that wait for a second person, or were approved and not used yet.
    List(ListCommand),
    /// Refuse a reveal, also one that was approved and not used yet.
    Reject(DecideCommand),
}

#[derive(Debug, Args)]
struct DecideCommand {
    /// The id of the request, as `approval list` shows it.
    #[arg(value_name = "REQUEST_ID")]
    approval: Uuid,
}

#[derive(Debug, Args)]
struct ListCommand {
    /// Answer from the nearest replica as it is, or with everything acknowledged so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
}

impl ApprovalCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        match self.action {
            ApprovalAction::Grant(decide) => decide.run(true, global, printer).await,
            ApprovalAction::Reject(decide) => decide.run(false, global, printer).await,
            ApprovalAction::List(list) => {
                let waiting = global.client()?.approvals(list.consistency.into()).await?;
                printer.result(&json_of(&waiting), || text_of(&waiting))
            }
        }
    }
}

impl DecideCommand {
    async fn run(self, granted: bool, global: &Global, printer: Printer) -> Result<(), Failure> {
        let decided = global.client()?.decide_approval(self.approval, granted).await?;
        let approval = self.approval.to_string();
        printer.result(&decided_json(&approval, granted, &decided), || {
            let decision = if granted { "granted: it can be used once" } else { "rejected" };
            format!("reveal {approval} is {decision}{}", decided_where(&decided))
        })
    }
}

fn decided_json(approval: &str, granted: bool, decided: &proto::DecideApprovalResponse) -> Value {
    json!({
        "approval": approval,
        "granted": granted,
        "journal": (decided.journal_sequence > 0)
            .then(|| json!({ "id": decided.journal, "sequence": decided.journal_sequence })),
        "freshness": freshness_json(decided.freshness.as_ref()),
    })
}

/// Where a decision without a quorum counts, and how long.
fn decided_where(decided: &proto::DecideApprovalResponse) -> String {
    match (&decided.freshness, decided.journal_sequence) {
        (Some(freshness), 1..) => format!(
            "\n\nwithout a quorum: it counts at node {} alone, until a quorum answers;\nit is entry {} of its journal, not on record yet",
            freshness.node, decided.journal_sequence
        ),
        _ => String::new(),
    }
}

fn json_of(waiting: &proto::ListApprovalsResponse) -> Value {
    let at = |ms: u64| Timestamp(ms).to_string();
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let approvals: Vec<Value> = waiting
        .approvals
        .iter()
        .map(|approval| {
            json!({
                "id": approval.id,
                "key_id": approval.key_id,
                "machine": approval.machine,
                "asked_by": approval.asked_by,
                "user": given(&approval.user),
                "reason": approval.reason,
                "asked_at": at(approval.asked_at_ms),
                "expires_at": at(approval.expires_at_ms),
                "granted_by": given(&approval.granted_by),
                "degraded": approval.degraded,
            })
        })
        .collect();
    json!({ "approvals": approvals, "freshness": freshness_json(waiting.freshness.as_ref()) })
}

fn text_of(waiting: &proto::ListApprovalsResponse) -> String {
    let blocks: Vec<String> = waiting.approvals.iter().map(block).collect();
    let text =
        if blocks.is_empty() { "no reveal waits for approval".to_owned() } else { blocks.join("\n\n") };
    format!("{text}\n\n{}", freshness_text(waiting.freshness.as_ref()))
}

/// A block each: who decides needs the whole of it, the reason above all.
fn block(approval: &proto::Approval) -> String {
    let proto::Approval {
        id,
        key_id,
        machine,
        asked_by,
        user,
        reason,
        asked_at_ms,
        expires_at_ms,
        granted_by,
        degraded,
    } = approval;
    let state = if granted_by.is_empty() { "waits".to_owned() } else { format!("granted by {granted_by}") };
    let counts = if *degraded { "at this node alone, until a quorum answers" } else { "at every node" };
    let user = if user.is_empty() { "not named" } else { user };
    facts(&[
        ("request", id.clone()),
        ("key", key_id.clone()),
        ("machine", machine.clone()),
        ("user", user.to_owned()),
        ("asked by", asked_by.clone()),
        ("reason", reason.clone()),
        ("asked", Timestamp(*asked_at_ms).to_string()),
        ("expires", Timestamp(*expires_at_ms).to_string()),
        ("state", state),
        ("counts", counts.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_decides_is_shown_who_asked_for_what_and_why() {
        let approval = proto::Approval {
            id: "11111111-1111-4111-8111-111111111111".into(),
            key_id: "b0b1c2d3-0000-4000-8000-000000000001".into(),
            machine: "CEO-1".into(),
            asked_by: "spiffe://demo/helpdesk-advanced/desk2".into(),
            user: String::new(),
            reason: "forgotten PIN".into(),
            asked_at_ms: 1_700_000_000_000,
            expires_at_ms: 1_700_003_600_000,
            granted_by: String::new(),
            degraded: true,
        };
        let waiting = proto::ListApprovalsResponse { approvals: vec![approval], freshness: None };
        let text = text_of(&waiting);
        for said in [
            "CEO-1",
            "forgotten PIN",
            "helpdesk-advanced/desk2",
            "2023-11-14T23:13:20",
            "waits",
            "at this node alone",
        ] {
            assert!(text.contains(said), "{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let json = json_of(&waiting);
        assert_eq!(
            (&json["approvals"][0]["user"], &json["approvals"][0]["granted_by"]),
            (&Value::Null, &Value::Null)
        );
        assert!(text_of(&proto::ListApprovalsResponse::default()).starts_with("no reveal waits"));
    }

    #[test]
    fn a_decision_without_a_quorum_says_where_it_counts() {
        let freshness = proto::Freshness { node: 2, consistency: "quorum".into(), ..Default::default() };
        let mut decided = proto::DecideApprovalResponse { freshness: Some(freshness), ..Default::default() };
        assert_eq!(decided_where(&decided), "");
        assert_eq!(decided_json("a", true, &decided)["journal"], Value::Null);
        (decided.journal, decided.journal_sequence) = ("0b".into(), 3);
        let text = decided_where(&decided);
        assert!(text.contains("at node 2 alone") && text.contains("entry 3 of its journal"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(decided_json("a", true, &decided)["journal"]["sequence"], 3);
    }
}
