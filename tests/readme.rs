//! The tour of the README, run as it stands.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// More than the tour takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(150);
const POLL: Duration = Duration::from_millis(50);

/// A shell and all that it started; gone when dropped.
struct Terminal(Child);

impl Terminal {
    /// Runs `script` in `dir`, with the program on the path and nothing of the caller's settings.
    fn run(dir: &Path, name: &str, script: &str) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_strongroom")).parent().expect("a folder");
        let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("a PATH"));
        let output = File::create(dir.join(name)).expect("a file");
        let mut command = Command::new("bash");
        for variable in ["STRONGROOM_ENDPOINTS", "STRONGROOM_PROFILE", "STRONGROOM_OUTPUT", "STRONGROOM_ZONE"]
        {
            command.env_remove(variable);
        }
        command.arg("-c").arg(format!("set -euo pipefail\n{script}")).current_dir(dir).env("PATH", path);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a handle")).stderr(output);
        // A group of its own: a terminal that is closed takes everything with it that was started there.
        Self(std::os::unix::process::CommandExt::process_group(&mut command, 0).spawn().expect("bash runs"))
    }

    /// Whether it ended with success; `None` as long as it runs.
    fn ended(&mut self) -> Option<bool> {
        self.0.try_wait().expect("a child").map(|status| status.success())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // What has ended by itself cannot be signalled.
        let _ = kill_process_group(Pid::from_child(&self.0), Signal::KILL);
        let _ = self.0.wait();
    }
}

/// The blocks of commands after each `<!-- tour: terminal -->`, as one script.
fn tour(readme: &str, terminal: &str) -> String {
    let mark = format!("<!-- tour: {terminal} -->\n```sh\n");
    let marked = readme.split(&mark).skip(1);
    marked.map(|rest| rest.split("```").next().expect("the first part is always there")).collect()
}

#[test]
fn the_tour_of_the_readme_runs_as_it_stands() {
    let readme =
        std::fs::read_to_string(format!("{}/README.md", env!("CARGO_MANIFEST_DIR"))).expect("a README");
    let (first, second) = (tour(&readme, "first terminal"), tour(&readme, "second terminal"));
    assert!(first.contains("strongroom dev") && second.contains("kill -9"), "the tour is marked");
    let dir = tempfile::tempdir().expect("a directory");
    let shown = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    let deadline = Instant::now() + PATIENCE;

    let mut dev = Terminal::run(dir.path(), "first.txt", &first);
    while !dir.path().join("tour/cluster.json").exists() {
        assert!(dev.ended().is_none() && Instant::now() < deadline, "{}", shown("first.txt"));
        std::thread::sleep(POLL);
    }
    let mut person = Terminal::run(dir.path(), "second.txt", &second);
    let held = loop {
        match person.ended() {
            Some(held) => break held,
            None => assert!(Instant::now() < deadline, "{}\n{}", shown("first.txt"), shown("second.txt")),
        }
        std::thread::sleep(POLL);
    };
    let text = shown("second.txt");
    assert!(held, "{text}");
    for expected in ["the receipt holds", "exit code 4", "1 of 3 voters away", "tolerates 1 failure"] {
        assert!(text.contains(expected), "{expected} is missing: {text}");
    }
    let count = |wanted: &str| text.lines().filter(|line| line.contains(wanted)).count();
    assert_eq!(count("000000-000011-000022"), 2, "the key came back before and after the loss: {text}");
    assert_eq!(count("proven"), 3, "{text}");

    let last: Vec<&str> = text.lines().rev().take(3).collect();
    let digests: Vec<_> = last.iter().filter_map(|line| line.split_whitespace().nth(5)).collect();
    assert!(digests.len() == 3 && digests.iter().all(|digest| digest == &digests[0]), "{text}");
    assert!(
        shown("first.txt").contains("start it again: strongroom server --config"),
        "{}",
        shown("first.txt")
    );

    // The node that was started by hand first, then Ctrl-C: nothing is left running.
    drop(person);
    kill_process_group(Pid::from_child(&dev.0), Signal::INT).expect("it runs");
    let stopped = loop {
        match dev.ended() {
            Some(stopped) => break stopped,
            None => assert!(Instant::now() < deadline, "{}", shown("first.txt")),
        }
        std::thread::sleep(POLL);
    };
    assert!(stopped, "{}", shown("first.txt"));
}
