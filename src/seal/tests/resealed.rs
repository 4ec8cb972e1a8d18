//! Sealing a kept key under the current data key.

use uuid::Uuid;

use super::{Place, secret};
use crate::escrow::ids::Timestamp;
use crate::escrow::records::{KeyRecord, KeyState, LogPosition};
use crate::seal::{Keyring, Part, SealError, context_of};

/// A kept key with a package.
fn kept(keyring: &Keyring) -> KeyRecord {
    let place = Place::sample();
    let package = Place { part: Part::Package, ..place.clone() };
    let kept = secret("a recovery secret");
    KeyRecord {
        id: place.key_id,
        machine: place.machine.clone(),
        volume: place.volume.clone(),
        kind: place.kind,
        sealed: keyring.seal(&place.context(), &kept).unwrap(),
        sealed_package: Some(keyring.seal(&package.context(), &secret("a package")).unwrap()),
        fingerprint: keyring.fingerprint(&kept),
        state: KeyState::Active,
        escrowed_at: Timestamp(1),
        escrowed_by: "spiffe://acme/agent/PC-0001".parse().unwrap(),
        position: LogPosition::default(),
    }
}

#[test]
fn a_key_sealed_again_is_the_same_secret_and_package_under_the_current_data_key_alone() {
    let keyring = Keyring::generate().unwrap();
    let key = kept(&keyring);
    let rotated = keyring.rotated().unwrap();
    let again = rotated.seal_again(&key).unwrap();
    let key = KeyRecord { sealed: again.sealed, sealed_package: again.sealed_package, ..key };
    assert!(key.is_sealed_under(2));
    let package = key.sealed_package.as_ref().unwrap();
    let last = rotated.without_old_data_keys();
    let opened = |part, sealed| last.open_sealed(&context_of(&key, part), sealed).unwrap().expose().to_vec();
    assert_eq!(opened(Part::Secret, &key.sealed), b"a recovery secret");
    assert_eq!(opened(Part::Package, package), b"a package");
    assert!(
        keyring.open_sealed(&context_of(&key, Part::Secret), &key.sealed).is_err(),
        "the old one does not"
    );
}

#[test]
fn what_does_not_open_or_is_not_what_its_fingerprint_says_is_not_sealed_again() {
    let keyring = Keyring::generate().unwrap();
    let rotated = keyring.rotated().unwrap();
    let refused = |change: fn(&mut KeyRecord)| {
        let mut key = kept(&keyring);
        change(&mut key);
        rotated.seal_again(&key).unwrap_err()
    };
    let tampered = [
        refused(|key| key.sealed.ciphertext[0] ^= 1),
        refused(|key| key.sealed_package.as_mut().unwrap().ciphertext[0] ^= 1),
        refused(|key| key.id = crate::escrow::ids::KeyId(Uuid::nil())),
        refused(|key| key.fingerprint.0[0] ^= 1),
    ];
    for error in tampered {
        assert!(matches!(error, SealError::Tampered { .. }), "{error}");
    }
    let unknown = refused(|key| key.sealed.key_version = 7);
    assert!(matches!(unknown, SealError::UnknownKeyVersion { version: 7, .. }), "{unknown}");
}
