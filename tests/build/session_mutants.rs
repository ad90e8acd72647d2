//! Writes a copy of the machines of BGP and BFD, of how BGP's thread misses its engine, and of the simulation that runs
//! them. It can be broken in many ways, so that a test can show that the simulation would notice.
//!
//! One copy: each mutation is an expression that asks at run time whether it is the chosen one. A copy for each of them
//! takes the compiler ten minutes.

use std::{error::Error, fmt::Write as _, fs, path::Path};

use super::expand::{expand, replace_once};

#[path = "mutations_bfd.rs"]
mod mutations_bfd;
#[path = "mutations_bgp.rs"]
mod mutations_bgp;

/// A fault: an expression that is another.
pub struct Mutation {
    /// What is wrong.
    pub name: &'static str,
    /// Below the protocol's module.
    pub file: &'static str,
    /// Stands in the file once.
    pub within: &'static str,
    /// Stands in `within` once.
    pub old: &'static str,
    /// Stands in its place where this is chosen.
    pub new: &'static str,
}

/// Writes the copy to `to`, to be included as `crate::generated`, and lists of the mutations' names.
pub fn write(announce: &Path, sim: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", sim.display());
    let simulation =
        expand(sim, "vrrp", &mut |_, text| Ok(text))?.replace("lb_userspace::announce", "crate::generated::announce");
    let mut out = String::from("pub mod announce {\npub use lb_userspace::announce::*;\n");
    let mut lists = String::new();
    // 0 is the copy with nothing broken.
    let mut number = 0;
    println!("cargo::rerun-if-changed={}", announce.join("silence.rs").display());
    for (machine, mutations) in [("bfd", mutations_bfd::MUTATIONS), ("bgp", mutations_bgp::MUTATIONS)] {
        let root = announce.join(machine);
        println!("cargo::rerun-if-changed={}", root.display());
        let first = number + 1;
        number += mutations.len();
        let mut change = |path: &Path, text: String| {
            let mut text = text.replace("const fn ", "fn ");
            for (at, Mutation { name, file, within, old, new }) in mutations.iter().enumerate() {
                if path == root.join(file) {
                    let choice = format!("(if crate::is_chosen({}) {{ {new} }} else {{ {old} }})", first + at);
                    let changed = replace_once(within, old, &choice, name)?;
                    text = replace_once(&text, within, &changed, name)?;
                }
            }
            Ok(text)
        };
        let copy = expand(&root.join("machine"), "", &mut change)?;
        let copy = copy.replace("crate::announce", "crate::generated::announce");
        writeln!(out, "pub mod {machine} {{\npub use lb_userspace::announce::{machine}::*;")?;
        writeln!(out, "pub mod machine {{\n{copy}\n}}")?;
        writeln!(out, "}}")?;
        if machine == "bgp" {
            let silence = expand(&root.join("../silence"), "", &mut change)?;
            writeln!(out, "pub mod silence {{\n{silence}\n}}")?;
        }
        let names: Vec<_> = (first..).zip(mutations.iter().map(|mutation| mutation.name)).collect();
        writeln!(lists, "pub const {}: &[(usize, &str)] = &{names:?};", machine.to_uppercase())?;
    }
    writeln!(out, "}}\npub mod sim {{\n{simulation}\n}}\n{lists}")?;
    Ok(fs::write(to, out)?)
}
