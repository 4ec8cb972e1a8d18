//! Whether what was acknowledged is there.

use futures_util::StreamExt as _;
use strongroom::client::Deposit;
use strongroom::escrow::ids::NodeId;
use strongroom::proto::FindRequest;
use strongroom::seal::receipt::Receipt;
use strongroom::secret::Secret;

use super::TestCluster;

/// A key that was acknowledged, and its receipt.
pub type Kept = (Deposit, Receipt);

/// Reads every key back at `node` and compares it with what was escrowed.
pub async fn assert_all_readable(cluster: &TestCluster, node: NodeId, acknowledged: &[Kept]) {
    let client = cluster.client("helpdesk-advanced", &[node]);
    for (deposit, receipt) in acknowledged {
        let key_id = receipt.key_id;
        let recovered = client.recover(key_id, "locked out", None).await;
        let recovered =
            recovered.unwrap_or_else(|error| panic!("acknowledged key {key_id} at node {node}: {error}"));
        assert!(same(&recovered.secret, &deposit.secret), "key {key_id} at node {node} is another secret");
    }
}

/// Looks every key up at `node`, in its own replica, and compares fingerprints: it holds that very secret. Cheaper than
/// [`assert_all_readable`], which puts every look on record.
pub async fn assert_all_held(cluster: &TestCluster, node: NodeId, acknowledged: &[Kept]) {
    /// How many lookups are under way at once.
    const AT_ONCE: usize = 16;
    let client = cluster.client("auditor", &[node]);
    let lookups = acknowledged.iter().map(|(_, receipt)| {
        let client = client.clone();
        async move {
            let request = FindRequest { key_id_prefix: receipt.key_id.to_string(), ..FindRequest::default() };
            let found = client.find(&request).await.expect("a local read");
            assert_eq!(found.freshness.expect("said").node, node);
            let fingerprints: Vec<_> = found.keys.into_iter().map(|key| key.fingerprint).collect();
            assert_eq!(
                fingerprints,
                [receipt.fingerprint.to_string()],
                "key {} at node {node}",
                receipt.key_id
            );
        }
    });
    futures_util::stream::iter(lookups).buffer_unordered(AT_ONCE).collect::<()>().await;
}

/// Compares secrets without showing them.
pub fn same(one: &Secret, other: &Secret) -> bool {
    one.expose() == other.expose()
}
