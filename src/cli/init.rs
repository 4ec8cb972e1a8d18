//! `strongroom init`: create a new cluster on its first node.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use serde_json::json;

use super::node_config::NodeConfig;
use super::server::server_failure;
use super::{Exit, Failure, Printer};
use crate::seal::{SealError, offline_identity};
use crate::server::{self, ServerError};

/// Create a new cluster on its first node.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("offline").args(["offline_recipient", "offline_identity_out"]).required(true))]
pub(super) struct InitCommand {
    #[command(flatten)]
    node: NodeConfig,
    /// The organisation's offline recovery recipient: the keyring is sealed to it as well.
    #[arg(long, value_name = "age1…")]
    offline_recipient: Option<String>,
    /// Make a new offline identity, write its private key to this new file, and use it. Keep the file off the nodes.
    #[arg(long, value_name = "FILE")]
    offline_identity_out: Option<PathBuf>,
}

impl InitCommand {
    pub(super) async fn run(self, printer: Printer) -> Result<(), Failure> {
        let config = self.node.load_checked(|warning| printer.note(&format!("warning: {warning}")))?;
        let recipient = match (&self.offline_recipient, &self.offline_identity_out) {
            (Some(recipient), _) => recipient.clone(),
            (None, Some(path)) => create_offline_identity(path)?,
            (None, None) => unreachable!("clap requires one of the two"),
        };
        let cluster = match server::initialize(&config, recipient).await {
            Ok(cluster) => cluster,
            Err(error) => {
                let failure = match &error {
                    ServerError::Seal(cause @ SealError::Recipient { .. }) => {
                        Failure::new(Exit::Invalid, format!("offline_recipient: {cause}"))
                    }
                    _ => server_failure(&error),
                };
                return Err(match &self.offline_identity_out {
                    // The first entry may have been written: then this is the only key that opens everything.
                    Some(path) if matches!(error, ServerError::Node(_)) => failure.with_hint(format!(
                        "{} is kept: it may belong to a cluster that was made all the same; start the server to see",
                        path.display()
                    )),
                    Some(path) => {
                        // It belongs to nothing: leave no key behind that opens nothing.
                        let _ = std::fs::remove_file(path);
                        failure
                    }
                    None => failure,
                });
            }
        };
        let report = json!({ "cluster": cluster, "cluster_name": config.cluster, "node": config.node_id });
        printer.result(&report, || {
            format!(
                "cluster {} ({cluster}) created with node {}\nnext: strongroom server --config {}",
                config.cluster,
                config.node_id,
                self.node.config.display()
            )
        })
    }
}

/// Writes a new offline identity to `path`, which must not exist, and answers its recipient.
fn create_offline_identity(path: &Path) -> Result<String, Failure> {
    let (identity, recipient) = offline_identity();
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Invalid, format!("offline-identity-out: {}: {error}", path.display()))
    };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(identity.expose()).and_then(|()| file.write_all(b"\n")).map_err(failed)?;
    // Without this a crash could leave a cluster whose only offline key was never on disk.
    file.sync_all().map_err(failed)?;
    Ok(recipient)
}
