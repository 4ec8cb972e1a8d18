//! Many machines: what each of them says, and what it costs whoever keeps it.

use std::path::Path;

use strongroom::escrow::ids::Timestamp;

/// What machine number `n` says at `at`: a laptop with two volumes, one in ten of which is not encrypted.
pub fn document(n: u64, at: u64) -> String {
    let (at, make, model) = (Timestamp(at), n % 7, n % 113);
    let fixed = if n.is_multiple_of(10) { "decrypted" } else { "encrypted" };
    format!(
        r#"{{"machine":"PC-{n:07}","at":"{at}","domain":"CORP","name":"LAPTOP-{n:07}","make":"Maker {make}",
        "model":"Model {model}","type":"portable","os":"Windows 11 24H2","agent":"1.0","users":["CORP\\user{n}"],
        "policy":{{"enforcement":"enforced","cipher":"xts-aes-256","os":"required","fixed":"required"}},
        "volumes":[{{"volume":"C:","kind":"os","label":"System","protection":"on","conversion":"encrypted","percent":100,
        "method":"xts-aes-256","protectors":["tpm","recovery-password"]}},
        {{"volume":"D:","kind":"fixed","label":"Data","protection":"on","conversion":"{fixed}","percent":100,
        "method":"xts-aes-256","protectors":["recovery-password"],"auto_unlock":true}}]}}"#
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
