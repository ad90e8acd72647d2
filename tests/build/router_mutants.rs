//! Writes deliberately broken copies of the virtual router, each with a copy of the simulation that runs it, so that a test can
//! show that the simulation would notice.

use std::{error::Error, fmt::Write as _, fs, path::Path};

use super::expand::{expand, replace_once};

#[path = "mutations_router.rs"]
mod mutations;

/// Writes the copies to `to`, and a list of their names and runs.
pub fn write(vrrp: &Path, sim: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", vrrp.display());
    println!("cargo::rerun-if-changed={}", sim.display());
    let simulation = expand(sim, "bgp", &mut |_, text| Ok(text))?;
    let control = ("nothing is changed", "machine.rs", "", "");
    let (mut out, mut list) = (String::new(), String::new());
    for (number, (name, file, old, new)) in std::iter::once(&control).chain(mutations::MUTATIONS).enumerate() {
        let mut change = |path: &Path, text: String| match path == vrrp.join(file) && !old.is_empty() {
            true => replace_once(&text, old, new, name),
            false => Ok(text),
        };
        let machine = expand(&vrrp.join("machine"), "", &mut change)?;
        let here = format!("crate::generated::router_{number}");
        let simulation = simulation.replace("lb_userspace::announce::vrrp", &format!("{here}::vrrp"));
        writeln!(out, "mod router_{number} {{\nmod vrrp {{\npub use lb_userspace::announce::vrrp::*;")?;
        writeln!(out, "pub mod machine {{\n{machine}\n}}\n}}\npub mod sim {{\n{simulation}\n}}\n}}")?;
        writeln!(
            list,
            "({name:?}, |seed| router_{number}::sim::vrrp::run(seed).map(drop).map_err(|e| e.to_string())),"
        )?;
    }
    writeln!(out, "const ROUTERS: &[(&str, fn(u64) -> Result<(), String>)] = &[{list}];")?;
    Ok(fs::write(to, out)?)
}
