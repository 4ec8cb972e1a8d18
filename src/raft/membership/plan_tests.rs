use proptest::prelude::*;

use super::*;
use crate::raft::membership::refused::Obstacle;

const AWAY: Standing =
    Standing { reachable: false, lag: 0, unapplied: 0, draining: false, supports: FeatureLevel(1) };
const WELL: Standing = Standing { reachable: true, supports: FeatureLevel(2), ..AWAY };
const LAGGING: Standing = Standing { lag: LAG_MAX_ENTRIES + 1, unapplied: LAG_MAX_ENTRIES + 1, ..WELL };
/// Has received everything and applied little of it.
const APPLYING: Standing = Standing { unapplied: LAG_MAX_ENTRIES + 1, ..WELL };

/// Everybody well, the first voter leads.
fn cluster(voters: &[NodeId], learners: &[NodeId]) -> Situation {
    let all: BTreeSet<NodeId> = voters.iter().chain(learners).copied().collect();
    Situation {
        members: Members {
            voters: voters.iter().copied().collect(),
            learners: learners.iter().copied().collect(),
            leader: voters.first().copied(),
        },
        standing: all.iter().map(|node| (*node, WELL)).collect(),
        registered: all,
        departed: BTreeSet::new(),
        level: FeatureLevel(2),
    }
}

fn with(mut situation: Situation, node: NodeId, standing: Standing) -> Situation {
    situation.standing.insert(node, standing);
    situation
}

fn add(node: NodeId) -> Asked {
    Asked::Add { node, learner: false }
}

fn replace(old: NodeId, new: NodeId) -> Asked {
    Asked::Replace { old, new, joins: true }
}

#[track_caller]
fn refused(situation: &Situation, asked: Asked, why: &str) -> Refused {
    let refused = plan(situation, asked, false).expect_err(why);
    assert!(refused.reason.contains(why), "{} does not say {why:?}", refused.reason);
    assert!(!refused.instead.is_empty(), "{}: what to do instead is said", refused.reason);
    refused
}

#[track_caller]
fn voters_after(situation: &Situation, asked: Asked, any: bool) -> Vec<NodeId> {
    plan(situation, asked, any).expect("possible").after.voters.into_iter().collect()
}

#[test]
fn failure_tolerance_is_what_is_left_beyond_a_majority() {
    assert_eq!([1, 2, 3, 4, 5].map(failure_tolerance), [0, 0, 1, 1, 2]);
}

#[test]
fn growing_and_shrinking_between_three_and_five_is_allowed_and_even_numbers_get_a_warning() {
    assert_eq!(voters_after(&cluster(&[1], &[]), add(2), false), [1, 2]);
    assert_eq!(voters_after(&cluster(&[1, 2], &[]), add(3), false), [1, 2, 3]);
    let four = plan(&cluster(&[1, 2, 3], &[]), add(4), false).expect("possible");
    assert_eq!((four.after.quorum(), failure_tolerance(four.after.voters.len())), (3, 1));
    assert!(four.warnings[0].contains("odd"), "{:?}", four.warnings);
    let five = plan(&cluster(&[1, 2, 3, 4], &[]), add(5), false).expect("possible");
    assert!(five.warnings.is_empty());
    assert_eq!(voters_after(&cluster(&[1, 2, 3, 4, 5], &[]), Asked::Remove(5), false), [1, 2, 3, 4]);
    assert_eq!(voters_after(&cluster(&[1, 2, 3, 4, 5, 6, 7], &[]), Asked::Remove(7), false).len(), 6);
}

#[test]
fn fewer_than_three_and_more_than_five_voters_must_be_meant() {
    let three = cluster(&[1, 2, 3], &[]);
    for asked in [Asked::Remove(3), Asked::Demote(3)] {
        let refused = refused(&three, asked, "fewer than 3");
        assert_eq!(refused.obstacle, Obstacle::Conflict);
        assert!(refused.instead.contains("--any-voter-count"));
        assert_eq!(voters_after(&three, asked, true), [1, 2]);
    }
    let five = cluster(&[1, 2, 3, 4, 5], &[6]);
    for asked in [add(7), Asked::Promote(6)] {
        refused(&five, asked, "more than 5");
        assert_eq!(voters_after(&five, asked, true).len(), 6);
    }
    assert_eq!(voters_after(&five, Asked::Add { node: 7, learner: true }, false).len(), 5, "read replicas");
}

#[test]
fn the_last_voter_never_goes() {
    for asked in [Asked::Remove(1), Asked::Demote(1)] {
        let refused = plan(&cluster(&[1], &[2]), asked, true).expect_err("the last voter");
        assert!(refused.reason.contains("last voter"), "{}", refused.reason);
    }
}

#[test]
fn a_change_that_leaves_the_reachable_voters_below_a_quorum_is_refused() {
    let three = with(cluster(&[1, 2, 3], &[]), 3, AWAY);
    let four = with(cluster(&[1, 2, 3, 4], &[]), 3, AWAY);
    let refusal = plan(&three, Asked::Remove(2), true).expect_err("node 1 would be alone with node 3");
    assert!(refusal.reason.contains("lose its quorum"), "{}", refusal.reason);
    assert!(refusal.reason.contains("node 3 cannot be reached"), "{}", refusal.reason);
    refused(&four, Asked::Remove(4), "lose its quorum");
    refused(
        &with(cluster(&[1, 2, 3], &[]), 3, LAGGING),
        Asked::Replace { old: 2, new: 4, joins: true },
        "lags by",
    );
    // What is away may go, and may be exchanged: that is what the change is for.
    assert_eq!(voters_after(&three, Asked::Remove(3), true), [1, 2]);
    assert_eq!(voters_after(&three, replace(3, 4), false), [1, 2, 4]);
    assert_eq!(voters_after(&four, Asked::Remove(3), false), [1, 2, 4]);
    // Two away of four: a fifth would make it three of five, but three of four must agree to that first.
    refused(&with(four, 4, AWAY), add(5), "lose its quorum");
    // And two voters of which one is away can do nothing.
    refused(&with(cluster(&[1, 2], &[]), 2, AWAY), add(3), "lose its quorum");
}

#[test]
fn a_learner_that_lags_or_is_away_is_not_promoted() {
    let four = cluster(&[1, 2, 3], &[4]);
    assert_eq!(voters_after(&four, Asked::Promote(4), false), [1, 2, 3, 4]);
    let lagging = refused(&with(four.clone(), 4, LAGGING), Asked::Promote(4), "node 4 lags");
    assert!(lagging.reason.contains("257 entries") && lagging.reason.contains("at most 256"), "{lagging}");
    refused(&with(four.clone(), 4, AWAY), Asked::Promote(4), "cannot be reached");
    refused(&with(four, 4, APPLYING), Asked::Promote(4), "257 entries still to apply");
}

#[test]
fn what_is_so_already_changes_nothing_and_says_so() {
    let mut left = cluster(&[1, 2, 4], &[5]);
    left.registered.insert(3);
    left.departed.insert(3);
    for asked in [
        add(2),
        Asked::Add { node: 5, learner: true },
        Asked::Promote(2),
        Asked::Demote(5),
        Asked::Remove(3),
        replace(3, 4),
        Asked::Transfer(Some(1)),
    ] {
        let plan = plan(&left, asked, false).unwrap_or_else(|refused| panic!("{asked:?}: {refused}"));
        assert_eq!((plan.work, &plan.before), (Work::Nothing, &plan.after), "{asked:?}");
        assert!(plan.warnings[0].contains("nothing to change"), "{asked:?}");
    }
}

#[test]
fn a_node_nobody_knows_is_not_found() {
    let three = cluster(&[1, 2, 3], &[]);
    for asked in [
        Asked::Promote(9),
        Asked::Demote(9),
        Asked::Remove(9),
        replace(9, 4),
        Asked::Replace { old: 3, new: 9, joins: false },
        Asked::Transfer(Some(9)),
    ] {
        assert_eq!(refused(&three, asked, "node 9 is no member").obstacle, Obstacle::NotFound, "{asked:?}");
    }
}

#[test]
fn a_node_that_was_admitted_and_never_joined_can_be_taken_out() {
    let mut situation = cluster(&[1, 2, 3], &[]);
    situation.registered.insert(4);
    let plan = plan(&situation, Asked::Remove(4), false).expect("possible");
    assert_eq!((plan.work, plan.before), (Work::Remove(4), plan.after));
    refused(&situation, replace(4, 5), "is no member");
}

#[test]
fn a_replacement_is_new_or_a_learner_and_never_the_same_node() {
    let situation = cluster(&[1, 2, 3], &[4]);
    let swapped = plan(&situation, Asked::Replace { old: 3, new: 4, joins: false }, false).expect("possible");
    assert_eq!(swapped.work, Work::Replace { old: 3, new: 4 });
    assert!(swapped.after.learners.is_empty());
    refused(&situation, replace(3, 3), "cannot replace itself");
    refused(&situation, replace(3, 2), "voter already");
    let learner = plan(&situation, replace(4, 5), false).expect("a learner is replaced by a learner");
    assert_eq!(learner.after.learners, BTreeSet::from([5]));
    assert_eq!(learner.after.voters, learner.before.voters);
    let mut left = cluster(&[1, 2], &[]);
    left.registered.insert(3);
    left.departed.insert(3);
    refused(&left, replace(3, 4), "left already");
}

#[test]
fn a_leader_that_loses_its_vote_hands_over_to_a_sound_voter_first() {
    let five = cluster(&[1, 2, 3, 4, 5], &[]);
    for asked in [Asked::Remove(1), Asked::Demote(1), replace(1, 6)] {
        let plan = plan(&five, asked, false).expect("possible");
        let successor = plan.hand_over.expect("the leader hands over");
        assert!(plan.after.voters.contains(&successor), "{asked:?}");
        assert_eq!(plan.after.leader, Some(successor));
    }
    assert_eq!(plan(&five, Asked::Remove(5), false).expect("possible").hand_over, None);
    let best =
        with(with(five.clone(), 2, Standing { lag: 5, ..WELL }), 3, Standing { draining: true, ..WELL });
    let plan = plan(&best, Asked::Remove(1), false).expect("possible");
    assert_eq!(plan.hand_over, Some(4), "not the one that is stopping, nor one that has less of the log");
    let applying = with(with(five, 2, APPLYING), 3, Standing { unapplied: 5, ..WELL });
    let hand_over = super::plan(&applying, Asked::Remove(1), false).expect("possible").hand_over;
    assert_eq!(hand_over, Some(4), "nor one that has received everything and applied less");
}

#[test]
fn a_voter_that_is_still_applying_makes_up_the_quorum_and_does_not_lead() {
    let three = cluster(&[1, 2, 3], &[]);
    let applying = with(with(three.clone(), 2, APPLYING), 3, APPLYING);
    assert_eq!(voters_after(&applying, add(4), false), [1, 2, 3, 4], "it confirms what it receives");
    refused(&applying, Asked::Transfer(Some(3)), "node 3 lags: it has 257 entries still to apply");
    // One that is down has not said what it has applied: that is not the reason.
    let down = with(three.clone(), 3, Standing { reachable: false, ..APPLYING });
    refused(&down, Asked::Transfer(Some(3)), "node 3 cannot be reached");
    let nobody = refused(&applying, Asked::Transfer(None), "node 2 has 257 entries still to apply");
    assert!(nobody.reason.starts_with("no other voter can"), "{nobody}");
    let plan = plan(&with(three, 2, APPLYING), Asked::Transfer(None), false).expect("possible");
    assert_eq!(plan.work, Work::Transfer(3));
}

#[test]
fn the_leadership_goes_only_to_a_sound_voter() {
    let situation = cluster(&[1, 2, 3], &[4]);
    assert_eq!(plan(&situation, Asked::Transfer(None), false).expect("possible").work, Work::Transfer(2));
    let to_three = plan(&situation, Asked::Transfer(Some(3)), false).expect("possible");
    assert_eq!((to_three.after.leader, to_three.hand_over), (Some(3), None));
    assert_eq!(to_three.after.voters, to_three.before.voters);
    refused(&situation, Asked::Transfer(Some(4)), "a learner cannot lead");
    refused(&with(situation.clone(), 3, AWAY), Asked::Transfer(Some(3)), "cannot be reached");
    refused(&with(situation.clone(), 3, LAGGING), Asked::Transfer(Some(3)), "lags");
    refused(&with(situation, 3, Standing { draining: true, ..WELL }), Asked::Transfer(Some(3)), "stopping");
    refused(&cluster(&[1], &[]), Asked::Transfer(None), "no other voter");
}

#[test]
fn who_stays_must_support_the_removal_and_who_goes_need_not() {
    let old = |situation, node| with(situation, node, Standing { supports: FeatureLevel(1), ..WELL });
    let first = Situation { level: FeatureLevel(1), ..cluster(&[1, 2, 3, 4], &[]) };
    assert_eq!(voters_after(&first, Asked::Remove(4), false), [1, 2, 3], "the level can be raised");
    refused(&old(first.clone(), 2), Asked::Remove(4), "node 2 supports level 1 only");
    assert_eq!(voters_after(&with(first.clone(), 4, AWAY), Asked::Remove(4), false), [1, 2, 3]);
    assert_eq!(voters_after(&old(first, 4), Asked::Remove(4), false), [1, 2, 3]);
}

fn asked() -> impl Strategy<Value = Asked> {
    let node = 1..10u64;
    prop_oneof![
        (node.clone(), any::<bool>()).prop_map(|(node, learner)| Asked::Add { node, learner }),
        node.clone().prop_map(Asked::Demote),
        node.clone().prop_map(Asked::Promote),
        node.clone().prop_map(Asked::Remove),
        (node.clone(), node.clone(), any::<bool>()).prop_map(|(old, new, joins)| Asked::Replace {
            old,
            new,
            joins
        }),
        proptest::option::of(node).prop_map(Asked::Transfer),
    ]
}

fn standing() -> impl Strategy<Value = Standing> {
    let entries = prop_oneof![Just(0), Just(LAG_MAX_ENTRIES), Just(LAG_MAX_ENTRIES + 1)];
    (any::<bool>(), entries.clone(), entries, any::<bool>()).prop_map(
        |(reachable, lag, unapplied, draining)| Standing {
            reachable,
            lag,
            unapplied: unapplied.max(lag),
            draining,
            supports: FeatureLevel(2),
        },
    )
}

/// Each of the nodes 1 to 9 is a voter, a learner, registered, departed, or nobody; the first voter leads.
fn situation() -> impl Strategy<Value = Situation> {
    let node = (0..6u8, standing(), any::<bool>());
    proptest::collection::vec(node, 9).prop_map(|nodes| {
        let mut situation = cluster(&[], &[]);
        for (id, (role, standing, departed)) in (1..).zip(nodes) {
            match role {
                0 | 1 => drop(situation.members.voters.insert(id)),
                2 => drop(situation.members.learners.insert(id)),
                3 => {}
                _ => continue,
            }
            situation.registered.insert(id);
            // Who left and is not out yet is a member still.
            if departed && situation.members.leader.is_some() {
                situation.departed.insert(id);
            }
            let leads = situation.members.leader.is_none() && situation.members.voters.contains(&id);
            if leads {
                situation.members.leader = Some(id);
            }
            if role != 3 {
                situation.standing.insert(id, if leads { WELL } else { standing });
            }
        }
        situation
    })
}

proptest! {
    #[test]
    fn whatever_is_allowed_keeps_a_majority_of_old_and_new_voters_that_can_agree(
        situation in situation(), asked in asked(), any in any::<bool>(),
    ) {
        prop_assume!(situation.members.leader.is_some());
        let Ok(plan) = plan(&situation, asked, any) else { return Ok(()) };
        let Plan { before, after, work, hand_over, .. } = &plan;
        prop_assert_eq!(before, &situation.members);
        prop_assert!(!after.voters.is_empty());
        prop_assert!(after.voters.is_disjoint(&after.learners));
        prop_assert!(after.leader.is_none_or(|leader| after.voters.contains(&leader)));
        prop_assert!(hand_over.is_none_or(|to| situation.standing[&to].may_lead() && before.voters.contains(&to)));
        if *work == Work::Nothing {
            prop_assert_eq!(before, after);
        }
        if before.voters == after.voters {
            return Ok(());
        }
        // One vote comes, one goes, or both.
        prop_assert!(before.voters.difference(&after.voters).count() <= 1);
        prop_assert!(after.voters.difference(&before.voters).count() <= 1);
        let gone = match work {
            Work::Remove(node) | Work::Replace { old: node, .. } => Some(*node),
            _ => None,
        };
        for half in [&before.voters, &after.voters] {
            let agree = half.iter().filter(|node| {
                Some(**node) != gone
                    && situation.standing.get(*node).is_none_or(|standing| {
                        standing.sound() || (!before.voters.contains(*node) && standing.reachable)
                    })
            });
            prop_assert!(agree.count() >= quorum(half.len()));
        }
        let (was, is) = (before.voters.len(), after.voters.len());
        prop_assert!(any || is >= VOTERS_MIN || is >= was);
        prop_assert!(any || is <= VOTERS_MAX || is <= was);
        prop_assert_eq!(is % 2 == 0, plan.warnings.iter().any(|warning| warning.contains("odd")));
    }

    #[test]
    fn a_plan_that_was_carried_out_has_nothing_left_to_do(situation in situation(), asked in asked()) {
        prop_assume!(situation.members.leader.is_some());
        let Ok(done) = plan(&situation, asked, true) else { return Ok(()) };
        let mut then = Situation { members: done.after.clone(), ..situation };
        let now: Vec<NodeId> = then.members.voters.iter().chain(&then.members.learners).copied().collect();
        then.standing = now.iter().map(|node| (*node, WELL)).collect();
        then.registered.extend(now);
        if let Work::Remove(node) | Work::Replace { old: node, .. } = done.work {
            then.departed.insert(node);
        }
        // Naming nobody moves the leadership on each time.
        if matches!(asked, Asked::Transfer(None)) {
            return Ok(());
        }
        match plan(&then, asked, true) {
            Ok(again) => prop_assert_eq!(again.work, Work::Nothing),
            // Somebody else of the situation stands in the way: nothing is begun either.
            Err(refused) => prop_assert_eq!(refused.obstacle, Obstacle::Conflict),
        }
    }
}
