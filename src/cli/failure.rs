//! What a command fails with, and the one place where errors become exit codes.

use std::fmt;
use std::io;
use std::process::ExitCode;

use serde::Serialize;

use super::local_cluster::LocalClusterError;
use super::output::Format;
use crate::client::ClientError;
use crate::error::chain;
use crate::escrow::ids::Invalid;
use crate::tls::TlsError;

/// How a command ended, for scripts. The numbers are a contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It failed.
    Failed = 1,
    /// Bad usage or invalid input.
    Invalid = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// The caller may not.
    Denied = 4,
    /// It conflicts with what is stored.
    Conflict = 5,
    /// No node or no quorum for now: try again (`EX_TEMPFAIL` of `sysexits.h`).
    Unavailable = 75,
}

impl Exit {
    /// The name in JSON errors.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Invalid => "invalid",
            Self::NotFound => "not-found",
            Self::Denied => "denied",
            Self::Conflict => "conflict",
            Self::Unavailable => "unavailable",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A command that did not succeed: what happened, in words without secrets, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// What happened.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The id of the request, which the logs of the nodes hold.
    pub request_id: Option<String>,
}

impl Failure {
    /// A failure that ends the process with `exit`.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, request_id: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, if it ended work on the lines of a file that was begun with line `from_line`: with how far that came, and
    /// where to go on. Up to line `settled` everything is settled; 0 if nothing is.
    #[must_use]
    pub fn with_the_way_on(self, from_line: u64, settled: u64, so_far: &str) -> Self {
        if settled == 0 && self.exit != Exit::Unavailable {
            // It never began: that the caller may not, for one, is not mended by going on.
            return self;
        }
        let message = format!("{}; so far {so_far}", self.message);
        let next = from_line.max(settled + 1);
        let way = format!("doing the same again is safe; --from-line {next} goes on where it ended");
        let hint = self.hint.map_or(way.clone(), |hint| format!("{hint}; {way}"));
        Self { message, hint: Some(hint), ..self }
    }

    /// The failure as it is printed on standard error.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Json => {
                let Self { exit, message, hint, request_id } = self;
                let (code, hint, request_id) = (exit.as_str(), hint.as_deref(), request_id.as_deref());
                let report = Report { error: Error { code, message, hint, request_id } };
                // Strings always encode; if they did not, the message would still be told.
                serde_json::to_string(&report).unwrap_or_else(|_| message.clone())
            }
            Format::Table => {
                let mut text = format!("error: {}", self.message);
                let more = [("hint", &self.hint), ("request id", &self.request_id)];
                for (name, value) in more {
                    if let Some(value) = value {
                        text.push_str(&format!("\n{name}: {value}"));
                    }
                }
                text
            }
        }
    }
}

/// An error as JSON. The names are a contract.
#[derive(Serialize)]
struct Report<'a> {
    error: Error<'a>,
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'static str,
    message: &'a str,
    hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Conflict(_) => Exit::Conflict,
            ClientError::Denied(_) | ClientError::Refused { .. } => Exit::Denied,
            ClientError::Endpoints { .. } | ClientError::Invalid(_) => Exit::Invalid,
            ClientError::Failed(_) | ClientError::Malformed { .. } => Exit::Failed,
            ClientError::NotFound(_) => Exit::NotFound,
            ClientError::Temporary(_) | ClientError::Unavailable { .. } => Exit::Unavailable,
        };
        let request_id = error.request_id().map(ToString::to_string);
        Self { exit, message: error.to_string(), hint: error.hint(), request_id }
    }
}

impl From<LocalClusterError> for Failure {
    fn from(error: LocalClusterError) -> Self {
        match error {
            LocalClusterError::Client(error) => error.into(),
            LocalClusterError::Invalid(invalid) => invalid.into(),
            LocalClusterError::Tls(error) => error.into(),
            LocalClusterError::Directory { .. } => Self::new(Exit::Invalid, error.to_string()),
            LocalClusterError::Foreign(_) => Self::new(Exit::Invalid, error.to_string())
                .with_hint("name a new or empty directory, or one that an earlier run made"),
            LocalClusterError::InUse(_) => Self::new(Exit::Conflict, error.to_string())
                .with_hint("use that one, stop it, or name another directory"),
            LocalClusterError::PortTaken(_) => Self::new(Exit::Failed, error.to_string()).with_hint(
                "perhaps a node that was started by hand still runs: stop it; a new cluster takes free ports if \
                 no --base-port is given",
            ),
            other => Self::new(Exit::Failed, chain(&other)),
        }
    }
}

impl From<TlsError> for Failure {
    fn from(error: TlsError) -> Self {
        let exit = match &error {
            TlsError::Exists { .. }
            | TlsError::NotRenewable(_)
            | TlsError::NotTrusted { .. }
            | TlsError::StillNeeded { .. } => Exit::Conflict,
            TlsError::File { source, .. } if is_of_the_path(source) => Exit::Invalid,
            TlsError::Invalid(_) | TlsError::Unusable { .. } => Exit::Invalid,
            TlsError::NotIssued(_) => Exit::NotFound,
            _ => Exit::Failed,
        };
        Self::new(exit, chain(&error))
    }
}

/// Whether it is the path that was given, and not the disk, that is at fault.
fn is_of_the_path(error: &io::Error) -> bool {
    use io::ErrorKind::{
        AlreadyExists, InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied,
    };
    matches!(
        error.kind(),
        AlreadyExists | InvalidFilename | IsADirectory | NotADirectory | NotFound | PermissionDenied
    )
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::new(Exit::Invalid, invalid.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let codes = [
            (Exit::Failed, 1),
            (Exit::Invalid, 2),
            (Exit::NotFound, 3),
            (Exit::Denied, 4),
            (Exit::Conflict, 5),
            (Exit::Unavailable, 75),
        ];
        for (exit, code) in codes {
            assert_eq!(exit as u8, code);
        }
    }

    #[test]
    fn a_failure_reads_the_same_for_people_and_programs() {
        let failure = Failure::new(Exit::NotFound, "no such key").with_hint("look it up");
        assert_eq!(failure.render(Format::Table), "error: no such key\nhint: look it up");
        let json = r#"{"error":{"code":"not-found","message":"no such key","hint":"look it up"}}"#;
        assert_eq!(failure.render(Format::Json), json);
        let asked = Failure { request_id: Some("r-1".into()), ..failure };
        assert_eq!(asked.render(Format::Table), "error: no such key\nhint: look it up\nrequest id: r-1");
        let json = r#"{"error":{"code":"not-found","message":"no such key","hint":"look it up","request_id":"r-1"}}"#;
        assert_eq!(asked.render(Format::Json), json);
        let without_hint = Failure::new(Exit::Failed, "x");
        assert_eq!(without_hint.render(Format::Table), "error: x");
        assert_eq!(
            without_hint.render(Format::Json),
            r#"{"error":{"code":"failed","message":"x","hint":null}}"#
        );
    }
}
