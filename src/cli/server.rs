//! `strongroom server`: run a node.

use std::time::Duration;

use clap::Args;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::LevelFilter;

use super::node_config::NodeConfig;
use super::{Exit, Failure, Printer};
use crate::server::{Server, ServerError, Stop};
use crate::store::StoreError;
use crate::telemetry;

/// Between two looks at whether the parent is still there.
const PARENT_POLL: Duration = Duration::from_millis(500);

/// Run a node; it waits to be added if it belongs to no cluster.
#[derive(Debug, Args)]
pub(super) struct ServerCommand {
    #[command(flatten)]
    node: NodeConfig,
    /// Check the configuration, the files it names and the data directory, print what the node would go by, and end.
    /// Opens no socket and changes nothing.
    #[arg(long)]
    check: bool,
    /// Stop when this process is no longer the parent: a local cluster does not outlive the command that runs it.
    #[arg(long, hide = true, value_name = "PID")]
    with_parent: Option<u32>,
}

impl ServerCommand {
    pub(super) async fn run(self, printer: Printer) -> Result<(), Failure> {
        if self.check {
            return self.node.check(printer);
        }
        let mut warnings = Vec::new();
        let config = self.node.load_checked(|warning| warnings.push(warning.to_owned()))?;
        telemetry::init(LevelFilter::INFO)
            .map_err(|error| Failure::new(Exit::Invalid, crate::error::chain(&error)))?;
        for warning in warnings {
            tracing::warn!("configuration: {warning}");
        }
        // A core dump would hold the open keyring. Where the system does not let us, it is no reason not to serve.
        if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
            tracing::warn!(%error, "core dumps stay possible");
        }
        let stop = Stop::default();
        stop_on_signals(stop.clone())?;
        if let Some(parent) = self.with_parent {
            stop_without_parent(parent, stop.gently.clone());
        }
        let server = Server::start(&config).await.map_err(|error| server_failure(&error))?;
        server.run_until(stop).await.map_err(|error| server_failure(&error))
    }
}

/// Stops the node gently at the first SIGTERM or SIGINT, and at once at the second: whoever sends it twice has reasons
/// not to wait.
fn stop_on_signals(stop: Stop) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::new(Exit::Failed, format!("listening for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    tokio::spawn(async move {
        for told in [stop.gently, stop.now] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            told.cancel();
        }
    });
    Ok(())
}

/// Cancels `stop` once `parent` is no longer this process's parent.
///
/// Asked for by looking, not by a death signal: that one is sent when the thread that spawned us ends, which is not
/// the end of its process.
fn stop_without_parent(parent: u32, stop: CancellationToken) {
    tokio::spawn(async move {
        let is_parent = || {
            rustix::process::getppid().is_some_and(|pid| pid.as_raw_nonzero().get().unsigned_abs() == parent)
        };
        let mut looks = tokio::time::interval(PARENT_POLL);
        while is_parent() {
            looks.tick().await;
        }
        tracing::warn!(parent, "the process that runs this cluster has ended");
        stop.cancel();
    });
}

/// What keeps a node from running, as a failure of the command.
pub(super) fn server_failure(error: &ServerError) -> Failure {
    let exit = match error {
        ServerError::AlreadyInitialized(_)
        | ServerError::RecoveryUnfinished(_)
        | ServerError::Store(StoreError::Locked(_)) => Exit::Conflict,
        ServerError::Identity { .. } | ServerError::Tls(_) => Exit::Invalid,
        ServerError::Listen { .. } | ServerError::Node(_) | ServerError::Seal(_) | ServerError::Store(_) => {
            Exit::Failed
        }
    };
    Failure::new(exit, crate::error::chain(error))
}
