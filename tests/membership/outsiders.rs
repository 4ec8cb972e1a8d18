//! Nodes that run and are no members yet.

use std::time::Instant;

use strongroom::proto::{Consistency, FindRequest};
use strongroom::raft::leader::READ_TIMEOUT;

use crate::common::*;
use crate::steps::*;

/// It knows no leader and hears of none: a client must not wait there for one.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_waits_to_be_added_sends_callers_on_at_once() {
    let mut test = three_of(4, "").await;
    test.cluster.start(4).await.expect("starts");
    let (deposit, receipt) = escrow(&test, &[4, 1], 1, 1).await.remove(0);
    let helpdesk = test.client("helpdesk-advanced", &[4, 1]);
    for consistency in [Consistency::Local, Consistency::Quorum] {
        let request = FindRequest {
            key_id_prefix: receipt.key_id.to_string(),
            consistency: consistency.into(),
            min_index: receipt.index,
            ..FindRequest::default()
        };
        // A new client each time: one that was sent on does not ask there again for a while.
        let began = Instant::now();
        let found = test.client("helpdesk", &[4, 1]).find(&request).await.expect("node 1 answers");
        assert_eq!(found.freshness.expect("said").node, 1);
        assert!(began.elapsed() < READ_TIMEOUT, "{consistency:?}: {:?}", began.elapsed());
    }
    let began = Instant::now();
    let recovered = helpdesk.recover(receipt.key_id, "locked out", None).await.expect("node 1 answers");
    assert!(same(&recovered.secret, &deposit.secret));
    let custody =
        test.client("auditor", &[4, 1]).custody(receipt.key_id, None).await.expect("node 1 answers");
    assert_eq!(custody.nodes.len(), ALL.len(), "{custody:?}");
    assert!(began.elapsed() < READ_TIMEOUT, "{:?}", began.elapsed());

    for arguments in [
        &["find", "--machine", "PC-00001", "--timeout", "2"][..],
        &["recover", &receipt.key_id.to_string(), "--reason", "locked out", "--timeout", "2"],
    ] {
        let output = test.strongroom("helpdesk-advanced", &[4], arguments);
        refused(&output, 75, &["this node belongs to no cluster yet"]);
    }
}
