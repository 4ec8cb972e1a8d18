//! Clients at every node at the same time: they escrow, look keys up in the node's replica and by a quorum, and reveal
//! them. All that they do and are told goes on record.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use strongroom::client::{Client, ClientError, Recovered};
use strongroom::escrow::ids::NodeId;
use strongroom::proto::{Consistency, FindRequest, FindResponse};
use strongroom::rpc::status::DEGRADED_KEY;
use tokio::task::JoinSet;

use crate::common::trail::consistency;
use crate::common::*;
use crate::history::{Seen, Told};
use crate::record::{CutOff, LocalRead, Record, Reveal};

/// Longest a call may take: what hangs leaves time for more.
const CALL_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Between two requests of one client, at least; up to five times as much.
const REST_MS: u64 = 10;
/// From the keys of one seed to those of the next.
const KEYS_PER_SEED: u64 = 100_000;
/// How many questions at once a node is asked that was paused.
const AT_ONCE: usize = 4;

/// What the clients of one plan have in common.
pub struct Clients {
    seed: u64,
    stop: AtomicBool,
    /// The number of the last key that was begun.
    last: AtomicU64,
    record: Mutex<Record>,
    cut_off: Mutex<CutOff>,
}

/// Clients at a node, or at whichever of several answers first.
#[derive(Clone)]
pub struct At {
    pub nodes: Vec<NodeId>,
    importer: Client,
    auditor: Client,
    desk: Client,
}

impl At {
    pub fn of(test: &TestCluster, nodes: &[NodeId]) -> Self {
        let client =
            |profile: &str| test.cluster.client_within(profile, nodes, CALL_TIMEOUT).expect("a client");
        Self {
            nodes: nodes.to_vec(),
            importer: client("importer"),
            auditor: client("auditor"),
            desk: client("helpdesk-advanced"),
        }
    }
}

impl Clients {
    pub fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            seed,
            stop: AtomicBool::new(false),
            last: AtomicU64::new(seed * KEYS_PER_SEED),
            record: Mutex::default(),
            cut_off: Mutex::default(),
        })
    }

    /// Starts clients at each of `nodes`.
    pub fn start(self: &Arc<Self>, test: &TestCluster, nodes: &[NodeId]) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for node in nodes {
            let at = At::of(test, &[*node]);
            let chance = |kind: u64| Seeded::of((self.seed * 10 + node) * 10 + kind);
            tasks.spawn(self.clone().escrow_on(at.clone(), chance(1)));
            tasks.spawn(self.clone().read_on(at.clone(), chance(2)));
            tasks.spawn(self.clone().reveal_on(at, chance(3)));
        }
        tasks
    }

    /// Has them end.
    pub async fn finish(&self, mut tasks: JoinSet<()>) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = tasks.join_next().await {
            ended.expect("a client ran to its end");
        }
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no panic under it")
    }

    pub fn cut_off(&self) -> MutexGuard<'_, CutOff> {
        self.cut_off.lock().expect("no panic under it")
    }

    async fn rest(&self, chance: &mut Seeded) -> bool {
        tokio::time::sleep(Duration::from_millis(REST_MS + chance.draw(4 * REST_MS))).await;
        !self.stop.load(Ordering::Relaxed)
    }

    /// The number of a key that nobody has begun to escrow.
    pub fn a_new_key(&self) -> u64 {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The number of a key that somebody has begun to escrow, often the last one; sometimes of the next to come.
    fn a_key(&self, chance: &mut Seeded) -> u64 {
        let begun = self.record().begun().len() as u64;
        match chance.draw(8) {
            0 => self.last.load(Ordering::Relaxed) + 1,
            _ if begun == 0 => self.last.load(Ordering::Relaxed) + 1,
            1..=4 => self.record().begun()[begun as usize - 1].0,
            _ => self.record().begun()[chance.draw(begun) as usize].0,
        }
    }

    async fn escrow_on(self: Arc<Self>, at: At, mut chance: Seeded) {
        loop {
            let n = match chance.draw(6) {
                // Another client's, whose answer may not have come yet.
                0 => self.a_key(&mut chance).min(self.last.load(Ordering::Relaxed)),
                _ => self.a_new_key(),
            };
            if n > self.seed * KEYS_PER_SEED {
                self.escrow(&at, n).await;
            }
            if !self.rest(&mut chance).await {
                return;
            }
        }
    }

    /// Escrows key `n` at a node. Whether it was acknowledged.
    pub async fn escrow(&self, at: &At, n: u64) -> bool {
        let deposit = deposit(n);
        self.record().begin(n);
        let called = Instant::now();
        let answer = at.importer.escrow(&deposit).await;
        let mut record = self.record();
        match answer {
            Ok(receipt) => {
                record.add(key(n), called, Told::Kept { before: receipt.already_escrowed });
                record.keep((deposit, receipt));
                true
            }
            Err(error) if is_silence(&error) => {
                record.add(key(n), called, Told::MaybeKept);
                false
            }
            Err(error) => panic!("seed {}: an escrow at {:?}: {error:?}", self.seed, at.nodes),
        }
    }

    async fn read_on(self: Arc<Self>, at: At, mut chance: Seeded) {
        loop {
            let n = self.a_key(&mut chance);
            match chance.draw(4) {
                0 | 1 => drop(self.read_by_quorum(&at, n).await),
                2 => self.read_locally(&at, n, 0).await,
                _ => {
                    let kept = self.record().kept().last().map(|(_, receipt)| receipt.index);
                    self.read_locally(&at, n, kept.unwrap_or(0)).await;
                }
            }
            if !self.rest(&mut chance).await {
                return;
            }
        }
    }

    /// What a quorum knows of key `n`; `None` without an answer.
    pub async fn read_by_quorum(&self, at: &At, n: u64) -> Option<Seen> {
        let (called, known) = (Instant::now(), self.record().known());
        let found = self.find(at, n, Consistency::Quorum, 0).await?;
        let freshness = found.freshness.as_ref().expect("said");
        assert!(freshness.consistency == "quorum" && at.nodes.contains(&freshness.node), "{freshness:?}");
        assert!(freshness.applied >= known, "seed {}: older than entry {known}: {freshness:?}", self.seed);
        let mut record = self.record();
        let seen = record.seen(key(n), &found);
        record.add(key(n), called, Told::Found(seen));
        Some(seen)
    }

    async fn read_locally(&self, at: &At, n: u64, min_index: u64) {
        let since = || self.cut_off().get(&at.nodes[0]).copied();
        let (cut, called) = (since(), Instant::now());
        let Some(found) = self.find(at, n, Consistency::Local, min_index).await else { return };
        // Cut off all the while, and not healed and cut again meanwhile.
        let cut_off = cut.filter(|_| cut == since()).map(|cut| called - cut);
        let freshness = found.freshness.clone().expect("said");
        assert!(freshness.consistency == "local" && at.nodes == [freshness.node], "{freshness:?}");
        let mut record = self.record();
        let seen = record.seen(key(n), &found);
        let answered = Instant::now();
        let read = LocalRead { key: key(n), answered, min_index, cut_off, seen, freshness };
        record.read_locally(read);
    }

    async fn find(&self, at: &At, n: u64, how: Consistency, min_index: u64) -> Option<FindResponse> {
        let request = FindRequest {
            key_id_prefix: key(n).to_string(),
            consistency: how.into(),
            min_index,
            ..FindRequest::default()
        };
        match at.auditor.find(&request).await {
            Ok(found) => Some(found),
            Err(error) if is_silence(&error) => None,
            Err(error) => panic!("seed {}: a lookup at {:?}: {error:?}", self.seed, at.nodes),
        }
    }

    /// Asks a node, the moment it goes on after a pause, for what the others may have moved on from.
    pub async fn ask_at_once(&self, at: &At) {
        let begun: Vec<u64> = self.record().begun().iter().rev().map(|(n, _)| *n).collect();
        let asked = begun.into_iter().take(AT_ONCE).map(|n| self.read_by_quorum(at, n));
        futures_util::future::join_all(asked).await;
    }

    async fn reveal_on(self: Arc<Self>, at: At, mut chance: Seeded) {
        for turn in 0.. {
            // Of keys that are kept, as a rule: who asks for others too often is not looked at any more.
            let kept = self.record().kept().len() as u64;
            let n = match chance.draw(20) {
                0 => Some(self.a_key(&mut chance)),
                _ if kept == 0 => None,
                _ => {
                    let latest = kept - 1 - chance.draw(kept).min(chance.draw(kept));
                    let receipt = self.record().kept()[latest as usize].1.clone();
                    self.record().begun().iter().map(|(n, _)| *n).find(|n| key(*n) == receipt.key_id)
                }
            };
            if let Some(n) = n {
                self.reveal(&at, n, &format!("seed {} at {:?} {turn}", self.seed, at.nodes)).await;
            }
            if !self.rest(&mut chance).await || !self.rest(&mut chance).await {
                return;
            }
        }
    }

    /// Reveals key `n` at a node. Whether it was shown.
    pub async fn reveal(&self, at: &At, n: u64, reason: &str) -> bool {
        self.record().ask(reason);
        let called = Instant::now();
        let answer = at.desk.recover(key(n), reason, None).await;
        let mut record = self.record();
        let (told, how) = match &answer {
            Ok(recovered) => {
                assert!(same(&recovered.secret, &deposit(n).secret), "{reason}: another secret");
                let begun = record.begun().iter().any(|(begun, _)| *begun == n);
                assert!(begun, "{reason}: nobody has escrowed it");
                shown(reason, recovered)
            }
            Err(error) => not_shown(reason, error),
        };
        if let (Told::Shown, Ok(recovered)) = (told, &answer) {
            let receipt = recovered.receipt.as_ref().expect("a receipt");
            record.disclose(key(n), receipt.index);
        }
        record.add(key(n), called, told);
        record.end(reason, how);
        answer.is_ok()
    }
}

fn shown(reason: &str, recovered: &Recovered) -> (Told, Reveal) {
    let details = &recovered.details;
    match (consistency(recovered), details.audit_sequence > 0, details.journal_sequence > 0) {
        ("quorum", true, false) => (Told::Shown, Reveal::Shown),
        ("degraded", false, true) => (Told::MaybeShown, Reveal::ShownAlone),
        (label, record, entry) => panic!("{reason}: {label}, on record {record}, in a journal {entry}"),
    }
}

fn not_shown(reason: &str, error: &ClientError) -> (Told, Reveal) {
    match error {
        // Denied by one node alone: what it had proposed before may still be committed.
        ClientError::NotFound(answer) | ClientError::Denied(answer)
            if answer.status.metadata().contains_key(DEGRADED_KEY) =>
        {
            (Told::MaybeShown, Reveal::Unknown)
        }
        ClientError::Denied(answer) if answer.to_string().contains("was not looked at") => {
            (Told::MaybeShown, Reveal::Unknown)
        }
        ClientError::NotFound(_) => (Told::NotThere, Reveal::Denied),
        error if is_silence(error) => (Told::MaybeShown, Reveal::Unknown),
        error => panic!("{reason}: {error:?}"),
    }
}

/// Whether this is no answer, by a node that could not be asked, or that takes nobody's certificate by what its clock shows.
pub fn is_silence(error: &ClientError) -> bool {
    match error {
        ClientError::Unavailable { .. } | ClientError::Temporary(_) => true,
        ClientError::Refused { reason, .. } => reason.contains("by the other side's clock"),
        _ => false,
    }
}
