//! What is measured of ours alone: lookups, reveals, bulk imports, restarts, failovers, and escrows while snapshots are
//! written.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::stream;
use strongroom::client::{BulkAnswer, ClientError};
use strongroom::escrow::ids::NodeId;
use strongroom::proto::{Consistency, FindRequest};

use crate::common::{ALL, SOON, TestCluster};
use crate::disk::Disk;
use crate::figures::{Figures, OURS, Table, median};
use crate::keys::key;
use crate::load::{Client, closed_loop};
use crate::meter::Meter;
use crate::ours::Ours;
use crate::payload::deposit;
use crate::restart::{Started, start};
use crate::steady::{Steady, Tally};
use crate::{running, snapshots};

/// Clients that look up or reveal.
const CLIENTS: usize = 64;
/// From one key that is asked for to the next one.
const STRIDE: u64 = 7_919;
/// Keys handed to an import at once.
const STREAM: u64 = 16_384;
/// Keys that are escrowed while a node is away.
const MISSED: u64 = 20_000;
/// How often a leader is killed.
const FAILOVERS: usize = 5;
/// As little log calls for a snapshot as may be set, so that there are some.
const SNAPSHOTS_OFTEN: &str = "[raft]\nsnapshot_log_bytes = 1048576\n";
/// For how long escrows are measured on a quiet cluster: a hundred a second of them.
const QUIET: Duration = Duration::from_secs(20);
/// For how long escrows are measured while snapshots are written, in as many turns as that takes, within a bound.
const WRITING: Duration = Duration::from_secs(10);
const TURNS_MAX: u64 = 20;
/// When the documents that fill the log are of: they begin a day ago, and those of each turn are newer by an hour.
const BEFORE_MS: u64 = 24 * TURN_MS;
const TURN_MS: u64 = 60 * 60 * 1_000;

/// Measures all but snapshots, and prints it.
pub async fn measure(mut ours: Ours, time: Duration, rounds: u64, table: &Table) {
    println!("\n| of ours alone | a second | p50 ms | p99 ms | a CPU second of the nodes | failed |");
    println!("|---|--:|--:|--:|--:|--:|");
    let keys = ours.escrows.load(Ordering::Relaxed);
    let (mut lookups, mut reveals) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let clients = readers(&ours).await.map(|(client, next)| Lookup { client, keys, next });
        lookups.push(driven(&ours, clients.collect(), time).await);
        let clients = readers(&ours).await.map(|(client, next)| Reveal { client, keys, next });
        reveals.push(driven(&ours, clients.collect(), time).await);
    }
    show(&format!("lookups, local, {CLIENTS} clients"), &lookups);
    show(&format!("reveals, {CLIENTS} clients"), &reveals);
    println!();
    import_rate(&ours, time, rounds, table).await;
    show_restart(&mut ours).await;
    show_failovers(&mut ours).await;
}

/// Clients that may see keys, each with the number of the first key that it asks for.
async fn readers(ours: &Ours) -> impl Iterator<Item = (strongroom::client::Client, u64)> {
    ours.connections("helpdesk-advanced", CLIENTS).await.into_iter().zip(0..)
}

async fn driven<C: Client>(ours: &Ours, clients: Vec<C>, time: Duration) -> Figures {
    let run = closed_loop(clients, time, &Meter::new(ours.pids(), None)).await;
    if let Some(failure) = &run.first_failure {
        eprintln!("{OURS}: {} failed; the first: {failure}", run.failed);
    }
    Figures::of(&run)
}

fn show(what: &str, runs: &[Figures]) {
    let Some(Figures { rate, p50, p99, cpu, failed, .. }) = Figures::median(runs) else { return };
    let per_cpu_second = 1_000.0 / cpu.unwrap_or(f64::NAN);
    println!("| {what} | {rate:.0} | {p50:.2} | {p99:.2} | {per_cpu_second:.0} | {failed} |");
}

/// Looks up one key after the other on the node that it is connected to, as far as that has got.
struct Lookup {
    client: strongroom::client::Client,
    /// How many there are, and the number of the next one.
    keys: u64,
    next: u64,
}

impl Client for Lookup {
    async fn request(&mut self) -> Result<(), String> {
        let key_id = key(self.next % self.keys, 0);
        self.next += STRIDE;
        let request = FindRequest {
            key_id_prefix: key_id.to_string(),
            consistency: Consistency::Local.into(),
            ..FindRequest::default()
        };
        let found = self.client.find(&request).await.map_err(|error| error.to_string())?;
        if found.keys.len() == 1 { Ok(()) } else { Err(format!("key {key_id} is not found")) }
    }
}

/// Reveals one key after the other; a quorum has each on record before it is shown.
struct Reveal {
    client: strongroom::client::Client,
    keys: u64,
    next: u64,
}

impl Client for Reveal {
    async fn request(&mut self) -> Result<(), String> {
        let key_id = key(self.next % self.keys, 0);
        self.next += STRIDE;
        let recovered = self.client.recover(key_id, "load test", None).await;
        recovered.map(drop).map_err(|error| error.to_string())
    }
}

/// Imports for some time in each round; prints the median rate, and how many times that of single escrows it is.
async fn import_rate(ours: &Ours, time: Duration, rounds: u64, table: &Table) {
    let mut rates = Vec::new();
    for _ in 0..rounds {
        let (began, mut count) = (Instant::now(), 0);
        while began.elapsed() < time {
            count += import(&ours.test, ours.escrows.fetch_add(STREAM, Ordering::Relaxed), STREAM).await;
        }
        rates.push(count as f64 / began.elapsed().as_secs_f64());
    }
    let rate = median(rates).unwrap_or(f64::NAN);
    let times = table.clients().into_iter().filter_map(|clients| {
        let single = table.median(clients, OURS)?.rate;
        Some(format!("{:.1} times that of {clients} clients", rate / single))
    });
    println!(
        "- bulk import, one importer: {rate:.0} keys a second; {}",
        times.collect::<Vec<_>>().join(", ")
    );
}

/// Imports keys from number `first` on; again, which is safe, if the cluster does not take them in time. Says how many.
async fn import(test: &TestCluster, first: u64, count: u64) -> u64 {
    let client = test.client("importer", &ALL);
    loop {
        let mut kept = 0;
        let all = stream::iter((first..first + count).map(|n| ((), deposit(n))));
        let answered = |(), answer| {
            assert!(matches!(answer, BulkAnswer::Kept(_)), "{answer:?}");
            kept += 1;
        };
        match client.escrow_many(all, answered).await {
            Ok(()) => return kept,
            Err(error @ ClientError::Unavailable { .. }) => eprintln!("imported again: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Kills a node that leads nothing and starts it again when more keys have come.
async fn show_restart(ours: &mut Ours) {
    let leader = ours.test.leader().await;
    let node = *ALL.iter().find(|node| **node != leader).expect("there are three");
    ours.test.cluster.kill(node).await.expect("killed");
    let first = ours.escrows.fetch_add(MISSED, Ordering::Relaxed);
    import(&ours.test, first, MISSED).await;
    let Started { answers, ready, caught_up } = start(&mut ours.test, node).await;
    let [answers, ready, caught_up] = [answers, ready, caught_up].map(|took| took.as_secs_f64());
    println!(
        "- restart after kill -9, {} keys kept, {MISSED} of them missed: answers after {answers:.2} s, \
         ready after {ready:.2} s, caught up after {caught_up:.2} s",
        first + MISSED,
    );
}

/// Kills whoever leads, again and again, each time with an escrow that begins then at another node.
async fn show_failovers(ours: &mut Ours) {
    let mut took = Vec::new();
    for _ in 0..FAILOVERS {
        ours.test.cluster.wait_settled(&ALL).await.expect("settled");
        let leader = ours.test.leader().await;
        let others: Vec<NodeId> = ALL.into_iter().filter(|node| *node != leader).collect();
        let client = ours.test.client("importer", &others);
        let next = || deposit(ours.escrows.fetch_add(1, Ordering::Relaxed));
        client.escrow(&next()).await.expect("kept");
        let began = Instant::now();
        ours.test.cluster.kill(leader).await.expect("killed");
        let deposit = next();
        while client.escrow(&deposit).await.is_err() {
            assert!(began.elapsed() < SOON, "no escrow succeeds");
        }
        took.push(began.elapsed().as_secs_f64());
        ours.test.cluster.start(leader).await.expect("it comes back");
    }
    let longest = took.iter().copied().fold(0.0, f64::max);
    let median = median(took).unwrap_or(f64::NAN);
    println!(
        "- leader killed {FAILOVERS} times: an escrow succeeds after {median:.2} s, at most {longest:.2} s"
    );
}

/// Measures escrows while snapshots of so many machines are written, and prints it.
pub async fn snapshots_under_load(disk: &Disk, machines: u64) {
    let ours = Ours::start(disk.directory(), SNAPSHOTS_OFTEN).await;
    let test = &ours.test;
    running::takes_compliance(test).await;
    import(test, 0, machines).await;
    test.cluster.wait_settled(&ALL).await.expect("settled");

    let mut steady = Steady::new(test).await;
    let [mut quiet, mut writing] = [(); 2].map(|()| Tally::new());
    steady.during(&mut quiet, tokio::time::sleep(QUIET)).await;
    let beginning = running::now_ms() - BEFORE_MS;
    let (mut took, mut turn) = (Duration::ZERO, 0);
    while took < WRITING && turn < TURNS_MAX {
        took += snapshots::written(test, &mut steady, &mut writing, beginning + turn * TURN_MS).await;
        turn += 1;
    }
    println!("\n```text");
    Tally::show_header();
    quiet.show(&format!("quiet, {machines} keys kept"), &quiet);
    let what = format!("{turn} snapshots of each ({:.1} s)", took.as_secs_f64());
    writing.show(&what, &quiet);
    println!("```");
}
