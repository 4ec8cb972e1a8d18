//! What was answered to requests that leave an audit record, so that a retry gets the same answer and leaves none.
//!
//! The memory is a ring: the row of a request holds its answer, the row of a slot says which request to forget
//! when the slot is used again.

use super::{Halt, Turn};
use crate::escrow::command::{Action, Command, Refusal, Reply};
use crate::escrow::compliance::ExemptionDecision;
use crate::escrow::digest::Canonical;
use crate::escrow::rows::{REQUESTS_MAX, RequestRow, RequestSlot, number_key};
use crate::escrow::state::{State, StateError};
use crate::mutation::Mutation;

/// Names what is hashed and the version of its layout. Rows of an older version stay in the ring for a while, and
/// a retry across an upgrade would be refused: nothing else rests on it.
const REQUEST_LABEL: &str = "strongroom request v1";

/// What was answered to this request, if it is remembered.
///
/// # Errors
/// [`Refusal::Conflict`] if its id was used for another request. The caller is part of a request: nobody gets the
/// answer that was given to someone else.
pub(super) fn answered<S: State>(turn: &Turn<'_, S>) -> Result<Option<Reply>, Halt> {
    if Mutation::ForgetRequests.is_active() {
        return Ok(None);
    }
    let request = turn.command.request;
    let Some(row) = turn.state.row::<RequestRow>(&request.row_key())? else { return Ok(None) };
    if row.digest != digest(turn.command) {
        let why = format!("request id {request} was used for another request: draw a new one for each");
        return Err(Refusal::Conflict(why).into());
    }
    Ok(Some(row.reply))
}

/// What was answered to `command`, which is not the one that is applied, if it is remembered.
pub(super) fn remembered<S: State>(
    turn: &Turn<'_, S>,
    command: &Command,
) -> Result<Option<Reply>, StateError> {
    let row = turn.state.row::<RequestRow>(&command.request.row_key())?;
    Ok(row.filter(|row| row.digest == digest(command)).map(|row| row.reply))
}

/// Remembers the answer to this request; the one remembered longest is forgotten if there are too many.
pub(super) fn remember<S: State>(turn: &mut Turn<'_, S>, reply: Reply) -> Result<Reply, Halt> {
    let command = turn.command;
    put(turn, command, &reply)?;
    Ok(reply)
}

/// Remembers an answer to `command`, which is not the one that is applied, unless its id has got one.
pub(super) fn remember_as<S: State>(
    turn: &mut Turn<'_, S>,
    command: &Command,
    reply: Reply,
) -> Result<(), StateError> {
    match turn.state.row::<RequestRow>(&command.request.row_key())? {
        Some(row) if !is_note(&row.reply) => Ok(()),
        _ => put(turn, command, &reply),
    }
}

/// Whether it is no answer to a reveal, but the note that a denial of it is on record: what a node without a quorum
/// denied is decided anew when it is committed, and leaves no second denial.
pub(super) fn is_note(reply: &Reply) -> bool {
    matches!(reply, Reply::Reconciled { .. })
}

fn put<S: State>(turn: &mut Turn<'_, S>, command: &Command, reply: &Reply) -> Result<(), StateError> {
    let request = command.request;
    let row = RequestRow { request, digest: digest(command), reply: reply.clone() };
    // In the place of a note, which has a slot.
    if turn.state.row::<RequestRow>(&request.row_key())?.is_some() {
        turn.state.put(&row);
        return Ok(());
    }
    let slot = turn.heads.requests % REQUESTS_MAX;
    if let Some(old) = turn.state.row::<RequestSlot>(&number_key(slot))? {
        turn.state.delete::<RequestRow>(&old.request.row_key());
    }
    turn.state.put(&RequestSlot { slot, request });
    turn.state.put(&row);
    turn.heads.requests += 1;
    Ok(())
}

/// Who asks for what. Left out is what differs between two attempts of one request: the time, the node that took
/// it, and whatever that node draws or seals anew (a key id the caller did not name, ciphertexts, the keyring).
fn digest(command: &Command) -> [u8; 32] {
    let canonical = Canonical::new(REQUEST_LABEL).text(&command.by.to_string());
    let canonical = match &command.action {
        Action::Initialize(initialize) => canonical.number(1).bytes(initialize.cluster.0.as_bytes()),
        Action::Escrow(escrow) | Action::EscrowPending(escrow) => {
            let given = escrow.key_id_given.then(|| escrow.key_id.to_string());
            let is_pending = matches!(command.action, Action::EscrowPending(_));
            canonical
                .number(if is_pending { 11 } else { 2 })
                .optional_text(given.as_deref())
                .text(escrow.machine.as_str())
                .text(escrow.volume.as_str())
                .text(escrow.kind.as_str())
                .bytes(&escrow.fingerprint.0)
                .number(u64::from(escrow.sealed_package.is_some()))
                .optional_text(escrow.user.as_ref().map(ToString::to_string).as_deref())
        }
        Action::Reveal(reveal) => canonical
            .number(3)
            .bytes(reveal.key_id.0.as_bytes())
            .optional_text(reveal.user.as_ref().map(ToString::to_string).as_deref())
            .text(&reveal.reason),
        Action::AdmitNode(admit) => canonical
            .number(4)
            .number(admit.node.id)
            .bytes(admit.node.storage.as_bytes())
            .text(&admit.node.peer_address)
            .text(&admit.node.api_address)
            .text(&admit.node.zone)
            .text(&admit.node.recipient),
        Action::RaiseFeatureLevel(raise) => canonical.number(5).number(u64::from(raise.level.0)),
        Action::RecoverCluster(recover) => {
            canonical.number(6).bytes(recover.cluster.0.as_bytes()).number(recover.survivor)
        }
        Action::RemoveNode(remove) => canonical.number(7).number(remove.node),
        Action::SetPolicy(set) => canonical.number(8).text(&set.policy).number(set.replaces),
        Action::DecideApproval(decide) => {
            canonical.number(9).bytes(decide.approval.0.as_bytes()).number(u64::from(decide.granted))
        }
        // Which data key is drawn is up to the node that took it.
        Action::RotateKeyring(_) => canonical.number(20),
        // Not remembered: they are the leader's, and name what they found.
        Action::Reseal(_) => canonical.number(21),
        Action::DropDataKeys(_) => canonical.number(22),
        Action::Reconcile(reconcile) => canonical.number(10).bytes(&reconcile.entry.hash()),
        Action::ConfirmKey(confirm) => {
            canonical.number(12).text(confirm.machine.as_str()).bytes(confirm.key_id.0.as_bytes())
        }
        // Not remembered: what is kept of a machine answers for itself.
        Action::ReportCompliance(_) => canonical.number(30),
        Action::NoteContact(_) => canonical.number(31),
        Action::RequestExemption(request) => canonical
            .number(32)
            .text(request.machine.as_str())
            .text(&request.reason)
            .optional_text(request.until.map(|until| until.0.to_string()).as_deref()),
        Action::DecideExemption(decide) => {
            let until = match decide.decision {
                ExemptionDecision::Grant { until } => until,
                ExemptionDecision::Reject | ExemptionDecision::Revoke => None,
            };
            canonical
                .number(33)
                .text(decide.machine.as_str())
                .bytes(decide.exemption.0.as_bytes())
                .text(decide.decision.as_str())
                .optional_text(until.map(|until| until.0.to_string()).as_deref())
        }
        Action::SetCompliancePolicy(set) => canonical.number(34).text(&set.policy).number(set.replaces),
        // Not remembered as a whole: each of them is, as an escrow of its own.
        Action::EscrowMany(_) => canonical.number(23),
        // Not remembered: what is known of a machine answers for itself.
        Action::ImportMachines(_) => canonical.number(24),
    };
    canonical.sha256()
}
