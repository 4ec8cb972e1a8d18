//! `strongroom compliance`: what devices say of their volumes, what is wanted of them, and who is let off.

mod exempt;
mod policy;
mod put;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::audit::time;
use super::find::Consistency;
use super::output::line;
use super::recover::{freshness_json, freshness_text};
use super::report::computer::computer_text;
use super::report::render::object;
use super::{Exit, Failure, Global, Printer};
use crate::escrow::compliance::document::SCHEMA;
use crate::escrow::ids::{MachineId, Timestamp};
use crate::proto;

/// What devices say of their volumes, what is wanted of them, and who is let off.
#[derive(Debug, Args)]
pub(super) struct ComplianceCommand {
    #[command(subcommand)]
    action: ComplianceAction,
}

#[derive(Debug, Subcommand)]
enum ComplianceAction {
    /// Machines that need not be as the policy of compliance wants them.
    Exempt {
        #[command(subcommand)]
        action: exempt::ExemptAction,
    },
    /// Show what is known of a machine, and how it stands.
    Get(GetCommand),
    /// Show the policy of compliance, or replace it.
    Policy {
        #[command(subcommand)]
        action: policy::PolicyAction,
    },
    /// Keep what a device says of itself, or what many do.
    Put(put::PutCommand),
    /// Print the JSON Schema of what `put` takes.
    Schema,
}

#[derive(Debug, Args)]
struct GetCommand {
    /// The machine.
    #[arg(value_name = "MACHINE")]
    machine: MachineId,
    /// How it stood then: RFC 3339, or a day (UTC). The document is the newest all the same.
    #[arg(long, value_name = "TIME", value_parser = time)]
    as_of: Option<Timestamp>,
    /// Answer from the nearest replica as it is, or with everything acknowledged so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
    /// Wait until the answering node has applied this index, as `put` prints it.
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    min_index: u64,
}

impl ComplianceCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        match self.action {
            ComplianceAction::Exempt { action } => action.run(global, printer).await,
            ComplianceAction::Get(get) => get.run(global, printer).await,
            ComplianceAction::Policy { action } => action.run(global, printer).await,
            ComplianceAction::Put(put) => put.run(global, printer).await,
            ComplianceAction::Schema => line(SCHEMA.trim_end()),
        }
    }
}

impl GetCommand {
    async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let consistency: proto::Consistency = self.consistency.into();
        let request = proto::GetComplianceRequest {
            machine: self.machine.to_string(),
            consistency: consistency.into(),
            min_index: self.min_index,
            as_of_ms: self.as_of.map(|at| at.0),
        };
        let known = global.client()?.compliance(&request).await?;
        printer.result(&json_of(&known)?, || {
            let text = computer_text(&known.columns, &known.rows);
            format!("{text}\n\n{}", freshness_text(known.freshness.as_ref()))
        })
    }
}

fn json_of(known: &proto::GetComplianceResponse) -> Result<Value, Failure> {
    let document: Option<Value> = match known.document.as_str() {
        "" => None,
        document => Some(serde_json::from_str(document).map_err(|error| {
            Failure::new(Exit::Failed, format!("the node answered no document: {error}"))
        })?),
    };
    let at = |ms: Option<u64>| ms.map(|ms| Timestamp(ms).to_string());
    let machine = known.rows.first().map(|row| object(&known.columns, row, Some(true)));
    // A machine that told of no volume has one row without any.
    let volumes = known.rows.iter().map(|row| object(&known.columns, row, Some(false)));
    let volumes: Vec<Value> = volumes.filter(|volume| volume["drive"] != "").collect();
    Ok(json!({
        "document": document,
        "at": at(known.at_ms),
        "state_since": at(known.state_since_ms),
        "clock_ahead": known.clock_ahead,
        "compliance": machine,
        "volumes": volumes,
        "freshness": freshness_json(known.freshness.as_ref()),
    }))
}
