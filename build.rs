//! Compiles `proto/` with protox, so that no `protoc` is needed.

use std::path::PathBuf;

const SERVICES: [&str; 4] = [
    "strongroom/v1/cluster.proto",
    "strongroom/v1/escrow.proto",
    "strongroom/v1/peer.proto",
    "strongroom/v1/recovery.proto",
];

/// Messages that carry plaintext: what shows them is written by hand, in `src/proto.rs`.
const SECRET_MESSAGES: [&str; 2] = [".strongroom.v1.EscrowRequest", ".strongroom.v1.RecoverResponse"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(SERVICES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // The public services describe themselves to gRPC reflection; the peer service is nobody's to explore.
    let public = protox::compile(SERVICES.iter().filter(|file| !file.ends_with("peer.proto")), ["proto"])?;
    std::fs::write(out.join("public.bin"), prost::Message::encode_to_vec(&public))?;
    tonic_prost_build::configure()
        .bytes(".strongroom.v1.peer")
        .skip_debug(SECRET_MESSAGES)
        .compile_fds(descriptors)?;
    Ok(())
}
