//! Faults of the program, as opposed to those of its surroundings: each breaks a rule that a promise rests on, in the
//! harness's own part of a node. The suite is worth what it finds of them.

/// A rule that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The log says that entries are on the disk when they are written (etcd #14370, hiqlite).
    AcknowledgeBeforeFsync,
    /// Each replica stamps what it applies by its own clock.
    ApplyByOwnClock,
    /// A vote is not on the disk when it is given.
    ForgetVote,
    /// A snapshot is said to be installed and is not (databend-meta).
    InstallNothing,
    /// A quorum read is answered from the replica as it is (etcd #20418).
    ReadWithoutReadIndex,
    /// A leader that starts again goes on in its old term, as openraft has it by default, though its disk may lack what
    /// followers have committed.
    ResumeOldTerm,
    /// A request that is sent again, or comes twice, has an id of its own each time.
    RetryAsNewRequest,
    /// A voter that lost its disk comes back under its old id.
    WipedVoterReturns,
}

impl Mutation {
    /// All there are.
    pub const ALL: [Self; 8] = [
        Self::AcknowledgeBeforeFsync,
        Self::ApplyByOwnClock,
        Self::ForgetVote,
        Self::InstallNothing,
        Self::ReadWithoutReadIndex,
        Self::ResumeOldTerm,
        Self::RetryAsNewRequest,
        Self::WipedVoterReturns,
    ];

    /// Words of what it may be found by: not the harness falling over it.
    pub fn signs(self) -> &'static [&'static str] {
        match self {
            Self::AcknowledgeBeforeFsync => &["is acknowledged, and on the disks of"],
            Self::ReadWithoutReadIndex => &["a quorum read"],
            Self::RetryAsNewRequest => &["on record 2 times", "on record 3 times"],
            Self::ApplyByOwnClock
            | Self::ForgetVote
            | Self::InstallNothing
            | Self::ResumeOldTerm
            | Self::WipedVoterReturns => PARTED,
        }
    }
}

/// Replicas, or those who vote, do not agree any more.
const PARTED: &[&str] = &[
    "another entry",
    "another replica",
    "its state differs",
    "differs from the others",
    "by a replay it is",
    "cannot apply",
    "votes for",
    "both lead term",
    "is acknowledged, and on the disks of",
    "a quorum read",
    "has stopped by itself",
];
