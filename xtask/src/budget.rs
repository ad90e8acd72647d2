//! The committed budget: what each program may cost. A change that makes one dearer says so in its commit.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail};

use crate::{shell::root, verifier::Cost};

const HEADER: &str = "\
# What each eBPF program may cost: `cargo xtask build-ebpf` fails above it.
# Written by `cargo xtask build-ebpf --update-budget`, with some room for another compiler's choices.
# verified_instructions: walked by the verifier over all paths; the kernel's limit is 1,000,000.
# stack_bytes: summed over the program's functions; the kernel's limit is 512 for a chain of calls.

";

type Costs = BTreeMap<String, Cost>;

/// Prints the costs beside the budget; an error names everything that is above it.
pub fn check(costs: &Costs) -> Result<()> {
    let path = path();
    let text = fs::read_to_string(&path).unwrap_or_default();
    let budget: Costs = toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    print(costs, &budget);
    let violations = violations(costs, &budget);
    if !violations.is_empty() {
        bail!(
            "over the budget of ebpf-budget.toml:\n  {}\nmake it cheaper, or raise the budget with \
             `cargo xtask build-ebpf --update-budget` and say why in the commit",
            violations.join("\n  ")
        );
    }
    Ok(())
}

/// Makes today's costs the budget.
pub fn update(costs: &Costs) -> Result<()> {
    let budget: Costs = costs.iter().map(|(name, cost)| (name.clone(), with_room(*cost))).collect();
    print(costs, &budget);
    let path = path();
    fs::write(&path, format!("{HEADER}{}", toml::to_string(&budget)?))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to ebpf-budget.toml");
    Ok(())
}

fn path() -> PathBuf {
    root().join("ebpf-budget.toml")
}

/// Compilers differ by a few percent in instructions, and more in paths.
fn with_room(cost: Cost) -> Cost {
    Cost {
        instructions: (cost.instructions + cost.instructions / 20).next_multiple_of(10),
        verified_instructions: (cost.verified_instructions + cost.verified_instructions / 10).next_multiple_of(100),
        stack_bytes: cost.stack_bytes.next_multiple_of(16),
    }
}

fn violations(costs: &Costs, budget: &Costs) -> Vec<String> {
    let mut violations = Vec::new();
    for (name, cost) in costs {
        let Some(allowed) = budget.get(name) else {
            violations.push(format!("{name} has no budget"));
            continue;
        };
        for (unit, is, may) in [
            ("instructions", cost.instructions, allowed.instructions),
            ("verified instructions", cost.verified_instructions, allowed.verified_instructions),
            ("bytes of stack", cost.stack_bytes, allowed.stack_bytes),
        ] {
            if is > may {
                violations.push(format!("{name}: {is} {unit}, budget {may}"));
            }
        }
    }
    let gone = budget.keys().filter(|name| !costs.contains_key(*name));
    violations.extend(gone.map(|name| format!("{name} has a budget but does not exist")));
    violations
}

fn print(costs: &Costs, budget: &Costs) {
    println!("{:<24} {:>20} {:>22} {:>18}", "program", "instructions", "verified", "stack bytes");
    for (name, cost) in costs {
        let allowed = budget.get(name);
        let cell = |is: u32, may: Option<u32>| may.map_or_else(|| format!("{is} / -"), |may| format!("{is} / {may}"));
        println!(
            "{name:<24} {:>20} {:>22} {:>18}",
            cell(cost.instructions, allowed.map(|a| a.instructions)),
            cell(cost.verified_instructions, allowed.map(|a| a.verified_instructions)),
            cell(cost.stack_bytes, allowed.map(|a| a.stack_bytes)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(instructions: u32) -> Cost {
        Cost { instructions, verified_instructions: 10 * instructions, stack_bytes: 64 }
    }

    fn one(name: &str, cost: Cost) -> Costs {
        BTreeMap::from([(name.to_owned(), cost)])
    }

    #[test]
    fn a_program_above_its_budget_without_one_or_gone_is_reported() {
        let budget = one("a", cost(100));
        assert!(violations(&one("a", cost(100)), &budget).is_empty());
        assert_eq!(violations(&one("a", cost(101)), &budget).len(), 2);
        assert_eq!(violations(&one("b", cost(1)), &budget).len(), 2);
    }

    #[test]
    fn a_fresh_budget_holds_and_survives_the_file() {
        let costs = one("a", cost(1234));
        let budget: Costs = costs.iter().map(|(name, cost)| (name.clone(), with_room(*cost))).collect();
        assert!(violations(&costs, &budget).is_empty());
        assert_eq!(toml::from_str::<Costs>(&toml::to_string(&budget).unwrap()).unwrap(), budget);
    }
}
