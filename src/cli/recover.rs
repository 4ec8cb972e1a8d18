//! `strongroom recover`: show one secret, which puts the reveal on record.

use clap::Args;
use serde_json::{Value, json};

use super::output::{Format, facts, line};
use super::{Exit, Failure, Global, Printer};
use crate::client::Recovered;
use crate::escrow::ids::{KeyId, Timestamp, UserName};
use crate::proto;

/// Show one secret.
#[derive(Debug, Args)]
pub(super) struct RecoverCommand {
    /// The id of the key, as `find` shows it.
    #[arg(value_name = "KEY_ID")]
    key_id: KeyId,
    /// Why it is needed; kept in the audit trail.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// The locked-out user; required of the role helpdesk.
    #[arg(long, value_name = r"DOMAIN\NAME")]
    user: Option<UserName>,
}

fn reason(text: &str) -> Result<String, String> {
    let trimmed = text.trim();
    if trimmed.is_empty() { Err("reason: it must not be blank".into()) } else { Ok(trimmed.to_owned()) }
}

impl RecoverCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let recovered = global.client()?.recover(self.key_id, &self.reason, self.user.as_ref()).await?;
        if let Some(warning) = warning(&recovered.details).filter(|_| printer.watched()) {
            printer.note(&warning);
        }
        show(&recovered, printer.format())
    }
}

/// Prints the secret: but for `keyring open`, the only place of the program that does.
fn show(recovered: &Recovered, format: Format) -> Result<(), Failure> {
    let secret = recovered.secret.expose_text().ok_or_else(|| {
        Failure::new(Exit::Failed, "the node answered a secret that is not text")
            .with_hint("the reveal is on record; check that client and nodes run versions that go together")
    })?;
    match format {
        Format::Json => {
            let mut document = details_json(&recovered.details);
            document["secret"] = secret.into();
            line(&format!("{document:#}"))
        }
        Format::Table => line(&format!("{secret}\n\n{}", details_text(&recovered.details))),
    }
}

/// What to know about a key that was shown without a quorum.
fn warning(details: &proto::RecoverResponse) -> Option<String> {
    let freshness = details.freshness.as_ref().filter(|freshness| freshness.consistency == "degraded")?;
    let age = freshness.quorum_age_ms.map_or_else(
        || format!("node {} has seen no quorum since it started", freshness.node),
        |ms| format!("node {} last saw a quorum {} s ago", freshness.node, ms / 1_000),
    );
    Some(format!(
        "warning: shown without a quorum: {age}, and may not know of newer keys; the reveal is in its journal and comes on record later"
    ))
}

fn details_json(details: &proto::RecoverResponse) -> Value {
    json!({
        "key_id": details.key_id,
        "machine": details.machine,
        "volume": details.volume,
        "kind": details.kind,
        "state": details.state,
        "escrowed_at": Timestamp(details.escrowed_at_ms).to_string(),
        "audit_sequence": (details.audit_sequence > 0).then_some(details.audit_sequence),
        "journal": (details.journal_sequence > 0)
            .then(|| json!({ "id": details.journal, "sequence": details.journal_sequence })),
        "freshness": freshness_json(details.freshness.as_ref()),
    })
}

fn details_text(details: &proto::RecoverResponse) -> String {
    facts(&[
        ("key", details.key_id.clone()),
        ("kind", details.kind.clone()),
        ("machine", details.machine.clone()),
        ("volume", details.volume.clone()),
        ("state", details.state.clone()),
        ("escrowed", Timestamp(details.escrowed_at_ms).to_string()),
        ("audit", audit_text(details)),
        ("answer", freshness_text(details.freshness.as_ref())),
    ])
}

fn audit_text(details: &proto::RecoverResponse) -> String {
    match details.audit_sequence {
        0 => format!("entry {} of the journal, not on record yet", details.journal_sequence),
        sequence => format!("record {sequence}"),
    }
}

/// How fresh an answer is, for programs.
pub(super) fn freshness_json(freshness: Option<&proto::Freshness>) -> Value {
    freshness.map_or(Value::Null, |freshness| {
        json!({
            "node": freshness.node,
            "consistency": freshness.consistency,
            "applied": freshness.applied,
            "term": freshness.term,
            "leader_known": freshness.leader_known,
            "quorum_age_ms": freshness.quorum_age_ms,
        })
    })
}

/// How fresh an answer is, in words that fit on one line of a terminal.
pub(super) fn freshness_text(freshness: Option<&proto::Freshness>) -> String {
    let Some(freshness) = freshness else { return "nothing is known of its freshness".to_owned() };
    let proto::Freshness { node, consistency, applied, leader_known, quorum_age_ms, .. } = freshness;
    let quorum = match quorum_age_ms {
        Some(age) => format!("quorum seen {age} ms ago"),
        None => "quorum never seen".to_owned(),
    };
    let leader = if *leader_known { "" } else { ", no leader" };
    format!("{consistency}, node {node} at {applied}; {quorum}{leader}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_is_said_in_one_line_that_never_claims_more_than_the_node_did() {
        let mut freshness = proto::Freshness {
            node: 2,
            consistency: "degraded".into(),
            applied: 12_345_678,
            term: 7,
            leader_known: false,
            quorum_age_ms: None,
        };
        let text = freshness_text(Some(&freshness));
        assert_eq!(text, "degraded, node 2 at 12345678; quorum never seen, no leader");
        freshness.quorum_age_ms = Some(86_400_000);
        assert!(freshness_text(Some(&freshness)).len() <= 70);
        assert_eq!(freshness_json(None), Value::Null);
    }

    #[test]
    fn a_key_shown_without_a_quorum_says_so_and_where_the_reveal_is_noted() {
        let mut details = proto::RecoverResponse { audit_sequence: 7, ..Default::default() };
        assert_eq!((audit_text(&details).as_str(), warning(&details)), ("record 7", None));
        assert_eq!(details_json(&details)["journal"], Value::Null);
        let degraded = proto::Freshness {
            node: 2,
            consistency: "degraded".into(),
            quorum_age_ms: Some(61_000),
            ..Default::default()
        };
        details = proto::RecoverResponse {
            freshness: Some(degraded),
            journal: "0b".into(),
            journal_sequence: 3,
            ..Default::default()
        };
        assert_eq!(audit_text(&details), "entry 3 of the journal, not on record yet");
        assert!(warning(&details).unwrap().contains("node 2 last saw a quorum 61 s ago"));
        let json = details_json(&details);
        assert_eq!((&json["audit_sequence"], &json["journal"]["sequence"]), (&Value::Null, &json!(3)));
    }

    #[test]
    fn a_blank_reason_is_no_reason() {
        assert!(reason(" \t").is_err());
        assert_eq!(reason(" locked out ").unwrap(), "locked out");
    }
}
