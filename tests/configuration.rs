//! A node's configuration from outside: what keeps `server` from starting, and what `--check` says and leaves alone.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop where it is

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A node that has what it needs to start, but never has.
struct World {
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        let ca = world.path("ca");
        let ca = ca.to_str().unwrap();
        world.succeed(&["cert", "ca", "--dir", ca, "--cluster", "acme"]);
        for (role, name) in [("node", "1"), ("node", "2"), ("operator", "ops")] {
            let out = world.path(&format!("{role}-{name}"));
            let out = out.to_str().unwrap();
            world.succeed(&["cert", "issue", "--dir", ca, "--role", role, "--name", name, "--out", out]);
        }
        world.write("");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the configuration, with `more` at its end.
    fn write(&self, more: &str) {
        let text = format!(
            "cluster = 'acme'\nnode_id = 1\ndata_dir = 'data'\n\
             [listen]\napi = '127.0.0.1:17420'\npeer = '127.0.0.1:17421'\nadmin = '127.0.0.1:17422'\n\
             [tls]\nca = 'node-1/ca.crt'\ncert = 'node-1/node.crt'\nkey = 'node-1/node.key'\n{more}"
        );
        fs::write(self.path("node.toml"), text).unwrap();
    }

    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        for variable in ["STRONGROOM_ENDPOINTS", "STRONGROOM_PROFILE", "STRONGROOM_OUTPUT", "STRONGROOM_ZONE"]
        {
            command.env_remove(variable);
        }
        command.args(arguments).envs(environment.iter().copied()).current_dir(self.dir.path());
        command.output().unwrap()
    }

    fn succeed(&self, arguments: &[&str]) -> Output {
        let output = self.run(arguments, &[]);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        output
    }

    /// The lines of the refusal of `server`, the same with `--check` and without.
    fn refused(&self, flags: &[&str], environment: &[(&str, &str)]) -> Vec<String> {
        let run = |check: &[&str]| {
            let output =
                self.run(&[&["server", "--config", "node.toml"], check, flags].concat(), environment);
            assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
            assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
            text(&output.stderr)
        };
        let (checked, served) = (run(&["--check"]), run(&[]));
        assert_eq!(checked, served, "--check says what the server would say");
        checked.lines().map(|line| line.trim().to_owned()).collect()
    }

    /// The one problem there is.
    fn refused_for(&self, flags: &[&str]) -> String {
        let lines = self.refused(flags, &[]);
        let [line] = &lines[..] else { panic!("more than one problem: {lines:?}") };
        line.strip_prefix("error: node.toml: ").unwrap_or_else(|| panic!("{line}")).to_owned()
    }

    /// Everything below the directory, with when it was changed.
    fn snapshot(&self) -> Vec<(PathBuf, std::time::SystemTime)> {
        let mut entries = Vec::new();
        let mut directories = vec![self.dir.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    directories.push(entry.path());
                }
                entries.push((entry.path(), entry.metadata().unwrap().modified().unwrap()));
            }
        }
        entries.sort();
        entries
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_check_prints_every_value_with_its_source_and_leaves_no_trace() {
    let world = World::new();
    let before = world.snapshot();
    let arguments = ["server", "--check", "--config", "node.toml", "--set", "limits.max_in_flight=7"];
    let environment = [("STRONGROOM_NODE__ZONE", "east")];
    let output = world.run(&arguments, &environment);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    for (value, source) in [
        ("node_id = 1 ", "# file"),
        ("zone = \"east\" ", "# environment STRONGROOM_NODE__ZONE"),
        ("limits.max_in_flight = 7 ", "# --set"),
        ("raft.heartbeat_ms = 100 ", "# default"),
    ] {
        let line = printed.lines().find(|line| line.starts_with(value));
        assert!(line.is_some_and(|line| line.ends_with(source)), "{value}{source} is missing in\n{printed}");
    }
    assert!(
        text(&output.stderr).contains("warning: tls.crl: none is configured"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(world.snapshot(), before, "nothing was made or changed");
    assert!(!world.path("data").exists());

    let output = world.run(&[&arguments[..], &["--output", "json"]].concat(), &environment);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["fields"]["limits.max_in_flight"], serde_json::json!({ "value": 7, "source": "--set" }));
    assert_eq!(json["fields"]["listen.api"]["value"], "127.0.0.1:17420");
    assert_eq!(json["warnings"].as_array().unwrap().len(), 1, "{json}");

    // What it prints is a configuration again, and the same one.
    fs::write(world.path("again.toml"), &printed).unwrap();
    let again = world.succeed(&["server", "--check", "--config", "again.toml"]);
    let values = |text: &str| {
        text.lines().map(|line| line.split("  #").next().unwrap().trim_end().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values(&text(&again.stdout)), values(&printed));
}

#[test]
fn each_thing_that_is_wrong_is_refused_before_a_socket_opens() {
    let world = World::new();
    for (flags, expected) in [
        (&["nonsense=1"][..], "nonsense: no such field (--set)"),
        (&["listen.api=here"], "listen.api: an IP address and a port"),
        (&["listen.admin=127.0.0.1:17420"], "listen.admin: another port than listen.api"),
        (&["advertise.peer=127.0.0.1:17420"], "advertise.peer: another address than advertise.api"),
        (&["tls.ca=nowhere/ca.crt"], "tls.ca: nowhere/ca.crt: No such file"),
        (&["tls.ca=node.toml"], "tls.ca: node.toml: "),
        (&["tls.cert=node.toml"], "tls.cert: node.toml: holds no certificate"),
        (&["tls.key=node.toml"], "tls.key: node.toml has mode 0644"),
        (
            &["tls.key=node-2/node.key"],
            "tls.key: node-2/node.key is not the private key of the certificate in",
        ),
        (&["tls.crl=nowhere.pem"], "tls.crl: nowhere.pem: No such file"),
        (
            &["node_id=2"],
            "tls.cert: is for spiffe://acme/node/1, but the configuration says spiffe://acme/node/2",
        ),
        (&["cluster=other"], "tls.cert: is for spiffe://acme/node/1, but"),
        (
            &["tls.cert=operator-ops/client.crt", "tls.key=operator-ops/client.key"],
            "tls.cert: is for spiffe://acme/operator/ops, but",
        ),
        (&["identity.node_key=nowhere/node.key"], "identity.node_key: nowhere is not a directory"),
        (&["identity.node_key=ca/ca.key"], "identity.node_key: "),
        (&["data_dir=node.toml"], "data_dir: looking at node.toml: "),
        (&["data_dir=node.toml/data"], "data_dir: "),
        (&["data_dir=ca"], "data_dir: data directory ca: has no storage.json but is not empty"),
    ] {
        let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--set", flag]).collect();
        let problem = world.refused_for(&flags);
        assert!(problem.starts_with(expected), "{flags:?}: {problem}");
    }
    assert!(!world.path("data").exists(), "nothing was made");
}

#[test]
fn private_keys_that_others_may_read_are_refused() {
    let world = World::new();
    let expose = |name: &str| fs::set_permissions(world.path(name), Permissions::from_mode(0o604)).unwrap();
    expose("node-1/node.key");
    let problem = world.refused_for(&[]);
    assert!(
        problem.starts_with("tls.key: ") && problem.contains("0604") && problem.contains("chmod 600"),
        "{problem}"
    );
    fs::write(world.path("identity"), "AGE-SECRET-KEY-1QQQQ").unwrap();
    expose("identity");
    let lines = world.refused(&["--set", "identity.node_key=identity"], &[]);
    assert_eq!(lines.len(), 3, "both at once: {lines:?}");
    assert!(lines[1].starts_with("identity.node_key: ") && lines[2].starts_with("tls.key: "), "{lines:?}");
    assert!(!lines.concat().contains("QQQQ"), "{lines:?}");
}

#[test]
fn everything_that_is_wrong_is_said_at_once_and_where_it_was_said() {
    let world = World::new();
    world.write("[typo]\nx = 1\n[raft]\nheartbeat_ms = 1\n");
    let environment = [("STRONGROOM_NODE__LISTEN__PEER", "nowhere")];
    let lines = world.refused(&["--set", "zone=a b"], &environment);
    assert_eq!(lines[0], "error: node.toml: 4 problems");
    for (line, field, source) in [
        (&lines[1], "listen.peer: ", "(environment STRONGROOM_NODE__LISTEN__PEER)"),
        (&lines[2], "raft.heartbeat_ms: ", "(file)"),
        (&lines[3], "typo: ", "(file)"),
        (&lines[4], "zone: ", "(--set)"),
    ] {
        assert!(line.starts_with(field) && line.ends_with(source), "{lines:?}");
    }

    // What only shows when the files are looked at, all at once as well.
    world.write("");
    let flags = ["tls.ca=a", "tls.cert=b", "tls.key=c", "tls.crl=d", "data_dir=ca"];
    let flags: Vec<&str> = flags.iter().flat_map(|flag| ["--set", flag]).collect();
    let lines = world.refused(&flags, &[]);
    let fields: Vec<&str> = lines[1..].iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(fields, ["data_dir", "tls.ca", "tls.cert", "tls.crl", "tls.key"], "{lines:?}");
}

#[test]
fn the_disk_of_another_node_or_of_a_newer_release_or_without_its_identity_is_refused() {
    let world = World::new();
    world.succeed(&["init", "--config", "node.toml", "--offline-identity-out", "offline"]);
    let check = world.succeed(&["server", "--check", "--config", "node.toml"]);
    assert!(text(&check.stdout).contains("data_dir"), "{}", text(&check.stdout));

    let other = ["node_id=2", "tls.cert=node-2/node.crt", "tls.key=node-2/node.key"];
    let other: Vec<&str> = other.iter().flat_map(|flag| ["--set", flag]).collect();
    let problem = world.refused_for(&other);
    assert!(
        problem.starts_with("data_dir: ") && problem.contains("belongs to node 1 of cluster acme"),
        "{problem}"
    );

    fs::rename(world.path("data/node.key"), world.path("elsewhere.key")).unwrap();
    let problem = world.refused_for(&[]);
    assert!(problem.starts_with("identity.node_key: ") && problem.contains("is missing"), "{problem}");
    assert!(!world.path("data/node.key").exists(), "no new one was drawn");
    world.succeed(&[
        "server",
        "--check",
        "--config",
        "node.toml",
        "--set",
        "identity.node_key=elsewhere.key",
    ]);
    fs::rename(world.path("elsewhere.key"), world.path("data/node.key")).unwrap();

    let identity = world.path("data/storage.json");
    let newer = fs::read_to_string(&identity).unwrap().replacen("\"format\": ", "\"format\": 1000", 1);
    fs::write(&identity, newer).unwrap();
    let problem = world.refused_for(&[]);
    assert!(problem.starts_with("data_dir: ") && problem.contains("written by a newer release"), "{problem}");
}

#[test]
fn a_port_in_use_is_a_warning_of_the_check() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let set = format!("listen.api={}", taken.local_addr().unwrap());
    let output = world.succeed(&["server", "--check", "--config", "node.toml", "--set", &set]);
    assert!(
        text(&output.stderr).contains("warning: listen.api: somebody listens on port"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_data_directory_that_cannot_be_written_to_is_refused() {
    use std::os::unix::process::CommandExt;
    /// `nobody`: permissions do not bind root.
    const NOBODY: u32 = 65_534;
    let world = World::new();
    fs::set_permissions(world.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let locked = world.path("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, Permissions::from_mode(0o555)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["server", "--check", "--config", "node.toml", "--set", "data_dir=locked/deep/data"]);
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = command.current_dir(world.dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("data_dir: locked cannot be written to: Permission denied"), "{stderr}");
}
