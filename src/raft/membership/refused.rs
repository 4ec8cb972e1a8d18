//! Why a change is refused, and what to do instead.

use std::fmt;

/// Who or what stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// The state of the cluster or of a node does not allow it.
    Conflict,
    /// What was named does not exist.
    NotFound,
    /// It may be possible later: a node does not answer, or the leadership moves.
    Unavailable,
}

/// A change that is not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whose fault it is.
    pub obstacle: Obstacle,
    /// Why.
    pub reason: String,
    /// What to do instead.
    pub instead: String,
}

impl Refused {
    /// The state of the cluster or of a node does not allow it.
    pub fn conflict(reason: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { obstacle: Obstacle::Conflict, reason: reason.into(), instead: instead.into() }
    }

    /// What was named does not exist.
    pub fn not_found(reason: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { obstacle: Obstacle::NotFound, reason: reason.into(), instead: instead.into() }
    }

    /// It may be possible later.
    pub fn unavailable(reason: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { obstacle: Obstacle::Unavailable, reason: reason.into(), instead: instead.into() }
    }

    /// The leadership moved, or no majority confirmed, while the change was under way.
    pub fn interrupted(reason: impl fmt::Display) -> Self {
        Self::unavailable(
            format!("the change was interrupted: {reason}"),
            "run the same command again: it goes on where it ended",
        )
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refused {}
