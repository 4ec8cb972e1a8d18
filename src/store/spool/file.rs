//! One temporary file: records of a key and a value, written once and then read as often as wanted.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::Spool;
use crate::store::StoreError;
use crate::store::format::VALUE_MAX_BYTES;

/// Bytes read or written at once.
const BUFFER_BYTES: usize = 64 * 1024;

/// A key and a value.
pub type Record = (Bytes, Bytes);

/// A file that is being written.
pub struct SpoolWriter {
    file: BufWriter<File>,
    records: u64,
    spool: Spool,
}

impl SpoolWriter {
    pub(super) fn new(file: File, spool: Spool) -> Self {
        Self { file: BufWriter::with_capacity(BUFFER_BYTES, file), records: 0, spool }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// [`StoreError::SpoolFull`], [`StoreError::Io`].
    pub fn write(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.spool.take((8 + key.len() + value.len()) as u64)?;
        self.put(key, value).map_err(|error| self.spool.failed("writing a file in", error))?;
        self.records += 1;
        Ok(())
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        for part in [key, value] {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            self.file.write_all(&length.to_le_bytes())?;
        }
        self.file.write_all(key)?;
        self.file.write_all(value)
    }

    /// The whole file, to be read.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn finish(self) -> Result<SpoolFile, StoreError> {
        let Self { file, records, spool } = self;
        let file =
            file.into_inner().map_err(|error| spool.failed("writing a file in", error.into_error()))?;
        Ok(SpoolFile { file: Arc::new(file), records, spool })
    }
}

/// A complete file.
pub struct SpoolFile {
    file: Arc<File>,
    records: u64,
    spool: Spool,
}

impl SpoolFile {
    /// Its records, from the first on.
    pub fn reader(&self) -> SpoolReader {
        let file = FromStart { file: self.file.clone(), offset: 0 };
        let reader = BufReader::with_capacity(BUFFER_BYTES, file);
        SpoolReader { reader, left: self.records, spool: self.spool.clone() }
    }
}

/// Reads a file's records.
pub struct SpoolReader {
    reader: BufReader<FromStart>,
    left: u64,
    spool: Spool,
}

impl SpoolReader {
    fn record(&mut self) -> io::Result<Record> {
        let (key, value) = (self.length()?, self.length()?);
        Ok((self.part(key)?, self.part(value)?))
    }

    fn length(&mut self) -> io::Result<usize> {
        let mut length = [0; 4];
        self.reader.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        // A disk that lies must not make us take the memory of the node.
        if length > VALUE_MAX_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a record is longer than any"));
        }
        Ok(length)
    }

    fn part(&mut self, length: usize) -> io::Result<Bytes> {
        let mut part = vec![0; length];
        self.reader.read_exact(&mut part)?;
        Ok(part.into())
    }
}

impl Iterator for SpoolReader {
    type Item = Result<Record, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(self.record().map_err(|error| self.spool.failed("reading a file in", error)))
    }
}

/// Reads a shared file from its beginning, whatever others read of it.
struct FromStart {
    file: Arc<File>,
    offset: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::store::spool::{SpoolLimits, Spools};

    proptest! {
        /// What a disk that lies hands back is an error, or records of a bounded length; it ends, and never panics.
        #[test]
        fn a_damaged_file_is_an_error_or_other_records(
            records in vec((vec(any::<u8>(), 0..9), vec(any::<u8>(), 0..40)), 1..9),
            damage in vec((any::<Index>(), any::<u8>()), 0..4),
            cut in any::<Index>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let limits = SpoolLimits { free_min_bytes: 0, ..SpoolLimits::default() };
            let spool = Spools::open(dir.path(), limits).unwrap().begin();
            let mut writer = spool.file().unwrap();
            records.iter().for_each(|(key, value)| writer.write(key, value).unwrap());
            let whole = writer.finish().unwrap();
            let read: Vec<_> = whole.reader().map(Result::unwrap).collect();
            prop_assert!(read.iter().zip(&records).all(|(read, (key, value))| *read.0 == **key && *read.1 == **value));
            let length = whole.file.metadata().unwrap().len();
            for (at, byte) in damage {
                let at = at.index(length as usize) as u64;
                whole.file.write_all_at(&[byte], at).unwrap();
            }
            whole.file.set_len(cut.index(length as usize + 1) as u64).unwrap();
            prop_assert!(whole.reader().count() <= records.len());
        }
    }
}
