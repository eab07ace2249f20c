//! Compiles the contract with protox, so that no `protoc` has to be installed.

use std::{env, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "common",
        "session",
        "task",
        "file",
        "worker",
        "admin",
        "agent",
        "checkpoint",
        "identity",
        "audit",
        "secret",
        "port",
        "interpreter",
        "artifact",
    ]
    .map(|name| format!("berth/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=berth");
    let mut compiler = protox::Compiler::new(["."])?;
    compiler.include_source_info(true).include_imports(true).open_files(&files)?;
    let set = compiler.file_descriptor_set();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // `bytes` fields share their buffer with the frame they came in: no copy on a hop.
    // These hold secrets: src/redact.rs says what of them may be shown.
    let secret = [
        "CreateSessionRequest",
        "PlaceSession",
        "TaskSpec",
        "ConfigureRequest",
        "Welcome",
        "DataPreface",
        "CreateTokenResponse",
        "SecretValue",
        "SetSecretRequest",
        "CreateContextRequest",
    ]
    .map(|name| format!(".berth.v1.{name}"));
    tonic_prost_build::configure().bytes(".").skip_debug(secret).compile_fds(set)?;
    Ok(())
}
