//! `strongroom keyring open`: what the disk of a node holds, with the offline identity alone.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::cli::output::{facts, line};
use crate::cli::server::server_failure;
use crate::cli::{Exit, Failure, Format, Printer};
use crate::escrow::ids::{KeyId, MachineId};
use crate::escrow::lookup::{FoundKey, KeyIdPrefix, Query};
use crate::escrow::records::KeyRecord;
use crate::server::ServerError;
use crate::server::offline::{OfflineCopy, OpenedKey};

/// Most keys that cannot be opened that are named.
const NAMED_MAX: usize = 20;

/// Open what the disk of a node holds with the offline identity alone, without any node.
///
/// For the day on which nothing else is left, and to see beforehand that it would work. The node must not run; a copy of
/// its data directory does as well. Without more flags every key is opened and nothing is shown. Nothing of this goes on
/// record: whoever holds the offline identity is trusted.
#[derive(Debug, Args)]
pub(in crate::cli) struct OpenCommand {
    /// The data directory of a node, or a copy of it.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The file of the offline identity, as `init` wrote it; or of any other that the keyring is sealed to.
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Show the keys whose id begins so, with their secrets.
    #[arg(long, value_name = "PREFIX", conflicts_with = "export")]
    key_id: Option<KeyIdPrefix>,
    /// Show the keys of this machine, with their secrets.
    #[arg(long, value_name = "ID", conflicts_with = "export")]
    machine: Option<MachineId>,
    /// Write every key with its secret to this new file, a JSON document a line.
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
}

impl OpenCommand {
    pub(super) async fn run(self, printer: Printer) -> Result<(), Failure> {
        let opened = OfflineCopy::open(&self.data, &self.identity).await;
        let copy = opened.map_err(|error| match &error {
            ServerError::Seal(_) => {
                Failure::new(Exit::Invalid, format!("identity: {}", crate::error::chain(&error)))
            }
            error => server_failure(error),
        })?;
        let done = if self.key_id.is_some() || self.machine.is_some() {
            self.show(&copy, printer.format())
        } else {
            self.all(&copy, printer)
        };
        copy.close().await.map_err(|error| server_failure(&error))?;
        done
    }

    /// Shows the keys that were asked for.
    fn show(&self, copy: &OfflineCopy, format: Format) -> Result<(), Failure> {
        let query =
            Query { key_id_prefix: self.key_id.clone(), machine: self.machine.clone(), ..Query::default() };
        let found = copy.find(&query).map_err(|error| server_failure(&error.into()))?;
        if found.keys.is_empty() {
            return Err(Failure::new(Exit::NotFound, "no such key is kept here"));
        }
        let mut documents = Vec::new();
        for FoundKey { key, .. } in &found.keys {
            let opened = copy.open_key(key).map_err(|error| {
                Failure::new(Exit::Failed, format!("key {}: {}", key.id, crate::error::chain(&error)))
            })?;
            match format {
                Format::Json => documents.push(document(key, &opened)?),
                Format::Table => {
                    line(text(&opened.secret, key.id)?)?;
                    line(&format!("\n{}\n", facts_of(key)))?;
                }
            }
        }
        match format {
            Format::Json => {
                line(&format!("{:#}", json!({ "keys": documents, "truncated": found.truncated })))
            }
            Format::Table if found.truncated => line("there are more: ask for a longer key id"),
            Format::Table => Ok(()),
        }
    }

    /// Opens every key, and writes them down if that was asked for.
    fn all(&self, copy: &OfflineCopy, printer: Printer) -> Result<(), Failure> {
        let mut export = self.export.as_deref().map(Export::create).transpose()?;
        let (mut opened, mut refused, mut after) = (0_u64, Vec::new(), None);
        loop {
            let page = copy.page(after).map_err(|error| server_failure(&error.into()))?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            for key in &page {
                match copy.open_key(key) {
                    Ok(found) => {
                        opened += 1;
                        if let Some(export) = &mut export {
                            export.write(&document(key, &found)?)?;
                        }
                    }
                    Err(_) => refused.push(key.id),
                }
            }
        }
        export.map(Export::finish).transpose()?;
        let (cluster, position) = (copy.cluster(), copy.position());
        let report = json!({
            "cluster": cluster.id,
            "cluster_name": cluster.name,
            "term": position.term,
            "index": position.index,
            "key_version": copy.key_version(),
            "opened": opened,
            "not_opened": refused,
        });
        printer.result(&report, || {
            facts(&[
                ("cluster", format!("{} ({})", cluster.name, cluster.id)),
                ("up to", format!("entry {} of term {}", position.index, position.term)),
                ("data key", copy.key_version().to_string()),
                ("opened", format!("{opened} keys")),
            ])
        })?;
        if refused.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = refused.iter().take(NAMED_MAX).map(ToString::to_string).collect();
        let message = format!("{} keys cannot be opened, among them {}", refused.len(), named.join(", "));
        Err(Failure::new(Exit::Failed, message).with_hint("try the disk of another node"))
    }
}

/// A key with its secret.
fn document(key: &KeyRecord, opened: &OpenedKey) -> Result<Value, Failure> {
    Ok(json!({
        "key_id": key.id,
        "machine": key.machine,
        "volume": key.volume,
        "kind": key.kind.to_string(),
        "state": key.state,
        "escrowed_at": key.escrowed_at.to_string(),
        "escrowed_by": key.escrowed_by.to_string(),
        "secret": text(&opened.secret, key.id)?,
        "package": opened.package.as_ref().map(|package| data_encoding::BASE64.encode(package.expose())),
    }))
}

fn facts_of(key: &KeyRecord) -> String {
    facts(&[
        ("key", key.id.to_string()),
        ("kind", key.kind.to_string()),
        ("machine", key.machine.to_string()),
        ("volume", key.volume.to_string()),
        ("state", key.state.to_string()),
        ("escrowed", key.escrowed_at.to_string()),
    ])
}

fn text(secret: &crate::secret::Secret, key: KeyId) -> Result<&str, Failure> {
    secret
        .expose_text()
        .ok_or_else(|| Failure::new(Exit::Failed, format!("the secret of key {key} is not text")))
}

/// A file of secrets that is being written.
struct Export<'a> {
    file: BufWriter<File>,
    path: &'a Path,
    is_whole: bool,
}

impl<'a> Export<'a> {
    /// A new file that nobody else can read.
    fn create(path: &'a Path) -> Result<Self, Failure> {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = created
            .map_err(|error| Failure::new(Exit::Invalid, format!("export: {}: {error}", path.display())))?;
        Ok(Self { file: BufWriter::new(file), path, is_whole: false })
    }

    fn write(&mut self, document: &Value) -> Result<(), Failure> {
        writeln!(self.file, "{document}").map_err(|error| self.failed(&error))
    }

    /// Whole on the disk, or an error.
    fn finish(mut self) -> Result<(), Failure> {
        let written = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        self.is_whole = written.is_ok();
        written.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &std::io::Error) -> Failure {
        Failure::new(Exit::Failed, format!("writing {}: {error}", self.path.display()))
    }
}

/// Half a file of secrets is of no use to anybody who should have it.
impl Drop for Export<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            // Nothing is left to tell; why it is not whole is told.
            let _ = std::fs::remove_file(self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_that_is_not_finished_leaves_no_file_and_one_that_is_replaces_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let mut export = Export::create(&path).unwrap();
        export.write(&json!({ "secret": "s" })).unwrap();
        drop(export);
        assert!(!path.exists());
        let mut export = Export::create(&path).unwrap();
        export.write(&json!({ "secret": "s" })).unwrap();
        export.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"secret\":\"s\"}\n");
        assert!(Export::create(&path).is_err());
        assert!(path.exists());
    }
}
