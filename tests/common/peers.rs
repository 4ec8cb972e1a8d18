//! The peer service as a caller that is no well-behaved node uses it.

use futures_util::stream;
use strongroom::proto::peer::{
    DigestsRequest, Envelope, FetchSnapshotRequest, ForwardedChange, ProveCustodyRequest, ReadIndexRequest,
};
use strongroom::raft::peers::PeerClient;
use tonic::Status;

/// What `client` is answered to each call of the peer service but `describe`, each with as little in it as it takes.
pub async fn every_peer_call(client: &mut PeerClient) -> Vec<(&'static str, Result<(), Status>)> {
    vec![
        ("append", client.append(stream::pending()).await.map(drop)),
        ("vote", client.vote(Envelope::default()).await.map(drop)),
        ("pre_vote", client.pre_vote(Envelope::default()).await.map(drop)),
        ("transfer_leader", client.transfer_leader(Envelope::default()).await.map(drop)),
        ("install_snapshot", client.install_snapshot(stream::empty()).await.map(drop)),
        ("propose", client.propose(Envelope::default()).await.map(drop)),
        ("read_index", client.read_index(ReadIndexRequest {}).await.map(drop)),
        ("change_membership", client.change_membership(ForwardedChange::default()).await.map(drop)),
        ("digests", client.digests(DigestsRequest::default()).await.map(drop)),
        ("fetch_snapshot", client.fetch_snapshot(FetchSnapshotRequest::default()).await.map(drop)),
        ("prove_custody", client.prove_custody(ProveCustodyRequest::default()).await.map(drop)),
    ]
}
