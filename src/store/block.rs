//! Blocks: neighbouring rows of the base, compressed, in one value of sled.
//!
//! sled holds at most sixteen values to a page, and keeps some hundred bytes in memory of each page, whether or not the
//! page is in its cache. Rows are small and a machine has a dozen: one row to a value, what sled knows of the pages of
//! a million machines takes more memory than a node may. In blocks it is a few dozen megabytes, and rows that are alike
//! take a third of the disk. The price: to write one row is to write its block.
//!
//! A block rests under its *bound*, the last key that it may hold; it holds every row from behind the bound before. So
//! the block of a key is the first one whose bound is not smaller, a full block is cut by adding one before it, and an
//! empty one is removed without touching another. Behind the last bound is room for the block of [`LAST_BOUND`].

use std::collections::btree_map;
use std::iter::Peekable;

use bytes::{Buf, BufMut, Bytes};
use lz4_flex::block;

use super::StoreError;
use super::overlay::Change;

/// Most bytes of rows in a block, before they are compressed, about: a block ends with the row that passes its share.
pub const BLOCK_MAX_BYTES: usize = 4 * 1024;
/// Most bytes of rows that are unpacked. No block is so large: what says so is damaged.
const UNPACKED_MAX_BYTES: usize = 64 * 1024 * 1024;
/// Most bytes that one compressed byte stands for: a length is continued in bytes that count up to so many each (LZ4 block
/// format).
const EXPANSION_MAX: usize = 255;
/// Behind every key: no table has this number.
pub const LAST_BOUND: &[u8] = &[u8::MAX];
/// What precedes a row: the lengths of its key and of its value, of four bytes each.
const LENGTHS_BYTES: usize = 8;

/// The rows of a block, in the order of keys.
pub type BlockRows<'a> = Vec<(&'a [u8], &'a [u8])>;

/// A block as it is read.
pub struct Block(Vec<u8>);

impl Block {
    /// One without rows.
    pub(super) fn empty() -> Self {
        Self(Vec::new())
    }

    /// Unpacks what [`pack`] made.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not that.
    pub fn unpack(packed: &[u8]) -> Result<Self, StoreError> {
        let (size, compressed) = block::uncompressed_size(packed).map_err(damaged)?;
        // Before memory is taken for them: a few damaged bytes must not cost as much as the largest block.
        if size > UNPACKED_MAX_BYTES.min(compressed.len().saturating_mul(EXPANSION_MAX)) {
            return Err(damaged(format_args!("it says that it has {size} bytes")));
        }
        let rows = block::decompress(compressed, size).map_err(damaged)?;
        if rows.len() != size {
            return Err(damaged("it ends too early"));
        }
        Ok(Self(rows))
    }

    /// Its rows one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Result<(&[u8], &[u8]), StoreError>> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let row = (!rest.is_empty()).then(|| take_row(&mut rest))?;
            // Nothing can be read behind what cannot be.
            if row.is_err() {
                rest = &[];
            }
            Some(row)
        })
    }

    /// All its rows.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not whole.
    pub fn rows(&self) -> Result<BlockRows<'_>, StoreError> {
        self.iter().collect()
    }

    /// Its rows once those of `changes` that come next are made, up to `bound`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is not whole.
    pub(super) fn changed<'a, 'c: 'a>(
        &'a self,
        changes: &mut Peekable<btree_map::Iter<'c, Bytes, Change>>,
        bound: &[u8],
    ) -> Result<BlockRows<'a>, StoreError> {
        let mut rows = BlockRows::new();
        let written =
            |(key, change): (&'c Bytes, &'c Change)| change.as_ref().map(|value| (&key[..], &value[..]));
        for row in self.iter() {
            let (key, value) = row?;
            while let Some(change) = changes.next_if(|(changed, _)| changed[..] < *key) {
                rows.extend(written(change));
            }
            match changes.next_if(|(changed, _)| changed[..] == *key) {
                Some(change) => rows.extend(written(change)),
                None => rows.push((key, value)),
            }
        }
        while let Some(change) = changes.next_if(|(changed, _)| changed[..] <= *bound) {
            rows.extend(written(change));
        }
        Ok(rows)
    }

    /// The value of one row.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<&[u8]>, StoreError> {
        for row in self.iter() {
            let (found, value) = row?;
            if found >= key {
                return Ok((found == key).then_some(value));
            }
        }
        Ok(None)
    }
}

fn take_row<'a>(rest: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), StoreError> {
    let (key, value) = (rest.try_get_u32(), rest.try_get_u32());
    let (Ok(key), Ok(value)) = (key, value) else {
        return Err(damaged("it ends within a length"));
    };
    let whole = rest.split_at_checked(key as usize);
    let row = whole.and_then(|(key, behind)| Some((key, behind.split_at_checked(value as usize)?)));
    let Some((key, (value, behind))) = row else {
        return Err(damaged("it ends within a row"));
    };
    *rest = behind;
    Ok((key, value))
}

fn damaged(why: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(format!("a block: {why}"))
}

/// Packs the rows of the block under `bound`, which may have become too many: into blocks of about the same size, each
/// under its own bound and the last one under `bound`. None for no rows.
pub fn pack(rows: &[(&[u8], &[u8])], bound: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let all: usize = rows.iter().map(row_bytes).sum();
    let size = all.div_ceil(all.div_ceil(BLOCK_MAX_BYTES).max(1));
    let (mut blocks, mut block, mut left) = (Vec::new(), Vec::with_capacity(size), rows.len());
    for (key, value) in rows {
        block.put_u32(length(key));
        block.put_u32(length(value));
        block.put_slice(key);
        block.put_slice(value);
        left -= 1;
        if left == 0 || block.len() >= size {
            let bound = if left == 0 { bound } else { *key };
            blocks.push((bound.to_vec(), block::compress_prepend_size(&block)));
            block.clear();
        }
    }
    blocks
}

fn row_bytes((key, value): &(&[u8], &[u8])) -> usize {
    LENGTHS_BYTES + key.len() + value.len()
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("rows are smaller than four gigabytes")
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_size_that_so_few_bytes_cannot_have_is_damage() {
        let (_, mut packed) = pack(&[(&b"key"[..], &b"value"[..])], LAST_BOUND).remove(0);
        let size = (packed.len() - 4) * EXPANSION_MAX;
        packed[..4].copy_from_slice(&(size as u32 + 1).to_le_bytes());
        let why = Block::unpack(&packed).map(drop).unwrap_err().to_string();
        assert!(why.contains("it says that it has"), "{why}");
    }

    proptest! {
        #[test]
        fn packed_rows_come_back(rows in btree_map(vec(0..u8::MAX, 0..40), vec(any::<u8>(), 0..900), 0..60)) {
            let rows: BlockRows<'_> = rows.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            let packed = pack(&rows, LAST_BOUND);
            let blocks: Vec<Block> = packed.iter().map(|(_, packed)| Block::unpack(packed).unwrap()).collect();
            let all: Vec<_> = blocks.iter().flat_map(Block::iter).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(&all, &rows);
            for ((bound, _), block) in packed.iter().zip(&blocks) {
                prop_assert!(block.iter().all(|row| row.unwrap().0 <= &bound[..]));
            }
            prop_assert_eq!(packed.last().map(|(bound, _)| &bound[..]), (!rows.is_empty()).then_some(LAST_BOUND));
        }

        #[test]
        fn what_is_most_alike_is_within_the_bound(length in 0..600_000_usize) {
            let value = vec![0; length];
            let (_, packed) = pack(&[(&b"key"[..], &value[..])], LAST_BOUND).remove(0);
            let block = Block::unpack(&packed).unwrap();
            prop_assert_eq!(block.get(b"key").unwrap(), Some(&value[..]));
        }

        #[test]
        fn damage_is_an_error_and_no_panic(
            rows in btree_map(vec(any::<u8>(), 0..9), vec(any::<u8>(), 0..90), 1..9),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u32,
            noise in vec(any::<u8>(), 0..64),
        ) {
            let rows: BlockRows<'_> = rows.iter().map(|(key, value)| (&key[..], &value[..])).collect();
            let (_, mut packed) = pack(&rows, LAST_BOUND).remove(0);
            let at = at.index(packed.len());
            let cut = Block::unpack(&packed[..at]).and_then(|block| block.rows().map(|rows| rows.len()));
            prop_assert!(matches!(cut, Err(StoreError::Damaged(_))));
            packed[at] ^= 1 << bit;
            for bytes in [packed, noise] {
                if let Ok(block) = Block::unpack(&bytes) {
                    drop(block.rows());
                }
            }
        }
    }
}
