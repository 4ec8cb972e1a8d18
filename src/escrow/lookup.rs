//! What can be read of the state, at whatever index it is given: keys by id, machine or user, and the single rows
//! that the rooms above need. Nothing here shows a secret: a key record holds it sealed.

use std::cmp::{Ordering, Reverse};
use std::fmt;
use std::str::FromStr;

use super::compliance::history::CHANGES_MAX;
use super::compliance::{
    ComplianceChange, CompliancePolicy, CompliancePolicyRecord, ComplianceRecord, Exemption, KeyFacts, Known,
    LastContact, Said, Stood,
};
use super::features::FeatureLevel;
use super::ids::{Invalid, KeyId, MachineId, NodeId, RequestId, Timestamp, UserName};
use super::inventory::InventoryRecord;
use super::journal::{JournalEntry, JournalPlace};
use super::policy::document::Policy;
use super::records::{
    Approval, AuditRecord, ClusterRecord, DenialTally, DepartedNode, ExemptionTally, FeatureLevelRecord,
    KeyHistory, KeyRecord, KeyringRecord, MachineRecord, NodeRecord, PolicyRecord, ReconciledEntry,
    ResealRecord,
};
use super::rotation::{MachineKeyState, keys_of};
use super::rows::{Heads, MachineKey, ONLY_ROW, UserMachine, node_key, number_key};
use super::state::{Row, Rows, StateError};
use super::tally::Slots;

/// Fewest digits of a key id prefix: what BitLocker's recovery screen shows first.
pub const KEY_ID_PREFIX_MIN_DIGITS: usize = 8;
/// How many keys are found if no limit is given.
pub const FIND_LIMIT_DEFAULT: usize = 100;
/// Most keys that are found at once.
pub const FIND_LIMIT_MAX: usize = 1_000;
/// Most rows looked at for one query; what has not been found by then is reported as truncated.
pub const FIND_ROWS_MAX: usize = 10_000;
/// Most rows looked at by [`find_briefly`].
pub const FIND_BRIEFLY_ROWS_MAX: usize = 8;
/// Most audit records read at once.
pub const AUDIT_PAGE_MAX: usize = 1_000;
/// How many rows are read at a time.
const PAGE: usize = 128;

/// Why a lookup failed.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The query is not well formed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The storage failed.
    #[error(transparent)]
    State(#[from] StateError),
}

/// The first digits of a key id, at least [`KEY_ID_PREFIX_MIN_DIGITS`] of them.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyIdPrefix {
    /// Lower-case hexadecimal digits.
    digits: String,
}

impl KeyIdPrefix {
    /// The digits, in lower case.
    pub fn digits(&self) -> &str {
        &self.digits
    }

    pub(super) fn matches(&self, id: KeyId) -> bool {
        id.0.simple().to_string().starts_with(&self.digits)
    }

    /// The whole bytes of it; an odd last digit is left to [`KeyIdPrefix::matches`].
    fn row_prefix(&self) -> Vec<u8> {
        let even = &self.digits.as_bytes()[..self.digits.len() & !1];
        data_encoding::HEXLOWER.decode(even).expect("an even number of lower-case digits, by construction")
    }
}

impl FromStr for KeyIdPrefix {
    type Err = Invalid;
    /// Ignores hyphens, braces and case.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let digits: String =
            text.chars().filter(|c| !matches!(c, '-' | '{' | '}')).map(|c| c.to_ascii_lowercase()).collect();
        let well_formed = (KEY_ID_PREFIX_MIN_DIGITS..=32).contains(&digits.len())
            && digits.bytes().all(|c| c.is_ascii_hexdigit());
        if well_formed {
            return Ok(Self { digits });
        }
        let expected = format!("the first {KEY_ID_PREFIX_MIN_DIGITS} to 32 hexadecimal digits of a key id");
        Err(Invalid::new("key_id", expected))
    }
}

impl fmt::Debug for KeyIdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyIdPrefix({})", self.digits)
    }
}

/// Which keys to find: those that match everything that is given. At least one must be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// How the key's id begins.
    pub key_id_prefix: Option<KeyIdPrefix>,
    /// Whose key it is.
    pub machine: Option<MachineId>,
    /// Who was seen on its machine.
    pub user: Option<UserName>,
    /// At most this many; 0 stands for [`FIND_LIMIT_DEFAULT`].
    pub limit: usize,
    /// Of the users of a machine, name the one that is asked for alone: who asks must know it.
    pub names_asked_only: bool,
    /// Who asks, if an end user: only machines of that user are looked at, and no other user of them is named.
    pub seen_by: Option<UserName>,
}

impl Query {
    /// The query as an end user may ask it; without anything to look for, for all keys of that user's machines.
    #[must_use]
    pub fn seen_by(mut self, user: UserName) -> Self {
        if self.key_id_prefix.is_none() && self.machine.is_none() && self.user.is_none() {
            self.user = Some(user.clone());
        }
        self.seen_by = Some(user);
        self
    }
}

/// A key and what is known of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundKey {
    /// The key; its secret is sealed.
    pub key: KeyRecord,
    /// What became of it.
    pub history: KeyHistory,
    /// Since when it owes a rotation itself.
    pub owes_since: Option<Timestamp>,
    /// Users seen on its machine, the last seen at the end.
    pub users: Vec<UserName>,
    /// Since when its machine owes a rotation.
    pub rotation_owed_since: Option<Timestamp>,
}

/// What a query found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The keys: machine by machine, volume by volume, the newest of a volume first, so that an old one never stands
    /// before the one that replaced it.
    pub keys: Vec<FoundKey>,
    /// There may be more than these.
    pub truncated: bool,
}

/// Finds keys.
///
/// # Errors
/// [`LookupError::Invalid`] if nothing is asked for or the limit is above [`FIND_LIMIT_MAX`];
/// [`LookupError::State`] if the storage fails.
pub fn find<S: Rows>(rows: &S, query: &Query) -> Result<Found, LookupError> {
    Ok(search(rows, query, FIND_ROWS_MAX)?.found)
}

/// As [`find`]; `None` if more than [`FIND_BRIEFLY_ROWS_MAX`] rows have to be looked at.
///
/// # Errors
/// As [`find`].
pub fn find_briefly<S: Rows>(rows: &S, query: &Query) -> Result<Option<Found>, LookupError> {
    let search = search(rows, query, FIND_BRIEFLY_ROWS_MAX)?;
    Ok((!search.gave_up).then_some(search.found))
}

fn search<'a, S: Rows>(rows: &'a S, query: &'a Query, rows_max: usize) -> Result<Search<'a, S>, LookupError> {
    let limit = match query.limit {
        0 => FIND_LIMIT_DEFAULT,
        limit if limit <= FIND_LIMIT_MAX => limit,
        _ => return Err(Invalid::new("limit", format!("at most {FIND_LIMIT_MAX}")).into()),
    };
    let mut search =
        Search { rows, query, limit, rows_max, looked_at: 0, gave_up: false, found: Found::default() };
    // Whether a search ended or was stopped is in what it found.
    let _ = match (&query.key_id_prefix, &query.machine, &query.user) {
        (Some(prefix), _, _) => search.by_prefix(prefix)?,
        (None, Some(machine), _) => search.by_machine(machine)?,
        (None, None, Some(user)) => search.by_user(user)?,
        (None, None, None) => {
            return Err(Invalid::new("query", "a key id prefix, a machine or a user").into());
        }
    };
    search.found.keys.sort_by(|one, other| newest_first(&one.key, &other.key));
    Ok(search)
}

/// Which of two keys is listed first.
fn newest_first(one: &KeyRecord, other: &KeyRecord) -> Ordering {
    let place = |key: &KeyRecord| (key.machine.clone(), key.volume.clone(), Reverse(key.position), key.id);
    place(one).cmp(&place(other))
}

/// One query while it is answered. Its steps say whether to go on.
struct Search<'a, S> {
    rows: &'a S,
    query: &'a Query,
    limit: usize,
    /// Most rows that are looked at.
    rows_max: usize,
    looked_at: usize,
    /// There were more.
    gave_up: bool,
    found: Found,
}

impl<S: Rows> Search<'_, S> {
    fn by_prefix(&mut self, prefix: &KeyIdPrefix) -> Result<bool, StateError> {
        self.each(&prefix.row_prefix(), |search, key: KeyRecord| {
            if !prefix.matches(key.id)
                || search.query.machine.as_ref().is_some_and(|asked| *asked != key.machine)
            {
                return Ok(true);
            }
            let Some(machine) = search.machine(&key.machine)? else { return Ok(true) };
            search.take(key, &machine)
        })
    }

    fn by_user(&mut self, user: &UserName) -> Result<bool, StateError> {
        self.each(&UserMachine::prefix(user), |search, row: UserMachine| search.by_machine(&row.machine))
    }

    fn by_machine(&mut self, id: &MachineId) -> Result<bool, StateError> {
        let Some(machine) = self.machine(id)? else { return Ok(true) };
        // All of them before any is taken: their ids say nothing of which are the newest, and those are wanted first.
        let mut keys: Vec<KeyRecord> = Vec::new();
        let goes_on = self.each(&MachineKey::prefix(id), |search, row: MachineKey| {
            keys.extend(search.rows.row::<KeyRecord>(&row.key_id.row_key())?);
            Ok(true)
        })?;
        keys.sort_by(newest_first);
        for key in keys {
            if !self.take(key, &machine)? {
                return Ok(false);
            }
        }
        Ok(goes_on)
    }

    /// The machine, unless it is not one of the user that is asked for, or of the end user who asks.
    fn machine(&self, id: &MachineId) -> Result<Option<MachineRecord>, StateError> {
        let machine: Option<MachineRecord> = self.rows.row(&id.row_key())?;
        let Query { user, seen_by, .. } = self.query;
        let has = |machine: &MachineRecord, user: &Option<UserName>| {
            user.as_ref().is_none_or(|user| machine.users.contains(user))
        };
        // Naming somebody else would tell who else uses the machine.
        let names_another = seen_by.is_some() && user.is_some() && user != seen_by;
        Ok(machine.filter(|machine| !names_another && has(machine, user) && has(machine, seen_by)))
    }

    fn take(&mut self, key: KeyRecord, machine: &MachineRecord) -> Result<bool, StateError> {
        if self.found.keys.len() == self.limit {
            self.found.truncated = true;
            return Ok(false);
        }
        let history = history(self.rows, key.id)?;
        let known = MachineKeyState { key, history };
        let owes_since = known.owes_since(machine);
        let MachineKeyState { key, history } = known;
        let MachineRecord { mut users, rotation_owed_since, .. } = machine.clone();
        let Query { user: asked, seen_by, names_asked_only, .. } = self.query;
        users.retain(|user| seen_by.as_ref().is_none_or(|own| own == user));
        users.retain(|user| !names_asked_only || asked.as_ref() == Some(user));
        self.found.keys.push(FoundKey { key, history, owes_since, users, rotation_owed_since });
        Ok(true)
    }

    /// Goes through the rows under `prefix`, page by page, while `step` says to go on and the bound allows.
    fn each<R: Row>(
        &mut self,
        prefix: &[u8],
        mut step: impl FnMut(&mut Self, R) -> Result<bool, StateError>,
    ) -> Result<bool, StateError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            // One more than may be looked at, to know whether there are more.
            let size = PAGE.min(self.rows_max - self.looked_at + 1);
            let page: Vec<R> = self.rows.rows(prefix, after.as_deref(), size)?;
            let last = page.len() < size;
            after = page.last().map(Row::key);
            for row in page {
                if self.looked_at == self.rows_max {
                    self.gave_up = true;
                    self.found.truncated = true;
                    return Ok(false);
                }
                self.looked_at += 1;
                if !step(self, row)? {
                    return Ok(false);
                }
            }
            if last {
                return Ok(true);
            }
        }
    }
}

/// The key of this id.
///
/// # Errors
/// [`StateError`] if the storage fails; so for all below.
pub fn key<S: Rows>(rows: &S, id: KeyId) -> Result<Option<KeyRecord>, StateError> {
    rows.row(&id.row_key())
}

/// What became of the key of this id.
pub fn history<S: Rows>(rows: &S, id: KeyId) -> Result<KeyHistory, StateError> {
    let none = || KeyHistory { key_id: id, disclosed_at: None, retired_at: None, replaced_by: None };
    Ok(rows.row(&id.row_key())?.unwrap_or_else(none))
}

/// The machine of this id.
pub fn machine<S: Rows>(rows: &S, id: &MachineId) -> Result<Option<MachineRecord>, StateError> {
    rows.row(&id.row_key())
}

/// The cluster, once it is initialised.
pub fn cluster<S: Rows>(rows: &S) -> Result<Option<ClusterRecord>, StateError> {
    rows.row(ONLY_ROW)
}

/// The sealed keyring, once the cluster is initialised.
pub fn keyring<S: Rows>(rows: &S) -> Result<Option<KeyringRecord>, StateError> {
    rows.row(ONLY_ROW)
}

/// The last stamp and the head of the audit chain.
pub fn heads<S: Rows>(rows: &S) -> Result<Heads, StateError> {
    Ok(rows.row(ONLY_ROW)?.unwrap_or_default())
}

/// The node registered under this id.
pub fn node<S: Rows>(rows: &S, id: NodeId) -> Result<Option<NodeRecord>, StateError> {
    rows.row(&node_key(id))
}

/// Every node that was ever registered, by id.
pub fn nodes<S: Rows>(rows: &S) -> Result<Vec<NodeRecord>, StateError> {
    rows.rows(&[], None, super::apply::NODES_MAX)
}

/// The nodes that left, by id.
pub fn departed<S: Rows>(rows: &S) -> Result<Vec<DepartedNode>, StateError> {
    rows.rows(&[], None, super::apply::NODES_MAX)
}

/// Whether the node with this id left. That is never taken back.
pub fn has_departed<S: Rows>(rows: &S, id: NodeId) -> Result<bool, StateError> {
    let departed: Option<DepartedNode> = rows.row(&node_key(id))?;
    Ok(departed.is_some())
}

/// Up to which feature level commands are allowed.
pub fn feature_level<S: Rows>(rows: &S) -> Result<FeatureLevel, StateError> {
    let record: Option<FeatureLevelRecord> = rows.row(ONLY_ROW)?;
    Ok(record.map_or(FeatureLevel::FIRST, |record| record.level))
}

/// The policy of reveals as an officer set it, if one did.
pub fn policy_record<S: Rows>(rows: &S) -> Result<Option<PolicyRecord>, StateError> {
    rows.row(ONLY_ROW)
}

/// The policy of reveals that is followed.
pub fn policy<S: Rows>(rows: &S) -> Result<Policy, StateError> {
    policy_record(rows)?.map_or_else(|| Ok(Policy::default()), |record| Policy::stored(&record.policy))
}

/// The reveals that wait for a second person or were approved and not used yet, by key, at `now`.
pub fn approvals<S: Rows>(rows: &S, now: Timestamp) -> Result<Vec<Approval>, StateError> {
    let mut approvals: Vec<Approval> = rows.rows(&[], None, super::apply::APPROVALS_MAX)?;
    approvals.retain(|approval| approval.expires_at > now);
    Ok(approvals)
}

/// The reveal that was asked for as `id`, decided or not, expired or not. Found by looking at all, which are few.
pub fn approval<S: Rows>(rows: &S, id: RequestId) -> Result<Option<Approval>, StateError> {
    let all: Vec<Approval> = rows.rows(&[], None, super::apply::APPROVALS_MAX)?;
    Ok(all.into_iter().find(|approval| approval.id == id))
}

/// How often `person` was denied of late.
pub fn denials<S: Rows>(rows: &S, person: &str) -> Result<DenialTally, StateError> {
    let row = rows.row(&DenialTally::row_key(person))?;
    let none = || DenialTally { person: person.to_owned(), slots: Slots::default(), unrecorded: 0 };
    Ok(row.unwrap_or_else(none))
}

/// How often `person` asked for an exemption of late.
pub fn exemption_requests<S: Rows>(rows: &S, person: &str) -> Result<ExemptionTally, StateError> {
    let row = rows.row(&DenialTally::row_key(person))?;
    Ok(row.unwrap_or_else(|| ExemptionTally { person: person.to_owned(), slots: Slots::default() }))
}

/// What became of the entry of a journal, once it is on record. Another one in its place says nothing of it.
pub fn reconciled<S: Rows>(rows: &S, entry: &JournalEntry) -> Result<Option<ReconciledEntry>, StateError> {
    rows.row(&ReconciledEntry::row_key(&entry.place, &entry.hash()))
}

/// Whether another entry is on record in the place of this one: the journal of one of them was put back to an older copy,
/// or is used by two nodes.
pub fn is_displaced<S: Rows>(rows: &S, entry: &JournalEntry) -> Result<bool, StateError> {
    let there: Vec<ReconciledEntry> = rows.rows(&entry.place.row_key(), None, 2)?;
    let hash = entry.hash();
    Ok(there.iter().any(|known| known.hash != hash))
}

/// Whether an entry of a journal is on record that comes after `last`, which is the last one that this journal knows of.
pub fn is_put_back<S: Rows>(rows: &S, last: &JournalPlace) -> Result<bool, StateError> {
    let after = ReconciledEntry::row_key(last, &[u8::MAX; 32]);
    let later: Vec<ReconciledEntry> = rows.rows(last.journal.as_bytes(), Some(&after), 1)?;
    Ok(!later.is_empty())
}

/// When a machine was last heard of, and by what it said last.
pub fn last_contact<S: Rows>(rows: &S, machine: &MachineId) -> Result<Option<LastContact>, StateError> {
    rows.row(&machine.row_key())
}

/// What a machine said last, without what that was.
pub fn said<S: Rows>(rows: &S, machine: &MachineId) -> Result<Option<Said>, StateError> {
    Ok(last_contact(rows, machine)?.and_then(|contact| contact.said))
}

/// Whether what a machine said last has this digest. One small row is read for that, and not what it said.
pub fn said_last<S: Rows>(rows: &S, machine: &MachineId, digest: &[u8; 32]) -> Result<bool, StateError> {
    Ok(said(rows, machine)?.is_some_and(|said| said.digest == *digest))
}

/// The newest that is known of the compliance of a machine.
pub fn compliance<S: Rows>(rows: &S, machine: &MachineId) -> Result<Option<ComplianceRecord>, StateError> {
    let Some(record) = rows.row::<ComplianceRecord>(&machine.row_key())? else { return Ok(None) };
    Ok(Some(record.with_times_of(said(rows, machine)?.as_ref())))
}

/// The changes of state of a machine, the oldest first: what [`as_of`](super::compliance::history::as_of) looks at.
pub fn compliance_changes<S: Rows>(
    rows: &S,
    machine: &MachineId,
) -> Result<Vec<ComplianceChange>, StateError> {
    let mut changes: Vec<ComplianceChange> =
        rows.rows(&ComplianceChange::prefix(machine), None, CHANGES_MAX)?;
    if let Some(said) = said(rows, machine)? {
        said.tell_again_in(&mut changes);
    }
    Ok(changes)
}

/// What imports say of a machine, if one did.
pub fn inventory<S: Rows>(rows: &S, machine: &MachineId) -> Result<Option<InventoryRecord>, StateError> {
    rows.row(&machine.row_key())
}

/// The exemption of a machine, if one was ever asked for.
pub fn exemption<S: Rows>(rows: &S, machine: &MachineId) -> Result<Option<Exemption>, StateError> {
    rows.row(&machine.row_key())
}

/// The policy of compliance as an officer set it, if one did.
pub fn compliance_policy_record<S: Rows>(rows: &S) -> Result<Option<CompliancePolicyRecord>, StateError> {
    rows.row(ONLY_ROW)
}

/// The policy of compliance that is followed.
pub fn compliance_policy<S: Rows>(rows: &S) -> Result<CompliancePolicy, StateError> {
    compliance_policy_record(rows)?
        .map_or_else(|| Ok(CompliancePolicy::default()), |record| CompliancePolicy::stored(&record.policy))
}

/// What is known of the compliance of a machine: now, or at an earlier time by what had been told and escrowed by then.
/// `None` if the machine is not known at all. `now` is the time that is asked at.
///
/// Now is not just the latest time: a device whose clock is a little ahead tells of the next minute.
pub fn known<S: Rows>(
    rows: &S,
    id: &MachineId,
    as_of: Option<Timestamp>,
    now: Timestamp,
) -> Result<Option<Known>, StateError> {
    let Some(machine) = machine(rows, id)? else { return Ok(None) };
    let (record, contact) = (compliance(rows, id)?, last_contact(rows, id)?);
    let stood = match as_of {
        None => Stood::now(record.as_ref(), contact.as_ref()),
        Some(at) => Stood::then(&compliance_changes(rows, id)?, contact.as_ref(), at),
    };
    let at = as_of.unwrap_or(now);
    let keys = keys_of(rows, &machine)?.iter().filter_map(|key| KeyFacts::as_of(key, at)).collect();
    let exemption = exemption(rows, id)?;
    Ok(Some(Known { machine, stood, keys, exemption }))
}

/// How far sealing anew has come, unless it never began.
pub fn resealing<S: Rows>(rows: &S) -> Result<Option<ResealRecord>, StateError> {
    rows.row(ONLY_ROW)
}

/// The keys behind `after` (`None` for all), in the order of ids; at most `limit` of them.
pub fn keys_after<S: Rows>(
    rows: &S,
    after: Option<KeyId>,
    limit: usize,
) -> Result<Vec<KeyRecord>, StateError> {
    rows.rows(&[], after.map(|id| id.row_key()).as_deref(), limit)
}

/// The audit records after `sequence` (0 for all), in order; at most `limit` and [`AUDIT_PAGE_MAX`] of them.
pub fn audit<S: Rows>(rows: &S, sequence: u64, limit: usize) -> Result<Vec<AuditRecord>, StateError> {
    rows.rows(&[], Some(&number_key(sequence)), limit.min(AUDIT_PAGE_MAX))
}
