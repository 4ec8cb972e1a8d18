use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::*;
use crate::raft::types::TypeConfig;

struct Fresh;

struct Opened {
    _data: DataDir,
    _dir: TempDir,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, Opened> for Fresh {
    async fn build(&self) -> Result<(Opened, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open_or_create(dir.path()).unwrap();
        let machine = MachineOptions { every_entry: false, ..MachineOptions::default() };
        let options = StorageOptions { machine, ..StorageOptions::default() };
        let storage = Storage::open(&data, options).await.unwrap();
        Ok((Opened { _data: data, _dir: dir }, storage.log_store(), storage.state_machine()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_own_suite_passes() {
    Suite::test_all(Fresh).await.unwrap();
}
