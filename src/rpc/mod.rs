//! The gRPC services.

pub use crate::proto;
