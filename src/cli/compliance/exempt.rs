//! `strongroom compliance exempt`: machines that need not be as the policy of compliance wants them.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::cli::audit::time;
use crate::cli::find::Consistency;
use crate::cli::output::facts;
use crate::cli::recover::{freshness_json, freshness_text};
use crate::cli::{Exit, Failure, Global, Printer};
use crate::client::{Client, Decision};
use crate::escrow::ids::{MachineId, Timestamp};
use crate::proto;

#[derive(Debug, Subcommand)]
pub(super) enum ExemptAction {
    /// Grant what is asked for.
    Grant(GrantCommand),
    /// List exemptions: asked for, granted, ended, rejected.
    List(ListCommand),
    /// Reject what is asked for.
    Reject(WhichCommand),
    /// Ask an officer to exempt a machine.
    Request(RequestCommand),
    /// End what was granted.
    Revoke(WhichCommand),
}

#[derive(Debug, Args)]
pub(super) struct WhichCommand {
    /// The machine.
    #[arg(value_name = "MACHINE")]
    machine: MachineId,
    /// The id of the request, as `compliance exempt list` shows it; by default the one that there is of the machine now, be it
    /// asked for since you looked: the answer says who asked and why.
    #[arg(value_name = "EXEMPTION")]
    exemption: Option<Uuid>,
}

#[derive(Debug, Args)]
pub(super) struct GrantCommand {
    #[command(flatten)]
    which: WhichCommand,
    /// Until when, RFC 3339 or a day (UTC); by default as was asked for.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
    /// Until it is taken back, whatever was asked for.
    #[arg(long, conflicts_with = "until")]
    for_good: bool,
}

#[derive(Debug, Args)]
pub(super) struct RequestCommand {
    /// The machine.
    #[arg(value_name = "MACHINE")]
    machine: MachineId,
    /// Why it need not comply.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Until when, RFC 3339 or a day (UTC); by default for good.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
}

#[derive(Debug, Args)]
pub(super) struct ListCommand {
    /// Only what waits for a decision.
    #[arg(long)]
    waiting: bool,
    /// Only of this machine.
    #[arg(long, value_name = "MACHINE")]
    machine: Option<MachineId>,
    /// Only of machines behind this one in the order of ids: where a listing ended.
    #[arg(long, value_name = "MACHINE", conflicts_with = "machine")]
    after: Option<MachineId>,
    /// Show about so many.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    limit: u32,
    /// Answer from the nearest replica as it is, or with everything acknowledged so far.
    #[arg(long, value_enum, default_value_t)]
    consistency: Consistency,
}

impl ExemptAction {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        match self {
            Self::Grant(GrantCommand { which, until, for_good }) => {
                let asked = which.find(&client, "requested").await?;
                let until = match (until, for_good) {
                    (Some(until), _) => Some(until),
                    (None, true) => None,
                    (None, false) => asked.until_ms.map(Timestamp),
                };
                decide(&client, &asked, &which.machine, Decision::Grant(until), printer).await
            }
            Self::Reject(which) => {
                let asked = which.find(&client, "requested").await?;
                decide(&client, &asked, &which.machine, Decision::Reject, printer).await
            }
            Self::Revoke(which) => {
                let granted = which.find(&client, "granted").await?;
                decide(&client, &granted, &which.machine, Decision::Revoke, printer).await
            }
            Self::Request(request) => request.run(&client, printer).await,
            Self::List(list) => list.run(&client, printer).await,
        }
    }
}

impl WhichCommand {
    /// The exemption of the machine that is `state`, and is the one that was named if one was.
    async fn find(&self, client: &Client, state: &str) -> Result<proto::Exemption, Failure> {
        let request = proto::ListExemptionsRequest {
            machine: self.machine.to_string(),
            consistency: proto::Consistency::Quorum.into(),
            ..Default::default()
        };
        let named = self.exemption.map(|id| id.to_string());
        let is_meant = |found: &proto::Exemption| {
            found.state == state && named.as_ref().is_none_or(|named| found.exemption == *named)
        };
        let found = client.exemptions(&request).await?.exemptions.into_iter().find(is_meant);
        found.ok_or_else(|| {
            let which = named.map(|named| format!(" {named}")).unwrap_or_default();
            let what = format!("machine {} has no exemption{which} that is {state}", self.machine);
            Failure::new(Exit::NotFound, what)
                .with_hint("it was decided, asked for anew, or has ended: see `compliance exempt list`")
        })
    }
}

async fn decide(
    client: &Client,
    exemption: &proto::Exemption,
    machine: &MachineId,
    decision: Decision,
    printer: Printer,
) -> Result<(), Failure> {
    let id = Uuid::try_parse(&exemption.exemption)
        .map_err(|error| Failure::new(Exit::Failed, format!("the node answered no id: {error}")))?;
    client.decide_exemption(machine, id, decision).await?;
    let (word, until) = match decision {
        Decision::Grant(until) => ("granted", until.map(|until| until.to_string())),
        Decision::Reject => ("rejected", None),
        Decision::Revoke => ("revoked", None),
    };
    let document = json!({
        "machine": machine,
        "exemption": exemption.exemption,
        "decision": word,
        "until": until,
        "asked_by": exemption.asked_by,
        "reason": exemption.reason,
    });
    printer.result(&document, || {
        let end = match (decision, &until) {
            (Decision::Grant(_), Some(until)) => format!(", until {until}"),
            (Decision::Grant(_), None) => ", for good".to_owned(),
            _ => String::new(),
        };
        let about = facts(&[
            ("exemption", exemption.exemption.clone()),
            ("asked by", exemption.asked_by.clone()),
            ("reason", exemption.reason.clone()),
        ]);
        format!("the exemption of {machine} is {word}{end}\n\n{about}")
    })
}

impl RequestCommand {
    async fn run(self, client: &Client, printer: Printer) -> Result<(), Failure> {
        let Self { machine, reason, until } = self;
        let exemption = client.request_exemption(&machine, &reason, until).await?;
        let until = until.map(|until| until.to_string());
        let document = json!({ "machine": machine, "exemption": exemption, "until": until });
        printer.result(&document, || format!("an officer decides: request {exemption} of {machine}"))
    }
}

impl ListCommand {
    async fn run(self, client: &Client, printer: Printer) -> Result<(), Failure> {
        let consistency: proto::Consistency = self.consistency.into();
        let request = proto::ListExemptionsRequest {
            waiting: self.waiting,
            after: self.after.map(String::from).unwrap_or_default(),
            limit: self.limit,
            consistency: consistency.into(),
            machine: self.machine.map(String::from).unwrap_or_default(),
        };
        let listed = client.exemptions(&request).await?;
        printer.result(&json_of(&listed), || text_of(&listed))
    }
}

fn json_of(listed: &proto::ListExemptionsResponse) -> Value {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let at = |ms: Option<u64>| ms.map(|ms| Timestamp(ms).to_string());
    let exemption = |of: &proto::Exemption| {
        json!({
            "machine": of.machine,
            "state": of.state,
            "exemption": of.exemption,
            "reason": of.reason,
            "asked_by": of.asked_by,
            "asked_at": Timestamp(of.asked_at_ms).to_string(),
            "until": at(of.until_ms),
            "decided_by": given(&of.decided_by),
            "decided_at": at(of.decided_at_ms),
        })
    };
    let exemptions: Vec<Value> = listed.exemptions.iter().map(exemption).collect();
    let freshness = freshness_json(listed.freshness.as_ref());
    json!({ "exemptions": exemptions, "next": given(&listed.next), "freshness": freshness })
}

fn text_of(listed: &proto::ListExemptionsResponse) -> String {
    let mut parts: Vec<String> = Vec::new();
    for of in &listed.exemptions {
        let until = of.until_ms.map_or_else(|| "for good".to_owned(), |until| Timestamp(until).to_string());
        let mut lines = vec![
            ("machine", of.machine.clone()),
            ("state", of.state.clone()),
            ("exemption", of.exemption.clone()),
            ("reason", of.reason.clone()),
            ("until", until),
            ("asked", format!("{} by {}", Timestamp(of.asked_at_ms), of.asked_by)),
        ];
        if let Some(at) = of.decided_at_ms {
            lines.push(("decided", format!("{} by {}", Timestamp(at), of.decided_by)));
        }
        parts.push(facts(&lines));
    }
    if parts.is_empty() {
        parts.push("no exemptions".to_owned());
    }
    if !listed.next.is_empty() {
        parts.push(format!("there are more: go on with --after {}", listed.next));
    }
    parts.push(freshness_text(listed.freshness.as_ref()));
    parts.join("\n\n")
}
