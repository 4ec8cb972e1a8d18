use proptest::prelude::*;

use super::*;
use crate::escrow::command::Refusal;
use crate::escrow::ids::{KeyId, RequestId};
use crate::escrow::journal::{DegradedAsk, DegradedReveal, Knowledge};
use crate::escrow::records::{LogPosition, Source};

fn reveal(number: u64, shown: bool) -> DegradedReveal {
    DegradedReveal {
        request: RequestId(Uuid::from_u64_pair(1, number)),
        at: Timestamp(1_000 + number),
        by: "spiffe://acme/helpdesk/desk1".parse().unwrap(),
        source: Source { node: 3, address: "192.0.2.7:4000".to_owned() },
        key_id: KeyId(Uuid::from_u64_pair(2, number)),
        machine: Some("PC-0001".parse().unwrap()),
        user: Some(r"CORP\user1".parse().unwrap()),
        reason: "locked out".to_owned(),
        denied: (!shown).then(|| Refusal::Denied("no".to_owned())),
        approval: None,
        knowledge: Knowledge {
            position: LogPosition { term: 1, index: 9 },
            quorum_age_ms: Some(7),
            policy_version: 0,
        },
    }
}

fn ask(number: u64) -> Noted {
    let DegradedReveal { request, at, by, source, key_id, user, reason, knowledge, .. } =
        reveal(number, true);
    let (approval, machine) = (request, "PC-0001".parse().unwrap());
    let expires_at = Timestamp(at.0 + 60_000);
    Noted::ApprovalAsked(DegradedAsk {
        request,
        at,
        by,
        source,
        approval,
        key_id,
        machine,
        user,
        reason,
        expires_at,
        knowledge,
    })
}

fn append(journal: &Journal, reveal: DegradedReveal) -> Result<JournalEntry, JournalError> {
    note(journal, Noted::Reveal(reveal))
}

fn note(journal: &Journal, what: Noted) -> Result<JournalEntry, JournalError> {
    match journal.append::<(), JournalError>(|_| Ok(Decided::Entry(Box::new(what))))? {
        Appended::Entry(entry) => Ok(*entry),
        Appended::Nothing(()) => panic!("something was decided"),
    }
}

fn of_another(number: u64) -> JournalEntry {
    let place = JournalPlace { journal: Uuid::from_u128(0xb), sequence: number };
    JournalEntry { place, previous: [0; 32], what: Noted::Reveal(reveal(number, true)) }
}

#[test]
fn what_was_acknowledged_is_there_again_and_numbers_go_on_after_all_was_dropped() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("journal");
    let journal = Journal::open(&directory).unwrap();
    assert!(journal.is_empty());
    let first = append(&journal, reveal(1, true)).unwrap();
    let second = append(&journal, reveal(2, false)).unwrap();
    assert_eq!((first.place.sequence, second.place.sequence), (1, 2));
    assert_eq!((first.previous, second.previous), ([0; 32], first.hash()));
    journal.keep(4, vec![of_another(7), of_another(7), first.clone()]).unwrap();
    journal.keep(4, vec![of_another(7)]).unwrap();
    drop(journal);

    let journal = Journal::open(&directory).unwrap();
    assert_eq!((journal.own(), journal.told()), (vec![first.clone(), second.clone()], vec![of_another(7)]));
    let stats = journal.stats();
    assert_eq!((stats.own, stats.told, stats.oldest), (2, 1, Some(Timestamp(1_001))));
    let on_disk = |name| fs::metadata(directory.join(name)).unwrap().len();
    assert_eq!(stats.bytes as u64, on_disk("own") + on_disk("told"));

    // The second one only: it stays, for the first still waits.
    journal.forget(|entry| *entry == second).unwrap();
    assert_eq!(journal.own().len(), 2);
    journal.forget(|_| true).unwrap();
    assert!(journal.is_empty());
    drop(journal);
    let journal = Journal::open(&directory).unwrap();
    let third = append(&journal, reveal(3, true)).unwrap();
    assert_eq!(third.place, JournalPlace { sequence: 3, ..first.place });
    assert_eq!(third.previous, second.hash());
}

/// What a node decided before its disk was put back to an older copy, and what it decided after that, have one place.
#[test]
fn an_entry_in_the_place_of_another_is_kept_and_goes_only_for_its_own_record() {
    let root = tempfile::tempdir().unwrap();
    let journal = Journal::open(root.path()).unwrap();
    let forgotten = append(&journal, reveal(1, true)).unwrap();
    fs::remove_file(root.path().join(OWN_FILE)).unwrap();
    journal.write(OWN_FILE, &Own { journal: forgotten.place.journal, ..Own::begin() }).unwrap();
    let journal = Journal::open(root.path()).unwrap();
    let later = append(&journal, reveal(2, true)).unwrap();
    assert_eq!(later.place, forgotten.place);
    journal.keep(4, vec![forgotten.clone(), later.clone()]).unwrap();
    assert_eq!((journal.own(), journal.told()), (vec![later.clone()], vec![forgotten.clone()]));

    journal.forget(|entry| *entry == forgotten).unwrap();
    assert_eq!((journal.own(), journal.told()), (vec![later.clone()], vec![]));
    assert!(!journal.begin_anew().unwrap(), "not while something waits in the old one");
    assert_eq!(journal.last(), later.place);
    journal.forget(|entry| *entry == later).unwrap();
    assert!(journal.begin_anew().unwrap() && journal.stats().begun_anew);
    let journal = Journal::open(root.path()).unwrap();
    let next = append(&journal, reveal(3, true)).unwrap();
    assert_ne!(next.place.journal, later.place.journal);
    assert_eq!((next.place.sequence, next.previous), (1, [0; 32]));
}

#[test]
fn what_waits_is_seen_by_who_decides_and_nothing_is_written_if_it_fails_or_declines() {
    let root = tempfile::tempdir().unwrap();
    let journal = Journal::open(root.path()).unwrap();
    append(&journal, reveal(1, true)).unwrap();
    journal.keep(4, vec![of_another(7)]).unwrap();
    let declined = journal
        .append::<_, JournalError>(|waiting| Ok(Decided::Nothing((waiting.own.len(), waiting.told.len()))));
    assert!(matches!(declined, Ok(Appended::Nothing((1, 1)))), "{declined:?}");
    let failed = journal.append::<(), JournalError>(|_| Err(JournalError::Damaged("x".to_owned())));
    assert!(failed.is_err());
    assert_eq!(Journal::open(root.path()).unwrap().own().len(), 1);
}

#[test]
fn what_a_crash_left_half_written_was_never_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let journal = Journal::open(root.path()).unwrap();
    append(&journal, reveal(1, true)).unwrap();
    let whole = fs::read(root.path().join("own")).unwrap();
    append(&journal, reveal(2, true)).unwrap();
    let next = fs::read(root.path().join("own")).unwrap();
    // Killed at any point before the rename: the old file, and some of the new one beside it.
    for length in [0, 1, next.len() / 2, next.len()] {
        fs::write(root.path().join("own"), &whole).unwrap();
        fs::write(root.path().join("own.tmp"), &next[..length]).unwrap();
        let journal = Journal::open(root.path()).unwrap();
        assert_eq!((journal.own().len(), journal.stats().fault.as_str()), (1, ""));
        assert!(!root.path().join("own.tmp").exists());
        assert_eq!(append(&journal, reveal(3, true)).unwrap().place.sequence, 2);
    }
}

#[test]
fn a_disk_that_takes_nothing_leaves_the_journal_as_it_was_until_it_takes_something() {
    let root = tempfile::tempdir().unwrap();
    let directory = root.path().join("journal");
    let journal = Journal::open(&directory).unwrap();
    append(&journal, reveal(1, true)).unwrap();
    // Nobody can write there, whatever this test runs as.
    fs::create_dir(directory.join("own.tmp")).unwrap();
    let refused = append(&journal, reveal(2, true)).unwrap_err();
    assert!(matches!(refused, JournalError::Store(_)), "{refused}");
    assert_eq!(journal.own().len(), 1);
    fs::remove_dir(directory.join("own.tmp")).unwrap();
    assert_eq!(append(&journal, reveal(3, true)).unwrap().place.sequence, 2);
    assert_eq!(Journal::open(&directory).unwrap().own(), journal.own());
}

#[test]
fn each_bound_is_a_refusal_and_denials_and_requests_leave_room_for_reveals() {
    let root = tempfile::tempdir().unwrap();
    let journal = Journal::open(root.path()).unwrap();
    let change = |change: &dyn Fn(&mut State)| {
        let mut state = State::clone(&journal.look());
        change(&mut state);
        journal.set(state);
    };
    // As if they had been written one by one, which takes a while.
    change(&|state| {
        for number in 1..=OWN_DENIALS_MAX as u64 {
            let Own { journal, head, .. } = state.own;
            let place = JournalPlace { journal, sequence: number };
            let what = Noted::Reveal(reveal(number, false));
            let entry = JournalEntry { place, previous: head.hash, what };
            state.own.head = ChainHead { sequence: number, hash: entry.hash() };
            state.own.entries.push(entry);
        }
    });
    let denial = append(&journal, reveal(0, false)).unwrap_err();
    assert!(matches!(denial, JournalError::Full { what: "denials", .. }), "{denial}");
    append(&journal, reveal(0, true)).unwrap();
    change(&|state| {
        let filler = JournalEntry { what: ask(0), ..state.own.entries[0].clone() };
        state.own.entries.resize(OWN_DENIALS_MAX + 1 + OWN_ASKS_MAX, filler);
    });
    let asked = note(&journal, ask(1)).unwrap_err();
    assert!(matches!(asked, JournalError::Full { what: "requests for approval", .. }), "{asked}");
    append(&journal, reveal(0, true)).unwrap();
    change(&|state| {
        let filler = state.own.entries[0].clone();
        state.own.entries.resize(OWN_ENTRIES_MAX, filler);
    });
    let full = append(&journal, reveal(0, true)).unwrap_err();
    assert!(matches!(full, JournalError::Full { what: "entries", .. }), "{full}");

    let long = DegradedReveal { reason: "x".repeat(FILE_MAX_BYTES), ..reveal(0, true) };
    change(&|state| state.own.entries.clear());
    let full = append(&journal, long).unwrap_err();
    assert!(matches!(full, JournalError::Full { what: "bytes", .. }), "{full}");
}

#[test]
fn who_tells_without_end_leaves_room_for_others_and_each_comes_to_its_turn() {
    let root = tempfile::tempdir().unwrap();
    let journal = Journal::open(root.path()).unwrap();
    let half = TOLD_ENTRIES_MAX as u64 / 2;
    let mut state = State::clone(&journal.look());
    (1..=half).for_each(|number| state.told.push(4, of_another(number)));
    journal.set(state);
    let more = journal.keep(4, vec![of_another(half + 1)]).unwrap_err();
    assert!(matches!(more, JournalError::Full { what: "entries told by one node", .. }), "{more}");
    assert_eq!(journal.keep(4, vec![of_another(1)]).unwrap(), 0, "it is here");
    assert_eq!(journal.keep(5, vec![of_another(half + 1), of_another(half + 2)]).unwrap(), 2);
    assert_eq!(Journal::open(root.path()).unwrap().told(), journal.told());

    let numbers = |most, due: &dyn Fn(u64) -> bool| -> Vec<u64> {
        let chosen = journal.told_in_turns(most, |entry| due(entry.place.sequence));
        chosen.iter().map(|entry| entry.place.sequence).collect()
    };
    assert_eq!(numbers(6, &|_| true), [1, half + 1, 2, half + 2, 3, 4]);
    assert_eq!(numbers(6, &|number| number == 2 || number == half + 2), [2, half + 2]);

    journal.forget(|entry| entry.place.sequence <= half).unwrap();
    let (long, most) = ("x".repeat(1 << 20), FILE_MAX_BYTES / (1 << 20) / 2);
    let long = |number| match of_another(number) {
        JournalEntry { place, previous, what: Noted::Reveal(reveal) } => {
            let what = Noted::Reveal(DegradedReveal { reason: long.clone(), ..reveal });
            JournalEntry { place, previous, what }
        }
        other => other,
    };
    let full = journal.keep(4, (1..=most as u64).map(long).collect()).unwrap_err();
    assert!(matches!(full, JournalError::Full { what: "bytes told by one node", .. }), "{full}");
    assert_eq!(journal.told().len(), 2, "nothing of it is kept");
    assert_eq!(journal.keep(4, (1..most as u64).map(long).collect()).unwrap(), most - 1);
}

#[test]
fn a_journal_of_a_newer_release_is_left_alone() {
    let root = tempfile::tempdir().unwrap();
    append(&Journal::open(root.path()).unwrap(), reveal(1, true)).unwrap();
    let path = root.path().join("own");
    let mut bytes = fs::read(&path).unwrap();
    bytes[0] = format::VERSION + 1;
    let body = bytes.len() - SUM_BYTES;
    let sum = digest(&SHA256, &bytes[..body]);
    bytes[body..].copy_from_slice(sum.as_ref());
    fs::write(&path, bytes).unwrap();
    assert!(matches!(Journal::open(root.path()), Err(StoreError::Newer { .. })));
}

/// Somebody who can write the file can make its hash fit; the chain shows it.
#[test]
fn an_entry_that_was_taken_out_or_changed_does_not_fit_the_chain() {
    let root = tempfile::tempdir().unwrap();
    let journal = Journal::open(root.path()).unwrap();
    for number in 1..=3 {
        append(&journal, reveal(number, true)).unwrap();
    }
    let whole = journal.look().own.clone();
    let changes: [fn(&mut Own); 4] = [
        |own| drop(own.entries.remove(1)),
        |own| drop(own.entries.pop()),
        |own| match &mut own.entries[1].what {
            Noted::Reveal(reveal) => reveal.reason.push('!'),
            other => panic!("{other:?}"),
        },
        |own| own.entries.swap(0, 2),
    ];
    for change in changes {
        let mut changed = whole.clone();
        change(&mut changed);
        journal.write(OWN_FILE, &changed).unwrap();
        let fault = Journal::open(root.path()).unwrap().stats().fault;
        assert!(fault.contains("does not follow") || fault.contains("it ends with"), "{fault:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens to the file, no entry is lost unnoticed, and a damaged journal takes nothing.
    #[test]
    fn a_damaged_file_is_noticed(count in 1..5_u64, told in any::<bool>(), at in any::<prop::sample::Index>(), cut in any::<bool>(), flip in 1..=255_u8) {
        let root = tempfile::tempdir().unwrap();
        let journal = Journal::open(root.path()).unwrap();
        for number in 1..=count {
            append(&journal, reveal(number, number % 2 == 0)).unwrap();
            journal.keep(4, vec![of_another(number)]).unwrap();
        }
        let path = root.path().join(if told { TOLD_FILE } else { OWN_FILE });
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
        fs::write(&path, &bytes).unwrap();
        let damaged = Journal::open(root.path()).unwrap();
        prop_assert!(!damaged.stats().fault.is_empty());
        prop_assert!(damaged.stats().fault.contains(&path.display().to_string()), "{}", damaged.stats().fault);
        prop_assert!(matches!(append(&damaged, reveal(9, true)), Err(JournalError::Damaged(_))));
        // The other one is told and put on record, and only then dropped.
        let waits = (damaged.own().len() as u64, damaged.told().len() as u64);
        prop_assert_eq!(waits, if told { (count, 0) } else { (0, count) });
        match damaged.keep(4, vec![of_another(9)]) {
            Err(JournalError::Damaged(_)) => prop_assert!(told),
            kept => prop_assert!(!told && kept.is_ok(), "{:?}", kept),
        }
        damaged.forget(|_| true).unwrap();
        prop_assert!(damaged.is_empty());
        prop_assert!(matches!((damaged.begin_anew(), told), (Ok(true), true) | (Err(JournalError::Damaged(_)), false)));
        prop_assert_eq!(fs::read(&path).unwrap(), bytes, "it is left as it is");
    }
}
