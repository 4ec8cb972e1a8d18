//! Sealed records: they open where they belong, and nowhere else.

use std::sync::LazyLock;

use proptest::prelude::*;
use uuid::Uuid;

use super::{Place, secret};
use crate::escrow::ids::KeyId;
use crate::escrow::records::Sealed;
use crate::escrow::secrets::SecretKind;
use crate::seal::{Keyring, Part, SealError};
use crate::secret::Secret;

static KEYRING: LazyLock<Keyring> = LazyLock::new(|| Keyring::generate().unwrap().rotated().unwrap());

fn assert_tampered(keyring: &Keyring, place: &Place, sealed: &Sealed, what: &str) {
    let refused = keyring.open_sealed(&place.context(), sealed).expect_err(what);
    let named = matches!(&refused, SealError::Tampered { key_id } if *key_id == place.key_id);
    assert!(named, "{what}: {refused:?}");
}

#[test]
fn two_records_whose_sealed_bytes_were_swapped_do_not_open() {
    let one = Place::sample();
    let other = Place { key_id: KeyId(Uuid::from_bytes([0x33; 16])), ..one.clone() };
    let of_one = KEYRING.seal(&one.context(), &secret("one")).unwrap();
    let of_other = KEYRING.seal(&other.context(), &secret("other")).unwrap();
    assert_tampered(&KEYRING, &one, &of_other, "the other's bytes under one");
    assert_tampered(&KEYRING, &other, &of_one, "one's bytes under the other");
}

#[test]
fn a_record_is_bound_to_every_field_of_its_place() {
    let place = Place::sample();
    let sealed = KEYRING.seal(&place.context(), &secret("s")).unwrap();
    let elsewhere = [
        ("machine", Place { machine: "PC-0002".parse().unwrap(), ..place.clone() }),
        ("volume", Place { volume: "D:".parse().unwrap(), ..place.clone() }),
        ("key id", Place { key_id: KeyId(Uuid::from_bytes([0x23; 16])), ..place.clone() }),
        ("kind", Place { kind: SecretKind::Generic, ..place.clone() }),
        ("part", Place { part: Part::Package, ..place.clone() }),
        // The same letters, divided otherwise.
        (
            "division",
            Place { machine: "PC-0001C".parse().unwrap(), volume: ":".parse().unwrap(), ..place.clone() },
        ),
    ];
    for (field, elsewhere) in &elsewhere {
        assert_tampered(&KEYRING, elsewhere, &sealed, field);
    }
    let renamed = Sealed { key_version: 1, ..sealed.clone() };
    assert_tampered(&KEYRING, &place, &renamed, "data key version");
    let mut other_realm = KEYRING.rotated().unwrap();
    other_realm.realm = Uuid::from_bytes([0x44; 16]);
    assert_tampered(&other_realm, &place, &sealed, "realm");
    let unknown = Sealed { key_version: 9, ..sealed };
    let refused = KEYRING.open_sealed(&place.context(), &unknown).unwrap_err();
    assert!(matches!(refused, SealError::UnknownKeyVersion { version: 9, current: 2 }), "{refused:?}");
}

#[test]
fn a_record_that_was_flipped_or_cut_anywhere_does_not_open() {
    let place = Place::sample();
    let sealed = KEYRING.seal(&place.context(), &secret("123456-123456")).unwrap();
    for at in 0..sealed.ciphertext.len() {
        let mut flipped = sealed.clone();
        flipped.ciphertext[at] ^= 1;
        assert_tampered(&KEYRING, &place, &flipped, &format!("byte {at} flipped"));
        let mut cut = sealed.clone();
        cut.ciphertext.truncate(at);
        assert_tampered(&KEYRING, &place, &cut, &format!("cut to {at} bytes"));
    }
    for at in 0..sealed.nonce.len() {
        let mut flipped = sealed.clone();
        flipped.nonce[at] ^= 1;
        assert_tampered(&KEYRING, &place, &flipped, &format!("nonce byte {at} flipped"));
    }
    let mut longer = sealed;
    longer.ciphertext.push(0);
    assert_tampered(&KEYRING, &place, &longer, "one byte longer");
}

#[test]
fn sealing_the_same_secret_twice_shows_nothing_in_common() {
    let place = Place::sample();
    let [one, two] = [(); 2].map(|()| KEYRING.seal(&place.context(), &secret("same")).unwrap());
    assert_ne!(one.nonce, two.nonce);
    assert_ne!(one.ciphertext, two.ciphertext);
}

fn kind() -> impl Strategy<Value = SecretKind> {
    prop::sample::select(vec![
        SecretKind::BitlockerPassword,
        SecretKind::BitlockerPackage,
        SecretKind::TpmOwner,
        SecretKind::LuksRecovery,
        SecretKind::FilevaultRecovery,
        SecretKind::Generic,
    ])
}

prop_compose! {
    fn place()(
        machine in "[A-Za-z0-9][A-Za-z0-9._-]{0,62}",
        volume in "[!-~]{1,128}",
        key_id in any::<[u8; 16]>(),
        kind in kind(),
        is_package in any::<bool>(),
    ) -> Place {
        Place {
            machine: machine.parse().unwrap(),
            volume: volume.parse().unwrap(),
            key_id: KeyId(Uuid::from_bytes(key_id)),
            kind,
            part: if is_package { Part::Package } else { Part::Secret },
        }
    }
}

proptest! {
    #[test]
    fn what_is_sealed_opens_again_in_its_place_only(
        here in place(),
        there in place(),
        plaintext in prop::collection::vec(any::<u8>(), 0..2_000),
    ) {
        let sealed = KEYRING.seal(&here.context(), &Secret::new(plaintext.clone())).unwrap();
        let opened = KEYRING.open_sealed(&here.context(), &sealed).unwrap();
        prop_assert_eq!(opened.expose(), &plaintext[..]);
        prop_assert_eq!(sealed.ciphertext.len(), plaintext.len() + 16);
        prop_assert!(KEYRING.open_sealed(&there.context(), &sealed).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_open_as_a_keyring_nor_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        // With the right version byte in front, so that more than the first check is reached.
        let with_version = [&[1], &bytes[..]].concat();
        for bytes in [&bytes, &with_version] {
            if let Ok(keyring) = Keyring::decode(bytes) {
                prop_assert_eq!(&keyring.encode()[..], &bytes[..]);
            }
        }
    }
}
