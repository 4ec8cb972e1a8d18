//! The systems that stand beside each other, and how they are driven in turns.

use std::time::{Duration, Instant};

use crate::disk::Disk;
use crate::echo::Echo;
use crate::etcd::{self, Etcd};
use crate::figures;
use crate::load::{Run, closed_loop};
use crate::meter::Meter;
use crate::ours::Ours;
use crate::postgres::{self, Postgres};
use crate::running;
use crate::trust::Trust;

/// Over what time it is seen whether the systems are at rest.
const REST: Duration = Duration::from_millis(300);
/// Seconds of processor time that they take then at most: what they do all the time takes less.
const REST_MAX_CPU: f64 = 0.05;
/// Longest they are waited for.
const REST_WAIT: Duration = Duration::from_secs(15);

/// One of them.
pub enum System {
    Echo(Echo),
    Etcd(Etcd),
    Ours(Ours),
    Postgres(Postgres),
}

/// Those that are installed, all running.
pub struct Systems {
    disk: Disk,
    all: Vec<System>,
}

impl Systems {
    /// Starts them, and says which they are.
    pub async fn start(disk: Disk) -> Self {
        let trust = Trust::new(disk.directory());
        let mut all = vec![System::Ours(Ours::start(disk.directory(), "").await)];
        println!("{}: {}", figures::OURS, running::program().display());
        match Etcd::start(&trust, disk.directory()).await {
            Some(etcd) => {
                println!("{}: {}", figures::ETCD, etcd.version());
                all.push(System::Etcd(etcd));
            }
            None => println!("{}: SKIPPED, it is not installed: {}", figures::ETCD, etcd::INSTALL),
        }
        match Postgres::start(&trust, disk.directory()).await {
            Some(postgres) => {
                println!("{}: {}", figures::POSTGRES, postgres.version());
                all.push(System::Postgres(postgres));
            }
            None => println!("{}: SKIPPED, it is not installed: {}", figures::POSTGRES, postgres::INSTALL),
        }
        all.push(System::Echo(Echo::start(&trust).await));
        println!();
        Self { disk, all }
    }

    pub fn all(&self) -> &[System] {
        &self.all
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The floor of the disk.
    pub async fn sync(&self, time: Duration) -> Run {
        self.disk.sync(time).await
    }

    /// Waits until no system is busy with what it was given in an earlier turn, so that it does not hold up the next one.
    pub async fn rest(&self) {
        let meter = Meter::new(self.all.iter().flat_map(System::pids).collect(), None);
        let began = Instant::now();
        while began.elapsed() < REST_WAIT {
            let before = meter.read();
            tokio::time::sleep(REST).await;
            if meter.since(&before).cpu.is_none_or(|cpu| cpu <= REST_MAX_CPU) {
                return;
            }
        }
        eprintln!("the systems do not come to rest");
    }

    /// Stops all but ours.
    pub async fn stop_others(&mut self) {
        for system in &mut self.all {
            match system {
                System::Etcd(etcd) => etcd.stop().await,
                System::Postgres(postgres) => postgres.stop().await,
                System::Echo(_) | System::Ours(_) => {}
            }
        }
        self.all.retain(|system| matches!(system, System::Ours(_)));
    }

    /// Ours, and the disk.
    pub fn into_ours(self) -> (Ours, Disk) {
        let ours = self.all.into_iter().find_map(|system| match system {
            System::Ours(ours) => Some(ours),
            _ => None,
        });
        (ours.expect("started first"), self.disk)
    }
}

impl System {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Echo(_) => figures::ECHO,
            Self::Etcd(_) => figures::ETCD,
            Self::Ours(_) => figures::OURS,
            Self::Postgres(_) => figures::POSTGRES,
        }
    }

    /// Its processes, but for their children; none for what is part of this one.
    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Echo(_) => Vec::new(),
            Self::Etcd(etcd) => etcd.pids(),
            Self::Ours(ours) => ours.pids(),
            Self::Postgres(postgres) => postgres.pids(),
        }
    }

    /// Drives it with so many clients.
    pub async fn run(&self, clients: usize, time: Duration, disk: &Disk) -> Run {
        let meter = Meter::new(self.pids(), disk.counters());
        match self {
            Self::Echo(echo) => closed_loop(echo.clients(clients).await, time, &meter).await,
            Self::Etcd(etcd) => closed_loop(etcd.clients(clients).await, time, &meter).await,
            Self::Ours(ours) => closed_loop(ours.clients(clients).await, time, &meter).await,
            Self::Postgres(postgres) => closed_loop(postgres.clients(clients).await, time, &meter).await,
        }
    }
}
