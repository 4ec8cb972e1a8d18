use std::os::unix::fs::PermissionsExt;

use clap::Parser;

use super::*;
use crate::tls::{ExpectedPeer, RevocationFile, Tls, TlsPaths};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: CertCommand,
}

/// Runs a command line; `{}` stands for the directory of the test.
fn run(dir: &Path, line: &str) -> Result<CertReport, TlsError> {
    let line = line.replace("{}", dir.to_str().unwrap());
    execute(parse(&line).unwrap_or_else(|error| panic!("{line}: {error}")))
}

fn parse(line: &str) -> Result<CertCommand, clap::Error> {
    Cli::try_parse_from(std::iter::once("cert").chain(line.split_whitespace())).map(|cli| cli.command)
}

fn authority() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "ca --dir {}/ca --cluster acme").unwrap();
    dir
}

fn json(report: &CertReport) -> serde_json::Value {
    serde_json::to_value(report).unwrap()
}

#[test]
fn a_profile_that_was_issued_can_be_used() {
    let dir = authority();
    let report = run(dir.path(), "issue --dir {}/ca --role helpdesk --name jo --out {}/jo").unwrap();
    assert_eq!(json(&report)["certificate"]["identity"], "spiffe://acme/helpdesk/jo");
    assert_eq!(json(&report)["certificate"]["state"], "valid");
    assert!(report.to_string().contains("spiffe://acme/helpdesk/jo"));
    let tls = Tls::load(TlsPaths::profile(&dir.path().join("jo"))).unwrap();
    assert_eq!(tls.identity().to_string(), "spiffe://acme/helpdesk/jo");
}

#[test]
fn a_node_gets_files_of_its_own_names() {
    let dir = authority();
    run(dir.path(), "issue --dir {}/ca --role node --name 1 --dns a.example --ip 192.0.2.1 --out {}/n1")
        .unwrap();
    let place = dir.path().join("n1");
    let paths = TlsPaths {
        ca: place.join("ca.crt"),
        cert: place.join("node.crt"),
        key: place.join("node.key"),
        crl: RevocationFile::Required(dir.path().join("ca/crl.pem")),
    };
    assert_eq!(std::fs::metadata(&paths.key).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Tls::load(paths).unwrap().identity().node_id(), Some(1));
    let shown = run(dir.path(), "show {}/n1/node.crt").unwrap();
    let names = &json(&shown)["certificates"][0]["names"];
    assert_eq!(names, &serde_json::json!(["a.example", "192.0.2.1"]));
}

#[test]
fn issuing_over_files_that_are_there_fails_before_anything_is_issued() {
    let dir = authority();
    let issue = "issue --dir {}/ca --role agent --name PC-0001 --out {}/pc";
    run(dir.path(), issue).unwrap();
    assert!(matches!(run(dir.path(), issue), Err(TlsError::Exists { .. })));
    let listed = json(&run(dir.path(), "list --dir {}/ca").unwrap());
    assert_eq!(listed["certificates"].as_array().unwrap().len(), 1);
}

#[test]
fn a_certificate_is_renewed_in_its_place_or_by_identity() {
    let dir = authority();
    run(dir.path(), "issue --dir {}/ca --role agent --name PC-0001 --days 1 --out {}/pc").unwrap();
    let paths = TlsPaths::profile(&dir.path().join("pc"));
    let tls = Tls::load(paths).unwrap();
    for renew in [
        "renew --dir {}/ca {}/pc/client.crt --days 2",
        "renew --dir {}/ca --identity spiffe://acme/agent/PC-0001 --out {}/pc --days 3",
    ] {
        let before = tls.expires_at();
        run(dir.path(), renew).unwrap();
        assert!(tls.reload().unwrap(), "a running process takes it over");
        assert!(tls.expires_at() > before);
    }
    std::fs::rename(dir.path().join("pc/client.crt"), dir.path().join("pc/mine.crt")).unwrap();
    let error = run(dir.path(), "renew --dir {}/ca {}/pc/mine.crt").unwrap_err().to_string();
    assert!(error.starts_with("out: "), "{error}");
}

#[test]
fn what_is_revoked_is_listed_as_such() {
    let dir = authority();
    run(dir.path(), "issue --dir {}/ca --role agent --name PC-0001 --out {}/pc").unwrap();
    run(dir.path(), "issue --dir {}/ca --role agent --name PC-0002 --out {}/pc2").unwrap();
    let report = json(&run(dir.path(), "revoke --dir {}/ca --file {}/pc/client.crt").unwrap());
    assert!(report["revocation_list"].as_str().unwrap().ends_with("crl.pem"));
    let listed = run(dir.path(), "list --dir {}/ca").unwrap();
    let states: Vec<_> = json(&listed)["certificates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["revoked", "valid"]);
    assert!(listed.to_string().contains("revoked"));
    let renew = run(dir.path(), "renew --dir {}/ca {}/pc/client.crt");
    assert!(matches!(renew, Err(TlsError::NotRenewable(_))));
}

#[test]
fn bad_input_is_refused_with_the_field_at_fault() {
    let dir = authority();
    for (line, expected) in [
        ("issue --dir {}/ca --role king --name x --out {}/x", "role"),
        ("issue --dir {}/ca --role agent --name x --ip 1.2.3 --out {}/x", "--ip"),
        ("issue --dir {}/ca --role agent --name x --days 0 --out {}/x", "--days"),
        ("ca --dir {}/b --cluster ACME", "cluster"),
        ("renew --dir {}/ca", "--identity"),
        ("renew --dir {}/ca --identity spiffe://acme/agent/x", "--out"),
        ("revoke --dir {}/ca", "--serial"),
        ("revoke --dir {}/ca --serial 00 --identity spiffe://acme/agent/x", "cannot be used with"),
    ] {
        let error = parse(&line.replace("{}", dir.path().to_str().unwrap())).expect_err(line).to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
    for (line, expected) in [
        ("issue --dir {}/ca --role node --name one --out {}/x", "name: a node id"),
        ("issue --dir {}/ca --role agent --name a/b --out {}/x", "name: "),
        ("issue --dir {}/ca --role agent --name x --dns a_b! --out {}/x", "dns: "),
        ("issue --dir {}/none --role agent --name x --out {}/x", "none/ca.crt"),
        ("revoke --dir {}/ca --serial 00", "has issued no certificate with serial number 00"),
        ("renew --dir {}/ca --identity spiffe://acme/agent/x --out {}/x", "has issued no certificate"),
        ("show {}/ca/ca.key", "holds no certificate"),
        ("ca --dir {}/ca --cluster acme", "exists already"),
    ] {
        let error = run(dir.path(), line).expect_err(line).to_string();
        assert!(error.contains(expected), "{line}: {error}");
    }
    assert!(!dir.path().join("x").exists(), "nothing was written");
}

#[tokio::test]
async fn a_client_and_a_node_from_the_command_line_connect() {
    let dir = authority();
    run(dir.path(), "issue --dir {}/ca --role node --name 1 --out {}/n1").unwrap();
    run(dir.path(), "issue --dir {}/ca --role agent --name PC-0001 --out {}/pc").unwrap();
    let place = dir.path().join("n1");
    let node = Tls::load(TlsPaths {
        ca: place.join("ca.crt"),
        cert: place.join("node.crt"),
        key: place.join("node.key"),
        crl: RevocationFile::Required(dir.path().join("ca/crl.pem")),
    });
    let (node, client) = (node.unwrap(), Tls::load(TlsPaths::profile(&dir.path().join("pc"))).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (at_node, _) = listener.accept().await.unwrap();
    let (accepted, connected) =
        tokio::join!(node.accept(at_node), client.connect(tcp, ExpectedPeer::Node(1)));
    assert_eq!(accepted.unwrap().1.identity, client.identity());
    connected.unwrap();
}

/// A change of CA as the command line does it: each step is refused before the one it rests on.
#[test]
fn a_ca_is_changed_in_steps_that_cannot_be_taken_out_of_order() {
    let dir = authority();
    run(dir.path(), "issue --dir {}/ca --role node --name 1 --dns a.example --out {}/n1").unwrap();
    run(dir.path(), "ca --dir {}/ca-2 --cluster acme").unwrap();
    run(dir.path(), "ca --dir {}/other --cluster other").unwrap();
    let paths = TlsPaths::in_directory(&dir.path().join("n1"), FileNames::NODE);
    let node = Tls::load(paths.clone()).unwrap();
    let refused = |line: &str, expected: &str| {
        let before = [&paths.ca, &paths.cert, &paths.key].map(|path| std::fs::read(path).unwrap());
        let error = run(dir.path(), line).expect_err(line);
        let (text, exit) = (error.to_string(), Failure::from(error).exit);
        assert!(text.contains(expected), "{line}: {text}");
        assert_eq!(before, [&paths.ca, &paths.cert, &paths.key].map(|path| std::fs::read(path).unwrap()));
        exit
    };
    let renew = "renew --dir {}/ca-2 {}/n1/node.crt";
    let exit = refused(renew, "n1/ca.crt --add");
    assert_eq!(exit, crate::cli::Exit::Conflict);
    refused("trust --bundle {}/n1/ca.crt --add {}/other/ca.crt", "cluster other");
    refused("trust --bundle {}/n1/ca.crt --add {}/n1/node.crt", "is not a CA's");
    refused("trust --bundle {}/n1/ca.crt --remove {}/ca/ca.crt", "not the last one");
    refused("trust --bundle {}/none.crt --add {}/ca/ca.crt", "none.crt");

    for changed in [true, false] {
        let report = json(&run(dir.path(), "trust --bundle {}/n1/ca.crt --add {}/ca-2/ca.crt").unwrap());
        assert_eq!(
            (&report["changed"], report["certificates"].as_array().unwrap().len()),
            (&changed.into(), 2)
        );
    }
    assert!(node.reload().unwrap());
    let exit = refused("trust --bundle {}/n1/ca.crt --remove {}/ca/ca.crt", "node.crt was issued by the CA");
    assert_eq!(exit, crate::cli::Exit::Conflict);

    let report = json(&run(dir.path(), renew).unwrap());
    assert_eq!(report["certificate"]["identity"], "spiffe://acme/node/1");
    assert_eq!(report["certificate"]["names"], serde_json::json!(["a.example"]));
    assert!(node.reload().unwrap(), "a running node takes it over");
    let report = run(dir.path(), "trust --bundle {}/n1/ca.crt --remove {}/ca/ca.crt").unwrap();
    assert!(report.to_string().contains("holds now"), "{report}");
    assert!(node.reload().unwrap());
    refused("renew --dir {}/ca {}/n1/node.crt", "does not hold this CA");
    refused("renew --dir {}/other {}/n1/node.crt", "of cluster other");
}

#[test]
fn a_directory_shows_its_certificates_and_what_keeps_it_from_being_used() {
    let dir = authority();
    run(dir.path(), "issue --dir {}/ca --role agent --name PC-0001 --out {}/pc").unwrap();
    let shown = run(dir.path(), "show {}/pc").unwrap();
    let document = json(&shown);
    let files: Vec<_> =
        document["certificates"].as_array().unwrap().iter().map(|line| &line["file"]).collect();
    assert_eq!(files, ["client.crt", "ca.crt"]);
    let days = document["certificates"][0]["days_left"].as_u64().unwrap();
    assert!((89..=90).contains(&days), "{days}");
    assert!(document.get("problems").is_none(), "{document}");
    assert!(shown.to_string().contains("by Strongroom CA "), "{shown}");
    assert!(shown.to_string().lines().all(|line| line.len() <= 80), "{shown}");

    std::fs::set_permissions(dir.path().join("pc/client.key"), std::fs::Permissions::from_mode(0o644))
        .unwrap();
    let problems = json(&run(dir.path(), "show {}/pc").unwrap())["problems"].to_string();
    assert!(problems.contains("chmod 600"), "{problems}");
    let error = run(dir.path(), "show {}").unwrap_err().to_string();
    assert!(error.starts_with("file: "), "{error}");
}
