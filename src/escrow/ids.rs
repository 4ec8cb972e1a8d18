//! Names of things: machines, volumes, keys, users, nodes, requests, and who is asking.
//!
//! Every id validates when it is made, so that a value of the type is always well formed, wherever it
//! came from: parsing and deserialisation go through the same constructor.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A member of the cluster, from its configuration. Never used twice in the life of a cluster.
pub type NodeId = u64;

/// Longest machine id, in bytes. A NetBIOS name has 15, a DNS label 63.
pub const MACHINE_ID_MAX_BYTES: usize = 63;
/// Longest volume id, in bytes: room for a device path or a volume GUID path.
pub const VOLUME_ID_MAX_BYTES: usize = 128;
/// Longest domain or account name of a user, in bytes (an Active Directory account name has at most 20, a
/// user principal name's local part 64).
pub const USER_PART_MAX_BYTES: usize = 64;
/// Longest cluster name or identity name, in bytes: a SPIFFE trust domain has at most 255, a label 63.
pub const NAME_MAX_BYTES: usize = 63;

/// An id or a field that is not well formed: which field, what was expected, never the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{field}: {expected}")]
pub struct Invalid {
    /// The field at fault, as the caller knows it: `machine`, `volume`, `key_id`, `secret`, …
    pub field: String,
    /// What would have been accepted, and where the value departs from it.
    pub expected: String,
}

impl Invalid {
    /// An error for `field`, saying what was `expected`.
    pub fn new(field: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { field: field.into(), expected: expected.into() }
    }
}

/// Whether a text shows as what it is: no control characters, none that break a line, and none of those that are not seen
/// themselves and change how others are, as marks that turn the direction of writing (Unicode's category Cf). But for the
/// two joiners, with which Persian, languages of India and emoji are written.
pub fn is_plain(text: &str) -> bool {
    !text.chars().any(|letter| {
        letter.is_control()
            || matches!(letter,
                '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
                | '\u{8e2}' | '\u{180e}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
                | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e007f}')
    })
}

/// Declares a validated string id: `FromStr`, `Display`, serde through `FromStr`.
macro_rules! string_id {
    ($(#[$doc:meta])* $name:ident, $field:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;
            fn try_from(text: String) -> Result<Self, Invalid> {
                let check: fn(&str) -> Result<(), String> = $check;
                check(&text).map_err(|expected| Invalid::new($field, expected))?;
                Ok(Self(text))
            }
        }

        impl FromStr for $name {
            type Err = Invalid;
            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// A name usable in a SPIFFE path segment (SPIFFE-ID §2.2: letters, digits, dot, hyphen, underscore).
fn check_name(text: &str, max: usize) -> Result<(), String> {
    let well_formed = (1..=max).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        && !text.bytes().all(|b| b == b'.');
    if well_formed {
        Ok(())
    } else {
        Err(format!("1 to {max} letters, digits, dots, hyphens or underscores"))
    }
}

string_id!(
    /// The stable id of a device. It is also the name in its agent's certificate.
    MachineId, "machine", |text| check_name(text, MACHINE_ID_MAX_BYTES)
);

string_id!(
    /// A volume of a machine: `C:`, `/dev/nvme0n1p2`, a volume GUID path.
    VolumeId, "volume", |text| {
        let well_formed = (1..=VOLUME_ID_MAX_BYTES).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        if well_formed { Ok(()) } else { Err(format!("1 to {VOLUME_ID_MAX_BYTES} printable ASCII characters without spaces")) }
    }
);

string_id!(
    /// The name of a cluster: the trust domain of its identities (SPIFFE-ID §2.1, lower case).
    ClusterName, "cluster", |text| {
        let well_formed = (1..=NAME_MAX_BYTES).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
        if well_formed { Ok(()) } else { Err(format!("1 to {NAME_MAX_BYTES} lower-case letters, digits, dots, hyphens or underscores")) }
    }
);

/// The id of a recovery key: the protector's GUID for BitLocker, otherwise a UUID drawn by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId(pub Uuid);

impl FromStr for KeyId {
    type Err = Invalid;
    /// Accepts upper and lower case, with or without braces, as BitLocker prints it.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Uuid::try_parse(text)
            .map(Self)
            .map_err(|_| Invalid::new("key_id", "a UUID: 32 hexadecimal digits in groups of 8-4-4-4-12"))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One attempt of one caller, however often it is sent: a retry carries the same id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of one cluster's history. A cluster rebuilt after loss of quorum gets a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub Uuid);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A user of a machine, `DOMAIN\NAME`. Compared without regard to case, as Windows does; kept as written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UserName {
    domain: String,
    name: String,
}

impl UserName {
    /// The form under which users are compared and indexed: both parts in lower case.
    ///
    /// Letter by letter: the lower case of a whole word depends on where a Greek sigma stands in it, so that a name
    /// and its own upper case would differ.
    pub fn folded(&self) -> String {
        self.to_string().chars().flat_map(char::to_lowercase).collect()
    }
}

impl PartialEq for UserName {
    fn eq(&self, other: &Self) -> bool {
        self.folded() == other.folded()
    }
}

impl Eq for UserName {}

impl FromStr for UserName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let well_formed = |part: &str| {
            (1..=USER_PART_MAX_BYTES).contains(&part.len())
                && is_plain(part)
                && !part.chars().any(|c| c.is_whitespace() || c == '\\')
        };
        match text.split_once('\\') {
            Some((domain, name)) if well_formed(domain) && well_formed(name) => {
                Ok(Self { domain: domain.to_owned(), name: name.to_owned() })
            }
            _ => Err(Invalid::new(
                "user",
                format!(r"DOMAIN\NAME, each part 1 to {USER_PART_MAX_BYTES} bytes without spaces"),
            )),
        }
    }
}

impl TryFrom<String> for UserName {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<UserName> for String {
    fn from(user: UserName) -> String {
        user.to_string()
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, r"{}\{}", self.domain, self.name)
    }
}

/// Milliseconds since the Unix epoch, stamped by the proposer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use time::macros::format_description;
        const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] =
            format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
        let text = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000)
            .ok()
            .and_then(|at| at.format(FORMAT).ok());
        match text {
            Some(text) => f.write_str(&text),
            // Past year 9999: no calendar form, but never an error while printing.
            None => write!(f, "@{}ms", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = Invalid;
    /// RFC 3339, cut to milliseconds, and whatever [`Timestamp`] itself shows.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        use time::format_description::well_known::Rfc3339;
        let past_calendar = text.strip_prefix('@').and_then(|rest| rest.strip_suffix("ms"));
        let milliseconds = match past_calendar {
            Some(digits) => digits.parse().ok(),
            None => time::OffsetDateTime::parse(text, &Rfc3339)
                .ok()
                .and_then(|at| u64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).ok()),
        };
        let expected = "a time from 1970 on as RFC 3339, such as 2030-01-31T12:00:00Z";
        milliseconds.map(Self).ok_or_else(|| Invalid::new("time", expected))
    }
}

/// What an identity may do. Kept in the certificate as the first path segment of its SPIFFE URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A device: escrows and asks for its own machine only.
    Agent,
    /// Reads reports and the audit trail.
    Auditor,
    /// Reveals a key to a user who is named and known on the machine.
    Helpdesk,
    /// Reveals a key by its id alone.
    HelpdeskAdvanced,
    /// Escrows for any machine, in bulk.
    Importer,
    /// A member of the cluster.
    Node,
    /// Sets policy and rotates the keyring.
    Officer,
    /// Adds and removes nodes, backs up, upgrades.
    Operator,
    /// An end user, who sees only keys of machines on which that user was recorded.
    SelfService,
}

impl Role {
    /// Every role, in the order of their names.
    pub const ALL: [Self; 9] = [
        Self::Agent,
        Self::Auditor,
        Self::Helpdesk,
        Self::HelpdeskAdvanced,
        Self::Importer,
        Self::Node,
        Self::Officer,
        Self::Operator,
        Self::SelfService,
    ];

    /// The name as it stands in certificates and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Auditor => "auditor",
            Self::Helpdesk => "helpdesk",
            Self::HelpdeskAdvanced => "helpdesk-advanced",
            Self::Importer => "importer",
            Self::Node => "node",
            Self::Officer => "officer",
            Self::Operator => "operator",
            Self::SelfService => "self-service",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            Invalid::new("role", format!("one of {names}"))
        })
    }
}

/// Who is asking: a SPIFFE id, `spiffe://<cluster>/<role>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Identity {
    /// The cluster that vouches for it.
    pub cluster: ClusterName,
    /// What it may do.
    pub role: Role,
    /// Who it is within the role: a machine id for agents, a node id for nodes, `DOMAIN/NAME` for an end user, otherwise
    /// a person or service.
    pub name: String,
}

impl Identity {
    /// An identity of `role` and `name` in `cluster`.
    ///
    /// # Errors
    /// [`Invalid`] if the name does not fit in a SPIFFE path segment, is not a node id for [`Role::Node`], or not two
    /// segments, the user's domain and name, for [`Role::SelfService`].
    pub fn new(cluster: ClusterName, role: Role, name: &str) -> Result<Self, Invalid> {
        match (role, name.split_once('/')) {
            (Role::SelfService, Some((domain, user))) => {
                for part in [domain, user] {
                    check_name(part, NAME_MAX_BYTES)
                        .map_err(|expected| Invalid::new("name", format!("DOMAIN/NAME, each {expected}")))?;
                }
            }
            (Role::SelfService, None) => {
                return Err(Invalid::new("name", "DOMAIN/NAME: the end user, as machines record that user"));
            }
            _ => check_name(name, NAME_MAX_BYTES).map_err(|expected| Invalid::new("name", expected))?,
        }
        let identity = Self { cluster, role, name: name.to_owned() };
        if role == Role::Node && identity.node_id().is_none() {
            return Err(Invalid::new("name", "a node id: a whole number from 1, without leading zeros"));
        }
        Ok(identity)
    }

    /// The node id, if this is a node.
    pub fn node_id(&self) -> Option<NodeId> {
        let id: NodeId = self.name.parse().ok().filter(|id| *id > 0)?;
        (self.role == Role::Node && id.to_string() == self.name).then_some(id)
    }

    /// The user of machines that this is, if it is an end user.
    pub fn user(&self) -> Option<UserName> {
        let (domain, name) = self.name.split_once('/').filter(|_| self.role == Role::SelfService)?;
        Some(UserName { domain: domain.to_owned(), name: name.to_owned() })
    }

    /// The person behind it, by which limits are counted and approvals told apart: the account, whatever the role and
    /// the domain, for somebody with two roles is one person still, and only an end user is named with a domain.
    ///
    /// Two people whose accounts have one name count as one: they see fewer keys and approve less, never more.
    pub fn person(&self) -> String {
        let account = self.name.rsplit_once('/').map_or(self.name.as_str(), |(_, account)| account);
        account.to_lowercase()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/{}/{}", self.cluster, self.role, self.name)
    }
}

impl FromStr for Identity {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let shape = || Invalid::new("identity", "spiffe://<cluster>/<role>/<name>");
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(shape)?.splitn(3, '/');
        let (Some(cluster), Some(role), Some(name)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(shape());
        };
        Self::new(cluster.parse()?, role.parse()?, name)
    }
}

impl TryFrom<String> for Identity {
    type Error = Invalid;
    fn try_from(text: String) -> Result<Self, Invalid> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> String {
        identity.to_string()
    }
}
