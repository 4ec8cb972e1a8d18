//! Processes of other systems: found, started as whom they may run, waited for, and ended with this one.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// Longest a system may take to start or to stop.
const SOON: Duration = Duration::from_secs(60);
/// Between two looks at whether something holds.
const POLL: Duration = Duration::from_millis(50);
/// How much of the end of a log is shown.
const TAIL_MAX_LINES: usize = 20;

/// Whom a process runs as.
#[derive(Clone, Copy)]
pub struct User {
    pub id: u32,
    pub group: u32,
}

impl User {
    /// Somebody without privileges: `None` if we are such a one already, else `name` or, if there is no such user, nobody.
    pub fn unprivileged(name: &str) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let of = |name: &str| {
            let line = users.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            let mut fields = line.split(':').skip(1);
            Some(Self { id: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()? })
        };
        Some(of(name).or_else(|| of("nobody")).expect("a user without privileges"))
    }
}

/// The program `name` from the path.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// A command in an environment that says nothing, which ends when this process does.
pub fn command(program: &Path, user: Option<User>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if let Some(User { id, group }) = user {
        command.arg(format!("--reuid={id}")).arg(format!("--regid={group}")).arg("--clear-groups");
    }
    command.arg(program).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

/// Runs a command to its end, which must be a good one, and gives what it prints.
pub async fn run(mut command: Command) -> String {
    let output = command.output().await.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {}\n{errors}", command.as_std(), output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A process that runs until it is dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
    pid: u32,
}

impl Process {
    /// Starts a command; what it prints is in the file `log`.
    pub fn spawn(mut command: Command, log: PathBuf) -> Self {
        let out = File::create(&log).expect("a log");
        command.stdout(out.try_clone().expect("a log")).stderr(out);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let pid = child.id().expect("it runs");
        Self { child, log, pid }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end, and waits until it has. What has not then is killed when this is dropped.
    pub async fn stop(&mut self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = timeout(SOON, self.child.wait()).await;
    }

    /// Waits until something holds that this process brings about.
    pub async fn wait_for(&mut self, what: &str, holds: impl AsyncFn() -> bool) {
        let began = Instant::now();
        while !holds().await {
            let ended = self.child.try_wait().expect("a child of ours");
            if ended.is_some() || began.elapsed() > SOON {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(TAIL_MAX_LINES)..];
                panic!(
                    "{what} did not happen; the process: {ended:?}; the end of its log:\n{}",
                    tail.join("\n")
                );
            }
            sleep(POLL).await;
        }
    }
}

/// Ports of the loopback interface that are free now.
pub fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    // Held until all are found, so that no two are the same.
    let listeners = [(); COUNT].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("bound").port())
}
