//! Counters for each of a fixed set of outcomes.

use std::marker::PhantomData;
use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use super::text::{Metric, Sample, Values};

/// A label whose values are fixed when this is built.
pub trait Label: Copy + 'static {
    /// Its name.
    const NAME: &'static str;
    /// Its values.
    const ALL: &'static [Self];

    /// The value as it is shown.
    fn as_str(self) -> &'static str;

    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

/// Counters, one for each value of a label. Clones share them.
#[derive(Debug, Clone)]
pub struct Counters<L>(Arc<[Counter]>, PhantomData<L>);

impl<L: Label> Default for Counters<L> {
    fn default() -> Self {
        Self(L::ALL.iter().map(|_| Counter::default()).collect(), PhantomData)
    }
}

impl<L: Label> Counters<L> {
    /// One more.
    pub fn count(&self, value: L) {
        self.0[value.index()].inc();
    }

    /// How many so far.
    pub fn counted(&self, value: L) -> u64 {
        self.0[value.index()].get()
    }

    pub(super) fn metric(&self, name: &'static str, help: &'static str) -> Metric {
        // All of them, from zero: a series that appears with its first event shows no increase.
        let samples = L::ALL.iter().map(|value| Sample {
            labels: vec![(L::NAME, value.as_str().to_owned())],
            value: self.counted(*value),
        });
        Metric { name, help, values: Values::Counter(samples.collect()) }
    }
}

macro_rules! label {
    ($(#[$doc:meta])* $type:ident, $name:literal { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $type {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }

        impl Label for $type {
            const NAME: &'static str = $name;
            const ALL: &'static [Self] = Self::ALL;

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }

            fn index(self) -> usize {
                self as usize
            }
        }
    };
}

label! {
    /// What the caller of an escrow was told.
    EscrowOutcome, "outcome" {
        /// It is kept, by this request.
        Kept = "kept",
        /// It had been kept before.
        AlreadyKept = "already_kept",
        /// It contradicts what is stored.
        Conflict = "conflict",
        /// The caller may not.
        Denied = "denied",
        /// It is not well formed.
        Invalid = "invalid",
        /// No quorum in time, or no room: to be asked again.
        Unavailable = "unavailable",
        /// The node failed.
        Failed = "failed",
    }
}

label! {
    /// What who asked for a key was told.
    RevealOutcome, "outcome" {
        /// The key was shown.
        Granted = "granted",
        /// The key was shown without a quorum, and is in the journal.
        Degraded = "degraded",
        /// The caller may not.
        Denied = "denied",
        /// There is no such key.
        NotFound = "not_found",
        /// The request is not well formed.
        Invalid = "invalid",
        /// No quorum in time, or no room: to be asked again.
        Unavailable = "unavailable",
        /// The node failed.
        Failed = "failed",
    }
}

label! {
    /// What became of a command.
    ProposalOutcome, "outcome" {
        /// It is committed and applied.
        Committed = "committed",
        /// No leader with a quorum was found in time; nothing was begun.
        NoQuorum = "no_quorum",
        /// It may still take effect.
        Unconfirmed = "unconfirmed",
        /// This node had too many under way.
        Overloaded = "overloaded",
        /// The node failed, is stopping, or is no member any more.
        Failed = "failed",
    }
}

label! {
    /// Which port.
    PortName, "port" {
        /// For clients.
        Api = "api",
        /// For other nodes.
        Peer = "peer",
        /// For probes and scrapers.
        Admin = "admin",
    }
}

label! {
    /// What was done with a snapshot.
    SnapshotAction, "action" {
        /// It was written.
        Build = "build",
        /// It was put in the place of the state.
        Install = "install",
    }
}
