//! What an upload costs: how many rows are read and written for it, whatever is kept.

use std::cell::Cell;

use uuid::Uuid;

use super::*;
use crate::escrow::apply::apply;
use crate::escrow::apply::tests::initialize;
use crate::escrow::command::{Action, Command};
use crate::escrow::compliance::facts::{RECOVERY_KEYS_MAX, VOLUMES_MAX};
use crate::escrow::compliance::history::{CHANGES_MAX, HISTORY_MAX_BYTES, HISTORY_MAX_DAYS};
use crate::escrow::compliance::words::{Cipher, Conversion, Protection, Protector, VolumeKind};
use crate::escrow::compliance::{HistoryIndex, Stood, VolumeReport};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, KeyId, RequestId, Role, VOLUME_ID_MAX_BYTES};
use crate::escrow::memory::Memory;
use crate::escrow::records::{FeatureLevelRecord, LogPosition, MachineRecord, Source};
use crate::escrow::state::{Row, Table};

/// Rows that are read and written for every command: the cluster, the heads, the feature level.
const OF_EVERY_COMMAND: usize = 4;

/// A state that counts what is read and written.
#[derive(Default)]
struct Counted {
    state: Memory,
    read: Cell<usize>,
    read_bytes: Cell<usize>,
    written: usize,
    written_bytes: usize,
}

impl Counted {
    fn note_read<R: Row>(&self, row: &R) {
        self.read.set(self.read.get() + 1);
        self.read_bytes.set(self.read_bytes.get() + bytes(row));
    }
}

fn bytes<R: Row>(row: &R) -> usize {
    serde_json::to_vec(row).unwrap().len()
}

impl Rows for Counted {
    fn row<R: Row>(&self, key: &[u8]) -> Result<Option<R>, StateError> {
        let row = self.state.row(key)?;
        row.iter().for_each(|row| self.note_read(row));
        Ok(row)
    }

    fn rows<R: Row>(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<R>, StateError> {
        let rows = self.state.rows(prefix, after, limit)?;
        rows.iter().for_each(|row| self.note_read(row));
        Ok(rows)
    }
}

impl State for Counted {
    fn put<R: Row>(&mut self, row: &R) {
        self.written += 1;
        self.written_bytes += bytes(row);
        self.state.put(row);
    }

    fn delete<R: Row>(&mut self, key: &[u8]) {
        self.written += 1;
        self.state.delete::<R>(key);
    }
}

/// What a command cost.
struct Cost {
    read: usize,
    read_bytes: usize,
    written: usize,
    written_bytes: usize,
}

impl Counted {
    fn begin() -> Self {
        let mut counted = Self::default();
        counted.apply(Role::Node, 0, Action::Initialize(initialize()));
        let level = FeatureLevel::COMPLIANCE;
        counted.put(&FeatureLevelRecord { level, raised_at: Timestamp(0) });
        counted
    }

    fn apply(&mut self, role: Role, stamp: u64, action: Action) -> (Reply, Cost) {
        (self.written, self.written_bytes) = (0, 0);
        self.read.set(0);
        self.read_bytes.set(0);
        let command = Command {
            request: RequestId(Uuid::from_u128(stamp.into())),
            at: Timestamp(stamp),
            by: Identity::new("acme".parse().unwrap(), role, "1").unwrap(),
            source: Source { node: 1, address: String::new() },
            action,
        };
        let reply = apply(self, LogPosition { term: 1, index: 1 }, &command).unwrap();
        let (read, read_bytes) = (self.read.get(), self.read_bytes.get());
        let (written, written_bytes) = (self.written, self.written_bytes);
        (reply, Cost { read, read_bytes, written, written_bytes })
    }

    fn report(&mut self, stamp: u64, reports: Vec<MachineReport>) -> Cost {
        let expected = reports.len();
        let action = Action::ReportCompliance(ReportCompliance { reports });
        let (reply, cost) = self.apply(Role::Importer, stamp, action);
        let Reply::ComplianceNoted(outcomes) = reply else { panic!("{reply:?}") };
        assert_eq!(outcomes.len(), expected);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, UploadOutcome::Taken { .. })));
        cost
    }
}

/// A report in a few words, of one of two states for every `error`.
fn small(machine: &str, at: u64, error: u64) -> MachineReport {
    let document = format!(
        r#"{{"machine": "{machine}", "at": "@{at}ms", "policy": {{"enforcement": "enforced"}},
            "error": {{"code": {error}}}, "volumes": []}}"#
    );
    MachineReport::from_json(&document).unwrap()
}

/// As much as a report can say.
fn large(machine: &str, at: u64, error: u64) -> MachineReport {
    let volume = |number: usize| VolumeReport {
        volume: format!("{number:0>VOLUME_ID_MAX_BYTES$}").parse().unwrap(),
        kind: VolumeKind::Fixed,
        label: String::new(),
        protection: Protection::On,
        conversion: Conversion::Encrypted,
        percent: None,
        method: Cipher::XtsAes256,
        protectors: Protector::ALL.to_vec(),
        auto_unlock: false,
        recovery_keys: Some((0..RECOVERY_KEYS_MAX).map(|key| KeyId(Uuid::from_u128(key as u128))).collect()),
        reasons: Vec::new(),
        seen_at: None,
    };
    let volumes = (0..VOLUMES_MAX).map(volume).collect();
    MachineReport { volumes, ..small(machine, at, error) }
}

/// A machine of which as much is kept as can be: every second run is a large one.
fn with_a_full_history() -> Counted {
    let mut counted = Counted::begin();
    for at in 1..=CHANGES_MAX as u64 {
        let make = if at % 10 == 0 { large } else { small };
        counted.report(at * 1_000, vec![make("PC-0001", at * 1_000, at)]);
    }
    counted
}

#[test]
fn a_history_is_bounded_in_bytes_as_well() {
    let counted = with_a_full_history();
    let index: HistoryIndex = counted.state.all().unwrap().remove(0);
    let kept: usize = index.runs.iter().map(|run| run.bytes as usize).sum();
    assert!((HISTORY_MAX_BYTES / 2..=HISTORY_MAX_BYTES).contains(&kept), "{kept} bytes");
    assert!(index.runs.len() < CHANGES_MAX && index.floor.is_some());
    assert_eq!(counted.state.count(Table::ComplianceChange), index.runs.len());
}

#[test]
fn an_upload_reads_and_writes_the_runs_beside_its_time_and_no_others() {
    let mut counted = with_a_full_history();
    // In the middle of a large run, so that it is split.
    let late = small("PC-0001", 109_500, 9);
    let of_machine = 4; // The machine, its last contact, the record, the index.
    let beside = 3; // The run before, the one behind it, the one that is dropped for them.
    let cost = counted.report(200_000, vec![late]);
    assert!(cost.read <= OF_EVERY_COMMAND + of_machine + beside, "{} rows", cost.read);
    assert!(cost.written <= OF_EVERY_COMMAND + of_machine + beside + 1, "{} rows", cost.written);
}

#[test]
fn the_worst_batch_about_one_machine_reads_each_run_once() {
    let mut counted = with_a_full_history();
    let full: usize = counted.state.all::<ComplianceChange>().unwrap().iter().map(bytes).sum();
    let runs = counted.state.count(Table::ComplianceChange);
    let record = counted.state.all::<ComplianceRecord>().unwrap().iter().map(bytes).sum::<usize>();
    let reports =
        (0..COMPLIANCE_BATCH_MAX as u64).map(|number| small("PC-0001", 50_500 + number * 250, number));
    let cost = counted.report(200_000, reports.collect());
    assert!(cost.read <= OF_EVERY_COMMAND + 4 + runs, "{} rows", cost.read);
    assert!(cost.read_bytes <= full + record + 64 * 1024, "{} of {full} bytes", cost.read_bytes);
    assert!(cost.written <= 2 * CHANGES_MAX + OF_EVERY_COMMAND + 4, "{} rows", cost.written);
}

#[test]
fn the_worst_batch_about_many_machines_costs_the_same_for_each() {
    let mut counted = Counted::begin();
    let machine = |number: usize| format!("PC-{number:04}");
    let all = |at: u64, error: u64| (0..COMPLIANCE_BATCH_MAX).map(move |one| small(&machine(one), at, error));
    for at in 1..=20 {
        counted.report(at * 1_000, all(at * 1_000, at).collect());
    }
    let cost = counted.report(30_000, all(10_500, 99).collect());
    assert!(cost.read <= OF_EVERY_COMMAND + 6 * COMPLIANCE_BATCH_MAX, "{} rows", cost.read);
    assert!(cost.written <= OF_EVERY_COMMAND + 5 * COMPLIANCE_BATCH_MAX, "{} rows", cost.written);
}

/// Nothing but confirmations comes in, for more than a year.
#[test]
fn the_rows_of_what_is_too_old_go_when_confirmations_are_put_away() {
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    let mut counted = Counted::begin();
    for (day, error) in [(1, 1), (2, 2)] {
        counted.report(day * DAY_MS, vec![small("PC-0001", day * DAY_MS, error)]);
    }
    for confirmations in 0..=CONFIRMATIONS_MAX as u64 {
        assert_eq!(counted.state.count(Table::ComplianceChange), 2);
        let at = (3 + HISTORY_MAX_DAYS + confirmations) * DAY_MS;
        let said = small("PC-0001", at, 2);
        let contact = Contact { machine: said.machine.clone(), at: Timestamp(at), digest: said.digest() };
        let note = Action::NoteContact(NoteContact { contacts: vec![contact] });
        counted.apply(Role::Importer, at, note);
        // It does not count any more from the first on.
        let contact = lookup::last_contact(&counted.state, &said.machine).unwrap();
        let changes = lookup::compliance_changes(&counted.state, &said.machine).unwrap();
        let stood = Stood::then(&changes, contact.as_ref(), Timestamp(DAY_MS));
        assert!(stood.state.is_none() && stood.is_dropped);
    }
    assert_eq!(counted.state.count(Table::ComplianceChange), 1);
    let index: HistoryIndex = counted.state.all().unwrap().remove(0);
    assert_eq!((index.runs.len(), index.floor.unwrap().at), (1, Timestamp(DAY_MS)));
}

/// On the node that takes it, before it goes through the log.
#[test]
fn that_a_report_says_nothing_new_is_seen_from_one_small_row() {
    let mut counted = with_a_full_history();
    let told = large("PC-0001", 200_000, 1).checked().unwrap();
    assert!(!lookup::said_last(&counted, &told.machine, &told.digest()).unwrap());
    counted.report(200_000, vec![told.clone()]);
    counted.read.set(0);
    counted.read_bytes.set(0);
    assert!(lookup::said_last(&counted, &told.machine, &told.digest()).unwrap());
    let (read, read_bytes) = (counted.read.get(), counted.read_bytes.get());
    assert!(read == 1 && read_bytes < 1_500, "{read} rows of {read_bytes} bytes as text");
}

#[test]
fn an_unchanged_report_writes_one_small_row() {
    let mut counted = Counted::begin();
    let told = large("PC-0001", 1_000, 1);
    counted.report(1_000, vec![told.clone()]);
    let said = told.checked().unwrap();
    let mut settled = 0;
    for at in 2..=30_u64 {
        let contact =
            Contact { machine: said.machine.clone(), at: Timestamp(at * 1_000), digest: said.digest() };
        let note = Action::NoteContact(NoteContact { contacts: vec![contact] });
        let (_, cost) = counted.apply(Role::Importer, at * 1_000, note);
        let row: crate::escrow::compliance::LastContact = counted.state.all().unwrap().remove(0);
        if cost.written > 2 {
            // Now and then its times go into the run that they are of.
            settled += 1;
            assert_eq!((cost.written, row.said.unwrap().again.len()), (3, 0));
            continue;
        }
        // That row, and the stamp.
        assert_eq!(cost.written, 2);
        assert!(cost.written_bytes < 1_500, "{} bytes as text", cost.written_bytes);
        let machine: MachineRecord = counted.state.all().unwrap().remove(0);
        assert!(cost.read <= OF_EVERY_COMMAND + 2, "{} rows", cost.read);
        assert_eq!((row.at, machine.first_seen), (Timestamp(at * 1_000), Timestamp(1_000)));
    }
    assert_eq!(settled, 29 / (CONFIRMATIONS_MAX + 1));
    let run = lookup::compliance_changes(&counted.state, &said.machine).unwrap().remove(0);
    assert_eq!(run.told_by(Timestamp(u64::MAX)), Some(Timestamp(30_000)));
    assert_eq!(run.told_by(Timestamp(20_500)), Some(Timestamp(20_000)));
}
