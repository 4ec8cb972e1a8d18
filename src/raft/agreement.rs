//! Whether replicas agree, judged from their digests at the same index. Pure: asking is in `healing`.
//!
//! Only voters bear witness. A learner is compared with them like anyone, but does not count: learners are filled from
//! a snapshot of the leader, so any number of them would repeat one voter's fault. A voter counts itself. Nobody judges
//! anyone but himself: who finds a majority of the voters against it is wrong, and puts itself aside; without a
//! majority either way nobody knows who is wrong, and both say that they differ.

use std::collections::BTreeMap;
use std::fmt;

use crate::escrow::ids::NodeId;
use crate::store::digest::{Digest, DigestValue};

/// What this node last found when it compared its state with that of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Agreement {
    /// Nobody it was compared with has another state.
    Agrees,
    /// Somebody has, and this node is not in the majority.
    Differs,
    /// Not compared yet: nobody answered, or there was no index in common.
    #[default]
    Unknown,
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Agrees => "agrees",
            Self::Differs => "differs",
            Self::Unknown => "unknown",
        })
    }
}

/// The digests one voter has, by index.
pub(super) type Testimony = BTreeMap<u64, DigestValue>;

/// Digests by index.
pub(super) fn testimony(digests: impl IntoIterator<Item = Digest>) -> Testimony {
    digests.into_iter().map(|digest| (digest.index, digest.value)).collect()
}

/// What comes out of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The same digest at `index` as every voter that has one there. `majority`: they are one, this node included if it
    /// votes.
    Agrees { index: u64, majority: bool },
    /// A majority of the voters has another digest at `index`.
    Minority { index: u64 },
    /// There is no index in common with any voter.
    Unknown,
    /// The voters `with` have another digest at `index`, and neither side is a majority.
    Split { index: u64, with: Vec<NodeId> },
}

impl Verdict {
    pub(super) fn agreement(&self) -> Agreement {
        match self {
            Self::Agrees { .. } => Agreement::Agrees,
            Self::Minority { .. } | Self::Split { .. } => Agreement::Differs,
            Self::Unknown => Agreement::Unknown,
        }
    }
}

/// Judges this node's digests by those of the other voters that answered. `voters` is how many there are, this node
/// included if `votes`.
///
/// The newest index at which there is a majority decides. A difference at a newer one, where there is none yet, is a
/// split until the others get there.
pub(super) fn judge(
    own: &Testimony,
    votes: bool,
    others: &BTreeMap<NodeId, Testimony>,
    voters: usize,
) -> Verdict {
    let majority = voters / 2 + 1;
    let mut undecided = None;
    for (&index, value) in own.iter().rev() {
        let said: Vec<_> = others.iter().filter_map(|(id, said)| Some((*id, *said.get(&index)?))).collect();
        if said.is_empty() {
            continue;
        }
        let against: Vec<_> = said.iter().filter(|(_, other)| other != value).map(|(id, _)| *id).collect();
        let with = said.len() - against.len() + usize::from(votes);
        if largest_group(said.iter().map(|(_, other)| other).filter(|other| *other != value)) >= majority {
            return Verdict::Minority { index };
        }
        if with >= majority {
            return match undecided {
                Some(split @ Verdict::Split { .. }) => split,
                _ => Verdict::Agrees { index, majority: true },
            };
        }
        let here = match against.is_empty() {
            true => Verdict::Agrees { index, majority: false },
            false => Verdict::Split { index, with: against },
        };
        match (&undecided, &here) {
            (None, _) | (Some(Verdict::Agrees { .. }), Verdict::Split { .. }) => undecided = Some(here),
            _ => {}
        }
    }
    undecided.unwrap_or(Verdict::Unknown)
}

/// The voters whose state a majority has at the newest index at which there is one: whom to take it from.
/// `own` counts if it is given; it never is one of the answer.
pub(super) fn sound(
    own: Option<&Testimony>,
    others: &BTreeMap<NodeId, Testimony>,
    voters: usize,
) -> Vec<NodeId> {
    let indices: std::collections::BTreeSet<u64> =
        others.values().flat_map(|said| said.keys().copied()).collect();
    for index in indices.into_iter().rev() {
        let mut groups: BTreeMap<[u64; 4], (usize, Vec<NodeId>)> = BTreeMap::new();
        if let Some(value) = own.and_then(|own| own.get(&index)) {
            groups.entry(value.0).or_default().0 += 1;
        }
        for (id, value) in others.iter().filter_map(|(id, said)| Some((*id, said.get(&index)?))) {
            let group = groups.entry(value.0).or_default();
            group.0 += 1;
            group.1.push(id);
        }
        if let Some((_, ids)) = groups.into_values().find(|(count, _)| *count > voters / 2) {
            return ids;
        }
    }
    Vec::new()
}

fn largest_group<'a>(values: impl Iterator<Item = &'a DigestValue>) -> usize {
    let mut counts: BTreeMap<[u64; 4], usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value.0).or_default() += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(index, state)`; states are told apart by their number.
    fn said(digests: &[(u64, u64)]) -> Testimony {
        testimony(
            digests.iter().map(|&(index, state)| Digest { index, value: DigestValue([state, 0, 0, 0]) }),
        )
    }

    fn others(all: &[(NodeId, &[(u64, u64)])]) -> BTreeMap<NodeId, Testimony> {
        all.iter().map(|(id, digests)| (*id, said(digests))).collect()
    }

    #[test]
    fn who_differs_from_a_majority_is_wrong_and_the_majority_is_right() {
        let odd = said(&[(1024, 7), (1500, 7)]);
        let even = [(1024, 1), (1500, 1)];
        let two = others(&[(2, &even), (3, &even)]);
        assert_eq!(judge(&odd, true, &two, 3), Verdict::Minority { index: 1500 });
        assert_eq!(sound(None, &two, 3), [2, 3]);
        let with_odd = others(&[(1, &[(1024, 7), (1500, 7)]), (3, &even)]);
        assert_eq!(judge(&said(&even), true, &with_odd, 3), Verdict::Agrees { index: 1500, majority: true });
    }

    #[test]
    fn one_against_one_is_nobodys_fault_and_both_say_so() {
        let (one, two) = ([(1024, 1)], [(1024, 2)]);
        for voters in [2, 3] {
            let verdict = judge(&said(&one), true, &others(&[(2, &two)]), voters);
            assert_eq!(verdict, Verdict::Split { index: 1024, with: vec![2] });
            assert_eq!(verdict.agreement(), Agreement::Differs);
        }
        assert_eq!(sound(None, &others(&[(2, &two)]), 2), [] as [NodeId; 0]);
    }

    #[test]
    fn two_two_one_among_five_and_two_two_among_four_have_no_majority() {
        let (a, b, c): ([_; 1], [_; 1], [_; 1]) = ([(64, 1)], [(64, 2)], [(64, 3)]);
        let five = others(&[(2, &a), (3, &b), (4, &b), (5, &c)]);
        assert_eq!(judge(&said(&a), true, &five, 5), Verdict::Split { index: 64, with: vec![3, 4, 5] });
        let four = others(&[(2, &a), (3, &b), (4, &b)]);
        assert_eq!(judge(&said(&a), true, &four, 4), Verdict::Split { index: 64, with: vec![3, 4] });
        let three_of_five = others(&[(2, &a), (3, &b), (4, &b), (5, &b)]);
        assert_eq!(judge(&said(&a), true, &three_of_five, 5), Verdict::Minority { index: 64 });
    }

    #[test]
    fn only_digests_at_the_same_index_are_compared() {
        let own = said(&[(1024, 1), (1030, 2)]);
        assert_eq!(judge(&own, true, &others(&[(2, &[(1029, 9)]), (3, &[(1031, 9)])]), 3), Verdict::Unknown);
        assert_eq!(judge(&own, true, &others(&[]), 3), Verdict::Unknown);
        let mixed = others(&[(2, &[(1024, 1), (1029, 9)]), (3, &[(1030, 2)])]);
        assert_eq!(judge(&own, true, &mixed, 3), Verdict::Agrees { index: 1030, majority: true });
    }

    #[test]
    fn a_newer_difference_is_not_hidden_by_an_older_majority() {
        let own = said(&[(1024, 1), (1030, 2)]);
        let lagging = others(&[(2, &[(1024, 1)]), (3, &[(1024, 1), (1030, 9)])]);
        assert_eq!(judge(&own, true, &lagging, 3), Verdict::Split { index: 1030, with: vec![3] });
        // Once the third is there, it decides.
        let caught_up = others(&[(2, &[(1024, 1), (1030, 9)]), (3, &[(1024, 1), (1030, 9)])]);
        assert_eq!(judge(&own, true, &caught_up, 3), Verdict::Minority { index: 1030 });
        // An older difference is one that was repaired since.
        let repaired = others(&[(2, &[(1024, 5), (1030, 2)]), (3, &[(1024, 5), (1030, 2)])]);
        assert_eq!(judge(&own, true, &repaired, 3), Verdict::Agrees { index: 1030, majority: true });
    }

    #[test]
    fn a_learner_is_judged_by_the_voters_and_does_not_count() {
        let own = said(&[(64, 1)]);
        let one = others(&[(1, &[(64, 1)])]);
        assert_eq!(judge(&own, false, &one, 3), Verdict::Agrees { index: 64, majority: false });
        let two = others(&[(1, &[(64, 1)]), (2, &[(64, 1)])]);
        assert_eq!(judge(&own, false, &two, 3), Verdict::Agrees { index: 64, majority: true });
        assert_eq!(judge(&said(&[(64, 2)]), false, &two, 3), Verdict::Minority { index: 64 });
        let of_one = others(&[(1, &[(64, 1)])]);
        assert_eq!(judge(&said(&[(64, 2)]), false, &of_one, 1), Verdict::Minority { index: 64 });
    }

    #[test]
    fn a_node_whose_rows_are_wrong_but_not_its_sum_may_lean_on_one_other() {
        let (own, one) = (said(&[(64, 1)]), others(&[(2, &[(64, 1)])]));
        assert_eq!(sound(Some(&own), &one, 3), [2]);
        assert_eq!(sound(None, &one, 3), [] as [NodeId; 0]);
        assert_eq!(sound(Some(&said(&[(64, 9)])), &one, 3), [] as [NodeId; 0]);
    }
}
