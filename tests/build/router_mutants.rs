//! Writes deliberately broken copies of the virtual router, each with a copy of the simulation that runs it, so that a test can
//! show that the simulation would notice.

use std::{error::Error, fmt::Write as _, fs, path::Path};

#[path = "mutations_router.rs"]
mod mutations;

/// The machine's parts.
const PARTS: [&str; 4] = ["election", "settings", "status", "timers"];
/// The simulation's parts.
const SIMULATION: [&str; 6] = ["faults", "monitor", "node", "random", "scenario", "world"];

/// Writes the copies to `to`, and a list of their names and runs.
pub fn write(vrrp: &Path, sim: &Path, to: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", vrrp.display());
    println!("cargo::rerun-if-changed={}", sim.display());
    let control = ("nothing is changed", "machine.rs", "", "");
    let (mut out, mut list) = (String::new(), String::new());
    for (number, mutation) in std::iter::once(&control).chain(mutations::MUTATIONS).enumerate() {
        writeln!(out, "mod router_{number} {{\nmod vrrp {{\npub use lb_userspace::announce::vrrp::*;")?;
        writeln!(out, "pub mod machine {{\n{}\n}}\n}}", machine(vrrp, mutation)?)?;
        writeln!(out, "pub mod sim {{\n{}\n}}\n}}", simulation(sim)?)?;
        writeln!(
            list,
            "({:?}, |seed| router_{number}::sim::run(seed).map(drop).map_err(|e| e.to_string())),",
            mutation.0
        )?;
    }
    writeln!(out, "const ROUTERS: &[(&str, fn(u64) -> Result<(), String>)] = &[{list}];")?;
    Ok(fs::write(to, out)?)
}

fn machine(vrrp: &Path, (name, file, old, new): &(&str, &str, &str, &str)) -> Result<String, Box<dyn Error>> {
    let read = |path: &str| -> Result<String, Box<dyn Error>> {
        let text = fs::read_to_string(vrrp.join(path))?;
        if path != *file || old.is_empty() {
            return Ok(text);
        }
        match text.matches(old).count() {
            1 => Ok(text.replace(old, new)),
            matches => Err(format!("{matches} matches instead of one in {path} for the mutant {name:?}").into()),
        }
    };
    let mut text = read("machine.rs")?;
    for part in PARTS {
        text = inline(&text, part, &read(&format!("machine/{part}.rs"))?)?;
    }
    Ok(text)
}

fn simulation(sim: &Path) -> Result<String, Box<dyn Error>> {
    let text = fs::read_to_string(sim.join("mod.rs"))?;
    // Its tests stay behind.
    let mut text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    for part in SIMULATION {
        let source = fs::read_to_string(sim.join(part).with_extension("rs"))?;
        text = inline(&text, part, &source.replace("lb_userspace::announce::vrrp", "super::super::vrrp"))?;
    }
    Ok(text)
}

/// Puts a part where it is named.
fn inline(text: &str, part: &str, source: &str) -> Result<String, Box<dyn Error>> {
    let named = format!("mod {part};");
    if text.matches(&named).count() != 1 {
        return Err(format!("{named} does not stand there once").into());
    }
    Ok(text.replace(&named, &format!("mod {part} {{\n{source}\n}}")))
}
