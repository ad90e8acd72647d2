//! Rules that no compiler checks, each a row of a table. They run as a test and in `cargo xtask lint`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A file tells one story.
const LINES_MAX: usize = 600;

/// Never entered: what is built, what is not ours.
const SKIPPED: &[&str] = &["target", ".git", "prototype"];

/// What the sources below a path may not name.
struct Ring {
    below: &'static str,
    why: &'static str,
    /// Modules of the same crate.
    modules: &'static [&'static str],
    /// Any text.
    texts: &'static [&'static str],
}

/// Dependencies point inward: pure, edge, engine.
const RINGS: &[Ring] = &[
    Ring { below: "lb-userspace/src/model", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/plan", why: PURE, modules: OUTER, texts: IO },
    Ring {
        below: "lb-userspace/src/preflight",
        why: LINKS,
        modules: &["dataplane", "engine", "config", "cli"],
        texts: IO,
    },
    Ring { below: "lb-userspace/src/survey", why: EDGE, modules: &["engine", "cli"], texts: &["aya::programs"] },
    Ring { below: "lb-userspace/src/config", why: EDGE, modules: &["engine", "cli", "dataplane"], texts: &["aya::"] },
    Ring {
        below: "lb-userspace/src/net",
        why: EDGE,
        modules: &["engine", "cli", "config", "privileges"],
        texts: &["aya::"],
    },
    Ring {
        below: "lb-userspace/src/privileges",
        why: EDGE,
        modules: &["engine", "cli", "config", "dataplane"],
        texts: &["aya::"],
    },
    Ring {
        below: "lb-userspace/src/dataplane",
        why: EDGE,
        modules: &["engine", "cli", "config", "privileges"],
        texts: &[],
    },
    Ring {
        below: "lb-userspace/src/health",
        why: EDGE,
        modules: &["engine", "cli", "config", "net"],
        texts: &["aya::"],
    },
    Ring {
        below: "lb-userspace/src/observe",
        why: EDGE,
        modules: &["engine", "cli", "config", "net", "dataplane"],
        texts: &["aya::"],
    },
    Ring { below: "lb-userspace/src/observe/metrics", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/observe/meter", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/health/machine", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/health/targets", why: PURE, modules: OUTER, texts: IO },
    Ring {
        below: "lb-userspace/src/announce",
        why: EDGE,
        modules: &["engine", "cli", "config", "dataplane"],
        texts: &["aya::"],
    },
    Ring { below: "lb-userspace/src/announce/vrrp", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/announce/bfd/machine", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/announce/bfd/packet", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/announce/bgp/machine", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/announce/bgp/packet", why: PURE, modules: OUTER, texts: IO },
    Ring { below: "lb-userspace/src/announce/eligibility", why: VALUES, modules: BEYOND_NET, texts: IO },
    Ring { below: "lb-userspace/src/announce/wanted", why: VALUES, modules: BEYOND_NET, texts: IO },
    Ring { below: "lb-userspace/src/announce/l2", why: VALUES, modules: BEYOND_NET, texts: IO },
    Ring { below: "lb-common/src", why: "lb-common decides, and touches nothing", modules: &[], texts: IO },
];

const PURE: &str = "a pure module takes what it needs as arguments";
const LINKS: &str = "pre-flight judges what others looked at: of the edge it knows the plain values of `net` alone";
const VALUES: &str =
    "a pure module takes what it needs as arguments; of the edge it knows the plain values of `net` alone";
const EDGE: &str = "an edge module knows neither the engine nor its neighbours";
const OUTER: &[&str] = &["net", "privileges", "supervisor", "dataplane", "engine", "config", "cli"];
const BEYOND_NET: &[&str] = &["privileges", "supervisor", "dataplane", "engine", "config", "cli"];
const IO: &[&str] = &[
    "std::fs",
    "std::process",
    "std::thread",
    "std::net::TcpStream",
    "std::net::UdpSocket",
    "Instant::now",
    "SystemTime::now",
    "tokio::",
    "aya::maps",
    "aya::programs",
    "libc::",
];

/// The product measures time by clocks that nobody sets: `Instant` (CLOCK_MONOTONIC) in the agent, jiffies in the programs.
/// Both stand still while the machine sleeps, so records and the agent's view of them keep the same age. The wall clock is
/// shown, and decides nothing. Who answers for a VIP must have an end that comes while the machine sleeps: that alone is told
/// by the boot clock.
const OTHER_CLOCKS: &[&str] = &[
    concat!("System", "Time"),
    concat!("CLOCK_REAL", "TIME"),
    concat!("CLOCK_BOOT", "TIME"),
    concat!("ClockId::Boot", "time"),
    concat!("ktime_get_", "boot"),
];
const PRODUCT: &[&str] = &["lb-userspace/src/", "lb-common/src/", "lb-ebpf/src/"];
/// Where the wall clock is shown: the status says since when the agent runs.
const SHOWS_WALL_CLOCK: &[&str] = &["lb-userspace/src/engine/report.rs"];
/// Where the boot clock is read.
const READS_BOOT_CLOCK: &[&str] = &["lb-userspace/src/announce/driver.rs", "lb-ebpf/src/holders.rs"];

/// Directories of one person's machine, in halves so that this file passes its own rule.
const MACHINE_PATHS: &[&str] =
    &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];

/// Everything in the repository that breaks a rule: `file:line: what, why`.
pub fn violations(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        check(&name, &text, &mut found);
    }
    Ok(found)
}

fn check(name: &str, text: &str, found: &mut Vec<String>) {
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(**path)) {
            found.push(format!("{name}:{number}: {path} is a directory of one machine"));
        }
    }
    if !name.ends_with(".rs") {
        return;
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        found.push(format!("{name}: {lines} lines, at most {LINES_MAX}: a file tells one story"));
    }
    for (offset, attribute) in attributes(text, "allow(") {
        if !attribute.contains("reason") {
            found.push(format!("{name}:{}: `allow` without a reason", line_number(text, offset)));
        }
    }
    for ring in RINGS.iter().filter(|ring| is_below(name, ring.below)) {
        check_ring(name, product_code(name, text), ring, found);
    }
    let may_read = SHOWS_WALL_CLOCK.contains(&name) || READS_BOOT_CLOCK.contains(&name);
    if PRODUCT.iter().any(|product| name.starts_with(product)) && !may_read {
        check_clocks(name, product_code(name, text), found);
    }
}

fn check_clocks(name: &str, code: &str, found: &mut Vec<String>) {
    for (number, line) in (1..).zip(code.lines()) {
        let line = line.split("//").next().unwrap_or_default();
        for clock in OTHER_CLOCKS.iter().filter(|clock| line.contains(**clock)) {
            found.push(format!(
                "{name}:{number}: uses {clock}: it jumps, or goes on while the machine sleeps; use Instant"
            ));
        }
    }
}

fn check_ring(name: &str, code: &str, ring: &Ring, found: &mut Vec<String>) {
    for (number, line) in (1..).zip(code.lines()) {
        let line = line.split("//").next().unwrap_or_default();
        for text in ring.texts.iter().filter(|text| line.contains(**text)) {
            found.push(format!("{name}:{number}: uses {text}: {}", ring.why));
        }
    }
    for (offset, module) in crate_modules(code) {
        if ring.modules.contains(&module) {
            found.push(format!("{name}:{}: uses crate::{module}: {}", line_number(code, offset), ring.why));
        }
    }
}

/// Modules named by `crate::module` and `crate::{module, other::{…}}`, with where.
fn crate_modules(code: &str) -> Vec<(usize, &str)> {
    let mut modules = Vec::new();
    for (start, marker) in code.match_indices("crate::") {
        let rest = &code[start + marker.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            modules.push((start, identifier(rest)));
            continue;
        };
        let (mut depth, mut item_begins) = (1, true);
        for (position, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 1 => item_begins = true,
                c if item_begins && !c.is_whitespace() => {
                    modules.push((start, identifier(&group[position..])));
                    item_begins = false;
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    modules
}

fn identifier(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// The attributes `#[NAME…]` and `#![NAME…]`, each to its closing bracket.
fn attributes<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (usize, &'a str)> {
    text.match_indices(name).filter_map(move |(offset, _)| {
        let before = &text[..offset];
        (before.ends_with("#[") || before.ends_with("#![")).then(|| {
            let rest = &text[offset..];
            (offset, rest.split(")]").next().unwrap_or(rest))
        })
    })
}

/// Tests may do what they like.
fn product_code<'a>(name: &str, text: &'a str) -> &'a str {
    if name.ends_with("tests.rs") || name.contains("/tests/") {
        return "";
    }
    text.split("#[cfg(test)]\nmod ").next().unwrap_or(text)
}

fn is_below(name: &str, path: &str) -> bool {
    name.strip_prefix(path).is_some_and(|rest| rest.starts_with(['/', '.']))
}

fn line_number(text: &str, offset: usize) -> usize {
    text[..offset].matches('\n').count() + 1
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if SKIPPED.iter().any(|skipped| entry.file_name() == *skipped) {
            continue;
        }
        if kind.is_dir() {
            collect(&entry.path(), files)?;
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::root;

    fn found(name: &str, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check(name, text, &mut found);
        found
    }

    #[test]
    fn the_repository_keeps_its_rules() {
        let violations = violations(&root()).unwrap();
        assert!(violations.is_empty(), "\n{}", violations.join("\n"));
    }

    #[test]
    fn a_pure_module_that_reaches_outward_is_found_however_it_is_written() {
        for text in [
            "use crate::net::Link;",
            "use crate::{model::{Service, Rung}, net::Link};",
            "use crate::{\n    model,\n    config,\n};",
            "use std::fs;",
            "fn f() { let now = std::time::Instant::now(); }",
        ] {
            assert_eq!(found("lb-userspace/src/plan/diff.rs", text).len(), 1, "{text}");
            assert!(found("lb-userspace/src/engine.rs", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn what_is_allowed_is_let_through() {
        for text in [
            "use crate::{model::{self, net_like}, plan};",
            "// as std::fs would",
            "fn f() {}\n\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}",
        ] {
            assert!(found("lb-userspace/src/plan/mod.rs", text).is_empty(), "{text}");
        }
    }

    #[test]
    fn a_clock_that_jumps_is_found_where_it_is_not_only_shown() {
        let text = concat!("fn f() { let now = std::time::System", "Time::now(); }");
        assert_eq!(found("lb-userspace/src/engine/flows.rs", text).len(), 1);
        assert_eq!(found("lb-ebpf/src/time.rs", concat!("let t = CLOCK_BOOT", "TIME;")).len(), 1);
        assert!(found("lb-userspace/src/engine/report.rs", text).is_empty());
        assert!(found("tests/src/lab.rs", text).is_empty());
    }

    #[test]
    fn long_files_bare_allows_and_machine_paths_are_found() {
        assert_eq!(found("a.rs", &"\n".repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(found("a.rs", concat!("#[al", "low(dead_code)]\nfn f() {}")).len(), 1);
        assert!(found("a.rs", concat!("#[al", "low(dead_code, reason = \"x\")]\nfn f() {}")).is_empty());
        assert_eq!(found("a.md", concat!("see /ho", "me/me/notes")).len(), 1);
    }
}
