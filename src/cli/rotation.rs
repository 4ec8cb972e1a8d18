//! `strongroom rotation`: what a machine owes because a person saw a key of it, and the word of its device that it uses
//! another one.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::output::{facts, table};
use super::recover::{freshness_json, freshness_text};
use super::{Failure, Global, Printer};
use crate::escrow::ids::{KeyId, MachineId, Timestamp};
use crate::proto;

/// What machines owe, and how it is settled.
#[derive(Debug, Args)]
pub(super) struct RotationCommand {
    #[command(subcommand)]
    action: RotationAction,
}

#[derive(Debug, Subcommand)]
enum RotationAction {
    /// Say that a volume is opened by this key now, and by no older one of its kind.
    Confirm(ConfirmCommand),
    /// Ask whether a machine owes a rotation; the nearest node answers from its own replica.
    Owed(OwedCommand),
}

#[derive(Debug, Args)]
struct ConfirmCommand {
    /// The key in use.
    #[arg(value_name = "KEY_ID")]
    key_id: KeyId,
    /// The machine it belongs to.
    #[arg(long, value_name = "ID")]
    machine: MachineId,
}

#[derive(Debug, Args)]
struct OwedCommand {
    /// The machine.
    #[arg(long, value_name = "ID")]
    machine: MachineId,
    /// Wait until the answering node has applied this index, as a receipt names it.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    min_index: u64,
}

impl RotationCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        match self.action {
            RotationAction::Confirm(ConfirmCommand { key_id, machine }) => {
                let confirmed = client.confirm_key(&machine, key_id).await?;
                printer.result(&confirmed_json(&confirmed), || confirmed_text(&confirmed))
            }
            RotationAction::Owed(OwedCommand { machine, min_index }) => {
                let owed = client.rotation(&machine, min_index).await?;
                printer.result(&owed_json(&owed), || owed_text(&owed))
            }
        }
    }
}

fn at(ms: u64) -> String {
    Timestamp(ms).to_string()
}

fn confirmed_json(confirmed: &proto::ConfirmKeyResponse) -> Value {
    json!({
        "key_id": confirmed.key_id,
        "state": confirmed.state,
        "replaced": confirmed.replaced,
        "owed_since": confirmed.owed_since_ms.map(at),
        "index": confirmed.index,
    })
}

fn confirmed_text(confirmed: &proto::ConfirmKeyResponse) -> String {
    let replaced = match confirmed.replaced.as_slice() {
        [] => "nothing that was not replaced before".to_owned(),
        ids => ids.join("\n          "),
    };
    let owed = match confirmed.owed_since_ms {
        Some(since) => format!("a rotation since {}", at(since)),
        None => "nothing".to_owned(),
    };
    facts(&[
        ("key", confirmed.key_id.clone()),
        ("state", confirmed.state.clone()),
        ("replaced", replaced),
        ("owed", owed),
        ("entry", confirmed.index.to_string()),
    ])
}

fn owed_json(owed: &proto::RotationResponse) -> Value {
    let key = |key: &proto::RotationKey| {
        json!({
            "key_id": key.key_id,
            "volume": key.volume,
            "kind": key.kind,
            "state": key.state,
            "escrowed_at": at(key.escrowed_at_ms),
            "owes_since": key.owes_since_ms.map(at),
        })
    };
    json!({
        "owed_since": owed.owed_since_ms.map(at),
        "keys": owed.keys.iter().map(key).collect::<Vec<_>>(),
        "freshness": freshness_json(owed.freshness.as_ref()),
    })
}

fn owed_text(owed: &proto::RotationResponse) -> String {
    let mut text = match owed.owed_since_ms {
        Some(since) => format!("a rotation is owed since {}", at(since)),
        None => "no rotation is owed".to_owned(),
    };
    if !owed.keys.is_empty() {
        let rows = owed.keys.iter().map(|key| {
            let since = key.owes_since_ms.map_or_else(|| "waits to be confirmed".to_owned(), at);
            vec![
                format!("{}\n  {}", key.key_id, key.kind),
                key.volume.clone(),
                format!("{}\n  {since}", key.state),
            ]
        });
        text.push_str("\n\n");
        text.push_str(&table(&["KEY ID, KIND", "VOLUME", "STATE, OWED SINCE"], &[], rows.collect()));
    }
    format!("{text}\n\n{}", freshness_text(owed.freshness.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_and_what_waits_is_told_within_80_columns() {
        let disclosed = proto::RotationKey {
            key_id: "b0b1c2d3-0000-4000-8000-000000000001".into(),
            volume: "/dev/nvme0n1p2".into(),
            kind: "luks-recovery".into(),
            state: "disclosed".into(),
            escrowed_at_ms: 5,
            owes_since_ms: Some(1_700_000_000_000),
        };
        let pending =
            proto::RotationKey { state: "pending".into(), owes_since_ms: None, ..disclosed.clone() };
        let owed = proto::RotationResponse {
            owed_since_ms: Some(1_700_000_000_000),
            keys: vec![disclosed, pending],
            freshness: None,
        };
        let text = owed_text(&owed);
        assert!(text.starts_with("a rotation is owed since 2023-11-14T22:13:20.000Z\n"), "{text}");
        assert!(text.contains("waits to be confirmed"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(owed_json(&owed)["keys"][1]["owes_since"], Value::Null);
        assert!(owed_text(&proto::RotationResponse::default()).starts_with("no rotation is owed\n"));
    }
}
