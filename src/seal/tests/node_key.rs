//! Private identities and their files.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::secret;
use crate::private_file::Reader;
use crate::seal::{NodeKey, SealError, offline_identity};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_node_key_is_made_once_private_to_its_owner_and_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.key");
    let made = NodeKey::load_or_create(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(NodeKey::load_or_create(&path).unwrap().recipient(), made.recipient());
    assert_eq!(NodeKey::load(&path).unwrap().recipient(), made.recipient());
    let left: Vec<_> =
        fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["node.key"], "no temporary file is left");
}

#[test]
fn makers_at_the_same_time_agree_on_one_key() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.key");
    let recipients: Vec<String> = std::thread::scope(|scope| {
        let makers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| NodeKey::load_or_create(&path).unwrap().recipient())).collect();
        makers.into_iter().map(|maker| maker.join().unwrap()).collect()
    });
    assert!(recipients.iter().all(|recipient| *recipient == recipients[0]), "{recipients:?}");
}

#[test]
fn a_node_key_that_others_may_read_is_refused_and_says_how_to_mend_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.key");
    NodeKey::load_or_create(&path).unwrap();
    for exposed in [0o640, 0o604, 0o660, 0o644, 0o610] {
        fs::set_permissions(&path, Permissions::from_mode(exposed)).unwrap();
        for refused in [NodeKey::load(&path), NodeKey::load_or_create(&path)] {
            let refused = refused.unwrap_err();
            assert!(
                matches!(refused, SealError::NodeKeyExposed { mode, .. } if mode == exposed),
                "{refused:?}"
            );
            assert!(refused.to_string().contains("chmod 600"), "{refused}");
        }
    }
    for private in [0o600, 0o400] {
        fs::set_permissions(&path, Permissions::from_mode(private)).unwrap();
        NodeKey::load(&path).unwrap();
    }
}

#[test]
fn a_credential_of_the_service_manager_may_show_its_acl_mask_as_group_permission() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.key");
    NodeKey::load_or_create(&path).unwrap();
    let here = || Reader::with_credentials(Some(OsString::from(directory.path())));
    fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
    NodeKey::load_as(&path, &here()).unwrap();
    for elsewhere in [None, Some(OsString::new()), Some(OsString::from("/run/credentials/other"))] {
        let refused = NodeKey::load_as(&path, &Reader::with_credentials(elsewhere)).unwrap_err();
        assert!(matches!(refused, SealError::NodeKeyExposed { .. }), "{refused:?}");
    }
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    let refused = NodeKey::load_as(&path, &here()).unwrap_err();
    assert!(matches!(refused, SealError::NodeKeyExposed { .. }), "{refused:?}");
}

#[test]
fn a_file_that_is_no_identity_is_refused_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.key");
    let key = NodeKey::generate();
    let text = key.to_text();
    let text = text.expose_text().unwrap();
    let two = text.repeat(2);
    let cases: [(&str, &[u8]); 7] = [
        ("empty", b""),
        ("only comments", b"# nothing here\n\n"),
        ("two keys", two.as_bytes()),
        ("a recipient", b"age1qqqq\n"),
        ("a key cut short", &text.as_bytes()[..text.len() - 3]),
        ("not text", b"\xff\xfe"),
        ("far too long", &[b'#'; 8_192]),
    ];
    for (what, bytes) in cases {
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let refused = NodeKey::load_or_create(&path).expect_err(what);
        assert!(matches!(refused, SealError::NodeKeyMalformedFile { .. }), "{what}: {refused:?}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{what}");
    }
}

#[test]
fn a_missing_file_is_made_by_load_or_create_only_and_a_missing_directory_never() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("node.key");
    assert!(matches!(NodeKey::load(&path).unwrap_err(), SealError::Io { .. }));
    let nowhere = directory.path().join("missing/node.key");
    assert!(matches!(NodeKey::load_or_create(&nowhere).unwrap_err(), SealError::Io { .. }));
}

#[test]
fn an_identity_file_may_have_comments_and_empty_lines_around_its_key() {
    let (text, recipient) = offline_identity();
    let text = text.expose_text().unwrap();
    assert!(
        text.starts_with(&format!("# public key: {recipient}\nAGE-SECRET-KEY-1")),
        "as age-keygen writes it"
    );
    let commented = secret(&format!("# kept in the safe\n\n  {}\r\n\n", text.lines().last().unwrap()));
    assert_eq!(NodeKey::parse(&commented).unwrap().recipient(), recipient);
}
