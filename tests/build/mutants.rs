//! Writes deliberately broken copies of the forwarding decision, so that a test can show that it would notice.
//!
//! A mutant replaces one piece of text in one of lb-common's files; the tables, the verdict and everything else that
//! the copies share with the test stay lb-common's own. No test switch is needed in the decision itself.

use std::{error::Error, fmt::Write as _, fs, path::Path};

#[path = "mutations.rs"]
mod mutations;
#[path = "mutations_neighbor.rs"]
mod mutations_neighbor;
#[path = "mutations_slow.rs"]
mod mutations_slow;

use mutations::MUTATIONS;

/// The decision's files; all others are shared.
const FILES: [&str; 12] = [
    "steer",
    "offer",
    "slow",
    "affinity",
    "opaque",
    "session",
    "answer",
    "icmp",
    "neighbor",
    "virtual_mac",
    "headers",
    "checksum",
];
/// What is shared of these files too: from the first text up to the second, and what stands for it.
const SHARED: [(&str, &str, &str, &str); 6] = [
    (
        "offer",
        "/// A packet that does not simply go",
        "/// Who gets a TCP packet of a moved slot",
        "pub use lb_common::offer::{Offer, offer_kind};\n",
    ),
    (
        "steer",
        "/// What becomes of the frame, which",
        "/// The hash whose high bits choose a slot",
        "pub use lb_common::steer::{Tables, Verdict};\n",
    ),
    (
        "session",
        "/// What a pod's kernel has under",
        "/// Sees to it that the replies",
        "pub use lb_common::session::{Claim, Claimed, Sessions, Socket, flag, opens};\n",
    ),
    (
        "opaque",
        "/// A TCP segment that a pod sends as",
        "/// Whether a backend is opaque",
        "pub use lb_common::opaque::Segment;\n",
    ),
    (
        "neighbor",
        "/// What is asked and told about",
        "/// Bytes of an ARP packet for",
        "pub use lb_common::neighbor::Holders;\n",
    ),
    (
        "slow",
        "/// What is asked and told about",
        "/// Decides what becomes of an ICMP message",
        "pub use lb_common::slow::Fragments;\n",
    ),
];

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
    for (number, (name, file, old, new)) in std::iter::once(&control)
        .chain(MUTATIONS)
        .chain(mutations_slow::MUTATIONS)
        .chain(mutations_neighbor::MUTATIONS)
        .enumerate()
    {
        writeln!(out, "mod mutant_{number} {{")?;
        writeln!(
            out,
            "use lb_common::{{abi, address, flow, fragments, holder, limiter, mark, packet, reason, reply}};"
        )?;
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
        writeln!(list, "({name:?}, |frame, world| mutant_{number}::slow::whole(frame, world)),")?;
    }
    writeln!(out, "const MUTANTS: &[(&str, fn(&mut TestFrame, &World) -> Verdict)] = &[{list}];")?;
    Ok(fs::write(to, out)?)
}

fn adapt(source: &str, text: &str) -> Result<String, Box<dyn Error>> {
    // Unit tests stay behind; inlining everything into every mutant would only cost compile time.
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut text = text.replace("crate::", "super::").replace("#[inline(always)]", "");
    // Asked of the copies' own functions, not of lb-common's.
    text = text
        .replace("tables.offer(", "super::offer::offer(tables, ")
        .replace("tables.claim(", "session::claim(tables, ");
    text = text.replace("tables.admits(frame)", "super::virtual_mac::admit(frame, tables)");
    if source == "steer" {
        text = text.replace(
            "pub fn steer<F: Frame, T: Tables>",
            "pub fn steer<F: Frame, T: Tables + super::neighbor::Holders>",
        );
    }
    text = text.replace("tables.keep(", "super::affinity::keep(tables, ");
    for (_, from, to, instead) in SHARED.iter().filter(|shared| shared.0 == source) {
        let (Some(from), Some(to)) = (text.find(from), text.find(to)) else {
            return Err(format!("{source}.rs no longer has what is shared from {from:?} up to {to:?}").into());
        };
        text.replace_range(from..to, instead);
    }
    Ok(text)
}
