//! The runbook's commands, run as they stand: every block of them, in order, in one shell session. A block that cannot
//! be run here says why, in a comment right before it: `<!-- not run: reason -->`.

use std::process::{Command, Stdio};

/// What a block of commands may be fenced as.
const SHELLS: [&str; 4] = ["sh", "bash", "shell", "console"];
const NOT_RUN: &str = "<!-- not run: ";

/// A fenced block.
struct Block<'a> {
    line: usize,
    language: &'a str,
    content: String,
    /// Why it is not run, if the runbook says so.
    not_run: Option<&'a str>,
}

/// The fenced blocks of a page.
fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let (mut open, mut before): (Option<Block<'_>>, &str) = (None, "");
    for (number, line) in (1..).zip(page.lines()) {
        // In a list a block stands further in.
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                let not_run = before.strip_prefix(NOT_RUN).and_then(|rest| rest.strip_suffix(" -->"));
                open =
                    Some(Block { line: number, language: language.trim(), content: String::new(), not_run });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.content.push_str(line);
                block.content.push('\n');
            }
            (None, None) if !line.trim().is_empty() => before = line.trim(),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block of the page is never closed");
    blocks
}

fn runbook() -> String {
    let path = format!("{}/cluster/README.md", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("the runbook")
}

#[test]
fn every_command_of_the_runbook_is_run_or_says_why_not() {
    let page = runbook();
    for block in blocks(&page) {
        let Block { line, language, not_run, .. } = block;
        assert!(!language.is_empty(), "line {line}: a block without a language may hide commands");
        let is_shell = SHELLS.contains(&language);
        assert!(!is_shell || language == "sh" || not_run.is_some(), "line {line}: only `sh` is run");
        assert!(is_shell || not_run.is_none(), "line {line}: {language} is never run");
        assert!(not_run.is_none_or(|reason| reason.len() > 10), "line {line}: say why it is not run");
    }
    // Commands of this program belong into blocks: a line of prose is not run.
    let outside = page.lines().filter(|line| line.starts_with("    strongroom ") || line.starts_with("$ "));
    let mut in_blocks = blocks(&page).into_iter().map(|block| block.content).collect::<String>();
    in_blocks.retain(|letter| letter != '\r');
    assert!(outside.clone().all(|line| in_blocks.contains(line)), "{:?}", outside.collect::<Vec<_>>());
}

#[test]
fn the_runbook_runs_as_it_stands() {
    let repository = env!("CARGO_MANIFEST_DIR");
    let page = runbook();
    let run = blocks(&page).into_iter().filter(|block| block.language == "sh" && block.not_run.is_none());
    // Each block says where it stands, so that a failure names its line.
    let script: String = run
        .map(|block| format!("echo '=== line {}' | tee /dev/stderr\n{}", block.line, block.content))
        .collect();
    let dir = tempfile::tempdir().expect("a directory");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_strongroom")).parent().expect("a folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("a PATH"));

    // Whatever happens, the nodes do not outlive the test.
    let script = format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n{script}");
    let mut command = Command::new("bash");
    for variable in ["STRONGROOM_ENDPOINTS", "STRONGROOM_PROFILE", "STRONGROOM_OUTPUT", "STRONGROOM_ZONE"] {
        command.env_remove(variable);
    }
    let output = command
        .arg("-c")
        .arg(script)
        .current_dir(repository)
        .env("PATH", path)
        .env("workdir", dir.path())
        .stdin(Stdio::null())
        .output()
        .expect("bash runs");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let secret = "000000-000011-000022-000033-000044-000055-000066-000077";
    assert!(stdout.contains(secret), "the key comes back: {stdout}");
    let first = stdout.split("=== line").nth(1).expect("its output");
    let nodes = first.lines().filter(|line| line.contains("zone-")).count();
    assert_eq!(nodes, 3, "status shows three nodes: {first}");
    assert!(stdout.lines().any(|line| line.starts_with("ready")), "nodes come back: {stdout}");
    assert!(stderr.contains("it is revoked"), "who was revoked is refused, and told why: {stderr}");
    assert!(!stderr.contains("warning: tls.crl"), "every node has a revocation list: {stderr}");
    for node in [1, 2, 4] {
        let log = std::fs::read_to_string(dir.path().join(format!("node-{node}/log"))).expect("its log");
        // The lists come before the CA they are of, and are said to be not used until then; never the other way round.
        let complaint = log.lines().find(|line| {
            line.contains("revocation list of") && !line.contains("that is no CA that is trusted here")
        });
        assert_eq!(complaint, None, "node {node} misses a list on the way to another CA");
    }
}
