//! What goes out with a secret that is shown: who uses its machine, the key package beside it, and a signed receipt.

use tonic::Status;

use crate::escrow::command::Reveal;
use crate::escrow::disclosure::{self as rules, Asked, Decision, Grounds};
use crate::escrow::ids::{Identity, Timestamp, UserName};
use crate::escrow::lookup;
use crate::escrow::records::{KeyHistory, KeyRecord, LogPosition, RevealTally};
use crate::proto;
use crate::raft::{Node, NodeError, on_own_thread};
use crate::seal::receipt::disclosure::{Disclosed, DisclosureReceipt, OnRecord};
use crate::seal::{Keyring, Part, SealContext};
use crate::secret::Secret;

use super::{Context, now};

/// A reveal as it was asked for, once it is allowed.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// To whom.
    pub to: Identity,
    /// For which user, if one was named.
    pub user: Option<UserName>,
    /// Why.
    pub reason: String,
    /// Whether the key package is wanted as well. It goes with its key: one reveal shows both.
    pub wants_package: bool,
    /// When.
    pub at: Timestamp,
    /// The entry that put it on record, or the last one applied if there was no quorum.
    pub position: LogPosition,
    /// Where it is noted.
    pub on_record: OnRecord,
}

/// What goes out beside the secret.
pub(super) struct Beside {
    pub users: Vec<UserName>,
    pub history: KeyHistory,
    pub package: Option<Secret>,
    pub receipt: DisclosureReceipt,
}

impl Context {
    /// Whether this replica can open the key of a reveal, its package as well if that is wanted. Asked before anything is on record, which would say that the key
    /// was shown when nobody has seen it. What is to be denied, as far as is known here, goes on record whatever can be
    /// opened.
    ///
    /// # Errors
    /// What keeps it from being opened: another node may do it.
    pub(super) async fn check_opens(
        &self,
        by: &Identity,
        reveal: &Reveal,
        wants_package: bool,
    ) -> Result<(), NodeError> {
        let held = self.held(reveal.key_id).await;
        let opened = held.and_then(|held| match held {
            None => Ok(()),
            Some(held) if wants_package => held.open_all().map(drop),
            Some(held) => held.open().map(drop),
        });
        let Err(failure) = opened else { return Ok(()) };
        let (node, by, reveal) = (self.node.clone(), by.clone(), reveal.clone());
        let denied = on_own_thread(move || {
            let view = node.view()?;
            let none = RevealTally::none(None);
            let grounds = Grounds {
                policy: &lookup::policy(&view)?,
                person: none.clone(),
                cluster: none,
                always_approve: false,
            };
            let Reveal { key_id, user, reason } = &reveal;
            let asked = Asked { by: &by, key_id: *key_id, user: user.as_ref(), reason, at: now() };
            Ok(matches!(rules::decide(&view, &grounds, &asked)?, Decision::Denied { .. }))
        });
        if denied.await? { Ok(()) } else { Err(failure) }
    }

    /// What goes out with `key`, from this replica.
    pub(super) async fn beside(
        &self,
        key: &KeyRecord,
        keyring: &Keyring,
        shown: &Shown,
    ) -> Result<Beside, Status> {
        let (machine, id) = (key.machine.clone(), key.id);
        let known = move |node: &Node| {
            let view = node.view()?;
            Ok((lookup::machine(&view, &machine)?, lookup::history(&view, id)?))
        };
        let (machine, history) = self.node.read_briefly(known).await?;
        let mut users = machine.map(|machine| machine.users).unwrap_or_default();
        if let Some(own) = shown.to.user() {
            users.retain(|user| *user == own);
        }
        let package = match &key.sealed_package {
            Some(sealed) if shown.wants_package => {
                let context = SealContext {
                    machine: &key.machine,
                    volume: &key.volume,
                    key_id: key.id,
                    kind: key.kind,
                    part: Part::Package,
                };
                Some(keyring.open_sealed(&context, sealed).map_err(NodeError::from)?)
            }
            _ => None,
        };
        let receipt = self.disclosure_receipt(key, shown)?;
        Ok(Beside { users, history, package, receipt })
    }

    fn disclosure_receipt(&self, key: &KeyRecord, shown: &Shown) -> Result<DisclosureReceipt, Status> {
        let cluster = self.node.cluster()?.ok_or(NodeError::NoCluster)?;
        let disclosed = Disclosed {
            key_id: key.id,
            machine: key.machine.clone(),
            volume: key.volume.clone(),
            fingerprint: key.fingerprint,
            to: shown.to.clone(),
            user: shown.user.clone(),
            reason: shown.reason.clone(),
            at: shown.at,
            position: shown.position,
            state: key.state,
            on_record: shown.on_record,
        };
        DisclosureReceipt::sign(disclosed, cluster.id, &self.tls).map_err(|error| {
            Status::internal(format!("signing the receipt: {}", crate::error::chain(&error)))
        })
    }
}

/// A receipt as it goes out.
pub(super) fn receipt(receipt: DisclosureReceipt) -> proto::DisclosureReceipt {
    proto::DisclosureReceipt {
        cluster: receipt.cluster.to_string(),
        cluster_name: receipt.cluster_name.to_string(),
        term: receipt.term,
        index: receipt.index,
        audit_sequence: receipt.audit_sequence,
        key_id: receipt.key_id.to_string(),
        machine: receipt.machine.to_string(),
        volume: receipt.volume.to_string(),
        fingerprint: receipt.fingerprint.to_string(),
        to: receipt.to.to_string(),
        user: receipt.user.map(String::from).unwrap_or_default(),
        reason: receipt.reason,
        at_ms: receipt.at.0,
        node: receipt.node.to_string(),
        signature: receipt.signature,
        certificates: receipt.certificates,
        state: receipt.state.to_string(),
        journal: receipt.journal.map(|place| place.journal.to_string()).unwrap_or_default(),
        journal_sequence: receipt.journal.map_or(0, |place| place.sequence),
    }
}
