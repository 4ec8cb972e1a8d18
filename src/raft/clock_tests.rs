use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::escrow::command::{Action, Command, Reveal};
use crate::escrow::ids::{KeyId, RequestId};
use crate::escrow::lookup;
use crate::escrow::records::Source;
use crate::raft::leader::Forwarded;
use crate::raft::membership::in_process::{Fixture, Running, until};
use crate::raft::{Node, NodeError};
use crate::store::format;

const HOUR: i64 = 3_600_000;

fn moment(wall: u64, boot: u64) -> Moment {
    Moment { wall: Timestamp(wall), boot: Duration::from_millis(boot) }
}

#[test]
fn a_clock_is_wrong_only_if_a_majority_is_on_one_side_of_it() {
    // Leads over the voters that answered, whether this node votes, of how many, and what comes of it.
    let table: [(&[i64], bool, usize, Option<i64>); 17] = [
        (&[], true, 1, Some(0)),
        (&[0, 0], true, 3, Some(0)),
        (&[HOUR, HOUR], true, 3, Some(HOUR)),
        (&[HOUR, 2 * HOUR], true, 3, Some(HOUR)),
        (&[-HOUR, -2 * HOUR], true, 3, Some(-HOUR)),
        // The one in the middle is right, and so is the one with whom another agrees.
        (&[HOUR, -HOUR], true, 3, Some(0)),
        (&[HOUR, 0], true, 3, Some(0)),
        // One of two: nobody knows which is wrong. None at all: not even that they agree.
        (&[HOUR], true, 3, Some(0)),
        (&[HOUR], true, 2, Some(0)),
        (&[], true, 3, None),
        (&[HOUR, HOUR, HOUR], true, 4, Some(HOUR)),
        (&[HOUR, HOUR], true, 4, Some(0)),
        (&[HOUR], true, 4, None),
        (&[HOUR, HOUR, HOUR], true, 5, Some(HOUR)),
        (&[HOUR, HOUR, -HOUR, -HOUR], true, 5, Some(0)),
        // A learner is judged by the voters alone.
        (&[HOUR, HOUR], false, 3, Some(HOUR)),
        (&[HOUR], false, 3, None),
    ];
    for (leads, votes, voters, found) in table {
        assert_eq!(judge(leads, votes, voters), found.map(Skew), "{leads:?} {votes} {voters}");
    }
}

proptest! {
    #[test]
    fn however_clocks_stand_one_that_is_up_may_lead(
        clocks in prop::collection::vec((-4_i64..4, any::<bool>()), 1..8),
    ) {
        let up: Vec<i64> = clocks.iter().filter(|(_, up)| *up).map(|(hours, _)| hours * HOUR).collect();
        let found = (0..up.len()).map(|own| {
            let mut others = up.clone();
            let own = others.remove(own);
            let leads: Vec<_> = others.into_iter().map(|other| own - other).collect();
            judge(&leads, true, clocks.len())
        });
        let mut found = found.peekable();
        prop_assert!(found.peek().is_none() || found.any(|skew| skew.is_none_or(|skew| !skew.is_too_much())));
    }
}

#[test]
fn the_time_an_answer_takes_is_no_skew() {
    let began = moment(1_000_000, 500);
    let lead = |shown, asked, heard| began.lead_over(Timestamp(shown), moment(0, asked), moment(0, heard));
    assert_eq!(lead(1_000_000, 500, 500), 0);
    assert_eq!(lead(1_000_020, 510, 1_510), 0, "it may have been shown at any time in that second");
    assert_eq!(lead(1_001_020, 510, 1_510), -10);
    assert_eq!(lead(999_000, 510, 1_510), 1_010);
    assert_eq!(lead(u64::MAX, 510, 1_510), 1_001_010 - i64::MAX);
    assert_eq!(lead(0, 500, 500), 1_000_000);
}

#[test]
fn a_clock_that_is_set_is_judged_at_once() {
    let began = moment(1_000_000, 500);
    assert_eq!(skew_at(Skew(0), began, moment(1_002_000, 2_500)), Skew(0), "time passes");
    assert_eq!(skew_at(Skew(0), began, moment(4_602_000, 2_500)), Skew(HOUR), "it was set ahead");
    assert_eq!(skew_at(Skew(HOUR), began, moment(1_002_000, 2_500)), Skew(HOUR));
    assert_eq!(skew_at(Skew(40_000), began, moment(962_000, 2_500)), Skew(0), "it was set right");
    assert!(Skew(30_001).is_too_much() && Skew(-30_001).is_too_much());
    assert!(!Skew(30_000).is_too_much() && !Skew(-30_000).is_too_much());
    assert!(is_credible(Timestamp(30_000), Timestamp(0)) && !is_credible(Timestamp(30_001), Timestamp(0)));
}

/// A command that leaves nothing but a denial, stamped `at`.
fn command(through: &Node, at: Timestamp) -> Command {
    let reveal = Reveal { key_id: KeyId(Uuid::new_v4()), user: None, reason: "lost PIN".to_owned() };
    Command {
        request: RequestId(Uuid::new_v4()),
        at,
        by: "spiffe://test/helpdesk-advanced/desk2".parse().unwrap(),
        source: Source { node: through.options().id, address: "192.0.2.1:1".to_owned() },
        action: Action::Reveal(reveal),
    }
}

fn last_stamp(node: &Node) -> Timestamp {
    lookup::heads(&node.view().unwrap()).unwrap().last_stamp
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stamp_from_the_future_is_not_believed_by_the_leader() {
    let fixture = Fixture::new(1);
    fixture.initialize(1).await;
    let leader = fixture.serve(1).await;
    until("it leads", || leader.node.leader_in_contact() == Some(1)).await;
    let forward = async |ahead_ms: u64| {
        let at = Timestamp(crate::raft::now().0 + ahead_ms);
        let forwarded = Forwarded::decode(format::encode(&command(&leader.node, at)).into()).unwrap();
        leader.node.commit_forwarded(forwarded).await.unwrap();
        last_stamp(&leader.node).0
    };
    let day = 24 * 3_600_000;
    assert!(forward(day).await <= crate::raft::now().0, "it counts as given now");
    let within = forward(20_000).await;
    assert!(within > crate::raft::now().0, "clocks need not agree to the second");
    leader.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_is_wrong_neither_stamps_nor_leads() {
    let fixture = Fixture::new(3);
    let [first, second, third] = fixture.three().await;
    let refused = async |Running { node, .. }: &Running| {
        let answer = node.propose(&command(node, node.inner.clock.now())).await;
        matches!(answer, Err(NodeError::Clock(_)))
    };
    until("its clock was compared", || first.node.inner.clock.is_known()).await;
    assert_eq!(first.node.leader(), Some(1));
    assert!(!refused(&first).await);

    first.node.inner.clock.set_ahead(Duration::from_secs(3_600));
    assert!(refused(&first).await, "at once: what it stamps is an hour ahead");
    for Running { node, .. } in [&first, &second, &third] {
        until("another leads", || node.leader_in_contact().is_some_and(|leader| leader != 1)).await;
    }
    assert!(refused(&first).await && !refused(&second).await && !refused(&third).await);
    assert!(first.node.clock_fault().unwrap().to_string().starts_with("its clock is 3600 s ahead of"));
    assert!(last_stamp(&second.node).0 <= crate::raft::now().0, "no stamp of it counts");

    first.node.inner.clock.set_ahead(Duration::ZERO);
    assert!(!refused(&first).await, "it is right again");
    for running in [first, second, third] {
        running.stop().await;
    }
}
