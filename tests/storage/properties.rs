//! Random histories.

use proptest::prelude::*;
use strongroom::escrow::memory::Memory;
use strongroom::escrow::rows::{MachineKey, UserMachine};
use strongroom::escrow::state::Rows;
use strongroom::raft::storage::StorageOptions;

use super::sample;
use super::support::{Node, assert_same, crash_copy, small, undrained};

#[derive(Debug, Clone)]
enum Step {
    Crash,
    Drain,
    Escrow(u64),
    Reveal(u64),
    Snapshot { purge: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Crash),
        2 => Just(Step::Drain),
        20 => (0..400_u64).prop_map(Step::Escrow),
        4 => (0..400_u64).prop_map(Step::Reveal),
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
            Step::Escrow(number) => drop(node.apply(&sample::escrow(node.next, number)).await),
            Step::Reveal(number) => drop(node.apply(&sample::reveal(node.next, number)).await),
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
