//! The peer service as a caller that is no well-behaved node uses it.

use std::sync::Arc;

use futures_util::stream;
use strongroom::config::{Config, TlsFiles};
use strongroom::escrow::ids::NodeId;
use strongroom::proto::peer::{
    DescribeRequest, DigestsRequest, Envelope, FetchSnapshotRequest, ForwardedChange, ProveCustodyRequest,
    ReadIndexRequest,
};
use strongroom::raft::peers::{PeerClient, Peers};
use strongroom::raft::types::Member;
use strongroom::tls::{ExpectedPeer, Tls, TlsPaths};
use tonic::Status;

use super::TestCluster;

/// The peer service of node `to`, called with the credentials of node `from`: as who knows its data directory, or not.
pub async fn caller_as(test: &TestCluster, from: NodeId, to: NodeId, knows_directory: bool) -> PeerClient {
    let layout = test.cluster.layout();
    let config = Config::load(&layout.node(from).expect("a node").config_path()).expect("a configuration");
    let TlsFiles { ca, cert, key, crl } = config.tls;
    let tls = Tls::load(TlsPaths { ca, cert, key, crl: crl.into() }).expect("its credentials");
    let peers = Peers::new(tls, Arc::default());
    let peer_address = layout.node(to).expect("a node").peer_address();
    let mut stranger = peers.stranger(&peer_address, ExpectedPeer::Node(to));
    if !knows_directory {
        return stranger;
    }
    let described = stranger.describe(DescribeRequest {}).await.expect("it says who it is").into_inner();
    let storage = described.storage.parse().expect("a data directory");
    peers.member(to, &Member { peer_address, storage, ..Member::default() })
}

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
