//! `dev` and `demo`, as people and scripts run them: real processes on loopback.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop where it is

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

/// More than any step takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Between two looks at a condition: a test that spins takes the processor from the nodes it waits for.
const POLL: Duration = Duration::from_millis(20);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    for variable in ["STRONGROOM_ENDPOINTS", "STRONGROOM_PROFILE", "STRONGROOM_OUTPUT", "STRONGROOM_ZONE"] {
        command.env_remove(variable);
    }
    command.args(arguments);
    command
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(POLL);
    }
}

/// A `dev` cluster that is ended when the test is, however that ends.
struct Dev {
    child: Child,
    dir: PathBuf,
}

impl Dev {
    fn start(dir: &Path, arguments: &[&str]) -> Self {
        let log = fs::File::create(dir.join("dev.log")).unwrap();
        let cluster = dir.join("cluster");
        let mut command = command(&["dev", "--dir", cluster.to_str().unwrap()]);
        let child = command.args(arguments).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut dev = Self { child, dir: cluster };
        wait_until("the cluster is up", || {
            let ended = dev.child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(dir.join("dev.log")).unwrap());
            dev.dir.join("cluster.json").exists()
        });
        dev
    }

    fn cluster(&self) -> Value {
        serde_json::from_slice(&fs::read(self.dir.join("cluster.json")).unwrap()).unwrap()
    }

    fn nodes(&self) -> Vec<(i32, String)> {
        let cluster = self.cluster();
        let nodes = cluster["nodes"].as_array().unwrap().iter();
        nodes
            .map(|node| (node["pid"].as_i64().unwrap() as i32, node["api"].as_str().unwrap().to_owned()))
            .collect()
    }

    /// A client command as `profile`, whose JSON is returned.
    fn client(&self, profile: &str, arguments: &[&str], input: &str) -> Value {
        let endpoints: Vec<String> = self.nodes().into_iter().map(|(_, api)| api).collect();
        let profile = self.dir.join("profiles").join(profile);
        let mut command = command(arguments);
        command.args(["--endpoints", &endpoints.join(","), "--output", "json", "--profile"]).arg(profile);
        let secret = self.dir.join("input");
        fs::write(&secret, input).unwrap();
        let output = command.stdin(fs::File::open(secret).unwrap()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Ends it as Ctrl-C or a service manager would, and expects success.
    fn stop(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // Its nodes notice that it is gone and stop.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_running(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[test]
fn dev_keeps_a_cluster_that_survives_a_killed_node_and_a_restart_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let before = dev.nodes();
    assert_eq!(before.len(), 3);
    let escrow = ["escrow", "--machine", "PC-0001", "--volume", "C:", "--kind", "generic"];
    let first = dev.client("agent-PC-0001", &escrow, "first secret");

    kill_process(Pid::from_raw(before[0].0).unwrap(), Signal::KILL).unwrap();
    wait_until("a killed node leaves the process table", || !is_running(before[0].0));
    let second = dev.client("importer", &escrow, "second secret");
    dev.stop(Signal::INT);
    for (pid, _) in &before {
        assert!(!is_running(*pid), "node processes do not outlive dev");
    }
    assert!(!dir.path().join("cluster/cluster.json").exists(), "the cluster is not up any more");

    let dev = Dev::start(dir.path(), &["--nodes", "5"]);
    let apis = |nodes: &[(i32, String)]| nodes.iter().map(|(_, api)| api.clone()).collect::<Vec<_>>();
    assert_eq!(apis(&dev.nodes()), apis(&before), "the same cluster comes back");
    for (receipt, secret) in [(first, "first secret"), (second, "second secret")] {
        let key_id = receipt["key_id"].as_str().unwrap();
        let recovered = dev.client("helpdesk-advanced", &["recover", key_id, "--reason", "test"], "");
        assert_eq!(recovered["secret"], secret);
    }
    dev.stop(Signal::TERM);
}

#[test]
fn nodes_do_not_outlive_a_dev_that_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), &["--nodes", "1"]);
    let nodes = dev.nodes();
    assert_eq!(nodes.len(), 1);
    dev.child.kill().unwrap();
    dev.child.wait().unwrap();
    wait_until("its nodes stop", || !is_running(nodes[0].0));
}

#[test]
fn the_demo_holds_and_leaves_no_secret_behind() {
    let dir = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let mut demo = command(&["demo", "--keep"]);
    let Output { status, stdout, stderr } =
        demo.env("TMPDIR", dir.path()).stdin(Stdio::null()).output().unwrap();
    let shown = String::from_utf8_lossy(&stdout);
    assert!(status.success(), "{shown}{}", String::from_utf8_lossy(&stderr));
    assert!(started.elapsed() < Duration::from_secs(60), "it takes under a minute");
    for step in ["form", "escrow", "custody", "deny", "kill", "failover", "recover", "restart", "stop"] {
        assert!(shown.contains(&format!("  {step} ")), "{step} is missing: {shown}");
    }
    let mut places = vec![("output".into(), stdout), ("notes".into(), stderr)];
    collect(dir.path(), &mut places);
    assert!(places.len() > 30, "the demo's files were kept");
    for (place, bytes) in places {
        assert_eq!(secrets_in(&bytes), 0, "there is a recovery secret in {}", place.display());
    }
}

fn collect(dir: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push((path.clone(), fs::read(path).unwrap()));
        }
    }
}

/// How many texts in `bytes` have the form of a recovery secret.
fn secrets_in(bytes: &[u8]) -> usize {
    type Belongs = fn(u8) -> bool;
    let forms: [(usize, usize, Belongs); 3] = [
        (8, 6, |b| b.is_ascii_digit()),
        (8, 8, |b| b"cbdefghijklnrtuv".contains(&b)),
        (6, 4, |b| b.is_ascii_uppercase() || b.is_ascii_digit()),
    ];
    let count = |(groups, size, belongs): (usize, usize, Belongs)| {
        let has_form = |window: &&[u8]| {
            let mut all = window.iter().enumerate();
            all.all(|(at, byte)| if (at + 1) % (size + 1) == 0 { *byte == b'-' } else { belongs(*byte) })
        };
        bytes.windows(groups * (size + 1) - 1).filter(has_form).count()
    };
    forms.into_iter().map(count).sum()
}

#[test]
fn the_search_for_secrets_finds_each_form() {
    for secret in [["000011"; 8].join("-"), ["cbdefghi"; 8].join("-"), ["AB12"; 6].join("-")] {
        assert_eq!(secrets_in(format!("x{secret}\0").as_bytes()), 1, "{secret}");
        assert_eq!(secrets_in(&secret.as_bytes()[1..]), 0);
    }
}
