//! Who is calling and may they: the one place where identities become permissions.

use std::net::SocketAddr;
use std::sync::Once;

use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

use crate::error::chain;
use crate::escrow::apply::too_new;
use crate::escrow::command::{Action, Command};
use crate::escrow::features::FeatureLevel;
use crate::escrow::ids::{Identity, NodeId, RequestId};
use crate::escrow::policy::{self, Operation};
use crate::escrow::records::Source;
use crate::raft::NodeError;
use crate::raft::expelled::{self, REMOVED_KEY};
use crate::raft::peers::{CLUSTER_HEADER, STORAGE_HEADER};
use crate::store::quarantine::Cause;
use crate::tls::{PeerCertificate, Tls};

use super::{Context, now};

/// Who is at the other end of a connection; put into every request of it.
#[derive(Clone)]
pub struct Connection {
    /// The certificate its handshake proved.
    pub certificate: PeerCertificate,
    /// Where it comes from.
    pub address: SocketAddr,
}

/// A caller that may do what it asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Who.
    pub identity: Identity,
    /// Through which node and from where.
    pub source: Source,
}

/// A node that calls on the peer port.
#[derive(Debug, Clone)]
pub struct PeerCaller {
    /// Which, as its certificate proved. Whether it is a member is another question: see [`Context::admit_member`].
    pub id: NodeId,
    certificate: PeerCertificate,
}

impl PeerCaller {
    /// Whether it may go on: a stream outlives the moment in which it was admitted.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if its certificate has expired or been revoked since.
    pub fn check(&self, tls: &Tls) -> Result<(), Status> {
        tls.check(&self.certificate).map_err(|error| Status::permission_denied(error.to_string()))
    }
}

impl Context {
    /// The caller of `request`, if it may do `operation` at all.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if it may not or its certificate has expired or been revoked since the handshake;
    /// `UNAVAILABLE` if this node is stopping, was removed, is quarantined or belongs to no cluster yet: a client that
    /// knows others asks them.
    pub fn admit<T>(&self, request: &Request<T>, operation: Operation) -> Result<Caller, Status> {
        match self.admit_or_deny(request, operation)? {
            (caller, None) => Ok(caller),
            (_, Some(denied)) => Err(denied),
        }
    }

    /// As [`Context::admit`], for what is to be on record also if the caller's role may not: then with what it is to be
    /// answered, after [`Context::record_denial`].
    ///
    /// # Errors
    /// As [`Context::admit`], but for the role.
    pub fn admit_or_deny<T>(
        &self,
        request: &Request<T>,
        operation: Operation,
    ) -> Result<(Caller, Option<Status>), Status> {
        let caller = self.caller(request)?;
        if self.is_draining() {
            return Err(stopping());
        }
        if let Some(why) = self.node.expelled() {
            return Err(NodeError::Excluded(why.to_string()).into());
        }
        let role = caller.identity.role;
        if !policy::allows(role, operation) {
            tracing::warn!(by = %caller.identity, ?operation, address = %caller.source.address, "denied");
            let denied = Status::permission_denied(format!("role {role} may not {operation}"));
            return Ok((caller, Some(denied)));
        }
        // What does not touch the state helps the operator to see and to mend.
        if !matches!(operation, Operation::ChangeMembership | Operation::Status) {
            self.refuse_in_quarantine()?;
            // Said at once: a node that waits to be added knows no leader, and would have its callers wait for one.
            self.node.cluster()?.ok_or(NodeError::NoCluster)?;
        }
        Ok((caller, None))
    }

    /// Has a quorum put on record that `caller` asked for what its role may not: apply denies it as well, and bounds how
    /// often one person is on record with it. Where no quorum answers in time, only the log of this node has it: the
    /// journal is kept for those who may see keys.
    pub async fn record_denial(&self, caller: Caller, request: RequestId, action: Action) {
        // Releases below that level bound nothing.
        let bounded = self.node.feature_level().map(|level| level >= FeatureLevel::DESK);
        if self.refuse_in_quarantine().is_err() || !matches!(bounded, Ok(true)) {
            return;
        }
        let Caller { identity: by, source } = caller;
        let command = Command { request, at: now(), by, source, action };
        if let Err(error) = self.node.propose_within(&command, self.reveal_timeout).await {
            tracing::warn!(by = %command.by, error = chain(&error), "a denial is not on record");
        }
    }

    /// Refuses what the cluster does not allow yet. That passes by itself once every member runs a release that has it, so
    /// it is no answer for good, as the conflict is that apply would make of it.
    ///
    /// # Errors
    /// `UNAVAILABLE` below `required`, as this replica has it.
    pub(super) async fn require_level(&self, required: FeatureLevel) -> Result<(), Status> {
        let allowed = self.node.feature_level()?;
        if required <= allowed {
            return Ok(());
        }
        Err(Status::unavailable(too_new(required, allowed).to_string()))
    }

    /// Whether a caller that was admitted may go on: a stream outlives the moment in which it was. A node that is stopping
    /// finishes what is under way.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if its certificate has expired or been revoked since; `UNAVAILABLE` if this node was removed or
    /// is quarantined.
    pub(super) fn may_go_on(&self, certificate: Option<&PeerCertificate>) -> Result<(), Status> {
        if let Some(why) = self.node.expelled() {
            return Err(NodeError::Excluded(why.to_string()).into());
        }
        self.refuse_in_quarantine()?;
        if let Some(certificate) = certificate {
            let refused = |error: crate::tls::TlsError| Status::permission_denied(error.to_string());
            self.tls.check(certificate).map_err(refused)?;
        }
        Ok(())
    }

    /// What comes of `work`, unless this node learns meanwhile that it was removed: what its own replica has still to
    /// apply for an answer will not come any more.
    ///
    /// # Errors
    /// As `work`; `UNAVAILABLE`, so that the caller asks another node, if this one was removed. What was asked may have
    /// been done: asking again with the same id is safe.
    pub async fn unless_removed<T>(
        &self,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        tokio::select! {
            biased;
            answer = work => answer,
            () = self.node.expulsion() => {
                let why = self.node.expelled().map(|why| why.to_string()).unwrap_or_default();
                Err(NodeError::Excluded(why).into())
            }
        }
    }

    /// Refuses what would be answered from this node's state, if that is known to differ from the others'. Not after a
    /// scrub and with no quorum in contact: then what is left is better than nothing, and a damaged row does not open.
    ///
    /// # Errors
    /// `UNAVAILABLE`, so that the caller asks another node.
    pub fn refuse_in_quarantine(&self) -> Result<(), Status> {
        match self.node.quarantine() {
            Some(why) if why.cause == Cause::Scrub && self.node.leader_in_contact().is_none() => Ok(()),
            Some(why) => Err(NodeError::Quarantined(why).into()),
            None => Ok(()),
        }
    }

    /// The caller of `request`, if it is a node and means this one. It has to name this node's data directory: who
    /// does not cannot be told from a node of another cluster, and so could not be judged by what this one knows of who
    /// left.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for anyone but a node, and for one that was removed; `FAILED_PRECONDITION` if it is addressed
    /// to no data directory, to another node's, or to another cluster.
    pub fn admit_peer<T>(&self, request: &Request<T>) -> Result<PeerCaller, Status> {
        self.admit_node(request, true)
    }

    /// As [`Context::admit_peer`], for the one question that has to be asked before the data directory is known: who are
    /// you? It is asked of a node that is to be added, and of survivors whose register is out of reach. The answer
    /// changes nothing here.
    ///
    /// # Errors
    /// As [`Context::admit_peer`], but for a call that is addressed to no data directory.
    pub fn admit_stranger<T>(&self, request: &Request<T>) -> Result<PeerCaller, Status> {
        self.admit_node(request, false)
    }

    fn admit_node<T>(&self, request: &Request<T>, knows_this: bool) -> Result<PeerCaller, Status> {
        let certificate = self.certificate(request)?.clone();
        let Some(id) = certificate.identity.node_id() else {
            tracing::warn!(by = %certificate.identity, "denied on the peer port");
            return Err(Status::permission_denied("only nodes may use the peer service"));
        };
        let header = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let refused = |why: String| {
            // The others ask again and again; this node's own log says once why it is left alone.
            static SAID: Once = Once::new();
            SAID.call_once(|| tracing::error!(from = id, "calls of the cluster are refused here: {why}"));
            Status::failed_precondition(why)
        };
        let storage = header(STORAGE_HEADER);
        self.node.check_addressee(None, storage).map_err(refused)?;
        // Before its cluster is looked at: a node that was left behind by a recovery has the old one. Who does not know
        // this very directory may be a node of another cluster that happens to have the id of one that left.
        if storage.is_some() {
            self.check_has_not_left(id)?;
        } else if knows_this {
            return Err(Status::failed_precondition(format!(
                "the call does not say which data directory it is for (metadata {STORAGE_HEADER})"
            )));
        }
        self.node.check_addressee(header(CLUSTER_HEADER), None).map_err(refused)?;
        self.node.heard_from(id);
        Ok(PeerCaller { id, certificate })
    }

    /// Tells a node that was removed that it was.
    fn check_has_not_left(&self, id: NodeId) -> Result<(), Status> {
        if !self.node.has_left(id)? {
            return Ok(());
        }
        if self.node.tells_first(id) {
            tracing::warn!(node = id, "a node that was removed calls; it is told so");
        }
        let mut status = Status::permission_denied(expelled::sentence(id));
        status.metadata_mut().insert(REMOVED_KEY, MetadataValue::from_static("true"));
        Err(status)
    }

    /// The caller of `request`, if it is a node and means this one, also if it was removed or left behind: what it
    /// showed before it knew that is to come on record. Nothing is told to it.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for anyone but a node; `FAILED_PRECONDITION` if it does not name this data directory.
    pub fn admit_teller<T>(&self, request: &Request<T>) -> Result<NodeId, Status> {
        let certificate = self.certificate(request)?;
        let Some(id) = certificate.identity.node_id() else {
            tracing::warn!(by = %certificate.identity, "denied on the peer port");
            return Err(Status::permission_denied("only nodes may use the peer service"));
        };
        // Who knows this very directory was a member beside it.
        let storage = request.metadata().get(STORAGE_HEADER).and_then(|value| value.to_str().ok());
        let named = storage.ok_or_else(|| "the call names no data directory".to_owned());
        named
            .and_then(|storage| self.node.check_addressee(None, Some(storage)))
            .map_err(Status::failed_precondition)?;
        Ok(id)
    }

    /// As [`Context::admit_peer`], if the node is also a member as this one knows it: what only the leader answers
    /// is judged by the membership that counts.
    ///
    /// # Errors
    /// As [`Context::admit_peer`]; `PERMISSION_DENIED` for a node that was removed or not added yet.
    pub fn admit_member<T>(&self, request: &Request<T>) -> Result<PeerCaller, Status> {
        let caller = self.admit_peer(request)?;
        if !self.node.is_member(caller.id) {
            tracing::warn!(node = caller.id, "a node that is no member was denied");
            return Err(Status::permission_denied(format!(
                "node {} is not a member of this cluster: it was removed, or not added yet; a removed node comes back only under a new id and with an empty data directory",
                caller.id
            )));
        }
        Ok(caller)
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let identity = self.certificate(request)?.identity.clone();
        let address = connection(request)?.address.to_string();
        Ok(Caller { identity, source: Source { node: self.node.options().id, address } })
    }

    /// The certificate behind `request`, if it is still good.
    fn certificate<'a, T>(&self, request: &'a Request<T>) -> Result<&'a PeerCertificate, Status> {
        let certificate = &connection(request)?.certificate;
        self.tls.check(certificate).map_err(|error| Status::permission_denied(error.to_string()))?;
        Ok(certificate)
    }
}

/// What is answered to new requests by a node that is stopping.
pub(super) fn stopping() -> Status {
    Status::unavailable("this node is stopping; use another")
}

fn connection<T>(request: &Request<T>) -> Result<&Connection, Status> {
    let connection = request.extensions().get::<Connection>();
    connection.ok_or_else(|| Status::unauthenticated("no client certificate"))
}
