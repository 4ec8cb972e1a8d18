//! Clients at every node at the same time: they escrow, look up, reveal, and ask for what they may not see.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use strongroom::client::{Client, ClientError, Recovered};
use strongroom::escrow::ids::{KeyId, NodeId};
use strongroom::proto::{Consistency, FindRequest};
use tokio::task::JoinSet;

use crate::asked::{Asked, Attempt, Outcome};
use crate::common::trail::{consistency, entry_of};
use crate::common::*;

/// Longest a call may take: what hangs leaves time for more.
const CALL_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Between two requests of one client, at least; up to five times as much.
const REST_MS: u64 = 20;
/// How many keys there are before anything happens.
const KEYS: u64 = 4;
/// From the keys of one seed to those of the next, and from those of one node to those of the next.
const KEYS_PER_SEED: u64 = 10_000;
const KEYS_PER_NODE: u64 = 1_000;
/// Asks for any key by its id alone.
const ADVANCED: &str = "helpdesk-advanced";
/// Must name a user of the machine.
const HELPDESK: &str = "helpdesk";

/// The clients of one run.
pub struct Clients {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

struct Shared {
    seed: u64,
    stop: AtomicBool,
    asked: Mutex<Asked>,
}

impl Clients {
    /// Escrows some keys and starts clients at each node, and one that goes to whichever answers.
    pub async fn start(test: &TestCluster, seed: u64) -> Self {
        let shared = Arc::new(Shared { seed, stop: AtomicBool::new(false), asked: Mutex::default() });
        let importer = test.client("importer", &ALL);
        for n in 1..=KEYS {
            let deposit = deposit(seed * KEYS_PER_SEED + n);
            let receipt = importer.escrow(&deposit).await.expect("kept");
            shared.asked().kept.push((deposit, receipt));
        }
        test.cluster.wait_settled(&ALL).await.expect("all have it");
        let mut tasks = JoinSet::new();
        for node in ALL {
            let client =
                |profile: &str| test.cluster.client_within(profile, &[node], CALL_TIMEOUT).expect("a client");
            let chance = |kind: u64| Seeded::of(seed * 100 + node * 10 + kind);
            tasks.spawn(shared.clone().reveal(Some(node), client(ADVANCED), chance(0)));
            tasks.spawn(shared.clone().ask_in_vain(node, client(HELPDESK), chance(1)));
            tasks.spawn(shared.clone().escrow(node, client("importer"), chance(2)));
            tasks.spawn(shared.clone().look_up(client("auditor"), chance(3)));
        }
        let mut chance = Seeded::of(seed * 100);
        let mut order = ALL;
        order.rotate_left(chance.draw(3) as usize);
        tasks.spawn(shared.clone().reveal(None, test.client(ADVANCED, &order), chance));
        Self { shared, tasks }
    }

    /// Has them end, and answers what they asked.
    pub async fn finish(mut self) -> Asked {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a client ran to its end");
        }
        std::mem::take(&mut *self.shared.asked())
    }
}

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().expect("no panic under it")
    }

    async fn rest(&self, chance: &mut Seeded) -> bool {
        tokio::time::sleep(Duration::from_millis(REST_MS + chance.draw(4 * REST_MS))).await;
        !self.stop.load(Ordering::Relaxed)
    }

    /// One that was acknowledged, as often as not the last one.
    fn kept(&self, chance: &mut Seeded) -> Kept {
        let asked = self.asked();
        let which = match chance.draw(2) {
            0 => asked.kept.len() - 1,
            _ => chance.draw(asked.kept.len() as u64) as usize,
        };
        asked.kept[which].clone()
    }

    async fn reveal(self: Arc<Self>, at: Option<NodeId>, client: Client, mut chance: Seeded) {
        let who = at.map_or("anywhere".to_owned(), |node| format!("at node {node}"));
        for turn in 0.. {
            let (deposit, receipt) = self.kept(&mut chance);
            let reason = format!("seed {} {who} {turn}", self.seed);
            self.begin(&reason, ADVANCED, at, receipt.key_id);
            let answer = client.recover(receipt.key_id, &reason, None).await;
            if let Ok(recovered) = &answer {
                assert!(same(&recovered.secret, &deposit.secret), "{reason}: another secret");
            }
            self.end(&reason, answer);
            if !self.rest(&mut chance).await {
                return;
            }
        }
    }

    /// Names a user of another machine, or a key that is not kept.
    async fn ask_in_vain(self: Arc<Self>, node: NodeId, client: Client, mut chance: Seeded) {
        let another = r"CORP\somebody-else".parse().expect("a user");
        for turn in 0.. {
            let key = match chance.draw(3) {
                0 => key(self.seed * KEYS_PER_SEED),
                _ => self.kept(&mut chance).1.key_id,
            };
            let reason = format!("seed {} in vain at node {node} {turn}", self.seed);
            self.begin(&reason, HELPDESK, Some(node), key);
            let answer = client.recover(key, &reason, Some(&another)).await;
            assert!(answer.is_err(), "{reason}: shown");
            self.end(&reason, answer);
            if !self.rest(&mut chance).await {
                return;
            }
        }
    }

    /// Noted before it is asked: no record may come from nowhere.
    fn begin(&self, reason: &str, by: &'static str, at: Option<NodeId>, key: KeyId) {
        let attempt = Attempt { by, at, key, outcome: Outcome::Unknown };
        let before = self.asked().reveals.insert(reason.to_owned(), attempt);
        assert!(before.is_none(), "{reason} is given once");
    }

    fn end(&self, reason: &str, answer: Result<Recovered, ClientError>) {
        let outcome = match answer {
            Ok(recovered) => shown(reason, &recovered),
            Err(ClientError::Unavailable { .. } | ClientError::Temporary(_)) => Outcome::Unknown,
            Err(ClientError::Denied(answer)) if answer.to_string().contains("was not looked at") => {
                Outcome::NotLookedAt
            }
            Err(ClientError::Denied(_) | ClientError::NotFound(_)) => Outcome::Refused,
            Err(error) => panic!("{reason}: {error:?}"),
        };
        self.asked().reveals.get_mut(reason).expect("begun").outcome = outcome;
    }

    async fn escrow(self: Arc<Self>, node: NodeId, client: Client, mut chance: Seeded) {
        for n in 1.. {
            let deposit = deposit(self.seed * KEYS_PER_SEED + node * KEYS_PER_NODE + n);
            match client.escrow(&deposit).await {
                Ok(receipt) => self.asked().kept.push((deposit, receipt)),
                Err(ClientError::Unavailable { .. } | ClientError::Temporary(_)) => {}
                Err(error) => panic!("seed {}: an escrow at node {node}: {error:?}", self.seed),
            }
            if !self.rest(&mut chance).await {
                return;
            }
        }
    }

    /// In turns by a quorum read, which must see whatever was acknowledged before, and by a local one, which need not.
    async fn look_up(self: Arc<Self>, client: Client, mut chance: Seeded) {
        for turn in 0.. {
            let (_, receipt) = self.kept(&mut chance);
            let wants_quorum = turn % 2 == 0;
            // What was shown with a record is disclosed for everybody who asks a quorum from then on.
            let was_shown = self.asked().reveals.values().any(|attempt| {
                attempt.key == receipt.key_id && matches!(attempt.outcome, Outcome::Shown { .. })
            });
            let request = FindRequest {
                key_id_prefix: receipt.key_id.to_string(),
                consistency: if wants_quorum { Consistency::Quorum } else { Consistency::Local }.into(),
                ..FindRequest::default()
            };
            match client.find(&request).await {
                Ok(found) => {
                    let freshness = found.freshness.expect("said");
                    let label = if wants_quorum { "quorum" } else { "local" };
                    assert_eq!(freshness.consistency, label);
                    let fingerprints: Vec<_> = found.keys.iter().map(|key| &*key.fingerprint).collect();
                    let whose = format!("seed {}: {receipt:?} at node {}", self.seed, freshness.node);
                    if wants_quorum {
                        assert_eq!(fingerprints, [receipt.fingerprint.to_string()], "{whose}");
                        assert!(!was_shown || found.keys[0].state == "disclosed", "{whose}");
                        self.asked().lookups.0 += 1;
                    } else {
                        self.asked().lookups.1 += 1;
                    }
                }
                Err(ClientError::Unavailable { .. } | ClientError::Temporary(_)) => {}
                Err(error) => panic!("seed {}: a lookup: {error:?}", self.seed),
            }
            if !self.rest(&mut chance).await {
                return;
            }
        }
    }
}

fn shown(reason: &str, recovered: &Recovered) -> Outcome {
    let details = &recovered.details;
    let (sequence, entry) = (details.audit_sequence, details.journal_sequence);
    match (consistency(recovered), sequence > 0, entry > 0) {
        ("quorum", true, false) => Outcome::Shown { sequence },
        ("degraded", false, true) => Outcome::ShownAlone { entry: entry_of(recovered) },
        (label, ..) => panic!("{reason}: {label}, with record {sequence} and entry {entry} of a journal"),
    }
}
