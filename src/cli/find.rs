//! `strongroom find`: look keys up. Never shows a secret.

use std::collections::BTreeMap;

use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Value, json};

use super::output::table;
use super::recover::{freshness_json, freshness_text};
use super::{Failure, Global, Printer};
use crate::escrow::ids::{MachineId, Timestamp, UserName};
use crate::escrow::lookup::{KEY_ID_PREFIX_MIN_DIGITS, KeyIdPrefix};
use crate::proto;

/// Columns that a listing keeps to.
const TERMINAL_COLUMNS: usize = 80;
/// Most keys of one answer.
const LIMIT_MAX: i64 = 1_000;

/// Look keys up.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("filter").required(true).multiple(true).args(["key_id", "machine", "user"]))]
pub(super) struct FindCommand {
    /// The beginning of a key id, at least 8 hexadecimal digits.
    #[arg(long, value_name = "PREFIX")]
    key_id: Option<KeyIdPrefix>,
    /// The machine the keys belong to.
    #[arg(long, value_name = "ID")]
    machine: Option<MachineId>,
    /// A user of the machine.
    #[arg(long, value_name = r"DOMAIN\NAME")]
    user: Option<UserName>,
    /// Answer from the nearest replica as it is, or with everything acknowledged so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
    /// Wait until the answering node has applied this index, as a receipt names it.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    min_index: u64,
    /// Show at most this many keys.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=LIMIT_MAX))]
    limit: u32,
}

/// Which state a read may be answered from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Consistency {
    #[default]
    Local,
    Quorum,
}

impl From<Consistency> for proto::Consistency {
    fn from(consistency: Consistency) -> Self {
        match consistency {
            Consistency::Local => Self::Local,
            Consistency::Quorum => Self::Quorum,
        }
    }
}

impl FindCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let found = global.client()?.find(&self.request()).await?;
        printer.result(&json_of(&found), || text_of(&found))
    }

    fn request(self) -> proto::FindRequest {
        proto::FindRequest {
            key_id_prefix: self.key_id.map(|prefix| prefix.digits().to_owned()).unwrap_or_default(),
            machine: self.machine.map(String::from).unwrap_or_default(),
            user: self.user.map(String::from).unwrap_or_default(),
            consistency: proto::Consistency::from(self.consistency).into(),
            min_index: self.min_index,
            limit: self.limit,
        }
    }
}

/// Keys for programs; never a secret.
pub(super) fn json_of(found: &proto::FindResponse) -> Value {
    let at = |ms: u64| Timestamp(ms).to_string();
    let keys: Vec<Value> = found
        .keys
        .iter()
        .map(|key| {
            json!({
                "key_id": key.key_id,
                "machine": key.machine,
                "volume": key.volume,
                "kind": key.kind,
                "state": key.state,
                "escrowed_at": at(key.escrowed_at_ms),
                "escrowed_by": key.escrowed_by,
                "fingerprint": key.fingerprint,
                "users": key.users,
                "index": key.index,
                "rotation_owed_since": key.rotation_owed_since_ms.map(at),
                "owes_since": key.owes_since_ms.map(at),
                "retired_at": key.retired_at_ms.map(at),
                "has_package": key.has_package,
                "replaced_by": Some(&key.replaced_by).filter(|id| !id.is_empty()),
            })
        })
        .collect();
    json!({ "keys": keys, "truncated": found.truncated, "freshness": freshness_json(found.freshness.as_ref()) })
}

/// Keys for people; never a secret.
pub(super) fn text_of(found: &proto::FindResponse) -> String {
    let mut text = if found.keys.is_empty() { "no keys".to_owned() } else { table_of(&found.keys) };
    for (machine, since) in owing(&found.keys) {
        text.push_str(&format!("\n\n{machine} owes a rotation since {}", minute(since)));
    }
    if found.truncated {
        text.push_str("\n\nthere are more keys: narrow the search or raise --limit");
    }
    format!("{text}\n\n{}", freshness_text(found.freshness.as_ref()))
}

/// The machines that owe a rotation, each once, and since when.
fn owing(keys: &[proto::Key]) -> BTreeMap<&str, u64> {
    let owing = keys.iter().filter_map(|key| Some((key.machine.as_str(), key.rotation_owed_since_ms?)));
    owing.collect()
}

/// A few lines a key, so that a whole key id and everything beside it fit in 80 columns; one below the other if names
/// are too long even for that.
fn table_of(keys: &[proto::Key]) -> String {
    let header = ["KEY ID, KIND", "MACHINE, VOLUME", "STATE, ESCROWED"];
    let cells = |key: &proto::Key| {
        let mut id = format!("{}\n  {}", key.key_id, key.kind);
        if let Some(successor) = succession(key) {
            id.push_str(&format!("\n  {successor}"));
        }
        let place = format!("{}\n  {}", key.machine, key.volume);
        vec![id, place, format!("{}\n  {}", key.state, minute(key.escrowed_at_ms))]
    };
    let text = table(&header, &[], keys.iter().map(cells).collect());
    if text.lines().all(|line| line.chars().count() <= TERMINAL_COLUMNS) {
        return text;
    }
    let stacked: Vec<String> =
        keys.iter().map(|key| cells(key).join("\n").replace("\n  ", "\n").replace('\n', "\n  ")).collect();
    stacked.join("\n\n")
}

/// What a key that is not used any more gave way to. The beginning of an id, as a locked screen shows it, finds it.
fn succession(key: &proto::Key) -> Option<String> {
    key.retired_at_ms?;
    Some(match key.replaced_by.get(..KEY_ID_PREFIX_MIN_DIGITS) {
        Some(digits) => format!("old: replaced by {digits}…"),
        None => "old: newer ones were escrowed".to_owned(),
    })
}

/// A time to the minute.
fn minute(ms: u64) -> String {
    let at = Timestamp(ms).to_string();
    format!("{}Z", at.get(..16).unwrap_or(&at).replace('T', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> proto::FindResponse {
        let key = proto::Key {
            key_id: "b0b1c2d3-0000-4000-8000-000000000001".into(),
            machine: "PC-000000000001".into(),
            volume: "/dev/nvme0n1p2".into(),
            kind: "bitlocker-password".into(),
            state: "disclosed".into(),
            escrowed_at_ms: 1_700_000_000_000,
            escrowed_by: "spiffe://demo/importer/i".into(),
            fingerprint: "ab".repeat(32),
            users: vec![r"CORP\user1".into()],
            index: 7,
            rotation_owed_since_ms: Some(1_700_000_000_000),
            owes_since_ms: Some(1_700_000_000_000),
            ..Default::default()
        };
        let old = proto::Key {
            key_id: "b0b1c2d3-0000-4000-8000-000000000002".into(),
            state: "retired".into(),
            owes_since_ms: None,
            retired_at_ms: Some(1_700_000_001_000),
            replaced_by: key.key_id.clone(),
            ..key.clone()
        };
        let displaced = proto::Key { replaced_by: String::new(), ..old.clone() };
        let freshness = proto::Freshness {
            node: 2,
            consistency: "local".into(),
            applied: 9,
            term: 3,
            leader_known: true,
            quorum_age_ms: Some(12),
        };
        proto::FindResponse { keys: vec![key, old, displaced], truncated: true, freshness: Some(freshness) }
    }

    #[test]
    fn the_table_of_keys_fits_in_80_columns_and_shows_whole_key_ids() {
        let text = text_of(&found());
        assert!(text.contains("b0b1c2d3-0000-4000-8000-000000000001"), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(text.contains("retired") && text.contains("old: replaced by b0b1c2d3…"), "{text}");
        assert!(text.contains("old: newer ones were escrowed"), "{text}");
        assert_eq!(text.matches("PC-000000000001 owes a rotation since 2023-11-14 22:13Z").count(), 1);
    }

    #[test]
    fn names_too_long_for_columns_stand_below_each_other() {
        let mut found = found();
        found.keys.iter_mut().for_each(|key| key.machine = "M".repeat(63));
        found.keys.iter_mut().for_each(|key| key.rotation_owed_since_ms = None);
        let text = text_of(&found);
        assert!(text.contains(&format!("\n  {}\n", "M".repeat(63))), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn json_has_the_fields_of_the_contract() {
        let json = json_of(&found());
        assert_eq!(json["truncated"], true);
        assert_eq!(json["keys"][0]["escrowed_at"], "2023-11-14T22:13:20.000Z");
        assert_eq!(json["freshness"]["consistency"], "local");
        assert_eq!(json["freshness"]["quorum_age_ms"], 12);
        assert_eq!(json["keys"][0]["replaced_by"], Value::Null);
        assert_eq!(json["keys"][1]["replaced_by"], json["keys"][0]["key_id"]);
    }

    #[test]
    fn a_prefix_is_8_to_32_digits_whatever_the_hyphens() {
        assert_eq!("{B0B1C2D3-00".parse::<KeyIdPrefix>().unwrap().digits(), "b0b1c2d300");
        for bad in ["", "b0b1c2d", "b0b1c2dg", &"a".repeat(33)] {
            assert_eq!(bad.parse::<KeyIdPrefix>().unwrap_err().field, "key_id", "{bad}");
        }
    }
}
