//! Reports in any order, more than once, in any batches and through any nodes make one result, and how a machine stands
//! rests on nothing but its state, the policy, its keys, its exemption and the time.

use proptest::collection::vec;
use proptest::prelude::*;
use uuid::Uuid;

use crate::escrow::apply::apply;
use crate::escrow::command::{
    Action, Command, Contact, NoteContact, RaiseFeatureLevel, Reply, ReportCompliance, UploadOutcome,
};
use crate::escrow::compliance::history::{AGAIN_MAX, CHANGES_MAX, HISTORY_MAX_DAYS, as_of};
use crate::escrow::compliance::record::CLOCK_AHEAD_MAX_MS;
use crate::escrow::compliance::words::{
    Cipher, Conversion, DriveRule, Enforcement, MachineType, Protection, Protector, VolumeKind,
};
use crate::escrow::compliance::{
    Code, CompliancePolicy, ComplianceRecord, DeviceError, DevicePolicy, Evidence, Exemption, ExemptionGrant,
    ExemptionRequest, History, KeyFacts, MachineReport, Merged, Status, VolumeReport, findings, verdict,
};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, KeyId, MachineId, RequestId, Role, Timestamp, UserName};
use crate::escrow::lookup;
use crate::escrow::memory::Memory;
use crate::escrow::records::{LogPosition, Source};

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

/// Few times, so that they meet; some are far ahead of the stamp, some a little.
fn upload() -> impl Strategy<Value = Upload> {
    let time = prop_oneof![
        8 => 0..12_u64,
        1 => Just(CLOCK_AHEAD_MAX_MS),
        1 => (0..3_u64).prop_map(|more| CLOCK_AHEAD_MAX_MS + 10 + more),
        1 => Just(u64::MAX),
    ];
    (0..2_u8, time, 0..4_u8, 0..3_u8, 0..12_u64).prop_map(|(machine, at, state, beside, stamp)| Upload {
        report: report(machine, at, state, beside),
        stamp: Timestamp(stamp),
    })
}

/// Uploads, and the same in another order, with some of them twice.
fn in_two_orders() -> impl Strategy<Value = (Vec<Upload>, Vec<Upload>)> {
    vec(upload(), 1..AGAIN_MAX).prop_flat_map(|uploads| {
        let twice = proptest::sample::subsequence(uploads.clone(), 0..=uploads.len());
        let again = twice.prop_map({
            let uploads = uploads.clone();
            move |twice| [uploads.clone(), twice].concat()
        });
        (Just(uploads), again.prop_shuffle())
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

    /// All that is kept of compliance, and which users are known.
    fn kept(&self) -> (String, Vec<Vec<String>>) {
        let lines = self.state.dump();
        let lines: Vec<&str> = lines.lines().filter(|line| line.starts_with("Compliance")).collect();
        let users = |machine: u8| {
            let machine = lookup::machine(&self.state, &machine_id(machine)).unwrap();
            let mut users: Vec<String> = machine
                .into_iter()
                .flat_map(|machine| machine.users)
                .map(|user: UserName| user.to_string())
                .collect();
            users.sort();
            users
        };
        (lines.join("\n"), (0..2).map(users).collect())
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

/// What is kept after these uploads, without commands and rows.
fn merge_all(uploads: &[Upload]) -> (Option<ComplianceRecord>, History) {
    let (mut kept, mut history) = (None, History::default());
    for upload in uploads {
        let (record, _) = ComplianceRecord::merge(kept, &mut history, upload.report.clone(), upload.stamp);
        kept = Some(record);
    }
    (kept, history)
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
        prop_assert_eq!(first.kept(), second.kept());
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
        let ((record, history), (again, other)) = (merge_all(&uploads), merge_all(&other));
        prop_assert_eq!(&record, &again);
        prop_assert_eq!(&history, &other);
        let runs = history.runs();
        prop_assert!(runs.len() <= CHANGES_MAX);
        let oldest = record.unwrap().at.0.saturating_sub(HISTORY_MAX_DAYS * DAY_MS);
        prop_assert!(runs.iter().skip(1).all(|run| run.at.0 > oldest), "one reaches back to there at the most");
        if within_days > HISTORY_MAX_DAYS || drawn.len() > 300 {
            prop_assert!(history.floor().is_some(), "this test does drop something");
        }
    }

    #[test]
    fn the_newest_counts_and_the_history_tells_what_was_reported(uploads in vec(upload(), 1..AGAIN_MAX)) {
        let (record, history) = merge_all(&uploads);
        let record = record.unwrap();
        let told = |upload: &Upload| crate::escrow::compliance::record::held(upload.report.at, upload.stamp);
        prop_assert_eq!(record.at, uploads.iter().map(told).max().unwrap());
        prop_assert_eq!(Some(record.since), history.since());
        prop_assert_eq!(&history.runs().last().unwrap().state, &record.report.state());
        prop_assert!(history.runs().is_sorted_by_key(|run| (run.at, run.rank)));
        prop_assert!(history.runs().windows(2).all(|pair| pair[0].state != pair[1].state));
        for upload in &uploads {
            let found = as_of(history.runs(), told(upload)).unwrap();
            let told_then = uploads.iter().filter(|other| told(other) == told(upload));
            prop_assert!(told_then.clone().any(|other| other.report.state() == found.state));
        }
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
        for machine in [0, 1].map(machine_id) {
            let newest = |cluster: &Cluster| {
                lookup::compliance(&cluster.state, &machine).unwrap().map(|record| (record.report, record.at))
            };
            prop_assert_eq!(newest(&whole), newest(&thrifty));
            let Some((report, at)) = newest(&thrifty) else { continue };
            let changes = lookup::compliance_changes(&thrifty.state, &machine).unwrap();
            prop_assert_eq!(&as_of(&changes, at).unwrap().state, &report.state());
        }
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
        let evidence = Evidence {
            at, policy: &policy, state: state.as_ref(), told_at: state.as_ref().map(|_| told_at),
            first_seen, last_contact, rotation_owed_since: None,
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
        let other = Evidence { keys: &reversed, state: otherwise.as_ref(), ..evidence };
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
        let evidence = Evidence {
            at: Timestamp(0), policy: &policy, state: Some(&state), told_at: Some(Timestamp(0)), first_seen: Timestamp(0),
            last_contact: Timestamp(0),
            rotation_owed_since: None, keys: &[key], exemption: None,
        };
        prop_assert_eq!(verdict(&evidence).status, Status::Compliant);
        prop_assert_eq!(findings(&evidence), []);
    }
}
