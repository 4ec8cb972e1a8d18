//! Generated from `proto/`: the messages and services on the wire.
#![allow(missing_docs, clippy::all)]

tonic::include_proto!("strongroom.v1");

/// What nodes say to each other.
pub mod peer {
    tonic::include_proto!("strongroom.v1.peer");
}

/// The public services' descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public.bin"));
