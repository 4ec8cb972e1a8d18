//! `strongroom compliance policy`: what is wanted of every machine.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::cli::find::Consistency;
use crate::cli::output::facts;
use crate::cli::recover::{freshness_json, freshness_text};
use crate::cli::{Exit, Failure, Global, Printer};
use crate::escrow::compliance::CompliancePolicy;
use crate::escrow::compliance::policy::POLICY_MAX_BYTES;
use crate::escrow::compliance::words::{Cipher, VolumeKind};
use crate::escrow::ids::Timestamp;
use crate::proto;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyAction {
    /// Replace the policy by the one in a file. What the file leaves out has its default. Judges every machine anew.
    Set(SetCommand),
    /// Show the policy that is followed.
    Show(ShowCommand),
}

#[derive(Debug, Args)]
pub(super) struct SetCommand {
    /// The policy as JSON, as `compliance policy show --output json` has it under "policy".
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The version it is to replace, as `compliance policy show` says it; by default the one that is followed now.
    #[arg(long, value_name = "VERSION")]
    replaces: Option<u64>,
    /// Only check the file; no node is asked.
    #[arg(long, conflicts_with = "replaces")]
    check: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowCommand {
    /// Answer from the nearest replica as it is, or with everything acknowledged so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
}

impl PolicyAction {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        match self {
            Self::Set(set) => set.run(global, printer).await,
            Self::Show(show) => {
                let shown = global.client()?.compliance_policy(show.consistency.into()).await?;
                let policy = CompliancePolicy::stored(&shown.policy).map_err(|error| {
                    let what = format!("the node answered a policy this version does not know: {error}");
                    Failure::new(Exit::Failed, what)
                        .with_hint("check that client and nodes run versions that go together")
                })?;
                printer.result(&json_of(&shown)?, || text_of(&shown, &policy))
            }
        }
    }
}

impl SetCommand {
    async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let policy = CompliancePolicy::from_json(&document(&self.file)?)?;
        if self.check {
            return printer.result(&json!({ "valid": true }), || "the policy is valid".to_owned());
        }
        let client = global.client()?;
        let replaces = match self.replaces {
            Some(version) => version,
            None => client.compliance_policy(proto::Consistency::Quorum).await?.version,
        };
        let version = client.set_compliance_policy(&policy.to_json(), replaces).await?;
        printer.result(&json!({ "version": version }), || {
            format!("the policy of compliance is set: version {version}")
        })
    }
}

/// The text of a policy file; a byte more than allowed is read, so that what is too long is refused as that.
fn document(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(file)
        .and_then(|opened| opened.take(POLICY_MAX_BYTES as u64 + 1).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::new(Exit::Invalid, format!("policy: {}: {error}", file.display()))),
    }
}

fn json_of(shown: &proto::ShowCompliancePolicyResponse) -> Result<Value, Failure> {
    let policy: Value = serde_json::from_str(&shown.policy)
        .map_err(|error| Failure::new(Exit::Failed, format!("the node answered no policy: {error}")))?;
    Ok(json!({
        "version": shown.version,
        "set_at": shown.set_at_ms.map(|at| Timestamp(at).to_string()),
        "set_by": (!shown.set_by.is_empty()).then_some(&shown.set_by),
        "policy": policy,
        "freshness": freshness_json(shown.freshness.as_ref()),
    }))
}

fn text_of(shown: &proto::ShowCompliancePolicyResponse, policy: &CompliancePolicy) -> String {
    let CompliancePolicy {
        required,
        minimum_cipher,
        os_protectors,
        recovery_key,
        device_reasons,
        grace_days,
        stale_days,
        rotation_days,
    } = policy;
    let set = match shown.set_at_ms {
        Some(at) => format!("{}, by {}", Timestamp(at), shown.set_by),
        None => "never: every cluster begins with this one".to_owned(),
    };
    let drives = VolumeKind::ALL.iter().filter(|kind| required.includes(**kind));
    let minimum = |kind: &VolumeKind| {
        let cipher = minimum_cipher.of(*kind).map_or("any", Cipher::as_str);
        format!("{kind}: {cipher}")
    };
    let text = facts(&[
        ("version", shown.version.to_string()),
        ("set", set),
        ("must be encrypted", listed(drives, "nothing")),
        ("weakest cipher", listed(VolumeKind::ALL.iter().map(minimum), "any")),
        ("os drive needs one of", listed(os_protectors.iter(), "any protector")),
        ("key in escrow", if *recovery_key { "needed" } else { "not needed" }.to_owned()),
        ("device's reasons", listed(device_reasons.iter().map(|code| code.number()), "none counts")),
        ("time of grace", format!("{grace_days} days")),
        ("stale", format!("after {stale_days} days")),
        ("rotation overdue", format!("after {rotation_days} days")),
    ]);
    format!("{text}\n\n{}", freshness_text(shown.freshness.as_ref()))
}

fn listed<T: std::fmt::Display>(items: impl Iterator<Item = T>, nothing: &str) -> String {
    let items: Vec<String> = items.map(|item| item.to_string()).collect();
    if items.is_empty() { nothing.to_owned() } else { items.join(", ") }
}
