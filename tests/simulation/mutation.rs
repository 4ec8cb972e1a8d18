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
    /// A client's retry is a request of its own.
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

    /// Words that say what it was found by: not by the harness falling over it.
    pub fn signs(self) -> &'static [&'static str] {
        match self {
            Self::AcknowledgeBeforeFsync => &["is acknowledged, and on the disks of"],
            Self::ApplyByOwnClock => &["its state differs", "by a replay it is"],
            Self::ForgetVote | Self::WipedVoterReturns => &[
                "votes for",
                "both lead term",
                "another entry",
                "is acknowledged, and on the disks of",
                "has stopped by itself",
            ],
            Self::InstallNothing => &["cannot apply", "has stopped by itself"],
            Self::ReadWithoutReadIndex => &["a quorum read"],
            Self::ResumeOldTerm => &["another entry", "a quorum read", "has stopped by itself"],
            Self::RetryAsNewRequest => &["on record 2 times", "on record 3 times"],
        }
    }
}
