//! The schema says what the types say, and what a document may not say is refused by the path of it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::escrow::compliance::Code;
use crate::escrow::compliance::facts::{
    ERROR_TEXT_MAX_BYTES, PROTECTORS_MAX, REASONS_MAX, RECOVERY_KEYS_MAX, TEXT_MAX_BYTES, USERS_MAX,
    VOLUMES_MAX,
};
use crate::escrow::compliance::words::{
    Cipher, Conversion, DriveRule, Enforcement, MachineType, Protection, Protector, VolumeKind,
};

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

/// The example that says everything.
fn full() -> Value {
    let mut full = schema()["examples"][0].clone();
    full["error"] = json!({ "code": 5, "text": "the TPM is locked out" });
    full
}

fn parse(document: &Value) -> Result<MachineReport, Invalid> {
    MachineReport::from_json(&document.to_string())
}

/// Each object of a document: where its schema is, and where one of it stands in the full example.
const OBJECTS: [(&str, &str); 4] = [
    ("", ""),
    ("/$defs/device_policy", "/policy"),
    ("/$defs/device_error", "/error"),
    ("/$defs/volume", "/volumes/1"),
];

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

/// What the schema says of a property, with what it refers to.
fn resolved(schema: &Value, property: &Value) -> Value {
    let mut resolved = property.clone();
    if let Some(reference) = property["$ref"].as_str() {
        let referred = schema.pointer(reference.strip_prefix('#').unwrap()).expect(reference);
        for (name, value) in referred.as_object().unwrap() {
            resolved.as_object_mut().unwrap().entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    resolved
}

#[test]
fn the_examples_of_the_schema_are_documents_and_are_rendered_as_they_stand() {
    let examples = schema()["examples"].as_array().unwrap().clone();
    assert_eq!(examples.len(), 2);
    for example in &examples {
        let report = parse(example).unwrap();
        assert_eq!(MachineReport::from_json(&report.to_json()).unwrap(), report);
        assert_eq!(MachineReport::from_json(&report.to_json_pretty()).unwrap(), report);
    }
    let rendered: Value = serde_json::from_str(&parse(&full()).unwrap().to_json()).unwrap();
    let mut expected = full();
    for at in ["/at", "/volumes/1/seen_at"] {
        let text = expected.pointer(at).unwrap().as_str().unwrap().replace('Z', ".000Z");
        *expected.pointer_mut(at).unwrap() = text.into();
    }
    assert_eq!(rendered, expected);
}

#[test]
fn the_schema_and_the_types_have_the_same_fields() {
    let rendered: Value = serde_json::from_str(&parse(&full()).unwrap().to_json()).unwrap();
    for (node, place) in OBJECTS {
        let schema = schema();
        let node = schema.pointer(node).unwrap();
        assert_eq!(keys(&node["properties"]), keys(rendered.pointer(place).unwrap()), "{place}");
        assert_eq!(node["additionalProperties"], false, "{place}");

        let required: BTreeSet<&str> =
            node["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
        for (name, property) in node["properties"].as_object().unwrap() {
            let mut without = full();
            without.pointer_mut(place).unwrap().as_object_mut().unwrap().remove(name);
            let parsed = parse(&without);
            assert_eq!(parsed.is_err(), required.contains(name.as_str()), "{place}/{name}: {parsed:?}");
            let Ok(report) = parsed else { continue };
            // What is left out reads as the schema's default.
            let rendered: Value = serde_json::from_str(&report.to_json()).unwrap();
            let found = &rendered.pointer(place).unwrap()[name];
            let default = match name.as_str() {
                "method" => json!("unknown"),
                _ => resolved(&schema, property)["default"].clone(),
            };
            assert_eq!(*found, default, "{place}/{name}");
        }
    }
}

#[test]
fn the_schema_and_the_types_have_the_same_words() {
    let schema = schema();
    let in_schema = |name: &str| -> Vec<String> {
        let words = schema["$defs"][name]["enum"].as_array().unwrap();
        words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    fn in_types<T: ToString>(words: &[T]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }
    let all = [
        ("machine_type", in_types(MachineType::ALL), vec!["/type"]),
        ("enforcement", in_types(Enforcement::ALL), vec!["/policy/enforcement"]),
        ("drive_rule", in_types(DriveRule::ALL), vec!["/policy/os", "/policy/fixed", "/policy/removable"]),
        ("volume_kind", in_types(VolumeKind::ALL), vec!["/volumes/0/kind"]),
        ("protection", in_types(Protection::ALL), vec!["/volumes/0/protection"]),
        ("conversion", in_types(Conversion::ALL), vec!["/volumes/0/conversion"]),
        ("cipher", in_types(Cipher::ALL), vec!["/volumes/0/method", "/policy/cipher"]),
        ("protector", in_types(Protector::ALL), vec!["/volumes/0/protectors/0", "/policy/os_protector"]),
    ];
    let enums = schema["$defs"].as_object().unwrap().values().filter(|def| def["enum"].is_array());
    assert_eq!(enums.count(), all.len());
    for (name, words, places) in all {
        assert_eq!(in_schema(name), words, "{name}");
        for place in places {
            for word in &words {
                let mut document = full();
                *document.pointer_mut(place).unwrap() = word.as_str().into();
                parse(&document).unwrap_or_else(|error| panic!("{place}: {error}"));
            }
        }
    }
    let codes = schema["$defs"]["code"]["oneOf"].as_array().unwrap();
    assert_eq!(codes.len(), Code::ALL.len());
    for (said, code) in codes.iter().zip(Code::ALL) {
        assert_eq!((&said["const"], &said["title"]), (&json!(code.number()), &json!(code.text())));
        let mut document = full();
        document["volumes"][0]["reasons"] = json!([code.number()]);
        assert_eq!(parse(&document).unwrap().volumes[0].reasons, [code]);
    }
}

#[test]
fn the_schema_and_the_types_have_the_same_bounds() {
    let schema = schema();
    let bounds = [
        ("/$defs/text/maxLength", TEXT_MAX_BYTES),
        ("/$defs/device_error/properties/text/maxLength", ERROR_TEXT_MAX_BYTES),
        ("/$defs/device_error/properties/code/maximum", u32::MAX as usize),
        ("/properties/users/maxItems", USERS_MAX),
        ("/properties/volumes/maxItems", VOLUMES_MAX),
        ("/$defs/volume/properties/protectors/maxItems", PROTECTORS_MAX),
        ("/$defs/volume/properties/recovery_keys/maxItems", RECOVERY_KEYS_MAX),
        ("/$defs/volume/properties/reasons/maxItems", REASONS_MAX),
        ("/$defs/volume/properties/percent/maximum", 100),
    ];
    for (place, bound) in bounds {
        assert_eq!(schema.pointer(place), Some(&json!(bound)), "{place}");
    }
}

/// A document like the full one, with one value in another's place.
fn with(place: &str, value: Value) -> Value {
    let mut document = full();
    let (parent, name) = place.rsplit_once('/').unwrap();
    document.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(name.to_owned(), value);
    document
}

#[test]
fn what_is_wrong_is_named_by_its_path_and_says_what_is_expected() {
    let long = "x".repeat(TEXT_MAX_BYTES + 1);
    let text = format!("at most {TEXT_MAX_BYTES} bytes");
    let volume = |name: usize| {
        let mut volume = full()["volumes"][1].clone();
        volume["volume"] = format!("disk{name}").into();
        volume
    };
    let key = "655fc934-6a1a-4a86-819f-b086ade9f278";
    let table: Vec<(&str, Value, &str, &str)> = vec![
        ("/machine", json!(""), "machine", "1 to 63 letters"),
        ("/machine", json!("PC 1"), "machine", "1 to 63 letters"),
        ("/machine", json!(7), "machine", "expected a string"),
        ("/at", json!("yesterday"), "at", "RFC 3339"),
        ("/at", json!("1969-12-31T23:59:59Z"), "at", "from 1970 on"),
        ("/at", json!(1_700_000_000), "at", "expected a string"),
        ("/domain", json!(long), "domain", &text),
        ("/model", json!("Note\u{202e}koob"), "model", "invisible characters"),
        ("/volumes/0/label", json!("a\u{200b}b"), "volumes[0].label", "invisible characters"),
        ("/users", json!(["CORP\\ad\u{feff}a"]), "users[0]", "DOMAIN"),
        ("/name", json!("a\nb"), "name", "without control or invisible characters"),
        ("/make", json!(long), "make", &text),
        ("/model", json!(long), "model", &text),
        ("/os", json!(long), "os", &text),
        ("/agent", json!(long), "agent", &text),
        ("/type", json!("laptop"), "type", "portable"),
        ("/users", json!(["user1"]), "users[0]", r"DOMAIN\NAME"),
        ("/users", json!(vec![r"CORP\user1"; 17]), "users", "at most 16 entries, not 17"),
        ("/policy", json!(null), "policy", "expected struct DevicePolicy"),
        ("/policy/enforcement", json!("yes"), "policy.enforcement", "enforced"),
        ("/policy/cipher", json!("rot13"), "policy.cipher", "xts-aes-256"),
        ("/policy/os", json!(true), "policy.os", "expected a string"),
        ("/policy/os_protector", json!("pin"), "policy.os_protector", "tpm-pin"),
        ("/policy/fixed", json!("must"), "policy.fixed", "required"),
        ("/policy/removable", json!(""), "policy.removable", "forbidden"),
        ("/policy/grace", json!(1), "policy.grace", "unknown field"),
        ("/error/code", json!(-1), "error.code", "expected u32"),
        ("/error/code", json!(4_294_967_296_u64), "error.code", "expected u32"),
        ("/error/text", json!("x".repeat(513)), "error.text", "at most 512 bytes"),
        ("/volumes", json!({}), "volumes", "expected a sequence"),
        ("/volumes", json!((0..65).map(volume).collect::<Vec<_>>()), "volumes", "at most 64 entries, not 65"),
        (
            "/volumes",
            json!([volume(2), volume(1), volume(2)]),
            "volumes[2].volume",
            "each volume once, not disk2",
        ),
        ("/volumes/1/volume", json!("my disk"), "volumes[1].volume", "without spaces"),
        ("/volumes/1/kind", json!("usb"), "volumes[1].kind", "removable"),
        ("/volumes/1/label", json!(long), "volumes[1].label", &text),
        ("/volumes/1/protection", json!(1), "volumes[1].protection", "expected a string"),
        ("/volumes/1/conversion", json!("locked"), "volumes[1].conversion", "decryption-paused"),
        ("/volumes/1/percent", json!(101), "volumes[1].percent", "0 to 100, not 101"),
        ("/volumes/1/percent", json!(-1), "volumes[1].percent", "expected u64"),
        ("/volumes/1/percent", json!(0.5), "volumes[1].percent", "expected u64"),
        ("/volumes/1/method", json!("aes"), "volumes[1].method", "aes-256"),
        ("/volumes/1/protectors", json!(["tpm", "pin"]), "volumes[1].protectors[1]", "tpm-pin"),
        ("/volumes/1/protectors", json!(vec!["tpm"; 33]), "volumes[1].protectors", "at most 32 entries"),
        ("/volumes/1/auto_unlock", json!("on"), "volumes[1].auto_unlock", "expected a boolean"),
        ("/volumes/1/recovery_keys", json!([key, "655fc934"]), "volumes[1].recovery_keys[1]", "UUID"),
        ("/volumes/1/recovery_keys", json!(vec![key; 17]), "volumes[1].recovery_keys", "at most 16 entries"),
        ("/volumes/1/reasons", json!([0, 17]), "volumes[1].reasons[1]", "0 to 16, not 17"),
        ("/volumes/1/reasons", json!([-1]), "volumes[1].reasons[0]", "expected u64"),
        ("/volumes/1/reasons", json!(vec![1; 33]), "volumes[1].reasons", "at most 32 entries"),
        ("/volumes/1/seen_at", json!("2031-01-01T00:00:00Z"), "volumes[1].seen_at", "no later than"),
        ("/volumes/1/seen_at", json!("now"), "volumes[1].seen_at", "RFC 3339"),
        ("/volumes/1/mounted", json!(true), "volumes[1].mounted", "unknown field"),
        ("/secret", json!("000011"), "secret", "unknown field"),
    ];
    for (place, value, field, expected) in table {
        let error = parse(&with(place, value)).expect_err(place);
        assert_eq!(error.field, field, "{error}");
        assert!(error.expected.contains(expected), "{place}: {error}");
    }
}

#[test]
fn what_is_no_document_is_refused() {
    let large = format!("{}{}", full(), " ".repeat(DOCUMENT_MAX_BYTES));
    let twice = full().to_string().replacen('{', r#"{"machine": "PC-0002","#, 1);
    for (text, expected) in [
        ("", "EOF while parsing"),
        ("[]", "invalid length"),
        ("null", "expected struct MachineReport"),
        ("{", "EOF while parsing"),
        (&format!("{0}{0}", full()), "one JSON object and nothing after it"),
        (&large, "at most 131072 bytes"),
        (&twice, "duplicate field"),
    ] {
        let error = MachineReport::from_json(text).expect_err(expected);
        assert!(error.field == "document" || error.field == "machine", "{error}");
        assert!(error.expected.contains(expected), "{error}");
    }
}

#[test]
fn the_largest_document_fits() {
    let key = |number: usize| format!("00000000-0000-0000-0000-{number:012}");
    let text = "\"".repeat(TEXT_MAX_BYTES);
    let volumes: Vec<Value> = (0..VOLUMES_MAX)
        .map(|number| {
            let mut volume = full()["volumes"][1].clone();
            volume["volume"] = format!("{number:0>128}").into();
            volume["label"] = text.clone().into();
            volume["recovery_keys"] = (0..RECOVERY_KEYS_MAX).map(key).collect();
            volume["protectors"] = Protector::ALL.iter().map(|word| word.as_str()).collect();
            volume["reasons"] = Code::ALL.iter().map(|code| code.number()).collect();
            volume
        })
        .collect();
    let document = with("/volumes", volumes.into());
    assert!(document.to_string().len() < DOCUMENT_MAX_BYTES, "{}", document.to_string().len());
    parse(&document).unwrap();
}

#[test]
fn the_order_of_lists_and_their_repeats_mean_nothing() {
    let mut other = full();
    other["volumes"].as_array_mut().unwrap().reverse();
    other["volumes"][0]["reasons"] = json!([13, 1, 13]);
    other["volumes"][1]["protectors"] = json!(["recovery-password", "tpm-pin", "tpm-pin"]);
    let (one, other) = (parse(&full()).unwrap(), parse(&other).unwrap());
    assert_eq!(one, other);
    assert_eq!(one.digest(), other.digest());
    assert_eq!(one.clone().checked(), Ok(one));
}

#[test]
fn the_digest_is_of_all_that_is_said_but_for_when_and_never_changes() {
    let report = parse(&full()).unwrap();
    let digest = report.digest();
    assert_eq!(
        data_encoding::HEXLOWER.encode(&digest),
        "c8eb33294c9344baca1454836e3b2963d2b776e9f99ccee90b6177ce0061ce84"
    );
    assert_eq!(parse(&with("/at", json!("2031-01-01T00:00:00Z"))).unwrap().digest(), digest);
    for (node, place) in OBJECTS {
        let schema = schema();
        for name in keys(&schema.pointer(node).unwrap()["properties"]) {
            let other = match (place, name.as_str()) {
                ("", "at" | "policy" | "error" | "volumes") => continue,
                ("/policy", "enforcement") => json!("exempt"),
                ("/policy", "cipher") | (_, "method") => json!("hardware"),
                ("/policy", "os_protector") => json!("tpm"),
                ("/policy", _) => json!("forbidden"),
                (_, "type") => json!("server"),
                (_, "kind") => json!("fixed"),
                (_, "protection") => json!("unknown"),
                (_, "conversion") => json!("encrypted"),
                (_, "percent" | "code") => json!(41),
                (_, "auto_unlock") => json!(false),
                (_, "recovery_keys" | "seen_at") => json!(null),
                (_, "reasons" | "protectors" | "users") => json!([]),
                _ => json!("other"),
            };
            let changed = parse(&with(&format!("{place}/{name}"), other)).unwrap();
            assert_ne!(changed.digest(), digest, "{place}/{name}");
        }
    }
}

/// What an error says travels in the header of an answer.
#[test]
fn an_error_does_not_repeat_all_of_a_document() {
    let long = "é".repeat(DOCUMENT_MAX_BYTES / 4);
    let mut unknown = full();
    unknown[&long] = json!(1);
    let mut word = full();
    word["volumes"][1]["kind"] = json!(long);
    let mut list = full();
    list["volumes"] = json!(long);
    for (document, field, expected) in [
        (unknown, "é", "expected one of"),
        (word, "volumes[1].kind", "one of os, fixed, removable"),
        (list, "volumes", "expected a sequence"),
    ] {
        let Invalid { field: path, expected: said } = parse(&document).unwrap_err();
        assert!(path.starts_with(field) && said.contains(expected), "{path}: {said}");
        assert!(path.len() < 256 && said.len() < 1_024, "{} and {} bytes", path.len(), said.len());
    }
}
