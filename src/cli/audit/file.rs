//! Exports as files: line by line, never whole in memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use crate::cli::{Exit, Failure};
use crate::escrow::audit::ChainHead;
use crate::escrow::audit::line::{LINE_MAX_BYTES, RECORD_TYPE, parse};
use crate::seal::checkpoint::CHECKPOINT_TYPE;

/// One line of a file.
pub(super) struct Line {
    /// Without its end. What is not text or too long is cut or replaced, and so is no record any more.
    pub(super) text: String,
    /// Its length in the file, its end included.
    pub(super) bytes: u64,
    /// It has an end: what has none may have been cut off.
    pub(super) complete: bool,
}

impl Line {
    /// Whether it says that it is a checkpoint.
    pub(super) fn is_checkpoint(&self) -> bool {
        self.is_of_type(CHECKPOINT_TYPE)
    }

    fn is_of_type(&self, name: &str) -> bool {
        let rest = self.text.strip_prefix("{\"type\":\"");
        rest.and_then(|rest| rest.strip_prefix(name)).is_some_and(|rest| rest.starts_with('"'))
    }
}

/// The lines of a file.
pub(super) struct Lines(BufReader<File>);

impl Lines {
    /// Of the export at `path`.
    ///
    /// # Errors
    /// [`Exit::Invalid`] if it cannot be opened.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        Ok(Self::of(file))
    }

    /// Of a file that is open.
    pub(super) fn of(file: File) -> Self {
        Self(BufReader::new(file))
    }

    /// The next line, `None` at the end.
    ///
    /// # Errors
    /// [`io::Error`] of the file system.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        let mut bytes = Vec::new();
        // One more than the longest, and its end.
        let bound = LINE_MAX_BYTES as u64 + 2;
        let read = self.0.by_ref().take(bound).read_until(b'\n', &mut bytes)?;
        if read == 0 {
            return Ok(None);
        }
        let mut length = read as u64;
        let mut complete = bytes.last() == Some(&b'\n');
        if complete {
            bytes.pop();
        } else if length == bound {
            let (skipped, ended) = self.skip_rest()?;
            (length, complete) = (length + skipped, ended);
        }
        Ok(Some(Line { text: String::from_utf8_lossy(&bytes).into_owned(), bytes: length, complete }))
    }

    /// Reads on to the end of a line that is too long.
    fn skip_rest(&mut self) -> io::Result<(u64, bool)> {
        let mut skipped = 0;
        loop {
            let buffer = self.0.fill_buf()?;
            if buffer.is_empty() {
                return Ok((skipped, false));
            }
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(buffer.len(), |end| end + 1);
            self.0.consume(length);
            skipped += length as u64;
            if end.is_some() {
                return Ok((skipped, true));
            }
        }
    }
}

/// What an export holds that is to be gone on with.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Its last record; zeros if it has none.
    pub(super) head: ChainHead,
    /// Bytes of whole lines. What comes behind was cut off while it was written.
    pub(super) whole_bytes: u64,
    /// All bytes.
    pub(super) bytes: u64,
}

/// Looks where the export in `file` ends.
///
/// # Errors
/// [`Exit::Invalid`] if it cannot be read or does not end with a record as exports have them.
pub(super) fn held(file: File, path: &Path) -> Result<Held, Failure> {
    let mut lines = Lines::of(file);
    let mut held = Held::default();
    let mut last = None;
    while let Some(line) = lines.next().map_err(|error| unreadable(path, &error))? {
        held.bytes += line.bytes;
        if !line.complete {
            break;
        }
        held.whole_bytes += line.bytes;
        if line.is_of_type(RECORD_TYPE) {
            last = Some(line.text);
        } else if !line.is_checkpoint() {
            return Err(not_an_export(path));
        }
    }
    if let Some(last) = last {
        let stated = parse(&last).ok().filter(|stated| stated.genuine).ok_or_else(|| {
            Failure::new(Exit::Failed, format!("{}: its last record is not one of the trail", path.display()))
                .with_hint("`strongroom audit verify FILE` says where it departs from the trail; export anew")
        })?;
        held.head = ChainHead { sequence: stated.record.sequence, hash: stated.hash };
    } else if held.whole_bytes == 0 && held.bytes > LINE_MAX_BYTES as u64 {
        return Err(not_an_export(path));
    }
    Ok(held)
}

pub(super) fn not_an_export(path: &Path) -> Failure {
    Failure::new(Exit::Invalid, format!("{}: not an export of the audit trail", path.display()))
        .with_hint("`strongroom audit export` writes one: JSON lines, each with a type")
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Invalid, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file.reopen().unwrap()
    }

    const GOLDEN: &str = include_str!("../../escrow/audit/testdata/export.jsonl");

    #[test]
    fn an_export_is_gone_on_with_behind_its_last_whole_line() {
        let last = GOLDEN.lines().last().unwrap();
        let sequence = GOLDEN.lines().count() as u64;
        let whole = held(file(GOLDEN.as_bytes()), Path::new("x")).unwrap();
        assert_eq!(whole.head, ChainHead { sequence, hash: parse(last).unwrap().hash });
        assert_eq!((whole.whole_bytes, whole.bytes), (GOLDEN.len() as u64, GOLDEN.len() as u64));

        // Cut off anywhere in the last line, it is the one before that is gone on from.
        let before = GOLDEN.len() - last.len() - 1;
        for cut in [before, before + 1, before + 20, GOLDEN.len() - 1] {
            let held = held(file(&GOLDEN.as_bytes()[..cut]), Path::new("x")).unwrap();
            assert_eq!(
                (held.head.sequence, held.whole_bytes, held.bytes),
                (sequence - 1, before as u64, cut as u64)
            );
        }
        assert_eq!(held(file(b""), Path::new("x")).unwrap(), Held::default());
    }

    #[test]
    fn what_is_no_export_is_not_written_to() {
        for (content, exit) in [
            ("hello\n".to_owned(), Exit::Invalid),
            ("{\"type\":\"recording\"}\n".to_owned(), Exit::Invalid),
            (GOLDEN.replace("desk1", "desk2"), Exit::Failed),
            ("x".repeat(LINE_MAX_BYTES + 9), Exit::Invalid),
        ] {
            assert_eq!(held(file(content.as_bytes()), Path::new("x")).unwrap_err().exit, exit);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_one_line_of_bounded_size() {
        let long = "x".repeat(3 * LINE_MAX_BYTES);
        let mut lines = Lines::of(file(format!("a\n{long}\nb").as_bytes()));
        let mut read = || lines.next().unwrap().map(|line| (line.text.len(), line.bytes, line.complete));
        assert_eq!(read(), Some((1, 2, true)));
        assert_eq!(read(), Some((LINE_MAX_BYTES + 2, long.len() as u64 + 1, true)));
        assert_eq!(read(), Some((1, 1, false)));
        assert_eq!(read(), None);
    }
}
