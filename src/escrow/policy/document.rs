//! The policy of reveals: what each role may see, for which reasons, how often, what a second person must approve, and
//! what happens without a quorum. One document, replicated and versioned; every change is on record.
//!
//! It is kept as JSON text, so that a release may add settings: what an older document does not say has its default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wildmatch::WildMatchPattern;

use crate::escrow::command::Refusal;
use crate::escrow::ids::{Identity, Invalid, MachineId, Role};
use crate::escrow::records::Approval;
use crate::escrow::secrets::SecretKind;
use crate::escrow::state::StateError;

/// Longest policy as JSON, in bytes: it is kept in every audit record of a change.
pub const POLICY_MAX_BYTES: usize = 64 * 1_024;
/// Most reasons to choose from.
pub const REASONS_MAX: usize = 100;
/// Longest reason to choose from, and longest least length of a free one, in characters.
pub const REASON_MAX_CHARS: usize = 200;
/// Most groups, and most patterns of a group or of the machines that need an approval.
pub const PATTERNS_MAX: usize = 1_000;
/// Longest name of a group and longest pattern, in bytes.
pub const PATTERN_MAX_BYTES: usize = 63;
/// Highest limit of reveals that can be set.
pub const REVEALS_MAX: u32 = 1_000_000;
/// Longest an approval can be waited for and used, in minutes: a week.
pub const APPROVAL_MAX_MINUTES: u32 = 7 * 24 * 60;

/// What decides who may see a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Which kinds of secrets each role may reveal.
    pub kinds: Kinds,
    /// Which reasons are taken.
    pub reasons: Reasons,
    /// How often keys may be revealed.
    pub limits: Limits,
    /// Machines under one name, as patterns: `*` stands for any characters, `?` for one; case does not matter.
    pub groups: BTreeMap<String, Vec<String>>,
    /// What a second person must approve.
    pub approval: ApprovalRule,
    /// What happens to reveals while no quorum answers.
    pub without_quorum: WithoutQuorum,
}

/// Which kinds of secrets each role may reveal; none closes the role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kinds {
    /// To a named user of the machine.
    pub helpdesk: Vec<SecretKind>,
    /// By the key id alone.
    pub helpdesk_advanced: Vec<SecretKind>,
    /// To end users, of machines on which they were recorded.
    pub self_service: Vec<SecretKind>,
}

impl Default for Kinds {
    fn default() -> Self {
        Self {
            helpdesk: SecretKind::ALL.to_vec(),
            helpdesk_advanced: SecretKind::ALL.to_vec(),
            self_service: vec![
                SecretKind::BitlockerPassword,
                SecretKind::LuksRecovery,
                SecretKind::FilevaultRecovery,
            ],
        }
    }
}

/// Which reasons are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reasons {
    /// Reasons to choose from; case does not matter.
    pub listed: Vec<String>,
    /// Whether another reason may be given in one's own words.
    pub free_text: bool,
    /// Fewest characters of such a reason.
    pub min_chars: usize,
}

impl Default for Reasons {
    fn default() -> Self {
        Self { listed: Vec::new(), free_text: true, min_chars: 1 }
    }
}

/// How often keys may be revealed, counted over the last hour and the last day; absent for no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// To one person in an hour.
    pub person_per_hour: Option<u32>,
    /// To one person in a day.
    pub person_per_day: Option<u32>,
    /// To all in an hour.
    pub cluster_per_hour: Option<u32>,
    /// To all in a day.
    pub cluster_per_day: Option<u32>,
}

/// What a second person must approve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApprovalRule {
    /// Reveals of keys of these machines, as patterns.
    pub machines: Vec<String>,
    /// Reveals of keys of the machines of these groups.
    pub groups: Vec<String>,
    /// Which roles may approve, of those that can at all.
    pub approvers: Vec<Role>,
    /// Minutes from the request until it can neither be approved nor used any more.
    pub expires_minutes: u32,
}

impl Default for ApprovalRule {
    fn default() -> Self {
        Self {
            machines: Vec::new(),
            groups: Vec::new(),
            approvers: vec![Role::HelpdeskAdvanced, Role::Officer],
            expires_minutes: 60,
        }
    }
}

/// What happens to reveals while no quorum answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WithoutQuorum {
    /// A surviving node reveals by what it knows, and puts it in its journal first.
    #[default]
    Allow,
    /// As [`WithoutQuorum::Allow`], once a second person has approved it: with a quorum before, or at that node.
    Approve,
    /// Nobody sees a key until a quorum answers.
    Deny,
}

impl Policy {
    /// Reads a policy from JSON.
    ///
    /// # Errors
    /// [`Invalid`] with the path of the setting that is wrong.
    pub fn from_json(text: &str) -> Result<Self, Invalid> {
        if text.len() > POLICY_MAX_BYTES {
            return Err(Invalid::new("policy", format!("at most {POLICY_MAX_BYTES} bytes")));
        }
        let mut reader = serde_json::Deserializer::from_str(text);
        let policy: Self = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { "policy".to_owned() } else { format!("policy.{path}") };
            Invalid::new(field, format!("a valid setting: {}", error.inner()))
        })?;
        reader.end().map_err(|_| Invalid::new("policy", "one JSON object and nothing after it"))?;
        policy.check()?;
        Ok(policy)
    }

    /// Reads a policy that was checked when it was set.
    ///
    /// # Errors
    /// [`StateError`] if it does not read: this release is older than the one that took it.
    pub fn stored(text: &str) -> Result<Self, StateError> {
        serde_json::from_str(text).map_err(|error| StateError(error.into()))
    }

    /// As JSON, every setting written out.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names and numbers only, by construction")
    }

    /// Checks what a type cannot say.
    ///
    /// # Errors
    /// [`Invalid`] with the path of the setting that is wrong.
    pub fn check(&self) -> Result<(), Invalid> {
        self.reasons.check()?;
        self.limits.check()?;
        if self.groups.len() > PATTERNS_MAX {
            return Err(Invalid::new("policy.groups", format!("at most {PATTERNS_MAX} groups")));
        }
        for (name, patterns) in &self.groups {
            check_pattern("policy.groups", name)?;
            check_patterns(&format!("policy.groups.{name}"), patterns)?;
        }
        self.approval.check(&self.groups)
    }

    /// Whether `role` may reveal a secret of `kind`.
    pub fn allows_kind(&self, role: Role, kind: SecretKind) -> bool {
        match role {
            Role::Helpdesk => self.kinds.helpdesk.contains(&kind),
            Role::HelpdeskAdvanced => self.kinds.helpdesk_advanced.contains(&kind),
            Role::SelfService => self.kinds.self_service.contains(&kind),
            _ => false,
        }
    }

    /// Whether a second person must approve reveals of keys of `machine`.
    pub fn needs_approval(&self, machine: &MachineId) -> bool {
        let grouped = self.approval.groups.iter().filter_map(|group| self.groups.get(group)).flatten();
        self.approval.machines.iter().chain(grouped).any(|pattern| matches(pattern, machine))
    }

    /// Whether `by` may approve what `person` asked for.
    ///
    /// # Errors
    /// [`Refusal::Denied`] if not, saying why.
    pub fn may_approve(&self, by: &Identity, person: &str) -> Result<(), Refusal> {
        let role = by.role;
        let why = if by.person() == person {
            "nobody approves what they asked for themselves".to_owned()
        } else if !super::allows(role, super::Operation::Approve) || !self.approval.approvers.contains(&role)
        {
            format!("role {role} does not approve reveals by the policy")
        } else {
            return Ok(());
        };
        Err(Refusal::Denied(why))
    }

    /// Whether `approval` is granted, by somebody who may grant it still: a policy that was set since counts for what waits.
    pub fn grants(&self, approval: &Approval) -> bool {
        let person = approval.asked_by.person();
        approval.granted_by.as_ref().is_some_and(|by| self.may_approve(by, &person).is_ok())
    }
}

impl Reasons {
    fn check(&self) -> Result<(), Invalid> {
        if self.listed.len() > REASONS_MAX {
            return Err(Invalid::new("policy.reasons.listed", format!("at most {REASONS_MAX} reasons")));
        }
        for (index, reason) in self.listed.iter().enumerate() {
            let well_formed = reason.trim() == reason
                && (1..=REASON_MAX_CHARS).contains(&reason.chars().count())
                && !reason.chars().any(char::is_control);
            if !well_formed {
                let expected = format!(
                    "1 to {REASON_MAX_CHARS} characters without control characters, nor spaces at an end"
                );
                return Err(Invalid::new(format!("policy.reasons.listed[{index}]"), expected));
            }
        }
        if self.listed.is_empty() && !self.free_text {
            let expected = "true as long as no reasons are listed: otherwise nobody could give one";
            return Err(Invalid::new("policy.reasons.free_text", expected));
        }
        if !(1..=REASON_MAX_CHARS).contains(&self.min_chars) {
            return Err(Invalid::new("policy.reasons.min_chars", format!("1 to {REASON_MAX_CHARS}")));
        }
        Ok(())
    }

    /// Whether `reason` is one of these.
    ///
    /// # Errors
    /// [`Invalid`] for the field `reason`, with what is taken.
    pub fn admit(&self, reason: &str) -> Result<(), Invalid> {
        let folded = |text: &str| text.to_lowercase();
        if self.listed.iter().any(|listed| folded(listed) == folded(reason)) {
            return Ok(());
        }
        if self.free_text && reason.chars().count() >= self.min_chars {
            return Ok(());
        }
        let listed = self.listed.iter().map(|reason| format!("{reason:?}")).collect::<Vec<_>>().join(", ");
        let own = format!("at least {} characters in your own words", self.min_chars);
        let expected = match (self.listed.is_empty(), self.free_text) {
            (true, _) => own,
            (false, true) => format!("one of {listed}, or {own}"),
            (false, false) => format!("one of {listed}"),
        };
        Err(Invalid::new("reason", expected))
    }
}

impl Limits {
    fn check(&self) -> Result<(), Invalid> {
        let each = [
            ("person_per_hour", self.person_per_hour),
            ("person_per_day", self.person_per_day),
            ("cluster_per_hour", self.cluster_per_hour),
            ("cluster_per_day", self.cluster_per_day),
        ];
        for (name, limit) in each {
            if limit.is_some_and(|limit| !(1..=REVEALS_MAX).contains(&limit)) {
                let expected = format!("1 to {REVEALS_MAX}, or left out for no limit");
                return Err(Invalid::new(format!("policy.limits.{name}"), expected));
            }
        }
        Ok(())
    }
}

impl ApprovalRule {
    fn check(&self, groups: &BTreeMap<String, Vec<String>>) -> Result<(), Invalid> {
        check_patterns("policy.approval.machines", &self.machines)?;
        if let Some(index) = self.groups.iter().position(|group| !groups.contains_key(group)) {
            let expected = "the name of a group in policy.groups";
            return Err(Invalid::new(format!("policy.approval.groups[{index}]"), expected));
        }
        let can = |role: &Role| super::allows(*role, super::Operation::Approve);
        if self.approvers.is_empty() || !self.approvers.iter().all(can) {
            let can: Vec<&str> =
                Role::ALL.iter().filter(|role| can(role)).map(|role| role.as_str()).collect();
            return Err(Invalid::new("policy.approval.approvers", format!("some of {}", can.join(", "))));
        }
        if !(1..=APPROVAL_MAX_MINUTES).contains(&self.expires_minutes) {
            let expected = format!("1 to {APPROVAL_MAX_MINUTES}");
            return Err(Invalid::new("policy.approval.expires_minutes", expected));
        }
        Ok(())
    }
}

fn check_patterns(field: &str, patterns: &[String]) -> Result<(), Invalid> {
    if patterns.len() > PATTERNS_MAX {
        return Err(Invalid::new(field, format!("at most {PATTERNS_MAX} patterns")));
    }
    let check = |(index, pattern): (usize, &String)| check_pattern(&format!("{field}[{index}]"), pattern);
    patterns.iter().enumerate().try_for_each(check)
}

fn check_pattern(field: &str, pattern: &str) -> Result<(), Invalid> {
    let well_formed = (1..=PATTERN_MAX_BYTES).contains(&pattern.len())
        && pattern.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-*?".contains(&b));
    if well_formed {
        return Ok(());
    }
    let expected = format!(
        "1 to {PATTERN_MAX_BYTES} letters, digits, dots, hyphens or underscores, with * and ? as wildcards"
    );
    Err(Invalid::new(field, expected))
}

fn matches(pattern: &str, machine: &MachineId) -> bool {
    // Case is folded, so that a machine is not let out by how its name is written.
    WildMatchPattern::<'*', '?'>::new(&pattern.to_ascii_lowercase())
        .matches(&machine.as_str().to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn wrong(json: &str, field: &str) -> Invalid {
        let error = Policy::from_json(json).expect_err(json);
        assert_eq!(error.field, field, "{error}");
        error
    }

    #[test]
    fn the_default_policy_is_valid_and_reads_back() {
        let policy = Policy::from_json("{}").unwrap();
        assert_eq!(policy, Policy::default());
        assert_eq!(Policy::from_json(&policy.to_json()).unwrap(), policy);
        assert_eq!(policy.without_quorum, WithoutQuorum::Allow);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_path() {
        wrong("", "policy");
        wrong("{} {}", "policy");
        wrong(r#"{"limits": {"person_per_hour": 0}}"#, "policy.limits.person_per_hour");
        wrong(r#"{"limits": {"person_per_hour": "many"}}"#, "policy.limits.person_per_hour");
        let unknown = wrong(r#"{"limits": {"per_week": 1}}"#, "policy.limits.per_week");
        assert!(unknown.to_string().contains("person_per_hour"), "{unknown}");
        wrong(r#"{"kinds": {"helpdesk": ["bitlocker"]}}"#, "policy.kinds.helpdesk[0]");
        wrong(r#"{"reasons": {"free_text": false}}"#, "policy.reasons.free_text");
        wrong(r#"{"reasons": {"listed": ["ok", " "]}}"#, "policy.reasons.listed[1]");
        wrong(r#"{"reasons": {"min_chars": 0}}"#, "policy.reasons.min_chars");
        wrong(r#"{"groups": {"board": ["PC 1"]}}"#, "policy.groups.board[0]");
        wrong(r#"{"approval": {"groups": ["board"]}}"#, "policy.approval.groups[0]");
        let approvers = wrong(r#"{"approval": {"approvers": ["agent"]}}"#, "policy.approval.approvers");
        assert!(approvers.to_string().contains("helpdesk-advanced, officer"), "{approvers}");
        wrong(r#"{"approval": {"expires_minutes": 0}}"#, "policy.approval.expires_minutes");
        wrong(r#"{"without_quorum": "maybe"}"#, "policy.without_quorum");
        let long = format!(r#"{{"groups": {{"{}": []}}}}"#, "a".repeat(POLICY_MAX_BYTES));
        wrong(&long, "policy");
    }

    #[test]
    fn a_reason_is_one_of_the_list_or_long_enough() {
        let reasons = Reasons { listed: vec!["Forgotten PIN".to_owned()], free_text: false, min_chars: 1 };
        assert!(reasons.admit("forgotten pin").is_ok());
        let refused = reasons.admit("because").unwrap_err();
        assert!(refused.to_string().contains("Forgotten PIN"), "{refused}");
        let free = Reasons { free_text: true, min_chars: 10, ..reasons };
        assert!(free.admit("forgotten PIN").is_ok());
        assert!(free.admit("new mainboard").is_ok());
        assert!(free.admit("ünf äöüß").is_err(), "characters are counted, not bytes");
    }

    #[test]
    fn machines_are_marked_by_name_pattern_or_group_whatever_the_case() {
        let policy = Policy::from_json(
            r#"{"groups": {"board": ["CEO-?", "CFO-*"]}, "approval": {"groups": ["board"], "machines": ["SRV-1"]}}"#,
        )
        .unwrap();
        let needs = |machine: &str| policy.needs_approval(&machine.parse().unwrap());
        assert!(needs("ceo-1") && needs("CFO-laptop") && needs("SRV-1") && needs("srv-1"));
        assert!(!needs("CEO-12") && !needs("SRV-10") && !needs("PC-CEO-1"));
        assert!(!Policy::default().needs_approval(&"SRV-1".parse().unwrap()));
    }

    #[test]
    fn nobody_approves_what_they_asked_for_themselves() {
        let by = |role, name| Identity::new("acme".parse().unwrap(), role, name).unwrap();
        let policy = Policy::default();
        assert_eq!(policy.may_approve(&by(Role::Officer, "olga"), "desk1"), Ok(()));
        let own = policy.may_approve(&by(Role::HelpdeskAdvanced, "Desk1"), "desk1").unwrap_err();
        assert!(own.to_string().contains("asked for themselves"), "another role, one person: {own}");
        policy.may_approve(&by(Role::Operator, "ops1"), "desk1").unwrap_err();
        let end_user = by(Role::SelfService, "CORP/Desk1");
        policy.may_approve(&by(Role::Officer, "desk1"), &end_user.person()).unwrap_err();
        assert_eq!(policy.may_approve(&by(Role::Officer, "olga"), &end_user.person()), Ok(()));
        let only = Policy {
            approval: ApprovalRule { approvers: vec![Role::Officer], ..ApprovalRule::default() },
            ..policy
        };
        only.may_approve(&by(Role::HelpdeskAdvanced, "desk2"), "desk1").unwrap_err();
    }
}
