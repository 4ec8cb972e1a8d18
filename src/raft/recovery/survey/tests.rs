use super::*;

const LIVE_MS: u64 = 2_400;

fn cluster(n: u128) -> ClusterId {
    ClusterId(Uuid::from_u128(n))
}

fn member(id: NodeId) -> Member {
    Member { storage: Uuid::from_u128(id.into()), ..Member::default() }
}

/// Node `id` of voters 1 to `voters` with a learner 9, whose log ends at `last`.
fn survivor(id: NodeId, voters: NodeId, last: (u64, u64)) -> Survivor {
    let members = (1..=voters).chain([9]).map(|id| (id, member(id))).collect();
    Survivor {
        storage: member(id).storage,
        cluster: Some(cluster(1)),
        last: LogPosition { term: last.0, index: last.1 },
        committed: last.1,
        applied: last.1,
        leader: None,
        quorum_age_ms: None,
        unfit: None,
        membership: KnownMembership { voters: vec![(1..=voters).collect()], members },
    }
}

/// What node `node` of `voters` sees if those in `logs` survive.
fn survey(node: NodeId, voters: NodeId, logs: &[(NodeId, (u64, u64))]) -> Survey {
    let of =
        |id: NodeId| logs.iter().find(|(other, _)| *other == id).map(|(_, last)| survivor(id, voters, *last));
    let others = (1..=voters).chain([9]).filter(|id| *id != node);
    let asked = others.map(|id| (id, Asked { member: member(id), found: of(id).ok_or("away".to_owned()) }));
    Survey { node, running: false, local: of(node).expect("itself"), asked: asked.collect() }
}

fn objections(survey: &Survey) -> Vec<Objection> {
    survey.objections(&Allowed::default(), LIVE_MS)
}

#[test]
fn a_lone_survivor_of_three_may_go_on_and_says_what_may_be_lost() {
    let survey = survey(1, 3, &[(1, (4, 90))]);
    assert_eq!(objections(&survey), []);
    assert_eq!((survey.most(), survey.loss(1)), (1, Loss::After(90)));
}

#[test]
fn a_quorum_that_answers_is_to_be_started_instead() {
    let survey = survey(1, 3, &[(1, (4, 90)), (3, (4, 80))]);
    assert_eq!(objections(&survey), [Objection::Quorum(BTreeSet::from([1, 3]))]);
}

#[test]
fn who_has_more_of_the_log_goes_first_by_term_then_by_index() {
    let survey = survey(1, 5, &[(1, (4, 90)), (2, (5, 70))]);
    assert_eq!(survey.most(), 2);
    let ahead = Objection::Ahead {
        node: 2,
        last: LogPosition { term: 5, index: 70 },
        own: LogPosition { term: 4, index: 90 },
    };
    assert_eq!(objections(&survey), [ahead]);
    let allowed = Allowed { losing_entries_of: BTreeSet::from([2]), ..Allowed::default() };
    assert_eq!(survey.objections(&allowed, LIVE_MS), []);
}

#[test]
fn of_four_voters_two_have_everything_that_was_acknowledged() {
    let survey = survey(1, 4, &[(1, (4, 90)), (2, (4, 80))]);
    assert_eq!(objections(&survey), []);
    assert_eq!(survey.loss(1), Loss::Nothing);
    assert_eq!(survey.loss(2), Loss::After(80), "it has not the most");
}

#[test]
fn a_leader_or_a_quorum_seen_just_now_forbids_it() {
    let mut survey = survey(1, 5, &[(1, (4, 90)), (2, (4, 90))]);
    let mut found = survivor(2, 5, (4, 90));
    found.quorum_age_ms = Some(LIVE_MS + 1);
    survey.asked.get_mut(&2).unwrap().found = Ok(found.clone());
    assert_eq!(objections(&survey), []);
    found.quorum_age_ms = Some(LIVE_MS);
    survey.asked.get_mut(&2).unwrap().found = Ok(found.clone());
    assert!(matches!(objections(&survey)[..], [Objection::Live { node: 2, leader: None, .. }]));
    (found.leader, found.quorum_age_ms) = (Some(3), None);
    survey.asked.get_mut(&2).unwrap().found = Ok(found);
    assert!(matches!(objections(&survey)[..], [Objection::Live { node: 2, leader: Some(3), .. }]));
}

#[test]
fn another_history_and_another_disk_are_no_survivors() {
    let mut survey = survey(1, 3, &[(1, (4, 90)), (2, (4, 90)), (3, (4, 95))]);
    survey.asked.get_mut(&2).unwrap().found.as_mut().unwrap().cluster = Some(cluster(2));
    survey.asked.get_mut(&3).unwrap().found.as_mut().unwrap().storage = Uuid::from_u128(77);
    assert_eq!(survey.survivors().into_keys().collect::<Vec<_>>(), [1]);
    assert_eq!(objections(&survey), [Objection::Recovered { node: 2, cluster: cluster(2) }]);
}

#[test]
fn a_learner_goes_on_only_if_no_voter_does_and_the_operator_says_so() {
    let allowed = Allowed { from_learner: true, ..Allowed::default() };
    let alone = survey(9, 3, &[(9, (4, 90))]);
    assert_eq!(objections(&alone), [Objection::Learner { voter: None }]);
    assert_eq!(alone.objections(&allowed, LIVE_MS), []);
    let beside_a_voter = survey(9, 3, &[(9, (4, 90)), (2, (4, 90))]);
    assert_eq!(beside_a_voter.objections(&allowed, LIVE_MS), [Objection::Learner { voter: Some(2) }]);
}

#[test]
fn both_halves_of_a_change_under_way_count() {
    let mut survey = survey(1, 5, &[(1, (4, 90)), (2, (4, 90))]);
    let halves = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
    survey.local.membership.voters = halves.clone();
    survey.asked.get_mut(&2).unwrap().found.as_mut().unwrap().membership.voters = halves;
    assert_eq!(objections(&survey), [], "no majority of the second half");
    assert_eq!(survey.loss(1), Loss::Nothing, "what both halves agreed on, one of the first half has");
    // A survivor that knows of the end of the change has the last word, with more of the log.
    survey.asked.get_mut(&2).unwrap().found.as_mut().unwrap().membership.voters =
        vec![BTreeSet::from([1, 2, 3])];
    assert_eq!(objections(&survey), [Objection::Quorum(BTreeSet::from([1, 2]))]);
}

#[test]
fn a_node_that_runs_or_is_no_member_is_refused() {
    let mut survey = survey(1, 3, &[(1, (4, 90))]);
    survey.running = true;
    survey.local.membership.members.remove(&1);
    assert_eq!(objections(&survey), [Objection::Running, Objection::NoMember]);
}

#[test]
fn a_state_that_is_known_to_be_wrong_is_nothing_to_go_on_from() {
    let mut survey = survey(1, 3, &[(1, (4, 90))]);
    survey.local.unfit = Some("its state differs".to_owned());
    assert_eq!(objections(&survey), [Objection::Unfit("its state differs".to_owned())]);
}
