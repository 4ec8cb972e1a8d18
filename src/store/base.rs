//! The base: all rows up to some entry, in sled, as [`block`]s. It is a cache of what snapshot and log say, and is treated
//! as one.

use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use sled::{Batch, Db, IVec};

use super::StoreError;
use super::applied::Applied;
use super::block::{self, Block, LAST_BOUND};
use super::directory::create_dir;
use super::format::{self, FormatError};
use super::overlay::Changes;
use crate::mutation::Mutation;

/// Where [`Applied`] rests: table number 0, which no table of rows has.
const APPLIED_KEY: &[u8] = &[0];
/// The first key of a row.
pub(super) const FIRST_ROW_KEY: &[u8] = &[1];
/// sled's log is cut into as much each. This is its default: it refuses to open a database of another.
pub(super) const SEGMENT_BYTES: usize = 512 * 1024;
/// sled's threads hold its lock for a moment after it was dropped.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Batches that are being written. While one is, sled holds off the readers of all databases of the process.
static WRITING: AtomicUsize = AtomicUsize::new(0);

/// A batch while it is written.
struct Writing;

impl Writing {
    fn begin() -> Self {
        WRITING.fetch_add(1, Ordering::Relaxed);
        Self
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        WRITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a reader of any base would have to wait for one that is being written.
pub(super) fn is_being_written() -> bool {
    WRITING.load(Ordering::Relaxed) > 0
}

/// One sled database. Clones share it.
#[derive(Clone)]
pub(super) struct Base {
    db: Db,
    path: Arc<Path>,
}

impl Base {
    /// Opens the database at `path`, or makes an empty one. Blocks.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        create_dir(path).map_err(|error| StoreError::io("creating", path, error))?;
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes)
            .segment_size(SEGMENT_BYTES)
            // The keeper flushes when it has nothing better to do.
            .flush_every_ms(None);
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            // On damaged files sled may panic instead of returning an error; on a thread of its own that is one too.
            let config = config.clone();
            let opened = std::thread::spawn(move || config.open()).join();
            match opened {
                Ok(Ok(db)) => return Ok(Self { db, path: path.into() }),
                Ok(Err(error)) if is_locked(&error) && Instant::now() < deadline => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(StoreError::Damaged("sled panicked while opening the base".to_owned())),
            }
        }
    }

    /// Where the rows in it stand.
    pub fn applied(&self) -> Result<Option<Applied>, StoreError> {
        let Some(bytes) = self.db.get(APPLIED_KEY)? else { return Ok(None) };
        let applied = format::decode(&bytes).map_err(|error| match error {
            // Not damage: it is for the release that wrote it.
            FormatError::Newer { found } => StoreError::newer(&self.path, "holds rows", found),
            error => StoreError::Damaged(format!("what the base says of itself: {error}")),
        })?;
        Ok(Some(applied))
    }

    /// The value under `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let Some((_, block)) = self.block(Bound::Included(key))? else { return Ok(None) };
        Ok(block.get(key)?.map(Bytes::copy_from_slice))
    }

    /// What `read` makes of it, on a thread of its own: over damaged files sled may panic instead of returning an error.
    pub fn read_apart<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let base = self.clone();
        let panicked = |_| StoreError::Damaged("sled panicked while reading the base".to_owned());
        std::thread::spawn(move || read(&base)).join().map_err(panicked)?
    }

    /// The only row of each table that has one, and that there is none of each number that has none.
    pub fn only_rows(&self) -> Result<Changes, StoreError> {
        let numbers = FIRST_ROW_KEY[0]..LAST_BOUND[0];
        numbers.map(|number| Ok((Bytes::copy_from_slice(&[number]), self.get(&[number])?))).collect()
    }

    /// The rows whose keys are in `range`, in their order.
    ///
    /// While others write the base, a row that nobody writes comes once, as it is; one that is written may come or not,
    /// as it was or will be.
    pub fn range<R: RangeBounds<Vec<u8>>>(&self, range: R) -> RowsOfBase {
        RowsOfBase {
            base: self.clone(),
            lower: range.start_bound().cloned(),
            upper: range.end_bound().cloned(),
            read: Vec::new().into_iter(),
            is_over: false,
        }
    }

    /// The first rows whose keys are in `range`: until they are `max_rows`, or `max_bytes` or more.
    pub fn slice(
        &self,
        range: (Bound<Vec<u8>>, Bound<Vec<u8>>),
        max_rows: usize,
        max_bytes: usize,
    ) -> Result<Slice, StoreError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in self.range(range) {
            let (key, value) = row?;
            bytes += key.len() + value.len();
            rows.push((key.clone(), value));
            if bytes >= max_bytes || rows.len() >= max_rows {
                return Ok(Slice { rows, stopped_at: Some(key) });
            }
        }
        Ok(Slice { rows, stopped_at: None })
    }

    /// All rows, in the order of keys.
    pub fn rows(&self) -> RowsOfBase {
        self.range(FIRST_ROW_KEY.to_vec()..)
    }

    /// The first block whose bound is not before `from`, and that bound; `None` behind the last one. With a key it is the
    /// block that holds it, if any does.
    fn block(&self, from: Bound<&[u8]>) -> Result<Option<(IVec, Block)>, StoreError> {
        let Some(found) = self.db.range::<&[u8], _>((from, Bound::Unbounded)).next() else { return Ok(None) };
        let (bound, packed) = found?;
        Ok(Some((bound, Block::unpack(&packed)?)))
    }

    /// Writes changed rows and where the state stands with them, together or not at all.
    pub fn write(&self, changes: &Changes, upto: &Applied) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        let mut changes = changes.iter().peekable();
        while let Some((key, _)) = changes.peek() {
            let (bound, before) =
                self.block(Bound::Included(key))?.unwrap_or_else(|| (LAST_BOUND.into(), Block::empty()));
            let rows = before.changed(&mut changes, &bound)?;
            if rows.is_empty() {
                batch.remove(bound);
                continue;
            }
            for (bound, packed) in block::pack(&rows, &bound) {
                batch.insert(bound, packed);
            }
        }
        if Mutation::PositionApart.is_active() {
            self.db.insert(APPLIED_KEY, format::encode(upto))?;
        }
        batch.insert(APPLIED_KEY, format::encode(upto));
        let _writing = Writing::begin();
        Ok(self.db.apply_batch(batch)?)
    }

    /// Hands everything written to the operating system: it survives this process, not a power loss.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.db.flush()?;
        Ok(())
    }

    /// Whether nobody else has it open: no view, and no keeper.
    pub fn is_unshared(&self) -> bool {
        Arc::strong_count(&self.path) == 1
    }

    /// Bytes it takes on disk.
    pub fn bytes_on_disk(&self) -> Result<u64, StoreError> {
        Ok(self.db.size_on_disk()?)
    }

    /// Reads every row and sums them up.
    pub fn recount(&self) -> Result<Applied, StoreError> {
        let mut counted = Applied::default();
        for row in self.rows() {
            let (key, value) = row?;
            counted.change(&key, None, Some(&value));
        }
        Ok(counted)
    }
}

/// See [`Base::slice`].
pub(super) struct Slice {
    pub rows: Vec<(Bytes, Bytes)>,
    /// The last of their keys, if there may be others behind it.
    pub stopped_at: Option<Bytes>,
}

/// See [`Base::range`].
pub(super) struct RowsOfBase {
    base: Base,
    /// Where what was not read yet begins.
    lower: Bound<Vec<u8>>,
    upper: Bound<Vec<u8>>,
    /// Rows of the last block that was read.
    read: std::vec::IntoIter<(Bytes, Bytes)>,
    is_over: bool,
}

impl RowsOfBase {
    /// Reads the next block. Each is looked up anew: if the one after the last was cut meanwhile, both parts are found.
    fn read_block(&mut self) -> Result<(), StoreError> {
        let from = match &self.lower {
            Bound::Unbounded => Bound::Included(FIRST_ROW_KEY),
            lower => lower.as_ref().map(Vec::as_slice),
        };
        let Some((bound, block)) = self.base.block(from)? else {
            self.is_over = true;
            return Ok(());
        };
        let range = (self.lower.as_ref().map(Vec::as_slice), self.upper.as_ref().map(Vec::as_slice));
        let mut read = Vec::new();
        for row in block.iter() {
            let (key, value) = row?;
            if RangeBounds::<[u8]>::contains(&range, key) {
                read.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            }
        }
        self.is_over = match &self.upper {
            Bound::Included(upper) | Bound::Excluded(upper) => bound[..] >= upper[..],
            Bound::Unbounded => false,
        };
        self.lower = Bound::Excluded(bound.to_vec());
        self.read = read.into_iter();
        Ok(())
    }
}

impl Iterator for RowsOfBase {
    type Item = Result<(Bytes, Bytes), StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.read.next() {
                return Some(Ok(row));
            }
            if self.is_over {
                return None;
            }
            if let Err(error) = self.read_block() {
                self.is_over = true;
                return Some(Err(error));
            }
        }
    }
}

fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock
        || error.to_string().contains("could not acquire lock"))
}

#[cfg(test)]
#[path = "base_cut_tests.rs"]
mod cut_tests;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;
    use crate::store::block::BLOCK_MAX_BYTES;

    fn empty() -> (TempDir, Base) {
        let root = tempfile::tempdir().unwrap();
        let base = Base::open(&root.path().join("1"), 1024 * 1024).unwrap();
        base.write(&Changes::new(), &Applied::default()).unwrap();
        (root, base)
    }

    fn rows(rows: RowsOfBase) -> Vec<(Bytes, Bytes)> {
        rows.collect::<Result<_, _>>().unwrap()
    }

    fn key(number: u32) -> Bytes {
        format!("\u{7}machine-{number:06}").into()
    }

    fn any_change() -> impl Strategy<Value = Option<Bytes>> {
        let sizes = prop_oneof![8 => 0..200_usize, 1 => BLOCK_MAX_BYTES - 40..BLOCK_MAX_BYTES + 40];
        option::of((any::<u8>(), sizes).prop_map(|(byte, size)| vec![byte; size].into()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_written_is_what_is_there(
            batches in vec(btree_map(0..300_u32, any_change(), 0..150), 1..8),
            asked in vec((0..300_u32, 0..300_u32), 8),
        ) {
            let (_root, base) = empty();
            let mut expected = BTreeMap::new();
            for batch in batches {
                let changes: Changes = batch.into_iter().map(|(number, change)| (key(number), change)).collect();
                base.write(&changes, &Applied::default()).unwrap();
                for (key, change) in changes {
                    match change {
                        Some(value) => expected.insert(key, value),
                        None => expected.remove(&key),
                    };
                }
                let all: Vec<_> = expected.clone().into_iter().collect();
                prop_assert_eq!(rows(base.rows()), all);
            }
            for (from, to) in asked {
                let (from, to) = (key(from.min(to)), key(from.max(to)));
                prop_assert_eq!(base.get(&from).unwrap(), expected.get(&from).cloned());
                let range = (Bound::Excluded(from.to_vec()), Bound::Included(to.to_vec()));
                let some: Vec<_> = expected.iter().filter(|(key, _)| **key > from && **key <= to).collect();
                let found = rows(base.range(range));
                prop_assert_eq!(found.iter().map(|(key, value)| (key, value)).collect::<Vec<_>>(), some);
            }
            prop_assert_eq!(base.applied().unwrap(), Some(Applied::default()));
        }
    }

    /// How many blocks there are, and the bytes of the largest one's rows.
    fn blocks(base: &Base) -> (usize, usize) {
        let blocks: Vec<usize> = base
            .db
            .range(FIRST_ROW_KEY..)
            .map(|found| Block::unpack(&found.unwrap().1).unwrap())
            .map(|block| block.iter().map(Result::unwrap).map(|(key, value)| key.len() + value.len()).sum())
            .collect();
        (blocks.len(), blocks.into_iter().max().unwrap_or_default())
    }

    #[test]
    fn blocks_are_cut_when_they_are_full_and_go_when_they_are_empty() {
        let (_root, base) = empty();
        let value: Bytes = vec![b'x'; 100].into();
        let filled: Changes = (0..1_000).map(|number| (key(number), Some(value.clone()))).collect();
        base.write(&filled, &Applied::default()).unwrap();
        let (count, largest) = blocks(&base);
        assert!((25..=40).contains(&count), "{count} blocks");
        assert!(largest <= BLOCK_MAX_BYTES, "{largest} bytes");
        let emptied = (10..1_000).map(|number| (key(number), None)).collect();
        base.write(&emptied, &Applied::default()).unwrap();
        assert_eq!(blocks(&base).0, 1);
        assert_eq!(rows(base.rows()).len(), 10);
        let again = Changes::from([(key(999), Some(value))]);
        base.write(&again, &Applied::default()).unwrap();
        assert_eq!(rows(base.rows()).last().map(|(key, _)| key.clone()), Some(key(999)));
    }

    #[test]
    fn rows_that_nobody_writes_are_read_once_while_blocks_are_cut_around_them() {
        let (_root, base) = empty();
        let (kept, others): (Vec<u32>, Vec<u32>) = (0..4_000).partition(|number| number % 4 == 0);
        let value: Bytes = vec![b'x'; 100].into();
        let filled = kept.iter().map(|number| (key(*number), Some(value.clone()))).collect();
        base.write(&filled, &Applied::default()).unwrap();
        let expected: Vec<Bytes> = kept.iter().map(|number| key(*number)).collect();
        let is_kept = |key: &Bytes| filled.contains_key(key);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 0..6 {
                    for some in others.chunks(100) {
                        let change = (round % 2 == 0).then(|| value.clone());
                        let changes = some.iter().map(|number| (key(*number), change.clone())).collect();
                        base.write(&changes, &Applied::default()).unwrap();
                    }
                }
            });
            let mut rounds = 0;
            while rounds < 3 || !writer.is_finished() {
                let read: Vec<Bytes> = rows(base.rows()).into_iter().map(|(key, _)| key).collect();
                assert!(read.is_sorted_by(|one, next| one < next), "in order, and none twice");
                assert_eq!(read.into_iter().filter(is_kept).collect::<Vec<_>>(), expected);
                rounds += 1;
            }
        });
    }
}
