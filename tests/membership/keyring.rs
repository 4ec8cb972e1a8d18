//! What a node that was removed can still open: what it could open before, and nothing that was escrowed since.

use strongroom::config::Config;
use strongroom::escrow::ids::{KeyId, NodeId};
use strongroom::escrow::lookup;
use strongroom::escrow::records::{KeyRecord, KeyringRecord};
use strongroom::raft::storage::{Storage, StorageOptions};
use strongroom::seal::{Keyring, NodeKey, Part, SealContext, SealError};
use strongroom::secret::Secret;
use strongroom::store::directory::DataDir;

use crate::common::*;
use crate::steps::*;

/// The disk of a stopped node, as one who took it out of the machine reads it.
struct Disk {
    storage: Storage,
    /// The node's private identity.
    key: NodeKey,
}

impl Disk {
    async fn of(test: &TestCluster, node: NodeId) -> Self {
        let config = test.cluster.layout().node(node).expect("a node").config_path();
        let config = Config::load(&config).expect("a configuration");
        let data = test.cluster.layout().node(node).expect("a node").data_path();
        let data = DataDir::open_or_create(data).expect("the node is stopped");
        let storage = Storage::open(&data, StorageOptions::default()).await.expect("its storage opens");
        storage.replay_committed().await.expect("what is committed applies");
        Self { storage, key: NodeKey::load(&config.identity.node_key).expect("its key") }
    }

    /// The keyring, sealed.
    fn keyring(&self) -> KeyringRecord {
        let view = self.storage.machine.view().expect("a view");
        lookup::keyring(&view).expect("read").expect("a keyring")
    }

    fn record(&self, key: KeyId) -> Option<KeyRecord> {
        lookup::key(&self.storage.machine.view().expect("a view"), key).expect("read")
    }

    async fn close(self) -> NodeKey {
        self.storage.close().await.expect("closed");
        self.key
    }
}

fn open(keyring: &Keyring, record: &KeyRecord) -> Result<Secret, SealError> {
    let KeyRecord { machine, volume, id, kind, sealed, .. } = record;
    let context = SealContext { machine, volume, key_id: *id, kind: *kind, part: Part::Secret };
    keyring.open_sealed(&context, sealed)
}

/// P6: with its disk before and after, and even with everything that the others have on theirs since.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_opens_what_was_escrowed_before_and_nothing_that_was_escrowed_since() {
    let mut test = three_of(4, "").await;
    removal_allowed(&test, &ALL).await;
    test.cluster.start(4).await.expect("starts");
    make(&test, &ALL, add(&test, 4, false)).await;
    let (deposited, before) = escrow(&test, &ALL, 1, 1).await.remove(0);
    test.cluster.wait_settled(&[1, 2, 3, 4]).await.expect("node 4 has it");
    test.cluster.kill(4).await.expect("killed");
    let disk = Disk::of(&test, 4).await;
    let as_member = disk.keyring();
    disk.close().await;

    // It is up when it is removed, and hears of it.
    test.cluster.start(4).await.expect("comes back");
    test.cluster.wait_settled(&[1, 2, 3, 4]).await.expect("it follows");
    make(&test, &ALL, remove(4)).await;
    let (_, since) = escrow(&test, &ALL, 2, 1).await.remove(0);
    let removed = |_, reasons: &str| reasons.contains("was removed from the cluster");
    test.wait_for_page(4, "/readyz", removed).await;
    test.cluster.wait_settled(&ALL).await.expect("the others have it");
    for node in [1, 4] {
        test.cluster.kill(node).await.expect("killed");
    }
    let (theirs, ours) = (Disk::of(&test, 4).await, Disk::of(&test, 1).await);
    assert!(theirs.record(since.key_id).is_none(), "it did not even get it");
    let old = theirs.record(before.key_id).expect("it was a member");
    let new = ours.record(since.key_id).expect("acknowledged");
    let kept = ours.record(before.key_id).expect("acknowledged");
    assert!(new.sealed.key_version > old.sealed.key_version, "the data key was rotated");

    // Whatever keyring it has ever had, on its own disk or on another's: the old record opens with one at least…
    let (last, current) = (theirs.keyring(), ours.keyring());
    let key = theirs.close().await;
    let refused = Keyring::open(&current.age_file, &key).expect_err("it is not sealed to one that left");
    assert!(matches!(refused, SealError::NotARecipient), "{refused:?}");
    let opened: Vec<Keyring> =
        [&as_member, &last].iter().filter_map(|record| Keyring::open(&record.age_file, &key).ok()).collect();
    let secret = opened.first().map(|keyring| open(keyring, &old).expect("what it had stays readable to it"));
    assert!(same(&secret.expect("it was a member"), &deposited.secret));
    // … and the new one with none.
    for keyring in &opened {
        let refused = open(keyring, &new).expect_err("escrowed after it left");
        assert!(matches!(refused, SealError::UnknownKeyVersion { .. }), "{refused:?}");
    }

    // A member opens both as the cluster keeps them: the older one may have been sealed anew since.
    let key = ours.close().await;
    let keyring = Keyring::open(&current.age_file, &key).expect("sealed to every member");
    assert!(same(&open(&keyring, &kept).expect("readable"), &deposited.secret));
    assert!(same(&open(&keyring, &new).expect("readable"), &deposit(2).secret));
}
