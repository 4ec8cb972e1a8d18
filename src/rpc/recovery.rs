//! Finding and showing keys, and proving that they are held.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tonic::{Code, Request, Response, Status};

use crate::escrow::command::{Action, Command, Refusal, Reply, Reveal};
use crate::escrow::ids::{KeyId, NodeId};
use crate::escrow::journal::JournalEntry;
use crate::escrow::lookup;
use crate::escrow::policy::Operation;
use crate::escrow::records::KeyRecord;
use crate::metrics::RevealOutcome;
use crate::proto::recovery_service_server::RecoveryService;
use crate::proto::{
    CustodyAnswer, CustodyRequest, CustodyResponse, FindRequest, FindResponse, Freshness, RecoverRequest,
    RecoverResponse,
};
use crate::raft::NodeError;
use crate::raft::journal::Alone;
use crate::seal::{Keyring, Part, context_of};
use crate::secret::Secret;

use super::disclosure::{self, Beside, Shown};
use super::escrow::unexpected;
use super::guard::Caller;
use super::{Context, now, status, wire};

/// Longest one member may take to prove custody.
const CUSTODY_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of a custody challenge.
const NONCE_BYTES: usize = 32;

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
        self.admit(&request, Operation::Custody)?;
        let key_id: KeyId = request.into_inner().key_id.parse()?;
        // With a quorum, what was acknowledged before is here; without one, what is here is asked about, and who cannot
        // be reached is shown as such.
        if let Ok(index) = self.node.read_index().await {
            self.node.wait_applied(index).await?;
        }
        let own = match self.open(key_id).await {
            Ok(Some(own)) => Some(own),
            Ok(None) => return Err(Status::not_found(format!("no key {key_id}"))),
            // This node is the one that cannot: it says so in its own line, and does not judge the others' proofs.
            Err(NodeError::Keyring(_)) => None,
            Err(error) => return Err(error.into()),
        };
        let mut nonce = [0; NONCE_BYTES];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Status::internal("no randomness"))?;
        let members = self.node.members();
        let answers = members.keys().map(|id| self.challenge(*id, key_id, &nonce, own.as_ref()));
        Ok(Response::new(CustodyResponse { key_id: key_id.to_string(), nodes: join_all(answers).await }))
    }
}

/// A key of this replica, its plaintext, and the keyring that opened it.
struct Opened {
    key: KeyRecord,
    secret: Secret,
    keyring: Arc<Keyring>,
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
        Code::Unavailable => RevealOutcome::Unavailable,
        _ => RevealOutcome::Failed,
    }
}

impl Context {
    /// Looks keys up in this replica, once it is as fresh as was asked for.
    async fn look_up(&self, caller: Caller, request: FindRequest) -> Result<FindResponse, Status> {
        let mut query = wire::query(&request)?;
        // An end user sees keys of machines on which that user was recorded, and nothing else exists.
        if let Some(own) = caller.identity.user() {
            query = query.seen_by(own);
        }
        self.node.wait_applied(request.min_index).await?;
        // Taken before the rows are read: what is shown is at least as fresh as it says.
        let freshness = self.fresh(request.consistency).await?;
        let node = self.node.clone();
        let found = blocking(move || Ok(lookup::find(&node.view()?, &query)?)).await?;
        Ok(FindResponse {
            keys: found.keys.into_iter().map(wire::key).collect(),
            truncated: found.truncated,
            freshness: Some(freshness),
        })
    }

    /// Puts a reveal on record and shows the key.
    async fn reveal(&self, request: Request<RecoverRequest>) -> Result<RecoverResponse, Status> {
        let caller = self.admit(&request, Operation::Recover)?;
        let wire::RecoverRequest { request, key_id, reason, user, package } =
            request.into_inner().try_into()?;
        let (to, for_user, why) = (caller.identity.clone(), user.clone(), reason.clone());
        let command = Command {
            request,
            at: now(),
            by: caller.identity,
            source: caller.source,
            action: Action::Reveal(Reveal { key_id, user, reason }),
        };
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
            audit_sequence: Some(revealed.audit_sequence),
        };
        let opened = self.open(revealed.key_id).await?;
        let absent = || Status::internal("a key whose reveal is on record is not in this replica");
        let mut shown = self.show(opened.ok_or_else(absent)?, &shown, freshness).await?;
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
        // All may have changed while a quorum was waited for.
        if let Some(why) = self.node.expelled() {
            return Err(NodeError::Excluded(why.to_string()).into());
        }
        self.refuse_in_quarantine()?;
        self.node.cluster()?.ok_or(NodeError::NoCluster)?;
        let freshness = wire::freshness(&self.node, "degraded");
        let JournalEntry { place, reveal, .. } = match self.node.reveal_alone(command).await? {
            Alone::Closed => return Err(no_quorum.into()),
            Alone::Refused(refusal) => return Err(refusal.into()),
            Alone::Journalled(entry) => *entry,
        };
        if let Some(refusal) = reveal.denied {
            return Err(status::degraded(refusal));
        }
        let Some(opened) = self.open(reveal.key_id).await? else {
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
            audit_sequence: None,
        };
        let mut shown = self.show(opened, &shown, freshness).await?;
        shown.journal = place.journal.to_string();
        shown.journal_sequence = place.sequence;
        Ok(shown)
    }

    /// Shows a key whose reveal is on record or in the journal, from this replica.
    async fn show(
        &self,
        opened: Opened,
        shown: &Shown,
        freshness: Freshness,
    ) -> Result<RecoverResponse, Status> {
        let Opened { key, secret, keyring } = opened;
        let Beside { users, history, package, receipt } = self.beside(&key, &keyring, shown).await?;
        Ok(RecoverResponse {
            secret: secret.expose().to_vec(),
            key_id: key.id.to_string(),
            machine: key.machine.to_string(),
            volume: key.volume.to_string(),
            kind: key.kind.to_string(),
            state: key.state.to_string(),
            escrowed_at_ms: key.escrowed_at.0,
            freshness: Some(freshness),
            users: users.iter().map(ToString::to_string).collect(),
            package: package.map(|package| package.expose().to_vec()).unwrap_or_default(),
            receipt: Some(disclosure::receipt(receipt)),
            revealed_at_ms: shown.at.0,
            replaced_by: history.replaced_by.map(|id| id.to_string()).unwrap_or_default(),
            ..RecoverResponse::default()
        })
    }

    /// A key of this replica and its plaintext.
    async fn open(&self, key_id: KeyId) -> Result<Option<Opened>, NodeError> {
        let node = self.node.clone();
        blocking(move || {
            let view = node.view()?;
            let Some(key) = lookup::key(&view, key_id)? else { return Ok(None) };
            let keyring = node.keyring_in(&view)?;
            drop(view);
            let secret = keyring.open_sealed(&context_of(&key, Part::Secret), &key.sealed)?;
            Ok(Some(Opened { key, secret, keyring }))
        })
        .await
    }

    /// This node's answer to a challenge: outcome, proof, words.
    pub(super) async fn prove(&self, key_id: KeyId, nonce: &[u8]) -> (&'static str, Vec<u8>, String) {
        match self.open(key_id).await {
            Ok(Some(Opened { secret, keyring, .. })) => {
                let proof = keyring.prove_custody(nonce, self.node.options().id, key_id, &secret);
                ("proven", proof.to_vec(), String::new())
            }
            Ok(None) => ("absent", Vec::new(), format!("no key {key_id} at index {}", self.node.applied())),
            Err(error) => ("cannot-open", Vec::new(), crate::error::chain(&error)),
        }
    }

    /// Challenges one member and judges its proof.
    async fn challenge(
        &self,
        id: NodeId,
        key_id: KeyId,
        nonce: &[u8],
        own: Option<&Opened>,
    ) -> CustodyAnswer {
        let (outcome, proof, detail, applied) = if id == self.node.options().id {
            let (outcome, proof, detail) = self.prove(key_id, nonce).await;
            (outcome.to_owned(), proof, detail, self.node.applied())
        } else {
            match self.ask_for_proof(id, key_id, nonce).await {
                Ok(answer) => (answer.outcome, answer.proof.to_vec(), answer.detail, answer.applied),
                Err(why) => ("unreachable".to_owned(), Vec::new(), why, 0),
            }
        };
        let mut answer = CustodyAnswer { node: id, outcome, detail, applied };
        if answer.outcome == "proven" {
            self.judge(&mut answer, key_id, nonce, own, &proof);
        }
        answer
    }

    /// Holds a proof against the secret this node has; without one it can say nothing about it.
    fn judge(
        &self,
        answer: &mut CustodyAnswer,
        key_id: KeyId,
        nonce: &[u8],
        own: Option<&Opened>,
        proof: &[u8],
    ) {
        let this = self.node.options().id;
        match own {
            Some(own) if own.keyring.verify_custody(proof, nonce, answer.node, key_id, &own.secret) => {}
            Some(_) => {
                answer.outcome = "mismatch".to_owned();
                answer.detail = format!("its proof does not fit the secret node {this} holds");
            }
            None => {
                answer.outcome = "unjudged".to_owned();
                answer.detail = format!(
                    "it sent a proof, but node {this}, which was asked, cannot open the key to check it"
                );
            }
        }
    }

    async fn ask_for_proof(
        &self,
        id: NodeId,
        key_id: KeyId,
        nonce: &[u8],
    ) -> Result<crate::proto::peer::ProveCustodyResponse, String> {
        let mut client = self.node.member_client(id).ok_or("no longer a member")?;
        let request = crate::proto::peer::ProveCustodyRequest {
            key_id: key_id.to_string(),
            nonce: nonce.to_vec().into(),
        };
        match tokio::time::timeout(CUSTODY_TIMEOUT, client.prove_custody(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(crate::error::status(&status)),
            Err(_) => Err(format!("no answer within {} s", CUSTODY_TIMEOUT.as_secs())),
        }
    }
}

/// Runs what reads the store, or opens the keyring, where it holds up nobody else.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    let stopped = |_| NodeError::Fatal("a read was cut off: the node is stopping".to_owned());
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}
