//! `strongroom demo`: the main job, start to end, on three real node processes.
//!
//! Every step prints one line saying what it proved, and the first that does not hold ends the demo. Secrets are
//! drawn at random, compared and never shown.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::dev::{own_program, stop_signal};
use super::local_cluster::{AGENT_MACHINE, ClusterPlan, LocalCluster, LocalClusterError};
use super::output::{Format, line};
use super::sample;
use super::{Exit, Failure, Printer};
use crate::client::{ClientError, Deposit};
use crate::escrow::ids::{Invalid, NodeId, UserName};
use crate::escrow::secrets::SecretKind;
use crate::proto::StatusResponse;
use crate::seal::receipt::Receipt;
use crate::tls::TrustAnchors;
use crate::tls::ca::CA_CERTIFICATE_FILE;

/// The nodes of the demo.
const NODES: [NodeId; 3] = [1, 2, 3];
/// Longest time from the loss of the leader to the next key that is kept.
const FAILOVER_MAX: Duration = Duration::from_secs(10);
/// The user whose keys they are.
const USER: &str = r"CORP\user1";

/// Show the main job in one go.
#[derive(Debug, Args)]
pub(super) struct DemoCommand {
    /// Keep the directory with configurations, certificates, data and logs.
    #[arg(long)]
    keep: bool,
}

impl DemoCommand {
    pub(super) async fn run(self, printer: Printer) -> Result<(), Failure> {
        let stop = stop_signal()?;
        let mut dir = tempfile::Builder::new()
            .prefix("strongroom-demo-")
            .tempdir()
            .map_err(|error| Failure::new(Exit::Failed, format!("making a temporary directory: {error}")))?;
        dir.disable_cleanup(self.keep);
        let mut report = Report { printer, started: Instant::now(), steps: Vec::new() };
        let outcome = tokio::select! {
            outcome = play(dir.path().to_owned(), &mut report) => outcome,
            () = stop.cancelled() => Err(Failure::new(Exit::Failed, "interrupted")),
        };
        if self.keep {
            printer.note(&format!("everything is kept in {}", dir.path().display()));
        }
        outcome?;
        report.finish()
    }
}

/// The lines of the demo.
struct Report {
    printer: Printer,
    started: Instant,
    steps: Vec<Value>,
}

impl Report {
    /// A step that held, and what it proved.
    fn held(&mut self, step: &str, proved: impl Display) -> Result<(), Failure> {
        let after = self.started.elapsed();
        self.steps.push(
            json!({ "step": step, "proved": proved.to_string(), "after_ms": after.as_millis() as u64 }),
        );
        match self.printer.format() {
            Format::Table => line(&format!("{:5.1}s  {step:9} {proved}", after.as_secs_f64())),
            Format::Json => Ok(()),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        let after = self.started.elapsed();
        let document = json!({ "held": true, "after_ms": after.as_millis() as u64, "steps": self.steps });
        self.printer.result(&document, || "every step held".to_owned())
    }
}

/// A step that did not hold: which, and why.
fn broken(step: &'static str) -> impl Fn(Broken) -> Failure {
    move |why| Failure::new(Exit::Failed, format!("step `{step}` did not hold: {why}"))
}

/// Why a step did not hold.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Cluster(#[from] LocalClusterError),
    #[error(transparent)]
    Invalid(#[from] Invalid),
    #[error("{0}")]
    Other(String),
}

/// A key that was escrowed and what it was, to compare with later.
struct Kept {
    deposit: Deposit,
    receipt: Receipt,
}

async fn play(dir: PathBuf, report: &mut Report) -> Result<(), Failure> {
    let plan = ClusterPlan {
        name: cluster_name()?,
        nodes: NODES.len() as u64,
        members: NODES.len() as u64,
        base_port: None,
        extra_config: String::new(),
    };
    let cluster = LocalCluster::open_or_create(&dir, &plan, own_program()?);
    let cluster = cluster.map_err(Broken::from).map_err(broken("trust"))?;
    report.held("trust", "a new authority issued certificates to 3 nodes and 7 people and services")?;
    let mut demo = Demo { cluster, kept: Vec::new() };

    let formed = demo.form().await.map_err(broken("form"))?;
    report.held("form", formed)?;
    for (number, (machine, volume, kind)) in MACHINES.into_iter().enumerate() {
        let node = NODES[number % NODES.len()];
        let proved = demo.escrow(&[node], machine, volume, kind).await.map_err(broken("escrow"))?;
        report.held("escrow", format!("{proved}, through node {node}"))?;
    }
    report.held("repeat", demo.repeat().await.map_err(broken("repeat"))?)?;
    report.held("custody", demo.custody().await.map_err(broken("custody"))?)?;
    report.held("deny", demo.deny().await.map_err(broken("deny"))?)?;

    let leader = demo.leader().await.map_err(broken("kill"))?;
    let survivors: Vec<NodeId> = NODES.into_iter().filter(|node| *node != leader).collect();
    let killed = Instant::now();
    report.held("kill", demo.kill(leader).await.map_err(broken("kill"))?)?;
    let (machine, volume, kind) = AFTER_THE_LOSS;
    let proved = demo.escrow(&survivors, machine, volume, kind).await.map_err(broken("failover"))?;
    let took = killed.elapsed();
    if took > FAILOVER_MAX {
        let late = format!("the next key was kept {} ms after the leader was killed", took.as_millis());
        return Err(broken("failover")(Broken::Other(late)));
    }
    report.held("failover", format!("{proved}, {} ms after the leader was killed", took.as_millis()))?;
    for node in &survivors {
        report.held("recover", demo.recover_all(*node).await.map_err(broken("recover"))?)?;
    }

    report.held("restart", demo.restart(leader).await.map_err(broken("restart"))?)?;
    report.held("recover", demo.recover_all(leader).await.map_err(broken("recover"))?)?;
    report.held("stop", demo.stop().await.map_err(broken("stop"))?)
}

fn cluster_name() -> Result<crate::escrow::ids::ClusterName, Failure> {
    Ok("demo".parse()?)
}

/// What is escrowed before the leader is lost.
const MACHINES: [(&str, &str, SecretKind); 6] = [
    (AGENT_MACHINE, "C:", SecretKind::BitlockerPassword),
    ("LNX-0001", "/dev/nvme0n1p3", SecretKind::LuksRecovery),
    ("MAC-0001", "disk3s1", SecretKind::FilevaultRecovery),
    ("PC-0002", "C:", SecretKind::BitlockerPassword),
    ("PC-0002", "D:", SecretKind::BitlockerPassword),
    ("LNX-0002", "/dev/sda2", SecretKind::LuksRecovery),
];
/// What is escrowed after it.
const AFTER_THE_LOSS: (&str, &str, SecretKind) = ("PC-0003", "C:", SecretKind::BitlockerPassword);

struct Demo {
    cluster: LocalCluster,
    kept: Vec<Kept>,
}

impl Demo {
    async fn form(&mut self) -> Result<String, Broken> {
        self.cluster.form().await?;
        let status = self.cluster.wait_settled(&NODES).await?;
        let leader = leader_of(&status)?;
        let pids: Vec<String> =
            NODES.iter().filter_map(|node| self.cluster.pid(*node)).map(|pid| pid.to_string()).collect();
        expect(status.failure_tolerance == 1, "three voters tolerate one failure")?;
        let pids = pids.join(", ");
        Ok(format!("processes {pids} form one cluster, led by node {leader}; it tolerates one failure"))
    }

    async fn escrow(
        &mut self,
        nodes: &[NodeId],
        machine: &str,
        volume: &str,
        kind: SecretKind,
    ) -> Result<String, Broken> {
        let secret = sample::secret(kind).map_err(|error| Broken::Other(error.to_string()))?;
        let (machine, volume, user) = (machine.parse()?, volume.parse()?, Some(USER.parse()?));
        let deposit =
            Deposit { machine, volume, kind, key_id: None, secret, package: None, user, pending: false };
        let receipt = self.cluster.client("importer", nodes)?.escrow(&deposit).await?;
        self.verify(&receipt)?;
        expect(!receipt.already_escrowed, "a new key is not there before")?;
        let signer = receipt.node.name.clone();
        let proved = format!(
            "{kind} of {}: key {} is entry {}, receipt of node {signer} verified",
            deposit.machine, receipt.key_id, receipt.index
        );
        self.kept.push(Kept { deposit, receipt });
        Ok(proved)
    }

    /// Holds a receipt against the authority alone, as anyone may who has its certificate.
    fn verify(&self, receipt: &Receipt) -> Result<(), Broken> {
        let ca = self.cluster.layout().profile("auditor").join(CA_CERTIFICATE_FILE);
        let trust = TrustAnchors::from_pem_file(&ca).map_err(|error| Broken::Other(error.to_string()))?;
        receipt.verify(&trust).map_err(|error| Broken::Other(error.to_string()))
    }

    /// The same secret again, through another node, is the same key.
    async fn repeat(&self) -> Result<String, Broken> {
        let Kept { deposit, receipt } = self.first()?;
        let again = self.cluster.client("importer", &[NODES[1]])?.escrow(deposit).await?;
        self.verify(&again)?;
        let same = (again.key_id, again.index) == (receipt.key_id, receipt.index) && again.already_escrowed;
        expect(same, "the same secret is the same key")?;
        Ok(format!(
            "escrowing it again through node {} made no second record of key {}",
            NODES[1], again.key_id
        ))
    }

    async fn custody(&self) -> Result<String, Broken> {
        let auditor = self.cluster.client("auditor", &[NODES[0]])?;
        for Kept { receipt, .. } in &self.kept {
            // Followers apply a moment after the leader.
            self.cluster.wait_settled(&NODES).await?;
            let custody = auditor.custody(receipt.key_id, None).await?;
            let proven = custody.nodes.iter().filter(|node| node.outcome == "proven").count();
            expect(proven == NODES.len(), "every node proves custody of every key")?;
        }
        Ok(format!(
            "each of {} nodes proved that it holds and opens each of {} keys",
            NODES.len(),
            self.kept.len()
        ))
    }

    /// Who may not see a key does not.
    async fn deny(&self) -> Result<String, Broken> {
        let Kept { receipt, .. } = self.first()?;
        let stranger: UserName = r"CORP\stranger".parse()?;
        let desk = self.cluster.client("helpdesk", &[NODES[2]])?;
        for user in [Some(&stranger), None] {
            let denied = desk.recover(receipt.key_id, "demo", user).await;
            expect(
                matches!(denied, Err(ClientError::Denied(_))),
                "the help desk is told a user of the machine",
            )?;
        }
        let auditor = self.cluster.client("auditor", &[NODES[2]])?;
        let denied = auditor.recover(receipt.key_id, "demo", None).await;
        expect(matches!(denied, Err(ClientError::Denied(_))), "an auditor recovers nothing")?;
        Ok("no key for the help desk without a user of the machine, nor for an auditor".to_owned())
    }

    async fn leader(&self) -> Result<NodeId, Broken> {
        leader_of(&self.cluster.wait_settled(&NODES).await?)
    }

    async fn kill(&mut self, node: NodeId) -> Result<String, Broken> {
        let pid =
            self.cluster.pid(node).ok_or_else(|| Broken::Other("the leader does not run".to_owned()))?;
        self.cluster.kill(node).await?;
        Ok(format!("SIGKILL to process {pid}, the leader, node {node}"))
    }

    /// Every key, from one node alone, equals what was escrowed.
    async fn recover_all(&self, node: NodeId) -> Result<String, Broken> {
        let desk = self.cluster.client("helpdesk", &[node])?;
        let user: UserName = USER.parse()?;
        let mut consistency = String::new();
        for Kept { deposit, receipt } in &self.kept {
            let recovered = desk.recover(receipt.key_id, "demo: locked out", Some(&user)).await?;
            let same = recovered.secret.expose() == deposit.secret.expose();
            expect(same, format_args!("node {node} gives back key {} as it was escrowed", receipt.key_id))?;
            let freshness = recovered.details.freshness.unwrap_or_default();
            expect(freshness.node == node, "the node that was asked answers")?;
            consistency = freshness.consistency;
        }
        let count = self.kept.len();
        Ok(format!("node {node} gave back all {count} keys as they were escrowed ({consistency})"))
    }

    /// The killed node comes back and reaches the state of the others.
    async fn restart(&mut self, node: NodeId) -> Result<String, Broken> {
        let started = Instant::now();
        self.cluster.start(node).await?;
        let status = self.cluster.wait_settled(&NODES).await?;
        let caught_up = started.elapsed().as_millis();
        let state = status.nodes.iter().find(|member| member.id == node);
        let state = state.ok_or_else(|| Broken::Other(format!("node {node} is no member")))?;
        let digest: String = state.digest.chars().take(12).collect();
        Ok(format!(
            "node {node} caught up in {caught_up} ms: all nodes at {} with digest {digest}…",
            state.applied
        ))
    }

    async fn stop(&mut self) -> Result<String, Broken> {
        expect(self.cluster.stop_all().await?, "every node ends by itself with success")?;
        Ok("every node ended by itself, with success, on SIGTERM".to_owned())
    }

    fn first(&self) -> Result<&Kept, Broken> {
        self.kept.first().ok_or_else(|| Broken::Other("nothing was escrowed".to_owned()))
    }
}

fn leader_of(status: &StatusResponse) -> Result<NodeId, Broken> {
    status.leader.ok_or_else(|| Broken::Other("the cluster has no leader".to_owned()))
}

/// What must hold for a step.
fn expect(holds: bool, what: impl Display) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken::Other(format!("it does not hold that {what}"))) }
}
