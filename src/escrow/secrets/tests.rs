use proptest::prelude::*;

use super::*;

fn accept(kind: SecretKind, text: &str) -> String {
    let canonical = canonical(kind, &Secret::from(text.to_owned())).unwrap();
    canonical.expose_text().unwrap().to_owned()
}

fn refuse(kind: SecretKind, text: &str) -> String {
    canonical(kind, &Secret::from(text.to_owned())).unwrap_err().to_string()
}

fn text(secret: &Secret) -> String {
    secret.expose_text().unwrap().to_owned()
}

const PASSWORD: &str = "000011-000022-000033-000044-000055-000066-000077-720885";
const SHAPE: &str = "secret: 8 groups of 6 digits (0-9): ";

#[test]
fn every_kind_has_a_name_that_parses_and_the_error_lists_them() {
    for kind in SecretKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
    }
    assert_eq!(
        "BitLocker".parse::<SecretKind>().unwrap_err().to_string(),
        "kind: one of bitlocker-password, bitlocker-package, tpm-owner, luks-recovery, filevault-recovery, generic"
    );
}

#[test]
fn a_bitlocker_password_is_accepted_however_it_is_separated() {
    let kind = SecretKind::BitlockerPassword;
    for separator in ["-", " ", "", " - ", "\n", "\t"] {
        assert_eq!(accept(kind, &PASSWORD.replace('-', separator)), PASSWORD);
    }
    assert_eq!(accept(kind, &format!("{PASSWORD}\r\n")), PASSWORD);
}

#[test]
fn a_bitlocker_error_names_the_group_and_the_character() {
    let kind = SecretKind::BitlockerPassword;
    for (from, to, fault) in [
        ("000033", "000034", "group 3 has a wrong digit (it is not divisible by 11)"),
        ("720885", "720896", "group 8 is too large (it must be below 720896)"),
        ("000022", "00O022", "group 2, character 3 is none of them"),
        ("000022", "00022", "group 2 has 5"),
        ("000022", "0000220", "group 2 has 7"),
        ("000022", "\u{0660}00022", "group 2, character 1 is none of them"),
        ("-000022", "", "only 7 groups were given"),
        ("000022", "000022-000022", "more groups were given"),
        ("000022-000033-000044", "000022000033000", "group 4 has 3"),
    ] {
        assert_eq!(refuse(kind, &PASSWORD.replace(from, to)), format!("{SHAPE}{fault}"), "{to}");
    }
}

#[test]
fn a_luks_key_is_written_in_lower_case_with_hyphens() {
    let kind = SecretKind::LuksRecovery;
    let key = "cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv";
    assert_eq!(accept(kind, &key.to_uppercase().replace('-', "")), key);
    assert_eq!(
        refuse(kind, &key.replacen("jkln", "jkma", 1)),
        "secret: 8 groups of 8 modhex letters (cbdefghijklnrtuv): group 2, character 3 is none of them"
    );
    assert!(refuse(kind, &key[..62]).ends_with("only 7 groups were given"));
    assert!(refuse(kind, &key[..60]).ends_with("group 7 has 6"));
}

#[test]
fn a_luks_key_spells_its_bytes_as_systemd_does() {
    let mut bytes = [0; 32];
    bytes[0] = 0x01;
    bytes[31] = 0xfe;
    let key = text(&luks::from_bytes(bytes));
    assert_eq!(key, "cbcccccc-cccccccc-cccccccc-cccccccc-cccccccc-cccccccc-cccccccc-ccccccvu");
}

#[test]
fn a_filevault_key_is_written_in_upper_case_with_hyphens() {
    let kind = SecretKind::FilevaultRecovery;
    let key = "AB12-CD34-EF56-GH78-IJ90-KLMN";
    assert_eq!(accept(kind, &key.to_lowercase().replace('-', " ")), key);
    assert_eq!(
        refuse(kind, "AB12-CD34-EF5_-GH78-IJ90-KLMN"),
        "secret: 6 groups of 4 letters or digits (A-Z, 0-9): group 3, character 4 is none of them"
    );
}

#[test]
fn base64_is_checked_and_bounded() {
    let kind = SecretKind::TpmOwner;
    assert_eq!(accept(kind, "AAEC\r\n Aw==\n"), "AAECAw==");
    for (input, fault) in [
        ("AA*C", "character 3 is none of its characters"),
        ("AAECA", "its length is not a multiple of 4"),
        ("AAECAx==", "its padding or last character is wrong, at character 6"),
        ("AA==AAEC", "there is padding before its end"),
        (" ", "it has 0"),
    ] {
        let error = refuse(kind, input);
        assert!(error.starts_with("secret: base64 of 1 to 64 bytes: "), "{error}");
        assert!(error.ends_with(fault), "{error}");
    }
    let bytes = |length| data_encoding::BASE64.encode(&vec![7; length]);
    assert_eq!(accept(kind, &bytes(64)), bytes(64));
    assert!(refuse(kind, &bytes(65)).ends_with("it has 65"));
    assert_eq!(accept(SecretKind::BitlockerPackage, &bytes(65_536)).len(), SECRET_MAX_BYTES);
    assert!(refuse(SecretKind::BitlockerPackage, &bytes(65_537)).ends_with("it has 65537"));
}

#[test]
fn a_generic_secret_is_text_of_bounded_length() {
    let kind = SecretKind::Generic;
    assert_eq!(accept(kind, "  line one\n\tline two \r\n\n"), "  line one\n\tline two ");
    assert_eq!(refuse(kind, "\r\n"), "secret: not empty");
    assert_eq!(refuse(kind, "ab\u{1b}[2J"), "secret: text without control characters: character 3 is one");
    assert_eq!(accept(kind, &"x".repeat(4_096)).len(), 4_096);
    assert_eq!(refuse(kind, &"x".repeat(4_097)), "secret: at most 4096 bytes, not 4097");
    let error = canonical(kind, &Secret::new(vec![0xff])).unwrap_err();
    assert_eq!(error.to_string(), "secret: UTF-8 text");
}

#[test]
fn a_key_package_is_bounded() {
    assert_eq!(package(&[1]), Ok(()));
    assert_eq!(package(&[0; 65_536]), Ok(()));
    assert_eq!(package(&[]).unwrap_err().to_string(), "package: 1 to 65536 bytes, not 0");
    assert_eq!(package(&[0; 65_537]).unwrap_err().to_string(), "package: 1 to 65536 bytes, not 65537");
}

proptest! {
    #[test]
    fn every_generated_key_is_canonical(halves: [u16; 8], bytes: [u8; 32], few: [u8; 24]) {
        for (kind, secret) in [
            (SecretKind::BitlockerPassword, bitlocker::from_halves(halves)),
            (SecretKind::LuksRecovery, luks::from_bytes(bytes)),
            (SecretKind::FilevaultRecovery, filevault::from_bytes(few)),
        ] {
            prop_assert_eq!(text(&canonical(kind, &secret).unwrap()), text(&secret));
        }
    }

    #[test]
    fn the_sixth_digit_of_a_bitlocker_group_is_its_check_digit(halves: [u16; 8]) {
        for group in text(&bitlocker::from_halves(halves)).split('-') {
            let x: Vec<i32> = group.bytes().map(|c| i32::from(c - b'0')).collect();
            prop_assert_eq!((x[0] - x[1] + x[2] - x[3] + x[4]).rem_euclid(11), x[5]);
        }
    }

    #[test]
    fn one_wrong_digit_in_a_bitlocker_password_is_found_in_its_group(
        halves: [u16; 8], group in 0..8_usize, position in 0..6_usize, by in 1..10_u8,
    ) {
        let mut digits = text(&bitlocker::from_halves(halves)).into_bytes();
        let digit = &mut digits[group * 7 + position];
        *digit = b'0' + (*digit - b'0' + by) % 10;
        let error = canonical(SecretKind::BitlockerPassword, &Secret::new(digits)).unwrap_err();
        let group_named = format!("{SHAPE}group {} ", group + 1);
        prop_assert!(error.to_string().starts_with(&group_named));
    }

    #[test]
    fn separators_and_case_do_not_matter(
        halves: [u16; 8], bytes: [u8; 32], few: [u8; 24], separators in proptest::collection::vec("[- ]{0,3}", 8),
    ) {
        for (kind, secret) in [
            (SecretKind::BitlockerPassword, bitlocker::from_halves(halves)),
            (SecretKind::LuksRecovery, luks::from_bytes(bytes)),
            (SecretKind::FilevaultRecovery, filevault::from_bytes(few)),
        ] {
            let key = text(&secret);
            let typed: String = key.split('-').zip(&separators).map(|(group, s)| format!("{group}{s}")).collect();
            prop_assert_eq!(accept(kind, &typed), key.clone());
            if kind != SecretKind::BitlockerPassword {
                prop_assert_eq!(accept(kind, &typed.to_lowercase()), key.clone());
                prop_assert_eq!(accept(kind, &typed.to_uppercase()), key);
            }
        }
    }

    #[test]
    fn canonical_is_idempotent_and_its_errors_show_nothing(kind in 0..6_usize, typed in "\\PC{0,40}[\r\n]{0,3}") {
        let kind = SecretKind::ALL[kind];
        match canonical(kind, &Secret::from(typed.clone())) {
            Ok(once) => {
                prop_assert_eq!(text(&canonical(kind, &once).unwrap()), text(&once));
                prop_assert!(once.expose().len() <= SECRET_MAX_BYTES);
            }
            Err(error) => {
                let typed = typed.trim();
                prop_assert!(typed.len() < 16 || !error.to_string().contains(typed));
            }
        }
    }
}
