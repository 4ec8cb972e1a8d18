//! Golden vectors: bytes that an earlier version wrote must keep meaning what they meant, and each broken one must
//! fail in the way that is named beside it.
//!
//! The keys in them are patterns nobody would draw: 0x11 for the first data key, 0x12 for the second, 0xaa for the
//! fingerprint key.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER_PERMISSIVE;

use super::{Place, secret};
use crate::escrow::records::Sealed;
use crate::seal::keyring::Key;
use crate::seal::{Keyring, Part, SealError};

const KEYRINGS: &str = include_str!("../testdata/keyring-v1.txt");
const RECORDS: &str = include_str!("../testdata/sealed-v1.txt");
/// Of the text `a recovery secret`; computed outside this program from the construction in `fingerprint.rs`.
const FINGERPRINT: &str = "f952e04a4894d0f21fee2a60c301dbcf733e318dfaa57ac95deee6697c8a3612";
/// As above, with a nonce of 16 bytes of 0x55, node 3 and key id 16 bytes of 0x22.
const CUSTODY_PROOF: &str = "383dcf7bd29f5a1647b0871b781d0e6f2785489b636e624d9363e278103cf757";

/// The lines `expectation hexadecimal…` of a vector file; the fields of the second part are separated by spaces.
fn vectors(text: &str) -> impl Iterator<Item = (&str, Vec<Vec<u8>>)> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let mut words = line.split(' ');
        let expectation = words.next().unwrap();
        (
            expectation,
            words
                .map(|word| if word == "-" { "" } else { word })
                .map(|word| HEXLOWER_PERMISSIVE.decode(word.as_bytes()).unwrap())
                .collect(),
        )
    })
}

fn patterned() -> Keyring {
    Keyring {
        realm: uuid::Uuid::from_bytes([0xee; 16]),
        fingerprint_key: Key::copied_from(&[0xaa; 32]),
        data_keys: BTreeMap::from([(1, Key::copied_from(&[0x11; 32])), (2, Key::copied_from(&[0x12; 32]))]),
    }
}

fn outcome<T>(result: Result<T, SealError>) -> &'static str {
    match result {
        Ok(_) => "opens",
        Err(SealError::KeyringMalformed(_)) => "malformed",
        Err(SealError::KeyringUnknownFormat(_)) => "unknown-format",
        Err(SealError::Tampered { .. }) => "tampered",
        Err(SealError::UnknownKeyVersion { .. }) => "unknown-key-version",
        Err(_) => "other",
    }
}

#[test]
fn keyrings_of_format_1_keep_decoding() {
    let mut seen = 0;
    for (expected, fields) in vectors(KEYRINGS) {
        let [bytes] = &fields[..] else { panic!("one field a line") };
        assert_eq!(outcome(Keyring::decode(bytes)), expected, "{bytes:02x?}");
        if expected == "opens" {
            let patterned = patterned();
            assert_eq!(*patterned.encode(), *bytes, "and are written as they were");
            let decoded = Keyring::decode(bytes).unwrap();
            assert_eq!(decoded.fingerprint(&secret("s")), patterned.fingerprint(&secret("s")));
        }
        seen += 1;
    }
    assert!(seen >= 7, "the vectors were read");
}

#[test]
fn records_sealed_by_version_1_keep_opening() {
    let keyring = patterned();
    let mut seen = 0;
    for (expected, fields) in vectors(RECORDS) {
        let [part, version, nonce, ciphertext, plaintext] = &fields[..] else { panic!("five fields a line") };
        let place =
            Place { part: if part == &[1] { Part::Secret } else { Part::Package }, ..Place::sample() };
        let sealed = Sealed {
            key_version: u32::from_be_bytes(version[..].try_into().unwrap()),
            nonce: nonce[..].try_into().unwrap(),
            ciphertext: ciphertext.clone(),
        };
        let opened = keyring.open_sealed(&place.context(), &sealed);
        if let Ok(opened) = &opened {
            assert_eq!(opened.expose(), plaintext);
        }
        assert_eq!(outcome(opened), expected, "{sealed:?}");
        seen += 1;
    }
    assert!(seen >= 5, "the vectors were read");
}

#[test]
fn records_are_sealed_as_they_were() {
    let (_, fields) = vectors(RECORDS)
        .find(|(expected, fields)| *expected == "opens" && fields[1] == [0, 0, 0, 2])
        .unwrap();
    let nonce = fields[2][..].try_into().unwrap();
    let place = Place::sample();
    let sealed = patterned().seal_with_nonce(&place.context(), &secret("a recovery secret"), nonce).unwrap();
    assert_eq!(sealed.ciphertext, fields[3]);
}

#[test]
fn fingerprints_and_custody_proofs_stay_what_they_were() {
    let keyring = patterned();
    let fingerprint = keyring.fingerprint(&secret("a recovery secret"));
    assert_eq!(fingerprint.to_string(), FINGERPRINT);
    let proof = keyring.prove_custody(&[0x55; 16], 3, Place::sample().key_id, &secret("a recovery secret"));
    assert_eq!(data_encoding::HEXLOWER.encode(&proof), CUSTODY_PROOF);
}
