//! `strongroom init`: create a new cluster on its first node.

use std::path::PathBuf;

use clap::{ArgGroup, Args};

use super::{Exit, Failure, Printer};

/// Create a new cluster on its first node.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("offline").args(["offline_recipient", "offline_identity_out"]))]
pub(super) struct InitCommand {
    /// The node's configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The organisation's offline recovery recipient: the keyring is sealed to it as well.
    #[arg(long, value_name = "age1…")]
    offline_recipient: Option<String>,
    /// Make a new offline identity, write its private key to this new file, and use it. Keep the file off the nodes.
    #[arg(long, value_name = "FILE")]
    offline_identity_out: Option<PathBuf>,
}

impl InitCommand {
    pub(super) async fn run(self, _: Printer) -> Result<(), Failure> {
        Err(Failure::new(Exit::Failed, "this build has no server"))
    }
}
