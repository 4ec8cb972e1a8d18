//! The machine, and the disk that everything is on.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::load::Run;
use crate::meter::Meter;
use crate::payload;

/// File systems on which an fsync costs nothing, and means nothing.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];

/// Where the systems keep what they keep.
pub struct Disk {
    dir: PathBuf,
    file_system: String,
    device: String,
}

impl Disk {
    /// That of `dir`, which must be a real one.
    pub fn of(dir: &Path) -> Self {
        let dir = dir.canonicalize().unwrap_or_else(|error| panic!("TMPDIR: {}: {error}", dir.display()));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("what is mounted");
        let (_, file_system, device) = mounts
            .lines()
            .filter_map(mount)
            .filter(|(point, ..)| dir.starts_with(point))
            .max_by_key(|(point, ..)| point.len())
            .expect("something is mounted at /");
        if IN_MEMORY.contains(&file_system) {
            eprintln!(
                "TMPDIR: {} is in memory ({file_system}), where an fsync means nothing; name a directory on a disk",
                dir.display()
            );
            std::process::exit(2);
        }
        Self { file_system: file_system.to_owned(), device: device.to_owned(), dir }
    }

    /// A new directory on it.
    pub fn directory(&self) -> TempDir {
        tempfile::tempdir_in(&self.dir).expect("a directory")
    }

    /// The counters of the device, as a whole: the kernel counts no flushes of a part.
    pub fn counters(&self) -> Option<PathBuf> {
        let device = std::fs::metadata(&self.dir).ok()?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let device = Path::new("/sys/dev/block").join(format!("{major}:{minor}")).canonicalize().ok()?;
        let whole = if device.join("partition").exists() { device.parent()? } else { &device };
        Some(whole.join("stat"))
    }

    /// What one must know to read the figures.
    pub fn machine(&self) -> String {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
            line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
        };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let mut text = format!(
            "{cores} cores ({}), {} of memory, Linux {}",
            field(&read("/proc/cpuinfo"), "model name"),
            field(&read("/proc/meminfo"), "MemTotal"),
            read("/proc/sys/kernel/osrelease").trim(),
        );
        let _ = write!(text, "; {} on {} ({})", self.dir.display(), self.device, self.file_system);
        text
    }

    /// One writer that appends as many bytes as a write is, and waits until they are on the disk.
    pub async fn sync(&self, time: Duration) -> Run {
        let (dir, meter) = (self.directory(), Meter::new(Vec::new(), self.counters()));
        let append = move || {
            let mut file = File::create_new(dir.path().join("appended")).expect("a file");
            let (bytes, mut run) = (vec![7; payload::bytes()], Run::new());
            let (before, began) = (meter.read(), Instant::now());
            while began.elapsed() < time {
                let sent = Instant::now();
                file.write_all(&bytes).expect("written");
                file.sync_data().expect("on the disk");
                run.answered(sent.elapsed());
            }
            (run.took, run.used) = (began.elapsed(), meter.since(&before));
            run
        };
        tokio::task::spawn_blocking(append).await.expect("it appends")
    }
}

/// Mount point, type and device of a line of `mountinfo`.
fn mount(line: &str) -> Option<(&str, &str, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    let mut after = after.split(' ');
    Some((point, after.next()?, after.next()?))
}
