//! Reading keys and machines out of other systems' files, on the side of whoever imports them: no node, no network, no clock.
//!
//! A file is read as a stream and may be of any size: a reader holds one line of it, or one entry. What is wrong with a
//! record is said with its line and never with its content, and the next record is read. Only what makes the rest
//! unreadable (no header, another encoding, a disk that fails) ends the reading. Secrets are wiped from memory, and so
//! are the buffers they pass through.

mod csv;
mod dn;
mod ldif;
mod lines;

use std::io::{self, Read};

use crate::client::Deposit;
use crate::escrow::compliance::words::MachineType;
use crate::escrow::ids::Invalid;
use crate::escrow::inventory::{Description, ImportedMachine};
use crate::escrow::secrets::{self, SecretKind};
use crate::secret::Secret;

pub use csv::{CsvRows, KEY_COLUMNS, MACHINE_COLUMNS};
pub use ldif::LdifRows;
pub use lines::LINE_MAX_BYTES;

/// One record of a file.
#[derive(Debug)]
pub struct Row {
    /// Where it begins, counted from 1.
    pub line: u64,
    /// What it is.
    pub record: Record,
}

/// What a record is.
#[derive(Debug)]
pub enum Record {
    /// A key to be kept, well formed.
    Key(Box<Deposit>),
    /// A machine to be noted, well formed.
    Machine(Box<ImportedMachine>),
    /// Something else that such files hold, such as users and groups.
    Other,
    /// Not well formed.
    Rejected(Invalid),
}

/// Why a file is not read on.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// It is not text as it should be.
    #[error("the file is UTF-16 or not text at all: save it as UTF-8")]
    Encoding,
    /// What it begins with is not as it should be.
    #[error("line {line}: {invalid}")]
    Header {
        /// Where.
        line: u64,
        /// What.
        #[source]
        invalid: Invalid,
    },
    /// It cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The formats that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// See [`CsvRows`].
    Csv,
    /// See [`LdifRows`].
    Ldif,
}

/// Records as they are read.
pub type Rows = Box<dyn Iterator<Item = Result<Row, ImportError>> + Send>;

/// The records in `source`.
///
/// # Errors
/// [`ImportError`] if it does not begin as it should.
pub fn rows(format: Format, source: impl Read + Send + 'static) -> Result<Rows, ImportError> {
    Ok(match format {
        Format::Csv => Box::new(CsvRows::new(source)?),
        Format::Ldif => Box::new(LdifRows::new(source)),
    })
}

/// A record in pieces. Empty means absent.
struct Pieces<'a> {
    machine: &'a str,
    volume: &'a str,
    kind: &'a str,
    key_id: &'a str,
    secret: Secret,
    package: Option<Secret>,
    user: &'a str,
}

impl Pieces<'_> {
    /// Checks every field as a node would.
    fn deposit(self) -> Result<Deposit, Invalid> {
        for (field, text) in [("machine", self.machine), ("volume", self.volume), ("user", self.user)] {
            check_is_no_secret(field, text)?;
        }
        let kind: SecretKind = self.kind.parse()?;
        if let Some(package) = &self.package {
            secrets::package(package.expose())?;
        }
        Ok(Deposit {
            machine: self.machine.parse()?,
            volume: self.volume.parse()?,
            kind,
            key_id: if self.key_id.is_empty() { None } else { Some(self.key_id.parse()?) },
            secret: secrets::canonical(kind, &self.secret)?,
            package: self.package,
            user: if self.user.is_empty() { None } else { Some(self.user.parse()?) },
            pending: false,
        })
    }
}

/// A machine in pieces. Empty means absent.
struct MachinePieces<'a> {
    machine: &'a str,
    domain: &'a str,
    name: &'a str,
    make: &'a str,
    model: &'a str,
    machine_type: &'a str,
    os: &'a str,
    /// Between semicolons.
    users: &'a str,
}

impl MachinePieces<'_> {
    /// Checks every field as a node would.
    fn imported(self) -> Result<ImportedMachine, Invalid> {
        let Self { machine, domain, name, make, model, machine_type, os, users } = self;
        let shown = [
            ("machine", machine),
            ("domain", domain),
            ("name", name),
            ("make", make),
            ("model", model),
            ("os", os),
            ("users", users),
        ];
        for (field, text) in shown {
            check_is_no_secret(field, text)?;
        }
        let users = users.split(';').map(|user| user.trim_matches(' ')).filter(|user| !user.is_empty());
        let imported = ImportedMachine {
            machine: machine.parse()?,
            description: Description {
                domain: domain.to_owned(),
                name: name.to_owned(),
                make: make.to_owned(),
                model: model.to_owned(),
                machine_type: match machine_type {
                    "" => MachineType::Unknown,
                    word => word.to_ascii_lowercase().parse()?,
                },
                os: os.to_owned(),
            },
            users: users.map(str::parse).collect::<Result<_, _>>()?,
        };
        imported.check()?;
        Ok(imported)
    }
}

/// A recovery key in the wrong column would pass for the name of a machine, which is shown to everybody.
fn check_is_no_secret(field: &str, text: &str) -> Result<(), Invalid> {
    let is_a = |kind| secrets::canonical(kind, &Secret::from(text.to_owned())).is_ok();
    // Words of four letters are words, and 24 letters a serial number: only with its hyphens is it a key of FileVault.
    let is_secret = is_a(SecretKind::BitlockerPassword)
        || is_a(SecretKind::LuksRecovery)
        || (text.matches('-').count() == FILEVAULT_HYPHENS && is_a(SecretKind::FilevaultRecovery));
    if is_secret {
        return Err(Invalid::new(field, "not a recovery key: are the columns in their places?"));
    }
    Ok(())
}

/// Between the groups of a recovery key of FileVault.
const FILEVAULT_HYPHENS: usize = 5;

#[cfg(test)]
mod tests;
