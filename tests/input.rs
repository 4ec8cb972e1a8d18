//! The edges of a node: bad input to every command and every RPC gets a clear error that names the field, the exit
//! code or status of the contract, and changes nothing (P11); and what a node says of itself.

mod common;

use std::process::Command;

use common::*;
use strongroom::proto::cluster_service_client::ClusterServiceClient;
use strongroom::proto::escrow_service_client::EscrowServiceClient;
use strongroom::proto::recovery_service_client::RecoveryServiceClient;
use strongroom::proto::{
    AddMember, CustodyRequest, EscrowRequest, FindRequest, MembershipChange, RecoverRequest,
    membership_change,
};
use tonic::{Code, Status};

/// A well-formed BitLocker password (every group is divisible by 11) and ones that are not.
const GOOD: &str = "000000-000011-000022-000033-000044-000055-000066-000077";
const BAD_GROUP: &str = "000000-000011-000023-000033-000044-000055-000066-000077";

/// Command line, profile, standard input, exit code, what the error must say.
type Case<'a> = (&'a [&'a str], &'a str, &'a str, i32, &'a str);

const ESCROW: [&str; 7] = ["escrow", "--machine", "PC-1", "--volume", "C:", "--kind", "bitlocker-password"];
const UNKNOWN_KEY: &str = "00000000-0000-4000-8000-00000000dead";

const CASES: &[Case<'_>] = &[
    (&ESCROW, "importer", "", 2, "secret"),
    (&ESCROW, "importer", "hello", 2, "secret"),
    (&ESCROW, "importer", BAD_GROUP, 2, "group 3"),
    (&["escrow", "--machine", "PC 1", "--volume", "C:", "--kind", "generic"], "importer", "x", 2, "machine"),
    (&["escrow", "--machine", "PC-1", "--volume", "", "--kind", "generic"], "importer", "x", 2, "volume"),
    (&["escrow", "--machine", "PC-1", "--volume", "C:", "--kind", "password"], "importer", "x", 2, "kind"),
    (
        &["escrow", "--machine", "PC-1", "--volume", "C:", "--kind", "generic", "--key-id", "7"],
        "importer",
        "x",
        2,
        "key",
    ),
    (
        &["escrow", "--machine", "PC-1", "--volume", "C:", "--kind", "generic", "--user", "user1"],
        "importer",
        "x",
        2,
        "user",
    ),
    (
        &[
            "escrow",
            "--machine",
            "PC-1",
            "--volume",
            "C:",
            "--kind",
            "generic",
            "--secret-file",
            "/nonexistent/file",
        ],
        "importer",
        "",
        2,
        "secret-file",
    ),
    (&["escrow", "--machine", "PC-1"], "importer", "x", 2, "--volume"),
    (&["find"], "auditor", "", 2, ""),
    (&["find", "--key-id", "1234567"], "auditor", "", 2, "key"),
    (&["find", "--key-id", "not-hexadecimal"], "auditor", "", 2, "key"),
    (&["find", "--machine", "a b"], "auditor", "", 2, "machine"),
    (&["find", "--user", "user1"], "auditor", "", 2, "user"),
    (&["find", "--machine", "PC-1", "--consistency", "eventual"], "auditor", "", 2, "consistency"),
    (&["recover", "7", "--reason", "locked out"], "helpdesk-advanced", "", 2, "key"),
    (&["recover", UNKNOWN_KEY, "--reason", "   "], "helpdesk-advanced", "", 2, "reason"),
    (&["recover", UNKNOWN_KEY], "helpdesk-advanced", "", 2, "--reason"),
    (
        &["recover", UNKNOWN_KEY, "--reason", "locked out", "--user", "user1"],
        "helpdesk-advanced",
        "",
        2,
        "user",
    ),
    (&["custody", "7"], "auditor", "", 2, "key"),
    (&["custody", UNKNOWN_KEY], "auditor", "", 3, UNKNOWN_KEY),
    (&["member", "add", "nowhere"], "operator", "", 2, ""),
    (&["member", "add", "127.0.0.1:1"], "operator", "", 75, "127.0.0.1:1"),
    (&["member", "add", "127.0.0.1:1", "--dry-run"], "operator", "", 75, "127.0.0.1:1"),
    (&["member", "promote", "0"], "operator", "", 2, "node"),
    (&["member", "promote", "9"], "operator", "", 3, "9"),
    (&["member", "demote", "9"], "operator", "", 3, "9"),
    (&["member", "remove", "9"], "operator", "", 3, "9"),
    (&["member", "remove", "1"], "operator", "", 5, "fewer than 3"),
    (&["member", "replace", "9", "127.0.0.1:1"], "operator", "", 75, "127.0.0.1:1"),
    (&["member", "replace", "1", "9"], "operator", "", 3, "9"),
    (&["member", "replace", "1", "2"], "operator", "", 5, "voter already"),
    (&["member", "transfer", "9"], "operator", "", 3, "9"),
    (&["receipt", "verify", "/nonexistent/receipt"], "auditor", "", 2, "/nonexistent/receipt"),
    (&["status", "--timeout", "0"], "operator", "", 2, "timeout"),
    (&["server", "--config", "/nonexistent/config"], "operator", "", 2, "/nonexistent/config"),
    (
        &["init", "--config", "/nonexistent/config", "--offline-recipient", "age1"],
        "operator",
        "",
        2,
        "/nonexistent/config",
    ),
    (&["cert", "issue"], "operator", "", 2, ""),
    (&["completions", "tcsh"], "operator", "", 2, "bash"),
    (&["bench", "escrow", "--clients", "0", "--seconds", "1"], "importer", "", 2, "clients"),
    (&["dev", "--dir", "/nonexistent", "--nodes", "0"], "operator", "", 2, "nodes"),
    (&["frobnicate"], "operator", "", 2, ""),
    (&[], "operator", "", 2, ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_gets_a_clear_error_and_changes_nothing() {
    let test = three_nodes().await;
    test.client("importer", &ALL).escrow(&deposit(1)).await.expect("kept");
    let before = test.cluster.wait_settled(&ALL).await.expect("settled").nodes[0].digest.clone();

    for (arguments, profile, input, expected, says) in CASES {
        let output = test.strongroom_with_input(profile, &ALL, arguments, input);
        let (code, error) = failure(&output);
        assert_eq!(code, *expected, "{arguments:?}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.to_lowercase().contains(says), "{arguments:?}: {message:?} does not say {says:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}: nothing on standard output");
    }
    bad_requests(&test).await;

    let after = test.cluster.wait_settled(&ALL).await.expect("settled").nodes[0].digest.clone();
    assert_eq!(before, after, "nothing was changed");

    // The table's own good secret is good: the refusals above are not for another reason.
    let output = test.strongroom_with_input("importer", &ALL, &ESCROW, &format!("{GOOD}\n"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // What is not found is on record, so it does change the state: last.
    let arguments = ["recover", UNKNOWN_KEY, "--reason", "locked out"];
    assert_eq!(failure(&test.strongroom("helpdesk-advanced", &ALL, &arguments)).0, 3);
}

/// The same through the services themselves, past the checks of the command line.
async fn bad_requests(test: &TestCluster) {
    let good = EscrowRequest {
        request_id: uuid::Uuid::new_v4().to_string(),
        machine: "PC-1".to_owned(),
        volume: "C:".to_owned(),
        kind: "bitlocker-password".to_owned(),
        secret: GOOD.into(),
        ..EscrowRequest::default()
    };
    let bad: [(&str, EscrowRequest); 9] = [
        ("request_id", EscrowRequest { request_id: String::new(), ..good.clone() }),
        ("request_id", EscrowRequest { request_id: "1".to_owned(), ..good.clone() }),
        ("machine", EscrowRequest { machine: "..".to_owned(), ..good.clone() }),
        ("volume", EscrowRequest { volume: "C: ".to_owned(), ..good.clone() }),
        ("kind", EscrowRequest { kind: String::new(), ..good.clone() }),
        ("key_id", EscrowRequest { key_id: "x".to_owned(), ..good.clone() }),
        ("secret", EscrowRequest { secret: BAD_GROUP.into(), ..good.clone() }),
        ("secret", EscrowRequest { secret: vec![0xff; 55], ..good.clone() }),
        ("user", EscrowRequest { user: r"\".to_owned(), ..good.clone() }),
    ];
    let mut escrow = EscrowServiceClient::new(test.channel("importer", 1).await);
    for (field, request) in bad {
        assert_field(escrow.escrow(request).await.map(drop), field);
    }
    let oversize = EscrowRequest { secret: vec![b'0'; 1 << 20], ..good };
    let status = escrow.escrow(oversize).await.expect_err("too large");
    assert!(
        matches!(status.code(), Code::OutOfRange | Code::InvalidArgument | Code::ResourceExhausted),
        "{status}"
    );

    let mut recovery = RecoveryServiceClient::new(test.channel("helpdesk-advanced", 1).await);
    let find = |find: FindRequest| find;
    for (field, request) in [
        ("query", find(FindRequest::default())),
        ("key_id", FindRequest { key_id_prefix: "1234567".to_owned(), ..FindRequest::default() }),
        ("limit", FindRequest { machine: "PC-1".to_owned(), limit: 1_001, ..FindRequest::default() }),
        ("consistency", FindRequest { machine: "PC-1".to_owned(), consistency: 9, ..FindRequest::default() }),
    ] {
        assert_field(recovery.find(request).await.map(drop), field);
    }
    let request_id = uuid::Uuid::new_v4().to_string();
    let good = RecoverRequest {
        request_id,
        key_id: UNKNOWN_KEY.to_owned(),
        reason: "why".to_owned(),
        user: String::new(),
        ..RecoverRequest::default()
    };
    for (field, request) in [
        ("request_id", RecoverRequest { request_id: "0".to_owned(), ..good.clone() }),
        ("key_id", RecoverRequest { key_id: String::new(), ..good.clone() }),
        ("reason", RecoverRequest { reason: " ".to_owned(), ..good.clone() }),
        ("reason", RecoverRequest { reason: "x".repeat(1_001), ..good.clone() }),
        ("user", RecoverRequest { user: "user1".to_owned(), ..good }),
    ] {
        assert_field(recovery.recover(request).await.map(drop), field);
    }
    assert_field(
        recovery
            .custody(CustodyRequest { key_id: "?".to_owned(), ..CustodyRequest::default() })
            .await
            .map(drop),
        "key_id",
    );

    let mut cluster = ClusterServiceClient::new(test.channel("operator", 1).await);
    let add = membership_change::Change::Add(AddMember::default());
    let request = MembershipChange { change: Some(add), ..MembershipChange::default() };
    assert_field(cluster.change_membership(request).await.map(drop), "peer_address");
}

#[track_caller]
fn assert_field(answer: Result<(), Status>, field: &str) {
    let status = answer.expect_err(field);
    assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
    let named = status.metadata().get("strongroom-field").and_then(|value| value.to_str().ok());
    assert_eq!(named, Some(field), "{status}");
}

/// gRPC health and reflection, for balancers and people with grpcurl; and the admin port, which needs no certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_its_health_and_its_services() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let test = three_nodes().await;
    let channel = test.channel("auditor", 1).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let service = "strongroom.v1.RecoveryService".to_owned();
    let answer = health.check(tonic_health::pb::HealthCheckRequest { service }).await.expect("healthy");
    assert_eq!(answer.into_inner().status, ServingStatus::Serving as i32);

    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
    let list = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter([list])).await.expect("answers").into_inner();
    let answer = answers.message().await.expect("an answer").expect("one").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let services: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for service in ["ClusterService", "EscrowService", "RecoveryService"] {
        assert!(services.contains(&format!("strongroom.v1.{service}")), "{services:?}");
    }
    assert!(
        !services.iter().any(|service| service.contains("PeerService")),
        "nobody explores the peer service"
    );

    for (path, says) in [("/livez", ""), ("/readyz", "ready"), ("/metrics", "strongroom_raft_applied_index")]
    {
        let (code, body) = test.page(1, path).await;
        assert!(code == 200 && body.contains(says), "{path}: {code} {body}");
    }
}

/// Secrets are never arguments, so no help text offers such a flag, and help always works.
#[test]
fn every_command_has_help_and_none_takes_a_secret_as_an_argument() {
    let commands = [
        "",
        "escrow",
        "find",
        "recover",
        "custody",
        "receipt verify",
        "status",
        "init",
        "server",
        "member add",
        "member list",
        "cert ca",
        "cert issue",
        "cert renew",
        "cert revoke",
        "cert list",
        "cert show",
        "dev",
        "demo",
        "bench escrow",
        "completions",
        "man",
    ];
    for command in commands {
        let mut help = Command::new(program());
        help.args(command.split_whitespace()).arg("--help");
        let output = run(help, "");
        assert_eq!(output.status.code(), Some(0), "{command} --help");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(!text.contains("--secret "), "{command} takes a secret as an argument");
        assert!(text.contains("Usage:"), "{command} --help shows its usage");
    }
}
