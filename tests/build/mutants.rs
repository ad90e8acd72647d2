//! Writes deliberately broken copies of the forwarding decision, so that a test can show that it would notice.
//!
//! A mutant replaces one piece of text in one of lb-common's files; the tables, the verdict and everything else that
//! the copies share with the test stay lb-common's own. No test switch is needed in the decision itself.

use std::{error::Error, fmt::Write as _, fs, path::Path};

#[path = "mutations.rs"]
mod mutations;

use mutations::MUTATIONS;

/// The decision's files; all others are shared.
const FILES: [&str; 4] = ["steer", "answer", "headers", "checksum"];
/// What is shared of `steer.rs` itself: the verdict and the tables.
const SHARED: (&str, &str) = ("/// What becomes of the frame, which", "/// The hash whose high bits choose a slot");

/// Writes the mutants' source to `to`.
pub fn write(common: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    let mut sources = Vec::new();
    for file in FILES {
        let path = common.join(file).with_extension("rs");
        println!("cargo::rerun-if-changed={}", path.display());
        sources.push((file, fs::read_to_string(path)?));
    }
    println!("cargo::rerun-if-changed=build");
    let mut out = String::new();
    let mut list = String::new();
    // First the copy with nothing broken: it must not be noticed.
    let control = ("nothing is changed", "", "", "");
    for (number, (name, file, old, new)) in std::iter::once(&control).chain(MUTATIONS).enumerate() {
        writeln!(out, "mod mutant_{number} {{")?;
        writeln!(out, "use lb_common::{{abi, address, limiter, mark, packet, reason, session}};")?;
        for (source, text) in &sources {
            let mut text = text.clone();
            if source == file {
                let matches = text.matches(old).count();
                if matches != 1 {
                    return Err(format!("{matches} matches instead of one in {file}.rs for the mutant {name:?}").into());
                }
                text = text.replace(old, new);
            }
            writeln!(out, "pub mod {source} {{\n{}\n}}", adapt(source, &text)?)?;
        }
        writeln!(out, "}}")?;
        writeln!(list, "({name:?}, |frame, world| mutant_{number}::steer::steer(frame, world)),")?;
    }
    writeln!(out, "const MUTANTS: &[(&str, fn(&mut TestFrame, &World) -> Verdict)] = &[{list}];")?;
    Ok(fs::write(to, out)?)
}

fn adapt(source: &str, text: &str) -> Result<String, Box<dyn Error>> {
    // Unit tests stay behind; inlining everything into every mutant would only cost compile time.
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut text = text.replace("crate::", "super::").replace("#[inline(always)]", "");
    if source == "steer" {
        // Asked of the copy's own function, not of lb-common's.
        text = text.replace("tables.offer(", "offer(tables, ");
        let (Some(from), Some(to)) = (text.find(SHARED.0), text.find(SHARED.1)) else {
            return Err("steer.rs no longer has its verdict and tables in front of the hash".into());
        };
        text.replace_range(from..to, "pub use lb_common::steer::{Offer, Tables, Verdict};\n");
    }
    Ok(text)
}
