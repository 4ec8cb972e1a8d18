//! Sorting more than fits in memory: runs that are sorted in memory go to the disk, and are merged as they are read.
//!
//! The crates for it were looked at: they bound memory by counting items and not bytes, put named files where a crash
//! leaves them, and know nothing of the bytes that a report may take. What is left to do is here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytes::Bytes;

use super::file::Record;
use super::{Spool, SpoolFile, SpoolReader};
use crate::store::StoreError;

/// Memory that one sorting takes before it goes to the disk, in bytes.
pub const SORT_MEMORY_BYTES: usize = 16 * 1024 * 1024;
/// Most runs on the disk; past it they are merged into one. Reading takes a buffer of 64 KiB for each.
const RUNS_MAX: usize = 64;

/// Memory that a record takes beside its key and value.
const PLACE_BYTES: usize = size_of::<(usize, usize, usize)>();

/// Takes records in any order and gives them back in the order of their keys. Keys must differ.
pub struct Sorter {
    spool: Spool,
    /// Keys and values, one after the other.
    bytes: Vec<u8>,
    /// Of each record: where its key begins, where its value does, and where that ends.
    places: Vec<(usize, usize, usize)>,
    runs: Vec<SpoolFile>,
}

impl Sorter {
    /// An empty one.
    pub fn new(spool: Spool) -> Self {
        Self { spool, bytes: Vec::new(), places: Vec::new(), runs: Vec::new() }
    }

    /// Takes a record.
    ///
    /// # Errors
    /// [`StoreError::SpoolFull`], [`StoreError::Io`].
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let size = key.len() + value.len();
        let more = size + PLACE_BYTES;
        if !self.places.is_empty() && self.memory() + more > self.spool.limits().sort_memory_bytes {
            self.write_run()?;
        }
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.places.push((begin, begin + key.len(), begin + size));
        Ok(())
    }

    fn memory(&self) -> usize {
        self.bytes.len() + self.places.len() * PLACE_BYTES
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.places.sort_unstable_by(|one, other| bytes[one.0..one.1].cmp(&bytes[other.0..other.1]));
    }

    fn write_run(&mut self) -> Result<(), StoreError> {
        self.sort();
        let mut writer = self.spool.file()?;
        for (begin, middle, end) in self.places.drain(..) {
            writer.write(&self.bytes[begin..middle], &self.bytes[middle..end])?;
        }
        self.bytes.clear();
        self.runs.push(writer.finish()?);
        if self.runs.len() < RUNS_MAX {
            return Ok(());
        }
        let mut writer = self.spool.file()?;
        for record in Sorted::merge(std::mem::take(&mut self.runs), Vec::new())? {
            let (key, value) = record?;
            writer.write(&key, &value)?;
        }
        self.runs.push(writer.finish()?);
        Ok(())
    }

    /// All records, in the order of their keys.
    ///
    /// # Errors
    /// As [`Sorter::push`].
    pub fn finish(mut self) -> Result<Sorted, StoreError> {
        self.sort();
        let (bytes, places) = (Bytes::from(self.bytes), self.places);
        let rest = places
            .iter()
            .map(|(begin, middle, end)| (bytes.slice(*begin..*middle), bytes.slice(*middle..*end)))
            .collect();
        Sorted::merge(self.runs, rest)
    }
}

/// Records in the order of their keys.
pub struct Sorted {
    sources: Vec<Source>,
    /// The next record of each source that has one.
    next: BinaryHeap<Reverse<(Bytes, usize, Bytes)>>,
}

enum Source {
    Disk(SpoolReader),
    Memory(std::vec::IntoIter<Record>),
}

impl Source {
    fn next(&mut self) -> Result<Option<Record>, StoreError> {
        match self {
            Self::Disk(reader) => reader.next().transpose(),
            Self::Memory(records) => Ok(records.next()),
        }
    }
}

impl Sorted {
    fn merge(runs: Vec<SpoolFile>, rest: Vec<Record>) -> Result<Self, StoreError> {
        let mut sources: Vec<Source> = runs.iter().map(|run| Source::Disk(run.reader())).collect();
        sources.push(Source::Memory(rest.into_iter()));
        let mut sorted = Self { sources, next: BinaryHeap::new() };
        for number in 0..sorted.sources.len() {
            sorted.advance(number)?;
        }
        Ok(sorted)
    }

    fn advance(&mut self, number: usize) -> Result<(), StoreError> {
        if let Some((key, value)) = self.sources[number].next()? {
            self.next.push(Reverse((key, number, value)));
        }
        Ok(())
    }
}

impl Iterator for Sorted {
    type Item = Result<Record, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let Reverse((key, number, value)) = self.next.pop()?;
        Some(self.advance(number).map(|()| (key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::spool::{SpoolLimits, Spools};

    fn sort(memory: usize, count: u32) -> (Vec<u32>, u64) {
        let dir = tempfile::tempdir().unwrap();
        let limits = SpoolLimits { sort_memory_bytes: memory, ..SpoolLimits::default() };
        let spool = Spools::open(dir.path(), limits).unwrap().begin();
        let mut sorter = Sorter::new(spool.clone());
        for number in 0..count {
            // A permutation: the factor has no divisor in common with the count.
            let key = (u64::from(number) * 7_919 % u64::from(count)) as u32;
            sorter.push(&key.to_be_bytes(), &key.to_le_bytes()).unwrap();
            assert!(sorter.memory() <= memory.max(40), "within its memory");
        }
        let read = sorter.finish().unwrap().map(|record| {
            let (key, value) = record.unwrap();
            let number = u32::from_be_bytes(key[..].try_into().unwrap());
            assert_eq!(value[..], number.to_le_bytes());
            number
        });
        (read.collect(), spool.written())
    }

    #[test]
    fn records_come_back_in_the_order_of_keys_with_and_without_the_disk() {
        // In memory, in a few runs, and in so many that they are merged on the way.
        for (memory, on_disk) in [(1024 * 1024, false), (10_000, true), (200, true)] {
            let (sorted, written) = sort(memory, 5_000);
            assert_eq!(sorted, (0..5_000).collect::<Vec<_>>(), "{memory}");
            assert_eq!(written > 0, on_disk, "{memory}");
        }
        assert_eq!(sort(1_000, 0).0, Vec::<u32>::new());
    }

    #[test]
    fn a_record_larger_than_the_memory_is_a_run_of_its_own() {
        assert_eq!(sort(1, 100).0, (0..100).collect::<Vec<_>>());
    }
}
