//! Who is calling and may they: the one place where identities become permissions.

use std::net::SocketAddr;

use tonic::{Request, Status};

use crate::escrow::ids::{Identity, Role};
use crate::escrow::policy::{self, Operation};
use crate::escrow::records::Source;
use crate::raft::peers::{CLUSTER_HEADER, STORAGE_HEADER};
use crate::tls::PeerCertificate;

use super::Context;

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

impl Context {
    /// The caller of `request`, if it may do `operation` at all.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` if it may not or its certificate has expired or been revoked since the handshake;
    /// `UNAVAILABLE` if this node is stopping.
    pub fn admit<T>(&self, request: &Request<T>, operation: Operation) -> Result<Caller, Status> {
        let caller = self.caller(request)?;
        if self.draining.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Status::unavailable("this node is stopping; use another"));
        }
        let role = caller.identity.role;
        if !policy::allows(role, operation) {
            tracing::warn!(by = %caller.identity, ?operation, address = %caller.source.address, "denied");
            return Err(Status::permission_denied(format!("role {role} may not use {operation:?}")));
        }
        Ok(caller)
    }

    /// Whether `request` comes from a node and is meant for this one.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for anyone but a node; `FAILED_PRECONDITION` if it is addressed to another node's data
    /// directory or another cluster.
    pub fn admit_peer<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.caller(request)?;
        if caller.identity.role != Role::Node {
            tracing::warn!(by = %caller.identity, "denied on the peer port");
            return Err(Status::permission_denied("only nodes may use the peer service"));
        }
        let header = |name| request.metadata().get(name).and_then(|value| value.to_str().ok());
        self.node
            .check_addressee(header(CLUSTER_HEADER), header(STORAGE_HEADER))
            .map_err(Status::failed_precondition)?;
        Ok(caller)
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let connection = request
            .extensions()
            .get::<Connection>()
            .ok_or_else(|| Status::unauthenticated("no client certificate"))?;
        self.tls
            .check(&connection.certificate)
            .map_err(|error| Status::permission_denied(error.to_string()))?;
        Ok(Caller {
            identity: connection.certificate.identity.clone(),
            source: Source { node: self.node.options().id, address: connection.address.to_string() },
        })
    }
}
