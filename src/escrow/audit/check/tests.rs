use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::escrow::audit::line::render;
use crate::escrow::audit::tests::{altered, chain, events, head};
use crate::escrow::records::AuditRecord;

/// What a node signs about a trail it has.
fn signed(records: &[AuditRecord]) -> Vec<Signed> {
    vec![Signed { head: head(records), node: 2 }]
}

fn expected(signed: Vec<Signed>) -> Expectation {
    Expectation { signed, all_signed: true, ..Expectation::default() }
}

fn check(expected: Expectation, lines: &[String]) -> Result<Checked, Fault> {
    let mut checker = Checker::new(expected);
    lines.iter().for_each(|line| checker.line(line));
    checker.finish()
}

fn lines(records: &[AuditRecord]) -> Vec<String> {
    records.iter().map(render).collect()
}

/// What is found when a signed trail was made into `forged`.
fn found(records: &[AuditRecord], forged: &[String]) -> (u64, Tampering) {
    let fault = check(expected(signed(records)), forged).expect_err("found");
    (fault.sequence, fault.kind)
}

fn trail(length: usize) -> Vec<AuditRecord> {
    chain(&(0..length).map(|n| (n as u8 * 7 + 3, format!("r{n}"))).collect::<Vec<_>>())
}

/// Every way to change one field of a line: its old text and another one that is as well formed.
fn other_fields(line: &str) -> Vec<String> {
    let value: serde_json::Value = serde_json::from_str(line).unwrap();
    let mut others = Vec::new();
    for (name, field) in value.as_object().unwrap() {
        let old = format!("{}:{field}", serde_json::json!(name));
        let new = match field {
            serde_json::Value::Number(number) => (number.as_u64().unwrap() + 1).to_string(),
            serde_json::Value::Object(_) => r#"{"node":77}"#.to_owned(),
            serde_json::Value::String(text) => match name.as_str() {
                "actor" => format!("\"{text}x\""),
                "time" => "\"2030-01-31T12:00:00.000Z\"".to_owned(),
                "outcome" => if text == "denied" { "\"allowed\"" } else { "\"denied\"" }.to_owned(),
                "source" => if text == "degraded" { "\"quorum\"" } else { "\"degraded\"" }.to_owned(),
                "event" => "\"cluster-initialised\"".to_owned(),
                "previous_hash" | "hash" => format!("\"{}\"", "5".repeat(64)),
                _ => format!("\"{text}1\""),
            },
            other => panic!("{name}: {other}"),
        };
        let changed = line.replacen(&old, &format!("{}:{new}", serde_json::json!(name)), 1);
        assert_ne!(changed, line, "{name}");
        others.push(changed);
    }
    let optional = ["decided_at", "recorded"].iter().filter(|name| value.get(**name).is_some()).count();
    assert_eq!(others.len(), 14 + optional, "every field of the line");
    others
}

proptest! {
    #[test]
    fn an_untouched_trail_holds_whole_and_in_parts(events in events(), cut in any::<Index>()) {
        let records = chain(&events);
        let whole = check(expected(signed(&records)), &lines(&records)).unwrap();
        prop_assert_eq!(whole.head, head(&records));
        prop_assert_eq!(whole.signed_to, Some(records.len() as u64));

        let (first, rest) = records.split_at(cut.index(records.len()));
        let both: Vec<Signed> = [signed(first), signed(&records)].concat();
        prop_assert_eq!(check(expected(both.clone()), &lines(&records)).unwrap(), whole);
        let part = Expectation { after: first.len() as u64, ..expected(both) };
        prop_assert_eq!(check(part, &lines(rest)).unwrap().records, rest.len() as u64);
    }

    #[test]
    fn a_deleted_record_is_named(events in events(), at in any::<Index>()) {
        let records = chain(&events);
        let at = at.index(records.len());
        let mut forged = lines(&records);
        forged.remove(at);
        let kind = if at + 1 == records.len() { Tampering::Truncated } else { Tampering::Deleted };
        prop_assert_eq!(found(&records, &forged), (at as u64 + 1, kind));
    }

    #[test]
    fn an_altered_field_is_named(events in events(), at in any::<Index>()) {
        let records = chain(&events);
        let at = at.index(records.len());
        let whole = lines(&records);
        for other in other_fields(&whole[at]) {
            let mut forged = whole.clone();
            forged[at] = other;
            prop_assert_eq!(found(&records, &forged), (at as u64 + 1, Tampering::Altered), "{}", forged[at]);
        }
    }

    #[test]
    fn an_altered_byte_is_found_wherever_it_is(events in events(), at in any::<Index>(), byte in any::<Index>(), to in 0x20..0x7f_u8) {
        let records = chain(&events);
        let mut forged = lines(&records);
        let at = at.index(records.len());
        let mut bytes = forged[at].clone().into_bytes();
        let byte = byte.index(bytes.len());
        prop_assume!(bytes[byte] != to && bytes[byte].is_ascii());
        bytes[byte] = to;
        forged[at] = String::from_utf8(bytes).unwrap();
        let (sequence, kind) = found(&records, &forged);
        prop_assert_eq!((sequence, kind), (at as u64 + 1, Tampering::Altered));
    }

    /// By somebody who knows how hashes are made.
    #[test]
    fn a_record_that_was_altered_and_hashed_anew_is_named(events in events(), at in any::<Index>(), field: u8) {
        let records = chain(&events);
        let at = at.index(records.len());
        let mut forged = records.clone();
        forged[at] = altered(&forged[at], field);
        prop_assert_eq!(found(&records, &lines(&forged)), (at as u64 + 1, Tampering::Altered));
    }

    /// By somebody who writes all of the rest anew: only what a node signed shows it.
    #[test]
    fn a_rest_that_was_written_anew_is_found_at_the_first_checkpoint(events in events(), at in any::<Index>(), cut in any::<Index>()) {
        let records = chain(&events);
        let at = at.index(records.len());
        let mut forged = records.clone();
        forged[at].at.0 += 1;
        for next in at + 1..forged.len() {
            forged[next].previous = ChainHead::of(&forged[next - 1]).hash;
        }
        let cut = cut.index(records.len()) + 1;
        let both: Vec<Signed> = [signed(&records[..cut]), signed(&records)].concat();
        let fault = check(expected(both), &lines(&forged)).unwrap_err();
        let first = if cut > at { cut } else { records.len() };
        prop_assert_eq!((fault.sequence, fault.kind), (first as u64, Tampering::Altered));
    }

    #[test]
    fn swapped_records_are_named(events in events(), one in any::<Index>(), other in any::<Index>()) {
        let records = chain(&events);
        let (one, other) = (one.index(records.len()), other.index(records.len()));
        prop_assume!(one != other);
        let mut forged = lines(&records);
        forged.swap(one, other);
        prop_assert_eq!(found(&records, &forged), (one.min(other) as u64 + 1, Tampering::Reordered));
    }

    #[test]
    fn an_inserted_copy_is_named(events in events(), of in any::<Index>(), at in any::<Index>()) {
        let records = chain(&events);
        let (of, at) = (of.index(records.len()), at.index(records.len() + 1));
        let mut forged = lines(&records);
        forged.insert(at, forged[of].clone());
        // Right behind itself, or before itself, it is the record of that number that stands there twice.
        let sequence = if at == of || at == of + 1 { of + 1 } else { at + 1 };
        prop_assert_eq!(found(&records, &forged), (sequence as u64, Tampering::Inserted));
    }

    /// The best a forger can do in one line: it follows what is before it.
    #[test]
    fn an_inserted_forgery_is_named(events in events(), at in any::<Index>()) {
        let records = chain(&events);
        let at = at.index(records.len() + 1);
        let before = head(&records[..at]);
        let mut forged = lines(&records);
        let forgery = AuditRecord {
            sequence: before.sequence + 1,
            previous: before.hash,
            at: crate::escrow::ids::Timestamp(u64::MAX),
            ..records[0].clone()
        };
        forged.insert(at, render(&forgery));
        let (sequence, kind) = found(&records, &forged);
        // In the place of the last one it contradicts what was signed about that one.
        let kind_there = if at + 1 == records.len() { Tampering::Altered } else { Tampering::Inserted };
        prop_assert_eq!((sequence, kind), (at as u64 + 1, kind_there));
    }

    #[test]
    fn junk_in_between_is_named(events in events(), at in any::<Index>(), junk in "[ -~]{0,40}") {
        let records = chain(&events);
        let at = at.index(records.len());
        let mut forged = lines(&records);
        forged.insert(at, junk);
        prop_assert_eq!(found(&records, &forged), (at as u64 + 1, Tampering::Inserted));
    }

    #[test]
    fn a_truncated_trail_is_named(events in events(), at in any::<Index>()) {
        let records = chain(&events);
        let left = at.index(records.len());
        let whole = lines(&records);
        prop_assert_eq!(found(&records, &whole[..left]), (left as u64 + 1, Tampering::Truncated));
        // Without anything signed, what is known otherwise shows it.
        let known = Expectation { reaches: records.len() as u64, ..Expectation::default() };
        let fault = check(known, &whole[..left]).unwrap_err();
        prop_assert_eq!((fault.sequence, fault.kind), (left as u64 + 1, Tampering::Truncated));
    }
}

#[test]
fn what_no_node_has_signed_is_not_believed() {
    let records = trail(5);
    let whole = lines(&records);
    let fault = check(expected(Vec::new()), &whole).unwrap_err();
    assert_eq!((fault.sequence, fault.kind), (1, Tampering::Unsigned));
    let fault = check(expected(signed(&records[..3])), &whole).unwrap_err();
    assert_eq!((fault.sequence, fault.kind), (4, Tampering::Inserted));
    let chain_alone = check(Expectation::default(), &whole).unwrap();
    assert_eq!((chain_alone.records, chain_alone.signed_to), (5, None));
}

#[test]
fn a_part_is_held_against_what_came_before_it() {
    let records = trail(6);
    let rest = lines(&records[3..]);
    let part = |after_hash| Expectation { after: 3, after_hash, ..expected(signed(&records)) };
    let own = head(&records[..3]).hash;
    assert_eq!(check(part(None), &rest).unwrap().records, 3);
    assert_eq!(check(part(Some(own)), &rest).unwrap().records, 3);
    let fault = check(part(Some([1; 32])), &rest).unwrap_err();
    assert_eq!((fault.sequence, fault.kind), (4, Tampering::Altered));
    // Its own beginning must be there.
    let fault = check(part(None), &rest[1..]).unwrap_err();
    assert_eq!((fault.sequence, fault.kind), (4, Tampering::Deleted));
    // A part that is said to be the whole lacks the beginning.
    assert_eq!(found(&records, &rest), (1, Tampering::Deleted));
    // Two parts in the wrong order.
    let backwards = [rest, lines(&records[..3])].concat();
    assert_eq!(found(&records, &backwards), (1, Tampering::Reordered));
}

#[test]
fn nodes_that_signed_different_trails_are_told_apart() {
    let records = trail(6);
    let mut signed = signed(&records);
    signed.push(Signed { head: ChainHead { sequence: 4, hash: [9; 32] }, node: 3 });
    let fault = check(expected(signed), &lines(&records)).unwrap_err();
    assert_eq!((fault.sequence, fault.kind), (4, Tampering::Altered));
    assert!(fault.why.contains("node 3"), "{fault}");
}
