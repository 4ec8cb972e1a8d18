//! Rules that are broken on purpose, to prove that the tests notice. Each [`Mutation`] is a line or two of the product, at the
//! place where the rule is kept.
//!
//! They exist only in a build with the Cargo feature `mutations`, which no optimised build can have. There the environment
//! variable [`VARIABLE`] names the one that is active, for a process and its children. In any other build none ever is, which
//! is known when it is compiled, and nothing reads the variable.
//!
//! `tests/mutations` runs the tests that ought to catch each, as the table in `tests/README.md` has them.

#[cfg(feature = "mutations")]
use std::sync::LazyLock;

#[cfg(all(feature = "mutations", not(debug_assertions)))]
compile_error!(
    "the feature `mutations` breaks promises on purpose: it is for tests, not for a release build"
);

/// The environment variable that names the active one.
pub const VARIABLE: &str = "STRONGROOM_MUTATION";

/// What `--version` says: such a build must not pass for another.
pub const VERSION: &str = if cfg!(feature = "mutations") {
    concat!(env!("CARGO_PKG_VERSION"), " BROKEN ON PURPOSE (feature `mutations`): for tests only")
} else {
    env!("CARGO_PKG_VERSION")
};

/// A rule that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The log says that entries are on the disk when they are written, not synced (etcd #14370, hiqlite).
    AcknowledgeBeforeFsync,
    /// A key that contradicts a kept one is answered as if it were that one, and its receipt signed.
    AcknowledgeConflict,
    /// A request that comes again is applied again.
    ForgetRequests,
    /// A vote is not persisted.
    ForgetVote,
    /// A node takes calls that are meant for another disk, such as the one it had before.
    IgnoreStorageId,
    /// A reveal without a quorum is written to the journal with the next change, after the key was shown.
    JournalAfterShowing,
    /// What this replica has is labelled as what a quorum has.
    LabelLocalQuorum,
    /// An installed snapshot is merged into the rows that were there (openraft's sledstore).
    MergeSnapshot,
    /// Where the state stands is written apart from its rows, before them (etcd 3.5.0 to 3.5.2).
    PositionApart,
    /// A small file is replaced without a sync.
    ReplaceUnsynced,
    /// A quorum read is answered from the replica as it is, without asking the leader (etcd #20418).
    SkipReadIndex,
    /// A snapshot is not synced before the log is purged on the strength of it.
    SnapshotUnsynced,
}

impl Mutation {
    /// All there are.
    pub const ALL: [Self; 12] = [
        Self::AcknowledgeBeforeFsync,
        Self::AcknowledgeConflict,
        Self::ForgetRequests,
        Self::ForgetVote,
        Self::IgnoreStorageId,
        Self::JournalAfterShowing,
        Self::LabelLocalQuorum,
        Self::MergeSnapshot,
        Self::PositionApart,
        Self::ReplaceUnsynced,
        Self::SkipReadIndex,
        Self::SnapshotUnsynced,
    ];

    /// Its name in [`VARIABLE`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::AcknowledgeBeforeFsync => "acknowledge-before-fsync",
            Self::AcknowledgeConflict => "acknowledge-conflict",
            Self::ForgetRequests => "forget-requests",
            Self::ForgetVote => "forget-vote",
            Self::IgnoreStorageId => "ignore-storage-id",
            Self::JournalAfterShowing => "journal-after-showing",
            Self::LabelLocalQuorum => "label-local-quorum",
            Self::MergeSnapshot => "merge-snapshot",
            Self::PositionApart => "position-apart",
            Self::ReplaceUnsynced => "replace-unsynced",
            Self::SkipReadIndex => "skip-read-index",
            Self::SnapshotUnsynced => "snapshot-unsynced",
        }
    }

    /// Whether this rule is broken in this process.
    #[cfg(not(feature = "mutations"))]
    #[inline(always)]
    pub const fn is_active(self) -> bool {
        false
    }

    /// Whether this rule is broken in this process.
    #[cfg(feature = "mutations")]
    pub fn is_active(self) -> bool {
        *ACTIVE == Some(self)
    }
}

#[cfg(feature = "mutations")]
static ACTIVE: LazyLock<Option<Mutation>> = LazyLock::new(|| {
    let name = std::env::var_os(VARIABLE)?;
    let named = Mutation::ALL.into_iter().find(|mutation| name == mutation.name());
    // A run with a wrong name would prove nothing.
    Some(named.unwrap_or_else(|| {
        panic!("{VARIABLE}: one of {:?}, not {name:?}", Mutation::ALL.map(Mutation::name))
    }))
});

/// Says in the log what this build is, if it is one that breaks rules.
pub fn announce() {
    #[cfg(feature = "mutations")]
    tracing::warn!(
        mutation = ACTIVE.map_or("none", Mutation::name),
        "BROKEN ON PURPOSE: this build has the feature `mutations`, for tests only; trust it with nothing"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(feature = "mutations"))]
    fn without_the_feature_no_rule_can_be_broken() {
        // Known when it is compiled: nothing that happens at run time changes it.
        const BROKEN: usize = {
            let (mut broken, mut at) = (0, 0);
            while at < Mutation::ALL.len() {
                broken += Mutation::ALL[at].is_active() as usize;
                at += 1;
            }
            broken
        };
        assert_eq!((BROKEN, VERSION), (0, env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn for_each_the_documentation_names_a_test_that_ought_to_catch_it() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/README.md");
        let table = std::fs::read_to_string(path).unwrap();
        for mutation in Mutation::ALL {
            let row = format!("\n| `{}` |", mutation.name());
            assert!(table.contains(&row), "tests/README.md has no row of {}", mutation.name());
        }
    }
}
