//! Compiles `proto/` with protox, so that no `protoc` is needed.

use std::path::PathBuf;

const SERVICES: [&str; 7] = [
    "strongroom/v1/audit.proto",
    "strongroom/v1/cluster.proto",
    "strongroom/v1/compliance.proto",
    "strongroom/v1/escrow.proto",
    "strongroom/v1/peer.proto",
    "strongroom/v1/policy.proto",
    "strongroom/v1/recovery.proto",
];

/// Messages that carry plaintext: what shows them is written by hand, in `src/proto.rs`.
const SECRET_MESSAGES: [&str; 3] =
    [".strongroom.v1.CustodyRequest", ".strongroom.v1.EscrowRequest", ".strongroom.v1.RecoverResponse"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(SERVICES, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    // The public services describe themselves to gRPC reflection; the peer service is nobody's to explore.
    let public = protox::compile(SERVICES.iter().filter(|file| !file.ends_with("peer.proto")), ["proto"])?;
    std::fs::write(out.join("public.bin"), prost::Message::encode_to_vec(&public))?;
    std::fs::write(out.join("methods.rs"), methods(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".strongroom.v1.peer")
        // Bytes may be of an owner that wipes them.
        .bytes(".strongroom.v1.RecoverResponse")
        .skip_debug(SECRET_MESSAGES)
        .compile_fds(descriptors)?;
    Ok(())
}

/// The table of all methods: path, service without its package, method, whether either side streams.
fn methods(descriptors: &prost_types::FileDescriptorSet) -> String {
    let mut rows = String::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service, name) = (file.package(), service.name(), method.name());
                let streams = method.client_streaming() || method.server_streaming();
                let path = format!("/{package}.{service}/{name}");
                rows.push_str(&format!("    ({path:?}, {service:?}, {name:?}, {streams}),\n"));
            }
        }
    }
    format!("&[\n{rows}]\n")
}
