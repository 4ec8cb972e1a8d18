//! The closed loop that everything is driven with: a client sends its next request when its last one is answered.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::meter::{Meter, Used};

/// Most clients at once.
pub const CLIENTS_MAX: usize = 1_024;
/// Times are kept to three digits, up to a minute: whoever waits gives up before.
const DIGITS: u8 = 3;
const LONGEST_US: u64 = 60_000_000;

/// A client with a connection of its own.
pub trait Client: Send + 'static {
    /// Makes one request and waits for its answer.
    fn request(&mut self) -> impl Future<Output = Result<(), String>> + Send;
}

/// What came of it.
pub struct Run {
    /// How long answered requests took, in microseconds.
    pub times: Histogram<u64>,
    pub failed: u64,
    pub first_failure: Option<String>,
    /// From the first request to the last answer.
    pub took: Duration,
    pub used: Used,
}

impl Run {
    pub fn new() -> Self {
        let times = Histogram::new_with_max(LONGEST_US, DIGITS).expect("fixed bounds");
        Self { times, failed: 0, first_failure: None, took: Duration::ZERO, used: Used::default() }
    }

    pub fn answered(&mut self, took: Duration) {
        self.times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    fn failed(&mut self, failure: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(failure);
    }

    fn add(&mut self, other: Self) {
        self.times.add(other.times).expect("equal bounds");
        self.failed += other.failed;
        self.first_failure = self.first_failure.take().or(other.first_failure);
    }
}

/// Lets all clients make requests for some time. Each has made one before that, which is not counted: it is connected.
pub async fn closed_loop<C: Client>(clients: Vec<C>, time: Duration, meter: &Meter) -> Run {
    let clients = connected(clients).await;
    let start = Arc::new(Barrier::new(clients.len() + 1));
    let mut running = JoinSet::new();
    for client in clients {
        running.spawn(one(client, time, start.clone()));
    }
    let before = meter.read();
    start.wait().await;
    let (began, mut total) = (Instant::now(), Run::new());
    while let Some(ended) = running.join_next().await {
        total.add(ended.expect("no client panics"));
    }
    total.took = began.elapsed();
    total.used = meter.since(&before);
    total
}

async fn connected<C: Client>(clients: Vec<C>) -> Vec<C> {
    let mut connecting = JoinSet::new();
    for mut client in clients {
        connecting.spawn(async move {
            client.request().await.expect("a first request is answered");
            client
        });
    }
    connecting.join_all().await
}

async fn one<C: Client>(mut client: C, time: Duration, start: Arc<Barrier>) -> Run {
    let mut run = Run::new();
    start.wait().await;
    let until = Instant::now() + time;
    while Instant::now() < until {
        let sent = Instant::now();
        match client.request().await {
            Ok(()) => run.answered(sent.elapsed()),
            Err(failure) => run.failed(failure),
        }
    }
    run
}
