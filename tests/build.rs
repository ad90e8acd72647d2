//! Compiles the telemetry service. `protox` is a compiler in Rust, so no machine needs `protoc`.
//! And writes the mutants of the forwarding decision, of the flow cache and of the machines that announce.

use std::{env, error::Error, path::Path};

#[path = "build/expand.rs"]
mod expand;
#[path = "build/mutants.rs"]
mod mutants;
#[path = "build/router_mutants.rs"]
mod router_mutants;
#[path = "build/session_mutants.rs"]
mod session_mutants;
#[path = "build/unchecked.rs"]
mod unchecked;

fn main() -> Result<(), Box<dyn Error>> {
    let descriptors = protox::compile(["telemetry.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    let out = env::var("OUT_DIR")?;
    let common = Path::new("../lb-common/src");
    unchecked::write(common, &Path::new(&out).join("unchecked.rs"))?;
    mutants::write(common, &Path::new(&out).join("mutants.rs"))?;
    let (announce, sim) = (Path::new("../lb-userspace/src/announce"), Path::new("src/sim"));
    router_mutants::write(&announce.join("vrrp"), sim, &Path::new(&out).join("router_mutants.rs"))?;
    session_mutants::write(announce, sim, &Path::new(&out).join("session_mutants.rs"))
}
