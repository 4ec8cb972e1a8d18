//! What people and other systems write: ids, secrets, documents, tables, configuration; and what nodes sign.

use std::fmt::{Debug, Display};
use std::io::Cursor;
use std::path::Path;
use std::str::FromStr;

use strongroom::client::EndpointAddress;
use strongroom::config::Config;
use strongroom::escrow::audit::line;
use strongroom::escrow::compliance::{CompliancePolicy, MachineReport};
use strongroom::escrow::ids::{ClusterName, Identity, KeyId, MachineId, UserName, VolumeId};
use strongroom::escrow::policy::document::Policy;
use strongroom::escrow::records::AuditRecord;
use strongroom::escrow::secrets::{self, SecretKind, bitlocker, filevault, luks};
use strongroom::import::{self, Format, LINE_MAX_BYTES};
use strongroom::secret::Secret;
use strongroom::store::format;

use crate::{Bound, SMALL, fuzz};

/// An import holds one line, and the buffers it is read through.
const IMPORT: Bound = Bound { bytes: 8 * LINE_MAX_BYTES as u64, per_byte: 32 };

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// It is refused, or what it is shown as is the same again.
fn reads_back<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let shown = value.to_string();
        assert_eq!(shown.parse::<T>().ok().as_ref(), Some(&value), "{shown:?}");
    }
}

#[test]
fn a_name_or_an_id_is_refused_or_reads_back() {
    let samples = texts(&[
        "PC-0001",
        "C:",
        r"\\?\Volume{0f3a1c2e-0000-4000-8000-000000000001}\",
        "0f3a1c2e-0000-4000-8000-000000000001",
        "{0F3A1C2E-0000-4000-8000-000000000001}",
        r"CORP\d01",
        "spiffe://acme/helpdesk/d01",
        "spiffe://acme/self-service/CORP/d01",
        "spiffe://acme/node/3",
        "[2001:db8::7]:7420",
        "node1.example:7420",
        "PC-\u{202e}1000",
    ]);
    fuzz("names and ids", 3_000, SMALL, samples, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        reads_back::<MachineId>(&text);
        reads_back::<VolumeId>(&text);
        reads_back::<KeyId>(&text);
        reads_back::<UserName>(&text);
        reads_back::<ClusterName>(&text);
        reads_back::<Identity>(&text);
        reads_back::<SecretKind>(&text);
        reads_back::<EndpointAddress>(&text);
    });
}

#[test]
fn a_secret_is_refused_or_has_one_form() {
    let text = |secret: Secret| secret.expose().to_vec();
    let samples = vec![
        text(bitlocker::from_halves([1, 2, 3, 4, 5, 6, 7, 65_535])),
        text(luks::from_bytes([0xa5; 32])),
        text(filevault::from_bytes([7; 24])),
        b"correct horse battery staple".to_vec(),
    ];
    fuzz("secrets", 2_000, SMALL, samples, |bytes| {
        for kind in SecretKind::ALL {
            if let Ok(canonical) = secrets::canonical(kind, &Secret::new(bytes.to_vec())) {
                let again = secrets::canonical(kind, &canonical).expect("its own form is good");
                assert!(again.expose() == canonical.expose(), "{kind}: one form, and not two");
            }
        }
        drop(secrets::package(bytes));
    });
}

#[test]
fn a_document_is_refused_or_reads_back() {
    let policies = vec![Policy::default().to_json().into_bytes()];
    fuzz("policies", 500, SMALL, policies, |bytes| {
        if let Ok(policy) = Policy::from_json(&String::from_utf8_lossy(bytes)) {
            assert_eq!(Policy::from_json(&policy.to_json()).ok().as_ref(), Some(&policy));
        }
    });
    let policies = vec![CompliancePolicy::default().to_json().into_bytes()];
    fuzz("policies of compliance", 500, SMALL, policies, |bytes| {
        if let Ok(policy) = CompliancePolicy::from_json(&String::from_utf8_lossy(bytes)) {
            assert_eq!(CompliancePolicy::from_json(&policy.to_json()).ok().as_ref(), Some(&policy));
        }
    });
    fuzz("reports of devices", 1_000, SMALL, reports(), |bytes| {
        if let Ok(report) = MachineReport::from_json(&String::from_utf8_lossy(bytes)) {
            assert_eq!(MachineReport::from_json(&report.to_json()).ok().as_ref(), Some(&report));
        }
    });
}

/// The examples of the schema.
fn reports() -> Vec<Vec<u8>> {
    let schema = include_str!("../../src/escrow/compliance/report.schema.json");
    let schema: serde_json::Value = serde_json::from_str(schema).expect("JSON");
    let examples = schema["examples"].as_array().expect("examples");
    examples.iter().map(|example| serde_json::to_vec_pretty(example).expect("JSON")).collect()
}

#[test]
fn a_line_of_an_export_is_refused_or_not_genuine_or_reads_back() {
    let lines = crate::formats::golden(&["row audit "]);
    let lines = lines.iter().map(|bytes| line::render(&format::decode::<AuditRecord>(bytes).unwrap()));
    let lines: Vec<Vec<u8>> = lines.map(String::into_bytes).collect();
    let whole: Vec<Vec<u8>> = lines.clone();
    fuzz("lines of an export", 1_500, SMALL, lines, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        let Ok(stated) = line::parse(&text) else { return };
        if stated.genuine {
            assert_eq!(line::render(&stated.record), text, "byte for byte");
        }
    });
    let longest = whole.iter().max_by_key(|line| line.len()).expect("lines");
    for (bit, damaged) in crate::flipped(longest) {
        let Ok(text) = String::from_utf8(damaged) else { continue };
        assert!(line::parse(&text).is_err() || !line::parse(&text).unwrap().genuine, "bit {bit}");
    }
}

#[test]
fn a_configuration_is_refused_or_reads_back() {
    let base = Path::new("/etc/strongroom");
    let shipped = [
        include_str!("../../cluster/three/node1.toml"),
        include_str!("../../cluster/local/node2.toml"),
        include_str!("../../cluster/compose/node.toml"),
    ];
    fuzz("configurations", 400, SMALL, texts(&shipped), |bytes| {
        if let Ok(config) = Config::parse(&String::from_utf8_lossy(bytes), base) {
            let rendered = config.render().expect("its paths are UTF-8");
            assert_eq!(Config::parse(&rendered, base).ok().as_ref(), Some(&config));
        }
    });
}

#[test]
fn whatever_is_imported_ends_and_says_what_is_wrong() {
    let secret = bitlocker::from_halves([1, 2, 3, 4, 5, 6, 7, 8]);
    let secret = std::str::from_utf8(secret.expose()).unwrap();
    let keys = format!(
        "machine,volume,kind,secret,user\r\nPC-1,C:,bitlocker-password,{secret},CORP\\d01\r\n\"PC-2\",\"C:\",generic,\"a \"\"b\"\"\",\n"
    );
    let machines = "machine;name;users\nPC-1;Desk;CORP\\d01;\nPC-2;\"a;b\";\n";
    let csv = texts(&[&keys, machines]);
    fuzz("tables", 1_000, IMPORT, csv, |bytes| read_all(Format::Csv, bytes));
    let ldif = format!(
        "version: 1\n\ndn: CN=2026-01-01T00:00:00-00:00{{0F3A1C2E-0000-4000-8000-000000000001}},CN=PC-1,OU=Desks,DC=acme\n\
         objectClass: msFVE-RecoveryInformation\nmsFVE-RecoveryPassword: {}\n {}\nmsFVE-RecoveryGuid:: LhzKDwAAAECAAAAAAAAAAQ==\n\
         msFVE-VolumeGuid:: LhzKDwAAAECAAAAAAAAAAQ==\nmsFVE-KeyPackage:: AAECAwQFBgc=\n\n\
         dn:: Q049UEMtMSxEQz1hY21l\nchangetype: add\nobjectClass: computer\ncn: PC-1\noperatingSystem: Windows\n",
        &secret[..20],
        &secret[20..]
    );
    fuzz("directories", 1_000, IMPORT, texts(&[&ldif]), |bytes| read_all(Format::Ldif, bytes));
}

fn read_all(format: Format, bytes: &[u8]) {
    let Ok(rows) = import::rows(format, Cursor::new(bytes.to_vec())) else { return };
    let lines = bytes.iter().filter(|byte| **byte == b'\n').count() + 1;
    let mut last = 0;
    for (read, row) in rows.enumerate() {
        assert!(read < lines, "no more records than lines");
        let Ok(row) = row else { return };
        assert!(row.line >= last && row.line <= lines as u64, "line {} behind {last} of {lines}", row.line);
        last = row.line;
    }
}
