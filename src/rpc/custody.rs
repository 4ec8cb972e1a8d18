//! Custody: does every member hold a key, and can it open it? Asked without showing anything.
//!
//! The node that is asked draws a nonce and challenges each member, itself included. A proof is a keyed hash over nonce,
//! member, key id and plaintext, so only who opened the secret for this very challenge can make it. It is held against the
//! secret that the caller gave, or else against the one that this node has.
//!
//! A caller who gives a secret learns whether it is the one that is kept, which is a way to guess: see [`Guesses`].

mod guesses;

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;
use tonic::Status;

use crate::escrow::ids::{KeyId, NodeId};
use crate::escrow::secrets;
use crate::proto::peer::{ProveCustodyRequest, ProveCustodyResponse};
use crate::proto::{CustodyAnswer, CustodyRequest, CustodyResponse};
use crate::secret::Secret;

use super::Context;
use super::guard::Caller;
use super::recovery::Held;

pub use guesses::Guesses;

/// Longest it is waited for a quorum to say what was acknowledged. With [`CUSTODY_TIMEOUT`], less than a client gives a
/// node for an answer.
const QUORUM_TIMEOUT: Duration = Duration::from_millis(1_200);
/// Longest one member may take to prove custody, catching up included.
const CUSTODY_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Bytes of a custody challenge.
const NONCE_BYTES: usize = 32;

/// What members are asked to prove.
struct Challenge {
    key_id: KeyId,
    nonce: [u8; NONCE_BYTES],
    /// Where each is to stand before it answers; 0 if no quorum could be asked.
    min_index: u64,
}

/// What proofs are held against.
struct Reference {
    held: Held,
    secret: Secret,
    /// Whose secret it is, in words.
    whose: String,
}

impl Context {
    /// Challenges every member to prove that it holds the key and can open it.
    pub(super) async fn prove_everywhere(
        &self,
        caller: &Caller,
        request: CustodyRequest,
    ) -> Result<CustodyResponse, Status> {
        let CustodyRequest { key_id, secret } = request;
        let given = Some(Secret::new(secret)).filter(|given| !given.expose().is_empty());
        let key_id: KeyId = key_id.parse()?;
        // With a quorum, what was acknowledged before is here; without one, what is here is asked about, and who cannot
        // be reached is shown as such.
        let index = match timeout(QUORUM_TIMEOUT, self.node.read_index()).await {
            Ok(Ok(index)) => index,
            _ => 0,
        };
        self.node.wait_applied(index).await?;
        let compared = given.is_some();
        let reference = self.reference(key_id, given).await?;
        let person = caller.identity.person();
        // Taken before anything is compared, so that many at once are no more than one after the other.
        if compared {
            self.guesses.take(&person)?;
        }
        let mut nonce = [0; NONCE_BYTES];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| Status::internal("no randomness"))?;
        let members = self.node.members();
        let challenge = Challenge { key_id, nonce, min_index: index };
        let answers = members.keys().map(|id| self.challenge(*id, &challenge, reference.as_ref()));
        let nodes = join_all(answers).await;
        if compared && nodes.iter().any(|node| node.outcome == "mismatch") {
            tracing::warn!(by = %caller.identity, %key_id, "a secret that is not the kept one was compared with it");
        } else if compared {
            self.guesses.give_back(&person);
        }
        Ok(CustodyResponse { key_id: key_id.to_string(), nodes, compared })
    }

    /// What proofs are to be held against: the secret that was given, if there is one, or else this node's. None if this
    /// node does not hold the key, or has only its own secret to go by and cannot open it: it says so in its own line,
    /// and does not judge the others' proofs.
    async fn reference(&self, key_id: KeyId, given: Option<Secret>) -> Result<Option<Reference>, Status> {
        let Some(held) = self.held(key_id).await? else { return Ok(None) };
        let (secret, whose) = match given {
            Some(given) => (secrets::canonical(held.key.kind, &given)?, "that was given".to_owned()),
            None => match held.open() {
                Ok(own) => (own, format!("that node {} holds", self.node.options().id)),
                Err(_) => return Ok(None),
            },
        };
        Ok(Some(Reference { held, secret, whose }))
    }

    /// This node's answer to a challenge: outcome, proof, words.
    pub(super) async fn prove(&self, key_id: KeyId, nonce: &[u8]) -> (&'static str, Vec<u8>, String) {
        let opened = match self.held(key_id).await {
            Ok(None) => {
                let detail = format!("no key {key_id} at index {}", self.node.applied());
                return ("absent", Vec::new(), detail);
            }
            Ok(Some(held)) => held.open_all().map(|secret| (secret, held.keyring)),
            Err(error) => Err(error),
        };
        match opened {
            Ok((secret, keyring)) => {
                let proof = keyring.prove_custody(nonce, self.node.options().id, key_id, &secret);
                ("proven", proof.to_vec(), String::new())
            }
            Err(error) => ("cannot-open", Vec::new(), crate::error::chain(&error)),
        }
    }

    /// Challenges one member and judges its proof.
    async fn challenge(
        &self,
        id: NodeId,
        challenge: &Challenge,
        reference: Option<&Reference>,
    ) -> CustodyAnswer {
        let (outcome, proof, detail, applied) = if id == self.node.options().id {
            let (outcome, proof, detail) = self.prove(challenge.key_id, &challenge.nonce).await;
            (outcome.to_owned(), proof, detail, self.node.applied())
        } else {
            match self.ask_for_proof(id, challenge).await {
                Ok(answer) => (answer.outcome, answer.proof.to_vec(), answer.detail, answer.applied),
                Err(why) => ("unreachable".to_owned(), Vec::new(), why, 0),
            }
        };
        let mut answer = CustodyAnswer { node: id, outcome, detail, applied };
        if answer.outcome == "proven" {
            self.judge(&mut answer, challenge, reference, &proof);
        }
        answer
    }

    /// Holds a proof against what there is to hold it against; without that nothing can be said about it.
    fn judge(
        &self,
        answer: &mut CustodyAnswer,
        challenge: &Challenge,
        reference: Option<&Reference>,
        proof: &[u8],
    ) {
        let Challenge { key_id, nonce, .. } = challenge;
        match reference {
            Some(Reference { held, secret, .. })
                if held.keyring.verify_custody(proof, nonce, answer.node, *key_id, secret) => {}
            Some(Reference { whose, .. }) => {
                answer.outcome = "mismatch".to_owned();
                answer.detail = format!("the secret it holds is not the one {whose}");
            }
            None => {
                answer.outcome = "unjudged".to_owned();
                answer.detail = format!(
                    "it sent a proof, but node {}, which was asked, has nothing to check it with",
                    self.node.options().id
                );
            }
        }
    }

    async fn ask_for_proof(&self, id: NodeId, challenge: &Challenge) -> Result<ProveCustodyResponse, String> {
        let mut client = self.node.member_client(id).ok_or("no longer a member")?;
        let request = ProveCustodyRequest {
            key_id: challenge.key_id.to_string(),
            nonce: challenge.nonce.to_vec().into(),
            min_index: challenge.min_index,
        };
        match timeout(CUSTODY_TIMEOUT, client.prove_custody(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(crate::error::status(&status)),
            Err(_) => Err(format!("no answer within {} ms", CUSTODY_TIMEOUT.as_millis())),
        }
    }
}
