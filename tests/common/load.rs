//! Clients that keep a cluster busy: some escrow, some look up what was acknowledged, some reveal it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use strongroom::client::{Client, ClientError};
use strongroom::escrow::ids::NodeId;
use strongroom::proto::{Consistency, FindRequest};
use tokio::task::JoinSet;

use super::{Kept, SOON, TestCluster, deposit, same};

/// Between two requests of one reader. A reveal is a write, so readers without a rest would be most of the load.
const READ_REST: Duration = Duration::from_millis(50);
/// Between two looks at how far the load is.
const POLL: Duration = Duration::from_millis(10);

/// One of each for the three kinds of requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Each<T> {
    pub escrows: T,
    pub lookups: T,
    pub reveals: T,
}

/// How many requests ended with an error, retries of the client included.
pub type Failed = Each<u64>;

impl Failed {
    /// Every client had every answer.
    pub const NONE: Self = Self { escrows: 0, lookups: 0, reveals: 0 };
}

/// How long requests of one kind were held up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pause {
    /// Longest time between two answers, to whichever clients.
    pub longest_gap: Duration,
    /// Longest time from a client's request to its answer, retries included.
    pub slowest: Duration,
}

/// Clients that escrow keys until told to stop and remember what was acknowledged, and, where asked for, clients that
/// check it all the while.
pub struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    readers: u64,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The number of the next key.
    next: AtomicU64,
    acknowledged: Mutex<Vec<Kept>>,
    tallies: Each<Mutex<Tally>>,
}

/// What became of the requests of one kind.
#[derive(Default)]
struct Tally {
    answered: u64,
    failed: u64,
    /// When the last was answered, or the first client began. `None` without clients.
    last: Option<Instant>,
    pause: Pause,
}

impl Tally {
    fn begin(&mut self) {
        self.last.get_or_insert_with(Instant::now);
    }

    /// Counts a request that was sent at `sent`, and hands its answer on.
    fn count<T>(&mut self, what: &str, sent: Instant, answer: Result<T, ClientError>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.answered += 1;
                self.pause = Pause {
                    longest_gap: self.pause.longest_gap.max(self.waiting()),
                    slowest: self.pause.slowest.max(sent.elapsed()),
                };
                self.last = Some(Instant::now());
                Some(answer)
            }
            Err(error) => {
                eprintln!("{what} failed after {} ms: {error}", sent.elapsed().as_millis());
                self.failed += 1;
                None
            }
        }
    }

    /// How long nothing has been answered.
    fn waiting(&self) -> Duration {
        self.last.map_or(Duration::ZERO, |last| last.elapsed())
    }

    /// The pauses so far, and begins anew. One that lasts on is counted as long as it has lasted, and goes on counting.
    fn pause(&mut self) -> Pause {
        let so_far = std::mem::take(&mut self.pause);
        Pause { longest_gap: so_far.longest_gap.max(self.waiting()), ..so_far }
    }
}

impl Load {
    /// Starts `clients` of them, each beginning at another node.
    pub fn start(cluster: &TestCluster, clients: u64) -> Self {
        Self::start_at(cluster, &super::ALL, clients, Duration::ZERO)
    }

    /// Starts `clients` of them, each beginning at another of `nodes` and resting for `rest` after each
    /// acknowledgement, so that a long test does not end with more keys than can be checked.
    pub fn start_at(cluster: &TestCluster, nodes: &[NodeId], clients: u64, rest: Duration) -> Self {
        Self::of(beginning_at_each(cluster, "importer", nodes).cycle().take(clients as usize), rest)
    }

    /// Starts one for each of `clients`.
    pub fn of(clients: impl IntoIterator<Item = Client>, rest: Duration) -> Self {
        let shared = Arc::new(Shared { next: AtomicU64::new(1), ..Shared::default() });
        let mut load = Self { shared: shared.clone(), clients: JoinSet::new(), readers: 0 };
        shared.tally(|all| &all.escrows).begin();
        for client in clients {
            load.clients.spawn(shared.clone().escrow(client, rest));
        }
        load
    }

    /// Has the keys that are escrowed from now on numbered from `first`, apart from those of another load.
    pub fn numbered_from(self, first: u64) -> Self {
        self.shared.next.fetch_max(first, Ordering::Relaxed);
        self
    }

    /// Adds readers that begin at each of `nodes`, whichever of them run.
    pub fn with_readers(self, cluster: &TestCluster, nodes: &[NodeId]) -> Self {
        self.with_readers_of(beginning_at_each(cluster, "helpdesk-advanced", nodes))
    }

    /// Adds, for each of `clients`, one reader that looks acknowledged keys up and one that reveals them. A key that is
    /// not there, or is another, ends the test; a request that ends with an error is counted.
    pub fn with_readers_of(mut self, clients: impl IntoIterator<Item = Client>) -> Self {
        self.shared.tally(|all| &all.lookups).begin();
        self.shared.tally(|all| &all.reveals).begin();
        for client in clients {
            self.clients.spawn(self.shared.clone().look_up(client.clone()));
            self.clients.spawn(self.shared.clone().reveal(client));
            self.readers += 1;
        }
        self
    }

    /// How long requests of each kind were held up since this was last asked, or since the start.
    pub fn pauses(&self) -> Each<Pause> {
        self.shared.each(Tally::pause)
    }

    /// Waits until `more` further keys have been acknowledged, and there was one further answer for each reader.
    pub async fn progress(&self, more: u64) {
        let answered = || self.shared.each(|tally| tally.answered);
        let (from, deadline) = (answered(), Instant::now() + SOON);
        loop {
            let now = answered();
            if now.escrows >= from.escrows + more
                && now.lookups >= from.lookups + self.readers
                && now.reveals >= from.reveals + self.readers
            {
                return;
            }
            assert!(Instant::now() < deadline, "no progress under load, from {from:?} to {now:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops them; what was acknowledged, and how many requests failed.
    pub async fn finish(mut self) -> (Vec<Kept>, Failed) {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client ran to its end");
        }
        eprintln!("answered: {:?}", self.shared.each(|tally| tally.answered));
        let acknowledged = std::mem::take(&mut *self.shared.acknowledged());
        (acknowledged, self.shared.each(|tally| tally.failed))
    }
}

/// Clients that prefer one of `nodes` each, and know them all.
fn beginning_at_each(
    cluster: &TestCluster,
    profile: &str,
    nodes: &[NodeId],
) -> impl Iterator<Item = Client> + Clone {
    (0..nodes.len()).map(move |turn| {
        let mut nodes = nodes.to_vec();
        nodes.rotate_left(turn);
        cluster.client(profile, &nodes)
    })
}

impl Shared {
    fn acknowledged(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.acknowledged.lock().expect("no panic under it")
    }

    fn tally(&self, which: impl Fn(&Each<Mutex<Tally>>) -> &Mutex<Tally>) -> MutexGuard<'_, Tally> {
        which(&self.tallies).lock().expect("no panic under it")
    }

    fn each<T>(&self, mut of: impl FnMut(&mut Tally) -> T) -> Each<T> {
        Each {
            escrows: of(&mut self.tally(|all| &all.escrows)),
            lookups: of(&mut self.tally(|all| &all.lookups)),
            reveals: of(&mut self.tally(|all| &all.reveals)),
        }
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    async fn escrow(self: Arc<Self>, client: Client, rest: Duration) {
        while self.goes_on() {
            let deposit = deposit(self.next.fetch_add(1, Ordering::Relaxed));
            let sent = Instant::now();
            let answer = client.escrow(&deposit).await;
            if let Some(receipt) = self.tally(|all| &all.escrows).count("an escrow", sent, answer) {
                self.acknowledged().push((deposit, receipt));
            }
            if !rest.is_zero() {
                tokio::time::sleep(rest).await;
            }
        }
    }

    /// In turns by a quorum read, which must see whatever was acknowledged, and by a local one, which must once the
    /// replica has applied the receipt's index.
    async fn look_up(self: Arc<Self>, client: Client) {
        let mut asked = 0;
        while self.goes_on() {
            if let Some((_, receipt)) = self.acknowledged_for(asked / 2) {
                let (consistency, label, min_index) = match asked % 2 {
                    0 => (Consistency::Quorum, "quorum", 0),
                    _ => (Consistency::Local, "local", receipt.index),
                };
                let request = FindRequest {
                    key_id_prefix: receipt.key_id.to_string(),
                    consistency: consistency.into(),
                    min_index,
                    ..FindRequest::default()
                };
                let sent = Instant::now();
                let answer = client.find(&request).await;
                let found = self.tally(|all| &all.lookups).count(&format!("a {label} lookup"), sent, answer);
                if let Some(found) = found {
                    let freshness = found.freshness.expect("said");
                    assert_eq!(freshness.consistency, label);
                    let found: Vec<_> = found.keys.into_iter().map(|key| key.fingerprint).collect();
                    let (key, node) = (receipt.key_id, freshness.node);
                    assert_eq!(
                        found,
                        [receipt.fingerprint.to_string()],
                        "key {key}, {label}, at node {node}"
                    );
                }
                asked += 1;
            }
            tokio::time::sleep(READ_REST).await;
        }
    }

    async fn reveal(self: Arc<Self>, client: Client) {
        let mut asked = 0;
        while self.goes_on() {
            if let Some((deposit, receipt)) = self.acknowledged_for(asked) {
                let sent = Instant::now();
                let answer = client.recover(receipt.key_id, "locked out", None).await;
                if let Some(recovered) = self.tally(|all| &all.reveals).count("a reveal", sent, answer) {
                    let (key, of) = (receipt.key_id, recovered.details.key_id);
                    assert!(
                        same(&recovered.secret, &deposit.secret),
                        "key {key}: shown as {of}, another secret"
                    );
                }
                asked += 1;
            }
            tokio::time::sleep(READ_REST).await;
        }
    }

    /// The key for a reader's request of this number: in turns the one acknowledged last, and one after the other from
    /// the first on. `None` as long as there is none.
    fn acknowledged_for(&self, asked: usize) -> Option<Kept> {
        let acknowledged = self.acknowledged();
        if asked.is_multiple_of(2) {
            return acknowledged.last().cloned();
        }
        acknowledged.get((asked / 2) % acknowledged.len().max(1)).cloned()
    }
}
