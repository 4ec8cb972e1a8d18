//! A new data key for what is sealed from here on. What is kept goes on being opened with the older ones, until it is
//! sealed anew (see `reseal`).

use super::{Halt, Turn, admit, remove, requests};
use crate::escrow::command::{Refusal, Reply, RotateKeyring};
use crate::escrow::policy::{Operation, allows};
use crate::escrow::records::AuditEvent;
use crate::escrow::rows::ONLY_ROW;
use crate::escrow::state::State;

pub(super) fn apply<S: State>(turn: &mut Turn<'_, S>, rotate: &RotateKeyring) -> Result<Reply, Halt> {
    let RotateKeyring { keyring } = rotate;
    if !allows(turn.by().role, Operation::RotateKeyring) {
        return Err(Refusal::Denied(format!("role {} does not rotate the data key", turn.by().role)).into());
    }
    admit::check_keyring(keyring)?;
    if let Some(reply) = requests::answered(turn)? {
        return Ok(reply);
    }
    remove::check_rotates(&turn.required(ONLY_ROW)?, keyring)?;
    turn.state.put(keyring);
    let key_version = keyring.current_key_version;
    turn.audit(AuditEvent::KeyringRotated { key_version });
    requests::remember(turn, Reply::KeyringRotated { key_version })
}
