//! A node's configuration: one TOML file, the environment over it, flags over both.
//!
//! The field `listen.api` is `api` in the section `[listen]` of the file, the environment variable
//! `STRONGROOM_NODE__LISTEN__API`, and the flag `--set listen.api=…`. All of them are read by the same reader: what is
//! refused in one is refused in the others.
//!
//! Everything that is wrong is reported at once, each by the name of its field and where its value came from, so that
//! it is mended in one round. Unknown fields are errors: a misspelt limit must not silently be the default.

mod layers;
mod read;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

pub use self::layers::{ENVIRONMENT_PREFIX, Overrides, Source, variable_of};
use self::read::Reader;
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{ClusterName, Invalid, NodeId};

/// Port of the API (gRPC over mTLS) unless configured otherwise.
pub const API_PORT: u16 = 7420;
/// Port for other nodes unless configured otherwise.
pub const PEER_PORT: u16 = 7421;
/// Port of metrics and health unless configured otherwise.
pub const ADMIN_PORT: u16 = 7422;

/// Longest zone name, in bytes.
const ZONE_MAX_BYTES: usize = 63;
/// Node ids: TOML's whole numbers end there.
const NODE_IDS: RangeInclusive<u64> = 1..=i64::MAX as u64;
/// Shorter, and an election would be taken for the loss of a quorum. Longer, and a client would have gone on to another
/// node (`client::attempts` gives each three seconds) before this one has told its peers and shown the key.
const QUORUM_TIMEOUT_MS: RangeInclusive<u64> = 500..=2_400;
const CONNECTIONS: RangeInclusive<u64> = 1..=65_536;
const IN_FLIGHT: RangeInclusive<u64> = 1..=65_536;
const DRAIN_TIMEOUT_MS: RangeInclusive<u64> = 0..=300_000;
const HEARTBEAT_MS: RangeInclusive<u64> = 10..=10_000;
const ELECTION_MS: RangeInclusive<u64> = 30..=120_000;
/// From 1 MiB to 64 GiB.
const SNAPSHOT_LOG_BYTES: RangeInclusive<u64> = 1 << 20..=1 << 36;
const LOG_ENTRIES: RangeInclusive<u64> = 1..=100_000_000;
const FEATURE_LEVELS: RangeInclusive<u64> = 1..=FeatureLevel::SUPPORTED.0 as u64;
/// A follower must be able to miss two heartbeats without calling an election.
const HEARTBEATS_PER_ELECTION: u64 = 3;

/// A node's configuration. Relative paths were resolved against the file's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// The cluster it belongs to: the trust domain of its certificates.
    pub cluster: ClusterName,
    /// Its id in that cluster, from 1; never used again for another node.
    pub node_id: NodeId,
    /// Where it keeps everything that must survive a restart.
    pub data_dir: PathBuf,
    /// Its site or availability zone; may be empty.
    pub zone: String,
    /// Where it listens.
    pub listen: Listen,
    /// Where others reach it.
    pub advertise: Advertise,
    /// Its certificate.
    pub tls: TlsFiles,
    /// Its private identity.
    pub identity: IdentityFile,
    /// How long a reveal waits.
    pub recovery: Recovery,
    /// What it takes on at once.
    pub limits: Limits,
    /// Consensus.
    pub raft: RaftSettings,
    /// How it behaves while the cluster is being upgraded.
    pub upgrade: Upgrade,
}

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listen {
    /// For clients (default `0.0.0.0:7420`).
    pub api: SocketAddr,
    /// For other nodes (default `0.0.0.0:7421`).
    pub peer: SocketAddr,
    /// For metrics and health, without TLS (default `127.0.0.1:7422`).
    pub admin: SocketAddr,
}

/// Where others reach a node: `host:port`. Defaults to where it listens, if that is one address and not all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advertise {
    /// Clients.
    pub api: String,
    /// Other nodes.
    pub peer: String,
}

/// A node's certificate and what it trusts, all PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TlsFiles {
    /// Certificates of the authorities it trusts.
    pub ca: PathBuf,
    /// Its certificate, followed by intermediate ones.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Revocation lists, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crl: Option<PathBuf>,
}

/// A node's private identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityFile {
    /// The age identity that opens the keyring (default `node.key` in the data directory).
    pub node_key: PathBuf,
}

/// How a reveal is decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Recovery {
    /// How long a reveal waits for a quorum, in milliseconds: 500 to 2,400, default 2,000.
    pub quorum_timeout_ms: u64,
}

impl Recovery {
    /// How long a reveal waits for a quorum.
    pub fn quorum_timeout(&self) -> Duration {
        Duration::from_millis(self.quorum_timeout_ms)
    }
}

/// What a node takes on at once; more is refused, so that its memory is bounded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Connections to the API: 1 to 65,536, default 1,024.
    pub max_connections: u64,
    /// Requests that are being worked on: 1 to 65,536, default 1,024.
    pub max_in_flight: u64,
    /// Longest a stopping node waits for requests under way, in milliseconds: 0 to 300,000, default 10,000.
    pub drain_timeout_ms: u64,
}

impl Limits {
    /// Longest a stopping node waits for requests under way.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

/// Consensus: timing, and when the log is cut. The same on all nodes.
///
/// The default timing elects a new leader well within two seconds, and yet three heartbeats of a busy machine may be
/// late before anybody calls an election.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RaftSettings {
    /// How often the leader is heard of, in milliseconds: 10 to 10,000, default 100. More than the longest round trip
    /// between two nodes, with room to spare: an answer that takes longer counts as none, and nobody stays the leader.
    pub heartbeat_ms: u64,
    /// The soonest a follower calls an election without a leader, in milliseconds: at least three heartbeats,
    /// default 400.
    pub election_min_ms: u64,
    /// The latest, in milliseconds: more than the soonest, at most 120,000, default 800.
    pub election_max_ms: u64,
    /// Bytes of log since the last snapshot that call for a new one: 1 MiB to 64 GiB, default 64 MiB.
    pub snapshot_log_bytes: u64,
    /// Entries kept before a snapshot, for followers that are a little behind: 1 to 100,000,000, default 5,000; no more of
    /// them than `snapshot_log_bytes`.
    pub keep_entries: u64,
}

/// How a node behaves while the cluster is being upgraded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Upgrade {
    /// The feature level up to which this node says it supports commands, though its release may support more: 1 up to
    /// what the release supports, which is the default.
    ///
    /// The level of the cluster is raised, for good, as soon as every member supports a higher one; from then on an
    /// older release does not start any more. Set on all nodes before an upgrade, and removed once the newer release
    /// has proved itself, it keeps the way back open: the newer commands are refused until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_feature_level: Option<u64>,
}

impl Upgrade {
    /// The feature level up to which this node says it supports commands.
    pub fn feature_level(&self) -> FeatureLevel {
        let held = self.hold_feature_level.and_then(|level| u32::try_from(level).ok());
        held.map_or(FeatureLevel::SUPPORTED, FeatureLevel)
    }
}

/// Why there is no configuration. Does not name the file: whoever asked for it knows it.
#[derive(Debug)]
pub enum ConfigError {
    /// Fields that are wrong, all of them. Prints one a line.
    Invalid(Vec<Problem>),
    /// The file cannot be read.
    Read(io::Error),
    /// The configuration cannot be written as TOML: a path in it is not UTF-8.
    Render(toml::ser::Error),
    /// The file is not TOML: where, and what is wrong there. The text itself is not repeated, for it may be a secret
    /// in the wrong place.
    Syntax(String),
}

/// A field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which: `listen.api`.
    pub field: String,
    /// What would have been accepted, and where the value departs from it.
    pub expected: String,
    /// Where the value came from, if there is one.
    pub source: Option<Source>,
}

impl Problem {
    /// A problem with `field`.
    pub fn new(field: impl Into<String>, expected: impl Into<String>, source: Option<Source>) -> Self {
        Self { field: field.into(), expected: expected.into(), source }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.expected)?;
        self.source.as_ref().map_or(Ok(()), |source| write!(f, " ({source})"))
    }
}

/// A configuration, and where each of its values came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What a node goes by.
    pub config: Config,
    sources: BTreeMap<String, Source>,
}

impl Loaded {
    /// Reads the file at `path` with `overrides` over it. Relative paths in the file are relative to its directory,
    /// those in `overrides` to the working directory.
    ///
    /// # Errors
    /// [`ConfigError::Read`], [`ConfigError::Syntax`], or [`ConfigError::Invalid`] with everything that is wrong.
    pub fn load(path: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(ConfigError::Read)?;
        Self::parse(&text, overrides, path.parent().unwrap_or(Path::new("")))
    }

    fn parse(text: &str, overrides: Overrides, base_dir: &Path) -> Result<Self, ConfigError> {
        let table = text.parse().map_err(|error| syntax(text, &error))?;
        let mut reader = Reader::new(table, overrides, base_dir);
        let config = Config::read(&mut reader);
        match (config, reader.finish()) {
            (Some(config), (problems, sources)) if problems.is_empty() => Ok(Self { config, sources }),
            (_, (problems, _)) => Err(ConfigError::Invalid(problems)),
        }
    }

    /// Where the value of `field` came from.
    pub fn source(&self, field: &str) -> Source {
        self.sources.get(field).cloned().unwrap_or(Source::Default)
    }

    /// Every field that has a value, with it and where it came from, section by section.
    ///
    /// # Errors
    /// [`ConfigError::Render`] if a path in it is not UTF-8.
    pub fn fields(&self) -> Result<Vec<(String, toml::Value, Source)>, ConfigError> {
        let table = toml::Table::try_from(&self.config).map_err(ConfigError::Render)?;
        let (sections, fields): (Vec<_>, Vec<_>) = table.into_iter().partition(|(_, value)| value.is_table());
        let mut named: Vec<(String, toml::Value)> = fields;
        for (section, value) in sections {
            let toml::Value::Table(fields) = value else { unreachable!("just parted") };
            named.extend(fields.into_iter().map(|(field, value)| (format!("{section}.{field}"), value)));
        }
        Ok(named.into_iter().map(|(field, value)| (field.clone(), value, self.source(&field))).collect())
    }
}

/// Where a text is not TOML.
fn syntax(text: &str, error: &toml::de::Error) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let (line, column) =
        (before.matches('\n').count() + 1, before.chars().rev().take_while(|c| *c != '\n').count() + 1);
    ConfigError::Syntax(format!("line {line}, column {column}: {}", error.message()))
}

impl Config {
    /// Reads the file at `path` alone. Relative paths in it are relative to its directory.
    ///
    /// # Errors
    /// As [`Loaded::load`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Loaded::load(path, Overrides::default())?.config)
    }

    /// Reads `text` alone; relative paths in it are relative to `base_dir`.
    ///
    /// # Errors
    /// [`ConfigError::Syntax`] if it is not TOML, otherwise [`ConfigError::Invalid`] with everything that is wrong.
    pub fn parse(text: &str, base_dir: &Path) -> Result<Self, ConfigError> {
        Ok(Loaded::parse(text, Overrides::default(), base_dir)?.config)
    }

    /// Takes every field off `reader`; `None` only if it has something to report.
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let cluster = reader.required("cluster").and_then(|text| reader.checked("cluster", text, str::parse));
        let node_id = reader.required_number("node_id", NODE_IDS);
        let data_dir = reader.required_path("data_dir");
        let zone = reader.text("zone").unwrap_or_default();
        reader.checked("zone", zone.clone(), check_zone);
        let listen = listen(reader);
        let advertise = advertise(reader, &listen);
        let tls = TlsFiles {
            ca: reader.required_path("tls.ca"),
            cert: reader.required_path("tls.cert"),
            key: reader.required_path("tls.key"),
            crl: reader.path("tls.crl"),
        };
        let node_key = reader.path("identity.node_key").unwrap_or_else(|| data_dir.join("node.key"));
        let recovery = Recovery {
            quorum_timeout_ms: reader.number("recovery.quorum_timeout_ms", QUORUM_TIMEOUT_MS, 2_000),
        };
        let limits = Limits {
            max_connections: reader.number("limits.max_connections", CONNECTIONS, 1_024),
            max_in_flight: reader.number("limits.max_in_flight", IN_FLIGHT, 1_024),
            drain_timeout_ms: reader.number("limits.drain_timeout_ms", DRAIN_TIMEOUT_MS, 10_000),
        };
        let raft = raft(reader);
        let upgrade = Upgrade {
            hold_feature_level: reader.optional_number("upgrade.hold_feature_level", FEATURE_LEVELS),
        };
        let identity = IdentityFile { node_key };
        Some(Self {
            cluster: cluster?,
            node_id,
            data_dir,
            zone,
            listen,
            advertise,
            tls,
            identity,
            recovery,
            limits,
            raft,
            upgrade,
        })
    }

    /// The TOML that [`Config::parse`] reads as this, with every field written out.
    ///
    /// # Errors
    /// [`ConfigError::Render`] if a path in it is not UTF-8.
    pub fn render(&self) -> Result<String, ConfigError> {
        toml::to_string(self).map_err(ConfigError::Render)
    }
}

fn listen(reader: &mut Reader<'_>) -> Listen {
    let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listen = Listen {
        api: reader.address("listen.api", everywhere(API_PORT)),
        peer: reader.address("listen.peer", everywhere(PEER_PORT)),
        admin: reader.address("listen.admin", SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT))),
    };
    if reader.accepts("listen") {
        let Listen { api, peer, admin } = listen;
        for (field, address, other_field, other) in [
            ("listen.peer", peer, "listen.api", api),
            ("listen.admin", admin, "listen.api", api),
            ("listen.admin", admin, "listen.peer", peer),
        ] {
            if clash(address, other) {
                reader.refuse(field, format!("another port than {other_field} ({other}), not {address}"));
            }
        }
    }
    listen
}

/// Whether both cannot be listened on at once.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    // `[::]` also takes the port of IPv4, where the system does not say otherwise.
    let covers = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    let (ip, other_ip) = (one.ip(), other.ip());
    one.port() == other.port() && (ip == other_ip || covers(ip, other_ip) || covers(other_ip, ip))
}

fn advertise(reader: &mut Reader<'_>, listen: &Listen) -> Advertise {
    // A listen address that was refused says nothing about what would be advertised.
    let listen_is_known = reader.accepts("listen");
    let mut one = |field: &str, listen_field: &str, listen: SocketAddr| match reader.text(field) {
        Some(address) => {
            reader.checked(field, address.clone(), check_host_and_port);
            address
        }
        None if listen.ip().is_unspecified() && listen_is_known && reader.accepts(field) => {
            reader.refuse(
                field,
                format!("host:port where others reach this node: needed because {listen_field} is {listen}"),
            );
            String::new()
        }
        None => listen.to_string(),
    };
    let advertise = Advertise {
        api: one("advertise.api", "listen.api", listen.api),
        peer: one("advertise.peer", "listen.peer", listen.peer),
    };
    if reader.accepts("advertise") && listen_is_known && advertise.api == advertise.peer {
        reader.refuse("advertise.peer", format!("another address than advertise.api ({})", advertise.api));
    }
    advertise
}

fn raft(reader: &mut Reader<'_>) -> RaftSettings {
    let raft = RaftSettings {
        heartbeat_ms: reader.number("raft.heartbeat_ms", HEARTBEAT_MS, 100),
        election_min_ms: reader.number("raft.election_min_ms", ELECTION_MS, 400),
        election_max_ms: reader.number("raft.election_max_ms", ELECTION_MS, 800),
        snapshot_log_bytes: reader.number("raft.snapshot_log_bytes", SNAPSHOT_LOG_BYTES, 64 << 20),
        keep_entries: reader.number("raft.keep_entries", LOG_ENTRIES, 5_000),
    };
    if reader.accepts("raft") {
        let RaftSettings { heartbeat_ms, election_min_ms: soonest, election_max_ms: latest, .. } = raft;
        let least = HEARTBEATS_PER_ELECTION * heartbeat_ms;
        if soonest < least {
            reader.refuse(
                "raft.election_min_ms",
                format!(
                    "at least {least} ({HEARTBEATS_PER_ELECTION} times raft.heartbeat_ms), not {soonest}"
                ),
            );
        }
        if latest <= soonest {
            reader.refuse(
                "raft.election_max_ms",
                format!("more than raft.election_min_ms ({soonest}), not {latest}"),
            );
        }
    }
    raft
}

fn check_zone(zone: &str) -> Result<(), Invalid> {
    let well_formed = zone.len() <= ZONE_MAX_BYTES
        && zone.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    let expected = || format!("at most {ZONE_MAX_BYTES} letters, digits, dots, hyphens or underscores");
    if well_formed { Ok(()) } else { Err(Invalid::new("zone", expected())) }
}

/// Checks an address that others are told: an IP address that is one host's, or a DNS name (RFC 1123 §2.1, and
/// underscores, which container networks have in names), and a port.
fn check_host_and_port(text: &str) -> Result<(), Invalid> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_name = |host: &str| {
        let top = host.rsplit('.').next().unwrap_or_default();
        host.len() <= 253 && host.split('.').all(is_label) && !top.bytes().all(|b| b.is_ascii_digit())
    };
    let well_formed = match text.parse::<SocketAddr>() {
        Ok(address) => !address.ip().is_unspecified() && address.port() > 0,
        Err(_) => text.rsplit_once(':').is_some_and(|(host, port)| {
            is_name(host)
                && port.bytes().all(|b| b.is_ascii_digit())
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        }),
    };
    let expected =
        "host:port where others reach this node (a DNS name, an IPv4 address or an [IPv6] address)";
    if well_formed { Ok(()) } else { Err(Invalid::new("address", expected)) }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(problems) => {
                for (n, problem) in problems.iter().enumerate() {
                    write!(f, "{}{problem}", if n > 0 { "\n" } else { "" })?;
                }
                Ok(())
            }
            Self::Read(_) => f.write_str("cannot read the configuration"),
            Self::Render(_) => f.write_str("cannot write the configuration"),
            Self::Syntax(what) => write!(f, "not TOML: {what}"),
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Invalid(_) | Self::Syntax(_) => None,
            Self::Read(error) => Some(error),
            Self::Render(error) => Some(error),
        }
    }
}

#[cfg(test)]
mod tests;
