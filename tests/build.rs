//! Compiles the telemetry service. `protox` is a compiler in Rust, so no machine needs `protoc`.
//! And writes the mutants of the forwarding decision.

use std::{env, error::Error, path::Path};

#[path = "build/mutants.rs"]
mod mutants;

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["telemetry.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    let out = env::var("OUT_DIR")?;
    mutants::write(Path::new("../lb-common/src"), &Path::new(&out).join("mutants.rs"))
}
