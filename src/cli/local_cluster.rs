//! A cluster of real node processes on this machine: for `dev`, for `demo`, and for tests.
//!
//! A cluster lives in one directory: a CA, a profile for each role, and a directory for each node with its
//! configuration, certificate, data and log. The nodes are processes of a given program, so what is shown and
//! tested here is what runs anywhere else: a cluster forms by `init` and `member add`, over mutual TLS, on ports.
//! A node that dies stays dead until [`LocalCluster::start`]: scripts kill nodes on purpose.

mod layout;
mod process;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

pub use self::layout::{AGENT_MACHINE, ClusterPlan, Layout, NODES_MAX, NodePlan, Ports};

use self::process::NodeProcess;
use crate::client::{Client, ClientError, ClientOptions, EndpointAddress, Preference};
use crate::escrow::ids::{Invalid, NodeId};
use crate::proto::StatusResponse;
use crate::tls::{Tls, TlsError, TlsPaths};

/// Longest time until a started node answers.
pub const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest time until an added node has caught up, or a cluster stands.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time a node may take to stop by itself; after that it is killed.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(20);
/// How often it is looked whether a node has ended.
const WATCH_POLL: Duration = Duration::from_millis(50);
/// How long one status call may take while waiting.
const STATUS_TIMEOUT: Duration = Duration::from_secs(8);

/// Why a local cluster could not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalClusterError {
    /// A node answered with an error.
    #[error("{0}")]
    Client(#[from] ClientError),
    /// The directory the caller named cannot be used.
    #[error("dir: {}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file or directory could not be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory the caller named has something in it that is no local cluster. Nothing was changed.
    #[error("dir: {} is neither empty nor a local cluster", .0.display())]
    Foreign(PathBuf),
    /// Another process runs the cluster in this directory.
    #[error("dir: the cluster in {} is run by another process", .0.display())]
    InUse(PathBuf),
    /// The layout cannot be as it was asked for.
    #[error("{0}")]
    Invalid(#[from] Invalid),
    /// A condition did not come to hold in time.
    #[error("{what} did not happen within {} s", within.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        within: Duration,
    },
    /// No free ports were found.
    #[error("no free ports were found on the loopback interface")]
    NoPorts,
    /// The node's process ended.
    #[error("node {node} ended ({how}); the end of its log, {}:\n{tail}", log.display())]
    NodeEnded {
        /// Which.
        node: NodeId,
        /// With what status.
        how: String,
        /// Where its log is.
        log: PathBuf,
        /// The last lines of it.
        tail: String,
    },
    /// Something else than a cluster of this kind is in the directory.
    #[error("{} is not a plan of a local cluster: {source}", path.display())]
    Plan {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Somebody else listens where a node should.
    #[error("port {0} of the loopback interface is taken by another process")]
    PortTaken(u16),
    /// Certificates could not be made or used.
    #[error("{0}")]
    Tls(#[from] TlsError),
}

/// A cluster of processes on this machine. Dropping it kills the nodes that still run.
pub struct LocalCluster {
    layout: Layout,
    program: PathBuf,
    nodes: Vec<Option<NodeProcess>>,
    /// Held as long as this value lives: two that run the same nodes would fight over their ports and files.
    _lock: File,
}

/// `cluster.json`: what scripts need to drive the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The cluster's name.
    pub cluster: String,
    /// Its nodes.
    pub nodes: Vec<ClusterFileNode>,
    /// The directory of the profiles, by role.
    pub profiles: PathBuf,
}

/// A node in `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFileNode {
    /// Its id.
    pub id: NodeId,
    /// Its process, when the file was written.
    pub pid: u32,
    /// Host and port of its API.
    pub api: String,
    /// Host and port of its peer service.
    pub peer: String,
    /// Host and port of its admin service.
    pub admin: String,
    /// Its configuration: `strongroom server --config` with it starts the node again.
    pub config: PathBuf,
    /// Its log.
    pub log: PathBuf,
}

impl LocalCluster {
    /// A cluster in `dir` of nodes that are processes of `program` (a `strongroom` binary): the one that is there
    /// already, or a new one after `plan`. Nothing runs yet.
    ///
    /// # Errors
    /// [`LocalClusterError`] if files, certificates or ports cannot be had.
    pub fn open_or_create(
        dir: &Path,
        plan: &ClusterPlan,
        program: PathBuf,
    ) -> Result<Self, LocalClusterError> {
        let (layout, lock) = Layout::open_or_create(dir, plan)?;
        let nodes = layout.nodes.iter().map(|_| None).collect();
        Ok(Self { layout, program, nodes, _lock: lock })
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Starts every node of the plan's members and waits until all of them are voters, caught up, under one leader.
    /// Forms the cluster first if it does not exist yet: `init` on node 1, `member add` for the others. Nodes that
    /// are only prepared are left alone.
    ///
    /// # Errors
    /// [`LocalClusterError`]: the first thing that did not work.
    pub async fn form(&mut self) -> Result<(), LocalClusterError> {
        let ids: Vec<NodeId> = self.layout.members().iter().map(|node| node.id).collect();
        self.layout.members().iter().try_for_each(|node| node.ports.check_free())?;
        let marker = self.layout.initialized_marker();
        if !marker.exists() {
            // An `init` that was cut short left nothing anybody was told about.
            self.layout.clear_first_node()?;
            process::initialize(&self.program, &self.layout).await?;
            layout::write(&marker, b"")?;
        }
        for id in &ids {
            self.start(*id).await?;
        }
        let operator = self.client("operator", &[1])?;
        let members =
            self.wait_for("a leader", SETTLE_TIMEOUT, &[1], |status| status.leader.is_some()).await?;
        for node in self.layout.members() {
            let is_voter = |member: &crate::proto::NodeStatus| member.id == node.id && member.voter;
            if !members.nodes.iter().any(is_voter) {
                let mut change = operator.add_member(&node.peer_address(), false).await?;
                while change.next().await?.is_some() {}
            }
        }
        self.wait_settled(&ids).await?;
        Ok(())
    }

    /// Starts a node and waits until it answers on its admin port.
    ///
    /// # Errors
    /// [`LocalClusterError::PortTaken`] if it runs already, or somebody else is in its place,
    /// [`LocalClusterError::NodeEnded`] if it ends instead, [`LocalClusterError::Late`] if it does neither.
    pub async fn start(&mut self, id: NodeId) -> Result<(), LocalClusterError> {
        let plan = self.layout.node(id)?.clone();
        // Whoever listens there would be taken for the node.
        plan.ports.check_free()?;
        let process = NodeProcess::spawn(&self.program, &plan)?;
        let slot = self.slot(id)?;
        let process = slot.insert(process);
        let deadline = Instant::now() + START_TIMEOUT;
        while !process::is_live(&plan.admin_address()).await {
            process.check_running()?;
            if Instant::now() >= deadline {
                return Err(LocalClusterError::Late {
                    what: format!("the start of node {id}"),
                    within: START_TIMEOUT,
                });
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Kills a node with SIGKILL, as a power cut would end it, and waits until its process is gone.
    ///
    /// # Errors
    /// [`LocalClusterError::File`] if the system does not let us.
    pub async fn kill(&mut self, id: NodeId) -> Result<(), LocalClusterError> {
        match self.slot(id)?.take() {
            Some(process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Asks a node to stop, and waits until it has; kills it after [`STOP_TIMEOUT`]. Says whether it stopped by
    /// itself with success.
    ///
    /// # Errors
    /// [`LocalClusterError::File`] if the system does not let us.
    pub async fn stop(&mut self, id: NodeId) -> Result<bool, LocalClusterError> {
        match self.slot(id)?.take() {
            Some(process) => process.stop(STOP_TIMEOUT).await,
            None => Ok(true),
        }
    }

    /// Stops every node, all at once. Says whether all of them stopped by themselves with success.
    ///
    /// # Errors
    /// [`LocalClusterError::File`] if the system does not let us.
    pub async fn stop_all(&mut self) -> Result<bool, LocalClusterError> {
        let running: Vec<NodeProcess> = self.nodes.iter_mut().filter_map(Option::take).collect();
        let stopping = running.into_iter().map(|process| process.stop(STOP_TIMEOUT));
        let stopped = futures_util::future::join_all(stopping).await;
        stopped.into_iter().try_fold(true, |all, stopped| Ok(all && stopped?))
    }

    /// Waits until a node that was started here ends by itself or is killed by somebody else, and says which and how.
    /// Its process is then gone for good: without this, a killed child would stay in the process table.
    pub async fn ended(&mut self) -> (NodeId, String) {
        loop {
            for (plan, slot) in self.layout.nodes.iter().zip(&mut self.nodes) {
                if let Some(how) = slot.as_mut().and_then(NodeProcess::ended) {
                    *slot = None;
                    return (plan.id, how);
                }
            }
            sleep(WATCH_POLL).await;
        }
    }

    /// The process id of a node that was started and not stopped or killed through this value.
    pub fn pid(&self, id: NodeId) -> Option<u32> {
        let position = self.layout.nodes.iter().position(|node| node.id == id)?;
        self.nodes.get(position)?.as_ref().map(NodeProcess::pid)
    }

    /// A client with the credentials of `profile` that asks the given nodes in the given order.
    ///
    /// # Errors
    /// [`LocalClusterError`] if the profile or a node does not exist.
    pub fn client(&self, profile: &str, nodes: &[NodeId]) -> Result<Client, LocalClusterError> {
        self.client_within(profile, nodes, crate::client::CALL_TIMEOUT)
    }

    /// As [`LocalCluster::client`] with another bound on each call.
    ///
    /// # Errors
    /// As [`LocalCluster::client`].
    pub fn client_within(
        &self,
        profile: &str,
        nodes: &[NodeId],
        timeout: Duration,
    ) -> Result<Client, LocalClusterError> {
        let tls = Tls::load(TlsPaths::profile(&self.layout.profile(profile)))?;
        let endpoints = nodes.iter().map(|id| Ok(self.layout.node(*id)?.api_address().parse()?));
        let endpoints: Vec<EndpointAddress> = endpoints.collect::<Result<_, LocalClusterError>>()?;
        let options = ClientOptions { timeout, preference: Preference::AsGiven, ..ClientOptions::default() };
        Ok(Client::new(endpoints, tls, options)?)
    }

    /// Waits until the status that one of `nodes` answers meets `condition`, and returns it.
    ///
    /// # Errors
    /// [`LocalClusterError::Late`] if it does not in time.
    pub async fn wait_for(
        &self,
        what: &str,
        within: Duration,
        nodes: &[NodeId],
        condition: impl Fn(&StatusResponse) -> bool,
    ) -> Result<StatusResponse, LocalClusterError> {
        let client = self.client_within("operator", nodes, STATUS_TIMEOUT)?;
        let deadline = Instant::now() + within;
        loop {
            match client.status().await {
                Ok(status) if condition(&status) => return Ok(status),
                Err(error @ (ClientError::Denied(_) | ClientError::Refused { .. })) => {
                    return Err(error.into());
                }
                _ if Instant::now() >= deadline => {
                    return Err(LocalClusterError::Late { what: what.to_owned(), within });
                }
                _ => sleep(POLL).await,
            }
        }
    }

    /// Waits until `nodes` are reachable voters under a leader and have applied the same index with the same digest.
    ///
    /// # Errors
    /// [`LocalClusterError::Late`] if that does not come to hold.
    pub async fn wait_settled(&self, nodes: &[NodeId]) -> Result<StatusResponse, LocalClusterError> {
        self.wait_for("agreement of all nodes", SETTLE_TIMEOUT, nodes, |status| {
            agree(status, nodes) && status.nodes.iter().all(|node| node.voter || !nodes.contains(&node.id))
        })
        .await
    }

    /// As [`LocalCluster::wait_settled`], but learners may be among `nodes`.
    ///
    /// # Errors
    /// [`LocalClusterError::Late`] if that does not come to hold.
    pub async fn wait_agreed(&self, nodes: &[NodeId]) -> Result<StatusResponse, LocalClusterError> {
        self.wait_for("agreement of all nodes", SETTLE_TIMEOUT, nodes, |status| agree(status, nodes)).await
    }

    /// Writes `cluster.json`, whole or not at all: scripts wait for it to appear.
    ///
    /// # Errors
    /// [`LocalClusterError::File`].
    pub fn write_cluster_file(&self) -> Result<PathBuf, LocalClusterError> {
        let nodes = self.layout.nodes.iter().map(|node| ClusterFileNode {
            id: node.id,
            pid: self.pid(node.id).unwrap_or(0),
            api: node.api_address(),
            peer: node.peer_address(),
            admin: node.admin_address(),
            config: node.config_path(),
            log: node.log_path(),
        });
        let file = ClusterFile {
            cluster: self.layout.cluster.to_string(),
            nodes: nodes.collect(),
            profiles: self.layout.profiles(),
        };
        let path = self.layout.cluster_file();
        let json = serde_json::to_vec_pretty(&file)
            .map_err(|error| LocalClusterError::File { path: path.clone(), source: error.into() })?;
        layout::replace(&path, &json)?;
        Ok(path)
    }

    /// Removes `cluster.json`: the cluster is not up.
    ///
    /// # Errors
    /// [`LocalClusterError::File`].
    pub fn remove_cluster_file(&self) -> Result<(), LocalClusterError> {
        let path = self.layout.cluster_file();
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(layout::file_error(&path, source)),
            _ => Ok(()),
        }
    }

    fn slot(&mut self, id: NodeId) -> Result<&mut Option<NodeProcess>, LocalClusterError> {
        let position = self.layout.nodes.iter().position(|node| node.id == id);
        position
            .and_then(|position| self.nodes.get_mut(position))
            .ok_or_else(|| Invalid::new("node", format!("no node {id} in this cluster")).into())
    }
}

/// Whether `nodes` are reachable members under a leader that have applied the same index with the same digest.
fn agree(status: &StatusResponse, nodes: &[NodeId]) -> bool {
    let mut asked = status.nodes.iter().filter(|node| nodes.contains(&node.id));
    let Some(first) = asked.clone().next() else { return false };
    status.leader.is_some()
        && asked.clone().count() == nodes.len()
        && asked.all(|node| {
            node.reachable
                && !node.digest.is_empty()
                && (node.applied, &node.digest) == (first.applied, &first.digest)
        })
}
