//! Strongroom beside etcd and PostgreSQL: `cargo bench --bench peers [-- --rounds 3 --seconds 5 --clients 1,64,256]`.
//!
//! Three nodes of ours, three of etcd, and PostgreSQL with two standbys of which any one must have a commit on its disk, all
//! over mutual TLS and with real fsync on one disk, are driven in turns with the same closed loop: so many clients, each with a
//! connection of its own, which sends its next write when the last one is answered. Beside them stand what no system of this
//! kind can do without: appends and `fdatasync` of the same bytes by one writer, and a gRPC server over mutual TLS that only
//! echoes. Then lookups, reveals, bulk imports, restarts, failovers and snapshots under load of ours alone. `README.md` beside
//! this file says what is compared, what is not, and what came out. `STRONGROOM_PROGRAM` measures another binary than the one
//! that is built with the bench; what is not installed is skipped, and said.
//!
//! All of it is in the directory for temporary files (`TMPDIR`), which must be on a disk. Compare figures of one run only.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "peers/disk.rs"]
mod disk;
#[path = "peers/echo.rs"]
mod echo;
#[path = "peers/encrypted.rs"]
mod encrypted;
#[path = "peers/etcd.rs"]
mod etcd;
#[path = "peers/figures.rs"]
mod figures;
#[path = "shared/keys.rs"]
mod keys;
#[path = "peers/load.rs"]
mod load;
#[path = "peers/meter.rs"]
mod meter;
#[path = "shared/metrics.rs"]
mod metrics;
#[path = "peers/ours.rs"]
mod ours;
#[path = "peers/ours_alone.rs"]
mod ours_alone;
#[path = "peers/payload.rs"]
mod payload;
#[path = "peers/postgres.rs"]
mod postgres;
#[path = "peers/process.rs"]
mod process;
#[path = "shared/restart.rs"]
mod restart;
#[path = "shared/running.rs"]
mod running;
#[path = "shared/snapshots.rs"]
mod snapshots;
#[path = "shared/steady.rs"]
mod steady;
#[path = "peers/systems.rs"]
mod systems;
#[path = "peers/trust.rs"]
mod trust;
#[path = "shared/upload.rs"]
mod upload;

use std::time::Duration;

use clap::Parser;

use figures::{Figures, Table};
use systems::Systems;

/// As the program has it, so that the load and the echo are no slower than they must be.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Strongroom beside etcd and PostgreSQL.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often everything is measured; medians are printed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=100))]
    rounds: u64,
    /// How long each measurement takes.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// How many clients at once, up to 1,024.
    #[arg(long, default_value = "1,64,256", value_delimiter = ',', value_parser = clients)]
    clients: Vec<usize>,
    /// Machines whose keys a cluster has when snapshots of it are written.
    #[arg(long, default_value_t = 100_000)]
    machines: u64,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn clients(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=load::CLIENTS_MAX).contains(count));
    count.ok_or_else(|| format!("a number from 1 to {}", load::CLIENTS_MAX))
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let time = Duration::from_secs(arguments.seconds);
    let disk = disk::Disk::of(&std::env::temp_dir());
    println!("{}", disk.machine());
    println!("{} rounds of {} s; {}\n", arguments.rounds, arguments.seconds, payload::description());

    let mut systems = Systems::start(disk).await;
    let mut table = Table::default();
    compare(&systems, &arguments, time, &mut table).await;
    table.show();
    systems.stop_others().await;

    let (ours, disk) = systems.into_ours();
    ours_alone::measure(ours, time, arguments.rounds, &table).await;
    ours_alone::snapshots_under_load(&disk, arguments.machines).await;
}

/// Drives all systems in turns.
async fn compare(systems: &Systems, arguments: &Arguments, time: Duration, table: &mut Table) {
    for (turn, clients) in arguments.clients.iter().copied().enumerate() {
        for round in 1..=arguments.rounds {
            if turn == 0 {
                systems.rest().await;
                let figures = Figures::of(&systems.sync(time).await);
                progress(round, 1, figures::SYNC, &figures);
                table.note(1, figures::SYNC, figures);
            }
            for system in systems.all() {
                systems.rest().await;
                let run = system.run(clients, time, systems.disk()).await;
                if let Some(failure) = &run.first_failure {
                    eprintln!("{}: {} failed; the first: {failure}", system.name(), run.failed);
                }
                let figures = Figures::of(&run);
                progress(round, clients, system.name(), &figures);
                table.note(clients, system.name(), figures);
            }
        }
    }
}

fn progress(round: u64, clients: usize, name: &str, figures: &Figures) {
    eprintln!("round {round}, {clients} clients, {name}: {:.0} a second", figures.rate);
}
