//! Reading the audit trail in parts: a window of sequence numbers, a filter, and one page after the other.
//!
//! Records are only ever appended, so pages read at different moments belong to one trail: a reader holds no state of the
//! store between two of them.

use crate::escrow::ids::{Identity, Timestamp, UserName};
use crate::escrow::lookup::KeyIdPrefix;
use crate::escrow::records::AuditRecord;
use crate::escrow::rows::number_key;
use crate::escrow::state::{Rows, StateError};

use super::facts::{Decided, Facts, Outcome};

/// Most records looked at for one page.
pub const PAGE_RECORDS_MAX: u64 = 256;

/// Which records to read: those that match everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Put on record not before.
    pub since: Option<Timestamp>,
    /// Put on record before.
    pub until: Option<Timestamp>,
    /// By whom, or put on record by whom: a whole identity, `role/name`, or the name alone, of an end user also without the
    /// domain; without regard to case.
    pub actor: Option<String>,
    /// About whose machine; without regard to case.
    pub machine: Option<String>,
    /// About a key whose id begins so, also among several.
    pub key_id: Option<KeyIdPrefix>,
    /// About which user of the machine.
    pub user: Option<UserName>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// On whose word it was decided.
    pub source: Option<Decided>,
}

impl Filter {
    /// Whether `record` is one of those.
    pub fn matches(&self, record: &AuditRecord) -> bool {
        let facts = Facts::of(&record.event);
        let is_by = |who: &String| facts.actor.into_iter().chain([&record.by]).any(|by| is_named(by, who));
        let is_of = |asked: &String| {
            facts.machine.is_some_and(|machine| machine.as_str().eq_ignore_ascii_case(asked))
        };
        let is_about =
            |prefix: &KeyIdPrefix| facts.key_id.iter().chain(facts.other_keys).any(|id| prefix.matches(*id));
        self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at < until)
            && self.actor.as_ref().is_none_or(is_by)
            && self.machine.as_ref().is_none_or(is_of)
            && self.key_id.as_ref().is_none_or(is_about)
            && self.user.as_ref().is_none_or(|user| facts.user == Some(user))
            && self.outcome.is_none_or(|outcome| facts.outcome == outcome)
            && self.source.is_none_or(|source| facts.source == source)
    }
}

/// Whether `who` names this identity, in one way or another.
pub(in crate::escrow) fn is_named(identity: &Identity, who: &str) -> bool {
    let Identity { role, name, .. } = identity;
    let names = [identity.to_string(), format!("{role}/{name}"), name.clone(), identity.person()];
    names.iter().any(|name| name.eq_ignore_ascii_case(who))
}

/// Sequence numbers still to be read: above `after`, up to `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Below the first.
    pub after: u64,
    /// The last.
    pub to: u64,
}

impl Window {
    /// Whether nothing is left.
    pub fn is_empty(self) -> bool {
        self.after >= self.to
    }

    /// The part of it in which a record can match `filter`. Times never go back along the trail, so the part is found
    /// without reading all of it.
    ///
    /// # Errors
    /// [`StateError`] if the storage fails; so below.
    pub fn within<S: Rows>(self, rows: &S, filter: &Filter) -> Result<Self, StateError> {
        let bound = |at: Option<Timestamp>, otherwise: u64| match at {
            Some(at) => last_before(rows, self, at).map(|found| found.unwrap_or(otherwise)),
            None => Ok(otherwise),
        };
        Ok(Self { after: bound(filter.since, self.after)?, to: bound(filter.until, self.to)? })
    }

    /// Reads the next page: at most [`PAGE_RECORDS_MAX`] records are looked at. Answers those that match, in the order
    /// asked for, and leaves in the window what comes after them.
    pub fn next_page<S: Rows>(
        &mut self,
        rows: &S,
        filter: &Filter,
        newest_first: bool,
    ) -> Result<Vec<AuditRecord>, StateError> {
        let from =
            if newest_first { self.to.saturating_sub(PAGE_RECORDS_MAX).max(self.after) } else { self.after };
        let last = self.to.min(from.saturating_add(PAGE_RECORDS_MAX));
        // By number, not by count: where a record is missing, the page is shorter and the next one begins as it would.
        let wanted = usize::try_from(last - from).unwrap_or(usize::MAX);
        let mut page: Vec<AuditRecord> = rows.rows(&[], Some(&number_key(from)), wanted)?;
        page.retain(|record| record.sequence <= last && filter.matches(record));
        if newest_first {
            page.reverse();
            self.to = from;
        } else {
            self.after = last;
        }
        Ok(page)
    }
}

/// The last record of the window that is stamped before `at`, its beginning if none is. `None` if a record is missing
/// where it would be looked for: then nothing may be left out on the strength of it.
fn last_before<S: Rows>(rows: &S, window: Window, at: Timestamp) -> Result<Option<u64>, StateError> {
    let (mut before, mut end) = (window.after, window.to);
    while before < end {
        let middle = before + (end - before).div_ceil(2);
        let Some(record): Option<AuditRecord> = rows.row(&number_key(middle))? else { return Ok(None) };
        if record.at < at {
            before = middle;
        } else {
            end = middle - 1;
        }
    }
    Ok(Some(before))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::escrow::audit::ChainHead;
    use crate::escrow::audit::tests::{chain, events, every_event, record_of};
    use crate::escrow::memory::Memory;
    use crate::escrow::records::AuditEvent;
    use crate::escrow::state::State as _;
    use proptest::prelude::*;

    /// A trail whose stamps never go back, as apply makes them.
    fn trail(events: &[(u8, String)]) -> (Memory, Vec<AuditRecord>) {
        let mut records = chain(events);
        let mut at = 0;
        for record in &mut records {
            at += record.at.0 % 3;
            record.at = Timestamp(at);
        }
        let mut rows = Memory::new();
        records.iter().for_each(|record| rows.put(record));
        (rows, records)
    }

    fn read(rows: &Memory, mut window: Window, filter: &Filter, newest_first: bool) -> Vec<AuditRecord> {
        let mut all = Vec::new();
        while !window.is_empty() {
            all.extend(window.next_page(rows, filter, newest_first).unwrap());
        }
        all
    }

    proptest! {
        #[test]
        fn a_window_holds_what_a_filter_over_everything_finds(
            events in events(), since in proptest::option::of(0..40_u64), until in proptest::option::of(0..40_u64),
            after in 0..25_u64, newest_first: bool,
        ) {
            let (rows, records) = trail(&events);
            let whole = Window { after, to: records.len() as u64 };
            let filter = Filter { since: since.map(Timestamp), until: until.map(Timestamp), ..Filter::default() };
            let mut expected: Vec<AuditRecord> =
                records.iter().filter(|record| record.sequence > after && filter.matches(record)).cloned().collect();
            if newest_first {
                expected.reverse();
            }
            let narrowed = whole.within(&rows, &filter).unwrap();
            prop_assert_eq!(read(&rows, narrowed, &filter, newest_first), expected.clone());
            prop_assert_eq!(read(&rows, narrowed, &Filter::default(), newest_first), expected, "nothing else is looked at");
        }

        #[test]
        fn a_missing_record_hides_no_other(events in events(), hole in any::<prop::sample::Index>(), since in 0..40_u64) {
            let (mut rows, mut records) = trail(&events);
            let hole = hole.index(records.len());
            rows.delete::<AuditRecord>(&number_key(records.remove(hole).sequence));
            let filter = Filter { since: Some(Timestamp(since)), ..Filter::default() };
            let window = Window { after: 0, to: records.len() as u64 + 1 }.within(&rows, &filter).unwrap();
            records.retain(|record| filter.matches(record));
            prop_assert_eq!(read(&rows, window, &filter, false), records);
        }
    }

    #[test]
    fn pages_are_bounded_and_join_without_gap_or_overlap() {
        let events = vec![(2, String::new()); 2 * PAGE_RECORDS_MAX as usize + 3];
        let (rows, records) = trail(&events);
        for newest_first in [false, true] {
            let mut window = Window { after: 0, to: records.len() as u64 };
            let mut sizes = Vec::new();
            let mut numbers = Vec::new();
            while !window.is_empty() {
                let page = window.next_page(&rows, &Filter::default(), newest_first).unwrap();
                sizes.push(page.len());
                numbers.extend(page.iter().map(|record| record.sequence));
            }
            assert_eq!(sizes, [256, 256, 3]);
            let mut expected: Vec<u64> = (1..=records.len() as u64).collect();
            if newest_first {
                expected.reverse();
            }
            assert_eq!(numbers, expected);
        }
    }

    #[test]
    fn each_filter_leaves_out_what_it_does_not_name() {
        let (_, records) =
            trail(&[(1, String::new()), (31, "x".to_owned()), (15, "x".to_owned()), (0, String::new())]);
        let found = |filter: Filter| -> Vec<u64> {
            records.iter().filter(|record| filter.matches(record)).map(|record| record.sequence).collect()
        };
        const NONE: [u64; 0] = [];
        let all = || Filter::default();
        assert_eq!(found(all()), [1, 2, 3, 4]);
        assert_eq!(found(Filter { machine: Some("pc-0001".into()), ..all() }), [1, 2, 3]);
        assert_eq!(found(Filter { machine: Some("PC-0002".into()), ..all() }), NONE);
        assert_eq!(found(Filter { user: Some(r"corp\USER1".parse().unwrap()), ..all() }), [2, 3]);
        assert_eq!(found(Filter { outcome: Some(Outcome::Denied), ..all() }), [1, 2]);
        assert_eq!(found(Filter { outcome: Some(Outcome::Allowed), ..all() }), [3, 4]);
        assert_eq!(found(Filter { source: Some(Decided::Quorum), ..all() }), [1, 2, 3, 4]);
        assert_eq!(found(Filter { source: Some(Decided::Degraded), ..all() }), NONE);
        assert_eq!(found(Filter { key_id: Some("000000000000".parse().unwrap()), ..all() }), [1, 2, 3]);
        assert_eq!(found(Filter { key_id: Some("00000001".parse().unwrap()), ..all() }), NONE);
        for who in ["desk1", "DESK1", "helpdesk/desk1", "spiffe://acme/helpdesk/Desk1"] {
            assert_eq!(found(Filter { actor: Some(who.into()), ..all() }), [1, 2, 3, 4]);
        }
        for who in ["desk", "auditor/desk1", "helpdesk"] {
            assert_eq!(found(Filter { actor: Some(who.into()), ..all() }), NONE);
        }
    }

    #[test]
    fn whatever_tells_of_a_machine_a_user_or_a_key_is_found_by_it() {
        let found = |filter: &Filter| -> Vec<AuditEvent> {
            let record = |event| record_of(&mut ChainHead::default(), event);
            let records = every_event().into_iter().map(record);
            records.filter(|record| filter.matches(record)).map(|record| record.event).collect()
        };
        let machine = found(&Filter { machine: Some("pc-0001".into()), ..Filter::default() });
        let user = found(&Filter { user: Some(r"corp\user1".parse().unwrap()), ..Filter::default() });
        for events in [&machine, &user] {
            assert!(events.iter().any(|event| matches!(event, AuditEvent::ApprovalAsked { .. })));
            assert!(events.iter().any(|event| matches!(event, AuditEvent::ApprovalDecided { .. })));
            assert!(events.iter().any(|event| matches!(event, AuditEvent::ApprovalUsed { .. })));
            assert!(events.iter().any(|event| matches!(event, AuditEvent::ApprovalRefused { .. })));
        }
        let replaced = "00000000-0000-0000-0000-000000000006".parse().unwrap();
        let replaced = found(&Filter { key_id: Some(replaced), ..Filter::default() });
        assert!(matches!(&replaced[..], [AuditEvent::KeyConfirmed { .. }]), "{replaced:?}");
    }

    #[test]
    fn what_was_decided_without_a_quorum_is_found_by_who_asked_and_by_who_put_it_on_record() {
        let alone = |event: &AuditEvent| matches!(event, AuditEvent::RevealReconciled { .. });
        let event = every_event().into_iter().find(alone).unwrap();
        let by = |by: &str, event| AuditRecord {
            by: by.parse().unwrap(),
            ..record_of(&mut ChainHead::default(), event)
        };
        let shown = by("spiffe://acme/node/2", event);
        let dora = by("spiffe://acme/self-service/CORP/Dora", AuditEvent::ClusterInitialized);
        let is_found = |record: &AuditRecord, who: &str| {
            Filter { actor: Some(who.into()), ..Filter::default() }.matches(record)
        };
        for who in ["olga", "Olga", "officer/olga", "spiffe://acme/officer/olga", "node/2"] {
            assert!(is_found(&shown, who), "{who}");
        }
        assert!(!is_found(&shown, "helpdesk/olga"));
        for who in ["dora", "corp/dora", "self-service/CORP/dora"] {
            assert!(is_found(&dora, who), "{who}");
        }
        assert!(!is_found(&dora, "LAB/dora"));
    }
}
