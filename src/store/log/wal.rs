//! raft-log's type parameters: how our log ids, votes and payloads look in its records.

use std::io::{self, Read, Write};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use raft_log::codeq::{Decode, Encode};

use super::Vote;
use crate::escrow::records::LogPosition;
use crate::store::format::VALUE_MAX_BYTES;

/// raft-log's type parameters.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Wal;

impl raft_log::Types for Wal {
    type LogId = LogPosition;
    type LogPayload = Record;
    type Vote = Vote;
    type Callback = OnFlush;
    type UserData = Unused;

    fn log_index(log_id: &LogPosition) -> u64 {
        log_id.index
    }

    fn payload_size(payload: &Record) -> u64 {
        payload.0.len() as u64
    }
}

/// The bytes of one entry. Shared, because the log keeps recent ones in memory and hands them to every reader.
#[derive(Debug, Clone)]
pub(super) struct Record(pub Bytes);

/// raft-log can carry data of its user; we have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unused;

/// The error that stopped a log: the first one. What is written after it only hears that nobody writes any more, and it is
/// the first that says what to do about it.
#[derive(Debug, Clone, Default)]
pub(super) struct Cause(Arc<OnceLock<(io::ErrorKind, String)>>);

impl Cause {
    /// The error that a refused write ends with: `error`, unless that only follows from an earlier one.
    pub(super) fn behind(&self, error: io::Error) -> io::Error {
        let first = self.first();
        self.note(&error);
        first.unwrap_or(error)
    }

    fn first(&self) -> Option<io::Error> {
        let (kind, why) = self.0.get()?;
        Some(io::Error::new(*kind, format!("the log stopped after an earlier error: {why}")))
    }

    fn note(&self, error: &io::Error) {
        // The first one stays.
        let _ = self.0.set((error.kind(), error.to_string()));
    }
}

/// Told once whether a flush reached the disk. When raft-log stops after an error it drops what waits in its queue:
/// then the drop tells, so that nobody waits for ever for an entry that was never written.
pub(super) struct OnFlush {
    tell: Option<Box<dyn FnOnce(io::Result<()>) + Send>>,
    /// Takes note of what raft-log tells; a drop is told of nothing.
    cause: Cause,
}

impl OnFlush {
    pub(super) fn new(cause: Cause, tell: impl FnOnce(io::Result<()>) + Send + 'static) -> Self {
        Self { tell: Some(Box::new(tell)), cause }
    }
}

impl raft_log::Callback for OnFlush {
    fn send(mut self, result: Result<(), io::Error>) {
        if let Err(error) = &result {
            self.cause.note(error);
        }
        if let Some(tell) = self.tell.take() {
            tell(result);
        }
    }
}

impl Drop for OnFlush {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            let unknown =
                || io::Error::other("the log stopped after an earlier error, before this was flushed");
            tell(Err(self.cause.first().unwrap_or_else(unknown)));
        }
    }
}

fn read_u32(reader: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes))
}

fn read_u64(reader: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}

impl Encode for LogPosition {
    fn encode<W: Write>(&self, mut writer: W) -> io::Result<usize> {
        writer.write_all(&self.term.to_be_bytes())?;
        writer.write_all(&self.index.to_be_bytes())?;
        Ok(16)
    }
}

impl Decode for LogPosition {
    fn decode<R: Read>(mut reader: R) -> io::Result<Self> {
        Ok(Self { term: read_u64(&mut reader)?, index: read_u64(&mut reader)? })
    }
}

impl Encode for Vote {
    fn encode<W: Write>(&self, mut writer: W) -> io::Result<usize> {
        writer.write_all(&self.term.to_be_bytes())?;
        writer.write_all(&[u8::from(self.committed)])?;
        writer.write_all(&self.node.to_be_bytes())?;
        Ok(17)
    }
}

impl Decode for Vote {
    fn decode<R: Read>(mut reader: R) -> io::Result<Self> {
        let term = read_u64(&mut reader)?;
        let mut committed = [0];
        reader.read_exact(&mut committed)?;
        let committed = match committed[0] {
            0 => false,
            1 => true,
            other => return Err(invalid(format!("a vote's committed flag is {other}"))),
        };
        Ok(Self { term, committed, node: read_u64(&mut reader)? })
    }
}

/// The length, its complement, the bytes.
///
/// raft-log reads the length before the record's checksum, and takes a record that runs past the end of the file for
/// one that was never acknowledged: without the complement one flipped bit of a length would silently cut off every
/// entry, and the vote, behind it.
impl Encode for Record {
    fn encode<W: Write>(&self, mut writer: W) -> io::Result<usize> {
        let length = u32::try_from(self.0.len())
            .ok()
            .filter(|_| self.0.len() <= VALUE_MAX_BYTES)
            .ok_or_else(|| invalid(format!("an entry of {} bytes", self.0.len())))?;
        writer.write_all(&length.to_be_bytes())?;
        writer.write_all(&(!length).to_be_bytes())?;
        writer.write_all(&self.0)?;
        Ok(8 + self.0.len())
    }
}

impl Decode for Record {
    fn decode<R: Read>(mut reader: R) -> io::Result<Self> {
        let length = read_u32(&mut reader)?;
        if read_u32(&mut reader)? != !length {
            return Err(invalid("the length of an entry is damaged".to_owned()));
        }
        let length = length as usize;
        if length > VALUE_MAX_BYTES {
            // The record's checksum comes after it: a damaged length must not make us allocate.
            return Err(invalid(format!("an entry of {length} bytes")));
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes)?;
        Ok(Self(bytes.into()))
    }
}

impl Encode for Unused {
    fn encode<W: Write>(&self, _writer: W) -> io::Result<usize> {
        Ok(0)
    }
}

impl Decode for Unused {
    fn decode<R: Read>(_reader: R) -> io::Result<Self> {
        Ok(Self)
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(value: &impl Encode) -> String {
        let mut bytes = Vec::new();
        value.encode(&mut bytes).unwrap();
        data_encoding::HEXLOWER.encode(&bytes)
    }

    /// These bytes are on disks: they must not change.
    #[test]
    fn records_keep_their_bytes() {
        let position = LogPosition { term: 2, index: 258 };
        assert_eq!(hex(&position), "00000000000000020000000000000102");
        let vote = Vote { term: 2, committed: true, node: 3 };
        let bytes = "0000000000000002010000000000000003";
        assert_eq!(hex(&vote), bytes);
        assert_eq!(
            Vote::decode(&data_encoding::HEXLOWER.decode(bytes.as_bytes()).unwrap()[..]).unwrap(),
            vote
        );
        let record = Record(Bytes::from_static(b"ab"));
        assert_eq!(hex(&record), "00000002fffffffd6162");
    }

    #[test]
    fn a_forged_length_does_not_make_us_allocate() {
        let kind = |bytes: &[u8]| Record::decode(bytes).unwrap_err().kind();
        assert_eq!(kind(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1]), io::ErrorKind::InvalidData);
        assert_eq!(kind(&[0, 0, 0, 9, 0xff, 0xff, 0xff, 0xf6, 1]), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_damaged_length_is_no_torn_record() {
        let whole = [0, 0, 0, 2, 0xff, 0xff, 0xff, 0xfd, b'a', b'b'];
        assert_eq!(Record::decode(&whole[..]).unwrap().0, b"ab"[..]);
        for bit in 0..64 {
            let mut damaged = whole;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(&damaged[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn a_callback_that_is_dropped_tells_an_error() {
        let (tell, told) = std::sync::mpsc::channel();
        drop(OnFlush::new(Cause::default(), move |result| tell.send(result.is_err()).unwrap()));
        assert!(told.recv().unwrap());
    }
}
