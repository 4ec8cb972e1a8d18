//! The runbook's commands, run as they stand.

use std::process::{Command, Stdio};

#[test]
fn three_nodes_by_hand_as_the_runbook_says() {
    let repository = env!("CARGO_MANIFEST_DIR");
    let runbook = std::fs::read_to_string(format!("{repository}/cluster/README.md")).expect("the runbook");
    let section = runbook.split("## Three nodes by hand").nth(1).expect("its section");
    let block =
        section.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("its commands");
    let dir = tempfile::tempdir().expect("a directory");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_strongroom")).parent().expect("a folder");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("a PATH"));

    // Whatever happens, the nodes do not outlive the test.
    let script = format!("set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null; wait' EXIT\n{block}");
    let output = Command::new("bash")
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
    assert!(
        stdout.contains("000000-000011-000022-000033-000044-000055-000066-000077"),
        "the key comes back: {stdout}"
    );
    let nodes = stdout.lines().filter(|line| line.contains("zone-")).count();
    assert_eq!(nodes, 3, "status shows three nodes: {stdout}");
}
