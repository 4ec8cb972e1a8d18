//! The commands of scripts that are about compliance.

use std::fmt::Write as _;

use goldenscript::ArgumentConsumer;

use super::{Outcome, at, id, ids, optional, or_none, required};
use crate::escrow::command::{
    Action, Contact, DecideExemption, ImportOutcome, NoteContact, ReportCompliance, RequestExemption,
    SetCompliancePolicy, UploadOutcome,
};
use crate::escrow::compliance::words::{
    Cipher, Conversion, DriveRule, Enforcement, MachineType, Protection, VolumeKind,
};
use crate::escrow::compliance::{
    DeviceError, DevicePolicy, ExemptionDecision, MachineReport, Merged, Percent, Told, VolumeReport,
    findings, verdict,
};
use crate::escrow::ids::{KeyId, RequestId, Timestamp, UserName};
use crate::escrow::inventory::{Description, ImportedMachine};
use crate::escrow::lookup;
use crate::escrow::memory::Memory;

pub(super) fn put(args: &mut ArgumentConsumer<'_>, told: Timestamp) -> Outcome<Action> {
    let mut reports = Vec::new();
    // Several machines at once, all alike.
    let machines: String = required(args, "machine")?;
    let report = report(args, told)?;
    for machine in machines.split('/') {
        reports.push(MachineReport { machine: machine.parse()?, ..report.clone() });
    }
    Ok(Action::ReportCompliance(ReportCompliance { reports }))
}

pub(super) fn import(args: &mut ArgumentConsumer<'_>) -> Outcome<Action> {
    let machines: String = required(args, "machine")?;
    let mut text = |name: &str| args.take_key(name).unwrap_or_default().to_owned();
    let (domain, name, model, os, users) =
        (text("domain"), text("name"), text("model"), text("os"), text("users"));
    let machine_type = optional(args, "type")?.unwrap_or(MachineType::Unknown);
    let description = Description { domain, name, make: String::new(), model, machine_type, os };
    let users = users.split('/').filter(|user| !user.is_empty());
    let users = users.map(|user| Ok(user.parse()?)).collect::<Outcome<Vec<UserName>>>()?;
    let imported = |machine: &str| {
        let (description, users) = (description.clone(), users.clone());
        Ok(ImportedMachine { machine: machine.parse()?, description, users })
    };
    Ok(Action::ImportMachines(machines.split('/').map(imported).collect::<Outcome<_>>()?))
}

pub(super) fn describe_import(outcomes: &[ImportOutcome]) -> String {
    let line = |outcome: &ImportOutcome| match outcome {
        ImportOutcome::Noted => "noted".to_owned(),
        ImportOutcome::KnownBefore => "known before".to_owned(),
        ImportOutcome::Refused(refusal) => format!("refused: {refusal}"),
    };
    outcomes.iter().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) fn contact(args: &mut ArgumentConsumer<'_>, told: Timestamp) -> Outcome<Action> {
    let Action::ReportCompliance(put) = put(args, told)? else { return Err("no report".into()) };
    let contact = |report: MachineReport| {
        let report = report.checked()?;
        Ok(Contact { machine: report.machine.clone(), at: report.at, digest: report.digest() })
    };
    let contacts = put.reports.into_iter().map(contact).collect::<Outcome<_>>()?;
    Ok(Action::NoteContact(NoteContact { contacts }))
}

/// A laptop that is as it should be, but for what is said of it.
fn report(args: &mut ArgumentConsumer<'_>, told: Timestamp) -> Outcome<MachineReport> {
    let told = optional::<u64>(args, "told")?.map_or(told, at);
    let error = optional(args, "error")?.map(|code| DeviceError { code, text: "it failed".to_owned() });
    let mut volumes = vec![volume(args, "C:", VolumeKind::Os)?];
    if let Some(conversion) = optional(args, "d")? {
        let protection = if conversion == Conversion::Encrypted { Protection::On } else { Protection::Off };
        let d = VolumeReport {
            volume: "D:".parse()?,
            kind: VolumeKind::Fixed,
            conversion,
            protection,
            recovery_keys: None,
            ..volumes[0].clone()
        };
        volumes.insert(0, d);
    }
    Ok(MachineReport {
        machine: "PC-0001".parse()?,
        at: told,
        domain: "CORP".to_owned(),
        name: String::new(),
        make: String::new(),
        model: args.take_key("model").unwrap_or_default().to_owned(),
        machine_type: MachineType::Portable,
        os: "Windows 11".to_owned(),
        agent: String::new(),
        users: optional(args, "user")?.into_iter().collect(),
        policy: DevicePolicy {
            enforcement: optional(args, "enforcement")?.unwrap_or(Enforcement::Enforced),
            cipher: Some(Cipher::XtsAes256),
            os: DriveRule::Required,
            os_protector: None,
            fixed: DriveRule::Required,
            removable: DriveRule::Allowed,
        },
        error,
        volumes,
    })
}

fn volume(args: &mut ArgumentConsumer<'_>, name: &str, kind: VolumeKind) -> Outcome<VolumeReport> {
    let recovery_keys = match args.take_key("keys") {
        None | Some("untold") => None,
        Some(list) => {
            let keys = list.split('/').filter(|digits| !digits.is_empty());
            Some(keys.map(|digits| Ok(KeyId(super::full(digits)?))).collect::<Outcome<_>>()?)
        }
    };
    let list = |text: Option<&str>| -> Vec<String> {
        let words = text.unwrap_or_default().split('/').map(str::to_owned);
        words.filter(|word| !word.is_empty()).collect()
    };
    let reasons = list(args.take_key("reasons"));
    let protectors = list(args.take_key("protectors").or(Some("tpm/recovery-password")));
    Ok(VolumeReport {
        volume: name.parse()?,
        kind: optional(args, "kind")?.unwrap_or(kind),
        label: args.take_key("label").unwrap_or_default().to_owned(),
        protection: optional(args, "protection")?.unwrap_or(Protection::On),
        conversion: optional(args, "c")?.unwrap_or(Conversion::Encrypted),
        percent: optional::<u64>(args, "percent")?.map(Percent::try_from).transpose()?,
        method: optional(args, "method")?.unwrap_or(Cipher::XtsAes256),
        protectors: protectors.iter().map(|word| word.parse()).collect::<Result<_, _>>()?,
        auto_unlock: false,
        recovery_keys,
        reasons: reasons.iter().map(|code| Ok(code.parse::<u64>()?.try_into()?)).collect::<Outcome<_>>()?,
        seen_at: optional::<u64>(args, "seen")?.map(at),
    })
}

pub(super) fn exempt(args: &mut ArgumentConsumer<'_>) -> Outcome<Action> {
    Ok(Action::RequestExemption(RequestExemption {
        machine: required(args, "machine")?,
        reason: args.take_key("reason").unwrap_or("lab bench").to_owned(),
        until: optional::<u64>(args, "until")?.map(at),
    }))
}

pub(super) fn decide(args: &mut ArgumentConsumer<'_>) -> Outcome<Action> {
    let until = optional::<u64>(args, "until")?.map(at);
    let decision = match args.take_key("decision") {
        None | Some("grant") => ExemptionDecision::Grant { until },
        Some("reject") => ExemptionDecision::Reject,
        Some("revoke") => ExemptionDecision::Revoke,
        Some(other) => return Err(format!("no decision {other}").into()),
    };
    Ok(Action::DecideExemption(DecideExemption {
        machine: required(args, "machine")?,
        exemption: RequestId(id(args, "exemption")?.ok_or("exemption= is missing")?),
        decision,
    }))
}

pub(super) fn set_policy(args: &mut ArgumentConsumer<'_>) -> Outcome<Action> {
    Ok(Action::SetCompliancePolicy(SetCompliancePolicy {
        policy: args.take_key("policy").unwrap_or("{}").to_owned(),
        replaces: optional(args, "replaces")?.unwrap_or(0),
    }))
}

pub(super) fn describe(outcomes: &[UploadOutcome]) -> String {
    let lines = outcomes.iter().map(|outcome| match outcome {
        UploadOutcome::Refused(refusal) => format!("refused: {refusal}"),
        UploadOutcome::Taken { merged, rotation_owed_since } => {
            let mut line = match merged {
                Merged::Newest { state_changed, clock_ahead } => {
                    let changed = if *state_changed { ", state changed" } else { "" };
                    let ahead = if *clock_ahead { ", clock ahead" } else { "" };
                    format!("newest{changed}{ahead}")
                }
                Merged::Repeated => "repeated".to_owned(),
                Merged::Superseded => "superseded".to_owned(),
                Merged::Changed => "changed: send the whole".to_owned(),
            };
            if let Some(since) = rotation_owed_since {
                line.push_str(&format!(", owes a rotation since {since}"));
            }
            line
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// How a machine stands at a time, by what was known of it then.
pub(super) fn judge(state: &Memory, args: &mut ArgumentConsumer<'_>, now: Timestamp) -> Outcome {
    let as_of = optional::<u64>(args, "as-of")?.map(at);
    let now = optional::<u64>(args, "now")?.map_or(now, at);
    let Some(known) = lookup::known(state, &required(args, "machine")?, as_of, now)? else {
        return Ok("no machine".to_owned());
    };
    let policy = lookup::compliance_policy(state)?;
    let evidence = known.evidence(&policy, as_of.unwrap_or(now));
    let judged = verdict(&evidence);
    let (until, since) = (or_none(judged.until), or_none(known.stood.since));
    let told_later = if known.stood.told_later { " told later" } else { "" };
    let mut text = format!("{} until={until} since={since}{told_later}\n", judged.status);
    for reason in judged.reasons {
        writeln!(text, "reason {} {} code={}", reason.kind, or_none(reason.volume), or_none(reason.code))?;
    }
    for found in findings(&evidence) {
        let key = found.key_id.map_or_else(|| "none".to_owned(), |key| ids(&[key]));
        let since = or_none(found.since);
        writeln!(text, "finding {} {} key={key} since={since}", found.kind, or_none(found.volume))?;
    }
    Ok(text)
}

/// The changes of state that are kept of a machine.
pub(super) fn history(state: &Memory, args: &mut ArgumentConsumer<'_>) -> Outcome {
    let changes = lookup::compliance_changes(state, &required(args, "machine")?)?;
    let mut text = String::new();
    for change in changes {
        write!(text, "{} {}", change.at, change.state.enforcement)?;
        for volume in &change.state.volumes {
            write!(text, " {}={},{}", volume.volume, volume.conversion, volume.protection)?;
        }
        let told = |told: &Told| match told.late {
            Some(late) => format!("{}(came in {late})", told.at),
            None => told.at.to_string(),
        };
        if let Some(late) = change.late {
            write!(text, " (came in {late})")?;
        }
        let again: Vec<String> = change.again.iter().map(told).collect();
        writeln!(text, " again={}", if again.is_empty() { "none".to_owned() } else { again.join(",") })?;
    }
    Ok(if text.is_empty() { "nothing".to_owned() } else { text })
}
