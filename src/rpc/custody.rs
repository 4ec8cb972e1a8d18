//! Custody: does every member hold a key, and can it open it? Asked without showing anything.
//!
//! The node that is asked draws a nonce and challenges each member, itself included. A proof is a keyed hash over nonce,
//! member, key id and plaintext, so only who opened the secret for this very challenge can make it.

use std::time::Duration;

use futures_util::future::join_all;
use tonic::Status;

use crate::escrow::ids::{KeyId, NodeId};
use crate::proto::peer::{ProveCustodyRequest, ProveCustodyResponse};
use crate::proto::{CustodyAnswer, CustodyRequest, CustodyResponse};
use crate::raft::NodeError;

use super::Context;
use super::recovery::Opened;

/// Longest one member may take to prove custody.
const CUSTODY_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes of a custody challenge.
const NONCE_BYTES: usize = 32;

impl Context {
    /// Challenges every member to prove that it holds the key and can open it.
    pub(super) async fn prove_everywhere(&self, request: CustodyRequest) -> Result<CustodyResponse, Status> {
        let key_id: KeyId = request.key_id.parse()?;
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
        Ok(CustodyResponse { key_id: key_id.to_string(), nodes: join_all(answers).await })
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
    ) -> Result<ProveCustodyResponse, String> {
        let mut client = self.node.member_client(id).ok_or("no longer a member")?;
        let request = ProveCustodyRequest {
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
