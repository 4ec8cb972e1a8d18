//! Reports in any order, more than once, in any batches and through any nodes make one result, and how a machine stands
//! rests on nothing but its state, the policy, its keys, its exemption and the time.

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use crate::escrow::apply::apply;
use crate::escrow::command::{
    Action, Command, Contact, NoteContact, RaiseFeatureLevel, Reply, ReportCompliance, UploadOutcome,
};
use crate::escrow::compliance::history::{AGAIN_MAX, CHANGES_MAX, HISTORY_MAX_DAYS, around, as_of};
use crate::escrow::compliance::record::CLOCK_AHEAD_MAX_MS;
use crate::escrow::compliance::words::{
    Cipher, Conversion, DriveRule, Enforcement, MachineType, Protection, Protector, VolumeKind,
};
use crate::escrow::compliance::{
    Code, ComplianceChange, CompliancePolicy, ComplianceRecord, DeviceError, DevicePolicy, Evidence,
    Exemption, ExemptionGrant, ExemptionRequest, History, HistoryIndex, Kept, KeyFacts, MachineReport,
    Merged, Moment, Status, Stood, Told, VolumeReport, findings, verdict,
};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, KeyId, MachineId, RequestId, Role, Timestamp, UserName};
use crate::escrow::lookup;
use crate::escrow::memory::Memory;
use crate::escrow::records::{LogPosition, Source};
use crate::escrow::state::Table;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
/// Nobody is so far ahead of it that the time is held.
const LATER: Timestamp = Timestamp(10_000 * DAY_MS);

/// An upload: what is reported, and when the node that took it stamped the command.
#[derive(Debug, Clone)]
struct Upload {
    report: MachineReport,
    stamp: Timestamp,
}

/// A report of a machine of few, with few states and something beside the state.
pub(super) fn report(machine: u8, at: u64, state: u8, beside: u8) -> MachineReport {
    let conversion = [Conversion::Decrypted, Conversion::Encrypting, Conversion::Encrypted];
    let volume = VolumeReport {
        volume: "C:".parse().unwrap(),
        kind: VolumeKind::Os,
        label: String::new(),
        protection: if state & 4 > 0 { Protection::On } else { Protection::Off },
        conversion: conversion[usize::from(state) % 3],
        percent: Some(u64::from(beside).try_into().unwrap()),
        method: Cipher::XtsAes256,
        protectors: vec![Protector::Tpm],
        auto_unlock: false,
        recovery_keys: (state & 8 > 0).then(|| vec![KeyId(Uuid::from_u128(u128::from(state)))]),
        reasons: Vec::new(),
        seen_at: None,
    };
    MachineReport {
        machine: format!("PC-{machine}").parse().unwrap(),
        at: Timestamp(at),
        domain: "CORP".to_owned(),
        name: String::new(),
        make: String::new(),
        model: String::new(),
        machine_type: MachineType::Portable,
        os: String::new(),
        agent: String::new(),
        users: vec![format!(r"CORP\user{}", beside % 2).parse().unwrap()],
        policy: DevicePolicy {
            enforcement: Enforcement::Enforced,
            cipher: None,
            os: DriveRule::Required,
            os_protector: None,
            fixed: DriveRule::Required,
            removable: DriveRule::Allowed,
        },
        error: (state & 16 > 0).then(|| DeviceError { code: 5, text: String::new() }),
        volumes: vec![volume],
    }
}

/// Few times, so that they meet, up to the most that a clock may be ahead; some come in late. So that there are runs that
/// are longer than what is kept of their repeats, times lie apart as the days do.
fn upload() -> impl Strategy<Value = Upload> {
    let late = prop_oneof![3 => 0..12_u64, 1 => Just(DAY_MS), 1 => Just(9 * DAY_MS)];
    let time = prop_oneof![4 => 0..12_u64, 1 => (0..12_u64).prop_map(|days| days * DAY_MS)];
    let ahead = prop_oneof![4 => Just(0), 1 => Just(CLOCK_AHEAD_MAX_MS)];
    (0..2_u8, (time, late, ahead), 0..4_u8, 0..3_u8).prop_map(
        |(machine, (at, late, ahead), state, beside)| Upload {
            report: report(machine, at + ahead, state, beside),
            stamp: Timestamp(at + late),
        },
    )
}

/// Uploads, and the same in another order, with some of them twice: the second time through another node, and later.
fn in_two_orders() -> impl Strategy<Value = (Vec<Upload>, Vec<Upload>)> {
    vec(upload(), 1..AGAIN_MAX).prop_flat_map(|uploads| {
        let later = vec(1..20 * DAY_MS, uploads.len());
        let twice = proptest::sample::subsequence(uploads.clone(), 0..=uploads.len());
        let again = (twice, later).prop_map({
            let uploads = uploads.clone();
            move |(twice, later)| {
                let repeat = |(upload, later): (Upload, u64)| Upload {
                    stamp: Timestamp(upload.stamp.0 + later),
                    ..upload
                };
                [uploads.clone(), twice.into_iter().zip(later).map(repeat).collect()].concat()
            }
        });
        (Just(uploads), again.prop_shuffle())
    })
}

/// What a device says whose clock is ahead, in its order, and what comes of others of its uploads between. Each comes in
/// at its own time; some of those of the clock that is ahead come again, soon after.
fn of_a_clock_that_is_ahead() -> impl Strategy<Value = Vec<Upload>> {
    let ahead = (0..4_u8, 1..1_000_u64, any::<bool>());
    vec((ahead, proptest::option::of(0..30_u64)), 1..12).prop_map(|steps| {
        let mut uploads: Vec<Upload> = Vec::new();
        for (step, ((state, by, repeat), other)) in (1_u64..).zip(steps) {
            let stamp = Timestamp(step * 1_000);
            let device = CLOCK_AHEAD_MAX_MS * 2 + step * 1_000 + by % 1_000;
            uploads.push(Upload { report: report(0, device, state, 0), stamp });
            if let Some(at) = other {
                uploads.push(Upload { report: report(0, at * 500, state ^ 1, 1), stamp });
            }
            if repeat {
                let place = by as usize % uploads.len();
                let stamp = Timestamp(step * 1_000 + 500);
                uploads.push(Upload { stamp, ..uploads[place].clone() });
            }
        }
        uploads
    })
}

/// Uploads of two states within 900 days, and the same in another order, with some of them twice.
fn past_the_retention() -> impl Strategy<Value = (Vec<Upload>, Vec<Upload>)> {
    let upload = (0..2_u8, 0..900_u64, 0..2_u8).prop_map(|(machine, day, state)| Upload {
        report: report(machine, day * DAY_MS, state, 0),
        stamp: LATER,
    });
    vec(upload, 1..AGAIN_MAX).prop_flat_map(|mut uploads| {
        let twice = proptest::sample::subsequence(uploads.clone(), 0..=uploads.len());
        let other = twice.prop_map({
            let uploads = uploads.clone();
            move |twice| [uploads.clone(), twice].concat()
        });
        uploads.sort_by_key(|upload| upload.report.at);
        (Just(uploads), other.prop_shuffle())
    })
}

/// A cluster that takes reports.
struct Cluster {
    state: Memory,
    index: u64,
}

impl Cluster {
    fn begin() -> Self {
        let mut cluster = Self { state: Memory::new(), index: 0 };
        cluster.apply(Role::Node, Timestamp(0), super::commands::initialize(1));
        let raise = RaiseFeatureLevel { level: FeatureLevel::COMPLIANCE };
        cluster.apply(Role::Node, Timestamp(0), Action::RaiseFeatureLevel(raise));
        cluster
    }

    fn apply(&mut self, role: Role, at: Timestamp, action: Action) -> Reply {
        self.index += 1;
        let command = Command {
            request: RequestId(Uuid::from_u128(self.index.into())),
            at,
            by: Identity::new("acme".parse().unwrap(), role, "1").unwrap(),
            source: Source { node: 1 + self.index % 3, address: String::new() },
            action,
        };
        apply(&mut self.state, LogPosition { term: 1, index: self.index }, &command).unwrap()
    }

    fn put(&mut self, stamp: Timestamp, reports: Vec<MachineReport>) -> Vec<Merged> {
        let action = Action::ReportCompliance(ReportCompliance { reports });
        merged(self.apply(Role::Importer, stamp, action))
    }

    /// As a node does: only what is not known is sent whole.
    fn upload(&mut self, upload: &Upload) {
        let Upload { report, stamp } = upload;
        let contact = Contact { machine: report.machine.clone(), at: report.at, digest: report.digest() };
        let note = Action::NoteContact(NoteContact { contacts: vec![contact] });
        if merged(self.apply(Role::Importer, *stamp, note)) == [Merged::Changed] {
            self.put(*stamp, vec![report.clone()]);
        }
    }

    /// How the machines stood on each of these days.
    fn stood(&self, days: std::ops::Range<u64>) -> Vec<(u64, u8, Stood)> {
        let of = |machine: u8| {
            let id = machine_id(machine);
            let contact = lookup::last_contact(&self.state, &id).unwrap();
            let changes = lookup::compliance_changes(&self.state, &id).unwrap();
            days.clone().map(move |day| {
                let at = Timestamp(day * DAY_MS);
                let stood = Stood::then(&changes, contact.as_ref(), at);
                // What a report takes along of the past says the same.
                assert_eq!(Stood::then(around(&changes, at), contact.as_ref(), at), stood);
                (day, machine, stood)
            })
        };
        (0..2).flat_map(of).collect()
    }

    /// All that is known of compliance, and which users were seen, the last at the end. Those that the newest report names
    /// were seen for as long as it was confirmed, which is noted once another one comes.
    fn known(&self) -> Vec<(Option<ComplianceRecord>, Vec<ComplianceChange>, Vec<UserName>)> {
        let known = |machine: u8| {
            let (state, id) = (&self.state, machine_id(machine));
            let record = lookup::compliance(state, &id).unwrap();
            let mut machine = lookup::machine(state, &id).unwrap();
            if let (Some(machine), Some(record)) = (&mut machine, &record) {
                record.report.users.iter().for_each(|user| drop(machine.saw(user, record.at)));
            }
            let users = machine.map(|machine| machine.users).unwrap_or_default();
            (record, lookup::compliance_changes(state, &id).unwrap(), users)
        };
        (0..2).map(known).collect()
    }
}

fn machine_id(machine: u8) -> MachineId {
    format!("PC-{machine}").parse().unwrap()
}

fn merged(reply: Reply) -> Vec<Merged> {
    let Reply::ComplianceNoted(outcomes) = reply else { panic!("{reply:?}") };
    let merged = outcomes.into_iter().map(|outcome| match outcome {
        UploadOutcome::Taken { merged, .. } => merged,
        UploadOutcome::Refused(refusal) => panic!("{refusal}"),
    });
    merged.collect()
}

/// What is kept of one machine after these uploads, without commands and rows: the record, the runs and the floor.
fn merge_all(uploads: &[Upload]) -> (ComplianceRecord, Vec<ComplianceChange>, Option<Moment>) {
    let nothing = Memory::new();
    let mut history = History::read(&nothing, &machine_id(0)).unwrap();
    let mut kept: Option<Kept> = None;
    for Upload { report, stamp } in uploads {
        kept = Some(Kept::merge(kept, &mut history, report.clone(), *stamp).unwrap().0);
    }
    (kept.unwrap().record, history.runs(), history.floor())
}

proptest! {
    #[test]
    fn reports_in_any_order_and_twice_make_one_result((one, other) in in_two_orders(), size in 1..5_usize) {
        let mut first = Cluster::begin();
        for upload in &one {
            first.put(upload.stamp, vec![upload.report.clone()]);
        }
        let mut second = Cluster::begin();
        // A batch has one stamp.
        for batch in other.chunk_by(|a, b| a.stamp == b.stamp).flat_map(|same| same.chunks(size)) {
            second.put(batch[0].stamp, batch.iter().map(|upload| upload.report.clone()).collect());
        }
        prop_assert_eq!(first.known(), second.known());
        for (table, count) in [(Table::Compliance, 1), (Table::LastContact, 1), (Table::HistoryIndex, 1)] {
            prop_assert!(first.state.count(table) <= 2 * count);
        }
        // No row is left of runs that are no more.
        let indexed: usize = second.state.all::<HistoryIndex>().unwrap().iter().map(|index| index.runs.len()).sum();
        prop_assert_eq!(second.state.count(Table::ComplianceChange), indexed);
    }

    #[test]
    fn what_is_dropped_depends_on_the_reports_alone(
        drawn in vec((0..1_000_u64, 0..9_u8), 100..400), within_days in prop_oneof![Just(900_u64), Just(30)],
        seed in any::<u64>(),
    ) {
        let upload = |(part, state): &(u64, u8)| {
            Upload { report: report(0, part * within_days * DAY_MS / 1_000, *state, 0), stamp: LATER }
        };
        let uploads: Vec<Upload> = drawn.iter().map(upload).collect();
        let mut other = uploads.clone();
        // Any fixed order that has nothing to do with the times.
        other.sort_by_key(|upload| upload.report.at.0.wrapping_mul(seed | 1).rotate_left(17));
        let kept = merge_all(&uploads);
        prop_assert_eq!(&kept, &merge_all(&other));
        let (record, runs, floor) = kept;
        prop_assert!(runs.len() <= CHANGES_MAX);
        let oldest = record.at.0.saturating_sub(HISTORY_MAX_DAYS * DAY_MS);
        prop_assert!(runs.iter().skip(1).all(|run| run.at.0 > oldest), "one reaches back to there at the most");
        if within_days > HISTORY_MAX_DAYS || drawn.len() > 300 {
            prop_assert!(floor.is_some(), "this test does drop something");
        }
    }

    #[test]
    fn the_newest_counts_and_the_history_tells_what_was_reported(uploads in vec(upload(), 1..AGAIN_MAX)) {
        let (record, runs, _) = merge_all(&uploads);
        let told = |upload: &Upload| upload.report.at;
        prop_assert_eq!(record.at, uploads.iter().map(told).max().unwrap());
        prop_assert_eq!(record.since, runs.last().unwrap().at);
        prop_assert_eq!(&runs.last().unwrap().state, &record.report.state());
        prop_assert!(runs.is_sorted_by_key(ComplianceChange::moment));
        prop_assert!(runs.windows(2).all(|pair| pair[0].state != pair[1].state));
        for at in uploads.iter().map(told) {
            let found = as_of(&runs, at).unwrap();
            let then: Vec<&Upload> = uploads.iter().filter(|upload| told(upload) == at).collect();
            prop_assert!(then.iter().any(|upload| upload.report.state() == found.state));
            // When it was told and when that came in is known as well, unless it came in of two things at once.
            prop_assert_eq!(found.told_by(at), Some(at));
            let known = Stood::then(&runs, None, at);
            let in_time = |upload: &&&Upload| Told::new(at, upload.stamp).is_known_by(at);
            if then.iter().all(|upload| upload.report.state() == found.state) {
                let earlier = uploads.iter().any(|upload| {
                    told(upload) >= found.at && upload.report.state() == found.state
                        && Told::new(told(upload), upload.stamp).is_known_by(at)
                });
                prop_assert_eq!(known.told_later, !earlier && then.iter().find(in_time).is_none());
            }
        }
    }

    #[test]
    fn of_a_clock_that_is_ahead_its_own_order_counts(uploads in of_a_clock_that_is_ahead()) {
        let (record, runs, floor) = merge_all(&uploads);
        let is_ahead = |upload: &&Upload| upload.report.at > Timestamp(CLOCK_AHEAD_MAX_MS);
        let newest = uploads.iter().filter(is_ahead).max_by_key(|upload| upload.report.at).unwrap();
        // What it said by a clock that was right may be dated later than that came in.
        if record.clock_ahead() {
            prop_assert_eq!(&record.report, &newest.report);
            prop_assert_eq!(&runs.last().unwrap().state, &newest.report.state());
        }
        // Repeated, it says nothing new, however late.
        let mut again = uploads.clone();
        let soon = Timestamp(uploads.last().unwrap().stamp.0 + 7_000);
        again.extend(uploads.iter().filter(is_ahead).map(|one| Upload { stamp: soon, ..one.clone() }));
        prop_assert_eq!(merge_all(&again), (record, runs, floor));
    }

    #[test]
    fn past_what_is_kept_confirmations_and_reports_make_one_result(
        (one, other) in past_the_retention(), again in 900..1_900_u64,
    ) {
        let mut confirmed = Cluster::begin();
        one.iter().for_each(|upload| confirmed.upload(upload));
        let mut shuffled = Cluster::begin();
        other.iter().for_each(|upload| shuffled.upload(upload));
        prop_assert_eq!(confirmed.stood(0..901), shuffled.stood(0..901));
        // Whether what is said next is a confirmation or a report that is put whole.
        let last = |machine: u8| {
            let record = lookup::compliance(&confirmed.state, &machine_id(machine)).unwrap()?;
            Some(MachineReport { at: Timestamp(again * DAY_MS), ..record.report })
        };
        let reports: Vec<MachineReport> = (0..2).filter_map(last).collect();
        for report in &reports {
            confirmed.upload(&Upload { report: report.clone(), stamp: LATER });
            // The one that was dropped does not come back by what is told of a time before.
            let at = Timestamp(report.at.0 - HISTORY_MAX_DAYS * DAY_MS);
            let between = MachineReport { at, ..report.clone() };
            shuffled.upload(&Upload { report: between.clone(), stamp: LATER });
            shuffled.upload(&Upload { report: report.clone(), stamp: LATER });
            confirmed.upload(&Upload { report: between, stamp: LATER });
        }
        prop_assert_eq!(confirmed.stood(0..again + 1), shuffled.stood(0..again + 1));
    }

    #[test]
    fn a_node_that_sends_only_what_is_new_makes_the_same_of_it((one, other) in in_two_orders()) {
        let mut whole = Cluster::begin();
        for upload in &one {
            whole.put(upload.stamp, vec![upload.report.clone()]);
        }
        let mut thrifty = Cluster::begin();
        for upload in &other {
            thrifty.upload(upload);
        }
        prop_assert_eq!(whole.known(), thrifty.known());
    }
}

/// Any policy, mostly a strict one.
fn policy() -> impl Strategy<Value = CompliancePolicy> {
    let ciphers = proptest::option::of(proptest::sample::select(Cipher::RANKED.to_vec()));
    (any::<[bool; 4]>(), ciphers, any::<bool>(), 0..4_u32, 1..4_u32).prop_map(
        |([os, fixed, removable, recovery_key], cipher, tpm, grace_days, stale_days)| {
            let mut policy = CompliancePolicy::default();
            (policy.required.os, policy.required.fixed, policy.required.removable) = (os, fixed, removable);
            (policy.minimum_cipher.os, policy.recovery_key) = (cipher, recovery_key);
            policy.os_protectors = if tpm { vec![Protector::TpmPin] } else { Vec::new() };
            (policy.grace_days, policy.stale_days) = (grace_days, stale_days);
            policy
        },
    )
}

fn any_word<T: Copy + std::fmt::Debug + 'static>(words: &'static [T]) -> impl Strategy<Value = T> {
    proptest::sample::select(words)
}

/// Any state that a volume can be in.
fn volume() -> impl Strategy<Value = VolumeReport> {
    let words = (
        any_word(VolumeKind::ALL),
        any_word(Protection::ALL),
        any_word(Conversion::ALL),
        any_word(Cipher::ALL),
        vec(any_word(Protector::ALL), 0..3),
    );
    let keys = proptest::option::of(vec(0..4_u128, 0..3));
    (0..3_u8, words, keys, vec(any_word(&Code::ALL), 0..3)).prop_map(
        |(name, (kind, protection, conversion, method, protectors), keys, reasons)| VolumeReport {
            volume: format!("disk{name}").parse().unwrap(),
            kind,
            protection,
            conversion,
            method,
            protectors,
            recovery_keys: keys.map(|keys| keys.into_iter().map(|key| KeyId(Uuid::from_u128(key))).collect()),
            reasons,
            ..report(0, 0, 0, 0).volumes.remove(0)
        },
    )
}

fn any_report() -> impl Strategy<Value = MachineReport> {
    (vec(volume(), 0..4), any_word(Enforcement::ALL)).prop_map(|(mut volumes, enforcement)| {
        volumes.sort_by(|one, other| one.volume.cmp(&other.volume));
        volumes.dedup_by(|one, other| one.volume == other.volume);
        let mut report = MachineReport { volumes, ..report(0, 0, 0, 0) };
        report.policy.enforcement = enforcement;
        report.checked().unwrap()
    })
}

fn key() -> impl Strategy<Value = KeyFacts> {
    (0..4_u128, 0..3_u8, any::<[bool; 2]>()).prop_map(|(id, volume, [in_use, may_open])| KeyFacts {
        id: KeyId(Uuid::from_u128(id)),
        volume: format!("disk{volume}").parse().unwrap(),
        escrowed_at: Timestamp(0),
        in_use,
        may_open: may_open || in_use,
    })
}

fn exemption() -> impl Strategy<Value = Exemption> {
    let until = proptest::option::of(0..8_u64);
    proptest::option::of((0..8_u64, until)).prop_map(|grant| {
        let by: Identity = "spiffe://acme/officer/olga".parse().unwrap();
        let request = ExemptionRequest {
            id: RequestId(Uuid::nil()),
            by: by.clone(),
            at: Timestamp(0),
            reason: "lab".to_owned(),
            until: None,
        };
        let grant = grant.map(|(at, until)| ExemptionGrant {
            request,
            by,
            at: Timestamp(at * DAY_MS),
            until: until.map(|until| Timestamp(until * DAY_MS)),
        });
        Exemption { grant, ..Exemption::none(machine_id(0)) }
    })
}

proptest! {
    #[test]
    fn a_verdict_rests_on_what_it_is_told_and_nothing_else(
        told in proptest::option::of(any_report()), policy in policy(), keys in vec(key(), 0..4),
        exemption in proptest::option::of(exemption()), times in any::<[u8; 4]>(),
    ) {
        let [at, first_seen, last_contact, told_at] = times.map(|time| Timestamp(u64::from(time % 8) * DAY_MS));
        let state = told.as_ref().map(MachineReport::state);
        let stood = Stood {
            state: state.clone(), told_at: state.as_ref().map(|_| told_at), heard_at: Some(last_contact),
            ..Stood::default()
        };
        let evidence = Evidence {
            at, policy: &policy, stood: &stood, first_seen, rotation_owed_since: None,
            keys: &keys, exemption: exemption.as_ref(),
        };
        let judged = verdict(&evidence);

        // Not on the order of keys, nor on what is not part of the state.
        let mut reversed = keys.clone();
        reversed.reverse();
        let otherwise = told.map(|told| {
            let mut other = MachineReport { model: "other".to_owned(), at: Timestamp(7), ..told };
            other.volumes.iter_mut().for_each(|volume| volume.label = "other".to_owned());
            other.state()
        });
        let otherwise = Stood { state: otherwise, ..stood.clone() };
        let other = Evidence { keys: &reversed, stood: &otherwise, ..evidence };
        prop_assert_eq!(&verdict(&other), &judged);
        prop_assert_eq!(findings(&other), findings(&evidence));

        // Nor is a finding let off.
        prop_assert_eq!(findings(&Evidence { exemption: None, ..evidence }), findings(&evidence));

        let exempt = exemption.as_ref().and_then(|exemption| exemption.in_force(at));
        match judged.status {
            Status::Exempt => prop_assert!(exempt.is_some_and(|grant| grant.until.is_none())),
            Status::TemporarilyExempt => prop_assert!(exempt.is_some_and(|grant| grant.until.is_some_and(|until| at < until))),
            Status::Compliant => prop_assert!(judged.reasons.is_empty() && state.is_some() && exempt.is_none()),
            Status::NonCompliant | Status::NotEnforced | Status::Unknown => {
                prop_assert!(!judged.reasons.is_empty() && exempt.is_none());
            }
        }
        prop_assert!(judged.reasons.is_sorted_by_key(|reason| reason.volume.clone()));
    }

    #[test]
    fn a_machine_that_is_as_it_should_be_complies_under_any_policy(policy in policy()) {
        let mut told = report(0, 0, 14, 0);
        told.volumes[0].protectors = vec![Protector::TpmPin];
        let state = told.state();
        let id = state.volumes[0].recovery_keys.as_ref().unwrap()[0];
        let key = KeyFacts {
            id, volume: "C:".parse().unwrap(), escrowed_at: Timestamp(0), in_use: true, may_open: true,
        };
        let now = Some(Timestamp(0));
        let stood = Stood { state: Some(state), told_at: now, heard_at: now, ..Stood::default() };
        let evidence = Evidence {
            at: Timestamp(0), policy: &policy, stood: &stood, first_seen: Timestamp(0),
            rotation_owed_since: None, keys: &[key], exemption: None,
        };
        prop_assert_eq!(verdict(&evidence).status, Status::Compliant);
        prop_assert_eq!(findings(&evidence), []);
    }
}
