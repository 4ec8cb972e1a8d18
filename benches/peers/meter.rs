//! What a system uses while it is driven, as the kernel counts it: processor time of its processes, and how often the disk
//! was told to bring what it has been given to where it stays.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// Ticks of a second in `/proc/PID/stat`: `USER_HZ`, which Linux keeps at this whatever its clock runs at.
const TICKS_PER_SECOND: f64 = 100.0;
/// Places in `/proc/PID/stat` behind the name of the process: its parent, and its own time and that of children which it
/// has waited for, in the program and in the kernel.
const PARENT: usize = 1;
const TIMES: std::ops::Range<usize> = 11..15;
/// Place of the flushes in the `stat` of a block device, from Linux 5.5 on.
const FLUSHES: usize = 15;

/// Reads the counters of some processes and a disk.
pub struct Meter {
    /// Processes, which stand for their children as well.
    roots: Vec<u32>,
    /// The `stat` of the disk, if it has one.
    disk: Option<PathBuf>,
}

/// The counters at one moment.
pub struct Reading {
    ticks: u64,
    own_ticks: u64,
    flushes: Option<u64>,
}

/// What was used between two moments.
#[derive(Debug, Default, Clone, Copy)]
pub struct Used {
    /// Seconds of processor time of the system; `None` if it is part of this process.
    pub cpu: Option<f64>,
    /// Seconds of processor time of this process, which makes the load.
    pub own_cpu: f64,
    /// Flushes of the disk, by whomever.
    pub flushes: Option<u64>,
}

impl Meter {
    pub fn new(roots: Vec<u32>, disk: Option<PathBuf>) -> Self {
        Self { roots, disk }
    }

    pub fn read(&self) -> Reading {
        let processes = processes();
        let ticks = self.roots.iter().map(|root| ticks_of_tree(&processes, *root)).sum();
        let own_ticks = processes.get(&std::process::id()).map_or(0, |process| process.ticks);
        let flushes = self.disk.as_ref().and_then(|stat| {
            let stat = std::fs::read_to_string(stat).ok()?;
            stat.split_whitespace().nth(FLUSHES)?.parse().ok()
        });
        Reading { ticks, own_ticks, flushes }
    }

    pub fn since(&self, before: &Reading) -> Used {
        let now = self.read();
        let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / TICKS_PER_SECOND;
        let flushes = now.flushes.zip(before.flushes).map(|(now, before)| now.saturating_sub(before));
        Used {
            cpu: (!self.roots.is_empty()).then(|| seconds(before.ticks, now.ticks)),
            own_cpu: seconds(before.own_ticks, now.own_ticks),
            // A disk that keeps nothing back is never told.
            flushes: flushes.filter(|flushes| *flushes > 0),
        }
    }
}

struct Process {
    parent: u32,
    ticks: u64,
}

/// All that run now.
fn processes() -> BTreeMap<u32, Process> {
    let entries = std::fs::read_dir("/proc").expect("there is /proc").flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter_map(|id| Some((id, process(id)?))).collect()
}

/// `None` if it has ended meanwhile.
fn process(id: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // Its name may have anything in it, brackets as well.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let parent = fields.get(PARENT)?.parse().ok()?;
    let ticks = fields.get(TIMES)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Some(Process { parent, ticks })
}

fn ticks_of_tree(processes: &BTreeMap<u32, Process>, root: u32) -> u64 {
    let own = processes.get(&root).map_or(0, |process| process.ticks);
    let children = processes.iter().filter(|(_, process)| process.parent == root);
    own + children.map(|(child, _)| ticks_of_tree(processes, *child)).sum::<u64>()
}
