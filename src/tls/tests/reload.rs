use rustls::pki_types::pem::PemObject;
use tokio_util::sync::CancellationToken;

use super::ca::{CRL_FILE, Selector};
use super::*;

/// A node that reads its revocation list from the CA.
fn node_with_list(ca: &TestCa) -> (TlsPaths, Tls) {
    let (mut paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
    paths.crl = RevocationFile::Required(ca.authority.revocation_list_path());
    let tls = Tls::load(paths.clone()).unwrap();
    (paths, tls)
}

fn put(ca: &TestCa, paths: &TlsPaths, issued: &Issued) {
    ca.authority.replace(paths.cert.parent().unwrap(), issued, FileNames::CLIENT).unwrap();
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let ca = TestCa::new("acme");
    let (paths, before) = ca.profile(IssueRequest::new(Role::Node, "1"));
    let node = Tls::load(paths.clone()).unwrap();
    let client = ca.tls(Role::Agent, "PC-0001");
    assert!(!node.reload().unwrap(), "nothing has changed");

    let renewed = ca.authority.renew(&Selector::Serial(before.record.serial.clone()), None).unwrap();
    put(&ca, &paths, &renewed);
    assert!(node.reload().unwrap());
    assert!(!node.reload().unwrap(), "it is taken over once");
    let stream = connect(&node, &client, ExpectedPeer::Node(1)).await.client.unwrap();
    let seen = client.server_certificate(&stream, ExpectedPeer::Node(1)).unwrap();
    assert_eq!(seen.serial, renewed.record.serial);
}

#[tokio::test]
async fn a_revocation_bites_new_and_live_connections_without_a_restart() {
    let ca = TestCa::new("acme");
    let (_, node) = node_with_list(&ca);
    let (client, issued) = ca.profile(IssueRequest::new(Role::Agent, "PC-0001"));
    let (client, other) = (Tls::load(client).unwrap(), ca.tls(Role::Agent, "PC-0002"));
    let live = connect(&node, &client, ExpectedPeer::AnyNode).await.server.unwrap();
    let unconcerned = connect(&node, &other, ExpectedPeer::AnyNode).await.server.unwrap();

    ca.authority.revoke(&Selector::Serial(issued.record.serial)).unwrap();
    node.check(&live).unwrap();
    assert!(node.reload().unwrap());
    assert!(matches!(node.check(&live), Err(TlsError::Peer(CertificateFault::Revoked))));
    node.check(&unconcerned).unwrap();
    let fault = connect(&node, &client, ExpectedPeer::AnyNode).await.server_fault();
    assert_eq!(fault, CertificateFault::Revoked);
    connect(&node, &other, ExpectedPeer::AnyNode).await.server.unwrap();
}

#[tokio::test]
async fn files_that_are_not_good_as_a_whole_leave_the_old_ones_in_use() {
    let ca = TestCa::new("acme");
    let (paths, node) = node_with_list(&ca);
    let client = ca.tls(Role::Agent, "PC-0001");
    let good = [&paths.ca, &paths.cert, &paths.key].map(|path| (path.clone(), std::fs::read(path).unwrap()));
    let other = ca.authority.issue(IssueRequest::new(Role::Node, "2")).unwrap();
    let now = unix_now();
    let ended = Validity::Between { not_before: now - 20, not_after: now - 10 };
    let expired = ca.authority.renew(&Selector::Identity(node.identity()), Some(ended)).unwrap();

    let cases: [(&str, &dyn Fn()); 6] = [
        ("no PEM", &|| write(&paths.cert, b"-----BEGIN CERTIFICATE-----\nnonsense\n")),
        ("no CA", &|| write(&paths.ca, b"")),
        ("certificate without its key", &|| write(&paths.cert, other.cert_pem.as_bytes())),
        ("somebody else's", &|| put(&ca, &paths, &other)),
        ("expired", &|| put(&ca, &paths, &expired)),
        ("a CA that is not ours", &|| write(&paths.ca, &TestCa::new("acme").ca_pem())),
    ];
    for (case, spoil) in cases {
        spoil();
        node.reload().expect_err(case);
        let outcome = connect(&node, &client, ExpectedPeer::Node(1)).await;
        assert_eq!(outcome.server.expect(case).identity, client.identity(), "{case}");
        for (path, content) in &good {
            write(path, content);
        }
        assert!(!node.reload().expect(case), "{case}: back to what is in use");
    }
}

#[tokio::test]
async fn an_own_certificate_that_is_revoked_does_not_keep_an_old_revocation_list_in_force() {
    let ca = TestCa::new("acme");
    let (paths, node) = node_with_list(&ca);
    let (client, issued) = ca.profile(IssueRequest::new(Role::Agent, "PC-0001"));
    let client = Tls::load(client).unwrap();
    let live = connect(&node, &client, ExpectedPeer::AnyNode).await.server.unwrap();
    ca.authority.revoke(&Selector::Identity(node.identity())).unwrap();
    ca.authority.revoke(&Selector::Serial(issued.record.serial)).unwrap();
    assert!(node.reload().unwrap());
    assert!(matches!(node.check(&live), Err(TlsError::Peer(CertificateFault::Revoked))));
    let restarted = Tls::load(paths).unwrap_err();
    assert!(restarted.to_string().ends_with("is revoked"), "{restarted}");
}

#[tokio::test]
async fn while_one_ca_replaces_another_both_are_believed() {
    let (old, new) = (TestCa::new("acme"), TestCa::new("acme"));
    let (paths, _) = old.profile(IssueRequest::new(Role::Node, "1"));
    let node = Tls::load(paths.clone()).unwrap();
    let bundle = [old.ca_pem(), new.ca_pem()].concat();
    let clients = [&old, &new].map(|ca| {
        let (paths, _) = ca.profile(IssueRequest::new(Role::Agent, "PC-0001"));
        write(&paths.ca, &bundle);
        Tls::load(paths).unwrap()
    });
    let refused = connect(&node, &clients[1], ExpectedPeer::AnyNode).await.server_fault();
    assert_eq!(refused, CertificateFault::UnknownAuthority);

    write(&paths.ca, &bundle);
    assert!(node.reload().unwrap());
    for client in &clients {
        connect(&node, client, ExpectedPeer::AnyNode).await.server.unwrap();
    }
    let of_old = connect(&node, &clients[0], ExpectedPeer::AnyNode).await.server.unwrap();

    // The node changes over, then the old CA goes: so do the connections it vouched for.
    put(&new, &paths, &new.authority.issue(IssueRequest::new(Role::Node, "1")).unwrap());
    write(&paths.ca, &new.ca_pem());
    assert!(node.reload().unwrap());
    assert!(matches!(node.check(&of_old), Err(TlsError::Peer(CertificateFault::UnknownAuthority))));
    connect(&node, &clients[1], ExpectedPeer::AnyNode).await.server.unwrap();
    let refused = connect(&node, &clients[0], ExpectedPeer::AnyNode).await.server_fault();
    assert_eq!(refused, CertificateFault::UnknownAuthority);
}

#[tokio::test]
async fn each_of_two_cas_has_a_revocation_list_of_its_own() {
    let (one, two) = (TestCa::new("acme"), TestCa::new("acme"));
    let (mut paths, _) = one.profile(IssueRequest::new(Role::Node, "1"));
    write(&paths.ca, &[one.ca_pem(), two.ca_pem()].concat());
    let mut clients = Vec::new();
    for ca in [&one, &two] {
        for name in ["kept", "revoked"] {
            let (client, issued) = ca.profile(IssueRequest::new(Role::Agent, name));
            write(&client.ca, &[one.ca_pem(), two.ca_pem()].concat());
            clients.push(Tls::load(client).unwrap());
            if name == "revoked" {
                ca.authority.revoke(&Selector::Serial(issued.record.serial)).unwrap();
            }
        }
    }
    let lists = [&one, &two].map(|ca| std::fs::read(ca.place("ca").join(CRL_FILE)).unwrap()).concat();
    let list = one.place("lists.pem");
    write(&list, &lists);
    paths.crl = RevocationFile::Required(list);
    let node = Tls::load(paths).unwrap();
    for client in &clients {
        let outcome = connect(&node, client, ExpectedPeer::AnyNode).await;
        match client.identity().name.as_str() {
            "kept" => drop(outcome.server.unwrap()),
            _ => assert_eq!(outcome.server_fault(), CertificateFault::Revoked),
        }
    }
}

#[tokio::test]
async fn a_live_connection_ends_with_its_certificate() {
    let ca = TestCa::new("acme");
    let (node, client) = (ca.tls(Role::Node, "1"), ca.tls(Role::Agent, "PC-0001"));
    let peer = connect(&node, &client, ExpectedPeer::AnyNode).await.server.unwrap();
    let current = node.shared.current.load_full();
    let check_at = |now| peer.check(&current.trust, &current.identity.cluster, current.generation, now);
    check_at(peer.not_after).unwrap();
    let error = check_at(peer.not_after + 1).unwrap_err();
    assert!(matches!(error, TlsError::Peer(CertificateFault::Expired { since }) if since == peer.not_after));
}

#[tokio::test]
async fn watching_takes_over_new_files_by_itself_and_ends_when_told() {
    let ca = TestCa::new("acme");
    let (paths, before) = ca.profile(IssueRequest::new(Role::Node, "1"));
    let node = Tls::load(paths.clone()).unwrap();
    let stop = CancellationToken::new();
    let watching = tokio::spawn({
        let (node, stop) = (node.clone(), stop.clone());
        async move { node.watch(Duration::from_millis(5), stop).await }
    });
    let old = node.certificates();
    put(&ca, &paths, &ca.authority.renew(&Selector::Serial(before.record.serial), None).unwrap());
    let taken_over = async {
        while node.certificates() == old {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, taken_over).await.expect("taken over");
    stop.cancel();
    watching.await.unwrap();
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let ca = TestCa::new("acme");
    let (paths, _) = ca.profile(IssueRequest::new(Role::Agent, "PC-0001"));
    for mode in [0o644, 0o640, 0o602] {
        std::fs::set_permissions(&paths.key, std::fs::Permissions::from_mode(mode)).unwrap();
        let error = Tls::load(paths.clone()).unwrap_err();
        assert!(matches!(error, TlsError::KeyExposed { .. }), "{error:?}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
    std::fs::set_permissions(&paths.key, std::fs::Permissions::from_mode(0o400)).unwrap();
    Tls::load(paths).unwrap();
}

#[test]
fn bad_files_are_named_with_what_is_wrong_with_them() {
    let ca = TestCa::new("acme");
    let request = || IssueRequest::new(Role::Agent, "PC-0001");
    let now = unix_now();
    let ended = Some(Validity::Between { not_before: now - 20, not_after: now - 10 });
    let (expired, _) = ca.profile(IssueRequest { validity: ended, ..request() });
    let coming = Some(Validity::Between { not_before: now + 1_000, not_after: now + 2_000 });
    let (early, _) = ca.profile(IssueRequest { validity: coming, ..request() });
    let (mut no_list, _) = ca.profile(request());
    no_list.crl = RevocationFile::Required(ca.place("none.pem"));
    let (mut foreign_ca, _) = ca.profile(request());
    foreign_ca.ca = TestCa::new("acme").place("gone");
    let (mut leaf_as_ca, _) = ca.profile(request());
    leaf_as_ca.ca = leaf_as_ca.cert.clone();
    let (mut key_as_list, _) = ca.profile(request());
    key_as_list.crl = RevocationFile::Required(key_as_list.key.clone());
    let (mut ca_as_own, _) = ca.profile(request());
    ca_as_own.cert = ca_as_own.ca.clone();
    ca_as_own.key = ca.place("ca").join(ca::CA_KEY_FILE);
    for (paths, expected) in [
        (expired, "expired at"),
        (early, "is not valid before"),
        (no_list, "none.pem"),
        (foreign_ca, "gone"),
        (leaf_as_ca, "is not a CA's"),
        (key_as_list, "holds no revocation list"),
        (ca_as_own, "carries no identity"),
    ] {
        let error = Tls::load(paths).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_revocation_list_that_the_ca_did_not_sign_is_refused() {
    let ca = TestCa::new("acme");
    let (mut paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
    let list = std::fs::read(ca.authority.revocation_list_path()).unwrap();
    let der = rustls::pki_types::CertificateRevocationListDer::from_pem_slice(&list).unwrap();
    let mut forged = der.to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    let pem = data_encoding::BASE64.encode(&forged);
    let path = ca.place("forged.pem");
    write(&path, format!("-----BEGIN X509 CRL-----\n{pem}\n-----END X509 CRL-----\n").as_bytes());
    paths.crl = RevocationFile::Required(path);
    let error = Tls::load(paths).unwrap_err().to_string();
    assert!(error.contains("is not signed by that CA"), "{error}");
}
