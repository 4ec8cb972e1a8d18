//! What the tests of running clusters share: a cluster of real processes in a directory of its own, keys to put
//! into it, and the command line as a caller uses it.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strongroom::cli::local_cluster::{ClusterPlan, LocalCluster};
use strongroom::client::{Client, Deposit};
use strongroom::escrow::ids::{KeyId, NodeId};
use strongroom::escrow::secrets::{SecretKind, bitlocker};
use strongroom::proto::FindRequest;
use strongroom::seal::receipt::Receipt;
use strongroom::secret::Secret;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

/// The three voters of a test cluster.
pub const ALL: [NodeId; 3] = [1, 2, 3];
/// Longest a test waits for something that should happen soon.
pub const SOON: Duration = Duration::from_secs(30);

/// A running cluster and the directory it lives in, both gone when dropped.
pub struct TestCluster {
    pub cluster: LocalCluster,
    pub dir: tempfile::TempDir,
}

/// The binary under test.
pub fn program() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_strongroom"))
}

/// Three voters that have applied the same state.
pub async fn three_nodes() -> TestCluster {
    three_nodes_with("").await
}

/// Three voters with more lines in their configuration.
pub async fn three_nodes_with(extra_config: &str) -> TestCluster {
    formed(&plan(extra_config)).await
}

/// Three voters, and nodes up to `nodes` that are prepared to be added later.
pub async fn three_of(nodes: u64, extra_config: &str) -> TestCluster {
    formed(&ClusterPlan { nodes, ..plan(extra_config) }).await
}

async fn formed(plan: &ClusterPlan) -> TestCluster {
    let dir = tempfile::tempdir().expect("a directory for the test");
    let mut cluster = LocalCluster::open_or_create(dir.path(), plan, program()).expect("a layout");
    cluster.form().await.expect("a cluster forms");
    TestCluster { cluster, dir }
}

pub fn plan(extra_config: &str) -> ClusterPlan {
    ClusterPlan {
        name: "test".parse().expect("a cluster name"),
        nodes: 3,
        members: 3,
        base_port: None,
        extra_config: extra_config.to_owned(),
    }
}

impl TestCluster {
    pub fn client(&self, profile: &str, nodes: &[NodeId]) -> Client {
        self.cluster.client(profile, nodes).expect("a client")
    }

    pub async fn leader(&self) -> NodeId {
        let status = self.cluster.wait_for("a leader", SOON, &ALL, |status| status.leader.is_some()).await;
        status.expect("a leader").leader.expect("just seen")
    }

    /// The command line with the credentials of `profile` against `nodes`.
    pub fn strongroom(&self, profile: &str, nodes: &[NodeId], arguments: &[&str]) -> Output {
        self.strongroom_with_input(profile, nodes, arguments, "")
    }

    pub fn strongroom_with_input(
        &self,
        profile: &str,
        nodes: &[NodeId],
        arguments: &[&str],
        input: &str,
    ) -> Output {
        self.run_as(&self.cluster.layout().profile(profile), nodes, arguments, input)
    }

    /// As [`TestCluster::strongroom`] with a profile from anywhere.
    pub fn run_as(&self, profile: &Path, nodes: &[NodeId], arguments: &[&str], input: &str) -> Output {
        run(self.command(profile, nodes, arguments), input)
    }

    /// The command line as [`TestCluster::run_as`] runs it.
    pub fn command(&self, profile: &Path, nodes: &[NodeId], arguments: &[&str]) -> Command {
        let layout = self.cluster.layout();
        let endpoints: Vec<_> =
            nodes.iter().map(|id| layout.node(*id).expect("a node").api_address()).collect();
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env("STRONGROOM_ENDPOINTS", endpoints.join(","))
            .env("STRONGROOM_PROFILE", profile)
            .env("STRONGROOM_OUTPUT", "json");
        command
    }
}

/// Runs a command to its end with `input` on standard input.
pub fn run(mut command: Command, input: &str) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the command starts");
    // A command that does not read its input closes the pipe: no fault of the test.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    child.wait_with_output().expect("the command ends")
}

/// The exit code and the error document of a failed command.
pub fn failure(output: &Output) -> (i32, serde_json::Value) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let document = stderr.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let document: serde_json::Value = document.unwrap_or_else(|| panic!("no error document in: {stderr}"));
    (output.status.code().expect("not killed"), document["error"].clone())
}

/// A BitLocker key of machine `PC-<n>`, its secret made from `n`.
pub fn deposit(n: u64) -> Deposit {
    let halves: [u16; 8] = std::array::from_fn(|group| (n.wrapping_mul(2_654_435_761) >> (group * 4)) as u16);
    Deposit {
        machine: format!("PC-{n:05}").parse().expect("a machine id"),
        volume: "C:".parse().expect("a volume id"),
        kind: SecretKind::BitlockerPassword,
        key_id: Some(KeyId(Uuid::from_u64_pair(0x5742_0000_0000_4000, 0x8000_0000_0000_0000 | n))),
        secret: bitlocker::from_halves(halves),
        package: None,
        user: Some(format!(r"CORP\user{n}").parse().expect("a user")),
        pending: false,
    }
}

/// Clients that escrow keys until told to stop, and remember what was acknowledged.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<(Deposit, Receipt)>>>,
    pauses: Arc<std::sync::Mutex<Pauses>>,
    failed: Arc<AtomicU64>,
    clients: JoinSet<()>,
}

/// How long writes were held up.
#[derive(Debug, Clone, Copy)]
pub struct Pauses {
    last: Instant,
    /// Longest time between two acknowledgements, of whichever clients.
    pub longest_gap: Duration,
    /// Longest time from a client's request to its acknowledgement, retries included.
    pub slowest_write: Duration,
}

impl Pauses {
    fn begin() -> Self {
        Self { last: Instant::now(), longest_gap: Duration::ZERO, slowest_write: Duration::ZERO }
    }

    fn acknowledged(&mut self, sent: Instant) {
        self.longest_gap = self.longest_gap.max(self.last.elapsed());
        self.slowest_write = self.slowest_write.max(sent.elapsed());
        self.last = Instant::now();
    }
}

impl Load {
    /// Starts `clients` of them, each beginning at another node.
    pub fn start(cluster: &TestCluster, clients: u64) -> Self {
        Self::start_at(cluster, &ALL, clients, Duration::ZERO)
    }

    /// Starts `clients` of them, each beginning at another of `nodes` and resting for `rest` after each
    /// acknowledgement, so that a long test does not end with more keys than can be checked.
    pub fn start_at(cluster: &TestCluster, nodes: &[NodeId], clients: u64, rest: Duration) -> Self {
        let clients = (0..clients as usize).map(|number| {
            let mut nodes = nodes.to_vec();
            let turn = number % nodes.len();
            nodes.rotate_left(turn);
            cluster.client("importer", &nodes)
        });
        Self::of(clients, rest)
    }

    /// Starts one for each of `clients`.
    pub fn of(clients: impl IntoIterator<Item = Client>, rest: Duration) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            acknowledged: Arc::default(),
            pauses: Arc::new(std::sync::Mutex::new(Pauses::begin())),
            failed: Arc::default(),
            clients: JoinSet::new(),
        };
        let next = Arc::new(AtomicU64::new(1));
        for client in clients {
            let (stop, acknowledged, failed, next) =
                (load.stop.clone(), load.acknowledged.clone(), load.failed.clone(), next.clone());
            let pauses = load.pauses.clone();
            load.clients.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let deposit = deposit(next.fetch_add(1, Ordering::Relaxed));
                    let sent = Instant::now();
                    match client.escrow(&deposit).await {
                        Ok(receipt) => {
                            pauses.lock().expect("no panic under it").acknowledged(sent);
                            acknowledged.lock().await.push((deposit, receipt));
                        }
                        Err(error) => {
                            eprintln!("a request failed: {error}");
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    if !rest.is_zero() {
                        tokio::time::sleep(rest).await;
                    }
                }
            });
        }
        load
    }

    /// How long writes were held up since this was last asked, or since the start. A pause that lasts on is counted
    /// as long as it has lasted, and goes on counting.
    pub fn pauses(&self) -> Pauses {
        let mut pauses = self.pauses.lock().expect("no panic under it");
        let so_far = Pauses { longest_gap: pauses.longest_gap.max(pauses.last.elapsed()), ..*pauses };
        *pauses = Pauses { last: pauses.last, ..Pauses::begin() };
        so_far
    }

    /// Waits until `more` further keys have been acknowledged.
    pub async fn progress(&self, more: usize) {
        let from = self.acknowledged.lock().await.len();
        let deadline = tokio::time::Instant::now() + SOON;
        while self.acknowledged.lock().await.len() < from + more {
            assert!(tokio::time::Instant::now() < deadline, "no progress under load");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops them; what was acknowledged, and how many requests failed.
    pub async fn finish(mut self) -> (Vec<(Deposit, Receipt)>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client ran to its end");
        }
        let acknowledged = std::mem::take(&mut *self.acknowledged.lock().await);
        (acknowledged, self.failed.load(Ordering::Relaxed))
    }
}

/// Reads every key back at `node` and compares it with what was escrowed.
pub async fn assert_all_readable(cluster: &TestCluster, node: NodeId, acknowledged: &[(Deposit, Receipt)]) {
    let client = cluster.client("helpdesk-advanced", &[node]);
    for (deposit, receipt) in acknowledged {
        let key_id = receipt.key_id;
        let recovered = client.recover(key_id, "locked out", None).await;
        let recovered =
            recovered.unwrap_or_else(|error| panic!("acknowledged key {key_id} at node {node}: {error}"));
        assert!(same(&recovered.secret, &deposit.secret), "key {key_id} at node {node} is another secret");
    }
}

/// Looks every key up at `node`, in its own replica, and compares fingerprints: it holds that very secret. Cheaper than
/// [`assert_all_readable`], which puts every look on record.
pub async fn assert_all_held(cluster: &TestCluster, node: NodeId, acknowledged: &[(Deposit, Receipt)]) {
    use futures_util::StreamExt as _;

    /// How many lookups are under way at once.
    const AT_ONCE: usize = 16;
    let client = cluster.client("auditor", &[node]);
    let lookups = acknowledged.iter().map(|(_, receipt)| {
        let client = client.clone();
        async move {
            let request = FindRequest { key_id_prefix: receipt.key_id.to_string(), ..FindRequest::default() };
            let found = client.find(&request).await.expect("a local read");
            assert_eq!(found.freshness.expect("said").node, node);
            let fingerprints: Vec<_> = found.keys.into_iter().map(|key| key.fingerprint).collect();
            assert_eq!(
                fingerprints,
                [receipt.fingerprint.to_string()],
                "key {} at node {node}",
                receipt.key_id
            );
        }
    });
    futures_util::stream::iter(lookups).buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// Compares secrets without showing them.
pub fn same(one: &Secret, other: &Secret) -> bool {
    one.expose() == other.expose()
}
