//! Figures of many runs, their medians, and the ratios of ours to those of others.

use crate::load::Run;

pub const ECHO: &str = "gRPC echo";
pub const ETCD: &str = "etcd";
pub const OURS: &str = "strongroom";
pub const POSTGRES: &str = "PostgreSQL";
pub const SYNC: &str = "fdatasync";

/// Writes that processor time is told of.
const WRITES: f64 = 1_000.0;

/// Figures of one run, or the median of each over several.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Answered in a second.
    pub rate: f64,
    /// Milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Seconds of processor time for 1,000 writes, of the system and of the load.
    pub cpu: Option<f64>,
    pub own_cpu: f64,
    /// Flushes of the disk for a write.
    pub flushes: Option<f64>,
    /// All that failed.
    pub failed: u64,
}

impl Figures {
    pub fn of(run: &Run) -> Self {
        let count = run.times.len() as f64;
        let ms = |quantile| run.times.value_at_quantile(quantile) as f64 / 1_000.0;
        let per_write = |value: f64| if count > 0.0 { value / count } else { f64::NAN };
        Self {
            rate: count / run.took.as_secs_f64(),
            p50: ms(0.5),
            p99: ms(0.99),
            cpu: run.used.cpu.map(|seconds| per_write(seconds) * WRITES),
            own_cpu: per_write(run.used.own_cpu) * WRITES,
            flushes: run.used.flushes.map(|flushes| per_write(flushes as f64)),
            failed: run.failed,
        }
    }

    /// `None` of no runs.
    pub fn median(of: &[Self]) -> Option<Self> {
        let median_of = |figure: fn(&Self) -> Option<f64>| median(of.iter().filter_map(figure).collect());
        Some(Self {
            rate: median_of(|figures| Some(figures.rate))?,
            p50: median_of(|figures| Some(figures.p50))?,
            p99: median_of(|figures| Some(figures.p99))?,
            cpu: median_of(|figures| figures.cpu),
            own_cpu: median_of(|figures| Some(figures.own_cpu))?,
            flushes: median_of(|figures| figures.flushes),
            failed: of.iter().map(|figures| figures.failed).sum(),
        })
    }
}

/// The one in the middle, or what lies between the two that are. `None` of nothing.
pub fn median(mut of: Vec<f64>) -> Option<f64> {
    of.sort_by(f64::total_cmp);
    let middle = of.len() / 2;
    let upper = of.get(middle)?;
    Some(if of.len().is_multiple_of(2) { f64::midpoint(of[middle - 1], *upper) } else { *upper })
}

/// All figures, by the number of clients and the system, in the order in which they came.
#[derive(Default)]
pub struct Table(Vec<(usize, &'static str, Vec<Figures>)>);

impl Table {
    pub fn note(&mut self, clients: usize, name: &'static str, figures: Figures) {
        let row = self.0.iter_mut().find(|(of, named, _)| (*of, *named) == (clients, name));
        match row {
            Some((.., runs)) => runs.push(figures),
            None => self.0.push((clients, name, vec![figures])),
        }
    }

    /// Numbers of clients that ours was driven with.
    pub fn clients(&self) -> Vec<usize> {
        let ours = self.0.iter().filter(|(_, name, _)| *name == OURS);
        ours.map(|(clients, ..)| *clients).collect()
    }

    pub fn median(&self, clients: usize, name: &str) -> Option<Figures> {
        let (.., runs) = self.0.iter().find(|(of, named, _)| (*of, *named) == (clients, name))?;
        Figures::median(runs)
    }

    /// Prints medians, and then ratios.
    pub fn show(&self) {
        println!(
            "| clients | system | a second | p50 ms | p99 ms | CPU s per 1,000 | load's CPU s per 1,000 | \
             disk flushes a write | failed |\n|--:|---|--:|--:|--:|--:|--:|--:|--:|"
        );
        for (clients, name, runs) in &self.0 {
            let Some(Figures { rate, p50, p99, cpu, own_cpu, flushes, failed }) = Figures::median(runs)
            else {
                continue;
            };
            println!(
                "| {clients} | {name} | {rate:.0} | {p50:.2} | {p99:.2} | {} | {own_cpu:.3} | {} | {failed} |",
                or_dash(cpu, 3),
                or_dash(flushes, 2),
            );
        }
        println!("\n| clients | ours to | a second | p50 | p99 | CPU |\n|--:|---|--:|--:|--:|--:|");
        for clients in self.clients() {
            for other in [ETCD, POSTGRES, ECHO, SYNC] {
                self.show_ratio(clients, other);
            }
        }
    }

    fn show_ratio(&self, clients: usize, other: &str) {
        let (Some(ours), Some(theirs)) = (self.median(clients, OURS), self.median(clients, other)) else {
            return;
        };
        let cpu = ours.cpu.zip(theirs.cpu).map(|(ours, theirs)| ours / theirs);
        let (rate, p50, p99) = (ours.rate / theirs.rate, ours.p50 / theirs.p50, ours.p99 / theirs.p99);
        println!("| {clients} | {other} | {rate:.2} | {p50:.2} | {p99:.2} | {} |", or_dash(cpu, 2));
    }
}

fn or_dash(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
}
