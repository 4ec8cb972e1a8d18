//! Many machines: what each of them says, and what it costs whoever keeps it.

use std::path::Path;

use strongroom::escrow::ids::Timestamp;

use crate::keys::key;

/// One machine in so many has each of the [`Flaw`]s.
const ONE_IN: u64 = 50;
/// How much older than the others' what a stale machine says is: 60 days. The policy lets it count for 30.
const STALE_MS: u64 = 60 * 24 * 60 * 60 * 1_000;

/// What is amiss with some of the machines, so that not all of them stand alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The key of its second volume is not in escrow.
    NoKey,
    /// The first volume has another recovery protector than the one whose key is in escrow.
    OtherProtector,
    /// What it said is too old to count.
    Stale,
}

/// What is amiss with machine number `n`.
pub fn flaw(n: u64) -> Option<Flaw> {
    match n % ONE_IN {
        1 => Some(Flaw::NoKey),
        2 => Some(Flaw::OtherProtector),
        3 => Some(Flaw::Stale),
        _ => None,
    }
}

/// What machine number `n` says at `at`, or long before if it is stale: a laptop with two volumes, one in ten of which is
/// not encrypted.
pub fn document(n: u64, at: u64) -> String {
    let (make, model) = (n % 7, n % 113);
    let flaw = flaw(n);
    let at = Timestamp(if flaw == Some(Flaw::Stale) { at - STALE_MS } else { at });
    let fixed = if n.is_multiple_of(10) { "decrypted" } else { "encrypted" };
    let os_key = key(n, if flaw == Some(Flaw::OtherProtector) { 2 } else { 0 });
    let fixed_key = key(n, 1);
    format!(
        r#"{{"machine":"PC-{n:07}","at":"{at}","domain":"CORP","name":"LAPTOP-{n:07}","make":"Maker {make}",
        "model":"Model {model}","type":"portable","os":"Windows 11 24H2","agent":"1.0","users":["CORP\\user{n}"],
        "policy":{{"enforcement":"enforced","cipher":"xts-aes-256","os":"required","fixed":"required"}},
        "volumes":[{{"volume":"C:","kind":"os","label":"System","protection":"on","conversion":"encrypted","percent":100,
        "method":"xts-aes-256","protectors":["tpm","recovery-password"],"recovery_keys":["{os_key}"]}},
        {{"volume":"D:","kind":"fixed","label":"Data","protection":"on","conversion":"{fixed}","percent":100,
        "method":"xts-aes-256","protectors":["recovery-password"],"auto_unlock":true,"recovery_keys":["{fixed_key}"]}}]}}"#
    )
    .replace('\n', "")
}

/// Memory of a process, by its name below `/proc`, in MiB: now, and at most so far.
pub fn memory_mib(process: &str) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Bytes of all files below `path`.
pub fn bytes_under(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_under(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
