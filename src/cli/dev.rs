//! `strongroom dev`: a local cluster to play with and for scripts to drive, until Ctrl-C.

use std::path::{Path, PathBuf};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::local_cluster::{AGENT_MACHINE, ClusterPlan, LocalCluster, NODES_MAX};
use super::output::{line, table};
use super::{Exit, Failure, Printer};
use crate::escrow::ids::ClusterName;

/// Run a local cluster until Ctrl-C.
#[derive(Debug, Args)]
pub(super) struct DevCommand {
    /// The directory to keep it in; one that is there already comes back as it was.
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How many nodes a new cluster has, 1 to 7.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=NODES_MAX))]
    nodes: u64,
    /// Port of the first node's API; its peer and admin ports follow, the next node's are ten further on. Free
    /// ports if not given.
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// The name of a new cluster.
    #[arg(long, default_value = "dev", value_name = "NAME")]
    cluster: ClusterName,
}

impl DevCommand {
    pub(super) async fn run(self, printer: Printer) -> Result<(), Failure> {
        let stop = stop_signal()?;
        let program = own_program()?;
        let plan = ClusterPlan {
            name: self.cluster,
            nodes: self.nodes,
            members: self.nodes,
            base_port: self.base_port,
            extra_config: String::new(),
        };
        let mut cluster = LocalCluster::open_or_create(&self.dir, &plan, program)?;
        // Scripts wait for this file: one of an earlier run would tell them of processes that are gone.
        cluster.remove_cluster_file()?;
        let formed = tokio::select! {
            formed = cluster.form() => formed.map(Some),
            () = stop.cancelled() => Ok(None),
        };
        let outcome = match formed {
            Ok(Some(())) => attend(&mut cluster, &stop, printer).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        printer.note("stopping");
        cluster.stop_all().await?;
        cluster.remove_cluster_file()?;
        outcome
    }
}

/// Says that the cluster is up, and which nodes end, until it is time to stop.
async fn attend(
    cluster: &mut LocalCluster,
    stop: &CancellationToken,
    printer: Printer,
) -> Result<(), Failure> {
    cluster.write_cluster_file()?;
    line(&introduction(cluster))?;
    loop {
        let (node, how) = tokio::select! {
            ended = cluster.ended() => ended,
            () = stop.cancelled() => return Ok(()),
        };
        let config = cluster.layout().node(node)?.config_path();
        printer.note(&format!("node {node} ended ({how}); start it again: {}", restart(&config)));
    }
}

/// The command line that starts a node again.
fn restart(config: &Path) -> String {
    format!("strongroom server --config {}", config.display())
}

/// This program, to start nodes with.
pub(super) fn own_program() -> Result<PathBuf, Failure> {
    std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Failed, format!("finding this program's own file: {error}")))
}

/// Cancelled by Ctrl-C and SIGTERM. From now on neither ends the process by itself.
pub(super) fn stop_signal() -> Result<CancellationToken, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| Failure::new(Exit::Failed, format!("listening for signals: {error}")))
    };
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let token = CancellationToken::new();
    let stopped = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stopped.cancel();
    });
    Ok(token)
}

fn introduction(cluster: &LocalCluster) -> String {
    let layout = cluster.layout();
    let rows = layout.nodes.iter().map(|node| {
        let pid = cluster.pid(node.id).map_or("-".to_owned(), |pid| pid.to_string());
        vec![
            node.id.to_string(),
            pid,
            node.api_address(),
            node.admin_address(),
            node.log_path().display().to_string(),
        ]
    });
    let nodes = table(&["NODE", "PID", "API", "ADMIN", "LOG"], &[0, 1], rows.collect());
    let endpoints: Vec<_> = layout.nodes.iter().map(super::local_cluster::NodePlan::api_address).collect();
    format!(
        "cluster {} is up\n\n{nodes}\n\n\
         In another terminal:\n\n  \
         export STRONGROOM_ENDPOINTS={}\n  \
         export STRONGROOM_PROFILE={}\n  \
         strongroom status\n\n\
         Profiles in {}: operator, officer, helpdesk, helpdesk-advanced,\n\
         auditor, importer, agent-{AGENT_MACHINE}\n\n\
         A node that is killed stays down; this terminal then says how to start it again.\n\
         Ctrl-C stops the cluster. A node that you started yourself is yours to stop.",
        layout.cluster,
        endpoints.join(","),
        layout.profile("operator").display(),
        layout.profiles().display(),
    )
}
