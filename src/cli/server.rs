//! `strongroom server`: run a node.

use std::path::PathBuf;

use clap::Args;

use super::{Exit, Failure, Printer};

/// Run a node; it waits to be added if it belongs to no cluster.
#[derive(Debug, Args)]
pub(super) struct ServerCommand {
    /// The node's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Stop when this process is no longer the parent: a local cluster does not outlive the command that runs it.
    #[arg(long, hide = true, value_name = "PID")]
    with_parent: Option<u32>,
}

impl ServerCommand {
    pub(super) async fn run(self, _: Printer) -> Result<(), Failure> {
        Err(Failure::new(Exit::Failed, "this build has no server"))
    }
}
