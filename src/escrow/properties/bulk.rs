//! Many escrows in one entry are the same escrows one after the other.

use proptest::prelude::*;

use super::commands::{batch, batch_of_one_keyring, commands};
use super::play;
use crate::escrow::apply::apply;
use crate::escrow::command::{Action, BatchedEscrow, Command, EscrowAnswer, Reply};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{RequestId, Role, Timestamp};
use crate::escrow::lookup;
use crate::escrow::memory::Memory;
use crate::escrow::records::{LogPosition, Source};
use uuid::Uuid;

/// A state that some commands led to, at the level that allows batches.
fn allowing(commands: &[Command]) -> Memory {
    let mut state = Memory::new();
    play(&mut state, 1, commands);
    let record = crate::escrow::records::FeatureLevelRecord {
        level: FeatureLevel::SUPPORTED,
        raised_at: Timestamp(1),
    };
    crate::escrow::state::State::put(&mut state, &record);
    state
}

fn by_importer(request: RequestId, action: Action) -> Command {
    let by = format!("spiffe://acme/{}/imp", Role::Importer).parse().unwrap();
    let source = Source { node: 1, address: String::new() };
    Command { request, at: Timestamp(700), by, source, action }
}

/// What became of each of `batch`, sent one after the other in the place of one entry.
fn one_by_one(state: &mut Memory, position: LogPosition, batch: &[BatchedEscrow]) -> Vec<EscrowAnswer> {
    let mut answers = Vec::new();
    for BatchedEscrow { request, escrow } in batch {
        let command = by_importer(*request, Action::Escrow(escrow.clone()));
        answers.push(match apply(state, position, &command).unwrap() {
            Reply::Escrowed(kept) => EscrowAnswer::Escrowed(kept),
            Reply::OldDataKey { current } => EscrowAnswer::OldDataKey { current },
            Reply::Refused(refusal) => EscrowAnswer::Refused(refusal),
            other => panic!("{other:?}"),
        });
    }
    answers
}

proptest! {
    #[test]
    fn a_batch_leaves_the_rows_and_gets_the_answers_of_its_escrows_one_after_the_other(
        commands in commands(), batch in batch(),
    ) {
        let mut state = allowing(&commands);
        let mut singly = state.clone();
        let position = LogPosition { term: 1, index: 1_000 };
        let together = by_importer(RequestId(Uuid::from_u128(u128::MAX - 1)), Action::EscrowMany(batch.clone()));
        let reply = apply(&mut state, position, &together).unwrap();
        prop_assert_eq!(reply, Reply::EscrowedMany(one_by_one(&mut singly, position, &batch)));
        prop_assert_eq!(state.dump(), singly.dump());
    }

    #[test]
    fn what_is_twice_in_a_batch_is_once_in_the_cluster(commands in commands(), batch in batch_of_one_keyring()) {
        let mut once = allowing(&commands);
        let mut twice = once.clone();
        let position = LogPosition { term: 1, index: 1_000 };
        let request = RequestId(Uuid::from_u128(u128::MAX - 1));
        let doubled = [batch.clone(), batch.clone()].concat();
        let single = apply(&mut once, position, &by_importer(request, Action::EscrowMany(batch))).unwrap();
        let double = apply(&mut twice, position, &by_importer(request, Action::EscrowMany(doubled))).unwrap();
        let (Reply::EscrowedMany(first), Reply::EscrowedMany(both)) = (single, double) else {
            panic!("a batch is refused as a whole");
        };
        prop_assert_eq!(&first[..], &both[..first.len()]);
        for (first, again) in first.iter().zip(&both[first.len()..]) {
            match (first, again) {
                (EscrowAnswer::Escrowed(first), EscrowAnswer::Escrowed(again)) => {
                    prop_assert!(again.already_escrowed);
                    prop_assert_eq!((first.fingerprint, first.position), (again.fingerprint, again.position));
                    // Of keys with one secret that this very entry kept, any may answer.
                    prop_assert!(first.key_id == again.key_id || first.position == position);
                }
                (first, again) => prop_assert_eq!(first, again),
            }
        }
        prop_assert_eq!(lookup::heads(&once).unwrap().audit, lookup::heads(&twice).unwrap().audit);
        prop_assert_eq!(super::counts(&once), super::counts(&twice));
    }
}
