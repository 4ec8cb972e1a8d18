//! BitLocker keys and machines out of Active Directory: the `msFVE-RecoveryInformation` and `computer` objects of an LDIF
//! export (RFC 2849). Whoever exports only the first imports only keys.
//!
//! Read here and not by a library: there is no maintained LDIF crate to be had, and whatever there was would have to bound
//! what it reads and wipe it. What is needed is small: folded lines, comments, base64, records apart by empty lines. A
//! record of changes is refused by itself, but for `changetype: add`, which is how `ldifde` exports; so is a value that
//! lies behind a URL.
//!
//! | attribute | becomes |
//! |---|---|
//! | `dn` | the machine, by the common name of the computer the object lies under; the key id, in braces in its own |
//! | `msFVE-RecoveryGuid` | the key id: 16 bytes as Windows has them in memory, the first three parts little-endian |
//! | `msFVE-RecoveryPassword` | the secret, of kind `bitlocker-password` |
//! | `msFVE-KeyPackage` | the package |
//! | `msFVE-VolumeGuid` | the volume, by its id; without it, [`UNKNOWN_VOLUME`] |
//!
//! And of a computer, which is named as its keys are:
//!
//! | attribute | becomes |
//! |---|---|
//! | `dn` | the machine, by its common name; its domain, by the `DC` parts |
//! | `dNSHostName` | the name |
//! | `operatingSystem`, `operatingSystemVersion` | the operating system |
//!
//! An account of a service, which the directory takes for a computer too, is none. Everything else of an object, and every
//! other object, is passed over. The names are those of the schema of Active
//! Directory, which Microsoft publishes as MS-ADA2 (attributes) and MS-ADSC (classes).

use std::io::Read;

use uuid::Uuid;
use zeroize::Zeroizing;

use super::csv::base64;
use super::dn::{ComputerName, RecoveryName};
use super::lines::{LINE_MAX_BYTES, Lines};
use super::{ImportError, MachinePieces, Pieces, Record, Row};
use crate::client::Deposit;
use crate::escrow::ids::Invalid;
use crate::escrow::inventory::ImportedMachine;
use crate::escrow::secrets::SecretKind;
use crate::secret::Secret;

/// The volume of a key whose object does not say which it is of.
pub const UNKNOWN_VOLUME: &str = "unknown";

/// The class of the objects, in lower case, as names of attributes are compared here too.
const RECOVERY_INFORMATION: &[u8] = b"msfve-recoveryinformation";
const PASSWORD: &str = "msFVE-RecoveryPassword";
const RECOVERY_GUID: &str = "msFVE-RecoveryGuid";
const VOLUME_GUID: &str = "msFVE-VolumeGuid";
const PACKAGE: &str = "msFVE-KeyPackage";
const COMPUTER: &[u8] = b"computer";
/// Accounts of services: of classes that are made from that of computers.
const SERVICE_ACCOUNTS: [&[u8]; 2] = [b"msds-managedserviceaccount", b"msds-groupmanagedserviceaccount"];
const HOST_NAME: &str = "dNSHostName";
const OS: &str = "operatingSystem";
const OS_VERSION: &str = "operatingSystemVersion";

/// The recovery keys and machines of an export.
pub struct LdifRows<R> {
    lines: Lines<R>,
    /// The logical line that is worked on, and the beginning of the next one, which had to be read to see that it is none.
    current: Logical,
    upcoming: Logical,
    ended: bool,
}

/// A line that was folded to several, in one piece.
struct Logical {
    /// Where it begins; 0 if there is none.
    number: u64,
    bytes: Zeroizing<Vec<u8>>,
    /// It is longer than [`LINE_MAX_BYTES`]; `bytes` is how it begins.
    is_cut: bool,
}

/// An object, as far as it matters.
#[derive(Default)]
struct Object {
    line: u64,
    is_recovery_information: bool,
    is_computer: bool,
    is_service_account: bool,
    dn: Option<Secret>,
    password: Option<Secret>,
    recovery_guid: Option<Secret>,
    volume_guid: Option<Secret>,
    package: Option<Secret>,
    host_name: Option<Secret>,
    os: Option<Secret>,
    os_version: Option<Secret>,
    /// The first thing that is wrong with it.
    fault: Option<Invalid>,
}

impl<R: Read> LdifRows<R> {
    /// Reads nothing yet.
    pub fn new(source: R) -> Self {
        let [current, upcoming] = [Logical::new(), Logical::new()];
        Self { lines: Lines::new(source), current, upcoming, ended: false }
    }

    /// Goes on to the next logical line that is no comment; whether there is one. An empty one ends an object.
    fn advance(&mut self) -> Result<bool, ImportError> {
        loop {
            std::mem::swap(&mut self.current, &mut self.upcoming);
            self.upcoming.number = 0;
            while !self.ended && self.upcoming.number == 0 {
                match self.lines.next()? {
                    None => self.ended = true,
                    Some(line) => match line.bytes.split_first() {
                        Some((b' ', more)) if self.current.may_go_on() => {
                            self.current.append(more, line.is_cut);
                        }
                        _ => {
                            self.upcoming.number = line.number;
                            self.upcoming.bytes.clear();
                            self.upcoming.is_cut = false;
                            self.upcoming.append(line.bytes, line.is_cut);
                        }
                    },
                }
            }
            if self.current.number == 0 {
                if self.ended && self.upcoming.number == 0 {
                    return Ok(false);
                }
            } else if !self.current.bytes.starts_with(b"#") {
                return Ok(true);
            }
        }
    }

    fn next_object(&mut self) -> Result<Option<Object>, ImportError> {
        let mut object = Object::default();
        while self.advance()? {
            if self.current.bytes.is_empty() {
                if object.line > 0 {
                    break;
                }
                continue;
            }
            if object.line == 0 {
                if self.current.bytes.starts_with(b"version:") {
                    continue;
                }
                object.line = self.current.number;
            }
            if let Err(invalid) = object.take(&self.current) {
                object.fault.get_or_insert(invalid);
            }
        }
        Ok(Some(object).filter(|object| object.line > 0))
    }
}

impl<R: Read> Iterator for LdifRows<R> {
    type Item = Result<Row, ImportError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_object().transpose().map(|object| {
            object.map(|object| Row {
                line: object.line,
                record: object.into_record().unwrap_or_else(Record::Rejected),
            })
        })
    }
}

impl Logical {
    fn new() -> Self {
        // It never grows, which would leave copies behind.
        Self { number: 0, bytes: Zeroizing::new(Vec::with_capacity(LINE_MAX_BYTES)), is_cut: false }
    }

    /// Whether there is a line that another one can continue: an empty one cannot be.
    fn may_go_on(&self) -> bool {
        self.number > 0 && !self.bytes.is_empty()
    }

    fn append(&mut self, more: &[u8], is_cut: bool) {
        let room = LINE_MAX_BYTES - self.bytes.len();
        self.is_cut |= is_cut || more.len() > room;
        self.bytes.extend_from_slice(&more[..more.len().min(room)]);
    }
}

impl Object {
    fn take(&mut self, line: &Logical) -> Result<(), Invalid> {
        let at = |expected: &str| Invalid::new("ldif", format!("{expected} on line {}", line.number));
        if line.bytes.starts_with(b" ") {
            return Err(at("no space at the beginning, which goes on with a line,"));
        }
        let colon = line.bytes.iter().position(|byte| *byte == b':');
        let (name, value) = line.bytes.split_at(colon.ok_or_else(|| at("attribute: value"))?);
        // An option, as in `;binary`, says how a value is transferred, and not what it is.
        let name = name.split(|byte| *byte == b';').next().unwrap_or_default().to_ascii_lowercase();
        let value = &value[1..];
        let (slot, field) = match name.as_slice() {
            b"dn" => (&mut self.dn, "dn"),
            b"msfve-recoverypassword" => (&mut self.password, PASSWORD),
            b"msfve-recoveryguid" => (&mut self.recovery_guid, RECOVERY_GUID),
            b"msfve-volumeguid" => (&mut self.volume_guid, VOLUME_GUID),
            b"msfve-keypackage" => (&mut self.package, PACKAGE),
            b"dnshostname" => (&mut self.host_name, HOST_NAME),
            b"operatingsystem" => (&mut self.os, OS),
            b"operatingsystemversion" => (&mut self.os_version, OS_VERSION),
            b"objectclass" => {
                let class = decoded("objectClass", value)?;
                let class = class.expose().trim_ascii().to_ascii_lowercase();
                self.is_recovery_information |= class == RECOVERY_INFORMATION;
                self.is_computer |= class == COMPUTER;
                self.is_service_account |= SERVICE_ACCOUNTS.contains(&&class[..]);
                return Ok(());
            }
            b"changetype" if value.trim_ascii().eq_ignore_ascii_case(b"add") => return Ok(()),
            b"changetype" | b"control" => {
                return Err(at(
                    "what a directory holds and not a change of it: `changetype: add` at the most",
                ));
            }
            _ => return Ok(()),
        };
        if line.is_cut {
            return Err(Invalid::new(field, format!("at most {LINE_MAX_BYTES} bytes")));
        }
        if slot.is_some() {
            return Err(Invalid::new(field, "one value, not several"));
        }
        *slot = Some(decoded(field, value)?);
        Ok(())
    }

    /// What it is.
    fn into_record(self) -> Result<Record, Invalid> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.is_recovery_information {
            return Ok(Record::Key(Box::new(self.into_deposit()?)));
        }
        if self.is_computer && !self.is_service_account {
            return Ok(Record::Machine(Box::new(self.machine()?)));
        }
        Ok(Record::Other)
    }

    fn dn(&self) -> Result<&str, Invalid> {
        let dn = self.dn.as_ref().and_then(Secret::expose_text);
        dn.ok_or_else(|| Invalid::new("dn", "the name of the object, in UTF-8"))
    }

    fn machine(&self) -> Result<ImportedMachine, Invalid> {
        let ComputerName { computer, domain } = ComputerName::parse(self.dn()?)?;
        let text = |field: &str, value: &'_ Option<Secret>| {
            let Some(value) = value else { return Ok(String::new()) };
            let text = value.expose_text().ok_or_else(|| Invalid::new(field, "UTF-8 text"))?;
            Ok(text.trim().to_owned())
        };
        let os = [text(OS, &self.os)?, text(OS_VERSION, &self.os_version)?].join(" ");
        MachinePieces {
            machine: &computer,
            domain: &domain,
            name: &text(HOST_NAME, &self.host_name)?,
            make: "",
            model: "",
            machine_type: "",
            os: os.trim(),
            users: "",
        }
        .imported()
    }

    fn into_deposit(self) -> Result<Deposit, Invalid> {
        let RecoveryName { key_id, computer } = RecoveryName::parse(self.dn()?)?;
        if let Some(stated) = &self.recovery_guid
            && guid(RECOVERY_GUID, stated)? != key_id
        {
            return Err(Invalid::new(RECOVERY_GUID, "the id that the name of the object has in braces"));
        }
        let volume = self.volume_guid.as_ref().map(|stated| guid(VOLUME_GUID, stated)).transpose()?;
        let volume = volume.map_or_else(|| UNKNOWN_VOLUME.to_owned(), |id| id.to_string());
        let secret = self.password.ok_or_else(|| {
            let expected = "a value; whoever exports it needs the right to read confidential attributes";
            Invalid::new(PASSWORD, expected)
        })?;
        let pieces = Pieces {
            machine: &computer,
            volume: &volume,
            kind: SecretKind::BitlockerPassword.as_str(),
            key_id: &key_id.to_string(),
            secret,
            package: self.package,
            user: "",
        };
        pieces.deposit()
    }
}

/// The value behind the colon of an attribute.
fn decoded(field: &str, value: &[u8]) -> Result<Secret, Invalid> {
    match value.split_first() {
        Some((b':', text)) => base64(field, text.trim_ascii()),
        Some((b'<', _)) => Err(Invalid::new(field, "a value, not a URL of one")),
        _ => {
            let spaces = value.iter().take_while(|byte| **byte == b' ').count();
            Ok(Secret::new(value[spaces..].to_vec()))
        }
    }
}

/// A GUID as Windows has it in memory.
fn guid(field: &str, value: &Secret) -> Result<Uuid, Invalid> {
    Uuid::from_slice_le(value.expose()).map_err(|_| Invalid::new(field, "16 bytes, in base64"))
}
