//! Golden vectors of compliance: what was once written must keep decoding, from the first tagged release on.

use std::fmt::Debug;

use uuid::Uuid;

use super::*;
use crate::escrow::command::{
    Action, Command, Contact, DecideExemption, ImportOutcome, NoteContact, Refusal, Reply, ReportCompliance,
    RequestExemption, SetCompliancePolicy,
};
use crate::escrow::compliance::contact::{Ahead, CONFIRMATIONS_MAX};
use crate::escrow::compliance::history::RunEntry;
use crate::escrow::compliance::words::{
    Cipher, Conversion, DriveRule, Enforcement, MachineType, Protection, Protector, VolumeKind,
};
use crate::escrow::compliance::{
    Code, ComplianceChange, CompliancePolicyRecord, ComplianceRecord, DeviceError, DevicePolicy,
    EndedExemption, Exemption, ExemptionDecision, ExemptionGrant, ExemptionRejection, ExemptionRequest,
    HistoryIndex, LastContact, MachineReport, Moment, Said, Told, VolumeReport,
};
use crate::escrow::ids::{Identity, Invalid, KeyId, RequestId, Timestamp};
use crate::escrow::inventory::{Description, ImportedMachine, InventoryRecord};
use crate::escrow::records::{AuditEvent, AuditRecord, ExemptionTally, LogPosition, MachineRecord, Source};
use crate::escrow::rows::RequestRow;
use crate::escrow::tally::Slots;

/// `name: hex`, one a line.
const GOLDEN: &str = include_str!("testdata/golden-compliance.txt");

/// The variants and tables that have their vectors here.
pub(super) const PINNED: [&str; 18] = [
    "Compliance",
    "ComplianceChange",
    "CompliancePolicy",
    "CompliancePolicySet",
    "DecideExemption",
    "Exemption",
    "ExemptionDecided",
    "ExemptionRequested",
    "ExemptionTally",
    "HistoryIndex",
    "ImportMachines",
    "Inventory",
    "LastContact",
    "MachinesImported",
    "NoteContact",
    "ReportCompliance",
    "RequestExemption",
    "SetCompliancePolicy",
];

/// The stored bytes decode to the value, and the value is still written as these bytes.
#[track_caller]
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let written = data_encoding::HEXLOWER.encode(&encode(value));
    let line = GOLDEN.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let golden = line.unwrap_or_else(|| panic!("golden-compliance.txt has no line\n{name}: {written}"));
    assert_eq!(written, golden, "{name}");
    let bytes = data_encoding::HEXLOWER.decode(golden.as_bytes()).unwrap();
    assert_eq!(decode::<T>(&bytes).unwrap(), *value, "{name}");
}

fn command(action: Action) -> Command {
    Command {
        request: RequestId(Uuid::from_u128(0x11)),
        at: Timestamp(1_700_000_000_000),
        by: "spiffe://acme/importer/imp".parse().unwrap(),
        source: Source { node: 2, address: "192.0.2.7".to_owned() },
        action,
    }
}

fn officer() -> Identity {
    "spiffe://acme/officer/olga".parse().unwrap()
}

/// The last word of every kind, so that one that is not put at the end is noticed.
fn report() -> MachineReport {
    let last = |words: &[Protector]| vec![words[0], words[words.len() - 1]];
    MachineReport {
        machine: "PC-0001".parse().unwrap(),
        at: Timestamp(1_700_000_000_001),
        domain: "CORP".to_owned(),
        name: "pc-1".to_owned(),
        make: "Contoso".to_owned(),
        model: "Notebook".to_owned(),
        machine_type: MachineType::Unknown,
        os: "Windows 11".to_owned(),
        agent: "1.0".to_owned(),
        users: vec![r"CORP\user1".parse().unwrap()],
        policy: DevicePolicy {
            enforcement: Enforcement::Exempt,
            cipher: Some(Cipher::Unknown),
            os: DriveRule::Forbidden,
            os_protector: Some(Protector::TpmPin),
            fixed: DriveRule::Required,
            removable: DriveRule::NotConfigured,
        },
        error: Some(DeviceError { code: u32::MAX, text: "no".to_owned() }),
        volumes: vec![VolumeReport {
            volume: "C:".parse().unwrap(),
            kind: VolumeKind::Removable,
            label: "disk".to_owned(),
            protection: Protection::Unknown,
            conversion: Conversion::Unknown,
            percent: Some(100.try_into().unwrap()),
            method: Cipher::XtsAes256,
            protectors: last(Protector::ALL),
            auto_unlock: true,
            recovery_keys: Some(vec![KeyId(Uuid::from_u128(0x22))]),
            reasons: Code::ALL.to_vec(),
            seen_at: Some(Timestamp(4)),
        }],
    }
}

fn imported() -> ImportedMachine {
    let MachineReport { machine, users, .. } = report();
    ImportedMachine { machine, description: Description::of(&report()), users }
}

fn request() -> ExemptionRequest {
    ExemptionRequest {
        id: RequestId(Uuid::from_u128(0x12)),
        by: "spiffe://acme/helpdesk/d01".parse().unwrap(),
        at: Timestamp(5),
        reason: "lab".to_owned(),
        until: Some(Timestamp(9)),
    }
}

#[test]
fn commands_of_compliance_keep_decoding() {
    let reports = ReportCompliance { reports: vec![report()] };
    check("command report-compliance", &command(Action::ReportCompliance(reports)));
    let contact = Contact { machine: report().machine, at: Timestamp(6), digest: [7; 32] };
    let note = NoteContact { contacts: vec![contact] };
    check("command note-contact", &command(Action::NoteContact(note)));
    let ExemptionRequest { id, reason, until, .. } = request();
    let ask = RequestExemption { machine: report().machine, reason, until };
    check("command request-exemption", &command(Action::RequestExemption(ask)));
    for decision in
        [ExemptionDecision::Grant { until: None }, ExemptionDecision::Reject, ExemptionDecision::Revoke]
    {
        let decide = DecideExemption { machine: report().machine, exemption: id, decision };
        let name = format!("command decide-exemption {}", decision.as_str());
        check(&name, &command(Action::DecideExemption(decide)));
    }
    check("command import-machines", &command(Action::ImportMachines(vec![imported()])));
    let set = SetCompliancePolicy { policy: "{}".to_owned(), replaces: 3 };
    check("command set-compliance-policy", &command(Action::SetCompliancePolicy(set)));
}

#[test]
fn rows_of_compliance_keep_decoding() {
    let told = |at, late: Option<u64>| Told { at: Timestamp(at), late: late.map(Timestamp) };
    let record = ComplianceRecord { report: report(), at: Timestamp(1_700_000_000_000), since: Timestamp(3) };
    check("row compliance", &record);
    let ImportedMachine { machine, description, .. } = imported();
    check("row inventory", &InventoryRecord { machine, description });
    let state = report().state();
    let change = ComplianceChange {
        machine: report().machine,
        at: Timestamp(3),
        late: Some(Timestamp(7)),
        rank: state.rank(),
        state,
        again: vec![told(4, Some(9)), told(1_700_000_000_000, None)],
        thinned: 5,
    };
    check("row compliance-change", &change);
    let index = HistoryIndex {
        machine: report().machine,
        floor: Some(Moment { at: Timestamp(1), rank: u64::MAX }),
        runs: vec![RunEntry { first: change.moment(), bytes: change.state.weight() }],
    };
    check("row history-index", &index);
    let said = Said {
        digest: report().digest(),
        device: Timestamp(1_700_000_000_001),
        at: Timestamp(1_700_000_000_000),
        run: change.moment(),
        again: vec![told(1_700_000_000_000, Some(1_700_000_900_000))],
        ahead: Some(Ahead { device: Timestamp(1_700_000_000_001), at: Timestamp(1_700_000_000_000) }),
        dropped: Some(Timestamp(1)),
    };
    for (name, said) in [("row last-contact", Some(said)), ("row last-contact unreported", None)] {
        check(name, &LastContact { machine: report().machine, at: Timestamp(8), said });
    }
    let exemption = Exemption {
        machine: report().machine,
        request: Some(request()),
        grant: Some(ExemptionGrant {
            request: request(),
            by: officer(),
            at: Timestamp(6),
            until: Some(Timestamp(8)),
        }),
        rejection: Some(ExemptionRejection { request: request(), by: officer(), at: Timestamp(7) }),
        ended: Some(EndedExemption {
            grant: ExemptionGrant { request: request(), by: officer(), at: Timestamp(4), until: None },
            at: Timestamp(6),
        }),
    };
    check("row exemption", &exemption);
    let tally = ExemptionTally { person: "d01".to_owned(), slots: Slots(vec![(2_945_376, 3)]) };
    check("row exemption-tally", &tally);
    let policy = CompliancePolicyRecord {
        version: 2,
        policy: "{}".to_owned(),
        set_at: Timestamp(6),
        set_by: officer(),
    };
    check("row compliance-policy", &policy);
}

#[test]
fn records_and_replies_of_compliance_keep_decoding() {
    let audit = |event| AuditRecord {
        sequence: 13,
        previous: [5; 32],
        at: Timestamp(9),
        by: officer(),
        source: Source { node: 1, address: String::new() },
        position: LogPosition { term: 3, index: 1_000 },
        event,
    };
    let (machine, ExemptionRequest { id: exemption, by: asked_by, reason, until, .. }) =
        (report().machine, request());
    let requested = AuditEvent::ExemptionRequested { exemption, machine: machine.clone(), reason, until };
    check("row audit exemption-requested", &audit(requested));
    let decision = ExemptionDecision::Grant { until };
    let decided = AuditEvent::ExemptionDecided { exemption, machine, asked_by, decision };
    check("row audit exemption-decided", &audit(decided));
    let set = AuditEvent::CompliancePolicySet { version: 2, policy: "{}".to_owned() };
    check("row audit compliance-policy-set", &audit(set));

    let outcomes = vec![
        ImportOutcome::Noted,
        ImportOutcome::KnownBefore,
        ImportOutcome::Refused(Refusal::Invalid(Invalid::new("model", "no"))),
    ];
    check("reply machines-imported", &Reply::MachinesImported(outcomes));

    let remembered = |reply| RequestRow { request: exemption, digest: [6; 32], reply };
    check("row request exemption-requested", &remembered(Reply::ExemptionRequested { exemption }));
    check("row request exemption-decided", &remembered(Reply::ExemptionDecided));
    check("row request compliance-policy-set", &remembered(Reply::CompliancePolicySet { version: 2 }));
}

/// A million machines that say the same every day write this row a million times, and no other.
#[test]
fn the_row_of_an_unchanged_report_is_small() {
    let told = |day: usize| Told { at: Timestamp(1_700_000_000_000 + 86_400_000 * day as u64), late: None };
    let run = Moment { at: told(0).at, rank: u64::MAX };
    let again = (1..=CONFIRMATIONS_MAX).map(told).collect();
    let (device, at) = (told(CONFIRMATIONS_MAX).at, told(CONFIRMATIONS_MAX).at);
    let said = Said { digest: [7; 32], device, at, run, again, ahead: None, dropped: None };
    let row = LastContact { machine: report().machine, at, said: Some(said) };
    let bytes = encode(&row).len();
    assert!(bytes <= 192, "{bytes} bytes");

    // What is not written: what is kept of a laptop with two volumes, and who uses it.
    let mut laptop = report();
    laptop.volumes.push(VolumeReport { volume: "D:".parse().unwrap(), ..laptop.volumes[0].clone() });
    let machine = MachineRecord::first_heard_of(laptop.machine.clone(), at);
    let record = encode(&ComplianceRecord { report: laptop, at, since: at }).len();
    let spared = record + encode(&machine).len();
    println!("{bytes} bytes instead of {spared}");
    assert!(bytes < spared, "{bytes} bytes instead of {spared}");
}
