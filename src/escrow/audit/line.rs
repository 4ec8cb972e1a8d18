//! An audit record as one line of an export: a JSON object with everything that is hashed, and the hash.
//!
//! The names are a contract with whatever reads exports. A line that is read back is believed only if it is, byte for
//! byte, what its record is written as: so nothing in it can be changed, doubled or added beside the hash, not even what
//! only repeats in other words (`outcome`).

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::facts::Facts;
use super::record_hash;
use crate::escrow::ids::{Identity, Invalid};
use crate::escrow::records::{AuditEvent, AuditRecord, LogPosition, Source};

/// Longest line, in bytes: tens of times a reveal with the longest reason.
pub const LINE_MAX_BYTES: usize = 256 * 1024;
/// The `type` of a record among the lines of an export.
pub const RECORD_TYPE: &str = "record";

/// What a detail is called whose event gives it no name.
const UNNAMED: &str = "value";

/// The line, its fields in the order in which they are written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    r#type: String,
    seq: u64,
    time: String,
    event: String,
    outcome: String,
    source: String,
    /// Who did it, through which node and from where.
    actor: Identity,
    node: u64,
    address: String,
    /// When it was decided, if that was before it was put on record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    decided_at: Option<String>,
    /// Who put it on record, if that is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recorded: Option<Recorded>,
    term: u64,
    index: u64,
    /// What belongs to the event alone, by name.
    details: BTreeMap<String, Value>,
    previous_hash: String,
    hash: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recorded {
    address: String,
    by: Identity,
    node: u64,
}

/// A record as a line states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatedRecord {
    /// The record.
    pub record: AuditRecord,
    /// The hash it says it has.
    pub hash: [u8; 32],
    /// The line is what the record is written as, its true hash included.
    pub genuine: bool,
}

/// The record as a line of an export, without the line end.
pub fn render(record: &AuditRecord) -> String {
    let AuditRecord { sequence, previous, at, by, source, position, event } = record;
    let facts = Facts::of(event);
    let (event, details) = event_parts(event);
    let (actor, came_in) = (facts.actor.unwrap_or(by), facts.came_in.unwrap_or(source));
    let by_another = actor != by || came_in != source;
    let recorded =
        by_another.then(|| Recorded { by: by.clone(), node: source.node, address: source.address.clone() });
    let fields = Fields {
        r#type: RECORD_TYPE.to_owned(),
        seq: *sequence,
        time: at.to_string(),
        event,
        outcome: facts.outcome.to_string(),
        source: facts.source.to_string(),
        actor: actor.clone(),
        node: came_in.node,
        address: came_in.address.clone(),
        decided_at: facts.decided_at.map(|at| at.to_string()),
        recorded,
        term: position.term,
        index: position.index,
        details,
        previous_hash: HEXLOWER.encode(previous),
        hash: HEXLOWER.encode(&record_hash(record)),
    };
    serde_json::to_string(&fields).expect("text, numbers and maps with text as keys, and no I/O")
}

/// The record that `line` states.
///
/// # Errors
/// [`Invalid`] if it states none.
pub fn parse(line: &str) -> Result<StatedRecord, Invalid> {
    let not_one = |what: String| Invalid::new("record", what);
    let fields: Fields = serde_json::from_str(line).map_err(|error| not_one(error.to_string()))?;
    if fields.r#type != RECORD_TYPE {
        return Err(not_one(format!("a line of type {RECORD_TYPE}")));
    }
    let event = event_of(&fields.event, fields.details).ok_or_else(|| {
        let name: String = fields.event.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
        not_one(format!("an event that this release knows, with its details; {name} is none"))
    })?;
    let Recorded { by, node, address } =
        fields.recorded.unwrap_or(Recorded { by: fields.actor, node: fields.node, address: fields.address });
    let record = AuditRecord {
        sequence: fields.seq,
        previous: hash_of("previous_hash", &fields.previous_hash)?,
        at: fields.time.parse()?,
        by,
        source: Source { node, address },
        position: LogPosition { term: fields.term, index: fields.index },
        event,
    };
    let hash = hash_of("hash", &fields.hash)?;
    let genuine = render(&record) == line;
    Ok(StatedRecord { record, hash, genuine })
}

fn hash_of(field: &str, text: &str) -> Result<[u8; 32], Invalid> {
    let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| Invalid::new(field, "64 lower-case hexadecimal digits"))
}

/// The name of an event, and its fields by name.
fn event_parts(event: &AuditEvent) -> (String, BTreeMap<String, Value>) {
    match serde_json::to_value(event).expect("text and numbers, and no I/O") {
        Value::Object(variant) => {
            let (name, fields) = variant.into_iter().next().expect("an enum is written as its variant");
            let details = match fields {
                Value::Object(fields) => fields.into_iter().collect(),
                unnamed => BTreeMap::from([(UNNAMED.to_owned(), unnamed)]),
            };
            (kebab(&name), details)
        }
        name => (kebab(name.as_str().unwrap_or_default()), BTreeMap::new()),
    }
}

fn event_of(name: &str, details: BTreeMap<String, Value>) -> Option<AuditEvent> {
    let variant = camel(name);
    if details.is_empty() {
        return serde_json::from_value(Value::String(variant)).ok();
    }
    let of = |fields: Value| {
        serde_json::from_value(Value::Object([(variant.clone(), fields)].into_iter().collect()))
    };
    let unnamed = details.get(UNNAMED).filter(|_| details.len() == 1).cloned();
    let named = Value::Object(details.into_iter().collect());
    of(named).ok().or_else(|| unnamed.and_then(|fields| of(fields).ok()))
}

/// `NodeAdmitted` as `node-admitted`.
fn kebab(name: &str) -> String {
    let mut text = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

/// `node-admitted` as `NodeAdmitted`.
fn camel(name: &str) -> String {
    let capital = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    name.split('-').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::audit::tests::{chain, every_event, record_of};
    use crate::escrow::ids::Timestamp;

    #[test]
    fn every_event_is_written_as_the_golden_export_says_and_comes_back() {
        let records = chain_of_every_event();
        let lines: Vec<String> = records.iter().map(render).collect();
        assert_eq!(lines.join("\n") + "\n", include_str!("testdata/export.jsonl"));
        for (line, record) in lines.iter().zip(&records) {
            let stated = parse(line).unwrap();
            assert_eq!(
                stated,
                StatedRecord { record: record.clone(), hash: record_hash(record), genuine: true }
            );
        }
    }

    fn chain_of_every_event() -> Vec<AuditRecord> {
        let mut head = super::super::ChainHead::default();
        every_event().into_iter().map(|event| record_of(&mut head, event)).collect()
    }

    #[test]
    fn a_stamp_beyond_the_calendar_comes_back() {
        let mut record = chain(&[(0, String::new())]).remove(0);
        for at in [0, 1, 253_402_300_799_999, 253_402_300_800_000, u64::MAX] {
            record.at = Timestamp(at);
            let stated = parse(&render(&record)).unwrap();
            assert!(stated.genuine && stated.record.at == Timestamp(at), "{at}");
        }
    }

    #[test]
    fn a_line_that_is_written_otherwise_is_not_genuine() {
        let line = render(&chain(&[(31, "lost PIN".to_owned())])[0]);
        let other = [
            line.replace("\"outcome\":\"denied\"", "\"outcome\":\"allowed\""),
            line.replace("\"source\":\"quorum\"", "\"source\":\"degraded\""),
            line.replace("\"seq\":1,", "\"seq\": 1,"),
            line.replace("\"event\":\"reveal\"", "\"event\":\"Reveal\""),
            line.replace("\"details\":{", "\"details\":{\"note\":1,"),
            line.replace("\"user\":", "\"user\":\"CORP\\\\other\",\"user\":"),
            format!("{line} "),
        ];
        for other in other {
            assert_ne!(other, line);
            assert!(!parse(&other).unwrap().genuine, "{other}");
        }
    }

    #[test]
    fn of_what_a_node_decided_alone_the_line_says_who_asked_where_and_when_and_who_put_it_on_record() {
        let records = chain_of_every_event();
        let alone = records.iter().find(|record| matches!(record.event, AuditEvent::RevealReconciled { .. }));
        let line = render(alone.unwrap());
        let said: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(said["actor"], "spiffe://acme/officer/olga");
        assert_eq!((&said["node"], &said["decided_at"]), (&3.into(), &"1970-01-01T00:00:00.005Z".into()));
        assert_eq!(said["recorded"]["by"], "spiffe://acme/helpdesk/desk1");
        // None of it can be changed, left out or added without being seen.
        for other in [
            line.replace("\"actor\":\"spiffe://acme/officer/olga", "\"actor\":\"spiffe://acme/officer/otto"),
            line.replace(
                "\"node\":3,\"address\":\"192.0.2.7:4000\",\"dec",
                "\"node\":2,\"address\":\"192.0.2.7:4000\",\"dec",
            ),
            line.replace("\"decided_at\":\"1970-01-01T00:00:00.005Z\",", ""),
            line.replace("\"decided_at\":\"1970", "\"decided_at\":\"1971"),
            line.replace(
                "\"recorded\":{\"address\":\"192.0.2.7:4000\",\"by\":\"spiffe://acme/helpdesk/desk1",
                "\"recorded\":{\"address\":\"192.0.2.7:4000\",\"by\":\"spiffe://acme/helpdesk/desk2",
            ),
        ] {
            assert_ne!(other, line);
            let stated = parse(&other).unwrap();
            assert!(!stated.genuine || record_hash(&stated.record) != stated.hash, "{other}");
        }
        let plain = render(&records[0]);
        let added = plain.replace("\"term\"", "\"recorded\":{\"address\":\"192.0.2.7:4000\",\"by\":\"spiffe://acme/helpdesk/desk1\",\"node\":1},\"term\"");
        assert_ne!(added, plain);
        assert!(!parse(&added).unwrap().genuine);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let line = render(&chain(&[(31, "lost PIN".to_owned())])[0]);
        for bad in [
            String::new(),
            "{}".to_owned(),
            line.replace("\"record\"", "\"checkpoint\""),
            line.replace("\"reveal\"", "\"reveals\""),
            line.replace("\"seq\":1", "\"seq\":-1"),
            line.replace("\"seq\":1", "\"seq\":1,\"seq\":1"),
            line.replace("\"type\"", "\"more\":0,\"type\""),
            line.replace("\"hash\":\"", "\"hash\":\"0"),
            line.replace("spiffe://acme/helpdesk", "spiffe://acme/king"),
        ] {
            assert_ne!(bad, line);
            parse(&bad).expect_err(&bad);
        }
    }
}
