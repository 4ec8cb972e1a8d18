//! Generated from `proto/`: the messages and services on the wire.
#![allow(missing_docs, clippy::all)]

use std::fmt;

tonic::include_proto!("strongroom.v1");

/// What nodes say to each other.
pub mod peer {
    tonic::include_proto!("strongroom.v1.peer");
}

/// The public services' descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public.bin"));

/// Every method of the services: its path, its service without the package, its name, whether either side streams.
pub const METHODS: &[(&str, &str, &str, bool)] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// In place of bytes that nobody may see.
const REDACTED: &str = "redacted";

// Written by hand, because a derived one would show the plaintext. Every field is named, so that a new one is not
// forgotten here.

impl fmt::Debug for CustodyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key_id, secret: _ } = self;
        f.debug_struct("CustodyRequest").field("key_id", key_id).field("secret", &REDACTED).finish()
    }
}

impl fmt::Debug for EscrowRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { request_id, machine, volume, kind, key_id, secret: _, package: _, user, pending } = self;
        f.debug_struct("EscrowRequest")
            .field("request_id", request_id)
            .field("machine", machine)
            .field("volume", volume)
            .field("kind", kind)
            .field("key_id", key_id)
            .field("secret", &REDACTED)
            .field("package", &REDACTED)
            .field("user", user)
            .field("pending", pending)
            .finish()
    }
}

impl fmt::Debug for RecoverResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            secret: _,
            key_id,
            machine,
            volume,
            kind,
            state,
            escrowed_at_ms,
            audit_sequence,
            freshness,
            journal,
            journal_sequence,
            users,
            package: _,
            receipt,
            revealed_at_ms,
            replaced_by,
        } = self;
        f.debug_struct("RecoverResponse")
            .field("secret", &REDACTED)
            .field("key_id", key_id)
            .field("machine", machine)
            .field("volume", volume)
            .field("kind", kind)
            .field("state", state)
            .field("escrowed_at_ms", escrowed_at_ms)
            .field("audit_sequence", audit_sequence)
            .field("freshness", freshness)
            .field("journal", journal)
            .field("journal_sequence", journal_sequence)
            .field("users", users)
            .field("package", &REDACTED)
            .field("receipt", receipt)
            .field("revealed_at_ms", revealed_at_ms)
            .field("replaced_by", replaced_by)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_with_plaintext_do_not_show_it() {
        let hidden = b"hunter2".to_vec();
        // A derived `Debug` shows bytes as numbers, a better one might show them as text.
        let shown = [format!("{hidden:?}").replace(['[', ']'], ""), "hunter2".to_owned()];
        let request = EscrowRequest {
            machine: "PC-1".to_owned(),
            secret: hidden.clone(),
            package: hidden.clone(),
            ..EscrowRequest::default()
        };
        let response = RecoverResponse {
            machine: "PC-1".to_owned(),
            secret: hidden.clone().into(),
            package: hidden.clone().into(),
            ..RecoverResponse::default()
        };
        let custody = CustodyRequest { key_id: "PC-1".to_owned(), secret: hidden.clone() };
        for text in [format!("{request:?}"), format!("{response:?}"), format!("{custody:?}")] {
            assert!(shown.iter().all(|secret| !text.contains(secret)), "{text}");
            assert!(text.contains("PC-1") && text.contains(REDACTED), "{text}");
        }
    }
}
