//! A node's storage without the network: entries are appended, committed and applied as openraft does it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use openraft::storage::StorageHelper;
use strongroom::escrow::apply::apply;
use strongroom::escrow::command::{Command, Reply};
use strongroom::escrow::memory::Memory;
use strongroom::escrow::records::LogPosition;
use strongroom::raft::storage::{Storage, StorageOptions};
use strongroom::raft::types::TypeConfig;
use strongroom::store::StoreError;
use strongroom::store::directory::DataDir;
use strongroom::store::format::{self, Payload};
use strongroom::store::log::LogOptions;
use strongroom::store::machine::MachineOptions;
use strongroom::store::policy::SnapshotPolicy;
use tempfile::TempDir;

use super::{rows, sample};

/// Small enough that a test sees chunks rotate and the overlay drain.
pub fn small() -> StorageOptions {
    StorageOptions {
        log: LogOptions { cache_max_bytes: 4_096, chunk_max_bytes: 8_192, ..LogOptions::default() },
        machine: MachineOptions {
            cache_bytes: 8 * 1024 * 1024,
            generation_max_bytes: 16 * 1024,
            ..undrained()
        },
        snapshots: SnapshotPolicy { floor_bytes: 16 * 1024, share_percent: 50 },
    }
}

/// Drains only when told to.
pub fn undrained() -> MachineOptions {
    MachineOptions {
        drain_every: Duration::from_secs(3_600),
        generation_max_bytes: usize::MAX,
        ..MachineOptions::default()
    }
}

/// An open storage, and the same entries applied in memory.
pub struct Node {
    pub storage: Storage,
    pub expected: Memory,
    pub next: u64,
    _data: DataDir,
}

impl Node {
    /// A new node whose cluster is initialised.
    pub async fn begin(dir: &Path, options: StorageOptions) -> Self {
        let mut node = Self::open(dir, options).await.unwrap();
        node.apply(&sample::initialize()).await;
        node
    }

    /// Opens a node as its server does, up to where openraft would take over.
    pub async fn open(dir: &Path, options: StorageOptions) -> Result<Self, StoreError> {
        let data = DataDir::open_or_create(dir)?;
        let storage = Storage::open(&data, options).await?;
        let (mut log, mut machine) = (storage.log_store(), storage.state_machine());
        StorageHelper::<TypeConfig, _, _>::new(&mut log, &mut machine)
            .with_id(1)
            .get_initial_state()
            .await
            .unwrap();
        let next = storage.log.state().unwrap().last.map_or(0, |position| position.index + 1);
        Ok(Self { storage, expected: Memory::new(), next, _data: data })
    }

    /// Appends, fsyncs, commits and applies a command.
    pub async fn apply(&mut self, command: &Command) -> Reply {
        self.apply_group(&[command]).await.remove(0)
    }

    /// As [`Node::apply`], several commands in one entry.
    pub async fn apply_group(&mut self, commands: &[&Command]) -> Vec<Reply> {
        let position = LogPosition { term: 1, index: self.next };
        let replies = self.apply_at(position, commands).await;
        let expected = commands.iter().map(|command| apply(&mut self.expected, position, command).unwrap());
        assert_eq!(expected.collect::<Vec<_>>(), replies);
        self.next += 1;
        replies
    }

    async fn apply_at(&self, position: LogPosition, commands: &[&Command]) -> Vec<Reply> {
        let bytes: Vec<_> = commands.iter().map(format::encode).collect();
        let (tell, told) = tokio::sync::oneshot::channel();
        let entries = vec![(position, payload(&bytes).encode())];
        self.storage.log.append(entries, move |result| drop(tell.send(result))).await.unwrap();
        told.await.unwrap().unwrap();
        self.storage.log.save_committed(position).await.unwrap();
        let machine = self.storage.machine.clone();
        tokio::task::spawn_blocking(move || machine.apply(position, payload(&bytes))).await.unwrap().unwrap()
    }

    /// Escrows keys `from` up to `to`, each by a request of its own.
    pub async fn escrow(&mut self, from: u64, to: u64) {
        for number in from..to {
            self.apply(&sample::escrow(self.next, number)).await;
        }
    }

    /// The state is exactly that of the same entries applied in memory.
    #[track_caller]
    pub fn assert_state(&self) {
        assert_same(&self.storage, &self.expected);
    }
}

/// An entry of these encoded commands.
pub fn payload(commands: &[Vec<u8>]) -> Payload<'_> {
    Payload::Commands(commands.iter().map(|command| &command[..]).collect())
}

/// Every row of every table is the same, none is missing and none too many.
#[track_caller]
pub fn assert_same(storage: &Storage, expected: &Memory) {
    let view = storage.machine.view().unwrap();
    assert_eq!(rows::differ(&view, expected, storage.machine.applied().rows), None);
}

/// What a crash at this moment would leave on the disk. How far entries are committed is written behind them: sync the
/// log first where that matters.
pub fn crash_copy(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_tree(dir, copy.path());
    copy
}

pub fn copy_tree(from: &Path, to: &Path) {
    // A folder that is being removed, and a temporary file, may go while they are walked.
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        entries => entries.unwrap(),
    };
    for entry in entries {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy_tree(&entry.path(), &target);
        } else if let Err(error) = fs::copy(entry.path(), &target) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
}

/// The files under `dir` whose names match.
pub fn files(dir: &Path, matches: impl Fn(&str) -> bool + Copy) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path(), matches));
        } else if matches(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    found
}

/// Waits for a condition, for at most a minute.
pub async fn wait_until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.unwrap();
}
