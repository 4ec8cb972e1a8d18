//! Single escrows at a steady, low rate, each timed from when it was to begin: what waits behind a slow one counts as slow
//! as well.

use std::future::Future;
use std::time::Duration;

use hdrhistogram::Histogram;
use strongroom::client::{Client, Deposit};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::common::{ALL, TestCluster, deposit};

/// Between the beginnings of two escrows.
const EVERY: Duration = Duration::from_millis(10);
/// Times are kept to three digits, up to a minute: the client gives up before.
const DIGITS: u8 = 3;
const LONGEST_US: u64 = 60_000_000;

/// Escrows at that rate, by a client at each node in turns.
pub struct Steady {
    clients: Vec<Client>,
    next: u64,
}

/// How long escrows took, in microseconds.
pub struct Tally {
    times: Histogram<u64>,
    failed: u64,
}

impl Tally {
    pub fn new() -> Self {
        Self { times: Histogram::new_with_max(LONGEST_US, DIGITS).expect("fixed bounds"), failed: 0 }
    }

    /// Counts an escrow that has ended: `None` if it failed.
    fn count(&mut self, ended: Result<Option<Duration>, JoinError>) {
        match ended.expect("no escrow panics") {
            Some(took) => self.times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            None => self.failed += 1,
        }
    }

    pub fn show_header() {
        let every = format!("one escrow each {} ms, in ms", EVERY.as_millis());
        println!("{every:<36} {:>7} {:>6} {:>7} {:>7} {:>11}", "count", "failed", "p50", "p99", "p99/quiet");
    }

    pub fn show(&self, what: &str, quiet: &Self) {
        let ms = |tally: &Self, quantile| tally.times.value_at_quantile(quantile) as f64 / 1_000.0;
        let (count, failed, p50, p99) = (self.times.len(), self.failed, ms(self, 0.5), ms(self, 0.99));
        let ratio = p99 / ms(quiet, 0.99);
        println!("{what:<36} {count:>7} {failed:>6} {p50:>7.2} {p99:>7.2} {ratio:>11.2}");
    }
}

impl Steady {
    /// By clients that have their connections.
    pub async fn new(test: &TestCluster) -> Self {
        let clients = (0..ALL.len()).map(|turn| {
            let mut nodes = ALL;
            nodes.rotate_left(turn);
            test.client("importer", &nodes)
        });
        let mut steady = Self { clients: clients.collect(), next: 0 };
        for _ in ALL {
            let (client, deposit) = steady.turn();
            client.escrow(&deposit).await.expect("kept");
        }
        steady
    }

    /// Escrows for as long as `step` takes, and counts in `tally` all that began meanwhile.
    pub async fn during<T>(&mut self, tally: &mut Tally, step: impl Future<Output = T>) -> T {
        let mut step = std::pin::pin!(step);
        let mut under_way = JoinSet::new();
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let done = loop {
            tokio::select! {
                done = &mut step => break done,
                intended = ticks.tick() => {
                    let (client, deposit) = self.turn();
                    under_way.spawn(escrow(client, deposit, intended));
                }
                Some(ended) = under_way.join_next() => tally.count(ended),
            }
        };
        while let Some(ended) = under_way.join_next().await {
            tally.count(ended);
        }
        done
    }

    /// A client and a key of a new machine.
    fn turn(&mut self) -> (Client, Deposit) {
        let number = self.next;
        self.next += 1;
        let client = self.clients[number as usize % self.clients.len()].clone();
        let machine = format!("STEADY-{number}").parse().expect("a machine id");
        (client, Deposit { machine, ..deposit(number) })
    }
}

async fn escrow(client: Client, deposit: Deposit, intended: Instant) -> Option<Duration> {
    client.escrow(&deposit).await.ok().map(|_| intended.elapsed())
}
