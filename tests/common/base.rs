//! The rows of a stopped node's base, for tests that look at them or damage them.

use std::collections::BTreeMap;
use std::path::Path;

use strongroom::store::block::{self, Block};

/// By their keys.
pub type RowsOfBlock = BTreeMap<Vec<u8>, Vec<u8>>;

/// An open base.
pub struct StoppedBase(sled::Db);

impl StoppedBase {
    /// Opens the database at `path`, which no process has open.
    pub fn open(path: &Path) -> Self {
        Self(sled::open(path).expect("the base of a stopped node"))
    }

    /// Where the rows stand.
    pub fn applied(&self) -> sled::IVec {
        self.0.get([0]).expect("read").expect("it says where it stands")
    }

    /// Lets it say that they stand elsewhere.
    pub fn set_applied(&self, applied: Vec<u8>) {
        self.0.insert([0], applied).expect("written");
        self.0.flush().expect("flushed");
    }

    /// Puts something else in the place of a block within one table: what opens the base reads nothing of it.
    pub fn damage(&self) {
        let bounds: Vec<_> = self.blocks().into_iter().map(|(bound, _)| bound).collect();
        let within =
            bounds.windows(2).find(|pair| pair[0][0] == pair[1][0]).expect("a table of several blocks");
        self.0.insert(&within[1], b"\xff").expect("written");
        self.0.flush().expect("flushed");
    }

    /// All rows, in the order of keys.
    pub fn rows(&self) -> RowsOfBlock {
        self.blocks().into_iter().flat_map(|(_, rows)| rows).collect()
    }

    /// Lets `change` change the rows of each block.
    pub fn change(&self, mut change: impl FnMut(&mut RowsOfBlock)) {
        for (bound, mut rows) in self.blocks() {
            let before = rows.clone();
            change(&mut rows);
            if rows != before {
                self.write(&bound, &rows);
            }
        }
        self.0.flush().expect("flushed");
    }

    fn blocks(&self) -> Vec<(sled::IVec, RowsOfBlock)> {
        let blocks = self.0.range(vec![1]..).map(|block| block.expect("it is whole"));
        let unpacked = blocks.map(|(bound, packed)| {
            let block = Block::unpack(&packed).expect("a block");
            let rows = block.rows().expect("whole rows").into_iter();
            (bound, rows.map(|(key, value)| (key.to_vec(), value.to_vec())).collect())
        });
        unpacked.collect()
    }

    fn write(&self, bound: &[u8], rows: &RowsOfBlock) {
        self.0.remove(bound).expect("removed");
        let rows: Vec<_> = rows.iter().map(|(key, value)| (&key[..], &value[..])).collect();
        for (bound, packed) in block::pack(&rows, bound) {
            self.0.insert(bound, packed).expect("written");
        }
    }
}
