//! The keyring: who opens it, rotation, fingerprints, custody.

use uuid::Uuid;

use super::{Place, secret, shows};
use crate::escrow::ids::KeyId;
use crate::seal::{DATA_KEYS_MAX, Keyring, NodeKey, SealError, offline_identity};

/// A keyring sealed to two members and the offline identity, and the three private identities.
fn sealed_to_three() -> (Keyring, Vec<u8>, [NodeKey; 3]) {
    let (offline_text, offline_recipient) = offline_identity();
    let members = [NodeKey::generate(), NodeKey::generate()];
    let recipients = [members[0].recipient(), members[1].recipient(), offline_recipient];
    let keyring = Keyring::generate().unwrap();
    let age_file = keyring.seal_to(&recipients).unwrap();
    let [first, second] = members;
    (keyring, age_file, [first, second, NodeKey::parse(&offline_text).unwrap()])
}

#[test]
fn each_member_and_the_offline_identity_alone_open_the_keyring_and_what_it_sealed() {
    let (keyring, age_file, identities) = sealed_to_three();
    let place = Place::sample();
    let sealed = keyring.seal(&place.context(), &secret("a recovery secret")).unwrap();
    for identity in &identities {
        let opened = Keyring::open(&age_file, identity).unwrap();
        let plaintext = opened.open_sealed(&place.context(), &sealed).unwrap();
        assert_eq!(plaintext.expose(), b"a recovery secret");
        assert_eq!(opened.realm, keyring.realm);
    }
}

#[test]
fn one_who_is_no_member_does_not_open_the_keyring() {
    let (_, age_file, _) = sealed_to_three();
    let refused = Keyring::open(&age_file, &NodeKey::generate()).unwrap_err();
    assert!(matches!(refused, SealError::NotARecipient), "{refused:?}");
}

#[test]
fn a_removed_member_does_not_open_the_keyring_that_was_sealed_without_it() {
    let (keyring, _, [kept, removed, offline]) = sealed_to_three();
    let rotated = keyring.rotated().unwrap();
    let age_file = rotated.seal_to(&[kept.recipient(), offline.recipient()]).unwrap();
    assert!(matches!(Keyring::open(&age_file, &removed).unwrap_err(), SealError::NotARecipient));
    assert_eq!(Keyring::open(&age_file, &kept).unwrap().current_version(), 2);
}

#[test]
fn a_keyring_that_was_flipped_or_cut_anywhere_does_not_open() {
    let (_, age_file, [member, ..]) = sealed_to_three();
    for at in 0..age_file.len() {
        let mut flipped = age_file.clone();
        flipped[at] ^= 1;
        assert_refused(&flipped, &member, &format!("byte {at} flipped"));
        assert_refused(&age_file[..at], &member, &format!("cut to {at} bytes"));
    }
    let mut longer = age_file.clone();
    longer.push(0);
    assert_refused(&longer, &member, "one byte longer");
    longer.resize(1 << 20, 0);
    assert_refused(&longer, &member, "a megabyte");
}

/// Damage to the member's own stanza looks like a keyring for others; any other is seen as damage.
fn assert_refused(age_file: &[u8], member: &NodeKey, what: &str) {
    let refused = Keyring::open(age_file, member).expect_err(what);
    let named = matches!(
        refused,
        SealError::KeyringDamaged(_) | SealError::KeyringMalformed(_) | SealError::NotARecipient
    );
    assert!(named, "{what}: {refused:?}");
}

#[test]
fn recipients_are_checked_before_anything_is_sealed() {
    let keyring = Keyring::generate().unwrap();
    let member = NodeKey::generate().recipient();
    assert!(matches!(keyring.seal_to(&[]).unwrap_err(), SealError::NoRecipients));
    for wrong in ["", "age1", "age1qqqq", "not a key", &member[..member.len() - 1], "AGE-SECRET-KEY-1QQ"] {
        let refused = keyring.seal_to(&[member.clone(), wrong.to_owned()]).unwrap_err();
        assert!(
            matches!(&refused, SealError::Recipient { recipient, .. } if recipient == wrong),
            "{refused:?}"
        );
    }
}

/// Public keys with which everybody shares the same secret: the points of small order of Curve25519 (0, 1, two of
/// order 8, p - 1, p, p + 1).
const SMALL_ORDER_RECIPIENTS: [&str; 7] = [
    "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq5cu47z",
    "age1qyqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqj7vrya",
    "age1ur4h5lpmgxu2u9jku0a0r87ydtdqnr0tnsetrlvxvgz3vh6fhqqqzyt4v9",
    "age1t7wft09r2zxzfvwsk92eeql0tvzyghxytqwgapkcyf8dm5ylz9ts6wm9s8",
    "age1anlllllllllllllllllllllllllllllllllllllllllllllllals4n2t7m",
    "age1ahlllllllllllllllllllllllllllllllllllllllllllllllalsn46ayy",
    "age1amlllllllllllllllllllllllllllllllllllllllllllllllalselrwrv",
];

#[test]
fn a_recipient_everybody_could_open_for_is_refused() {
    let keyring = Keyring::generate().unwrap();
    for wrong in SMALL_ORDER_RECIPIENTS {
        let refused = keyring.seal_to(&[wrong.to_owned()]).unwrap_err();
        let named = matches!(&refused, SealError::Recipient { reason, .. } if reason.contains("small order"));
        assert!(named, "{wrong}: {refused:?}");
    }
}

#[test]
fn a_recipient_given_twice_counts_once() {
    let keyring = Keyring::generate().unwrap();
    let member = NodeKey::generate().recipient();
    let twice = keyring.seal_to(&[member.clone(), member.clone()]).unwrap();
    assert_eq!(String::from_utf8_lossy(&twice).matches("-> X25519 ").count(), 1);
}

#[test]
fn rotation_keeps_old_records_readable_and_seals_new_ones_with_a_new_key() {
    let place = Place::sample();
    let first = Keyring::generate().unwrap();
    let old = first.seal(&place.context(), &secret("old")).unwrap();
    let second = first.rotated().unwrap().rotated().unwrap();
    let new = second.seal(&place.context(), &secret("new")).unwrap();
    assert_eq!((old.key_version, new.key_version, second.current_version()), (1, 3, 3));
    assert_eq!(second.open_sealed(&place.context(), &old).unwrap().expose(), b"old");
    assert_eq!(second.open_sealed(&place.context(), &new).unwrap().expose(), b"new");
    let behind = first.open_sealed(&place.context(), &new).unwrap_err();
    assert!(matches!(behind, SealError::UnknownKeyVersion { version: 3, current: 1 }), "{behind:?}");
}

#[test]
fn a_keyring_holds_a_bounded_number_of_data_keys_and_still_opens_when_full() {
    let member = NodeKey::generate();
    let mut keyring = Keyring::generate().unwrap();
    while keyring.data_keys.len() < DATA_KEYS_MAX {
        keyring = keyring.rotated().unwrap();
    }
    assert!(matches!(keyring.rotated().unwrap_err(), SealError::TooManyDataKeys));
    let recipients: Vec<String> = (0..64).map(|_| NodeKey::generate().recipient()).collect();
    let age_file = keyring.seal_to(&[recipients, vec![member.recipient()]].concat()).unwrap();
    assert_eq!(Keyring::open(&age_file, &member).unwrap().data_keys.len(), DATA_KEYS_MAX);
}

#[test]
fn fingerprints_are_equal_for_equal_secrets_across_rotation_and_differ_between_keyrings() {
    let keyring = Keyring::generate().unwrap();
    let fingerprint = keyring.fingerprint(&secret("s"));
    assert_eq!(keyring.rotated().unwrap().fingerprint(&secret("s")), fingerprint);
    assert_ne!(keyring.fingerprint(&secret("t")), fingerprint);
    assert_ne!(Keyring::generate().unwrap().fingerprint(&secret("s")), fingerprint);
}

#[test]
fn custody_is_proven_only_by_the_same_nonce_node_key_secret_and_keyring() {
    let keyring = Keyring::generate().unwrap();
    let (key_id, other_id) = (KeyId(Uuid::from_bytes([1; 16])), KeyId(Uuid::from_bytes([2; 16])));
    let held = secret("held");
    let proof = keyring.prove_custody(b"nonce", 7, key_id, &held);
    let rotated = keyring.rotated().unwrap();
    assert!(rotated.verify_custody(&proof, b"nonce", 7, key_id, &held));
    assert!(!keyring.verify_custody(&proof, b"other", 7, key_id, &held), "a replayed proof");
    assert!(!keyring.verify_custody(&proof, b"nonce", 8, key_id, &held), "another node's proof");
    assert!(!keyring.verify_custody(&proof, b"nonce", 7, other_id, &held), "another key's proof");
    assert!(!keyring.verify_custody(&proof, b"nonce", 7, key_id, &secret("hel")), "another secret");
    assert!(!Keyring::generate().unwrap().verify_custody(&proof, b"nonce", 7, key_id, &held));
    assert!(!keyring.verify_custody(&proof[..31], b"nonce", 7, key_id, &held), "a proof cut short");
    assert!(!keyring.verify_custody(&[], b"nonce", 7, key_id, &held), "no proof");
    assert!(!keyring.verify_custody(&keyring.fingerprint(&held).0, b"nonce", 7, key_id, &held));
}

#[test]
fn debug_and_errors_show_no_keys() {
    let (keyring, age_file, [member, ..]) = sealed_to_three();
    let place = Place::sample();
    let sealed = keyring.seal(&place.context(), &secret("a recovery secret")).unwrap();
    let mut moved = place.clone();
    moved.part = crate::seal::Part::Package;
    let mut printed = format!("{keyring:?} {member:?} {sealed:?} {:?}", place.context());
    for error in [
        keyring.open_sealed(&moved.context(), &sealed).unwrap_err(),
        Keyring::open(&age_file[..age_file.len() - 1], &member).unwrap_err(),
        NodeKey::parse(&secret("AGE-SECRET-KEY-1SECRETSECRET")).unwrap_err(),
    ] {
        printed.push_str(&format!("{error} {error:?}"));
    }
    let text = member.to_text();
    let (_, identity) = text.expose_text().unwrap().split_once("AGE-SECRET-KEY-1").unwrap();
    assert!(shows(identity, identity.as_bytes()), "the check itself sees a key");
    assert!(!shows(&printed, identity.as_bytes()), "{printed}");
    assert!(!shows(&printed, keyring.fingerprint_key.bytes()), "{printed}");
    for key in keyring.data_keys.values() {
        assert!(!shows(&printed, key.bytes()), "{printed}");
    }
    assert!(!shows(&printed, b"a recovery secret") && !shows(&printed, b"SECRETSECRET"), "{printed}");
}

#[test]
fn without_its_old_data_keys_a_keyring_opens_what_the_current_one_sealed_and_nothing_older() {
    let place = Place::sample();
    let first = Keyring::generate().unwrap();
    let old = first.seal(&place.context(), &secret("a recovery secret")).unwrap();
    let rotated = first.rotated().unwrap();
    let new = rotated.seal(&place.context(), &secret("a recovery secret")).unwrap();
    assert!(rotated.has_old_data_keys() && !first.has_old_data_keys());

    let member = NodeKey::generate();
    let age_file = rotated.without_old_data_keys().seal_to(&[member.recipient()]).unwrap();
    let last = Keyring::open(&age_file, &member).unwrap();
    assert_eq!((last.current_version(), last.has_old_data_keys()), (2, false));
    assert_eq!(last.fingerprint(&secret("s")), first.fingerprint(&secret("s")));
    assert_eq!(last.open_sealed(&place.context(), &new).unwrap().expose(), b"a recovery secret");
    let refused = last.open_sealed(&place.context(), &old).unwrap_err();
    assert!(matches!(refused, SealError::UnknownKeyVersion { version: 1, .. }), "{refused}");
    assert_eq!(last.rotated().unwrap().current_version(), 3, "a version is never used twice");
}
