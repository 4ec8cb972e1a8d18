//! Random histories.

use proptest::prelude::*;
use strongroom::escrow::command::Command;
use strongroom::escrow::memory::Memory;
use strongroom::escrow::rows::{MachineKey, UserMachine};
use strongroom::escrow::state::Rows;
use strongroom::raft::storage::StorageOptions;

use super::sample;
use super::support::{Node, assert_same, crash_copy, small, undrained};

/// More commands than an entry has here.
const ENTRY_MAX: u64 = 5;

#[derive(Debug, Clone)]
enum Step {
    Crash,
    Drain,
    /// Of so many commands.
    Entry(Vec<Given>),
    Snapshot {
        purge: bool,
    },
}

#[derive(Debug, Clone)]
enum Given {
    /// The first one of the entry once more: a retry.
    Again,
    Escrow(u64),
    Reveal(u64),
}

fn given() -> impl Strategy<Value = Given> {
    prop_oneof![
        1 => Just(Given::Again),
        20 => (0..400_u64).prop_map(Given::Escrow),
        4 => (0..400_u64).prop_map(Given::Reveal),
    ]
}

/// The commands of entry `index`.
fn commands(index: u64, entry: &[Given]) -> Vec<Command> {
    let mut commands: Vec<Command> = Vec::new();
    for (request, given) in (index * ENTRY_MAX..).zip(entry) {
        commands.push(match given {
            Given::Again if commands.is_empty() => sample::reveal(request, 0),
            Given::Again => commands[0].clone(),
            Given::Escrow(number) => sample::escrow(request, *number),
            Given::Reveal(number) => sample::reveal(request, *number),
        });
    }
    commands
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Crash),
        2 => Just(Step::Drain),
        24 => prop::collection::vec(given(), 1..ENTRY_MAX as usize).prop_map(Step::Entry),
        1 => any::<bool>().prop_map(|purge| Step::Snapshot { purge }),
    ]
}

async fn run(steps: Vec<Step>, generation_max_bytes: usize) {
    let mut machine = undrained();
    machine.generation_max_bytes = generation_max_bytes;
    let options = StorageOptions { machine, ..small() };
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::begin(dir.path(), options.clone()).await;
    for step in steps {
        match step {
            Step::Crash => {
                // Entries are on the disk when they are acknowledged; how far they are committed is written a moment
                // later, and otherwise learnt from the leader, who is not here.
                node.storage.log.sync().await.unwrap();
                let copy = crash_copy(dir.path());
                let reopened = Node::open(copy.path(), options.clone()).await.unwrap();
                assert_eq!(reopened.storage.machine.applied(), node.storage.machine.applied());
                assert_same(&reopened.storage, &node.expected);
                reopened.storage.machine.scrub().await.unwrap();
            }
            Step::Drain => node.storage.machine.drain().await.unwrap(),
            Step::Entry(given) => {
                let commands = commands(node.next, &given);
                node.apply_group(&commands.iter().collect::<Vec<_>>()).await;
            }
            Step::Snapshot { purge } => {
                let file = node.storage.machine.snapshot().await.unwrap();
                if purge {
                    node.storage.log.purge(file.position().unwrap()).await.unwrap();
                }
            }
        }
    }
    node.assert_state();
    node.storage.machine.scrub().await.unwrap();
    pages_are_those_of_memory(&node, &node.expected);
    let expected = node.expected.clone();
    node.storage.log.sync().await.unwrap();
    drop(node);
    assert_same(&Node::open(dir.path(), options).await.unwrap().storage, &expected);
}

/// Lookups by prefix, page by page, over overlay and base.
fn pages_are_those_of_memory(node: &Node, expected: &Memory) {
    let view = node.storage.machine.view().unwrap();
    for machine in 0..100 {
        let prefix = MachineKey::prefix(&format!("PC-{machine:04}").parse().unwrap());
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page: Vec<MachineKey> = view.rows(&prefix, after.as_deref(), 2).unwrap();
            assert_eq!(page, expected.rows::<MachineKey>(&prefix, after.as_deref(), 2).unwrap());
            match page.last() {
                Some(last) => after = Some(strongroom::escrow::state::Row::key(last)),
                None => break,
            }
        }
    }
    // A key before the prefix and one behind it.
    let prefix = UserMachine::prefix(&r"CORP\user5".parse().unwrap());
    for after in [&b"a"[..], b"zzz"] {
        assert_eq!(
            view.rows::<UserMachine>(&prefix, Some(after), 9).unwrap(),
            expected.rows::<UserMachine>(&prefix, Some(after), 9).unwrap()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_a_crash_leaves_is_the_state_of_a_replay(
        steps in prop::collection::vec(step(), 1..160),
        generation_max_bytes in prop_oneof![Just(usize::MAX), 1_000_usize..20_000],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(run(steps, generation_max_bytes));
    }
}
