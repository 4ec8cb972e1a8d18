//! One machine as a report sees it: how it stands at the time that is asked about, and what its columns say.

use super::bundle::Bundle;
use super::query::{MachineFilter, MachineQuery};
use super::row::Cell;
use crate::escrow::compliance::words::{ReasonKind, VolumeKind};
use crate::escrow::compliance::{
    CompliancePolicy, ComplianceRecord, DevicePolicy, Evidence, Exemption, ExemptionGrant, Finding, KeyFacts,
    MachineState, Reason, Stood, Verdict, VolumeReport, findings, verdict,
};
use crate::escrow::ids::{Timestamp, UserName, VolumeId};
use crate::escrow::inventory::Description;
use crate::escrow::records::KeyState;
use crate::escrow::rotation::MachineKeyState;

/// A machine, judged.
pub(super) struct Judged<'a> {
    pub bundle: &'a Bundle,
    query: &'a MachineQuery,
    /// What the machine said last that it is, and where it said nothing, what imports say; `None` if neither said any.
    description: Option<Description>,
    pub at: Timestamp,
    /// How it stood at that time.
    pub stood: Stood,
    pub keys: Vec<KeyFacts>,
    pub verdict: Verdict,
    pub findings: Vec<Finding>,
}

impl<'a> Judged<'a> {
    /// Judges a machine; `None` if it was not known yet at that time.
    pub fn of(bundle: &'a Bundle, query: &'a MachineQuery, policy: &CompliancePolicy) -> Option<Self> {
        let at = query.at;
        let contact = bundle.contact.as_ref();
        let stood = match query.as_of {
            true => Stood::then(&bundle.changes, contact, at),
            false => Stood::now(bundle.compliance.as_ref(), contact),
        };
        // What a device told late, of a time before it was first heard of, is known all the same.
        if query.as_of && bundle.machine.first_seen > at && stood.state.is_none() {
            return None;
        }
        let keys = bundle.keys.iter();
        let keys: Vec<KeyFacts> = match query.as_of {
            true => keys.filter_map(|known| KeyFacts::as_of(known, at)).collect(),
            false => keys.filter_map(|known| KeyFacts::of(&known.key)).collect(),
        };
        let evidence = Evidence::new(at, policy, &bundle.machine, &stood, &keys, bundle.exemption.as_ref());
        let (verdict, findings) = (verdict(&evidence), findings(&evidence));
        let description = description_of(bundle);
        Some(Self { bundle, query, description, at, stood, keys, verdict, findings })
    }

    /// Whether it is one of those that are asked for.
    pub fn matches(&self, filter: &MachineFilter) -> bool {
        let MachineFilter { statuses, findings, machine, domain, user, after } = filter;
        let id = &self.bundle.machine.id;
        let described = self.description.as_ref();
        let name = described.map_or("", |known| &known.name);
        let in_domain = |asked: &String| {
            described.is_some_and(|known| known.domain.to_lowercase() == asked.to_lowercase())
        };
        after.as_ref().is_none_or(|after| id > after)
            && (statuses.is_empty() || statuses.contains(&self.verdict.status))
            && (findings.is_empty() || self.findings.iter().any(|found| findings.contains(&found.kind)))
            && machine.as_ref().is_none_or(|pattern| pattern.matches(id.as_str()) || pattern.matches(name))
            && domain.as_ref().is_none_or(in_domain)
            && user.as_ref().is_none_or(|user| self.users().contains(user))
    }

    fn record(&self) -> Option<&'a ComplianceRecord> {
        self.bundle.compliance.as_ref()
    }

    pub fn state(&self) -> Option<&MachineState> {
        self.stood.state.as_ref()
    }

    /// The newest report, if it is of the time that is asked about: what is not part of a state is not kept.
    fn record_of_then(&self) -> Option<&'a ComplianceRecord> {
        self.record().filter(|record| !self.query.as_of || record.at <= self.at)
    }

    /// The policy that the device was given, if it is that of the time.
    pub fn device_policy(&self) -> Option<&'a DevicePolicy> {
        self.record_of_then().map(|record| &record.report.policy)
    }

    /// The version of the agent, if it is that of the time.
    pub fn agent(&self) -> Option<&'a str> {
        self.record_of_then().map(|record| record.report.agent.as_str())
    }

    /// Whether the device's clock was ahead.
    pub fn clock_ahead_cell(&self) -> Cell {
        self.record_of_then().map_or(Cell::Absent, |record| Cell::flag(record.clock_ahead()))
    }

    /// Whether what is said of the past came in later.
    pub fn told_later_cell(&self) -> Cell {
        match self.query.as_of && self.state().is_some() {
            true => Cell::flag(self.stood.told_later),
            false => Cell::Absent,
        }
    }

    /// The text of the device's error, if it is the error of that time.
    pub fn error_text(&self) -> Option<&'a str> {
        let error = self.record().filter(|_| self.stood.is_newest)?.report.error.as_ref()?;
        Some(&error.text)
    }

    pub fn users(&self) -> &'a [UserName] {
        &self.bundle.machine.users
    }

    /// A text of what the machine is, if one is known.
    pub fn said(&self, text: impl Fn(&Description) -> &str) -> Cell {
        Cell::Text(self.description.as_ref().map(text).unwrap_or_default().to_owned())
    }

    pub fn machine_cell(&self) -> Cell {
        Cell::Text(self.bundle.machine.id.to_string())
    }

    pub fn status_cell(&self) -> Cell {
        Cell::Text(self.verdict.status.to_string())
    }

    pub fn users_cell(&self) -> Cell {
        let asked = self.query.filter.user.as_ref();
        let may_be_named = |user: &&UserName| self.query.names_users || asked == Some(user);
        Cell::list(self.users().iter().filter(may_be_named))
    }

    /// The reasons, each in a few words.
    pub fn reasons_cell(&self) -> Cell {
        Cell::list(self.verdict.reasons.iter().map(reason_in_short))
    }

    pub fn findings_cell(&self) -> Cell {
        Cell::list(self.findings.iter().map(finding_in_short))
    }

    /// How the drives of a kind stand together.
    pub fn drives(&self, kind: VolumeKind) -> &'static str {
        let Some(state) = self.state() else { return "unknown" };
        let mut drives = state.volumes.iter().filter(|volume| volume.kind == kind).peekable();
        if drives.peek().is_none() {
            return "none";
        }
        let all = drives.map(|volume| self.volume_status(&volume.volume));
        all.max_by_key(|status| STATUSES.iter().position(|one| one == status)).unwrap_or("unknown")
    }

    /// How a volume stands by itself.
    pub fn volume_status(&self, volume: &VolumeId) -> &'static str {
        let mut reasons = self.reasons_of(volume);
        match reasons.next() {
            None => "compliant",
            Some(first) => {
                let is_vague = |reason: &Reason| reason.kind == ReasonKind::StateUnknown;
                if is_vague(first) && reasons.all(is_vague) { "unknown" } else { "non-compliant" }
            }
        }
    }

    pub fn reasons_of<'b>(&'b self, volume: &'b VolumeId) -> impl Iterator<Item = &'b Reason> {
        self.verdict.reasons.iter().filter(move |reason| reason.volume.as_ref() == Some(volume))
    }

    /// What the report says of a volume, if it has it and is of that time.
    pub fn reported(&self, volume: &VolumeId) -> Option<&'a VolumeReport> {
        let report = &self.record_of_then()?.report;
        report.volumes.iter().find(|said| said.volume == *volume)
    }

    /// Where the exemption of the machine stands, and since when and until when what was granted holds.
    pub fn exemption(&self) -> Exempt {
        let none = Exempt { word: "none", since: None, until: None };
        let Some(exemption) = &self.bundle.exemption else { return none };
        let granted = |word, grant: &ExemptionGrant, until| Exempt { word, since: Some(grant.at), until };
        if let Some(grant) = exemption.in_force(self.at) {
            return granted("granted", grant, grant.until);
        }
        let Exemption { request, grant, rejection, ended, .. } = exemption;
        let by_then = |at: Timestamp| at <= self.at;
        if let Some(grant) = grant.as_ref().filter(|grant| by_then(grant.at)) {
            return granted("ended", grant, grant.until);
        }
        if request.as_ref().is_some_and(|request| by_then(request.at)) {
            return Exempt { word: "requested", ..none };
        }
        if rejection.as_ref().is_some_and(|rejection| by_then(rejection.at)) {
            return Exempt { word: "rejected", ..none };
        }
        let ended = ended.as_ref().filter(|ended| by_then(ended.at));
        ended.map_or(none, |ended| granted("ended", &ended.grant, Some(ended.at)))
    }

    /// In which state a key is, or was; `None` if it was not in escrow yet at a time in the past that is asked about.
    pub fn key_state(&self, known: &MachineKeyState) -> Option<KeyState> {
        match self.query.as_of {
            true => known.state_as_of(self.at),
            // As the verdict takes it: whoever asks may be a little behind the node that took the escrow.
            false => Some(known.key.state),
        }
    }

    /// Since when a rotation is owed, if that was before the time that is asked about.
    pub fn rotation_owed_since(&self) -> Option<Timestamp> {
        self.bundle.machine.rotation_owed_since.filter(|since| *since <= self.at)
    }
}

/// Where an exemption stands.
pub(super) struct Exempt {
    pub word: &'static str,
    /// When what holds, or held last, was granted.
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
}

/// What is known of a machine but for its volumes: its own word first.
fn description_of(bundle: &Bundle) -> Option<Description> {
    let imported = bundle.inventory.as_ref().map(|kept| &kept.description);
    match bundle.compliance.as_ref().map(|record| Description::of(&record.report)) {
        Some(said) => Some(said.or(imported.unwrap_or(&Description::default()))),
        None => imported.cloned(),
    }
}

/// How volumes stand, the worst last.
const STATUSES: [&str; 3] = ["compliant", "unknown", "non-compliant"];

/// `C: not-encrypted (code 1)`.
pub(super) fn reason_in_short(reason: &Reason) -> String {
    let Reason { volume, kind, code } = reason;
    let place = volume.as_ref().map(|volume| format!("{volume} ")).unwrap_or_default();
    let code = code.map(|code| format!(" (code {})", code.number())).unwrap_or_default();
    format!("{place}{kind}{code}")
}

/// `C: recovery-key-missing`.
fn finding_in_short(finding: &Finding) -> String {
    let place = finding.volume.as_ref().map(|volume| format!("{volume} ")).unwrap_or_default();
    format!("{place}{}", finding.kind)
}
