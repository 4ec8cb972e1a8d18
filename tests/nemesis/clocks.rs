//! Clocks that jump under nodes that run, by hours and days, forward and back.
//!
//! Limits and approvals are judged by the stamps of commands, which never go back: one stamp from a clock that runs ahead would
//! hold all later ones, and keep a grant valid for longer than it says (`raft/clock.rs`). Leases and quorum reads go by the
//! clock that nobody can set.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use strongroom::escrow::ids::Timestamp;
use strongroom::raft::clock::CLOCK_BOUND;

use crate::common::*;
use crate::failing_disk::all_have;
use crate::trial::Trial;

/// By how much the leader's clock jumps, in seconds. Set back further than certificates are old it takes nobody's any more.
const JUMPS_SECONDS: [i64; 3] = [2 * 3_600, -3 * 3_600, 20 * 24 * 3_600];
/// How far its clock is ahead of the others', as a node's metrics have it.
const AHEAD: &str = "strongroom_clock_ahead_seconds";
/// How much of a jump a node may miss, in seconds: the time that an answer takes.
const MISSED_SECONDS: f64 = 2.0;

/// The leader's clock jumps: it says so, hands the leadership over and stamps nothing, while the others go on, by the right
/// time. Set right, it takes part as before. Quorum reads see all that was acknowledged, all the while.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_clock_jumps_says_so_stamps_nothing_and_hands_over() {
    let trial = Trial::without_disks("").await;
    let began = now();
    let load = Load::start(&trial.test, 4).with_readers(&trial.test, &ALL);
    load.progress(20).await;
    for ahead in JUMPS_SECONDS {
        let node = trial.test.leader().await;
        let shows = |holds: fn(f64, f64) -> bool| {
            move |_: u16, page: &str| metric(page, AHEAD).is_some_and(|shown| holds(shown, ahead as f64))
        };
        trial.shims[&node].set_clock(ahead);
        trial
            .test
            .wait_for_page(node, "/metrics", shows(|shown, ahead| (shown - ahead).abs() < MISSED_SECONDS))
            .await;
        let rest = others(node);
        let elsewhere = trial.test.cluster.wait_for("another leader", SOON, &rest, |status| {
            status.leader.is_some_and(|leader| leader != node)
        });
        elsewhere.await.expect("it hands over");
        load.progress(20).await;
        trial.shims[&node].set_clock(0);
        trial
            .test
            .wait_for_page(node, "/metrics", shows(|shown, _| shown.abs() < CLOCK_BOUND.as_secs_f64()))
            .await;
        trial.test.cluster.wait_settled(&ALL).await.expect("settled, with equal digests");
        load.progress(20).await;
    }
    let (kept, _) = load.finish().await;

    let is_right = |at: Timestamp| {
        let at = Duration::from_millis(at.0);
        began - CLOCK_BOUND <= at && at <= now() + CLOCK_BOUND
    };
    for (_, receipt) in &kept {
        assert!(is_right(receipt.at), "{receipt:?}");
    }
    for record in all_have(&trial, &kept).await {
        assert!(is_right(record.at), "{record:?}");
    }
}

/// By the clock of the machine.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}
