//! `strongroom bench`: closed-loop load. Every client has its own connection and sends the next request when the
//! last one is answered, so the rate is what the cluster sustains, not what was asked of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::output::facts;
use super::{Exit, Failure, Global, Printer, sample};
use crate::client::{Client, Deposit, Preference};
use crate::escrow::ids::KeyId;
use crate::escrow::secrets::SecretKind;

/// Most clients of one run.
const CLIENTS_MAX: i64 = 4_096;
/// Longest run, in seconds.
const SECONDS_MAX: i64 = 86_400;
/// Latencies are kept to three digits, up to an hour.
const LATENCY_DIGITS: u8 = 3;
const LATENCY_MAX_MICROSECONDS: u64 = 3_600_000_000;

/// Measure a cluster under load.
#[derive(Debug, Args)]
pub(super) struct BenchCommand {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Escrow new keys of new machines (role importer). They stay in the cluster.
    Escrow(LoadArgs),
    /// Recover keys again and again (role helpdesk-advanced). Every reveal stays in the audit trail.
    Recover(RecoverArgs),
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// How many clients at once, spread over the endpoints.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=CLIENTS_MAX))]
    clients: u32,
    /// For how long.
    #[arg(long, default_value_t = 10, value_name = "S", value_parser = clap::value_parser!(u32).range(1..=SECONDS_MAX))]
    seconds: u32,
}

#[derive(Debug, Args)]
struct RecoverArgs {
    #[command(flatten)]
    load: LoadArgs,
    /// A key to recover; several take turns.
    #[arg(long = "key-id", value_name = "UUID", required = true)]
    key_ids: Vec<KeyId>,
}

/// One request of a client: the number of the client and the count of its requests so far.
#[derive(Debug, Clone)]
enum Operation {
    Escrow { run: Arc<str> },
    Recover { key_ids: Arc<[KeyId]> },
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measurement {
    clients: u32,
    seconds: f64,
    operations: u64,
    errors: u64,
    per_second: f64,
    latency_ms: Latency,
}

#[derive(Debug, Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl BenchCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let (load, operation) = match self.load {
            Load::Escrow(load) => {
                let run = Uuid::new_v4().simple().to_string();
                (load, Operation::Escrow { run: run.into() })
            }
            Load::Recover(RecoverArgs { load, key_ids }) => {
                (load, Operation::Recover { key_ids: key_ids.into() })
            }
        };
        let measurement = measure(&load, &operation, global, printer).await?;
        printer.result(&measurement, || text(&measurement))
    }
}

async fn measure(
    load: &LoadArgs,
    operation: &Operation,
    global: &Global,
    printer: Printer,
) -> Result<Measurement, Failure> {
    let clients = connect(load.clients, operation, global).await?;
    printer.note(&format!("{} clients for {} s", load.clients, load.seconds));
    let started = Instant::now();
    let until = started + Duration::from_secs(load.seconds.into());
    let mut running = JoinSet::new();
    for (number, client) in clients.into_iter().enumerate() {
        running.spawn(closed_loop(client, number, operation.clone(), until));
    }
    let mut total = Tally::new()?;
    while let Some(tally) = running.join_next().await {
        total.add(tally.map_err(|error| Failure::new(Exit::Failed, format!("a client ended: {error}")))??)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let operations = total.latencies.len();
    if let Some(failure) = total.first_error {
        if operations == 0 {
            return Err(failure);
        }
        printer.note(&format!("{} errors; the first: {failure}", total.errors));
    }
    Ok(Measurement {
        clients: load.clients,
        seconds,
        operations,
        errors: total.errors,
        per_second: operations as f64 / seconds,
        latency_ms: Latency::of(&total.latencies),
    })
}

/// Clients that are connected, each to the endpoint that is its turn: a request of each, which is not counted, has
/// succeeded.
async fn connect(count: u32, operation: &Operation, global: &Global) -> Result<Vec<Client>, Failure> {
    let mut clients = Vec::new();
    let mut connecting = JoinSet::new();
    for number in 0..count as usize {
        let mut endpoints = global.endpoints.clone();
        let turn = number % endpoints.len().max(1);
        endpoints.rotate_left(turn);
        let client = global.client_preferring(Preference::AsGiven, endpoints)?;
        clients.push(client.clone());
        let operation = operation.clone();
        connecting.spawn(async move { operation.perform(&client, number, 0).await });
    }
    while let Some(connected) = connecting.join_next().await {
        connected.map_err(|error| Failure::new(Exit::Failed, format!("a client ended: {error}")))??;
    }
    Ok(clients)
}

async fn closed_loop(
    client: Client,
    number: usize,
    operation: Operation,
    until: Instant,
) -> Result<Tally, Failure> {
    let mut tally = Tally::new()?;
    let mut count = 0;
    while Instant::now() < until {
        count += 1;
        let sent = Instant::now();
        match operation.perform(&client, number, count).await {
            Ok(()) => tally.answered(sent.elapsed()),
            Err(failure) => tally.failed(failure),
        }
    }
    Ok(tally)
}

impl Operation {
    async fn perform(&self, client: &Client, number: usize, count: u64) -> Result<(), Failure> {
        match self {
            Self::Escrow { run } => {
                let kind = SecretKind::BitlockerPassword;
                let secret = sample::secret(kind)
                    .map_err(|_| Failure::new(Exit::Failed, "the system gives no randomness"))?;
                let machine = format!("bench-{run}-{number}-{count}").parse()?;
                let (volume, key_id) = ("C:".parse()?, Some(KeyId(Uuid::new_v4())));
                let deposit = Deposit {
                    machine,
                    volume,
                    kind,
                    key_id,
                    secret,
                    package: None,
                    user: None,
                    pending: false,
                };
                client.escrow(&deposit).await?;
            }
            Self::Recover { key_ids } => {
                let turn = usize::try_from(count).unwrap_or(0).wrapping_add(number) % key_ids.len().max(1);
                if let Some(key_id) = key_ids.get(turn) {
                    client.recover(*key_id, "load test", None).await?;
                }
            }
        }
        Ok(())
    }
}

/// What one client, or all of them, saw.
struct Tally {
    latencies: Histogram<u64>,
    errors: u64,
    first_error: Option<Failure>,
}

impl Tally {
    fn new() -> Result<Self, Failure> {
        let latencies = Histogram::new_with_max(LATENCY_MAX_MICROSECONDS, LATENCY_DIGITS)
            .map_err(|error| Failure::new(Exit::Failed, format!("setting up the measurement: {error}")))?;
        Ok(Self { latencies, errors: 0, first_error: None })
    }

    fn answered(&mut self, latency: Duration) {
        self.latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    fn failed(&mut self, failure: Failure) {
        self.errors += 1;
        self.first_error.get_or_insert(failure);
    }

    fn add(&mut self, other: Self) -> Result<(), Failure> {
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies
            .add(&other.latencies)
            .map_err(|error| Failure::new(Exit::Failed, format!("adding measurements up: {error}")))
    }
}

impl Latency {
    fn of(latencies: &Histogram<u64>) -> Self {
        let ms = |microseconds: u64| microseconds as f64 / 1_000.0;
        let quantile = |quantile| ms(latencies.value_at_quantile(quantile));
        Self {
            mean: latencies.mean() / 1_000.0,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            max: ms(latencies.max()),
        }
    }
}

fn text(measurement: &Measurement) -> String {
    let Measurement { clients, seconds, operations, errors, per_second, latency_ms } = measurement;
    let ms = |value: f64| format!("{value:.2} ms");
    facts(&[
        ("clients", clients.to_string()),
        ("seconds", format!("{seconds:.1}")),
        ("operations", operations.to_string()),
        ("errors", errors.to_string()),
        ("per second", format!("{per_second:.0}")),
        ("mean", ms(latency_ms.mean)),
        ("p50", ms(latency_ms.p50)),
        ("p90", ms(latency_ms.p90)),
        ("p99", ms(latency_ms.p99)),
        ("max", ms(latency_ms.max)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_add_up_and_percentiles_are_milliseconds() {
        let mut total = Tally::new().unwrap();
        for half in [1..=50, 51..=100] {
            let mut tally = Tally::new().unwrap();
            half.for_each(|ms| tally.answered(Duration::from_millis(ms)));
            tally.failed(Failure::new(Exit::Unavailable, "x"));
            total.add(tally).unwrap();
        }
        assert_eq!((total.latencies.len(), total.errors), (100, 2));
        let latency = Latency::of(&total.latencies);
        assert!((latency.p50 - 50.0).abs() < 0.1, "{latency:?}");
        assert!((latency.p99 - 99.0).abs() < 0.1, "{latency:?}");
        assert!((latency.max - 100.0).abs() < 0.1, "{latency:?}");
    }
}
