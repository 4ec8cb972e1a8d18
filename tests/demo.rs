//! The main job in one command, and that it leaves no secret anywhere: not in what it prints, not in what the nodes
//! print, not in any file.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::*;
use strongroom::cli::local_cluster::LocalCluster;
use strongroom::escrow::ids::KeyId;
use strongroom::proto::FindRequest;

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_succeeds_and_leaves_no_secret_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut command = Command::new(program());
    command.args(["demo", "--keep"]).env("TMPDIR", dir.path());
    let output = run(command, "");
    let kept =
        fs::read_dir(dir.path()).expect("readable").next().expect("it was kept").expect("readable").path();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");

    // What was printed and written while the demo ran, before anything else touches it.
    let mut traces = vec![
        ("standard output".to_owned(), output.stdout.clone()),
        ("standard error".to_owned(), output.stderr.clone()),
    ];
    collect(&kept, &mut traces);
    assert!(traces.iter().any(|(name, _)| name.ends_with("log")), "the nodes' logs are among the traces");

    // The only way to learn the secrets is to ask the cluster for them.
    let mut cluster = LocalCluster::open_or_create(&kept, &plan(""), program()).expect("the demo's cluster");
    cluster.form().await.expect("it comes back");
    let secrets = recover_all(&cluster, &stdout).await;
    assert!(cluster.stop_all().await.expect("stopped"), "the nodes end by themselves, with success");
    collect(&kept, &mut traces);

    assert!(secrets.len() >= 5, "the demo escrowed several keys: {}", secrets.len());
    for secret in &secrets {
        for form in forms(secret) {
            for (name, content) in &traces {
                let found = content.windows(form.len()).any(|window| window == form.as_slice());
                assert!(!found, "a secret stands in {name}");
            }
        }
    }
}

/// Secrets of every key the demo named.
async fn recover_all(cluster: &LocalCluster, printed: &str) -> BTreeSet<Vec<u8>> {
    let mut secrets = BTreeSet::new();
    for key_id in key_ids(cluster, printed).await {
        let client = cluster.client("helpdesk-advanced", &ALL).expect("a client");
        let recovered = client.recover(key_id, "looking for leaks", None).await.expect("recovered");
        secrets.insert(recovered.secret.expose().to_vec());
    }
    secrets
}

/// Ids of the keys of all machines whose names were printed.
async fn key_ids(cluster: &LocalCluster, printed: &str) -> BTreeSet<KeyId> {
    let client = cluster.client("auditor", &ALL).expect("a client");
    let words = printed.split(|c: char| !(c.is_ascii_alphanumeric() || "-._".contains(c)));
    let mut found = BTreeSet::new();
    for machine in words.filter(|word| (3..=63).contains(&word.len())).collect::<BTreeSet<_>>() {
        let request =
            FindRequest { machine: machine.trim_matches(['.', '-']).to_owned(), ..FindRequest::default() };
        if let Ok(answer) = client.find(&request).await {
            found.extend(answer.keys.into_iter().map(|key| key.key_id.parse::<KeyId>().expect("a key id")));
        }
    }
    found
}

/// How a secret might stand somewhere: as typed, without separators, in hexadecimal, in base64.
fn forms(secret: &[u8]) -> Vec<Vec<u8>> {
    let bare: Vec<u8> = secret.iter().copied().filter(|byte| *byte != b'-').collect();
    let mut forms = vec![secret.to_vec(), bare.clone()];
    for text in [secret, &bare] {
        forms.push(data_encoding::HEXLOWER.encode(text).into_bytes());
        // Whole groups of three bytes only: the end depends on what follows.
        forms.push(data_encoding::BASE64.encode(&text[..text.len() / 3 * 3]).into_bytes());
    }
    forms
}

/// Every file below `dir`.
fn collect(dir: &Path, traces: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable")) {
        let path = entry.path();
        if entry.file_type().expect("a type").is_dir() {
            collect(&path, traces);
        } else {
            traces.push((path.display().to_string(), fs::read(&path).expect("readable")));
        }
    }
}
