//! What a node counts and times while it runs, and the text in which all of it is shown.
//!
//! A node has one [`Metrics`], made when it is put together and handed to the rooms where things happen; there is
//! nothing global, so that two nodes in one process count apart. To count is one atomic addition and to time is two, and
//! a clock read at either end: no lock, no allocation, nothing that can fail or wait. What a node knows anyway (its
//! indexes, its term, its disk) is not kept here but read when somebody asks.
//!
//! Names follow the conventions of Prometheus: `strongroom_`, base units, `_total` for counters. Labels are of a fixed,
//! small number: never a machine, a user, a key or anything else a caller chooses.

mod histogram;
mod labels;
mod requests;
mod text;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

pub use histogram::{Histogram, Observed};
pub use labels::{Counters, EscrowOutcome, Label, PortName, ProposalOutcome, RevealOutcome, SnapshotAction};
pub use requests::{CODES, MethodMetrics, RequestMetrics};
pub use text::{Format, Metric, Sample, Values, encode};

/// All that a node counts and times. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Connections, by port.
    pub connections: ConnectionMetrics,
    /// Escrows that came in through this node.
    pub escrows: Counters<EscrowOutcome>,
    /// The log.
    pub log: LogMetrics,
    /// The state.
    pub machine: MachineMetrics,
    /// Consensus.
    pub raft: RaftMetrics,
    /// Requests, by method.
    pub requests: RequestMetrics,
    /// Reveals that were asked of this node.
    pub reveals: Counters<RevealOutcome>,
    /// Secrets that were sealed again because the data key was rotated before they were kept.
    pub sealed_again: Counter,
}

/// What the log counts and times. Clones share it.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    /// Entries handed to the log.
    pub appended_entries: Counter,
    /// Their bytes.
    pub appended_bytes: Counter,
    /// From handing something to the log until it is on the disk.
    pub flush: Histogram,
    /// Flushes that failed; after one the log takes no more.
    pub flush_failures: Counter,
}

impl Default for LogMetrics {
    fn default() -> Self {
        Self {
            appended_entries: Counter::default(),
            appended_bytes: Counter::default(),
            flush: Histogram::of_short_times(),
            flush_failures: Counter::default(),
        }
    }
}

/// What the state counts and times. Clones share it.
#[derive(Debug, Clone)]
pub struct MachineMetrics {
    /// Applying one entry, the wait for room in the overlay included.
    pub apply: Histogram,
    /// Writing a snapshot.
    pub snapshot_build: Histogram,
    /// Bytes of snapshots written.
    pub snapshot_built_bytes: Counter,
    /// Putting a received snapshot in the place of the state.
    pub snapshot_install: Histogram,
    /// Bytes of snapshots installed.
    pub snapshot_installed_bytes: Counter,
    /// Snapshots that could not be written or installed.
    pub snapshot_failures: Counters<SnapshotAction>,
}

impl Default for MachineMetrics {
    fn default() -> Self {
        Self {
            apply: Histogram::of_short_times(),
            snapshot_build: Histogram::of_long_times(),
            snapshot_built_bytes: Counter::default(),
            snapshot_install: Histogram::of_long_times(),
            snapshot_installed_bytes: Counter::default(),
            snapshot_failures: Counters::default(),
        }
    }
}

/// What consensus counts and times. Clones share it.
#[derive(Debug, Clone)]
pub struct RaftMetrics {
    /// At the leader: from taking a command until it is committed, applied and answered.
    pub commit: Histogram,
    /// Times another leader than before was seen.
    pub leader_changes: Counter,
    /// Commands that came in through this node.
    pub proposals: Counters<ProposalOutcome>,
    /// Times this node put itself aside.
    pub quarantines: Counter,
    /// Times it came back repaired.
    pub repairs: Counter,
}

impl Default for RaftMetrics {
    fn default() -> Self {
        Self {
            commit: Histogram::of_short_times(),
            leader_changes: Counter::default(),
            proposals: Counters::default(),
            quarantines: Counter::default(),
            repairs: Counter::default(),
        }
    }
}

/// What the ports count. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ConnectionMetrics {
    /// Connections that were let in.
    pub accepted: Counters<PortName>,
    /// Connections that were closed because their identity has no business there, or there was no place.
    pub refused: Counters<PortName>,
    /// TLS handshakes that failed, but for those that nobody began.
    pub handshake_failures: Counters<PortName>,
    open: [Gauge; PortName::ALL.len()],
}

impl ConnectionMetrics {
    /// Counts a connection for as long as the answer lives.
    pub fn open(&self, port: PortName) -> OpenConnection {
        self.accepted.count(port);
        let open = self.open[port.index()].clone();
        open.inc();
        OpenConnection(open)
    }
}

/// An open connection, for as long as it is counted.
#[derive(Debug)]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Metrics {
    /// Everything that was counted and timed so far.
    pub fn collect(&self) -> Vec<Metric> {
        let mut all = self.requests.collect();
        all.extend(self.store());
        all.extend(self.consensus());
        all.extend(self.callers());
        all
    }

    fn store(&self) -> Vec<Metric> {
        let (log, machine) = (&self.log, &self.machine);
        vec![
            Metric::counter(
                "strongroom_log_appended_entries",
                "Entries handed to the Raft log.",
                log.appended_entries.get(),
            ),
            Metric::counter(
                "strongroom_log_appended_bytes",
                "Bytes of the entries handed to the Raft log.",
                log.appended_bytes.get(),
            ),
            log.flush.metric(
                "strongroom_log_flush_duration_seconds",
                "From handing entries or a vote to the Raft log until they are on the disk: queue, write and fdatasync.",
            ),
            Metric::counter(
                "strongroom_log_flush_failures",
                "Flushes of the Raft log that failed; the node stops after one.",
                log.flush_failures.get(),
            ),
            machine.apply.metric(
                "strongroom_apply_duration_seconds",
                "Applying one entry to the state, waiting for room in the overlay included.",
            ),
            Metric::counter(
                "strongroom_applied_entries",
                "Entries applied to the state since the process started.",
                machine.apply.observed().count(),
            ),
            machine.snapshot_build.metric(
                "strongroom_snapshot_build_duration_seconds",
                "Writing a snapshot of the state.",
            ),
            Metric::counter(
                "strongroom_snapshot_built_bytes",
                "Bytes of snapshots written.",
                machine.snapshot_built_bytes.get(),
            ),
            machine.snapshot_install.metric(
                "strongroom_snapshot_install_duration_seconds",
                "Putting a snapshot from a peer in the place of the state.",
            ),
            Metric::counter(
                "strongroom_snapshot_installed_bytes",
                "Bytes of snapshots installed.",
                machine.snapshot_installed_bytes.get(),
            ),
            machine.snapshot_failures.metric(
                "strongroom_snapshot_failures",
                "Snapshots that could not be written or installed.",
            ),
        ]
    }

    fn consensus(&self) -> Vec<Metric> {
        vec![
            self.raft.proposals.metric(
                "strongroom_proposals",
                "Commands that came in through this node, by what came of them.",
            ),
            self.raft.commit.metric(
                "strongroom_commit_duration_seconds",
                "At the leader: from taking a command until a quorum has it on disk and it is applied.",
            ),
            Metric::counter(
                "strongroom_leader_changes",
                "Times this node saw another leader than before.",
                self.raft.leader_changes.get(),
            ),
            Metric::counter(
                "strongroom_quarantines",
                "Times this node put itself aside because its state was not right.",
                self.raft.quarantines.get(),
            ),
            Metric::counter(
                "strongroom_state_repairs",
                "Times this node came back with a state that a peer gave it.",
                self.raft.repairs.get(),
            ),
        ]
    }

    fn callers(&self) -> Vec<Metric> {
        let connections = &self.connections;
        let open = PortName::ALL.iter().map(|port| Sample {
            labels: vec![(PortName::NAME, port.as_str().to_owned())],
            value: connections.open[port.index()].get() as f64,
        });
        vec![
            self.escrows.metric(
                "strongroom_escrows",
                "Escrows that came in through this node, by what the caller was told.",
            ),
            self.reveals.metric(
                "strongroom_reveals",
                "Reveals that were asked of this node, by what the caller was told.",
            ),
            Metric::counter(
                "strongroom_escrows_sealed_again",
                "Secrets sealed again because the data key was rotated before they were kept.",
                self.sealed_again.get(),
            ),
            Metric {
                name: "strongroom_connections",
                help: "Connections that are open.",
                values: Values::Gauge(open.collect()),
            },
            connections.accepted.metric("strongroom_connections_accepted", "Connections that were let in."),
            connections.refused.metric(
                "strongroom_connections_refused",
                "Connections closed for want of a place, or because their identity has no business there.",
            ),
            connections
                .handshake_failures
                .metric("strongroom_tls_handshake_failures", "TLS handshakes with callers that failed."),
        ]
    }
}

#[cfg(test)]
mod tests;
