//! What a committed command does to the state. Every replica applies the same entries in the same order and must
//! reach the same rows: nothing here looks at anything but the state, the command and its place in the log.
//!
//! A command that is wrong is answered with a [`Refusal`], the same on every replica. A storage that fails is a
//! [`StateError`], and the replica stops.
//!
//! Commands are safe to send twice. Escrows are so by nature: the key that is kept answers for itself. What leaves
//! an audit record is remembered by its request id (see `requests.rs`), so that a retry gets the first answer and no
//! second record.

mod admit;
mod approval;
mod compliance;
mod compliance_policy;
mod denials;
mod escrow;
mod escrow_many;
mod exemption;
mod feature_level;
mod initialize;
mod inventory;
mod policy;
mod reconcile;
mod recover_cluster;
mod remove;
mod requests;
mod reseal;
mod reveal;
mod rotate;
mod rotation;

use super::audit::ChainHead;
use super::command::{Action, Command, Refusal, Reply};
use super::ids::{Identity, Invalid, Timestamp};
use super::records::{AuditEvent, AuditRecord, ClusterRecord, KeyState, LogPosition};
use super::rows::{Heads, ONLY_ROW};
use super::state::{Row, State, StateError};

pub use admit::{KEYRING_MAX_BYTES, NODE_ADDRESS_MAX_BYTES, NODES_MAX, RECIPIENT_MAX_BYTES, ZONE_MAX_BYTES};
pub use approval::{APPROVALS_MAX, gone};
pub use compliance::COMPLIANCE_BATCH_MAX;
pub use escrow::SEALED_OVERHEAD_MAX_BYTES;
pub use escrow_many::{ESCROWS_PER_ENTRY_MAX, ESCROWS_PER_ENTRY_MAX_BYTES, sealed_bytes};
pub use exemption::EXEMPTION_REQUESTS_PER_HOUR_MAX;
pub use feature_level::too_new;
pub use inventory::MACHINES_PER_ENTRY_MAX;
pub use reconcile::check as check_entry;
pub use reseal::{RESEAL_ROWS_MAX, sealed_digest};
pub use reveal::{REASON_MAX_BYTES, check_reason};

/// Longest network address of a caller, in bytes: an IPv6 address with zone and port.
pub const SOURCE_ADDRESS_MAX_BYTES: usize = 128;

/// Applies the command of the entry at `position` and answers it.
///
/// The command counts as given at its own stamp or at the last applied one, whichever is later: the clocks of
/// proposers differ, the history does not go back.
///
/// # Errors
/// [`StateError`] if the storage fails or a row that must be there is not: the replica must stop applying, and
/// drop what this call wrote.
pub fn apply<S: State>(state: &mut S, position: LogPosition, command: &Command) -> Result<Reply, StateError> {
    match Turn::begin(state, position, command) {
        Ok((mut turn, cluster)) => {
            let reply = turn.act(cluster.as_ref()).or_else(Halt::into_reply)?;
            turn.end();
            Ok(reply)
        }
        Err(halt) => halt.into_reply(),
    }
}

/// One command while it is applied.
struct Turn<'a, S> {
    state: &'a mut S,
    command: &'a Command,
    position: LogPosition,
    /// The stamp the command counts as given at.
    at: Timestamp,
    heads: Heads,
    heads_before: Heads,
}

impl<'a, S: State> Turn<'a, S> {
    /// Checks what is asked of every command.
    fn begin(
        state: &'a mut S,
        position: LogPosition,
        command: &'a Command,
    ) -> Result<(Self, Option<ClusterRecord>), Halt> {
        let cluster: Option<ClusterRecord> = state.row(ONLY_ROW)?;
        let trusted = match (&cluster, &command.action) {
            (Some(cluster), _) => &cluster.name,
            (None, Action::Initialize(first)) => &first.name,
            (None, _) => return Err(Refusal::Conflict("the cluster is not initialised".to_owned()).into()),
        };
        if command.by.cluster != *trusted {
            let why = format!("{} is an identity of another cluster than {trusted}", command.by);
            return Err(Refusal::Denied(why).into());
        }
        if command.source.address.len() > SOURCE_ADDRESS_MAX_BYTES {
            return Err(Invalid::new("source", format!("at most {SOURCE_ADDRESS_MAX_BYTES} bytes")).into());
        }
        feature_level::check(state, command)?;
        let heads: Heads = state.row(ONLY_ROW)?.unwrap_or_default();
        let at = command.at.max(heads.last_stamp);
        let heads_before = heads.clone();
        Ok((Self { state, command, position, at, heads, heads_before }, cluster))
    }

    fn act(&mut self, cluster: Option<&ClusterRecord>) -> Result<Reply, Halt> {
        let command = self.command;
        match &command.action {
            Action::Initialize(initialize) => initialize::apply(self, cluster, initialize),
            Action::Escrow(escrow) => escrow::apply(self, escrow, KeyState::Active),
            Action::EscrowPending(escrow) => escrow::apply(self, escrow, KeyState::Pending),
            Action::Reveal(reveal) => reveal::apply(self, reveal),
            Action::AdmitNode(admit) => admit::apply(self, admit),
            Action::RaiseFeatureLevel(raise) => feature_level::apply(self, raise),
            Action::RecoverCluster(recover) => recover_cluster::apply(self, recover),
            Action::RemoveNode(remove) => remove::apply(self, remove),
            Action::SetPolicy(set) => policy::apply(self, set),
            Action::DecideApproval(decide) => approval::apply(self, decide),
            Action::Reconcile(reconcile) => {
                let reply = reconcile::apply(self, reconcile)?;
                approval::note_use(self, &reconcile.entry, &reply)?;
                Ok(reply)
            }
            Action::RotateKeyring(rotate) => rotate::apply(self, rotate),
            Action::Reseal(step) => reseal::apply(self, step),
            Action::DropDataKeys(drop) => reseal::apply_drop(self, drop),
            Action::ConfirmKey(confirm) => rotation::apply(self, confirm),
            Action::ReportCompliance(report) => compliance::apply(self, report),
            Action::NoteContact(note) => compliance::apply_contacts(self, note),
            Action::RequestExemption(request) => exemption::apply(self, request),
            Action::DecideExemption(decide) => exemption::apply_decision(self, decide),
            Action::SetCompliancePolicy(set) => compliance_policy::apply(self, set),
            Action::EscrowMany(escrows) => escrow_many::apply(self, escrows),
            Action::ImportMachines(machines) => inventory::apply(self, machines),
        }
    }

    fn end(mut self) {
        self.heads.last_stamp = self.at;
        // Initialising leaves the first audit record; before it there is no history whose stamps could go back.
        let initialized = self.heads.audit.sequence > 0;
        if initialized && self.heads != self.heads_before {
            self.state.put(&self.heads);
        }
    }

    /// Appends to the audit chain and answers the sequence of the new record.
    fn audit(&mut self, event: AuditEvent) -> u64 {
        let record = AuditRecord {
            sequence: self.heads.audit.sequence + 1,
            previous: self.heads.audit.hash,
            at: self.at,
            by: self.command.by.clone(),
            source: self.command.source.clone(),
            position: self.position,
            event,
        };
        self.state.put_new(&record);
        self.heads.audit = ChainHead::of(&record);
        record.sequence
    }

    /// The row under `key`, which another row says is there.
    fn required<R: Row>(&self, key: &[u8]) -> Result<R, StateError> {
        self.state.required(key)
    }

    fn by(&self) -> &'a Identity {
        &self.command.by
    }
}

/// Why applying a command ended early.
enum Halt {
    /// The storage failed: the replica stops.
    Failed(StateError),
    /// The command is refused: every replica answers so.
    Refused(Refusal),
}

impl Halt {
    fn into_reply(self) -> Result<Reply, StateError> {
        match self {
            Self::Failed(error) => Err(error),
            Self::Refused(refusal) => Ok(Reply::Refused(refusal)),
        }
    }
}

impl From<StateError> for Halt {
    fn from(error: StateError) -> Self {
        Self::Failed(error)
    }
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Invalid> for Halt {
    fn from(invalid: Invalid) -> Self {
        Self::Refused(Refusal::Invalid(invalid))
    }
}

#[cfg(test)]
mod tests;
