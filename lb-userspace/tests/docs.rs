//! The documents against the code: what has a name there has a row here, and the other way round; what is generated is as
//! it would be generated now.

use std::{collections::BTreeSet, fs, path::Path};

use lb_common::reason::Reason;
use lb_userspace::{
    dataplane::{
        capacity::Sizes,
        object::{TC_PROGRAMS, XDP_PROGRAMS},
    },
    model::Capacities,
    observe::metrics,
    preflight::Check,
};

/// With this variable set to 1, generated pages are written anew instead of compared.
const WRITE: &str = "SLUICE_WRITE_DOCS";

/// Compares a generated page with what is in `docs/`.
fn check_generated(name: &str, page: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    if std::env::var_os(WRITE).is_some_and(|value| value == "1") {
        fs::write(&path, page).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "docs/{name} is not as the code has it; run this test with {WRITE}=1");
}

/// The names in backquotes in a column of the table under a heading.
fn names(heading: &str, column: usize) -> Vec<String> {
    names_in("dataplane.md", heading, column)
}

fn names_in(file: &str, heading: &str, column: usize) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let marker = format!("\n## {heading}\n");
    let section = text.split(&marker).nth(1).unwrap_or_else(|| panic!("no section {heading:?}"));
    section
        .lines()
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with('|'))
        .filter_map(|row| row.split('|').nth(column))
        .filter_map(|cell| cell.trim().strip_prefix('`')?.strip_suffix('`').map(str::to_owned))
        .collect()
}

fn check<'a>(heading: &str, documented: &[String], code: impl Iterator<Item = &'a str>) {
    let code: BTreeSet<&str> = code.collect();
    let unique: BTreeSet<&str> = documented.iter().map(String::as_str).collect();
    let missing: Vec<_> = code.difference(&unique).collect();
    let foreign: Vec<_> = unique.difference(&code).collect();
    assert!(missing.is_empty(), "{heading}: no row for {missing:?}");
    assert!(foreign.is_empty(), "{heading}: rows for what the code does not have: {foreign:?}");
    assert_eq!(unique.len(), documented.len(), "{heading}: a name has two rows");
}

#[test]
fn every_program_has_a_row() {
    check("Programs", &names("Programs", 1), TC_PROGRAMS.into_iter().chain(XDP_PROGRAMS));
}

#[test]
fn every_map_has_a_row() {
    let maps = Sizes::new(&Capacities::default()).maps(1);
    check("Maps", &names("Maps", 1), maps.iter().map(|(name, ..)| *name));
}

#[test]
fn every_reason_has_a_row_in_the_order_of_its_key() {
    let documented = names("Reasons", 2);
    check("Reasons", &documented, Reason::ALL.iter().map(|(_, name, _)| *name));
    assert!(documented.iter().eq(Reason::ALL.iter().map(|(_, name, _)| name)), "rows are not in the order of the keys");
}

#[test]
fn every_finding_has_a_row_with_its_severity() {
    let documented = names_in("preflight.md", "Findings", 1);
    check("Findings", &documented, Check::ALL.iter().map(|check| check.id()));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/preflight.md");
    let text = fs::read_to_string(path).unwrap();
    for check in Check::ALL {
        let row = format!("| `{}` | {} |", check.id(), check.severity().name());
        assert!(text.contains(&row), "no row begins with {row}");
    }
}

#[test]
fn the_reference_of_metrics_is_generated_from_their_table() {
    check_generated("metrics.md", &metrics::reference());
}
