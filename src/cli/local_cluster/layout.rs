//! The directory of a local cluster: what is in it and how it is made.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

use super::LocalClusterError;
use crate::escrow::ids::{ClusterName, Invalid, NodeId, Role};
use crate::tls::ca::{Authority, FileNames, IssueRequest};

/// The machine that the profile `agent-PC-0001` speaks for.
pub const AGENT_MACHINE: &str = "PC-0001";
/// Most nodes of a local cluster.
pub const NODES_MAX: u64 = 7;
/// From one node's ports to the next one's.
const PORTS_PER_NODE: u16 = 10;
/// Where free ports are looked for: below those that Linux gives to outgoing connections, so that a node that is
/// down finds its ports free when it comes back.
const PORTS_FROM: u16 = 20_000;
const PORTS_UNTIL: u16 = 32_000;
/// How many places are tried.
const PORT_ATTEMPTS: usize = 200;
/// People's and services' roles that get a profile of their name.
const PROFILES: [Role; 6] =
    [Role::Operator, Role::Officer, Role::Helpdesk, Role::HelpdeskAdvanced, Role::Auditor, Role::Importer];
/// Holds the plan; there once the directory is complete.
const PLAN_FILE: &str = "plan.json";
const CLUSTER_FILE: &str = "cluster.json";
/// Made first, and locked by whoever runs the cluster. Says as well that the directory is one of ours: only then
/// may what is in it be made anew.
const LOCK_FILE: &str = "dev.lock";

/// What a new local cluster should be like.
#[derive(Debug, Clone)]
pub struct ClusterPlan {
    /// Its name.
    pub name: ClusterName,
    /// How many nodes, 1 to 7.
    pub nodes: u64,
    /// How many of them, from node 1 on, form the cluster. The others are prepared as they are, but neither started
    /// nor added: they are there to be added later.
    pub members: u64,
    /// Port of the first node's API; the next two are its peer and admin ports, the next node's are ten further
    /// on. `None` takes free ones.
    pub base_port: Option<u16>,
    /// Lines to add to every node's configuration (TOML).
    pub extra_config: String,
}

/// The ports of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// gRPC and HTTPS for clients.
    pub api: u16,
    /// For other nodes.
    pub peer: u16,
    /// Metrics and health.
    pub admin: u16,
}

/// One node: its ports and its directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// Its id, from 1.
    pub id: NodeId,
    /// Its ports on the loopback interface.
    pub ports: Ports,
    /// Its directory.
    pub dir: PathBuf,
}

impl NodePlan {
    /// Host and port of its API.
    pub fn api_address(&self) -> String {
        loopback(self.ports.api)
    }

    /// Host and port of its peer service.
    pub fn peer_address(&self) -> String {
        loopback(self.ports.peer)
    }

    /// Host and port of its admin service.
    pub fn admin_address(&self) -> String {
        loopback(self.ports.admin)
    }

    /// Its configuration.
    pub fn config_path(&self) -> PathBuf {
        self.dir.join("node.toml")
    }

    /// What it prints.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// Its data directory.
    pub fn data_path(&self) -> PathBuf {
        self.dir.join("data")
    }
}

fn loopback(port: u16) -> String {
    format!("{}:{port}", Ipv4Addr::LOCALHOST)
}

/// What is kept of a plan, so that a cluster comes back as it was.
#[derive(Debug, Serialize, Deserialize)]
struct SavedPlan {
    cluster: ClusterName,
    nodes: Vec<Ports>,
    /// All of them, unless it says otherwise.
    #[serde(default)]
    members: Option<u64>,
}

/// The directory of a local cluster.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The directory.
    pub dir: PathBuf,
    /// The cluster's name.
    pub cluster: ClusterName,
    /// Its nodes, by id from 1.
    pub nodes: Vec<NodePlan>,
    /// How many of them form the cluster; the others are only prepared.
    members: usize,
}

impl Layout {
    /// The layout that is in `dir`, or a new one after `plan`; and the lock that keeps others from running it too.
    pub(super) fn open_or_create(dir: &Path, plan: &ClusterPlan) -> Result<(Self, File), LocalClusterError> {
        let (dir, lock) = claim(dir)?;
        let path = dir.join(PLAN_FILE);
        if !path.exists() {
            let ports = choose_ports(plan)?;
            if plan.base_port.is_some() {
                // Later they would be in the plan, and no other base port would be listened to.
                ports.iter().try_for_each(Ports::check_free)?;
            }
            let saved = SavedPlan { cluster: plan.name.clone(), nodes: ports, members: Some(members(plan)?) };
            let layout = Self::of(&dir, &saved);
            layout.create(plan)?;
            let json = serde_json::to_vec_pretty(&saved)
                .map_err(|source| LocalClusterError::Plan { path: path.clone(), source })?;
            // Last: without it, the next attempt would take a half-made directory for a whole one.
            replace(&path, &json)?;
        }
        let json = fs::read(&path).map_err(|source| file_error(&path, source))?;
        let saved: SavedPlan =
            serde_json::from_slice(&json).map_err(|source| LocalClusterError::Plan { path, source })?;
        Ok((Self::of(&dir, &saved), lock))
    }

    fn of(dir: &Path, saved: &SavedPlan) -> Self {
        let nodes = (1..).zip(&saved.nodes);
        let nodes =
            nodes.map(|(id, ports)| NodePlan { id, ports: *ports, dir: dir.join(format!("node-{id}")) });
        let nodes: Vec<_> = nodes.collect();
        let members = saved.members.and_then(|members| usize::try_from(members).ok());
        let members = members.map_or(nodes.len(), |members| members.min(nodes.len()));
        Self { dir: dir.to_owned(), cluster: saved.cluster.clone(), nodes, members }
    }

    /// The nodes that form the cluster, without those that are only prepared.
    pub fn members(&self) -> &[NodePlan] {
        self.nodes.get(..self.members).unwrap_or(&self.nodes)
    }

    /// The node with `id`.
    ///
    /// # Errors
    /// [`LocalClusterError::Invalid`] if there is none.
    pub fn node(&self, id: NodeId) -> Result<&NodePlan, LocalClusterError> {
        let node = self.nodes.iter().find(|node| node.id == id);
        node.ok_or_else(|| Invalid::new("node", format!("no node {id} in this cluster")).into())
    }

    /// The directory of profiles.
    pub fn profiles(&self) -> PathBuf {
        self.dir.join("profiles")
    }

    /// The profile called `name`.
    pub fn profile(&self, name: &str) -> PathBuf {
        self.profiles().join(name)
    }

    /// The directory of the CA.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// Where scripts find everything.
    pub fn cluster_file(&self) -> PathBuf {
        self.dir.join(CLUSTER_FILE)
    }

    /// The offline recovery identity that `init` made.
    pub fn offline_identity(&self) -> PathBuf {
        self.dir.join("offline-identity.txt")
    }

    /// There once `init` has made the cluster.
    pub(super) fn initialized_marker(&self) -> PathBuf {
        self.dir.join("initialized")
    }

    /// Removes what `init` may have left.
    pub(super) fn clear_first_node(&self) -> Result<(), LocalClusterError> {
        let data = self.node(1)?.data_path();
        if data.exists() {
            fs::remove_dir_all(&data).map_err(|source| file_error(&data, source))?;
        }
        let identity = self.offline_identity();
        if identity.exists() {
            fs::remove_file(&identity).map_err(|source| file_error(&identity, source))?;
        }
        Ok(())
    }

    /// Makes the CA, certificates, profiles and configurations.
    fn create(&self, plan: &ClusterPlan) -> Result<(), LocalClusterError> {
        // What is left of an attempt that was cut short is of no use to anyone.
        for stale in [self.authority(), self.profiles()].iter().chain(self.nodes.iter().map(|node| &node.dir))
        {
            if stale.exists() {
                fs::remove_dir_all(stale).map_err(|source| file_error(stale, source))?;
            }
        }
        let authority = Authority::create(&self.authority(), self.cluster.clone(), None)?;
        for role in PROFILES {
            let issued = authority.issue(IssueRequest::new(role, role.as_str()))?;
            authority.write_profile(&self.profile(role.as_str()), &issued)?;
        }
        let agent = authority.issue(IssueRequest::new(Role::Agent, AGENT_MACHINE))?;
        authority.write_profile(&self.profile(&agent_profile(AGENT_MACHINE)), &agent)?;
        for node in &self.nodes {
            let issued = authority.issue(IssueRequest::new(Role::Node, node.id.to_string()))?;
            authority.write_new(&node.dir, &issued, FileNames::NODE)?;
            write(&node.config_path(), self.config(node, &plan.extra_config).as_bytes())?;
        }
        Ok(())
    }

    /// The configuration of one node, as a person would write it.
    fn config(&self, node: &NodePlan, extra: &str) -> String {
        let text = |path: PathBuf| toml::Value::String(path.display().to_string()).to_string();
        let NodePlan { id, dir, .. } = node;
        let (api, peer, admin) = (node.api_address(), node.peer_address(), node.admin_address());
        let (data, crl) = (text(node.data_path()), text(self.authority().join(crate::tls::ca::CRL_FILE)));
        let (ca, cert, key) = (dir.join("ca.crt"), dir.join("node.crt"), dir.join("node.key"));
        let (ca, cert, key) = (text(ca), text(cert), text(key));
        let cluster = &self.cluster;
        format!(
            "cluster = \"{cluster}\"\nnode_id = {id}\ndata_dir = {data}\nzone = \"zone-{id}\"\n\n\
             [listen]\napi = \"{api}\"\npeer = \"{peer}\"\nadmin = \"{admin}\"\n\n\
             [advertise]\napi = \"{api}\"\npeer = \"{peer}\"\n\n\
             [tls]\nca = {ca}\ncert = {cert}\nkey = {key}\ncrl = {crl}\n\n{extra}"
        )
    }
}

fn agent_profile(machine: &str) -> String {
    format!("agent-{machine}")
}

fn members(plan: &ClusterPlan) -> Result<u64, LocalClusterError> {
    if (1..=plan.nodes).contains(&plan.members) {
        return Ok(plan.members);
    }
    Err(Invalid::new("members", format!("1 to {}, which is how many nodes there are", plan.nodes)).into())
}

fn choose_ports(plan: &ClusterPlan) -> Result<Vec<Ports>, LocalClusterError> {
    if !(1..=NODES_MAX).contains(&plan.nodes) {
        return Err(Invalid::new("nodes", format!("1 to {NODES_MAX}")).into());
    }
    if let Some(base) = plan.base_port {
        let too_high = || Invalid::new("base_port", "a port that leaves ten for each node below 65536");
        return Ok(ports_from(base, plan.nodes).ok_or_else(too_high)?);
    }
    let range = usize::from(PORTS_UNTIL - PORTS_FROM);
    // Where to begin differs between processes and between clusters of one process: ports that were found free are
    // taken only once the nodes run, and clusters started together must not meet there.
    static CLUSTERS: AtomicUsize = AtomicUsize::new(0);
    let number = usize::try_from(std::process::id()).unwrap_or(0) + CLUSTERS.fetch_add(7, Ordering::Relaxed);
    let start = number * usize::from(PORTS_PER_NODE) * usize::try_from(NODES_MAX).unwrap_or(1);
    for attempt in 0..PORT_ATTEMPTS {
        let offset = (start + attempt * usize::from(PORTS_PER_NODE)) % range;
        let base = u16::try_from(offset).ok().and_then(|offset| PORTS_FROM.checked_add(offset));
        if let Some(ports) = base
            .and_then(|base| ports_from(base, plan.nodes))
            .filter(|ports| ports.iter().all(|ports| ports.check_free().is_ok()))
        {
            return Ok(ports);
        }
    }
    Err(LocalClusterError::NoPorts)
}

fn ports_from(base: u16, nodes: u64) -> Option<Vec<Ports>> {
    let node = |position: u64| {
        let api = u16::try_from(position).ok()?.checked_mul(PORTS_PER_NODE)?.checked_add(base)?;
        (api > 0).then_some(())?;
        Some(Ports { api, peer: api.checked_add(1)?, admin: api.checked_add(2)? })
    };
    (0..nodes).map(node).collect()
}

/// Makes `dir` if it is not there and locks it; as a path that can be used from elsewhere, such as configuration files.
///
/// # Errors
/// [`LocalClusterError::Directory`] if it cannot be had, [`LocalClusterError::Foreign`] if it has something else in
/// it, [`LocalClusterError::InUse`] if another process runs the cluster in it.
fn claim(dir: &Path) -> Result<(PathBuf, File), LocalClusterError> {
    let unusable = |source| LocalClusterError::Directory { path: dir.to_owned(), source };
    match fs::create_dir_all(dir) {
        // What is there is something else than a directory.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        made => made.map_err(unusable)?,
    }
    let path = dir.canonicalize().map_err(unusable)?;
    let is_ours = path.join(LOCK_FILE).exists();
    if !is_ours && fs::read_dir(&path).map_err(unusable)?.next().is_some() {
        return Err(LocalClusterError::Foreign(dir.to_owned()));
    }
    let lock = File::options().create(true).append(true).open(path.join(LOCK_FILE)).map_err(unusable)?;
    match lock.try_lock() {
        Ok(()) => Ok((path, lock)),
        Err(TryLockError::WouldBlock) => Err(LocalClusterError::InUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(unusable(source)),
    }
}

impl Ports {
    /// Fails if somebody listens on one of them.
    pub(super) fn check_free(&self) -> Result<(), LocalClusterError> {
        let Self { api, peer, admin } = *self;
        let taken = [api, peer, admin].into_iter().find(|port| !is_free(*port));
        taken.map_or(Ok(()), |port| Err(LocalClusterError::PortTaken(port)))
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

pub(super) fn file_error(path: &Path, source: io::Error) -> LocalClusterError {
    LocalClusterError::File { path: path.to_owned(), source }
}

/// Writes a new file.
pub(super) fn write(path: &Path, content: &[u8]) -> Result<(), LocalClusterError> {
    fs::write(path, content).map_err(|source| file_error(path, source))
}

/// Writes a file so that a reader sees the old one or the new one, never a part.
pub(super) fn replace(path: &Path, content: &[u8]) -> Result<(), LocalClusterError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let written = tempfile::NamedTempFile::new_in(dir).and_then(|mut file| {
        file.write_all(content)?;
        file.persist(path).map_err(|error| error.error)
    });
    written.map(drop).map_err(|source| file_error(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, TlsFiles};
    use crate::tls::{Tls, TlsPaths};

    fn plan(nodes: u64, base_port: Option<u16>) -> ClusterPlan {
        let name = "test".parse().unwrap();
        ClusterPlan { name, nodes, members: nodes, base_port, extra_config: String::new() }
    }

    #[test]
    fn nodes_that_are_no_members_are_prepared_like_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let three_of_five = ClusterPlan { members: 3, ..plan(5, None) };
        let (layout, lock) = Layout::open_or_create(dir.path(), &three_of_five).unwrap();
        assert_eq!((layout.nodes.len(), layout.members().len()), (5, 3));
        assert!(Config::load(&layout.node(5).unwrap().config_path()).is_ok());
        drop(lock);
        let (again, _lock) = Layout::open_or_create(dir.path(), &plan(5, None)).unwrap();
        assert_eq!(again.members().len(), 3, "as it was made");

        for members in [0, 6] {
            let dir = tempfile::tempdir().unwrap();
            let refused = Layout::open_or_create(dir.path(), &ClusterPlan { members, ..plan(5, None) });
            assert!(matches!(refused, Err(LocalClusterError::Invalid(_))), "{members} of 5");
        }
    }

    #[test]
    fn ports_follow_the_base_port() {
        let ports = choose_ports(&plan(2, Some(7_420))).unwrap();
        let expected = [(7_420, 7_421, 7_422), (7_430, 7_431, 7_432)];
        assert_eq!(ports, expected.map(|(api, peer, admin)| Ports { api, peer, admin }));
        assert!(choose_ports(&plan(2, Some(65_530))).is_err());
        assert!(choose_ports(&plan(2, Some(0))).is_err());
        assert!(choose_ports(&plan(0, None)).is_err());
        assert!(choose_ports(&plan(8, None)).is_err());
    }

    #[test]
    fn free_ports_are_below_those_of_outgoing_connections() {
        for Ports { api, admin, .. } in choose_ports(&plan(7, None)).unwrap() {
            assert!(api >= PORTS_FROM && admin < 32_768, "{api} to {admin}");
        }
    }

    #[test]
    fn a_directory_reopens_with_the_same_ports_and_certificates() {
        let dir = tempfile::tempdir().unwrap();
        let (first, lock) = Layout::open_or_create(dir.path(), &plan(3, None)).unwrap();
        let key = fs::read(first.profile("operator").join("client.key")).unwrap();
        drop(lock);
        let (second, _lock) = Layout::open_or_create(dir.path(), &plan(1, Some(7_420))).unwrap();
        assert_eq!(first.nodes, second.nodes);
        assert_eq!(key, fs::read(second.profile("operator").join("client.key")).unwrap());
        for profile in ["officer", "helpdesk", "helpdesk-advanced", "auditor", "importer", "agent-PC-0001"] {
            assert!(second.profile(profile).join("ca.crt").exists(), "{profile}");
        }
    }

    #[test]
    fn every_node_gets_a_configuration_that_a_server_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _lock) = Layout::open_or_create(dir.path(), &plan(3, None)).unwrap();
        for node in &layout.nodes {
            let config = Config::load(&node.config_path()).unwrap();
            assert_eq!((config.node_id, config.advertise.peer), (node.id, node.peer_address()));
            let TlsFiles { ca, cert, key, crl } = config.tls;
            Tls::load(TlsPaths { ca, cert, key, crl: crl.into() }).unwrap();
        }
    }

    #[test]
    fn a_half_made_directory_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (first, lock) = Layout::open_or_create(dir.path(), &plan(1, None)).unwrap();
        fs::remove_file(first.dir.join(PLAN_FILE)).unwrap();
        drop(lock);
        Layout::open_or_create(dir.path(), &plan(2, None)).unwrap();
    }

    #[test]
    fn a_directory_with_something_else_in_it_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("ca")).unwrap();
        fs::write(dir.path().join("ca/ca.key"), "of somebody else").unwrap();
        let opened = Layout::open_or_create(dir.path(), &plan(1, None));
        assert!(matches!(opened, Err(LocalClusterError::Foreign(_))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_to_string(dir.path().join("ca/ca.key")).unwrap(), "of somebody else");
    }

    #[test]
    fn a_cluster_is_run_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let (_, lock) = Layout::open_or_create(dir.path(), &plan(1, None)).unwrap();
        let again = || Layout::open_or_create(dir.path(), &plan(1, None));
        assert!(matches!(again(), Err(LocalClusterError::InUse(_))));
        drop(lock);
        again().unwrap();
    }

    #[test]
    fn a_base_port_that_is_taken_is_refused_and_not_planned_with() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let dir = tempfile::tempdir().unwrap();
        let opened = Layout::open_or_create(dir.path(), &plan(1, Some(port)));
        assert!(matches!(opened, Err(LocalClusterError::PortTaken(taken)) if taken == port));
        Layout::open_or_create(dir.path(), &plan(1, None)).unwrap();
    }
}
