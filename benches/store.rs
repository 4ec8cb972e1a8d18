//! The store alone: append with real fsync, apply, drain, lookup. Compare ratios, never times of different machines.

#[path = "shared/cluster.rs"]
mod cluster;

use std::hint::black_box;
use std::time::{Duration, Instant};

use cluster::initialize;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use strongroom::escrow::command::{Action, Command, Escrow};
use strongroom::escrow::ids::{Identity, KeyId, RequestId, Role, Timestamp};
use strongroom::escrow::lookup;
use strongroom::escrow::records::{Fingerprint, LogPosition, Sealed, Source};
use strongroom::escrow::secrets::SecretKind;
use strongroom::store::format::{self, Payload};
use strongroom::store::log::{Log, LogOptions};
use strongroom::store::machine::{Machine, MachineOptions};
use strongroom::store::snapshot::Snapshots;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// Bytes of an escrow in the log.
const ENTRY_BYTES: usize = 400;
/// Keys in the base before lookups are measured.
const KEYS: u64 = 50_000;
/// Keys drained at once.
const DRAINED: u64 = 1_000;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// In the working directory, because the temporary one is often in memory.
fn directory() -> TempDir {
    tempfile::tempdir_in(".").expect("the working directory can be written")
}

/// Appends `count` entries with at most `in_flight` waiting for the disk.
async fn append(log: &Log, next: &mut u64, count: u64, in_flight: usize) {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut waiting = 0;
    for _ in 0..count {
        if waiting == in_flight {
            told.recv().await.expect("the log tells");
            waiting -= 1;
        }
        let tell = tell.clone();
        let entry = (LogPosition { term: 1, index: *next }, vec![7; ENTRY_BYTES]);
        let flushed = move |result: std::io::Result<()>| {
            result.expect("the disk works");
            let _ = tell.send(());
        };
        log.append(vec![entry], flushed).await.expect("the log takes it");
        *next += 1;
        waiting += 1;
    }
    for _ in 0..waiting {
        told.recv().await.expect("the log tells");
    }
}

fn bench_append(c: &mut Criterion) {
    let runtime = runtime();
    let mut group = c.benchmark_group("append");
    group.throughput(Throughput::Elements(1));
    for (in_flight, wait_micros) in [(1, 1), (1, 50), (1, 1_000), (64, 1), (64, 50), (64, 1_000)] {
        let dir = directory();
        let flush_batch_wait = Duration::from_micros(wait_micros);
        let log =
            Log::open(dir.path(), &LogOptions { flush_batch_wait, ..LogOptions::default() }).expect("a log");
        let mut next = 0;
        group.bench_function(format!("{in_flight} in flight, {wait_micros} us batch wait"), |b| {
            b.iter_custom(|count| {
                let started = Instant::now();
                runtime.block_on(append(&log, &mut next, count, in_flight));
                started.elapsed()
            });
        });
    }
    // What no log can be faster than.
    let dir = directory();
    let mut file = std::fs::File::create(dir.path().join("bare")).expect("a file");
    group.bench_function("bare write and fdatasync", |b| {
        b.iter(|| {
            std::io::Write::write_all(&mut file, &[7; ENTRY_BYTES]).expect("the disk works");
            file.sync_data().expect("the disk works");
        });
    });
    group.finish();
}

fn command(request: u64, role: Role, action: Action) -> Command {
    Command {
        request: RequestId(Uuid::from_u128(request.into())),
        at: Timestamp(request),
        by: Identity::new("acme".parse().expect("a name"), role, "1").expect("an identity"),
        source: Source { node: 1, address: String::new() },
        action,
    }
}

/// Spread over the key space, as GUIDs are.
fn key_id(number: u64) -> KeyId {
    KeyId(Uuid::from_u128(u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(number)))
}

fn escrow(number: u64) -> Vec<u8> {
    let mut fingerprint = [0; 32];
    fingerprint[..8].copy_from_slice(&number.to_be_bytes());
    let escrow = Escrow {
        key_id: key_id(number),
        key_id_given: true,
        machine: format!("PC-{number:07}").parse().expect("a machine"),
        volume: "C:".parse().expect("a volume"),
        kind: SecretKind::BitlockerPassword,
        sealed: Sealed { key_version: 1, nonce: [3; 12], ciphertext: vec![4; 71] },
        sealed_package: None,
        fingerprint: Fingerprint(fingerprint),
        user: Some(format!(r"CORP\user{number}").parse().expect("a user")),
    };
    format::encode(&command(number, Role::Importer, Action::Escrow(escrow)))
}

struct Bed {
    machine: Machine,
    next: u64,
    _dir: TempDir,
    _log: Log,
}

impl Bed {
    fn new() -> Self {
        let dir = directory();
        let log = Log::open(&dir.path().join("log"), &LogOptions::default()).expect("a log");
        let snapshots = Snapshots::open(&dir.path().join("snapshots")).expect("snapshots");
        let machine = Machine::open(&dir.path().join("base"), &MachineOptions::default(), snapshots, &log);
        let mut bed = Self { machine: machine.expect("a machine"), next: 0, _dir: dir, _log: log };
        bed.apply(&format::encode(&command(0, Role::Node, initialize())));
        bed
    }

    fn apply(&mut self, command: &[u8]) {
        let position = LogPosition { term: 1, index: self.next };
        self.machine.apply(position, Payload::Commands(vec![command])).expect("it applies");
        self.next += 1;
    }

    fn escrow(&mut self, count: u64) {
        for _ in 0..count {
            self.apply(&escrow(self.next));
        }
    }
}

fn bench_state(c: &mut Criterion) {
    let runtime = runtime();
    let mut bed = Bed::new();
    let mut group = c.benchmark_group("state");
    group.throughput(Throughput::Elements(1));
    group.bench_function("apply an escrow", |b| {
        b.iter_custom(|count| {
            let commands: Vec<_> = (bed.next..bed.next + count).map(escrow).collect();
            let started = Instant::now();
            commands.iter().for_each(|command| bed.apply(command));
            started.elapsed()
        });
    });
    let missing = KEYS.saturating_sub(bed.next);
    bed.escrow(missing);
    runtime.block_on(bed.machine.drain()).expect("it drains");

    let keys = bed.next - 1;
    let mut number = 0;
    group.bench_function("look a key up", |b| {
        b.iter(|| {
            number = (number + 7_919) % keys;
            let view = bed.machine.view().expect("a view");
            black_box(lookup::key(&view, key_id(number + 1)).expect("it reads")).expect("it is there")
        });
    });
    group.throughput(Throughput::Elements(DRAINED));
    group.sample_size(20);
    group.bench_function("drain a thousand escrows", |b| {
        b.iter_custom(|count| {
            (0..count).fold(Duration::ZERO, |total, _| {
                bed.escrow(DRAINED);
                let started = Instant::now();
                runtime.block_on(bed.machine.drain()).expect("it drains");
                total + started.elapsed()
            })
        });
    });
    group.finish();
    let started = Instant::now();
    let file = runtime.block_on(bed.machine.snapshot()).expect("a snapshot");
    let (rows, bytes, base) =
        (file.applied().rows, file.bytes(), bed.machine.stats().expect("stats").base_bytes);
    println!("snapshot of {rows} rows, {bytes} bytes: {:?}; base {base} bytes", started.elapsed());
}

criterion_group!(benches, bench_append, bench_state);
criterion_main!(benches);
