//! Every line of the log names its objects as `docs/observation.md` says.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        match entry.file_type().unwrap().is_dir() {
            true => sources(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            false => {}
        }
    }
}

/// The first column of the table of fields.
fn documented() -> BTreeSet<String> {
    let page = fs::read_to_string(repository("docs/observation.md")).unwrap();
    let section = page.split("\n### Fields\n").nth(1).expect("a section of fields");
    let rows = section.lines().take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with("| `"));
    rows.map(|row| row.split('`').nth(1).unwrap().to_owned()).collect()
}

/// The arguments of every tracing macro before its message, each with the place of the macro.
fn fields(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for level in ["trace!(", "debug!(", "info!(", "warn!(", "error!("] {
        for (start, _) in text.match_indices(level) {
            let before = text[..start].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let line = 1 + text[..start].matches('\n').count();
            let arguments = &text[start + level.len()..];
            // A message begins with a quote; a value never has one before it is over.
            let fields = &arguments[..arguments.find('"').unwrap_or_else(|| panic!("no message in line {line}"))];
            let (mut depth, mut argument) = (0, String::new());
            for c in fields.chars() {
                match c {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth -= 1,
                    ',' if depth == 0 => {
                        found.push((line, std::mem::take(&mut argument)));
                        continue;
                    }
                    _ => {}
                }
                argument.push(c);
            }
        }
    }
    found
}

/// `name` of `name = value`, `%name` and `?name`.
fn name(argument: &str) -> &str {
    argument.split('=').next().unwrap_or_default().trim().trim_start_matches(['%', '?'])
}

#[test]
fn fields_are_found_however_they_are_written() {
    let text =
        "info!(%error, pod = ?f(a, b), uplink = x.y, \"text {z}\");\n    warn!(\"nothing\");\nmy_info!(q, \"no\");";
    let names: Vec<_> = fields(text).iter().map(|(line, field)| (*line, name(field).to_owned())).collect();
    assert_eq!(names, [(1, "error".to_owned()), (1, "pod".to_owned()), (1, "uplink".to_owned())]);
}

#[test]
fn every_field_of_the_log_is_in_the_vocabulary() {
    let mut files = Vec::new();
    sources(&repository("lb-userspace/src"), &mut files);
    let documented = documented();
    let (mut unknown, mut lines) = (Vec::new(), 0);
    for file in files {
        for (line, field) in fields(&fs::read_to_string(&file).unwrap()) {
            lines += 1;
            if !documented.contains(name(&field)) {
                unknown.push(format!("{}:{line}: {}", file.display(), name(&field)));
            }
        }
    }
    assert!(lines > 30, "only {lines} fields found: are they written otherwise now?");
    assert!(unknown.is_empty(), "not in docs/observation.md:\n{}", unknown.join("\n"));
}
