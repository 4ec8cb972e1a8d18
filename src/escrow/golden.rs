//! Runs the scripts under `scripts/`: commands against a state in memory, and what they answer. After an intended
//! change, `UPDATE_GOLDENFILES=1 cargo test --lib escrow::golden` writes the answers anew, to be read before they
//! are committed.
//!
//! | command | does |
//! |---|---|
//! | `init [cluster=HEX] [by=]` | initialises the cluster |
//! | `escrow machine= [volume=] [kind=] [fp=HEX] [key=HEX] [package=BYTES] [size=BYTES] [user=] [sealed=VERSION] [by=]` | escrows |
//! | `reveal key=HEX [reason=] [user=] [by=]` | reveals |
//! | `admit node= [storage=HEX] [generation=] [version=] [peer=] [by=]` | admits a node |
//! | `level level= [by=]` | raises the feature level |
//! | `recover-cluster cluster=HEX survivor= [generation=] [version=] [by=]` | begins a new history |
//! | `remove node= [generation=] [version=] [by=]` | removes a node |
//! | `policy [replaces=] [policy=JSON] [by=]` | sets the policy |
//! | `decide approval=HEX [granted=] [by=]` | decides about a reveal |
//! | `reconcile key=HEX [journal=HEX] [sequence=] [of=HEX] [shown=SECONDS] [asked-by=] [denied=] [approval=HEX] [by=]` | puts a reveal without a quorum on record |
//! | `alone key=HEX [reason=] [user=] [by=] [node=] [drawn=HEX]` | asks for a reveal at a node that has no quorum |
//! | `alone-decide approval=HEX [granted=] [by=] [node=]` | decides about one there |
//! | `alone-list [node=] [at=]` | shows what can be approved or used there |
//! | `heal [entries=SEQUENCE/…] [node=]` | puts entries of its journal on record, all by default, and drops them as the node does |
//! | `rotate [generation=] [version=] [by=]` | rotates the data key |
//! | `reseal version= [after=HEX] [rows=] [keys=HEX/…] [was=VERSION] [size=BYTES] [todo=] [by=]` | seals keys anew that were escrowed under version `was` |
//! | `drop-keys [generation=] [version=] [by=]` | drops older data keys |
//! | `pending …` | escrows ahead of use; as `escrow` |
//! | `batch … [times=]` | puts an escrow into the next batch, or several that are the same; as `escrow` |
//! | `escrow-many [by=]` | escrows the batch in one entry |
//! | `confirm key=HEX machine= [by=]` | confirms a key; by default as an importer |
//! | `standing machine=` | shows what a machine is told when it asks |
//! | `put machine=ID/… [told=SECONDS] [c=CONVERSION] [protection=] [method=] [protectors=…] [keys=HEX/…] [reasons=CODE/…] [percent=] [d=CONVERSION] [user=] [enforcement=] [error=CODE] [model=] [label=] [seen=SECONDS] [by=]` | reports compliance; `C:` by default is as it should be |
//! | `contact …` | notes that this was reported before; as `put` |
//! | `exempt machine= [reason=] [until=SECONDS] [by=]` | asks for an exemption |
//! | `decide-exemption machine= exemption=HEX [decision=grant\|reject\|revoke] [until=SECONDS] [by=]` | decides about one |
//! | `compliance-policy [replaces=] [policy=JSON] [by=]` | sets the policy of compliance |
//! | `judge machine= [now=SECONDS] [as-of=SECONDS]` | shows verdict and findings; as of a time by what was known then |
//! | `history machine=` | shows the changes of state that are kept |
//! | `report report= [now=SECONDS] [as-of=SECONDS] [machine=] [filter=PATTERN] [status=…/…] [finding=…/…] [domain=] [user=] [after=] [days=] [users=] [since=SECONDS] [until=SECONDS] [actor=]` | shows the rows of a report, what is empty left out |
//! | `find [key=PREFIX] [machine=] [user=] [limit=] [asked-only=] [seen-by=]` | looks keys up |
//! | `audit` | shows and verifies the audit chain |
//! | `count` | shows how many rows each table has |
//! | `dump TABLE…` | shows the rows of tables |
//!
//! Commands that are applied also take `at=SECONDS` since the beginning (by default one more than the last),
//! `request=HEX` (by default a new one) and `address=`. `by=role/name` is who asks, `by=cluster:role/name` one of
//! another cluster. `HEX` is repeated until an id is full.

mod compliance;
mod reports;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::{Display, Write as _};
use std::str::FromStr;

use goldenscript::ArgumentConsumer;
use uuid::Uuid;

use super::apply::{apply, sealed_digest};
use super::audit::{ChainHead, verify};
use super::command::{
    Action, AdmitNode, BatchedEscrow, Command, ConfirmKey, DecideApproval, DropDataKeys, Escrow,
    EscrowAnswer, Escrowed, Initialize, RaiseFeatureLevel, Reconcile, RecoverCluster, Refusal, RemoveNode,
    Reply, Reseal, ResealedKey, Reveal, RotateKeyring, SetPolicy,
};
use super::features::FeatureLevel;
use super::ids::{ClusterId, Identity, KeyId, RequestId, Timestamp};
use super::journal::{DegradedReveal, JournalEntry, JournalPlace, Knowledge, Noted};
use super::lookup;
use super::memory::Memory;
use super::records::{AuditEvent, Fingerprint, KeyringRecord, LogPosition, NodeRecord, Sealed, Source};
use super::rotation;

mod alone;

type Outcome<T = String> = Result<T, Box<dyn Error>>;

/// One test a script, of the same name.
macro_rules! scripts {
    ($($name:ident),*) => {
        mod scripts {
            $(
                #[test]
                fn $name() {
                    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/escrow/scripts/", stringify!($name));
                    goldenscript::run(&mut super::Script::default(), path).unwrap();
                }
            )*
        }
    };
}

scripts!(
    admit,
    alone,
    approval,
    clock,
    compliance,
    compliance_policy,
    compliance_verdict,
    escrow,
    escrow_many,
    exemption,
    feature_level,
    find,
    initialize,
    inventory,
    limits,
    old_data_key,
    policy,
    reconcile,
    recover_cluster,
    remove,
    replay,
    reports,
    reseal,
    reveal,
    rotate,
    rotation,
    self_service
);

/// 2026-01-01T00:00:00Z, where every script begins.
const BEGINNING_MS: u64 = 1_767_225_600_000;

#[derive(Default)]
struct Script {
    state: Memory,
    index: u64,
    seconds: u64,
    requests: u128,
    /// Of each node that decides without a quorum; all others are told.
    journals: BTreeMap<u64, alone::Journal>,
    batch: Vec<BatchedEscrow>,
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &goldenscript::Context) -> Outcome {
        let mut args = command.consume_args();
        let output = match command.name.as_str() {
            "alone" => self.alone(&mut args)?,
            "alone-decide" => self.alone_decide(&mut args)?,
            "alone-list" => self.alone_list(&mut args)?,
            "heal" => self.heal(&mut args)?,
            "admit" => self.apply(&mut args, "operator/ops1", admit)?,
            "audit" => self.audit()?,
            "compliance-policy" => {
                self.apply(&mut args, "officer/olga", |args, _| compliance::set_policy(args))?
            }
            "contact" => {
                let told = self.next(command)?;
                self.apply(&mut args, "importer/imp", |args, _| compliance::contact(args, told))?
            }
            "decide-exemption" => {
                self.apply(&mut args, "officer/olga", |args, _| compliance::decide(args))?
            }
            "exempt" => self.apply(&mut args, "helpdesk/desk1", |args, _| compliance::exempt(args))?,
            "history" => compliance::history(&self.state, &mut args)?,
            "judge" => compliance::judge(&self.state, &mut args, at(self.seconds))?,
            "report" => reports::report(&self.state, &mut args, at(self.seconds))?,
            "put" => {
                let told = self.next(command)?;
                self.apply(&mut args, "importer/imp", |args, _| compliance::put(args, told))?
            }
            "import" => self.apply(&mut args, "importer/imp", |args, _| compliance::import(args))?,
            "count" => self.count(),
            "decide" => self.apply(&mut args, "officer/olga", decide)?,
            "dump" => self.dump(&mut args)?,
            "batch" => self.batch(&mut args)?,
            "escrow" => self.apply(&mut args, "importer/imp", escrow)?,
            "escrow-many" => {
                let batch = std::mem::take(&mut self.batch);
                self.apply(&mut args, "importer/imp", |_, _| Ok(Action::EscrowMany(batch)))?
            }
            "find" => self.find(&mut args)?,
            "level" => self.apply(&mut args, "node/1", raise)?,
            "init" => self.apply(&mut args, "node/1", initialize)?,
            "pending" => self.apply(&mut args, "importer/imp", pending)?,
            "confirm" => self.apply(&mut args, "importer/imp", confirm)?,
            "standing" => self.standing(&mut args)?,
            "policy" => self.apply(&mut args, "officer/olga", set_policy)?,
            "reconcile" => self.apply(&mut args, "node/2", reconcile)?,
            "recover-cluster" => self.apply(&mut args, "node/1", recover_cluster)?,
            "remove" => self.apply(&mut args, "operator/ops1", remove)?,
            "rotate" => self.apply(&mut args, "operator/ops1", rotate)?,
            "reseal" => {
                let state = self.state.clone();
                self.apply(&mut args, "node/1", |args, _| reseal(args, &state))?
            }
            "drop-keys" => self.apply(&mut args, "node/1", drop_keys)?,
            "reveal" => self.apply(&mut args, "helpdesk-advanced/desk2", reveal)?,
            other => return Err(format!("no command {other}").into()),
        };
        args.reject_next()?;
        Ok(output)
    }
}

impl Script {
    /// The stamp of the command that comes next.
    fn next(&self, command: &goldenscript::Command) -> Outcome<Timestamp> {
        Ok(at(optional(&mut command.consume_args(), "at")?.unwrap_or(self.seconds + 1)))
    }

    fn apply(
        &mut self,
        args: &mut ArgumentConsumer<'_>,
        by: &str,
        action: impl FnOnce(&mut ArgumentConsumer<'_>, u128) -> Outcome<Action>,
    ) -> Outcome {
        self.index += 1;
        self.requests += 1;
        self.seconds = optional(args, "at")?.unwrap_or(self.seconds + 1);
        let command = Command {
            request: RequestId(id(args, "request")?.unwrap_or(Uuid::from_u128(self.requests))),
            at: at(self.seconds),
            by: identity(args.take_key("by").unwrap_or(by))?,
            source: Source { node: 1, address: args.take_key("address").unwrap_or("192.0.2.7").to_owned() },
            action: action(args, self.requests)?,
        };
        let position = LogPosition { term: 1, index: self.index };
        Ok(describe(&apply(&mut self.state, position, &command)?))
    }

    fn batch(&mut self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        self.requests += 1;
        let times: usize = optional(args, "times")?.unwrap_or(1);
        let request = RequestId(id(args, "request")?.unwrap_or(Uuid::from_u128(self.requests)));
        if let Action::Escrow(escrow) = escrow(args, self.requests)? {
            self.batch.extend(vec![BatchedEscrow { request, escrow }; times]);
        }
        Ok(String::new())
    }

    fn find(&self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let query = lookup::Query {
            key_id_prefix: optional(args, "key")?,
            machine: optional(args, "machine")?,
            user: optional(args, "user")?,
            limit: optional(args, "limit")?.unwrap_or(0),
            names_asked_only: optional(args, "asked-only")?.unwrap_or(false),
            ..Default::default()
        };
        let query = match optional(args, "seen-by")? {
            Some(user) => query.seen_by(user),
            None => query,
        };
        let found = lookup::find(&self.state, &query)?;
        let mut text = String::new();
        for lookup::FoundKey { key, history, owes_since, users, rotation_owed_since } in found.keys {
            write!(text, "{} {} {} {} {}", key.id, key.machine, key.volume, key.kind, key.state)?;
            let users: Vec<String> = users.iter().map(ToString::to_string).collect();
            write!(text, " users={}", users.join(","))?;
            if let Some(since) = rotation_owed_since {
                write!(text, " rotation-owed-since={since}")?;
            }
            if let Some(since) = owes_since.filter(|since| Some(*since) != rotation_owed_since) {
                write!(text, " owes-since={since}")?;
            }
            if let Some(at) = history.retired_at {
                write!(text, " retired-at={at} replaced-by={}", or_none(history.replaced_by))?;
            }
            writeln!(text)?;
        }
        if found.truncated {
            writeln!(text, "truncated")?;
        }
        Ok(if text.is_empty() { "nothing".to_owned() } else { text })
    }

    fn standing(&self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let id = required(args, "machine")?;
        let Some(machine) = lookup::machine(&self.state, &id)? else { return Ok("no machine".to_owned()) };
        let standing = rotation::standing(&self.state, &machine)?;
        let mut text = format!("owed since {}\n", or_none(standing.owed_since));
        for (key, owes) in standing.keys {
            writeln!(text, "{} {} {} {} owes={}", key.id, key.volume, key.kind, key.state, or_none(owes))?;
        }
        Ok(text)
    }

    fn audit(&self) -> Outcome {
        let records = lookup::audit(&self.state, 0, lookup::AUDIT_PAGE_MAX)?;
        verify(&records, ChainHead::default(), lookup::heads(&self.state)?.audit)?;
        let mut text = String::new();
        for record in records {
            write!(text, "{} {} {} index={} ", record.sequence, record.at, record.by, record.position.index)?;
            match record.event {
                AuditEvent::ClusterInitialized => writeln!(text, "initialized")?,
                AuditEvent::ClusterRecovered { survivor, lost, previous } => {
                    writeln!(text, "recovered survivor={survivor} lost={lost:?} previous={previous}")?;
                }
                AuditEvent::FeatureLevelRaised { level } => writeln!(text, "feature-level={level}")?,
                AuditEvent::NodeRemoved { node } => writeln!(text, "removed node={node}")?,
                AuditEvent::PolicySet { version, policy } => {
                    writeln!(text, "policy version={version} {} bytes", policy.len())?;
                }
                AuditEvent::ApprovalAsked { approval, key_id, machine, user, reason, expires_at } => {
                    writeln!(
                        text,
                        "approval-asked {approval} key={key_id} machine={machine} user={} reason={reason:?} expires={expires_at}",
                        or_none(user),
                    )?
                }
                AuditEvent::ApprovalDecided { approval, key_id, machine, user, asked_by, granted } => {
                    writeln!(
                        text,
                        "approval-decided {approval} key={key_id} machine={machine} user={} asked-by={asked_by} granted={granted}",
                        or_none(user),
                    )?
                }
                AuditEvent::ApprovalUsed { approval, key_id, machine, user, asked_by, granted_by } => {
                    writeln!(
                        text,
                        "approval-used {approval} key={key_id} machine={machine} user={} asked-by={asked_by} granted-by={granted_by}",
                        or_none(user),
                    )?
                }
                AuditEvent::RevealReconciled { place, reveal } => writeln!(
                    text,
                    "reconciled entry={place} at={} by={} node={} key={} machine={} user={} reason={:?} denied={}",
                    reveal.at,
                    reveal.by,
                    reveal.source.node,
                    reveal.key_id,
                    or_none(reveal.machine),
                    or_none(reveal.user),
                    reveal.reason,
                    or_none(reveal.denied),
                )?,
                AuditEvent::ApprovalAskReconciled { place, ask } => writeln!(
                    text,
                    "reconciled entry={place} at={} by={} node={} asks-for={} key={} machine={} user={} reason={:?} expires={}",
                    ask.at,
                    ask.by,
                    ask.source.node,
                    ask.approval,
                    ask.key_id,
                    ask.machine,
                    or_none(ask.user),
                    ask.reason,
                    ask.expires_at,
                )?,
                AuditEvent::ApprovalDecisionReconciled { place, decision } => writeln!(
                    text,
                    "reconciled entry={place} at={} by={} node={} decides={} key={} asked-by={} granted={} denied={}",
                    decision.at,
                    decision.by,
                    decision.source.node,
                    decision.approval,
                    decision.key_id,
                    decision.asked_by,
                    decision.granted,
                    or_none(decision.denied),
                )?,
                AuditEvent::RevealRepeated { place, key_id, node, at, audit_sequence } => {
                    writeln!(
                        text,
                        "repeated entry={place} at={at} node={node} key={key_id} record={audit_sequence}"
                    )?;
                }
                AuditEvent::KeyringRotated { key_version } => {
                    writeln!(text, "rotated key-version={key_version}")?
                }
                AuditEvent::DataKeysDropped { key_version } => {
                    writeln!(text, "dropped older-than={key_version}")?;
                }
                AuditEvent::KeyConfirmed { key_id, machine, replaced, rotation_owed_since } => {
                    writeln!(
                        text,
                        "key-confirmed key={key_id} machine={machine} replaced={} owed-since={}",
                        ids(&replaced),
                        or_none(rotation_owed_since),
                    )?;
                }
                AuditEvent::ApprovalRefused {
                    approval,
                    key_id,
                    machine,
                    user,
                    asked_by,
                    granted,
                    denied,
                } => writeln!(
                    text,
                    "approval-refused {approval} key={} machine={} user={} asked-by={} granted={granted} denied={denied}",
                    or_none(key_id),
                    or_none(machine),
                    or_none(user),
                    or_none(asked_by),
                )?,
                AuditEvent::ExemptionRequested { exemption, machine, reason, until } => writeln!(
                    text,
                    "exemption-requested {exemption} machine={machine} reason={reason:?} until={}",
                    or_none(until)
                )?,
                AuditEvent::ExemptionDecided { exemption, machine, asked_by, decision } => writeln!(
                    text,
                    "exemption-decided {exemption} machine={machine} asked-by={asked_by} {decision:?}"
                )?,
                AuditEvent::CompliancePolicySet { version, policy } => {
                    writeln!(text, "compliance-policy version={version} {} bytes", policy.len())?;
                }
                AuditEvent::ApprovalUsedAgain { approval, key_id, machine, user, used_by, first_use } => {
                    writeln!(
                        text,
                        "approval-used-again {approval} key={key_id} machine={} user={} used-by={used_by} first-use={first_use}",
                        or_none(machine),
                        or_none(user),
                    )?
                }
                AuditEvent::ApprovalAskedAgain { approval, key_id, machine, user, times } => writeln!(
                    text,
                    "approval-asked-again {approval} key={key_id} machine={machine} user={} times={times}",
                    or_none(user),
                )?,
                AuditEvent::DenialsUnrecorded { count, until } => {
                    writeln!(text, "denials-unrecorded count={count} until={until}")?;
                }
                AuditEvent::EscrowConflict { key_id, machine } => {
                    writeln!(text, "escrow-conflict key={key_id} machine={machine}")?;
                }
                AuditEvent::NodeAdmitted { node } => writeln!(text, "admitted node={node}")?,
                AuditEvent::Reveal { key_id, machine, user, reason, denied } => writeln!(
                    text,
                    "reveal key={key_id} machine={} user={} reason={reason:?} denied={}",
                    or_none(machine),
                    or_none(user),
                    or_none(denied),
                )?,
            }
        }
        Ok(text)
    }

    fn count(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let dump = self.state.dump();
        for line in dump.lines() {
            *counts.entry(line.split('(').next().unwrap()).or_default() += 1;
        }
        let counts: Vec<String> = counts.iter().map(|(table, count)| format!("{table}={count}")).collect();
        counts.join(" ")
    }

    fn dump(&self, args: &mut ArgumentConsumer<'_>) -> Outcome {
        let mut text = String::new();
        while let Some(table) = args.next_pos() {
            let rows = self.state.dump();
            let rows = rows.lines().filter(|line| line.starts_with(&format!("{table}(")));
            rows.for_each(|line| text.extend([line, "\n"]));
        }
        Ok(text)
    }
}

fn initialize(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::Initialize(Initialize {
        cluster: ClusterId(id(args, "cluster")?.unwrap_or(Uuid::from_u128(0xc))),
        name: "acme".parse()?,
        offline_recipient: "age1offline".to_owned(),
        node: node(args, 1)?,
        keyring: keyring(args, 1)?,
    }))
}

fn escrow(args: &mut ArgumentConsumer<'_>, drawn: u128) -> Outcome<Action> {
    let given = id(args, "key")?;
    let key_version = optional(args, "sealed")?.unwrap_or(1);
    let sealed = |length: usize| Sealed { key_version, nonce: [7; 12], ciphertext: vec![7; length] };
    let mut fingerprint = [0; 32];
    let half = id(args, "fp")?.unwrap_or(Uuid::from_u128(0xf));
    fingerprint[..16].copy_from_slice(half.as_bytes());
    Ok(Action::Escrow(Escrow {
        key_id: KeyId(given.unwrap_or(Uuid::from_u128(drawn))),
        key_id_given: given.is_some(),
        machine: required(args, "machine")?,
        volume: optional(args, "volume")?.map_or_else(|| "C:".parse(), Ok)?,
        kind: optional(args, "kind")?.map_or_else(|| "bitlocker-password".parse(), Ok)?,
        sealed: sealed(optional(args, "size")?.unwrap_or(20)),
        sealed_package: optional(args, "package")?.map(sealed),
        fingerprint: Fingerprint(fingerprint),
        user: optional(args, "user")?,
    }))
}

fn pending(args: &mut ArgumentConsumer<'_>, drawn: u128) -> Outcome<Action> {
    match escrow(args, drawn)? {
        Action::Escrow(escrow) => Ok(Action::EscrowPending(escrow)),
        other => Ok(other),
    }
}

fn confirm(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::ConfirmKey(ConfirmKey {
        machine: required(args, "machine")?,
        key_id: KeyId(id(args, "key")?.ok_or("key= is missing")?),
    }))
}

fn reveal(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::Reveal(Reveal {
        key_id: KeyId(id(args, "key")?.ok_or("key= is missing")?),
        user: optional(args, "user")?,
        reason: args.take_key("reason").unwrap_or("lost PIN").to_owned(),
    }))
}

fn admit(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    let node_id = required(args, "node")?;
    Ok(Action::AdmitNode(AdmitNode { node: node(args, node_id)?, keyring: keyring(args, 2)? }))
}

fn raise(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::RaiseFeatureLevel(RaiseFeatureLevel { level: FeatureLevel(required(args, "level")?) }))
}

fn recover_cluster(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::RecoverCluster(RecoverCluster {
        cluster: ClusterId(id(args, "cluster")?.ok_or("cluster= is missing")?),
        survivor: required(args, "survivor")?,
        keyring: keyring(args, 2)?,
    }))
}

fn remove(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::RemoveNode(RemoveNode { node: required(args, "node")?, keyring: keyring(args, 2)? }))
}

fn set_policy(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::SetPolicy(SetPolicy {
        policy: args.take_key("policy").unwrap_or("{}").to_owned(),
        replaces: optional(args, "replaces")?.unwrap_or(0),
    }))
}

fn reconcile(args: &mut ArgumentConsumer<'_>, drawn: u128) -> Outcome<Action> {
    let seconds: u64 = optional(args, "shown")?.unwrap_or(1);
    Ok(Action::Reconcile(Reconcile {
        entry: JournalEntry {
            place: JournalPlace {
                journal: id(args, "journal")?.unwrap_or(Uuid::from_u128(0x10)),
                sequence: optional(args, "sequence")?.unwrap_or(1),
            },
            previous: [0; 32],
            what: Noted::Reveal(DegradedReveal {
                request: RequestId(id(args, "of")?.unwrap_or(Uuid::from_u128(drawn << 32))),
                at: Timestamp(BEGINNING_MS + 1_000 * seconds),
                by: identity(args.take_key("asked-by").unwrap_or("helpdesk-advanced/desk2"))?,
                source: Source { node: 3, address: "192.0.2.9".to_owned() },
                key_id: KeyId(id(args, "key")?.ok_or("key= is missing")?),
                machine: optional(args, "machine")?,
                user: optional(args, "user")?,
                reason: args.take_key("reason").unwrap_or("lost PIN").to_owned(),
                denied: args.take_key("denied").map(|why| Refusal::Denied(why.to_owned())),
                approval: id(args, "approval")?.map(RequestId),
                knowledge: Knowledge {
                    position: LogPosition { term: 1, index: 2 },
                    quorum_age_ms: Some(5_000),
                    policy_version: 0,
                },
            }),
        },
    }))
}

fn decide(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::DecideApproval(DecideApproval {
        approval: RequestId(id(args, "approval")?.ok_or("approval= is missing")?),
        granted: optional(args, "granted")?.unwrap_or(true),
    }))
}

fn rotate(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::RotateKeyring(RotateKeyring { keyring: keyring(args, 2)? }))
}

fn drop_keys(args: &mut ArgumentConsumer<'_>, _: u128) -> Outcome<Action> {
    Ok(Action::DropDataKeys(DropDataKeys { keyring: keyring(args, 3)? }))
}

/// Keys as the state has them, but for what they are sealed as.
fn reseal(args: &mut ArgumentConsumer<'_>, state: &Memory) -> Outcome<Action> {
    let key_version = required(args, "version")?;
    let was: Option<u32> = optional(args, "was")?;
    let size: Option<usize> = optional(args, "size")?;
    let anew = |sealed: &Sealed| Sealed {
        key_version,
        nonce: [8; 12],
        ciphertext: vec![8; size.unwrap_or(sealed.ciphertext.len())],
    };
    let mut keys = Vec::new();
    for digits in args.take_key("keys").unwrap_or_default().split('/').filter(|digits| !digits.is_empty()) {
        let key_id = KeyId(full(digits)?);
        let mut key = lookup::key(state, key_id)?.ok_or("no such key")?;
        if let Some(was) = was {
            key.sealed.key_version = was;
        }
        let (sealed, sealed_package) = (anew(&key.sealed), key.sealed_package.as_ref().map(anew));
        keys.push(ResealedKey { key_id, was: sealed_digest(&key), sealed, sealed_package });
    }
    Ok(Action::Reseal(Reseal {
        key_version,
        after: id(args, "after")?.map(KeyId),
        to_do: optional(args, "todo")?.unwrap_or(0),
        rows: optional(args, "rows")?.unwrap_or(2),
        keys,
    }))
}

fn node(args: &mut ArgumentConsumer<'_>, node: u64) -> Outcome<NodeRecord> {
    Ok(NodeRecord {
        id: node,
        peer_address: args.take_key("peer").unwrap_or("192.0.2.1:7421").to_owned(),
        api_address: "192.0.2.1:7420".to_owned(),
        zone: "north".to_owned(),
        storage: id(args, "storage")?.unwrap_or(Uuid::from_u128(u128::from(node))),
        recipient: "age1node".to_owned(),
        admitted_at: Timestamp(0),
    })
}

fn keyring(args: &mut ArgumentConsumer<'_>, generation: u64) -> Outcome<KeyringRecord> {
    let generation = optional(args, "generation")?.unwrap_or(generation);
    let current_key_version = optional(args, "version")?.unwrap_or(1);
    Ok(KeyringRecord { generation, current_key_version, age_file: generation.to_be_bytes().to_vec() })
}

fn describe(reply: &Reply) -> String {
    match reply {
        Reply::Escrowed(kept) => escrowed(kept),
        Reply::EscrowedMany(answers) => {
            let mut lines: Vec<String> = answers.iter().map(answered).collect();
            // Of many that are the same, one is enough to read.
            lines.dedup();
            lines.join("\n")
        }
        Reply::ClusterRecovered => "recovered".to_owned(),
        Reply::FeatureLevel(level) => format!("feature level {level}"),
        Reply::Initialized => "initialized".to_owned(),
        Reply::NodeAdmitted => "admitted".to_owned(),
        Reply::NodeRemoved => "removed".to_owned(),
        Reply::PolicySet { version } => format!("policy version {version}"),
        Reply::ApprovalAsked(asked) => {
            format!("needs approval {} until {}", asked.approval, asked.expires_at)
        }
        Reply::ComplianceNoted(outcomes) => compliance::describe(outcomes),
        Reply::MachinesImported(outcomes) => compliance::describe_import(outcomes),
        Reply::ExemptionRequested { exemption } => format!("exemption {exemption} requested"),
        Reply::ExemptionDecided => "exemption decided".to_owned(),
        Reply::CompliancePolicySet { version } => format!("compliance policy version {version}"),
        Reply::ApprovalDecided => "decided".to_owned(),
        Reply::Reconciled { audit_sequence } => format!("reconciled audit={}", or_none(*audit_sequence)),
        Reply::KeyringRotated { key_version } => format!("rotated to data key {key_version}"),
        Reply::DataKeysDropped => "dropped".to_owned(),
        Reply::Resealed(pass) => format!(
            "resealed={} left={} remaining={} after={}{}",
            pass.resealed,
            pass.left,
            pass.remaining(),
            or_none(pass.after),
            if pass.done { " done" } else { "" }
        ),
        Reply::OldDataKey { current } => old_data_key(*current),
        Reply::KeyConfirmed(confirmed) => format!(
            "confirmed key={} {} replaced={} owed-since={}",
            confirmed.key_id,
            confirmed.state,
            ids(&confirmed.replaced),
            or_none(confirmed.rotation_owed_since)
        ),
        Reply::Refused(refusal) => refused(refusal),
        Reply::Revealed(shown) => format!(
            "revealed key={} audit={} at={} index={}",
            shown.key_id, shown.audit_sequence, shown.at, shown.position.index
        ),
    }
}

/// Seconds since the beginning.
fn at(seconds: u64) -> Timestamp {
    Timestamp(BEGINNING_MS + 1_000 * seconds)
}

fn answered(answer: &EscrowAnswer) -> String {
    match answer {
        EscrowAnswer::Escrowed(kept) => escrowed(kept),
        EscrowAnswer::OldDataKey { current } => old_data_key(*current),
        EscrowAnswer::Refused(refusal) => refused(refusal),
    }
}

fn escrowed(kept: &Escrowed) -> String {
    format!(
        "escrowed key={} {} {} fp={} at={} index={}{}",
        kept.key_id,
        kept.machine,
        kept.volume,
        &kept.fingerprint.to_string()[..8],
        kept.at,
        kept.position.index,
        if kept.already_escrowed { " already" } else { "" }
    )
}

fn old_data_key(current: u32) -> String {
    format!("sealed with an old data key, the current one is {current}")
}

fn refused(refusal: &Refusal) -> String {
    let kind = format!("{refusal:?}");
    format!("refused, {}: {refusal}", kind.split('(').next().unwrap())
}

fn identity(text: &str) -> Outcome<Identity> {
    let (cluster, path) = text.split_once(':').unwrap_or(("acme", text));
    Ok(format!("spiffe://{cluster}/{path}").parse()?)
}

fn optional<T: FromStr<Err: Error + 'static>>(
    args: &mut ArgumentConsumer<'_>,
    key: &str,
) -> Outcome<Option<T>> {
    Ok(args.take_key(key).map(str::parse).transpose()?)
}

fn required<T: FromStr<Err: Error + 'static>>(args: &mut ArgumentConsumer<'_>, key: &str) -> Outcome<T> {
    optional(args, key)?.ok_or_else(|| format!("{key}= is missing").into())
}

/// The digits given, repeated until they fill an id.
fn id(args: &mut ArgumentConsumer<'_>, key: &str) -> Outcome<Option<Uuid>> {
    args.take_key(key).map(full).transpose()
}

fn full(digits: &str) -> Outcome<Uuid> {
    let digits: String = digits.chars().filter(|c| *c != '-').cycle().take(32).collect();
    Ok(digits.parse()?)
}

fn ids(ids: &[KeyId]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| id.to_string()[..8].to_owned()).collect();
    if ids.is_empty() { "none".to_owned() } else { ids.join(",") }
}

fn or_none(value: Option<impl Display>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| value.to_string())
}
