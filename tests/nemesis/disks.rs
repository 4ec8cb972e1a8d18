//! A disk of its own for a node: ext4 in a file, on a loop device. It can be filled, and its power can be cut.
//!
//! What a file system has not written to its disk yet is in memory, and no copy of the disk has it. So a copy of the file
//! under the file system is what a power cut would leave, if it is of one moment: the node is stopped (SIGSTOP) for it,
//! and the copy is made again if the kernel wrote anything meanwhile.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

/// Room for the log, the base and snapshots of a node of these tests. The file takes as much as is written to it.
const SIZE: &str = "256M";
/// What the file system gives out at least.
const BLOCK_BYTES: u64 = 4096;
/// The longest that the kernel may go on writing for a process that is stopped.
const CALM_TIMEOUT: Duration = Duration::from_secs(20);
/// Columns of `/sys/block/*/stat`: writes that are done, and requests that are under way.
const WRITES: usize = 4;
const IN_FLIGHT: usize = 8;

/// A mounted file system in a file. Unmounted when dropped.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// A new one in `dir`, mounted there. `None` if this process may not mount.
    pub fn in_dir(dir: &Path) -> Option<Self> {
        let disk = Self { image: dir.join("disk.img"), mount: dir.join("disk") };
        fs::create_dir(&disk.mount).expect("a place to mount it");
        run("truncate", &["--size", SIZE], &[&disk.image]).then_some(())?;
        // Nothing is left to be initialised in the background: the disk is calm when nobody writes.
        let options = ["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        (run("mkfs.ext4", &options, &[&disk.image]) && disk.try_mount()).then_some(disk)
    }

    /// What is on it.
    pub fn root(&self) -> &Path {
        &self.mount
    }

    fn try_mount(&self) -> bool {
        run("mount", &["-t", "ext4", "-o", "loop"], &[&self.image, &self.mount])
    }

    /// Takes all the room there is left.
    pub fn fill(&self) {
        let filler = File::create(self.filler()).expect("a file takes no room yet");
        let (mut taken, mut more) = (0, 1 << 30);
        while more >= BLOCK_BYTES {
            match fallocate(&filler, FallocateFlags::empty(), taken, more) {
                Ok(()) => taken += more,
                Err(Errno::NOSPC) => more /= 2,
                Err(error) => panic!("filling a disk: {error}"),
            }
        }
    }

    /// Takes the room there is left, but for some.
    pub fn fill_but(&self, left: u64) {
        let filler = File::create(self.filler()).expect("a file takes no room yet");
        let taken = self.free_bytes().checked_sub(left).expect("more is left");
        fallocate(&filler, FallocateFlags::empty(), 0, taken).expect("there is as much");
    }

    fn free_bytes(&self) -> u64 {
        let stat = statvfs(&self.mount).expect("a file system");
        stat.f_bavail * stat.f_frsize
    }

    /// Gives the room back.
    pub fn make_room(&self) {
        // Whoever killed the node may have made room already.
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.mount.join("filler")
    }

    /// Copies the disk as it is now. Nobody may write to it but the kernel, which has to come to an end.
    pub fn copy(&self) {
        let deadline = Instant::now() + CALM_TIMEOUT;
        loop {
            let before = self.written();
            assert!(
                run("cp", &["--sparse=auto", "--reflink=never"], &[&self.image, &self.copied()]),
                "copied"
            );
            if before == self.written() && before.1 == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{} is written to all the time", self.image.display());
        }
    }

    /// Puts the copy in the place of the disk, of which nobody may have a file open any more.
    pub fn put_copy_in_place(&self) {
        // Threads of a database that was closed in this process hold on to its files for a moment.
        let deadline = Instant::now() + CALM_TIMEOUT;
        while !run("umount", &[], &[&self.mount]) {
            assert!(Instant::now() < deadline, "nobody uses it any more");
        }
        fs::rename(self.copied(), &self.image).expect("in the place of the old one");
        assert!(self.try_mount(), "the copy of a disk can be mounted");
    }

    fn copied(&self) -> PathBuf {
        self.image.with_extension("copy")
    }

    /// How many writes the device has done, and how many requests it has under way.
    fn written(&self) -> (u64, u64) {
        let mounts = fs::read_to_string("/proc/mounts").expect("Linux");
        let mount = self.mount.to_str().expect("a path in UTF-8");
        let device = mounts.lines().find_map(|line| {
            let mut words = line.split(' ');
            let device = words.next()?;
            (words.next() == Some(mount)).then(|| device.trim_start_matches("/dev/"))
        });
        let device = device.expect("it is mounted");
        let stat = fs::read_to_string(format!("/sys/block/{device}/stat")).expect("a block device");
        let numbers: Vec<u64> = stat.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers[WRITES], numbers[IN_FLIGHT])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a node that still runs has it open.
        let _ = Command::new("umount").args(["--quiet", "--lazy"]).arg(&self.mount).status();
    }
}

/// Whether a command was run with success.
fn run(program: &str, options: &[&str], paths: &[&Path]) -> bool {
    Command::new(program).args(options).args(paths).status().is_ok_and(|status| status.success())
}
