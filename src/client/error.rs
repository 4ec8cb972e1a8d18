//! What a call can end with when it does not succeed, by who has to act.

use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

use crate::request_id::TraceId;
use crate::rpc::status::{FIELD_KEY, HINT_KEY};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The caller's request contradicts what is stored, or the state of the cluster does not allow it.
    #[error("{0}")]
    Conflict(Answer),
    /// The caller may not.
    #[error("{0}")]
    Denied(Answer),
    /// The caller gave no endpoint, or too many.
    #[error("{given} endpoints were given: one to {} are needed", super::ENDPOINTS_MAX)]
    Endpoints {
        /// How many.
        given: usize,
    },
    /// The node failed, or does not know what was asked of it.
    #[error("{0}")]
    Failed(Answer),
    /// The caller's input is not acceptable.
    #[error("{0}")]
    Invalid(Answer),
    /// The node answered something this version does not understand.
    #[error("{what}")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
    },
    /// What the caller named does not exist.
    #[error("{0}")]
    NotFound(Answer),
    /// One end did not accept the other's certificate.
    #[error("{endpoint}: {reason}")]
    Refused {
        /// Where.
        endpoint: String,
        /// Who refused whom, and why.
        reason: String,
        /// What the TLS layer said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A node answered that it cannot be done for now.
    #[error("{0}")]
    Temporary(Answer),
    /// No node, or no quorum, in time. Nobody's fault that is known here: try again.
    #[error("no node gave an answer within {:.1} s, asked {}{}", waited.as_secs_f64(), Times(*rounds), List(troubles))]
    Unavailable {
        /// How long was tried.
        waited: Duration,
        /// How often each endpoint was asked, at most.
        rounds: u32,
        /// Whether there was a connection to any of them.
        reached: bool,
        /// The id of the call, to look for in the nodes' logs.
        request_id: Option<TraceId>,
        /// What became of the last attempt at each endpoint.
        troubles: Vec<Trouble>,
    },
}

impl ClientError {
    /// The error a definite answer amounts to.
    pub(super) fn from_status(status: Status, endpoint: &str) -> Self {
        let code = status.code();
        if is_temporary(code) {
            let troubles = vec![Trouble::new(endpoint, status.message())];
            return Self::Unavailable {
                waited: Duration::ZERO,
                rounds: 1,
                reached: true,
                request_id: None,
                troubles,
            };
        }
        let answer = Answer::new(status, endpoint);
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::Invalid(answer),
            Code::NotFound => Self::NotFound(answer),
            Code::PermissionDenied | Code::Unauthenticated => Self::Denied(answer),
            Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => Self::Conflict(answer),
            _ => Self::Failed(answer),
        }
    }

    /// The error an answer amounts to that nobody asks for a second time.
    pub(super) fn from_last_status(status: Status, endpoint: &str) -> Self {
        // Said by the node itself, and not by a connection that broke: that has nothing to advise.
        if is_temporary(status.code()) && status.metadata().contains_key(HINT_KEY) {
            return Self::Temporary(Answer::new(status, endpoint));
        }
        Self::from_status(status, endpoint)
    }

    /// Of the call with this id: its answer had begun, and the rest did not come, for which it waited.
    pub(super) fn broken_off(waited: Duration, what: impl Into<String>, id: &TraceId) -> Self {
        let troubles = vec![Trouble::new("the cluster", what)];
        Self::Unavailable { waited, rounds: 1, reached: true, request_id: Some(id.clone()), troubles }
    }

    /// The same, of the call with this id.
    pub(super) fn with_request_id(mut self, id: &TraceId) -> Self {
        match &mut self {
            Self::Conflict(answer)
            | Self::Denied(answer)
            | Self::Failed(answer)
            | Self::Invalid(answer)
            | Self::NotFound(answer)
            | Self::Temporary(answer) => answer.request_id = Some(id.clone()),
            Self::Unavailable { request_id, .. } => *request_id = Some(id.clone()),
            Self::Endpoints { .. } | Self::Malformed { .. } | Self::Refused { .. } => {}
        }
        self
    }

    /// The id of the call that failed, to look for in the nodes' logs; `None` if no node was asked.
    pub fn request_id(&self) -> Option<&TraceId> {
        match self {
            Self::Conflict(answer)
            | Self::Denied(answer)
            | Self::Failed(answer)
            | Self::Invalid(answer)
            | Self::NotFound(answer)
            | Self::Temporary(answer) => answer.request_id.as_ref(),
            // Where there was no connection, no log holds it.
            Self::Unavailable { request_id, reached, .. } => request_id.as_ref().filter(|_| *reached),
            Self::Endpoints { .. } | Self::Malformed { .. } | Self::Refused { .. } => None,
        }
    }

    /// What the caller may do about it, if the node said so or it follows from the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Failed(answer) if answer.hint.is_none() && answer.status.code() == Code::Unimplemented => {
                Some("check that this is the address of a node's API, not its port for other nodes".into())
            }
            Self::Conflict(answer)
            | Self::Denied(answer)
            | Self::Failed(answer)
            | Self::Invalid(answer)
            | Self::NotFound(answer)
            | Self::Temporary(answer) => answer.hint.clone(),
            Self::Endpoints { .. } => Some("give --endpoints HOST:PORT,… or set STRONGROOM_ENDPOINTS".into()),
            Self::Malformed { .. } => {
                Some("check that client and nodes run versions that go together".into())
            }
            Self::Refused { .. } => {
                Some("look at the profile's certificate with `strongroom cert show`".into())
            }
            Self::Unavailable { reached: false, .. } => {
                Some("check that these are the addresses of the nodes' APIs, and that the nodes run".into())
            }
            Self::Unavailable { .. } => {
                Some("doing the same again is safe; `strongroom status` shows which nodes are up".into())
            }
        }
    }
}

/// Whether an answer says "not now" rather than "no".
pub(super) fn is_temporary(code: Code) -> bool {
    matches!(code, Code::Cancelled | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Unavailable)
}

/// A definite answer of a node.
#[derive(Debug)]
pub struct Answer {
    /// What the node said.
    pub message: String,
    /// What it says to do about it.
    pub hint: Option<String>,
    /// The field at fault.
    pub field: Option<Box<str>>,
    /// Which endpoint answered.
    pub endpoint: Box<str>,
    /// The id of the call, to look for in the nodes' logs.
    pub request_id: Option<TraceId>,
    /// The answer itself.
    pub status: Box<Status>,
}

impl Answer {
    fn new(status: Status, endpoint: &str) -> Self {
        let text = |key| {
            let value = status.metadata().get(key)?.to_str().ok()?;
            (!value.is_empty()).then(|| value.to_owned())
        };
        Self {
            message: status.message().to_owned(),
            hint: text(HINT_KEY),
            field: text(FIELD_KEY).map(String::into_boxed_str),
            endpoint: endpoint.into(),
            request_id: None,
            status: Box::new(status),
        }
    }
}

impl fmt::Display for Answer {
    /// The message; with the field in front where the message does not begin with it anyway.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) if !self.message.starts_with(&**field) => write!(f, "{field}: ")?,
            _ => {}
        }
        if self.message.is_empty() {
            return write!(f, "{} answered: {}", self.endpoint, self.status.code().description());
        }
        f.write_str(&self.message)
    }
}

/// What became of an attempt at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Where.
    pub endpoint: String,
    /// What happened, in words.
    pub what: String,
}

impl Trouble {
    /// `what` happened at `endpoint`.
    pub fn new(endpoint: impl Into<String>, what: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), what: what.into() }
    }
}

/// How often something was done, in words.
struct Times(u32);

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            1 => f.write_str("once"),
            times => write!(f, "{times} times"),
        }
    }
}

/// Troubles as the tail of a sentence.
struct List<'a>(&'a [Trouble]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, Trouble { endpoint, what }) in self.0.iter().enumerate() {
            let separator = if position == 0 { ": " } else { "; " };
            write!(f, "{separator}{endpoint}: {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grpc_code_has_one_meaning() {
        let variant = |code| match ClientError::from_status(Status::new(code, "x"), "n") {
            ClientError::Conflict(_) => "conflict",
            ClientError::Denied(_) => "denied",
            ClientError::Failed(_) => "failed",
            ClientError::Invalid(_) => "invalid",
            ClientError::NotFound(_) => "not found",
            ClientError::Unavailable { .. } => "unavailable",
            _ => "another",
        };
        let table = [
            (Code::InvalidArgument, "invalid"),
            (Code::OutOfRange, "invalid"),
            (Code::NotFound, "not found"),
            (Code::PermissionDenied, "denied"),
            (Code::Unauthenticated, "denied"),
            (Code::AlreadyExists, "conflict"),
            (Code::FailedPrecondition, "conflict"),
            (Code::Aborted, "conflict"),
            (Code::Unavailable, "unavailable"),
            (Code::DeadlineExceeded, "unavailable"),
            (Code::ResourceExhausted, "unavailable"),
            (Code::Cancelled, "unavailable"),
            (Code::Internal, "failed"),
            (Code::Unknown, "failed"),
            (Code::Unimplemented, "failed"),
            (Code::DataLoss, "failed"),
        ];
        for (code, meaning) in table {
            assert_eq!(variant(code), meaning, "{code:?}");
        }
    }

    #[test]
    fn an_answer_carries_the_nodes_hint_and_names_the_field_once() {
        let mut status = Status::invalid_argument("1 to 63 letters");
        status.metadata_mut().insert(HINT_KEY, "take the serial number".parse().unwrap());
        status.metadata_mut().insert(FIELD_KEY, "machine".parse().unwrap());
        let error = ClientError::from_status(status, "n");
        assert_eq!(error.to_string(), "machine: 1 to 63 letters");
        assert_eq!(error.hint().as_deref(), Some("take the serial number"));

        let mut status = Status::invalid_argument("machine: 1 to 63 letters");
        status.metadata_mut().insert(FIELD_KEY, "machine".parse().unwrap());
        assert_eq!(ClientError::from_status(status, "n").to_string(), "machine: 1 to 63 letters");
    }

    #[test]
    fn unavailable_says_what_happened_at_each_endpoint() {
        let troubles = vec![Trouble::new("a:1", "connection refused"), Trouble::new("b:1", "no quorum")];
        let waited = Duration::from_millis(2_040);
        let error = ClientError::Unavailable { waited, rounds: 3, reached: true, request_id: None, troubles };
        assert_eq!(
            error.to_string(),
            "no node gave an answer within 2.0 s, asked 3 times: a:1: connection refused; b:1: no quorum"
        );
        assert!(error.hint().unwrap().contains("doing the same again is safe"));
        let id = TraceId::draw();
        let error = error.with_request_id(&id);
        assert_eq!(error.request_id(), Some(&id));
        let troubles = Vec::new();
        let unreached =
            ClientError::Unavailable { waited, rounds: 1, reached: false, request_id: None, troubles };
        let unreached = unreached.with_request_id(&id);
        assert_eq!(unreached.request_id(), None, "no node has heard of it");
        assert!(unreached.hint().unwrap().contains("addresses"));
    }
}
