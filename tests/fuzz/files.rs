//! Files of a node's data directory, and those that it is given: the log, snapshots, journals, keyrings, certificates.

use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use strongroom::escrow::audit::ChainHead;
use strongroom::escrow::command::Escrowed;
use strongroom::escrow::ids::{ClusterId, Role, Timestamp};
use strongroom::escrow::journal::JournalEntry;
use strongroom::escrow::records::{Fingerprint, KeyState, LogPosition};
use strongroom::seal::checkpoint::Checkpoint;
use strongroom::seal::receipt::Receipt;
use strongroom::seal::receipt::disclosure::{Disclosed, DisclosureReceipt, OnRecord};
use strongroom::seal::{Keyring, NodeKey};
use strongroom::secret::Secret;
use strongroom::store::format;
use strongroom::store::journal::{Decided, Journal, JournalError};
use strongroom::store::log::{Log, LogOptions, Vote};
use strongroom::store::quarantine::QuarantineNote;
use strongroom::store::snapshot::Snapshots;
use strongroom::tls::ca::{Authority, IssueRequest};
use strongroom::tls::{CertificateFacts, RevocationFile, Tls, TlsPaths, TrustAnchors};
use tempfile::TempDir;
use uuid::Uuid;

use crate::support::Node;
use crate::{Bound, SMALL, flipped, fuzz, sample, support};

/// Where nothing is asked of a real disk.
const MEMORY_DISK: &str = "/dev/shm";
/// What is read at once of a file, and the largest value in it.
const FILE: Bound = Bound { bytes: 40 * 1024 * 1024, per_byte: 64 };
/// A receipt as a whole, and what it takes to check a signature.
const SIGNED: Bound = Bound { bytes: 512 * 1024, per_byte: 64 };
/// An age file is deciphered in chunks of 64 KiB.
const SEALED: Bound = Bound { bytes: 1024 * 1024, per_byte: 64 };

fn scratch() -> TempDir {
    tempfile::tempdir_in(MEMORY_DISK).or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// What a log holds: its entries and its vote.
type Held = (Vec<(LogPosition, Vec<u8>)>, Option<Vote>);

fn held(log: &Log) -> Held {
    let entries = log.read_blocking(0, u64::MAX, usize::MAX).expect("it was read when it was opened");
    (entries.into_iter().map(|(at, record)| (at, record.to_vec())).collect(), log.vote().expect("a vote"))
}

/// A chunk of the log that is damaged is refused. Only of the last one the end may be missing, as a crash leaves it; never is
/// there anything that was not written. (That a flipped bit makes it forget nothing is tested beside it.)
#[test]
fn a_chunk_of_the_log_is_refused_or_holds_nothing_that_was_not_written() {
    let dir = scratch();
    let options = LogOptions { chunk_max_bytes: 512, ..LogOptions::default() };
    let whole = runtime().block_on(async {
        let log = Log::open(dir.path(), &options).unwrap();
        for index in 1..=9 {
            let entry = (LogPosition { term: 1 + index / 4, index }, vec![7; 10 * index as usize]);
            log.append(vec![entry], drop).await.unwrap();
            log.save_vote(Vote { term: index, committed: index % 2 == 0, node: 2 }).await.unwrap();
        }
        log.save_committed(LogPosition { term: 1, index: 3 }).await.unwrap();
        log.sync().await.unwrap();
        held(&log)
    });
    let chunks: Vec<(PathBuf, Vec<u8>)> =
        chunks(dir.path()).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    assert!(chunks.len() > 2, "{} chunks", chunks.len());
    for (at, (path, sample)) in chunks.iter().enumerate() {
        let is_last = at + 1 == chunks.len();
        fuzz("chunks of the log", 120, FILE, vec![sample.clone()], |bytes| {
            // A log that was cut begins another chunk.
            self::chunks(dir.path()).iter().for_each(|path| fs::remove_file(path).unwrap());
            chunks.iter().for_each(|(path, whole)| fs::write(path, whole).unwrap());
            fs::write(path, bytes).unwrap();
            let Ok(log) = Log::open(dir.path(), &options) else { return };
            let found = held(&log);
            assert!(is_last || found == whole, "{found:?}");
            assert!(found.0.iter().all(|entry| whole.0.contains(entry)), "{:?} was never written", found.0);
        });
    }
}

fn chunks(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut chunks: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|found| found == "wal")).collect();
    chunks.sort();
    chunks
}

/// A snapshot is set aside if anything in it is not as it was written, its own hash made to fit or not.
#[test]
fn a_snapshot_is_taken_only_as_it_was_written() {
    let dir = scratch();
    let file = runtime().block_on(async {
        let mut node = Node::begin(dir.path(), support::small()).await;
        node.escrow(0, 6).await;
        node.apply(&sample::reveal(node.next, 3)).await;
        let file = node.storage.machine.snapshot().await.unwrap();
        fs::read(file.path()).unwrap()
    });
    let folder = scratch();
    let path = folder.path().join("1-1.snapshot");
    let names = the_name(dir.path());
    let path = path.with_file_name(names);
    let taken = |bytes: &[u8]| {
        let _ = fs::remove_dir_all(folder.path());
        fs::create_dir_all(folder.path()).unwrap();
        fs::write(&path, bytes).unwrap();
        let opened = Snapshots::open(folder.path());
        opened.is_ok_and(|snapshots| snapshots.newest().is_some())
    };
    assert!(taken(&file));
    fuzz("snapshots", 400, FILE, vec![file.clone()], |bytes| {
        assert!(!taken(bytes) || bytes == file);
        // With a hash that fits it gets further. What the hash alone covers may then be anything.
        let body = bytes.len().saturating_sub(32);
        taken(&[&bytes[..body], digest(&SHA256, &bytes[..body]).as_ref()].concat());
    });
    for (bit, damaged) in flipped(&file).step_by(7) {
        assert!(!taken(&damaged), "bit {bit}");
    }
}

fn the_name(dir: &Path) -> String {
    let found = support::files(dir, |name| name.ends_with(".snapshot"));
    found[0].file_name().unwrap().to_str().unwrap().to_owned()
}

/// A journal that is damaged opens, says so and takes nothing; one whose hash was made to fit as well is told by its chain, or
/// holds entries.
#[test]
fn a_journal_is_whole_or_takes_nothing() {
    let entries: Vec<JournalEntry> = crate::formats::golden(&["journal entry"])
        .iter()
        .map(|bytes| format::decode(bytes).unwrap())
        .collect();
    let dir = scratch();
    let journal = Journal::open(dir.path()).unwrap();
    for entry in &entries {
        let what = Box::new(entry.what.clone());
        journal.append::<(), JournalError>(|_| Ok(Decided::Entry(what))).unwrap();
    }
    journal.keep(2, entries.clone()).unwrap();
    drop(journal);
    for name in ["own", "told"] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        let faulty = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            // A newer format is refused at the start.
            Journal::open(dir.path()).map_or(true, |journal| !journal.stats().fault.is_empty())
        };
        assert!(!faulty(&whole));
        fuzz("journals", 300, FILE, vec![whole.clone()], |bytes| {
            // One that is empty is one that was never written.
            assert!(faulty(bytes) || bytes == whole, "{} bytes pass for a journal", bytes.len());
            let body = bytes.len().saturating_sub(32);
            faulty(&[&bytes[..body], digest(&SHA256, &bytes[..body]).as_ref()].concat());
        });
        for (bit, damaged) in flipped(&whole).step_by(3) {
            assert!(faulty(&damaged), "bit {bit} of {name}");
        }
        fs::write(&path, &whole).unwrap();
    }
}

/// A note of a quarantine that cannot be read counts: it was written for a reason.
#[test]
fn a_note_of_a_quarantine_is_never_overlooked() {
    let dir = scratch();
    let path = dir.path().join("quarantine.json");
    let note = br#"{"cause":"differs","index":41,"since_ms":1700000000000,"stage":"waiting"}"#.to_vec();
    fuzz("notes of a quarantine", 300, SMALL, vec![note], |bytes| {
        fs::write(&path, bytes).unwrap();
        assert!(QuarantineNote::open(&path).unwrap().current().is_some());
    });
}

/// The keyring opens as it was sealed, or not at all.
#[test]
fn a_sealed_keyring_opens_only_as_it_was_sealed() {
    let (key, other) = (NodeKey::generate(), NodeKey::generate());
    let keyring = Keyring::generate().unwrap();
    let sealed = keyring.seal_to(&[key.recipient(), other.recipient()]).unwrap();
    let version = Keyring::open(&sealed, &key).unwrap().current_version();
    fuzz("keyrings", 300, SEALED, vec![sealed.clone()], |bytes| {
        if let Ok(opened) = Keyring::open(bytes, &key) {
            assert_eq!((opened.current_version(), bytes), (version, &sealed[..]));
        }
    });
    for (bit, damaged) in flipped(&sealed).step_by(11) {
        assert!(Keyring::open(&damaged, &key).is_err(), "bit {bit}");
    }
    let identities = vec![key.to_text().expose().to_vec()];
    fuzz("private identities", 300, SMALL, identities, |bytes| {
        if let Ok(parsed) = NodeKey::parse(&Secret::new(bytes.to_vec())) {
            assert_eq!(NodeKey::parse(&parsed.to_text()).unwrap().recipient(), parsed.recipient());
        }
    });
}

/// A CA and a node's certificate.
struct Signers {
    dir: TempDir,
    tls: Tls,
}

impl Signers {
    fn new() -> Self {
        let dir = scratch();
        let authority = Authority::create(&dir.path().join("ca"), "acme".parse().unwrap(), None).unwrap();
        let issued = authority.issue(IssueRequest::new(Role::Node, "2")).unwrap();
        let node = dir.path().join("node");
        authority.write_profile(&node, &issued).unwrap();
        let crl = RevocationFile::Required(authority.revocation_list_path());
        let tls = Tls::load(TlsPaths { crl, ..TlsPaths::profile(&node) }).unwrap();
        Self { dir, tls }
    }

    fn trust(&self) -> TrustAnchors {
        TrustAnchors::from_pem_file(&self.dir.path().join("ca/ca.crt")).unwrap()
    }
}

/// What a node has signed says what it said then, or nothing.
#[test]
fn a_receipt_or_checkpoint_that_was_changed_does_not_verify() {
    let signers = Signers::new();
    let (trust, cluster) = (signers.trust(), ClusterId(Uuid::from_u128(1)));
    let at = Timestamp(signers.tls.not_before() * 1_000 + 60_000);
    let position = LogPosition { term: 3, index: 42 };
    let escrowed = Escrowed {
        position,
        machine: "PC-1".parse().unwrap(),
        volume: "C:".parse().unwrap(),
        key_id: strongroom::escrow::ids::KeyId(Uuid::from_u128(2)),
        fingerprint: Fingerprint([9; 32]),
        at,
        already_escrowed: false,
        keys_left: Some(7),
    };
    let receipt = Receipt::sign(&escrowed, cluster, &signers.tls).unwrap();
    receipt.verify(&trust).unwrap();
    let receipts = vec![serde_json::to_vec_pretty(&receipt).unwrap()];
    fuzz("receipts", 600, SIGNED, receipts.clone(), |bytes| {
        let Ok(read) = serde_json::from_slice::<Receipt>(bytes) else { return };
        if read.verify(&trust).is_ok() {
            assert_eq!(read, receipt, "only what was signed");
        }
        let again = serde_json::to_vec(&read).unwrap();
        assert_eq!(serde_json::from_slice::<Receipt>(&again).unwrap(), read);
    });
    for (bit, damaged) in flipped(&receipts[0]).step_by(5) {
        let Ok(read) = serde_json::from_slice::<Receipt>(&damaged) else { continue };
        assert!(read == receipt || read.verify(&trust).is_err(), "bit {bit}");
    }
    let disclosed = Disclosed {
        key_id: escrowed.key_id,
        machine: escrowed.machine,
        volume: escrowed.volume,
        fingerprint: escrowed.fingerprint,
        to: "spiffe://acme/helpdesk/d01".parse().unwrap(),
        user: Some(r"CORP\d02".parse().unwrap()),
        reason: "locked out".to_owned(),
        at,
        position,
        state: KeyState::Active,
        on_record: OnRecord::Audit(7),
    };
    let shown = DisclosureReceipt::sign(disclosed, cluster, &signers.tls).unwrap();
    shown.verify(&trust).unwrap();
    let receipts = vec![serde_json::to_vec_pretty(&shown).unwrap(), receipts[0].clone()];
    fuzz("receipts of reveals", 600, SIGNED, receipts, |bytes| {
        let Ok(read) = serde_json::from_slice::<DisclosureReceipt>(bytes) else { return };
        assert!(read == shown || read.verify(&trust).is_err(), "only what was signed");
    });
    let head = ChainHead { sequence: 12, hash: [7; 32] };
    let checkpoint = Checkpoint::sign(head, position, cluster, at, &signers.tls).unwrap();
    fuzz("checkpoints", 600, SIGNED, vec![checkpoint.render().into_bytes()], |bytes| {
        let Ok(read) = Checkpoint::parse(&String::from_utf8_lossy(bytes)) else { return };
        if read.verify(&trust).is_ok() {
            assert_eq!(read, checkpoint, "only what was signed");
        }
        assert_eq!(Checkpoint::parse(&read.render()).unwrap(), read);
    });
}

/// Certificates, bundles and revocation lists: a file that was damaged is refused, or says the same.
#[test]
fn a_file_of_certificates_is_refused_or_understood() {
    let signers = Signers::new();
    let der = signers.tls.certificates();
    fuzz("certificates", 1_000, SMALL, der, |bytes| drop(CertificateFacts::parse(bytes)));
    let bundle = signers.dir.path().join("ca/ca.crt");
    let whole = fs::read(&bundle).unwrap();
    let two = [&whole[..], &whole[..]].concat();
    let damaged = signers.dir.path().join("damaged");
    fuzz("bundles", 400, SIGNED, vec![whole.clone(), two], |bytes| {
        fs::write(&damaged, bytes).unwrap();
        if let Ok(trust) = TrustAnchors::from_pem_file(&damaged) {
            assert!(trust.authorities().count() > 0, "a bundle of none would believe nobody");
        }
    });
    for name in ["node/client.crt", "node/client.key", "node/ca.crt", "ca/crl.pem"] {
        let path = signers.dir.path().join(name);
        let good = fs::read(&path).unwrap();
        fuzz(name, 150, SIGNED, vec![good.clone()], |bytes| {
            fs::write(&path, bytes).unwrap();
            drop(signers.tls.reload());
        });
        fs::write(&path, good).unwrap();
    }
    signers.tls.reload().expect("the good files are good again");
}
