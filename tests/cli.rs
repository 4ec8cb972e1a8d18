//! The command line from outside: exit codes, errors, and that no secret leaks. No cluster is needed: what is
//! tested here must hold without one.
#![allow(clippy::unwrap_used)] // a test that cannot go on should stop where it is

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use strongroom::mutation::{self, Mutation};
use tempfile::TempDir;

const KEY_ID: &str = "b0b1c2d3-0000-4000-8000-000000000001";
/// A recovery password in the right form, of eight times 11.
const PASSWORD: &str = "000011-000011-000011-000011-000011-000011-000011-000011";

fn strongroom(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    for variable in ["STRONGROOM_ENDPOINTS", "STRONGROOM_PROFILE", "STRONGROOM_OUTPUT", "STRONGROOM_ZONE"] {
        command.env_remove(variable);
    }
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that fails before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code and the error's JSON.
fn failed(output: &Output) -> (i32, Value) {
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    let stderr = text(&output.stderr);
    let json: Value = serde_json::from_str(&stderr).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    let error = json["error"].clone();
    assert_eq!(json.as_object().unwrap().len(), 1);
    assert_eq!(error.as_object().unwrap().len(), 3, "code, message and hint: {error}");
    (output.status.code().unwrap(), error)
}

/// A directory with a CA and a profile, made by the command itself.
struct World {
    dir: TempDir,
    /// An address nobody answers at, though its port is taken: connections wait for ever.
    silent: TcpListener,
}

impl World {
    fn new() -> Self {
        let world =
            Self { dir: tempfile::tempdir().unwrap(), silent: TcpListener::bind("127.0.0.1:0").unwrap() };
        let ca = world.path("ca");
        world.succeed(&["cert", "ca", "--dir", &ca, "--cluster", "test"]);
        let profile = world.path("importer");
        world.succeed(&[
            "cert", "issue", "--dir", &ca, "--role", "importer", "--name", "import", "--out", &profile,
        ]);
        world
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn succeed(&self, arguments: &[&str]) {
        let output = strongroom(arguments, "");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    }

    /// Runs a client command with endpoints that do not answer.
    fn client(&self, arguments: &[&str], input: &str) -> Output {
        let silent = self.silent.local_addr().unwrap().to_string();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (endpoints, profile) = (format!("{gone},{silent}"), self.path("importer"));
        let connection =
            ["--endpoints", &endpoints, "--profile", &profile, "--timeout", "1", "--output", "json"];
        strongroom(&[arguments, &connection].concat(), input)
    }
}

const ESCROW: [&str; 7] =
    ["escrow", "--machine", "PC-0001", "--volume", "C:", "--kind", "bitlocker-password"];

#[test]
fn without_a_node_every_command_ends_with_75_within_its_time() {
    let world = World::new();
    let commands: [&[&str]; 7] = [
        &ESCROW,
        &["find", "--machine", "PC-0001"],
        &["recover", KEY_ID, "--reason", "x"],
        &["custody", KEY_ID],
        &["status"],
        &["member", "list"],
        &["member", "add", "127.0.0.1:1"],
    ];
    for arguments in commands {
        let started = Instant::now();
        let (code, error) = failed(&world.client(arguments, PASSWORD));
        assert_eq!((code, &error["code"]), (75, &"unavailable".into()), "{arguments:?}: {error}");
        assert!(error["hint"].is_string(), "{error}");
        // One second was asked for; the rest is for a machine that is busy with other tests.
        assert!(started.elapsed() < Duration::from_secs(5), "{arguments:?} took {:?}", started.elapsed());
    }
}

#[test]
fn a_bad_secret_is_refused_before_anything_is_sent_and_is_not_repeated() {
    let world = World::new();
    let wrong_group = PASSWORD.replacen("000011", "987654", 1);
    for (secret, problem) in [
        (wrong_group.as_str(), "group 1"),
        ("000011-000011", "secret: "),
        ("", "secret: "),
        ("\n", "secret: "),
        (&"9".repeat(200_000), "secret: "),
    ] {
        let (code, error) = failed(&world.client(&ESCROW, secret));
        assert_eq!((code, &error["code"]), (2, &"invalid".into()), "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(problem), "{message}");
        assert!(!message.contains("987654") && !message.contains("99999"), "{message}");
    }
}

#[test]
fn a_secret_comes_from_a_file_as_well() {
    let world = World::new();
    let good = world.file("good", PASSWORD.as_bytes());
    let bad = world.file("bad", b"123");
    let escrow_from = |path: &Path| {
        let path = path.display().to_string();
        failed(&world.client(&[&ESCROW[..], &["--secret-file", &path]].concat(), "not read"))
    };
    assert_eq!(escrow_from(&good).0, 75, "a good secret gets as far as the network");
    assert_eq!(escrow_from(&bad).0, 2);
    assert_eq!(escrow_from(Path::new("/nowhere")).0, 2);
    let package = world.file("package", &[]).display().to_string();
    let empty = world.client(&[&ESCROW[..], &["--package-file", &package]].concat(), PASSWORD);
    let (code, error) = failed(&empty);
    assert_eq!(code, 2);
    assert!(error["message"].as_str().unwrap().starts_with("package: "), "{error}");
}

#[test]
fn missing_or_broken_credentials_are_bad_usage() {
    let world = World::new();
    let importer = world.path("importer");
    let endpoints = ["--endpoints", "127.0.0.1:1", "--output", "json"];
    let run = |rest: &[&str]| failed(&strongroom(&[&["status"], rest].concat(), ""));
    for (arguments, named) in [
        (vec!["--output", "json"], "endpoints: "),
        (endpoints.to_vec(), "profile: "),
        ([&endpoints[..], &["--profile", "/nowhere"]].concat(), "profile: "),
    ] {
        let (code, error) = run(&arguments);
        assert_eq!(code, 2, "{error}");
        assert!(error["message"].as_str().unwrap().starts_with(named), "{error}");
    }
    std::fs::write(Path::new(&importer).join("client.crt"), "nonsense").unwrap();
    let (code, error) = run(&[&endpoints[..], &["--profile", &importer]].concat());
    assert_eq!(code, 2, "{error}");
    assert!(error["message"].as_str().unwrap().contains("client.crt"), "{error}");
}

#[test]
fn usage_errors_exit_with_2_and_help_with_0() {
    for arguments in [&[][..], &["nonsense"], &["find"], &["recover"], &["member"], &["status", "--nonsense"]]
    {
        let output = strongroom(arguments, "");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
        let (code, error) = failed(&strongroom(&[arguments, &["--output", "json"]].concat(), ""));
        assert_eq!((code, &error["code"]), (2, &"invalid".into()), "{arguments:?}");
    }
    for arguments in
        [&["--help"][..], &["-h"], &["--version"], &["escrow", "--help"], &["member", "add", "-h"]]
    {
        let output = strongroom(arguments, "");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
}

/// See `src/mutation.rs`: in any other build than one for that, the variable is nobody's.
#[test]
fn a_build_that_can_break_its_rules_says_so_and_no_other_heeds_the_variable() {
    for named in Mutation::ALL.map(Mutation::name).into_iter().chain(["nonsense"]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        let output = command.arg("--version").env(mutation::VARIABLE, named).output().unwrap();
        let version = text(&output.stdout);
        assert_eq!(version, format!("strongroom {}\n", mutation::VERSION));
        assert_eq!(version.contains("BROKEN ON PURPOSE"), cfg!(feature = "mutations"));
        assert!(output.status.success() && output.stderr.is_empty());
    }
}

#[test]
fn the_environment_stands_in_for_flags() {
    let world = World::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_strongroom"));
    command.args(["status", "--timeout", "1"]).env("STRONGROOM_OUTPUT", "json");
    command
        .env("STRONGROOM_ENDPOINTS", "127.0.0.1:1,localhost:1")
        .env("STRONGROOM_PROFILE", world.path("importer"));
    let (code, error) = failed(&command.output().unwrap());
    assert_eq!(code, 75);
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("127.0.0.1:1") && message.contains("localhost:1"), "{message}");
}

#[test]
fn a_receipt_that_is_none_is_bad_input() {
    let world = World::new();
    let ca = world.path("ca/ca.crt");
    let too_long = vec![b' '; 300_000];
    for content in [&b"nonsense"[..], b"{}", &too_long] {
        let receipt = world.file("receipt.json", content).display().to_string();
        let (code, error) =
            failed(&strongroom(&["receipt", "verify", &receipt, "--ca", &ca, "--output", "json"], ""));
        assert_eq!(code, 2, "{error}");
        assert!(error["message"].as_str().unwrap().starts_with("receipt: "), "{error}");
    }
}

#[test]
fn a_reader_that_goes_away_is_not_an_error() {
    for command in ["man", "--help"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut child = Command::new(env!("CARGO_BIN_EXE_strongroom"));
        let output = child.arg(command).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    }
}

#[test]
fn completions_and_the_manual_page_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = strongroom(&["completions", shell], "");
        assert!(output.status.success() && text(&output.stdout).contains("custody"), "{shell}");
    }
    let page = text(&strongroom(&["man"], "").stdout);
    assert!(page.contains(".TH strongroom 1") && page.contains("STRONGROOM RECEIPT VERIFY"), "{page}");
}
