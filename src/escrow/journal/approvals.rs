//! Approvals without a quorum, as a node's journal tells of them.
//!
//! The request, what the second person decides and the use of it are entries of one journal, in this order, and count at
//! the node whose journal that is and nowhere else. That node decides one request after the other, so an approval is used
//! once, however many nodes are left and whoever was told of it. Peers that were told bring it on record, and that is all
//! they do with it.
//!
//! It ends when its request comes on record: a quorum knows nothing of it, and what must be approved then is asked for
//! anew. So there is no approval that both sides of a partition could use.

use super::{DegradedAsk, DegradedDecision, JournalEntry, Noted};
use crate::escrow::ids::{Identity, RequestId, Timestamp};
use crate::escrow::lookup;
use crate::escrow::records::Approval;
use crate::escrow::state::{Rows, StateError};

/// A request for approval that was made at a node without a quorum and stands: not rejected, not used, not asked for anew
/// in other words, not expired and not on record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing<'a> {
    /// The request.
    pub ask: &'a DegradedAsk,
    /// Who approved it, once somebody has.
    pub granted_by: Option<&'a Identity>,
}

impl Standing<'_> {
    /// As one that was made under a quorum.
    pub fn to_approval(&self) -> Approval {
        let DegradedAsk { approval, key_id, machine, by, user, reason, at, expires_at, .. } =
            self.ask.clone();
        Approval {
            id: approval,
            key_id,
            machine,
            asked_by: by,
            user,
            reason,
            asked_at: at,
            expires_at,
            granted_by: self.granted_by.cloned(),
            asked_again: 0,
        }
    }
}

/// The requests for approval that stand at `now` at the node whose own journal this is: follows it from its beginning.
///
/// # Errors
/// [`StateError`] if the storage fails.
pub fn standing<'a, R: Rows>(
    rows: &R,
    own: &'a [JournalEntry],
    now: Timestamp,
) -> Result<Vec<Standing<'a>>, StateError> {
    let mut standing: Vec<Standing<'a>> = Vec::new();
    for entry in own {
        match &entry.what {
            Noted::ApprovalAsked(ask) => {
                let person = ask.by.person();
                standing.retain(|old| old.ask.key_id != ask.key_id || old.ask.by.person() != person);
                if ask.expires_at > now && lookup::reconciled(rows, entry)?.is_none() {
                    standing.push(Standing { ask, granted_by: None });
                }
            }
            Noted::ApprovalDecided(DegradedDecision { denied: Some(_), .. }) => {}
            Noted::ApprovalDecided(DegradedDecision { approval, granted: false, .. }) => {
                standing.retain(|asked| asked.ask.approval != *approval);
            }
            Noted::ApprovalDecided(DegradedDecision { approval, by, .. }) => {
                let asked = standing.iter_mut().filter(|asked| asked.ask.approval == *approval);
                asked.for_each(|asked| asked.granted_by = Some(by));
            }
            // Whether it is on record or not: it is not dropped before the request that it used.
            Noted::Reveal(reveal) => standing.retain(|asked| Some(asked.ask.approval) != reveal.approval),
        }
    }
    Ok(standing)
}

/// What was asked for as `approval` in this journal, whatever became of it.
pub fn asked_for(own: &[JournalEntry], approval: RequestId) -> Option<&DegradedAsk> {
    own.iter().find_map(|entry| match &entry.what {
        Noted::ApprovalAsked(ask) => Some(ask).filter(|ask| ask.approval == approval),
        Noted::ApprovalDecided(_) | Noted::Reveal(_) => None,
    })
}
