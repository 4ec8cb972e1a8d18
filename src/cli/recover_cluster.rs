//! `strongroom recover-cluster`: begin a new cluster on what one node has, after its quorum is lost for ever.

use clap::{ArgGroup, Args};
use serde_json::{Value, json};
use uuid::Uuid;

use super::node_config::NodeConfig;
use super::output::table;
use super::server::server_failure;
use super::{Exit, Failure, Printer};
use crate::escrow::ids::{ClusterId, NodeId};
use crate::raft::recovery::{Allowed, Loss, Survey, Survivor};
use crate::server::ServerError;
use crate::server::recover::{self, Plan, RecoverError, Recovered, Request};
use crate::store::StoreError;

/// Begin a new cluster on what one node has, after its quorum is lost for ever.
///
/// Run it on the machine of a surviving node, with that node's configuration. First --plan, on each survivor: it shows
/// who has most of the log and what may be lost. Then, on the one that has most, stop the node and --apply. The nodes
/// that are left out can never come back into the new cluster under their ids.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("mode").args(["plan", "apply"]).required(true))]
pub(super) struct RecoverClusterCommand {
    /// Show what survives, who has most of it and what may be lost. The node may run; if it does not, its storage is
    /// opened as its start would: what is committed is applied, and no entry, vote or member is changed.
    #[arg(long)]
    plan: bool,
    /// Begin the new cluster; the node must be stopped. Cannot be undone.
    #[arg(long)]
    apply: bool,
    #[command(flatten)]
    node: NodeConfig,
    /// The id of the cluster that is to end, as --plan shows it.
    #[arg(long, value_name = "CLUSTER_ID", requires = "apply")]
    confirm: Option<Uuid>,
    /// Go on although this survivor has more of the log: what it has beyond this node is lost. May be repeated.
    #[arg(long, value_name = "NODE")]
    allow_losing_entries_of: Vec<NodeId>,
    /// Go on although this node is a learner: only if no voter survives.
    #[arg(long)]
    from_learner: bool,
}

impl RecoverClusterCommand {
    pub(super) async fn run(self, printer: Printer) -> Result<(), Failure> {
        let config = self.node.load_checked(|warning| printer.note(&format!("warning: {warning}")))?;
        let allowed = Allowed {
            losing_entries_of: self.allow_losing_entries_of.iter().copied().collect(),
            from_learner: self.from_learner,
        };
        if self.plan {
            let plan = recover::plan(&config, &allowed).await.map_err(|error| failure_of(&error))?;
            return self.show(&plan, printer);
        }
        let request = Request { allowed, confirmed: self.confirm.map(ClusterId) };
        match recover::recover(&config, &request).await {
            Ok(recovered) => self.done(&recovered, printer),
            Err(RecoverError::Server(error)) => Err(failure_of(&error)),
            Err(error @ RecoverError::Refused(_)) => Err(Failure::new(Exit::Conflict, error.to_string())
                .with_hint("`strongroom recover-cluster --plan` shows what was found")),
            Err(RecoverError::Unconfirmed { plan, cluster }) => {
                self.show(&plan, printer)?;
                let message = match self.confirm {
                    None => {
                        "confirm: beginning a new cluster cannot be undone; nothing was changed".to_owned()
                    }
                    Some(_) => format!("confirm: the cluster of this node is {cluster}; nothing was changed"),
                };
                Err(Failure::new(Exit::Invalid, message)
                    .with_hint(format!("if this is what you want, add --confirm {cluster}")))
            }
        }
    }

    fn show(&self, plan: &Plan, printer: Printer) -> Result<(), Failure> {
        printer.result(&json_of(plan), || text_of(plan))
    }

    fn done(&self, recovered: &Recovered, printer: Printer) -> Result<(), Failure> {
        let Recovered { survivor, lost, previous, cluster } = recovered;
        let document = json!({
            "cluster": cluster,
            "previous": previous,
            "survivor": survivor,
            "lost": lost,
            "next": self.next_steps(),
        });
        printer.result(&document, || {
            let steps = self.next_steps().into_iter().zip(1..).map(|(step, n)| format!("  {n}. {step}"));
            format!(
                "cluster {previous} has ended; node {survivor} goes on as cluster {cluster}\nnext:\n{}",
                steps.collect::<Vec<_>>().join("\n")
            )
        })
    }

    fn next_steps(&self) -> [String; 4] {
        [
            format!("strongroom server --config {}", self.node.config.display()),
            "on each new machine: a node id that was never used, an empty data directory, a certificate for that id"
                .to_owned(),
            "strongroom member add HOST:PORT, until `strongroom status` tolerates a failure again".to_owned(),
            "wipe the disks of the nodes that were left out before they run again; revoke their certificates".to_owned(),
        ]
    }
}

fn failure_of(error: &ServerError) -> Failure {
    let failure = server_failure(error);
    match error {
        ServerError::Store(StoreError::Locked(_)) => failure.with_hint("stop the node on this machine first"),
        _ => failure,
    }
}

/// What may be lost if this node goes on, in words.
fn loss_of(survey: &Survey) -> String {
    let (survivors, voters) = (survey.survivors(), survey.voters());
    let left = survivors.keys().filter(|id| voters.contains(id)).count();
    let of = format!("{left} of {} voters survive, a quorum is {}", voters.len(), survey.quorum());
    match survey.loss(survey.node) {
        Loss::Nothing => format!(
            "every acknowledged entry is on a quorum; {of}: fewer than a majority are gone, so nothing acknowledged is lost"
        ),
        Loss::After(index) => format!(
            "every acknowledged entry is on a quorum; {of}: acknowledged entries after index {index} may be lost, and \
             nobody who survives can know how many there were"
        ),
    }
}

/// What is kept although nobody who survives knows it to be committed.
fn tail_of(survey: &Survey) -> Option<String> {
    let Survivor { last, committed, .. } = &survey.local;
    (last.index > *committed).then(|| {
        format!(
            "entries {} to {} of this node may or may not have been acknowledged: they are kept",
            committed + 1,
            last.index
        )
    })
}

fn json_of(plan: &Plan) -> Value {
    let survey = &plan.survey;
    let voters = survey.voters();
    let survivors = survey.survivors();
    let described = |id: NodeId, peer: Option<&str>, found: Result<&Survivor, &str>| {
        let it = found.ok();
        json!({
            "id": id,
            "voter": voters.contains(&id),
            "peer": peer,
            "reachable": it.is_some(),
            "survives": survivors.contains_key(&id),
            "cluster": it.and_then(|it| it.cluster),
            "last_log_term": it.map(|it| it.last.term),
            "last_log": it.map(|it| it.last.index),
            "committed": it.map(|it| it.committed),
            "applied": it.map(|it| it.applied),
            "leader": it.and_then(|it| it.leader),
            "quorum_age_ms": it.and_then(|it| it.quorum_age_ms),
            "remark": remark(survey, id, found),
        })
    };
    let own = survey.local.membership.members.get(&survey.node).map(|own| own.peer_address.as_str());
    let mut members = vec![described(survey.node, own, Ok(&survey.local))];
    members.extend(survey.asked.iter().map(|(id, asked)| {
        described(*id, Some(&asked.member.peer_address), asked.found.as_ref().map_err(String::as_str))
    }));
    members.sort_by_key(|member| member["id"].as_u64());
    let lost_after = match survey.loss(survey.node) {
        Loss::Nothing => None,
        Loss::After(index) => Some(index),
    };
    json!({
        "cluster": plan.begun.as_ref().map(|note| note.previous).or(survey.local.cluster),
        "node": survey.node,
        "running": survey.running,
        "begun": plan.begun.as_ref().map(|note| note.cluster),
        "members": members,
        "voters": voters,
        "quorum": survey.quorum(),
        "survivors": survivors.keys().collect::<Vec<_>>(),
        "most": survey.most(),
        "may_lose_after": lost_after,
        "loss": loss_of(survey),
        "kept_uncertain": tail_of(survey),
        "objections": plan.objections.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// What there is to know of a member that the columns do not say.
fn remark(survey: &Survey, id: NodeId, found: Result<&Survivor, &str>) -> String {
    let own = if survey.running { "this node, running" } else { "this node" };
    match found {
        Err(why) => why.to_owned(),
        Ok(_) if id == survey.node => own.to_owned(),
        Ok(it) if it.cluster != survey.local.cluster => match it.cluster {
            Some(other) => format!("belongs to cluster {other}"),
            None => "belongs to no cluster".to_owned(),
        },
        Ok(_) if !survey.survivors().contains_key(&id) => "another disk than the cluster knows".to_owned(),
        Ok(_) => String::new(),
    }
}

fn text_of(plan: &Plan) -> String {
    let survey = &plan.survey;
    let cluster = survey.local.cluster.map_or_else(|| "no cluster".to_owned(), |id| format!("cluster {id}"));
    if let Some(note) = &plan.begun {
        return format!(
            "a new cluster, {}, was begun on this node and is not complete\nnext: run the same command with --apply and \
             --confirm {}",
            note.cluster, note.previous
        );
    }
    let mut lines = vec![
        format!("{cluster}, as node {} has it\n\n{}\n", survey.node, members_text(survey)),
        format!("most of the log: node {}", survey.most()),
        format!("what may be lost: {}", loss_of(survey)),
    ];
    lines.extend(tail_of(survey).map(|tail| format!("what is kept: {tail}")));
    lines.push(
        "nodes that do not answer count as lost for ever: if one of them can come back, start it instead"
            .to_owned(),
    );
    if plan.objections.is_empty() {
        lines.push("nothing speaks against --apply on this node".to_owned());
    } else {
        lines.push("--apply on this node would be refused:".to_owned());
        lines.extend(plan.objections.iter().map(|objection| format!("  - {objection}")));
    }
    lines.join("\n")
}

fn members_text(survey: &Survey) -> String {
    let voters = survey.voters();
    let row = |id: NodeId, found: Result<&Survivor, &str>| {
        let votes = if voters.contains(&id) { "yes" } else { "no" };
        let of = |text: fn(&Survivor) -> String| found.map_or_else(|_| "-".to_owned(), text);
        vec![
            id.to_string(),
            votes.to_owned(),
            of(|it| it.last.term.to_string()),
            of(|it| it.last.index.to_string()),
            of(|it| it.committed.to_string()),
            of(|it| it.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string())),
            of(|it| it.quorum_age_ms.map_or_else(|| "-".to_owned(), |age| format!("{} s", age / 1_000))),
            remark(survey, id, found),
        ]
    };
    let mut rows = vec![(survey.node, row(survey.node, Ok(&survey.local)))];
    rows.extend(
        survey.asked.iter().map(|(id, asked)| (*id, row(*id, asked.found.as_ref().map_err(String::as_str)))),
    );
    rows.sort_by_key(|(id, _)| *id);
    table(
        &["NODE", "VOTES", "TERM", "LAST", "COMMITTED", "LEADER", "QUORUM SEEN", "REMARK"],
        &[0, 2, 3, 4, 5, 6],
        rows.into_iter().map(|(_, row)| row).collect(),
    )
}
