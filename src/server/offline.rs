//! What the disk of one node holds, opened without any node: with the organisation's offline identity, or whichever else
//! the keyring is sealed to.
//!
//! For the day on which nothing else is left. Nobody is asked whether the caller may, and nothing goes on record: that is
//! what keeping the offline identity under lock stands for.

use std::path::Path;

use super::ServerError;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::KeyId;
use crate::escrow::lookup::{self, Found, LookupError, Query};
use crate::escrow::records::{ClusterRecord, KeyRecord, LogPosition};
use crate::raft::NodeError;
use crate::raft::storage::{Storage, StorageOptions};
use crate::seal::{Keyring, NodeKey, Part, SealError, context_of};
use crate::secret::Secret;
use crate::store::StoreError;
use crate::store::directory::{DataDir, holds_data};

/// Keys read at a time.
const PAGE: usize = 256;

/// The state on a disk, and the keyring as of it.
pub struct OfflineCopy {
    storage: Storage,
    keyring: Keyring,
    cluster: ClusterRecord,
    /// Locked for as long as the storage is open.
    _directory: DataDir,
}

/// A kept key, opened.
pub struct OpenedKey {
    /// The secret.
    pub secret: Secret,
    /// Its package, if it has one.
    pub package: Option<Secret>,
}

impl OfflineCopy {
    /// Opens the data directory of a node that does not run, or a copy of one. As a start of the node would, this applies
    /// what is known to be committed; no entry, vote or member is changed.
    ///
    /// # Errors
    /// [`ServerError::Seal`] if the identity cannot be read, or opens nothing here; [`ServerError::Store`] if the storage
    /// cannot be opened, is in use or is none; [`ServerError::Node`] if it belongs to no cluster, or to one whose commands
    /// this release cannot apply.
    pub async fn open(data_dir: &Path, identity: &Path) -> Result<Self, ServerError> {
        let key = NodeKey::load(identity)?;
        // A wrong path must not become an empty data directory.
        if !holds_data(data_dir) {
            let reason = "holds no data of a node".to_owned();
            return Err(StoreError::Directory { path: data_dir.to_owned(), reason }.into());
        }
        let directory = DataDir::open_or_create(data_dir)?;
        let storage = Storage::open(&directory, StorageOptions::default()).await?;
        match Self::read(&storage, &key).await {
            Ok((cluster, keyring)) => Ok(Self { storage, keyring, cluster, _directory: directory }),
            Err(error) => {
                storage.close().await?;
                Err(error)
            }
        }
    }

    async fn read(storage: &Storage, key: &NodeKey) -> Result<(ClusterRecord, Keyring), ServerError> {
        storage.replay_committed().await?;
        let view = storage.machine.view()?;
        let level = lookup::feature_level(&view).map_err(NodeError::from)?;
        if level > FeatureLevel::SUPPORTED {
            return Err(NodeError::FeatureLevel { level, supported: FeatureLevel::SUPPORTED }.into());
        }
        let found = (lookup::cluster(&view), lookup::keyring(&view));
        let (cluster, record) = (found.0.map_err(NodeError::from)?, found.1.map_err(NodeError::from)?);
        let (cluster, record) = cluster.zip(record).ok_or(NodeError::NoCluster)?;
        Ok((cluster, Keyring::open(&record.age_file, key)?))
    }

    /// Whose keys they are.
    pub fn cluster(&self) -> &ClusterRecord {
        &self.cluster
    }

    /// The data key that is current here.
    pub fn key_version(&self) -> u32 {
        self.keyring.current_version()
    }

    /// The last entry that is known here. What came after it is not.
    pub fn position(&self) -> LogPosition {
        self.storage.machine.applied().position.unwrap_or_default()
    }

    /// Looks keys up.
    ///
    /// # Errors
    /// [`NodeError::Invalid`] if the query is not well formed, [`NodeError::State`] if the storage fails.
    pub fn find(&self, query: &Query) -> Result<Found, NodeError> {
        lookup::find(&self.storage.machine.view()?, query).map_err(|error| match error {
            LookupError::Invalid(invalid) => NodeError::Invalid(invalid),
            LookupError::State(error) => NodeError::State(error),
        })
    }

    /// The next keys behind `after`, in the order of ids; none at the end.
    ///
    /// # Errors
    /// [`NodeError::State`] if the storage fails.
    pub fn page(&self, after: Option<KeyId>) -> Result<Vec<KeyRecord>, NodeError> {
        Ok(lookup::keys_after(&self.storage.machine.view()?, after, PAGE)?)
    }

    /// Opens a key.
    ///
    /// # Errors
    /// As [`Keyring::open_sealed`].
    pub fn open_key(&self, key: &KeyRecord) -> Result<OpenedKey, SealError> {
        let secret = self.keyring.open_sealed(&context_of(key, Part::Secret), &key.sealed)?;
        let package = key.sealed_package.as_ref();
        let package = package.map(|sealed| self.keyring.open_sealed(&context_of(key, Part::Package), sealed));
        Ok(OpenedKey { secret, package: package.transpose()? })
    }

    /// Closes the storage in order.
    ///
    /// # Errors
    /// [`ServerError::Store`].
    pub async fn close(self) -> Result<(), ServerError> {
        Ok(self.storage.close().await?)
    }
}
