//! Writes what the lab's programs alone include.

use std::{env, error::Error, path::Path};

#[path = "../tests/build/unchecked.rs"]
mod unchecked;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=../tests/build/unchecked.rs");
    let out = env::var("OUT_DIR")?;
    unchecked::write(Path::new("../lb-common/src"), &Path::new(&out).join("unchecked.rs"))
}
