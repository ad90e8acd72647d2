//! What is made from the types and committed: the schema in `deploy/`, and the tables of `docs/configuration.md`.
//!
//! `SLUICE_UPDATE=1 cargo test -p lb-userspace --test generated` writes them anew.

use std::{fs, path::PathBuf};

use lb_userspace::config::{self, Key};
use serde_json::Value;

const UPDATE: &str = "SLUICE_UPDATE";

/// Stands before a table in the reference, with the keys at the top of the file whose rows it has.
const MARKER: &str = "<!-- keys: ";

fn repository_file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Compares a file with what it must be, or writes it where that is asked for.
#[track_caller]
fn check_file(path: &str, wanted: &str) {
    let file = repository_file(path);
    if std::env::var_os(UPDATE).is_some() {
        fs::write(&file, wanted).unwrap_or_else(|error| panic!("{path}: {error}"));
        return;
    }
    let found = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{path}: {error}"));
    let difference = (1..).zip(found.lines().zip(wanted.lines())).find(|(_, (found, wanted))| found != wanted);
    let place = difference.map_or_else(
        || "one is longer than the other".to_owned(),
        |(line, (found, wanted))| format!("line {line} is\n  {found}\nand must be\n  {wanted}"),
    );
    let command = format!("{UPDATE}=1 cargo test -p lb-userspace --test generated");
    assert!(found == wanted, "{path} is not what the types give: {place}\nwrite it anew: {command}");
}

#[test]
fn every_key_says_what_it_means_and_what_may_stand_there() {
    let mut wrong = Vec::new();
    for Key { path, schema, required } in config::keys() {
        if schema["x-unsaid"].is_boolean() || schema["items"]["x-unsaid"].is_boolean() {
            wrong.push(format!("`{path}`: say what may stand there, #[schemars(with = …)]"));
        }
        if schema["description"].as_str().is_none_or(str::is_empty) {
            wrong.push(format!("`{path}`: say what it means, in a comment with three slashes"));
        }
        let has_keys = schema["properties"].is_object();
        let has_default = !schema["default"].is_null() || schema["x-default"].is_string();
        if !required && !has_keys && !has_default {
            wrong.push(format!("`{path}`: say what stands for it unsaid, extend(\"default\" = …) or \"x-default\""));
        }
    }
    assert!(wrong.is_empty(), "in lb-userspace/src/config/raw.rs:\n  {}", wrong.join("\n  "));
}

#[test]
fn the_schema_is_what_the_types_give() {
    check_file("deploy/sluice.schema.json", &config::schema_text());
}

#[test]
fn the_reference_has_the_tables_that_the_types_give() {
    let path = "docs/configuration.md";
    let text = fs::read_to_string(repository_file(path)).unwrap();
    let keys = config::keys();
    let mut wanted = String::new();
    let mut missing: Vec<&str> = keys.iter().map(|key| key.path.as_str()).collect();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        wanted += &format!("{line}\n");
        let Some(tops) = line.strip_prefix(MARKER).and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        let tops: Vec<&str> = tops.split(' ').collect();
        let is_here = |path: &str| tops.contains(&path.split(['.', '[']).next().unwrap_or_default());
        wanted += "| key | type | default | limits | meaning | Kubernetes |\n|---|---|---|---|---|---|\n";
        wanted.extend(keys.iter().filter(|key| is_here(&key.path)).map(row));
        missing.retain(|path| !is_here(path));
        while lines.next_if(|line| line.starts_with('|')).is_some() {}
    }
    assert!(missing.is_empty(), "{path}: no `{MARKER}… -->` names the first part of {missing:?}");
    check_file(path, &wanted);
}

fn row(Key { path, schema, required }: &Key) -> String {
    let meaning = schema["description"].as_str().unwrap_or_default().replace('\n', " ");
    let default = match (&schema["x-default"], &schema["default"]) {
        _ if *required => "required".to_owned(),
        (Value::String(words), _) => words.clone(),
        (_, Value::Null) => "all defaults".to_owned(),
        (_, Value::String(word)) => format!("`{word}`"),
        (_, value) => format!("`{value}`"),
    };
    let kubernetes = schema["x-kubernetes"].as_str().map_or_else(String::new, |field| format!("`{field}`"));
    format!("| `{path}` | {} | {default} | {} | {meaning} | {kubernetes} |\n", kind(schema), limits(schema))
}

/// What stands behind a key, in words.
fn kind(schema: &Value) -> String {
    let is = |kind: &str| {
        let kinds = &schema["type"];
        kinds == kind || kinds.as_array().is_some_and(|kinds| kinds.iter().any(|one| one == kind))
    };
    if let Some(words) = schema["enum"].as_array() {
        return words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    }
    if is("array") {
        return match kind(&schema["items"]).as_str() {
            "keys" => "list".to_owned(),
            "address" => "list of addresses".to_owned(),
            "prefix" => "list of prefixes".to_owned(),
            "pair of numbers" => "list of pairs of numbers".to_owned(),
            "triple of numbers" => "list of triples of numbers".to_owned(),
            words if words.starts_with('`') => format!("list of {words}"),
            one => format!("list of {one}s"),
        };
    }
    let kind = match (schema["format"].as_str(), schema["pattern"].as_str()) {
        _ if is("object") => "keys",
        (Some("power-of-two"), _) => "power of two",
        _ if is("integer") => "number",
        _ if schema["anyOf"][0]["format"] == "ipv4" => "address",
        // Keys that may be left out.
        _ if schema["anyOf"][0]["anyOf"][0]["format"] == "ipv4" => "address",
        _ if schema["anyOf"][0]["type"] == "object" => "keys",
        (_, Some(pattern)) if pattern.starts_with("^[0-9]+(ms") => "duration",
        (_, Some(pattern)) if pattern.starts_with("^[0-9a-fA-F:.]+(/") => "prefix",
        (_, Some(pattern)) if pattern.matches("):(").count() == 1 => "pair of numbers",
        (_, Some(pattern)) if pattern.matches("):(").count() == 2 => "triple of numbers",
        (_, Some(pattern)) if pattern.starts_with("^/[!-~]") => "text",
        (_, Some(pattern)) if pattern.starts_with("^/") => "absolute path",
        _ if is("number") => "text",
        _ if is("boolean") => "`true`, `false`",
        _ => panic!("no word for {schema:#}"),
    };
    kind.to_owned()
}

/// The least and the most, of the value, of a list's length and of its values.
fn limits(schema: &Value) -> String {
    let range = |schema: &Value, least: &str, most: &str, unit: &str| {
        let number = |name: &str| schema[name].as_u64();
        match (number(least), number(most)) {
            (Some(least), Some(most)) => Some(format!("{least} to {most}{unit}")),
            (None, Some(most)) => Some(format!("at most {most}{unit}")),
            (Some(least), None) => Some(format!("at least {least}{unit}")),
            (None, None) => None,
        }
    };
    let parts = [
        range(schema, "minimum", "maximum", ""),
        range(schema, "minLength", "maxLength", " bytes"),
        range(schema, "minItems", "maxItems", " entries"),
        range(&schema["items"], "minimum", "maximum", " each"),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
