//! One node as a child process.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::layout::{Layout, NodePlan, file_error};
use super::{LocalClusterError, START_TIMEOUT};
use crate::cli::WITH_PARENT_FLAG;
use crate::config::ENVIRONMENT_PREFIX;
use crate::escrow::ids::NodeId;

/// How long the admin port may take to answer.
const LIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of a log's end goes into an error.
const TAIL_MAX_BYTES: usize = 2_000;

/// A running node.
#[derive(Debug)]
pub(super) struct NodeProcess {
    node: NodeId,
    log: PathBuf,
    child: Child,
    pid: u32,
}

/// The command for `program`: no colour, no endpoints and no fields of the caller's environment, so that what a node does
/// depends on its configuration alone.
fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    for variable in ["STRONGROOM_ENDPOINTS", "STRONGROOM_PROFILE", "STRONGROOM_OUTPUT", "STRONGROOM_ZONE"] {
        command.env_remove(variable);
    }
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with(ENVIRONMENT_PREFIX)) {
            command.env_remove(name);
        }
    }
    // A Ctrl-C in the terminal goes to this process, which stops the nodes in order.
    command.process_group(0);
    command
}

/// Makes the cluster on its first node: `strongroom init`.
pub(super) async fn initialize(program: &Path, layout: &Layout) -> Result<(), LocalClusterError> {
    let node = layout.node(1)?;
    let identity = layout.offline_identity();
    let mut command = command(program, &["init", "--config"]);
    command.arg(node.config_path()).arg("--offline-identity-out").arg(&identity);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let late = || LocalClusterError::Late { what: "`init` of node 1".into(), within: START_TIMEOUT };
    let output = timeout(START_TIMEOUT, output).await.map_err(|_| late())?;
    let output = output.map_err(|source| file_error(program, source))?;
    if output.status.success() {
        return Ok(());
    }
    let tail = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(LocalClusterError::NodeEnded { node: 1, how: output.status.to_string(), log: node.log_path(), tail })
}

impl NodeProcess {
    /// Starts `strongroom server`; its output is appended to its log.
    pub(super) fn spawn(program: &Path, plan: &NodePlan) -> Result<Self, LocalClusterError> {
        let log = plan.log_path();
        let open = || OpenOptions::new().create(true).append(true).open(&log);
        let (out, err) =
            open().and_then(|out| Ok((out.try_clone()?, out))).map_err(|e| file_error(&log, e))?;
        let parent = std::process::id().to_string();
        let mut command = command(program, &["server", WITH_PARENT_FLAG, &parent, "--config"]);
        let child = command.arg(plan.config_path()).stdout(out).stderr(err).spawn();
        let child = child.map_err(|source| file_error(program, source))?;
        let pid = child.id().unwrap_or(0);
        Ok(Self { node: plan.id, log, child, pid })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Fails if the process has ended, with the end of its log.
    pub(super) fn check_running(&mut self) -> Result<(), LocalClusterError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => {
                let (node, log) = (self.node, self.log.clone());
                let tail = tail(&log);
                Err(LocalClusterError::NodeEnded { node, how: status.to_string(), log, tail })
            }
            Err(source) => Err(file_error(&self.log, source)),
        }
    }

    /// How the process ended, if it has.
    pub(super) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(|status| status.to_string())
    }

    /// SIGKILL, and waits until the process is gone.
    pub(super) async fn kill(mut self) -> Result<(), LocalClusterError> {
        self.child.kill().await.map_err(|source| file_error(&self.log, source))
    }

    /// SIGTERM, and SIGKILL after `within`. Says whether the node ended by itself with success.
    pub(super) async fn stop(mut self, within: Duration) -> Result<bool, LocalClusterError> {
        // No id means that the process was waited for: there is nothing left to signal.
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            // A process that has just ended cannot be signalled; waiting for it tells how it ended.
            let _ = kill_process(pid, Signal::TERM);
        }
        match timeout(within, self.child.wait()).await {
            Ok(status) => {
                status.map(|status| status.success()).map_err(|source| file_error(&self.log, source))
            }
            Err(_) => self.kill().await.map(|()| false),
        }
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let end = bytes.get(bytes.len().saturating_sub(TAIL_MAX_BYTES)..).unwrap_or_default();
    String::from_utf8_lossy(end).trim_end().to_owned()
}

/// Whether the node behind this admin address says that it lives.
pub(super) async fn is_live(admin: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request = format!("GET /livez HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = [0; "HTTP/1.1 200".len()];
        stream.read_exact(&mut head).await?;
        std::io::Result::Ok(&head == b"HTTP/1.1 200")
    };
    matches!(timeout(LIVE_TIMEOUT, ask).await, Ok(Ok(true)))
}
