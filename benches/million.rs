//! One replica of many machines, without Raft: `cargo bench --bench million [-- MACHINES]`.
//!
//! A state machine takes what so many machines say (200,000 unless said otherwise), two volumes each; then all of them
//! say the same again, first alone and then while a snapshot is written. Printed are rates, how long the slowest entry
//! took, memory and disk. Compare figures of one run only.

#[path = "shared/cluster.rs"]
mod cluster;
#[path = "shared/keys.rs"]
mod keys;
#[path = "shared/machines.rs"]
mod machines;

use std::time::{Duration, Instant};

use cluster::initialize;
use machines::{bytes_under, document, memory_mib};

use strongroom::escrow::apply::COMPLIANCE_BATCH_MAX;
use strongroom::escrow::command::{
    Action, Command, Contact, NoteContact, RaiseFeatureLevel, Reply, ReportCompliance, UploadOutcome,
};
use strongroom::escrow::compliance::{MachineReport, Merged};
use strongroom::escrow::features::FeatureLevel;
use strongroom::escrow::ids::{Identity, RequestId, Role, Timestamp};
use strongroom::escrow::records::{LogPosition, Source};
use strongroom::store::format::{self, Payload};
use strongroom::store::log::{Log, LogOptions};
use strongroom::store::machine::{Machine, MachineOptions};
use strongroom::store::snapshot::Snapshots;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// As the program has it: sled allocates much.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Machines if nothing is said.
const MACHINES: u64 = 200_000;
/// 2026-02-01T00:00:00Z, when the first of them speaks.
const BEGINNING_MS: u64 = 1_769_904_000_000;
/// Spreads the machines of an entry over the key space.
const STRIDE: u64 = 7_919;

fn main() {
    // `cargo bench` passes a flag of its own.
    let machines = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(MACHINES);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().expect("a runtime");
    let mut bed = Bed::new(machines);
    bed.round("said for the first time", |bed, numbers| bed.reports(numbers));
    runtime.block_on(bed.machine.drain()).expect("it drains");
    bed.show();
    bed.snapshot(&runtime);
    bed.round("said again", |bed, numbers| bed.contacts(numbers));
    runtime.block_on(bed.machine.drain()).expect("it drains");
    bed.show();
    bed.snapshot_under_load(&runtime);
    bed.show();
}

struct Bed {
    machine: Machine,
    machines: u64,
    next: u64,
    /// What time the devices have.
    now: u64,
    dir: TempDir,
    _log: Log,
}

impl Bed {
    fn new(machines: u64) -> Self {
        // In the working directory, because the temporary one is often in memory.
        let dir = tempfile::tempdir_in(".").expect("the working directory can be written");
        let log = Log::open(&dir.path().join("log"), &LogOptions::default()).expect("a log");
        let snapshots = Snapshots::open(&dir.path().join("snapshots")).expect("snapshots");
        let machine = Machine::open(&dir.path().join("base"), &MachineOptions::default(), snapshots, &log)
            .expect("a machine");
        let mut bed = Self { machine, machines, next: 0, now: BEGINNING_MS, dir, _log: log };
        bed.apply(Role::Node, initialize());
        bed.apply(
            Role::Node,
            Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel::SUPPORTED }),
        );
        bed
    }

    /// Applies an entry; what was refused is measured by nobody.
    fn apply(&mut self, role: Role, action: Action) -> Duration {
        let by = Identity::new("acme".parse().expect("a name"), role, "1").expect("an identity");
        let command = format::encode(&Command {
            request: RequestId(Uuid::from_u128(self.next.into())),
            at: Timestamp(self.now),
            by,
            source: Source { node: 1, address: String::new() },
            action,
        });
        let position = LogPosition { term: 1, index: self.next };
        self.next += 1;
        let began = Instant::now();
        let reply = self.machine.apply(position, Payload::Commands(vec![&command])).expect("it applies");
        let took = began.elapsed();
        match reply.first().expect("a command is answered") {
            Reply::Initialized | Reply::FeatureLevel(_) => {}
            Reply::ComplianceNoted(outcomes) => {
                let is_newest = |outcome: &UploadOutcome| {
                    matches!(outcome, UploadOutcome::Taken { merged: Merged::Newest { .. }, .. })
                };
                assert!(outcomes.iter().all(is_newest), "{outcomes:?}");
            }
            other => panic!("{other:?}"),
        }
        took
    }

    /// Lets every machine speak once, and prints how long that took.
    fn round(&mut self, what: &str, speak: impl Fn(&Self, std::ops::Range<u64>) -> Action) {
        self.now += 60_000;
        let (began, mut slowest) = (Instant::now(), Duration::ZERO);
        let mut first = 0;
        while first < self.machines {
            let last = self.machines.min(first + COMPLIANCE_BATCH_MAX as u64);
            let action = speak(self, first..last);
            slowest = slowest.max(self.apply(Role::Importer, action));
            first = last;
        }
        let rate = (self.machines as f64 / began.elapsed().as_secs_f64()) as u64;
        println!("{} machines {what}: {rate} a second, slowest entry {slowest:.1?}", self.machines);
    }

    fn report(&self, number: u64) -> MachineReport {
        let number = number * STRIDE % self.machines;
        let text = document(number, self.now);
        MachineReport::from_json(&text).and_then(MachineReport::checked).expect("a document")
    }

    fn reports(&self, numbers: std::ops::Range<u64>) -> Action {
        Action::ReportCompliance(ReportCompliance { reports: numbers.map(|n| self.report(n)).collect() })
    }

    fn contacts(&self, numbers: std::ops::Range<u64>) -> Action {
        let contact = |number| {
            let report = self.report(number);
            Contact { at: report.at, digest: report.digest(), machine: report.machine }
        };
        Action::NoteContact(NoteContact { contacts: numbers.map(contact).collect() })
    }

    fn snapshot(&self, runtime: &Runtime) {
        let began = Instant::now();
        let file = runtime.block_on(self.machine.snapshot()).expect("a snapshot");
        let (rows, mib) = (file.applied().rows, file.bytes() >> 20);
        println!("  snapshot of {rows} rows, {mib} MiB: {:.1?}", began.elapsed());
    }

    fn snapshot_under_load(&mut self, runtime: &Runtime) {
        let machine = self.machine.clone();
        let began = Instant::now();
        let snapshot = runtime.spawn(async move { machine.snapshot().await.map(|_| began.elapsed()) });
        self.round("said again under a snapshot", |bed, numbers| bed.contacts(numbers));
        let took = runtime.block_on(snapshot).expect("it ends").expect("a snapshot");
        println!("  snapshot under load: {took:.1?}");
    }

    fn show(&self) {
        let (memory, most) = memory_mib("self");
        let stats = self.machine.stats().expect("stats");
        println!(
            "  memory {memory} MiB (at most {most} so far); {} rows of {} MiB, base {} MiB, all files {} MiB",
            stats.rows,
            stats.row_bytes >> 20,
            stats.base_bytes >> 20,
            bytes_under(self.dir.path()) >> 20,
        );
    }
}
