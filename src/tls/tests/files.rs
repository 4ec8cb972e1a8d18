//! Files that change under a running process, in every order in which a person or a tool may change them.

use std::os::unix::fs::PermissionsExt;

use super::ca::{CRL_FILE, Selector};
use super::*;
use crate::tls::watch::Sighting;

/// Looks until a look sees the same as the one before, as [`Tls::watch`] does.
fn settle(tls: &Tls) -> bool {
    let (seen, taken_over): (Option<Sighting>, bool) = tls.look(None);
    assert!(!taken_over, "one look alone takes nothing over");
    tls.look(seen).1
}

fn revoked_and_kept(ca: &TestCa) -> (Tls, Tls) {
    let (leaver, issued) = ca.profile(IssueRequest::new(Role::Helpdesk, "leaver"));
    let leaver = Tls::load(leaver).unwrap();
    ca.authority.revoke(&Selector::Serial(issued.record.serial)).unwrap();
    (leaver, ca.tls(Role::Helpdesk, "kept"))
}

async fn accepts(node: &Tls, client: &Tls) -> bool {
    connect(node, client, ExpectedPeer::AnyNode).await.server.is_ok()
}

#[tokio::test]
async fn a_revocation_list_that_comes_later_is_picked_up_and_its_loss_revives_nobody() {
    let ca = TestCa::new("acme");
    let (paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
    let list = paths.crl.path().unwrap().to_owned();
    let node = Tls::load(paths).unwrap();
    let (leaver, kept) = revoked_and_kept(&ca);
    assert!(accepts(&node, &leaver).await, "nothing is known of the revocation");

    std::fs::copy(ca.authority.revocation_list_path(), &list).unwrap();
    assert!(settle(&node));
    assert!(!accepts(&node, &leaver).await);
    assert!(accepts(&node, &kept).await);

    std::fs::remove_file(&list).unwrap();
    assert!(settle(&node));
    assert!(!accepts(&node, &leaver).await, "a list that is gone stays in force");
    let problems = node.problems();
    assert!(problems.iter().any(|problem| problem.text.contains("is gone from its file")), "{problems:?}");

    std::fs::copy(ca.authority.revocation_list_path(), &list).unwrap();
    assert!(settle(&node));
    assert_eq!(node.problems(), []);
}

#[tokio::test]
async fn an_older_revocation_list_or_another_cas_does_not_undo_a_revocation() {
    let (ca, next) = (TestCa::new("acme"), TestCa::new("acme"));
    let list = ca.place("lists.pem");
    let before = std::fs::read(ca.authority.revocation_list_path()).unwrap();
    // The time of a list counts in seconds.
    while unix_now()
        == std::fs::metadata(ca.authority.revocation_list_path())
            .unwrap()
            .modified()
            .unwrap()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    {
        tokio::task::yield_now().await;
    }
    let (leaver, _) = revoked_and_kept(&ca);
    std::fs::copy(ca.authority.revocation_list_path(), &list).unwrap();
    let (mut paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
    write(&paths.ca, &[ca.ca_pem(), next.ca_pem()].concat());
    paths.crl = RevocationFile::Required(list.clone());
    let node = Tls::load(paths).unwrap();
    let unlisted = |node: &Tls| {
        node.problems().iter().filter(|problem| problem.text.contains("there is no revocation list")).count()
    };
    assert_eq!(unlisted(&node), 1, "the new CA's list is missing");

    let of_next = std::fs::read(next.place("ca").join(CRL_FILE)).unwrap();
    for (other, said) in [(before, "is ignored until a restart"), (of_next, "is gone from its file")] {
        write(&list, &other);
        assert!(settle(&node));
        assert!(!accepts(&node, &leaver).await);
        let problems = node.problems();
        assert!(problems.iter().any(|problem| problem.text.contains(said)), "{problems:?}");
    }
    assert_eq!(unlisted(&node), 0, "both lists are in force");
}

#[tokio::test]
async fn a_list_that_no_trusted_ca_signed_is_not_taken_and_the_others_of_its_file_are() {
    let (ca, stranger) = (TestCa::new("acme"), TestCa::new("acme"));
    let list = ca.place("lists.pem");
    let before = std::fs::read(ca.authority.revocation_list_path()).unwrap();
    let of_stranger = std::fs::read(stranger.authority.revocation_list_path()).unwrap();
    let (mut paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
    paths.crl = RevocationFile::Required(list.clone());
    write(&list, &before);
    let node = Tls::load(paths.clone()).unwrap();
    let said = |node: &Tls, words: &str| {
        node.problems().iter().filter(|problem| problem.text.contains(words)).count()
    };

    let (leaver, kept) = revoked_and_kept(&ca);
    let revoking = std::fs::read(ca.authority.revocation_list_path()).unwrap();
    write(&list, &[of_stranger.as_slice(), &revoking].concat());
    assert!(settle(&node));
    assert_eq!((said(&node, "is not used"), said(&node, "is gone")), (1, 0));
    assert!(!accepts(&node, &leaver).await && accepts(&node, &kept).await);

    // Alone, it takes the place of nothing, …
    write(&list, &of_stranger);
    assert!(settle(&node));
    assert_eq!((said(&node, "is not used"), said(&node, "is gone")), (1, 1));
    assert!(!accepts(&node, &leaver).await && accepts(&node, &kept).await);
    // … and a process that starts with it says that it knows of no revocations.
    let started = Tls::load(paths).unwrap();
    assert_eq!((said(&started, "is not used"), said(&started, "there is no revocation list")), (1, 1));
}

#[test]
fn a_pair_that_is_half_copied_is_reported_and_taken_over_once_it_is_whole() {
    let ca = TestCa::new("acme");
    let (paths, before) = ca.profile(IssueRequest::new(Role::Node, "1"));
    let node = Tls::load(paths.clone()).unwrap();
    let renewed = ca.authority.renew(&Selector::Serial(before.record.serial.clone()), None).unwrap();
    write(&paths.cert, renewed.cert_pem.as_bytes());
    assert!(!settle(&node));
    assert_eq!(node.serial(), before.record.serial);
    let failure = node.reload_failure().expect("known to status and metrics");
    assert!(failure.reason.contains("is not the private key of the certificate"), "{failure:?}");
    assert!(node.problems()[0].text.contains("the old ones stay in use"));

    std::fs::write(&paths.key, renewed.key_pem.expose()).unwrap();
    assert!(settle(&node));
    assert_eq!((node.serial(), node.reload_failure()), (renewed.record.serial, None));
}

#[test]
fn files_that_are_being_written_count_only_once_they_stand_still() {
    let (ca, next) = (TestCa::new("acme"), TestCa::new("acme"));
    let (paths, _) = ca.profile(IssueRequest::new(Role::Node, "1"));
    let both = [ca.ca_pem(), next.ca_pem()].concat();
    write(&paths.ca, &both);
    let node = Tls::load(paths.clone()).unwrap();
    // A copy of the bundle that has come as far as its first CA, and goes on.
    write(&paths.ca, &ca.ca_pem());
    let (seen, _) = node.look(None);
    write(&paths.ca, &[both.as_slice(), b"\n"].concat());
    let (seen, taken_over) = node.look(seen);
    assert!(!taken_over);
    assert_eq!(node.expiries().len(), 3, "the second CA is believed all the time");
    assert!(node.look(seen).1);
}

#[test]
fn a_file_that_is_gone_broken_or_open_to_others_leaves_the_old_one_in_use_and_is_reported() {
    let ca = TestCa::new("acme");
    let (mut paths, issued) = ca.profile(IssueRequest::new(Role::Node, "1"));
    let list = ca.place("list.pem");
    std::fs::copy(ca.authority.revocation_list_path(), &list).unwrap();
    paths.crl = RevocationFile::Required(list.clone());
    let node = Tls::load(paths.clone()).unwrap();
    for path in [&paths.ca, &paths.cert, &paths.key, &list] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let good = std::fs::read(path).unwrap();
        let reason = |what: &str| {
            assert!(!settle(&node), "{what} {name}");
            let failure = node.reload_failure().unwrap_or_else(|| panic!("{what} {name} is reported"));
            assert!(failure.reason.contains(name), "{what} {name}: {failure:?}");
            assert_eq!(node.serial(), issued.record.serial);
        };
        std::fs::remove_file(path).unwrap();
        reason("missing");
        write(path, b"nonsense");
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        reason("broken");
        write(path, &good);
        node.look(None);
        assert_eq!(node.reload_failure(), None, "{name} is as it was");
    }
    std::fs::set_permissions(&paths.key, std::fs::Permissions::from_mode(0o640)).unwrap();
    settle(&node);
    let failure = node.reload_failure().expect("reported");
    assert!(failure.reason.contains("mode 0640"), "{failure:?}");
    assert!(failure.reason.contains(&format!("chmod 600 {}", paths.key.display())), "{failure:?}");
}

#[test]
fn ends_that_are_near_are_told_of_the_own_certificate_and_of_every_ca() {
    let (ca, next) = (TestCa::new("acme"), TestCa::new("acme"));
    let now = unix_now();
    let validity = Some(Validity::Between { not_before: now - 80 * 24 * 3600, not_after: now + 24 * 3600 });
    let (paths, _) = ca.profile(IssueRequest { validity, ..IssueRequest::new(Role::Node, "1") });
    write(&paths.ca, &[ca.ca_pem(), next.ca_pem()].concat());
    let node = Tls::load(paths).unwrap();
    let expiries = node.expiries();
    assert_eq!((expiries.len(), expiries[0].not_after), (3, node.expires_at()));
    assert_eq!(node.authorities_expire_at(), expiries[1].not_after.min(expiries[2].not_after));
    let problems = node.problems();
    assert!(problems[0].urgent && problems[0].text.contains("renew it"), "{problems:?}");
    assert_eq!(problems.len(), 1, "the CAs have years");
}

#[tokio::test]
async fn where_only_nodes_may_connect_a_client_is_refused_and_told_so() {
    let ca = TestCa::new("acme");
    let (node, peer, client) =
        (ca.tls(Role::Node, "1"), ca.tls(Role::Node, "2"), ca.tls(Role::Operator, "ops"));
    for (caller, accepted) in [(&peer, true), (&client, false)] {
        let (at_node, at_caller) = loopback().await;
        let call = async {
            let mut stream = caller.connect(at_caller, ExpectedPeer::Node(1)).await.unwrap();
            let read = stream.read_u8().await;
            stream.get_mut().0.shutdown().await.ok();
            read.err()
        };
        let served = async { node.accept_node(at_node).await.map(|(_, peer)| peer.identity) };
        let (served, read) = tokio::join!(served, call);
        match accepted {
            true => assert_eq!(served.unwrap(), caller.identity()),
            false => {
                assert!(
                    matches!(served, Err(TlsError::Peer(CertificateFault::NotANode { .. }))),
                    "{served:?}"
                );
                let told = TlsError::refusal_by_peer(&read.unwrap()).unwrap();
                assert!(told.contains("not a node"), "{told}");
            }
        }
    }
}
