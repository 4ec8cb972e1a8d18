//! Lines of a file, of bounded length, through buffers that are wiped.

use std::io::{self, Read};

use zeroize::Zeroizing;

use super::ImportError;

/// Longest line that is read whole: the largest key package in base64, and room for all the rest. Of a longer one the rest
/// is passed over.
pub const LINE_MAX_BYTES: usize = 128 * 1024;
/// Bytes that are read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// What some editors put in front of UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The lines of a file.
pub(super) struct Lines<R> {
    source: R,
    chunk: Zeroizing<Vec<u8>>,
    /// What of the chunk was not looked at yet.
    unread: std::ops::Range<usize>,
    line: Zeroizing<Vec<u8>>,
    number: u64,
}

/// One line, without its end: LF or CRLF.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Counted from 1.
    pub(super) number: u64,
    pub(super) bytes: &'a [u8],
    /// It is longer than [`LINE_MAX_BYTES`]; `bytes` is how it begins.
    pub(super) is_cut: bool,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            chunk: Zeroizing::new(vec![0; CHUNK_BYTES]),
            unread: 0..0,
            // It never grows, which would leave copies behind.
            line: Zeroizing::new(Vec::with_capacity(LINE_MAX_BYTES)),
            number: 0,
        }
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, ImportError> {
        self.line.clear();
        let (mut begun, mut is_cut) = (false, false);
        while self.fill()? {
            begun = true;
            let unread = &self.chunk[self.unread.clone()];
            let end = unread.iter().position(|byte| *byte == b'\n');
            let part = &unread[..end.unwrap_or(unread.len())];
            let room = LINE_MAX_BYTES - self.line.len();
            is_cut |= part.len() > room;
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            self.unread.start += part.len() + usize::from(end.is_some());
            if end.is_some() {
                break;
            }
        }
        if !begun {
            return Ok(None);
        }
        self.number += 1;
        if self.number == 1 {
            self.check_encoding()?;
        }
        let bytes = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        let bytes =
            if self.number == 1 { bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes) } else { bytes };
        Ok(Some(Line { number: self.number, bytes, is_cut }))
    }

    /// Whether there is something unread.
    fn fill(&mut self) -> io::Result<bool> {
        while self.unread.is_empty() {
            match self.source.read(&mut self.chunk) {
                Ok(0) => return Ok(false),
                Ok(read) => self.unread = 0..read.min(CHUNK_BYTES),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Windows tools like to write UTF-16, in which every other byte of plain text is zero.
    fn check_encoding(&self) -> Result<(), ImportError> {
        let is_marked = self.line.starts_with(b"\xff\xfe") || self.line.starts_with(b"\xfe\xff");
        if is_marked || self.line.contains(&0) { Err(ImportError::Encoding) } else { Ok(()) }
    }
}
