//! What a CA issued and revoked: JSON lines, only ever appended to. The last line of a serial number counts, so a
//! revocation is one more line.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::escrow::ids::Identity;
use crate::tls::error::TlsError;
use crate::tls::files::at;

/// One certificate. Times are Unix seconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexRecord {
    /// Its serial number, lower-case hexadecimal, two digits a byte.
    pub serial: String,
    /// Whom it is for.
    pub identity: Identity,
    /// Its DNS names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Its addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// First valid second.
    pub not_before: u64,
    /// Last valid second.
    pub not_after: u64,
    /// When it was revoked, if it was.
    pub revoked_at: Option<u64>,
}

/// The index, open and locked against other processes until dropped.
pub(super) struct LockedIndex {
    path: PathBuf,
    file: File,
}

impl LockedIndex {
    pub(super) fn lock(path: PathBuf) -> Result<Self, TlsError> {
        let file = OpenOptions::new().read(true).append(true).open(&path).map_err(at(&path))?;
        file.lock().map_err(at(&path))?;
        Ok(Self { path, file })
    }

    /// Every certificate once, in the order they were issued.
    pub(super) fn load(&mut self) -> Result<Vec<IndexRecord>, TlsError> {
        let mut records: Vec<IndexRecord> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for (number, line) in self.whole_lines()?.lines().enumerate() {
            let record: IndexRecord = serde_json::from_str(line).map_err(|source| TlsError::Index {
                path: self.path.clone(),
                line: number + 1,
                source,
            })?;
            match places.get(&record.serial) {
                Some(&place) => records[place] = record,
                None => {
                    places.insert(record.serial.clone(), records.len());
                    records.push(record);
                }
            }
        }
        Ok(records)
    }

    /// Adds a line, on disk when this returns.
    pub(super) fn append(&mut self, record: &IndexRecord) -> Result<(), TlsError> {
        let mut line = serde_json::to_string(record)
            .map_err(|error| TlsError::File { path: self.path.clone(), source: error.into() })?;
        line.push('\n');
        self.drop_unfinished_line()?;
        let written = self.file.write_all(line.as_bytes());
        // Without this a certificate that is out could be forgotten, or a revocation undone, by a power cut.
        written.and_then(|()| self.file.sync_all()).map_err(at(&self.path))
    }

    /// Removes a line that a power cut left unfinished: the next one would run into it.
    fn drop_unfinished_line(&mut self) -> Result<(), TlsError> {
        let mut last = [0];
        let length = self.file.metadata().map_err(at(&self.path))?.len();
        if length == 0 {
            return Ok(());
        }
        let read = self.file.seek(SeekFrom::Start(length - 1)).and_then(|_| self.file.read_exact(&mut last));
        read.map_err(at(&self.path))?;
        if last == *b"\n" {
            return Ok(());
        }
        let whole = self.whole_lines()?.len() as u64;
        self.file.set_len(whole).map_err(at(&self.path))
    }

    /// The content up to its last line end: what follows was never completed, so nothing was handed out for it.
    fn whole_lines(&mut self) -> Result<String, TlsError> {
        let mut content = String::new();
        let read = self.file.seek(SeekFrom::Start(0)).and_then(|_| self.file.read_to_string(&mut content));
        read.map_err(at(&self.path))?;
        content.truncate(content.rfind('\n').map_or(0, |end| end + 1));
        Ok(content)
    }
}
