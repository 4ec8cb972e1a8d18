//! `strongroom policy`: what decides who may see a key.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::find::Consistency;
use super::output::facts;
use super::recover::{freshness_json, freshness_text};
use super::{Exit, Failure, Global, Printer};
use crate::escrow::ids::Timestamp;
use crate::escrow::policy::document::{POLICY_MAX_BYTES, Policy, WithoutQuorum};
use crate::proto;

/// Show the policy of reveals, or replace it.
#[derive(Debug, Args)]
pub(super) struct PolicyCommand {
    #[command(subcommand)]
    action: PolicyAction,
}

#[derive(Debug, Subcommand)]
enum PolicyAction {
    /// Replace the policy by the one in a file. What the file leaves out has its default.
    Set(SetCommand),
    /// Show the policy that is followed.
    Show(ShowCommand),
}

#[derive(Debug, Args)]
struct SetCommand {
    /// The policy as JSON, as `policy show --output json` has it under "policy".
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The version it is to replace, as `policy show` says it; by default the one that is followed now.
    #[arg(long, value_name = "VERSION")]
    replaces: Option<u64>,
    /// Only check the file; no node is asked.
    #[arg(long, conflicts_with = "replaces")]
    check: bool,
}

#[derive(Debug, Args)]
struct ShowCommand {
    /// Answer from the nearest replica as it is, or with everything acknowledged so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
}

impl PolicyCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        match self.action {
            PolicyAction::Set(set) => set.run(global, printer).await,
            PolicyAction::Show(show) => {
                let shown = global.client()?.policy(show.consistency.into()).await?;
                let policy = read(&shown.policy)?;
                printer.result(&json_of(&shown)?, || text_of(&shown, &policy))
            }
        }
    }
}

impl SetCommand {
    async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let text = document(&self.file)?;
        let policy = Policy::from_json(&text)?;
        if self.check {
            return printer.result(&json!({ "valid": true }), || "the policy is valid".to_owned());
        }
        let client = global.client()?;
        let replaces = match self.replaces {
            Some(version) => version,
            None => client.policy(proto::Consistency::Quorum).await?.version,
        };
        let version = client.set_policy(&policy.to_json(), replaces).await?;
        printer.result(&json!({ "version": version }), || format!("the policy is set: version {version}"))
    }
}

/// The text of a policy file; a byte more than allowed is read, so that what is too long is refused as that.
fn document(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(file)
        .and_then(|opened| opened.take(POLICY_MAX_BYTES as u64 + 1).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::new(Exit::Invalid, format!("policy: {}: {error}", file.display()))),
    }
}

/// A policy that a node answered.
fn read(policy: &str) -> Result<Policy, Failure> {
    Policy::stored(policy).map_err(|error| {
        Failure::new(Exit::Failed, format!("the node answered a policy this version does not know: {error}"))
            .with_hint("check that client and nodes run versions that go together")
    })
}

fn json_of(shown: &proto::ShowPolicyResponse) -> Result<Value, Failure> {
    let policy: Value = serde_json::from_str(&shown.policy)
        .map_err(|error| Failure::new(Exit::Failed, format!("the node answered no policy: {error}")))?;
    Ok(json!({
        "version": shown.version,
        "set_at": shown.set_at_ms.map(|at| Timestamp(at).to_string()),
        "set_by": (!shown.set_by.is_empty()).then_some(&shown.set_by),
        "policy": policy,
        "freshness": freshness_json(shown.freshness.as_ref()),
    }))
}

fn text_of(shown: &proto::ShowPolicyResponse, policy: &Policy) -> String {
    let set = match shown.set_at_ms {
        Some(at) => format!("{}\nby {}", Timestamp(at), shown.set_by),
        None => "never: every cluster begins with this one".to_owned(),
    };
    let mut lines = vec![("version", shown.version.to_string()), ("set", set)];
    lines.extend(settings(policy));
    format!("{}\n\n{}", facts(&indented(&lines)), freshness_text(shown.freshness.as_ref()))
}

/// The settings, each in words.
fn settings(policy: &Policy) -> Vec<(&'static str, String)> {
    let Policy { kinds, reasons, limits, groups, approval, without_quorum } = policy;
    let kinds_of = |kinds: &[_]| match kinds {
        [] => "nothing".to_owned(),
        kinds if kinds.len() == crate::escrow::secrets::SecretKind::ALL.len() => "every kind".to_owned(),
        kinds => lines(kinds.iter()),
    };
    let limit = |hour: Option<u32>, day: Option<u32>| {
        let said =
            |limit: Option<u32>| limit.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
        format!("{} an hour, {} a day", said(hour), said(day))
    };
    let own_words = match reasons.free_text {
        true => format!("own words, at least {} characters", reasons.min_chars),
        false => "no other reason".to_owned(),
    };
    let reason = match reasons.listed.is_empty() {
        true => own_words,
        false => format!("{}\n{own_words}", lines(reasons.listed.iter())),
    };
    let marked =
        approval.groups.iter().map(|group| format!("group {group}")).chain(approval.machines.clone());
    let marked: Vec<String> = marked.collect();
    let mut settings = vec![
        ("helpdesk", kinds_of(&kinds.helpdesk)),
        ("helpdesk-advanced", kinds_of(&kinds.helpdesk_advanced)),
        ("self-service", kinds_of(&kinds.self_service)),
        ("reasons", reason),
        ("each person", limit(limits.person_per_hour, limits.person_per_day)),
        ("all together", limit(limits.cluster_per_hour, limits.cluster_per_day)),
        ("needs approval", if marked.is_empty() { "nothing".to_owned() } else { lines(marked.iter()) }),
        ("approved by", lines(approval.approvers.iter())),
        ("approval expires", format!("after {} min", approval.expires_minutes)),
    ];
    let members: Vec<String> =
        groups.iter().map(|(name, patterns)| format!("{name}: {}", patterns.join(", "))).collect();
    if !members.is_empty() {
        settings.push(("groups", lines(members.iter())));
    }
    let without = match without_quorum {
        WithoutQuorum::Allow => "reveal on the last known policy, journalled",
        WithoutQuorum::Approve => "reveal once approved, journalled",
        WithoutQuorum::Deny => "reveal nothing",
    };
    settings.push(("without quorum", without.to_owned()));
    settings
}

/// One a line.
fn lines<T: std::fmt::Display>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join("\n")
}

/// The same with what goes on in a further line standing under what it goes on from.
fn indented<'a>(pairs: &[(&'a str, String)]) -> Vec<(&'a str, String)> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    pairs.iter().map(|(name, text)| (*name, text.replace('\n', &format!("\n{:width$}", "")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_shown_in_80_columns() {
        let policy = Policy::from_json(
            r#"{"kinds": {"helpdesk": []}, "limits": {"person_per_hour": 5},
                "reasons": {"listed": ["forgotten PIN", "new mainboard"], "free_text": false},
                "groups": {"board": ["CEO-*", "CFO-*"]}, "approval": {"groups": ["board"], "machines": ["SRV-*"]},
                "without_quorum": "deny"}"#,
        )
        .unwrap();
        let shown = proto::ShowPolicyResponse {
            version: 3,
            policy: policy.to_json(),
            set_at_ms: Some(1_700_000_000_000),
            set_by: "spiffe://demo/officer/olga".into(),
            freshness: None,
        };
        let text = text_of(&shown, &policy);
        for said in [
            "version            3",
            "spiffe://demo/officer/olga",
            "helpdesk           nothing",
            "helpdesk-advanced  every kind",
            "                   new mainboard",
            "                   no other reason",
            "5 an hour, no limit a day",
            "group board",
            "SRV-*",
            "board: CEO-*, CFO-*",
            "reveal nothing",
        ] {
            assert!(text.contains(said), "{said}\n{text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        let json = json_of(&shown).unwrap();
        assert_eq!(json["policy"]["limits"]["person_per_hour"], 5);
        assert_eq!(json["version"], 3);
    }
}
