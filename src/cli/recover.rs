//! `strongroom recover`: show one secret, which puts the reveal on record.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::find;
use super::output::{Format, facts, line};
use super::whole_file::{Place, WholeFile};
use super::{Exit, Failure, Global, Printer, receipt};
use crate::client::{Client, Recovered};
use crate::escrow::ids::{Invalid, KeyId, Timestamp, UserName};
use crate::escrow::lookup::KeyIdPrefix;
use crate::escrow::secrets::SecretKind;
use crate::proto;
use crate::secret::Secret;

/// Show one secret.
#[derive(Debug, Args)]
pub(super) struct RecoverCommand {
    /// The id of the key, as `find` shows it. Its first 8 digits or more list the keys that begin so; nothing is shown.
    #[arg(value_name = "KEY_ID")]
    key_id: KeyReference,
    /// Why it is needed; kept in the audit trail.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// The locked-out user; required of the role helpdesk.
    #[arg(long, value_name = r"DOMAIN\NAME")]
    user: Option<UserName>,
    /// Write the BitLocker key package that is kept with the key to this new file, for the owner's eyes only.
    #[arg(long, value_name = "FILE")]
    package_out: Option<PathBuf>,
    /// Also write the signed receipt of the reveal to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    receipt_out: Option<PathBuf>,
}

/// A key as it is named: by its whole id, or by the beginning of it, which a locked screen shows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum KeyReference {
    Whole(KeyId),
    Beginning(KeyIdPrefix),
}

impl FromStr for KeyReference {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let whole: Result<KeyId, Invalid> = text.parse();
        if let Ok(id) = whole {
            return Ok(Self::Whole(id));
        }
        // A part of a recovery password, typed here by mistake, is digits with hyphens as well: it goes no further.
        let digits = text.strip_prefix('{').unwrap_or(text);
        let mut hyphens = digits.match_indices('-');
        let beginning =
            if hyphens.all(|(place, _)| HYPHENS.contains(&place)) { text.parse().ok() } else { None };
        let expected = "a UUID, or its first 8 digits or more";
        beginning.map(Self::Beginning).ok_or_else(|| Invalid::new("key_id", expected))
    }
}

/// Where the hyphens of a UUID stand.
const HYPHENS: [usize; 4] = [8, 13, 18, 23];

fn reason(text: &str) -> Result<String, String> {
    let trimmed = text.trim();
    if trimmed.is_empty() { Err("reason: it must not be blank".into()) } else { Ok(trimmed.to_owned()) }
}

impl RecoverCommand {
    pub(super) async fn run(self, global: &Global, printer: Printer) -> Result<(), Failure> {
        let client = global.client()?;
        let key_id = match &self.key_id {
            KeyReference::Whole(id) => *id,
            KeyReference::Beginning(prefix) => return Err(list(&client, prefix, printer).await?),
        };
        // What would keep the files from being written is found out before anything is on record.
        let package_out = self.package_out.as_deref().map(package_file).transpose()?;
        let receipt_out = self.receipt_out.as_deref().map(receipt::prepare).transpose()?;
        let recovered =
            client.recover_with(key_id, &self.reason, self.user.as_ref(), package_out.is_some()).await?;
        if let Some(warning) = warning(&recovered.details).filter(|_| printer.watched()) {
            printer.note(&warning);
        }
        let package = package_out.map(|file| write_package(file, &recovered));
        let receipt = receipt_out.map(|file| write_receipt(file, &recovered));
        // Whatever became of the files, the reveal is on record: the secret is not kept back.
        show(&recovered, matches!(package, Some(Ok(()))), printer.format())?;
        package.into_iter().chain(receipt).collect()
    }
}

/// Lists the keys that begin so, and answers the failure that asks for a whole id. One is asked for even if there is
/// only one such key here: this replica may not know of another yet, and a reveal cannot be taken back.
async fn list(client: &Client, prefix: &KeyIdPrefix, printer: Printer) -> Result<Failure, Failure> {
    let request = proto::FindRequest { key_id_prefix: prefix.digits().to_owned(), ..Default::default() };
    let found = client.find(&request).await?;
    if found.keys.is_empty() {
        return Ok(Failure::new(Exit::NotFound, "no key is known whose id begins so"));
    }
    printer.result(&find::json_of(&found), || find::text_of(&found))?;
    let message = match found.keys.len() {
        1 => "key_id: this is the beginning of one key's id; nothing was revealed".to_owned(),
        count => format!("key_id: this is the beginning of the ids of {count} keys; nothing was revealed"),
    };
    Ok(Failure::new(Exit::Invalid, message)
        .with_hint("compare machine, volume and user, and repeat the command with the whole id"))
}

/// A key package is written over nothing.
fn package_file(path: &Path) -> Result<WholeFile, Failure> {
    WholeFile::prepare("package_out", path, Place::New)
}

/// Writes the key package; of a key that is a package itself, what its text stands for.
fn write_package(file: WholeFile, recovered: &Recovered) -> Result<(), Failure> {
    let decoded = is_package(recovered).then(|| {
        let text = recovered.secret.expose_text()?;
        data_encoding::BASE64.decode(text.as_bytes()).ok().map(Secret::new)
    });
    let Some(package) = decoded.flatten().as_ref().or(recovered.package.as_ref()).cloned() else {
        let message =
            "package_out: the key was revealed, but no key package is kept with it; no file was written";
        return Err(Failure::new(Exit::NotFound, message));
    };
    file.write(package.expose()).map_err(|error| {
        let message =
            format!("package_out: the key was revealed, but its package could not be written: {error}");
        Failure::new(Exit::Failed, message)
    })
}

fn write_receipt(file: WholeFile, recovered: &Recovered) -> Result<(), Failure> {
    let Some(signed) = &recovered.receipt else {
        let message = "receipt_out: the key was revealed, but the node gave no receipt of that";
        return Err(Failure::new(Exit::Failed, message).with_hint("it runs an older release"));
    };
    receipt::write(file, signed).map_err(|error| {
        let message =
            format!("receipt_out: the key was revealed, but the receipt could not be written: {error}");
        Failure::new(Exit::Failed, message)
    })
}

fn is_package(recovered: &Recovered) -> bool {
    recovered.details.kind == SecretKind::BitlockerPackage.as_str()
}

/// Prints the secret: but for `keyring open`, the only place of the program that does. A key package that was written to a file is not printed.
fn show(recovered: &Recovered, package_written: bool, format: Format) -> Result<(), Failure> {
    let secret = recovered.secret.expose_text().ok_or_else(|| {
        Failure::new(Exit::Failed, "the node answered a secret that is not text")
            .with_hint("the reveal is on record; check that client and nodes run versions that go together")
    })?;
    let secret = Some(secret).filter(|_| !(package_written && is_package(recovered)));
    match format {
        Format::Json => {
            let mut details = details_json(recovered);
            details["package_written"] = package_written.into();
            line(&shown_json(secret, &details))
        }
        Format::Table => {
            let secret = secret.unwrap_or("the key package is in the file");
            let details = details_text(&recovered.details);
            let mut text = Zeroizing::new(String::with_capacity(secret.len() + 2 + details.len()));
            for part in [secret, "\n\n", &details] {
                text.push_str(part);
            }
            line(&text)
        }
    }
}

/// The secret and what is to be said of it. Written once, where there is room for all of it, so that nothing is moved
/// and left behind, and wiped.
fn shown_json(secret: Option<&str>, details: &Value) -> Zeroizing<String> {
    /// Longest escape of a byte.
    const ESCAPED_MAX_BYTES: usize = r"\u0000".len();
    #[derive(Serialize)]
    struct Shown<'a> {
        secret: Option<&'a str>,
        #[serde(flatten)]
        details: &'a Value,
    }
    let room = secret.map_or(0, str::len) * ESCAPED_MAX_BYTES
        + format!("{details:#}").len()
        + "  \"secret\": null,\n".len();
    let mut json = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer_pretty(&mut *json, &Shown { secret, details })
        .expect("text and names, into memory");
    debug_assert!(json.capacity() == room, "it was moved");
    Zeroizing::new(String::from_utf8(std::mem::take(&mut *json)).expect("JSON is text"))
}

/// What to know about a key that was shown without a quorum.
fn warning(details: &proto::RecoverResponse) -> Option<String> {
    let freshness = details.freshness.as_ref().filter(|freshness| freshness.consistency == "degraded")?;
    let age = freshness.quorum_age_ms.map_or_else(
        || format!("node {} has seen no quorum since it started", freshness.node),
        |ms| format!("node {} last saw a quorum {} s ago", freshness.node, ms / 1_000),
    );
    Some(format!(
        "warning: shown without a quorum: {age}, and may not know of newer keys; the reveal is in its journal and comes on record later"
    ))
}

fn details_json(recovered: &Recovered) -> Value {
    let details = &recovered.details;
    json!({
        "key_id": details.key_id,
        "machine": details.machine,
        "volume": details.volume,
        "users": details.users,
        "kind": details.kind,
        "state": details.state,
        "replaced_by": Some(&details.replaced_by).filter(|id| !id.is_empty()),
        "escrowed_at": Timestamp(details.escrowed_at_ms).to_string(),
        "revealed_at": Timestamp(details.revealed_at_ms).to_string(),
        "audit_sequence": (details.audit_sequence > 0).then_some(details.audit_sequence),
        "journal": (details.journal_sequence > 0)
            .then(|| json!({ "id": details.journal, "sequence": details.journal_sequence })),
        "freshness": freshness_json(details.freshness.as_ref()),
        "receipt": recovered.receipt,
    })
}

fn details_text(details: &proto::RecoverResponse) -> String {
    let state = match details.replaced_by.as_str() {
        "" if details.state == "retired" => "retired: an old key, newer ones were escrowed".to_owned(),
        "" => details.state.clone(),
        newer => format!("{}: an old key, replaced by\n          {newer}", details.state),
    };
    let escrowed = Timestamp(details.escrowed_at_ms).to_string();
    let age = age(details.revealed_at_ms.saturating_sub(details.escrowed_at_ms));
    let mut rows = vec![
        ("key", details.key_id.clone()),
        ("kind", details.kind.clone()),
        ("machine", details.machine.clone()),
        ("volume", details.volume.clone()),
    ];
    // The last seen first; each on a line of its own, for names are long.
    if !details.users.is_empty() {
        let users: Vec<&str> = details.users.iter().rev().take(USERS_SHOWN_MAX).map(String::as_str).collect();
        rows.push(("user", users.join("\n          ")));
    }
    rows.extend([
        ("state", state),
        ("escrowed", format!("{escrowed}, {age}")),
        ("audit", audit_text(details)),
        ("answer", freshness_text(details.freshness.as_ref())),
    ]);
    facts(&rows)
}

/// Most users of a machine that are shown to people.
const USERS_SHOWN_MAX: usize = 3;

/// How old something is, in the largest unit of which there is at least one.
fn age(ms: u64) -> String {
    let seconds = ms / 1_000;
    let units = [(24 * 3_600, "day"), (3_600, "hour"), (60, "minute")];
    let unit = units.iter().find(|(length, _)| seconds >= *length);
    match unit.map(|(length, name)| (seconds / length, name)) {
        None => "less than a minute before".to_owned(),
        Some((1, name)) => format!("1 {name} before"),
        Some((count, name)) => format!("{count} {name}s before"),
    }
}

fn audit_text(details: &proto::RecoverResponse) -> String {
    match details.audit_sequence {
        0 => format!("entry {} of the journal, not on record yet", details.journal_sequence),
        sequence => format!("record {sequence}"),
    }
}

/// How fresh an answer is, for programs.
pub(super) fn freshness_json(freshness: Option<&proto::Freshness>) -> Value {
    freshness.map_or(Value::Null, |freshness| {
        json!({
            "node": freshness.node,
            "consistency": freshness.consistency,
            "applied": freshness.applied,
            "term": freshness.term,
            "leader_known": freshness.leader_known,
            "quorum_age_ms": freshness.quorum_age_ms,
        })
    })
}

/// How fresh an answer is, in words that fit on one line of a terminal.
pub(super) fn freshness_text(freshness: Option<&proto::Freshness>) -> String {
    let Some(freshness) = freshness else { return "nothing is known of its freshness".to_owned() };
    let proto::Freshness { node, consistency, applied, leader_known, quorum_age_ms, .. } = freshness;
    let quorum = match quorum_age_ms {
        Some(age) => format!("quorum seen {age} ms ago"),
        None => "quorum never seen".to_owned(),
    };
    let leader = if *leader_known { "" } else { ", no leader" };
    format!("{consistency}, node {node} at {applied}; {quorum}{leader}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_is_said_in_one_line_that_never_claims_more_than_the_node_did() {
        let mut freshness = proto::Freshness {
            node: 2,
            consistency: "degraded".into(),
            applied: 12_345_678,
            term: 7,
            leader_known: false,
            quorum_age_ms: None,
        };
        let text = freshness_text(Some(&freshness));
        assert_eq!(text, "degraded, node 2 at 12345678; quorum never seen, no leader");
        freshness.quorum_age_ms = Some(86_400_000);
        assert!(freshness_text(Some(&freshness)).len() <= 70);
        assert_eq!(freshness_json(None), Value::Null);
    }

    #[test]
    fn a_key_shown_without_a_quorum_says_so_and_where_the_reveal_is_noted() {
        let json_of = |details: &proto::RecoverResponse| {
            let (secret, details) = (Secret::new(Vec::new()), details.clone());
            details_json(&Recovered { secret, package: None, receipt: None, details })
        };
        let mut details = proto::RecoverResponse { audit_sequence: 7, ..Default::default() };
        assert_eq!((audit_text(&details).as_str(), warning(&details)), ("record 7", None));
        assert_eq!(json_of(&details)["journal"], Value::Null);
        let degraded = proto::Freshness {
            node: 2,
            consistency: "degraded".into(),
            quorum_age_ms: Some(61_000),
            ..Default::default()
        };
        details = proto::RecoverResponse {
            freshness: Some(degraded),
            journal: "0b".into(),
            journal_sequence: 3,
            ..Default::default()
        };
        assert_eq!(audit_text(&details), "entry 3 of the journal, not on record yet");
        assert!(warning(&details).unwrap().contains("node 2 last saw a quorum 61 s ago"));
        let json = json_of(&details);
        assert_eq!((&json["audit_sequence"], &json["journal"]["sequence"]), (&Value::Null, &json!(3)));
    }

    #[test]
    fn a_key_is_named_by_its_id_or_by_the_beginning_of_it() {
        let whole = "B0B1C2D3-0000-4000-8000-000000000001";
        for text in [whole, &whole.to_lowercase(), &format!("{{{whole}}}"), &whole.replace('-', "")] {
            assert!(matches!(text.parse().unwrap(), KeyReference::Whole(_)), "{text}");
        }
        assert!(matches!("B0B1C2D3".parse().unwrap(), KeyReference::Beginning(_)));
        assert!(matches!("b0b1c2d3-0000-4".parse().unwrap(), KeyReference::Beginning(_)));
        for bad in ["b0b1c2d", "hunter22", "111111-222222-333333", "", &format!("{whole}0")] {
            assert_eq!(bad.parse::<KeyReference>().unwrap_err().field, "key_id", "{bad}");
        }
    }

    #[test]
    fn what_is_shown_beside_a_secret_says_whose_it_is_how_old_and_whether_it_is_the_current_one() {
        let mut details = proto::RecoverResponse {
            key_id: "b0b1c2d3-0000-4000-8000-000000000001".into(),
            machine: "PC-0001".into(),
            volume: "C:".into(),
            kind: "bitlocker-password".into(),
            state: "retired".into(),
            escrowed_at_ms: 1_700_000_000_000,
            revealed_at_ms: 1_700_000_000_000 + 3 * 24 * 3_600_000,
            users: (1..6).map(|n| format!(r"CORP\user{n}")).collect(),
            replaced_by: "b0b1c2d3-0000-4000-8000-000000000002".into(),
            ..Default::default()
        };
        let text = details_text(&details);
        assert!(text.contains("2023-11-14T22:13:20.000Z, 3 days before"), "{text}");
        assert!(text.contains("replaced by\n          b0b1c2d3-0000-4000-8000-000000000002"), "{text}");
        assert!(text.contains(r"user5") && !text.contains("user2"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        details.replaced_by.clear();
        assert!(details_text(&details).contains("newer ones were escrowed"));
        assert_eq!(age(59_999), "less than a minute before");
        assert_eq!(age(3_600_000), "1 hour before");
    }

    #[test]
    fn a_package_goes_to_its_file_whether_it_is_kept_beside_a_key_or_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, kind: SecretKind, secret: &str, package: Option<Vec<u8>>| {
            let path = dir.path().join(name);
            let details = proto::RecoverResponse { kind: kind.to_string(), ..Default::default() };
            let secret = Secret::from(secret.to_owned());
            let recovered = Recovered { secret, package: package.map(Secret::new), receipt: None, details };
            let written = write_package(package_file(&path).unwrap(), &recovered);
            written.map(|()| std::fs::read(path).unwrap())
        };
        let password = SecretKind::BitlockerPassword;
        assert_eq!(write("beside", password, "000000", Some(vec![7, 0, 255])).unwrap(), [7, 0, 255]);
        assert_eq!(write("itself", SecretKind::BitlockerPackage, "BwD/", None).unwrap(), [7, 0, 255]);
        let none = write("none", password, "000000", None).unwrap_err();
        assert_eq!(none.exit, Exit::NotFound);
        assert!(!dir.path().join("none").exists());
    }

    #[test]
    fn what_is_shown_as_json_is_written_once_whatever_the_secret() {
        let details = json!({ "key_id": "b0b1c2d3", "users": ["user1", "user2"], "receipt": { "index": 7 } });
        for secret in [Some("000000-000011"), Some("\u{1}\"\\\n\u{1f}\u{7f}ä"), Some(""), None] {
            let shown: Value = serde_json::from_str(&shown_json(secret, &details)).unwrap();
            let mut expected = details.clone();
            expected["secret"] = secret.into();
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn a_blank_reason_is_no_reason() {
        assert!(reason(" \t").is_err());
        assert_eq!(reason(" locked out ").unwrap(), "locked out");
    }
}
