//! Finding and showing keys, and proving that they are held.

use std::sync::Arc;

use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};

use crate::escrow::command::{Action, Command, Refusal, Reply, Reveal};
use crate::escrow::ids::KeyId;
use crate::escrow::journal::{JournalEntry, Noted};
use crate::escrow::lookup::{self, Found, Query};
use crate::escrow::policy::document::WithoutQuorum;
use crate::escrow::policy::{Operation, must_name_user};
use crate::escrow::records::KeyRecord;
use crate::metrics::RevealOutcome;
use crate::proto::recovery_service_server::RecoveryService;
use crate::proto::{
    CustodyRequest, CustodyResponse, FindRequest, FindResponse, Freshness, RecoverRequest, RecoverResponse,
};
use crate::raft::journal::Alone;
use crate::raft::{Node, NodeError, on_own_thread};
use crate::seal::receipt::disclosure::OnRecord;
use crate::seal::{Keyring, Part, context_of};
use crate::secret::Secret;

use super::disclosure::{self, Beside, Shown};
use super::escrow::unexpected;
use super::guard::Caller;
use super::{Context, now, status, wire};

#[tonic::async_trait]
impl RecoveryService for Context {
    async fn find(&self, request: Request<FindRequest>) -> Result<Response<FindResponse>, Status> {
        let caller = self.admit(&request, Operation::Find)?;
        self.unless_removed(self.look_up(caller, request.into_inner())).await.map(Response::new)
    }

    async fn recover(&self, request: Request<RecoverRequest>) -> Result<Response<RecoverResponse>, Status> {
        let answer = self.unless_removed(self.reveal(request)).await;
        self.node.options().metrics.reveals.count(outcome(&answer));
        answer.map(Response::new)
    }

    async fn custody(&self, request: Request<CustodyRequest>) -> Result<Response<CustodyResponse>, Status> {
        let caller = self.admit(&request, Operation::Custody)?;
        self.prove_everywhere(&caller, request.into_inner()).await.map(Response::new)
    }
}

/// A key of this replica, and the keyring of the same entry: that one opens it.
pub(super) struct Held {
    pub key: KeyRecord,
    pub keyring: Arc<Keyring>,
}

impl Held {
    /// The plaintext.
    pub(super) fn open(&self) -> Result<Secret, NodeError> {
        Ok(self.keyring.open_sealed(&context_of(&self.key, Part::Secret), &self.key.sealed)?)
    }

    /// As [`Held::open`], and makes sure that all that belongs to it opens as well and is what was escrowed.
    pub(super) fn open_all(&self) -> Result<Secret, NodeError> {
        self.keyring.check_kept(&self.key)?;
        self.open()
    }
}

/// What the caller is told, as it is counted.
fn outcome(answer: &Result<RecoverResponse, Status>) -> RevealOutcome {
    let status = match answer {
        Ok(shown) if shown.audit_sequence == 0 => return RevealOutcome::Degraded,
        Ok(_) => return RevealOutcome::Granted,
        Err(status) => status,
    };
    match status.code() {
        Code::InvalidArgument => RevealOutcome::Invalid,
        Code::NotFound => RevealOutcome::NotFound,
        Code::PermissionDenied | Code::Unauthenticated => RevealOutcome::Denied,
        Code::ResourceExhausted | Code::Unavailable => RevealOutcome::Unavailable,
        _ => RevealOutcome::Failed,
    }
}

impl Context {
    /// Looks keys up in this replica, once it is as fresh as was asked for.
    async fn look_up(&self, caller: Caller, request: FindRequest) -> Result<FindResponse, Status> {
        let mut query = wire::query(&request)?;
        // The help desk is told the name by whoever calls, and not by this answer.
        query.names_asked_only = must_name_user(caller.identity.role);
        // An end user sees keys of machines on which that user was recorded, and nothing else exists.
        if let Some(own) = caller.identity.user() {
            query = query.seen_by(own);
        }
        self.node.wait_applied(request.min_index).await?;
        // Taken before the rows are read: what is shown is at least as fresh as it says.
        let freshness = self.fresh(request.consistency).await?;
        let found = self.found(query).await?;
        Ok(FindResponse {
            keys: found.keys.into_iter().map(wire::key).collect(),
            truncated: found.truncated,
            freshness: Some(freshness),
        })
    }

    /// What a query finds. Most ask for one key, which takes less than to have it found elsewhere.
    async fn found(&self, query: Query) -> Result<Found, NodeError> {
        let asked = query.clone();
        if let Some(found) =
            self.node.read_briefly(move |node| Ok(lookup::find_briefly(&node.view()?, &asked)?)).await?
        {
            return Ok(found);
        }
        let node = self.node.clone();
        on_own_thread(move || Ok(lookup::find(&node.view()?, &query)?)).await
    }

    /// Puts a reveal on record and shows the key.
    async fn reveal(&self, request: Request<RecoverRequest>) -> Result<RecoverResponse, Status> {
        let (caller, denied) = self.admit_or_deny(&request, Operation::Recover)?;
        let asked = wire::RecoverRequest::try_from(request.into_inner());
        if let Some(denied) = denied {
            if let Ok(wire::RecoverRequest { request, key_id, reason, user, .. }) = asked {
                self.record_denial(caller, request, Action::Reveal(Reveal { key_id, user, reason })).await;
            }
            return Err(denied);
        }
        let wire::RecoverRequest { request, key_id, reason, user, package } = asked?;
        let (to, for_user, why) = (caller.identity.clone(), user.clone(), reason.clone());
        let reveal = Reveal { key_id, user, reason };
        self.check_opens(&to, &reveal, package).await?;
        let command = Command {
            request,
            at: now(),
            by: caller.identity,
            source: caller.source,
            action: Action::Reveal(reveal),
        };
        // Granted by a quorum at once, by this node only once it is approved: the same request must not stand in a log, to be
        // granted after all when its caller was told to have it approved.
        if self.approves_alone()?
            && let Some(no_quorum) = self.no_quorum().await?
        {
            return self.reveal_without_quorum(&command, package, no_quorum).await;
        }
        let committed = match self.node.propose_within(&command, self.reveal_timeout).await {
            Err(error @ (NodeError::NoQuorum(_) | NodeError::Unconfirmed(_))) => {
                return self.reveal_without_quorum(&command, package, error).await;
            }
            committed => committed?,
        };
        let revealed = match committed.reply {
            Reply::Revealed(revealed) => revealed,
            Reply::ApprovalAsked(asked) => return Err(status::needs_approval(&asked)),
            Reply::Refused(refusal) => return Err(refusal.into()),
            other => return Err(unexpected(&other)),
        };
        self.node.wait_applied(revealed.position.index).await?;
        let freshness = wire::freshness(&self.node, "quorum");
        let shown = Shown {
            to,
            user: for_user,
            reason: why,
            wants_package: package,
            at: revealed.at,
            position: revealed.position,
            on_record: OnRecord::Audit(revealed.audit_sequence),
        };
        let held = self.held(revealed.key_id).await?;
        let absent = || Status::internal("a key whose reveal is on record is not in this replica");
        let mut shown = self.show(held.ok_or_else(absent)?, &shown, freshness).await?;
        shown.audit_sequence = revealed.audit_sequence;
        tracing::info!(key_id = %revealed.key_id, audit_sequence = revealed.audit_sequence, "revealed");
        Ok(shown)
    }

    /// Puts a reveal in the journal of this node, as `no_quorum` keeps it from being put on record, and shows the key.
    async fn reveal_without_quorum(
        &self,
        command: &Command,
        wants_package: bool,
        no_quorum: NodeError,
    ) -> Result<RecoverResponse, Status> {
        let (entry, freshness) = self.decide_without_quorum(command, no_quorum).await?;
        let place = entry.place;
        let reveal = match entry.what {
            Noted::Reveal(reveal) => reveal,
            Noted::ApprovalAsked(ask) => return Err(status::needs_approval_alone(&ask)),
            Noted::ApprovalDecided(_) => return Err(Status::internal("a reveal was taken for a decision")),
        };
        if let Some(refusal) = reveal.denied {
            return Err(status::degraded(refusal));
        }
        let Some(held) = self.held(reveal.key_id).await? else {
            // Another node showed it to this very request and told this one, which lags behind: it knows of no such key.
            let absent = Refusal::NotFound(format!("no key {} is kept", reveal.key_id));
            return Err(status::degraded(absent));
        };
        let shown = Shown {
            to: reveal.by,
            user: reveal.user,
            reason: reveal.reason,
            wants_package,
            at: reveal.at,
            position: reveal.knowledge.position,
            on_record: OnRecord::Journal(place),
        };
        let mut shown = self.show(held, &shown, freshness).await?;
        shown.journal = place.journal.to_string();
        shown.journal_sequence = place.sequence;
        Ok(shown)
    }

    /// Whether the policy has every reveal approved that is made without a quorum.
    fn approves_alone(&self) -> Result<bool, NodeError> {
        let policy = lookup::policy(&self.node.view()?)?;
        Ok(policy.without_quorum == WithoutQuorum::Approve)
    }

    /// Asks the quorum whether it is there. That none answered within the time a reveal waits for it, if so.
    pub(super) async fn no_quorum(&self) -> Result<Option<NodeError>, Status> {
        match timeout(self.reveal_timeout, self.node.read_index()).await {
            Ok(Ok(_)) => Ok(None),
            Ok(Err(error)) if !matches!(*error, NodeError::NoQuorum(_)) => Err(status::shared(error)),
            Ok(Err(_)) | Err(_) => Ok(Some(NodeError::NoQuorum(self.reveal_timeout))),
        }
    }

    /// Puts in the journal of this node what it decides, as `no_quorum` keeps `command` from being put on record. What is
    /// shown then is at least as fresh as is said.
    pub(super) async fn decide_without_quorum(
        &self,
        command: &Command,
        no_quorum: NodeError,
    ) -> Result<(JournalEntry, Freshness), Status> {
        // All may have changed while a quorum was waited for.
        if let Some(why) = self.node.expelled() {
            return Err(NodeError::Excluded(why.to_string()).into());
        }
        self.refuse_in_quarantine()?;
        self.node.cluster()?.ok_or(NodeError::NoCluster)?;
        let freshness = wire::freshness(&self.node, "degraded");
        match self.node.decide_alone(command).await? {
            Alone::Closed => Err(no_quorum.into()),
            // By the policy as this node has it: another may have a newer one.
            Alone::Refused(refusal) => Err(status::degraded(refusal)),
            Alone::Waits(ask) => Err(status::needs_approval_alone(&ask)),
            Alone::Journalled(entry) => Ok((*entry, freshness)),
        }
    }

    /// Shows a key whose reveal is on record or in the journal, from this replica.
    async fn show(&self, held: Held, shown: &Shown, freshness: Freshness) -> Result<RecoverResponse, Status> {
        let secret = held.open()?;
        let Held { key, keyring } = held;
        let Beside { users, history, package, receipt } = self.beside(&key, &keyring, shown).await?;
        Ok(RecoverResponse {
            secret: secret.into_bytes(),
            key_id: key.id.to_string(),
            machine: key.machine.to_string(),
            volume: key.volume.to_string(),
            kind: key.kind.to_string(),
            state: key.state.to_string(),
            escrowed_at_ms: key.escrowed_at.0,
            freshness: Some(freshness),
            users: users.iter().map(ToString::to_string).collect(),
            package: package.map(Secret::into_bytes).unwrap_or_default(),
            receipt: Some(disclosure::receipt(receipt)),
            revealed_at_ms: shown.at.0,
            replaced_by: history.replaced_by.map(|id| id.to_string()).unwrap_or_default(),
            ..RecoverResponse::default()
        })
    }

    /// A key of this replica, still sealed.
    pub(super) async fn held(&self, key_id: KeyId) -> Result<Option<Held>, NodeError> {
        let held = move |node: &Node| {
            let view = node.view()?;
            let Some(key) = lookup::key(&view, key_id)? else { return Ok(None) };
            let keyring = node.keyring_in(&view)?;
            Ok(Some(Held { key, keyring }))
        };
        self.node.read_briefly(held).await
    }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
