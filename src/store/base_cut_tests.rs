//! What a crash in the middle of a write leaves of the base.

use std::fs;

use super::*;
use crate::escrow::records::LogPosition;

/// Between two places where a write is cut off: closer than its records are long.
const STEP_BYTES: usize = 24;
/// sled's file of records.
const RECORDS: &str = "db";

/// Rows up to `number`, and where a state of them stands.
fn state(number: u32) -> (Changes, Applied) {
    let position = Some(LogPosition { term: 1, index: number.into() });
    let (mut changes, mut applied) = (Changes::new(), Applied { position, ..Applied::default() });
    for row in 0..number {
        let (key, value) = (Bytes::from(format!("\u{7}machine-{row:06}")), Bytes::from(vec![b'x'; 100]));
        applied.change(&key, None, Some(&value));
        changes.insert(key, Some(value));
    }
    (changes, applied)
}

/// etcd 3.5.0 to 3.5.2 saved the applied index apart from the data, and forgot entries in between.
#[test]
fn cut_off_anywhere_a_write_is_there_with_its_position_or_not_at_all() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("1");
    let base = Base::open(&path, 1024 * 1024).unwrap();
    let records = || {
        base.flush().unwrap();
        fs::read(path.join(RECORDS)).unwrap()
    };
    let (changes, first) = state(20);
    base.write(&changes, &first).unwrap();
    let before = records();
    let (changes, second) = state(40);
    base.write(&changes, &second).unwrap();
    let after = records();
    let differs = |at: usize| before.get(at) != after.get(at);
    let from = (0..after.len()).find(|at| differs(*at)).expect("something was written");
    let to = 1 + (0..after.len()).rfind(|at| differs(*at)).expect("something was written");

    let mut found = Vec::new();
    for cut in (from..to).step_by(STEP_BYTES).chain([to]) {
        let left = root.path().join("left");
        fs::create_dir(&left).unwrap();
        for file in fs::read_dir(&path).unwrap() {
            let file = file.unwrap();
            if file.file_type().unwrap().is_file() {
                fs::copy(file.path(), left.join(file.file_name())).unwrap();
            }
        }
        let mut torn = after.clone();
        torn[cut..].fill(0);
        fs::write(left.join(RECORDS), torn).unwrap();
        let reopened = Base::open(&left, 1024 * 1024).unwrap();
        let applied = reopened.applied().unwrap().expect("the first write is there");
        assert!(applied == first || applied == second, "{applied:?}, cut at {cut} of {from}..{to}");
        assert!(applied.describes(&reopened.recount().unwrap()), "{applied:?}, cut at {cut} of {from}..{to}");
        found.push(applied.index());
        drop(reopened);
        fs::remove_dir_all(&left).unwrap();
    }
    // Had each of them left the same, they would not have met the write.
    assert_eq!((found[0], found[found.len() - 1]), (first.index(), second.index()));
}
