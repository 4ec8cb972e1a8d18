//! What is told of a record that is not kept: where it stands and why, never what is in it.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tonic::Code;

use crate::cli::{Exit, Failure};
use crate::client::BulkRefused;
use crate::escrow::ids::{Invalid, KeyId, MachineId};

/// One record that is not kept. The names are a contract.
#[derive(Debug, Serialize)]
pub(super) struct Rejection {
    /// Where it begins.
    line: u64,
    /// Whose it is; of a record that is not well formed this is not known, for anything may stand there.
    machine: Option<MachineId>,
    /// The id it was given, if it was well formed and had one.
    key_id: Option<KeyId>,
    /// `invalid`, `conflict`, `denied` or `failed`, as errors have it.
    code: &'static str,
    /// The field at fault, if it is one.
    field: Option<String>,
    /// What would have been accepted, or what it contradicts.
    reason: String,
}

impl Rejection {
    /// A record that is not well formed.
    pub(super) fn of_record(line: u64, invalid: Invalid) -> Self {
        let Invalid { field, expected } = invalid;
        let code = Exit::Invalid.as_str();
        Self { line, machine: None, key_id: None, code, field: Some(field), reason: expected }
    }

    /// A record that the cluster refused.
    pub(super) fn of_answer(
        line: u64,
        machine: &MachineId,
        key_id: Option<KeyId>,
        refused: BulkRefused,
    ) -> Self {
        let exit = match refused.code {
            Code::AlreadyExists | Code::FailedPrecondition => Exit::Conflict,
            Code::InvalidArgument => Exit::Invalid,
            Code::PermissionDenied => Exit::Denied,
            _ => Exit::Failed,
        };
        let BulkRefused { field, message, .. } = refused;
        Self { line, machine: Some(machine.clone()), key_id, code: exit.as_str(), field, reason: message }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.line)?;
        match &self.field {
            Some(field) if !self.reason.starts_with(field.as_str()) => write!(f, "{field}: {}", self.reason),
            _ => f.write_str(&self.reason),
        }
    }
}

/// A new file of rejections, one JSON document a line.
pub(super) struct RejectionFile {
    path: PathBuf,
    out: BufWriter<std::fs::File>,
}

impl RejectionFile {
    /// # Errors
    /// [`Exit::Conflict`] if there is something already: the report of an earlier run is not lost to a later one.
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| {
            let message = format!("rejected_out: {}: {error}", path.display());
            match error.kind() {
                io::ErrorKind::AlreadyExists => {
                    Failure::new(Exit::Conflict, message).with_hint("name a new file")
                }
                _ => Failure::new(Exit::Invalid, message),
            }
        })?;
        Ok(Self { path: path.to_owned(), out: BufWriter::new(file) })
    }

    /// # Errors
    /// [`Exit::Failed`] if the disk does not take it.
    pub(super) fn write(&mut self, rejection: &Rejection) -> Result<(), Failure> {
        let written = serde_json::to_writer(&mut self.out, rejection).map_err(io::Error::from);
        let written = written.and_then(|()| self.out.write_all(b"\n"));
        written.map_err(|error| failed(&self.path, &error))
    }

    /// # Errors
    /// As [`RejectionFile::write`].
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| failed(&self.path, &error))
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("rejected_out: {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_names_its_field_once() {
        let rejection = Rejection::of_record(7, Invalid::new("secret", "8 groups"));
        assert_eq!(rejection.to_string(), "line 7: secret: 8 groups");
        let refused = |message: &str| BulkRefused {
            code: Code::InvalidArgument,
            field: Some("user".to_owned()),
            message: message.to_owned(),
        };
        let machine = "PC-1".parse().unwrap();
        let rejection = Rejection::of_answer(7, &machine, None, refused("user: no spaces"));
        assert_eq!(rejection.to_string(), "line 7: user: no spaces");
        assert_eq!(rejection.code, "invalid");
    }

    #[test]
    fn the_report_of_an_earlier_run_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rejected");
        let mut file = RejectionFile::create(&path).unwrap();
        file.write(&Rejection::of_record(3, Invalid::new("row", "7 values"))).unwrap();
        file.flush().unwrap();
        let failure = RejectionFile::create(&path).err().unwrap();
        assert_eq!(failure.exit, Exit::Conflict);
        let expected = concat!(
            r#"{"line":3,"machine":null,"key_id":null,"code":"invalid","field":"row","reason":"7 values"}"#,
            "\n"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
    }
}
