//! Changes asked of a follower, which passes them on to the leader.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use strongroom::client::ClientError;
use strongroom::proto::MembershipChange;

use crate::common::*;
use crate::steps::*;

/// Nobody is elected while the leader is silent for a moment.
const PATIENT: &str = "[raft]\nelection_min_ms = 60000\nelection_max_ms = 61000\n";
/// Longest a follower may take to stop: less than it takes requests under way to be cut, and what holds the data
/// directory to be given up on.
const STOP_MAX: Duration = Duration::from_millis(3_500);

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_stops_lets_go_of_the_change_it_passes_on() {
    let mut test = three_of(3, PATIENT).await;
    let leader = test.leader().await;
    let follower = ALL.into_iter().find(|id| *id != leader).expect("three nodes");
    let other = ALL.into_iter().find(|id| ![leader, follower].contains(id)).expect("three nodes");

    // A leader that says nothing more: the change is under way for as long as this test likes.
    signal(&test, leader, Signal::STOP);
    let change = MembershipChange { change: Some(transfer(other)), ..MembershipChange::default() };
    let mut steps = test.client("operator", &[follower]).change_membership(&change).await.expect("taken");
    let asked = tokio::spawn(async move { steps.next().await });

    let began = Instant::now();
    assert!(test.cluster.stop(follower).await.expect("stopped"), "it ends by itself, with success");
    let took = began.elapsed();
    let error = asked.await.expect("ran").expect_err("nobody knows what becomes of the change");
    signal(&test, leader, Signal::CONT);
    assert!(took < STOP_MAX, "the follower stopped after {took:?}");
    assert!(matches!(error, ClientError::Temporary(_)), "exit code 75: {error:?}");
    assert!(error.to_string().contains("is stopping"), "{error}");

    // Nothing is left behind that keeps it from starting, or the change from being made.
    test.cluster.start(follower).await.expect("its data directory is free");
    test.cluster.wait_settled(&ALL).await.expect("it follows again");
    repeat(&test, &ALL, &["transfer", &other.to_string()]).await;
}
