//! Compiles the telemetry service. `protox` is a compiler in Rust, so no machine needs `protoc`.
//! And writes the mutants of the forwarding decision, and of the flow cache.

use std::{env, error::Error, path::Path};

#[path = "build/mutants.rs"]
mod mutants;
#[path = "build/unchecked.rs"]
mod unchecked;

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["telemetry.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    let out = env::var("OUT_DIR")?;
    let common = Path::new("../lb-common/src");
    unchecked::write(common, &Path::new(&out).join("unchecked.rs"))?;
    mutants::write(common, &Path::new(&out).join("mutants.rs"))
}
